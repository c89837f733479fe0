//! What only the reader itself shows; the rest is tested through [`crate::lower`].

use std::ops::ControlFlow;

use super::*;
use crate::erofs::writer;
use crate::index::tree::{Content, Inode as TreeInode, InodeId, ROOT, Tree};
use crate::inode::Time;

fn image() -> Vec<u8> {
    let inode = |content, nlink| TreeInode {
        content,
        perm: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        nlink,
        xattrs: Vec::new(),
    };
    let children = [("alpha", InodeId(1)), ("gamma", InodeId(1))];
    let root = inode(
        Content::Dir {
            children: children.into_iter().collect(),
            parent: ROOT,
        },
        2,
    );
    let tree = Tree {
        inodes: vec![root, inode(Content::Fifo, 2)],
    };
    let mut bytes = Vec::new();
    writer::write(&tree, &[], &mut bytes).unwrap();
    // Without the checksum.
    bytes[1024 + 8] &= !1;
    bytes
}

fn names(bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
    let reader = Reader::new(Bytes::Owned(bytes)).unwrap();
    let root = reader.inode(reader.superblock().root).unwrap();
    let mut names = Vec::new();
    reader.list(&root, DirPosition::default(), &mut |entry, _| {
        names.push(entry.name.to_vec());
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

#[test]
fn a_directory_out_of_order_is_damage() {
    let good = image();
    assert_eq!(
        names(good.clone()).unwrap(),
        [&b"."[..], b"..", b"alpha", b"gamma"]
    );
    let at = good.windows(10).position(|w| w == b"alphagamma").unwrap();
    for bad in [b"gammaalpha", b"alphaalpha", b"alph/gamma", b"alpha\0amma"] {
        let mut bytes = good.clone();
        bytes[at..at + 10].copy_from_slice(bad);
        assert!(
            matches!(names(bytes), Err(ReadError::Damaged { .. })),
            "{bad:?}"
        );
    }
}
