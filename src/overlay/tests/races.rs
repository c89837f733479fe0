//! Many threads on one inode of the image: whatever the order, each call gives a result that some
//! order gives, no two disagree about the end, and a new mount shows the same.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Barrier, Mutex};

use super::fixture::{Fixture, me, name};
use crate::inode::Kind;
use crate::overlay::{DirEntry, Error, Ino, Make, Overlay, ROOT_INO, SetAttr};

/// What one path shows: number, type, mode, links, size, content.
pub(super) type Shown = (u64, Kind, u16, u32, u64, Vec<u8>);

fn read(fs: &Overlay, ino: Ino, size: u64) -> Vec<u8> {
    let handle = fs.open(ino, libc::O_RDONLY).unwrap();
    let mut data = vec![0; usize::try_from(size).unwrap() + 1];
    let n = fs.read(handle, 0, &mut data).unwrap();
    fs.release(handle);
    data.truncate(n);
    data
}

/// The whole tree, with link counts checked against the names.
pub(super) fn tree(f: &Fixture) -> BTreeMap<String, Shown> {
    let mut shown = BTreeMap::new();
    let mut names: BTreeMap<u64, u32> = BTreeMap::new();
    let mut stack = vec![(String::new(), ROOT_INO)];
    while let Some((path, dir)) = stack.pop() {
        let listed = dir;
        let mut found = Vec::new();
        f.fs.readdir(listed, 0, &mut |e: DirEntry<'_>| {
            if !matches!(e.name, b"." | b"..") {
                found.push((String::from_utf8(e.name.to_vec()).unwrap(), e.ino));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        for (last, ino) in found {
            let attr = f.fs.lookup(dir, &name(&last)).unwrap().attr;
            let path = format!("{path}/{last}");
            assert_eq!(attr.ino, ino, "d_ino of {path}");
            let (mut size, mut data) = (attr.size, Vec::new());
            match attr.kind {
                Kind::Dir => {
                    size = 0;
                    stack.push((path.clone(), Ino(ino)));
                }
                Kind::File => data = read(&f.fs, Ino(ino), size),
                _ => {}
            }
            if attr.kind != Kind::Dir {
                *names.entry(ino).or_default() += 1;
            }
            let one = (ino, attr.kind, attr.perm, attr.nlink, size, data);
            assert!(shown.insert(path.clone(), one).is_none(), "{path} twice");
        }
    }
    for (path, (ino, kind, _, nlink, _, _)) in &shown {
        if *kind != Kind::Dir {
            assert_eq!(names[ino], *nlink, "st_nlink of {path}");
        }
    }
    shown
}

/// A call that lost a race may say so, and nothing else.
fn allow<T>(what: &str, result: Result<T, Error>, allowed: &[i32]) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) if allowed.contains(&error.errno()) => None,
        Err(error) => panic!("{what}: {error}"),
    }
}

fn write(fs: &Overlay, ino: Ino, offset: u64, data: &[u8]) {
    let handle = fs.open(ino, libc::O_RDWR).unwrap();
    assert_eq!(fs.write(handle, offset, data).unwrap(), data.len());
    let mut back = vec![0; data.len()];
    // Cut meanwhile, or what was written.
    let n = fs.read(handle, offset, &mut back).unwrap();
    assert!(back[..n].iter().all(|b| data.contains(b) || *b == 0));
    fs.release(handle);
}

/// Runs all `calls` at once.
pub(super) fn at_once(calls: &[&(dyn Fn() + Sync)]) {
    let start = Barrier::new(calls.len());
    std::thread::scope(|scope| {
        for call in calls {
            scope.spawn(|| {
                start.wait();
                call();
            });
        }
    });
}

fn set(fs: &Overlay, ino: Ino, set: SetAttr) {
    fs.setattr(ino, None, &set).unwrap();
}

#[test]
fn eight_threads_on_one_file_of_the_image() {
    let gone = [libc::ENOENT];
    let taken = [libc::ENOENT, libc::EEXIST];
    for (path, dir, last) in [("big", "", "big"), ("b/link3", "b", "link3")] {
        for _ in 0..40 {
            let f = Fixture::new();
            let (fs, ino, dir) = (&f.fs, f.ino(path), f.ino(dir));
            let (a, b) = (f.ino("a"), f.ino("b"));
            let last = &name(last);
            let held = fs.open(ino, libc::O_RDONLY).unwrap();
            at_once(&[
                &|| write(fs, ino, 3, b"WRITE"),
                &|| write(fs, ino, 5_000, b"XXXXX"),
                &|| {
                    let size = Some(4_000);
                    set(
                        fs,
                        ino,
                        SetAttr {
                            size,
                            ..SetAttr::default()
                        },
                    );
                },
                &|| {
                    let perm = Some(0o4711);
                    set(
                        fs,
                        ino,
                        SetAttr {
                            perm,
                            ..SetAttr::default()
                        },
                    );
                },
                &|| {
                    allow("rename", fs.rename(dir, last, a, &name("moved"), 0), &gone);
                },
                &|| {
                    allow("link", fs.link(ino, b, &name("linked")), &taken);
                },
                &|| {
                    allow("unlink", fs.unlink(dir, last), &gone);
                },
                &|| {
                    let mut data = [0; 64];
                    fs.read(held, 0, &mut data).unwrap();
                    fs.getattr(ino, None).unwrap();
                    let listed = b;
                    fs.readdir(listed, 0, &mut |_| ControlFlow::Continue(()))
                        .unwrap();
                    fs.lookup(ROOT_INO, &name("link1")).unwrap();
                },
            ]);
            fs.release(held);
            assert_eq!(fs.getattr(ino, None).unwrap().ino, ino.0);
            let before = tree(&f);
            assert_eq!(before, tree(&f.again()));
        }
    }
}

#[test]
fn directories_move_while_what_they_hold_is_copied_up() {
    // As the kernel does it (fs/namei.c:lock_rename()): one directory changes its parent at a time.
    for _ in 0..25 {
        let f = Fixture::new();
        let fs = &f.fs;
        let moving = Mutex::new(());
        let [a, b, sub, deep, x, linked, empty] =
            ["a", "b", "a/sub", "a/sub/deep", "a/x", "link1", "empty"].map(|path| f.ino(path));
        let rename = |from: Ino, old: &str, to: Ino, new: &str| {
            let _one = moving.lock().unwrap();
            let gone = [libc::ENOENT, libc::ENOTEMPTY, libc::EEXIST];
            allow(
                "rename",
                fs.rename(from, &name(old), to, &name(new), 0),
                &gone,
            );
        };
        at_once(&[
            &|| {
                for i in 0..6 {
                    rename(ROOT_INO, "a", b, &format!("a{i}"));
                    rename(b, &format!("a{i}"), ROOT_INO, "a");
                }
            },
            &|| {
                for i in 0..6 {
                    rename(a, "sub", empty, &format!("s{i}"));
                    rename(empty, &format!("s{i}"), a, "sub");
                }
            },
            &|| write(fs, deep, 0, b"DEEP"),
            &|| write(fs, linked, 0, b"ONE"),
            &|| {
                let perm = Some(0o600);
                set(
                    fs,
                    x,
                    SetAttr {
                        perm,
                        ..SetAttr::default()
                    },
                );
                set(
                    fs,
                    sub,
                    SetAttr {
                        perm: Some(0o700),
                        ..SetAttr::default()
                    },
                );
            },
            &|| {
                for i in 0..6 {
                    let new = name(&format!("new{i}"));
                    fs.make(me(), sub, &new, Make::File, 0o644, 0).unwrap();
                    fs.link(linked, sub, &name(&format!("l{i}"))).unwrap();
                    fs.unlink(sub, &new).unwrap();
                }
            },
            &|| {
                for i in 0..6 {
                    let new = name(&format!("d{i}"));
                    let made = fs.make(me(), a, &new, Make::Dir, 0o755, 0).unwrap();
                    fs.make(me(), Ino(made.attr.ino), &name("f"), Make::File, 0o644, 0)
                        .unwrap();
                }
            },
            &|| {
                for _ in 0..6 {
                    for dir in [a, b, sub, empty, ROOT_INO] {
                        let listed = dir;
                        fs.readdirplus(listed, 0, &mut |e| {
                            if let Some(entry) = e.entry {
                                fs.forget(Ino(entry.attr.ino), 1);
                            }
                            ControlFlow::Continue(())
                        })
                        .unwrap();
                    }
                }
            },
        ]);
        assert_eq!(read(fs, deep, 5), b"DEEP\n");
        assert_eq!(fs.getattr(linked, None).unwrap().nlink, 3 + 6);
        let before = tree(&f);
        assert_eq!(before, tree(&f.again()));
    }
}
