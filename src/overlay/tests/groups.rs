//! A group of hard links of the image on its way to the upper: all of its names or none, whatever
//! fails and whoever comes between.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::io::Errno;

use super::fixture::{Fixture, Home, errno, lower, me, name};
use super::races::{at_once, tree};
use crate::overlay::{Error, Ino, Options, Overlay, ROOT_INO, Result, SetAttr, Target};
use crate::sys::faults::{self, Fault};

const NAMES: [&str; 3] = ["link1", "a/sub/link2", "b/link3"];

fn copy_up(f: &Fixture, path: &str) -> Result<()> {
    let handle = f.fs.open(f.ino(path), libc::O_RDWR)?;
    f.fs.release(handle);
    Ok(())
}

/// Names of the group that the upper has.
fn on_disk(f: &Fixture) -> Vec<&'static str> {
    NAMES
        .into_iter()
        .filter(|path| f.upper(path).exists())
        .collect()
}

#[test]
fn regression_a_group_is_the_image_s_until_it_has_all_its_names() {
    // After the first name the half-made copy was everybody's, to write to as well.
    let f = Arc::new(Fixture::new());
    // So that only the group is copied up below.
    f.chmod("a/sub", 0o700);
    f.chmod("b", 0o700);
    let ino = f.ino("link1");
    let seen = Rc::new(Cell::new(0));
    let (looking, noting) = (Arc::clone(&f), Rc::clone(&seen));
    faults::watch(move || {
        let linked = on_disk(&looking).len();
        noting.set(noting.get().max(linked));
        assert!(matches!(looking.fs.target(ino), Ok(Target::Lower(_))));
        for path in NAMES {
            let attr = looking.attr(path);
            assert_eq!((attr.ino, attr.nlink), (ino.0, 3), "{path} of {linked}");
            assert_eq!(looking.read(path), b"one file\n", "{path} of {linked}");
        }
        // A listing waits for who changes names in its directory, as in the next one by now.
        if linked > 1 {
            let other = Arc::clone(&looking);
            let listed = std::thread::spawn(move || other.ls("")).join().unwrap();
            assert!(listed.contains(&"link1".to_owned()));
        }
    });
    copy_up(&f, "b/link3").unwrap();
    faults::unwatch();
    assert_eq!(seen.get(), 3);
    assert!(matches!(f.fs.target(ino), Ok(Target::Upper(_))));
    assert_eq!(f.attr("link1").nlink, 3);
}

/// Copies the group up, which fails at its last name; `meanwhile` runs on another thread from the
/// moment on when the upper has `/link1` for the copy, until it ends or waits for the group.
fn fails_while(f: &Arc<Fixture>, meanwhile: fn(&Fixture)) {
    type Running = Mutex<Option<JoinHandle<()>>>;
    let running: Arc<Running> = Arc::default();
    let (looking, starting) = (Arc::clone(f), Arc::clone(&running));
    faults::watch(move || {
        let mut running = starting.lock().unwrap();
        if on_disk(&looking).len() < 2 || running.is_some() {
            return;
        }
        assert!(looking.upper("link1").exists());
        let other = Arc::clone(&looking);
        let thread = std::thread::spawn(move || meanwhile(&other));
        while !thread.is_finished() && looking.fs.await_rise.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        *running = Some(thread);
        // The link of the third name comes after this one's directory was put right and the
        // next one marked.
        faults::plan(3, Fault::Once(Errno::NOSPC));
    });
    let failed = copy_up(f, "a/sub/link2");
    faults::unwatch();
    assert!(faults::end());
    assert_eq!(errno(failed), libc::ENOSPC);
    running.lock().unwrap().take().unwrap().join().unwrap();
}

fn shows(f: &Fixture, names: &[&str]) {
    let nlink = u32::try_from(names.len()).unwrap();
    for path in NAMES {
        if names.contains(&path) {
            assert_eq!(f.attr(path).nlink, nlink, "{path}");
            assert_eq!(f.read(path), b"one file\n", "{path}");
        }
    }
}

#[test]
fn regression_a_failed_copy_up_of_a_group_leaves_what_others_made_of_its_names() {
    // The names that it had got were taken back whoever's they were by then.
    let f = Arc::new(Fixture::new());
    fails_while(&f, |f| {
        f.unlink("link1").unwrap();
        f.create("link1", b"mine");
    });
    let f = Arc::into_inner(f).unwrap();
    assert_eq!(f.read("link1"), b"mine");
    assert_eq!(f.attr("link1").nlink, 1);
    shows(&f, &NAMES[1..]);
    let before = tree(&f);
    assert_eq!(before, tree(&f.again()));
}

#[test]
fn regression_a_file_renamed_over_a_name_of_a_group_stays_when_its_copy_up_fails() {
    let f = Arc::new(Fixture::new());
    fails_while(&f, |f| f.rename("big", "link1", 0).unwrap());
    let f = Arc::into_inner(f).unwrap();
    assert_eq!(f.read("link1"), super::fixture::big());
    assert!(!f.exists("big"));
    shows(&f, &NAMES[1..]);
    let before = tree(&f);
    assert_eq!(before, tree(&f.again()));
}

#[test]
fn a_name_removed_while_the_group_rises_is_gone() {
    let f = Arc::new(Fixture::new());
    fails_while(&f, |f| f.unlink("link1").unwrap());
    assert!(!f.exists("link1"));
    shows(&f, &NAMES[1..]);
    copy_up(&f, "b/link3").unwrap();
    let f = Arc::into_inner(f).unwrap().again();
    assert!(!f.exists("link1"));
    shows(&f, &NAMES[1..]);
}

#[test]
fn a_group_that_can_be_neither_finished_nor_undone_is_finished_by_the_next_mount() {
    let mut ends = 0;
    for n in 1.. {
        let f = Fixture::new();
        faults::plan(n, Fault::Crash);
        let result = copy_up(&f, "link1");
        if !faults::end() {
            result.unwrap();
            break;
        }
        let halves = on_disk(&f).len();
        if halves > 0 {
            ends += 1;
            // No more changes, but what is there is shown as it was.
            assert_eq!(errno(f.unlink("link1")), libc::EIO);
            assert_eq!(errno(f.rename("big", "link1", 0)), libc::EIO);
        }
        for path in NAMES {
            assert_eq!(f.attr(path).nlink, 3, "{path} with {halves}");
        }
        let f = f.again();
        shows(&f, &NAMES);
        assert_eq!(on_disk(&f).len() % 3, 0, "{halves}");
    }
    assert!(ends > 2);
}

/// The directory of a mount that died when the group had got its first name.
fn half_risen() -> Home {
    for n in 1.. {
        let f = Fixture::new();
        faults::plan(n, Fault::Crash);
        copy_up(&f, "link1").unwrap_err();
        let linked = on_disk(&f);
        let Fixture { dir, fs } = f;
        drop(fs);
        assert!(faults::end());
        if !linked.is_empty() {
            assert_eq!(linked, ["link1"]);
            return dir;
        }
    }
    unreachable!()
}

fn pending(dir: &Home) -> PathBuf {
    dir.path().join("work/pending-links")
}

#[test]
fn a_mount_that_dies_while_it_finishes_a_group_is_finished_by_the_next() {
    for n in 1.. {
        let dir = half_risen();
        let upper = Fixture::open_upper(dir.path());
        faults::plan(n, Fault::Crash);
        let mounted = Overlay::with_upper(lower(dir.path()), upper, Options::default());
        let happened = faults::end();
        assert_eq!(mounted.is_err(), happened, "at change {n}");
        drop(mounted);
        let f = Fixture::reopen(dir);
        shows(&f, &NAMES);
        assert_eq!(on_disk(&f), NAMES);
        assert_eq!(std::fs::read_dir(pending(&f.dir)).unwrap().count(), 0);
        if !happened {
            assert!(n > 3);
            break;
        }
    }
}

#[test]
fn a_group_is_finished_only_where_the_image_s_file_is_still_seen() {
    let dir = half_risen();
    // As if what changes these names had been quicker than the copier.
    let aside = dir.path().join("aside");
    std::fs::rename(pending(&dir), &aside).unwrap();
    let f = Fixture::reopen(dir);
    f.unlink("b/link3").unwrap();
    f.rename("big", "a/sub/link2", 0).unwrap();
    let Fixture { dir, fs } = f;
    drop(fs);
    std::fs::rename(&aside, pending(&dir)).unwrap();
    let f = Fixture::reopen(dir);
    assert!(!f.exists("b/link3"));
    assert_eq!(f.read("a/sub/link2"), super::fixture::big());
    shows(&f, &NAMES[..1]);
}

#[test]
fn regression_a_half_copied_group_of_another_image_waits_for_that_image() {
    // A mount with another image gave it up, and the group was two files from then on.
    let dir = half_risen();
    let own = std::fs::read_dir(pending(&dir)).unwrap().next().unwrap();
    let own = own.unwrap().path();
    let (number, _) = own.to_str().unwrap().rsplit_once('.').unwrap();
    let other = PathBuf::from(format!("{number}.{:016x}", 0));
    std::fs::rename(&own, &other).unwrap();
    let Fixture { dir, fs } = Fixture::reopen(dir);
    drop(fs);
    assert_eq!(std::fs::read(&other).unwrap(), b"one file\n");
    std::fs::rename(&other, &own).unwrap();
    let f = Fixture::reopen(dir);
    shows(&f, &NAMES);
    assert_eq!(on_disk(&f), NAMES);
}

/// A call that met a fault or lost a race may say so, and nothing else.
fn allow<T>(what: &str, result: std::result::Result<T, Error>) -> Option<T> {
    let allowed = [
        libc::ENOENT,
        libc::EEXIST,
        libc::ENOSPC,
        libc::EIO,
        libc::EMFILE,
    ];
    match result {
        Ok(value) => Some(value),
        Err(error) if allowed.contains(&error.errno()) => None,
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn eight_threads_on_one_group_whose_calls_fail() {
    const FAULTS: [Fault; 4] = [
        Fault::Once(Errno::IO),
        Fault::Once(Errno::NOSPC),
        Fault::Blind(Errno::MFILE),
        Fault::Blind(Errno::IO),
    ];
    let rounds = match std::env::var_os("TARNFS_TEST_ALL") {
        Some(_) => 400,
        None => 60,
    };
    for round in 0..rounds {
        let f = Fixture::new();
        let (fs, ino) = (&f.fs, f.ino("link1"));
        let [a, b, sub] = ["a", "b", "a/sub"].map(|path| f.ino(path));
        let faulty = |thread: usize, times: usize, call: &dyn Fn(&Overlay, usize)| {
            for i in 0..times {
                let at = 1 + (round * 7 + thread * 5 + i * 3) % 17;
                faults::plan(at, FAULTS[(round + thread + i) % FAULTS.len()]);
                call(fs, i);
                faults::end();
            }
        };
        let open = |fs: &Overlay, flags| {
            if let Some(handle) = allow("open", fs.open(ino, flags)) {
                allow("write", fs.write(handle, 0, b"ONE"));
                fs.release(handle);
            }
        };
        let chmod = |fs: &Overlay, i: usize| {
            let perm = Some(if i.is_multiple_of(2) { 0o600 } else { 0o640 });
            let set = SetAttr {
                perm,
                ..SetAttr::default()
            };
            allow("chmod", fs.setattr(ino, None, &set));
        };
        at_once(&[
            &|| faulty(0, 3, &|fs, _| open(fs, libc::O_RDWR)),
            &|| faulty(1, 3, &|fs, i| chmod(fs, i)),
            &|| {
                faulty(2, 3, &|fs, i| {
                    allow("link", fs.link(ino, b, &name(&format!("new{i}"))));
                });
            },
            &|| {
                faulty(3, 3, &|fs, _| {
                    allow("unlink", fs.unlink(ROOT_INO, &name("link1")));
                    let made = fs.create(me(), ROOT_INO, &name("link1"), 0o644, 0, libc::O_RDWR);
                    if let Some((_, handle)) = allow("create", made) {
                        fs.release(handle);
                    }
                });
            },
            &|| {
                faulty(4, 3, &|fs, i| {
                    let (old, new) = (name("link2"), name(&format!("moved{i}")));
                    allow("rename", fs.rename(sub, &old, a, &new, 0));
                    allow("rename", fs.rename(a, &new, sub, &old, 0));
                });
            },
            &|| {
                faulty(5, 3, &|fs, _| {
                    allow("rename", fs.rename(a, &name("x"), b, &name("link3"), 0));
                });
            },
            &|| {
                faulty(6, 3, &|fs, i| {
                    allow("unlink", fs.unlink(b, &name(&format!("new{i}"))));
                    allow("unlink", fs.unlink(sub, &name("link2")));
                });
            },
            &|| {
                for _ in 0..3 {
                    fs.getattr(ino, None).unwrap();
                    for (dir, last) in [(ROOT_INO, "link1"), (sub, "link2"), (b, "link3")] {
                        if let Some(found) = allow("lookup", fs.lookup(dir, &name(last))) {
                            fs.getattr(Ino(found.attr.ino), None).unwrap();
                        }
                    }
                }
            },
        ]);
        let held = fs.open(ino, libc::O_RDWR).unwrap();
        assert_eq!(fs.write(held, 0, b"TWO").unwrap(), 3);
        fs.release(held);
        let before = tree(&f);
        assert_eq!(before, tree(&f.again()), "round {round}");
    }
}
