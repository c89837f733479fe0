//! Files addressed by a directory's descriptor and one name, never by a path that could lead out.
//!
//! Every function is one system call made to fit: directories are opened with openat2(2)
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV`, and what
//! the kernel offers by path alone (extended attributes, chmod of an `O_PATH` descriptor) goes
//! through `/proc/self/fd/N`, which leads to that very inode whatever its name has become.

/// Every call passes here first, by what it does: the seam where tests refuse one
/// (`sys::faults`).
macro_rules! pass {
    ($call:ident) => {
        #[cfg(test)]
        crate::sys::faults::pass(crate::sys::faults::Call::$call)?;
    };
}

mod data;
mod extents;
mod xattr;

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, StatxFlags, Timespec,
    Timestamps, Uid,
};
use rustix::io::{Errno, Result};

use super::outside::{self, Outside};
use crate::inode::{Attr, Kind, SetTime, Time};
use crate::name::Name;

pub use data::{append, copy_range, fallocate, read, sync, truncate, write, write_out};
pub use extents::{is_xfs, next_allocated, next_data, was_asked_for};
pub use xattr::{flistxattr, getxattr, listxattr, removexattr, setxattr};

/// Attributes of a file with the device it lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The attributes; `ino` is the filesystem's own number.
    pub attr: Attr,
    /// `st_dev`, as (major, minor).
    pub dev: (u32, u32),
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV
}

/// How often a name is opened again that seems to lead out of its directory.
const TRIES: u32 = 100;

/// Opens `name` in `dir` with `flags`, never through a symbolic link or onto another filesystem.
///
/// # Errors
/// openat2(2)'s.
pub fn open(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags, mode: u32) -> Result<OwnedFd> {
    for _ in 0..TRIES {
        match open_once(dir, name, flags, mode) {
            // Also where it was moved out of `dir` while it was looked up, in which case another
            // look finds it gone (fs/namei.c:complete_walk()). Nothing has been made or cut yet.
            Err(Errno::XDEV) => {}
            other => return other,
        }
    }
    open_once(dir, name, flags, mode)
}

fn open_once(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags, mode: u32) -> Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if flags.contains(OFlags::CREATE) {
        pass!(Grow);
    } else if flags.contains(OFlags::TRUNC) {
        pass!(Change);
    } else {
        pass!(Look);
    }
    let mode = if flags.contains(OFlags::CREATE) {
        Mode::from_raw_mode(mode)
    } else {
        Mode::empty()
    };
    loop {
        match rustix::fs::openat2(dir, name, flags, mode, beneath()) {
            // A rename elsewhere on the system during a walk: openat2(2) asks for a retry.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens the inode behind an `O_PATH` descriptor anew with `flags`.
///
/// # Errors
/// open(2)'s.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    if flags.contains(OFlags::TRUNC) {
        pass!(Change);
    } else {
        pass!(Look);
    }
    rustix::fs::open(
        fd_path(fd).as_str(),
        (flags | OFlags::CLOEXEC) & !OFlags::NOFOLLOW,
        Mode::empty(),
    )
}

/// The path in procfs that leads to the inode of `fd`.
#[must_use]
pub fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn convert(x: &rustix::fs::Statx) -> Result<Stat> {
    let mode = u32::from(x.stx_mode);
    let time = |t: rustix::fs::StatxTimestamp| Time {
        sec: t.tv_sec,
        nsec: t.tv_nsec,
    };
    Ok(Stat {
        attr: Attr {
            ino: x.stx_ino,
            kind: Kind::from_mode(mode).ok_or(Errno::IO)?,
            perm: x.stx_mode & 0o7777,
            nlink: x.stx_nlink,
            uid: x.stx_uid,
            gid: x.stx_gid,
            rdev: rustix::fs::makedev(x.stx_rdev_major, x.stx_rdev_minor),
            size: x.stx_size,
            blocks: x.stx_blocks,
            blksize: x.stx_blksize,
            atime: time(x.stx_atime),
            mtime: time(x.stx_mtime),
            ctime: time(x.stx_ctime),
        },
        dev: (x.stx_dev_major, x.stx_dev_minor),
    })
}

/// statx(2) of `name` in `dir`, symbolic links not followed.
///
/// # Errors
/// statx(2)'s.
pub fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat> {
    pass!(Look);
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = convert(&rustix::fs::statx(
        dir,
        name,
        flags,
        StatxFlags::BASIC_STATS,
    )?)?;
    match hidden(&stat) {
        None => Ok(stat),
        Some(_) => fstat(open(dir, name, OFlags::PATH, 0)?.as_fd()),
    }
}

/// Who knows the owners of a file that this user namespace does not.
fn hidden(stat: &Stat) -> Option<&'static Outside> {
    outside::get().filter(|outside| outside.conceals(stat.attr.uid, stat.attr.gid))
}

/// statx(2) of an open (or `O_PATH`) descriptor.
///
/// # Errors
/// statx(2)'s.
pub fn fstat(fd: BorrowedFd<'_>) -> Result<Stat> {
    pass!(Look);
    let mut stat = convert(&rustix::fs::statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS,
    )?)?;
    if let Some(outside) = hidden(&stat) {
        (stat.attr.uid, stat.attr.gid) = outside.owners(fd)?;
    }
    Ok(stat)
}

/// chmod of the inode behind any descriptor.
///
/// # Errors
/// chmod(2)'s.
pub fn chmod(fd: BorrowedFd<'_>, perm: u16) -> Result<()> {
    pass!(Change);
    rustix::fs::chmod(fd_path(fd).as_str(), Mode::from_raw_mode(u32::from(perm)))
}

/// chown of the inode behind any descriptor; `None` leaves an ID as it is.
///
/// # Errors
/// chown(2)'s.
pub fn chown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    pass!(Change);
    let done = rustix::fs::chownat(
        fd,
        c"",
        uid.map(Uid::from_raw),
        gid.map(Gid::from_raw),
        AtFlags::EMPTY_PATH,
    );
    match (done, outside::get()) {
        // A number that does not exist here (user_namespaces(7)).
        (Err(Errno::INVAL), Some(outside)) => outside.chown(fd, uid, gid),
        (done, _) => done,
    }
}

/// utimensat(2) of the inode behind any descriptor; `None` leaves a time as it is.
///
/// # Errors
/// utimensat(2)'s.
pub fn utimens(fd: BorrowedFd<'_>, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
    pass!(Change);
    let spec = |time: Option<SetTime>| match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        Some(SetTime::At(t)) => Timespec {
            tv_sec: t.sec,
            tv_nsec: t.nsec.into(),
        },
    };
    let times = Timestamps {
        last_access: spec(atime),
        last_modification: spec(mtime),
    };
    // By path: utimensat(2) takes AT_EMPTY_PATH only since Linux 5.8 and not for O_PATH files
    // on every filesystem; the procfs link works everywhere.
    rustix::fs::utimensat(
        rustix::fs::CWD,
        fd_path(fd).as_str(),
        &times,
        AtFlags::empty(),
    )
}

/// Gives the inode behind any descriptor the st_atime and st_mtime that `attr` has.
///
/// # Errors
/// utimensat(2)'s.
pub fn copy_times(fd: BorrowedFd<'_>, attr: &Attr) -> Result<()> {
    let (atime, mtime) = (SetTime::At(attr.atime), SetTime::At(attr.mtime));
    utimens(fd, Some(atime), Some(mtime))
}

/// Makes a node of any type but directory and symbolic link.
///
/// # Errors
/// mknodat(2)'s.
pub fn mknod(dir: BorrowedFd<'_>, name: &[u8], kind: Kind, perm: u32, rdev: u64) -> Result<()> {
    pass!(Grow);
    let kind = match kind {
        Kind::File => FileType::RegularFile,
        Kind::Char => FileType::CharacterDevice,
        Kind::Block => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::Dir | Kind::Symlink => return Err(Errno::INVAL),
    };
    rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(perm), rdev)
}

/// mkdirat(2).
///
/// # Errors
/// mkdirat(2)'s.
pub fn mkdir(dir: BorrowedFd<'_>, name: &[u8], perm: u32) -> Result<()> {
    pass!(Grow);
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(perm))
}

/// symlinkat(2).
///
/// # Errors
/// symlinkat(2)'s.
pub fn symlink(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    pass!(Grow);
    rustix::fs::symlinkat(target, dir, name)
}

/// linkat(2), symbolic links not followed.
///
/// # Errors
/// linkat(2)'s.
pub fn link(from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> Result<()> {
    pass!(Grow);
    rustix::fs::linkat(from, name, to, new, AtFlags::empty())
}

/// linkat(2) of the inode behind a descriptor.
///
/// # Errors
/// linkat(2)'s; ENOENT when it has no name left.
pub fn link_fd(fd: BorrowedFd<'_>, to: BorrowedFd<'_>, new: &[u8]) -> Result<()> {
    pass!(Grow);
    let flags = AtFlags::SYMLINK_FOLLOW;
    rustix::fs::linkat(rustix::fs::CWD, fd_path(fd).as_str(), to, new, flags)
}

/// unlinkat(2) of a non-directory.
///
/// # Errors
/// unlinkat(2)'s.
pub fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    pass!(Change);
    rustix::fs::unlinkat(dir, name, AtFlags::empty())
}

/// unlinkat(2) of an empty directory.
///
/// # Errors
/// unlinkat(2)'s.
pub fn rmdir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    pass!(Change);
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// renameat2(2).
///
/// # Errors
/// renameat2(2)'s.
pub fn rename(
    from: BorrowedFd<'_>,
    name: &[u8],
    to: BorrowedFd<'_>,
    new: &[u8],
    flags: RenameFlags,
) -> Result<()> {
    pass!(Grow);
    rustix::fs::renameat_with(from, name, to, new, flags)
}

/// Target of a symbolic link.
///
/// # Errors
/// readlinkat(2)'s.
pub fn readlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    pass!(Look);
    rustix::fs::readlinkat(dir, name, Vec::new()).map(std::ffi::CString::into_bytes)
}

/// An entry of a directory on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Name,
    /// Its inode number in that filesystem.
    pub ino: u64,
    /// Its type.
    pub kind: Kind,
}

/// The entries of a directory, without `.` and `..`, in the filesystem's order.
///
/// # Errors
/// open(2)'s and getdents64(2)'s.
pub fn list(dir: BorrowedFd<'_>) -> Result<Vec<DirEntry>> {
    let fd = open(dir, b".", OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
    let mut entries = Vec::new();
    let mut buf = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut raw = RawDir::new(fd.as_fd(), &mut buf);
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        let Ok(name) = Name::new(name.to_bytes()) else {
            continue;
        };
        let kind = match entry.file_type() {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            // Filesystems without d_type.
            FileType::Unknown => stat(dir, name.as_bytes())?.attr.kind,
        };
        entries.push(DirEntry {
            name,
            ino: entry.ino(),
            kind,
        });
    }
    Ok(entries)
}
