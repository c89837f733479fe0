//! Further operations: every way to open, parts of files, maps, held descriptors, what is asked.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use proptest::prelude::*;
use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Timespec, Timestamps,
    XattrFlags,
};
use rustix::io::Errno;

use super::ops::{DIRS, NAMES};
use super::side::{Outcome, Side, from_io, key_name, pattern, sum};

#[derive(Debug, Clone)]
pub(crate) enum More {
    /// open(2) with these flags, which may follow links and make a file; its size and bytes.
    Open(usize, u32),
    Pread(usize, u64, usize),
    /// truncate(2): by name, following links.
    TruncatePath(usize, u64),
    /// A store through a shared map, with msync(2) or without.
    Store(usize, u64, usize, bool),
    /// SEEK_DATA or SEEK_HOLE.
    Seek(usize, u64, bool),
    CopyRange(usize, usize, u64, u64, usize),
    Access(usize, u32),
    GetXattr(usize, u8, usize),
    ListXattr(usize),
    SetXattrFlags(usize, u8, u32),
    BigXattr(usize, usize),
    Stat(usize),
    ReadLink(usize),
    /// A node of each kind: socket, regular, character device.
    Node(usize, u8),
    /// utimensat(2) with UTIME_NOW and UTIME_OMIT.
    TimesNow(usize, bool),
    ChownOne(usize, Option<u32>, Option<u32>),
    /// A name with a slash behind it.
    Slash(usize, u8),
    HoldAppend(usize),
    AllocateHeld(u32, u64, u64),
    CopyHeld(u64, u64, usize),
    SetXattrHeld(u8),
    ChownHeld(u32),
    TimesHeld,
    SyncHeld,
    SeekHeld(u64, bool),
}

pub(crate) fn more() -> impl Strategy<Value = More> {
    let p = || 0..DIRS.len() * NAMES.len();
    let small = || 0..20_000_u64;
    let len = || 1..9_000_usize;
    let id = || prop::sample::select(vec![None, Some(0_u32), Some(1000), Some(70_000)]);
    let access = prop::sample::select(vec![0_u32, 1, 2]);
    let flags = (access, any::<[bool; 6]>()).prop_map(|(access, extra)| {
        let all = [
            OFlags::CREATE,
            OFlags::EXCL,
            OFlags::TRUNC,
            OFlags::APPEND,
            OFlags::NOFOLLOW,
            OFlags::DIRECTORY,
        ];
        let chosen = all.iter().zip(extra).filter(|(_, take)| *take);
        chosen.fold(access, |flags, (flag, _)| flags | flag.bits())
    });
    prop_oneof![
        4 => (p(), flags).prop_map(|(p, f)| More::Open(p, f)),
        2 => (p(), small(), len()).prop_map(|(p, o, n)| More::Pread(p, o, n)),
        2 => (p(), small()).prop_map(|(p, n)| More::TruncatePath(p, n)),
        4 => (p(), small(), len(), any::<bool>()).prop_map(|(p, o, n, s)| More::Store(p, o, n, s)),
        3 => (p(), 0..120_000_u64, any::<bool>()).prop_map(|(p, o, d)| More::Seek(p, o, d)),
        3 => (p(), p(), small(), small(), len())
            .prop_map(|(a, b, o, t, n)| More::CopyRange(a, b, o, t, n)),
        2 => (p(), 0..8_u32).prop_map(|(p, m)| More::Access(p, m)),
        1 => (p(), 0..4_u8, 0..900_usize).prop_map(|(p, k, n)| More::GetXattr(p, k, n)),
        1 => p().prop_map(More::ListXattr),
        2 => (p(), 0..3_u8, 0..4_u32).prop_map(|(p, k, f)| More::SetXattrFlags(p, k, f)),
        1 => (p(), prop::sample::select(vec![1_000, 3_000, 70_000_usize]))
            .prop_map(|(p, n)| More::BigXattr(p, n)),
        1 => p().prop_map(More::Stat),
        1 => p().prop_map(More::ReadLink),
        2 => (p(), 0..3_u8).prop_map(|(p, k)| More::Node(p, k)),
        1 => (p(), any::<bool>()).prop_map(|(p, now)| More::TimesNow(p, now)),
        2 => (p(), id(), id()).prop_map(|(p, u, g)| More::ChownOne(p, u, g)),
        1 => (p(), 0..4_u8).prop_map(|(p, what)| More::Slash(p, what)),
        2 => p().prop_map(More::HoldAppend),
        1 => (prop::sample::select(vec![0, 1, 3, 0x10, 0x11]), small(), 1..9_000_u64)
            .prop_map(|(m, o, n)| More::AllocateHeld(m, o, n)),
        2 => (small(), small(), len()).prop_map(|(o, t, n)| More::CopyHeld(o, t, n)),
        1 => (0..3_u8).prop_map(More::SetXattrHeld),
        1 => prop::sample::select(vec![0_u32, 1000]).prop_map(More::ChownHeld),
        1 => Just(More::TimesHeld),
        1 => Just(More::SyncHeld),
        1 => (small(), any::<bool>()).prop_map(|(o, d)| More::SeekHeld(o, d)),
    ]
}

/// A process that stores through maps, which safe Rust cannot: `path offset bytes sync`, in
/// hexadecimal, one request a line.
const STORER: &str = r"
import mmap, os, sys
for line in sys.stdin:
    path, offset, data, sync = line.split()
    try:
        fd = os.open(bytes.fromhex(path), os.O_RDWR)
        size = os.fstat(fd).st_size
        if size:
            map = mmap.mmap(fd, size)
            offset = int(offset) % size
            data = bytes.fromhex(data)[:size - offset]
            map[offset:offset + len(data)] = data
            if sync == 'true': map.flush()
            map.close()
        os.close(fd)
        print(size, flush=True)
    except OSError as error:
        print(-error.errno, flush=True)
";

fn store(path: &Path, offset: u64, data: &[u8], sync: bool) -> Outcome {
    type Storer = (Child, ChildStdin, BufReader<ChildStdout>);
    static STORING: Mutex<Option<Storer>> = Mutex::new(None);
    let mut storing = STORING.lock().unwrap();
    // It ends with this process, whose end closes its input.
    let (_, to, from) = storing.get_or_insert_with(|| {
        let mut child = Command::new("python3")
            .args(["-c", STORER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        (child, to, BufReader::new(from))
    });
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let path = hex(path.as_os_str().as_bytes());
    writeln!(to, "{path} {offset} {} {sync}", hex(data)).unwrap();
    let mut answer = String::new();
    from.read_line(&mut answer).unwrap();
    match answer.trim().parse::<i64>().unwrap() {
        size @ 0.. => Ok(size as u64),
        errno => Err(Errno::from_raw_os_error(-errno as i32)),
    }
}

fn read_some(file: &File, offset: u64, len: usize) -> Outcome {
    let mut data = vec![0; len];
    let n = file.read_at(&mut data, offset).map_err(|e| from_io(&e))?;
    Ok(sum(&data[..n]))
}

fn seek(file: &File, offset: u64, data: bool) -> Outcome {
    let to = if data {
        SeekFrom::Data(offset)
    } else {
        SeekFrom::Hole(offset)
    };
    rustix::fs::seek(file, to)
}

impl Side {
    pub(crate) fn apply_more(&mut self, op: &More) -> Outcome {
        match *op {
            More::Open(p, flags) => {
                // Never a device, whose driver would answer.
                let at = self.at(p);
                if let Ok(meta) = fs::metadata(&at)
                    && !(meta.is_file() || meta.is_dir())
                {
                    return Ok(0);
                }
                let flags = OFlags::from_bits_retain(flags) | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file = rustix::fs::open(&at, flags, Mode::from(0o666)).map(File::from)?;
                let meta = file.metadata().map_err(|e| from_io(&e))?;
                if meta.is_dir() {
                    return Ok(1);
                }
                match read_some(&file, 0, 100_000) {
                    Err(Errno::BADF) => Ok(meta.len()),
                    other => other,
                }
            }
            More::Pread(p, offset, len) => read_some(&self.open(p, OFlags::RDONLY)?, offset, len),
            More::TruncatePath(p, len) => {
                // No call of rustix; through links as the kernel resolves them.
                match fs::metadata(self.at(p)) {
                    Ok(meta) if !meta.is_file() => return Err(Errno::NXIO),
                    _ => {}
                }
                let file = rustix::fs::open(self.at(p), OFlags::WRONLY, Mode::empty())?;
                rustix::fs::ftruncate(&file, len).map(|()| 0)
            }
            More::Store(p, offset, len, sync) => {
                drop(self.open(p, OFlags::RDONLY)?);
                // Those go with the store: docs/SEMANTICS.md, "Differences that remain".
                let capability = "security.capability";
                if rustix::fs::lgetxattr(self.at(p), capability, [0_u8; 64].as_mut_slice()).is_ok()
                {
                    return Ok(0);
                }
                store(&self.at(p), offset, &pattern(offset ^ 5, len), sync)
            }
            More::Seek(p, offset, data) => seek(&self.open(p, OFlags::RDONLY)?, offset, data),
            More::CopyRange(from, to, offset, at, len) => {
                let from = self.open(from, OFlags::RDONLY)?;
                let to = self.open(to, OFlags::WRONLY)?;
                let (mut offset, mut at) = (offset, at);
                let n =
                    rustix::fs::copy_file_range(&from, Some(&mut offset), &to, Some(&mut at), len)?;
                Ok((n as u64) ^ offset ^ (at << 20))
            }
            More::Access(p, mode) => {
                let mode = Access::from_bits_retain(mode);
                rustix::fs::accessat(CWD, self.at(p), mode, AtFlags::EACCESS).map(|()| 0)
            }
            More::GetXattr(p, key, room) => {
                let mut value = vec![0_u8; room];
                let key = if key == 3 { "unknown.k" } else { key_name(key) };
                rustix::fs::lgetxattr(self.at(p), key, value.as_mut_slice()).map(|n| n as u64)
            }
            More::ListXattr(p) => {
                let mut names = vec![0_u8; 65_536];
                let n = rustix::fs::llistxattr(self.at(p), names.as_mut_slice())?;
                let mut names: Vec<_> = names[..n].split(|&b| b == 0).collect();
                names.sort_unstable();
                Ok(sum(&names.concat()))
            }
            More::SetXattrFlags(p, key, flags) => {
                let flags = XattrFlags::from_bits_retain(flags);
                rustix::fs::lsetxattr(self.at(p), key_name(key), b"flags", flags).map(|()| 0)
            }
            More::BigXattr(p, len) => {
                let value = pattern(9, len);
                let flags = XattrFlags::empty();
                rustix::fs::lsetxattr(self.at(p), "user.big", &value, flags).map(|()| 0)
            }
            More::Stat(p) => rustix::fs::stat(self.at(p)).map(|stat| u64::from(stat.st_mode)),
            More::ReadLink(p) => {
                rustix::fs::readlink(self.at(p), Vec::new()).map(|to| sum(to.as_bytes()))
            }
            More::Node(p, kind) => {
                let (kind, device) = match kind {
                    0 => (FileType::Socket, 0),
                    1 => (FileType::RegularFile, 0),
                    _ => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
                };
                rustix::fs::mknodat(CWD, self.at(p), kind, Mode::from(0o664), device).map(|()| 0)
            }
            More::TimesNow(p, now) => {
                let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
                let (now_, omit) = (rustix::fs::UTIME_NOW, rustix::fs::UTIME_OMIT);
                let times = Timestamps {
                    last_access: time(omit),
                    last_modification: time(if now { now_ } else { omit }),
                };
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(CWD, self.at(p), &times, flags).map(|()| 0)
            }
            More::ChownOne(p, uid, gid) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let uid = uid.map(rustix::fs::Uid::from_raw);
                let gid = gid.map(rustix::fs::Gid::from_raw);
                rustix::fs::chownat(CWD, self.at(p), uid, gid, flags).map(|()| 0)
            }
            More::Slash(p, what) => {
                let mut at = self.at(p).into_os_string();
                at.push("/");
                match what {
                    0 => rustix::fs::mkdir(&at, Mode::from(0o755)),
                    1 => rustix::fs::unlink(&at),
                    2 => rustix::fs::rename(&at, self.root.join("slash")),
                    _ => rustix::fs::rename(self.root.join("slash"), &at),
                }
                .map(|()| 0)
            }
            More::HoldAppend(p) => {
                self.held = Some(self.open(p, OFlags::RDWR | OFlags::APPEND)?);
                Ok(0)
            }
            More::CopyHeld(offset, at, len) => match (&self.held_read, &self.held) {
                (Some(from), Some(to)) => {
                    let (mut offset, mut at) = (offset, at);
                    let (from_, to_) = (Some(&mut offset), Some(&mut at));
                    rustix::fs::copy_file_range(from, from_, to, to_, len).map(|n| n as u64)
                }
                _ => Ok(0),
            },
            More::SeekHeld(offset, data) => match &self.held {
                Some(file) => seek(file, offset, data),
                None => Ok(0),
            },
            More::AllocateHeld(mode, offset, len) => match &self.held {
                Some(file) => {
                    let mode = FallocateFlags::from_bits_retain(mode);
                    rustix::fs::fallocate(file, mode, offset, len).map(|()| 0)
                }
                None => Ok(0),
            },
            More::SetXattrHeld(_) | More::ChownHeld(_) | More::TimesHeld | More::SyncHeld => {
                match &self.held_read {
                    Some(file) => through(file, op),
                    None => Ok(0),
                }
            }
        }
    }
}

/// Through a descriptor that was opened for reading, maybe long ago.
fn through(file: &File, op: &More) -> Outcome {
    match *op {
        More::SetXattrHeld(key) => {
            rustix::fs::fsetxattr(file, key_name(key), b"held", XattrFlags::empty())
        }
        More::ChownHeld(uid) => {
            rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(uid)), None)
        }
        More::TimesHeld => {
            let time = Timespec {
                tv_sec: 77,
                tv_nsec: 88,
            };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            rustix::fs::futimens(file, &times)
        }
        _ => rustix::fs::fsync(file),
    }
    .map(|()| 0)
}
