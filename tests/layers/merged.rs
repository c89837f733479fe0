//! What our index shows of layers, in the words of `common::walk::describe`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use tarnfs::index::{Flattening, LayerBlob, scan_layer, scan_layer_file, write_layers};
use tarnfs::inode::Kind;
use tarnfs::lower::{BlobFile, FileIdentity, Lower, LowerError, Nid, Step};

use crate::common::Sandbox;
use crate::common::walk::{assert_same, describe};

/// What is at each path.
pub(crate) type Tree = BTreeMap<Vec<u8>, String>;

/// Both are the same, but for the times of the directories that are `untimed`.
pub(crate) fn same(mut want: Tree, mut got: Tree, untimed: &dyn Fn(&[u8], &str) -> bool) {
    let mut paths: Vec<Vec<u8>> = Vec::new();
    for (path, line) in &want {
        if line.starts_with('4') && untimed(path, time(line).1) {
            paths.push(path.clone());
        }
    }
    for tree in [&mut want, &mut got] {
        for path in &paths {
            if let Some(line) = tree.get_mut(path) {
                let (before, _, after) = time(line);
                *line = format!("{before}{after}");
            }
        }
    }
    assert_same(&want, &got);
}

/// A line with its time apart.
fn time(line: &str) -> (&str, &str, &str) {
    let (before, rest) = line.split_once(" mtime ").unwrap();
    let end = rest.find(' ').unwrap_or(rest.len());
    (before, &rest[..end], &rest[end..])
}

/// The merged tree of `layers`.
pub(crate) fn tree(sandbox: &Sandbox, layers: &[PathBuf]) -> Tree {
    let (index, blobs) = index(sandbox, layers);
    let blob = |path: PathBuf| BlobFile {
        identity: FileIdentity::of(&fs::metadata(&path).unwrap()),
        path,
    };
    let blobs = blobs.into_iter().map(blob).collect();
    of_lower(&Lower::open(&index, blobs).unwrap())
}

/// The index of `layers`, and its blobs.
pub(crate) fn index(sandbox: &Sandbox, layers: &[PathBuf]) -> (PathBuf, Vec<PathBuf>) {
    let files: Vec<File> = layers.iter().map(|tar| File::open(tar).unwrap()).collect();
    let mut flattening = Flattening::new();
    for (n, (path, file)) in layers.iter().zip(&files).enumerate() {
        // Both ways of reading a layer.
        let layer = if n % 2 == 0 {
            scan_layer_file(file, path, &()).unwrap()
        } else {
            scan_layer(File::open(path).unwrap(), path).unwrap()
        };
        flattening.add(layer, path).unwrap();
    }
    let flat = flattening.finish().unwrap();
    let blobs: Vec<LayerBlob<'_>> = layers
        .iter()
        .zip(&files)
        .map(|(path, file)| LayerBlob {
            file,
            path,
            tag: path.file_name().unwrap().to_str().unwrap().to_owned(),
        })
        .collect();
    let (index, side) = (sandbox.at("index.erofs"), sandbox.at("side"));
    let mut out = File::create(&index).unwrap();
    write_layers(&flat, &blobs, &mut out, || File::create(&side)).unwrap();
    let mut devices: Vec<PathBuf> = flat.used.iter().map(|&n| layers[n].clone()).collect();
    if flat.side_len > 0 {
        devices.push(side);
    }
    (index, devices)
}

fn of_lower(lower: &Lower) -> Tree {
    let mut paths: BTreeMap<Vec<u8>, Nid> = BTreeMap::from([(Vec::new(), lower.root())]);
    let mut each = |walked: tarnfs::lower::Walked<'_>| {
        paths.insert(walked.path.to_vec(), walked.nid);
        Ok::<_, LowerError>(Step::Into)
    };
    lower.walk(lower.root(), &mut each).unwrap();
    let mut first: BTreeMap<Nid, String> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for (path, nid) in paths {
        let attr = lower.attr(nid).unwrap();
        let dir = attr.kind == Kind::Dir;
        let mut line = format!(
            "{:o} {}:{} dev {} size {} mtime {}.{:09}",
            attr.mode(),
            attr.uid,
            attr.gid,
            attr.rdev,
            if dir { 0 } else { attr.size },
            attr.mtime.sec,
            attr.mtime.nsec
        );
        if attr.kind == Kind::Symlink {
            let target = OsString::from_vec(lower.readlink(nid).unwrap());
            line += &format!(" -> {:?}", PathBuf::from(target));
        }
        for xattr in lower.xattrs(nid).unwrap() {
            line += &format!(
                " {:?}={:?}",
                OsStr::from_bytes(&xattr.name),
                xattr.value.escape_ascii().to_string()
            );
        }
        if !dir {
            let shown = path.escape_ascii().to_string();
            let first = first.entry(nid).or_insert(shown);
            line += &format!(" same as {first} links {}", attr.nlink);
        }
        if attr.kind == Kind::File {
            let mut data = vec![0; usize::try_from(attr.size).unwrap()];
            let mut done = 0;
            while done < data.len() {
                match lower.read(nid, done as u64, &mut data[done..]).unwrap() {
                    0 => panic!("{} ends early", path.escape_ascii()),
                    n => done += n,
                }
            }
            line += &format!(" data {:016x}", sum(&data));
        }
        all.insert(path, line);
    }
    all
}

/// The same of a directory.
pub(crate) fn of_dir(root: &Path) -> Tree {
    let mut all = describe(root);
    for (name, line) in &mut all {
        // How many links a directory has depends on the filesystem.
        let (before, rest) = line.split_once(" links ").unwrap();
        let (links, after) = rest.split_once(' ').unwrap();
        let path = root.join(OsStr::from_bytes(name));
        let meta = fs::symlink_metadata(&path).unwrap();
        let links = if meta.is_dir() {
            String::new()
        } else {
            format!(" links {links}")
        };
        *line = format!("{before} {after}{links}");
        if meta.is_file() {
            *line += &format!(" data {:016x}", sum(&fs::read(&path).unwrap()));
        }
    }
    all
}

/// By eight bytes: a debug build is slow enough.
fn sum(data: &[u8]) -> u64 {
    data.chunks(8).fold(data.len() as u64, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum ^ u64::from_le_bytes(word))
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(29)
    })
}
