//! Between the overlay's values and fuser's.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, Request, TimeOrNow};

use super::Answer;
use crate::inode::{Attr, Kind, Time};
use crate::name::{Name, NameError};
use crate::overlay::{Asker, Caller, Handle, SetAttr, SetTime};

pub(super) fn handle(fh: FileHandle) -> Handle {
    Handle(fh.0)
}

pub(super) fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
    }
}

pub(super) fn asker(req: &Request) -> Asker {
    Asker {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
    }
}

pub(super) fn name(bytes: &OsStr) -> Answer<Name> {
    Name::try_from(bytes).map_err(|error| match error {
        NameError::TooLong(_) => Errno::ENAMETOOLONG,
        NameError::Empty | NameError::Dots | NameError::BadByte => Errno::EINVAL,
    })
}

/// The permission bits of a mode or umask as the kernel sends it.
pub(super) fn perm(mode: u32) -> u16 {
    // 12 bits always fit.
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// The kernel's own encoding of a device number on the FUSE wire
/// (include/linux/kdev_t.h:new_encode_dev()): 12 bits of major, 20 of minor.
fn wire_dev(rdev: u64) -> Answer<u32> {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    if major >= 1 << 12 || minor >= 1 << 20 {
        // A number cut short would be another device, perhaps 0:0.
        return Err(Errno::EOVERFLOW);
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// `makedev(3)`'s number of a device number from the wire (new_decode_dev()).
pub(super) fn device(wire: u32) -> u64 {
    let major = (wire & 0xf_ff00) >> 8;
    let minor = (wire & 0xff) | ((wire >> 12) & 0xf_ff00);
    rustix::fs::makedev(major, minor)
}

pub(super) fn attr(attr: &Attr) -> Answer<FileAttr> {
    Ok(FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: wire_dev(attr.rdev)?,
        blksize: attr.blksize,
        flags: 0,
    })
}

/// Attributes that say nothing: for a negative entry (`ino` 0), and for `.` and `..` in a
/// READDIRPLUS, of which the kernel takes number and type alone.
pub(super) fn bare_attr(ino: u64, kind: Kind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let at = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    // SystemTime holds every i64 of seconds on Linux, so this never falls back.
    at.and_then(|t| t.checked_add(Duration::from_nanos(u64::from(time.nsec))))
        .unwrap_or(UNIX_EPOCH)
}

/// The time that the kernel sent, from what fuser 0.18.0 made of it: before 1970 its
/// `system_time_from_time()` yields epoch - (|sec| + nsec) where epoch - |sec| + nsec was meant;
/// undone here by taking |sec| and nsec apart again.
fn time_from_fuser(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nsec: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Time {
                sec: i64::try_from(before.as_secs()).map_or(i64::MIN, |sec| -sec),
                nsec: before.subsec_nanos(),
            }
        }
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(time_from_fuser(at)),
    }
}

pub(super) fn set_attr(
    req: &Request,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
) -> SetAttr {
    SetAttr {
        perm: mode.map(perm),
        uid,
        gid,
        size,
        atime: atime.map(set_time),
        mtime: mtime.map(set_time),
        asker: Some(asker(req)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn names_get_their_errno() {
        assert_eq!(
            name(OsStr::from_bytes(&[b'x'; 256])),
            Err(Errno::ENAMETOOLONG)
        );
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(name(OsStr::from_bytes(bad)), Err(Errno::EINVAL));
        }
        assert!(name(OsStr::new("ok")).is_ok());
    }

    #[test]
    fn device_numbers_survive_the_wire() {
        for (major, minor) in [(0, 0), (1, 3), (259, 0), (4095, (1 << 20) - 1), (7, 256)] {
            let dev = rustix::fs::makedev(major, minor);
            assert_eq!(device(wire_dev(dev).unwrap()), dev, "{major}:{minor}");
        }
        assert_eq!(
            wire_dev(rustix::fs::makedev(4096, 0)),
            Err(Errno::EOVERFLOW)
        );
        assert_eq!(
            wire_dev(rustix::fs::makedev(0, 1 << 20)),
            Err(Errno::EOVERFLOW)
        );
    }

    #[test]
    fn times_before_the_epoch() {
        // -1.2 s: sec -2, nsec 800,000,000.
        let time = Time {
            sec: -2,
            nsec: 800_000_000,
        };
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::from_millis(1200));
        // What fuser's parser makes of that pair.
        let parsed = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(time_from_fuser(parsed), time);
        let whole = UNIX_EPOCH - Duration::new(5, 0);
        assert_eq!(time_from_fuser(whole), Time { sec: -5, nsec: 0 });
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        for sec in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX] {
            let time = Time { sec, nsec: 0 };
            assert_eq!(time_from_fuser(system_time(time)).sec, sec);
        }
        assert_ne!(
            system_time(Time {
                sec: i64::MAX,
                nsec: 999_999_999
            }),
            UNIX_EPOCH
        );
    }
}
