//! One of the two directories, and what an operation does in it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::common::user::{OTHER_GID, UID, as_ids, as_user};
use super::ops::{DIRS, Op, TARGETS, path};

/// Bytes that tell where they were meant to be.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| ((seed.wrapping_add(i)).wrapping_mul(0x9E37_79B9) >> 24) as u8)
        .collect()
}

/// One side: a root directory, and what of it is held open.
pub(crate) struct Side {
    pub(crate) root: PathBuf,
    pub(super) held: Option<File>,
    pub(super) held_read: Option<File>,
    held_dir: Option<File>,
    pub(crate) who: Who,
}

/// Whose a side and every operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Root,
    /// An ordinary user ([`crate::common::user`]).
    User,
    /// Root of a user namespace in which nobody else exists.
    RootOfNamespace,
}

/// An ACL as the kernel takes it (include/uapi/linux/posix_acl_xattr.h): owner rwx, user 1000
/// `perm`, group r-x, mask rwx or rw-, others --x.
pub(crate) fn acl(perm: u16) -> Vec<u8> {
    let none = u32::MAX;
    let mask = if perm & 4 == 0 { 7 } else { 6 };
    let entries = [
        (1, 7, none),
        (2, perm, 1000),
        (4, 5, none),
        (0x10, mask, none),
        (0x20, 1, none),
    ];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        value.extend(u16::to_le_bytes(tag));
        value.extend(u16::to_le_bytes(perm));
        value.extend(u32::to_le_bytes(id));
    }
    value
}

pub(crate) fn acl_name(default: bool) -> &'static str {
    match default {
        true => "system.posix_acl_default",
        false => "system.posix_acl_access",
    }
}

/// A number that tells one sequence of bytes from another.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(bytes.len() as u64, |sum, &b| {
        sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(b)
    })
}

pub(crate) type Outcome = Result<u64, Errno>;

pub(crate) fn from_io(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Side {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            held: None,
            held_read: None,
            held_dir: None,
            who: Who::Root,
        }
    }

    /// The same, to an ordinary user.
    pub(crate) fn of_user(root: PathBuf) -> Self {
        Self {
            who: Who::User,
            ..Self::new(root)
        }
    }

    /// The same, to root of a namespace.
    pub(crate) fn in_namespace(root: PathBuf) -> Self {
        Self {
            who: Who::RootOfNamespace,
            ..Self::new(root)
        }
    }

    pub(crate) fn drop_held(&mut self) {
        (self.held, self.held_read, self.held_dir) = (None, None, None);
    }

    fn in_held_dir(&self, what: u8) -> Outcome {
        let Some(dir) = &self.held_dir else {
            return Ok(0);
        };
        let born = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match what {
            // Never blocks on a FIFO of that name.
            0 => rustix::fs::openat(dir, "born", born | OFlags::NONBLOCK, Mode::from(0o640))
                .and_then(|fd| rustix::io::write(fd, b"born"))
                .map(|n| n as u64),
            1 => rustix::fs::mkdirat(dir, "sub", Mode::from(0o750)).map(|()| 0),
            2 => rustix::fs::unlinkat(dir, "x", AtFlags::empty()).map(|()| 0),
            3 => rustix::fs::renameat(dir, "born", dir, "x").map(|()| 0),
            _ => {
                let mut names: Vec<_> = rustix::fs::Dir::read_from(dir)?
                    .map(|entry| entry.map(|e| e.file_name().to_bytes().to_vec()))
                    .collect::<Result<_, _>>()?;
                names.sort();
                let nlink = rustix::fs::fstat(dir)?.st_nlink;
                Ok(sum(&names.concat()).wrapping_add(nlink))
            }
        }
    }

    /// Runs an operation as somebody else.
    fn apply_as(&mut self, uid: u32, gid: u32, op: &Op) -> Outcome {
        as_ids(uid, gid, &[], || self.apply_here(op))?
    }

    pub(super) fn at(&self, i: usize) -> PathBuf {
        self.root.join(path(i))
    }

    pub(super) fn open(&self, i: usize, flags: OFlags) -> Result<File, Errno> {
        // Never blocks on a FIFO, never follows the last link, never opens a device.
        let at = self.at(i);
        if !fs::symlink_metadata(&at)
            .map_err(|e| from_io(&e))?
            .is_file()
        {
            return Err(Errno::NXIO);
        }
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(&at, flags, Mode::empty()).map(File::from)
    }

    /// Runs an operation; as the user if the side is his.
    pub(crate) fn apply(&mut self, op: &Op) -> Outcome {
        if self.who != Who::User {
            return self.apply_here(op);
        }
        // He is one user only, and may give his files to no other, but to his other group.
        let his = match op {
            Op::As(_, _, op) => op.as_ref().clone(),
            op => op.clone(),
        };
        let his = match his {
            Op::Chown(p, 0, OTHER_GID) if self.is_closed(p) => Op::Chown(p, UID, UID),
            Op::Chown(p, 0, gid) => Op::Chown(p, UID, gid),
            Op::Chmod(p, perm) if self.is_of_others(p) => Op::Chmod(p, perm | 0o700),
            Op::Create(p, perm) if self.is_of_others(p) => Op::Create(p, perm | 0o700),
            Op::Mkdir(p, perm) if self.is_of_others(p) => Op::Mkdir(p, perm | 0o700),
            op => op,
        };
        as_user(|| self.apply_here(&his))
    }

    /// Whether a file is closed to its owner, and so cannot be given to another group: see
    /// docs/SEMANTICS.md, "Without root".
    fn is_closed(&self, p: usize) -> bool {
        fs::symlink_metadata(self.at(p)).is_ok_and(|file| {
            let open = if file.is_dir() { 0o700 } else { 0o600 };
            file.mode() & open != open
        })
    }

    /// Whether a file, or one made here, is of the user's other group, and so must stay open.
    fn is_of_others(&self, p: usize) -> bool {
        let at = self.at(p);
        let file = fs::metadata(&at).or_else(|_| fs::metadata(at.parent().unwrap_or(&at)));
        file.is_ok_and(|file| file.gid() == OTHER_GID)
    }

    fn apply_here(&mut self, op: &Op) -> Outcome {
        let cwd = rustix::fs::CWD;
        match *op {
            Op::Create(p, perm) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                rustix::fs::open(self.at(p), flags, Mode::from_raw_mode(perm)).map(|_| 0)
            }
            Op::Write(p, offset, len) => {
                let file = self.open(p, OFlags::WRONLY)?;
                file.write_at(&pattern(offset, len), offset)
                    .map(|n| n as u64)
                    .map_err(|e| from_io(&e))
            }
            Op::Append(p, len) => {
                let file = self.open(p, OFlags::WRONLY | OFlags::APPEND)?;
                rustix::io::write(&file, &pattern(7, len)).map(|n| n as u64)
            }
            Op::Truncate(p, len) => {
                let file = self.open(p, OFlags::RDWR)?;
                rustix::fs::ftruncate(&file, len).map(|()| 0)
            }
            Op::OpenTruncate(p) => self.open(p, OFlags::RDWR | OFlags::TRUNC).map(|_| 0),
            Op::Mkdir(p, perm) => {
                rustix::fs::mkdir(self.at(p), Mode::from_raw_mode(perm)).map(|()| 0)
            }
            Op::Rmdir(p) => rustix::fs::rmdir(self.at(p)).map(|()| 0),
            Op::Unlink(p) => rustix::fs::unlink(self.at(p)).map(|()| 0),
            Op::Rename(from, to, flags) => {
                let flags = RenameFlags::from_bits_retain(flags);
                rustix::fs::renameat_with(cwd, self.at(from), cwd, self.at(to), flags).map(|()| 0)
            }
            Op::Link(from, to) => {
                rustix::fs::linkat(cwd, self.at(from), cwd, self.at(to), AtFlags::empty())
                    .map(|()| 0)
            }
            Op::Symlink(p, t) => rustix::fs::symlink(TARGETS[t], self.at(p)).map(|()| 0),
            Op::Follow(p, len) => {
                match fs::metadata(self.at(p)) {
                    Ok(meta) if !meta.is_file() => return Err(Errno::NXIO),
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(from_io(&error));
                    }
                    _ => {}
                }
                let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::open(self.at(p), flags, Mode::from(0o666))?;
                rustix::io::pwrite(&file, &pattern(3, len), 50).map(|n| n as u64)
            }
            Op::AppendTwice(p, len) => {
                let flags = OFlags::WRONLY | OFlags::APPEND;
                let (one, two) = (self.open(p, flags)?, self.open(p, flags)?);
                for (file, seed) in [(&one, 1), (&two, 2), (&one, 3)] {
                    rustix::io::write(file, &pattern(seed, len))?;
                }
                Ok(rustix::fs::fstat(&two)?.st_size as u64)
            }
            Op::Allocate(p, mode, offset, len) => {
                let file = self.open(p, OFlags::RDWR)?;
                let mode = FallocateFlags::from_bits_retain(mode);
                rustix::fs::fallocate(&file, mode, offset, len).map(|()| 0)
            }
            Op::SetAcl(p, default, perm) => {
                let (key, value) = (acl_name(default), acl(perm));
                rustix::fs::lsetxattr(self.at(p), key, &value, XattrFlags::empty()).map(|()| 0)
            }
            Op::RemoveAcl(p, default) => {
                rustix::fs::lremovexattr(self.at(p), acl_name(default)).map(|()| 0)
            }
            Op::HoldRead(p) => {
                self.held_read = Some(self.open(p, OFlags::RDONLY)?);
                Ok(0)
            }
            Op::ReadHeld => {
                let Some(file) = &self.held_read else {
                    return Ok(0);
                };
                let stat = rustix::fs::fstat(file)?;
                let mut data = vec![0; stat.st_size as usize + 1];
                let mut n = 0;
                while n < data.len() {
                    match file.read_at(&mut data[n..], n as u64) {
                        Ok(0) => break,
                        Ok(more) => n += more,
                        Err(error) => return Err(from_io(&error)),
                    }
                }
                Ok(sum(&data[..n]).wrapping_add(u64::from(stat.st_nlink as u32)))
            }
            Op::TruncateHeld(len) => match &self.held {
                Some(file) => rustix::fs::ftruncate(file, len).map(|()| 0),
                None => Ok(0),
            },
            Op::ChmodHeld(perm) => match &self.held_read {
                Some(file) => rustix::fs::fchmod(file, Mode::from_raw_mode(perm)).map(|()| 0),
                None => Ok(0),
            },
            Op::LinkHeld(p) => match &self.held_read {
                Some(file) => {
                    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
                    rustix::fs::linkat(cwd, from, cwd, self.at(p), AtFlags::SYMLINK_FOLLOW)
                        .map(|()| 0)
                }
                None => Ok(0),
            },
            Op::HoldDir(p) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let dir = rustix::fs::open(self.at(p), flags | OFlags::NOFOLLOW, Mode::empty())?;
                self.held_dir = Some(dir.into());
                Ok(0)
            }
            Op::Renew(dir, to) => {
                let dir = self.root.join(DIRS[dir]);
                if !fs::symlink_metadata(&dir)
                    .map_err(|e| from_io(&e))?
                    .is_dir()
                {
                    return Err(Errno::NOTDIR);
                }
                rustix::fs::rename(&dir, self.at(to))?;
                rustix::fs::mkdir(&dir, Mode::from(0o755)).map(|()| 0)
            }
            Op::InHeldDir(what) => self.in_held_dir(what),
            Op::More(ref more) => self.apply_more(more),
            Op::As(uid, gid, ref op) => self.apply_as(uid, gid, op),
            Op::Fifo(p) => {
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(cwd, self.at(p), kind, Mode::from_raw_mode(0o640), 0)
                    .map(|()| 0)
            }
            Op::Device(p) => {
                let kind = rustix::fs::FileType::BlockDevice;
                let dev = rustix::fs::makedev(7, 300);
                rustix::fs::mknodat(cwd, self.at(p), kind, Mode::from_raw_mode(0o660), dev)
                    .map(|()| 0)
            }
            Op::Chmod(p, perm) => {
                // chmod(2) follows links.
                rustix::fs::chmod(self.at(p), Mode::from_raw_mode(perm)).map(|()| 0)
            }
            Op::Chown(p, uid, gid) => {
                let (uid, gid) = (
                    rustix::fs::Uid::from_raw(uid),
                    rustix::fs::Gid::from_raw(gid),
                );
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(cwd, self.at(p), Some(uid), Some(gid), flags).map(|()| 0)
            }
            Op::Times(p, sec) => {
                let time = rustix::fs::Timespec {
                    tv_sec: sec,
                    tv_nsec: 123_456_789,
                };
                let times = rustix::fs::Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(cwd, self.at(p), &times, flags).map(|()| 0)
            }
            Op::SetXattr(p, key, len) => {
                let value = pattern(u64::from(key), len);
                rustix::fs::lsetxattr(self.at(p), key_name(key), &value, XattrFlags::empty())
                    .map(|()| 0)
            }
            Op::RemoveXattr(p, key) => {
                rustix::fs::lremovexattr(self.at(p), key_name(key)).map(|()| 0)
            }
            Op::Punch(p, offset, len) => {
                let file = self.open(p, OFlags::RDWR)?;
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, mode, offset, len).map(|()| 0)
            }
            Op::CopyRange(from, to) => {
                let (from, to) = (
                    self.open(from, OFlags::RDONLY)?,
                    self.open(to, OFlags::RDWR)?,
                );
                rustix::fs::copy_file_range(&from, Some(&mut 10), &to, Some(&mut 100), 3_000)
                    .map(|n| n as u64)
            }
            Op::Hold(p) => {
                self.held = Some(self.open(p, OFlags::RDWR)?);
                Ok(0)
            }
            Op::WriteHeld(offset) => match &self.held {
                Some(file) => {
                    file.write_all_at(b"through a held descriptor", offset)
                        .map_err(|e| from_io(&e))?;
                    let stat = rustix::fs::fstat(file)?;
                    Ok(stat.st_size as u64 * 100 + u64::from(stat.st_nlink as u32))
                }
                None => Ok(0),
            },
            Op::DropHeld => {
                self.held = None;
                Ok(0)
            }
            Op::DropCaches | Op::Remount | Op::Umask(_) => Ok(0),
        }
    }
}

pub(crate) fn key_name(key: u8) -> &'static str {
    ["user.one", "trusted.two", "user.three"][usize::from(key)]
}
