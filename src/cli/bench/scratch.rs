//! The scratch directory: made, locked, removed; and what an earlier run was killed over, swept.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use tarnfs::sys::mount::mounts;

/// How its name begins.
const PREFIX: &str = "tarnfs-bench-";

/// How often somebody else may sweep what was just made.
const ATTEMPTS: usize = 16;

/// A directory of this run's own. All of it goes when it is dropped; the lock on it goes with the
/// process, whichever way that ends, so that a lock that can be had means that nobody is left.
#[derive(Debug)]
pub(super) struct Scratch {
    dir: tempfile::TempDir,
    /// Last: what is being removed is not to be swept.
    _lock: File,
}

impl Scratch {
    /// Makes one in `within`, after it has removed what killed runs have left there.
    pub(super) fn new(within: &Path) -> anyhow::Result<Self> {
        let within = within
            .canonicalize()
            .with_context(|| within.display().to_string())?;
        // They mean something to overlayfs and to fuse-overlayfs.
        if within.to_string_lossy().contains([':', ',', '\\']) {
            bail!(
                "--dir {}: its path must be without : , and \\",
                within.display()
            );
        }
        sweep(&within)?;
        for _ in 0..ATTEMPTS {
            let dir = tempfile::Builder::new()
                .prefix(PREFIX)
                .tempdir_in(&within)
                .with_context(|| within.display().to_string())?;
            if let Some(lock) = lock(dir.path())? {
                return Ok(Self { dir, _lock: lock });
            }
        }
        bail!("{}: others remove what is made there", within.display())
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Locks a directory, for as long as the file is open; `None` if somebody else has, or if it is
/// gone.
fn lock(dir: &Path) -> anyhow::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(dir, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error).with_context(|| dir.display().to_string()),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error).with_context(|| dir.display().to_string()),
    }
    // It may have been removed before it was locked.
    Ok((file.metadata()?.nlink() > 0).then_some(file))
}

/// Removes the scratch directories of runs that have ended.
fn sweep(within: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(within).with_context(|| within.display().to_string())?;
    let own = rustix::process::geteuid().as_raw();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX)
            || !entry.metadata().is_ok_and(|m| m.is_dir() && m.uid() == own)
        {
            continue;
        }
        let Some(_lock) = lock(&path)? else {
            continue;
        };
        // Nothing is removed through a mount.
        let mounted: Vec<PathBuf> = mounts()?.into_iter().map(|mount| mount.path).collect();
        if mounted.iter().any(|mount| mount.starts_with(&path)) {
            tracing::warn!("{}: something is mounted in it; left", path.display());
            continue;
        }
        std::fs::remove_dir_all(&path)
            .with_context(|| format!("removing {}, left by an earlier run", path.display()))?;
    }
    Ok(())
}
