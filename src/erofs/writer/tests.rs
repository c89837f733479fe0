//! What the writer refuses, and what it leaves out. The kernel judges the rest
//! (tests/erofs_kernel.rs).

use super::*;
use crate::erofs::layout::{FOOTER_LEN, Footer};
use crate::index::tree::{Extent, Inode, InodeId};

fn inode(content: Content) -> Inode {
    let mtime = Time::default();
    Inode {
        content,
        perm: 0o755,
        uid: 0,
        gid: 0,
        mtime,
        nlink: 1,
        xattrs: Vec::new(),
    }
}

fn dir(parent: u32, children: &[(&[u8], u32)]) -> Inode {
    let children = children
        .iter()
        .map(|&(name, id)| (name, InodeId(id)))
        .collect();
    inode(Content::Dir {
        children,
        parent: InodeId(parent),
    })
}

fn file(size: u64, extents: &[Extent]) -> Inode {
    inode(Content::File {
        size,
        extents: extents.to_vec().into(),
    })
}

fn blob(len: u64) -> BlobSpec {
    BlobSpec {
        tag: String::new(),
        len,
    }
}

fn written(inodes: Vec<Inode>, blobs: &[BlobSpec]) -> Result<(Summary, Vec<u8>), WriteError> {
    let mut out = Vec::new();
    write(&Tree { inodes }, blobs, &mut out).map(|summary| (summary, out))
}

#[test]
fn trees_that_contradict_themselves_are_errors() {
    let data = Extent {
        offset: 0,
        len: 512,
        blob: 0,
        blob_offset: 0,
    };
    let mut late = file(0, &[]);
    late.mtime.nsec = 1_000_000_000;
    for (what, inodes) in [
        ("nothing", vec![]),
        ("the root is a file", vec![file(0, &[])]),
        (
            "the root lies elsewhere",
            vec![dir(1, &[(b"a", 1)]), dir(0, &[])],
        ),
        ("a name leads nowhere", vec![dir(0, &[(b"a", 7)])]),
        ("the root in itself", vec![dir(0, &[(b"a", 0)])]),
        (
            "a directory twice",
            vec![dir(0, &[(b"a", 1), (b"b", 1)]), dir(0, &[])],
        ),
        ("a wrong parent", vec![dir(0, &[(b"a", 1)]), dir(1, &[])]),
        (
            "unsorted",
            vec![dir(0, &[(b"b", 1), (b"a", 1)]), file(0, &[])],
        ),
        ("dots", vec![dir(0, &[(b"..", 1)]), file(0, &[])]),
        (
            "no such blob",
            vec![
                dir(0, &[(b"a", 1)]),
                file(512, &[Extent { blob: 1, ..data }]),
            ],
        ),
        (
            "past the blob",
            vec![
                dir(0, &[(b"a", 1)]),
                file(1025, &[Extent { len: 1025, ..data }]),
            ],
        ),
        ("nanoseconds", vec![dir(0, &[(b"a", 1)]), late]),
    ] {
        let result = written(inodes, &[blob(1024)]);
        assert!(
            matches!(result, Err(WriteError::Tree(_))),
            "{what}: {result:?}"
        );
    }
}

#[test]
fn limits_are_errors_with_the_path() {
    let link = |target: &[u8]| inode(Content::Symlink(target.into()));
    let sparse = Extent {
        offset: 512,
        len: 512,
        blob: 0,
        blob_offset: 0,
    };
    for (what, bad) in [
        ("empty link", link(b"")),
        ("long link", link(&[b'x'; 4096])),
        ("NUL in a link", link(b"a\0b")),
        ("too many chunks", file(1 << 40, &[sparse])),
        ("unaligned", file(2048, &[Extent { len: 500, ..sparse }])),
        (
            "device number",
            inode(Content::Device(Kind::Char, rustix::fs::makedev(0x1000, 0))),
        ),
    ] {
        let inodes = vec![dir(0, &[(b"a", 1)]), dir(0, &[(b"\xff", 2)]), bad];
        match written(inodes, &[blob(4102)]) {
            Err(WriteError::Limit { path, .. }) => assert_eq!(path, "/a/\u{fffd}", "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn blobs_have_limits() {
    for bad in [
        blob((1 << 41) + 1),
        BlobSpec {
            tag: "x".repeat(64),
            len: 0,
        },
        BlobSpec {
            tag: "a\0b".to_owned(),
            len: 0,
        },
    ] {
        assert!(matches!(
            written(vec![dir(0, &[])], &[bad]),
            Err(WriteError::Limit { .. })
        ));
    }
    assert!(written(vec![dir(0, &[])], &[blob((1 << 41) - 512)]).is_ok());
    assert!(written(vec![dir(0, &[])], &vec![blob(0); 16_000]).is_ok());
    let many = written(vec![dir(0, &[])], &vec![blob(0); 16_500]);
    assert!(matches!(many, Err(WriteError::Limit { .. })));
}

#[test]
fn what_no_directory_names_is_left_out() {
    let (summary, bytes) = written(
        vec![
            dir(0, &[(b"a", 2)]),
            file(0, &[]),
            file(0, &[]),
            dir(0, &[]),
        ],
        &[],
    )
    .unwrap();
    assert_eq!((summary.inodes, summary.dirents), (2, 1));
    let footer = Footer::decode(&bytes[bytes.len() - FOOTER_LEN..], summary.len).unwrap();
    assert_eq!((footer.inodes, footer.table_rows), (2, 1));
}

#[test]
fn uuid_follows_the_content() {
    let uuid = |inodes, blobs: &[BlobSpec]| {
        let (_, bytes) = written(inodes, blobs).unwrap();
        SuperBlock::decode(&bytes[1024..]).unwrap().uuid
    };
    let one = uuid(vec![dir(0, &[])], &[]);
    assert_eq!(one, uuid(vec![dir(0, &[])], &[]));
    assert_ne!(one, uuid(vec![dir(0, &[(b"a", 1)]), file(0, &[])], &[]));
    assert_ne!(one, uuid(vec![dir(0, &[])], &[blob(512)]));
    assert_eq!((one[6] >> 4, one[8] >> 6), (8, 2));
}

#[test]
fn a_failing_output_is_an_error() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let tree = Tree {
        inodes: vec![dir(0, &[(b"a", 1)]), file(0, &[])],
    };
    for writes in 0..3 {
        assert!(matches!(
            write(&tree, &[], &mut Full(writes)),
            Err(WriteError::Io(_))
        ));
    }
    assert!(write(&tree, &[], &mut Full(3)).is_ok());
}
