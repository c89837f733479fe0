//! Parts of files: allocation, holes, appending, maps and descriptors from before.

use std::path::Path;

use super::{Case, python};

const CALLS: &str = r"
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
def allocate(fd, mode, start, length):
    if libc.fallocate(fd, mode, ctypes.c_long(start), ctypes.c_long(length)):
        return ctypes.get_errno()
    return 0
def answer(act, *args):
    try:
        return act(*args)
    except OSError as error:
        return -error.errno
KEEP, PUNCH, ZERO = 1, 2, 16
";

pub(super) const CASES: &[Case] = &[
    Case::new(
        "allocation_modes",
        "Each mode of fallocate(2) does with size, bytes and blocks what it does on a local filesystem, and fails with the same errno.",
        |at| {
            python(at, &format!("{CALLS}{}", r"
fd = os.open('file', os.O_RDWR)
def size(): return os.fstat(fd).st_size
def blocks(): return os.fstat(fd).st_blocks * 512
got = [
    allocate(fd, 0, 0, 0), allocate(fd, 0, -1, 10), allocate(fd, PUNCH, 0, 10), allocate(fd, 0x80, 0, 10),
    allocate(fd, PUNCH | ZERO | KEEP, 0, 10), allocate(os.open('file', os.O_RDONLY), 0, 0, 10),
    allocate(os.open('dir', os.O_RDONLY), 0, 0, 10), allocate(os.open('fifo', os.O_RDWR), 0, 0, 10),
    allocate(os.open('null', os.O_RDWR), 0, 0, 10), allocate(fd, 0, 1 << 62, 1 << 62),
]
assert got == [22, 22, 95, 95, 95, 9, 9, 29, 19, 27], got
assert (size(), os.pread(fd, 20, 0)) == (10, b'0123456789')
assert allocate(fd, KEEP, 0, 1 << 16) == 0 and size() == 10 and blocks() >= 1 << 16
assert allocate(fd, ZERO | KEEP, 4, 1 << 16) == 0 and size() == 10
assert os.pread(fd, 20, 0) == b'0123' + bytes(6)
assert allocate(fd, PUNCH | KEEP, 100000, 1000) == 0 and size() == 10
assert allocate(fd, PUNCH | KEEP, 2, 1) == 0 and os.pread(fd, 20, 0) == b'01\0' + b'3' + bytes(6)
assert allocate(fd, 0, 20000, 100) == 0 and size() == 20100
assert os.pread(fd, 20100, 0) == b'01\0' + b'3' + bytes(20096)
os.pwrite(fd, b'x' * 8192, 4096)
was = blocks()
assert allocate(fd, PUNCH | KEEP, 4096, 4096) == 0 and blocks() == was - 4096
assert os.lseek(fd, 4096, os.SEEK_DATA) == 8192
assert os.pread(fd, 8192, 4096) == bytes(4096) + b'x' * 4096
map = mmap.mmap(fd, 20100)
assert allocate(fd, ZERO, 8192, 10) == 0 and map[8192:8203] == bytes(10) + b'x'
assert allocate(fd, PUNCH | KEEP, 0, 4) == 0 and map[0:4] == bytes(4)
"));
        },
    ),
    Case::new(
        "holes_after_changes",
        "A sparse file stays sparse when it is written to, cut and extended, and its holes are found where they are then.",
        |at| {
            python(at, &format!("{CALLS}{}", r"
M = 1 << 20
before = os.open('sparse', os.O_RDONLY)
fd = os.open('sparse', os.O_RDWR)
os.pwrite(fd, b'm' * 4096, M // 2)
os.ftruncate(fd, 4 * M)
os.pwrite(fd, b'e', 3 * M)
"));
            swiss(at);
        },
    )
    .after(swiss),
    Case::new(
        "appending",
        "A descriptor with O_APPEND writes at the end wherever it or pwrite(2) points, also behind what others appended or cut meanwhile, and fcntl(2) can turn it on and off.",
        |at| {
            python(at, &format!("{CALLS}{}", r"
import fcntl
one, two = os.open('file', os.O_RDWR | os.O_APPEND), os.open('file', os.O_RDWR | os.O_APPEND)
os.lseek(one, 3, os.SEEK_SET)
os.write(one, b'A'); assert os.lseek(one, 0, os.SEEK_CUR) == 11
os.pwrite(two, b'B', 0)
os.write(one, b'C')
os.truncate('file', 12)
os.write(two, b'D')
assert os.pread(one, 99, 0) == b'0123456789ABD'
fcntl.fcntl(one, fcntl.F_SETFL, 0)
os.pwrite(one, b'x', 0)
fcntl.fcntl(one, fcntl.F_SETFL, os.O_APPEND)
os.pwrite(one, b'E', 0)
map = mmap.mmap(two, 14)
assert map[:] == b'x123456789ABDE'
link = os.open('dir/three', os.O_WRONLY | os.O_APPEND)
other = os.open('one', os.O_WRONLY | os.O_APPEND)
os.write(link, b'1'); os.write(other, b'2'); os.write(link, b'3')
assert open('two').read() == 'linked123'
"));
        },
    )
    .after(|at| {
        python(at, "assert open('file').read() == 'x123456789ABDE' and open('one').read() == 'linked123'");
    }),
    Case::new(
        "old_descriptors_of_all_kinds",
        "Maps, directories, O_PATH and O_DIRECT descriptors from before a file's first change go on with the file as it is now, whoever changed it and by which name.",
        |at| {
            python(at, &format!("{CALLS}{}", r"
reader = os.open('one', os.O_RDONLY)
path = os.open('dir/three', os.O_PATH)
direct = os.open('two', os.O_RDONLY | os.O_DIRECT)
shared = mmap.mmap(reader, 6, prot=mmap.PROT_READ)
private = mmap.mmap(reader, 6, flags=mmap.MAP_PRIVATE)
page = mmap.mmap(-1, 4096)
listed = os.open('dir', os.O_RDONLY)
assert shared[:] == b'linked' and os.preadv(direct, [page], 0) == 6
private[5:6] = b'P'
if os.fork() == 0:
    os.rename('dir', 'moved')
    fd = os.open('moved/three', os.O_RDWR)
    os.pwrite(fd, b'L', 0)
    os._exit(0)
assert os.wait()[1] == 0
assert shared[:] == b'Linked' and os.pread(reader, 9, 0) == b'Linked'
assert os.preadv(direct, [page], 0) == 6 and page[:6] == b'Linked'
# A page of a private map that was stored to is the process's own.
assert private[:] == b'linkeP'
assert open(f'/proc/self/fd/{path}', 'rb').read() == b'Linked'
assert os.readlink(f'/proc/self/fd/{path}').endswith('/moved/three')
fd = os.open(f'/proc/self/fd/{path}', os.O_RDWR)
os.pwrite(fd, b'I', 1)
os.ftruncate(fd, 4096)
assert shared[:2] == b'LI' and os.fstat(reader).st_size == 4096 and os.fstat(path).st_size == 4096
open('moved/born', 'w').close()
assert sorted(os.listdir(listed)) == ['born', 'inner', 'sub', 'three']
assert os.fstat(listed).st_ino == os.stat('moved').st_ino
os.fchmod(reader, 0o600); os.setxattr(reader, 'user.r', b'r'); os.utime(reader, ns=(5, 6))
s = os.stat('two')
assert (s.st_mode & 0o7777, s.st_mtime_ns, os.getxattr('one', 'user.r')) == (0o600, 6, b'r')
assert os.fstat(path) == os.fstat(fd)
got = answer(os.write, reader, b'x'), answer(os.ftruncate, reader, 1), answer(os.read, path, 1)
assert got == (-9, -22, -9), got
os.fsync(reader); os.fdatasync(fd); os.fsync(listed)
"));
        },
    )
    .after(|at| {
        python(at, "d = open('one', 'rb').read(); assert d == b'LInked' + bytes(4090), d");
    }),
];

fn swiss(at: &Path) {
    python(
        at,
        &format!(
            "{CALLS}{}",
            r"
M = 1 << 20
fd = os.open('sparse', os.O_RDONLY)
os.lseek(fd, 0, os.SEEK_SET)
assert os.lseek(fd, 0, os.SEEK_DATA) == M // 2 and os.lseek(fd, M // 2, os.SEEK_HOLE) == M // 2 + 4096
assert os.lseek(fd, M // 2 + 4096, os.SEEK_DATA) == M and os.lseek(fd, M, os.SEEK_HOLE) == M + 4096
assert os.lseek(fd, 2 * M, os.SEEK_DATA) == 3 * M and os.lseek(fd, 3 * M, os.SEEK_HOLE) == 3 * M + 4096
assert os.lseek(fd, 2 * M, os.SEEK_HOLE) == 2 * M
assert answer(os.lseek, fd, 3 * M + 4096, os.SEEK_DATA) == -6
assert os.lseek(fd, 4 * M - 1, os.SEEK_HOLE) == 4 * M - 1
assert answer(os.lseek, fd, 4 * M, os.SEEK_DATA) == -6 and answer(os.lseek, fd, 4 * M, os.SEEK_HOLE) == -6
assert answer(os.lseek, fd, -1, os.SEEK_DATA) == -6
assert os.fstat(fd).st_blocks * 512 <= 8 * 4096
assert os.pread(fd, 3, M) == b'end' and os.pread(fd, 2, M // 2 + 4095) == b'm\0' and os.pread(fd, 2, 3 * M) == b'e\0'
"
        ),
    );
}
