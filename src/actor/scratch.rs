//! The private directory of an actor: its mount point, and its upper where none was given.
//!
//! `<store>/runs/run-*`, each with a locked file `lock` in it for as long as the actor lives. A
//! process that is killed leaves its directory behind with the lock free, and [`sweep`] of a
//! later one removes it. Creating and sweeping exclude each other through `<store>/runs/.lock`,
//! so that a directory is never seen without its lock.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::ActorError;
use crate::mount::remove_private;

const PREFIX: &str = "run-";
/// Next to `lock`: the directory is kept when the actor ends.
const KEPT: &str = "kept";

/// An actor's private directory. Dropped, it is removed, unless it was kept.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    keep: bool,
    _lock: File,
}

impl Scratch {
    /// Makes one below `store`, after [`sweep`].
    ///
    /// # Errors
    /// The system's.
    pub fn new(store: &Path, keep: bool) -> Result<Self, ActorError> {
        let runs = store.join("runs");
        let failed =
            |path: &Path| ActorError::path("cannot make the actor's directory", path.to_owned());
        // A set-user-ID program in an upper is none of the host's users' business.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&runs)
            .map_err(failed(&runs))?;
        let guard = lock_file(&runs.join(".lock")).map_err(failed(&runs))?;
        rustix::fs::flock(&guard, FlockOperation::LockExclusive)
            .map_err(|e| failed(&runs)(e.into()))?;
        sweep_locked(&runs).map_err(ActorError::path("cannot clear leftovers below", &runs))?;
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&runs)
            .map_err(failed(&runs))?;
        let lock = lock_file(&dir.path().join("lock")).map_err(failed(dir.path()))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| failed(dir.path())(e.into()))?;
        for name in ["upper", "work", "rootfs", "files"] {
            make_dir(&dir.path().join(name)).map_err(failed(dir.path()))?;
        }
        if keep {
            File::create(dir.path().join(KEPT)).map_err(failed(dir.path()))?;
        }
        Ok(Self {
            dir: dir.keep(),
            keep,
            _lock: lock,
        })
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The private upper.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// The work directory that goes with [`Self::upper`].
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// An empty directory to mount on.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Where files live that are bound into the actor.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    /// Removes it, even if it was to be kept.
    pub fn discard(mut self) {
        self.keep = false;
    }

    /// Removes it, unless it is kept.
    ///
    /// # Errors
    /// The system's; what is left is swept by a later actor.
    pub fn close(mut self) -> Result<(), ActorError> {
        let keep = std::mem::replace(&mut self.keep, true);
        if keep {
            return Ok(());
        }
        remove_private(&self.dir).map_err(ActorError::path("cannot remove", &self.dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            // An error on the way out of another one; the next sweep tries again.
            remove_private(&self.dir).ok();
        }
    }
}

/// Removes what killed actors left below `store`.
///
/// # Errors
/// The system's.
pub fn sweep(store: &Path) -> Result<(), ActorError> {
    let runs = store.join("runs");
    if !runs.is_dir() {
        return Ok(());
    }
    let failed = || ActorError::path("cannot clear leftovers below", &runs);
    let guard = lock_file(&runs.join(".lock")).map_err(failed())?;
    rustix::fs::flock(&guard, FlockOperation::LockExclusive).map_err(|e| failed()(e.into()))?;
    sweep_locked(&runs).map_err(failed())
}

fn sweep_locked(runs: &Path) -> io::Result<()> {
    for entry in fs::read_dir(runs)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !entry.file_type()?.is_dir()
        {
            continue;
        }
        let dir = entry.path();
        if dir.join(KEPT).exists() {
            continue;
        }
        let lock = lock_file(&dir.join("lock"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // Written in a user namespace by numbers that this process has not: theirs to
                // remove, and no reason for this actor not to start.
                if let Err(error) = remove_private(&dir) {
                    tracing::warn!("cannot remove the leftover {}: {error}", dir.display());
                }
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

fn lock_file(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_one_stays_and_a_dead_one_goes() {
        let store = tempfile::tempdir().unwrap();
        let live = Scratch::new(store.path(), false).unwrap();
        let dead = Scratch::new(store.path(), false).unwrap();
        // As a kill would leave it: the directory there, the lock free.
        let dead_dir = dead.dir().to_owned();
        let copy = store.path().join("runs/run-copy");
        fs::create_dir_all(copy.join("upper/etc")).unwrap();
        fs::write(copy.join("upper/etc/passwd"), "x").unwrap();
        drop(dead);
        sweep(store.path()).unwrap();
        assert!(live.upper().is_dir());
        assert!(!dead_dir.exists());
        assert!(!copy.exists());
        let dir = live.dir().to_owned();
        live.close().unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn regression_other_users_see_no_upper() {
        use std::os::unix::fs::PermissionsExt;
        let store = tempfile::tempdir().unwrap();
        let _live = Scratch::new(store.path(), false).unwrap();
        let runs = fs::metadata(store.path().join("runs")).unwrap();
        assert_eq!(runs.permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_kept_one_is_never_swept() {
        let store = tempfile::tempdir().unwrap();
        let kept = Scratch::new(store.path(), true).unwrap();
        let dir = kept.dir().to_owned();
        kept.close().unwrap();
        sweep(store.path()).unwrap();
        assert!(dir.join("upper").is_dir());
    }
}
