//! Everything that changes the upper waits while it is frozen, and nothing else does.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;

use super::fixture::{Fixture, asker, me, name};
use crate::overlay::{Make, ROOT_INO, SetAttr};

/// All that a directory on disk shows, but for what reading changes.
fn on_disk(dir: &Path, shown: &mut Vec<String>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let meta = entry.metadata().unwrap();
        shown.push(format!(
            "{:?} {} {:o} {} {} {}.{}",
            entry.path(),
            meta.ino(),
            meta.mode(),
            meta.nlink(),
            meta.size(),
            meta.ctime(),
            meta.ctime_nsec(),
        ));
        if meta.is_dir() {
            on_disk(&entry.path(), shown);
        }
    }
}

fn shown(f: &Fixture) -> Vec<String> {
    let mut all = Vec::new();
    on_disk(&f.upper(""), &mut all);
    on_disk(&f.dir.path().join("work"), &mut all);
    all
}

type Step<'a> = Box<dyn Fn() + Send + Sync + 'a>;

#[test]
fn all_that_changes_waits_and_what_reads_does_not() {
    let f = Fixture::new();
    f.create("own", b"own");
    f.create("gone", b"gone");
    f.mkdir("made");
    let fs = &f.fs;
    let open = |path: &str| fs.open(f.ino(path), libc::O_RDWR).unwrap();
    let (own, suid) = (open("own"), open("suid"));
    let set = |path: &str, set: SetAttr| {
        fs.setattr(f.ino(path), None, &set).unwrap();
    };
    let cut = SetAttr {
        size: Some(1),
        ..SetAttr::default()
    };
    let bits = SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    };
    let make = |last: &str, what: Make<'_>| {
        fs.make(me(), ROOT_INO, &name(last), what, 0o644, 0)
            .unwrap();
    };
    let stranger = crate::overlay::Asker {
        uid: 54_321,
        gid: 54_321,
        ..asker()
    };
    let steps: Vec<Step<'_>> = vec![
        Box::new(|| make("file", Make::File)),
        Box::new(|| make("dir", Make::Dir)),
        Box::new(|| make("link", Make::Symlink(b"x"))),
        Box::new(|| make("pipe", Make::Fifo)),
        Box::new(|| {
            f.create("a/new", b"");
        }),
        Box::new(|| {
            f.link("own", "linked").unwrap();
        }),
        Box::new(|| f.unlink("gone").unwrap()),
        Box::new(|| f.unlink("a/y").unwrap()),
        Box::new(|| f.rmdir("made").unwrap()),
        Box::new(|| f.rmdir("empty").unwrap()),
        Box::new(|| f.rename("b", "c", 0).unwrap()),
        Box::new(|| fs.release(fs.open(f.ino("big"), libc::O_WRONLY).unwrap())),
        Box::new(|| fs.release(fs.open(f.ino("own"), libc::O_RDWR | libc::O_TRUNC).unwrap())),
        Box::new(|| assert_eq!(fs.write(own, 5, b"more").unwrap(), 4)),
        Box::new(|| fs.fallocate(own, 0, 0, 100).unwrap()),
        Box::new(|| {
            fs.copy_file_range(own, 0, own, 50_000, 2).unwrap();
        }),
        Box::new(|| assert!(fs.drop_privileges(suid, stranger, true).unwrap())),
        Box::new(|| set("a/x", cut)),
        Box::new(|| set("link1", bits)),
        Box::new(|| {
            fs.setxattr(asker(), f.ino("own"), b"user.x", b"y", 0)
                .unwrap()
        }),
        Box::new(|| fs.removexattr(f.ino("big"), b"user.note").unwrap()),
    ];
    let before = shown(&f);
    let done = Mutex::new(0);
    std::thread::scope(|scope| {
        let frozen = fs.freeze();
        for step in &steps {
            scope.spawn(|| {
                step();
                *done.lock().unwrap() += 1;
            });
        }
        while fs.gate.held() < steps.len() {
            assert_eq!(*done.lock().unwrap(), 0);
            std::thread::yield_now();
        }
        // Meanwhile all can be looked at.
        assert_eq!(f.read("own"), b"own");
        assert_eq!(f.read("a/x"), b"content of x\n");
        assert!(f.ls("").contains(&"made".to_owned()) && !f.exists("file"));
        fs.getxattr(f.ino("big"), b"user.note").unwrap();
        fs.statfs().unwrap();
        fs.fsync(own, false).unwrap();
        assert!(!fs.drop_privileges(own, stranger, true).unwrap());
        fs.forget(f.ino("own"), 1);
        assert_eq!(*done.lock().unwrap(), 0);
        assert_eq!(shown(&f), before);
        drop(frozen);
    });
    assert_eq!(*done.lock().unwrap(), steps.len());
    fs.release(own);
    fs.release(suid);
    for path in ["file", "dir", "link", "pipe", "a/new", "linked", "c/link3"] {
        assert!(f.exists(path), "{path}");
    }
    for path in ["gone", "a/y", "made", "empty", "b"] {
        assert!(!f.exists(path), "{path}");
    }
    assert_eq!((f.attr("a/x").size, f.attr("link1").perm), (1, 0o600));
    assert_eq!(f.attr("suid").perm, 0o755);
}

#[test]
fn a_panic_with_the_guard_lets_go() {
    let f = Fixture::new();
    std::thread::scope(|scope| {
        let panics = scope.spawn(|| {
            let _frozen = f.fs.freeze();
            panic!("while frozen");
        });
        panics.join().unwrap_err();
    });
    f.create("after", b"");
    drop(f.fs.freeze());
    f.unlink("after").unwrap();
}
