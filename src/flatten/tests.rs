//! Images through the whole of it: a tar is indexed, flattened, and read again.

mod output;
mod random;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::index::scan_source;
use crate::index::tree::{Content, InodeId, ROOT, Tree};
use crate::inode::Time;
use crate::lower::testing::{blob_of, of_tar};
use crate::tar::testing::{Raw, Tar};

/// A tar as an image.
struct Indexed {
    dir: TempDir,
    lower: Lower,
    options: Options,
}

impl Indexed {
    fn new(tar: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tar");
        fs::write(&path, tar).unwrap();
        let lower = of_tar(&path);
        let mut options = Options::default();
        if lower.blobs().len() > 1 {
            options.side_blobs.push(1);
        }
        Self {
            dir,
            lower,
            options,
        }
    }

    fn flatten(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let made = write(&self.lower, &self.options, &mut out, &mut |_, _| ()).unwrap();
        assert_eq!(
            (made.digest, made.len),
            (Digest::of(&out), out.len() as u64)
        );
        out
    }
}

fn flatten(tar: &[u8]) -> Vec<u8> {
    Indexed::new(tar).flatten()
}

/// All that a tar holds, by path: attributes, the first name of the inode, holes, bytes.
fn described(tar: &[u8]) -> BTreeMap<Vec<u8>, String> {
    let scan = scan_source(tar, Path::new("t.tar"), &()).unwrap();
    let mut all = BTreeMap::new();
    let mut first = BTreeMap::new();
    describe(
        &scan.tree,
        &scan.side.copies,
        tar,
        ROOT,
        &[],
        &mut first,
        &mut all,
    );
    all
}

fn describe(
    tree: &Tree,
    copies: &[crate::index::extents::SideCopy],
    tar: &[u8],
    id: InodeId,
    path: &[u8],
    first: &mut BTreeMap<InodeId, Vec<u8>>,
    all: &mut BTreeMap<Vec<u8>, String>,
) {
    let inode = &tree.inodes[usize::try_from(id.0).unwrap()];
    let mut line = format!(
        "{:o} {}:{} {:?} {} {:?}",
        inode.perm, inode.uid, inode.gid, inode.mtime, inode.nlink, inode.xattrs
    );
    let first_name = first.entry(id).or_insert_with(|| path.to_vec());
    line += &format!(" first {}", first_name.escape_ascii());
    match &inode.content {
        Content::Dir { children, .. } => {
            for (name, child) in children {
                let path = match path {
                    b"" => name.to_vec(),
                    path => [path, b"/", name].concat(),
                };
                describe(tree, copies, tar, child, &path, first, all);
            }
        }
        Content::File { size, extents } => {
            let mut bytes = vec![0; usize::try_from(*size).unwrap()];
            let mut data = Vec::<(u64, u64)>::new();
            let mut put = |offset: u64, len: u64, from: u64| {
                let [to, from, len] = [offset, from, len].map(|n| usize::try_from(n).unwrap());
                bytes[to..to + len].copy_from_slice(&tar[from..from + len]);
            };
            for e in extents {
                if e.blob == 0 {
                    put(e.offset, e.len, e.blob_offset);
                    data.push((e.offset, e.len));
                    continue;
                }
                let within = e.blob_offset..e.blob_offset + e.len;
                for copy in copies.iter().filter(|c| within.contains(&c.side_offset)) {
                    put(copy.side_offset - e.blob_offset, copy.len, copy.tar_offset);
                }
            }
            // The holes of what is copied aside become those of its content.
            if extents.iter().all(|e| e.blob == 0) {
                line += &format!(" data {data:?}");
            }
            line += &format!(" {size} {}", Digest::of(&bytes));
        }
        other => line += &format!(" {other:?}"),
    }
    all.insert(path.to_vec(), line);
}

/// Holes and data of the files of `tar`.
fn holes(tar: &[u8]) -> Vec<Vec<(u64, u64)>> {
    let scan = scan_source(tar, Path::new("t.tar"), &()).unwrap();
    let files = scan
        .tree
        .inodes
        .iter()
        .filter_map(|inode| match &inode.content {
            Content::File { extents, .. } => Some(extents),
            _ => None,
        });
    files
        .map(|extents| extents.iter().map(|e| (e.offset, e.len)).collect())
        .collect()
}

fn sparse(name: &str, size: u64, runs: &[(u64, u64)]) -> Tar {
    let mut map = format!("{}\n", runs.len());
    let mut body = Vec::new();
    for (n, (offset, len)) in (1..).zip(runs) {
        map += &format!("{offset}\n{len}\n");
        body.resize(body.len() + usize::try_from(*len).unwrap(), n);
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    let body = [map, body].concat();
    Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", name.as_bytes()),
            ("GNU.sparse.realsize", size.to_string().as_bytes()),
        ])
        .file("GNUSparseFile.0/x", &body)
}

#[test]
fn an_empty_image_is_a_root() {
    let tar = flatten(&Tar::new().end());
    assert_eq!(tar.len(), 512 + 1024);
    assert!(tar.starts_with(b"./\0"));
    assert_eq!(flatten(&tar), tar);
}

#[test]
fn order_and_links_do_not_hang_on_the_source() {
    let one = Tar::new()
        .file("z/data", b"same")
        .hard_link("a", "z/data")
        .dir("z")
        .symlink("b", "a")
        .hard_link("c/b", "b")
        .raw(Raw::new(b'6', "m", 0), b"")
        .hard_link("k", "m")
        .file("old", b"")
        .end();
    let two = Tar::new()
        .dir("z")
        .raw(Raw::new(b'6', "k", 0), b"")
        .file("old", b"gone")
        .hard_link("m", "k")
        .symlink("c/b", "a")
        .hard_link("b", "c/b")
        .file("a", b"same")
        .hard_link("z/data", "a")
        .file("old", b"")
        .end();
    let (one, two) = (flatten(&one), flatten(&two));
    assert_eq!(one, two);
    let names: Vec<_> = crate::tar::testing::entries(&one)
        .unwrap()
        .into_iter()
        .map(|entry| String::from_utf8(entry.path).unwrap())
        .collect();
    assert_eq!(
        names,
        ["", "a", "b", "c", "c/b", "k", "m", "old", "z", "z/data"]
    );
}

#[test]
fn holes_stay_holes() {
    let size = 1 << 20;
    let tar = sparse("s", size, &[(4096, 8192), (65_536, 512), (size - 512, 512)]).end();
    let flat = flatten(&tar);
    assert_eq!(
        holes(&flat),
        [[(4096, 8192), (65_536, 512), (size - 512, 512)]]
    );
    assert_eq!(described(&flat), described(&tar));
    assert_eq!(flatten(&flat), flat);
    assert!(flat.len() < 16_384);
}

#[test]
fn files_of_the_side_blob_have_holes_by_content() {
    // Not at blocks of the tar: copied aside. The run of zeros at the end becomes a hole.
    let tar = [
        &sparse(
            "s",
            5 << 20,
            &[(100, 7), (1 << 20, 5000), ((3 << 20) + 1, 1)],
        )
        .0[..],
        &sparse("holes", 3 << 20, &[(1, 0), (3 << 20, 0)]).0,
        &Tar::new().end(),
    ]
    .concat();
    let image = Indexed::new(&tar);
    assert_eq!(image.options.side_blobs, [1]);
    let flat = image.flatten();
    let mut found = holes(&flat);
    found.sort();
    let want = vec![(0, 4096), (1 << 20, 8192), (3 << 20, 4096)];
    assert_eq!(found, [vec![], want.clone()]);
    let bytes = |tar: &[u8]| {
        let mut all = described(tar);
        for line in all.values_mut() {
            *line = line.rsplit(' ').next().unwrap().to_owned();
        }
        all
    };
    assert_eq!(bytes(&flat), bytes(&tar));
    assert_eq!(flatten(&flat), flat);
    // The same bytes where the filesystem keeps no holes.
    let side = image.dir.path().join("side");
    let dense = fs::read(&side).unwrap();
    fs::write(&side, &dense).unwrap();
    let blobs = image.lower.blobs().map(|blob| blob_of(&blob.path));
    let lower = Lower::open(image.lower.index_path(), blobs.collect()).unwrap();
    let mut again = Vec::new();
    write(&lower, &image.options, &mut again, &mut |_, _| ()).unwrap();
    assert_eq!(again, flat);
}

#[test]
fn aligned_tars_hold_the_same() {
    let mut tar = sparse("dir/s", 1 << 20, &[(4096, 8192), (65_536, 512)]);
    for n in 0..20_u8 {
        let size = usize::from(n) * 700;
        let body = vec![n; size];
        tar = tar
            .pax(&[("SCHILY.xattr.user.n", &body)])
            .file(&format!("{n}"), &body);
    }
    let tar = tar.end();
    let image = Indexed::new(&tar);
    let plain = image.flatten();
    for align in [512, 1024, 4096, 65_536, 1 << 20] {
        let options = Options {
            align: Align::new(align).unwrap(),
            ..image.options.clone()
        };
        let mut flat = Vec::new();
        write(&image.lower, &options, &mut flat, &mut |_, _| ()).unwrap();
        assert_eq!(described(&flat), described(&plain));
        let scan = scan_source(&*flat, Path::new("t.tar"), &()).unwrap();
        for inode in &scan.tree.inodes {
            if let Content::File { extents, .. } = &inode.content
                && let Some(extent) = extents.first()
            {
                assert!(extent.blob_offset.is_multiple_of(align), "{align}");
            }
        }
        assert_eq!(flat == plain, align == 512);
        assert_eq!(flatten(&flat), plain);
    }
    for bad in [0, 256, 513, 1 << 21, u64::MAX] {
        assert_eq!(Align::new(bad), None);
    }
}

#[test]
fn a_socket_is_an_error() {
    let root = crate::index::tree::Inode {
        content: Content::Dir {
            children: [(b"sock", InodeId(1))].into_iter().collect(),
            parent: ROOT,
        },
        perm: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        nlink: 2,
        xattrs: vec![],
    };
    let socket = crate::index::tree::Inode {
        content: Content::Socket,
        nlink: 1,
        ..root.clone()
    };
    let tree = Tree {
        inodes: vec![root, socket],
    };
    let mut index = Vec::new();
    crate::erofs::writer::write(&tree, &[], &mut index).unwrap();
    let bytes = crate::erofs::reader::Bytes::Owned(index);
    let lower = Lower::of_bytes(Path::new("index"), bytes, vec![]).unwrap();
    let error = write(&lower, &Options::default(), &mut Vec::new(), &mut |_, _| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sock: is a socket, which a tar cannot hold"
    );
}
