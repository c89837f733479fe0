//! Hard links of the image and of the mount, by each of their names.

use std::path::Path;

use super::{Case, python};

/// A group of three names for each way to change a file.
pub(super) const GROUPS: &str = r"
for g in write cut store chmod times xattr link rename unlink over owner; do
    mkdir -p group/$g/d; printf linked >group/$g/a
    ln group/$g/a group/$g/b; ln group/$g/a group/$g/d/c
done
";

pub(super) const CASES: &[Case] = &[
    Case::new(
        "hard_links_by_each_name",
        "Whatever is done to a file by one of its names is seen by all others at once, and through descriptors that were opened by any of them.",
        |at| {
            python(at, r"
import mmap, stat
def group(name):
    os.chdir(sys.argv[1] + '/group/' + name)
    first = os.stat('d/c')
    assert first.st_nlink == 3, (name, first.st_nlink)
    assert first.st_ino == os.stat('a').st_ino == os.stat('b').st_ino
    return os.open('a', os.O_RDONLY), os.open('d/c', os.O_RDONLY), first.st_ino
def same(fds, names, data, nlink=3):
    for name in names:
        assert open(name, 'rb').read() == data, name
    all = [os.fstat(fd) for fd in fds[:2]] + [os.stat(name) for name in names]
    for s in all:
        assert (s.st_ino, s.st_nlink, s.st_size) == (fds[2], nlink, len(data)), s
        assert s == all[0], (s, all[0])
    for fd in fds[:2]:
        assert os.pread(fd, 99, 0) == data
three = ['a', 'b', 'd/c']
fds = group('write')
fd = os.open('b', os.O_WRONLY)
os.pwrite(fd, b'L', 0)
same(fds, three, b'Linked')
fds = group('cut')
os.truncate('d/c', 2)
same(fds, three, b'li')
fds = group('store')
fd = os.open('b', os.O_RDWR)
map = mmap.mmap(fd, 6)
map[0:2] = b'MM'
map.flush()
same(fds, three, b'MMnked')
fds = group('chmod')
os.chmod('d/c', 0o600)
same(fds, three, b'linked')
assert stat.S_IMODE(os.stat('a').st_mode) == 0o600
fds = group('owner')
os.chown('b', 5, 6)
same(fds, three, b'linked')
assert os.fstat(fds[0]).st_uid == 5
fds = group('times')
os.utime('b', ns=(1, 2))
same(fds, three, b'linked')
assert os.fstat(fds[1]).st_mtime_ns == 2
fds = group('xattr')
os.setxattr('d/c', 'user.new', b'v')
same(fds, three, b'linked')
assert os.getxattr(fds[0], 'user.new') == b'v'
fds = group('link')
os.link('d/c', 'e')
same(fds, three + ['e'], b'linked', 4)
fds = group('rename')
os.rename('b', 'd/b')
same(fds, ['a', 'd/b', 'd/c'], b'linked')
fds = group('unlink')
os.unlink('a')
same(fds, ['b', 'd/c'], b'linked', 2)
os.unlink('b')
same(fds, ['d/c'], b'linked', 1)
open('d/c', 'a').write('!')
same(fds, ['d/c'], b'linked!', 1)
fds = group('over')
open('new', 'w').write('new')
os.rename('new', 'd/c')
same(fds, ['a', 'b'], b'linked', 2)
assert open('d/c').read() == 'new'
");
            torn(at);
        },
    )
    .after(torn),
    Case::new(
        "further_names",
        "linkat(2) gives an open file a further name through its descriptor, and ENOENT where the file has no name left.",
        |at| {
            python(at, r"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
AT_EMPTY_PATH, AT_FDCWD = 0x1000, -100
def link(fd, new):
    if libc.linkat(fd, b'', AT_FDCWD, new, AT_EMPTY_PATH):
        return ctypes.get_errno()
    return 0
fd = os.open('file', os.O_RDONLY)
assert link(fd, b'dir/further') == 0
assert os.fstat(fd).st_nlink == 2 and os.path.samestat(os.fstat(fd), os.stat('dir/further'))
assert link(fd, b'one') == 17
os.unlink('file')
assert link(fd, b'file') == 0
os.unlink('file'); os.unlink('dir/further')
assert os.fstat(fd).st_nlink == 0
assert link(fd, b'file') == 2
try:
    os.link('dir', 'dir2')
    assert False, 'a link of a directory'
except PermissionError:
    pass
os.link('sym', 'sym2', follow_symlinks=False)
os.link('fifo', 'fifo2'); os.link('null', 'null2')
for name in 'sym', 'fifo', 'null':
    assert os.path.samestat(os.lstat(name), os.lstat(name + '2')) and os.lstat(name).st_nlink == 2
");
        },
    )
    .after(|at| {
        python(at, r"
for name in 'sym', 'fifo', 'null':
    assert os.path.samestat(os.lstat(name), os.lstat(name + '2')) and os.lstat(name).st_nlink == 2
assert not os.path.lexists('file') and not os.path.lexists('dir/further')
");
    }),
];

fn torn(at: &Path) {
    python(
        at,
        r"
for group, names, data in (
    ('write', 'a b d/c', 'Linked'), ('cut', 'a b d/c', 'li'), ('store', 'a b d/c', 'MMnked'),
    ('chmod', 'a b d/c', 'linked'), ('owner', 'a b d/c', 'linked'), ('times', 'a b d/c', 'linked'),
    ('xattr', 'a b d/c', 'linked'), ('link', 'a b d/c e', 'linked'), ('rename', 'a d/b d/c', 'linked'),
    ('unlink', 'd/c', 'linked!'), ('over', 'a b', 'linked'),
):
    names = [f'group/{group}/{name}' for name in names.split()]
    all = [os.stat(name) for name in names]
    assert all[-1].st_nlink == len(names), (group, all)
    assert [s for s in all if s != all[0]] == [], (group, all)
    assert [open(name).read() for name in names] == [data] * len(names), group
",
    );
}
