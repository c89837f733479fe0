//! Directories of 100,000 entries, long names and deep trees, of the image and of the mount.

use std::path::Path;

use super::{Case, python};

/// 100,000 names, which are links of few files so that they are quickly made; a tenth of them where
/// they are made in a mount, one request each.
const MANY: &str = r"
COUNT = 10000 if os.path.basename(os.getcwd()).startswith('upper-') else 100000
os.mkdir('large'); os.chdir('large')
for i in range(COUNT):
    if i % 20000 == 0:
        first = f'entry-{i:06d}'
        open(first, 'w').close()
    else:
        os.link(first, f'entry-{i:06d}')
";

const NAMES: &str = r"
os.mkdir('names')
for i in range(1, 256):
    open(b'names/' + bytes([i if i != 47 else 7]) * i, 'w').close()
";

const DEEP: &str = r"
os.mkdir('deep'); os.chdir('deep')
for i in range(15):
    os.mkdir('d' * 255); os.chdir('d' * 255)
    open('here', 'w').write(str(i))
";

const LISTING: &str = r"
COUNT = 10000 if os.path.basename(os.getcwd()).startswith('upper-') else 100000
import ctypes, random, struct
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(1 << 15)
def entries(fd):
    n = libc.syscall(217, fd, buffer, len(buffer))
    assert n >= 0, ctypes.get_errno()
    found, at = [], 0
    while at < n:
        ino, off, size, kind = struct.unpack_from('QqHB', buffer.raw[at:at + 19])
        found.append((buffer.raw[at + 19:at + size].split(b'\0', 1)[0], off, ino))
        at += size
    return found
def rest(fd):
    found = []
    while more := entries(fd):
        found += more
    return found
";

const LEFT: &str = r"
fd = os.open('large', os.O_RDONLY)
all = rest(fd)
want = {b'.', b'..'} | {b'entry-%06d' % i for i in range(COUNT) if i % 1000 != 7} | {b'new-%03d' % i for i in range(COUNT // 100)}
names = [name for name, _, _ in all]
assert len(names) == len(want) and set(names) == want, (len(names), len(want))
random.seed(1)
for i in [0, len(all) - 2] + random.sample(range(len(all) - 1), 50):
    os.lseek(fd, all[i][1], os.SEEK_SET)
    assert entries(fd)[0] == all[i + 1], i
os.lseek(fd, all[-1][1], os.SEEK_SET)
assert entries(fd) == []
for name, _, ino in random.sample(all, 50):
    if name != b'..': assert os.stat(b'large/' + name).st_ino == ino
";

pub(super) const CASES: &[Case] = &[
    Case::new(
        "hundred_thousand_entries",
        "A directory of 100,000 entries is listed whole, each entry once and with its number, and each position leads back to its entry, also when some go and others come while it is listed.",
        |at| {
            python(at, &format!("{LISTING}{}{LEFT}", r"
fd = os.open('large', os.O_RDONLY)
seen = entries(fd)
for i in range(COUNT // 100):
    if i % 10 == 0: os.remove(f'large/entry-{i * 100 + 7:06d}')
    open(f'large/new-{i:03d}', 'w').close()
    if i % 50 == 0: seen += entries(fd)
seen += rest(fd)
names = [name for name, _, _ in seen]
assert len(set(names)) == len(names), 'an entry twice'
stay = {b'entry-%06d' % i for i in range(COUNT) if i % 1000 != 7}
assert stay <= set(names), 'an entry that stays is not shown'
"));
        },
    )
    .after(left)
    .with(MANY),
    Case::new(
        "names_of_every_length",
        "A name of the image, of any bytes and up to 255 of them, is found, listed, renamed and removed.",
        |at| {
            python(at, r"
names = [bytes([i if i != 47 else 7]) * i for i in range(1, 256)]
assert sorted(os.listdir(b'names')) == sorted(names)
for i, name in enumerate(names):
    path = b'names/' + name
    assert os.lstat(path).st_size == 0
    if i % 3 == 0: os.remove(path)
    if i % 3 == 1: open(path, 'w').write('x')
    if i % 3 == 2: os.rename(path, b'names/' + b'\xff' * 200 + b'%d' % i)
");
            renamed(at);
        },
    )
    .after(renamed)
    .with(NAMES),
    Case::new(
        "deep_trees",
        "A tree with paths of 4,095 bytes in the image is walked, changed and moved, also to where no path is short enough to name what is in it.",
        |at| {
            python(at, &format!("{DOWN}{}", r"
fds = down('deep')
assert len(fds) == 16
for i, fd in enumerate(fds[1:]):
    assert os.read(os.open('here', os.O_RDONLY, dir_fd=fd), 9) == b'%d' % i
path = 'deep/' + '/'.join(['d' * 255] * 15)
path += '/' + 'f' * (4095 - len(path) - 1)
open(path, 'w').write('at the end')
try:
    open(path + 'f', 'w')
    assert False, 'a path of 4,096 bytes'
except OSError as error:
    assert error.errno == 36
os.write(os.open('here', os.O_WRONLY | os.O_APPEND, dir_fd=fds[-1]), b' changed')
os.mkdir('new', dir_fd=fds[-1])
os.rename('here', 'there', src_dir_fd=fds[10], dst_dir_fd=fds[-1])
# Below ten more, and so deeper than a path can be.
os.mkdir('deeper')
at = os.open('deeper', os.O_RDONLY)
for _ in range(10):
    os.mkdir('d' * 255, dir_fd=at)
    at = os.open('d' * 255, os.O_RDONLY, dir_fd=at)
os.rename('deep', 'd' * 255, dst_dir_fd=at)
open('/proc/sys/vm/drop_caches', 'w').write('2')
assert len(down('deeper')) == 27
"));
        },
    )
    .after(|at| {
        python(at, &format!("{DOWN}{}", r"
fds = down('deeper')
assert len(fds) == 27
assert os.read(os.open('here', os.O_RDONLY, dir_fd=fds[-1]), 99) == b'14 changed'
assert os.read(os.open('there', os.O_RDONLY, dir_fd=fds[-1]), 99) == b'9'
there = sorted(os.listdir(fds[-1]))
assert there[1:] == ['here', 'new', 'there'] and set(there[0]) == {'f'} and os.listdir(fds[21]) == ['d' * 255]
"));
    })
    .with(DEEP),
];

const DOWN: &str = r"
def down(top):
    fds = [os.open(top, os.O_RDONLY)]
    while True:
        try:
            fds.append(os.open('d' * 255, os.O_RDONLY, dir_fd=fds[-1]))
        except FileNotFoundError:
            return fds
";

fn left(at: &Path) {
    python(at, &format!("{LISTING}{LEFT}"));
}

fn renamed(at: &Path) {
    python(
        at,
        r"
names = [bytes([i if i != 47 else 7]) * i for i in range(1, 256)]
want = [n for i, n in enumerate(names) if i % 3 == 1]
want += [b'\xff' * 200 + b'%d' % i for i in range(255) if i % 3 == 2]
assert sorted(os.listdir(b'names')) == sorted(want)
for i, name in enumerate(names):
    if i % 3 == 1: assert open(b'names/' + name).read() == 'x'
",
    );
}
