//! Which inode is which: numbers, hard links, files without a name.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{Case, drop_caches, ino, read};

const KEPT: [&str; 7] = ["file", "dir", "dir/sub", "fifo", "sym", "null", "one"];

pub(super) const CASES: &[Case] = &[
    Case::new(
        "numbers_stay",
        "A file keeps its (st_dev, st_ino) for life: when it is written to, renamed, forgotten by the kernel, open meanwhile; and its st_ino over a new mount.",
        |at| {
            let was: Vec<_> = KEPT.iter().map(|name| ino(at.join(name))).collect();
            let open = File::open(at.join("file")).unwrap();
            let same = |when| {
                let now: Vec<_> = KEPT.iter().map(|name| ino(at.join(name))).collect();
                assert_eq!(now, was, "{when}");
                let meta = open.metadata().unwrap();
                assert_eq!((meta.dev(), meta.ino()), was[0], "{when}, open");
            };
            drop_caches();
            same("forgotten");
            for name in KEPT.iter().filter(|&&name| name != "sym") {
                fs::set_permissions(at.join(name), fs::Permissions::from_mode(0o700)).unwrap();
            }
            std::os::unix::fs::lchown(at.join("sym"), Some(3), Some(4)).unwrap();
            OpenOptions::new().append(true).open(at.join("file")).unwrap().write_all(b"x").unwrap();
            same("changed");
            drop_caches();
            same("changed and forgotten");
            for (from, to) in [("file", "file2"), ("dir/sub", "sub2"), ("dir", "dir2")] {
                fs::rename(at.join(from), at.join(to)).unwrap();
            }
            drop_caches();
            assert_eq!(ino(at.join("dir2")), was[1]);
            for (from, to) in [("dir2", "dir"), ("sub2", "dir/sub"), ("file2", "file")] {
                fs::rename(at.join(from), at.join(to)).unwrap();
            }
            same("renamed");
            let numbers: Vec<_> = was.iter().map(|(_, ino)| ino.to_string()).collect();
            fs::write(at.join("numbers"), numbers.join(" ")).unwrap();
        },
    )
    .after(|at| {
        let now: Vec<_> = KEPT.iter().map(|name| ino(at.join(name)).1.to_string()).collect();
        assert_eq!(now.join(" "), read(at.join("numbers")));
    }),
    Case::new(
        "listed_numbers",
        "A listing gives the st_ino that stat(2) gives, dots too, and no two files share one.",
        |at| {
            listed(at);
            fs::write(at.join("file"), "changed").unwrap();
            fs::rename(at.join("dir"), at.join("dir2")).unwrap();
            fs::write(at.join("new"), "new").unwrap();
            listed(at);
            listed(&at.join("dir2"));
            drop_caches();
            listed(at);
        },
    )
    .after(listed),
    Case::new(
        "hard_links_stay_one_file",
        "Hard links of the image stay one file whichever of their names is written to, and st_nlink is right at the first stat.",
        |at| {
            assert_eq!(fs::metadata(at.join("dir/three")).unwrap().nlink(), 3);
            let held = File::open(at.join("one")).unwrap();
            fs::write(at.join("two"), "through two").unwrap();
            for name in ["one", "two", "dir/three"] {
                assert_eq!(read(at.join(name)), "through two");
                assert_eq!(ino(at.join(name)), ino(at.join("one")));
            }
            fs::remove_file(at.join("one")).unwrap();
            assert_eq!(held.metadata().unwrap().nlink(), 2);
            fs::hard_link(at.join("dir/three"), at.join("four")).unwrap();
            fs::hard_link(at.join("file"), at.join("dir/hard")).unwrap();
            linked(at);
        },
    )
    .after(linked),
    Case::new(
        "removed_names_are_counted",
        "A name that goes from a group of hard links of the image is taken off st_nlink without a copy.",
        |at| {
            fs::remove_file(at.join("two")).unwrap();
            assert_eq!(fs::metadata(at.join("one")).unwrap().nlink(), 2);
        },
    )
    .after(|at| assert_eq!(fs::metadata(at.join("dir/three")).unwrap().nlink(), 2)),
    Case::new(
        "removed_while_open",
        "A file that is removed or renamed over while it is open can be read and written through its descriptor, also for the first time.",
        |at| {
            let mut file = OpenOptions::new().read(true).write(true).open(at.join("file")).unwrap();
            let mut only_read = File::open(at.join("one")).unwrap();
            let mut over = File::open(at.join("dir/inner")).unwrap();
            let number = over.metadata().unwrap().ino();
            fs::remove_file(at.join("file")).unwrap();
            for name in ["one", "two", "dir/three"] {
                fs::remove_file(at.join(name)).unwrap();
            }
            fs::rename(at.join("suid"), at.join("dir/inner")).unwrap();
            drop_caches();
            let mut text = String::new();
            file.write_all(b"ab").unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "ab23456789");
            assert_eq!(file.metadata().unwrap().nlink(), 0);
            text.clear();
            only_read.read_to_string(&mut text).unwrap();
            assert_eq!(text, "linked");
            only_read.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
            assert_eq!(only_read.metadata().unwrap().mode() & 0o7777, 0o640);
            text.clear();
            over.read_to_string(&mut text).unwrap();
            assert_eq!(text, "in");
            assert_eq!(over.metadata().unwrap().ino(), number);
            assert_eq!(over.metadata().unwrap().nlink(), 0);
            assert!(!at.join("file").exists());
            fs::write(at.join("kept"), "kept").unwrap();
            fs::hard_link(at.join("kept"), at.join("dir/kept too")).unwrap();
        },
    )
    .after(|at| {
        assert!(!at.join("file").exists() && !at.join("one").exists());
        // Its other name has not been looked up yet.
        let file = OpenOptions::new().read(true).write(true).open(at.join("kept")).unwrap();
        fs::remove_file(at.join("kept")).unwrap();
        drop_caches();
        assert_eq!(file.metadata().unwrap().nlink(), 1);
        file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        let fd = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(read(Path::new(&fd)), "kept");
        let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(CWD, fd, CWD, at.join("kept"), follow).unwrap();
        assert_eq!(fs::metadata(at.join("dir/kept too")).unwrap().nlink(), 2);
        assert_eq!(ino(at.join("dir/kept too")), ino(at.join("kept")));
    }),
    Case::new(
        "removed_directory_while_open",
        "A directory that is removed while it is open is empty, and nothing can be made in it.",
        |at| {
            let dir = File::open(at.join("empty")).unwrap();
            fs::remove_dir(at.join("empty")).unwrap();
            let made = rustix::fs::openat(&dir, "x", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
            assert_eq!(made.unwrap_err(), Errno::NOENT);
            let link = rustix::fs::linkat(CWD, at.join("file"), &dir, "x", rustix::fs::AtFlags::empty());
            assert_eq!(link.unwrap_err(), Errno::NOENT);
        },
    ),
    Case::new(
        "directory_link_counts",
        "A directory's st_nlink is two and one for each subdirectory.",
        |at| {
            let count = |name: &str| fs::metadata(at.join(name)).unwrap().nlink();
            assert_eq!((count("dir"), count("empty")), (3, 2));
            fs::create_dir(at.join("dir/more")).unwrap();
            fs::rename(at.join("empty"), at.join("dir/empty")).unwrap();
            assert_eq!(count("dir"), 5);
            fs::remove_dir_all(at.join("dir/sub")).unwrap();
            assert_eq!(count("dir"), 4);
        },
    )
    .after(|at| assert_eq!(fs::metadata(at.join("dir")).unwrap().nlink(), 4)),
];

fn listed(at: &Path) {
    let dir = File::open(at).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut raw = rustix::fs::RawDir::new(&dir, &mut buffer);
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap();
        assert_eq!(entry.ino(), ino(at.join(name)).1, "{at:?}/{name}");
    }
    let mut seen = std::collections::HashMap::new();
    for entry in fs::read_dir(at).unwrap() {
        let entry = entry.unwrap();
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        assert_eq!(entry.ino(), meta.ino(), "{:?}", entry.path());
        if meta.nlink() == 1 || meta.is_dir() {
            let other = seen.insert(meta.ino(), entry.path());
            assert!(other.is_none(), "{other:?} and {:?}", entry.path());
        }
    }
}

fn linked(at: &Path) {
    for name in ["two", "dir/three", "four"] {
        let meta = fs::metadata(at.join(name)).unwrap();
        assert_eq!(
            (meta.nlink(), meta.ino()),
            (3, ino(at.join("two")).1),
            "{name}"
        );
        assert_eq!(read(at.join(name)), "through two");
    }
    assert_eq!(fs::metadata(at.join("file")).unwrap().nlink(), 2);
    assert_eq!(ino(at.join("file")), ino(at.join("dir/hard")));
}
