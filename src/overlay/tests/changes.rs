//! Extended attributes, ACLs, and what else changes an inode.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::fixture::{Fixture, asker, errno, me, name};
use crate::overlay::{Asker, Caller, Make, ROOT_INO, SetAttr};

#[test]
fn marks_do_not_exist_for_those_inside() {
    let f = Fixture::new();
    f.write("big", 0, b"!");
    f.rename("a", "moved", 0).unwrap();
    for path in ["big", "moved", ""] {
        let ino = f.ino(path);
        let names = f.fs.listxattr(ino).unwrap();
        assert!(
            !names
                .iter()
                .any(|n| n.starts_with(b"trusted.") || n.starts_with(b"user.overlay"))
        );
        for key in [
            &b"trusted.overlay.redirect"[..],
            b"trusted.overlay.opaque",
            b"trusted.tarnfs.ino",
            b"trusted.overlay.impure",
            b"user.overlay.redirect",
            b"user.tarnfs.ino",
        ] {
            assert_eq!(errno(f.fs.getxattr(ino, key)), libc::ENODATA);
            assert_eq!(
                errno(f.fs.setxattr(asker(), ino, key, b"y", 0)),
                libc::EOPNOTSUPP
            );
            assert!([libc::EOPNOTSUPP, libc::ENODATA].contains(&errno(f.fs.removexattr(ino, key))));
        }
    }
    assert_eq!(
        f.fs.listxattr(f.ino("big")).unwrap(),
        [b"user.note".to_vec()]
    );
}

#[test]
fn attributes_change_on_a_copy() {
    let f = Fixture::new();
    let big = f.ino("big");
    assert_eq!(errno(f.fs.removexattr(big, b"user.none")), libc::ENODATA);
    assert!(!f.upper("big").exists());
    assert_eq!(
        errno(f.fs.setxattr(asker(), big, b"user.note", b"", libc::XATTR_CREATE)),
        libc::EEXIST
    );
    assert_eq!(
        errno(f.fs.setxattr(asker(), big, b"user.none", b"", libc::XATTR_REPLACE)),
        libc::ENODATA
    );
    f.fs.setxattr(asker(), big, b"user.big", &[b'x'; 3000], 0)
        .unwrap();
    assert_eq!(f.fs.getxattr(big, b"user.big").unwrap(), [b'x'; 3000]);
    f.fs.removexattr(big, b"user.note").unwrap();
    assert_eq!(errno(f.fs.getxattr(big, b"user.note")), libc::ENODATA);
    let f = f.again();
    assert_eq!(
        f.fs.listxattr(f.ino("big")).unwrap(),
        [b"user.big".to_vec()]
    );
}

#[test]
fn regression_an_acl_that_is_not_there_can_be_removed() {
    let f = Fixture::new();
    for key in [&b"system.posix_acl_access"[..], b"system.posix_acl_default"] {
        f.fs.removexattr(f.ino("a"), key).unwrap();
    }
    assert!(!f.upper("a").exists());
    f.chmod("a", 0o700);
    for key in [&b"system.posix_acl_access"[..], b"system.posix_acl_default"] {
        f.fs.removexattr(f.ino("a"), key).unwrap();
    }
}

#[test]
fn default_acls_are_inherited_in_place_and_through_work() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can make files of others");
        assert!(std::env::var_os("CI").is_none());
        return;
    }
    // user::rwx user:77:rwx group::r-x mask::rwx other::---
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1_u16, 7_u16, !0_u32),
        (2, 7, 77),
        (4, 5, !0),
        (16, 7, !0),
        (32, 0, !0),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let f = Fixture::new();
    let dir = f.ino("a");
    f.fs.setxattr(asker(), dir, b"system.posix_acl_default", &acl, 0)
        .unwrap();
    let mut seen = Vec::new();
    for (who, file) in [(me(), "mine"), (Caller { uid: 5, gid: 5 }, "theirs")] {
        let made =
            f.fs.make(who, dir, &name(file), Make::File, 0o666, 0o077)
                .unwrap()
                .attr;
        let ino = crate::overlay::Ino(made.ino);
        let access = f.fs.getxattr(ino, b"system.posix_acl_access").unwrap();
        seen.push((made.perm, access));
        let sub = f.fs.make(
            who,
            dir,
            &name(&format!("{file}-dir")),
            Make::Dir,
            0o777,
            0o077,
        );
        let sub = crate::overlay::Ino(sub.unwrap().attr.ino);
        assert_eq!(
            f.fs.getxattr(sub, b"system.posix_acl_default").unwrap(),
            acl
        );
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].0, 0o660);
    f.fs.removexattr(dir, b"system.posix_acl_default").unwrap();
    let made =
        f.fs.make(me(), dir, &name("later"), Make::File, 0o666, 0o077)
            .unwrap()
            .attr;
    assert_eq!(made.perm, 0o600);
}

/// To the kernel the older descriptor is of another file, so that it does not look.
#[test]
fn regression_ranges_of_one_file_do_not_overlap() {
    let f = Fixture::new();
    let ino = f.ino("big");
    let old = f.fs.open(ino, libc::O_RDONLY).unwrap();
    f.fs.keep_lower(old).unwrap();
    let new = f.fs.open(ino, libc::O_RDWR).unwrap();
    let size = f.fs.getattr(ino, None).unwrap().size;
    let copy = |from, to, len| f.fs.copy_file_range(old, from, new, to, len);
    for (from, to, len) in [(461, 0, 462), (0, 461, 462), (8, 8, 1)] {
        assert_eq!(errno(copy(from, to, len)), libc::EINVAL);
    }
    assert_eq!(copy(461, 0, 461).unwrap(), 461);
    // No more than there is.
    assert_eq!(copy(size - 1, 0, 1 << 20).unwrap(), 1);
    f.fs.release(old);
    f.fs.release(new);
}

#[test]
fn open_files_do_what_descriptors_do() {
    let f = Fixture::new();
    let (entry, handle) =
        f.fs.create(me(), ROOT_INO, &name("f"), 0o400, 0, libc::O_RDWR)
            .unwrap();
    assert_eq!(entry.attr.perm, 0o400);
    f.fs.write(handle, 0, &[1; 8192]).unwrap();
    f.fs.fallocate(
        handle,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        0,
        4096,
    )
    .unwrap();
    assert_eq!(
        f.fs.seek(handle, 0, crate::lower::Seek::Data).unwrap(),
        4096
    );
    f.fs.fsync(handle, true).unwrap();
    let big = f.fs.open(f.ino("big"), libc::O_RDONLY).unwrap();
    assert_eq!(f.fs.copy_file_range(big, 4, handle, 0, 4).unwrap(), 4);
    let mut buf = [0; 4];
    f.fs.read(handle, 0, &mut buf).unwrap();
    assert_eq!(buf, 1_u32.to_le_bytes());
    assert_eq!(errno(f.fs.write(big, 0, b"x")), libc::EBADF);
    assert_eq!(
        errno(f.fs.copy_file_range(handle, 0, big, 0, 4)),
        libc::EBADF
    );
    f.fs.release(handle);
    assert_eq!(errno(f.fs.read(handle, 0, &mut buf)), libc::EBADF);
}

#[test]
fn an_upper_is_used_by_one_mount_at_a_time() {
    let f = Fixture::new();
    let dir = f.dir.path();
    let open =
        |upper: &str, work: &str| crate::upper::Upper::open(&dir.join(upper), &dir.join(work));
    assert!(
        open("upper", "work2")
            .unwrap_err()
            .to_string()
            .contains("in use by another mount")
    );
    std::fs::create_dir(dir.join("fresh")).unwrap();
    assert!(
        open("fresh", "work")
            .unwrap_err()
            .to_string()
            .contains("in use by another mount")
    );
    assert!(
        open("fresh", "fresh/work")
            .unwrap_err()
            .to_string()
            .contains("inside the other")
    );
    assert!(
        open("fresh", "fresh")
            .unwrap_err()
            .to_string()
            .contains("inside the other")
    );
    assert!(
        open("none", "work3")
            .unwrap_err()
            .to_string()
            .contains("No such file")
    );
}

#[test]
fn regression_an_upper_written_without_root_is_read_by_root() {
    let home = crate::upper::tests::without_root(|| {
        let f = Fixture::new();
        f.rename("a", "moved", 0).unwrap();
        f.mkdir("a");
        f.unlink("big").unwrap();
        f.write("suid", 0, b"!");
        f.dir
    });
    let f = Fixture::reopen(home);
    assert_eq!(
        f.fs.marks().unwrap(),
        crate::upper::markers::Namespace::User
    );
    assert!(f.exists("moved/sub/deep") && !f.exists("a/sub") && !f.exists("big"));
    assert_eq!(f.fs.listxattr(f.ino("moved")).unwrap(), [] as [Vec<u8>; 0]);
    f.rename("moved/sub", "b/sub", 0).unwrap();
    let home = f.dir;
    drop(f.fs);
    crate::upper::tests::without_root(|| {
        let f = Fixture::reopen(home);
        assert!(f.exists("b/sub/deep") && !f.exists("moved/sub"));
    });
}

#[test]
fn regression_an_acl_of_somebody_outside_the_group_takes_set_group_id() {
    let f = Fixture::new();
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\x4d\0\0\0\
        \x04\0\x05\0\xff\xff\xff\xff\x10\0\x05\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
    let key = b"system.posix_acl_access";
    let nobody = Asker {
        uid: 70_000,
        gid: 70_000,
        pid: 0,
    };
    for path in ["big", "a", "made"] {
        if path == "made" {
            f.create(path, b"");
        }
        let ino = f.ino(path);
        let set = |perm| {
            let set = SetAttr {
                perm: Some(perm),
                ..SetAttr::default()
            };
            f.fs.setattr(ino, None, &set).unwrap();
        };
        set(0o2750);
        f.fs.setxattr(asker(), ino, key, acl, 0).unwrap();
        assert_eq!(f.attr(path).perm, 0o2750, "{path}");
        f.fs.setxattr(nobody, ino, b"user.x", b"", 0).unwrap();
        assert_eq!(f.attr(path).perm, 0o2750, "{path}");
        // A refused one changes nothing.
        f.fs.setxattr(nobody, ino, key, b"\x02\0\0\0\x07", 0)
            .unwrap_err();
        assert_eq!(f.attr(path).perm, 0o2750, "{path}");
        f.fs.setxattr(nobody, ino, key, acl, 0).unwrap();
        assert_eq!(f.attr(path).perm, 0o750, "{path}");
        assert_eq!(f.fs.getxattr(ino, key).unwrap(), acl);
    }
}

#[test]
fn a_file_without_its_data_is_no_file_of_zeros() {
    let f = Fixture::new();
    f.create("b/meta", b"");
    let file = std::fs::File::create(f.upper("b/meta")).unwrap();
    file.set_len(5_000).unwrap();
    for space in ["trusted", "user"] {
        let key = format!("{space}.overlay.metacopy");
        // Without root there is the other one alone.
        crate::sys::fs::setxattr(file.as_fd(), key.as_bytes(), b"", 0).ok();
    }
    let f = f.again();
    let ino = f.ino("b/meta");
    assert_eq!(f.attr("b/meta").size, 5_000);
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC] {
        assert_eq!(errno(f.fs.open(ino, flags)), libc::EIO);
    }
    let set = |set| f.fs.setattr(ino, None, &set);
    let cut = set(SetAttr {
        size: Some(1),
        ..SetAttr::default()
    });
    assert_eq!(errno(cut), libc::EIO);
    assert_eq!(errno(f.rename("b/meta", "meta", 0)), libc::EIO);
    assert_eq!(errno(f.rename("big", "b/meta", 2)), libc::EIO);
    assert_eq!(errno(f.fs.link(ino, ROOT_INO, &name("meta"))), libc::EIO);
    assert_eq!(file.metadata().unwrap().len(), 5_000);
    set(SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    })
    .unwrap();
    f.unlink("b/meta").unwrap();
    assert!(!f.exists("b/meta"));
}

/// The kernel asks for file capabilities before each write.
#[test]
fn what_is_asked_before_each_write_is_read_once() {
    use crate::sys::faults::{self, Fault};
    use rustix::io::Errno;
    let f = Fixture::new();
    f.write("big", 0, b"!");
    let ino = f.ino("big");
    // A system call would fail.
    let unread = |name: &[u8]| {
        faults::plan(1, Fault::Blind(Errno::IO));
        let answer = errno(f.fs.getxattr(ino, name));
        assert!(!faults::end(), "{}", name.escape_ascii());
        answer
    };
    // VFS_CAP_REVISION_2, cap_net_raw; an ACL of the owner, a user, the group, the mask, others.
    let caps = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let acl: Vec<u8> = [
        &[2, 0, 0, 0][..],
        &[1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 7, 0, 0, 0],
        &[
            4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255,
        ],
        &[32, 0, 4, 0, 255, 255, 255, 255],
    ]
    .concat();
    let mut set = vec![(&b"system.posix_acl_access"[..], &acl[..])];
    if rustix::process::geteuid().is_root() {
        set.push((b"security.capability", &caps));
    }
    for (name, value) in set {
        assert_eq!(errno(f.fs.getxattr(ino, name)), libc::ENODATA);
        assert_eq!(unread(name), libc::ENODATA);
        f.fs.setxattr(asker(), ino, name, value, 0).unwrap();
        assert_eq!(f.fs.getxattr(ino, name).unwrap(), value);
        f.fs.removexattr(ino, name).unwrap();
        // What anybody has set once is read for good.
        assert_eq!(errno(f.fs.getxattr(ino, name)), libc::ENODATA);
        assert_eq!(errno(f.fs.getxattr(ino, name)), libc::ENODATA);
        f.fs.setxattr(asker(), ino, name, value, 0).unwrap();
        assert_eq!(f.fs.getxattr(ino, name).unwrap(), value);
    }
    // Others are read each time.
    assert_eq!(errno(f.fs.getxattr(ino, b"user.x")), libc::ENODATA);
    faults::plan(1, Fault::Blind(Errno::IO));
    assert_eq!(errno(f.fs.getxattr(ino, b"user.x")), libc::EIO);
    assert!(faults::end());
}

#[test]
fn chown_of_neither_moves_ctime_whoever_calls() {
    let f = Fixture::new();
    let ino = f.ino("big");
    let of = |uid| SetAttr {
        asker: Some(Asker {
            uid,
            gid: uid,
            pid: 0,
        }),
        ..SetAttr::default()
    };
    let mut last = f.fs.setattr(ino, None, &of(me().uid)).unwrap().ctime;
    for _ in 0..2 {
        let ctime = || f.fs.setattr(ino, None, &of(12_345)).unwrap().ctime;
        let patience = Instant::now() + Duration::from_secs(10);
        // Clocks of older kernels' inodes stand still for milliseconds.
        let Some(now) = std::iter::repeat_with(ctime)
            .take_while(|_| Instant::now() < patience)
            .find(|&now| now > last)
        else {
            panic!("st_ctime stays {last:?}");
        };
        last = now;
    }
}
