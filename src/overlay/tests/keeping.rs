//! What changes throw away is kept: the copy that is made meanwhile, with the log over it, is what
//! was there while all was frozen. And who writes does not know of it.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::fixture::{Fixture, Home, bytes, errno, lower};
use crate::overlay::{Handle, Kept, Options, Overlay, Quota, Result, SetAttr, Usage};
use crate::sys::faults::{self, Fault};
use crate::sys::fs;

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;

/// A large file as who copies sees it while all is frozen.
struct Copying {
    file: File,
    ino: u64,
    size: u64,
    /// Where it has data.
    data: Vec<Range<u64>>,
    /// What a copy must be like.
    was: Vec<u8>,
}

impl Copying {
    fn new(path: PathBuf) -> Self {
        let file = File::open(path).unwrap();
        let size = file.metadata().unwrap().len();
        let mut copying = Self {
            ino: file.metadata().unwrap().ino(),
            data: data(&file, size),
            file,
            size,
            was: Vec::new(),
        };
        copying.was = copying.copy();
        copying
    }

    /// All bytes, as they are now; zeros where there was a hole or is nothing any more.
    fn copy(&self) -> Vec<u8> {
        let mut copy = vec![0; usize::try_from(self.size).unwrap()];
        for range in &self.data {
            let part = &mut copy[of(range)];
            fs::read(self.file.as_fd(), range.start, part).unwrap();
        }
        copy
    }

    /// A copy that is made now, and put right.
    fn patched(&self, log: &[Record]) -> Vec<u8> {
        let mut copy = self.copy();
        for record in log.iter().filter(|record| record.ino == self.ino) {
            copy[of(&record.range)].copy_from_slice(&record.bytes);
        }
        copy
    }
}

fn of(range: &Range<u64>) -> Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

fn data(file: &File, size: u64) -> Vec<Range<u64>> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(next) = fs::next_data(file.as_fd(), &(at..size)).unwrap() {
        at = next.end;
        all.push(next);
    }
    all
}

#[derive(Debug)]
struct Record {
    ino: u64,
    range: Range<u64>,
    bytes: Vec<u8>,
}

/// What a log holds, which is nothing twice.
fn records(mut log: &[u8]) -> Vec<Record> {
    let mut all: Vec<Record> = Vec::new();
    while !log.is_empty() {
        let mut number = || {
            let (number, rest) = log.split_at(8);
            log = rest;
            u64::from_le_bytes(number.try_into().unwrap())
        };
        let [ino, start, len] = [number(), number(), number()];
        assert!(len > 0);
        let (bytes, rest) = log.split_at(usize::try_from(len).unwrap());
        let bytes = bytes.to_vec();
        let range = start..start + len;
        log = rest;
        let twice = all.iter().find(|record| {
            record.ino == ino && record.range.start < range.end && range.start < record.range.end
        });
        assert!(twice.is_none(), "{ino} {range:?} was saved before");
        all.push(Record { ino, range, bytes });
    }
    all
}

/// The log of what is kept, opened.
fn log(f: &Fixture, kept: &Kept) -> File {
    File::open(f.dir.path().join("work/work").join(kept.name())).unwrap()
}

fn read(log: &File) -> Vec<Record> {
    let mut all = vec![0; usize::try_from(log.metadata().unwrap().len()).unwrap()];
    log.read_exact_at(&mut all, 0).unwrap();
    records(&all)
}

/// Freezes, and goes on keeping what is overwritten of these.
fn keep(f: &Fixture, paths: &[&str]) -> (Vec<Copying>, Kept, File) {
    let frozen = f.fs.freeze();
    let files: Vec<_> = paths.iter().map(|p| Copying::new(f.upper(p))).collect();
    let kept = frozen.keep(files.iter().map(|file| file.ino)).unwrap();
    let log = log(f, &kept);
    (files, kept, log)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    let byte = |n: usize| n.wrapping_mul(167).wrapping_add(seed.wrapping_mul(31)) >> 3;
    (0..len).map(|n| byte(n).to_le_bytes()[0] | 1).collect()
}

fn open(f: &Fixture, path: &str, flags: i32) -> Handle {
    f.fs.open(f.ino(path), flags).unwrap()
}

fn size(size: u64) -> SetAttr {
    SetAttr {
        size: Some(size),
        ..SetAttr::default()
    }
}

/// As of fallocate(2); what the filesystem has not got changes nothing.
fn fallocate(fs: &Overlay, file: Handle, mode: FallocateFlags, range: Range<u64>) -> Result<()> {
    let mode = i32::try_from(mode.bits()).unwrap();
    match fs.fallocate(file, mode, range.start, range.end - range.start) {
        Err(error) if [libc::EOPNOTSUPP, libc::EINVAL].contains(&error.errno()) => Ok(()),
        other => other,
    }
}

type Change = fn(&Fixture, Handle) -> Result<()>;

const LEN: usize = 300_000;

/// What can be done to a file of 300,000 bytes, and how many of them that throws away.
const CHANGES: [(&str, Change, usize); 20] = [
    ("write", |f, h| f.fs.write(h, 5000, &[0; 10]).map(drop), 10),
    (
        "write over the end",
        |f, h| f.fs.write(h, LEN as u64 - 5, &[0; 10]).map(drop),
        5,
    ),
    (
        "write behind the end",
        |f, h| f.fs.write(h, LEN as u64 + 5, &[0; 10]).map(drop),
        0,
    ),
    ("append", |f, h| f.fs.write(h, None, &[0; 10]).map(drop), 0),
    (
        "append, then write what was appended",
        |f, h| {
            f.fs.write(h, None, &[0; 10])?;
            f.fs.write(h, LEN as u64 - 1, &[1; 10]).map(drop)
        },
        1,
    ),
    (
        "write behind the end, then there",
        |f, h| {
            f.fs.write(h, LEN as u64 + 10, &[0; 10])?;
            f.fs.write(h, LEN as u64, &[1; 10]).map(drop)
        },
        0,
    ),
    (
        "cut by name",
        |f, _| f.fs.setattr(f.ino("file"), None, &size(7)).map(drop),
        LEN - 7,
    ),
    (
        "cut by handle",
        |f, h| f.fs.setattr(f.ino("file"), Some(h), &size(0)).map(drop),
        LEN,
    ),
    (
        "cut, grow, write",
        |f, h| {
            f.fs.setattr(f.ino("file"), Some(h), &size(100))?;
            f.fs.setattr(f.ino("file"), Some(h), &size(1 << 20))?;
            f.fs.write(h, 0, &[7; LEN * 2]).map(drop)
        },
        LEN,
    ),
    (
        "grow",
        |f, _| f.fs.setattr(f.ino("file"), None, &size(1 << 20)).map(drop),
        0,
    ),
    (
        "grow, then write there",
        |f, h| {
            f.fs.setattr(f.ino("file"), None, &size(1 << 20))?;
            f.fs.write(h, LEN as u64, &[1; 10]).map(drop)
        },
        0,
    ),
    (
        "open and cut",
        |f, _| {
            let flags = libc::O_WRONLY | libc::O_TRUNC;
            f.fs.open(f.ino("file"), flags).map(|h| f.fs.release(h))
        },
        LEN,
    ),
    (
        "open for reading and cut",
        |f, _| {
            let flags = libc::O_RDONLY | libc::O_TRUNC;
            f.fs.open(f.ino("file"), flags).map(|h| f.fs.release(h))
        },
        LEN,
    ),
    (
        "allocate",
        |f, h| {
            fallocate(&f.fs, h, FallocateFlags::empty(), 0..1 << 20)?;
            f.fs.write(h, LEN as u64, &[1; 10]).map(drop)
        },
        0,
    ),
    ("punch", |f, h| fallocate(&f.fs, h, PUNCH, 4000..9000), 5000),
    ("zero", |f, h| fallocate(&f.fs, h, ZERO, 4000..9000), 5000),
    (
        "collapse",
        |f, h| fallocate(&f.fs, h, FallocateFlags::COLLAPSE_RANGE, 4096..8192),
        LEN - 4096,
    ),
    (
        "insert",
        |f, h| fallocate(&f.fs, h, FallocateFlags::INSERT_RANGE, 4096..8192),
        LEN - 4096,
    ),
    (
        "copy from the upper",
        |f, h| {
            let from = f.fs.open(f.ino("other"), libc::O_RDONLY)?;
            f.fs.copy_file_range(from, 90_000, h, 50, 1 << 30)?;
            f.fs.release(from);
            Ok(())
        },
        10_000,
    ),
    (
        "copy from the image",
        |f, h| {
            let from = f.fs.open(f.ino("big"), libc::O_RDONLY)?;
            f.fs.copy_file_range(from, 30_000, h, 50, 1 << 30)?;
            f.fs.release(from);
            Ok(())
        },
        10_000,
    ),
];

#[test]
fn each_change_is_kept_once() {
    for (what, change, thrown) in CHANGES {
        let f = Fixture::new();
        f.create("file", &pattern(LEN, 1));
        f.create("other", &pattern(100_000, 2));
        let handle = open(&f, "file", libc::O_RDWR);
        let (files, kept, log) = keep(&f, &["file"]);
        let name = kept.name().to_owned();
        for _ in 0..2 {
            change(&f, handle).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        f.fs.release(handle);
        kept.finish().unwrap();
        let records = read(&log);
        assert!(files[0].patched(&records) == files[0].was, "{what}");
        let saved: usize = records.iter().map(|record| record.bytes.len()).sum();
        assert!(saved == thrown, "{what}: {saved} bytes, not {thrown}");
        assert!(!f.dir.path().join("work/work").join(name).exists());
    }
}

#[test]
fn what_is_not_named_or_too_late_is_not_kept() {
    let f = Fixture::new();
    f.create("file", &pattern(LEN, 1));
    f.create("other", &pattern(LEN, 2));
    f.create("gone", &pattern(LEN, 3));
    let (files, kept, log) = keep(&f, &["file", "gone"]);
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    f.write("other", 0, b"changed");
    f.write("big", 0, b"changed");
    f.create("new", b"new");
    // Who has it open still sees what was there.
    f.unlink("gone").unwrap();
    f.rename("other", "file", 0).unwrap();
    f.fs.setattr(f.ino("file"), None, &size(1)).unwrap();
    kept.finish().unwrap();
    assert!(read(&log).is_empty());
    for file in &files {
        assert!(file.copy() == file.was);
    }
    let (_, kept, log) = keep(&f, &["new"]);
    drop(kept);
    f.write("new", 0, b"old");
    assert!(read(&log).is_empty(), "nothing is kept any more");
    let frozen = f.fs.freeze();
    drop(frozen);
    f.write("new", 0, b"new");
}

#[test]
fn another_freeze_waits_while_changes_go_on() {
    let f = Fixture::new();
    f.create("file", b"file");
    let (_, kept, _) = keep(&f, &["file"]);
    let (frozen, kept_on) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let guard = f.fs.freeze();
            frozen.store(true, Ordering::SeqCst);
            assert_eq!(kept_on.load(Ordering::SeqCst), 100);
            drop(guard);
        });
        for n in 0..100 {
            f.write("file", 0, b"gone");
            f.create(&format!("new{n}"), b"");
            assert!(!frozen.load(Ordering::SeqCst));
            kept_on.fetch_add(1, Ordering::SeqCst);
        }
        kept.finish().unwrap();
        waits.join().unwrap();
    });
}

/// What is held back by the freeze is what is saved from.
#[test]
fn who_waits_for_the_thaw_is_kept_too() {
    let f = Fixture::new();
    f.create("file", &pattern(LEN, 1));
    let frozen = f.fs.freeze();
    let file = Copying::new(f.upper("file"));
    std::thread::scope(|scope| {
        for n in 0..4_u64 {
            let f = &f;
            scope.spawn(move || f.write("file", n * 1000, &[0; 5000]));
        }
        while f.fs.gate.held() < 4 {
            std::thread::yield_now();
        }
        let kept = frozen.keep([file.ino]).unwrap();
        let log = log(&f, &kept);
        while bytes(&f.upper("file"))[..8000] != [0; 8000] {
            std::thread::yield_now();
        }
        kept.finish().unwrap();
        assert!(file.patched(&read(&log)) == file.was);
    });
}

#[test]
fn holes_are_not_kept() {
    const TIB: u64 = 1 << 40;
    let f = Fixture::new();
    f.create("sparse", b"");
    let handle = open(&f, "sparse", libc::O_RDWR);
    f.fs.setattr(f.ino("sparse"), None, &size(TIB)).unwrap();
    f.fs.write(handle, TIB / 2, &pattern(4096, 1)).unwrap();
    let frozen = f.fs.freeze();
    let ino = std::fs::metadata(f.upper("sparse")).unwrap().ino();
    let kept = frozen.keep([ino]).unwrap();
    let log = log(&f, &kept);
    f.fs.write(handle, 1 << 20, &[1; 25 * 4096]).unwrap();
    f.fs.setattr(f.ino("sparse"), None, &size(5)).unwrap();
    kept.finish().unwrap();
    let records = read(&log);
    assert_eq!(records.len(), 1, "{:?}", records[0].range);
    assert_eq!(records[0].range, TIB / 2..TIB / 2 + 4096);
    assert!(records[0].bytes == pattern(4096, 1));
    f.fs.release(handle);
}

/// Allocated and not written: data to lseek(2) once it has been read, a hole when the pages have
/// gone.
#[test]
fn what_was_seen_as_data_and_is_a_hole_now_is_kept_as_zeros() {
    type Before = fn(&Fixture, Handle) -> Result<()>;
    let first: [Before; 4] = [
        |_, _| Ok(()),
        |f, _| f.fs.setattr(f.ino("file"), None, &size(0)).map(drop),
        |f, h| fallocate(&f.fs, h, PUNCH, 0..1 << 20),
        |f, h| fallocate(&f.fs, h, ZERO, 0..1 << 20),
    ];
    for (n, first) in first.into_iter().enumerate() {
        let f = Fixture::new();
        f.create("file", b"");
        let handle = open(&f, "file", libc::O_RDWR);
        fallocate(&f.fs, handle, FallocateFlags::empty(), 0..1 << 20).unwrap();
        f.fs.setattr(f.ino("file"), None, &size(1 << 20)).unwrap();
        let frozen = f.fs.freeze();
        let mut file = Copying::new(f.upper("file"));
        // As if it had been read before, or not all of it.
        file.data = vec![0..1 << 19, 600_000..700_000];
        let kept = frozen.keep([file.ino]).unwrap();
        let log = log(&f, &kept);
        let advice = rustix::fs::Advice::DontNeed;
        rustix::fs::fadvise(&file.file, 0, None, advice).unwrap();
        first(&f, handle).unwrap();
        for at in [5000, 400_000, 690_000] {
            f.fs.write(handle, at, &[1; 50_000]).unwrap();
        }
        kept.finish().unwrap();
        let records = read(&log);
        // Not so on tmpfs, where reading changes nothing.
        let on_disk = fs::next_allocated(file.file.as_fd(), 0..1 << 20).unwrap();
        if on_disk.is_some_and(|range| range.end > 60_000) {
            assert!(file.patched(&records) == file.was, "{n}");
        }
        assert!(
            records
                .iter()
                .all(|record| record.bytes.iter().all(|&byte| byte == 0))
        );
        f.fs.release(handle);
    }
}

/// Each call that may need room fails once: the writer does not notice, and the reader is told.
#[test]
fn a_log_that_cannot_be_written_is_given_up() {
    for len in [10, 100_000_u64] {
        for error in [Errno::NOSPC, Errno::IO] {
            let mut lost = 0;
            for n in 1.. {
                let f = Fixture::new();
                f.create("file", &pattern(LEN, 1));
                let handle = open(&f, "file", libc::O_RDWR);
                let (files, kept, log) = keep(&f, &["file"]);
                // Not in the beginning: what is there is of no use either.
                f.fs.write(handle, 0, &[0; 10]).unwrap();
                faults::plan(n, Fault::Once(error));
                let cut =
                    f.fs.setattr(f.ino("file"), Some(handle), &size(LEN as u64 - len));
                let happened = faults::end();
                let finished = f.fs.write(handle, 20, &[0; 10]).and(kept.finish());
                f.fs.release(handle);
                if !happened {
                    finished.unwrap();
                    assert!(files[0].patched(&read(&log)) == files[0].was);
                    break;
                }
                if let Err(failed) = cut {
                    assert_eq!(failed.errno(), error.raw_os_error(), "the writer's own");
                    continue;
                }
                match finished {
                    Err(told) => {
                        assert_eq!(told.errno(), error.raw_os_error());
                        assert!(!told.to_string().contains('\n'));
                        assert_eq!(log.metadata().unwrap().len(), 0, "its room is free");
                        lost += 1;
                    }
                    // It could be copied by hand.
                    Ok(()) => assert!(files[0].patched(&read(&log)) == files[0].was),
                }
                assert_eq!(f.attr("file").size, LEN as u64 - len);
            }
            assert!(lost > 0, "{len}: {error}");
        }
    }
}

#[test]
fn who_finds_no_room_gets_what_the_log_took() {
    const MIB: u64 = 1 << 20;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root (tmpfs)");
        assert!(std::env::var_os("CI").is_none());
        return;
    }
    let tmpfs = crate::sys::mount::detached_tmpfs(Some(64 * MIB), None).unwrap();
    let home = PathBuf::from(format!("/proc/self/fd/{}", tmpfs.as_raw_fd()));
    std::fs::create_dir(home.join("upper")).unwrap();
    let f = Fixture::reopen(Home::Lent(home));
    let all = usize::try_from(40 * MIB).unwrap();
    f.create("file", &pattern(all, 1));
    // The log leaves some room.
    let (files, kept, log) = keep(&f, &["file"]);
    let handle = open(&f, "file", libc::O_RDWR);
    let chunk = usize::try_from(MIB).unwrap();
    for at in (0..40).map(|n| n * MIB) {
        assert_eq!(f.fs.write(handle, at, &vec![0; chunk]).unwrap(), chunk);
    }
    assert_eq!(errno(kept.finish()), libc::ENOSPC);
    assert_eq!(log.metadata().unwrap().len(), 0);
    drop(files);
    // And it gives back what it has: 10 MiB are free then, and 15 in all.
    f.fs.setattr(f.ino("file"), None, &size(45 * MIB)).unwrap();
    f.fs.write(handle, 40 * MIB, &vec![1; 5 * chunk]).unwrap();
    let (files, kept, log) = keep(&f, &["file"]);
    f.fs.write(handle, 0, &vec![2; 5 * chunk]).unwrap();
    assert!(log.metadata().unwrap().len() > 5 * MIB);
    let other = f.create("other", b"");
    let other =
        f.fs.open(crate::overlay::Ino(other.ino), libc::O_RDWR)
            .unwrap();
    assert_eq!(
        f.fs.write(other, 0, &vec![3; 15 * chunk]).unwrap(),
        15 * chunk
    );
    assert_eq!(errno(kept.finish()), libc::ENOSPC);
    drop(files);
    // Where the log has no part in it, it stays.
    let (files, kept, log) = keep(&f, &["file"]);
    f.fs.write(other, 15 * MIB, &vec![3; 15 * chunk]).unwrap();
    assert_eq!(
        errno(f.fs.write(other, 40 * MIB, &vec![3; chunk])),
        libc::ENOSPC
    );
    kept.finish().unwrap();
    assert!(files[0].patched(&read(&log)) == files[0].was);
    f.fs.release(handle);
    f.fs.release(other);
}

#[test]
fn the_log_is_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("upper")).unwrap();
    let upper = Fixture::open_upper(dir.path());
    let options = Options {
        quota: Some(Quota {
            bytes: Some(1 << 20),
            inodes: Some(10),
        }),
        ..Options::default()
    };
    let fs = Overlay::with_upper(lower(dir.path()), upper, options).unwrap();
    let dir = Home::Own(dir);
    let f = Fixture { dir, fs };
    f.create("file", &pattern(900_000, 1));
    let handle = open(&f, "file", libc::O_RDWR);
    let before = f.fs.usage().unwrap();
    let (files, kept, log) = keep(&f, &["file"]);
    f.fs.write(handle, 0, &[7; 900_000]).unwrap();
    // Who reaches the quota finds no room in what the log has.
    let end = errno(
        f.fs.write(handle, 1 << 20, &[7; 4096])
            .and_then(|_| f.fs.write(handle, 2 << 20, &[7; 400_000]).map(drop))
            .and_then(|()| f.fs.write(handle, 3 << 20, &[7; 400_000])),
    );
    assert_eq!(end, libc::ENOSPC);
    kept.finish().unwrap();
    assert!(files[0].patched(&read(&log)) == files[0].was);
    f.fs.setattr(f.ino("file"), None, &size(900_000)).unwrap();
    let Usage { bytes, inodes } = f.fs.usage().unwrap();
    assert_eq!(inodes, before.inodes);
    assert!(bytes.abs_diff(before.bytes) <= 8192, "{bytes} {before:?}");
    f.fs.release(handle);
}

#[test]
fn where_no_log_can_be_made_all_stays_frozen() {
    let f = Fixture::new();
    f.create("file", b"file");
    std::thread::scope(|scope| {
        let frozen = f.fs.freeze();
        faults::plan(1, Fault::Once(Errno::NOSPC));
        let (frozen, error) = frozen.keep([1]).map(drop).unwrap_err();
        assert!(faults::end());
        assert_eq!(error.errno(), libc::ENOSPC);
        scope.spawn(|| f.write("file", 0, b"late"));
        while f.fs.gate.held() < 1 {
            std::thread::yield_now();
        }
        assert_eq!(bytes(&f.upper("file")), b"file");
        drop(frozen);
    });
    assert_eq!(bytes(&f.upper("file")), b"late");
    let image = Overlay::read_only(lower(f.dir.path()));
    let (_frozen, error) = image.freeze().keep([1]).map(drop).unwrap_err();
    assert_eq!(error.errno(), libc::EROFS);
}

#[test]
fn a_log_outlives_neither_a_panic_nor_the_next_mount() {
    let f = Fixture::new();
    f.create("file", b"file");
    let work = f.dir.path().join("work/work");
    std::thread::scope(|scope| {
        let panics = scope.spawn(|| {
            let _kept = keep(&f, &["file"]);
            panic!("with the log");
        });
        panics.join().unwrap_err();
    });
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
    let (files, kept, _) = keep(&f, &["file"]);
    f.write("file", 0, b"more");
    let name = work.join(kept.name());
    let f = f.again();
    assert!(!name.exists(), "as after a kill");
    std::fs::write(&name, "another's").unwrap();
    kept.finish().unwrap();
    drop(files);
    assert!(name.exists(), "what is there now is not that one's");
    std::fs::remove_file(&name).unwrap();
    let (_, kept, log) = keep(&f, &["file"]);
    assert_eq!(log.metadata().unwrap().len(), 0);
    drop(kept);
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
}

/// Numbers that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).unwrap()
    }
}

const FILES: [&str; 3] = ["f0", "f1", "f2"];

/// One change of one of the files, whichever.
fn change(f: &Fixture, random: &mut Random) {
    let path = FILES[random.below(FILES.len())];
    let page = 4096 * random.below(100) as u64;
    let at = random.below(500_000) as u64;
    let len = 1 + random.below(90_000);
    let seed = random.below(1000);
    let cuts = if random.below(8) == 0 {
        libc::O_TRUNC
    } else {
        0
    };
    let handle = open(f, path, libc::O_RDWR | cuts);
    let to = at..at + len as u64;
    let done = match random.below(9) {
        0 => f.fs.write(handle, None, &pattern(len, seed)).map(drop),
        1 => f.fs.setattr(f.ino(path), Some(handle), &size(at)).map(drop),
        2 => fallocate(&f.fs, handle, PUNCH, to),
        3 => fallocate(&f.fs, handle, ZERO, to),
        4 => fallocate(&f.fs, handle, FallocateFlags::empty(), to),
        5 => fallocate(
            &f.fs,
            handle,
            FallocateFlags::INSERT_RANGE,
            page..page + 4096,
        ),
        6 => fallocate(
            &f.fs,
            handle,
            FallocateFlags::COLLAPSE_RANGE,
            page..page + 4096,
        ),
        7 => {
            let from = ["f0", "f1", "f2", "big"][random.below(4)];
            let from = open(f, from, libc::O_RDONLY);
            let copied = f.fs.copy_file_range(from, page, handle, at, len);
            f.fs.release(from);
            match copied {
                // Of itself, onto itself.
                Err(error) if error.errno() == libc::EINVAL => Ok(()),
                other => other.map(drop),
            }
        }
        _ => f.fs.write(handle, at, &pattern(len, seed)).map(drop),
    };
    f.fs.release(handle);
    done.unwrap();
}

#[test]
fn random_changes_of_many_threads_are_kept() {
    let f = Fixture::new();
    for (n, path) in FILES.into_iter().enumerate() {
        f.create(path, &pattern(400_000 + n, n));
    }
    for round in 0..12_u64 {
        let (stop, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (f, stop, begun) = (&f, &stop, &begun);
                scope.spawn(move || {
                    let mut random = Random(1 + round * 4 + thread);
                    for n in 0.. {
                        if n >= 40 && stop.load(Ordering::SeqCst) {
                            break;
                        }
                        change(f, &mut random);
                        begun.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            // In the middle of it.
            while begun.load(Ordering::SeqCst) < 20 {
                std::thread::yield_now();
            }
            let (files, kept, log) = keep(&f, &FILES[..2]);
            let mut copies = Vec::new();
            for file in &files {
                // Torn, while they go on.
                let before = begun.load(Ordering::SeqCst);
                let mut copy = file.copy();
                while begun.load(Ordering::SeqCst) < before + 20 {
                    copy = file.copy();
                }
                copies.push(copy);
            }
            let last = kept.finish().map(|()| read(&log)).unwrap();
            stop.store(true, Ordering::SeqCst);
            for (file, mut copy) in files.iter().zip(copies) {
                for record in last.iter().filter(|record| record.ino == file.ino) {
                    assert!(record.range.end <= file.size, "{:?}", record.range);
                    copy[of(&record.range)].copy_from_slice(&record.bytes);
                }
                assert!(copy == file.was, "round {round}");
            }
        });
    }
}
