//! A directory tree as a sorted list of everything that stat(2), readlink(2), listxattr(2) and
//! getxattr(2) tell of it, to compare two trees.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One line a name below `root`, by path, with the first of the names that the file has. Not
/// compared: inode numbers themselves, the sizes of directories, times of access and change.
pub(crate) fn describe(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut all = BTreeMap::new();
    let mut inos: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    // Also where the root is a magic link of /proc.
    let mut todo = vec![root.join(".")];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let mut children: Vec<_> = if meta.is_dir() {
            let listed = fs::read_dir(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            listed.map(|entry| entry.unwrap().path()).collect()
        } else {
            Vec::new()
        };
        children.sort();
        let size = if meta.is_dir() { 0 } else { meta.size() };
        let mut line = format!(
            "{:o} {}:{} links {} dev {} size {size} mtime {}.{:09}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.rdev(),
            meta.mtime(),
            meta.mtime_nsec(),
        );
        if meta.is_symlink() {
            line += &format!(" -> {:?}", fs::read_link(&path).unwrap());
        }
        for (name, value) in xattrs(&path) {
            line += &format!(" {name:?}={:?}", value.escape_ascii().to_string());
        }
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        if !meta.is_dir() {
            inos.insert(name.to_vec(), meta.ino());
        }
        all.insert(name.to_vec(), line);
        todo.extend(children);
    }
    let mut first: BTreeMap<u64, &Vec<u8>> = BTreeMap::new();
    for (name, ino) in &inos {
        let first = first.entry(*ino).or_insert(name);
        if let Some(line) = all.get_mut(name) {
            *line += &format!(" same as {}", first.escape_ascii());
        }
    }
    all
}

/// Extended attributes of the file itself, sorted by name.
pub(crate) fn xattrs(path: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let mut names = vec![0; 1 << 16];
    let n =
        rustix::fs::llistxattr(path, &mut names[..]).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let mut all: Vec<_> = names[..n]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])
                .unwrap_or_else(|e| panic!("{path:?}: {}: {e}", name.escape_ascii()));
            value.truncate(n);
            (std::ffi::OsString::from_vec(name.to_vec()), value)
        })
        .collect();
    all.sort();
    all
}

/// Panics with the first names at which the two differ.
pub(crate) fn assert_same(want: &BTreeMap<Vec<u8>, String>, got: &BTreeMap<Vec<u8>, String>) {
    let mut differences = Vec::new();
    for name in want
        .keys()
        .chain(got.keys().filter(|name| !want.contains_key(*name)))
    {
        let (want, got) = (want.get(name), got.get(name));
        if want != got {
            differences.push(format!(
                "{}\n  want {want:?}\n  got  {got:?}",
                name.escape_ascii()
            ));
        }
    }
    let shown: Vec<_> = differences.iter().take(5).map(String::as_str).collect();
    assert!(
        differences.is_empty(),
        "{} names differ:\n{}",
        differences.len(),
        shown.join("\n")
    );
}

/// [`describe`] with the bytes of files and without link counts, which overlayfs has in its own way.
pub(crate) fn described(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut all = describe(root);
    for (name, line) in &mut all {
        let path = root.join(OsStr::from_bytes(name));
        if fs::symlink_metadata(&path).unwrap().is_file() {
            let data = fs::read(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            let sum = data.iter().fold(0_u64, |sum, &byte| {
                sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte)
            });
            *line += &format!(" data {sum:016x}");
        }
        let (before, rest) = line.split_once(" links ").unwrap();
        let (_, after) = rest.split_once(' ').unwrap();
        *line = format!("{before} {after}");
        // Our own mark: hidden by us, an attribute like any other for overlayfs.
        for mark in ["trusted.tarnfs.ino", "user.tarnfs.ino"] {
            if let Some((before, rest)) = line.split_once(&format!(" \"{mark}\"=")) {
                let (_, after) = rest
                    .split_once('"')
                    .and_then(|(_, r)| r.split_once('"'))
                    .unwrap();
                *line = format!("{before}{after}");
            }
        }
    }
    all
}
