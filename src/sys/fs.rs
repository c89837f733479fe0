//! Files addressed by a directory's descriptor and one name, never by a path that could lead out.
//!
//! Every function is one system call made to fit: directories are opened with openat2(2)
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV`, and what
//! the kernel offers by path alone (extended attributes, chmod of an `O_PATH` descriptor) goes
//! through `/proc/self/fd/N`, which leads to that very inode whatever its name has become.

use std::ffi::CStr;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags,
    StatxFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, ReadWriteFlags, Result};

use super::outside::{self, Outside};
use crate::inode::{Attr, Kind, SetTime, Time};
use crate::name::Name;

/// Attributes of a file with the device it lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The attributes; `ino` is the filesystem's own number.
    pub attr: Attr,
    /// `st_dev`, as (major, minor).
    pub dev: (u32, u32),
}

/// Every call passes here first, by what it does: the seam where tests refuse one
/// (`super::faults`).
macro_rules! pass {
    ($call:ident) => {
        #[cfg(test)]
        super::faults::pass(super::faults::Call::$call)?;
    };
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

/// ftruncate(2).
///
/// # Errors
/// ftruncate(2)'s.
pub fn truncate(fd: BorrowedFd<'_>, len: u64) -> Result<()> {
    pass!(Grow);
    rustix::fs::ftruncate(fd, len)
}

/// fallocate(2).
///
/// # Errors
/// fallocate(2)'s.
pub fn fallocate(fd: BorrowedFd<'_>, mode: FallocateFlags, offset: u64, len: u64) -> Result<()> {
    pass!(Grow);
    rustix::fs::fallocate(fd, mode, offset, len)
}

/// copy_file_range(2): how much was copied, perhaps less than `len`.
///
/// # Errors
/// copy_file_range(2)'s.
pub fn copy_range(
    from: BorrowedFd<'_>,
    mut from_offset: u64,
    to: BorrowedFd<'_>,
    mut to_offset: u64,
    len: usize,
) -> Result<usize> {
    pass!(Grow);
    rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), len)
}

/// fsync(2), or fdatasync(2).
///
/// # Errors
/// fsync(2)'s.
pub fn sync(fd: BorrowedFd<'_>, datasync: bool) -> Result<()> {
    pass!(Change);
    if datasync {
        rustix::fs::fdatasync(fd)
    } else {
        rustix::fs::fsync(fd)
    }
}

/// Has the kernel begin to write a regular file's data to disk (sync_file_range(2)), and does not
/// wait for it.
///
/// # Errors
/// sync_file_range(2)'s.
#[allow(unsafe_code)]
pub fn write_out(fd: BorrowedFd<'_>) -> Result<()> {
    pass!(Change);
    // SAFETY: the descriptor is open; nothing else is passed but numbers.
    let done = unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if done == 0 {
        Ok(())
    } else {
        let error = std::io::Error::last_os_error();
        Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// Writes `data` at `offset` and answers how much: less than all only where an error (which then
/// waits for the next call, as of write(2)) or a full filesystem stopped it.
///
/// # Errors
/// pwrite(2)'s, if nothing was written.
pub fn write(fd: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<usize> {
    write_by(data, |rest, done| {
        write_once(fd, rest, offset.saturating_add(done as u64))
    })
}

/// The same at the end of the file, wherever that is.
///
/// # Errors
/// pwritev2(2)'s, if nothing was written.
pub fn append(fd: BorrowedFd<'_>, data: &[u8]) -> Result<usize> {
    write_by(data, |rest, _| {
        pass!(Grow);
        rustix::io::pwritev2(fd, &[IoSlice::new(rest)], 0, ReadWriteFlags::APPEND)
    })
}

fn write_by(data: &[u8], mut write: impl FnMut(&[u8], usize) -> Result<usize>) -> Result<usize> {
    let mut done = 0_usize;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        match write(rest, done) {
            Ok(0) => break,
            Ok(n) => done = done.saturating_add(n),
            Err(Errno::INTR) => {}
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

fn write_once(fd: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<usize> {
    pass!(Grow);
    rustix::io::pwrite(fd, data, offset)
}

/// Fills `buf` from `offset` and answers how much; short only at the end of the file.
///
/// # Errors
/// pread(2)'s.
pub fn read(fd: BorrowedFd<'_>, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let mut done = 0_usize;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let wanted = rest.len();
        match rustix::io::pread(fd, rest, offset.saturating_add(done as u64)) {
            // Of a regular file only the end makes a read short.
            Ok(n) => {
                let short = n < wanted;
                done = done.saturating_add(n);
                if short {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// An extended attribute of the inode behind any descriptor; `None` where it has none of that
/// name, or its filesystem has none at all.
///
/// # Errors
/// getxattr(2)'s but ENODATA and EOPNOTSUPP.
pub fn getxattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
    pass!(Look);
    let path = fd_path(fd);
    let mut value = vec![0_u8; 256];
    loop {
        match rustix::fs::getxattr(path.as_str(), name, value.as_mut_slice()) {
            Ok(len) => {
                value.truncate(len);
                return match outside::get() {
                    Some(outside) if names_nobody(name, &value) => {
                        outside.getxattr(fd, name).map(Some)
                    }
                    _ => Ok(Some(value)),
                };
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            // XATTR_SIZE_MAX is 65,536.
            Err(Errno::RANGE) if value.len() < 65_536 => value.resize(65_536, 0),
            Err(error) => return Err(error),
        }
    }
}

/// The names of all extended attributes of the inode behind any descriptor.
///
/// # Errors
/// listxattr(2)'s but EOPNOTSUPP.
pub fn listxattr(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    pass!(Look);
    let path = fd_path(fd);
    let mut list = vec![0_u8; 1024];
    loop {
        match rustix::fs::listxattr(path.as_str(), list.as_mut_slice()) {
            Ok(len) => {
                list.truncate(len);
                break;
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            // XATTR_LIST_MAX is 65,536.
            Err(Errno::RANGE) if list.len() < 65_536 => list.resize(65_536, 0),
            Err(error) => return Err(error),
        }
    }
    let names = list.split(|&b| b == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// Sets an extended attribute of the inode behind any descriptor. `flags`: XATTR_CREATE,
/// XATTR_REPLACE.
///
/// # Errors
/// setxattr(2)'s.
pub fn setxattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
    pass!(Grow);
    let flags = u32::try_from(flags).map_err(|_| Errno::INVAL)?;
    let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
    let done = rustix::fs::setxattr(fd_path(fd).as_str(), name, value, flags);
    match (done, outside::get()) {
        // An ACL that names somebody who does not exist here, or a file capability.
        (Err(Errno::INVAL), Some(outside)) if !name.starts_with(b"user.") => {
            outside.setxattr(fd, name, value, flags.bits().cast_signed())
        }
        (done, _) => done,
    }
}

/// Whether an attribute is an ACL with an entry for a user or group that does not exist in this
/// user namespace (`fs/posix_acl.c:posix_acl_to_xattr()`).
fn names_nobody(name: &[u8], value: &[u8]) -> bool {
    let entries = value.get(4..).unwrap_or_default();
    name.starts_with(b"system.posix_acl_")
        && entries.chunks_exact(8).any(|entry| {
            // ACL_USER and ACL_GROUP; the others have no number.
            matches!(entry, [2 | 8, 0, _, _, 0xff, 0xff, 0xff, 0xff])
        })
}

/// Removes an extended attribute of the inode behind any descriptor.
///
/// # Errors
/// removexattr(2)'s.
pub fn removexattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    pass!(Change);
    rustix::fs::removexattr(fd_path(fd).as_str(), name)
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
