//! Random operations on a mount and on a plain directory side by side: every return value, every
//! attribute, listing, extended attribute and byte must be the same, through the kernel's caches,
//! after they are dropped, and after a new mount of the same upper.
//!
//! Where a case fails, proptest shrinks it and prints the operations.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{Sandbox, can_mount, has, ok};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, StatxFlags, XattrFlags};
use rustix::io::Errno;

/// Paths that operations choose from: names of the image, and new ones, in its directories.
const DIRS: [&str; 6] = ["", "a", "a/sub", "b", "c", "c/d"];
const NAMES: [&[u8]; 12] = [
    b"x",
    b"y",
    b"sub",
    b"link",
    b"a",
    b"b",
    b"c",
    b"d",
    b"sym",
    b"fifo",
    b"not\xffutf-8\x01",
    &[b'n'; 255],
];
/// Where new symbolic links lead: never up, so that none leads out of its tree.
const TARGETS: [&str; 6] = ["some/where", "x", "sym", "sub/x", "link", "sub"];

#[derive(Debug, Clone)]
enum Op {
    Create(usize, u32),
    Write(usize, u64, usize),
    Append(usize, usize),
    Truncate(usize, u64),
    OpenTruncate(usize),
    Mkdir(usize, u32),
    Rmdir(usize),
    Unlink(usize),
    Rename(usize, usize, u32),
    Link(usize, usize),
    Symlink(usize, usize),
    /// Opened through symbolic links, made if missing, and written to.
    Follow(usize, usize),
    /// Two descriptors that append in turn.
    AppendTwice(usize, usize),
    Allocate(usize, u32, u64, u64),
    SetAcl(usize, bool, u16),
    RemoveAcl(usize, bool),
    HoldRead(usize),
    ReadHeld,
    TruncateHeld(u64),
    ChmodHeld(u32),
    LinkHeld(usize),
    HoldDir(usize),
    /// Through the held directory: create, make a directory, remove, list.
    InHeldDir(u8),
    /// A directory goes elsewhere, and a new one takes its name.
    Renew(usize, usize),
    Umask(u32),
    /// As this user and group, with no other groups and no privilege.
    As(u32, u32, Box<Op>),
    Fifo(usize),
    Device(usize),
    Chmod(usize, u32),
    Chown(usize, u32, u32),
    Times(usize, i64),
    SetXattr(usize, u8, usize),
    RemoveXattr(usize, u8),
    Punch(usize, u64, u64),
    CopyRange(usize, usize),
    Hold(usize),
    WriteHeld(u64),
    DropHeld,
    DropCaches,
    Remount,
}

fn path(i: usize) -> PathBuf {
    Path::new(DIRS[i / NAMES.len()]).join(OsStr::from_bytes(NAMES[i % NAMES.len()]))
}

fn op() -> impl Strategy<Value = Op> {
    let user = || prop::sample::select(vec![(1000_u32, 1000_u32), (1000, 70_000), (2000, 1000)]);
    prop_oneof![
        6 => plain_op(),
        1 => held_op(),
        1 => (user(), plain_op()).prop_map(|((u, g), op)| Op::As(u, g, Box::new(op))),
    ]
}

fn held_op() -> impl Strategy<Value = Op> {
    let p = || 0..DIRS.len() * NAMES.len();
    prop_oneof![
        3 => p().prop_map(Op::HoldRead),
        3 => Just(Op::ReadHeld),
        1 => (0..20_000_u64).prop_map(Op::TruncateHeld),
        1 => prop::sample::select(vec![0o600, 0o4755]).prop_map(Op::ChmodHeld),
        3 => p().prop_map(Op::LinkHeld),
        6 => p().prop_map(Op::HoldDir),
        6 => (0..5_u8).prop_map(Op::InHeldDir),
        1 => prop::sample::select(vec![0, 0o022, 0o027, 0o077]).prop_map(Op::Umask),
        2 => (1..DIRS.len(), p()).prop_map(|(d, p)| Op::Renew(d, p)),
    ]
}

fn plain_op() -> impl Strategy<Value = Op> {
    let p = || 0..DIRS.len() * NAMES.len();
    let perm = || prop::sample::select(vec![0o644, 0o600, 0o755, 0o4755, 0o2775, 0o1777, 0o444]);
    let id = || prop::sample::select(vec![0_u32, 1000, 70_000]);
    let small = || 0..20_000_u64;
    prop_oneof![
        3 => (p(), perm()).prop_map(|(p, m)| Op::Create(p, m)),
        3 => (p(), small(), 1..9_000_usize).prop_map(|(p, o, n)| Op::Write(p, o, n)),
        2 => (p(), 1..5_000_usize).prop_map(|(p, n)| Op::Append(p, n)),
        1 => (p(), small()).prop_map(|(p, n)| Op::Truncate(p, n)),
        1 => p().prop_map(Op::OpenTruncate),
        3 => (p(), perm()).prop_map(|(p, m)| Op::Mkdir(p, m)),
        2 => p().prop_map(Op::Rmdir),
        4 => p().prop_map(Op::Unlink),
        6 => (p(), p(), prop::sample::select(vec![0, 0, 1, 2])).prop_map(|(a, b, f)| Op::Rename(a, b, f)),
        3 => (p(), p()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => (p(), 0..TARGETS.len()).prop_map(|(p, t)| Op::Symlink(p, t)),
        2 => (p(), 1..5_000_usize).prop_map(|(p, n)| Op::Follow(p, n)),
        1 => (p(), 1..5_000_usize).prop_map(|(p, n)| Op::AppendTwice(p, n)),
        1 => (p(), prop::sample::select(vec![0, 1, 0x10, 0x11]), small(), 1..9_000_u64)
            .prop_map(|(p, m, o, n)| Op::Allocate(p, m, o, n)),
        2 => (p(), any::<bool>(), 0..8_u16).prop_map(|(p, d, m)| Op::SetAcl(p, d, m)),
        1 => (p(), any::<bool>()).prop_map(|(p, d)| Op::RemoveAcl(p, d)),
        1 => p().prop_map(Op::Fifo),
        1 => p().prop_map(Op::Device),
        2 => (p(), perm()).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (p(), id(), id()).prop_map(|(p, u, g)| Op::Chown(p, u, g)),
        1 => (p(), -9..1_999_999_999_i64).prop_map(|(p, t)| Op::Times(p, t)),
        2 => (p(), 0..3_u8, 0..900_usize).prop_map(|(p, k, n)| Op::SetXattr(p, k, n)),
        1 => (p(), 0..3_u8).prop_map(|(p, k)| Op::RemoveXattr(p, k)),
        1 => (p(), small(), 1..9_000_u64).prop_map(|(p, o, n)| Op::Punch(p, o, n)),
        1 => (p(), p()).prop_map(|(a, b)| Op::CopyRange(a, b)),
        1 => p().prop_map(Op::Hold),
        1 => small().prop_map(Op::WriteHeld),
        1 => Just(Op::DropHeld),
        1 => Just(Op::DropCaches),
        1 => Just(Op::Remount),
    ]
}

/// Bytes that tell where they were meant to be.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| ((seed.wrapping_add(i)).wrapping_mul(0x9E37_79B9) >> 24) as u8)
        .collect()
}

/// One side: a root directory, and what of it is held open.
struct Side {
    root: PathBuf,
    held: Option<File>,
    held_read: Option<File>,
    held_dir: Option<File>,
}

/// An ACL as the kernel takes it (include/uapi/linux/posix_acl_xattr.h): owner rwx, user 1000
/// `perm`, group r-x, mask rwx or rw-, others --x.
fn acl(perm: u16) -> Vec<u8> {
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

fn acl_name(default: bool) -> &'static str {
    match default {
        true => "system.posix_acl_default",
        false => "system.posix_acl_access",
    }
}

/// A number that tells one sequence of bytes from another.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(bytes.len() as u64, |sum, &b| {
        sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(b)
    })
}

type Outcome = Result<u64, Errno>;

fn from_io(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Side {
    fn new(root: PathBuf) -> Self {
        Self {
            root,
            held: None,
            held_read: None,
            held_dir: None,
        }
    }

    fn drop_held(&mut self) {
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

    /// Runs an operation in a thread that has given up privilege.
    fn apply_as(&mut self, uid: u32, gid: u32, op: &Op) -> Outcome {
        std::thread::scope(|scope| {
            let run = || {
                use rustix::thread as ids;
                ids::set_thread_groups(&[])?;
                ids::set_thread_gid(rustix::fs::Gid::from_raw(gid))?;
                ids::set_thread_uid(rustix::fs::Uid::from_raw(uid))?;
                self.apply(op)
            };
            scope.spawn(run).join().unwrap()
        })
    }

    fn at(&self, i: usize) -> PathBuf {
        self.root.join(path(i))
    }

    fn open(&self, i: usize, flags: OFlags) -> Result<File, Errno> {
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

    fn apply(&mut self, op: &Op) -> Outcome {
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

fn key_name(key: u8) -> &'static str {
    ["user.one", "trusted.two", "user.three"][usize::from(key)]
}

/// What one path shows, without what may differ: numbers, and the size of a directory.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    nlink: u32,
    size: u64,
    rdev: (u32, u32),
    /// `None`: changed since the test began.
    mtime: Option<(i64, u32)>,
    target: Option<PathBuf>,
    data: Option<Vec<u8>>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// An inode's number, and when it was born (numbers are used again).
type Identity = (u64, i64, u32);

fn look(root: &Path, begun: i64) -> BTreeMap<PathBuf, (Seen, Identity)> {
    let mut seen = BTreeMap::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(rel) = stack.pop() {
        let at = root.join(&rel);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let all = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let x = rustix::fs::statx(rustix::fs::CWD, &at, flags, all)
            .unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        let kind = u32::from(x.stx_mode) & 0o170_000;
        let is_dir = kind == 0o040_000;
        if is_dir {
            for entry in fs::read_dir(&at).unwrap() {
                let entry = entry.unwrap();
                stack.push(rel.join(entry.file_name()));
                let looked = fs::symlink_metadata(entry.path()).unwrap();
                use std::os::unix::fs::{DirEntryExt, MetadataExt};
                assert_eq!(
                    entry.ino(),
                    looked.ino(),
                    "d_ino of {}",
                    entry.path().display()
                );
                assert_eq!(entry.file_type().unwrap(), looked.file_type());
            }
        }
        let mut names = vec![0_u8; 65_536];
        let n = rustix::fs::llistxattr(&at, names.as_mut_slice()).unwrap();
        let xattrs = names[..n]
            .split(|&b| b == 0)
            .filter(|name| !name.is_empty())
            .map(|name| {
                let mut value = vec![0_u8; 65_536];
                let n = rustix::fs::lgetxattr(&at, name, value.as_mut_slice()).unwrap();
                value.truncate(n);
                (String::from_utf8(name.to_vec()).unwrap(), value)
            })
            .collect();
        let mtime = (x.stx_mtime.tv_sec, x.stx_mtime.tv_nsec);
        let found = Seen {
            mode: u32::from(x.stx_mode),
            owner: (x.stx_uid, x.stx_gid),
            nlink: x.stx_nlink,
            size: if is_dir { 0 } else { x.stx_size },
            rdev: (x.stx_rdev_major, x.stx_rdev_minor),
            mtime: (mtime.0 < begun).then_some(mtime),
            target: (kind == 0o120_000).then(|| fs::read_link(&at).unwrap()),
            data: (kind == 0o100_000).then(|| fs::read(&at).unwrap()),
            xattrs,
        };
        let identity = (x.stx_ino, x.stx_btime.tv_sec, x.stx_btime.tv_nsec);
        seen.insert(rel, (found, identity));
    }
    seen
}

/// Numbers of the mount by the identity of the same inode in the plain directory.
type Numbers = HashMap<Identity, u64>;

fn compare(plain: &Side, mount: &Side, begun: i64, numbers: &mut Numbers, after: &str) {
    let expected = look(&plain.root, begun);
    let found = look(&mount.root, begun);
    let names = |seen: &BTreeMap<PathBuf, (Seen, Identity)>| {
        seen.keys()
            .map(|p| String::from_utf8_lossy(p.as_os_str().as_bytes()).into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&expected), names(&found), "names after {after}");
    let mut now = Numbers::new();
    let mut taken = HashMap::new();
    for (path, (want, identity)) in &expected {
        let (got, (ino, ..)) = &found[path];
        assert_eq!(want, got, "{} after {after}", path.display());
        let known = numbers.get(identity).or_else(|| now.get(identity));
        assert_eq!(
            *known.unwrap_or(ino),
            *ino,
            "st_ino of {} after {after}",
            path.display()
        );
        assert_eq!(
            taken.insert(*ino, *identity).unwrap_or(*identity),
            *identity,
            "two files, one number"
        );
        now.insert(*identity, *ino);
    }
    *numbers = now;
}

/// The tree that both sides begin with.
const MAKE: &str = r#"
mkdir -p a/sub b empty
printf 'content of x\n' >a/x
head -c 30000 /dev/urandom >a/y
printf 'linked' >link; ln link a/link; ln link a/sub/link
printf 'set-id' >b/x; chmod 4755 b/x; chown 1000:70000 b/y 2>/dev/null || :
truncate -s 100K b/y; printf tail | dd of=b/y bs=1 seek=99996 conv=notrunc status=none
setfattr -n user.one -v first b/y; setfattr -n trusted.two -v second a
ln -s some/where sym; ln -s x a/sym; mkfifo fifo; mknod b/d b 7 300
chmod 2775 b; chown 0:1000 b; chmod 1777 empty
printf acl >a/c; chown 1000 a/c; setfacl -m u:1000:rw,g:70000:r,m::r a/c
setfacl -d -m u:1000:rwx,g::rx,o::- empty; mkdir c; chmod 777 c; chown 1000:1000 a
printf odd >"$(printf 'not\377utf-8\001')"; printf '%s' long >"a/$(printf '%0255d' 0 | tr 0 n)"
find . -exec touch -h -d '2020-02-02 02:02:02.020202020' {} +
"#;

fn run_case(ops: &[Op]) {
    // Of the whole process: this file has one test.
    rustix::process::umask(Mode::from(0o022));
    let sandbox = Sandbox::new();
    // For operations of other users.
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let plain = sandbox.dir("plain");
    ok("sh", ["-euc", &format!("cd '{}'; {MAKE}", plain.display())]);
    let tar = sandbox.at("image.tar");
    let args = [
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--numeric-owner",
        "-cf",
    ];
    ok(
        "tar",
        args.iter().map(std::ffi::OsStr::new).chain([
            tar.as_os_str(),
            "-C".as_ref(),
            plain.as_os_str(),
            ".".as_ref(),
        ]),
    );
    let upper = sandbox.dir("upper").to_str().unwrap().to_owned();
    let work = sandbox.at("work").to_str().unwrap().to_owned();
    let options = ["--upper", &upper, "--work", &work];
    let begun = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let begun = i64::try_from(begun.as_secs()).unwrap() - 2;
    let mut mount = Some(sandbox.mount("mount", &tar, &options));
    let (mut a, mut b) = (Side::new(plain), Side::new(sandbox.at("mount")));
    let mut numbers = Numbers::new();
    compare(&a, &b, begun, &mut numbers, "the mount");
    for (i, op) in ops.iter().enumerate() {
        match op {
            Op::Umask(mask) => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
            }
            Op::DropCaches => fs::write("/proc/sys/vm/drop_caches", "2").unwrap(),
            Op::Remount => {
                a.drop_held();
                b.drop_held();
                if let Some(mount) = mount.take() {
                    mount.unmount();
                }
                mount = Some(sandbox.mount("mount", &tar, &options));
            }
            _ => {
                let (want, got) = (a.apply(op), b.apply(op));
                assert_eq!(want, got, "step {i}: {op:?}");
            }
        }
        if i % 4 == 3 || matches!(op, Op::Remount | Op::DropCaches) {
            compare(&a, &b, begun, &mut numbers, &format!("step {i}: {op:?}"));
        }
    }
    a.drop_held();
    b.drop_held();
    if let Some(mount) = mount.take() {
        mount.unmount();
    }
    let _mount = sandbox.mount("mount", &tar, &options);
    compare(&a, &b, begun, &mut numbers, "the last mount");
}

#[test]
fn a_mount_behaves_as_a_plain_directory() {
    if !can_mount() || !has("setfacl") || !has("setfattr") {
        return;
    }
    let env = |key: &str, default: u32| {
        std::env::var(key)
            .ok()
            .map_or(default, |value| value.parse().unwrap())
    };
    let cases = env("TARNFS_DIFFERENTIAL_CASES", 12);
    let steps = env("TARNFS_DIFFERENTIAL_STEPS", 60) as usize;
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    };
    let ops = prop::collection::vec(op(), 1..=2 * steps);
    TestRunner::new(config)
        .run(&ops, |ops| {
            let result = std::panic::catch_unwind(|| run_case(&ops));
            result.map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                TestCaseError::fail(text.unwrap_or_else(|| "panicked".to_owned()))
            })
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
