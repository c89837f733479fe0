//! Finding back: from a number to its names, and from a directory of the image to where it is now.
//!
//! A directory of the image is at its lower path unless it, or one above it, was renamed. This
//! mount's renames are known by their nodes; those of earlier mounts are found by a walk through
//! the upper, once, and only where something is missed.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::{Arc, MutexGuard};

use rustix::io::Errno;

use super::error::{Doing, refuse};
use super::lookup::Origin;
use super::node::{FACT_REMOVED, Place, lock};
use super::order::{Class, Held, Lock};
use super::{Entry, Ino, Overlay, ROOT_INO, Result, Target};
use crate::inode::Kind;
use crate::lower::Nid;
use crate::sys::fs;

impl Overlay {
    /// The inode of a number that the kernel has forgotten and only a file handle remembers
    /// (fs/fuse/inode.c:fuse_get_dentry()). One of the image is found by the names that it has
    /// there and by those that this mount knows; one born in the upper while it is in use.
    ///
    /// # Errors
    /// ESTALE where it cannot be found, or is no more.
    pub fn revisit(&self, ino: Ino) -> Result<Entry> {
        let nid = match self.target(ino)? {
            Target::Lower(nid) => nid,
            known => return self.entry(&known),
        };
        // The number is the caller's: one that is no inode's has no names, or reads as damage.
        let Ok(names) = self.lower.names(nid) else {
            return refuse(Errno::STALE);
        };
        for (dir, name) in names {
            if self.lower.attr(nid)?.kind == Kind::Dir {
                match self.locate(nid)? {
                    Some(found) => return self.entry(&found),
                    None => break,
                }
            }
            // Found by name, since an earlier mount may have copied it up.
            if let Some(dir) = self.locate(dir)?
                && let Some(found) = self.find(&dir, &name)?
                && self.attr_of(&found)?.ino == ino.0
            {
                return self.entry(&found);
            }
        }
        refuse(Errno::STALE)
    }

    /// The directory that holds directory `ino`; the root holds itself.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE.
    pub fn parent(&self, ino: Ino) -> Result<Entry> {
        let parent = self.parent_of(&self.directory(ino)?)?;
        self.entry(&parent)
    }

    pub(super) fn parent_of(&self, dir: &Target) -> Result<Target> {
        match dir {
            Target::Lower(nid) => {
                let parent = self.lower.parent(*nid)?;
                self.target(self.lower_ino(parent))
            }
            Target::Upper(node) => match &*node.place() {
                Place::Upper { links, .. } => {
                    let parent = links.first().map(|link| Arc::clone(&link.parent));
                    Ok(Target::Upper(parent.unwrap_or_else(|| Arc::clone(node))))
                }
                Place::Lower | Place::Rising { .. } => refuse(Errno::STALE),
            },
        }
    }

    /// Where a directory of the image is in the merged tree now; `None` if it is not there.
    pub(super) fn locate(&self, dir: Nid) -> Result<Option<Target>> {
        let mut path = Vec::new();
        let mut at = dir;
        let mut seen = HashSet::new();
        while at != self.lower.root() {
            if !seen.insert(at) {
                return refuse(Errno::IO);
            }
            path.push(at);
            at = self.lower.parent(at)?;
        }
        let mut here = Some(self.target(ROOT_INO)?);
        while let Some(nid) = path.pop() {
            here = match (self.risen_dir(nid), &here) {
                (Some(known), _) => known,
                (None, Some(parent)) => {
                    let found = self.locate_in(parent, nid)?;
                    // It may have been copied up and moved while it was looked for: what was found
                    // at its old place is right only if that was not so afterwards either.
                    self.risen_dir(nid).unwrap_or(found)
                }
                (None, None) => None,
            };
            if here.is_none() && !self.fresh && self.find_redirects()? {
                here = self.risen_dir(nid).flatten();
            }
        }
        Ok(here)
    }

    /// Where a directory of the image is that is known to be in the upper; `None` in it if it was
    /// removed there.
    fn risen_dir(&self, dir: Nid) -> Option<Option<Target>> {
        let node = self.table.get(dir.0).filter(|node| node.is_upper())?;
        Some((!node.dir.has(FACT_REMOVED)).then_some(Target::Upper(node)))
    }

    fn locate_in(&self, parent: &Target, nid: Nid) -> Result<Option<Target>> {
        for (_, name) in self.lower.names(nid)? {
            match self.peek(parent, &name)? {
                Origin::Lower(found) if found == nid => return Ok(Some(Target::Lower(nid))),
                Origin::Upper(found) if found.lower == Some(nid) => {
                    let found = self.find(parent, &name)?;
                    // Another one may have taken its place since.
                    let is_it = |found: &Target| self.ino_of(found) == nid.0;
                    return Ok(found.filter(is_it));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn lock_moves(&self) -> Held<MutexGuard<'_, bool>> {
        let moves = Lock {
            class: Class::Moves,
            ino: ROOT_INO,
            is_dir: true,
        };
        Held::take(moves, || lock(&self.redirects_found))
    }

    /// To be held while a directory moves; nothing where nobody will have to look for it.
    pub(super) fn moving(&self) -> Option<Held<MutexGuard<'_, bool>>> {
        if self.fresh {
            return None;
        }
        Some(self.lock_moves()).filter(|found| !**found)
    }

    /// Makes the nodes of all directories of the upper known, once: those that an earlier mount
    /// renamed cannot be found by their lower path. Answers whether it has been done (`true`).
    fn find_redirects(&self) -> Result<bool> {
        let mut found = self.lock_moves();
        if *found {
            return Ok(true);
        }
        let mut stack = vec![Arc::clone(&self.root)];
        while let Some(node) = stack.pop() {
            let fd = self.dir_fd(&node)?;
            for entry in fs::list(fd.as_fd()).doing("listing")? {
                if entry.kind == Kind::Dir
                    && let Some(Target::Upper(child)) =
                        self.find(&Target::Upper(Arc::clone(&node)), &entry.name)?
                {
                    stack.push(child);
                }
            }
        }
        *found = true;
        Ok(true)
    }
}
