//! Names that go: unlink, rmdir.
//!
//! What the lower has under the name decides what stays behind: nothing, or a whiteout
//! (`fs/overlayfs/dir.c:ovl_do_remove()`).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::{Doing, refuse};
use super::lookup::{InUpper, Origin};
use super::node::{FACT_REMOVED, Link, Node, Place};
use super::room::Orphan;
use super::{Ino, Overlay, Result, Target};
use crate::inode::Kind;
use crate::lower::Nid;
use crate::name::Name;
use crate::sys::fs;

/// An inode has lost a name; a directory is empty for good then. The answer is to be dropped when
/// no lock is held.
#[must_use]
pub(super) fn gone(
    node: &Node,
    place: &mut Place,
    parent: &Arc<Node>,
    name: &Name,
    orphan: Option<Orphan>,
) -> Option<Link> {
    if node.kind == Kind::Dir {
        node.dir.note(FACT_REMOVED);
    }
    place.lose(parent, name, orphan)
}

impl Overlay {
    /// unlink(2).
    ///
    /// # Errors
    /// ENOENT, EISDIR, EROFS.
    pub fn unlink(&self, parent: Ino, name: &Name) -> Result<()> {
        self.with_room(|| self.remove(parent, name, false))
    }

    /// rmdir(2).
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY, EROFS.
    pub fn rmdir(&self, parent: Ino, name: &Name) -> Result<()> {
        self.with_room(|| self.remove(parent, name, true))
    }

    fn remove(&self, parent: Ino, name: &Name, dir: bool) -> Result<()> {
        self.writable()?;
        let parent = self.directory(parent)?;
        if let Target::Lower(_) = parent {
            // What cannot be removed is refused before anything is copied up.
            self.check_removable(&parent, name, dir)?;
        }
        let parent = self.upper_dir(&parent)?;
        let target = Target::Upper(Arc::clone(&parent));
        loop {
            let entries = parent.lock_entries();
            match self.check_removable(&target, name, dir)? {
                Origin::Lower(nid) => self.remove_lower(&parent, name, nid, dir)?,
                Origin::Upper(found) => self.remove_upper(&parent, name, &found)?,
                Origin::Rising(nid) => {
                    drop(entries);
                    self.await_rise(nid)?;
                    continue;
                }
                Origin::Absent | Origin::Whiteout => return refuse(Errno::NOENT),
            }
            break;
        }
        if dir {
            parent.dir.add_subdirs(-1);
        }
        self.settle_node(&parent);
        Ok(())
    }

    fn check_removable(&self, parent: &Target, name: &Name, dir: bool) -> Result<Origin> {
        let origin = self.peek(parent, name)?;
        let (kind, target) = match origin {
            Origin::Absent | Origin::Whiteout => return refuse(Errno::NOENT),
            Origin::Lower(nid) | Origin::Rising(nid) => {
                (self.lower.attr(nid)?.kind, Some(Target::Lower(nid)))
            }
            Origin::Upper(found) if dir => (found.stat.attr.kind, self.find(parent, name)?),
            Origin::Upper(found) => (found.stat.attr.kind, None),
        };
        match (dir, kind) {
            (false, Kind::Dir) => return refuse(Errno::ISDIR),
            (true, Kind::Dir) => {}
            (true, _) => return refuse(Errno::NOTDIR),
            (false, _) => {}
        }
        if let Some(target) = target.filter(|_| dir)
            && !self.is_empty(&target)?
        {
            return refuse(Errno::NOTEMPTY);
        }
        Ok(origin)
    }

    fn remove_lower(&self, parent: &Arc<Node>, name: &Name, nid: Nid, dir: bool) -> Result<()> {
        if !dir {
            self.know_lost(nid)?;
        }
        let fd = self.dir_fd(parent)?;
        self.writable()?
            .whiteout(fd.as_fd(), name.as_bytes())
            .doing("making a whiteout")?;
        self.counters.whiteouts.add(1);
        if !dir {
            self.note_lost(nid, fd.as_fd());
        }
        Ok(())
    }

    fn remove_upper(&self, parent: &Arc<Node>, name: &Name, found: &InUpper) -> Result<()> {
        let upper = self.writable()?;
        let fd = self.dir_fd(parent)?;
        let fd = fd.as_fd();
        let bytes = name.as_bytes();
        let hides = self
            .lower_child(&Target::Upper(Arc::clone(parent)), name)?
            .is_some();
        let Some(node) = self.intern(parent, name, found)? else {
            return refuse(Errno::NOENT);
        };
        self.keep_dir(&node)?;
        // Held through the system call, so that nobody goes by the name meanwhile.
        let mut place = node.place_mut();
        let orphan = self.orphan(&node, &place, fd, name)?;
        match (node.kind, hides) {
            (Kind::Dir, true) => upper
                .exchange_for_whiteout(fd, bytes)
                .doing("removing a directory")?,
            (Kind::Dir, false) => match fs::rmdir(fd, bytes) {
                // Whiteouts of an earlier life: they go with it.
                Err(Errno::NOTEMPTY | Errno::EXIST) => upper.discard(fd, bytes),
                other => other,
            }
            .doing("removing a directory")?,
            (_, true) => upper.replace_by_whiteout(fd, bytes).doing("removing")?,
            (_, false) => fs::unlink(fd, bytes).doing("removing")?,
        }
        if hides {
            self.counters.whiteouts.add(1);
        }
        let dropped = gone(&node, &mut place, parent, name, orphan);
        drop(place);
        drop(dropped);
        Ok(())
    }

    /// Keeps the descriptor of a directory that is about to lose its name: nothing else will lead
    /// to it. Before its place is locked.
    pub(super) fn keep_dir(&self, node: &Arc<Node>) -> Result<()> {
        if node.kind == Kind::Dir {
            let fd = self.dir_fd(node)?;
            self.table.keep_removed_dir_fd(node, &fd);
        }
        Ok(())
    }

    /// What an inode goes on with if `name` in `dir` is the last that is known of it: no matter
    /// whether others lead to it, which nobody has looked up. To be asked for under the lock under
    /// which the name goes, since another one may go at the same time. A directory goes on with the
    /// descriptor that is [kept](Self::keep_dir).
    pub(super) fn orphan(
        &self,
        node: &Node,
        place: &Place,
        dir: BorrowedFd<'_>,
        name: &Name,
    ) -> Result<Option<Orphan>> {
        if !place.is_last() {
            return Ok(None);
        }
        let fd = match node.dir.fd() {
            Some(kept) => kept,
            None => Arc::new(fs::open(dir, name.as_bytes(), OFlags::PATH, 0).doing("opening")?),
        };
        Ok(Some(self.table.leaving().orphan(fd)))
    }

    /// Whether a directory has no entry in the merged view.
    pub(super) fn is_empty(&self, dir: &Target) -> Result<bool> {
        let mut upper_names = Vec::new();
        if let Target::Upper(node) = dir {
            if node.dir.has(super::node::FACT_REMOVED) {
                return Ok(true);
            }
            let fd = self.dir_fd(node)?;
            for entry in fs::list(fd.as_fd()).doing("listing")? {
                // Only these two types can be whiteouts.
                if !matches!(entry.kind, Kind::Char | Kind::File) {
                    return Ok(false);
                }
                if !matches!(self.peek(dir, &entry.name)?, Origin::Whiteout) {
                    return Ok(false);
                }
                upper_names.push(entry.name);
            }
        }
        let lower = match dir {
            Target::Lower(nid) => Some(*nid),
            Target::Upper(node) => node.lower_part(),
        };
        let Some(lower) = lower else { return Ok(true) };
        upper_names.sort();
        let mut empty = true;
        self.lower.readdir(lower, 0, &mut |entry| {
            let hidden = upper_names
                .binary_search_by(|n| n.as_bytes().cmp(entry.name))
                .is_ok();
            if hidden {
                std::ops::ControlFlow::Continue(())
            } else {
                empty = false;
                std::ops::ControlFlow::Break(())
            }
        })?;
        Ok(empty)
    }
}
