//! The kernel judges the index: it mounts what the writer wrote, straight from the two files,
//! and every name, attribute, extended attribute and byte must be the tree's.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use proptest::prelude::*;
use tarnfs::erofs::layout::{FOOTER_LEN, Footer, ROW_LEN, Row, SUPER_OFFSET, sb};
use tarnfs::erofs::writer::{self, BlobSpec, WriteError};
use tarnfs::index::tree::{Children, Content, Extent, InodeId, ROOT};
use tarnfs::inode::{Kind, Time};

mod erofs_support;
use erofs_support::builder::{Builder, Image, inode, xattr};
use erofs_support::{compare, kernel, random};

/// An ACL in the kernel's form (version 2): user::rw-, user:`uid`:r--, group::r--, mask::r--,
/// other::---.
fn acl(uid: u32) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, uid),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Mounts the image and compares; then the trailer and, where there is a new one, fsck.erofs.
fn judge(builder: Builder) {
    let image = builder.finish().unwrap();
    trailer_is_right(&image);
    if !kernel::can_mount() {
        return;
    }
    let root = kernel::mount(&image.index, std::slice::from_ref(&image.blob)).unwrap();
    let blob = File::open(&image.blob).unwrap();
    let seen = compare::compare(&image.tree, root, &blob);
    assert_eq!(seen.dirents, image.summary.dirents);
    assert_eq!(seen.inos.len() as u64, image.summary.inodes);
    // The reverse table, against the inode numbers that the kernel showed.
    let mut want: Vec<Row> = Vec::new();
    for (n, inode) in image.tree.inodes.iter().enumerate() {
        let Content::Dir { children, .. } = &inode.content else {
            continue;
        };
        let parent = seen.inos[&InodeId(n as u32)] as u32;
        want.extend(children.iter().map(|(_, id)| Row {
            nid: seen.inos[&id] as u32,
            parent,
        }));
    }
    want.sort();
    assert!(rows(&image) == want, "the reverse table differs");
}

fn footer(image: &Image, bytes: &[u8]) -> Footer {
    let footer = Footer::decode(&bytes[bytes.len() - FOOTER_LEN..], bytes.len() as u64).unwrap();
    assert_eq!(footer.inodes, image.summary.inodes);
    footer
}

fn rows(image: &Image) -> Vec<Row> {
    let bytes = std::fs::read(&image.index).unwrap();
    let footer = footer(image, &bytes);
    bytes[footer.table_offset as usize..]
        .chunks(ROW_LEN)
        .take(footer.table_rows as usize)
        .map(|row| Row::decode(row).unwrap())
        .collect()
}

fn trailer_is_right(image: &Image) {
    let bytes = std::fs::read(&image.index).unwrap();
    let footer = footer(image, &bytes);
    assert_eq!(
        footer.body_crc,
        crc32c::crc32c(&bytes[..bytes.len() - FOOTER_LEN])
    );
    assert_eq!(footer.dirents, image.summary.dirents);
    assert_eq!(footer.table_rows, footer.dirents);
    assert_eq!(footer.file_bytes, image.summary.file_bytes);
    assert_eq!(footer.blobs, 1);
}

#[test]
fn an_empty_image() {
    judge(Builder::new());
}

#[test]
fn every_type_and_attribute() {
    let mut b = Builder::new();
    b.at(ROOT).perm = 0o1777;
    let bin = b.dir(ROOT, "bin");
    let empty = b.dir(ROOT, "empty");
    b.at(empty).perm = 0;
    let sh = b.file(bin, "sh", b"#!");
    b.at(sh).perm = 0o6755;
    b.link(ROOT, "hard link", sh);
    b.link(empty, "another", sh);
    b.file(ROOT, "nothing", b"");
    b.add(ROOT, "fifo", Content::Fifo);
    b.add(ROOT, "socket", Content::Socket);
    for (name, kind, major, minor) in [
        ("null", Kind::Char, 1, 3),
        ("whiteout", Kind::Char, 0, 0),
        ("sda", Kind::Block, 8, 0),
        ("far", Kind::Block, 0xfff, 0xf_ffff),
        ("minor 256", Kind::Char, 259, 256),
    ] {
        b.add(
            ROOT,
            name,
            Content::Device(kind, rustix::fs::makedev(major, minor)),
        );
    }
    for (name, sec, nsec) in [
        ("ns", 1_700_000_000, 999_999_999),
        ("negative", -1, 500_000_000),
        ("1901", -2_147_483_649, 0),
        ("2038", 1 << 31, 0),
        ("2106", 1 << 32, 1),
        ("2999", 32_503_680_000, 0),
        ("epoch", 0, 0),
    ] {
        let file = b.file(ROOT, name, name.as_bytes());
        b.at(file).mtime = Time { sec, nsec };
        let dir = b.dir(ROOT, format!("{name}.d"));
        b.at(dir).mtime = Time { sec, nsec };
    }
    for (name, uid, gid) in [
        ("65535", 65535, 65535),
        ("65536", 65536, 1),
        ("max", 0, u32::MAX - 1),
    ] {
        let file = b.file(ROOT, format!("uid {name}"), b"x");
        (b.at(file).uid, b.at(file).gid) = (uid, gid);
    }
    judge(b);
}

#[test]
fn names() {
    let mut b = Builder::new();
    for byte in (1..=255_u8).filter(|&b| b != b'/' && b != b'.') {
        b.file(ROOT, [byte], b"");
        b.file(ROOT, [b'.', byte], b"");
        b.file(ROOT, [b'.', b'.', byte], b"");
        b.dir(ROOT, [byte; 255]);
    }
    b.file(ROOT, "...", b"three");
    let deep = b.dir(ROOT, "directory sizes");
    // Directory data of every length around one and two blocks.
    for count in 1..=40 {
        let dir = b.dir(deep, format!("{count:03}"));
        for n in 0..count {
            b.file(dir, format!("{n:<w$}", w = 3 + count % 7), b"");
        }
    }
    for len in 200..=255 {
        let dir = b.dir(deep, format!("long {len}"));
        b.symlink(dir, vec![b'n'; len], b"target");
        b.symlink(dir, vec![b'o'; len], b"target");
    }
    judge(b);
}

#[test]
fn link_targets() {
    let mut b = Builder::new();
    for len in (1..=40)
        .chain(380..=530)
        .chain([1000, 1023, 1024, 1025, 3584, 4094, 4095])
    {
        let link = b.symlink(
            ROOT,
            format!("{len:04}"),
            &vec![b'a' + (len % 26) as u8; len],
        );
        if len % 3 == 0 {
            b.at(link).mtime.nsec = 1;
        }
        if len % 5 == 0 {
            b.at(link).xattrs = vec![xattr("trusted.x", vec![7; len % 512])];
        }
    }
    judge(b);
}

#[test]
fn sizes_and_holes() {
    let mut b = Builder::new();
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
    for size in (1..20)
        .chain(505..520)
        .chain([1023, 1024, 1025, 4095, 4096, 4097, 65537, 100_000])
    {
        b.file(ROOT, format!("{size}"), &bytes[..size]);
    }
    let piece = &bytes[..8192];
    b.sparse(ROOT, "hole at the start", 16384, &[(8192, piece)]);
    b.sparse(
        ROOT,
        "hole in the middle",
        24576,
        &[(0, piece), (16384, piece)],
    );
    b.sparse(ROOT, "hole at the end", 1_000_001, &[(0, piece)]);
    b.sparse(ROOT, "all hole", 12_345, &[]);
    b.sparse(ROOT, "one byte of hole", 1, &[]);
    b.sparse(
        ROOT,
        "small chunks",
        5 * 512 + 7,
        &[(512, &piece[..512]), (2048, &piece[..519])],
    );
    b.sparse(
        ROOT,
        "apart in the blob",
        16384 + 5,
        &[(0, piece), (8192, piece), (16384, b"tail!")],
    );
    b.sparse(
        ROOT,
        "over 4 GiB",
        (5 << 30) + 123,
        &[(5 << 30, &bytes[..123])],
    );
    b.sparse(
        ROOT,
        "data up to 1 MiB of 5 GiB",
        5 << 30,
        &[(0, &[7; 1 << 20])],
    );
    b.sparse(
        ROOT,
        "over 1 TiB",
        (3 << 40) + 77,
        &[(3 << 40, &bytes[..77])],
    );
    b.sparse(ROOT, "nothing but a hole of 9 TiB", (9 << 40) + 1, &[]);
    let last = (1 << 40) + (1 << 30);
    b.sparse(ROOT, "ends in data", last + 5, &[(last, b"hello")]);
    judge(b);
}

#[test]
fn extended_attributes() {
    let mut b = Builder::new();
    let capability = xattr(
        "security.capability",
        hex("0100000200200000000000000000000000000000"),
    );
    for n in 0..50 {
        let file = b.file(ROOT, format!("shared {n:02}"), b"data");
        b.at(file).xattrs = vec![
            capability.clone(),
            xattr("security.selinux", *b"system_u:object_r:bin_t:s0\0"),
            xattr("user.own", format!("{n}")),
        ];
    }
    let dir = b.dir(ROOT, "acl");
    b.at(dir).xattrs = vec![
        xattr("system.posix_acl_access", acl(1000)),
        xattr("system.posix_acl_default", acl(70000)),
    ];
    // The mode's group bits are the ACL's mask.
    b.at(dir).perm = 0o640;
    let file = b.file(dir, "inside", b"x");
    b.at(file).xattrs = vec![xattr("system.posix_acl_access", acl(1000))];
    b.at(file).perm = 0o640;
    for (n, len) in [0, 1, 3, 4, 400, 480, 512, 5000, 65_535]
        .into_iter()
        .enumerate()
    {
        let value: Vec<u8> = (0..len).map(|b: usize| (b % 251) as u8).collect();
        let file = b.file(ROOT, format!("value {len}"), b"data");
        b.at(file).xattrs = vec![xattr("user.value", value.clone())];
        let dir = b.dir(ROOT, format!("value {len}.d"));
        b.at(dir).xattrs = vec![xattr(
            "trusted.other",
            [&value[..], &[n as u8]].concat()[n.min(1)..].to_vec(),
        )];
        b.file(dir, "child", b"");
    }
    let file = b.file(ROOT, "name of 255", b"");
    b.at(file).xattrs = vec![xattr(&format!("user.{}", "n".repeat(250)), *b"v")];
    for name in ["many", "many too"] {
        let many = b.file(ROOT, name, b"data");
        b.at(many).xattrs = (0..300)
            .map(|n| xattr(&format!("user.{n:03}"), *b"v"))
            .collect();
    }
    for n in 0..40 {
        let file = b.file(ROOT, format!("inline {n:02}"), b"data");
        b.at(file).xattrs = vec![xattr("user.a", vec![n as u8; n * 11])];
        let dir = b.dir(ROOT, format!("inline {n:02}.d"));
        b.at(dir).xattrs = vec![xattr("user.b", vec![n as u8; n * 11])];
        for child in 0..n {
            b.file(dir, format!("{child}"), b"");
        }
    }
    judge(b);
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|n| u8::from_str_radix(&text[n..n + 2], 16).unwrap())
        .collect()
}

#[test]
fn large_directories_and_many_links() {
    let mut b = Builder::new();
    let wide = b.dir(ROOT, "wide");
    for n in 0..100_000 {
        b.file(wide, format!("entry-{n}"), b"");
    }
    let links = b.dir(ROOT, "links");
    let file = b.file(links, "first", b"one file");
    for n in 0..70_000 {
        b.link(links, format!("{n}"), file);
    }
    judge(b);
}

#[test]
fn five_thousand_directories_deep() {
    let mut b = Builder::new();
    let mut at = ROOT;
    for n in 0..5000 {
        at = b.dir(at, format!("d{n}"));
    }
    b.file(at, "bottom", b"reached");
    judge(b);
}

#[test]
fn many_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Builder::new().tree;
    let mut specs = Vec::new();
    let mut paths = Vec::new();
    let mut children = Children::default();
    for k in 0..200_u16 {
        let mut bytes: Vec<u8> = (0..700 + k).map(|n| (n ^ (k * 7)) as u8).collect();
        let size = bytes.len() as u64 - 512;
        bytes.resize(bytes.len().next_multiple_of(512), 0xee);
        let path = dir.path().join(format!("blob {k}"));
        std::fs::write(&path, &bytes).unwrap();
        let len = bytes.len() as u64;
        specs.push(BlobSpec {
            tag: format!("sha256:{k}"),
            len,
        });
        let extents = vec![Extent {
            offset: 0,
            len: size,
            blob: k,
            blob_offset: 512,
        }];
        let id = InodeId(tree.inodes.len() as u32);
        children.push(format!("{k:03}").as_bytes(), id);
        let extents = extents.into();
        let mut file = inode(Content::File { size, extents });
        file.nlink = 1;
        tree.inodes.push(file);
        paths.push(path);
    }
    tree.inodes[0].content = Content::Dir {
        children,
        parent: ROOT,
    };
    let index = dir.path().join("index.erofs");
    writer::write(&tree, &specs, &mut File::create(&index).unwrap()).unwrap();
    if !kernel::can_mount() {
        return;
    }
    let root = kernel::mount(&index, &paths).unwrap();
    for (k, path) in paths.iter().enumerate() {
        let want = std::fs::read(path).unwrap();
        let fd = root.as_raw_fd();
        let found = std::fs::read(format!("/proc/self/fd/{fd}/{k:03}")).unwrap();
        assert!(
            found == want[512..512 + found.len()] && found.len() == 188 + k,
            "blob {k}"
        );
    }
}

#[test]
fn the_kernel_checks_the_superblock() {
    let image = Builder::new().finish().unwrap();
    if !kernel::can_mount() {
        return;
    }
    let mut bytes = std::fs::read(&image.index).unwrap();
    bytes[SUPER_OFFSET as usize + sb::UUID] ^= 1;
    let damaged = image.dir.path().join("damaged.erofs");
    std::fs::write(&damaged, &bytes).unwrap();
    assert!(kernel::mount(&damaged, std::slice::from_ref(&image.blob)).is_err());
    kernel::mount(&image.index, &[image.blob]).unwrap();
}

#[test]
fn limits_name_the_path() {
    let mut b = Builder::new();
    let a = b.dir(ROOT, "a");
    let deep = b.dir(a, "b");
    let file = b.file(deep, "c", b"x");
    b.at(file).xattrs = vec![xattr("system.nfs4_acl", *b"x")];
    match b.finish() {
        Err(WriteError::Limit { path, what }) => {
            assert_eq!(path, "/a/b/c");
            assert!(what.contains("system.nfs4_acl"), "{what}");
        }
        other => panic!("{:?}", other.map(|image| image.summary)),
    }
}

#[test]
fn fsck_and_dump_agree() {
    let mut b = Builder::new();
    let dir = b.dir(ROOT, "dir");
    let file = b.file(dir, "file", b"hello");
    b.at(file).xattrs = vec![xattr("user.a", *b"b")];
    b.symlink(ROOT, "link", b"dir/file");
    b.sparse(ROOT, "sparse", 1 << 20, &[(4096, &[1; 4096])]);
    let image = b.finish().unwrap();
    for tool in ["fsck.erofs", "dump.erofs"] {
        // 512-byte blocks and several devices came to erofs-utils with 1.7.
        let Some(version) = version_of(tool).filter(|&v| v >= (1, 7)) else {
            eprintln!("SKIPPED: no {tool} of version 1.7 or later");
            continue;
        };
        let device = format!("--device={}", image.blob.display());
        let done = Command::new(tool)
            .arg(device)
            .arg(&image.index)
            .output()
            .unwrap();
        assert!(done.status.success(), "{tool} {version:?}: {done:?}");
    }
    drop(image.dir);
}

fn version_of(tool: &str) -> Option<(u32, u32)> {
    let output = Command::new(tool).arg("-V").output().ok()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    text.split_whitespace().find_map(|word| {
        let (major, rest) = word.trim_start_matches('v').split_once('.')?;
        let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_trees(ops in proptest::collection::vec(random::op(), 0..60)) {
        let mut b = Builder::new();
        random::apply(&mut b, &ops);
        judge(b);
    }
}
