//! The image judged by what the writer of indexes makes, and by what hostile bytes make of that.

use std::path::Path;

use super::exercise::exercise;
use super::*;
use crate::erofs::writer::{self, BlobSpec};
use crate::index::tree::{Content, Extent as TreeExtent, Inode as TreeInode, InodeId, Tree};
use crate::inode::Time;

/// A small tree with something of everything, over a blob of 64 KiB.
pub(crate) fn tree() -> Tree {
    let inode = |content, nlink| TreeInode {
        content,
        perm: 0o755,
        uid: 0,
        gid: 70_000,
        mtime: Time {
            sec: 1_700_000_000,
            nsec: 123_456_789,
        },
        nlink,
        xattrs: Vec::new(),
    };
    let dir = |children: &[(&str, u32)], parent, nlink| {
        let children = children
            .iter()
            .map(|(n, i)| (n.as_bytes(), InodeId(*i)))
            .collect();
        inode(
            Content::Dir {
                children,
                parent: InodeId(parent),
            },
            nlink,
        )
    };
    let file = |size, extents: Vec<_>| {
        let extents = extents.into();
        inode(Content::File { size, extents }, 1)
    };
    let extent = |offset, len, blob_offset| TreeExtent {
        offset,
        len,
        blob: 0,
        blob_offset,
    };
    let mut inodes = vec![
        dir(
            &[("a", 1), ("dir", 2), ("hole", 4), ("link", 3), ("null", 7)],
            0,
            3,
        ),
        file(1500, vec![extent(0, 1500, 512)]),
        dir(&[("again", 6), ("b", 6), ("fifo", 5)], 0, 2),
        inode(Content::Symlink(b"dir/b"[..].into()), 1),
        file(8192, vec![extent(0, 512, 4096), extent(4096, 1024, 8192)]),
        inode(Content::Fifo, 1),
        inode(
            Content::File {
                size: 0,
                extents: Default::default(),
            },
            2,
        ),
        inode(Content::Device(Kind::Char, libc::makedev(1, 3)), 1),
    ];
    let xattr = |name: &str, value: &[u8]| Xattr {
        name: name.into(),
        value: value.to_vec(),
    };
    inodes[1].xattrs = vec![xattr("user.inline", b"1"), xattr("user.shared", &[7; 40])];
    inodes[4].xattrs = vec![xattr("user.shared", &[7; 40])];
    inodes[6].xattrs = vec![xattr("security.capability", b"\x01\n\0\xff")];
    Tree { inodes }
}

fn image(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    writer::write(
        tree,
        &[BlobSpec {
            tag: "t".into(),
            len: 65_536,
        }],
        &mut bytes,
    )
    .unwrap();
    bytes
}

fn blob(dir: &Path) -> BlobFile {
    let path = dir.join("blob");
    if !path.exists() {
        let bytes: Vec<u8> = (0..=127).flat_map(|sector| [sector; 512]).collect();
        std::fs::write(&path, bytes).unwrap();
    }
    let identity = FileIdentity::of(&std::fs::metadata(&path).unwrap());
    BlobFile { path, identity }
}

fn open(bytes: Vec<u8>, blob: &BlobFile) -> Result<Lower, OpenError> {
    Lower::of_bytes(Path::new("index"), Bytes::Owned(bytes), vec![blob.clone()])
}

fn at(lower: &Lower, path: &str) -> Nid {
    lower.resolve(path.as_bytes(), false).unwrap().nid
}

#[test]
fn reads_what_the_writer_writes() {
    let dir = tempfile::tempdir().unwrap();
    let lower = open(image(&tree()), &blob(dir.path())).unwrap();
    assert_eq!(lower.stats().inodes, 8);
    assert_eq!(lower.stats().entries, Some(8));
    let attr = lower.attr(at(&lower, "a")).unwrap();
    assert_eq!(
        (attr.size, attr.blocks, attr.gid, attr.nlink),
        (1500, 3, 70_000, 1)
    );
    assert_eq!(
        attr.mtime,
        Time {
            sec: 1_700_000_000,
            nsec: 123_456_789
        }
    );
    let mut buf = [9; 2000];
    assert_eq!(lower.read(at(&lower, "a"), 0, &mut buf).unwrap(), 1500);
    assert_eq!(
        (buf[0], buf[511], buf[512], buf[1499], buf[1500]),
        (1, 1, 2, 3, 9)
    );
    assert_eq!(lower.readlink(at(&lower, "link")).unwrap(), b"dir/b");
    assert_eq!(
        lower.attr(at(&lower, "null")).unwrap().rdev,
        libc::makedev(1, 3)
    );
    let shared = lower.xattr(at(&lower, "hole"), b"user.shared").unwrap();
    assert_eq!(shared.as_deref(), Some(&[7; 40][..]));
    assert_eq!(
        lower.xattrs(at(&lower, "a")).unwrap(),
        tree().inodes[1].xattrs
    );
    let linked = at(&lower, "dir/b");
    assert_eq!(
        lower.paths(linked).unwrap(),
        [b"/dir/again".to_vec(), b"/dir/b".to_vec()]
    );
    assert_eq!(lower.xattrs(linked).unwrap(), tree().inodes[6].xattrs);
    exercise(&lower);
}

#[test]
fn holes_read_as_zeros_and_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let lower = open(image(&tree()), &blob(dir.path())).unwrap();
    let hole = at(&lower, "hole");
    let mut buf = vec![9; 8192];
    assert_eq!(lower.read(hole, 0, &mut buf).unwrap(), 8192);
    let mut want = vec![0; 8192];
    want[..512].fill(8);
    want[4096..4608].fill(16);
    want[4608..5120].fill(17);
    assert_eq!(buf, want);
    assert_eq!(lower.attr(hole).unwrap().blocks, 3);
    let seek = |offset, what| lower.seek(hole, offset, what).unwrap();
    assert_eq!(seek(0, Seek::Data), Some(0));
    assert_eq!(seek(0, Seek::Hole), Some(512));
    assert_eq!(seek(511, Seek::Hole), Some(512));
    assert_eq!(seek(512, Seek::Data), Some(4096));
    assert_eq!(seek(4100, Seek::Data), Some(4100));
    assert_eq!(seek(4100, Seek::Hole), Some(5120));
    assert_eq!(seek(5120, Seek::Data), None);
    assert_eq!(seek(8191, Seek::Hole), Some(8191));
    assert_eq!(
        (seek(8192, Seek::Hole), seek(8192, Seek::Data)),
        (None, None)
    );
    let full = at(&lower, "a");
    assert_eq!(lower.seek(full, 0, Seek::Hole).unwrap(), Some(1500));
    assert_eq!(lower.seek(full, 1500, Seek::Hole).unwrap(), None);
}

#[test]
fn names_are_found_without_the_reverse_table_and_with_a_lying_one() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob(dir.path());
    let whole = image(&tree());
    let lower = open(whole.clone(), &blob).unwrap();
    let footer = lower.reader.footer().unwrap().unwrap();
    let names = |lower: &Lower| {
        ["a", "dir", "dir/b", "dir/fifo", "link", ""].map(|p| lower.names(at(lower, p)).unwrap())
    };
    let want = names(&lower);
    assert_eq!(want.each_ref().map(Vec::len), [1, 1, 2, 1, 1, 0]);

    let cut = usize::try_from(footer.image_len).unwrap();
    let bare = open(whole[..cut].to_vec(), &blob).unwrap();
    assert!(bare.reverse.is_none());
    assert_eq!(names(&bare), want);

    // Every row says something else: never a wrong name, and the right ones all the same.
    let start = usize::try_from(footer.table_offset).unwrap();
    let len = usize::try_from(footer.table_rows).unwrap() * 8;
    for fill in [0_u8, 1, 0x24, 0xff] {
        let mut lying = whole.clone();
        lying[start..start + len].fill(fill);
        assert_eq!(names(&open(lying, &blob).unwrap()), want);
    }
    for i in 0..len {
        let mut lying = whole.clone();
        lying[start + i] ^= 0x11;
        assert_eq!(names(&open(lying, &blob).unwrap()), want);
    }
}

#[test]
fn a_flipped_byte_is_an_answer_or_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob(dir.path());
    let mut good = image(&tree());
    // Without the checksum, so that the fields behind it are looked at.
    good[1024 + 8] &= !1;
    exercise(&open(good.clone(), &blob).unwrap());
    let mut opened = 0;
    for i in 1024..good.len() {
        let mut bytes = good.clone();
        bytes[i] ^= [0x01, 0x80, 0xff][i % 3];
        if let Ok(lower) = open(bytes, &blob) {
            exercise(&lower);
            opened += 1;
        }
    }
    assert!(
        opened > good.len() / 2,
        "most flips get past the opening: {opened}"
    );
}

#[test]
fn a_truncated_index_is_an_answer_or_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob(dir.path());
    let good = image(&tree());
    for len in 0..good.len() {
        if let Ok(lower) = open(good[..len].to_vec(), &blob) {
            exercise(&lower);
        }
    }
    assert!(open(good[..1151].to_vec(), &blob).is_err());
    assert!(open(Vec::new(), &blob).is_err());
    let empty = dir.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    assert!(
        Lower::open(&empty, vec![blob])
            .unwrap_err()
            .to_string()
            .contains("empty")
    );
}

#[test]
fn the_superblock_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob(dir.path());
    let good = image(&tree());
    let error = |at: usize, byte: u8, checked: bool| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        if !checked {
            bytes[1024 + 8] &= !1;
        }
        open(bytes, &blob).unwrap_err().to_string()
    };
    assert!(error(1024 + 60, 0x55, true).contains("checksum"));
    assert!(error(1024, 0, false).contains("not an EROFS image"));
    assert!(error(1024 + 12, 13, false).contains("block size"));
    assert!(error(1024 + 80, 0x80 | 0xc, false).contains("48-bit"));
    assert!(error(1024 + 80, 0x2 | 0xc, false).contains("compressed"));
    assert!(error(1024 + 86, 2, false).contains("refers to 2 blobs, 1 are given"));
}

#[test]
fn a_directory_in_itself_ends_a_walk() {
    let dir = tempfile::tempdir().unwrap();
    let blob = blob(dir.path());
    let mut bytes = image(&tree());
    bytes[1024 + 8] &= !1;
    let lower = open(bytes.clone(), &blob).unwrap();
    let (root, sub) = (lower.root().0, at(&lower, "dir").0);
    // In the root's block: the entry of "dir" leads to the root.
    let entry = bytes
        .windows(12)
        .position(|w| w[..8] == sub.to_le_bytes() && w[10] == 2)
        .unwrap();
    bytes[entry..entry + 8].copy_from_slice(&root.to_le_bytes());
    let lower = open(bytes, &blob).unwrap();
    let walked = lower.walk::<LowerError>(lower.root(), &mut |_| Ok(Step::Into));
    assert!(
        matches!(walked, Err(LowerError::Damaged { .. })),
        "{walked:?}"
    );
    exercise(&lower);
}
