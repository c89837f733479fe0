//! A small image, an upper on disk, and path-based calls for short tests.

use std::fs::File;
use std::io::Cursor;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::erofs::writer::{self, BlobSpec};
use crate::index::tree::{Children, Content, Extent, Inode, InodeId, ROOT, Tree};
use crate::inode::{Attr, Time, Xattr};
use crate::lower::{BlobFile, FileIdentity, Lower};
use crate::name::Name;
use crate::overlay::{
    Asker, Caller, DirEntry, Entry, Error, Ino, Make, Options, Overlay, ROOT_INO, Result, SetAttr,
};
use crate::upper::{Upper, UpperError};

/// Who the tests run as: files born in place belong to them.
pub(super) fn me() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

pub(super) fn asker() -> Asker {
    Asker {
        uid: me().uid,
        gid: me().gid,
        pid: std::process::id(),
    }
}

pub(super) fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

struct Builder {
    tree: Tree,
    blob: Vec<u8>,
}

impl Builder {
    fn add(&mut self, parent: InodeId, name: &str, content: Content, perm: u16) -> InodeId {
        let id = InodeId(u32::try_from(self.tree.inodes.len()).unwrap());
        let me = me();
        self.tree.inodes.push(Inode {
            content,
            perm,
            uid: me.uid,
            gid: me.gid,
            mtime: Time {
                sec: 1_600_000_000,
                nsec: 5,
            },
            nlink: 0,
            xattrs: Vec::new(),
        });
        self.link(parent, name, id);
        id
    }

    fn link(&mut self, parent: InodeId, name: &str, id: InodeId) {
        let Content::Dir { children, .. } = &mut self.tree.inodes[parent.0 as usize].content else {
            panic!("no directory");
        };
        children.push(name.as_bytes(), id);
        children.sort();
    }

    fn dir(&mut self, parent: InodeId, name: &str) -> InodeId {
        self.add(
            parent,
            name,
            Content::Dir {
                children: Children::default(),
                parent,
            },
            0o755,
        )
    }

    fn file(&mut self, parent: InodeId, name: &str, data: &[u8], perm: u16) -> InodeId {
        let blob_offset = self.blob.len() as u64;
        self.blob.extend_from_slice(data);
        self.blob.resize(self.blob.len().next_multiple_of(512), 0);
        let len = data.len() as u64;
        let extents = (len > 0).then_some(Extent {
            offset: 0,
            len,
            blob: 0,
            blob_offset,
        });
        let extents = extents.into_iter().collect();
        self.add(parent, name, Content::File { size: len, extents }, perm)
    }

    fn count_links(&mut self) {
        let mut nlink = vec![0_u32; self.tree.inodes.len()];
        let mut subdirs = vec![0_u32; self.tree.inodes.len()];
        for (i, inode) in self.tree.inodes.iter().enumerate() {
            if let Content::Dir { children, .. } = &inode.content {
                for (_, child) in children {
                    nlink[child.0 as usize] += 1;
                    let child = &self.tree.inodes[child.0 as usize];
                    subdirs[i] += u32::from(matches!(child.content, Content::Dir { .. }));
                }
            }
        }
        for (i, inode) in self.tree.inodes.iter_mut().enumerate() {
            let dir = matches!(inode.content, Content::Dir { .. });
            inode.nlink = if dir { 2 + subdirs[i] } else { nlink[i] };
        }
    }
}

/// The content of `/big`: three blocks and a bit, no two alike.
pub(super) fn big() -> Vec<u8> {
    (0..10_000_u32).flat_map(|n| n.to_le_bytes()).collect()
}

/// The image: /a/{x,y,sub/{deep,link2}}, /b, /empty, /big, /link1 = /a/sub/link2 = /b/link3,
/// /suid, /sym -> a/x, /holes (sparse).
fn image() -> (Tree, Vec<u8>) {
    let content = Content::Dir {
        children: Children::default(),
        parent: ROOT,
    };
    let root = Inode {
        content,
        perm: 0o751,
        uid: me().uid,
        gid: me().gid,
        mtime: Time {
            sec: 1_500_000_000,
            nsec: 0,
        },
        nlink: 0,
        xattrs: Vec::new(),
    };
    let mut b = Builder {
        tree: Tree { inodes: vec![root] },
        blob: Vec::new(),
    };
    let a = b.dir(ROOT, "a");
    b.file(a, "x", b"content of x\n", 0o644);
    b.file(a, "y", b"content of y\n", 0o600);
    let sub = b.dir(a, "sub");
    b.file(sub, "deep", b"deep\n", 0o644);
    let other = b.dir(ROOT, "b");
    b.dir(ROOT, "empty");
    let data = big();
    let file = b.file(ROOT, "big", &data, 0o640);
    b.tree.inodes[file.0 as usize].xattrs = vec![Xattr {
        name: b"user.note".to_vec(),
        value: b"kept".to_vec(),
    }];
    let linked = b.file(ROOT, "link1", b"one file\n", 0o644);
    b.link(sub, "link2", linked);
    b.link(other, "link3", linked);
    b.file(ROOT, "suid", b"#!/bin/true\n", 0o4755);
    b.add(ROOT, "sym", Content::Symlink((*b"a/x").into()), 0o777);
    let at = b.blob.len() as u64;
    b.blob.extend_from_slice(&[7; 512]);
    let extents = vec![Extent {
        offset: 1 << 20,
        len: 512,
        blob: 0,
        blob_offset: at,
    }];
    b.add(
        ROOT,
        "holes",
        Content::File {
            size: 2 << 20,
            extents: extents.into(),
        },
        0o644,
    );
    b.count_links();
    (b.tree, b.blob)
}

/// The directory of a fixture: its own, or another process's.
pub(super) enum Home {
    Own(TempDir),
    Lent(PathBuf),
}

impl Home {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Own(dir) => dir.path(),
            Self::Lent(path) => path,
        }
    }
}

pub(super) struct Fixture {
    pub(super) dir: Home,
    pub(super) fs: Overlay,
}

pub(super) fn lower(dir: &Path) -> Lower {
    static IMAGE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    let (index, blob) = (dir.join("index.erofs"), dir.join("blob"));
    if !index.exists() {
        let (built, bytes) = IMAGE.get_or_init(|| {
            let (tree, bytes) = image();
            let spec = BlobSpec {
                tag: String::new(),
                len: bytes.len() as u64,
            };
            let mut built = Cursor::new(Vec::new());
            writer::write(&tree, &[spec], &mut built).unwrap();
            (built.into_inner(), bytes)
        });
        std::fs::write(&blob, bytes).unwrap();
        std::fs::write(&index, built).unwrap();
    }
    let identity = FileIdentity::of(&std::fs::metadata(&blob).unwrap());
    Lower::open(
        &index,
        vec![BlobFile {
            path: blob,
            identity,
        }],
    )
    .unwrap()
}

impl Fixture {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("upper")).unwrap();
        let fs = Self::open(dir.path());
        let dir = Home::Own(dir);
        Self { dir, fs }
    }

    fn open(dir: &Path) -> Overlay {
        Overlay::with_upper(lower(dir), Self::open_upper(dir), Options::default()).unwrap()
    }

    pub(super) fn open_upper(dir: &Path) -> Upper {
        // Another test's thread may be between fork and exec, and its child then shares the lock
        // of an upper that has just been let go.
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match Upper::open(&dir.join("upper"), &dir.join("work")) {
                Err(UpperError::Busy(_)) if Instant::now() < until => std::thread::yield_now(),
                opened => return opened.unwrap(),
            }
        }
    }

    /// Unmounts and mounts again.
    pub(super) fn again(self) -> Self {
        let Self { dir, fs } = self;
        drop(fs);
        let fs = Self::open(dir.path());
        Self { dir, fs }
    }

    /// Mounts what a fixture left.
    pub(super) fn reopen(dir: Home) -> Self {
        let fs = Self::open(dir.path());
        Self { dir, fs }
    }

    pub(super) fn upper(&self, path: &str) -> PathBuf {
        self.dir.path().join("upper").join(path)
    }

    pub(super) fn entry(&self, path: &str) -> Result<Entry> {
        let mut at = Entry {
            attr: self.fs.getattr(ROOT_INO, None)?,
            generation: 0,
        };
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = self.fs.lookup(Ino(at.attr.ino), &name(part))?;
        }
        Ok(at)
    }

    pub(super) fn ino(&self, path: &str) -> Ino {
        Ino(self.attr(path).ino)
    }

    pub(super) fn attr(&self, path: &str) -> Attr {
        self.entry(path)
            .unwrap_or_else(|error| panic!("{path}: {error}"))
            .attr
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        match self.entry(path) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.errno(), libc::ENOENT, "{path}: {error}");
                false
            }
        }
    }

    /// The directory of a path, and its last name.
    pub(super) fn split(&self, path: &str) -> Result<(Ino, Name)> {
        let (dir, last) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((Ino(self.entry(dir)?.attr.ino), name(last)))
    }

    pub(super) fn read(&self, path: &str) -> Vec<u8> {
        let attr = self.attr(path);
        let handle = self.fs.open(Ino(attr.ino), libc::O_RDONLY).unwrap();
        let mut buf = vec![0; usize::try_from(attr.size).unwrap() + 1];
        let n = self.fs.read(handle, 0, &mut buf).unwrap();
        self.fs.release(handle);
        buf.truncate(n);
        buf
    }

    /// Writes at an offset of a file that is there.
    pub(super) fn write(&self, path: &str, offset: u64, data: &[u8]) {
        let handle = self.fs.open(self.ino(path), libc::O_WRONLY).unwrap();
        assert_eq!(self.fs.write(handle, offset, data).unwrap(), data.len());
        self.fs.release(handle);
    }

    pub(super) fn create(&self, path: &str, data: &[u8]) -> Attr {
        let (dir, last) = self.split(path).unwrap();
        let (entry, handle) = self
            .fs
            .create(me(), dir, &last, 0o644, 0o022, libc::O_RDWR)
            .unwrap();
        self.fs.write(handle, 0, data).unwrap();
        self.fs.release(handle);
        entry.attr
    }

    pub(super) fn mkdir(&self, path: &str) -> Attr {
        let (dir, last) = self.split(path).unwrap();
        self.fs
            .make(me(), dir, &last, Make::Dir, 0o755, 0o022)
            .unwrap()
            .attr
    }

    pub(super) fn unlink(&self, path: &str) -> Result<()> {
        let (dir, last) = self.split(path)?;
        self.fs.unlink(dir, &last)
    }

    pub(super) fn rmdir(&self, path: &str) -> Result<()> {
        let (dir, last) = self.split(path)?;
        self.fs.rmdir(dir, &last)
    }

    pub(super) fn rename(&self, from: &str, to: &str, flags: u32) -> Result<()> {
        let (dir, last) = self.split(from)?;
        let (new_dir, new_last) = self.split(to)?;
        self.fs.rename(dir, &last, new_dir, &new_last, flags)?;
        Ok(())
    }

    pub(super) fn link(&self, from: &str, to: &str) -> Result<Entry> {
        let (dir, last) = self.split(to)?;
        let ino = Ino(self.entry(from)?.attr.ino);
        self.fs.link(ino, dir, &last)
    }

    pub(super) fn chmod(&self, path: &str, perm: u16) -> Attr {
        let set = SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        self.fs.setattr(self.ino(path), None, &set).unwrap()
    }

    /// Names of a directory, sorted, each checked to have the inode number that a lookup gives.
    pub(super) fn ls(&self, path: &str) -> Vec<String> {
        let dir = self.ino(path);
        let listed = dir;
        let mut seen = Vec::new();
        self.fs
            .readdir(listed, 0, &mut |entry: DirEntry<'_>| {
                seen.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.ino));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(seen[0], (".".into(), dir.0));
        assert_eq!(seen[1].0, "..");
        let mut names = Vec::new();
        for (found, ino) in seen.drain(2..) {
            let looked_up = self
                .fs
                .lookup(dir, &name(&found))
                .unwrap_or_else(|e| panic!("{path}/{found}: {e}"));
            assert_eq!(looked_up.attr.ino, ino, "d_ino of {path}/{found}");
            names.push(found);
        }
        names.sort();
        names
    }
}

/// The errno of an operation that must fail.
pub(super) fn errno<T: std::fmt::Debug>(result: std::result::Result<T, Error>) -> i32 {
    result.expect_err("must fail").errno()
}

/// Whether a path on disk is a whiteout.
pub(super) fn is_whiteout(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    std::fs::symlink_metadata(path)
        .is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
}

/// A mark on disk, in whichever namespace the tests have.
pub(super) fn mark(path: &Path, key: &str) -> Option<Vec<u8>> {
    let file = File::open(path).unwrap();
    let fd = std::os::fd::AsFd::as_fd(&file);
    ["trusted", "user"].iter().find_map(|space| {
        crate::sys::fs::getxattr(fd, format!("{space}.{key}").as_bytes()).unwrap()
    })
}

/// All bytes of a file on disk.
pub(super) fn bytes(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap();
    let mut data = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut data, 0).unwrap();
    data
}
