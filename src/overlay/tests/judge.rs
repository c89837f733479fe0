//! What a tree shows, and whether that is what it was before an operation or what it is after.

use std::collections::BTreeMap;

use super::fixture::Fixture;
use super::operations::Case;
use crate::inode::{Kind, Xattr};
use crate::lower::Seek;
use crate::overlay::Ino;

/// What one path shows: all but times that an operation sets to now, and numbers of the upper's
/// own making. Of directories no times: a rename that is undone leaves a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    ino: Option<u64>,
    kind: Kind,
    perm: u16,
    owner: (u32, u32),
    nlink: u32,
    size: u64,
    rdev: u64,
    old_mtime: Option<i64>,
    data: Vec<(u64, Vec<u8>)>,
    xattrs: Vec<Xattr>,
}

type Tree = BTreeMap<String, Seen>;

fn tree(f: &Fixture) -> Tree {
    let mut seen = Tree::new();
    let mut stack = vec![String::new()];
    while let Some(path) = stack.pop() {
        let attr = f.attr(&path);
        let ino = Ino(attr.ino);
        let data = match attr.kind {
            Kind::File => content(f, ino),
            Kind::Symlink => vec![(0, f.fs.readlink(ino).unwrap())],
            _ => Vec::new(),
        };
        let is_dir = attr.kind == Kind::Dir;
        if is_dir {
            stack.extend(f.ls(&path).into_iter().map(|name| format!("{path}/{name}")));
        }
        let mut xattrs: Vec<Xattr> =
            f.fs.listxattr(ino)
                .unwrap()
                .into_iter()
                .map(|name| Xattr {
                    value: f.fs.getxattr(ino, &name).unwrap(),
                    name,
                })
                .collect();
        xattrs.sort();
        seen.insert(
            path,
            Seen {
                ino: (attr.ino < 1 << 40).then_some(attr.ino),
                kind: attr.kind,
                perm: attr.perm,
                owner: (attr.uid, attr.gid),
                nlink: attr.nlink,
                size: if is_dir { 0 } else { attr.size },
                rdev: attr.rdev,
                old_mtime: (!is_dir && attr.mtime.sec < 1_700_000_000).then_some(attr.mtime.sec),
                data,
                xattrs,
            },
        );
    }
    seen
}

/// The blocks of a file that are not all zeros, each with where it is.
fn content(f: &Fixture, ino: Ino) -> Vec<(u64, Vec<u8>)> {
    const BLOCK: usize = 512;
    let handle = f.fs.open(ino, libc::O_RDONLY).unwrap();
    let mut blocks = Vec::new();
    let mut at = 0;
    loop {
        let (data, hole) = match f.fs.seek(handle, at, Seek::Data) {
            Ok(data) => (data, f.fs.seek(handle, data, Seek::Hole).unwrap()),
            Err(error) => {
                assert_eq!(error.errno(), libc::ENXIO);
                break;
            }
        };
        let start = data - data % BLOCK as u64;
        let mut buf = vec![0; usize::try_from(hole - start).unwrap()];
        let n = f.fs.read(handle, start, &mut buf).unwrap();
        for (offset, block) in (start..).step_by(BLOCK).zip(buf[..n].chunks(BLOCK)) {
            if block.iter().any(|&byte| byte != 0) {
                blocks.push((offset, block.to_vec()));
            }
        }
        at = hole;
    }
    f.fs.release(handle);
    blocks
}

pub(super) fn prepare(case: &Case) -> Fixture {
    let f = Fixture::new();
    (case.setup)(&f);
    f.again()
}

/// Knows both ends of one operation.
pub(super) struct Judge {
    before: Tree,
    after: Tree,
}

impl Judge {
    /// Does the operation, undisturbed.
    pub(super) fn new(case: &Case) -> Self {
        let f = prepare(case);
        let before = tree(&f);
        (case.operation)(&f).unwrap();
        let after = tree(&f);
        assert_eq!(tree(&f.again()), after, "{}: after a new mount", case.name);
        Self { before, after }
    }

    /// Whether the tree is as it is after the operation; if not, it must be as it was before.
    pub(super) fn is_after(&self, f: &Fixture, what: &str) -> bool {
        let now = tree(f);
        if now != self.before && now != self.after {
            let differs = |a: &Tree| {
                let keys = a.keys().chain(now.keys());
                keys.filter(|key| a.get(*key) != now.get(*key))
                    .cloned()
                    .collect::<Vec<_>>()
            };
            let from_before = differs(&self.before);
            panic!(
                "{what}: neither before (differs: {from_before:?}) nor after (differs: {:?})\n\
                 now: {:#?}",
                differs(&self.after),
                from_before
                    .iter()
                    .map(|key| now.get(key))
                    .collect::<Vec<_>>()
            );
        }
        now == self.after
    }

    /// After a new mount nothing half done is left over, and the operation can be done again from
    /// whichever end was found.
    pub(super) fn again(&self, f: &Fixture, case: &Case, was_after: bool, what: &str) {
        assert_eq!(left_in_work(f), 0, "{what}");
        let pending = f.dir.path().join("work/pending-links");
        if let Ok(pending) = std::fs::read_dir(pending) {
            assert_eq!(pending.count(), 0, "{what}");
        }
        match (case.operation)(f) {
            // A second exchange undoes the first.
            Ok(()) => assert!(self.is_after(f, what) || was_after, "{what}, again"),
            Err(error) => assert!(
                was_after && [libc::EEXIST, libc::ENOENT, libc::ENODATA].contains(&error.errno()),
                "{what}, again: {error}"
            ),
        }
    }
}

/// Says what was being tried when something else panics.
pub(super) struct Trying<'a>(pub(super) &'a str);

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("trying: {}", self.0);
        }
    }
}

/// How many entries work/ holds.
pub(super) fn left_in_work(f: &Fixture) -> usize {
    let work = f.dir.path().join("work/work");
    std::fs::read_dir(work).unwrap().count()
}
