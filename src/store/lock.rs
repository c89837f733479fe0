//! Who makes which index: one process a key, and no leftovers of killed ones.
//!
//! `<store>/tmp/<key>.lock` is held (flock(2), which ends with its process) by the one that makes
//! `<store>/tmp/<key>`. Only the holder touches that directory, and only the holder removes the
//! lock file, when the directory is gone.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::publish::{remove, with_suffix};
use super::{OnProgress, Progress, StoreError};

/// The right to make one index. Ends with the value, and the unfinished directory with it.
#[derive(Debug)]
pub(super) struct Lock {
    store: PathBuf,
    work: PathBuf,
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits until no other process makes the index of `key`.
    pub(super) fn take(
        store: &Path,
        key: &str,
        progress: OnProgress<'_>,
    ) -> Result<Self, StoreError> {
        let work = store.join("tmp").join(key);
        let path = with_suffix(&work, ".lock");
        let fail = |e| StoreError::write(store, &path, e);
        let mut told = false;
        loop {
            let file = open(&path).map_err(fail)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    if !told {
                        progress(Progress::Waiting);
                        told = true;
                    }
                    match flock(&file, FlockOperation::LockExclusive) {
                        Ok(()) => {}
                        Err(rustix::io::Errno::INTR) => continue,
                        Err(e) => return Err(fail(e.into())),
                    }
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(fail(e.into())),
            }
            // The one before may have removed the file while this one waited on it.
            if is_at(&file, &path).map_err(fail)? {
                return Ok(Self {
                    store: store.to_owned(),
                    work,
                    path,
                    _file: file,
                });
            }
        }
    }

    /// An empty directory to make the index in.
    pub(super) fn fresh_dir(&self) -> Result<PathBuf, StoreError> {
        remove(&self.work)
            .and_then(|()| fs::DirBuilder::new().mode(0o700).create(&self.work))
            .map_err(|e| StoreError::write(&self.store, &self.work, e))?;
        Ok(self.work.clone())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        clean(&self.work, &self.path);
    }
}

/// Removes what the holder of a lock leaves. What cannot be removed now, the next sweep takes.
fn clean(work: &Path, lock: &Path) {
    let gone = remove(work).and_then(|()| remove(&with_suffix(work, ".old")));
    // With something left the lock file stays, and with it the sweep's way to find it.
    if gone.is_ok() {
        remove(lock).ok();
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let here = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes the unfinished work of processes that are gone. A matter of tidiness: what fails here
/// hinders nobody.
pub(super) fn sweep(tmp: &Path) {
    let Ok(entries) = fs::read_dir(tmp) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && is_at(&file, &path).unwrap_or(false)
        {
            clean(&path.with_extension(""), &path);
        }
    }
}
