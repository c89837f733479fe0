//! Layers on top of each other: one tree of what an image's layers leave in the end, as if each
//! had been unpacked over those below it (OCI image-spec, layer.md: "Applying Changesets").
//! docs/TAR.md, "Layers", says how each case is decided.
//!
//! - A layer is applied in two steps: its whiteouts to what lies below, then its own files. So it
//!   does not matter where in its tar a whiteout stands.
//! - A symbolic link that a lower layer has where a layer implies a directory is followed in the
//!   image's root. What the layer has there comes after all else of it.
//!
//! Invariants: the same layers give the same tree, also where the lower ones come out of their
//! index ([`Flattening::of_index`]); a layer costs as much as the directories that it touches.
//! What it never does: read a tar.

mod indexed;
mod merged;
mod paths;
mod write;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

pub use self::indexed::IndexedLayer;
use self::merged::{Merged, Put};
use self::paths::{Asker, Paths};
pub use self::write::{LayerBlob, write_layers};
use super::IndexError;
use super::builder::{Builder, Head, INODES_MAX, Late, TOO_MANY, path_of, slot};
use super::extents::{self, SideCopy, SidePlan};
use super::layer::Layer;
use super::misfit::{Fault, Misfit, shown};
use super::tree::{Content, Extent, Inode, InodeId as Id, ROOT, Tree};
use crate::inode::Runs;
use crate::tar::Segment;

/// What is known of a layer whose files are in the tree.
#[derive(Debug, Clone)]
struct Added {
    path: PathBuf,
    tar_len: u64,
    entries: u64,
}

/// A file whose bytes have to be copied to the side blob, if it is still there in the end.
#[derive(Debug, Clone)]
struct Sparse {
    layer: u16,
    segments: Runs<Segment>,
    /// Offset of the header that made it.
    offset: u64,
}

/// Layers as they are put on top of each other, the lowest first.
#[derive(Debug, Clone, Default)]
pub struct Flattening {
    merged: Merged,
    sparse: BTreeMap<Id, Sparse>,
    layers: Vec<Added>,
}

/// A directory of a layer that is to be merged into what a symbolic link leads to.
struct Detour {
    from: Id,
    /// Where the link is, and its name.
    dir: Id,
    name: Box<[u8]>,
}

/// A layer while its directories are merged with those below.
struct Upper {
    /// What to add to its own inode numbers.
    base: u32,
    implied: BTreeMap<Id, u64>,
    implying: BTreeMap<u64, Box<[u8]>>,
}

impl Flattening {
    /// No layers: an empty root directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `layer`, which errors call `path`, on top. After an error this is of no use any more.
    ///
    /// # Errors
    /// [`IndexError::Misfit`] if what it says has no place there.
    pub fn add(&mut self, layer: Layer, path: &Path) -> Result<(), IndexError> {
        let added = Added {
            path: path.to_owned(),
            tar_len: layer.tar_len(),
            entries: layer.entries(),
        };
        self.apply(layer).map_err(|fault| fault.in_tar(path))?;
        self.layers.push(added);
        Ok(())
    }

    fn apply(&mut self, layer: Layer) -> Result<(), Fault> {
        let Layer {
            mut builder,
            whiteouts,
            ..
        } = layer;
        let whole = |misfit| Fault {
            entry: shown(b""),
            offset: 0,
            misfit,
        };
        // One number is left for the side blob.
        let position = u16::try_from(self.layers.len())
            .ok()
            .filter(|&position| position < u16::MAX - 1)
            .ok_or_else(|| whole(Misfit::Limit("the image has too many layers")))?;

        let mut paths = Paths(&mut self.merged);
        let mut hidden = Vec::new();
        for (path, what) in &whiteouts.dirs {
            let dir = paths.enter(&mut builder, path, Asker::Whiteout);
            if let Some(dir) = dir.map_err(|misfit| what.fault(misfit))? {
                hidden.push((dir, what));
            }
        }
        // Only now: of two whiteouts one may hide the way to the other's directory.
        for (dir, what) in hidden {
            if what.all {
                self.merged.clear(dir);
            } else {
                for name in &what.names {
                    self.merged.remove(dir, name);
                }
            }
        }
        drop(whiteouts);

        let heads = builder.resolve_links(&mut Paths(&mut self.merged))?;
        let upper = self.take(builder, &heads, position);
        if position > 0 {
            self.merge(&upper)?;
        }
        self.merged.close();
        if self.merged.alive() > INODES_MAX {
            return Err(whole(Misfit::Limit(TOO_MANY)));
        }
        if self.merged.alive() < self.merged.inodes.len() / 2 {
            self.compact();
        }
        Ok(())
    }

    /// Takes over all inodes of a layer. Those of the first are the tree, those of another hang
    /// at a root of their own.
    fn take(&mut self, builder: Builder, heads: &BTreeMap<Id, Head>, position: u16) -> Upper {
        let Builder {
            mut inodes,
            late,
            implied,
            implying,
            ..
        } = builder;
        if position == 0 {
            self.merged = Merged::empty();
        }
        let base = u32::try_from(self.merged.inodes.len()).unwrap_or(u32::MAX);
        let moved = |id: Id| Id(id.0.saturating_add(base));
        let lead = |id: Id| match heads.get(&id) {
            Some(&Head::Below(head)) => head,
            Some(&Head::Own(head)) => moved(head),
            None => moved(id),
        };
        for &link in heads.keys() {
            if let Some(link) = inodes.get_mut(slot(link)) {
                link.nlink = 0;
            }
        }
        for inode in &mut inodes {
            match &mut inode.content {
                Content::Dir { children, parent } => {
                    *parent = moved(*parent);
                    if base > 0 || !heads.is_empty() {
                        let led = children.iter().map(|(name, id)| (name, lead(id)));
                        *children = led.collect();
                    }
                }
                Content::File { extents, .. } => {
                    for extent in extents.iter_mut() {
                        extent.blob = position;
                    }
                }
                _ => {}
            }
        }
        for (id, late) in late {
            if let Late::Sparse { segments, offset } = late {
                let sparse = Sparse {
                    layer: position,
                    segments,
                    offset,
                };
                self.sparse.insert(moved(id), sparse);
            }
        }
        self.merged.append(inodes);
        Upper {
            base,
            implied,
            implying,
        }
    }

    /// Merges the directories of `upper`, from its root on, into the tree.
    fn merge(&mut self, upper: &Upper) -> Result<(), Fault> {
        let mut todo = VecDeque::from([(Id(upper.base), ROOT)]);
        let mut detours: VecDeque<Detour> = VecDeque::new();
        loop {
            let (from, into) = if let Some(pair) = todo.pop_front() {
                pair
            } else if let Some(detour) = detours.pop_front() {
                (detour.from, self.destination(&detour, upper)?)
            } else {
                return Ok(());
            };
            let told = !upper.implies(from);
            for (name, new) in &self.merged.unite(from, into, told) {
                match self.merged.put(into, name, new, upper.implies(new)) {
                    Ok(Put::Done) => {}
                    Ok(Put::Both(old)) => todo.push_back((new, old)),
                    Ok(Put::InTheWay(old)) if self.merged.is_symlink(old) => {
                        detours.push_back(Detour {
                            from: new,
                            dir: into,
                            name: name.into(),
                        });
                    }
                    Ok(Put::InTheWay(_)) => {
                        let what = Misfit::NotADirectory;
                        return Err(upper.fault(&self.merged.inodes, new, what));
                    }
                    Err(misfit) => {
                        return Err(Fault {
                            entry: shown(name),
                            offset: 0,
                            misfit,
                        });
                    }
                }
            }
        }
    }

    /// The directory that a detour leads to by now.
    fn destination(&mut self, detour: &Detour, upper: &Upper) -> Result<Id, Fault> {
        let found = Paths(&mut self.merged).lead(detour.dir, &detour.name);
        let fault = |this: &Self, what: fn(String) -> Misfit| {
            upper.fault(&this.merged.inodes, detour.from, what)
        };
        match found {
            Ok(Some(dir)) => Ok(dir),
            Ok(None) => Err(fault(self, Misfit::NoDirectoryBehind)),
            Err(misfit) => Err(Fault {
                misfit,
                ..fault(self, Misfit::NoDirectoryBehind)
            }),
        }
    }

    /// Drops the inodes that are gone.
    fn compact(&mut self) {
        let numbers = self.merged.compact();
        let sparse = std::mem::take(&mut self.sparse);
        let lives = |(id, sparse)| Some(((*numbers.get(slot(id))?)?, sparse));
        self.sparse = sparse.into_iter().filter_map(lives).collect();
    }

    /// The tree of all layers with every file where it lies: the blob of an extent is the position of
    /// its layer, and its offsets need not be multiples of anything. For who reads files; an index
    /// is made of what [`Self::finish`] gives.
    #[must_use]
    pub fn into_tree(mut self) -> Tree {
        if self.merged.alive() < self.merged.inodes.len() {
            self.compact();
        }
        for (id, sparse) in &self.sparse {
            if let Some(Content::File { extents, .. }) =
                self.merged.inode_mut(*id).map(|inode| &mut inode.content)
            {
                let extent = |segment: &Segment| Extent {
                    offset: segment.offset,
                    len: segment.len,
                    blob: sparse.layer,
                    blob_offset: segment.tar_offset,
                };
                *extents = sparse.segments.iter().map(extent).collect();
            }
        }
        Tree {
            inodes: self.merged.inodes,
        }
    }

    /// The tree of all layers.
    ///
    /// # Errors
    /// [`IndexError::Misfit`] if a sparse file is beyond what an index holds.
    pub fn finish(mut self) -> Result<Flat, IndexError> {
        if self.merged.alive() < self.merged.inodes.len() {
            self.compact();
        }
        let mut owns = vec![false; self.layers.len()];
        let mut own = |layer: u16| {
            if let Some(owns) = owns.get_mut(usize::from(layer)) {
                *owns = true;
            }
        };
        self.sparse.values().for_each(|sparse| own(sparse.layer));
        let extents = |inode: &Inode| match &inode.content {
            Content::File { extents, .. } => extents.first().map(|extent| extent.blob),
            _ => None,
        };
        let inodes = &mut self.merged.inodes;
        inodes.iter().filter_map(extents).for_each(&mut own);

        let used = (0..).zip(&owns).filter(|&(_, &owns)| owns);
        let used: Vec<usize> = used.map(|(layer, _)| layer).collect();
        let device = |layer: u16| used.binary_search(&usize::from(layer)).unwrap_or_default();
        let number = |device: usize| u16::try_from(device).unwrap_or(u16::MAX);
        for inode in inodes.iter_mut() {
            if let Content::File { extents, .. } = &mut inode.content {
                for extent in extents.iter_mut() {
                    extent.blob = number(device(extent.blob));
                }
            }
        }
        let mut side = Side::default();
        for (id, sparse) in &self.sparse {
            let entry = inodes.get(slot(*id)).map(|inode| &inode.content);
            let Some(&Content::File { size, .. }) = entry else {
                continue;
            };
            let aside = side.add(size, sparse, number(used.len()));
            let aside = aside.map_err(|what| {
                let fault = Fault {
                    entry: path_of(inodes, *id),
                    offset: sparse.offset,
                    misfit: Misfit::Limit(what),
                };
                let layer = self.layers.get(usize::from(sparse.layer));
                fault.in_tar(layer.map_or(Path::new(""), |layer| &layer.path))
            })?;
            if let Some(Content::File { extents, .. }) =
                inodes.get_mut(slot(*id)).map(|inode| &mut inode.content)
            {
                *extents = aside;
            }
        }
        Ok(Flat {
            tree: Tree {
                inodes: self.merged.inodes,
            },
            used,
            side_len: side.plan.len,
            side: side.copies,
            layers: self.layers,
        })
    }
}

impl Upper {
    /// Whether `id` is a directory of the layer that none of its entries tells of.
    fn implies(&self, id: Id) -> bool {
        let own = id.0.checked_sub(self.base).map(Id);
        own.is_some_and(|own| self.implied.contains_key(&own))
    }

    /// What is wrong with `dir`, a directory that the layer implies, of the entry that does.
    fn fault(&self, inodes: &[Inode], mut dir: Id, what: fn(String) -> Misfit) -> Fault {
        let own = dir.0.checked_sub(self.base).map(Id);
        let offset = own.and_then(|own| self.implied.get(&own).copied());
        let offset = offset.unwrap_or_default();
        let entry = self.implying.get(&offset).map_or(&b""[..], |path| path);
        let mut depth = 0;
        while let Some(Content::Dir { parent, .. }) =
            inodes.get(slot(dir)).map(|inode| &inode.content)
            && dir.0 > self.base
        {
            (depth, dir) = (depth + 1, *parent);
        }
        let names: Vec<&[u8]> = entry.split(|&b| b == b'/').take(depth).collect();
        Fault {
            entry: shown(entry),
            offset,
            misfit: what(shown(&names.join(&b'/'))),
        }
    }
}

/// Bytes to copy from a layer to the side blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerCopy {
    /// Which of the added layers, from 0.
    pub layer: usize,
    /// What to copy of it.
    pub copy: SideCopy,
}

/// The side blob in the making.
#[derive(Default)]
struct Side {
    plan: SidePlan,
    copies: Vec<LayerCopy>,
}

impl Side {
    /// Lays out a file; gives its extents in the side blob, which is `blob`.
    fn add(&mut self, size: u64, sparse: &Sparse, blob: u16) -> Result<Runs<Extent>, &'static str> {
        let mut extents = extents::aside(size, &sparse.segments, &mut self.plan)?;
        for extent in extents.iter_mut() {
            extent.blob = blob;
        }
        let layer = usize::from(sparse.layer);
        let copies = self.plan.copies.drain(..);
        self.copies
            .extend(copies.map(|copy| LayerCopy { layer, copy }));
        Ok(extents)
    }
}

/// What layers are on top of each other.
#[derive(Debug)]
pub struct Flat {
    /// The image's tree. Extents lie in blob *k*, the layer `used[k]`, and in blob `used.len()`,
    /// the side blob.
    pub tree: Tree,
    /// Which of the added layers, counted from 0, lowest first, own bytes of files that are still
    /// there: the index's device table.
    pub used: Vec<usize>,
    /// Length of the side blob in bytes; 0: none is needed.
    pub side_len: u64,
    /// What to copy to the side blob; what no copy covers is a hole.
    pub side: Vec<LayerCopy>,
    layers: Vec<Added>,
}

#[cfg(test)]
pub(crate) mod tests;
