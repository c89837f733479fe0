//! rename(2) with all its flags.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{Case, Where, ino, listing, read};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "lower_directory_moves",
        "A directory of the image can be renamed; nothing is copied and nobody gets EXDEV.",
        |at| {
            let was = ino(at.join("dir"));
            fs::rename(at.join("dir"), at.join("moved")).unwrap();
            assert_eq!(ino(at.join("moved")), was);
            assert!(!at.join("dir").exists());
            fs::write(at.join("moved/sub/deep"), "changed").unwrap();
            fs::rename(at.join("moved"), at.join("empty/again")).unwrap();
            moved(at);
        },
    )
    .after(moved),
    Case::new(
        "merged_directory_moves",
        "A directory that has entries of both layers moves with all of them.",
        |at| {
            fs::write(at.join("dir/new"), "new").unwrap();
            fs::remove_file(at.join("dir/three")).unwrap();
            fs::rename(at.join("dir"), at.join("moved")).unwrap();
            fs::create_dir(at.join("dir")).unwrap();
            merged(at);
        },
    )
    .after(merged),
    Case::new(
        "rename_over_removed",
        "What was removed does not come back where something is renamed over it.",
        |at| {
            fs::remove_dir(at.join("empty")).unwrap();
            fs::rename(at.join("dir"), at.join("empty")).unwrap();
            fs::remove_dir_all(at.join("list")).unwrap();
            fs::create_dir(at.join("list")).unwrap();
            fs::rename(at.join("empty/sub"), at.join("list")).unwrap();
            fs::create_dir(at.join("dir")).unwrap();
            fs::remove_file(at.join("one")).unwrap();
            fs::create_dir(at.join("one")).unwrap();
            fs::rename(at.join("dir"), at.join("one")).unwrap();
            over(at);
        },
    )
    .after(over),
    Case::new(
        "rename_exchanges",
        "RENAME_EXCHANGE swaps any two names in one step, directories of the image too.",
        |at| {
            let flags = RenameFlags::EXCHANGE;
            renameat_with(CWD, at.join("dir"), CWD, at.join("file"), flags).unwrap();
            renameat_with(CWD, at.join("list"), CWD, at.join("empty"), flags).unwrap();
            let missing = renameat_with(CWD, at.join("one"), CWD, at.join("none"), flags);
            assert_eq!(missing, Err(Errno::NOENT));
            exchanged(at);
        },
    )
    .after(exchanged),
    Case::new(
        "rename_noreplace",
        "RENAME_NOREPLACE gives EEXIST for what can be seen and succeeds where it was removed.",
        |at| {
            let flags = RenameFlags::NOREPLACE;
            let (one, file) = (at.join("one"), at.join("file"));
            let taken = renameat_with(CWD, &one, CWD, &file, flags);
            assert_eq!(taken, Err(Errno::EXIST));
            fs::remove_file(&file).unwrap();
            renameat_with(CWD, &one, CWD, &file, flags).unwrap();
            assert_eq!(read(file), "linked");
        },
    )
    .after(|at| assert_eq!(read(at.join("file")), "linked")),
    Case::new(
        "rename_of_one_inode",
        "Renaming a name over another name of the same inode does nothing.",
        |at| {
            fs::rename(at.join("one"), at.join("dir/three")).unwrap();
            assert_eq!(read(at.join("one")), "linked");
            assert_eq!(ino(at.join("one")), ino(at.join("dir/three")));
        },
    )
    .after(|at| assert_eq!(ino(at.join("one")), ino(at.join("dir/three")))),
    Case::new(
        "rename_refuses",
        "A directory replaces an empty directory only, and never moves below itself.",
        |at| {
            let refused = |from: &str, to: &str| {
                renameat_with(CWD, at.join(from), CWD, at.join(to), RenameFlags::empty())
            };
            assert_eq!(refused("empty", "dir"), Err(Errno::NOTEMPTY));
            assert_eq!(refused("empty", "file"), Err(Errno::NOTDIR));
            assert_eq!(refused("file", "empty"), Err(Errno::ISDIR));
            assert_eq!(refused("dir", "dir/sub/dir"), Err(Errno::INVAL));
            assert_eq!(listing(at.join("dir")), ["inner", "sub", "three"]);
        },
    ),
    Case::new(
        "rename_whiteout",
        "RENAME_WHITEOUT gives EINVAL and changes nothing.",
        |at| {
            let flags = RenameFlags::WHITEOUT;
            let answer = renameat_with(CWD, at.join("one"), CWD, at.join("new"), flags);
            assert_eq!(answer, Err(Errno::INVAL));
            assert_eq!(read(at.join("one")), "linked");
            assert!(!at.join("new").exists());
        },
    )
    .at(Where::Mount),
];

fn moved(at: &Path) {
    assert_eq!(listing(at.join("empty/again")), ["inner", "sub", "three"]);
    assert_eq!(read(at.join("empty/again/inner")), "in");
    assert_eq!(read(at.join("empty/again/sub/deep")), "changed");
    assert!(!at.join("dir").exists() && !at.join("moved").exists());
}

fn merged(at: &Path) {
    assert_eq!(listing(at.join("moved")), ["inner", "new", "sub"]);
    assert_eq!(read(at.join("moved/new")), "new");
    assert_eq!(read(at.join("moved/sub/deep")), "deep");
    assert!(listing(at.join("dir")).is_empty());
}

fn over(at: &Path) {
    assert_eq!(listing(at.join("empty")), ["inner", "three"]);
    assert_eq!(listing(at.join("list")), ["deep"]);
    assert!(listing(at.join("one")).is_empty());
    assert!(!at.join("dir").exists());
}

fn exchanged(at: &Path) {
    assert_eq!(read(at.join("dir")), "0123456789");
    assert_eq!(listing(at.join("file")), ["inner", "sub", "three"]);
    assert_eq!(listing(at.join("empty")).len(), 500);
    assert!(listing(at.join("list")).is_empty());
}
