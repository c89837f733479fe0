//! Directories move between any two system calls of an operation on what lies below them: it finds
//! the inode's names wherever they are by then.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::fixture::{Fixture, me, name};
use super::races::tree;
use crate::inode::Kind;
use crate::overlay::order::{Class, Lock, held};
use crate::overlay::{Ino, Make, ROOT_INO, Result};
use crate::sys::faults;

type Step = fn(&Fixture);

/// The first of some, or all where there is time.
fn some<T>(steps: &[T]) -> &[T] {
    match std::env::var_os("TARNFS_TEST_ALL") {
        Some(_) => steps,
        None => &steps[..1],
    }
}

/// Runs `call` with `meanwhile` on another thread before its n-th system call; whether it had so
/// many. Where `meanwhile` would have to wait for `call`, it does so and comes later.
fn run_with(
    f: &Arc<Fixture>,
    n: usize,
    call: &dyn Fn(&Fixture),
    meanwhile: impl Fn(&Fixture) + Copy + Send + 'static,
) -> bool {
    let seen = Rc::new(Cell::new(0));
    let running: Rc<RefCell<Option<JoinHandle<()>>>> = Rc::default();
    let (other, counting, starting) = (Arc::clone(f), Rc::clone(&seen), Rc::clone(&running));
    faults::watch_all(move || {
        counting.set(counting.get() + 1);
        if counting.get() != n {
            return;
        }
        let other = Arc::clone(&other);
        let thread = std::thread::spawn(move || meanwhile(&other));
        // What a directory's move may wait for.
        let free =
            |lock: &Lock| lock.class == Class::Gate || lock.class == Class::Copying && !lock.is_dir;
        if held().iter().all(free) {
            thread.join().unwrap();
        } else {
            starting.replace(Some(thread));
        }
    });
    call(f);
    faults::unwatch();
    if let Some(thread) = running.take() {
        thread.join().unwrap();
    }
    seen.get() >= n
}

fn write(f: &Fixture, ino: Ino, data: &[u8]) {
    let handle = f.fs.open(ino, libc::O_RDWR).unwrap();
    assert_eq!(f.fs.write(handle, 0, data).unwrap(), data.len());
    f.fs.release(handle);
    // Of an inode without a name nothing is left then.
    f.fs.forget(ino, 1);
}

/// Writes to `path` of a mount that `before` has prepared, while `meanwhile` moves directories
/// before one of its system calls, each in turn.
fn moved_while_written(path: &str, before: Option<Step>, meanwhile: Step) {
    for n in 1.. {
        let mut f = Fixture::new();
        // Not looked up after it is mounted again: nothing of it is known then.
        let was = f.attr(path);
        if let Some(before) = before {
            before(&f);
            f = f.again();
        }
        let f = Arc::new(f);
        let call = |f: &Fixture| write(f, Ino(was.ino), b"NEW");
        let happened = run_with(&f, n, &call, meanwhile);
        let f = Arc::into_inner(f).unwrap();
        if !happened {
            assert!(n > 10);
            break;
        }
        let shown = tree(&f);
        let names: Vec<_> = shown.values().filter(|one| one.0 == was.ino).collect();
        assert_eq!(names.len(), was.nlink as usize, "{path} at call {n}");
        for (_, kind, _, nlink, _, data) in names {
            assert_eq!((*kind, *nlink), (Kind::File, was.nlink), "{path} at {n}");
            assert!(data.starts_with(b"NEW"), "{path} at call {n}: {data:?}");
        }
        assert_eq!(shown, tree(&f.again()), "{path} at call {n}");
    }
}

#[test]
fn regression_a_write_is_not_lost_when_a_directory_above_moves_at_that_moment() {
    // The directory was missed between its old place and its new one: the copy was kept as that of
    // an unlinked file.
    let moves: [Step; 3] = [
        |f| f.rename("a", "b/a", 0).unwrap(),
        |f| f.rename("a/sub", "empty/sub", 0).unwrap(),
        |f| f.rename("a", "b", libc::RENAME_EXCHANGE).unwrap(),
    ];
    for &meanwhile in some(&moves) {
        moved_while_written("a/sub/deep", None, meanwhile);
    }
}

#[test]
fn regression_a_name_is_not_lost_when_a_directory_above_moves_at_that_moment() {
    // The copy of a group of hard links did not get the names in a directory that was missed.
    let moves: [Step; 3] = [
        |f| f.rename("a", "b/a", 0).unwrap(),
        |f| f.rename("a/sub", "empty/sub", 0).unwrap(),
        |f| f.rename("b", "a/sub/b", 0).unwrap(),
    ];
    for &meanwhile in some(&moves) {
        moved_while_written("link1", None, meanwhile);
    }
}

#[test]
fn regression_a_directory_that_an_earlier_mount_moved_is_found_while_others_move() {
    // One that moved from where the walk through the upper had not been yet to where it had been
    // already was missed, with all that lies below it.
    let before: Step = |f| {
        for dir in ["1", "2", "2/m"] {
            f.mkdir(dir);
        }
        f.rename("a/sub", "2/m/sub", 0).unwrap();
    };
    let moves: [Step; 2] = [
        |f| f.rename("2/m", "1/m", 0).unwrap(),
        |f| f.rename("2/m", "empty", libc::RENAME_EXCHANGE).unwrap(),
    ];
    for &meanwhile in some(&moves) {
        moved_while_written("link1", Some(before), meanwhile);
    }
}

#[test]
fn regression_links_that_go_or_are_copied_up_while_they_are_counted_are_counted_once() {
    // What an earlier mount took away is counted at the first look. That count was noted over one
    // that went at that moment, and a name that led to a copy by then was taken for a lost one.
    type Change = fn(&Fixture, Ino);
    let meanwhile: [(Change, u32); 3] = [
        (|f, _| f.unlink("b/link3").unwrap(), 2),
        (|f, _| f.rename("big", "a/sub/link2", 0).unwrap(), 2),
        (|f, ino| write(f, ino, b"NEW"), 3),
    ];
    for (meanwhile, left) in meanwhile {
        for n in 1.. {
            let f = Fixture::new();
            let ino = f.ino("link1");
            f.mkdir("touched");
            let f = Arc::new(f.again());
            let seen = Cell::new(0);
            let call = |f: &Fixture| seen.set(f.fs.getattr(ino, None).unwrap().nlink);
            let happened = run_with(&f, n, &call, move |f| meanwhile(f, ino));
            if !happened {
                assert!(n > 3);
                break;
            }
            assert!(
                [3, left].contains(&seen.get()),
                "{} at call {n}",
                seen.get()
            );
            let now = f.fs.getattr(ino, None).unwrap().nlink;
            assert_eq!(now, left, "at call {n}");
        }
    }
}

#[test]
fn every_call_below_a_directory_that_moves_at_that_moment_succeeds() {
    type Call = fn(&Fixture, Ino, Ino) -> Result<()>;
    let calls: [Call; 7] = [
        |f, sub, _| {
            let made = f.fs.make(me(), sub, &name("new"), Make::File, 0o644, 0);
            made.map(|_| ())
        },
        |f, sub, ino| f.fs.link(ino, sub, &name("new")).map(|_| ()),
        |f, sub, _| f.fs.unlink(sub, &name("deep")),
        |f, sub, _| {
            f.fs.rename(sub, &name("deep"), sub, &name("new"), 0)
                .map(|_| ())
        },
        |f, sub, _| {
            f.fs.rename(ROOT_INO, &name("big"), sub, &name("deep"), 0)
                .map(|_| ())
        },
        |f, sub, _| f.fs.parent(sub).map(|_| ()),
        |f, sub, _| {
            let listed = sub;
            let mut names = 0;
            f.fs.readdirplus(listed, 0, &mut |_| {
                names += 1;
                ControlFlow::Continue(())
            })?;
            assert_eq!(names, 4);
            Ok(())
        },
    ];
    let moves: [Step; 2] = [
        |f| f.rename("a", "b/a", 0).unwrap(),
        |f| f.rename("a/sub", "empty/sub", 0).unwrap(),
    ];
    for call in calls {
        for &meanwhile in some(&moves) {
            for n in 1.. {
                let f = Arc::new(Fixture::new());
                let (sub, ino) = (f.ino("a/sub"), f.ino("link1"));
                let happened = run_with(&f, n, &|f| call(f, sub, ino).unwrap(), meanwhile);
                let f = Arc::into_inner(f).unwrap();
                if !happened {
                    break;
                }
                let before = tree(&f);
                assert_eq!(before, tree(&f.again()), "at call {n}");
            }
        }
    }
}
