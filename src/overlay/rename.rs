//! rename(2) with all its flags (`fs/overlayfs/dir.c:ovl_rename()`).
//!
//! Directories of the image move too: the moved one notes where its lower part is (redirect),
//! so that nothing is copied and nobody gets EXDEV. Each rename is one renameat2(2) on the upper;
//! what must be marked is marked before it, in a way that means nothing new at the old place.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;

use super::error::{Doing, refuse};
use super::lookup::Origin;
use super::node::{FACT_OPAQUE, FACT_XWHITEOUTS, Link, Node, lock, places_mut};
use super::remove::gone;
use super::{Error, Ino, Overlay, Result, Target};
use crate::inode::Kind;
use crate::lower::Nid;
use crate::name::Name;
use crate::sys::fs;
use crate::upper::markers::{Redirect, is_whiteout_device};

/// One side of a rename.
struct Side<'a> {
    parent: Arc<Node>,
    name: &'a Name,
}

impl Side<'_> {
    fn target(&self) -> Target {
        Target::Upper(Arc::clone(&self.parent))
    }

    fn link(&self) -> Link {
        Link {
            parent: Arc::clone(&self.parent),
            name: self.name.clone(),
        }
    }
}

impl Overlay {
    /// renameat2(2); `flags` may be RENAME_NOREPLACE or RENAME_EXCHANGE. Gives the directories that
    /// have another parent now: listings from before name the old one as `..`.
    ///
    /// # Errors
    /// ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, EROFS; EINVAL for RENAME_WHITEOUT (a whiteout
    /// cannot be shown by what hides whiteouts) and for a directory moved below itself; EXDEV for
    /// a directory of the image whose path is longer than the upper's filesystem can note.
    pub fn rename(
        &self,
        parent: Ino,
        name: &Name,
        new_parent: Ino,
        new_name: &Name,
        flags: u32,
    ) -> Result<Vec<Ino>> {
        self.writable()?;
        self.with_room(|| self.rename_once((parent, name), (new_parent, new_name), flags))
    }

    fn rename_once(
        &self,
        (parent, name): (Ino, &Name),
        (new_parent, new_name): (Ino, &Name),
        flags: u32,
    ) -> Result<Vec<Ino>> {
        let flags = RenameFlags::from_bits(flags).ok_or(Error::Refused(Errno::INVAL))?;
        let exchange = flags == RenameFlags::EXCHANGE;
        if !exchange && !(flags - RenameFlags::NOREPLACE).is_empty() {
            return refuse(Errno::INVAL);
        }
        let from_dir = self.directory(parent)?;
        let to_dir = self.directory(new_parent)?;
        let Some(source) = self.find(&from_dir, name)? else {
            return refuse(Errno::NOENT);
        };
        let noreplace = flags == RenameFlags::NOREPLACE;
        if noreplace {
            // Refused before anything is copied up; looked at again under the locks.
            self.vacancy(&to_dir, new_name)?;
        }
        let target = match exchange {
            true => match self.find(&to_dir, new_name)? {
                Some(target) => Some(target),
                None => return refuse(Errno::NOENT),
            },
            false => None,
        };
        let around = (parent == new_parent).then_some(&from_dir);
        for moves in [Some(&source), target.as_ref()].into_iter().flatten() {
            self.check_movable(moves, around)?;
        }
        let _claim = self.claim(0, 0)?;
        // Copied up before any lock on names: copying takes those itself.
        let moved = self.risen(&source)?;
        let swapped = target.map(|target| self.risen(&target)).transpose()?;
        let from = Side {
            parent: self.upper_dir(&from_dir)?,
            name,
        };
        let to = Side {
            parent: self.upper_dir(&to_dir)?,
            name: new_name,
        };
        let (first, second) = if from.parent.ino <= to.parent.ino {
            (&from.parent, &to.parent)
        } else {
            (&to.parent, &from.parent)
        };
        loop {
            let first = first.lock_entries();
            let second = (from.parent.ino != to.parent.ino).then(|| second.lock_entries());
            self.check_still(&from, &moved)?;
            if let Some(swapped) = &swapped {
                self.check_still(&to, swapped)?;
                self.exchange(&from, &moved, &to, swapped)?;
                break;
            }
            match self.peek(&to.target(), to.name)? {
                Origin::Rising(nid) => {
                    drop((first, second));
                    self.await_rise(nid)?;
                }
                present => {
                    self.replace(&from, &moved, &to, present, noreplace)?;
                    break;
                }
            }
        }
        if self.counts() {
            let marked = [Some(&moved), swapped.as_ref()].into_iter().flatten();
            let dirs = marked.filter(|node| node.kind == Kind::Dir);
            for dir in dirs.chain([&from.parent, &to.parent]) {
                self.settle_node(dir);
            }
        }
        let strangers = [Some(moved), swapped].into_iter().flatten();
        Ok(strangers
            .filter(|node| node.kind == Kind::Dir && parent != new_parent)
            .map(|node| {
                lock(&node.dir.told).begin_anew();
                node.ino
            })
            .collect())
    }

    /// Refuses a directory of the image whose path is too long to be noted, before anything has
    /// changed. `around` is the directory that it stays in.
    fn check_movable(&self, target: &Target, around: Option<&Target>) -> Result<()> {
        let nid = match target {
            Target::Lower(nid) if self.kind(target)? == Kind::Dir => Some(*nid),
            Target::Lower(_) => None,
            Target::Upper(node) => node.lower_part(),
        };
        let Some(nid) = nid else { return Ok(()) };
        let stays_in = match around {
            Some(Target::Lower(nid)) => Some(*nid),
            Some(Target::Upper(node)) => node.lower_part(),
            None => None,
        };
        let redirect = self.redirect_to(nid, stays_in)?;
        self.writable()?
            .can_redirect(&redirect)
            .doing("trying a mark")
    }

    fn risen(&self, target: &Target) -> Result<Arc<Node>> {
        match target {
            Target::Upper(node) => {
                self.check_whole(node)?;
                Ok(Arc::clone(node))
            }
            Target::Lower(nid) => self.copy_up(*nid),
        }
    }

    /// That a name still leads to the node that was found before the locks were taken.
    fn check_still(&self, side: &Side<'_>, node: &Arc<Node>) -> Result<()> {
        match self.find(&side.target(), side.name)? {
            Some(Target::Upper(now)) if Arc::ptr_eq(&now, node) => Ok(()),
            _ => refuse(Errno::NOENT),
        }
    }

    fn exchange(
        &self,
        from: &Side<'_>,
        moved: &Arc<Node>,
        to: &Side<'_>,
        swapped: &Arc<Node>,
    ) -> Result<()> {
        if Arc::ptr_eq(moved, swapped) {
            return Ok(());
        }
        let from_fd = self.dir_fd(&from.parent)?;
        let to_fd = self.dir_fd(&to.parent)?;
        self.prepare_move(moved, from, to, to_fd.as_fd())?;
        self.prepare_move(swapped, to, from, from_fd.as_fd())?;
        let moves_dir = moved.kind == Kind::Dir || swapped.kind == Kind::Dir;
        let moving = moves_dir.then(|| self.moving());
        let (mut a, mut b) = places_mut(moved, swapped);
        let (old, new) = (from.name.as_bytes(), to.name.as_bytes());
        fs::rename(
            from_fd.as_fd(),
            old,
            to_fd.as_fd(),
            new,
            RenameFlags::EXCHANGE,
        )
        .doing("exchanging")?;
        a.gain(to.link());
        b.gain(from.link());
        let dropped = (
            a.lose(&from.parent, from.name, None),
            b.lose(&to.parent, to.name, None),
        );
        drop((a, b));
        drop(moving);
        drop(dropped);
        let change = i32::from(moved.kind == Kind::Dir) - i32::from(swapped.kind == Kind::Dir);
        from.parent.dir.add_subdirs(-change);
        to.parent.dir.add_subdirs(change);
        Ok(())
    }

    fn replace(
        &self,
        from: &Side<'_>,
        moved: &Arc<Node>,
        to: &Side<'_>,
        present: Origin,
        noreplace: bool,
    ) -> Result<()> {
        let upper = self.writable()?;
        let is_dir = moved.kind == Kind::Dir;
        if noreplace && !matches!(present, Origin::Absent | Origin::Whiteout) {
            return refuse(Errno::EXIST);
        }
        let replaced = match present {
            Origin::Absent | Origin::Whiteout => None,
            // One that rises has been waited for.
            Origin::Lower(nid) | Origin::Rising(nid) => {
                self.check_replaceable(is_dir, &Target::Lower(nid))?;
                Some(Replaced::Lower(nid, self.lower.attr(nid)?.kind))
            }
            Origin::Upper(found) => {
                let Some(node) = self.intern(&to.parent, to.name, &found)? else {
                    return refuse(Errno::STALE);
                };
                if Arc::ptr_eq(&node, moved) {
                    // Two names of one inode: nothing happens (rename(2)).
                    return Ok(());
                }
                self.check_replaceable(is_dir, &Target::Upper(Arc::clone(&node)))?;
                Some(Replaced::Upper(node))
            }
        };
        let from_fd = self.dir_fd(&from.parent)?;
        let to_fd = self.dir_fd(&to.parent)?;
        let leaves_whiteout = self.lower_child(&from.target(), from.name)?.is_some();
        let swaps = is_dir && matches!(present, Origin::Whiteout);
        match &replaced {
            Some(Replaced::Lower(nid, kind)) if *kind != Kind::Dir => {
                self.know_lost(*nid)?;
                self.write_out(moved);
            }
            Some(Replaced::Upper(node)) if node.kind == Kind::Dir => self.clear_whiteouts(node)?,
            _ => {}
        }
        if swaps && to.parent.dir.has(FACT_XWHITEOUTS) {
            // One that is a regular file means nothing at the old place.
            let whiteout = fs::stat(to_fd.as_fd(), to.name.as_bytes()).doing("looking up")?;
            if !is_whiteout_device(&whiteout) {
                upper
                    .replace_by_whiteout(to_fd.as_fd(), to.name.as_bytes())
                    .doing("making a whiteout")?;
            }
        }
        self.prepare_move(moved, from, to, to_fd.as_fd())?;
        let (old, new) = (from.name.as_bytes(), to.name.as_bytes());
        let flags = match (swaps, leaves_whiteout) {
            // The whiteout that was in the way goes to the old place.
            (true, _) => RenameFlags::EXCHANGE,
            (false, true) => RenameFlags::WHITEOUT,
            (false, false) => RenameFlags::empty(),
        };
        let victim = match &replaced {
            Some(Replaced::Upper(node)) => Some(node),
            _ => None,
        };
        if let Some(node) = victim {
            self.keep_dir(node)?;
        }
        let dropped = {
            let _moving = is_dir.then(|| self.moving());
            let (mut place, mut victim_place) = match victim {
                Some(node) => {
                    let (place, victim_place) = places_mut(moved, node);
                    (place, Some(victim_place))
                }
                None => (moved.place_mut(), None),
            };
            let victim_last = match (victim, &victim_place) {
                (Some(node), Some(place)) => self.orphan(node, place, to_fd.as_fd(), to.name)?,
                _ => None,
            };
            fs::rename(from_fd.as_fd(), old, to_fd.as_fd(), new, flags).doing("renaming")?;
            if leaves_whiteout && !swaps {
                self.counters.whiteouts.add(1);
            }
            place.gain(to.link());
            let own = place.lose(&from.parent, from.name, None);
            let other = match (victim, &mut victim_place) {
                (Some(node), Some(place)) => gone(node, place, &to.parent, to.name, victim_last),
                _ => None,
            };
            (own, other)
        };
        drop(dropped);
        if swaps
            && !leaves_whiteout
            && let Err(errno) = upper.discard(from_fd.as_fd(), old)
        {
            // The rename has happened; a whiteout over nothing hides nothing.
            tracing::warn!(%errno, "leaving a whiteout over nothing");
        }
        let replaces_dir = replaced.is_some();
        if let Some(Replaced::Lower(nid, kind)) = replaced
            && kind != Kind::Dir
        {
            self.note_lost(nid, to_fd.as_fd());
        }
        if is_dir {
            from.parent.dir.add_subdirs(-1);
            to.parent.dir.add_subdirs(if replaces_dir { 0 } else { 1 });
        }
        Ok(())
    }

    /// For programs that replace a file and do not sync the new one: ext4, XFS and btrfs write out
    /// what is renamed over a file, lest a crash leave an empty one (ext4(5): `auto_da_alloc`). In
    /// the upper there is nothing that a file of the image is replaced by, so they do not see it.
    fn write_out(&self, moved: &Arc<Node>) {
        if moved.kind != Kind::File || self.options.volatile {
            return;
        }
        let begun = self
            .open_node(moved, OFlags::RDONLY)
            .and_then(|fd| fs::write_out(fd.as_fd()).doing("writing out"));
        if let Err(error) = begun {
            // No promise is broken: the program has not asked for one.
            tracing::debug!(%error, "a new file may be lost with the one that it replaces");
        }
    }

    fn check_replaceable(&self, moves_dir: bool, target: &Target) -> Result<()> {
        match (moves_dir, self.kind(target)?) {
            (true, Kind::Dir) if self.is_empty(target)? => Ok(()),
            (true, Kind::Dir) => refuse(Errno::NOTEMPTY),
            (true, _) => refuse(Errno::NOTDIR),
            (false, Kind::Dir) => refuse(Errno::ISDIR),
            (false, _) => Ok(()),
        }
    }

    /// Sets the marks that an inode needs at its new place.
    fn prepare_move(
        &self,
        node: &Arc<Node>,
        from: &Side<'_>,
        to: &Side<'_>,
        to_fd: BorrowedFd<'_>,
    ) -> Result<()> {
        if node.kind != Kind::Dir {
            return if node.came_from_lower() {
                self.make_impure(&to.parent, to_fd)
            } else {
                Ok(())
            };
        }
        let fd = self.dir_fd(node)?;
        let marks = self.marks()?;
        match node.lower_part() {
            Some(nid) => {
                let same_dir = Arc::ptr_eq(&from.parent, &to.parent);
                let stays_in = to.parent.lower_part().filter(|_| same_dir);
                let redirect = self.redirect_to(nid, stays_in)?;
                marks
                    .set_redirect(fd.as_fd(), &redirect)
                    .doing("setting a mark")
            }
            // Nothing of the lower may shine through at the new place.
            None if self.lower_child(&to.target(), to.name)?.is_some() => {
                marks.set_opaque(fd.as_fd()).doing("setting a mark")
            }
            None => Ok(()),
        }
    }

    /// What leads to a lower directory: its name where it stays in its lower parent, which
    /// survives a move of that; else its path (`fs/overlayfs/dir.c:ovl_set_redirect()`).
    fn redirect_to(&self, nid: Nid, stays_in: Option<Nid>) -> Result<Redirect> {
        let (parent, name) = self.lower_name(nid)?;
        if stays_in == Some(parent) {
            return Ok(Redirect::Sibling(name.as_bytes().to_vec()));
        }
        let mut parts = vec![name];
        let mut at = parent;
        while at != self.lower.root() {
            let (parent, name) = self.lower_name(at)?;
            parts.push(name);
            if parts.len() > 1 << 16 {
                return refuse(Errno::IO);
            }
            at = parent;
        }
        parts.reverse();
        let path = parts
            .iter()
            .map(Name::as_bytes)
            .collect::<Vec<_>>()
            .join(&b'/');
        Ok(Redirect::Absolute(path))
    }

    fn lower_name(&self, nid: Nid) -> Result<(Nid, Name)> {
        match self.lower.names(nid)?.into_iter().next() {
            Some(found) => Ok(found),
            None => refuse(Errno::IO),
        }
    }

    /// Makes an upper directory that is empty in the merged view empty on disk, so that it can be
    /// renamed over. At each step it is seen as the empty directory that it was.
    fn clear_whiteouts(&self, node: &Arc<Node>) -> Result<()> {
        let fd = self.dir_fd(node)?;
        let entries = fs::list(fd.as_fd()).doing("listing")?;
        if entries.is_empty() {
            return Ok(());
        }
        let marks = self.marks()?;
        if node.came_from_lower() {
            marks
                .set_ino(fd.as_fd(), Kind::Dir, node.ino.0, self.image)
                .doing("setting a mark")?;
        }
        marks.set_opaque(fd.as_fd()).doing("setting a mark")?;
        node.dir.note(FACT_OPAQUE);
        for entry in entries {
            fs::unlink(fd.as_fd(), entry.name.as_bytes()).doing("removing a whiteout")?;
        }
        Ok(())
    }
}

/// What a rename puts an end to.
enum Replaced {
    Lower(Nid, Kind),
    Upper(Arc<Node>),
}
