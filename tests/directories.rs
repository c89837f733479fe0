//! Listings of large directories while their entries come and go, on a plain directory first,
//! which proves the test, then on mounts.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::path::Path;

use common::{Sandbox, can_mount, ok};
use rustix::fs::{RawDir, SeekFrom};

const COUNT: usize = 2_000;

/// Reads one buffer's worth of entries: name and the offset behind it.
fn read_some(dir: &File) -> Vec<(String, u64)> {
    let mut buf = [MaybeUninit::uninit(); 1_024];
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
    let mut found = Vec::new();
    loop {
        let more = read_some(dir);
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

#[test]
fn entries_come_and_go_while_a_directory_is_listed() {
    if !can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let plain = sandbox.dir("plain");
    for dir in ["lower", "merged"] {
        fs::create_dir(plain.join(dir)).unwrap();
        for i in 0..COUNT {
            File::create(plain.join(dir).join(name(i))).unwrap();
        }
    }
    let tar = sandbox.at("image.tar");
    ok(
        "tar",
        [
            "-cf".as_ref(),
            tar.as_os_str(),
            "-C".as_ref(),
            plain.as_os_str(),
            ".".as_ref(),
        ],
    );
    check(&plain.join("lower"));
    let mount = sandbox.mount("mount", &tar, &[]);
    check(&mount.at("lower"));
    fs::write(mount.at("merged").join(name(3)), "in the upper").unwrap();
    check(&mount.at("merged"));
    let born = mount.at("born");
    fs::create_dir(&born).unwrap();
    for i in 0..COUNT {
        File::create(born.join(name(i))).unwrap();
    }
    check(&born);
}
