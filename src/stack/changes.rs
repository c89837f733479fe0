//! What tells one tree from another, as the entries of a layer that makes the one of the other (OCI
//! image-spec, layer.md: "Representing Changes").
//!
//! - A file is the same where its attributes are and its bytes lie in the same place of the same
//!   layer. Of several names all must be of that same file, else it is written with all its names.
//! - A name that is gone is a whiteout. Where the whiteout's name would be too long, the directory
//!   is opaque, and all that is in it is written.
//! - The directories above a change are written too, so that whoever unpacks it gives them their
//!   times again.
//!
//! A directory comes before what is in it, its whiteouts before its entries, a file before its
//! further names.

use std::collections::{HashMap, HashSet};

use crate::index::tree::{Children, Content, Inode, InodeId as Id, ROOT, Tree};

/// The longest name (`NAME_MAX`), bytes.
const NAME_MAX: usize = 255;
/// The longest path that a tar may have here (`PATH_MAX` without its NUL).
const PATH_MAX: usize = 4095;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// An entry of the layer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// An empty file with such a name: a whiteout, or an opaque directory's mark.
    Mark,
    /// A file with its bytes, a directory, anything.
    Entry(&'a Inode),
    /// A further name of what has `first`.
    Link {
        /// The inode.
        inode: &'a Inode,
        /// Its path that came before.
        first: &'a [u8],
    },
}

/// Two trees, and what is the same in them.
pub(super) struct Trees<'t> {
    base: &'t Tree,
    top: &'t Tree,
    /// By the numbers of the top's inodes, how many of its names are the base's, too.
    kept: Vec<u32>,
    /// Directories of the top that are opaque.
    opaque: HashSet<Id>,
}

/// A directory on the way.
struct Level<'t> {
    /// It is, and what was told of it already.
    inode: &'t Inode,
    told: bool,
    path_len: usize,
    /// What is in it, from the last to the first.
    left: Vec<Step<'t>>,
}

/// What is with a name.
enum Step<'t> {
    Gone(&'t [u8]),
    Here {
        name: &'t [u8],
        id: Id,
        base: Option<Id>,
    },
}

fn get(tree: &Tree, id: Id) -> Option<&Inode> {
    tree.inodes.get(id.0 as usize)
}

fn dir(tree: &Tree, id: Id) -> Option<&Children> {
    get(tree, id)?.children()
}

/// Whether both inodes look the same: all but the number of names, and what is in a directory.
fn same(a: &Inode, b: &Inode) -> bool {
    let content = match (&a.content, &b.content) {
        (Content::Dir { .. }, Content::Dir { .. }) => true,
        (a, b) => a == b,
    };
    content
        && (a.perm, a.uid, a.gid, a.mtime) == (b.perm, b.uid, b.gid, b.mtime)
        && a.xattrs == b.xattrs
}

impl<'t> Trees<'t> {
    /// Compares `top` with `base`; the extents of both are in the same blobs.
    pub(super) fn new(base: &'t Tree, top: &'t Tree) -> Self {
        let mut this = Self {
            base,
            top,
            kept: vec![0; top.inodes.len()],
            opaque: HashSet::new(),
        };
        this.pair();
        this
    }

    /// Finds the files that are the same in both, each one of the base once at most.
    fn pair(&mut self) {
        let mut of_top: HashMap<Id, Id> = HashMap::new();
        let mut taken: HashSet<Id> = HashSet::new();
        let mut todo = vec![(ROOT, ROOT, 0)];
        while let Some((below, above, path_len)) = todo.pop() {
            let steps = steps(dir(self.base, below), dir(self.top, above));
            let too_long = |step: &Step<'_>| match step {
                Step::Gone(name) => {
                    let len = WHITEOUT.len() + name.len();
                    len > NAME_MAX || path_len + len > PATH_MAX
                }
                Step::Here { .. } => false,
            };
            if steps.iter().any(too_long) {
                self.opaque.insert(above);
                continue;
            }
            for step in steps {
                let Step::Here {
                    name,
                    id,
                    base: Some(base),
                } = step
                else {
                    continue;
                };
                let (Some(old), Some(new)) = (get(self.base, base), get(self.top, id)) else {
                    continue;
                };
                if old.children().is_some() || new.children().is_some() {
                    if old.children().is_some() && new.children().is_some() {
                        todo.push((base, id, path_len + name.len() + 1));
                    }
                    continue;
                }
                let is = match of_top.get(&id) {
                    Some(of) => *of == base,
                    None if same(old, new) && taken.insert(base) => {
                        of_top.insert(id, base);
                        true
                    }
                    None => false,
                };
                if is && let Some(kept) = self.kept.get_mut(id.0 as usize) {
                    *kept += 1;
                }
            }
        }
    }

    /// Whether all names of a file of the top are those of one of the base.
    fn unchanged(&self, id: Id, inode: &Inode) -> bool {
        self.kept.get(id.0 as usize) == Some(&inode.nlink)
    }

    /// Gives each entry of the layer with its path.
    pub(super) fn each<E>(
        &self,
        mut each: impl FnMut(&[u8], Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut first: HashMap<Id, Box<[u8]>> = HashMap::new();
        let mut path = Vec::new();
        let mut levels: Vec<Level<'t>> = Vec::new();
        self.enter(&mut levels, &mut path, (ROOT, Some(ROOT)), &mut each)?;
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path_len);
            let Some(step) = level.left.pop() else {
                levels.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            match step {
                Step::Gone(name) => {
                    path.extend_from_slice(WHITEOUT);
                    path.extend_from_slice(name);
                    tell(&mut levels, &path, &mut each)?;
                    each(&path, Change::Mark)?;
                }
                Step::Here { name, id, base } => {
                    path.extend_from_slice(name);
                    let Some(inode) = get(self.top, id) else {
                        continue;
                    };
                    if inode.children().is_some() {
                        self.enter(&mut levels, &mut path, (id, base), &mut each)?;
                    } else if !self.unchanged(id, inode) {
                        tell(&mut levels, &path, &mut each)?;
                        match first.get(&id) {
                            Some(first) => each(&path, Change::Link { inode, first })?,
                            None => each(&path, Change::Entry(inode))?,
                        }
                        if inode.nlink > 1 {
                            first.entry(id).or_insert_with(|| path.as_slice().into());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Begins with a directory of the top, which has `path`.
    fn enter<E>(
        &self,
        levels: &mut Vec<Level<'t>>,
        path: &mut Vec<u8>,
        (id, base): (Id, Option<Id>),
        each: &mut impl FnMut(&[u8], Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(inode) = get(self.top, id) else {
            return Ok(());
        };
        let base = base.filter(|&base| dir(self.base, base).is_some());
        let changed = base
            .and_then(|base| get(self.base, base))
            .is_none_or(|old| !same(old, inode));
        let opaque = base.is_some() && self.opaque.contains(&id);
        let below = base.filter(|_| !opaque);
        let mut left = steps(
            below.and_then(|base| dir(self.base, base)),
            inode.children(),
        );
        left.reverse();
        levels.push(Level {
            inode,
            told: false,
            path_len: path.len(),
            left,
        });
        if changed || opaque {
            tell(levels, path, each)?;
        }
        if opaque {
            let len = path.len();
            if len > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(OPAQUE);
            each(path, Change::Mark)?;
            path.truncate(len);
        }
        Ok(())
    }
}

/// Gives the directories above what is at `path` that were not given yet.
fn tell<E>(
    levels: &mut [Level<'_>],
    path: &[u8],
    each: &mut impl FnMut(&[u8], Change<'_>) -> Result<(), E>,
) -> Result<(), E> {
    for level in levels.iter_mut().filter(|level| !level.told) {
        level.told = true;
        let path = path.get(..level.path_len).unwrap_or_default();
        each(path, Change::Entry(level.inode))?;
    }
    Ok(())
}

/// The names of two directories: first those that are gone, then those that are there.
fn steps<'t>(base: Option<&'t Children>, top: Option<&'t Children>) -> Vec<Step<'t>> {
    let mut gone = Vec::new();
    let mut here = Vec::new();
    let mut old = base.into_iter().flatten().peekable();
    for (name, id) in top.into_iter().flatten() {
        while let Some((old, _)) = old.next_if(|(old, _)| *old < name) {
            gone.push(Step::Gone(old));
        }
        let base = old.next_if(|(old, _)| *old == name).map(|(_, id)| id);
        here.push(Step::Here { name, id, base });
    }
    gone.extend(old.map(|(name, _)| Step::Gone(name)));
    gone.append(&mut here);
    gone
}
