//! When st_mtime and st_ctime go on.

use super::{Case, python};

/// `changes(name, act)`: which of a file's times `act` sets, after the filesystem's clock has gone
/// on: "", "c", "m" or "mc".
const CHANGES: &str = r"
import time
def clock():
    return time.clock_gettime_ns(5)
def tick():
    start = clock()
    while clock() <= start + 1000000: pass
def times(names):
    all = [os.lstat(name) if isinstance(name, str) else os.fstat(name) for name in names]
    return [(s.st_mtime_ns, s.st_ctime_ns) for s in all]
def check(want, act):
    names = list(want)
    tick()
    before = times(names)
    act()
    wrong = []
    for name, (m, c), (m2, c2) in zip(names, before, times(names)):
        got = ('m' if m2 > m else '') + ('c' if c2 > c else '')
        if got != want[name] or m2 < m or c2 < c:
            wrong.append((name, want[name], got))
    assert not wrong, wrong
def call(function, *args, **named):
    return lambda: function(*args, **named)
";

pub(super) const CASES: &[Case] = &[
    Case::new(
        "times_of_names",
        "A name that is made, renamed, linked or removed sets both times of its directory and st_ctime of the file alone; what is refused sets none.",
        |at| {
            python(at, &format!("{CHANGES}{}", r"
def refused(function, *args, **named):
    def act():
        try:
            function(*args, **named)
        except OSError:
            return
        assert False, function
    return act
def made(name):
    return lambda: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
check({'dir': 'mc', 'dir/sub': ''}, made('dir/new'))
new = os.open('dir/new', os.O_RDONLY)
check({'dir': 'mc', new: 'c', 'empty': 'mc'}, call(os.rename, 'dir/new', 'empty/new'))
check({'empty': 'mc', 'empty/new': ''}, call(os.mkdir, 'empty/dir'))
check({'empty': 'mc', 'dir': '', 'dir/inner': ''}, call(os.symlink, '../dir/inner', 'empty/sym'))
check({'empty': 'mc'}, call(os.mkfifo, 'empty/fifo'))
check({'empty': 'mc', 'dir/inner': 'c', 'dir': ''}, call(os.link, 'dir/inner', 'empty/inner'))
check({'empty': 'mc', 'dir/inner': 'c', 'dir': ''}, call(os.unlink, 'empty/inner'))
sub, dir = os.open('dir/sub', os.O_RDONLY), os.open('empty/dir', os.O_RDONLY)
check({'.': 'mc', 'dir': 'mc', sub: 'c'}, call(os.rename, 'dir/sub', 'sub'))
check({'.': 'mc', 'empty': 'mc', dir: 'c'}, call(os.rename, 'empty/dir', 'moved'))
old, file = os.open('suid', os.O_RDONLY), os.open('file', os.O_RDONLY)
check({'.': 'mc', old: 'c', file: 'c'}, call(os.rename, 'file', 'suid'))
check({'.': 'mc', 'sub': '', 'sub/deep': ''}, call(os.rmdir, 'moved'))
check({'two': 'c', 'dir/three': 'c', '.': 'mc', 'dir': ''}, call(os.unlink, 'one'))
for act in (
    refused(os.mkdir, 'dir'), refused(os.rmdir, 'dir'), refused(os.unlink, 'dir/none'),
    refused(os.link, 'two', 'suid2'), refused(os.rename, 'none', 'new'), refused(os.symlink, 'x', 'sym'),
    refused(os.rename, 'two', 'dir'), refused(os.rename, 'dir', 'dir/inner/x'),
):
    check({'.': '', 'dir': '', 'two': '', 'suid2': '', 'sym': ''}, act)
check({'.': '', 'dir': '', 'suid2': ''}, lambda: os.close(os.open('suid2', os.O_CREAT | os.O_RDONLY)))
"));
        },
    ),
    Case::new(
        "times_of_files",
        "Whatever changes the bytes sets both times, also where the bytes are the same afterwards; a write of no bytes sets none.",
        |at| {
            python(at, &format!("{CHANGES}{}", r"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def allocate(mode, start, length):
    assert libc.fallocate(fd, mode, ctypes.c_long(start), ctypes.c_long(length)) == 0
fd = os.open('file', os.O_RDWR)
os.pread(fd, 1, 0)
both = {'file': 'mc', '.': ''}
check({'file': '', '.': ''}, call(os.pwrite, fd, b'', 3))
check({'file': ''}, call(os.pread, fd, 10, 0))
check({'file': ''}, lambda: os.close(os.open('file', os.O_RDWR)))
check(both, call(os.pwrite, fd, b'0123', 0))
check(both, call(os.writev, fd, [b'01', b'23']))
check(both, call(os.ftruncate, fd, 10))
check(both, call(os.truncate, 'file', 10))
check(both, call(os.truncate, 'file', 4))
check(both, call(os.truncate, 'file', 8192))
check(both, lambda: os.close(os.open('file', os.O_WRONLY | os.O_TRUNC)))
check(both, lambda: os.close(os.open('file', os.O_WRONLY | os.O_TRUNC)))
check(both, call(allocate, 0, 0, 8192))
check(both, call(allocate, 3, 0, 4096))
check(both, call(allocate, 0x10, 4096, 8192))
inner = os.open('dir/inner', os.O_RDONLY)
check({**both, 'dir/inner': ''}, call(os.copy_file_range, inner, fd, 2, 0, 0))
check({**both, 'dir/inner': ''}, call(os.sendfile, fd, inner, 0, 2))
"));
        },
    ),
    Case::new(
        "times_of_attributes",
        "Whatever changes owner, mode, extended attributes, ACLs or times sets st_ctime alone, also where the value is the same afterwards.",
        |at| {
            python(at, &format!("{CHANGES}{}", r"
for name in 'file', 'dir', 'fifo', 'null':
    alone = {name: 'c', '.': ''}
    mode = os.stat(name).st_mode & 0o7777
    check(alone, call(os.chmod, name, 0o640))
    check(alone, call(os.chmod, name, 0o640))
    check(alone, call(os.chown, name, 3, 4))
    check(alone, call(os.chown, name, 3, 4))
    check(alone, call(os.chown, name, -1, -1))
    check(alone, call(os.setxattr, name, 'trusted.n', b'v'))
    check(alone, call(os.setxattr, name, 'trusted.n', b'w'))
    check(alone, call(os.removexattr, name, 'trusted.n'))
    m = os.stat(name).st_mtime_ns
    check(alone, call(os.utime, name, ns=(m, m)))
    check({name: 'mc', '.': ''}, call(os.utime, name))
check({'sym': 'c'}, call(os.chown, 'sym', 3, 4, follow_symlinks=False))
check({'two': 'c', 'one': 'c', 'dir/three': 'c', 'dir': '', '.': ''}, call(os.chmod, 'two', 0o600))
acl = bytes([2,0,0,0, 1,0,6,0,255,255,255,255, 2,0,4,0,1,0,0,0, 4,0,4,0,255,255,255,255,
    16,0,4,0,255,255,255,255, 32,0,0,0,255,255,255,255])
check({'one': 'c', 'two': 'c'}, call(os.setxattr, 'one', 'system.posix_acl_access', acl))
"));
        },
    ),
    Case::new(
        "times_of_maps",
        "A store to a shared map sets both times between the store and the end of the next msync(2) at the latest, and what was stored by a process that then died is kept.",
        |at| {
            python(at, &format!("{CHANGES}{}", r"
import mmap, signal
fd = os.open('file', os.O_RDWR)
os.ftruncate(fd, 10000)
map = mmap.mmap(fd, 10000)
def store(at, byte):
    def act():
        map[at:at + 1] = byte
        map.flush()
    return act
both = {'file': 'mc'}
check(both, store(5000, b'x'))
check(both, store(5000, b'y'))
assert map[5000:5001] == b'y'
check({'file': ''}, lambda: None)
pid = os.fork()
if pid == 0:
    map[9000:9004] = b'died'
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
assert os.pread(fd, 4, 9000) == b'died'
private = mmap.mmap(fd, 10000, flags=mmap.MAP_PRIVATE)
def alone():
    private[0:1] = b'p'
check({'file': ''}, alone)
assert os.pread(fd, 1, 0) == b'0'
"));
        },
    )
    .after(|at| {
        python(at, "d = open('file', 'rb').read(); assert d[:10] == b'0123456789' and d[5000:5001] == b'y' and d[9000:9004] == b'died', d");
    }),
];
