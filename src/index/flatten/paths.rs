//! Where paths of a layer lead in the layers below it.

use super::merged::Merged;
use crate::index::builder::{Below, Builder, split, steps};
use crate::index::misfit::{Misfit, shown};
use crate::index::tree::{Content, Inode, InodeId as Id, ROOT};

/// As many symbolic links as Linux follows in one path (`MAXSYMLINKS`).
const LINKS_MAX: u32 = 40;
/// As many names of link targets as a layer may make us look up: a second's work, and far beyond
/// any image.
const STEPS_MAX: u32 = 1 << 23;

/// Who wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A whiteout: what its own layer has in the way is in the way.
    Whiteout,
    /// A hard link that came before what its own layer has in the way.
    Link,
}

/// Looks paths up for one layer.
pub(super) struct Paths<'m>(pub(super) &'m mut Merged);

impl Paths<'_> {
    /// The directory of lower layers that `path` of the layer `above` leads to, if there is one
    /// and `above` does not have something else there.
    pub(super) fn enter(
        &mut self,
        above: &mut Builder,
        path: &[u8],
        asker: Asker,
    ) -> Result<Option<Id>, Misfit> {
        let mut own = Some(ROOT);
        let mut below = Some(ROOT);
        let mut links = 0;
        for (name, so_far) in steps(path, 0) {
            own = own.and_then(|dir| above.child(dir, name));
            let kind = own.and_then(|own| above.inodes.get(super::slot(own)));
            // A directory that the layer tells of has replaced a link.
            let mut follow = true;
            match kind.map(|inode| &inode.content) {
                Some(Content::Dir { .. }) => {
                    follow = own.is_some_and(|own| above.implied.contains_key(&own));
                }
                Some(Content::Symlink(_)) if asker == Asker::Whiteout => {
                    return Err(Misfit::ThroughSymlink(shown(so_far)));
                }
                Some(_) if asker == Asker::Whiteout => return Ok(None),
                _ => own = None,
            }
            let Some(dir) = below else { continue };
            below = match self.0.child(dir, name) {
                Some(id) => self.directory(dir, id, follow, &mut links)?,
                None => None,
            };
        }
        Ok(below)
    }

    /// The directory that `name` in `dir` leads to, itself or as a symbolic link.
    pub(super) fn lead(&mut self, dir: Id, name: &[u8]) -> Result<Option<Id>, Misfit> {
        match self.0.child(dir, name) {
            Some(id) => self.directory(dir, id, true, &mut 0),
            None => Ok(None),
        }
    }

    /// The directory that `id`, found in `dir`, is or leads to.
    fn directory(
        &mut self,
        dir: Id,
        id: Id,
        follow: bool,
        links: &mut u32,
    ) -> Result<Option<Id>, Misfit> {
        // The names that are still to be gone through, the next one last.
        let mut todo: Vec<Box<[u8]>> = Vec::new();
        let (mut at, mut next) = (dir, Some(id));
        loop {
            let Some(id) = next.take() else {
                let Some(name) = todo.pop() else {
                    return Ok(Some(at));
                };
                self.0.steps += 1;
                if self.0.steps > STEPS_MAX {
                    let what = "the layer's paths lead through too many symbolic links";
                    return Err(Misfit::Limit(what));
                }
                match (&*name, self.0.content(at)) {
                    (b"" | b".", _) => {}
                    (b"..", Some(&Content::Dir { parent, .. })) => at = parent,
                    (name, _) => {
                        next = self.0.child(at, name);
                        if next.is_none() {
                            return Ok(None);
                        }
                    }
                }
                continue;
            };
            match self.0.content(id) {
                Some(Content::Dir { .. }) => at = id,
                Some(Content::Symlink(target)) if follow => {
                    *links += 1;
                    if *links > LINKS_MAX {
                        return Ok(None);
                    }
                    if target.starts_with(b"/") {
                        at = ROOT;
                    }
                    todo.extend(target.split(|&b| b == b'/').rev().map(Into::into));
                }
                _ => return Ok(None),
            }
        }
    }
}

impl Below for Paths<'_> {
    fn find(&mut self, above: &mut Builder, target: &[u8]) -> Result<Option<Id>, Misfit> {
        let Some((dir, name)) = split(target) else {
            return Ok(None);
        };
        let dir = self.enter(above, dir, Asker::Link)?;
        Ok(dir.and_then(|dir| self.0.child(dir, name)))
    }

    fn inode(&self, id: Id) -> Option<&Inode> {
        self.0.inode(id)
    }

    fn named(&mut self, id: Id, names: u32) {
        if let Some(inode) = self.0.inode_mut(id) {
            inode.nlink = inode.nlink.saturating_add(names);
        }
    }
}
