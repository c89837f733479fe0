//! Copy-up: complete, and only when something changes.

use rustix::io::Errno;

use super::fixture::{Fixture, asker, big, bytes, errno, me, name};
use crate::inode::Time;
use crate::lower::Seek;
use crate::overlay::{Ino, Options, Overlay, SetAttr};
use crate::sys::faults::{self, Fault};

#[test]
fn reading_leaves_the_upper_empty() {
    let f = Fixture::new();
    assert_eq!(f.read("big"), big());
    assert_eq!(f.read("a/sub/deep"), b"deep\n");
    assert_eq!(f.fs.readlink(f.ino("sym")).unwrap(), b"a/x");
    f.ls("a");
    assert_eq!(std::fs::read_dir(f.upper("")).unwrap().count(), 0);
}

#[test]
fn the_root_has_the_image_s_attributes() {
    let f = Fixture::new();
    let root = f.attr("");
    assert_eq!(
        (root.ino, root.perm, root.mtime.sec),
        (1, 0o751, 1_500_000_000)
    );
    assert_eq!(root.nlink, 2 + 3);
    f.chmod("", 0o700);
    assert_eq!(f.again().attr("").perm, 0o700);
}

#[test]
fn a_partial_write_keeps_every_other_byte_and_attribute() {
    let f = Fixture::new();
    let before = f.attr("big");
    let root = f.attr("");
    f.write("big", 20_000, b"MIDDLE");
    let mut expected = big();
    expected[20_000..20_006].copy_from_slice(b"MIDDLE");
    assert_eq!(f.read("big"), expected);
    assert_eq!(bytes(&f.upper("big")), expected);
    let after = f.attr("big");
    assert_eq!(
        (
            after.ino,
            after.perm,
            after.uid,
            after.gid,
            after.nlink,
            after.size
        ),
        (
            before.ino,
            before.perm,
            before.uid,
            before.gid,
            before.nlink,
            before.size
        )
    );
    assert_eq!(f.fs.getxattr(f.ino("big"), b"user.note").unwrap(), b"kept");
    assert_eq!(
        f.attr("").mtime,
        root.mtime,
        "a copy-up is no change of the directory"
    );
    let f = f.again();
    assert_eq!(f.attr("big").ino, before.ino);
    assert_eq!(f.read("big"), expected);
}

#[test]
fn chmod_keeps_times_and_data() {
    let f = Fixture::new();
    let before = f.attr("a/x");
    let after = f.chmod("a/x", 0o4711);
    assert_eq!(after.perm, 0o4711);
    assert_eq!(
        (after.ino, after.mtime, after.size),
        (before.ino, before.mtime, before.size)
    );
    assert_eq!(f.read("a/x"), b"content of x\n");
}

#[test]
fn setuid_survives_a_copy_up() {
    let f = Fixture::new();
    let set = SetAttr {
        mtime: Some(crate::inode::SetTime::At(Time { sec: 5, nsec: 6 })),
        ..SetAttr::default()
    };
    let after = f.fs.setattr(f.ino("suid"), None, &set).unwrap();
    assert_eq!(
        (after.perm, after.mtime),
        (0o4755, Time { sec: 5, nsec: 6 })
    );
}

/// Cuts `/suid` as the kernel asks for it on behalf of an ordinary user.
fn cut_without_privileges(f: &Fixture, suid: Ino) -> crate::overlay::Result<crate::inode::Attr> {
    let set = SetAttr {
        size: Some(4),
        perm: Some(0o755),
        ..SetAttr::default()
    };
    f.fs.setattr(suid, None, &set)
}

/// A file that has been cut is not left with its privileges.
fn is_harmless(size: u64, perm: u16) {
    assert!(size > 4 || perm == 0o755, "{size} bytes, {perm:o}");
}

#[test]
fn regression_a_file_loses_its_privileges_no_later_than_its_bytes() {
    use std::os::unix::fs::PermissionsExt;
    // Of the image, of the upper.
    for risen in [false, true] {
        let prepare = || {
            let f = Fixture::new();
            if risen {
                f.chmod("suid", 0o6755);
            }
            f
        };
        let f = prepare();
        let (ino, on_disk) = (f.ino("suid"), f.upper("suid"));
        faults::watch(move || {
            if let Ok(meta) = std::fs::metadata(&on_disk) {
                let perm = u16::try_from(meta.permissions().mode() & 0o7777).unwrap();
                is_harmless(meta.len(), perm);
            }
        });
        let cut = cut_without_privileges(&f, ino);
        faults::unwatch();
        assert_eq!((cut.as_ref().unwrap().size, cut.unwrap().perm), (4, 0o755));
        for fault in [
            Fault::Once(Errno::NOSPC),
            Fault::Blind(Errno::MFILE),
            Fault::Crash,
        ] {
            for n in 1.. {
                let mut f = prepare();
                let before = f.attr("suid");
                faults::plan(n, fault);
                let cut = cut_without_privileges(&f, Ino(before.ino));
                if !faults::end() {
                    break;
                }
                if fault == Fault::Crash {
                    f = f.again();
                }
                let now = f.attr("suid");
                is_harmless(now.size, now.perm);
                if fault != Fault::Crash && now.size == before.size {
                    cut.unwrap_err();
                    assert_eq!(now.perm, before.perm, "{fault:?} at call {n}");
                }
            }
        }
    }
}

#[test]
fn truncation_copies_only_what_stays() {
    let f = Fixture::new();
    let set = SetAttr {
        size: Some(5_000),
        ..SetAttr::default()
    };
    assert_eq!(f.fs.setattr(f.ino("big"), None, &set).unwrap().size, 5_000);
    assert_eq!(f.read("big"), big()[..5_000]);
    let set = SetAttr {
        size: Some(100),
        ..SetAttr::default()
    };
    f.fs.setattr(f.ino("a/x"), None, &set).unwrap();
    assert_eq!(f.read("a/x"), [&b"content of x\n"[..], &[0; 87]].concat());
    let handle =
        f.fs.open(f.ino("a/y"), libc::O_WRONLY | libc::O_TRUNC)
            .unwrap();
    f.fs.release(handle);
    assert_eq!((f.read("a/y"), f.attr("a/y").perm), (Vec::new(), 0o600));
}

#[test]
fn holes_stay_holes() {
    let f = Fixture::new();
    let handle = f.fs.open(f.ino("holes"), libc::O_RDWR).unwrap();
    assert_eq!(f.fs.seek(handle, 0, Seek::Data).unwrap(), 1 << 20);
    assert!(f.attr("holes").blocks < 100, "{:?}", f.attr("holes"));
    let mut buf = [1; 1024];
    assert_eq!(f.fs.read(handle, (1 << 20) - 256, &mut buf).unwrap(), 1024);
    assert_eq!(
        (&buf[..256], &buf[256..768]),
        (&[0; 256][..], &[7; 512][..])
    );
    f.fs.release(handle);
}

#[test]
fn a_reader_sees_what_a_writer_writes() {
    let f = Fixture::new();
    let reader = f.fs.open(f.ino("a/x"), libc::O_RDONLY).unwrap();
    let mut buf = [0; 7];
    f.fs.read(reader, 0, &mut buf).unwrap();
    f.write("a/x", 0, b"CONTENT");
    f.fs.read(reader, 0, &mut buf).unwrap();
    assert_eq!(&buf, b"CONTENT");
    f.fs.release(reader);
}

#[test]
fn an_unlinked_file_of_the_image_can_still_be_changed() {
    let f = Fixture::new();
    let ino = f.ino("a/x");
    let handle = f.fs.open(ino, libc::O_RDONLY).unwrap();
    f.unlink("a/x").unwrap();
    assert_eq!(f.fs.getattr(ino, Some(handle)).unwrap().nlink, 0);
    let set = SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(f.fs.setattr(ino, Some(handle), &set).unwrap().perm, 0o600);
    let mut buf = [0; 64];
    assert_eq!(f.fs.read(handle, 0, &mut buf).unwrap(), 13);
    assert!(!f.exists("a/x"));
    f.fs.release(handle);
}

#[test]
fn an_unlinked_file_of_the_upper_lives_while_it_is_known() {
    let f = Fixture::new();
    let attr = f.create("new", b"data");
    let handle = f.fs.open(Ino(attr.ino), libc::O_RDWR).unwrap();
    f.unlink("new").unwrap();
    f.fs.write(handle, 4, b"more").unwrap();
    assert_eq!(f.fs.getattr(Ino(attr.ino), None).unwrap().size, 8);
    let set = SetAttr {
        perm: Some(0o600),
        size: Some(2),
        ..SetAttr::default()
    };
    assert_eq!(f.fs.setattr(Ino(attr.ino), None, &set).unwrap().size, 2);
    assert_eq!(
        errno(f.fs.link(Ino(attr.ino), f.ino(""), &name("back"))),
        libc::ENOENT
    );
    f.fs.release(handle);
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let f = Fixture::new();
    let fs = Overlay::read_only(super::fixture::lower(f.dir.path()));
    let root = crate::overlay::ROOT_INO;
    let big = Ino(fs.lookup(root, &name("big")).unwrap().attr.ino);
    let rofs = libc::EROFS;
    assert_eq!(errno(fs.open(big, libc::O_RDWR)), rofs);
    assert_eq!(errno(fs.open(big, libc::O_TRUNC)), rofs);
    assert_eq!(errno(fs.setattr(big, None, &SetAttr::default())), rofs);
    assert_eq!(
        errno(fs.create(me(), root, &name("n"), 0o644, 0, libc::O_RDWR)),
        rofs
    );
    assert_eq!(errno(fs.unlink(root, &name("big"))), rofs);
    assert_eq!(errno(fs.rmdir(root, &name("empty"))), rofs);
    assert_eq!(
        errno(fs.rename(root, &name("big"), root, &name("n"), 0)),
        rofs
    );
    assert_eq!(errno(fs.link(big, root, &name("n"))), rofs);
    assert_eq!(errno(fs.setxattr(asker(), big, b"user.x", b"", 0)), rofs);
    assert_eq!(errno(fs.removexattr(big, b"user.note")), rofs);
    assert_eq!(fs.statfs().unwrap().bfree, 0);
}

#[test]
fn no_sync_is_needed_to_be_right() {
    let f = Fixture::new();
    let dir = f.dir.path();
    let upper = dir.join("volatile");
    std::fs::create_dir(&upper).unwrap();
    let upper = crate::upper::Upper::open(&upper, &dir.join("volatile.work")).unwrap();
    let options = Options {
        volatile: true,
        ..Options::default()
    };
    let fs = Overlay::with_upper(super::fixture::lower(dir), upper, options).unwrap();
    let big = Ino(fs
        .lookup(crate::overlay::ROOT_INO, &name("big"))
        .unwrap()
        .attr
        .ino);
    let handle = fs.open(big, libc::O_RDWR).unwrap();
    fs.fsync(handle, false).unwrap();
    fs.finish().unwrap();
    let mut buf = vec![0; 40_000];
    assert_eq!(fs.read(handle, 0, &mut buf).unwrap(), 40_000);
    assert_eq!(buf, super::fixture::big());
}
