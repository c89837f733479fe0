//! Set-user-ID, set-group-ID, file capabilities, ACLs and sticky directories, one way at a time.

use std::path::Path;

use super::{Case, python};
use crate::common::python::BY;

/// A file for each way to change one.
pub(super) const PRIVILEGED: &str = r"
mkdir p; for op in write cut ftruncate opentrunc allocate range owner group same store root; do
    printf 0123456789 >p/s-$op; chown 1000:1000 p/s-$op
    cp -a p/s-$op p/g-$op; cp -a p/s-$op p/c-$op
    chmod 6777 p/s-$op; chmod 2766 p/g-$op; chmod 777 p/c-$op
    setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 p/c-$op
done
mkdir -m 1777 shared; chown 1000 shared
for user in 0 1000 2000; do
    printf $user >shared/$user; mkdir shared/d$user; chown $user shared/$user shared/d$user
done
";

const HELPERS: &str = r"
import ctypes, stat
libc = ctypes.CDLL(None, use_errno=True)
";

pub(super) const CASES: &[Case] = &[
    Case::new(
        "privileges_by_each_way",
        "write(2), truncate(2), ftruncate(2), O_TRUNC, fallocate(2) and copy_file_range(2) of an ordinary user and every chown(2) drop set-user-ID, set-group-ID and capabilities; a write by root drops capabilities alone.",
        |at| {
            python(at, &format!("{BY}{HELPERS}{}", r"
source = os.open('file', os.O_RDONLY)
def opened(name, flags=os.O_RDWR):
    return os.open(name, flags)
ways = {
    'write': (2000, lambda n: os.pwrite(opened(n), b'x', 3)),
    'cut': (2000, lambda n: os.truncate(n, 4)),
    'ftruncate': (2000, lambda n: os.ftruncate(opened(n), 20)),
    'opentrunc': (2000, lambda n: opened(n, os.O_WRONLY | os.O_TRUNC)),
    'range': (2000, lambda n: os.copy_file_range(source, opened(n), 3, 0, 0)),
    'owner': (0, lambda n: os.chown(n, 77, -1)),
    'group': (0, lambda n: os.chown(n, -1, 77)),
    'same': (1000, lambda n: os.chown(n, 1000, 1000)),
    'root': (0, lambda n: os.pwrite(opened(n), b'x', 3)),
}
def allocate(name):
    if libc.fallocate(opened(name), 0, ctypes.c_long(0), ctypes.c_long(20)):
        raise OSError(ctypes.get_errno(), name)
ways['allocate'] = (2000, allocate)
for way, (user, act) in ways.items():
    for kind in 'sc':
        answer = by(user, act, f'p/{kind}-{way}')
        assert answer == 0, (way, kind, answer)
"));
            stripped(at);
        },
    )
    .after(stripped),
    Case::new(
        "group_without_execute",
        "Set-group-ID of a file that its group may not execute goes when somebody outside the group writes to the file or cuts it.",
        |at| {
            python(at, &format!("{BY}{HELPERS}{}", r"
assert by(2000, lambda: os.pwrite(os.open('p/g-write', os.O_RDWR), b'x', 3)) == 0
assert by(2000, os.truncate, 'p/g-cut', 4) == 0
for way in 'write', 'cut':
    assert stat.S_IMODE(os.stat(f'p/g-{way}').st_mode) == 0o766
"));
        },
    ),
    Case::new(
        "stores_leave_capabilities",
        "A store through a shared map takes no file capabilities off.",
        |at| {
            python(at, r"
import mmap
fd = os.open('p/c-store', os.O_RDWR)
map = mmap.mmap(fd, 10)
map[0:1] = b'x'
map.flush()
assert 'security.capability' in os.listxattr('p/c-store')
");
        },
    ),
    Case::new(
        "sticky_by_each_way",
        "Who owns a sticky directory may remove and rename everything in it; others what they own, and not over what they do not, also not by exchange.",
        |at| {
            python(at, &format!("{BY}{HELPERS}{}", r"
EPERM = 1
def exchange(a, b):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), 2):
        raise OSError(ctypes.get_errno(), a)
os.chdir('shared')
assert by(2000, os.remove, '0') == EPERM and by(2000, os.remove, '1000') == EPERM
assert by(2000, os.rmdir, 'd0') == EPERM
assert by(2000, os.rename, '2000', '0') == EPERM and by(2000, os.rename, '0', 'x') == EPERM
assert by(2000, os.rename, 'd2000', 'd0') == EPERM
assert by(2000, exchange, '2000', '0') == EPERM and by(2000, exchange, '0', '2000') == EPERM
assert by(2000, os.rename, '2000', '2001') == 0 and by(2000, os.rmdir, 'd2000') == 0
assert by(2000, os.link, '2001', 'second') == 0 and by(2000, os.remove, 'second') == 0
assert by(1000, os.remove, '0') == 0 and by(1000, os.rename, '2001', '1000') == 0
assert by(1000, os.rmdir, 'd0') == 0 and by(1000, os.rename, 'd1000', 'd') == 0
assert sorted(os.listdir()) == ['1000', 'd']
"));
        },
    )
    .after(|at| {
        python(at, "assert sorted(os.listdir('shared')) == ['1000', 'd'] and open('shared/1000').read() == '2000'");
    }),
    Case::new(
        "access_lists_and_modes",
        "chmod(2) sets the mask of an ACL and an ACL sets the mode; an ACL that says no more than the mode is none; a default ACL takes the place of umask(2).",
        |at| {
            python(at, &format!("{BY}{HELPERS}{}", r"
ACCESS, DEFAULT = 'system.posix_acl_access', 'system.posix_acl_default'
def acl(*entries):
    value = bytes([2, 0, 0, 0])
    for tag, perm, who in entries:
        value += tag.to_bytes(2, 'little') + perm.to_bytes(2, 'little') + (who % 2**32).to_bytes(4, 'little')
    return value
def mode(name):
    return stat.S_IMODE(os.stat(name).st_mode)
assert by(1000, os.open, 'private', os.O_RDWR) == 0
os.chmod('private', 0o640)
assert by(1000, os.open, 'private', os.O_RDWR) == 13 and by(1000, os.open, 'private', os.O_RDONLY) == 0
os.setxattr('private', ACCESS, acl((1, 6, -1), (2, 6, 1000), (4, 0, -1), (16, 6, -1), (32, 4, -1)))
assert mode('private') == 0o664
assert by(1000, os.open, 'private', os.O_RDWR) == 0 and by(2000, os.open, 'private', os.O_RDONLY) == 0
os.setxattr('file', ACCESS, acl((1, 6, -1), (4, 4, -1), (32, 0, -1)))
assert mode('file') == 0o640 and ACCESS not in os.listxattr('file')
os.setxattr('dir', DEFAULT, acl((1, 7, -1), (2, 7, 1000), (4, 7, -1), (16, 7, -1), (32, 0, -1)))
os.umask(0o077)
open('dir/new', 'w').close(); os.mkdir('dir/newdir')
os.mkfifo('dir/newfifo', 0o620); os.mknod('dir/newnode', 0o666 | stat.S_IFREG)
assert mode('dir/new') == 0o660 and mode('dir/newdir') == 0o770 and mode('dir/newfifo') == 0o620
assert os.getxattr('dir/newdir', DEFAULT) == os.getxattr('dir', DEFAULT)
assert by(1000, os.open, 'dir/new', os.O_RDWR) == 0
for name, key, value, want in (
    ('file', DEFAULT, acl((1, 7, -1), (4, 7, -1), (32, 7, -1)), 13),
    ('file', ACCESS, acl((1, 7, -1)), 22), ('file', ACCESS, b'\2\0\0\0x', 22),
    ('sym', ACCESS, acl((1, 7, -1), (4, 7, -1), (32, 7, -1)), 95),
):
    try:
        os.setxattr(name, key, value, follow_symlinks=False)
        assert False, (name, key)
    except OSError as error:
        assert error.errno == want, (name, key, error)
assert by(1000, os.setxattr, 'one', ACCESS, acl((1, 7, -1), (4, 7, -1), (32, 7, -1))) == 1
os.removexattr('acls', DEFAULT)
assert os.listxattr('acls') == [ACCESS]
os.removexattr('acls', ACCESS)
assert os.listxattr('acls') == []
os.mkdir('acls/plain')
assert os.listxattr('acls/plain') == [] and mode('acls/plain') == 0o700
"));
        },
    )
    .after(|at| {
        python(at, r"
assert os.stat('private').st_mode & 0o7777 == 0o664 and 'system.posix_acl_access' in os.listxattr('private')
assert os.listxattr('acls') == [] and 'system.posix_acl_default' in os.listxattr('dir/newdir')
assert 'system.posix_acl_access' not in os.listxattr('file')
");
    }),
    Case::new(
        "attribute_errors",
        "Extended attributes fail as on a local filesystem: ERANGE for a short buffer, EPERM for user. on what is neither file nor directory, EOPNOTSUPP for a class that is not known, ENODATA for none; and the size can be asked for.",
        |at| {
            python(at, &format!("{BY}{HELPERS}{}", r"
def answer(act, *args):
    try:
        return act(*args, follow_symlinks=False)
    except OSError as error:
        return error.errno
def sized(name, key, size):
    buffer = ctypes.create_string_buffer(max(size, 1))
    n = libc.lgetxattr(name.encode(), key.encode(), buffer, size)
    return n if n >= 0 else -ctypes.get_errno()
def listed(name, size):
    buffer = ctypes.create_string_buffer(max(size, 1))
    n = libc.llistxattr(name.encode(), buffer, size)
    return n if n >= 0 else -ctypes.get_errno()
os.setxattr('file', 'user.long', b'l' * 1000)
assert sized('file', 'user.long', 0) == 1000 and sized('file', 'user.long', 1000) == 1000
assert sized('file', 'user.long', 999) == -34
n = listed('file', 0)
assert n == sum(len(name) + 1 for name in os.listxattr('file')) and listed('file', n) == n
assert listed('file', n - 1) == -34
for name in 'sym', 'fifo', 'null':
    assert answer(os.setxattr, name, 'user.k', b'v') == 1, name
    assert answer(os.getxattr, name, 'user.k') == 61, name
    assert answer(os.setxattr, name, 'trusted.k', b'v') is None, name
    assert answer(os.getxattr, name, 'trusted.k') == b'v', name
    assert answer(os.listxattr, name) == ['trusted.k'], name
got = [
    answer(os.setxattr, 'file', 'unknown.k', b'v'), answer(os.getxattr, 'file', 'unknown.k'),
    answer(os.setxattr, 'file', 'user.', b'v'), answer(os.setxattr, 'file', 'user.' + 'n' * 251, b'v'),
    answer(os.setxattr, 'file', 'user.big', b'v' * 65537), answer(os.removexattr, 'file', 'user.none'),
    answer(os.setxattr, 'file', 'user.empty', b''), answer(os.getxattr, 'file', 'user.empty'),
    answer(os.removexattr, 'one', 'unknown.k'), answer(os.getxattr, 'one', 'system.k'),
]
assert got == [95, 95, 22, 34, 7, 61, None, b'', 95, 95], got
assert by(1000, os.setxattr, 'file', 'trusted.x', b'v') == 1
assert by(1000, os.setxattr, 'file', 'user.x', b'v') == 13
assert by(1000, os.setxattr, 'file', 'security.x', b'v') == 1
def none_of_trusted():
    assert not [k for k in os.listxattr('file') if k.startswith('trusted.')]
assert by(1000, none_of_trusted) == 0 and by(1000, os.getxattr, 'file', 'security.s') == 0
os.setxattr('dir', 'user.d', b'v'); os.setxattr('dir', 'security.d', b'v')
"));
        },
    )
    .after(|at| {
        python(at, r"
for name in 'sym', 'fifo', 'null':
    assert os.listxattr(name, follow_symlinks=False) == ['trusted.k'], name
assert len(os.getxattr('file', 'user.long')) == 1000 and os.getxattr('file', 'user.empty') == b''
assert sorted(os.listxattr('dir')) == ['security.d', 'user.d']
");
    }),
];

fn stripped(at: &Path) {
    python(
        at,
        r"
import stat
wrong = []
for way in 'write cut ftruncate opentrunc allocate range owner group same root'.split():
    mode = {kind: stat.S_IMODE(os.stat(f'p/{kind}-{way}').st_mode) for kind in 'sc'}
    capable = 'security.capability' in os.listxattr(f'p/c-{way}')
    want = ({'s': 0o6777 if way == 'root' else 0o777, 'c': 0o777}, False)
    if (mode, capable) != want:
        wrong.append((way, {k: oct(m) for k, m in mode.items()}, capable))
assert not wrong, wrong
",
    );
}
