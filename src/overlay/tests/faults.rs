//! Each operation, broken off at each call: by a full disk, a failing one, a table of descriptors
//! that is full, a dead process. Afterwards the tree is as it was before, or as it is after;
//! nothing in between.

use rustix::io::Errno;

use super::fixture::{Fixture, errno, name};
use super::judge::{Judge, Trying, left_in_work, prepare};
use super::operations::{self, Case};
use crate::sys::faults::{self, Fault};

const FAULTS: [Fault; 9] = [
    Fault::Once(Errno::IO),
    Fault::Once(Errno::NOSPC),
    Fault::Once(Errno::DQUOT),
    Fault::Once(Errno::MFILE),
    Fault::Full(Errno::NOSPC),
    Fault::Full(Errno::DQUOT),
    Fault::Blind(Errno::MFILE),
    Fault::Blind(Errno::IO),
    Fault::Crash,
];

/// Breaks each operation off at every call it makes: with each errno where TARNFS_TEST_ALL is
/// set, else with one after the other, and not at every call that others are like.
fn torture(cases: &[Case]) {
    let all = std::env::var_os("TARNFS_TEST_ALL").is_some();
    for (turn, case) in cases.iter().enumerate() {
        let judge = Judge::new(case);
        if all {
            for fault in FAULTS {
                for _ in (1..).take_while(|&n| strike(case, &judge, fault, n)) {}
            }
            continue;
        }
        let [io, nospc, dquot, mfile, full, over, blind, unread, crash] = FAULTS;
        for (step, kinds) in [
            (1, &[io, nospc, dquot, mfile][..]),
            (2, &[full, over]),
            (4, &[blind, unread]),
            (1, &[crash]),
        ] {
            let kind = |n: usize| kinds[(n / step + turn) % kinds.len()];
            let calls = (1 + turn % step..).step_by(step);
            for _ in calls.take_while(|&n| strike(case, &judge, kind(n), n)) {}
        }
    }
}

/// Does the operation with the fault at its n-th call; whether it makes that many.
fn strike(case: &Case, judge: &Judge, fault: Fault, n: usize) -> bool {
    let what = format!("{}: {fault:?} at call {n}", case.name);
    let _trying = Trying(&what);
    let mut f = prepare(case);
    faults::plan(n, fault);
    let result = (case.operation)(&f);
    let happened;
    match fault {
        Fault::Crash | Fault::Kill => {
            // Dropped while the plan holds: a dead process clears nothing up.
            let Fixture { dir, fs } = f;
            drop(fs);
            happened = faults::end();
            f = Fixture::reopen(dir);
            let is_after = judge.is_after(&f, &what);
            judge.again(&f, case, is_after, &what);
        }
        Fault::Once(injected) | Fault::Full(injected) | Fault::Blind(injected) => {
            happened = faults::end();
            let is_after = judge.is_after(&f, &what);
            match &result {
                Ok(()) => assert!(is_after, "{what}: success, but nothing happened"),
                Err(error) => {
                    assert_eq!(error.errno(), injected.raw_os_error(), "{what}: {error}");
                }
            }
            // What clears up meets no fault of these kinds, or the one that has passed.
            if result.is_err() && !matches!(fault, Fault::Once(_)) {
                assert_eq!(left_in_work(&f), 0, "{what}");
            }
            f = f.again();
            let still = judge.is_after(&f, &what);
            assert_eq!(still, is_after, "{what}: a new mount shows otherwise");
            assert!(happened || result.is_ok(), "{what}: {result:?}");
        }
    }
    happened
}

#[test]
fn copy_ups() {
    torture(operations::COPY_UPS);
}

#[test]
fn data() {
    torture(operations::DATA);
}

#[test]
fn attributes() {
    torture(operations::ATTRIBUTES);
}

#[test]
fn new_entries() {
    torture(operations::NEW);
}

#[test]
fn links() {
    torture(operations::LINKS);
}

#[test]
fn removals() {
    torture(operations::REMOVALS);
}

#[test]
fn renames() {
    torture(operations::RENAMES);
}

#[test]
fn renames_of_directories() {
    torture(operations::DIRECTORY_RENAMES);
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

/// Room that a removal frees is what the next operation finds: it waits for a file on its way
/// out, and for nothing else.
mod room {
    use super::*;

    /// Creates `path` while there is no room at all.
    fn create_without_room(f: &Fixture, path: &str) -> i32 {
        let (dir, last) = f.split(path).unwrap();
        faults::plan(1, Fault::Full(Errno::NOSPC));
        let me = super::super::fixture::me();
        let refused = f.fs.create(me, dir, &last, 0o600, 0, libc::O_RDWR);
        assert!(faults::end());
        errno(refused)
    }

    #[test]
    fn regression_a_removal_that_finds_no_room_does_not_wait_for_itself() {
        // What it had made ready for the removed inode was taken for a file on its way out, and
        // the removal tried again for ever.
        let f = Fixture::new();
        f.write("a/x", 0, b"!");
        f.write("a/y", 0, b"!");
        f.create("new", b"");
        for refused in [
            Box::new(|| f.unlink("a/x")) as Box<dyn Fn() -> crate::overlay::Result<()>>,
            Box::new(|| f.rename("new", "a/y", 0)),
            Box::new(|| f.rename("a/x", "a/y", 0)),
        ] {
            faults::plan(1, Fault::Full(Errno::NOSPC));
            assert_eq!(errno(refused()), libc::ENOSPC);
            assert!(faults::end());
        }
        assert_eq!(f.read("a/x"), b"!ontent of x\n");
    }

    /// Removes `path`, which the kernel still holds, and finds room only once it lets go.
    fn frees(f: &Fixture, path: &str, remove: impl Fn() -> crate::overlay::Result<()>) {
        let attr = f.attr(path);
        remove().unwrap();
        std::thread::scope(|scope| {
            let forgetting = scope.spawn(|| {
                // Not before the creation below has been refused once and waits.
                while !f.fs.waits_for_room() {
                    std::thread::yield_now();
                }
                f.fs.forget(crate::overlay::Ino(attr.ino), u64::MAX);
            });
            let (dir, last) = f.split("made").unwrap();
            faults::plan(1, Fault::Once(Errno::NOSPC));
            let me = super::super::fixture::me();
            let made = f.fs.create(me, dir, &last, 0o600, 0, libc::O_RDWR);
            assert!(faults::end());
            f.fs.release(made.unwrap().1);
            forgetting.join().unwrap();
        });
        f.unlink("made").unwrap();
    }

    #[test]
    fn of_whatever_has_been_removed() {
        let f = Fixture::new();
        f.create("file", b"1");
        frees(&f, "file", || f.unlink("file"));
        f.mkdir("dir");
        frees(&f, "dir", || f.rmdir("dir"));
        f.create("old", b"1");
        f.create("new", b"2");
        frees(&f, "old", || f.rename("new", "old", 0));
        f.mkdir("dir");
        f.mkdir("dir2");
        frees(&f, "dir", || f.rename("dir2", "dir", 0));
    }

    #[test]
    fn an_open_file_keeps_its_room() {
        let f = Fixture::new();
        f.create("file", b"1");
        let handle = f.fs.open(f.ino("file"), libc::O_RDONLY).unwrap();
        f.unlink("file").unwrap();
        assert_eq!(create_without_room(&f, "new"), libc::ENOSPC);
        f.fs.release(handle);
    }
}
