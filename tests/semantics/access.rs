//! Who may do what, and what is dropped when somebody does.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::{Case, Where, as_user, errno, listing, python, read};
use crate::common::{ok, walk};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "privileges_are_dropped",
        "Set-user-ID, set-group-ID and file capabilities are dropped when somebody else writes to a file, cuts it or changes its owner.",
        |at| {
            as_user(1000, || {
                let append = |name: &str| {
                    let mut file = OpenOptions::new().append(true).open(at.join(name)).unwrap();
                    file.write_all(b"x").unwrap();
                };
                append("suid");
                append("capable");
                OpenOptions::new().write(true).truncate(true).open(at.join("suid2")).unwrap();
            });
            std::os::unix::fs::chown(at.join("suid3"), Some(1000), Some(1000)).unwrap();
            dropped(at);
        },
    )
    .after(dropped),
    Case::new(
        "group_bit_needs_membership",
        "Who changes the mode or the ACL of a file takes its set-group-ID off, unless in its group or privileged.",
        |at| {
            python(at, r"
import struct
entry = lambda tag, perm, id=0xffffffff: struct.pack('<HHI', tag, perm, id)
acl = struct.pack('<I', 2) + entry(1, 7) + entry(2, 6, 77) + entry(4, 5) + entry(16, 7) + entry(32, 5)
def grant(name): os.setxattr(name, 'system.posix_acl_access', acl)
def user(groups, act, *names):
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
            for name in names: act(name)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
user([7], grant, 'group1', 'group.d')
user([7, 2000], grant, 'group2')
grant('group3')
for name, mode in (('group1', 0o775), ('group.d', 0o775), ('group2', 0o2775), ('group3', 0o2775)):
    assert os.stat(name).st_mode & 0o7777 == mode, name
user([2000], lambda name: os.chmod(name, 0o2700), 'group2')
user([7], lambda name: os.chmod(name, 0o2700), 'group3')
");
            let mode = |name: &str| fs::metadata(at.join(name)).unwrap().mode() & 0o7777;
            assert_eq!((mode("group2"), mode("group3")), (0o2700, 0o700));
        },
    ),
    Case::new(
        "map_drops_privileges",
        "A file that an ordinary user stores to through a shared map loses set-user-ID with the next write at the latest.",
        |at| {
            python(at, r"
import mmap
os.setgroups([]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
fd = os.open('suid', os.O_RDWR)
map = mmap.mmap(fd, 1)
map[0:1] = b'm'
map.flush()
os.pwrite(fd, b'w', 0)
assert os.stat('suid').st_mode & 0o6000 == 0
");
        },
    ),
    Case::new(
        "sticky",
        "In a sticky directory only the owner of a file or of the directory may remove or rename it.",
        |at| {
            as_user(1000, || {
                let roots = at.join("sticky/roots");
                let own = at.join("sticky/own");
                assert_eq!(errno(fs::remove_file(&roots)), libc::EPERM);
                assert_eq!(errno(fs::rename(&roots, at.join("sticky/x"))), libc::EPERM);
                fs::write(&own, "own").unwrap();
                assert_eq!(errno(fs::rename(&own, &roots)), libc::EPERM);
                fs::rename(&own, at.join("sticky/renamed")).unwrap();
                fs::remove_file(at.join("sticky/renamed")).unwrap();
            });
            assert_eq!(listing(at.join("sticky")), ["roots"]);
        },
    ),
    Case::new(
        "permissions",
        "The permission bits decide who may do what, as on a local filesystem.",
        |at| {
            fs::set_permissions(at.join("file"), Permissions::from_mode(0o600)).unwrap();
            fs::set_permissions(at.join("dir"), Permissions::from_mode(0o711)).unwrap();
            as_user(1000, || {
                assert_eq!(errno(File::open(at.join("file"))), libc::EACCES);
                assert_eq!(errno(fs::read_dir(at.join("dir"))), libc::EACCES);
                assert_eq!(read(at.join("dir/inner")), "in");
                assert_eq!(errno(File::create(at.join("dir/new"))), libc::EACCES);
                let mode = Permissions::from_mode(0o777);
                assert_eq!(errno(fs::set_permissions(at.join("dir/inner"), mode)), libc::EPERM);
            });
        },
    ),
    Case::new(
        "new_files_have_owners",
        "A new file belongs to who made it, and to the directory's group where that has set-group-ID.",
        |at| {
            fs::set_permissions(at.join("empty"), Permissions::from_mode(0o2777)).unwrap();
            std::os::unix::fs::chown(at.join("empty"), None, Some(77)).unwrap();
            fs::set_permissions(at.join("empty"), Permissions::from_mode(0o2777)).unwrap();
            as_user(1000, || {
                fs::write(at.join("empty/file"), "").unwrap();
                fs::create_dir(at.join("empty/dir")).unwrap();
                fs::write(at.join("sticky/own"), "").unwrap();
            });
            owned(at);
        },
    )
    .after(owned),
    Case::new(
        "access_lists",
        "POSIX ACLs are enforced before and after a file is first written to, and new files inherit default ACLs.",
        |at| {
            as_user(1000, || fs::write(at.join("private"), "by 1000").unwrap());
            as_user(2000, || {
                assert_eq!(errno(File::open(at.join("private"))), libc::EACCES);
                assert_eq!(errno(File::create(at.join("acls/no"))), libc::EACCES);
            });
            as_user(1000, || fs::write(at.join("acls/file"), "").unwrap());
            fs::create_dir(at.join("acls/dir")).unwrap();
            inherited(at);
        },
    )
    .after(inherited),
    Case::new(
        "attributes_stay",
        "Extended attributes of user., trusted. and security. can be read, set and removed, and go with a file to the upper.",
        |at| {
            fs::set_permissions(at.join("file"), Permissions::from_mode(0o600)).unwrap();
            let get = |name: &str| {
                let mut value = [0; 16];
                rustix::fs::getxattr(at.join("file"), name, &mut value)
                    .map(|n| value[..n].to_vec())
            };
            assert_eq!(get("user.k").unwrap(), b"v");
            assert_eq!(get("trusted.t").unwrap(), b"w");
            assert_eq!(get("security.s").unwrap(), b"x");
            let set = |name: &str, flags| rustix::fs::setxattr(at.join("file"), name, b"new", flags);
            assert_eq!(set("user.k", XattrFlags::CREATE), Err(Errno::EXIST));
            assert_eq!(set("user.none", XattrFlags::REPLACE), Err(Errno::NODATA));
            set("user.k", XattrFlags::REPLACE).unwrap();
            set("trusted.new", XattrFlags::CREATE).unwrap();
            rustix::fs::removexattr(at.join("file"), "trusted.t").unwrap();
            assert_eq!(rustix::fs::removexattr(at.join("file"), "trusted.t"), Err(Errno::NODATA));
            as_user(1000, || assert_eq!(get("trusted.new"), Err(Errno::NODATA)));
            attributed(at);
        },
    )
    .after(attributed),
    Case::new(
        "own_attributes_are_hidden",
        "The attributes by which the upper keeps its marks do not exist inside the mount: they are not listed, reading one gives ENODATA, setting one EOPNOTSUPP.",
        |at| {
            fs::rename(at.join("dir"), at.join("moved")).unwrap();
            fs::remove_dir_all(at.join("acls")).unwrap();
            fs::create_dir(at.join("acls")).unwrap();
            fs::write(at.join("file"), "changed").unwrap();
            unmarked(at);
            for name in ["trusted.overlay.opaque", "trusted.tarnfs.ino", "user.overlay.opaque"] {
                let set = rustix::fs::setxattr(at.join("acls"), name, b"y", XattrFlags::empty());
                assert_eq!(set, Err(Errno::OPNOTSUPP));
                let got = rustix::fs::getxattr(at.join("acls"), name, &mut [0_u8; 8]);
                assert_eq!(got, Err(Errno::NODATA));
            }
        },
    )
    .after(unmarked)
    .at(Where::Mount),
    Case::new(
        "read_only",
        "On a read-only mount every change gives EROFS, and reading goes on.",
        |at| {
            assert_eq!(read(at.join("file")), "0123456789");
            python(at, r"
import mmap
EROFS = 30
def refused(act, *args, want=EROFS, **named):
    try:
        act(*args, **named)
    except OSError as error:
        assert error.errno == want, (act, args, error)
        return
    assert False, (act, args)
before = sorted((d, tuple(sorted(dirs + files))) for d, dirs, files in os.walk('.'))
stats = {name: os.lstat(name) for name in os.listdir()}
for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_TRUNC,
        os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_TRUNC):
    refused(os.open, 'file', flags)
refused(os.open, 'new', os.O_RDONLY | os.O_CREAT)
refused(os.open, 'file', os.O_RDONLY | os.O_CREAT | os.O_EXCL, want=17)
os.close(os.open('file', os.O_RDONLY | os.O_CREAT))
refused(os.truncate, 'file', 3)
refused(os.mkdir, 'new'); refused(os.mkdir, 'dir', want=17)
refused(os.mknod, 'new'); refused(os.mkfifo, 'new'); refused(os.mknod, 'new', 0o20600, os.makedev(1, 3))
refused(os.symlink, 'x', 'new'); refused(os.link, 'file', 'new')
refused(os.unlink, 'file'); refused(os.rmdir, 'empty')
refused(os.rename, 'file', 'new'); refused(os.rename, 'dir', 'empty'); refused(os.rename, 'one', 'two')
for name in 'file', 'dir', 'fifo', 'null':
    refused(os.chmod, name, 0o777); refused(os.chown, name, 1, 1)
    refused(os.utime, name); refused(os.setxattr, name, 'trusted.n', b'v'); refused(os.removexattr, name, 'trusted.n')
refused(os.chown, 'sym', 1, 1, follow_symlinks=False); refused(os.setxattr, 'file', 'user.n', b'v')
refused(os.removexattr, 'file', 'user.k')
refused(os.removexattr, 'acls', 'system.posix_acl_default')
fd = os.open('file', os.O_RDONLY)
refused(os.fchmod, fd, 0o777); refused(os.fchown, fd, 1, 1); refused(os.utime, fd)
refused(os.setxattr, fd, 'user.n', b'v')
refused(mmap.mmap, fd, 10, want=13)
private = mmap.mmap(fd, 10, flags=mmap.MAP_PRIVATE)
private[0:1] = b'P'
assert not os.access('file', os.W_OK) and os.access('file', os.R_OK) and os.access('null', os.W_OK)
assert os.statvfs('.').f_flag & os.ST_RDONLY
os.open('null', os.O_WRONLY)
pipe = os.open('fifo', os.O_RDWR)
os.write(pipe, b'through'); assert os.read(pipe, 9) == b'through'
assert os.pread(fd, 99, 0) == b'0123456789' and os.getxattr('file', 'user.k') == b'v'
for name, was in stats.items():
    now = os.lstat(name)
    assert (now.st_mode, now.st_nlink, now.st_mtime_ns, now.st_ctime_ns) == (was.st_mode, was.st_nlink, was.st_mtime_ns, was.st_ctime_ns)
assert sorted((d, tuple(sorted(dirs + files))) for d, dirs, files in os.walk('.')) == before
");
        },
    )
    .at(Where::ReadOnly),
];

fn dropped(at: &Path) {
    let mode = |name: &str| fs::metadata(at.join(name)).unwrap().mode() & 0o7777;
    for name in ["suid", "suid2", "suid3"] {
        assert_eq!(mode(name), 0o777, "{name}");
    }
    let names = walk::xattrs(&at.join("capable"));
    assert!(
        names
            .iter()
            .all(|(name, _)| name != OsStr::new("security.capability")),
        "{names:?}"
    );
}

fn owned(at: &Path) {
    let owner = |name: &str| {
        let meta = fs::metadata(at.join(name)).unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o2000)
    };
    assert_eq!(owner("empty/file"), (1000, 77, 0));
    assert_eq!(owner("empty/dir"), (1000, 77, 0o2000));
    assert_eq!(owner("sticky/own"), (1000, 1000, 0));
}

fn inherited(at: &Path) {
    let acl = |name: &str| ok("getfacl", ["-cpn".as_ref(), at.join(name).as_os_str()]);
    assert!(
        acl("acls/file").contains("user:77:rwx\t#effective:rw-"),
        "{}",
        acl("acls/file")
    );
    assert!(
        acl("acls/dir").contains("default:user:77:rwx"),
        "{}",
        acl("acls/dir")
    );
    assert!(
        acl("private").contains("user:1000:rw-"),
        "{}",
        acl("private")
    );
    assert_eq!(read(at.join("private")), "by 1000");
}

fn attributed(at: &Path) {
    let got: Vec<_> = walk::xattrs(&at.join("file"))
        .into_iter()
        .filter(|(name, _)| name != "security.selinux")
        .map(|(name, value)| {
            (
                name.into_string().unwrap(),
                String::from_utf8(value).unwrap(),
            )
        })
        .collect();
    let want = [
        ("security.s", "x"),
        ("trusted.new", "new"),
        ("user.k", "new"),
    ];
    let want: Vec<_> = want
        .iter()
        .map(|&(n, v)| (n.to_owned(), v.to_owned()))
        .collect();
    assert_eq!(got, want);
}

fn unmarked(at: &Path) {
    for name in [".", "moved", "acls", "file"] {
        for (name, _) in walk::xattrs(&at.join(name)) {
            let name = name.into_string().unwrap();
            assert!(
                !name.contains("overlay") && !name.contains("tarnfs"),
                "{name}"
            );
        }
    }
}
