//! Who makes what: one process an index or a layer, and no leftovers of killed ones.
//!
//! `<store>/tmp/<key>.lock` is held (flock(2), which ends with its process) by the one that makes
//! `<store>/tmp/<key>`. Only the holder touches that directory, and only the holder removes the
//! lock file, when the directory is gone. `<store>/tmp/removed-*` is nobody's.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

use super::hold::is_at;
use super::links::is_gone;
use super::publish::{remove, with_suffix};
use super::{OnProgress, Progress, StoreError};
use crate::sys::clock::since_epoch;

/// How the names of those begin that are only to be removed.
const REMOVED: &str = "removed";

/// The right to make one thing. Ends with the value, and what is unfinished with it.
#[derive(Debug)]
pub(super) struct Lock {
    store: PathBuf,
    work: PathBuf,
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits until no other process makes what is called `key`.
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
            let alone = |how| retry_on_intr(|| flock(&file, how));
            match alone(FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {
                    if !told {
                        progress(Progress::Waiting);
                        told = true;
                    }
                    alone(FlockOperation::LockExclusive)
                }
                done => done,
            }
            .map_err(|e| fail(e.into()))?;
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

    /// [`Self::take`] for what nobody else can mean: a name of its own that begins with `what`.
    pub(super) fn fresh(store: &Path, what: &str) -> Result<Self, StoreError> {
        Self::take(store, &fresh_key(what), &mut |_| ())
    }

    /// Where what is being made may lie; goes with the lock.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// An empty file to write to.
    pub(super) fn fresh_file(&self) -> Result<(PathBuf, File), StoreError> {
        let made = remove(&self.work).and_then(|()| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&self.work)
        });
        match made {
            Ok(file) => Ok((self.work.clone(), file)),
            Err(e) => Err(StoreError::write(&self.store, &self.work, e)),
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

/// Where what was published goes to be removed. Nobody has it locked: whoever sweeps removes it,
/// and a disk without room for a lock file can be cleared.
pub(super) fn removed(store: &Path) -> PathBuf {
    store.join("tmp").join(fresh_key(REMOVED))
}

fn fresh_key(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = since_epoch().as_nanos();
    format!("{what}-{}-{n}-{nanos}", std::process::id())
}

impl Drop for Lock {
    fn drop(&mut self) {
        clean(&self.work, &self.path);
    }
}

/// Removes what the holder of a lock leaves. What cannot be removed now, the next sweep takes.
fn clean(work: &Path, lock: &Path) {
    // With something left the lock file stays, and with it the sweep's way to find it.
    if remove(work).is_ok() {
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

/// Removes the unfinished work of processes that are gone. A matter of tidiness: what fails here
/// hinders nobody.
pub(super) fn sweep(tmp: &Path) {
    let Ok(entries) = fs::read_dir(tmp) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path
            .extension()
            .is_some_and(|extension| extension == "lock")
        {
            take_over(File::open(&path), &path);
        } else if path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(REMOVED.as_bytes()))
        {
            remove(&path).ok();
        } else {
            // Its lock file is there, unless a power failure has lost it.
            let lock = with_suffix(&path, ".lock");
            if is_gone(&lock).unwrap_or(false) {
                take_over(open(&lock), &lock);
            }
        }
    }
}

/// Removes what the lock file `path` is for, if nobody has that locked.
fn take_over(file: io::Result<File>, path: &Path) {
    let Ok(file) = file else {
        return;
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        && is_at(&file, path).unwrap_or(false)
    {
        clean(&path.with_extension(""), path);
    }
}
