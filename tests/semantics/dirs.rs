//! Directories, names, and the filesystem as a whole.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, mkdirat, openat};
use rustix::io::Errno;

use super::{Case, drop_caches, listing, read};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "listing_while_changing",
        "A listing shows each entry that stays exactly once while others come and go.",
        |at| {
            let dir = File::open(at.join("list")).unwrap();
            let mut seen: HashMap<String, usize> = HashMap::new();
            let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
            let mut raw = RawDir::new(&dir, &mut buffer);
            let mut n = 0;
            while let Some(entry) = raw.next() {
                let name = entry.unwrap().file_name().to_str().unwrap().to_owned();
                *seen.entry(name).or_insert(0) += 1;
                n += 1;
                if n % 10 == 0 && n <= 1000 {
                    fs::write(at.join(format!("list/new{n}")), "").unwrap();
                    fs::remove_file(at.join(format!("list/{}", n / 5))).unwrap();
                }
                assert!(n < 10_000, "a listing without end");
            }
            for i in (1..=500).filter(|i| i % 2 == 1) {
                assert_eq!(seen.get(&i.to_string()), Some(&1), "{i}");
            }
            assert!(seen.values().all(|&times| times == 1), "an entry twice");
        },
    ),
    Case::new(
        "positions",
        "A position of a listing (telldir(3)) leads back to the same entry, also through another descriptor and when entries came and went.",
        |at| {
            let dir = File::open(at.join("list")).unwrap();
            let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
            let mut all = Vec::new();
            {
                let mut raw = RawDir::new(&dir, &mut buffer);
                while let Some(entry) = raw.next() {
                    let entry = entry.unwrap();
                    all.push((entry.file_name().to_owned(), entry.next_entry_cookie()));
                }
            }
            assert_eq!(all.len(), 502);
            for i in [0, 1, 2, 77, 250, 499, 500, 3] {
                rustix::fs::seek(&dir, SeekFrom::Start(all[i].1)).unwrap();
                let mut raw = RawDir::new(&dir, &mut buffer);
                let next = raw.next().unwrap().unwrap();
                assert_eq!(next.file_name(), all[i + 1].0.as_c_str(), "after {i}");
            }
            rustix::fs::seek(&dir, SeekFrom::Start(all[501].1)).unwrap();
            assert!(RawDir::new(&dir, &mut buffer).next().is_none());
            let there = |i: usize| at.join("list").join(OsStr::from_bytes(all[i].0.to_bytes()));
            for i in (2..250).step_by(2) {
                fs::remove_file(there(i)).unwrap();
                fs::write(at.join(format!("list/come{i}")), "").unwrap();
            }
            for dir in [dir, File::open(at.join("list")).unwrap()] {
                rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
                assert_eq!(names(&dir).len(), 502);
                rustix::fs::seek(&dir, SeekFrom::Start(all[248].1)).unwrap();
                let mut rest = names(&dir);
                rest.retain(|name| !name.starts_with("come"));
                let mut stayed: Vec<_> = all[249..].iter().map(|e| e.0.to_str().unwrap()).collect();
                stayed.sort_unstable();
                assert_eq!(rest, stayed);
            }
        },
    ),
    Case::new(
        "listings_of_others",
        "A listing shows what was there when the directory was opened, whatever other descriptors list meanwhile.",
        |at| {
            let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
            let old = File::open(at.join("list")).unwrap();
            assert!(RawDir::new(&old, &mut buffer).next().is_some());
            for i in 200..300 {
                fs::remove_file(at.join(format!("list/{i}"))).unwrap();
                fs::write(at.join(format!("list/come{i}")), "").unwrap();
            }
            let new = File::open(at.join("list")).unwrap();
            let mut found = Vec::new();
            let mut raw = RawDir::new(&new, &mut buffer);
            while found.is_empty() || !raw.is_buffer_empty() {
                found.push(raw.next().unwrap().unwrap().file_name().to_str().unwrap().to_owned());
            }
            names(&old);
            found.extend(names(&new));
            found.sort();
            let mut expected: Vec<String> = (1..=500).filter(|i| !(200..300).contains(i)).map(|i| i.to_string()).collect();
            expected.extend((200..300).map(|i| format!("come{i}")));
            expected.extend([".".to_owned(), "..".to_owned()]);
            expected.sort();
            assert_eq!(found, expected);
        },
    ),
    Case::new(
        "parents_follow",
        "A listing gives the number of the directory that a directory was moved to as that of \"..\".",
        |at| {
            let mut moved = at.join("dir");
            for parent in ["empty", "list", "empty"] {
                assert_eq!(listed_parent(&moved), fs::metadata(moved.join("..")).unwrap().ino());
                let to = at.join(parent).join("dir");
                fs::rename(&moved, &to).unwrap();
                moved = to;
                assert_eq!(listed_parent(&moved), fs::metadata(at.join(parent)).unwrap().ino());
            }
        },
    )
    .after(|at| {
        assert_eq!(listed_parent(&at.join("empty/dir")), fs::metadata(at.join("empty")).unwrap().ino());
    }),
    Case::new(
        "many_entries",
        "A directory holds as many entries as are made in it, and lists them all.",
        |at| {
            for i in 0..5000 {
                File::create(at.join(format!("list/many{i}"))).unwrap();
            }
            for i in 1..=500 {
                fs::remove_file(at.join(format!("list/{i}"))).unwrap();
            }
            drop_caches();
            many(at);
        },
    )
    .after(many),
    Case::new(
        "names",
        "A name is 1 to 255 bytes of any value but NUL and slash; a longer one gives ENAMETOOLONG.",
        |at| {
            let strange: Vec<u8> = (1..=255).filter(|&b| b != b'/').chain([b'x']).collect();
            fs::rename(at.join("file"), at.join(OsStr::from_bytes(&strange))).unwrap();
            fs::write(at.join("x".repeat(255)), "long").unwrap();
            let long = File::create(at.join("x".repeat(256)));
            assert_eq!(super::errno(long), libc::ENAMETOOLONG);
            assert_eq!(super::errno(File::open(at.join("y".repeat(256)))), libc::ENAMETOOLONG);
            named(at);
        },
    )
    .after(named),
    Case::new(
        "long_paths",
        "A path of 4,095 bytes works and a longer one gives ENAMETOOLONG; trees may be deeper still.",
        |at| {
            let root = File::open(at.join("dir")).unwrap();
            let mode = Mode::RWXU;
            let mut path = String::new();
            while path.len() + 256 < 4000 {
                path += &"d".repeat(255);
                mkdirat(&root, &path, mode).unwrap();
                path.push('/');
            }
            let deep = openat(&root, &path, OFlags::DIRECTORY, mode).unwrap();
            path += &"f".repeat(4095 - path.len());
            let flags = OFlags::CREATE | OFlags::WRONLY;
            drop(openat(&root, &path, flags, mode).unwrap());
            drop(openat(&root, &path, OFlags::RDWR, mode).unwrap());
            path.push('f');
            assert_eq!(openat(&root, &path, flags, mode).unwrap_err(), Errno::NAMETOOLONG);
            let mut at = deep;
            for _ in 0..20 {
                mkdirat(&at, "e".repeat(255), mode).unwrap();
                at = openat(&at, "e".repeat(255), OFlags::DIRECTORY, mode).unwrap();
            }
            drop_caches();
            drop(openat(&at, "file", flags, mode).unwrap());
        },
    )
    .after(|at| {
        let found = crate::common::ok("find", [at.join("dir").as_os_str(), "-name".as_ref(), "file".as_ref()]);
        assert_eq!(found.lines().count(), 1);
        assert!(found.len() > 8000);
    }),
    Case::new(
        "symbolic_links",
        "Symbolic links are followed by the kernel and kept byte by byte, up to 4,095 bytes.",
        |at| {
            assert_eq!(read(at.join("sym")), "0123456789");
            let target = "t".repeat(4095);
            std::os::unix::fs::symlink(&target, at.join("long")).unwrap();
            fs::rename(at.join("sym"), at.join("dir/sym")).unwrap();
            aimed(at);
        },
    )
    .after(aimed),
    Case::new(
        "free_space",
        "statfs(2) tells of the filesystem that the upper lies on.",
        |at| {
            let here = rustix::fs::statvfs(at).unwrap();
            let there = rustix::fs::statvfs(env!("CARGO_TARGET_TMPDIR")).unwrap();
            assert_eq!(here.f_blocks, there.f_blocks);
            assert_eq!(here.f_files, there.f_files);
            assert_eq!(here.f_namemax, 255);
        },
    ),
];

/// The names behind the position of a descriptor, sorted.
fn names(dir: &File) -> Vec<String> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        names.push(entry.unwrap().file_name().to_str().unwrap().to_owned());
    }
    names.sort();
    names
}

/// The number that a listing gives for "..".
fn listed_parent(at: &Path) -> u64 {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    let dir = File::open(at).unwrap();
    let mut raw = RawDir::new(&dir, &mut buffer);
    let mut parent = None;
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        if entry.file_name() == c".." {
            parent = Some(entry.ino());
        }
    }
    parent.unwrap()
}

fn many(at: &Path) {
    let mut names = listing(at.join("list"));
    assert_eq!(names.len(), 5000);
    names.dedup();
    assert_eq!(names.len(), 5000);
    assert!(names.iter().all(|name| name.starts_with("many")));
}

fn named(at: &Path) {
    let strange: Vec<u8> = (1..=255).filter(|&b| b != b'/').chain([b'x']).collect();
    assert_eq!(read(at.join(OsStr::from_bytes(&strange))), "0123456789");
    assert_eq!(read(at.join("x".repeat(255))), "long");
    assert!(!at.join("file").exists());
}

fn aimed(at: &Path) {
    assert_eq!(
        fs::read_link(at.join("long")).unwrap().as_os_str().len(),
        4095
    );
    assert_eq!(
        fs::read_link(at.join("dir/sym")).unwrap(),
        Path::new("file")
    );
}
