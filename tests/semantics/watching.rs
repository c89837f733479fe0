//! Locks by all names, and what is told of directories.

use super::{Case, python};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "locks_of_all_names",
        "A lock of any kind holds for every name of a file and every descriptor, those from before its first write too, until it is dropped; who waits for it goes on then.",
        |at| {
            python(
                at,
                r"
import fcntl, struct, signal
signal.alarm(120)
SETLK, SETLKW, OFD_SETLK, OFD_SETLKW, GETLK = 6, 7, 37, 38, 5
def lock(fd, command, kind, start=0, length=0):
    return fcntl.fcntl(fd, command, struct.pack('hhqqi4x', kind, os.SEEK_SET, start, length, 0))
def elsewhere(act):
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except (BlockingIOError, PermissionError):
            os._exit(1)
    return pid
def code(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def busy(act): return code(elsewhere(act)) == 1
NAMES = 'one', 'two', 'dir/three'
# flock(2), held from before the first write and by another name.
held = os.open('one', os.O_RDONLY)
fcntl.flock(held, fcntl.LOCK_EX)
os.truncate('two', 3)
os.rename('dir/three', 'dir/four'); os.rename('dir/four', 'dir/three')
for name in NAMES:
    assert busy(lambda: fcntl.flock(os.open(name, os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB)), name
waiting = elsewhere(lambda: fcntl.flock(os.open('dir/three', os.O_RDONLY), fcntl.LOCK_EX))
fcntl.flock(held, fcntl.LOCK_UN)
assert code(waiting) == 0
# POSIX locks: taken through a reader before the first write, which another process does, since the
# close of any descriptor of the file drops them.
posix = os.open('dir/inner', os.O_RDONLY)
lock(posix, SETLK, fcntl.F_RDLCK, 0, 10)
def first_write():
    os.link('dir/inner', 'inner')
    fd = os.open('inner', os.O_RDWR)
    os.pwrite(fd, b'I', 0)
assert code(elsewhere(first_write)) == 0
for name in 'dir/inner', 'inner':
    writer = lambda command: lambda: lock(os.open(name, os.O_RDWR), command, fcntl.F_WRLCK, 5, 1)
    assert busy(writer(SETLK)) and busy(writer(OFD_SETLK)), name
    assert not busy(lambda: lock(os.open(name, os.O_RDWR), SETLK, fcntl.F_WRLCK, 10, 1)), name
# Who holds it is told.
def who():
    answer = lock(os.open('inner', os.O_RDWR), GETLK, fcntl.F_WRLCK, 0, 1)
    kind, _, start, length, pid = struct.unpack('hhqqi4x', answer)
    assert (kind, start, length, pid) == (fcntl.F_RDLCK, 0, 10, os.getppid())
assert code(elsewhere(who)) == 0
waiting = elsewhere(lambda: lock(os.open('inner', os.O_RDWR), SETLKW, fcntl.F_WRLCK))
os.close(os.open('inner', os.O_RDONLY))
assert code(waiting) == 0
# OFD locks: of the descriptor, not of the process, and upgraded in place.
ofd, other = os.open('file', os.O_RDWR), os.open('file', os.O_RDWR)
lock(ofd, OFD_SETLK, fcntl.F_RDLCK, 0, 5); lock(other, OFD_SETLK, fcntl.F_RDLCK, 0, 5)
try:
    lock(ofd, OFD_SETLK, fcntl.F_WRLCK, 0, 1)
    assert False, 'two owners'
except BlockingIOError:
    pass
lock(other, OFD_SETLK, fcntl.F_UNLCK)
lock(ofd, OFD_SETLK, fcntl.F_WRLCK, 0, 1)
second = os.dup(ofd); os.close(ofd); os.remove('file')
assert busy(lambda: lock(other, OFD_SETLK, fcntl.F_RDLCK, 0, 1))
waiting = elsewhere(lambda: (os.close(second), lock(other, OFD_SETLKW, fcntl.F_WRLCK)))
os.close(second)
assert code(waiting) == 0
",
            );
        },
    ),
    Case::new(
        "directory_watches",
        "A watch of inotify(7) on a directory tells of each entry that comes, goes or changes, before and after the directory's first change; one on a file tells when its last name goes.",
        |at| {
            python(
                at,
                r"
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(0o4000)
NAMES = {1: 'access', 2: 'modify', 4: 'attrib', 8: 'close', 0x10: 'close', 0x20: 'open', 0x40: 'from', 0x80: 'to',
    0x100: 'create', 0x200: 'delete', 0x400: 'delete_self', 0x800: 'move_self', 0x8000: 'ignored'}
def watch(path, mask):
    n = libc.inotify_add_watch(fd, path.encode(), mask)
    assert n > 0, path
    return n
def events():
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return []
    all = []
    while data:
        which, mask, cookie, size = struct.unpack('iIII', data[:16])
        name = data[16:16 + size].rstrip(b'\0').decode()
        all.append((which, NAMES[mask & 0xffff], name))
        data = data[16 + size:]
    return all
TOLD = 2 | 4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
d, s = watch('dir', TOLD), watch('dir/sub', TOLD)
os.chmod('dir/inner', 0o600)
assert events() == [(d, 'attrib', 'inner')]
open('dir/inner', 'a').write('x')
assert events() == [(d, 'modify', 'inner')]
open('dir/new', 'w').close(); os.mkdir('dir/newdir'); os.symlink('x', 'dir/newsym'); os.link('one', 'dir/newlink')
assert events() == [(d, 'create', name) for name in ('new', 'newdir', 'newsym', 'newlink')]
os.rename('dir/new', 'dir/sub/new'); os.rename('dir/sub/deep', 'deep'); os.rename('deep', 'dir/deep')
assert events() == [(d, 'from', 'new'), (s, 'to', 'new'), (s, 'from', 'deep'), (d, 'to', 'deep')]
os.rename('dir', 'moved')
assert events() == [(d, 'move_self', '')]
os.remove('moved/three'); os.rmdir('moved/newdir'); os.remove('moved/sub/new')
assert events() == [(d, 'delete', 'three'), (d, 'delete', 'newdir'), (s, 'delete', 'new')]
os.rmdir('moved/sub')
assert events() == [(s, 'delete_self', ''), (s, 'ignored', ''), (d, 'delete', 'sub')]
f = watch('file', TOLD)
os.link('file', 'file2')
assert events() == [(f, 'attrib', '')]
os.remove('file')
assert events() == [(f, 'attrib', '')]
os.rename('one', 'file2')
assert events() == [(f, 'attrib', ''), (f, 'delete_self', ''), (f, 'ignored', '')]
",
            );
        },
    ),
];
