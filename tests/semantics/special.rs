//! Locks, pipes, sockets, devices, watches, file handles.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, inotify, makedev, mknodat};
use rustix::io::Errno;

use super::{Case, Where, drop_caches, python, read};

/// name_to_handle_at(2) and open_by_handle_at(2), which Python has no functions for.
const HANDLES: &str = r"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [('bytes', ctypes.c_uint), ('type', ctypes.c_int), ('data', ctypes.c_ubyte * 128)]
def handle(path):
    h, mount = Handle(bytes=128), ctypes.c_int()
    if libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(h), ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), path)
    return h
def reopen(h, flags=os.O_RDONLY):
    root = os.open('.', os.O_RDONLY)
    fd = libc.open_by_handle_at(root, ctypes.byref(h), flags)
    os.close(root)
    if fd < 0:
        raise OSError(ctypes.get_errno(), 'open_by_handle_at')
    return fd
";

pub(super) const CASES: &[Case] = &[
    Case::new(
        "locks",
        "flock(2), POSIX and OFD locks exclude each other as on a local filesystem, also across a file's first write.",
        |at| {
            let held = File::open(at.join("file")).unwrap();
            rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
            let mut other = OpenOptions::new().append(true).open(at.join("file")).unwrap();
            other.write_all(b"x").unwrap();
            let busy = rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared);
            assert_eq!(busy, Err(Errno::WOULDBLOCK));
            drop(held);
            rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
            python(at, r"
import fcntl, struct
def lock(fd, command, kind, start, length):
    return fcntl.fcntl(fd, command, struct.pack('hhqqi4x', kind, os.SEEK_SET, start, length, 0))
def busy(command, kind, start, length):
    pid = os.fork()
    if pid == 0:
        try:
            lock(os.open('dir/inner', os.O_RDWR), command, kind, start, length)
            os._exit(0)
        except (BlockingIOError, PermissionError):
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
SETLK, OFD_SETLK = 6, 37
posix = os.open('dir/inner', os.O_RDONLY)
lock(posix, SETLK, fcntl.F_RDLCK, 0, 10)
assert busy(SETLK, fcntl.F_WRLCK, 5, 1) and busy(OFD_SETLK, fcntl.F_WRLCK, 5, 1)
assert not busy(SETLK, fcntl.F_RDLCK, 5, 1) and not busy(SETLK, fcntl.F_WRLCK, 10, 1)
os.close(posix)
assert not busy(SETLK, fcntl.F_WRLCK, 0, 0)
ofd = os.open('dir/inner', os.O_RDWR)
lock(ofd, OFD_SETLK, fcntl.F_WRLCK, 0, 0)
os.close(os.open('dir/inner', os.O_RDONLY))
assert busy(SETLK, fcntl.F_RDLCK, 0, 1) and busy(OFD_SETLK, fcntl.F_RDLCK, 0, 1)
");
        },
    ),
    Case::new(
        "pipes",
        "Named pipes of the image and new ones connect processes, across changes of their attributes too.",
        |at| {
            let talk = |name: &str| {
                let path = at.join(name);
                let writer = std::thread::spawn({
                    let path = path.clone();
                    move || fs::write(path, "through").unwrap()
                });
                assert_eq!(read(path), "through");
                writer.join().unwrap();
            };
            talk("fifo");
            fs::set_permissions(at.join("fifo"), fs::Permissions::from_mode(0o622)).unwrap();
            talk("fifo");
            mknodat(CWD, at.join("fifo2"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            fs::rename(at.join("fifo2"), at.join("dir/fifo2")).unwrap();
            talk("dir/fifo2");
        },
    )
    .after(|at| assert!(fs::metadata(at.join("dir/fifo2")).unwrap().file_type().is_fifo())),
    Case::new(
        "sockets",
        "A UNIX socket can be bound in any directory and reached by its name, also when it was renamed.",
        |at| {
            let dir = File::open(at.join("dir")).unwrap();
            // A socket's address is short; the path here may be long.
            let address = |name: &str| format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
            let listener = UnixListener::bind(address("sock")).unwrap();
            let talk = |name: &str| {
                let mut client = UnixStream::connect(address(name)).unwrap();
                client.write_all(b"hello").unwrap();
                drop(client);
                let mut text = String::new();
                listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
                assert_eq!(text, "hello");
            };
            talk("sock");
            fs::rename(at.join("dir/sock"), at.join("dir/sock2")).unwrap();
            fs::set_permissions(at.join("dir/sock2"), fs::Permissions::from_mode(0o600)).unwrap();
            talk("sock2");
        },
    )
    .after(|at| assert!(fs::metadata(at.join("dir/sock2")).unwrap().file_type().is_socket())),
    Case::new(
        "devices",
        "Device nodes of the image and new ones lead to their devices; a character device 0:0 is a device like any other.",
        |at| {
            let works = |name: &str| {
                fs::write(at.join(name), "gone").unwrap();
                assert_eq!(read(at.join(name)), "");
            };
            works("null");
            fs::set_permissions(at.join("null"), fs::Permissions::from_mode(0o622)).unwrap();
            works("null");
            mknodat(CWD, at.join("zero"), FileType::CharacterDevice, Mode::RWXU, makedev(1, 5)).unwrap();
            mknodat(CWD, at.join("void"), FileType::CharacterDevice, Mode::RWXU, 0).unwrap();
            nodes(at);
        },
    )
    .after(nodes),
    Case::new(
        "watches",
        "A watch of inotify(7) on a file goes on when the file is first written to.",
        |at| {
            use inotify::{CreateFlags, ReadFlags, WatchFlags};
            let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
            let flags = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::MOVE_SELF;
            inotify::add_watch(&watch, at.join("file"), flags).unwrap();
            let events = || {
                let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
                let mut reader = inotify::Reader::new(&watch, &mut buffer);
                let mut all = ReadFlags::empty();
                loop {
                    match reader.next() {
                        Ok(event) => all |= event.events(),
                        Err(Errno::AGAIN) => return all,
                        Err(errno) => panic!("{errno}"),
                    }
                }
            };
            let mut file = OpenOptions::new().append(true).open(at.join("file")).unwrap();
            file.write_all(b"1").unwrap();
            assert_eq!(events(), ReadFlags::MODIFY);
            file.write_all(b"2").unwrap();
            assert_eq!(events(), ReadFlags::MODIFY);
            fs::set_permissions(at.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(events(), ReadFlags::ATTRIB);
            fs::rename(at.join("file"), at.join("dir/file")).unwrap();
            assert_eq!(events(), ReadFlags::MOVE_SELF);
        },
    ),
    Case::new(
        "file_handles",
        "A handle of name_to_handle_at(2) opens its file, also when it was written to and renamed since.",
        |at| {
            python(at, &format!("{HANDLES}{}", r"
h, d = handle('file'), handle('dir/sub')
assert os.read(reopen(h), 99) == b'0123456789'
keep = os.open('file', os.O_RDWR)
os.pwrite(keep, b'ab', 0)
os.rename('file', 'dir/renamed')
os.rename('dir', 'dir2')
fd = reopen(h, os.O_RDWR)
assert os.read(fd, 99) == b'ab23456789'
assert os.fstat(fd).st_ino == os.stat('dir2/renamed').st_ino
assert os.listdir(reopen(d)) == ['deep']
"));
        },
    ),
    Case::new(
        "forgotten_handles",
        "A handle of a file of the image still opens it when the kernel has forgotten the file; that of a removed one gives ESTALE.",
        |at| {
            let script = r"
names = ['file', 'dir/sub', 'dir/inner', 'fifo', 'one']
handles = [handle(name) for name in names]
gone = handle('suid')
gone_dir = handle('empty')
os.remove('suid')
os.rmdir('empty')
os.rename('dir/inner', 'inner2')
open('inner2', 'a').write('more')
os.rename('dir', 'dir2')
os.remove('one')
open('/proc/sys/vm/drop_caches', 'w').write('2')
O_PATH = 0o10000000
assert os.read(reopen(handles[0]), 99) == b'0123456789'
assert os.listdir(reopen(handles[1])) == ['deep']
assert os.read(reopen(handles[2]), 99) == b'inmore'
assert os.fstat(reopen(handles[3], O_PATH)).st_ino == os.stat('fifo').st_ino
assert os.read(reopen(handles[4]), 99) == b'linked'
for h in gone, gone_dir:
    try:
        reopen(h)
        assert False, 'a removed file'
    except OSError as error:
        assert error.errno == 116, error
";
            // Of what was born in the upper nothing leads back from the number to the file.
            if !at.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"upper-")) {
                python(at, &format!("{HANDLES}{script}"));
            }
        },
    ),
    Case::new(
        "forgotten_upper_handles",
        "A handle of a file that was made in the mount opens that file or gives ESTALE, and never opens another.",
        |at| {
            python(at, &format!("{HANDLES}{}", r"
for i in range(50):
    open('new', 'w').write('old')
    h = handle('new')
    os.remove('new')
    open('other', 'w').write('other')
    try:
        assert os.read(reopen(h), 99) == b'old'
    except OSError as error:
        assert error.errno == 116, error
    os.remove('other')
"));
            drop_caches();
        },
    )
    .at(Where::Everywhere),
];

fn nodes(at: &Path) {
    let rdev = |name: &str| {
        let meta = fs::metadata(at.join(name)).unwrap();
        assert!(meta.file_type().is_char_device(), "{name}");
        meta.rdev()
    };
    assert_eq!(rdev("null"), makedev(1, 3));
    assert_eq!(rdev("zero"), makedev(1, 5));
    assert_eq!(rdev("void"), 0);
    let mut bytes = [7; 4];
    File::open(at.join("zero"))
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    assert_eq!(bytes, [0; 4]);
}
