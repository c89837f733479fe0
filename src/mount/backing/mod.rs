//! The image as the kernel itself reads it: an EROFS mount of the index over its blobs, attached
//! nowhere, whose files are handed to the kernel in place of their bytes.
//!
//! It *never* is of another image: what is found is compared with the index and the blobs, and the
//! blobs are compared once more when a file is opened. Without one nothing fails: the server
//! answers reads by itself.

mod rung;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::kernel::version;
use crate::lower::Lower;
use crate::sys::handle::NativeRoot;

pub use rung::Rung;

/// `EROFS_SUPER_MAGIC_V1`, as statfs(2) gives it.
const MAGIC: u64 = 0xE0F5_E1E2;

/// A mount of an image by the kernel.
#[derive(Debug)]
pub struct Backing {
    /// The mount: while this is open, it can be mounted elsewhere and cloned.
    mount: OwnedFd,
    /// Its root, open for reading.
    root: OwnedFd,
    rung: Rung,
}

impl Backing {
    /// A mount of `lower`'s image.
    ///
    /// # Errors
    /// [`NoBacking`] says why there is none.
    pub fn acquire(lower: &Lower) -> Result<Self, NoBacking> {
        let rung = Rung::File;
        let mount = rung::create(lower, rung).map_err(|why| NoBacking(format!("{rung}: {why}")))?;
        Self::of(lower, mount, rung).map_err(|why| NoBacking(format!("{rung}: {why}")))
    }

    fn of(lower: &Lower, mount: OwnedFd, rung: Rung) -> Result<Self, String> {
        let root = open_root(mount.as_fd()).map_err(|error| error.to_string())?;
        check(root.as_fd(), lower)?;
        Ok(Self { mount, root, rung })
    }

    /// How it is mounted.
    #[must_use]
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// The mount, attached nowhere.
    #[must_use]
    pub fn mount(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// Its root directory, open for reading.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What opens its files by their numbers: for [`Lower::set_native`].
    ///
    /// # Errors
    /// The system's; EPERM without CAP_DAC_READ_SEARCH.
    pub fn native(&self) -> io::Result<NativeRoot> {
        Ok(NativeRoot::new(self.root.try_clone()?)?)
    }
}

/// Why an image has no [`Backing`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoBacking(String);

fn open_root(mount: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // fsmount(2) and open_tree(2) give places (O_PATH), by which nothing can be opened by handle.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(mount, c".", flags, Mode::empty())?)
}

/// Whether `root` is the root of an EROFS of this index, by what statfs(2) and stat(2) tell.
fn check(root: BorrowedFd<'_>, lower: &Lower) -> Result<(), String> {
    let system = |errno: rustix::io::Errno| errno.to_string();
    let kind = rustix::fs::fstatfs(root).map_err(system)?.f_type;
    let told = rustix::fs::fstatvfs(root).map_err(system)?;
    let ino = rustix::fs::fstat(root).map_err(system)?.st_ino;
    // fs/erofs/super.c:erofs_statfs()
    let inodes = told.f_files.wrapping_sub(told.f_ffree);
    if u64::try_from(kind).ok() != Some(MAGIC) {
        Err("not an EROFS".to_owned())
    } else if ino != lower.root().0 || inodes != lower.stats().inodes {
        Err("another index".to_owned())
    } else if version() >= Some(FSID) && told.f_fsid != fsid(lower.uuid()) {
        Err("another index, by its UUID".to_owned())
    } else {
        Ok(())
    }
}

/// The first Linux of those that are looked at whose EROFS surely tells its UUID, not its block
/// device.
const FSID: (u32, u32) = (6, 12);

/// What statfs(2) makes of a UUID (include/linux/statfs.h:uuid_to_fsid()).
fn fsid(uuid: [u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = uuid;
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ u64::from_le_bytes([i, j, k, l, m, n, o, p])
}

#[cfg(test)]
mod tests;
