//! Listings of large directories while their entries come and go, on a plain directory first,
//! which proves the test, then on mounts.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Sandbox, can_mount, pack};
use rustix::fs::{RawDir, SeekFrom};

const COUNT: usize = 2_000;

/// Reads one buffer's worth of entries: name and the offset behind it.
fn read_some(dir: &File) -> Vec<(String, u64)> {
    read_by(dir, 1_024)
}

/// The same, of a buffer of `size` bytes.
fn read_by(dir: &File, size: usize) -> Vec<(String, u64)> {
    let mut buf = vec![MaybeUninit::uninit(); size];
    let mut raw = RawDir::new(dir, &mut buf);
    let mut found = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        found.push((name, entry.next_entry_cookie()));
        if raw.is_buffer_empty() {
            break;
        }
    }
    found
}

fn read_rest(dir: &File) -> Vec<(String, u64)> {
    rest_by(dir, 1_024)
}

fn rest_by(dir: &File, size: usize) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    loop {
        let more = read_by(dir, size);
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

fn name(i: usize) -> String {
    format!("entry-{i:04}")
}

/// Takes away, renames and adds entries while a listing is under way: every third entry is left
/// alone and must be shown once, no other more often, and what is gone before the listing begins
/// anew is gone from it.
fn check(at: &Path) {
    let dir = File::open(at).unwrap();
    let mut found = read_some(&dir);
    let mut step = 0;
    for i in 0..COUNT {
        match i % 3 {
            0 => {}
            1 => fs::remove_file(at.join(name(i))).unwrap(),
            _ => {
                fs::rename(at.join(name(i)), at.join(format!("renamed-{i:04}"))).unwrap();
                fs::write(at.join(format!("new-{i:04}")), "").unwrap();
            }
        }
        if i % 20 == 0 {
            found.extend(read_some(&dir));
            step += 1;
        }
    }
    assert_eq!(step, COUNT / 20);
    found.extend(read_rest(&dir));
    let mut times: BTreeMap<&str, u32> = BTreeMap::new();
    for (name, _) in &found {
        *times.entry(name).or_default() += 1;
    }
    for i in (0..COUNT).step_by(3) {
        assert_eq!(times.get(name(i).as_str()), Some(&1), "{}", name(i));
    }
    assert!(times.values().all(|&n| n == 1), "an entry twice");

    // From the start again: just what is there now.
    rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
    let again = read_rest(&dir);
    let mut names: Vec<_> = again.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    let mut expected = vec![".".to_owned(), "..".to_owned()];
    for i in 0..COUNT {
        match i % 3 {
            0 => expected.push(name(i)),
            1 => {}
            _ => expected.extend([format!("new-{i:04}"), format!("renamed-{i:04}")]),
        }
    }
    expected.sort();
    assert_eq!(names, expected);

    // seekdir(3) to where telldir(3) said.
    for at in [0, 1, 2, 700, again.len() - 2] {
        rustix::fs::seek(&dir, SeekFrom::Start(again[at].1)).unwrap();
        let rest = read_rest(&dir);
        assert_eq!(rest, again[at + 1..], "from entry {at}");
    }
}

/// Makes `dirs` below `plain`, each with `count` empty files, and a tar of all.
fn image(sandbox: &Sandbox, dirs: &[&str], count: usize) -> (PathBuf, PathBuf) {
    let plain = sandbox.dir("plain");
    for dir in dirs {
        fill(&plain.join(dir), count);
    }
    let tar = sandbox.at("image.tar");
    pack(&plain, &tar, &[]);
    (plain, tar)
}

fn fill(dir: &Path, count: usize) {
    fs::create_dir(dir).unwrap();
    for i in 0..count {
        File::create(dir.join(name(i))).unwrap();
    }
}

/// Runs `what` in a directory of a plain filesystem, which proves it, then in one of the image
/// alone, in one that the upper holds as well, and in one that was made in the mount.
fn on_each_kind(count: usize, what: fn(&Path)) {
    if !can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let (plain, tar) = image(&sandbox, &["lower", "merged"], count);
    what(&plain.join("lower"));
    let mount = sandbox.mount("mount", &tar, &[]);
    what(&mount.at("lower"));
    fs::write(mount.at("merged").join(name(3)), "in the upper").unwrap();
    what(&mount.at("merged"));
    let born = mount.at("born");
    fill(&born, count);
    what(&born);
}

#[test]
fn entries_come_and_go_while_a_directory_is_listed() {
    on_each_kind(COUNT, check);
}

fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

fn sought(dir: &File, position: u64) -> Vec<(String, u64)> {
    rustix::fs::seek(dir, SeekFrom::Start(position)).unwrap();
    read_rest(dir)
}

/// A position that one descriptor was told leads others to the same entry: while the first is
/// open and after, without the kernel's copy, and when entries came and went.
fn positions(at: &Path) {
    let first = File::open(at).unwrap();
    let all = read_rest(&first);
    let second = File::open(at).unwrap();
    for i in [0, 1, 2, 77, 150] {
        assert_eq!(sought(&second, all[i].1), all[i + 1..], "after {i}");
    }
    drop((first, second));
    drop_caches();
    let again = File::open(at).unwrap();
    assert_eq!(sought(&again, all[40].1), all[41..], "opened again");

    // Those before the position go, and the one at it, and others come.
    let there = |i: usize| at.join(&all[i].0);
    let entries: Vec<_> = (2..100).filter(|i| i % 2 == 0 || *i == 99).collect();
    for &i in &entries {
        fs::remove_file(there(i)).unwrap();
        fs::write(at.join(format!("come-{i}")), "").unwrap();
    }
    let old = |rest: &[(String, u64)]| -> Vec<String> {
        let names = rest.iter().map(|(name, _)| name.clone());
        names.filter(|name| name.starts_with("entry")).collect()
    };
    let stayed: Vec<_> = (51..all.len()).filter(|i| !entries.contains(i)).collect();
    let stayed: Vec<_> = stayed.iter().map(|&i| all[i].clone()).collect();
    for dir in [again, File::open(at).unwrap()] {
        // As rewinddir(3): what is gone is not shown.
        rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
        read_rest(&dir);
        assert_eq!(old(&sought(&dir, all[99].1)), old(&all[100..]));
        assert_eq!(old(&sought(&dir, all[50].1)), old(&stayed));
    }
}

#[test]
fn regression_positions_belong_to_the_entries() {
    on_each_kind(300, positions);
}

#[test]
fn regression_a_listing_goes_on_over_copy_ups_and_mounts() {
    if !can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let (_, tar) = image(&sandbox, &["dir"], 300);
    let upper = sandbox.dir("upper");
    let options = ["--upper", upper.to_str().unwrap()];
    let mount = sandbox.mount("mount", &tar, &options);
    let dir = File::open(mount.at("dir")).unwrap();
    let before = read_rest(&dir);
    for i in [5, 100, 299] {
        fs::write(mount.at("dir").join(name(i)), "in the upper").unwrap();
    }
    for i in 0..50 {
        fs::write(mount.at("dir").join(format!("new-{i}")), "").unwrap();
    }
    // Positions of the listing of the image lead on in that of the upper.
    let at = before[20].1;
    for dir in [&dir, &File::open(mount.at("dir")).unwrap()] {
        assert_eq!(sought(dir, at)[..before.len() - 21], before[21..]);
        assert_eq!(sought(dir, 0).len(), before.len() + 50);
    }
    let rest = sought(&dir, at);
    assert_eq!(rest[..before.len() - 21], before[21..]);
    assert_eq!(rest.len(), before.len() - 21 + 50);
    drop(dir);
    mount.unmount();
    let mount = sandbox.mount("mount", &tar, &options);
    let dir = File::open(mount.at("dir")).unwrap();
    assert_eq!(sought(&dir, at), rest);
    assert_eq!(sought(&dir, rest[290].1), rest[291..]);
}

/// Two descriptors read in turns, one from before a change and one from after it. The second
/// shows what was there when it was opened, though both may fill one copy of the kernel's.
fn in_turns(at: &Path) {
    for turns in [1, 3, 7] {
        let old = File::open(at).unwrap();
        let mut from_old = read_by(&old, 512);
        for _ in 0..turns {
            from_old.extend(read_by(&old, 512));
        }
        let gone: Vec<_> = (100..150).map(|i| name(i + turns * 60)).collect();
        for gone in &gone {
            fs::remove_file(at.join(gone)).unwrap();
        }
        for i in 0..50 {
            fs::write(at.join(format!("new-{turns}-{i}")), "").unwrap();
        }
        let mut expected: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .chain([".".to_owned(), "..".to_owned()])
            .collect();
        expected.sort();
        let new = File::open(at).unwrap();
        let mut from_new = read_by(&new, 256);
        from_old.extend(read_rest(&old));
        from_new.extend(read_rest(&new));
        let mut names: Vec<_> = from_new.into_iter().map(|(name, _)| name).collect();
        names.sort();
        assert_eq!(names, expected);
        let old: BTreeSet<_> = from_old.iter().map(|(name, _)| name).collect();
        assert_eq!(old.len(), from_old.len(), "an entry twice");
        assert!(
            expected
                .iter()
                .all(|n| n.starts_with("new") || old.contains(n))
        );
        drop(new);
    }
}

#[test]
fn regression_a_descriptor_shows_what_was_there_when_it_was_opened() {
    on_each_kind(600, in_turns);
}

/// Somebody is under way in a listing; the directory changes; others list it until the kernel has
/// a copy of its own, with entries that fill a page of it to the last byte (64 bytes of dots, 32 of
/// each name), or do not.
fn under_way(at: &Path) {
    for count in [125, 126, 127, 253, 254, 255] {
        let dir = at.join(format!("of-{count}"));
        fs::create_dir(&dir).unwrap();
        for i in 0..count {
            File::create(dir.join(format!("name{i:04}"))).unwrap();
        }
        let list = || assert_eq!(rest_by(&File::open(&dir).unwrap(), 32_768).len(), count + 2);
        (0..3).for_each(|_| list());
        let first = File::open(&dir).unwrap();
        let mut found = read_by(&first, 300);
        fs::write(dir.join("x"), "").unwrap();
        fs::remove_file(dir.join("x")).unwrap();
        (0..3).for_each(|_| list());
        found.extend(rest_by(&first, 300));
        // ext4 may leave out the dots where it sorts a directory anew.
        found.retain(|(name, _)| !name.starts_with('.'));
        let names: BTreeSet<_> = found.iter().map(|(name, _)| name).collect();
        let shown = (found.len(), names.len());
        assert_eq!(shown, (count, count), "{}", dir.display());
        (0..3).for_each(|_| list());
    }
}

#[test]
fn regression_a_full_page_of_the_kernels_copy_is_not_the_end() {
    on_each_kind(10, under_way);
}

/// The number that a listing gives for `..`.
fn dotdot(dir: &File) -> u64 {
    rustix::fs::seek(dir, SeekFrom::Start(0)).unwrap();
    let mut buf = [MaybeUninit::uninit(); 1_024];
    let mut raw = RawDir::new(dir, &mut buf);
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        if entry.file_name() == c".." {
            return entry.ino();
        }
    }
    panic!("no ..");
}

fn moves(at: &Path) {
    let parents = [at.join("a"), at.join("b"), at.join("c")];
    for parent in &parents {
        fs::create_dir(parent).unwrap();
    }
    let mut moved = at.join("moved");
    let listed = |at: &Path| {
        let dir = File::open(at).unwrap();
        read_rest(&dir);
        dotdot(&dir)
    };
    let ino = |at: &Path| fs::metadata(at).unwrap().ino();
    assert_eq!(listed(&moved), ino(at));
    for parent in parents.iter().chain(&parents).chain([&at.to_owned()]) {
        let to = parent.join("moved");
        fs::rename(&moved, &to).unwrap();
        moved = to;
        for _ in 0..2 {
            assert_eq!(listed(&moved), ino(parent), "in {parent:?}");
        }
        assert_eq!(ino(&moved.join("..")), ino(parent));
    }
}

#[test]
fn regression_the_parent_of_a_moved_directory_is_the_new_one() {
    if !can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let (plain, tar) = image(&sandbox, &["moved"], 3);
    let mount = sandbox.mount("mount", &tar, &[]);
    moves(&plain);
    moves(mount.path());
    let born = mount.at("born");
    fs::create_dir_all(&born).unwrap();
    fill(&born.join("moved"), 3);
    moves(&born);
}

/// Removes everything in pieces, as it is listed.
fn remove_in_pieces(at: &Path) {
    let dir = File::open(at).unwrap();
    let mut removed = 0;
    loop {
        let piece = read_by(&dir, 160 + removed % 900);
        if piece.is_empty() {
            break;
        }
        for (name, _) in piece.iter().filter(|(n, _)| !matches!(&n[..], "." | "..")) {
            fs::remove_file(at.join(name)).unwrap();
            removed += 1;
        }
    }
    assert_eq!(removed, 5_000);
    assert_eq!(fs::read_dir(at).unwrap().count(), 0);
    fs::remove_dir(at).unwrap();
}

#[test]
fn what_is_removed_in_pieces_is_gone() {
    on_each_kind(5_000, remove_in_pieces);
}

const READERS: usize = 4;
const STAYING: usize = 120;

/// Readers with small buffers, from the start, opened anew and sought back to the start, while
/// writers add, rename and remove entries.
fn busy(at: &Path) {
    let barrier = Barrier::new(2 * READERS);
    let over = AtomicBool::new(false);
    let write = |thread: usize| {
        barrier.wait();
        for i in 0.. {
            let (new, other) = (format!("w{thread}-{i}"), format!("x{thread}-{i}"));
            fs::write(at.join(&new), "").unwrap();
            fs::rename(at.join(&new), at.join(&other)).unwrap();
            let old = STAYING + thread + i * READERS;
            if old < 2 * STAYING {
                fs::remove_file(at.join(name(old))).unwrap();
            }
            if over.load(Ordering::Relaxed) {
                break;
            }
            fs::remove_file(at.join(&other)).unwrap();
        }
    };
    let read = |thread: usize| {
        let mut dir = File::open(at).unwrap();
        barrier.wait();
        for round in 0..6 {
            let size = [64, 96, 200, 32 * 1_024][(thread + round) % 4];
            let found = rest_by(&dir, size);
            let mut names: Vec<_> = found.iter().map(|(name, _)| &name[..]).collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count, "an entry twice");
            for i in 0..STAYING {
                assert!(names.binary_search(&&name(i)[..]).is_ok(), "{}", name(i));
            }
            if round % 3 == 2 {
                dir = File::open(at).unwrap();
            } else {
                rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        let (read, write) = (&read, &write);
        for thread in 0..READERS {
            scope.spawn(move || write(thread));
        }
        let readers: Vec<_> = (0..READERS)
            .map(|thread| scope.spawn(move || read(thread)))
            .collect();
        let results: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        over.store(true, Ordering::Relaxed);
        for result in results {
            if let Err(panic) = result {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

#[test]
fn many_read_a_directory_while_many_change_it() {
    if !can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let names: Vec<_> = (0..8).map(|i| format!("dir-{i}")).collect();
    let names: Vec<_> = names.iter().map(|name| &name[..]).collect();
    let (plain, tar) = image(&sandbox, &names, 2 * STAYING);
    let mount = sandbox.mount("mount", &tar, &[]);
    busy(&plain.join(names[0]));
    for name in names {
        busy(&mount.at(name));
    }
    let born = mount.at("born");
    fill(&born, 2 * STAYING);
    busy(&born);
}
