//! Tests of the upper directory.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::markers::{ImageId, Namespace, Opaque, Redirect, is_whiteout_device};
use super::work::{Blank, remove_tree};
use super::{Upper, UpperError};
use crate::inode::Kind;
use crate::sys::faults::{self, Fault};
use crate::sys::fs;

fn open(dir: &Path) -> Upper {
    match std::fs::create_dir(dir.join("upper")) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists),
    }
    Upper::open(&dir.join("upper"), &dir.join("work")).unwrap()
}

/// Runs `f` in a thread that cannot see attributes in `trusted.`.
pub(crate) fn without_root<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    std::thread::scope(|scope| {
        let less = || {
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::SYS_ADMIN);
            set_capabilities(None, sets).unwrap();
            f()
        };
        scope.spawn(less).join().unwrap()
    })
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn work_is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("work/work"))
        .unwrap()
        .next()
        .is_none()
}

#[test]
fn regression_work_is_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let _upper = open(dir.path());
    for work in ["work", "work/work"] {
        let mode = std::fs::metadata(dir.path().join(work)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o700, "{work}");
    }
}

#[test]
fn an_entry_appears_by_one_rename_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let upper = open(dir.path());
    drop(upper.temp(Blank::File).unwrap());
    drop(upper.temp(Blank::Dir).unwrap());
    drop(upper.temp(Blank::Symlink(b"somewhere")).unwrap());
    assert!(work_is_empty(dir.path()));
    upper
        .temp(Blank::File)
        .unwrap()
        .publish(upper.root(), b"f")
        .unwrap();
    let taken = upper.temp(Blank::Dir).unwrap().publish(upper.root(), b"f");
    assert_eq!(taken.unwrap_err(), Errno::EXIST);
    upper
        .temp(Blank::Symlink(b"s"))
        .unwrap()
        .replace(upper.root(), b"f")
        .unwrap();
    assert!(dir.path().join("upper/f").is_symlink());
    upper
        .temp(Blank::Dir)
        .unwrap()
        .exchange(upper.root(), b"f")
        .unwrap();
    assert!(dir.path().join("upper/f").is_dir());
    upper.discard(upper.root(), b"f").unwrap();
    assert!(!dir.path().join("upper/f").exists());
    let orphan = upper.temp(Blank::File).unwrap().orphan().unwrap();
    assert_eq!(fs::fstat(orphan.as_fd()).unwrap().attr.nlink, 0);
    assert!(work_is_empty(dir.path()));
}

#[test]
fn marks_are_read_as_they_were_set() {
    let dir = tempfile::tempdir().unwrap();
    let upper = open(dir.path());
    let marks = upper.marks();
    let made = upper.temp(Blank::Dir).unwrap();
    let fd = made.fd();
    assert_eq!(marks.opaque(fd), Ok(Opaque::No));
    assert_eq!(
        (
            marks.redirect(fd),
            marks.impure(fd),
            marks.ino(fd, ImageId(5))
        ),
        (Ok(None), Ok(false), Ok(None))
    );
    marks.set_opaque(fd).unwrap();
    marks.set_impure(fd).unwrap();
    marks.set_ino(fd, Kind::Dir, 77, ImageId(5)).unwrap();
    assert_eq!(
        (
            marks.opaque(fd),
            marks.impure(fd),
            marks.ino(fd, ImageId(5))
        ),
        (Ok(Opaque::Yes), Ok(true), Ok(Some(77)))
    );
    for redirect in [
        Redirect::Sibling(b"old".to_vec()),
        Redirect::Absolute(b"a/b".to_vec()),
    ] {
        marks.set_redirect(fd, &redirect).unwrap();
        assert_eq!(marks.redirect(fd), Ok(Some(redirect)));
    }
}

#[test]
fn regression_a_redirect_that_cannot_be_noted_is_exdev() {
    let dir = tempfile::tempdir().unwrap();
    let upper = open(dir.path());
    let path = |len: usize| Redirect::Absolute(vec![b'x'; len]);
    let long = Redirect::Sibling(vec![b'x'; 255]);
    assert!(!long.is_long() && !path(255).is_long() && path(256).is_long());
    for fits in [long, path(255), path(900)] {
        upper.can_redirect(&fits).unwrap();
    }
    // XATTR_SIZE_MAX, on any filesystem.
    assert_eq!(upper.can_redirect(&path(65_536)), Err(Errno::XDEV));
    let made = upper.temp(Blank::Dir).unwrap();
    let set = upper.marks().set_redirect(made.fd(), &path(65_536));
    assert_eq!(set, Err(Errno::XDEV));
    drop(made);
    assert!(work_is_empty(dir.path()));
}

#[test]
fn an_unreadable_mark_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let upper = open(dir.path());
    let made = upper.temp(Blank::Dir).unwrap();
    let space = if upper.unprivileged() {
        "user"
    } else {
        "trusted"
    };
    let set = |key: &str, value: &[u8]| {
        fs::setxattr(made.fd(), format!("{space}.{key}").as_bytes(), value, 0).unwrap();
    };
    for bad in [&b""[..], b"a/b", b"a\0b"] {
        set("overlay.redirect", bad);
        assert_eq!(upper.marks().redirect(made.fd()), Err(Errno::IO), "{bad:?}");
    }
    for bad in [&b""[..], b"-1", b"x", b"\xff", b"99999999999999999999"] {
        set("tarnfs.ino", bad);
        assert_eq!(
            upper.marks().ino(made.fd(), ImageId(5)),
            Err(Errno::IO),
            "{bad:?}"
        );
    }
}

#[test]
fn both_kinds_of_whiteout_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let upper = open(dir.path());
    let marks = upper.marks();
    upper.whiteout(upper.root(), b"device").unwrap();
    let stat = fs::stat(upper.root(), b"device").unwrap();
    assert!(is_whiteout_device(&stat));
    assert_eq!(
        marks.is_whiteout(upper.root(), b"device", &stat, Opaque::No),
        Ok(true)
    );
    let meta = std::fs::symlink_metadata(dir.path().join("upper/device")).unwrap();
    assert!(meta.file_type().is_char_device() && meta.rdev() == 0);
    let made = upper.temp(Blank::File).unwrap();
    let space = if upper.unprivileged() {
        "user"
    } else {
        "trusted"
    };
    fs::setxattr(
        made.fd(),
        format!("{space}.overlay.whiteout").as_bytes(),
        b"y",
        0,
    )
    .unwrap();
    made.publish(upper.root(), b"file").unwrap();
    let stat = fs::stat(upper.root(), b"file").unwrap();
    assert_eq!(
        marks.is_whiteout(upper.root(), b"file", &stat, Opaque::No),
        Ok(false)
    );
    assert_eq!(
        marks.is_whiteout(upper.root(), b"file", &stat, Opaque::XWhiteouts),
        Ok(true)
    );
}

#[test]
fn leftovers_of_a_killed_mount_are_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("work/work");
    std::fs::create_dir_all(work.join("#3/deep/deeper")).unwrap();
    set_mode(&work, 0o700);
    std::fs::write(work.join("#3/deep/file"), b"").unwrap();
    std::fs::write(dir.path().join("outside"), b"kept").unwrap();
    symlink(dir.path().join("outside"), work.join("#4")).unwrap();
    symlink(dir.path(), work.join("#3/up")).unwrap();
    drop(open(dir.path()));
    assert!(work_is_empty(dir.path()));
    assert_eq!(std::fs::read(dir.path().join("outside")).unwrap(), b"kept");
}

#[test]
fn removal_copes_with_any_depth_and_with_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::File::open(dir.path()).unwrap();
    remove_tree(root.as_fd(), b"nothing").unwrap();
    let mut at: std::os::fd::OwnedFd = root.try_clone().unwrap().into();
    for _ in 0..3_000 {
        fs::mkdir(at.as_fd(), b"d", 0o700).unwrap();
        at = fs::open(at.as_fd(), b"d", OFlags::PATH | OFlags::DIRECTORY, 0).unwrap();
    }
    drop(at);
    remove_tree(root.as_fd(), b"d").unwrap();
    assert!(!dir.path().join("d").exists());
}

#[test]
fn a_planted_symbolic_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let upper = open(dir.path());
    symlink("/", dir.path().join("upper/out")).unwrap();
    for path in [&b"out"[..], b"out/etc", b"..", b"../work", b"/etc"] {
        let opened = fs::open(upper.root(), path, OFlags::RDONLY | OFlags::DIRECTORY, 0);
        assert!(
            matches!(opened, Err(Errno::LOOP | Errno::XDEV | Errno::NOTDIR)),
            "{:?}: {opened:?}",
            String::from_utf8_lossy(path)
        );
    }
}

#[test]
fn regression_a_name_that_is_moved_out_while_it_is_opened_is_there_or_not() {
    // The kernel looks once more at the end whether it is still beneath, and says EXDEV if not.
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let upper = open(dir.path());
    let at = |path: &str| dir.path().join("upper").join(path);
    std::fs::create_dir_all(at("here/d")).unwrap();
    std::fs::create_dir(at("there")).unwrap();
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let here = fs::open(upper.root(), b"here", flags, 0).unwrap();
    faults::plan(1, Fault::Blind(Errno::XDEV));
    let opened = fs::open(here.as_fd(), b"d", flags, 0).map(|_| ());
    assert!(faults::end());
    assert_eq!(opened, Ok(()));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::fs::rename(at("here/d"), at("there/d")).unwrap();
                std::fs::rename(at("there/d"), at("here/d")).unwrap();
            }
        });
        let odd = (0..20_000).find_map(|_| {
            let opened = fs::open(here.as_fd(), b"d", flags, 0);
            opened.err().filter(|&errno| errno != Errno::NOENT)
        });
        done.store(true, Ordering::Relaxed);
        assert_eq!(odd, None);
    });
}

#[test]
fn what_is_no_directory_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"").unwrap();
    let open = |upper: &str, work: &str| {
        Upper::open(&dir.path().join(upper), &dir.path().join(work)).unwrap_err()
    };
    let error = open("file", "work");
    assert!(
        matches!(error, UpperError::Io { .. }) && error.to_string().contains("file"),
        "{error}"
    );
    std::fs::create_dir(dir.path().join("upper")).unwrap();
    assert!(open("upper", "file").to_string().contains("file"));
    assert!(open("upper", "none/work").to_string().contains("none/work"));
}

#[test]
fn whiteouts_share_one_inode() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("upper")).unwrap();
    let ino = |name: &str| {
        let meta = std::fs::symlink_metadata(dir.path().join("upper").join(name)).unwrap();
        assert_eq!(meta.rdev(), 0, "{name}");
        meta.ino()
    };
    {
        let upper = open(dir.path());
        upper.whiteout(upper.root(), b"one").unwrap();
        std::fs::write(dir.path().join("upper/two"), "").unwrap();
        upper.replace_by_whiteout(upper.root(), b"two").unwrap();
        assert_eq!(ino("one"), ino("two"));
        let taken = upper.whiteout(upper.root(), b"two").unwrap_err();
        assert_eq!(taken, rustix::io::Errno::EXIST);
    }
    let upper = open(dir.path());
    upper.whiteout(upper.root(), b"three").unwrap();
    assert_eq!(ino("one"), ino("three"));
}

/// Everything below a directory.
fn below(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            all.extend(below(&entry.path()));
        }
        all.push(entry.path());
    }
    all.sort();
    all
}

#[test]
fn regression_a_directory_that_is_no_work_directory_keeps_what_it_holds() {
    // What is planted, the mode of work/, and what the refusal names.
    let cases = [
        ("work/notes.txt", 0o700, "work/notes.txt"),
        ("work/#3/deep", 0o755, "work"),
        ("work/#x", 0o700, "work/#x"),
        ("work", 0, "work"),
        ("notes.txt", 0, "notes.txt"),
        ("src/work", 0, "src"),
        ("index", 0, "index"),
        ("whiteout/no", 0, "whiteout"),
        ("pending-links/1.2/no", 0, ""),
        ("pending-links/notes.txt", 0, "pending-links"),
        (
            "work/incompat/volatile/dirty",
            0o700,
            "work/incompat/volatile",
        ),
    ];
    for (planted, mode, named) in cases {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir(dir.path().join("upper")).unwrap();
        std::fs::create_dir_all(work.join(planted).parent().unwrap()).unwrap();
        std::fs::write(work.join(planted), "mine").unwrap();
        if mode != 0 {
            set_mode(&work.join("work"), mode);
        }
        let before = below(&work);
        let opened = Upper::open(&dir.path().join("upper"), &work);
        if named.is_empty() {
            opened.unwrap();
            continue;
        }
        let said = opened.unwrap_err().to_string();
        assert!(
            said.contains(named) && !said.contains('\n'),
            "{planted}: {said}"
        );
        assert_eq!(below(&work), before, "{planted}");
    }
}

#[test]
fn work_directories_of_overlayfs_are_known() {
    for (made, mode) in [
        ("", 0o755),
        ("work", 0),
        ("work", 0o755),
        ("work/#a", 0),
        ("work/incompat", 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir_all(work.join(made)).unwrap();
        std::fs::create_dir_all(work.join("index")).unwrap();
        if !made.is_empty() {
            set_mode(&work.join("work"), mode);
        }
        drop(open(dir.path()));
        assert!(work_is_empty(dir.path()), "{made}");
    }
}

/// An upper that holds `upper/d/e` and `upper/f`, with these attributes on these of them.
fn marked(marks: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("upper/d/e")).unwrap();
    std::fs::write(dir.path().join("upper/f"), "").unwrap();
    for (path, name) in marks {
        let dir = std::fs::File::open(dir.path().join(path)).unwrap();
        fs::setxattr(dir.as_fd(), name.as_bytes(), b"y", 0).unwrap();
    }
    dir
}

#[test]
fn the_namespace_of_the_marks_that_are_there_is_used() {
    let root = !open(tempfile::tempdir().unwrap().path()).unprivileged();
    let own = match root {
        true => Namespace::Trusted,
        false => Namespace::User,
    };
    for (marks, used) in [
        (&[][..], own),
        (&[("upper", "user.overlay.uuid")], Namespace::User),
        (&[("upper", "user.tarnfs.ino")], Namespace::User),
        (&[("upper/d/e", "user.overlay.opaque")], Namespace::User),
        (&[("upper/d/e", "user.overlayer")], own),
    ] {
        assert_eq!(open(marked(marks).path()).marks(), used, "{marks:?}");
    }
    if !root {
        return;
    }
    // A program inside root's overlayfs could have set the others.
    for marks in [
        &[
            ("upper", "trusted.overlay.uuid"),
            ("upper", "user.overlay.uuid"),
        ],
        &[
            ("upper/d/e", "trusted.overlay.opaque"),
            ("upper/d", "user.overlay.opaque"),
        ],
    ] {
        assert_eq!(open(marked(marks).path()).marks(), own, "{marks:?}");
    }
}

fn plant_whiteout(dir: &tempfile::TempDir) {
    let at = std::fs::File::open(dir.path().join("upper/d")).unwrap();
    fs::mknod(at.as_fd(), b"w", Kind::Char, 0, 0).unwrap();
}

#[test]
fn marks_that_only_root_can_read_are_not_passed_over() {
    let open = |dir: &tempfile::TempDir| {
        let dir = dir.path();
        without_root(|| Upper::open(&dir.join("upper"), &dir.join("work")))
    };
    // One's own files, and marks that say whose they are.
    assert_eq!(open(&marked(&[])).unwrap().marks(), Namespace::User);
    let dir = marked(&[("upper", "user.overlay.impure")]);
    plant_whiteout(&dir);
    assert_eq!(open(&dir).unwrap().marks(), Namespace::User);
    // A whiteout whose writer nothing tells.
    let dir = marked(&[]);
    plant_whiteout(&dir);
    let said = open(&dir).unwrap_err().to_string();
    assert!(said.contains("mount it as root"), "{said}");
    if rustix::process::geteuid().is_root() {
        let dir = marked(&[("upper", "trusted.tarnfs.ino")]);
        std::os::unix::fs::chown(dir.path().join("upper/d"), Some(70_000), None).unwrap();
        assert!(open(&dir).is_err());
    }
}

/// Root's mount leaves directories in the work directory that its owner cannot look into.
#[test]
fn the_owner_of_a_work_directory_gets_it_back() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let outcome = |planted: &str, mode: u32, owner: u32| {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir(dir.path().join("upper")).unwrap();
        std::fs::create_dir_all(work.join(planted)).unwrap();
        std::fs::create_dir_all(work.join("pending-links")).unwrap();
        for (path, mode, owner) in [
            ("upper", 0o755, 1000),
            ("work", 0o755, 1000),
            ("work/pending-links", 0o700, 0),
            ("work/work", mode, owner),
            ("", 0o755, 1000),
        ] {
            let path = dir.path().join(path);
            std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
            set_mode(&path, mode);
        }
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                let user = rustix::fs::Uid::from_raw(1000);
                rustix::thread::set_thread_uid(user).unwrap();
                Upper::open(&dir.path().join("upper"), &work).map(|_| ())
            });
            opened.join().unwrap()
        })
    };
    outcome("work", 0o700, 0).unwrap();
    outcome("work", 0, 1000).unwrap();
    outcome("work/#1", 0, 1000).unwrap();
    let said = outcome("work/#1", 0o700, 0).unwrap_err().to_string();
    assert!(said.contains("Permission denied"), "{said}");
}

#[test]
fn regression_a_work_directory_of_somebody_else_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can make files of others");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
    std::fs::create_dir(&upper).unwrap();
    std::fs::create_dir_all(work.join("pending-links")).unwrap();
    std::fs::write(work.join("pending-links/7.0000000000000001"), b"mine").unwrap();
    std::os::unix::fs::chown(&work, Some(1001), None).unwrap();
    let refused = Upper::open(&upper, &work).unwrap_err();
    assert!(
        matches!(refused, UpperError::OthersWork { uid: 1001, .. }),
        "{refused}"
    );
    // Root mounts what is all a user's.
    std::os::unix::fs::chown(&upper, Some(1001), None).unwrap();
    Upper::open(&upper, &work).unwrap();
}
