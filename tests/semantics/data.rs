//! Bytes and times.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, SeekFrom, Timespec, Timestamps, fallocate};
use rustix::io::Errno;

use super::{Case, Where, errno, python, read, tick};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "appends_of_processes",
        "What several processes append with O_APPEND stands whole, one behind the other.",
        |at| {
            python(at, r"
pids = []
for n in range(4):
    pid = os.fork()
    if pid == 0:
        fd = os.open('file', os.O_WRONLY | os.O_APPEND)
        for i in range(100):
            os.write(fd, b'%d-%03d-%s\n' % (n, i, b'x' * 50))
        os._exit(0)
    pids.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
");
            appended(at);
        },
    )
    .after(appended),
    Case::new(
        "shared_maps",
        "What is stored through a shared writable map is seen by read(2), by other processes and after a new mount; and it updates st_mtime and st_ctime.",
        |at| {
            old_times(&at.join("file"));
            python(at, r"
import mmap
before = os.open('file', os.O_RDONLY)
reader = mmap.mmap(before, 10, prot=mmap.PROT_READ)
assert reader[:] == b'0123456789'
fd = os.open('file', os.O_RDWR)
ctime = os.fstat(fd).st_ctime_ns
map = mmap.mmap(fd, 10)
map[2:4] = b'AB'
assert os.pread(fd, 10, 0) == b'01AB456789'
pid = os.fork()
if pid == 0:
    ok = open('file').read() == '01AB456789'
    map[9:] = b'Z'
    os._exit(0 if ok else 1)
assert os.waitpid(pid, 0)[1] == 0
assert map[:] == b'01AB45678Z'
assert os.pread(fd, 10, 0) == b'01AB45678Z'
assert os.pread(before, 10, 0) == b'01AB45678Z'
os.pwrite(fd, b'w', 0)
assert map[0:1] == b'w'
map.flush()
assert os.stat('file').st_mtime > 1000000, 'mtime'
assert os.stat('file').st_ctime_ns > ctime, 'ctime'
");
        },
    )
    .after(|at| assert_eq!(read(at.join("file")), "w1AB45678Z")),
    Case::new(
        "times",
        "A write updates st_mtime and st_ctime, a change of attributes or names st_ctime alone, a change in a directory both of its own; a read changes neither.",
        |at| {
            let times = |name: &str| {
                let meta = fs::symlink_metadata(at.join(name)).unwrap();
                ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()))
            };
            let (mtime, ctime) = times("file");
            tick(at);
            read(at.join("file"));
assert_eq!(times("file"), (mtime, ctime), "read");
            drop(OpenOptions::new().write(true).open(at.join("file")).unwrap());
            assert_eq!(times("file").0, mtime, "open for writing");
            fs::set_permissions(at.join("file"), std::os::unix::fs::PermissionsExt::from_mode(0o640))
                .unwrap();
            assert_eq!(times("file").0, mtime, "chmod");
            assert!(times("file").1 > ctime, "chmod");
            let (_, ctime) = times("file");
            tick(at);
            OpenOptions::new().append(true).open(at.join("file")).unwrap().write_all(b"x").unwrap();
            assert!(times("file").0 > mtime && times("file").1 > ctime, "write");
            let (mtime, ctime) = times("file");
            tick(at);
            fs::hard_link(at.join("file"), at.join("dir/hard")).unwrap();
            assert_eq!(times("file").0, mtime, "link");
            assert!(times("file").1 > ctime, "link");
            let (mtime, ctime) = times("file");
            tick(at);
            File::options().write(true).open(at.join("file")).unwrap().set_len(3).unwrap();
            assert!(times("file").0 > mtime && times("file").1 > ctime, "truncate");
            let (mtime, ctime) = times("dir");
            tick(at);
            fs::remove_file(at.join("dir/hard")).unwrap();
            assert!(times("dir").0 > mtime && times("dir").1 > ctime, "unlink");
            let (mtime, ctime) = times("dir");
            tick(at);
            fs::rename(at.join("one"), at.join("dir/one")).unwrap();
            assert!(times("dir").0 > mtime && times("dir").1 > ctime, "rename");
            let (mtime, ctime) = times("dir");
            tick(at);
            fs::write(at.join("dir/inner"), "changed").unwrap();
            fs::write(at.join("dir/sub/deep"), "changed").unwrap();
            assert_eq!(times("dir"), (mtime, ctime), "a change below");
        },
    ),
    Case::new(
        "times_are_kept",
        "Times that utimensat(2) sets are kept to the nanosecond, those before 1970 too, and bringing a file to the upper changes none.",
        |at| {
            let mtime = |name: &str| {
                let meta = fs::metadata(at.join(name)).unwrap();
                (meta.mtime(), meta.mtime_nsec())
            };
            let was = mtime("dir/inner");
            let dir = mtime("dir");
            fs::set_permissions(at.join("dir/inner"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
            assert_eq!((mtime("dir/inner"), mtime("dir")), (was, dir));
            set_times(&at.join("file"), -5, 123_456_789);
            kept(at);
        },
    )
    .after(kept),
    Case::new(
        "old_descriptors_see_writes",
        "A descriptor that was opened for reading before a file was first written to sees what is written.",
        |at| {
            let before = File::open(at.join("file")).unwrap();
            let read = || {
                let mut bytes = [0; 20];
                let n = before.read_at(&mut bytes, 0).unwrap();
                String::from_utf8(bytes[..n].to_vec()).unwrap()
            };
            assert_eq!(read(), "0123456789");
            let write = OpenOptions::new().write(true).open(at.join("file")).unwrap();
            write.write_all_at(b"ab", 4).unwrap();
            assert_eq!(read(), "0123ab6789");
            write.set_len(5).unwrap();
            assert_eq!(read(), "0123a");
            assert_eq!(before.metadata().unwrap().len(), 5);
        },
    ),
    Case::new(
        "large_files_keep_their_readers",
        "What is open of a file of the image of 64 KiB or more when the file is first changed goes on with the image's bytes; what is opened from then on has the file as it is now, and `st_ino` is the same for both.",
        |at| {
            python(at, r"
import mmap
made_here = os.path.basename(os.getcwd()).startswith('upper-')
before = b'new!' if made_here else b'aaaa'
old = os.open('l/large', os.O_RDONLY)
map = mmap.mmap(old, 65536, prot=mmap.PROT_READ)
assert os.pread(old, 4, 4096) == map[4096:4100] == b'aaaa'
new = os.open('l/large', os.O_RDWR)
os.pwrite(new, b'new!', 4096)
link = os.open('l/link', os.O_RDONLY)
assert os.pread(old, 4, 4096) == map[4096:4100] == before
assert os.pread(new, 4, 4096) == os.pread(link, 4, 4096) == b'new!'
numbers = {os.fstat(fd).st_ino for fd in (old, new, link)} | {os.stat('l/large').st_ino, os.stat('l/link').st_ino}
assert len(numbers) == 1, numbers
os.chmod('l/link', 0o600)
assert {os.fstat(fd).st_mode & 0o777 for fd in (old, new, link)} == {0o600}
assert os.stat('l/large').st_mode & 0o777 == 0o600
again = os.open('l/large', os.O_RDONLY)
assert os.pread(again, 4, 4096) == b'new!'
map.close()
for fd in old, new, link, again:
    os.close(fd)
assert open('l/link', 'rb').read()[4096:4100] == b'new!'
assert os.stat('l/link').st_ino in numbers
");
        },
    )
    .with("os.mkdir('l'); open('l/large', 'wb').write(b'a' * 65536); os.link('l/large', 'l/link')")
    .at(Where::Mount),
    Case::new(
        "direct_io",
        "O_DIRECT reads and writes the bytes that others see.",
        |at| {
            let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).custom_flags(direct).open(at.join("file")).unwrap();
            let mut buffer = vec![b'd'; 3 * 4096];
            let start = buffer.as_ptr().align_offset(4096);
            let aligned = &mut buffer[start..start + 4096];
            assert_eq!(file.read_at(aligned, 0).unwrap(), 10);
            assert_eq!(&aligned[..10], b"0123456789");
            aligned.fill(b'w');
            assert_eq!(file.write_at(aligned, 0).unwrap(), 4096);
            assert_eq!(read(at.join("file")), "w".repeat(4096));
            fs::write(at.join("file"), "b".repeat(4096)).unwrap();
            assert_eq!(file.read_at(aligned, 0).unwrap(), 4096);
            assert!(aligned.iter().all(|&b| b == b'b'));
        },
    ),
    Case::new(
        "tmpfile",
        "O_TMPFILE gives EOPNOTSUPP.",
        |at| {
            let flags = OFlags::TMPFILE | OFlags::RDWR;
            let file = rustix::fs::openat(CWD, at, flags, Mode::RWXU);
            assert_eq!(file.unwrap_err(), Errno::OPNOTSUPP);
        },
    )
    .at(Where::Mount),
    Case::new(
        "allocation",
        "fallocate(2) allocates, keeps the size, punches holes and zeroes ranges.",
        |at| {
            let file = OpenOptions::new().read(true).write(true).open(at.join("file")).unwrap();
            let none = FallocateFlags::empty();
            fallocate(&file, none, 0, 10_000).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 10_000);
            fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 10_000);
            assert!(file.metadata().unwrap().blocks() * 512 >= 1 << 20);
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, punch, 2, 3).unwrap();
            fallocate(&file, FallocateFlags::ZERO_RANGE, 9, 20_000).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 20_009);
            allocated(at);
        },
    )
    .after(allocated),
    Case::new(
        "other_allocation",
        "fallocate(2) with FALLOC_FL_COLLAPSE_RANGE and FALLOC_FL_INSERT_RANGE gives EOPNOTSUPP.",
        |at| {
            let file = OpenOptions::new().write(true).open(at.join("sparse")).unwrap();
            for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
                assert_eq!(fallocate(&file, mode, 0, 4096), Err(Errno::OPNOTSUPP));
            }
        },
    )
    .at(Where::Mount),
    Case::new(
        "holes",
        "SEEK_HOLE and SEEK_DATA find the holes of a sparse file, before it is first written to and after; and it stays sparse.",
        |at| {
            sparse(at);
            let file = OpenOptions::new().append(true).open(at.join("sparse")).unwrap();
            drop(file);
            sparse(at);
        },
    )
    .after(sparse),
    Case::new(
        "copy_range",
        "copy_file_range(2) copies between any two files.",
        |at| {
            let new = OpenOptions::new().write(true).create_new(true).open(at.join("new")).unwrap();
            let from = File::open(at.join("file")).unwrap();
            let mut offset = 3;
            let n = rustix::fs::copy_file_range(&from, Some(&mut offset), &new, None, 5).unwrap();
            assert_eq!((n, offset), (5, 8));
            let back = OpenOptions::new().write(true).open(at.join("dir/inner")).unwrap();
            let new = File::open(at.join("new")).unwrap();
            assert_eq!(rustix::fs::copy_file_range(&new, None, &back, None, 5).unwrap(), 5);
            ranged(at);
        },
    )
    .after(ranged),
    Case::new(
        "truncation",
        "Cutting a file, by truncate(2) or O_TRUNC, leaves the bytes before the end and zeros beyond it.",
        |at| {
            rustix::fs::ftruncate(OpenOptions::new().write(true).open(at.join("file")).unwrap(), 4)
                .unwrap();
            rustix::fs::ftruncate(OpenOptions::new().write(true).open(at.join("file")).unwrap(), 6)
                .unwrap();
            drop(OpenOptions::new().write(true).truncate(true).open(at.join("one")).unwrap());
            let open = File::open(at.join("file")).unwrap();
            assert_eq!(errno(open.set_len(1)), libc::EINVAL);
            cut(at);
        },
    )
    .after(cut),
];

fn set_times(path: &Path, sec: i64, nsec: i64) {
    let time = Timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
}

fn old_times(path: &Path) {
    set_times(path, 1000, 0);
}

fn appended(at: &Path) {
    let text = read(at.join("file"));
    let lines: Vec<_> = text.strip_prefix("0123456789").unwrap().lines().collect();
    assert_eq!(lines.len(), 400);
    for n in 0..4 {
        let own: Vec<_> = lines
            .iter()
            .filter(|l| l.starts_with(&format!("{n}-")))
            .collect();
        for (i, line) in own.iter().enumerate() {
            assert_eq!(**line, format!("{n}-{i:03}-{}", "x".repeat(50)));
        }
        assert_eq!(own.len(), 100);
    }
}

fn kept(at: &Path) {
    let meta = fs::metadata(at.join("file")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-5, 123_456_789));
    assert_eq!((meta.atime(), meta.atime_nsec()), (-5, 123_456_789));
}

fn allocated(at: &Path) {
    let bytes = fs::read(at.join("file")).unwrap();
    assert_eq!(&bytes[..10], b"01\0\0\x005678\0");
    assert!(bytes[10..].iter().all(|&b| b == 0));
    assert_eq!(bytes.len(), 20_009);
}

fn sparse(at: &Path) {
    let file = File::open(at.join("sparse")).unwrap();
    let data = rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap();
    assert!((1 << 19..=1 << 20).contains(&data), "data at {data}");
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)).unwrap(), 0);
    assert_eq!(
        rustix::fs::seek(&file, SeekFrom::Hole(1 << 20)).unwrap(),
        (1 << 20) + 3
    );
    assert_eq!(
        rustix::fs::seek(&file, SeekFrom::Data(1 << 30)),
        Err(Errno::NXIO)
    );
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 19);
}

fn ranged(at: &Path) {
    assert_eq!(read(at.join("new")), "34567");
    assert_eq!(read(at.join("dir/inner")), "34567");
}

fn cut(at: &Path) {
    assert_eq!(read(at.join("file")), "0123\0\0");
    assert_eq!(read(at.join("one")), "");
    assert_eq!(read(at.join("two")), "");
}
