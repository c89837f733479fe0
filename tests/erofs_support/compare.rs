//! Compares a mounted image with the tree it was made from: every name, attribute and byte.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RawDir, SeekFrom, Stat};
use tarnfs::index::tree::{Content, Extent, Inode, InodeId, ROOT, Tree};
use tarnfs::inode::{Kind, Xattr};

/// Most bytes of one hole that are read; of longer ones the two ends.
const HOLE_READ: u64 = 1 << 20;

/// What the walk has seen.
pub(crate) struct Seen {
    /// Number of directory entries without `.` and `..`.
    pub(crate) dirents: u64,
    /// Inode numbers by inode of the tree.
    pub(crate) inos: HashMap<InodeId, u64>,
}

/// Walks the mount at `root` along `tree`; panics at the first difference.
pub(crate) fn compare(tree: &Tree, root: OwnedFd, blob: &File) -> Seen {
    let mut seen = Seen {
        dirents: 0,
        inos: HashMap::new(),
    };
    let mut owner: HashMap<u64, InodeId> = HashMap::new();
    // XATTR_LIST_MAX and XATTR_SIZE_MAX are 64 KiB.
    let mut buffer = vec![0; 1 << 16];
    let root = Rc::new(root);
    // What is open: directories with children still to visit, so that depth costs nothing.
    let mut todo: Vec<(Rc<OwnedFd>, Vec<u8>, InodeId)> = vec![(root, b".".to_vec(), ROOT)];
    while let Some((at, name, id)) = todo.pop() {
        let inode = &tree.inodes[id.0 as usize];
        let shown = name.escape_ascii().to_string();
        let stat = rustix::fs::statat(&*at, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            .unwrap_or_else(|e| panic!("stat {shown}: {e}"));
        attributes(inode, &stat, &shown);
        let known = seen.inos.contains_key(&id);
        assert_eq!(
            *seen.inos.entry(id).or_insert(stat.st_ino),
            stat.st_ino,
            "ino of {shown}"
        );
        assert_eq!(
            *owner.entry(stat.st_ino).or_insert(id),
            id,
            "{shown} shares an ino"
        );
        if known {
            // Another name of what was compared in full.
            continue;
        }
        xattrs(inode, &at, &name, &shown, &mut buffer);
        match &inode.content {
            Content::Dir { children, parent } => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let dir = rustix::fs::openat(&*at, name.as_slice(), flags, Mode::empty())
                    .unwrap_or_else(|e| panic!("open {shown}: {e}"));
                let listed = listing(&dir);
                let mut want: Vec<(&[u8], InodeId)> = children.iter().collect();
                want.extend([(&b"."[..], id), (b"..", *parent)]);
                want.sort();
                assert_eq!(listed.len(), want.len(), "entries of {shown}");
                for ((name, ino, kind), (want, id)) in listed.iter().zip(want) {
                    assert_eq!(name, want, "in {shown}");
                    assert_eq!(
                        *kind,
                        Some(kind_of(&tree.inodes[id.0 as usize])),
                        "in {shown}"
                    );
                    if let Some(known) = seen.inos.get(&id) {
                        assert_eq!(ino, known, "d_ino of {}", name.escape_ascii());
                    }
                }
                let dir = Rc::new(dir);
                for (name, child) in children {
                    absent(&dir, name);
                    todo.push((Rc::clone(&dir), name.to_vec(), child));
                }
                seen.dirents += children.iter().count() as u64;
            }
            Content::File { size, extents } => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&*at, name.as_slice(), flags, Mode::empty())
                    .unwrap_or_else(|e| panic!("open {shown}: {e}"));
                bytes(&File::from(file), *size, extents, blob, &shown);
            }
            Content::Symlink(target) => {
                let read = rustix::fs::readlinkat(&*at, name.as_slice(), Vec::new()).unwrap();
                assert_eq!(read.as_bytes(), &**target, "target of {shown}");
            }
            Content::Device(..) | Content::Fifo | Content::Socket => {}
        }
    }
    seen
}

fn kind_of(inode: &Inode) -> Kind {
    match &inode.content {
        Content::File { .. } => Kind::File,
        Content::Dir { .. } => Kind::Dir,
        Content::Symlink(_) => Kind::Symlink,
        Content::Device(kind, _) => *kind,
        Content::Fifo => Kind::Fifo,
        Content::Socket => Kind::Socket,
    }
}

fn attributes(inode: &Inode, stat: &Stat, shown: &str) {
    let mode = kind_of(inode).mode_bits() | u32::from(inode.perm);
    assert_eq!(
        format!("{:o}", stat.st_mode),
        format!("{mode:o}"),
        "mode of {shown}"
    );
    assert_eq!(
        u32::try_from(stat.st_nlink),
        Ok(inode.nlink),
        "nlink of {shown}"
    );
    assert_eq!(
        (inode.uid, inode.gid),
        (stat.st_uid, stat.st_gid),
        "owner of {shown}"
    );
    assert!(stat.st_ino >= 2, "ino of {shown}");
    for (sec, nsec) in [
        (stat.st_mtime, stat.st_mtime_nsec),
        (stat.st_ctime, stat.st_ctime_nsec),
        (stat.st_atime, stat.st_atime_nsec),
    ] {
        assert_eq!(
            (sec, nsec as u32),
            (inode.mtime.sec, inode.mtime.nsec),
            "time of {shown}"
        );
    }
    let size = match &inode.content {
        Content::File { size, .. } => Some(*size),
        Content::Symlink(target) => Some(target.len() as u64),
        Content::Dir { .. } => None,
        Content::Device(..) | Content::Fifo | Content::Socket => Some(0),
    };
    assert_eq!(
        stat.st_size as u64,
        size.unwrap_or(stat.st_size as u64),
        "size of {shown}"
    );
    let dev = match inode.content {
        Content::Device(_, dev) => dev,
        _ => 0,
    };
    assert_eq!(stat.st_rdev, dev, "device of {shown}");
}

fn listing(dir: &OwnedFd) -> Vec<(Vec<u8>, u64, Option<Kind>)> {
    let mut buffer = Vec::with_capacity(1 << 16);
    let mut raw = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut all = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        let kind = Kind::from_mode(entry.file_type().as_raw_mode());
        all.push((entry.file_name().to_bytes().to_vec(), entry.ino(), kind));
    }
    // A second pass from a position in the middle gives the same rest.
    let mut again = Dir::read_from(dir).unwrap();
    again.rewind();
    let count = again.filter(|entry| entry.is_ok()).count();
    assert_eq!(count, all.len());
    all
}

/// Names close to one that exists are not found.
fn absent(dir: &OwnedFd, name: &[u8]) {
    let mut near = name.to_vec();
    if near.len() == 255 {
        return;
    }
    near.push(1);
    let found = rustix::fs::statat(dir, near.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
    assert_eq!(
        found.err(),
        Some(rustix::io::Errno::NOENT),
        "{}",
        near.escape_ascii()
    );
}

fn xattrs(inode: &Inode, at: &OwnedFd, name: &[u8], shown: &str, buffer: &mut [u8]) {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", at.as_raw_fd()));
    path.push(OsStr::from_bytes(name));
    let n = rustix::fs::llistxattr(&path, &mut buffer[..]).unwrap();
    let names: Vec<Vec<u8>> = buffer[..n]
        .split_terminator_nul()
        .map(<[u8]>::to_vec)
        .collect();
    let mut found: Vec<Xattr> = names
        .into_iter()
        .map(|name| {
            let os = OsStr::from_bytes(&name);
            let n = rustix::fs::lgetxattr(&path, os, &mut buffer[..])
                .unwrap_or_else(|e| panic!("{os:?} of {shown}: {e}"));
            let value = buffer[..n].to_vec();
            Xattr { name, value }
        })
        .collect();
    found.sort();
    assert!(
        found == inode.xattrs,
        "xattrs of {shown}: {found:?}, not {:?}",
        inode.xattrs
    );
    let none = rustix::fs::lgetxattr(&path, "user.no such", &mut buffer[..]);
    assert!(none.is_err(), "{shown}");
}

trait SplitNul {
    fn split_terminator_nul(&self) -> impl Iterator<Item = &[u8]>;
}

impl SplitNul for [u8] {
    fn split_terminator_nul(&self) -> impl Iterator<Item = &[u8]> {
        self.split(|&b| b == 0).filter(|name| !name.is_empty())
    }
}

fn bytes(file: &File, size: u64, extents: &[Extent], blob: &File, shown: &str) {
    let mut at = 0;
    for extent in extents {
        hole(file, at, extent.offset, shown);
        let mut want = vec![0; usize::try_from(extent.len).unwrap()];
        blob.read_exact_at(&mut want, extent.blob_offset).unwrap();
        let mut found = vec![1; want.len()];
        file.read_exact_at(&mut found, extent.offset).unwrap();
        assert!(found == want, "bytes of {shown} at {}", extent.offset);
        at = extent.offset + extent.len;
    }
    hole(file, at, size, shown);
    let mut past = [0];
    assert_eq!(file.read_at(&mut past, size).unwrap(), 0, "end of {shown}");
    let data = rustix::fs::seek(file, SeekFrom::Data(0)).ok();
    assert_eq!(
        data,
        extents.first().map(|e| e.offset),
        "first data of {shown}"
    );
}

fn hole(file: &File, from: u64, to: u64, shown: &str) {
    let spans = if to - from <= HOLE_READ {
        vec![(from, to)]
    } else {
        vec![(from, from + HOLE_READ / 2), (to - HOLE_READ / 2, to)]
    };
    for (from, to) in spans {
        let mut found = vec![1; usize::try_from(to - from).unwrap()];
        file.read_exact_at(&mut found, from).unwrap();
        assert!(found.iter().all(|&b| b == 0), "hole of {shown} at {from}");
    }
}
