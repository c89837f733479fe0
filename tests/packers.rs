//! A tree packed by the real packers (GNU tar in each of its formats, bsdtar, the `tar` crate)
//! and scanned must be the tree: each entry's type, attributes, links, xattrs and bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::XattrFlags;
use tarnfs::index::tree::{Content, Inode, InodeId, ROOT, Tree};
use tarnfs::index::{Scan, scan};
use tarnfs::inode::Kind;

/// What a packer is known to carry.
#[derive(Clone, Copy)]
struct Carries {
    nanoseconds: bool,
    xattrs: bool,
    long_names: bool,
    special: bool,
}

const ALL: Carries = Carries {
    nanoseconds: true,
    xattrs: true,
    long_names: true,
    special: true,
};

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

fn run(program: &str, args: &[&str], dir: &Path) {
    let out = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .expect(program);
    assert!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Whether `program` is there. GNU tar always must be; others loudly may not, but for CI.
fn present(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{program} is missing"
        );
        eprintln!("SKIPPED: {program} is not installed");
    }
    there
}

/// A tree with everything that `carries` allows.
fn make_tree(dir: &Path, carries: Carries) {
    let write = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).unwrap();
    fs::create_dir_all(dir.join("dir/sub/deeper")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    write("empty-file", b"");
    write("dir/one", b"1");
    write("dir/block", &[7; 512]);
    write(
        "dir/more",
        &(0..5000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>(),
    );
    write("späße", b"utf-8");
    fs::write(
        dir.join(std::ffi::OsStr::from_bytes(b"new\nline\xff")),
        b"bytes",
    )
    .unwrap();
    fs::hard_link(dir.join("dir/one"), dir.join("dir/sub/link")).unwrap();
    fs::hard_link(dir.join("dir/one"), dir.join("a-link")).unwrap();
    symlink("../dir/one", dir.join("dir/symlink")).unwrap();
    symlink("/nowhere", dir.join("dangling")).unwrap();
    fs::set_permissions(dir.join("dir/one"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(dir.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    if carries.long_names {
        let long = "n".repeat(250);
        fs::create_dir(dir.join(&long)).unwrap();
        write(&format!("{long}/{long}"), b"long");
        symlink(format!("{long}/{long}"), dir.join("long-target")).unwrap();
        fs::hard_link(dir.join(format!("{long}/{long}")), dir.join("long-link")).unwrap();
    }
    if carries.special && root() {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        let mode = Mode::from_raw_mode(0o640);
        for (name, kind, dev) in [
            ("fifo", FileType::Fifo, 0),
            ("char", FileType::CharacterDevice, makedev(1, 3)),
            ("block", FileType::BlockDevice, makedev(8, 17)),
        ] {
            mknodat(CWD, dir.join(name), kind, mode, dev).unwrap();
        }
        std::os::unix::fs::chown(dir.join("dir/block"), Some(1000), Some(2_000_000)).unwrap();
    }
    if carries.xattrs {
        let set = |name: &str, key: &str, value: &[u8]| {
            rustix::fs::lsetxattr(dir.join(name), key, value, XattrFlags::empty()).unwrap();
        };
        set("dir/more", "user.binary", b"\n12 a=b\n\0\xff");
        set("dir/more", "user.empty", b"");
        set("dir/more", "user.x%y=z", b"escaped");
        set("dir", "user.dir", b"d");
        if root() {
            set(
                "dir/more",
                "security.capability",
                &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            );
            set("dangling", "trusted.link", b"l");
        }
        run("setfacl", &["-m", "u:1234:rw,g:0:r", "dir/more"], dir);
        run("setfacl", &["-d", "-m", "u:nobody:rx", "empty"], dir);
    }
    let time = std::time::SystemTime::UNIX_EPOCH
        + std::time::Duration::new(
            1_500_000_000,
            if carries.nanoseconds { 123_456_789 } else { 0 },
        );
    File::options()
        .append(true)
        .open(dir.join("dir/more"))
        .unwrap()
        .set_modified(time)
        .unwrap();
}

fn sparse(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len((8 << 20) + 77).unwrap();
    for i in 0..40_u64 {
        file.write_all_at(
            &[u8::try_from(i).unwrap() + 1; 4096],
            i * 200 * 1024 / 4096 * 4096,
        )
        .unwrap();
    }
    let holes = File::create(path.with_file_name("only-hole")).unwrap();
    holes.set_len(3 << 20).unwrap();
}

fn inode(tree: &Tree, id: InodeId) -> &Inode {
    &tree.inodes[usize::try_from(id.0).unwrap()]
}

fn content(scan: &Scan, tar: &File, inode: &Inode) -> Vec<u8> {
    let Content::File { size, extents } = &inode.content else {
        panic!("not a file")
    };
    let mut out = vec![0; usize::try_from(*size).unwrap()];
    for e in extents {
        let (offset, len) = (
            usize::try_from(e.offset).unwrap(),
            usize::try_from(e.len).unwrap(),
        );
        let piece = &mut out[offset..offset + len];
        if e.blob == 0 {
            tar.read_exact_at(piece, e.blob_offset).unwrap();
        } else {
            for copy in &scan.side.copies {
                if copy.side_offset >= e.blob_offset && copy.side_offset < e.blob_offset + e.len {
                    let at = usize::try_from(copy.side_offset - e.blob_offset).unwrap();
                    let len = usize::try_from(copy.len).unwrap();
                    tar.read_exact_at(&mut piece[at..at + len], copy.tar_offset)
                        .unwrap();
                }
            }
        }
    }
    out
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let n = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut out: Vec<_> = names[..n]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let n = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            (name.to_vec(), value[..n].to_vec())
        })
        .collect();
    out.sort();
    out
}

/// Compares the tree of `tar` with the directory it was made of; gives the number of names.
fn compare(tar: &Path, dir: &Path, carries: Carries) -> usize {
    let file = File::open(tar).unwrap();
    let scan = scan(&file, tar, &()).unwrap_or_else(|e| panic!("{e}"));
    let mut inodes: HashMap<u64, InodeId> = HashMap::new();
    let mut todo: Vec<(PathBuf, InodeId)> = vec![(dir.to_owned(), ROOT)];
    let mut names = 0;
    while let Some((path, id)) = todo.pop() {
        names += 1;
        let at = path.display();
        let meta = fs::symlink_metadata(&path).unwrap();
        let node = inode(&scan.tree, id);
        assert_eq!(
            *inodes.entry(meta.ino()).or_insert(id),
            id,
            "{at}: another inode"
        );
        assert_eq!(u32::from(node.perm), meta.mode() & 0o7777, "{at}: mode");
        assert_eq!(
            (node.uid, node.gid),
            (meta.uid(), meta.gid()),
            "{at}: owner"
        );
        assert_eq!(node.mtime.sec, meta.mtime(), "{at}: mtime");
        if carries.nanoseconds {
            assert_eq!(i64::from(node.mtime.nsec), meta.mtime_nsec(), "{at}: mtime");
        }
        if carries.xattrs {
            let got: Vec<_> = node
                .xattrs
                .iter()
                .map(|x| (x.name.clone(), x.value.clone()))
                .collect();
            assert_eq!(got, xattrs(&path), "{at}: xattrs");
        }
        match (&node.content, Kind::from_mode(meta.mode()).unwrap()) {
            (Content::Dir { children, .. }, Kind::Dir) => {
                let mut want: Vec<_> = fs::read_dir(&path)
                    .unwrap()
                    .map(|e| e.unwrap().file_name())
                    .collect();
                want.sort();
                let got: Vec<_> = children.iter().map(|(n, _)| n.to_vec()).collect();
                assert_eq!(
                    got,
                    want.iter()
                        .map(|n| n.as_bytes().to_vec())
                        .collect::<Vec<_>>()
                );
                for (name, id) in children {
                    todo.push((path.join(std::ffi::OsStr::from_bytes(name)), id));
                }
                continue;
            }
            (Content::File { .. }, Kind::File) => {
                assert!(
                    content(&scan, &file, node) == fs::read(&path).unwrap(),
                    "{at}: bytes"
                );
            }
            (Content::Symlink(target), Kind::Symlink) => {
                assert_eq!(
                    &**target,
                    fs::read_link(&path).unwrap().as_os_str().as_bytes()
                );
            }
            (Content::Device(kind, number), want) => {
                assert_eq!((*kind, *number), (want, meta.rdev()), "{at}: device");
            }
            (Content::Fifo, Kind::Fifo) => {}
            (got, want) => panic!("{at}: {got:?} is no {want:?}"),
        }
        assert_eq!(u64::from(node.nlink), meta.nlink(), "{at}: nlink");
    }
    names
}

fn check(program: &str, args: &[&str], carries: Carries) {
    let tmp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = tmp.path().join("tree");
    fs::create_dir(&dir).unwrap();
    make_tree(&dir, carries);
    if args.contains(&"--sparse") || program == "bsdtar" {
        sparse(&dir.join("sparse"));
    }
    let tar = tmp.path().join("t.tar");
    let mut all = args.to_vec();
    all.extend_from_slice(&["-cf", "../t.tar", "."]);
    run(program, &all, &dir);
    assert!(compare(&tar, &dir, carries) > 14);
    // Packed twice into one: all names come again, and the second tells the same.
    if program == "tar" {
        all[args.len()] = "-rf";
        run(program, &all, &dir);
        compare(&tar, &dir, carries);
    }
}

#[test]
fn gnu_tar_pax() {
    check(
        "tar",
        &[
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "--sparse",
        ],
        ALL,
    );
}

#[test]
fn gnu_tar_pax_sparse_formats() {
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        let carries = Carries {
            xattrs: false,
            ..ALL
        };
        check("tar", &["--format=pax", "--sparse", &version], carries);
    }
}

#[test]
fn gnu_tar_gnu() {
    let carries = Carries {
        nanoseconds: false,
        xattrs: false,
        ..ALL
    };
    check("tar", &["--format=gnu", "--sparse"], carries);
    check("tar", &["--format=oldgnu"], carries);
}

#[test]
fn gnu_tar_ustar() {
    let carries = Carries {
        nanoseconds: false,
        xattrs: false,
        long_names: false,
        special: false,
    };
    check("tar", &["--format=ustar"], carries);
}

#[test]
fn gnu_tar_v7() {
    let carries = Carries {
        nanoseconds: false,
        xattrs: false,
        long_names: false,
        special: false,
    };
    check("tar", &["--format=v7"], carries);
}

#[test]
fn bsdtar() {
    if present("bsdtar") {
        check("bsdtar", &["--acls", "--xattrs", "--format=pax"], ALL);
        // Its default writes pax headers only where ustar does not do, and not for a time.
        check(
            "bsdtar",
            &["--acls", "--xattrs"],
            Carries {
                nanoseconds: false,
                ..ALL
            },
        );
        let carries = Carries {
            nanoseconds: false,
            xattrs: false,
            ..ALL
        };
        check("bsdtar", &["--format=gnutar"], carries);
    }
}

#[test]
fn the_tar_crate_reads_the_same() {
    let tmp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = tmp.path().join("tree");
    fs::create_dir(&dir).unwrap();
    let carries = Carries {
        nanoseconds: false,
        xattrs: false,
        special: false,
        ..ALL
    };
    make_tree(&dir, carries);
    let path = tmp.path().join("t.tar");
    let mut builder = tar::Builder::new(File::create(&path).unwrap());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", &dir).unwrap();
    builder.into_inner().unwrap();
    let file = File::open(&path).unwrap();
    let mut reader = tarnfs::tar::Reader::new(&file, &path).unwrap();
    let mut count = 0;
    for theirs in tar::Archive::new(File::open(&path).unwrap())
        .entries()
        .unwrap()
    {
        let theirs = theirs.unwrap();
        let ours = reader.next_entry().unwrap().unwrap();
        let name: PathBuf = theirs.path().unwrap().components().collect();
        let name = name
            .strip_prefix(".")
            .unwrap_or(&name)
            .as_os_str()
            .as_bytes()
            .to_vec();
        assert_eq!(ours.path, name);
        assert_eq!(ours.offset, theirs.raw_header_position());
        assert_eq!(
            u32::from(ours.perm),
            theirs.header().mode().unwrap() & 0o7777
        );
        if let tarnfs::tar::EntryKind::File { size, segments } = &ours.kind {
            assert_eq!(*size, theirs.size());
            for segment in segments {
                assert_eq!(segment.tar_offset, theirs.raw_file_position());
            }
        }
        count += 1;
    }
    assert!(reader.next_entry().unwrap().is_none());
    assert!(count > 14);
}
