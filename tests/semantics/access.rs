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
user([7], grant, 'group', 'group.d')
user([7, 2000], grant, 'group2')
grant('group3')
for name, mode in (('group', 0o775), ('group.d', 0o775), ('group2', 0o2775), ('group3', 0o2775)):
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
            let erofs = libc::EROFS;
            assert_eq!(read(at.join("file")), "0123456789");
            assert_eq!(errno(OpenOptions::new().write(true).open(at.join("file"))), erofs);
            assert_eq!(errno(File::create(at.join("new"))), erofs);
            assert_eq!(errno(fs::create_dir(at.join("new"))), erofs);
            assert_eq!(errno(fs::remove_file(at.join("file"))), erofs);
            assert_eq!(errno(fs::remove_dir(at.join("empty"))), erofs);
            assert_eq!(errno(fs::rename(at.join("file"), at.join("new"))), erofs);
            assert_eq!(errno(fs::hard_link(at.join("file"), at.join("new"))), erofs);
            assert_eq!(errno(std::os::unix::fs::symlink("x", at.join("new"))), erofs);
            let mode = Permissions::from_mode(0o777);
            assert_eq!(errno(fs::set_permissions(at.join("file"), mode)), erofs);
            assert_eq!(errno(std::os::unix::fs::chown(at.join("file"), Some(1), None)), erofs);
            let set = rustix::fs::setxattr(at.join("file"), "user.n", b"y", XattrFlags::empty());
            assert_eq!(set, Err(Errno::ROFS));
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
