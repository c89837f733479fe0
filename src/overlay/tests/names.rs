//! Creation, removal and listing.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::fixture::{Fixture, errno, is_whiteout, mark, me, name};
use crate::inode::Kind;
use crate::overlay::{Caller, DirEntry, Ino, Make, ROOT_INO};

#[test]
fn a_removed_file_leaves_a_whiteout_and_can_come_back() {
    let f = Fixture::new();
    f.unlink("a/x").unwrap();
    assert!(!f.exists("a/x"));
    assert!(is_whiteout(&f.upper("a/x")));
    assert_eq!(f.ls("a"), ["sub", "y"]);
    assert_eq!(errno(f.unlink("a/x")), libc::ENOENT);
    f.create("a/x", b"new");
    assert_eq!(f.read("a/x"), b"new");
    f.unlink("a/x").unwrap();
    assert!(is_whiteout(&f.upper("a/x")));
    let f = f.again();
    assert!(!f.exists("a/x"));
    assert!(
        std::fs::read_dir(f.dir.path().join("work/work"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn a_file_that_was_never_in_the_image_leaves_nothing() {
    let f = Fixture::new();
    f.create("a/new", b"1");
    assert_eq!(f.ls("a"), ["new", "sub", "x", "y"]);
    f.unlink("a/new").unwrap();
    assert!(!f.upper("a/new").exists());
    assert!(std::fs::symlink_metadata(f.upper("a/new")).is_err());
}

#[test]
fn names_that_exist_cannot_be_made_again() {
    let f = Fixture::new();
    for path in ["a/x", "a/sub", "sym"] {
        let (dir, last) = f.split(path).unwrap();
        assert_eq!(
            errno(f.fs.make(me(), dir, &last, Make::Dir, 0o755, 0)),
            libc::EEXIST
        );
        assert_eq!(
            errno(f.fs.create(me(), dir, &last, 0o644, 0, libc::O_RDWR)),
            libc::EEXIST
        );
    }
    assert!(!f.upper("a").exists(), "a refusal copies nothing up");
    f.create("a/new", b"");
    let (dir, last) = f.split("a/new").unwrap();
    assert_eq!(
        errno(f.fs.make(me(), dir, &last, Make::Fifo, 0o755, 0)),
        libc::EEXIST
    );
}

#[test]
fn directories_are_removed_only_when_the_merged_view_is_empty() {
    let f = Fixture::new();
    assert_eq!(errno(f.rmdir("a/sub")), libc::ENOTEMPTY);
    assert_eq!(errno(f.rmdir("a/x")), libc::ENOTDIR);
    assert_eq!(errno(f.unlink("a/sub")), libc::EISDIR);
    f.unlink("a/sub/deep").unwrap();
    assert_eq!(errno(f.rmdir("a/sub")), libc::ENOTEMPTY);
    f.unlink("a/sub/link2").unwrap();
    let sub = f.ino("a/sub");
    let nlink = f.attr("a").nlink;
    f.rmdir("a/sub").unwrap();
    assert!(is_whiteout(&f.upper("a/sub")));
    assert_eq!(f.attr("a").nlink, nlink - 1);
    assert_eq!(errno(f.fs.lookup(sub, &name("deep"))), libc::ENOENT);
    f.rmdir("empty").unwrap();
    assert!(is_whiteout(&f.upper("empty")));
    assert_eq!(f.again().ls("a"), ["x", "y"]);
}

#[test]
fn a_directory_made_over_a_removed_one_is_opaque() {
    let f = Fixture::new();
    f.unlink("a/sub/deep").unwrap();
    f.unlink("a/sub/link2").unwrap();
    f.rmdir("a/sub").unwrap();
    f.mkdir("a/sub");
    assert_eq!(f.ls("a/sub"), [""; 0]);
    assert_eq!(mark(&f.upper("a/sub"), "overlay.opaque").unwrap(), b"y");
    f.create("a/sub/deep", b"other");
    let f = f.again();
    assert_eq!(f.ls("a/sub"), ["deep"]);
    f.unlink("a/sub/deep").unwrap();
    f.rmdir("a/sub").unwrap();
    assert!(is_whiteout(&f.upper("a/sub")));
}

#[test]
fn the_whole_tree_can_be_removed() {
    fn remove(f: &Fixture, path: &str) {
        for entry in f.ls(path) {
            let child = format!("{path}/{entry}");
            if f.attr(&child).kind == crate::inode::Kind::Dir {
                remove(f, &child);
                f.rmdir(&child).unwrap();
            } else {
                f.unlink(&child).unwrap();
            }
        }
    }
    let f = Fixture::new();
    f.create("a/sub/new", b"");
    f.write("a/x", 0, b"!");
    remove(&f, "");
    assert_eq!(f.ls(""), [""; 0]);
    assert_eq!(f.attr("").nlink, 2);
    assert_eq!(f.again().ls(""), [""; 0]);
}

#[test]
fn a_listing_goes_on_where_it_was_while_entries_come_and_go() {
    let f = Fixture::new();
    f.mkdir("many");
    for i in 0..100 {
        f.create(&format!("many/{i:03}"), b"");
    }
    let listed = f.ino("many");
    let mut seen = Vec::new();
    let mut at = 0;
    loop {
        let mut got = 0;
        f.fs.readdirplus(listed, at, &mut |entry: DirEntry<'_>| {
            if got == 7 {
                return ControlFlow::Break(());
            }
            got += 1;
            at = entry.next;
            if let Some(found) = entry.entry {
                assert_eq!(found.attr.ino, entry.ino);
                f.fs.forget(Ino(entry.ino), 1);
            }
            seen.push(String::from_utf8(entry.name.to_vec()).unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
        if got == 0 {
            break;
        }
        let i = seen.len();
        f.create(&format!("many/new{i}"), b"");
        if let Some(last) = seen.last().filter(|last| last.len() == 3) {
            f.unlink(&format!("many/{last}")).unwrap();
        }
    }
    seen.sort();
    let old: Vec<String> = (0..100).map(|i| format!("{i:03}")).collect();
    assert_eq!(seen[2..].iter().filter(|n| n.len() == 3).count(), 100);
    assert!(old.iter().all(|name| seen.contains(name)));
    seen.dedup();
    assert_eq!(seen.iter().filter(|n| n.len() == 3).count(), 100);
}

#[test]
fn a_listing_of_the_image_goes_on_after_a_copy_up() {
    let f = Fixture::new();
    let listed = f.ino("a");
    let mut seen = Vec::new();
    let mut at = 0;
    f.fs.readdir(listed, 0, &mut |entry: DirEntry<'_>| {
        if seen.len() == 3 {
            return ControlFlow::Break(());
        }
        at = entry.next;
        seen.push(entry.name.to_vec());
        ControlFlow::Continue(())
    })
    .unwrap();
    f.write("a/y", 0, b"copied up");
    f.fs.readdir(listed, at, &mut |entry: DirEntry<'_>| {
        seen.push(entry.name.to_vec());
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen, [&b"."[..], b"..", b"sub", b"x", b"y"]);
}

#[test]
fn regression_a_name_that_went_is_not_handed_out_as_found() {
    let f = Fixture::new();
    let listed = f.ino("a");
    let mut found = Vec::new();
    f.fs.readdirplus(listed, 0, &mut |entry: DirEntry<'_>| {
        match entry.name {
            b"." | b".." => assert!(entry.entry.is_none()),
            name => found.push(name.to_vec()),
        }
        if entry.name == b".." {
            // Brings the directory to the upper, in the middle of the listing.
            f.unlink("a/x").unwrap();
            f.rename("a/y", "a/z", 0).unwrap();
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(found, [b"sub"]);
}

/// The names of `a` behind a position, and where each is.
fn behind(f: &Fixture, from: u64, plus: bool) -> Vec<(Vec<u8>, u64)> {
    let dir = f.ino("a");
    let mut all = Vec::new();
    let each = &mut |entry: DirEntry<'_>| {
        all.push((entry.name.to_vec(), entry.next));
        ControlFlow::Continue(())
    };
    if plus {
        f.fs.readdirplus(dir, from, each).unwrap();
    } else {
        f.fs.readdir(dir, from, each).unwrap();
    }
    all
}

#[test]
fn regression_a_position_leads_on_from_the_same_entry_for_all() {
    let names = |entries: &[(Vec<u8>, u64)]| -> Vec<Vec<u8>> {
        entries.iter().map(|(name, _)| name.clone()).collect()
    };
    // Behind each position of `told` is what comes behind its entry in `now`.
    let lead_on = |f: &Fixture, told: &[(Vec<u8>, u64)], now: &[(Vec<u8>, u64)]| {
        for (name, at) in told {
            if let Some(i) = now.iter().position(|(other, _)| other == name) {
                assert_eq!(names(&behind(f, *at, false)), names(&now[i + 1..]));
            }
        }
    };
    let f = Fixture::new();
    let image = behind(&f, 0, false);
    f.write("a/y", 0, b"copied up");
    assert_eq!(names(&behind(&f, 0, false)), names(&image));
    lead_on(&f, &image, &image);
    for name in ["1", "2", "3"] {
        f.create(&format!("a/{name}"), b"");
    }
    let more = behind(&f, 0, true);
    assert_eq!(names(&more[..image.len()]), names(&image));
    assert_eq!(behind(&f, 0, false), more);
    lead_on(&f, &image, &more);
    f.unlink("a/2").unwrap();
    f.unlink("a/x").unwrap();
    let stayed = |entry: &&(Vec<u8>, u64)| !matches!(&entry.0[..], b"2" | b"x");
    let stayed: Vec<_> = more.iter().filter(stayed).cloned().collect();
    assert_eq!(names(&behind(&f, 0, false)), names(&stayed));
    lead_on(&f, &more, &stayed);
    let f = f.again();
    assert_eq!(names(&behind(&f, 0, false)), names(&stayed));
    lead_on(&f, &more, &stayed);
    f.create("a/x", b"another one");
    f.create("a/2", b"another one");
    assert_eq!(names(&behind(&f, 0, false)), names(&more));
    lead_on(&f, &stayed, &more);
    lead_on(&f, &more, &more);
}

#[test]
fn no_listing_goes_on_in_one_of_another_state() {
    let f = Fixture::new();
    let positions = |from: u64| -> BTreeSet<u64> {
        let entries = behind(&f, from, false);
        entries.into_iter().map(|(_, at)| at).collect()
    };
    let mut before: Vec<BTreeSet<u64>> = vec![positions(0)];
    for i in 0..12 {
        match i % 3 {
            0 => drop(f.create("a/new", b"")),
            1 => f.unlink("a/new").unwrap(),
            // It has another parent meanwhile, and `..` is another's number.
            _ => f
                .rename("a", "b/a", 0)
                .and(f.rename("b/a", "a", 0))
                .unwrap(),
        }
        let begun = positions(0);
        assert_eq!(positions(0), begun, "{i}: nothing has changed");
        for told in &before {
            assert!(told.is_disjoint(&begun), "{i}: {told:x?} {begun:x?}");
            let goes_on = positions(*told.first().unwrap());
            assert!(goes_on.is_disjoint(&begun), "{i}: {goes_on:x?} {begun:x?}");
        }
        before.push(begun);
    }
}

#[test]
fn who_has_another_parent_is_told() {
    let f = Fixture::new();
    let ino = |path: &str| f.ino(path);
    let rename = |from: (Ino, &str), to: (Ino, &str), flags| {
        f.fs.rename(from.0, &name(from.1), to.0, &name(to.1), flags)
            .unwrap()
    };
    let (a, b) = (ino("a"), ino("b"));
    assert_eq!(rename((ROOT_INO, "a"), (ROOT_INO, "c"), 0), []);
    assert_eq!(rename((ROOT_INO, "c"), (b, "c"), 0), [a]);
    assert_eq!(rename((b, "c"), (ROOT_INO, "a"), 0), [a]);
    let sub = ino("a/sub");
    let exchange = libc::RENAME_EXCHANGE;
    assert_eq!(rename((a, "sub"), (ROOT_INO, "b"), exchange), [sub, b]);
    assert_eq!(rename((a, "x"), (ROOT_INO, "x"), 0), []);
}

#[test]
fn new_files_belong_to_the_caller_and_obey_umask_and_setgid() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can make files of others");
        assert!(std::env::var_os("CI").is_none());
        return;
    }
    let f = Fixture::new();
    let other = Caller {
        uid: 1234,
        gid: 2345,
    };
    let (entry, handle) =
        f.fs.create(other, ROOT_INO, &name("file"), 0o666, 0o027, libc::O_RDWR)
            .unwrap();
    f.fs.release(handle);
    assert_eq!(
        (entry.attr.uid, entry.attr.gid, entry.attr.perm),
        (1234, 2345, 0o640)
    );
    let dir =
        f.fs.make(other, ROOT_INO, &name("dir"), Make::Dir, 0o777, 0o002)
            .unwrap()
            .attr;
    assert_eq!((dir.uid, dir.gid, dir.perm), (1234, 2345, 0o775));
    f.chmod("dir", 0o2775);
    let root = me();
    for (who, sub) in [(root, "by-root"), (Caller { uid: 9, gid: 9 }, "by-other")] {
        let made =
            f.fs.make(who, Ino(dir.ino), &name(sub), Make::Dir, 0o777, 0o022)
                .unwrap()
                .attr;
        assert_eq!(
            (made.uid, made.gid, made.perm),
            (who.uid, 2345, 0o2755),
            "{sub}"
        );
        let file = format!("{sub}-file");
        let made =
            f.fs.make(who, Ino(dir.ino), &name(&file), Make::File, 0o666, 0)
                .unwrap()
                .attr;
        assert_eq!(
            (made.uid, made.gid, made.perm),
            (who.uid, 2345, 0o666),
            "{file}"
        );
    }
    let target = Make::Symlink(b"anywhere");
    let link =
        f.fs.make(other, ROOT_INO, &name("l"), target, 0o777, 0)
            .unwrap()
            .attr;
    assert_eq!((link.uid, link.gid, link.size), (1234, 2345, 8));
    let node =
        f.fs.make(other, ROOT_INO, &name("tty"), Make::Char(0x0501), 0o620, 0)
            .unwrap();
    assert_eq!((node.attr.rdev, node.attr.perm), (0x0501, 0o620));
}

#[test]
fn regression_a_character_device_0_0_is_no_whiteout() {
    let f = Fixture::new();
    let root = ROOT_INO;
    let made =
        f.fs.make(me(), root, &name("null"), Make::Char(0), 0o640, 0);
    if !rustix::process::geteuid().is_root() {
        // Only trusted.* attributes exist on devices (xattr(7)).
        assert_eq!(errno(made), libc::EPERM);
        return;
    }
    let made = made.unwrap().attr;
    assert_eq!((made.kind, made.rdev, made.perm), (Kind::Char, 0, 0o640));
    assert!(!is_whiteout(&f.upper("null")));
    // A name that another file of the image had, and a device that has the stand-in's number.
    f.unlink("a/x").unwrap();
    f.fs.make(me(), f.ino("a"), &name("x"), Make::Char(0), 0o600, 0)
        .unwrap();
    f.fs.make(me(), root, &name("one"), Make::Char(1), 0o600, 0)
        .unwrap();
    f.link("null", "b/null").unwrap();
    f.rename("null", "moved", 0).unwrap();
    let f = f.again();
    assert_eq!((f.attr("moved").rdev, f.attr("moved").nlink), (0, 2));
    assert_eq!((f.attr("b/null").rdev, f.attr("a/x").rdev), (0, 0));
    assert_eq!(f.attr("one").rdev, 1);
    assert!(f.fs.listxattr(f.ino("moved")).unwrap().is_empty());
    assert_eq!(f.ls("a"), ["sub", "x", "y"]);
    f.unlink("moved").unwrap();
    assert!(!f.exists("moved"));
}

#[test]
fn regression_removed_files_of_the_image_do_not_stay_for_the_life_of_the_mount() {
    let f = Fixture::new();
    let (at_rest, _) = f.fs.in_memory();
    f.chmod("big", 0o600);
    f.chmod("empty", 0o700);
    let (file, dir) = (f.ino("big"), f.ino("empty"));
    let handle = f.fs.open(file, libc::O_RDONLY).unwrap();
    f.unlink("big").unwrap();
    f.rmdir("empty").unwrap();
    // What is forgotten of an open file is not all of it.
    f.fs.forget(file, 1);
    assert_eq!(f.fs.getattr(file, None).unwrap().perm, 0o600);
    let mut data = [0; 4];
    assert_eq!(f.fs.read(handle, 4, &mut data).unwrap(), 4);
    f.fs.release(handle);
    f.fs.forget(file, 9);
    f.fs.forget(dir, 9);
    assert_eq!(f.fs.in_memory(), (at_rest, 0));
}

#[test]
fn forgotten_inodes_leave_no_state() {
    let f = Fixture::new();
    let (at_rest, _) = f.fs.in_memory();
    f.mkdir("d");
    let mut known = Vec::new();
    for i in 0..50 {
        f.mkdir(&format!("d/{i}"));
        known.push(f.create(&format!("d/{i}/file"), b"").ino);
    }
    drop(f);
    let f = Fixture::new();
    let d = f.mkdir("d");
    let mut counts = std::collections::HashMap::new();
    for i in 0..50 {
        let dir =
            f.fs.make(me(), Ino(d.ino), &name(&i.to_string()), Make::Dir, 0o755, 0)
                .unwrap();
        let dir = dir.attr.ino;
        let file =
            f.fs.make(me(), Ino(dir), &name("file"), Make::File, 0o644, 0)
                .unwrap();
        counts.insert(dir, 1);
        counts.insert(file.attr.ino, 1);
    }
    counts.insert(d.ino, 1);
    assert_eq!(f.fs.in_memory().0, at_rest + counts.len());
    for (ino, count) in counts {
        f.fs.forget(Ino(ino), count);
    }
    assert_eq!(f.fs.in_memory(), (at_rest, 0));
}

#[test]
fn a_chain_of_thousands_of_directories_does_no_harm() {
    let f = Fixture::new();
    let mut at = ROOT_INO;
    let mut chain = Vec::new();
    for _ in 0..3_000 {
        at = Ino(f
            .fs
            .make(me(), at, &name("d"), Make::Dir, 0o755, 0)
            .unwrap()
            .attr
            .ino);
        chain.push(at);
    }
    let made =
        f.fs.make(me(), at, &name("end"), Make::File, 0o644, 0)
            .unwrap();
    // Forgotten from the top, so that the last one holds up the whole chain.
    for ino in &chain {
        f.fs.forget(*ino, 1);
    }
    f.fs.forget(Ino(made.attr.ino), 1);
    assert!(f.exists("d/d/d/d/d"));
    let Fixture { dir, fs } = f;
    drop(fs);
    let fd = std::fs::File::open(dir.path()).unwrap();
    crate::upper::work::remove_tree(std::os::fd::AsFd::as_fd(&fd), b"upper").unwrap();
}

#[test]
fn a_number_leads_back_to_what_an_earlier_mount_copied_up() {
    let f = Fixture::new();
    let ino = f.ino("a/x");
    f.write("a/x", 0, b"NEW");
    let f = f.again();
    assert_eq!(f.fs.revisit(ino).unwrap().attr.ino, ino.0);
    assert_eq!(&f.read("a/x")[..3], b"NEW");
    let f = f.again();
    f.unlink("a/x").unwrap();
    let f = f.again();
    assert_eq!(errno(f.fs.revisit(ino)), libc::ESTALE);
}

#[test]
fn a_number_of_no_inode_is_stale() {
    let f = Fixture::new();
    for number in [0, 2, 3, 1 << 39, (1 << 40) + 1, u64::MAX] {
        assert_eq!(errno(f.fs.revisit(Ino(number))), libc::ESTALE, "{number}");
    }
}

#[test]
fn regression_a_number_used_again_has_another_generation() {
    let f = Fixture::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        let number = f.create("again", b"").ino;
        let entry = f.entry("again").unwrap();
        assert!(seen.insert((number, entry.generation)));
        f.unlink("again").unwrap();
        f.fs.forget(Ino(number), 2);
    }
}
