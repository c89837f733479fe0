//! From tar entries to a [`Tree`]: what `tar -x` would leave in an empty directory.
//!
//! - Entries are applied in order; of a path that comes twice the later entry holds, but a
//!   directory keeps its children. A non-directory never replaces a directory that has children.
//! - Directories that no entry tells of are made: 0755, root, modified at 0. So is the root.
//! - A hard link is another name of what its target is when the link comes, even if the target's
//!   own name is given to something else later. Other than with `tar -x`, the target may also
//!   come later; then it is what has the name in the end.
//! - A path never leads through a symbolic link, neither an entry's nor a hard link's.
//!
//! What it never does: look at the tar's bytes, decide what a valid path is (`crate::tar` has).

mod links;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;

use super::extents::{self, SidePlan};
use super::misfit::{Fault, Misfit};
use super::tree::{Content, Extent, Inode, InodeId, Tree};
use crate::inode::{Kind, Runs, Time, Xattr};
use crate::tar::{Entry, EntryKind, Segment, printable};

/// The most inodes an image may have: far beyond any image, and a bound on memory, since one
/// entry can ask for two thousand missing parents.
const INODES_MAX: usize = 8 << 20;

type Id = usize;
const ROOT: Id = 0;

#[derive(Debug)]
enum Holds {
    File {
        size: u64,
        extents: Vec<Extent>,
    },
    /// A file whose bytes have to be copied to the side blob, if it is still there in the end.
    Sparse {
        size: u64,
        segments: Runs<Segment>,
    },
    Dir {
        children: BTreeMap<Box<[u8]>, Id>,
        parent: Id,
    },
    Symlink(Box<[u8]>),
    Device(Kind, u64),
    Fifo,
    /// A hard link to something that has not come yet.
    Pending(Box<Pending>),
}

/// What a hard link says of itself.
#[derive(Debug)]
struct Pending {
    path: Vec<u8>,
    target: Vec<u8>,
    data: Option<u64>,
}

#[derive(Debug)]
struct Node {
    holds: Holds,
    perm: u16,
    uid: u32,
    gid: u32,
    mtime: Time,
    xattrs: Vec<Xattr>,
    /// Names that lead here; 0 for what was replaced.
    names: u32,
    /// Offset of the header that made it.
    offset: u64,
}

impl Node {
    fn missing_dir(parent: Id, offset: u64) -> Self {
        Self {
            holds: Holds::Dir {
                children: BTreeMap::new(),
                parent,
            },
            perm: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Vec::new(),
            names: 1,
            offset,
        }
    }
}

/// What a path leads to.
enum Found {
    Node(Id),
    Nothing,
}

/// A finished tree with what has to be copied for it.
#[derive(Debug)]
pub struct Built {
    /// The tree; its extents lie in blob 0, the tar, and blob 1, the side blob.
    pub tree: Tree,
    /// The side blob's layout.
    pub side: SidePlan,
}

/// Takes entries and makes a [`Tree`].
#[derive(Debug)]
pub struct Builder {
    nodes: Vec<Node>,
    /// The directory of the last entry: most entries follow their siblings.
    last_dir: (Vec<u8>, Id),
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// A tree of a root directory only.
    #[must_use]
    pub fn new() -> Self {
        Self {
            nodes: vec![Node::missing_dir(ROOT, 0)],
            last_dir: (Vec::new(), ROOT),
        }
    }

    /// Applies the next entry of the tar.
    ///
    /// # Errors
    /// [`Fault`] if there is no place for it.
    pub fn add(&mut self, mut entry: Entry) -> Result<(), Fault> {
        let path = std::mem::take(&mut entry.path);
        let offset = entry.offset;
        self.place(&path, entry).map_err(|misfit| Fault {
            entry: shown(&path),
            offset,
            misfit,
        })
    }

    fn place(&mut self, path: &[u8], entry: Entry) -> Result<(), Misfit> {
        let Entry {
            offset,
            kind,
            perm,
            uid,
            gid,
            mtime,
            xattrs,
            ..
        } = entry;
        let Some((dir, name)) = split(path) else {
            return match (kind, self.nodes.first_mut()) {
                (EntryKind::Dir, Some(root)) => {
                    (root.perm, root.uid, root.gid) = (perm, uid, gid);
                    (root.mtime, root.xattrs, root.offset) = (mtime, xattrs, offset);
                    Ok(())
                }
                _ => Err(Misfit::RootNotDirectory),
            };
        };
        let parent = self.make_dir(dir, offset)?;
        let holds = match kind {
            EntryKind::Dir => {
                let there = self.child(parent, name);
                if let Some(node) = there.and_then(|id| self.nodes.get_mut(id))
                    && matches!(node.holds, Holds::Dir { .. })
                {
                    (node.perm, node.uid, node.gid) = (perm, uid, gid);
                    (node.mtime, node.xattrs, node.offset) = (mtime, xattrs, offset);
                    return Ok(());
                }
                Holds::Dir {
                    children: BTreeMap::new(),
                    parent,
                }
            }
            EntryKind::HardLink { target, data } => match self.find(&target) {
                Ok(Found::Node(id)) => {
                    self.check_link(id, &target, data)?;
                    // Also a link to its own name: GNU tar writes it if a file is packed twice.
                    return if self.child(parent, name) == Some(id) {
                        Ok(())
                    } else {
                        self.put(parent, name, id)
                    };
                }
                // What is missing or in the way now may be right when all entries have come.
                Ok(Found::Nothing) | Err(_) => {
                    if target == path {
                        return Err(Misfit::LinkToItself);
                    }
                    Holds::Pending(Box::new(Pending {
                        path: path.to_vec(),
                        target,
                        data,
                    }))
                }
            },
            EntryKind::File { size, segments } => match extents::in_tar(size, &segments) {
                Some(extents) => Holds::File { size, extents },
                None => Holds::Sparse { size, segments },
            },
            EntryKind::Symlink(target) => Holds::Symlink(target.into()),
            EntryKind::Device(kind, number) => Holds::Device(kind, number),
            EntryKind::Fifo => Holds::Fifo,
        };
        let id = self.push(Node {
            holds,
            perm,
            uid,
            gid,
            mtime,
            xattrs,
            names: 0,
            offset,
        })?;
        self.put(parent, name, id)
    }

    fn push(&mut self, node: Node) -> Result<Id, Misfit> {
        if self.nodes.len() >= INODES_MAX {
            return Err(Misfit::Limit(
                "the image has more than eight million inodes",
            ));
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn name_added(&mut self, id: Id) -> Result<(), Misfit> {
        if let Some(node) = self.nodes.get_mut(id) {
            node.names = node
                .names
                .checked_add(1)
                .ok_or(Misfit::Limit("an inode has more names than can be counted"))?;
        }
        Ok(())
    }

    fn child(&self, dir: Id, name: &[u8]) -> Option<Id> {
        match &self.nodes.get(dir)?.holds {
            Holds::Dir { children, .. } => children.get(name).copied(),
            _ => None,
        }
    }

    /// Lets `name` in `parent` lead to `id`, in place of what it led to.
    fn put(&mut self, parent: Id, name: &[u8], id: Id) -> Result<(), Misfit> {
        self.name_added(id)?;
        let Some(Holds::Dir { children, .. }) = self.nodes.get_mut(parent).map(|n| &mut n.holds)
        else {
            return Ok(());
        };
        // One search for what nearly all are: new names.
        let old = match children.entry(name.into()) {
            Place::Vacant(place) => {
                place.insert(id);
                return Ok(());
            }
            Place::Occupied(mut place) => place.insert(id),
        };
        if let Some(node) = self.nodes.get_mut(old) {
            if let Holds::Dir { children, .. } = &node.holds {
                // After a fault the builder is of no use; nothing is taken back.
                if !children.is_empty() {
                    return Err(Misfit::OverDirectory);
                }
                self.last_dir = (Vec::new(), ROOT);
            }
            node.names = node.names.saturating_sub(1);
        }
        Ok(())
    }

    /// The directory `path`, made with all its parents where it is missing.
    fn make_dir(&mut self, path: &[u8], offset: u64) -> Result<Id, Misfit> {
        if self.last_dir.0 == path {
            return Ok(self.last_dir.1);
        }
        let mut dir = ROOT;
        for (name, so_far) in steps(path) {
            dir = match self.child(dir, name) {
                Some(id) => self.must_be_dir(id, so_far)?,
                None => {
                    let id = self.push(Node::missing_dir(dir, offset))?;
                    if let Some(Holds::Dir { children, .. }) =
                        self.nodes.get_mut(dir).map(|n| &mut n.holds)
                    {
                        children.insert(name.into(), id);
                    }
                    id
                }
            };
        }
        self.last_dir.0.clear();
        self.last_dir.0.extend_from_slice(path);
        self.last_dir.1 = dir;
        Ok(dir)
    }

    fn must_be_dir(&self, id: Id, path: &[u8]) -> Result<Id, Misfit> {
        match self.nodes.get(id).map(|n| &n.holds) {
            Some(Holds::Dir { .. }) => Ok(id),
            Some(Holds::Symlink(_)) => Err(Misfit::ThroughSymlink(shown(path))),
            _ => Err(Misfit::NotADirectory(shown(path))),
        }
    }

    /// What `path` leads to now.
    fn find(&self, path: &[u8]) -> Result<Found, Misfit> {
        let Some((dir, name)) = split(path) else {
            return Ok(Found::Node(ROOT));
        };
        let mut at = ROOT;
        if self.last_dir.0 == dir {
            at = self.last_dir.1;
        } else {
            for (name, so_far) in steps(dir) {
                at = match self.child(at, name) {
                    Some(id) => self.must_be_dir(id, so_far)?,
                    None => return Ok(Found::Nothing),
                };
            }
        }
        Ok(self.child(at, name).map_or(Found::Nothing, Found::Node))
    }

    /// The tree of all entries.
    ///
    /// # Errors
    /// [`Fault`] if a hard link leads nowhere, or a file is beyond what an index holds.
    pub fn finish(mut self) -> Result<Built, Fault> {
        let heads = self.resolve_links()?;
        // Where each node that is still there goes in the tree.
        let mut number = Vec::with_capacity(self.nodes.len());
        let mut count = 0_u32;
        for node in &self.nodes {
            let lives = node.names > 0 && !matches!(node.holds, Holds::Pending(_));
            number.push(lives.then_some(InodeId(count)));
            count += u32::from(lives);
        }
        let lead = |id: Id| {
            let id = heads.get(&id).copied().unwrap_or(id);
            number.get(id).copied().flatten()
        };
        let mut side = SidePlan::default();
        for id in 0..self.nodes.len() {
            let Some(node) = self.nodes.get(id).filter(|node| node.names > 0) else {
                continue;
            };
            if let Holds::Sparse { size, segments } = &node.holds {
                let extents = extents::aside(*size, segments, &mut side).map_err(|what| Fault {
                    entry: self.path_of(id),
                    offset: node.offset,
                    misfit: Misfit::Limit(what),
                })?;
                let size = *size;
                if let Some(node) = self.nodes.get_mut(id) {
                    node.holds = Holds::File { size, extents };
                }
            }
        }
        let dirs: Vec<bool> = self
            .nodes
            .iter()
            .map(|n| matches!(n.holds, Holds::Dir { .. }))
            .collect();
        // Each inode takes the place of its node in memory: an inode is the smaller of the two.
        const { assert!(size_of::<Inode>() <= size_of::<Node>()) };
        let inodes = self.nodes.into_iter().enumerate().filter_map(|(id, node)| {
            number.get(id).copied().flatten()?;
            let mut nlink = node.names;
            let content = match node.holds {
                Holds::File { size, extents } => Content::File { size, extents },
                Holds::Dir { children, parent } => {
                    let mut named = Vec::with_capacity(children.len());
                    nlink = 2;
                    for (name, id) in children {
                        nlink = nlink.saturating_add(u32::from(dirs.get(id) == Some(&true)));
                        named.extend(lead(id).map(|id| (name, id)));
                    }
                    Content::Dir {
                        children: named,
                        parent: lead(parent).unwrap_or(super::tree::ROOT),
                    }
                }
                Holds::Symlink(target) => Content::Symlink(target),
                Holds::Device(kind, number) => Content::Device(kind, number),
                // The others have no number or are files by now; this arm keeps the match whole.
                Holds::Fifo | Holds::Pending(_) | Holds::Sparse { .. } => Content::Fifo,
            };
            Some(Inode {
                content,
                perm: node.perm,
                uid: node.uid,
                gid: node.gid,
                mtime: node.mtime,
                nlink,
                xattrs: node.xattrs,
            })
        });
        let inodes = inodes.collect();
        Ok(Built {
            tree: Tree { inodes },
            side,
        })
    }

    /// A path of `id`, printable. Slow; for errors.
    fn path_of(&self, id: Id) -> String {
        let mut names: Vec<&[u8]> = Vec::new();
        let name_in = |dir: Id, child: Id| match &self.nodes.get(dir)?.holds {
            Holds::Dir { children, .. } => children.iter().find(|(_, id)| **id == child),
            _ => None,
        };
        let first = (0..self.nodes.len()).find(|&dir| name_in(dir, id).is_some());
        let (mut child, mut dir) = (id, first.unwrap_or(ROOT));
        while let Some((name, _)) = name_in(dir, child) {
            names.push(name);
            let Some(Holds::Dir { parent, .. }) = self.nodes.get(dir).map(|n| &n.holds) else {
                break;
            };
            (child, dir) = (dir, *parent);
        }
        names.reverse();
        shown(&names.join(&b'/'))
    }
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        "./".into()
    } else {
        printable(path)
    }
}

/// Directory and last name of a path; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => Some((path.get(..slash)?, path.get(slash + 1..)?)),
        None => Some((&[], path)),
    }
}

/// Each name of a path, with the path that ends in it.
fn steps(path: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut end = 0;
    path.split(|&b| b == b'/')
        .filter(|name| !name.is_empty())
        .map(move |name| {
            let so_far = path.get(..end + name.len()).unwrap_or_default();
            end += name.len() + 1;
            (name, so_far)
        })
}

#[cfg(test)]
mod tests;
