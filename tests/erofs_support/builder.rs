//! A [`Tree`] and its blob, entry by entry.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tarnfs::erofs::writer::{self, BlobSpec, Summary, WriteError};
use tarnfs::index::tree::{Children, Content, Extent, Inode, InodeId, ROOT, Tree};
use tarnfs::inode::{Time, Xattr};

/// The time of everything that is given no other.
pub(crate) const USUAL: Time = Time {
    sec: 1_700_000_000,
    nsec: 0,
};

/// A tree that grows, its blob in a temporary directory.
pub(crate) struct Builder {
    pub(crate) tree: Tree,
    pub(crate) dir: tempfile::TempDir,
    blob: File,
    blob_len: u64,
}

/// An index and its blob on disk.
pub(crate) struct Image {
    pub(crate) tree: Tree,
    pub(crate) index: PathBuf,
    pub(crate) blob: PathBuf,
    pub(crate) summary: Summary,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn inode(content: Content) -> Inode {
    let nlink = if matches!(content, Content::Dir { .. }) {
        2
    } else {
        0
    };
    Inode {
        content,
        perm: 0o644,
        uid: 0,
        gid: 0,
        mtime: USUAL,
        nlink,
        xattrs: Vec::new(),
    }
}

pub(crate) fn xattr(name: &str, value: impl Into<Vec<u8>>) -> Xattr {
    Xattr {
        name: name.into(),
        value: value.into(),
    }
}

impl Builder {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blob = File::create_new(dir.path().join("blob.tar")).unwrap();
        let root = inode(Content::Dir {
            children: Children::default(),
            parent: ROOT,
        });
        // A first block that belongs to no file, as a tar's first header.
        blob.write_all_at(&[0xee; 512], 0).unwrap();
        Self {
            tree: Tree { inodes: vec![root] },
            dir,
            blob,
            blob_len: 512,
        }
    }

    pub(crate) fn at(&mut self, id: InodeId) -> &mut Inode {
        &mut self.tree.inodes[id.0 as usize]
    }

    /// Adds an inode under a name.
    pub(crate) fn add(
        &mut self,
        parent: InodeId,
        name: impl AsRef<[u8]>,
        content: Content,
    ) -> InodeId {
        let id = InodeId(u32::try_from(self.tree.inodes.len()).unwrap());
        let is_dir = matches!(content, Content::Dir { .. });
        self.tree.inodes.push(inode(content));
        self.link(parent, name, id);
        if is_dir {
            // A directory's own name is one of the two links that it begins with.
            self.at(id).nlink = 2;
            self.at(parent).nlink += 1;
        }
        id
    }

    /// Gives an inode another name.
    pub(crate) fn link(&mut self, parent: InodeId, name: impl AsRef<[u8]>, id: InodeId) {
        let Content::Dir { children, .. } = &mut self.at(parent).content else {
            panic!("the parent is no directory")
        };
        children.push(name.as_ref(), id);
        self.at(id).nlink += 1;
    }

    pub(crate) fn dir(&mut self, parent: InodeId, name: impl AsRef<[u8]>) -> InodeId {
        let id = self.add(
            parent,
            name,
            Content::Dir {
                children: Children::default(),
                parent,
            },
        );
        self.at(id).perm = 0o755;
        id
    }

    pub(crate) fn symlink(
        &mut self,
        parent: InodeId,
        name: impl AsRef<[u8]>,
        target: &[u8],
    ) -> InodeId {
        self.add(parent, name, Content::Symlink(target.into()))
    }

    /// Appends `bytes` to the blob, with a fence of foreign bytes behind it; where they lie.
    pub(crate) fn store(&mut self, bytes: &[u8]) -> u64 {
        let at = self.blob_len;
        self.blob.write_all_at(bytes, at).unwrap();
        let end = (at + bytes.len() as u64).next_multiple_of(512);
        self.blob.write_all_at(&[0xee; 512], end).unwrap();
        self.blob_len = end + 512;
        at
    }

    pub(crate) fn file(
        &mut self,
        parent: InodeId,
        name: impl AsRef<[u8]>,
        bytes: &[u8],
    ) -> InodeId {
        let size = bytes.len() as u64;
        self.sparse(parent, name, size, &[(0, bytes)])
    }

    /// A file with these pieces of data (offset, bytes) and holes everywhere else.
    pub(crate) fn sparse(
        &mut self,
        parent: InodeId,
        name: impl AsRef<[u8]>,
        size: u64,
        pieces: &[(u64, &[u8])],
    ) -> InodeId {
        let mut extents = Vec::new();
        for &(offset, bytes) in pieces.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            let blob_offset = self.store(bytes);
            extents.push(Extent {
                offset,
                len: bytes.len() as u64,
                blob: 0,
                blob_offset,
            });
        }
        let extents = extents.into();
        self.add(parent, name, Content::File { size, extents })
    }

    /// Sorts what must be sorted and writes the index.
    pub(crate) fn finish(mut self) -> Result<Image, WriteError> {
        for inode in &mut self.tree.inodes {
            inode.xattrs.sort();
            if let Content::Dir { children, .. } = &mut inode.content {
                children.sort();
            }
        }
        let blobs = [BlobSpec {
            tag: "blob.tar".to_owned(),
            len: self.blob_len,
        }];
        let mut bytes = Vec::new();
        let summary = writer::write(&self.tree, &blobs, &mut bytes)?;
        let mut again = Vec::new();
        writer::write(&self.tree, &blobs, &mut again).unwrap();
        assert!(bytes == again, "two indexes of one tree differ");
        assert_eq!(summary.len, bytes.len() as u64);
        let index = self.dir.path().join("index.erofs");
        File::create_new(&index).unwrap().write_all(&bytes).unwrap();
        let blob = self.dir.path().join("blob.tar");
        Ok(Image {
            tree: self.tree,
            index,
            blob,
            summary,
            dir: self.dir,
        })
    }
}
