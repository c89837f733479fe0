//! Files whose names go while they are in use: what is open stays that file, whichever of its names
//! have been looked up since the mount.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fixture::{Fixture, asker, errno, name};
use super::races::at_once;
use crate::overlay::{Handle, Ino, ROOT_INO, SetAttr};
use crate::sys::faults;

/// A file of the image and one of the upper, each with three names.
const GROUPS: [[&str; 3]; 2] = [
    ["link1", "a/sub/link2", "b/link3"],
    ["new1", "a/sub/new2", "b/new3"],
];

/// Both groups in the upper, and no name of either looked up yet.
fn mounted_anew() -> Fixture {
    let f = Fixture::new();
    f.write("link1", 0, b"one");
    f.create("new1", b"one file\n");
    f.link("new1", "a/sub/new2").unwrap();
    f.link("new1", "b/new3").unwrap();
    f.again()
}

/// Everything that an open descriptor is good for.
fn in_use(f: &Fixture, ino: Ino, handle: Handle, nlink: u32, what: &str) {
    for handle in [None, Some(handle)] {
        let attr = f.fs.getattr(ino, handle);
        let attr = attr.unwrap_or_else(|error| panic!("{what}: fstat: {error}"));
        assert_eq!((attr.ino, attr.nlink), (ino.0, nlink), "{what}");
    }
    let set = SetAttr {
        perm: Some(0o640),
        ..SetAttr::default()
    };
    let set = f.fs.setattr(ino, Some(handle), &set);
    set.unwrap_or_else(|error| panic!("{what}: fchmod: {error}"));
    f.fs.write(handle, 0, b"one").unwrap();
    let again = f.fs.open(ino, libc::O_RDWR);
    let again = again.unwrap_or_else(|error| panic!("{what}: open: {error}"));
    let mut data = [0; 16];
    assert_eq!(f.fs.read(again, 0, &mut data).unwrap(), 9, "{what}");
    f.fs.release(again);
    // As for a descriptor of /proc/self/fd: link(2) with AT_SYMLINK_FOLLOW.
    let back = name("back");
    let linked = f.fs.link(ino, ROOT_INO, &back);
    if nlink > 0 {
        let linked = linked.unwrap_or_else(|error| panic!("{what}: link: {error}"));
        assert_eq!((linked.attr.ino, linked.attr.nlink), (ino.0, nlink + 1));
        f.fs.unlink(ROOT_INO, &back).unwrap();
    } else {
        assert_eq!(errno(linked), libc::ENOENT, "{what}");
    }
}

const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

#[test]
fn regression_an_open_file_outlives_its_names_in_any_order() {
    // A name of an earlier mount that came to be known late took away what led to the file.
    for group in GROUPS {
        for order in ORDERS {
            for opened in group {
                // Which of the other names are looked up after each removal.
                for looked_up in 0..8_usize {
                    let what = format!("{opened} of {order:?}, {looked_up:03b}");
                    let f = mounted_anew();
                    let ino = f.ino(opened);
                    let handle = f.fs.open(ino, libc::O_RDWR).unwrap();
                    for (gone, path) in order.map(|at| group[at]).into_iter().enumerate() {
                        match (looked_up + gone).is_multiple_of(2) {
                            true => f.unlink(path).unwrap(),
                            false => {
                                f.create("other", b"");
                                f.rename("other", path, 0).unwrap();
                            }
                        }
                        for (at, path) in order.map(|at| group[at]).into_iter().enumerate() {
                            if at > gone && looked_up & (1 << at) != 0 {
                                assert_eq!(f.attr(path).ino, ino.0, "{what}");
                            }
                        }
                        in_use(&f, ino, handle, 2 - u32::try_from(gone).unwrap(), &what);
                        f.fs.forget(ino, 1);
                    }
                    f.fs.release(handle);
                }
            }
        }
    }
}

#[test]
fn regression_names_that_go_at_once_leave_an_open_file() {
    // Each removal saw another name left, and so none kept what leads to the file.
    for _ in 0..100 {
        let f = Fixture::new();
        let ino = Ino(f.create("n0", b"one file\n").ino);
        let dirs: Vec<Ino> = (0..8).map(|i| Ino(f.mkdir(&format!("d{i}")).ino)).collect();
        for dir in &dirs {
            f.fs.link(ino, *dir, &name("n")).unwrap();
        }
        f.unlink("n0").unwrap();
        let handle = f.fs.open(ino, libc::O_RDWR).unwrap();
        let unlink = |at: usize| f.fs.unlink(dirs[at], &name("n")).unwrap();
        at_once(&[
            &|| unlink(0),
            &|| unlink(1),
            &|| unlink(2),
            &|| unlink(3),
            &|| unlink(4),
            &|| unlink(5),
            &|| unlink(6),
            &|| unlink(7),
        ]);
        in_use(&f, ino, handle, 0, "all names at once");
        f.fs.release(handle);
    }
}

#[test]
fn regression_a_directory_that_goes_while_a_group_is_copied_up() {
    // The writer of another name got ESTALE.
    let f = Arc::new(Fixture::new());
    f.chmod("a", 0o700);
    let (looking, ran) = (Arc::clone(&f), Arc::new(AtomicBool::new(false)));
    let runs = Arc::clone(&ran);
    // While /b is copied up: after it was asked which names there are, and before /a/sub is.
    faults::watch(move || {
        if runs.swap(true, Ordering::SeqCst) {
            return;
        }
        let f = Arc::clone(&looking);
        let removing = std::thread::spawn(move || {
            let dir = f.ino("a/sub");
            f.unlink("a/sub/link2").unwrap();
            f.unlink("a/sub/deep").unwrap();
            f.rmdir("a/sub").unwrap();
            f.fs.forget(dir, u64::MAX);
        });
        removing.join().unwrap();
    });
    let handle = f.fs.open(f.ino("link1"), libc::O_RDWR);
    faults::unwatch();
    assert!(ran.load(Ordering::SeqCst));
    f.fs.release(handle.unwrap());
    assert_eq!(f.attr("link1").nlink, 2);
}

/// The kernel has judged who may do what by the owner and the mode of the file that it knows. Who
/// can write to a directory of the upper without the mount could put another's file in its place.
#[test]
fn regression_what_was_put_in_place_of_a_file_behind_the_mount_is_not_opened() {
    let f = Fixture::new();
    f.mkdir("d");
    f.create("d/known", b"known\n");
    f.mkdir("d/sub");
    f.create("d/sub/inner", b"inner\n");
    let f = f.again();
    let (known, inner) = (f.ino("d/known"), f.ino("d/sub/inner"));
    std::fs::write(f.upper("d/secret"), b"secret\n").unwrap();
    std::fs::rename(f.upper("d/secret"), f.upper("d/known")).unwrap();
    let before = std::fs::metadata(f.upper("d/known")).unwrap();
    for flags in [
        libc::O_RDONLY,
        libc::O_RDWR,
        libc::O_WRONLY,
        libc::O_RDWR | libc::O_TRUNC,
    ] {
        assert_eq!(errno(f.fs.open(known, flags)), libc::ESTALE, "{flags:#o}");
    }
    let sets = [
        SetAttr {
            perm: Some(0o4777),
            ..SetAttr::default()
        },
        SetAttr {
            size: Some(0),
            ..SetAttr::default()
        },
    ];
    for set in &sets {
        assert_eq!(errno(f.fs.setattr(known, None, set)), libc::ESTALE);
    }
    let attribute = f.fs.setxattr(asker(), known, b"user.x", b"y", 0);
    assert_eq!(errno(attribute), libc::ESTALE);
    assert_eq!(
        errno(f.fs.link(known, ROOT_INO, &name("more"))),
        libc::ESTALE
    );
    assert_eq!(errno(f.fs.getattr(known, None)), libc::ESTALE);
    let after = std::fs::metadata(f.upper("d/known")).unwrap();
    assert_eq!(std::fs::read(f.upper("d/known")).unwrap(), b"secret\n");
    assert_eq!((after.mode(), after.nlink()), (before.mode(), 1));
    // What is where it was is found as ever.
    let handle = f.fs.open(inner, libc::O_RDWR).unwrap();
    f.fs.release(handle);
}
