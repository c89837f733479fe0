//! Hard links: one file through all of its names, before and after copy-up.

use super::fixture::{Fixture, errno};

const NAMES: [&str; 3] = ["link1", "a/sub/link2", "b/link3"];

fn check(f: &Fixture, names: &[&str], data: &[u8], ino: u64) {
    for path in names {
        let attr = f.attr(path);
        assert_eq!(
            (attr.ino, attr.nlink),
            (ino, u32::try_from(names.len()).unwrap()),
            "{path}"
        );
        assert_eq!(f.read(path), data, "{path}");
    }
}

#[test]
fn a_group_is_copied_up_through_all_its_names() {
    for through in NAMES {
        let f = Fixture::new();
        let ino = f.attr(through).ino;
        check(&f, &NAMES, b"one file\n", ino);
        f.write(through, 0, b"ONE");
        check(&f, &NAMES, b"ONE file\n", ino);
        let f = f.again();
        check(&f, &NAMES, b"ONE file\n", ino);
        let on_disk = std::fs::read_dir(f.dir.path().join("work/pending-links")).unwrap();
        assert_eq!(on_disk.count(), 0);
    }
}

#[test]
fn removed_names_are_counted_without_a_copy() {
    let f = Fixture::new();
    let ino = f.attr("link1").ino;
    f.unlink("link1").unwrap();
    check(&f, &NAMES[1..], b"one file\n", ino);
    assert!(!f.upper("b/link3").exists());
    let f = f.again();
    check(&f, &NAMES[1..], b"one file\n", ino);
    f.rename("big", "b/link3", 0).unwrap();
    check(&f, &NAMES[1..2], b"one file\n", ino);
    let f = f.again();
    check(&f, &NAMES[1..2], b"one file\n", ino);
    f.write("a/sub/link2", 0, b"ONE");
    check(&f, &NAMES[1..2], b"ONE file\n", ino);
}

#[test]
fn a_removed_name_changes_the_ctime_of_the_others() {
    let f = Fixture::new();
    let mut last = f.attr("link1").ctime;
    let mut later = |f: &Fixture, path: &str| {
        let now = f.attr(path).ctime;
        assert!(now > last, "{now:?} after {last:?}");
        last = now;
    };
    f.unlink("link1").unwrap();
    later(&f, "b/link3");
    f.rename("big", "b/link3", 0).unwrap();
    later(&f, "a/sub/link2");
    assert_eq!(
        f.attr("a/sub/link2").mtime,
        Fixture::new().attr("link1").mtime
    );
    f.write("a/sub/link2", 0, b"ONE");
    later(&f, "a/sub/link2");
}

#[test]
fn the_ctime_of_a_group_that_lost_names_does_not_go_back() {
    let mut f = Fixture::new();
    f.unlink("b/link3").unwrap();
    f.unlink("link1").unwrap();
    let mut last = f.attr("a/sub/link2").ctime;
    // Over a new mount, also when the directory that lost the name is no more.
    for change in ["", "b", ""] {
        if !change.is_empty() {
            f.rmdir(change).unwrap();
        }
        f = f.again();
        let now = f.attr("a/sub/link2").ctime;
        assert!(now >= last, "{now:?} after {last:?}");
        last = now;
    }
}

#[test]
fn a_group_is_found_again_after_its_directories_moved() {
    let f = Fixture::new();
    let ino = f.attr("link1").ino;
    f.rename("a", "moved", 0).unwrap();
    f.rename("moved/sub", "b/sub", 0).unwrap();
    // A new mount knows of the renames by their marks alone.
    let f = f.again();
    let names = ["link1", "b/sub/link2", "b/link3"];
    f.write("link1", 0, b"ONE");
    check(&f, &names, b"ONE file\n", ino);
    check(&f.again(), &names, b"ONE file\n", ino);
}

#[test]
fn link_counts_are_right_at_the_first_look_after_a_mount() {
    let f = Fixture::new();
    f.rename("a", "moved", 0).unwrap();
    f.unlink("moved/sub/link2").unwrap();
    let f = f.again();
    assert_eq!(f.attr("link1").nlink, 2);
}

#[test]
fn new_names_of_an_image_s_file() {
    let f = Fixture::new();
    let ino = f.attr("a/x").ino;
    f.link("a/x", "b/x2").unwrap();
    f.unlink("link1").unwrap();
    // Over a whiteout.
    f.link("a/x", "link1").unwrap();
    assert_eq!(errno(f.link("a/x", "big")), libc::EEXIST);
    assert_eq!(errno(f.link("a", "dir2")), libc::EPERM);
    let names = ["a/x", "b/x2", "link1"];
    check(&f, &names, b"content of x\n", ino);
    let f = f.again();
    check(&f, &names, b"content of x\n", ino);
    f.unlink("a/x").unwrap();
    f.write("b/x2", 0, b"CONTENT");
    check(&f, &names[1..], b"CONTENT of x\n", ino);
    f.rename("link1", "b/x2", 0).unwrap();
    assert!(
        f.exists("link1"),
        "two names of one file: rename does nothing"
    );
}

#[test]
fn a_killed_copy_up_of_a_group_is_finished_by_the_next_mount() {
    let f = Fixture::new();
    let ino = f.attr("link1").ino;
    f.write("link1", 0, b"ONE");
    // As if the process had died after the first name: the second and third are the image's
    // again, and the group is still noted as pending.
    let upper = |path| f.upper(path);
    let pending = f
        .dir
        .path()
        .join("work/pending-links")
        .join(format!("{ino}.{:016x}", f.fs.lower().fingerprint()));
    std::fs::hard_link(upper("link1"), pending).unwrap();
    std::fs::remove_file(upper("a/sub/link2")).unwrap();
    std::fs::remove_file(upper("b/link3")).unwrap();
    check(&f.again(), &NAMES, b"ONE file\n", ino);
}

#[test]
fn a_number_of_another_index_means_nothing() {
    let f = Fixture::new();
    let (x, y) = (f.attr("a/x").ino, f.attr("a/y").ino);
    f.write("a/x", 0, b"X");
    // As an upper that was written over an index in which /a/x had the number that /a/y has here.
    let space = if f.fs.marks().unwrap() == crate::upper::markers::Namespace::Trusted {
        "trusted"
    } else {
        "user"
    };
    let key = format!("{space}.tarnfs.ino");
    let file = std::fs::File::open(f.upper("a/x")).unwrap();
    let fd = std::os::fd::AsFd::as_fd(&file);
    let other = f.fs.lower().fingerprint() ^ 1;
    crate::sys::fs::setxattr(
        fd,
        key.as_bytes(),
        format!("{y}.{other:016x}").as_bytes(),
        0,
    )
    .unwrap();
    let f = f.again();
    assert_eq!(f.read("a/x"), b"Xontent of x\n");
    assert_eq!(f.read("a/y"), b"content of y\n");
    assert!(![x, y].contains(&f.attr("a/x").ino));
    assert_eq!(f.attr("a/y").ino, y);
}
