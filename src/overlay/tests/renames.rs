//! rename(2) and its flags, over every kind of place.

use std::fs::File;
use std::os::fd::AsFd;

use super::fixture::{Fixture, errno, is_whiteout, mark};
use crate::sys::fs as sys;
use crate::upper::markers::Namespace;

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;
const WHITEOUT: u32 = 4;

#[test]
fn a_file_of_the_image_moves_with_its_number() {
    let f = Fixture::new();
    let ino = f.ino("a/x");
    f.rename("a/x", "b/x2", 0).unwrap();
    assert!(is_whiteout(&f.upper("a/x")));
    assert_eq!(
        (f.ino("b/x2"), f.read("b/x2")),
        (ino, b"content of x\n".to_vec())
    );
    assert!(!f.exists("a/x"));
    let f = f.again();
    assert_eq!(
        (f.ino("b/x2"), f.read("b/x2")),
        (ino, b"content of x\n".to_vec())
    );
    assert_eq!(f.ls("b"), ["link3", "x2"]);
}

#[test]
fn a_directory_of_the_image_moves_with_all_it_holds() {
    let f = Fixture::new();
    let (dir, deep) = (f.ino("a"), f.ino("a/sub/deep"));
    f.rename("a", "b/moved", 0).unwrap();
    let check = |f: &Fixture| {
        assert!(!f.exists("a"));
        assert_eq!(f.ls("b/moved"), ["sub", "x", "y"]);
        assert_eq!((f.ino("b/moved"), f.ino("b/moved/sub/deep")), (dir, deep));
        assert_eq!(f.read("b/moved/sub/deep"), b"deep\n");
    };
    check(&f);
    assert_eq!(
        mark(&f.upper("b/moved"), "overlay.redirect").unwrap(),
        b"/a"
    );
    let f = f.again();
    check(&f);
    // And what lies below can still be copied up, by number.
    f.write("b/moved/sub/deep", 0, b"DEEP");
    assert!(f.upper("b/moved/sub/deep").exists());
    f.rename("b/moved", "a", 0).unwrap();
    let f = f.again();
    assert_eq!(
        (f.ino("a"), f.read("a/sub/deep")),
        (dir, b"DEEP\n".to_vec())
    );
}

#[test]
fn a_renamed_directory_in_its_parent_notes_its_old_name() {
    let f = Fixture::new();
    f.rename("a/sub", "a/sub2", 0).unwrap();
    assert_eq!(
        mark(&f.upper("a/sub2"), "overlay.redirect").unwrap(),
        b"sub"
    );
    f.rename("a", "z", 0).unwrap();
    let f = f.again();
    assert_eq!(f.read("z/sub2/deep"), b"deep\n");
    f.rename("z/sub2", "top", 0).unwrap();
    assert_eq!(
        mark(&f.upper("top"), "overlay.redirect").unwrap(),
        b"/a/sub"
    );
    assert_eq!(f.again().ls("top"), ["deep", "link2"]);
}

#[test]
fn a_new_directory_hides_the_one_it_replaces() {
    let f = Fixture::new();
    f.mkdir("new");
    f.create("new/mine", b"");
    f.unlink("a/sub/deep").unwrap();
    f.unlink("a/sub/link2").unwrap();
    // Over a directory that is empty but for whiteouts.
    f.rename("new", "a/sub", 0).unwrap();
    assert_eq!(f.ls("a/sub"), ["mine"]);
    // Over one that only the image holds.
    f.mkdir("other");
    f.rename("other", "empty", 0).unwrap();
    assert_eq!(f.ls("empty"), [""; 0]);
    let f = f.again();
    assert_eq!(
        (f.ls("a/sub"), f.ls("empty")),
        (vec!["mine".to_owned()], vec![])
    );
    assert_eq!(mark(&f.upper("a/sub"), "overlay.opaque").unwrap(), b"y");
}

#[test]
fn over_a_whiteout() {
    let f = Fixture::new();
    f.unlink("big").unwrap();
    f.rmdir("empty").unwrap();
    f.mkdir("d");
    f.create("d/in", b"");
    f.rename("d", "empty", 0).unwrap();
    assert_eq!(f.ls("empty"), ["in"]);
    assert!(
        std::fs::symlink_metadata(f.upper("d")).is_err(),
        "no stray whiteout"
    );
    f.rename("a", "big", 0).unwrap();
    assert!(is_whiteout(&f.upper("a")));
    let f = f.again();
    assert_eq!(
        (f.ls("big"), f.ls("empty")),
        (
            vec!["sub".to_owned(), "x".into(), "y".into()],
            vec!["in".to_owned()]
        )
    );
    assert!(!f.exists("a"));
}

#[test]
fn what_is_in_the_way() {
    let f = Fixture::new();
    assert_eq!(errno(f.rename("empty", "a", 0)), libc::ENOTEMPTY);
    assert_eq!(errno(f.rename("a", "big", 0)), libc::ENOTDIR);
    assert_eq!(errno(f.rename("big", "a", 0)), libc::EISDIR);
    assert_eq!(errno(f.rename("nothing", "b", 0)), libc::ENOENT);
    assert_eq!(errno(f.rename("big", "suid", NOREPLACE)), libc::EEXIST);
    assert_eq!(errno(f.rename("big", "nothing", EXCHANGE)), libc::ENOENT);
    assert_eq!(errno(f.rename("big", "nothing", WHITEOUT)), libc::EINVAL);
    assert_eq!(
        errno(f.rename("big", "nothing", NOREPLACE | EXCHANGE)),
        libc::EINVAL
    );
    f.rename("big", "nothing", NOREPLACE).unwrap();
    f.rename("suid", "big", NOREPLACE).unwrap();
    assert_eq!(f.attr("big").perm, 0o4755);
}

#[test]
fn a_file_over_a_file() {
    let f = Fixture::new();
    let (x, y) = (f.ino("a/x"), f.ino("a/y"));
    let held = f.fs.open(y, libc::O_RDONLY).unwrap();
    f.rename("a/x", "a/y", 0).unwrap();
    assert_eq!(
        (f.ino("a/y"), f.read("a/y")),
        (x, b"content of x\n".to_vec())
    );
    let mut buf = [0; 32];
    assert_eq!(f.fs.read(held, 0, &mut buf).unwrap(), 13);
    assert_eq!(&buf[..13], b"content of y\n");
    assert_eq!(f.fs.getattr(y, Some(held)).unwrap().nlink, 0);
    f.create("new", b"new");
    f.create("old", b"old");
    let old = f.fs.open(f.ino("old"), libc::O_RDWR).unwrap();
    f.rename("new", "old", 0).unwrap();
    f.fs.write(old, 0, b"OLD").unwrap();
    assert_eq!(f.read("old"), b"new");
    assert_eq!(f.again().ls("a"), ["sub", "y"]);
}

#[test]
fn exchange_of_all_kinds() {
    let f = Fixture::new();
    let (a, big, b) = (f.ino("a"), f.ino("big"), f.ino("b"));
    f.rename("a", "big", EXCHANGE).unwrap();
    assert_eq!((f.ino("a"), f.ino("big")), (big, a));
    f.rename("big", "b", EXCHANGE).unwrap();
    assert_eq!((f.ino("b"), f.ino("big")), (a, b));
    f.mkdir("new");
    f.create("new/n", b"");
    f.rename("new", "b", EXCHANGE).unwrap();
    let f = f.again();
    assert_eq!(f.ls("new"), ["sub", "x", "y"]);
    assert_eq!(f.ls("b"), ["n"]);
    assert_eq!(f.ls("big"), ["link3"]);
    assert_eq!(f.read("a").len(), 40_000);
    assert_eq!((f.ino("new"), f.ino("a"), f.ino("big")), (a, big, b));
}

#[test]
fn link_counts_of_directories_follow() {
    let f = Fixture::new();
    assert_eq!(
        (f.attr("a").nlink, f.attr("b").nlink, f.attr("").nlink),
        (3, 2, 5)
    );
    f.rename("a/sub", "b/sub", 0).unwrap();
    assert_eq!((f.attr("a").nlink, f.attr("b").nlink), (2, 3));
    f.mkdir("b/more");
    assert_eq!(f.attr("b").nlink, 4);
    f.rename("empty", "b/more", 0).unwrap();
    assert_eq!((f.attr("b").nlink, f.attr("").nlink), (4, 4));
    let f = f.again();
    assert_eq!(
        (f.attr("a").nlink, f.attr("b").nlink, f.attr("").nlink),
        (2, 4, 4)
    );
}

/// Whiteouts as they are written for nesting: empty regular files with a mark, in a directory that
/// is marked as holding such. Elsewhere they would be files.
#[test]
fn regression_a_whiteout_of_the_other_kind_does_not_stay_behind_as_a_file() {
    let f = Fixture::new();
    f.write("a/x", 0, b"X");
    f.unlink("a/y").unwrap();
    f.mkdir("plain");
    let Fixture { dir, fs } = f;
    let upper = dir.path().join("upper");
    let space = fs.marks().unwrap();
    drop(fs);
    let prefix = match space {
        Namespace::Trusted => "trusted",
        Namespace::User => "user",
    };
    let set = |path: &str, key: &str, value: &[u8]| {
        let file = File::open(upper.join(path)).unwrap();
        let key = format!("{prefix}.overlay.{key}");
        sys::setxattr(file.as_fd(), key.as_bytes(), value, 0).unwrap();
    };
    std::fs::remove_file(upper.join("a/y")).unwrap();
    std::fs::write(upper.join("a/y"), b"").unwrap();
    set("a/y", "whiteout", b"y");
    set("a", "opaque", b"x");
    let f = Fixture::reopen(dir);
    assert_eq!(f.ls("a"), ["sub", "x"]);
    f.rename("b", "a/y", 0).unwrap();
    f.rename("plain", "b", 0).unwrap();
    f.unlink("a/x").unwrap();
    f.rmdir("b").unwrap();
    let check = |f: &Fixture| {
        assert!(!f.exists("b") && !f.exists("plain"));
        assert_eq!(
            (f.ls("a"), f.ls("a/y")),
            (vec!["sub".into(), "y".into()], vec!["link3".into()])
        );
    };
    check(&f);
    check(&f.again());
}
