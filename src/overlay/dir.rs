//! Listing directories.
//!
//! Nothing is opened: a request names the directory and a position. A directory of the image alone
//! is listed from the index. Of one that the upper holds, the [`Listing`] that was read from last
//! serves whoever goes on where it was read to: removing what was listed, piece by piece, does not
//! merge the directory anew for each piece. What is where does not depend on that: positions belong
//! to the entries.
//!
//! The kernel keeps listings as well, and two descriptors may fill its copy together, one with what
//! was there before a change. So a position says besides which state of the directory its listing
//! began with: the kernel appends to its copy, and goes on from it, only where positions are equal
//! (fs/fuse/readdir.c:fuse_add_dirent_to_cache(), fuse_parse_cache()).

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::Doing;
use super::listing::{DOTS, Listing, STATE, STATE_SHIFT};
use super::node::{Node, lock};
use super::{DirEntry, Entry, Error, Ino, Overlay, Result, Target};
use crate::inode::Kind;
use crate::lower::{LowerEntry, Nid};
use crate::name::Name;
use crate::sys::fs;

/// What has been told of a directory of the upper.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// [`DirState::changes`](super::node::DirState::changes) when a listing last began.
    changes: u64,
    /// Counts the states that listings began with.
    state: u8,
    /// Where the last request began, and the last position that its answer gave. The next one
    /// goes on from there, or from before: not all that is answered need be wanted.
    from: u64,
    to: u64,
}

impl Told {
    /// A listing begins.
    fn begin(&mut self, changes: u64) {
        if self.changes != changes {
            self.changes = changes;
            self.begin_anew();
        }
    }

    /// No listing from before is like those that begin now.
    pub(super) fn begin_anew(&mut self) {
        self.state = self.state.wrapping_add(1);
    }
}

/// The listings that were read from last, whoever reads on in them.
#[derive(Debug, Default)]
pub(super) struct Lately(Mutex<VecDeque<Arc<Listing>>>);

impl Lately {
    const MOST: usize = 16;

    fn keep(&self, listing: &Arc<Listing>) {
        let mut kept = lock(&self.0);
        if kept.iter().any(|kept| Arc::ptr_eq(kept, listing)) {
            return;
        }
        kept.push_back(Arc::clone(listing));
        let dropped = (kept.len() > Self::MOST).then(|| kept.pop_front());
        drop(kept);
        drop(dropped);
    }
}

/// What a listing calls for each entry, and a lookup of it where one is asked for.
type Each<'a> = &'a mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>;

impl Overlay {
    pub(super) fn ino_of(&self, target: &Target) -> u64 {
        match target {
            Target::Lower(nid) => self.lower_ino(*nid).0,
            Target::Upper(node) => node.ino.0,
        }
    }

    /// Calls `each` for the entries of the directory behind `offset` (0 = the start) until it
    /// breaks; the entry that it broke at is not taken.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE, EIO.
    pub fn readdir(&self, dir: Ino, offset: u64, each: Each<'_>) -> Result<()> {
        self.read_listing(dir, offset, false, each)
    }

    /// As [`Self::readdir`], with [`DirEntry::entry`] filled in; each that is taken counts as a
    /// lookup.
    ///
    /// # Errors
    /// As [`Self::readdir`].
    pub fn readdirplus(&self, dir: Ino, offset: u64, each: Each<'_>) -> Result<()> {
        self.read_listing(dir, offset, true, each)
    }

    /// Calls `each` for the names of the directory in the order that a listing which ended at
    /// `position` had them; nothing for a directory of the image alone, whose positions are for
    /// ever. False where the directory has changed since that listing began.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE, EIO.
    pub fn list_again(&self, dir: Ino, position: u64, each: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let Target::Upper(node) = self.directory(dir)? else {
            return Ok(true);
        };
        let (state, changes) = {
            let told = lock(&node.dir.told);
            (u64::from(told.state) << STATE_SHIFT, told.changes)
        };
        if state != position & STATE || changes != node.dir.changes() {
            return Ok(false);
        }
        let listing = self.listing_of(&node)?;
        for name in [&b"."[..], b".."] {
            each(name);
        }
        for entry in listing.behind(DOTS) {
            each(entry.name.as_bytes());
        }
        Ok(listing.is_current(&node))
    }

    /// fsync(2) of a directory.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE, EIO.
    pub fn fsyncdir(&self, dir: Ino) -> Result<()> {
        match self.directory(dir)? {
            Target::Upper(node) if !self.options.volatile => {
                let fd = self.open_node(&node, OFlags::RDONLY | OFlags::DIRECTORY)?;
                fs::sync(fd.as_fd(), false).doing("syncing")
            }
            _ => Ok(()),
        }
    }

    fn read_listing(&self, dir: Ino, offset: u64, plus: bool, each: Each<'_>) -> Result<()> {
        let target = self.directory(dir)?;
        let state = match &target {
            Target::Upper(node) if offset == 0 => {
                let mut told = lock(&node.dir.told);
                told.begin(node.dir.changes());
                u64::from(told.state) << STATE_SHIFT
            }
            _ => offset & STATE,
        };
        let offset = offset & !STATE;
        let mut to = offset;
        let mut each = |entry: DirEntry<'_>| {
            let next = entry.next;
            let flow = each(DirEntry {
                next: next | state,
                ..entry
            });
            if flow.is_continue() {
                to = next;
            }
            flow
        };
        if offset < DOTS && self.read_dots(&target, dir, offset, &mut each)?.is_break() {
            return Ok(());
        }
        match target {
            Target::Lower(nid) => self.read_lower(dir, nid, offset, plus, &mut each),
            Target::Upper(node) => {
                self.read_merged(&node, offset, plus, &mut each)?;
                let mut told = lock(&node.dir.told);
                (told.from, told.to) = (offset, to);
                Ok(())
            }
        }
    }

    fn read_dots(
        &self,
        target: &Target,
        dir: Ino,
        offset: u64,
        each: Each<'_>,
    ) -> Result<ControlFlow<()>> {
        let mut dot = |name: &[u8], ino: u64, next: u64| {
            each(DirEntry {
                name,
                ino,
                kind: Kind::Dir,
                next,
                entry: None,
            })
        };
        if offset == 0 && dot(b".", dir.0, 1).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let parent = self.parent_of(target)?;
        Ok(dot(b"..", self.ino_of(&parent), DOTS))
    }

    fn read_lower(
        &self,
        dir: Ino,
        nid: Nid,
        offset: u64,
        plus: bool,
        each: Each<'_>,
    ) -> Result<()> {
        let mut failed = None;
        let from = offset.saturating_sub(DOTS);
        self.lower.readdir(nid, from, &mut |found| {
            let mut entry = None;
            if plus {
                match self.found_still(dir, &found) {
                    Ok(Some(found)) => entry = Some(found),
                    Ok(None) => return ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        return ControlFlow::Break(());
                    }
                }
            }
            let next = found.next.saturating_add(DOTS);
            let ino = self.lower_ino(found.nid).0;
            self.give(found.name, (ino, found.kind), next, entry, each)
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// What a lookup finds of an entry of the image, counted. The directory may have been brought
    /// to the upper since its listing began, and lost the name there.
    fn found_still(&self, dir: Ino, listed: &LowerEntry<'_>) -> Result<Option<Entry>> {
        let target = match self.target(dir)? {
            Target::Lower(_) => Some(self.target(self.lower_ino(listed.nid))?),
            upper @ Target::Upper(_) => {
                let name = Name::new(listed.name).map_err(|_| Error::Refused(Errno::IO))?;
                self.find(&upper, &name)?
            }
        };
        target.map(|target| self.entry(&target)).transpose()
    }

    fn read_merged(&self, node: &Arc<Node>, offset: u64, plus: bool, each: Each<'_>) -> Result<()> {
        let listing = self.listing_at(node, offset)?;
        let target = Target::Upper(Arc::clone(node));
        for listed in listing.behind(offset.max(DOTS)) {
            let mut entry = None;
            if plus {
                // Gone since the list was made: readdir(3) leaves open whether it is still shown.
                let Some(found) = self.find(&target, &listed.name)? else {
                    continue;
                };
                entry = Some(self.entry(&found)?);
            }
            let shown = (listed.ino, listed.kind);
            let name = listed.name.as_bytes();
            if self.give(name, shown, listed.at, entry, each).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// What is to be read at `offset`: what was read before where it goes on, else what is there
    /// now.
    fn listing_at(&self, node: &Arc<Node>, offset: u64) -> Result<Arc<Listing>> {
        let goes_on = {
            let told = lock(&node.dir.told);
            told.from < offset && offset <= told.to
        };
        if goes_on && let Some(listing) = lock(&node.dir.listing).upgrade() {
            return Ok(listing);
        }
        let listing = self.listing_of(node)?;
        self.read_lately.keep(&listing);
        Ok(listing)
    }

    /// Gives an entry to who lists; one that was looked up and is not taken is forgotten.
    fn give(
        &self,
        name: &[u8],
        listed: (u64, Kind),
        next: u64,
        entry: Option<Entry>,
        each: Each<'_>,
    ) -> ControlFlow<()> {
        let (ino, kind) = entry.map_or(listed, |found| (found.attr.ino, found.attr.kind));
        let flow = each(DirEntry {
            name,
            ino,
            kind,
            next,
            entry,
        });
        if flow.is_break() && entry.is_some() {
            self.forget(Ino(ino), 1);
        }
        flow
    }
}
