//! Random trees, entry by entry.

use proptest::prelude::*;
use tarnfs::index::tree::{Content, InodeId, ROOT};
use tarnfs::inode::{Kind, Time};

use super::builder::{Builder, xattr};

/// One random entry.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    parent: usize,
    name: Vec<u8>,
    what: What,
    usual_time: bool,
    time: (i64, u32),
    perm: u16,
    owner: (u32, u32),
    xattrs: Vec<(u8, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum What {
    Dir,
    File(Vec<u8>),
    Sparse(u64, Vec<(u64, u64)>),
    Symlink(usize),
    Link(usize),
    Device(bool, u32, u32),
    Fifo,
    Socket,
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let name = prop_oneof![
        4 => proptest::collection::vec(prop_oneof![Just(b'.'), Just(b'-'), b'a'..=b'd'], 1..6),
        2 => proptest::collection::vec(1..=255_u8, 1..40),
        1 => proptest::collection::vec(b'a'..=b'c', 200..=255),
    ]
    .prop_filter("a name", |name| tarnfs::name::check(name).is_ok());
    let what = prop_oneof![
        6 => Just(What::Dir),
        4 => proptest::collection::vec(any::<u8>(), 0..3000).prop_map(What::File),
        3 => (0..40_000_u64, proptest::collection::vec((0..6_u64, 1..6_u64), 0..5))
            .prop_map(|(rest, pieces)| What::Sparse(rest, pieces)),
        2 => (1..=4095_usize).prop_map(What::Symlink),
        2 => (1..=100_usize).prop_map(What::Symlink),
        2 => any::<usize>().prop_map(What::Link),
        1 => (any::<bool>(), 0..0x1000_u32, 0..0x10_0000_u32)
            .prop_map(|(char, major, minor)| What::Device(char, major, minor)),
        1 => Just(What::Fifo),
        1 => Just(What::Socket),
    ];
    let owner = (
        prop_oneof![Just(0), Just(1000), 0..u32::MAX],
        prop_oneof![Just(0), 0..u32::MAX],
    );
    let value = proptest::collection::vec(0..3_u8, 0..300);
    let xattrs = proptest::collection::vec((0..6_u8, value), 0..3);
    (
        any::<usize>(),
        name,
        what,
        any::<bool>(),
        (
            any::<i32>().prop_map(|sec| i64::from(sec) * 8),
            0..1_000_000_000_u32,
        ),
        0..0o10000_u16,
        owner,
        xattrs,
    )
        .prop_map(
            |(parent, name, what, usual_time, time, perm, owner, xattrs)| Op {
                parent,
                name,
                what,
                usual_time,
                time,
                perm,
                owner,
                xattrs,
            },
        )
}

pub(crate) fn apply(b: &mut Builder, ops: &[Op]) {
    let mut dirs = vec![ROOT];
    let mut files: Vec<InodeId> = Vec::new();
    for op in ops {
        let parent = dirs[op.parent % dirs.len()];
        if let Content::Dir { children, .. } = &b.at(parent).content
            && children.iter().any(|(name, _)| *name == *op.name)
        {
            continue;
        }
        let id = match &op.what {
            What::Dir => b.dir(parent, &op.name),
            What::File(bytes) => b.file(parent, &op.name, bytes),
            What::Sparse(rest, pieces) => {
                let data = [0x5a; 6 * 512];
                let mut at = 0;
                let mut cut = Vec::new();
                for (hole, len) in pieces {
                    at += hole * 512;
                    cut.push((at, &data[..(len * 512) as usize]));
                    at += len * 512;
                }
                b.sparse(parent, &op.name, at + rest, &cut)
            }
            What::Symlink(len) => b.symlink(parent, &op.name, &vec![b'l'; *len]),
            What::Link(which) if files.is_empty() => b.file(parent, &op.name, &[*which as u8]),
            What::Link(which) => {
                b.link(parent, &op.name, files[which % files.len()]);
                continue;
            }
            What::Device(char, major, minor) => {
                let kind = if *char { Kind::Char } else { Kind::Block };
                let dev = rustix::fs::makedev(*major, *minor);
                b.add(parent, &op.name, Content::Device(kind, dev))
            }
            What::Fifo => b.add(parent, &op.name, Content::Fifo),
            What::Socket => b.add(parent, &op.name, Content::Socket),
        };
        if let What::Dir = op.what {
            dirs.push(id);
        } else {
            files.push(id);
        }
        let inode = b.at(id);
        inode.perm = op.perm;
        (inode.uid, inode.gid) = op.owner;
        if !op.usual_time {
            inode.mtime = Time {
                sec: op.time.0,
                nsec: op.time.1,
            };
        }
        // user. is for files and directories alone (fs/xattr.c:xattr_permission).
        let user = matches!(inode.content, Content::File { .. } | Content::Dir { .. });
        for (n, value) in &op.xattrs {
            let space = ["trusted", "security", "user"][usize::from(n % 3)];
            let name = format!("{space}.{n}");
            if (user || space != "user") && !inode.xattrs.iter().any(|x| x.name == name.as_bytes())
            {
                inode.xattrs.push(xattr(&name, value.clone()));
            }
        }
    }
}
