//! Each operation, broken off at each call that changes something: by a full disk, a failing one,
//! a dead process. Afterwards the tree is as it was before, or as it is after; nothing in between.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::fixture::{Fixture, errno, me, name};
use crate::inode::{Kind, Xattr};
use crate::overlay::{Caller, Ino, Make, Result, SetAttr};
use crate::sys::faults::{self, Fault};

/// What one path shows: all but times that an operation sets to now, and numbers of the upper's
/// own making.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    ino: Option<u64>,
    kind: Kind,
    perm: u16,
    owner: (u32, u32),
    nlink: u32,
    size: u64,
    rdev: u64,
    old_mtime: Option<i64>,
    data: Vec<u8>,
    xattrs: Vec<Xattr>,
}

type Tree = BTreeMap<String, Seen>;

fn tree(f: &Fixture) -> Tree {
    let mut seen = Tree::new();
    let mut stack = vec![String::new()];
    while let Some(path) = stack.pop() {
        let attr = f.attr(&path);
        let ino = Ino(attr.ino);
        let data = match attr.kind {
            Kind::File => f.read(&path),
            Kind::Symlink => f.fs.readlink(ino).unwrap(),
            _ => Vec::new(),
        };
        if attr.kind == Kind::Dir {
            stack.extend(f.ls(&path).into_iter().map(|name| format!("{path}/{name}")));
        }
        let mut xattrs: Vec<Xattr> =
            f.fs.listxattr(ino)
                .unwrap()
                .into_iter()
                .map(|name| Xattr {
                    value: f.fs.getxattr(ino, &name).unwrap(),
                    name,
                })
                .collect();
        xattrs.sort();
        seen.insert(
            path,
            Seen {
                ino: (attr.ino < 1 << 40).then_some(attr.ino),
                kind: attr.kind,
                perm: attr.perm,
                owner: (attr.uid, attr.gid),
                nlink: attr.nlink,
                size: if attr.kind == Kind::Dir { 0 } else { attr.size },
                rdev: attr.rdev,
                old_mtime: (attr.mtime.sec < 1_700_000_000).then_some(attr.mtime.sec),
                data,
                xattrs,
            },
        );
    }
    seen
}

/// Directories' own times are no part of the promise: a rename that is undone leaves a trace.
fn without_dir_times(mut tree: Tree) -> Tree {
    for seen in tree.values_mut().filter(|seen| seen.kind == Kind::Dir) {
        seen.old_mtime = None;
    }
    tree
}

fn prepare(setup: fn(&Fixture)) -> Fixture {
    let f = Fixture::new();
    setup(&f);
    f.again()
}

/// Breaks `operation` off at every change it makes, in every way.
fn torture(setup: fn(&Fixture), operation: fn(&Fixture) -> Result<()>) {
    let f = prepare(setup);
    let before = without_dir_times(tree(&f));
    operation(&f).unwrap();
    let after = without_dir_times(tree(&f));
    assert_eq!(
        without_dir_times(tree(&f.again())),
        after,
        "after a new mount"
    );
    let is_either = |f: &Fixture, what: &str| {
        let now = without_dir_times(tree(f));
        if now != before && now != after {
            let differs = |a: &Tree| {
                let keys = a.keys().chain(now.keys());
                keys.filter(|key| a.get(*key) != now.get(*key))
                    .cloned()
                    .collect::<Vec<_>>()
            };
            panic!(
                "{what}: neither before (differs: {:?}) nor after (differs: {:?})\nnow: {:#?}",
                differs(&before),
                differs(&after),
                differs(&before)
                    .iter()
                    .map(|key| now.get(key))
                    .collect::<Vec<_>>()
            );
        }
        now == after
    };
    let faults = [
        Fault::Once(Errno::NOSPC),
        Fault::Once(Errno::DQUOT),
        Fault::Once(Errno::MFILE),
        Fault::Once(Errno::IO),
        Fault::Crash,
    ];
    for fault in faults {
        for n in 1.. {
            let what = format!("{fault:?} at change {n}");
            let mut f = prepare(setup);
            faults::plan(n, fault);
            let result = operation(&f);
            if let Fault::Crash = fault {
                // Dropped while the plan holds: a dead process clears nothing up.
                let Fixture { dir, fs } = f;
                drop(fs);
                let happened = faults::end();
                f = Fixture::reopen(dir);
                is_either(&f, &what);
                if !happened {
                    break;
                }
            } else {
                let happened = faults::end();
                let is_after = is_either(&f, &what);
                match &result {
                    Ok(()) => assert!(is_after, "{what}: success, but nothing happened"),
                    Err(error) => {
                        let Fault::Once(injected) = fault else {
                            unreachable!()
                        };
                        assert_eq!(error.errno(), injected.raw_os_error(), "{what}: {error}");
                    }
                }
                f = f.again();
                assert_eq!(
                    is_either(&f, &what),
                    is_after,
                    "{what}: a new mount shows otherwise"
                );
                if !happened {
                    assert!(result.is_ok());
                    break;
                }
            }
            let work = f.dir.path().join("work");
            assert_eq!(
                std::fs::read_dir(work.join("work")).unwrap().count(),
                0,
                "{what}"
            );
            if let Ok(pending) = std::fs::read_dir(work.join("pending-links")) {
                assert_eq!(pending.count(), 0, "{what}");
            }
            // And it can be done again, from either state.
            match operation(&f) {
                Ok(()) => assert_eq!(without_dir_times(tree(&f)), after, "{what}, again"),
                Err(error) => assert!(
                    [libc::EEXIST, libc::ENOENT, libc::ENODATA].contains(&error.errno()),
                    "{what}, again: {error}"
                ),
            }
        }
    }
}

fn nothing(_: &Fixture) {}

fn copy_up(f: &Fixture, path: &str) -> Result<()> {
    let ino = Ino(f.entry(path)?.attr.ino);
    let handle = f.fs.open(ino, libc::O_RDWR)?;
    f.fs.release(handle);
    Ok(())
}

fn make(f: &Fixture, who: Caller, path: &str, what: Make<'_>) -> Result<()> {
    let (dir, last) = f.split(path);
    f.fs.make(who, dir, &last, what, 0o750, 0o022).map(|_| ())
}

fn other() -> Caller {
    // Only root can make files of others; anyone else still goes through work/ for a whiteout.
    if rustix::process::geteuid().is_root() {
        Caller { uid: 7, gid: 8 }
    } else {
        me()
    }
}

#[test]
fn copy_up_of_a_file_deep_down() {
    torture(nothing, |f| copy_up(f, "a/sub/deep"));
    torture(nothing, |f| copy_up(f, "big"));
}

#[test]
fn copy_up_of_a_group_of_hard_links() {
    torture(nothing, |f| copy_up(f, "b/link3"));
    torture(|f| f.unlink("link1").unwrap(), |f| copy_up(f, "b/link3"));
}

#[test]
fn attributes() {
    torture(nothing, |f| {
        let set = SetAttr {
            perm: Some(0o700),
            ..SetAttr::default()
        };
        f.fs.setattr(Ino(f.entry("a/x")?.attr.ino), None, &set)
            .map(|_| ())
    });
    torture(nothing, |f| {
        let set = SetAttr {
            perm: Some(0o700),
            ..SetAttr::default()
        };
        f.fs.setattr(Ino(f.entry("a/sub")?.attr.ino), None, &set)
            .map(|_| ())
    });
    torture(nothing, |f| {
        f.fs.setxattr(Ino(f.entry("a/x")?.attr.ino), b"user.k", b"v", 0)
    });
    torture(nothing, |f| {
        f.fs.removexattr(Ino(f.entry("big")?.attr.ino), b"user.note")
    });
}

#[test]
fn new_entries() {
    torture(nothing, |f| make(f, me(), "a/sub/new", Make::Dir));
    torture(nothing, |f| make(f, me(), "a/sub/new", Make::Symlink(b"t")));
    torture(nothing, |f| make(f, other(), "a/new", Make::Dir));
    torture(nothing, |f| make(f, other(), "a/new", Make::Fifo));
    torture(nothing, |f| make(f, other(), "a/new", Make::Symlink(b"t")));
    torture(nothing, |f| {
        let (dir, last) = f.split("a/new");
        let (_, handle) = f.fs.create(me(), dir, &last, 0o640, 0o022, libc::O_RDWR)?;
        f.fs.release(handle);
        Ok(())
    });
}

#[test]
fn new_entries_over_whiteouts() {
    torture(
        |f| f.unlink("a/x").unwrap(),
        |f| make(f, me(), "a/x", Make::File),
    );
    torture(
        |f| f.rmdir("empty").unwrap(),
        |f| make(f, me(), "empty", Make::Dir),
    );
    torture(
        |f| f.unlink("a/x").unwrap(),
        |f| f.link("a/y", "a/x").map(|_| ()),
    );
}

#[test]
fn links() {
    torture(nothing, |f| f.link("a/y", "b/new").map(|_| ()));
    torture(nothing, |f| f.link("link1", "a/new").map(|_| ()));
}

#[test]
fn removals() {
    torture(nothing, |f| f.unlink("a/sub/deep"));
    torture(nothing, |f| f.unlink("link1"));
    torture(|f| f.write("a/x", 0, b"!"), |f| f.unlink("a/x"));
    torture(
        |f| {
            f.create("new", b"");
        },
        |f| f.unlink("new"),
    );
    torture(nothing, |f| f.rmdir("empty"));
    torture(
        |f| {
            f.unlink("a/sub/deep").unwrap();
            f.unlink("a/sub/link2").unwrap();
        },
        |f| f.rmdir("a/sub"),
    );
}

#[test]
fn renames_of_files() {
    torture(nothing, |f| f.rename("a/x", "b/x", 0));
    torture(nothing, |f| f.rename("a/x", "a/y", 0));
    torture(nothing, |f| f.rename("link1", "a/x", 0));
    torture(|f| f.unlink("big").unwrap(), |f| f.rename("a/x", "big", 0));
    torture(nothing, |f| f.rename("a/x", "big", 2));
}

#[test]
fn renames_of_directories() {
    torture(nothing, |f| f.rename("a", "b/moved", 0));
    torture(nothing, |f| f.rename("a/sub", "a/sub2", 0));
    torture(nothing, |f| f.rename("a", "empty", 0));
    torture(|f| f.unlink("big").unwrap(), |f| f.rename("a", "big", 0));
    torture(nothing, |f| f.rename("a", "big", 2));
    torture(
        |f| {
            f.unlink("a/sub/deep").unwrap();
            f.unlink("a/sub/link2").unwrap();
            f.mkdir("new");
            f.create("new/in", b"1");
        },
        |f| f.rename("new", "a/sub", 0),
    );
    torture(
        |f| {
            f.mkdir("new");
            f.create("new/in", b"1");
            f.rename("b", "moved", 0).unwrap();
        },
        |f| f.rename("new", "b", 0),
    );
}

#[test]
fn a_write_that_fails_is_told() {
    let f = Fixture::new();
    let handle = f.fs.open(f.ino("a/x"), libc::O_RDWR).unwrap();
    faults::plan(1, Fault::Once(Errno::NOSPC));
    assert_eq!(errno(f.fs.write(handle, 0, b"x")), libc::ENOSPC);
    assert!(faults::end());
    assert_eq!(f.fs.write(handle, 0, b"x").unwrap(), 1);
    faults::plan(1, Fault::Once(Errno::IO));
    assert_eq!(errno(f.fs.fsync(handle, false)), libc::EIO);
    assert!(faults::end());
    f.fs.release(handle);
    assert!(f.fs.lookup(crate::overlay::ROOT_INO, &name("a")).is_ok());
}
