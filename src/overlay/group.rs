//! Groups of hard links of the image rise whole: their copy gets all names that the group still has,
//! or none, though each takes a system call of its own.
//!
//! Until it has all of them the group is [`Place::Rising`]: still the image's to everybody else.
//! Who would change it waits for `copying`, as for any copy-up; who would take away a name that the
//! copy has got already waits likewise ([`Overlay::await_rise`]). So nobody but the copier touches
//! the copy or its names, and it can take them back. The copy lies in `work/pending-links`
//! meanwhile, and the next mount finishes what a crash broke off.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::error::Doing;
use super::node::{Link, Node, Place};
use super::{Overlay, Result, Target};
use crate::inode::Kind;
use crate::lower::Nid;
use crate::name::Name;
use crate::sys::fs;
use crate::upper::work::Temp;

impl Overlay {
    /// Gives a group of hard links its copy through all of its names, or none. `copying` is held.
    pub(super) fn publish_group(
        &self,
        node: &Arc<Node>,
        temp: Temp<'_>,
        id: u64,
        links: &[Link],
    ) -> Result<()> {
        let upper = self.writable()?;
        let nid = Nid(node.ino.0);
        {
            let mut place = node.place_mut();
            if !matches!(*place, Place::Lower) {
                // Found in the upper under another name meanwhile.
                return Ok(());
            }
            *place = Place::Rising { id };
            self.note_unmarked(node, id)?;
        }
        let pended = upper
            .pend(temp, nid.0, self.image)
            .doing("noting a group of hard links");
        let fd = match pended {
            Ok(fd) => fd,
            Err(error) => {
                *node.place_mut() = Place::Lower;
                return Err(error);
            }
        };
        let mut made = Vec::with_capacity(links.len());
        let linked = self.link_group(node, fd.as_fd(), links, &mut made);
        let finished = linked.and_then(|()| {
            upper
                .unpend(nid.0, self.image)
                .doing("finishing a group of hard links")
        });
        if finished.is_ok() {
            if made.is_empty() {
                self.becomes_orphan(node, fd, id);
            } else {
                *node.place_mut() = Place::Upper {
                    id,
                    links: made,
                    orphan: None,
                };
            }
            return finished;
        }
        if let Err(error) = self.undo_group(id, &made) {
            tracing::error!(%error, "half of a group of hard links has been copied");
            // It stays pending: the next mount finishes it.
            self.poison();
            return finished;
        }
        *node.place_mut() = Place::Lower;
        if let Err(errno) = upper.unpend(nid.0, self.image) {
            // The next mount finishes the group, which changes nothing that can be seen.
            tracing::warn!(%errno, "leaving a group of hard links pending");
        }
        finished
    }

    /// Links `fd` to every name that still shows the lower inode, and notes the names in `made`.
    fn link_group(
        &self,
        node: &Arc<Node>,
        fd: BorrowedFd<'_>,
        links: &[Link],
        made: &mut Vec<Link>,
    ) -> Result<()> {
        for link in links {
            let _entries = link.parent.lock_entries();
            if !self.still_lower(node, link)? {
                continue;
            }
            self.unnoticed(node.kind, &link.parent, |dir| {
                fs::link_fd(fd, dir, link.name.as_bytes()).doing("linking a copy")?;
                made.push(link.clone());
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Takes back the names that the copy `id` has got: the lower's show again.
    fn undo_group(&self, id: u64, made: &[Link]) -> Result<()> {
        for link in made {
            let _entries = link.parent.lock_entries();
            let dir = self.dir_fd(&link.parent)?;
            let (dir, name) = (dir.as_fd(), link.name.as_bytes());
            // Nobody can have put anything else there, but a file of somebody would be lost.
            match fs::stat(dir, name) {
                Ok(stat) if stat.attr.ino == id => {}
                Ok(_) | Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno).doing("looking at a copy"),
            }
            let was = fs::fstat(dir).doing("reading attributes")?.attr;
            fs::unlink(dir, name).doing("taking back a copy")?;
            if let Err(errno) = fs::copy_times(dir, &was) {
                tracing::warn!(%errno, "a directory's times show a copy that was taken back");
            }
        }
        Ok(())
    }

    /// Waits until a group of hard links has risen, or has been given up. No lock may be held.
    pub(super) fn await_rise(&self, nid: Nid) -> Result<()> {
        #[cfg(test)]
        self.await_rise.fetch_add(1, Ordering::SeqCst);
        if let Some(node) = self.table.get(self.lower_ino(nid).0) {
            drop(node.lock_copying());
        }
        #[cfg(test)]
        self.await_rise.fetch_sub(1, Ordering::SeqCst);
        // One that could be neither finished nor given up stays as it is.
        self.writable().map(|_| ())
    }

    /// Finishes the groups of hard links that a killed mount had begun to copy up: the names that
    /// still show the image's file get the copy. Those of another image wait for that one, since
    /// nothing can be said here of their names.
    pub(super) fn settle_pending_links(&self) -> Result<()> {
        let Some(upper) = self.upper.as_ref().filter(|_| !self.options.read_only) else {
            return Ok(());
        };
        for (ino, image, fd) in upper.pending().doing("reading pending links")? {
            if image != self.image {
                tracing::warn!(ino, "a group of hard links of another image is half copied");
                continue;
            }
            for (dir, name) in self.visible_names(Nid(ino))? {
                self.unnoticed(Kind::File, &self.upper_dir(&dir)?, |dir| {
                    fs::link_fd(fd.as_fd(), dir, name.as_bytes())
                        .doing("finishing a group of hard links")
                })?;
            }
            upper
                .unpend(ino, image)
                .doing("finishing a group of hard links")?;
        }
        Ok(())
    }

    /// The names in the merged tree that lead to an inode which only the image holds.
    pub(super) fn visible_names(&self, nid: Nid) -> Result<Vec<(Target, Name)>> {
        let mut visible = Vec::new();
        for (dir, name) in self.lower.names(nid)? {
            if let Some(dir) = self.locate(dir)?
                && self.peek(&dir, &name)?.lower() == Some(nid)
            {
                visible.push((dir, name));
            }
        }
        Ok(visible)
    }
}
