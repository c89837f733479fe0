//! The tree of the layers so far, with directories that can be changed.

use std::collections::{BTreeMap, HashMap};
use std::mem;

use crate::index::builder::{drop_replaced, missing_dir, slot};
use crate::index::misfit::Misfit;
use crate::index::tree::{Children, Content, Inode, InodeId as Id, ROOT};

/// A directory's children while a layer is put on top.
type Open = BTreeMap<Box<[u8]>, Id>;

/// What became of a name.
pub(super) enum Put {
    /// It leads where it should.
    Done,
    /// It leads to a directory already, which is to be merged with the new one.
    Both(Id),
    /// It leads to something that a directory without an entry does not replace.
    InTheWay(Id),
}

/// Inodes that hang together, and some that are gone, with a link count of 0.
#[derive(Debug, Clone)]
pub(super) struct Merged {
    pub(super) inodes: Vec<Inode>,
    /// The directories that the layer at hand has touched; their inodes have no children.
    open: HashMap<Id, Open>,
    gone: usize,
    /// How many names of link targets were looked up for the layer at hand.
    pub(super) steps: u32,
}

impl Default for Merged {
    /// An empty root directory.
    fn default() -> Self {
        Self {
            inodes: vec![missing_dir(ROOT)],
            ..Self::empty()
        }
    }
}

impl Merged {
    /// No inode at all.
    pub(super) fn empty() -> Self {
        Self {
            inodes: Vec::new(),
            open: HashMap::new(),
            gone: 0,
            steps: 0,
        }
    }

    /// How many inodes are not gone.
    pub(super) fn alive(&self) -> usize {
        self.inodes.len().saturating_sub(self.gone)
    }

    /// Takes `inodes`, numbered from where those here end.
    pub(super) fn append(&mut self, inodes: Vec<Inode>) {
        self.gone += inodes.iter().filter(|inode| inode.nlink == 0).count();
        if self.inodes.is_empty() {
            self.inodes = inodes;
        } else {
            self.inodes.extend(inodes);
        }
    }

    pub(super) fn inode(&self, id: Id) -> Option<&Inode> {
        self.inodes.get(slot(id))
    }

    pub(super) fn inode_mut(&mut self, id: Id) -> Option<&mut Inode> {
        self.inodes.get_mut(slot(id))
    }

    pub(super) fn content(&self, id: Id) -> Option<&Content> {
        self.inode(id).map(|inode| &inode.content)
    }

    fn is_dir(&self, id: Id) -> bool {
        matches!(self.content(id), Some(Content::Dir { .. }))
    }

    pub(super) fn is_symlink(&self, id: Id) -> bool {
        matches!(self.content(id), Some(Content::Symlink(_)))
    }

    /// What `name` in `dir` leads to.
    pub(super) fn child(&mut self, dir: Id, name: &[u8]) -> Option<Id> {
        self.open(dir).get(name).copied()
    }

    fn open(&mut self, dir: Id) -> &mut Open {
        let inode = self.inodes.get_mut(slot(dir));
        self.open.entry(dir).or_insert_with(|| {
            let children = inode.and_then(Inode::children_mut).map(mem::take);
            let children = children.unwrap_or_default();
            children
                .iter()
                .map(|(name, id)| (name.into(), id))
                .collect()
        })
    }

    /// All directories have their children again.
    pub(super) fn close(&mut self) {
        self.steps = 0;
        for (dir, open) in mem::take(&mut self.open) {
            if let Some(children) = self.inode_mut(dir).and_then(Inode::children_mut) {
                *children = open.into_iter().collect();
            }
        }
    }

    /// `from`, a directory of the layer on top, becomes one with `into`: where an entry has `told`
    /// of it, its attributes hold. It is gone; gives its children, to be put.
    pub(super) fn unite(&mut self, from: Id, into: Id, told: bool) -> Children {
        let Some(upper) = self.inode_mut(from) else {
            return Children::default();
        };
        upper.nlink = 0;
        let children = upper.children_mut().map(mem::take).unwrap_or_default();
        let (perm, uid, gid, mtime) = (upper.perm, upper.uid, upper.gid, upper.mtime);
        let xattrs = mem::take(&mut upper.xattrs);
        self.gone += 1;
        if told && let Some(lower) = self.inode_mut(into) {
            (lower.perm, lower.uid, lower.gid, lower.mtime) = (perm, uid, gid, mtime);
            lower.xattrs = xattrs;
        }
        children
    }

    /// Lets `name` in `into` lead to `new`, whose link count has this name already. `implied`: it
    /// is a directory of which no entry tells.
    pub(super) fn put(
        &mut self,
        into: Id,
        name: &[u8],
        new: Id,
        implied: bool,
    ) -> Result<Put, Misfit> {
        let new_dir = self.is_dir(new);
        let old = self.child(into, name);
        let old_dir = old.is_some_and(|old| self.is_dir(old));
        match old {
            // The same file by one of its names: that was counted twice.
            Some(old) if old == new => {
                self.release(old);
                return Ok(Put::Done);
            }
            Some(old) if new_dir && old_dir => return Ok(Put::Both(old)),
            Some(old) if new_dir && implied => return Ok(Put::InTheWay(old)),
            _ => {}
        }
        self.open(into).insert(name.into(), new);
        if let Some(old) = old {
            self.release(old);
        }
        if new_dir && let Some(Content::Dir { parent, .. }) = self.content_mut(new) {
            *parent = into;
        }
        if let Some(dir) = self.inode_mut(into) {
            let limit = || Misfit::Limit("a directory has more directories than can be counted");
            let links = dir
                .nlink
                .checked_add(u32::from(new_dir))
                .ok_or_else(limit)?;
            dir.nlink = links.saturating_sub(u32::from(old_dir));
        }
        Ok(Put::Done)
    }

    fn content_mut(&mut self, id: Id) -> Option<&mut Content> {
        self.inode_mut(id).map(|inode| &mut inode.content)
    }

    /// Removes `name` from `dir`, if it is there.
    pub(super) fn remove(&mut self, dir: Id, name: &[u8]) {
        let Some(id) = self.open(dir).remove(name) else {
            return;
        };
        let subdirs = u32::from(self.is_dir(id));
        if let Some(dir) = self.inode_mut(dir) {
            dir.nlink = dir.nlink.saturating_sub(subdirs);
        }
        self.release(id);
    }

    /// Removes all that is in `dir`.
    pub(super) fn clear(&mut self, dir: Id) {
        for id in mem::take(self.open(dir)).into_values() {
            self.release(id);
        }
        if let Some(dir) = self.inode_mut(dir)
            && dir.nlink > 0
        {
            dir.nlink = 2;
        }
    }

    /// A name of `id` is gone; with a directory, all that is below it.
    fn release(&mut self, id: Id) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let open = self.open.remove(&id);
            let Some(inode) = self.inodes.get_mut(slot(id)) else {
                continue;
            };
            match &mut inode.content {
                Content::Dir { children, .. } => {
                    let children = mem::take(children);
                    todo.extend(children.iter().map(|(_, id)| id));
                    todo.extend(open.into_iter().flat_map(Open::into_values));
                    inode.nlink = 0;
                }
                _ => inode.nlink = inode.nlink.saturating_sub(1),
            }
            if inode.nlink == 0 {
                inode.xattrs = Vec::new();
                self.gone += 1;
            }
        }
    }

    /// Drops what is gone; gives the new number of each inode that is left.
    pub(super) fn compact(&mut self) -> Vec<Option<Id>> {
        self.gone = 0;
        drop_replaced(&mut self.inodes, &BTreeMap::new())
    }
}
