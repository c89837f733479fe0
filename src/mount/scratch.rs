//! Private uppers: for a mount that is given none. What is written there goes with the mount.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::sys;

/// Names of directories whose owner may be looked for.
const PREFIX: &str = "scratch-";
/// Names of directories that are being made.
const NEW_PREFIX: &str = ".new-";

/// An upper and a work directory of one mount's own.
#[derive(Debug)]
pub struct Scratch {
    base: PathBuf,
    hold: Hold,
}

#[derive(Debug)]
enum Hold {
    /// A directory on disk: locked for the life of its mount, removed at its end.
    Dir { _lock: File },
    /// A tmpfs that only this descriptor holds.
    Tmpfs { _mount: OwnedFd },
    /// Another's by now.
    Left,
}

impl Scratch {
    /// A fresh directory under `parent` (made if missing). What dead mounts left there is removed.
    ///
    /// # Errors
    /// The system's.
    pub fn on_disk(parent: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
        if let Err(error) = sweep(parent) {
            tracing::warn!(
                "{}: cannot clear old scratch directories: {error}",
                parent.display()
            );
        }
        let new = tempfile::Builder::new()
            .prefix(NEW_PREFIX)
            .tempdir_in(parent)?;
        let lock = File::open(new.path())?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        // It gets the name that sweepers look for only now that it is locked.
        let unique = new
            .path()
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix(NEW_PREFIX))
            .map(|unique| format!("{PREFIX}{unique}"))
            .ok_or_else(|| io::Error::other("a temporary name of an unknown form"))?;
        let base = parent.join(unique);
        std::fs::rename(new.path(), &base)?;
        // Renamed, so there is nothing left to remove under its first name.
        let _first_name: PathBuf = new.keep();
        let scratch = Self {
            base,
            hold: Hold::Dir { _lock: lock },
        };
        scratch.make()?;
        Ok(scratch)
    }

    /// A tmpfs attached nowhere. `size` is bytes; `None` is tmpfs' own half of the memory. Of
    /// `inodes` some are its own: its root, and the directories that every upper has.
    ///
    /// # Errors
    /// The system's; EPERM without CAP_SYS_ADMIN in the user namespace.
    pub fn tmpfs(size: Option<u64>, inodes: Option<u64>) -> io::Result<Self> {
        let mount = sys::mount::detached_tmpfs(size, inodes)?;
        let base = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        let scratch = Self {
            base,
            hold: Hold::Tmpfs { _mount: mount },
        };
        scratch.make()?;
        Ok(scratch)
    }

    fn make(&self) -> io::Result<()> {
        // The upper's mode is what the root of an empty image would show.
        DirBuilder::new().mode(0o755).create(self.upper())?;
        DirBuilder::new().mode(0o700).create(self.work())
    }

    /// Whether it is a tmpfs, which is attached nowhere.
    #[must_use]
    pub fn is_tmpfs(&self) -> bool {
        matches!(self.hold, Hold::Tmpfs { .. })
    }

    /// Leaves it to overlayfs, which has it mounted: a tmpfs goes with the mount, a directory
    /// (whose path this gives) is removed by who unmounts, else swept when the mount is gone.
    pub(super) fn leave(mut self) -> Option<PathBuf> {
        match std::mem::replace(&mut self.hold, Hold::Left) {
            Hold::Dir { .. } => Some(std::mem::take(&mut self.base)),
            Hold::Tmpfs { .. } | Hold::Left => None,
        }
    }

    /// The upper directory.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.base.join("upper")
    }

    /// The work directory.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.base.join("work")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Hold::Dir { .. } = self.hold
            && let Err(error) = remove_private(&self.base)
        {
            tracing::warn!("{}: left behind: {error}", self.base.display());
        }
    }
}

/// Removes a private upper or what holds one, whose directories may be closed to an ordinary user
/// who owns them. Nothing there is no error.
///
/// # Errors
/// The system's.
pub fn remove_private(tree: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(tree) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(tree)?;
            std::fs::remove_dir_all(tree)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Gives the owner all rights on every directory of a tree. Follows no link.
fn open_up(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether overlayfs has a scratch directory mounted; also when that cannot be known.
pub(super) fn in_use(base: &Path) -> bool {
    let found = crate::upper::overlayfs_has(&base.join("work"));
    found.unwrap_or_else(|error| {
        tracing::debug!("{}: who uses it? {error}", base.display());
        true
    })
}

/// Removes the directories that nobody holds locked and overlayfs has not mounted: their servers
/// were killed, or umount(8) has ended a mount that has none.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        let ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX));
        if !ours || !entry.file_type()?.is_dir() {
            continue;
        }
        let Ok(dir) = File::open(entry.path()) else {
            continue;
        };
        if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
            && !in_use(&entry.path())
            && let Err(error) = remove_private(&entry.path())
        {
            tracing::warn!("{}: {error}", entry.path().display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn goes_with_its_mount() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::on_disk(&dir.path().join("tmp")).unwrap();
        std::fs::write(scratch.upper().join("file"), "x").unwrap();
        assert!(scratch.work().is_dir());
        drop(scratch);
        assert!(names(&dir.path().join("tmp")).is_empty());
    }

    #[test]
    fn the_dead_are_swept_and_the_living_are_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("scratch-dead/upper/x")).unwrap();
        std::fs::create_dir(dir.path().join("other")).unwrap();
        let living = Scratch::on_disk(dir.path()).unwrap();
        let second = Scratch::on_disk(dir.path()).unwrap();
        assert!(living.upper().is_dir() && second.upper().is_dir());
        assert!(!dir.path().join("scratch-dead").exists());
        assert!(dir.path().join("other").exists());
    }
}
