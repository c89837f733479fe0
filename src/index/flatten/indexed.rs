//! Layers that were put on top of each other before: their tree as their index has it, so that no
//! tar is read again.
//!
//! The tree is the one that the layers give; only the order of its inodes is another, on which
//! nothing depends but the order of files in a side blob. Therefore an index that has one is not
//! read here: where in the layers its files' bytes are, it does not know either.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::merged::Merged;
use super::{Added, Flattening};
use crate::erofs::reader::{DirEntry, DirPosition, Inode as Found, Place, ReadError, Reader};
use crate::index::builder::INODES_MAX;
use crate::index::tree::{Children, Content, Extent, Inode, InodeId as Id, ROOT};
use crate::inode::{Kind, Runs};

/// A layer of an index.
#[derive(Debug, Clone)]
pub struct IndexedLayer {
    /// What errors call it.
    pub path: PathBuf,
    /// Its length in bytes.
    pub tar_len: u64,
}

impl Flattening {
    /// The `layers`, at least one, the lowest first, of which `index` is the index: as if each had
    /// been added. `devices` says which of them, from 0, each device of the index is, in rising
    /// order.
    ///
    /// # Errors
    /// [`ReadError`]: the index is damaged, or is not one of these layers, or not of layers alone.
    pub fn of_index(
        index: &Reader,
        layers: Vec<IndexedLayer>,
        devices: &[usize],
    ) -> Result<Self, ReadError> {
        let blobs: Vec<u16> = devices
            .iter()
            .filter(|&&layer| layer < layers.len())
            .filter_map(|&layer| u16::try_from(layer).ok())
            .collect();
        if blobs.len() != index.superblock().devices.len() || !blobs.is_sorted_by(|a, b| a < b) {
            return damaged("the index has other devices than layers", 0);
        }
        let mut tree = Loader {
            index,
            blobs: &blobs,
            inodes: Vec::new(),
            known: HashMap::new(),
        };
        tree.load()?;
        let mut merged = Merged::empty();
        merged.append(tree.inodes);
        let added = |layer: IndexedLayer| Added {
            path: layer.path,
            tar_len: layer.tar_len,
            entries: 0,
        };
        Ok(Self {
            merged,
            layers: layers.into_iter().map(added).collect(),
            ..Self::default()
        })
    }
}

fn damaged<T>(what: &'static str, offset: u64) -> Result<T, ReadError> {
    Err(ReadError::Damaged { what, offset })
}

/// A tree on its way out of an index.
struct Loader<'a> {
    index: &'a Reader,
    /// Which layer each device is.
    blobs: &'a [u16],
    inodes: Vec<Inode>,
    /// The inodes so far, by their numbers in the index.
    known: HashMap<u64, Id>,
}

impl Loader<'_> {
    /// Breadth first from the root, so that parents come before their children.
    fn load(&mut self) -> Result<(), ReadError> {
        let root = self.index.inode(self.index.superblock().root)?;
        if root.kind != Kind::Dir {
            return damaged("the root is not a directory", 0);
        }
        self.push(&root, ROOT)?;
        let mut dirs = VecDeque::from([(ROOT, root)]);
        while let Some((dir, found)) = dirs.pop_front() {
            let mut names = Vec::new();
            let mut positions = |entry: DirEntry<'_>, _: DirPosition| {
                if !matches!(entry.name, b"." | b"..") {
                    names.push((Box::<[u8]>::from(entry.name), entry.nid, entry.kind));
                }
                ControlFlow::Continue(())
            };
            self.index
                .list(&found, DirPosition::default(), &mut positions)?;
            let mut children = Children::default();
            for (name, nid, kind) in names {
                let id = match self.known.get(&nid) {
                    Some(&id) => match self.inodes.get_mut(super::slot(id)) {
                        Some(inode) if kind != Kind::Dir && inode.children().is_none() => {
                            inode.nlink = inode.nlink.saturating_add(1);
                            id
                        }
                        _ => return damaged("a directory with two names", nid),
                    },
                    None => {
                        let child = self.index.inode(nid)?;
                        if child.kind != kind {
                            return damaged("a name of another type than its inode", nid);
                        }
                        let id = self.push(&child, dir)?;
                        if kind == Kind::Dir {
                            dirs.push_back((id, child));
                        }
                        id
                    }
                };
                if kind == Kind::Dir
                    && let Some(parent) = self.inodes.get_mut(super::slot(dir))
                {
                    parent.nlink = parent.nlink.saturating_add(1);
                }
                children.push(&name, id);
            }
            if let Some(to) = self
                .inodes
                .get_mut(super::slot(dir))
                .and_then(Inode::children_mut)
            {
                *to = children;
            }
        }
        Ok(())
    }

    /// Takes an inode that the directory `parent` has the first name of. Its names are counted as
    /// they come, so that a damaged count does no harm.
    fn push(&mut self, found: &Found, parent: Id) -> Result<Id, ReadError> {
        let content = match found.kind {
            Kind::File => Content::File {
                size: found.size,
                extents: self.extents(found)?,
            },
            Kind::Dir => Content::Dir {
                children: Children::default(),
                parent,
            },
            Kind::Symlink => Content::Symlink(self.index.target(found)?.into()),
            Kind::Char | Kind::Block => {
                let (major, minor) = found.device;
                Content::Device(found.kind, rustix::fs::makedev(major, minor))
            }
            Kind::Fifo => Content::Fifo,
            Kind::Socket => Content::Socket,
        };
        let id = match u32::try_from(self.inodes.len()) {
            Ok(id) if self.inodes.len() < INODES_MAX => Id(id),
            _ => return damaged("more than eight million inodes", found.nid),
        };
        self.known.insert(found.nid, id);
        self.inodes.push(Inode {
            nlink: if found.kind == Kind::Dir { 2 } else { 1 },
            content,
            perm: found.perm,
            uid: found.uid,
            gid: found.gid,
            mtime: found.mtime,
            xattrs: self.index.xattrs(found)?,
        });
        Ok(id)
    }

    fn extents(&self, found: &Found) -> Result<Runs<Extent>, ReadError> {
        let mut extents = Vec::new();
        let mut offset = 0;
        while let Some(run) = self.index.run(found, offset, u64::MAX)? {
            match run.place {
                Place::Hole => {}
                Place::Image(_) => return damaged("a file's bytes in the index", found.nid),
                Place::Device { index, offset: at } => {
                    let Some(&blob) = self.blobs.get(usize::from(index)) else {
                        return damaged("a file in a device that is no layer", found.nid);
                    };
                    extents.push(Extent {
                        offset,
                        len: run.len,
                        blob,
                        blob_offset: at,
                    });
                }
            }
            offset += run.len;
        }
        Ok(extents.into_iter().collect())
    }
}
