//! Who uses an image, so that nobody removes it.
//!
//! Who has an image open holds a shared flock(2) on its file `used`, which stays the same when an
//! entry is made anew: the kernel drops it with the process, however that ends. Who removes an image
//! must have the lock alone. A mount by the kernel has no process, but the kernel's own count of
//! those who have the index open ([`crate::sys::lease`]) knows of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;

use super::layout::{INDEX, USED};
use crate::sys::lease;

/// The right to count on an image's entry, or a layer, for as long as this lives.
#[derive(Debug)]
pub(super) struct Hold {
    used: File,
}

impl Hold {
    /// Holds the entry `dir`; `None` where there is none.
    pub(super) fn take(dir: &Path) -> io::Result<Option<Self>> {
        let used = locked(&dir.join(USED), FlockOperation::LockShared)?;
        Ok(used.map(|used| Self { used }))
    }

    /// Notes that the image is used now. Where that may not be written (a store of another user),
    /// it is not.
    pub(super) fn touch(&self) {
        self.used.set_modified(SystemTime::now()).ok();
    }
}

/// Opens the file at `path` and locks it; `None` where there is none. Of a file that is replaced or
/// removed meanwhile the lock is worth nothing: the one that is there then is locked.
pub(super) fn locked(path: &Path, how: FlockOperation) -> io::Result<Option<File>> {
    loop {
        // A link would never be what lies at `path`, and a FIFO would wait for a writer.
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A file where the entry's directory should be.
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Err(e) => return Err(e),
        };
        retry_on_intr(|| flock(&file, how))?;
        if is_at(&file, path)? {
            return Ok(Some(file));
        }
    }
}

/// Whether `path` leads to `file`.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let here = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// The sole right to an entry or a layer: to remove it.
#[derive(Debug)]
pub(super) struct Alone {
    _locked: File,
}

/// Whether something can be had alone.
#[derive(Debug)]
pub(super) enum Free {
    /// Nobody uses it, and nobody begins to while this lives.
    Yes(Alone),
    /// It is gone.
    Gone,
    /// It is used, or nobody can tell; why.
    No(String),
}

/// Has the entry `dir` alone, if nobody uses it.
pub(super) fn entry_alone(dir: &Path) -> Free {
    match alone(&dir.join(USED), "a mount or a command has it open") {
        Free::Gone if dir.is_dir() => Free::No("it has no file to lock".to_owned()),
        Free::Yes(alone) => match open_in_kernel(&dir.join(INDEX)) {
            Ok(false) => Free::Yes(alone),
            Ok(true) => Free::No("the kernel has it mounted, or somebody has it open".to_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Free::Yes(alone),
            Err(e) => Free::No(format!("nobody can tell whether its index is open: {e}")),
        },
        other => other,
    }
}

/// Has the file at `path` alone, if nobody holds it.
pub(super) fn alone(path: &Path, by: &str) -> Free {
    match locked(path, FlockOperation::NonBlockingLockExclusive) {
        Ok(Some(file)) => Free::Yes(Alone { _locked: file }),
        Ok(None) => Free::Gone,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Free::No(by.to_owned()),
        Err(e) => Free::No(format!("nobody can tell whether it is used: {e}")),
    }
}

fn open_in_kernel(index: &Path) -> io::Result<bool> {
    lease::is_open_elsewhere(&File::open(index)?)
}
