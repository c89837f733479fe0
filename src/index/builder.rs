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

mod dirs;
mod links;
mod names;

use std::collections::BTreeMap;

use self::dirs::LastDir;
pub(super) use self::links::{Below, Head};
use self::names::Names;
use super::extents::{self, SidePlan};
use super::misfit::{Fault, Misfit, shown};
use super::tree::{Children, Content, Inode, InodeId as Id, ROOT, Tree};
use crate::inode::{Runs, Time};
use crate::sys::memory;
use crate::tar::{Entry, EntryKind, Segment};

/// The most inodes an image may have: far beyond any image, and a bound on memory, since one
/// entry can ask for two thousand missing parents.
pub(super) const INODES_MAX: usize = 8 << 20;
/// What is said of an image beyond that.
pub(super) const TOO_MANY: &str = "the image has more than eight million inodes";

/// What is known of an inode only when all entries have come.
#[derive(Debug)]
pub(super) enum Late {
    /// A hard link to something that has not come yet; its inode is gone in the end.
    Link(Pending),
    /// A file whose bytes have to be copied to the side blob, if it is still there in the end.
    Sparse {
        /// Where its bytes are in the tar.
        segments: Runs<Segment>,
        /// Offset of the header that made it.
        offset: u64,
    },
}

/// What a hard link says of itself.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    path: Vec<u8>,
    target: Vec<u8>,
    data: Option<u64>,
    offset: u64,
    /// Whether the tar had something in the way of its target when it came.
    barred: bool,
}

/// What a path leads to.
enum Found {
    Inode(Id),
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
    /// The inodes that there are, and those that were replaced, with a link count of 0. The
    /// children of a directory are in the order of their coming.
    pub(super) inodes: Vec<Inode>,
    names: Names,
    pub(super) late: BTreeMap<Id, Late>,
    /// The directories that no entry has told of, with the offset of the one that needed them;
    /// and the paths of such entries.
    pub(super) implied: BTreeMap<Id, u64>,
    pub(super) implying: BTreeMap<u64, Box<[u8]>>,
    /// Whether an inode was replaced.
    replaced: bool,
    last_dir: LastDir,
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
            inodes: vec![missing_dir(ROOT)],
            names: Names::new(),
            late: BTreeMap::new(),
            implied: BTreeMap::from([(ROOT, 0)]),
            implying: BTreeMap::new(),
            replaced: false,
            last_dir: LastDir::default(),
        }
    }

    /// Applies the next entry of the tar; takes what it keeps of it.
    ///
    /// # Errors
    /// [`Fault`] if there is no place for it.
    pub fn add(&mut self, entry: &mut Entry) -> Result<(), Fault> {
        self.place(entry).map_err(|misfit| Fault::of(entry, misfit))
    }

    fn place(&mut self, entry: &mut Entry) -> Result<(), Misfit> {
        let path = &*entry.path;
        let Some((dir, name)) = split(path) else {
            return match (&entry.kind, self.inodes.first_mut()) {
                (EntryKind::Dir, Some(root)) => {
                    told(root, entry);
                    self.implied.remove(&ROOT);
                    Ok(())
                }
                _ => Err(Misfit::RootNotDirectory),
            };
        };
        let parent = self.make_dir(dir, entry)?;
        let mut late = None;
        let content = match std::mem::take(&mut entry.kind) {
            EntryKind::Dir => {
                let there = self.child(parent, name);
                if let Some(inode) = there.and_then(|id| self.inode_mut(id))
                    && matches!(inode.content, Content::Dir { .. })
                {
                    told(inode, entry);
                    there.map(|id| self.implied.remove(&id));
                    return Ok(());
                }
                Content::Dir {
                    children: Children::default(),
                    parent,
                }
            }
            EntryKind::HardLink { target, data } => match self.find(&target) {
                // A directory that no entry tells of may be a symbolic link of a lower layer.
                Ok(Found::Inode(id)) if !self.implied.contains_key(&id) => {
                    self.check_link(id, &target, data)?;
                    // Also a link to its own name: GNU tar writes it if a file is packed twice.
                    return if self.child(parent, name) == Some(id) {
                        Ok(())
                    } else {
                        self.put(parent, name, id)
                    };
                }
                // What is missing or in the way now may be right when all entries have come.
                found => {
                    if target == path {
                        return Err(Misfit::LinkToItself);
                    }
                    late = Some(Late::Link(Pending {
                        path: path.to_vec(),
                        target,
                        data,
                        offset: entry.offset,
                        barred: found.is_err(),
                    }));
                    Content::Fifo
                }
            },
            EntryKind::File { size, segments } => {
                let extents = extents::in_tar(size, &segments);
                if extents.is_none() {
                    let offset = entry.offset;
                    late = Some(Late::Sparse { segments, offset });
                }
                Content::File {
                    size,
                    extents: extents.unwrap_or_default(),
                }
            }
            EntryKind::Symlink(target) => Content::Symlink(target.into()),
            EntryKind::Device(kind, number) => Content::Device(kind, number),
            EntryKind::Fifo => Content::Fifo,
        };
        let is_dir = matches!(content, Content::Dir { .. });
        let id = self.push(Inode {
            content,
            perm: entry.perm,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            nlink: if is_dir { 2 } else { 0 },
            xattrs: std::mem::take(&mut entry.xattrs),
        })?;
        if let Some(late) = late {
            self.late.insert(id, late);
        }
        self.put(parent, name, id)
    }

    fn inode(&self, id: Id) -> Option<&Inode> {
        self.inodes.get(slot(id))
    }

    fn inode_mut(&mut self, id: Id) -> Option<&mut Inode> {
        self.inodes.get_mut(slot(id))
    }

    fn push(&mut self, inode: Inode) -> Result<Id, Misfit> {
        match u32::try_from(self.inodes.len()) {
            Ok(id) if self.inodes.len() < INODES_MAX => {
                memory::reserve(&mut self.inodes);
                self.inodes.push(inode);
                Ok(Id(id))
            }
            _ => Err(Misfit::Limit(TOO_MANY)),
        }
    }

    /// What `name` in `dir` leads to.
    pub(super) fn child(&mut self, dir: Id, name: &[u8]) -> Option<Id> {
        let children = self.inodes.get(slot(dir))?.children()?;
        let at = self.names.find(dir, name, children).ok()?;
        children.at(at).map(|(_, id)| id)
    }

    /// Lets `name` in `parent` lead to `id`, in place of what it led to.
    fn put(&mut self, parent: Id, name: &[u8], id: Id) -> Result<(), Misfit> {
        let inode = self.inodes.get_mut(slot(id));
        let mut subdirs = 0;
        match inode {
            Some(inode) if inode.children().is_some() => subdirs = 1,
            Some(inode) => {
                let limit = || Misfit::Limit("an inode has more names than can be counted");
                inode.nlink = inode.nlink.checked_add(1).ok_or_else(limit)?;
            }
            None => {}
        }
        let Some(dir) = self.inodes.get_mut(slot(parent)) else {
            return Ok(());
        };
        dir.nlink = dir.nlink.saturating_add(subdirs);
        let Some(children) = dir.children_mut() else {
            return Ok(());
        };
        let at = match self.names.find(parent, name, children) {
            Ok(at) => at,
            Err(vacant) => {
                self.names.add(vacant, children)?;
                children.push(name, id);
                return Ok(());
            }
        };
        let old = children.at(at).map(|(_, old)| old);
        children.lead(at, id);
        let Some(old) = old.and_then(|old| self.inodes.get_mut(slot(old))) else {
            return Ok(());
        };
        match &old.content {
            // After a fault the builder is of no use; nothing is taken back.
            Content::Dir { children, .. } if !children.is_empty() => {
                return Err(Misfit::OverDirectory);
            }
            Content::Dir { .. } => {
                old.nlink = 0;
                self.last_dir = LastDir::default();
                if let Some(dir) = self.inodes.get_mut(slot(parent)) {
                    dir.nlink = dir.nlink.saturating_sub(1);
                }
            }
            _ => old.nlink = old.nlink.saturating_sub(1),
        }
        self.replaced = true;
        Ok(())
    }

    /// The directory `path`, made with all its parents where it is missing, for `entry`.
    fn make_dir(&mut self, path: &[u8], entry: &Entry) -> Result<Id, Misfit> {
        let mut dir = self.last_dir.enter(path);
        for (name, so_far) in steps(path, self.last_dir.path.len()) {
            dir = match self.child(dir, name) {
                Some(id) => self.must_be_dir(id, so_far)?,
                None => {
                    let id = self.push(missing_dir(dir))?;
                    self.put(dir, name, id)?;
                    self.implied.insert(id, entry.offset);
                    let implying = self.implying.entry(entry.offset);
                    implying.or_insert_with(|| entry.path.as_slice().into());
                    id
                }
            };
            self.last_dir.step(so_far, dir);
        }
        Ok(dir)
    }

    fn must_be_dir(&self, id: Id, path: &[u8]) -> Result<Id, Misfit> {
        match self.inode(id).map(|inode| &inode.content) {
            Some(Content::Dir { .. }) => Ok(id),
            Some(Content::Symlink(_)) => Err(Misfit::ThroughSymlink(shown(path))),
            _ => Err(Misfit::NotADirectory(shown(path))),
        }
    }

    /// What `path` leads to now.
    fn find(&mut self, path: &[u8]) -> Result<Found, Misfit> {
        let Some((dir, name)) = split(path) else {
            return Ok(Found::Inode(ROOT));
        };
        let (known, mut at) = self.last_dir.common(dir);
        for (name, so_far) in steps(dir, known) {
            at = match self.child(at, name) {
                Some(id) => self.must_be_dir(id, so_far)?,
                None => return Ok(Found::Nothing),
            };
        }
        Ok(self.child(at, name).map_or(Found::Nothing, Found::Inode))
    }

    /// The tree of all entries.
    ///
    /// # Errors
    /// [`Fault`] if a hard link leads nowhere, or a file is beyond what an index holds.
    pub fn finish(mut self) -> Result<Built, Fault> {
        let heads = self.resolve_links(&mut ())?;
        let own = |(link, head)| match head {
            Head::Own(head) => Some((link, head)),
            Head::Below(_) => None,
        };
        let heads: BTreeMap<Id, Id> = heads.into_iter().filter_map(own).collect();
        let mut side = SidePlan::default();
        for (id, late) in std::mem::take(&mut self.late) {
            let Late::Sparse { segments, offset } = late else {
                continue;
            };
            let Some(Inode {
                content: Content::File { size, .. },
                nlink: 1..,
                ..
            }) = self.inode(id)
            else {
                continue;
            };
            let aside = extents::aside(*size, &segments, &mut side).map_err(|what| Fault {
                entry: path_of(&self.inodes, id),
                offset,
                misfit: Misfit::Limit(what),
            })?;
            if let Some(inode) = self.inode_mut(id)
                && let Content::File { extents, .. } = &mut inode.content
            {
                *extents = aside;
            }
        }
        let mut inodes = self.inodes;
        if self.replaced || !heads.is_empty() {
            drop_replaced(&mut inodes, &heads);
        }
        for children in inodes.iter_mut().filter_map(Inode::children_mut) {
            children.sort();
        }
        Ok(Built {
            tree: Tree { inodes },
            side,
        })
    }

    /// All entries have come, but what lies below this tar is not known yet: its hard links wait.
    pub(super) fn rest(&mut self) {
        for children in self.inodes.iter_mut().filter_map(Inode::children_mut) {
            children.sort();
        }
        // The positions in it are no more.
        self.names = Names::new();
        self.last_dir = LastDir::default();
    }
}

/// A path of `id`, printable. Slow; for errors.
pub(super) fn path_of(inodes: &[Inode], id: Id) -> String {
    let mut names: Vec<&[u8]> = Vec::new();
    let name_in = |dir: Id, child: Id| {
        let mut children = inodes.get(slot(dir))?.children()?.iter();
        children.find(|(_, id)| *id == child).map(|(name, _)| name)
    };
    let mut dirs = (0..).map(Id).take(inodes.len());
    let first = dirs.find(|&dir| name_in(dir, id).is_some());
    let (mut child, mut dir) = (id, first.unwrap_or(ROOT));
    while let Some(name) = name_in(dir, child) {
        names.push(name);
        let Some(Content::Dir { parent, .. }) = inodes.get(slot(dir)).map(|dir| &dir.content)
        else {
            break;
        };
        (child, dir) = (dir, *parent);
    }
    names.reverse();
    shown(&names.join(&b'/'))
}

pub(super) fn slot(id: Id) -> usize {
    id.0 as usize
}

/// A directory that no entry has told of yet.
pub(super) fn missing_dir(parent: Id) -> Inode {
    Inode {
        content: Content::Dir {
            children: Children::default(),
            parent,
        },
        perm: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        nlink: 2,
        xattrs: Vec::new(),
    }
}

/// Gives a directory that is there the attributes of its `entry`.
fn told(dir: &mut Inode, entry: &mut Entry) {
    (dir.perm, dir.uid, dir.gid) = (entry.perm, entry.uid, entry.gid);
    dir.mtime = entry.mtime;
    dir.xattrs = std::mem::take(&mut entry.xattrs);
}

/// Removes what was replaced and the hard links in `heads`, which lead to their targets from then
/// on; the others keep their order. Gives the new number of each inode that is left.
pub(super) fn drop_replaced(inodes: &mut Vec<Inode>, heads: &BTreeMap<Id, Id>) -> Vec<Option<Id>> {
    let mut number = Vec::with_capacity(inodes.len());
    let mut count = 0;
    for (id, inode) in (0..).zip(inodes.iter()) {
        let lives = inode.nlink > 0 && !heads.contains_key(&Id(id));
        number.push(lives.then_some(Id(count)));
        count += u32::from(lives);
    }
    let lead = |id: Id| {
        let id = heads.get(&id).copied().unwrap_or(id);
        number.get(slot(id)).copied().flatten()
    };
    let mut lives = number.iter();
    inodes.retain(|_| lives.next().is_some_and(Option::is_some));
    for inode in inodes {
        if let Content::Dir { children, parent } = &mut inode.content {
            *parent = lead(*parent).unwrap_or(ROOT);
            let led = |(name, id)| Some((name, lead(id)?));
            *children = children.iter().filter_map(led).collect();
        }
    }
    number
}

/// Directory and last name of a path; `None` for the root.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => Some((path.get(..slash)?, path.get(slash + 1..)?)),
        None => Some((&[], path)),
    }
}

/// Each name of a path behind its first `from` bytes, which are a path too, with the path that
/// ends in it.
pub(super) fn steps(path: &[u8], from: usize) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut end = from + usize::from(from > 0);
    let rest = path.get(end..).unwrap_or_default();
    rest.split(|&b| b == b'/')
        .filter(|name| !name.is_empty())
        .map(move |name| {
            let so_far = path.get(..end + name.len()).unwrap_or_default();
            end += name.len() + 1;
            (name, so_far)
        })
}

#[cfg(test)]
pub(super) mod tests;
