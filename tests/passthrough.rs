//! Files that the kernel reads and writes by itself, and files that it opens without asking: what
//! programs see, however a mount serves. Old and new descriptors, names and numbers of one file,
//! who may keep set-user-ID, and many at once.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::python::BY;
use common::{Mount, Sandbox, can_mount, has, ok, skip};

/// How a mount serves.
const MODES: [&str; 6] = [
    "passthrough=64K",
    "passthrough=all",
    "passthrough=64K,upper_passthrough=off",
    "passthrough=all,upper_passthrough=off",
    "passthrough=off",
    "noopen",
];

/// Several files of each kind, since a case changes them; each has two names.
const MAKE: &str = r#"
for i in 1 2 3 4 5 6 7 8 9; do
    head -c 200000 /dev/urandom >big$i; ln big$i link$i; head -c 5000 /dev/urandom >small$i
done
truncate -s 4M sparse; echo end >>sparse; mkdir many
cp -L "$(command -v id)" run; chmod 4755 run; ln run run-link; cp -L "$(command -v sleep)" sleep
for i in $(seq 1200); do echo $i >many/$i; done
chmod 777 .
"#;

/// Each script has the mode, whether the kernel reads large files by itself, and these.
const HELPERS: &str = r"
import ctypes, errno, fcntl, mmap, os, signal, stat, subprocess, sys, threading
KERNEL = MODE.startswith(('passthrough=64K', 'passthrough=all'))
def fails(want, act, *args):
    try:
        act(*args)
    except OSError as error:
        assert error.errno == want, (error, want)
    else:
        raise AssertionError(('must fail', want))
def data(name):
    with open(name, 'rb') as file:
        return file.read()
def opened(name, flags=os.O_RDONLY):
    return os.open(name, flags)
";

struct World {
    sandbox: Sandbox,
    tar: PathBuf,
}

fn world() -> Option<World> {
    if !can_mount() || !has("python3") {
        return None;
    }
    let sandbox = Sandbox::new();
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
    sandbox.dir("tree");
    let at = sandbox.path().display();
    let make = format!("cd '{at}'/tree; {MAKE} cd ..; tar --sparse -C tree -cf image.tar .");
    ok("bash", ["-euc", &make]);
    let tar = sandbox.at("image.tar");
    Some(World { sandbox, tar })
}

impl World {
    fn mount(&self, mode: &str) -> Mount<'_> {
        let own = |what: &str| self.sandbox.at(format!("{what}-{mode}"));
        fs::create_dir_all(own("upper")).unwrap();
        let dirs = (own("upper"), own("work"));
        let name = format!("mount-{mode}");
        let dirs = (dirs.0.as_path(), dirs.1.as_path());
        self.sandbox
            .mount_over(&name, &self.tar, dirs, &["-o", mode])
    }
}

fn python(at: &Path, mode: &str, script: &str) -> String {
    common::python::python(at, &format!("MODE = {mode:?}\n{BY}{HELPERS}{script}"))
}

/// Descriptors that a server has.
fn descriptors(server: u32) -> usize {
    fs::read_dir(format!("/proc/{server}/fd")).unwrap().count()
}

/// Runs a script on a mount of each mode. Nothing that it opened may be left with the server, once
/// the kernel has forgotten the files.
fn in_each_mode(script: &str) {
    let Some(world) = world() else { return };
    for mode in MODES {
        let mount = world.mount(mode);
        let said = python(mount.path(), mode, script);
        eprint!("{mode}: {said}");
        mount.unmount();
    }
}

#[test]
fn what_is_opened_from_now_on_sees_what_was_written() {
    in_each_mode(
        r"
def changed(name, act):
    was = data(name)
    old = opened(name); held = mmap.mmap(old, 4096, prot=mmap.PROT_READ)
    number = os.fstat(old).st_ino
    act(name)
    new = os.open(name, os.O_RDWR); os.pwrite(new, b'NEW', 0)
    for other in (name, name.replace('big', 'link')):
        assert data(other)[:3] == b'NEW', (other, 'a new open')
        assert os.stat(other).st_ino == number
        assert os.stat(other).st_size == os.fstat(new).st_size == os.fstat(old).st_size
    assert os.fstat(old).st_ino == os.fstat(new).st_ino == number
    assert os.fstat(old).st_mtime_ns == os.fstat(new).st_mtime_ns == os.stat(name).st_mtime_ns
    kernel = KERNEL and (MODE.startswith('passthrough=all') or name.startswith('big'))
    want = was if kernel else data(name)
    assert os.pread(old, 3, 0) == held[:3] == want[:3], (name, act)
    assert os.pread(old, 200000, 0) == want
    fresh = mmap.mmap(os.open(name, os.O_RDONLY), 4096, prot=mmap.PROT_READ)
    assert fresh[:3] == b'NEW'
    os.pwrite(new, b'MORE', 0)
    assert fresh[:4] == data(name)[:4] == b'MORE'
    os.close(old); os.close(new)
    assert data(name)[:4] == b'MORE'
def rename(name):
    os.rename(name, 'elsewhere'); os.rename('elsewhere', name)
def link(name):
    os.link(name, 'elsewhere'); os.unlink('elsewhere')
ways = [lambda n: None, lambda n: os.truncate(n, 5000), lambda n: os.chmod(n, 0o600), rename, link,
        lambda n: os.close(os.open(n, os.O_RDWR)),
        lambda n: os.close(os.open(n, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)) or os.truncate(n, 4096),
        lambda n: open(n, 'r+b').write(b'other'), lambda n: os.utime(n, (1, 1))]
for i, way in enumerate(ways, 1):
    changed(f'big{i}', way)
    changed(f'small{i}', way)
fails(errno.EEXIST, os.open, 'big1', os.O_CREAT | os.O_EXCL | os.O_RDWR)
",
    );
}

#[test]
fn what_is_opened_by_a_descriptor_is_the_file() {
    in_each_mode(
        r"
name = lambda fd: f'/proc/self/fd/{fd}'
for file in ('big1', 'small1'):
    old = opened(file); path = opened(file, os.O_PATH)
    with open(file, 'r+b') as new:
        new.write(b'NEW')
    for fd in (old, path, old):
        again = opened(name(fd))
        assert os.pread(again, 3, 0) == data(file)[:3] == b'NEW'
        assert os.fstat(again).st_ino == os.stat(file).st_ino
        os.close(again)
    if not KERNEL:
        os.pwrite(opened(name(old), os.O_RDWR), b'BY', 0)
    os.close(old)
    os.pwrite(opened(name(path), os.O_RDWR), b'PATH', 0)
    assert data(file)[:4] == b'PATH'
# A program that was opened, changed in its mode, and started.
program = opened('run')
os.chmod('run', 0o755)
ran = subprocess.run([name(program), '-u'], pass_fds=[program], capture_output=True)
assert ran.returncode == 0 and ran.stdout == b'0\n', ran
# Without a name.
old = opened('big2'); was = os.pread(old, 4, 0)
os.unlink('big2'); os.unlink('link2')
assert os.pread(old, 4, 0) == was and os.fstat(old).st_nlink == 0
assert os.pread(opened(name(old)), 4, 0) == was
",
    );
}

#[test]
fn two_names_of_a_file_are_one_file() {
    in_each_mode(
        r"
# The second name leads to the number that the first one had.
os.stat('link1')
old = opened('link1'); path = opened('link1', os.O_PATH)
size = os.fstat(old).st_size
one = opened('big1', os.O_WRONLY | os.O_APPEND)
os.close(old)
two = opened('link1', os.O_WRONLY | os.O_APPEND)
three = opened(f'/proc/self/fd/{path}', os.O_WRONLY | os.O_APPEND)
for _ in range(50):
    for fd, what in ((one, b'a'), (two, b'bb'), (three, b'ccc')):
        os.write(fd, what)
assert data('big1')[size:] == data('link1')[size:] == b'abbccc' * 50
# O_DIRECT is no way of the image's own mount: the file is read by requests then, and cached.
os.stat('link2')
image = opened('big2'); direct = opened('big2', os.O_RDONLY | os.O_DIRECT)
cached = opened('big2'); os.pread(cached, 10, 0)
os.close(image)
writer = opened('link2', os.O_RDWR)
os.pwrite(writer, b'HELLO', 0)
assert os.pread(cached, 5, 0) == data('big2')[:5] == data('link2')[:5] == b'HELLO'
os.truncate('link2', 3)
assert os.pread(cached, 5, 0) == b'HEL' and os.fstat(cached).st_size == 3
page = mmap.mmap(-1, 4096)
assert os.preadv(direct, [page], 0) == 3 and page[:3] == b'HEL'
page[:] = b'D' * 4096
writer = opened('big3', os.O_RDWR | os.O_DIRECT)
assert os.pwritev(writer, [page], 4096) == 4096
assert data('big3')[4096:8192] == data('link3')[4096:8192] == page[:]
",
    );
}

#[test]
fn parts_of_files() {
    in_each_mode(
        r"
fd = opened('sparse'); size = os.fstat(fd).st_size
assert os.pread(fd, 10, size) == b'' and os.pread(fd, 10, size - 4) == b'end\n'
assert os.pread(fd, 10, size + 5) == b'' and os.pread(fd, 4096, 8192) == bytes(4096)
assert os.lseek(fd, 0, os.SEEK_DATA) == 4 << 20 and os.lseek(fd, 0, os.SEEK_HOLE) == 0
whole = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
assert whole[(4 << 20) - 8:(4 << 20) + 4] == bytes(8) + b'end\n' and len(whole) == size
writer = opened('sparse', os.O_RDWR)
os.ftruncate(writer, 5 << 20)
assert os.stat('sparse').st_size == 5 << 20 and data('sparse')[-4096:] == bytes(4096)
os.posix_fallocate(writer, 5 << 20, 100)
assert os.fstat(writer).st_size == os.stat('sparse').st_size == (5 << 20) + 100
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
other = opened('sparse', os.O_RDWR); held = mmap.mmap(other, 5 << 20)
held[0:8192] = b'x' * 8192
assert libc.fallocate(writer, 3, 0, 4096) == 0
assert held[:4096] == bytes(4096) and os.pread(other, 4097, 0) == bytes(4096) + b'x'
assert data('sparse')[:4097] == bytes(4096) + b'x'
# Stores through a map: bytes, times, and the file that is cut below it.
for name in ('big1', 'small1', 'fresh'):
    if name == 'fresh':
        open(name, 'wb').write(bytes(100000))
    for closed in (True, False):
        fd = opened(name, os.O_RDWR); held = mmap.mmap(fd, 4096)
        if closed:
            os.close(fd)
        os.utime(name, (1, 1))
        held[:5] = b'store'; held.flush()
        assert data(name)[:5] == b'store' and os.stat(name).st_mtime != 1, (name, closed)
    size = os.fstat(fd).st_size
    os.ftruncate(fd, size + 4096); held.resize(size + 4096); held[-4:] = b'tail'; held.flush()
    assert os.stat(name).st_size == size + 4096 and data(name)[-4:] == b'tail'
# From the image to the upper and back, and what was open before goes on as it began.
old = opened('big2'); was = os.pread(old, 5000, 0)
new = opened('big3', os.O_RDWR)
assert os.copy_file_range(old, new, 5000, 0, 10) == 5000
assert data('big3')[10:5010] == was
back = opened('big2', os.O_RDWR)
os.pwrite(back, b'Z' * 5000, 0)
assert os.copy_file_range(old, new, 5000, 0, 0) == 5000
assert data('big3')[:5000] == (was if KERNEL else b'Z' * 5000)
assert os.copy_file_range(new, back, 100, 0, 0) == 100
assert data('big2')[:100] == data('big3')[:100]
",
    );
}

#[test]
fn appending_is_for_each_descriptor_and_moment() {
    in_each_mode(
        r"
for name in ('big1', 'small1'):
    one = opened(name, os.O_WRONLY | os.O_APPEND); two = opened(name, os.O_RDWR)
    size = os.fstat(one).st_size
    fcntl.fcntl(one, fcntl.F_SETFL, 0); os.pwrite(one, b'HEAD', 0)
    fcntl.fcntl(two, fcntl.F_SETFL, os.O_APPEND); os.write(two, b'TAIL')
    assert os.stat(name).st_size == size + 4
    os.ftruncate(one, size); os.write(two, b'LATER')
    fcntl.fcntl(two, fcntl.F_SETFL, 0); os.pwrite(two, b'ZZ', 0)
    assert data(name)[:4] == b'ZZAD' and data(name)[size:] == b'LATER'
for name in ('big2', 'small2', 'fresh'):
    open(name, 'ab').close()
    size = os.stat(name).st_size
    reader = opened(name)
    pids = []
    for who in range(4):
        pid = os.fork()
        if pid == 0:
            fd = opened(name, os.O_WRONLY | os.O_APPEND)
            for i in range(100):
                os.write(fd, b'%d %04d\n' % (who, i))
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    lines = data(name)[size:].splitlines()
    assert sorted(lines) == [b'%d %04d' % (w, i) for w in range(4) for i in range(100)], name
",
    );
}

#[test]
fn programs_that_run_are_not_written_to() {
    in_each_mode(
        r"
def runs(name):
    program = subprocess.Popen(['./' + name, '600'])
    fails(errno.ETXTBSY, os.open, name, os.O_RDWR)
    fails(errno.ETXTBSY, os.truncate, name, 0)
    return program
one = runs('sleep')
os.chmod('sleep', 0o711)
two = runs('sleep')
open('fresh', 'wb').write(data('sleep')); os.chmod('fresh', 0o755)
three = runs('fresh')
os.rename('fresh', 'sleep')
four = runs('sleep')
for program in (one, two, three, four):
    assert program.poll() is None
    program.kill(); program.wait()
writer = opened('sleep', os.O_RDWR)
fails(errno.ETXTBSY, subprocess.run, ['./sleep', '0'])
os.close(writer)
assert subprocess.run(['./sleep', '0']).returncode == 0
",
    );
}

/// The kernel starts a program by the mode that it knows: it must not know an old one.
#[test]
fn set_user_id_that_went_is_not_given() {
    in_each_mode(
        r"
def euid(name):
    read, write = os.pipe()
    def run():
        os.dup2(write, 1)
        os.execv(name, [name, '-u'])
    assert by(1000, run) == 0
    os.close(write)
    said = os.read(read, 100); os.close(read)
    return int(said)
bytes_ = data('run')
def fresh(name, mode, uid=0, gid=0):
    if os.path.exists(name):
        os.unlink(name)
    with open(name, 'wb') as file:
        file.write(bytes_)
    os.chown(name, uid, gid); os.chmod(name, mode)
assert euid('run') == euid('run-link') == 0
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
def allocate(name):
    if libc.fallocate(opened(name, os.O_RDWR), 0, 0, len(bytes_) + 1):
        raise OSError(ctypes.get_errno(), 'fallocate')
def held(name, how):
    fd = opened(name, os.O_RDWR)
    os.pread(fd, 1, 0); how(fd)
ways = {
    'write': lambda n: os.pwrite(opened(n, os.O_RDWR), bytes_[:1], 0),
    'append': lambda n: os.write(opened(n, os.O_WRONLY | os.O_APPEND), b'x'),
    'truncate': lambda n: os.truncate(n, len(bytes_)),
    'ftruncate': lambda n: os.ftruncate(opened(n, os.O_RDWR), len(bytes_) + 7),
    'allocate': allocate,
    'range': lambda n: os.copy_file_range(opened('run'), opened(n, os.O_RDWR), 4, 0, 0),
}
for way, act in ways.items():
    for user in (1000, 2000):
        fresh('own', 0o6777, 1000, 1000)
        assert euid('own') == 1000
        assert by(user, act, 'own') == 0, way
        assert os.stat('own').st_mode & 0o7777 == 0o777, (way, user)
        fresh('roots', 0o4777)
        assert euid('roots') == 0
        assert by(user, act, 'roots') == 0, way
        assert euid('roots') == 1000, (way, user)
        assert os.stat('roots').st_mode & 0o7777 == 0o777, (way, user)
    fresh('roots', 0o4755)
    assert by(0, act, 'roots') == 0
    assert os.stat('roots').st_mode & 0o7777 == 0o4755 and euid('roots') == 0, (way, 'root')
# Nobody but its owner takes it by a chown(2) that changes nothing.
for name, user, left in (('roots', 1000, 0o4755), ('run', 2000, 0o4755), ('roots', 0, 0o755)):
    if name == 'roots':
        fresh('roots', 0o4755)
    said = by(user, os.chown, name, -1, -1)
    assert said in (0, errno.EPERM), said
    assert os.stat(name).st_mode & 0o7777 == left and euid(name) == (0 if left & 0o4000 else 1000)
# What was opened before it got set-user-ID.
for user in (1000, 2000):
    fresh('later', 0o777)
    def late():
        fd = opened('later', os.O_RDWR)
        os.write(ready, b'.'); os.read(go, 1)
        os.pwrite(fd, bytes_[:1], 0)
        os.write(ready, b'.'); os.read(go, 1)
    (ready_read, ready), (go, go_write) = os.pipe(), os.pipe()
    thread = threading.Thread(target=by, args=(user, late)); thread.start()
    os.read(ready_read, 1)
    os.chmod('later', 0o4777)
    os.write(go_write, b'.'); os.read(ready_read, 1)
    assert os.stat('later').st_mode & 0o7777 == 0o777, user
    os.write(go_write, b'.'); thread.join()
    assert euid('later') == 1000, user
# A program of the image, by both names, while somebody has it open.
reader = opened('run-link')
os.chmod('run', 0o4777)
assert euid('run') == euid('run-link') == 0
assert by(1000, ways['write'], 'run-link') == 0
assert euid('run') == euid('run-link') == 1000
os.chmod('run', 0o4777); os.close(reader)
assert euid('run') == euid('run-link') == 0
os.chown('run', 2000, -1)
assert euid('run') == 1000
",
    );
}

#[test]
fn more_files_are_open_than_are_kept() {
    let Some(world) = world() else { return };
    for mode in ["passthrough=all", MODES[3], "noopen"] {
        let mount = world.mount(mode);
        python(
            mount.path(),
            mode,
            r"
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
fds = {i: opened(f'many/{i}') for i in range(1, 1201)}
for _ in range(2):
    for i, fd in fds.items():
        assert os.pread(fd, 10, 0) == b'%d\n' % i
for i in range(1, 1201, 7):
    with open(f'many/{i}', 'r+b') as file:
        file.write(b'!')
for i, fd in fds.items():
    want = b'%d\n' % i
    if i % 7 == 1:
        assert data(f'many/{i}') == b'!' + want[1:]
        want = want if KERNEL else b'!' + want[1:]
    assert os.pread(fd, 10, 0) == want, i
",
        );
        mount.unmount();
    }
}

/// Opens, copy-ups and the forgetting of inodes at once: no program sees ESTALE or EIO, and what
/// was written is there.
#[test]
fn many_at_once() {
    let Some(world) = world() else { return };
    if fs::write("/proc/sys/vm/drop_caches", "2").is_err() {
        skip("needs /proc/sys/vm/drop_caches");
        return;
    }
    for mode in MODES {
        let mount = world.mount(mode);
        let server = mount.server();
        let before = descriptors(server);
        python(
            mount.path(),
            mode,
            r"
failed = []
def guarded(act, i):
    try:
        for n in range(40):
            act(i, n)
    except BaseException as error:
        failed.append(repr((act.__name__, i, error)))
def file(n):
    return ('big', 'link')[n % 2] + str(n // 2 % 6 + 1)
def reads(i, n):
    fd = opened(file(n + i))
    try:
        assert len(os.pread(fd, 100, 1000)) == 100
        assert len(mmap.mmap(fd, 4096, prot=mmap.PROT_READ)[:10]) == 10
        os.fstat(fd)
    finally:
        os.close(fd)
def direct(i, n):
    fd = opened(file(n + i), os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    assert os.preadv(fd, [page], 0) == 4096
    os.close(fd)
def appends(i, n):
    fd = opened(file(n), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b'\n%d %d %d' % (n // 2 % 6 + 1, i, n))
    os.close(fd)
def writes(i, n):
    fd = opened(file(n), os.O_RDWR)
    os.pwrite(fd, b'%03d' % n, 100 * i)
    assert os.pread(fd, 3, 100 * i) == b'%03d' % n
    os.close(fd)
def names(i, n):
    os.stat(file(n)); os.chmod(file(n), (0o644, 0o600)[n % 2]); os.utime(file(n))
def forgets(i, n):
    if n % 4 == 0:
        open('/proc/sys/vm/drop_caches', 'w').write('2')
acts = [reads, reads, reads, direct, appends, appends, appends, writes, writes, names, forgets]
threads = [threading.Thread(target=guarded, args=(act, i)) for i, act in enumerate(acts)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
for n in range(12):
    lines = data(file(n))[200000:].split(b'\n')[1:]
    mine = n // 2 % 6 + 1
    want = [b'%d %d %d' % (mine, i, m) for i in (4, 5, 6) for m in range(40) if m // 2 % 6 + 1 == mine]
    assert sorted(lines) == sorted(want), (file(n), lines)
",
        );
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        // Names in the upper keep directories; no file is open any more, but those that are kept.
        let left = descriptors(server);
        assert!(left <= before + 16, "{mode}: {before} then {left}");
        mount.unmount();
    }
}
