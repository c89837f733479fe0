//! Images through the whole of it: a tar is indexed, flattened, and read again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::index::tree::{Content, InodeId, ROOT, Tree};
use crate::index::{build, scan_source};
use crate::inode::{Time, Xattr};
use crate::lower::{BlobFile, FileIdentity};
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
        let at = |name| dir.path().join(name);
        fs::write(at("tar"), tar).unwrap();
        let file = File::open(at("tar")).unwrap();
        let mut out = File::create(at("index")).unwrap();
        let side = || {
            File::options()
                .write(true)
                .create_new(true)
                .open(at("side"))
        };
        let built = build(&file, &at("tar"), &mut out, side, &()).unwrap();
        let blob = |path: &Path| BlobFile {
            path: path.to_owned(),
            identity: FileIdentity::of(&fs::metadata(path).unwrap()),
        };
        let mut blobs = vec![blob(&at("tar"))];
        let mut options = Options::default();
        if built.side_len.is_some() {
            blobs.push(blob(&at("side")));
            options.side_blobs.push(1);
        }
        let lower = Lower::open(&at("index"), blobs).unwrap();
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
    let blobs = image.lower.blobs().map(|blob| BlobFile {
        path: blob.path.clone(),
        identity: FileIdentity::of(&fs::metadata(&blob.path).unwrap()),
    });
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
fn a_changed_blob_is_an_error() {
    let image = Indexed::new(&Tar::new().file("f", &[7; 5000]).end());
    let tar = image.dir.path().join("tar");
    let file = File::options().write(true).open(tar).unwrap();
    file.write_all_at(b"x", 600).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let out = image.dir.path().join("out.tar");
    let made = write_file(&image.lower, &image.options, &out, &mut |_, _| ());
    assert!(matches!(
        made,
        Err(FlattenError::Lower(LowerError::BlobChanged { .. }))
    ));
    assert!(!out.exists());
    // Also where there is no byte of it to read.
    let image = Indexed::new(&Tar::new().dir("d").end());
    let file = File::options()
        .write(true)
        .open(image.dir.path().join("tar"));
    file.unwrap().set_len(512).unwrap();
    let made = write(
        &image.lower,
        &image.options,
        &mut Vec::new(),
        &mut |_, _| (),
    );
    assert!(made.is_err());
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

#[test]
fn an_output_is_there_whole_or_not_at_all() {
    let image = Indexed::new(&Tar::new().file("f", &[7; 5000]).end());
    let dir = image.dir.path();
    let out = dir.join("out.tar");
    let run = |path: &Path| write_file(&image.lower, &image.options, path, &mut |_, _| ());
    for _ in 0..2 {
        let made = run(&out).unwrap();
        assert_eq!(Digest::of(&fs::read(&out).unwrap()), made.digest);
        assert_eq!(made.entries, 2);
    }
    assert!(run(&dir.join("none/out.tar")).is_err());
    // A symbolic link stays, and what it leads to is replaced.
    let link = dir.join("link");
    std::os::unix::fs::symlink("out.tar", &link).unwrap();
    assert!(
        matches!(Target::of(&link), Ok(Target::File(file)) if file == fs::canonicalize(&out).unwrap())
    );
    let nowhere = dir.join("nowhere");
    std::os::unix::fs::symlink("none", &nowhere).unwrap();
    assert!(matches!(Target::of(&nowhere), Err(OutputError { .. })));
    assert!(matches!(Target::of(dir), Err(OutputError { .. })));
    assert!(matches!(
        Target::of(Path::new("/dev/null")),
        Ok(Target::Stream(_))
    ));
    assert!(matches!(Target::of(&dir.join("new")), Ok(Target::File(_))));
    let names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("tmp"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
}

/// One entry of a random tar.
#[derive(Debug, Clone)]
enum Op {
    Dir,
    File(Vec<u8>),
    Sparse(Vec<(u64, u64)>),
    Symlink(String),
    Link(usize),
    Device(u8, u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
struct Random {
    path: String,
    op: Op,
    perm: u16,
    ids: (u32, u32),
    mtime: Time,
    xattrs: Vec<Xattr>,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Dir),
        prop::collection::vec(any::<u8>(), 0..3000).prop_map(Op::File),
        prop::collection::vec((1_u64..40, 1_u64..5), 0..5).prop_map(|runs| {
            let mut at = 0;
            let place = |(gap, len): (u64, u64)| {
                at += gap * 512;
                let run = (at, len * 512);
                at += run.1;
                run
            };
            Op::Sparse(runs.into_iter().map(place).collect())
        }),
        "[a-z/.]{1,300}".prop_map(Op::Symlink),
        any::<usize>().prop_map(Op::Link),
        (0..2_u8, 0_u32..4096, 0_u32..1 << 20).prop_map(|(k, a, b)| Op::Device(b'3' + k, a, b)),
        Just(Op::Fifo),
    ]
}

fn random() -> impl Strategy<Value = Random> {
    let name = prop_oneof![
        Just("a".to_owned()),
        "[ab]{1,2}",
        "\\PC{1,40}",
        "n{200,250}"
    ];
    (
        prop::collection::vec(name, 1..4),
        op(),
        0_u16..0o10000,
        (0..u32::MAX, 0..u32::MAX),
        (any::<i64>(), 0_u32..1_000_000_000),
        prop::collection::btree_map(
            "[a-z%=]{1,20}",
            prop::collection::vec(any::<u8>(), 0..50),
            0..3,
        ),
    )
        .prop_map(|(names, op, perm, ids, (sec, nsec), xattrs)| Random {
            path: names
                .iter()
                .map(|name| name.replace(['/', '\0'], "_").replace('.', "dot"))
                .collect::<Vec<_>>()
                .join("/"),
            op,
            perm,
            ids,
            mtime: Time { sec, nsec },
            xattrs: xattrs
                .into_iter()
                .map(|(name, value)| Xattr {
                    name: format!("user.{name}").into_bytes(),
                    value,
                })
                .collect(),
        })
}

/// The tar of what of `all` makes sense one after the other.
fn tar_of(all: &[Random]) -> Vec<u8> {
    let mut tar = Tar::new().end();
    let mut files = Vec::<String>::new();
    for entry in all {
        let body;
        let (flag, target, data): (u8, &str, &[u8]) = match &entry.op {
            Op::Dir => (b'5', "", b""),
            Op::File(data) => (b'0', "", data),
            Op::Sparse(runs) => {
                let size = runs.last().map_or(0, |run| run.0 + run.1) + 77;
                body = sparse(&entry.path, size, runs).end();
                (b'S', "", &*body)
            }
            Op::Symlink(target) => (b'2', target, b""),
            Op::Link(n) => match files.get(n % files.len().max(1)) {
                Some(target) => (b'1', target, b""),
                None => continue,
            },
            Op::Device(flag, ..) => (*flag, "", b""),
            Op::Fifo => (b'6', "", b""),
        };
        let mut more = Tar::new();
        if flag == b'S' {
            more.0.extend_from_slice(&data[..data.len() - 1024]);
        } else {
            let text = |n: u32| n.to_string().into_bytes();
            let keys: Vec<String> = entry
                .xattrs
                .iter()
                .map(|x| {
                    let name = String::from_utf8(x.name.clone()).unwrap();
                    format!(
                        "SCHILY.xattr.{}",
                        name.replace('%', "%25").replace('=', "%3D")
                    )
                })
                .collect();
            let (uid, gid) = (text(entry.ids.0), text(entry.ids.1));
            let mtime = match entry.mtime {
                Time { sec: 0.., nsec } => format!("{}.{nsec:09}", entry.mtime.sec),
                Time { sec, .. } => (sec + 1).to_string(),
            };
            let (major, minor) = match entry.op {
                Op::Device(_, major, minor) => (text(major), text(minor)),
                _ => (text(0), text(0)),
            };
            let mut records: Vec<(&str, &[u8])> = vec![
                ("path", entry.path.as_bytes()),
                ("linkpath", target.as_bytes()),
                ("uid", &uid),
                ("gid", &gid),
                ("mtime", mtime.as_bytes()),
                ("SCHILY.devmajor", &major),
                ("SCHILY.devminor", &minor),
            ];
            records.extend(
                keys.iter()
                    .zip(&entry.xattrs)
                    .map(|(k, x)| (&**k, &*x.value)),
            );
            let raw = Raw::new(flag, "x", data.len() as u64);
            let raw = raw.with(100, format!("{:07o}\0", entry.perm).as_bytes());
            more = more.pax(&records).raw(raw, data);
        }
        let with = [&tar[..tar.len() - 1024], &more.end()].concat();
        // What has no place (a directory over a file's path, …) is left out.
        if scan_source(&*with, Path::new("t.tar"), &()).is_ok() {
            tar = with;
            if flag != b'5' {
                files.push(entry.path.clone());
            }
        }
    }
    tar
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_reads_back_equal(all in prop::collection::vec(random(), 1..25)) {
        let tar = tar_of(&all);
        let image = Indexed::new(&tar);
        let flat = image.flatten();
        prop_assert_eq!(described(&flat), described(&tar));
        prop_assert_eq!(image.flatten(), &*flat);
        prop_assert_eq!(flatten(&flat), flat);
    }
}

/// Takes so many bytes.
struct Narrow(usize);

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self
            .0
            .checked_sub(bytes.len())
            .ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_output_is_an_error() {
    let image = Indexed::new(&Tar::new().file("f", &[7; 5000]).end());
    let whole = image.flatten().len();
    let run = |room| {
        write(
            &image.lower,
            &image.options,
            &mut Narrow(room),
            &mut |_, _| (),
        )
    };
    assert!(run(whole).is_ok());
    assert!(matches!(run(whole - 1), Err(FlattenError::Write(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_index_is_a_tar_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let tar = [
            &sparse("dir/s", 1 << 20, &[(100, 7), (5000, 5000)]).0[..],
            &sparse("t", 1 << 20, &[(4096, 8192), (65_536, 512)]).0,
            &Tar::new()
                .pax(&[("SCHILY.xattr.user.a", b"b")])
                .file("f", &[7; 5000])
                .hard_link("dir/g", "f")
                .symlink("dir/l", "f")
                .end(),
        ]
        .concat();
        let image = Indexed::new(&tar);
        let mut index = fs::read(image.lower.index_path()).unwrap();
        for (at, byte) in changes {
            // Not the superblock, which has a checksum.
            let at = 2048 + at.index(index.len() - 2048);
            index[at] ^= byte;
        }
        let bytes = crate::erofs::reader::Bytes::Owned(index);
        if let Ok(lower) = Lower::of_bytes(Path::new("index"), bytes, image.lower.blobs().cloned().collect()) {
            drop(write(&lower, &image.options, &mut Narrow(64 << 20), &mut |_, _| ()));
        }
    }
}
