//! Open directories, and reading them.
//!
//! A directory of the image alone is listed from the index. Of one that the upper holds, a
//! descriptor keeps the [`Listing`] that it began with until it is read from the start, or
//! elsewhere, again: removing what was listed, piece by piece, does not merge the directory anew
//! for each piece. What is where does not depend on that: positions belong to the entries.
//!
//! The kernel keeps listings as well. Two descriptors may fill its copy together, one with what
//! was there before a change, so a descriptor that is opened after a change goes without the copy
//! while one from before it is open ([`Listings`]).

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::{Doing, refuse};
use super::listing::{DOTS, Listing};
use super::node::{Node, lock};
use super::{DirEntry, Entry, Error, Handle, Ino, Listings, OpenedDir, Overlay, Result, Target};
use crate::inode::Kind;
use crate::lower::{LowerEntry, Nid};
use crate::name::Name;
use crate::sys::fs;

/// An open directory.
#[derive(Debug)]
pub(super) struct OpenDir {
    ino: Ino,
    /// [`DirState::changes`](super::node::DirState::changes) when it was opened.
    opened: u64,
    listings: Listings,
    progress: Mutex<Progress>,
}

impl OpenDir {
    pub(super) fn is_of(&self, ino: Ino) -> bool {
        self.ino == ino
    }
}

/// How far a descriptor has read.
#[derive(Debug, Default)]
struct Progress {
    listing: Option<Arc<Listing>>,
    /// Where the last request began, and the last position that its answer gave. The next one
    /// goes on from there, or from before: not all that is answered need be wanted.
    from: u64,
    to: u64,
}

/// Which directories the kernel's copy of a listing may have as `..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Dotdot {
    /// Where it was in the image, if it was listed then.
    #[default]
    Image,
    /// There is no copy.
    None,
    /// This one.
    One(u64),
    /// More than one: it moved while it was listed.
    Several,
}

/// What a listing calls for each entry, and a lookup of it where one is asked for.
type Each<'a> = &'a mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>;

impl Overlay {
    /// Opens a directory for listing.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE.
    pub fn opendir(&self, ino: Ino) -> Result<OpenedDir> {
        let target = self.directory(ino)?;
        let (opened, listings) = match &target {
            // Nothing has changed in it.
            Target::Lower(_) => (0, Listings::Kept),
            Target::Upper(node) => {
                let changes = node.dir.changes();
                (changes, self.listings(&target, node, changes)?)
            }
        };
        let handle = self.handle();
        self.dirs.insert(
            handle.0,
            Arc::new(OpenDir {
                ino,
                opened,
                listings,
                progress: Mutex::default(),
            }),
        );
        Ok(OpenedDir { handle, listings })
    }

    fn listings(&self, dir: &Target, node: &Node, changes: u64) -> Result<Listings> {
        let older = self.dirs.iter().any(|open| {
            open.is_of(node.ino) && open.opened != changes && open.listings != Listings::Uncached
        });
        if older {
            return Ok(Listings::Uncached);
        }
        let parent = self.parent_of(dir)?;
        let parent = self.ino_of(&parent);
        let mut dotdot = lock(&node.dir.dotdot);
        match self.dotdot(node, *dotdot)? {
            Dotdot::None => Ok(Listings::Kept),
            Dotdot::One(ino) if ino == parent => Ok(Listings::Kept),
            _ => {
                *dotdot = Dotdot::None;
                Ok(Listings::Anew)
            }
        }
    }

    /// Without [`Dotdot::Image`].
    fn dotdot(&self, node: &Node, dotdot: Dotdot) -> Result<Dotdot> {
        Ok(match (dotdot, node.lower) {
            (Dotdot::Image, Some(nid)) => Dotdot::One(self.lower_ino(self.lower.parent(nid)?).0),
            (Dotdot::Image, None) => Dotdot::None,
            (known, _) => known,
        })
    }

    pub(super) fn ino_of(&self, target: &Target) -> u64 {
        match target {
            Target::Lower(nid) => self.lower_ino(*nid).0,
            Target::Upper(node) => node.ino.0,
        }
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: Handle) {
        self.dirs.remove(&handle.0);
    }

    /// Calls `each` for the entries behind `offset` (0 = the start) until it breaks; the entry
    /// that it broke at is not taken.
    ///
    /// # Errors
    /// EBADF, EIO.
    pub fn readdir(&self, handle: Handle, offset: u64, each: Each<'_>) -> Result<()> {
        self.read_listing(handle, offset, false, each)
    }

    /// As [`Self::readdir`], with [`DirEntry::entry`] filled in; each that is taken counts as a
    /// lookup.
    ///
    /// # Errors
    /// As [`Self::readdir`].
    pub fn readdirplus(&self, handle: Handle, offset: u64, each: Each<'_>) -> Result<()> {
        self.read_listing(handle, offset, true, each)
    }

    /// fsync(2) of a directory.
    ///
    /// # Errors
    /// EIO.
    pub fn fsyncdir(&self, handle: Handle) -> Result<()> {
        match self.target(self.open_dir(handle)?.ino)? {
            Target::Upper(node) if !self.options.volatile => {
                let fd = self.open_node(&node, OFlags::RDONLY | OFlags::DIRECTORY)?;
                fs::sync(fd.as_fd(), false).doing("syncing")
            }
            _ => Ok(()),
        }
    }

    fn open_dir(&self, handle: Handle) -> Result<Arc<OpenDir>> {
        match self.dirs.get(&handle.0) {
            Some(dir) => Ok(Arc::clone(&dir)),
            None => refuse(Errno::BADF),
        }
    }

    fn read_listing(&self, handle: Handle, offset: u64, plus: bool, each: Each<'_>) -> Result<()> {
        let dir = self.open_dir(handle)?;
        let mut to = offset;
        let mut each = |entry: DirEntry<'_>| {
            let next = entry.next;
            let flow = each(entry);
            if flow.is_continue() {
                to = next;
            }
            flow
        };
        let target = self.target(dir.ino)?;
        if offset >= DOTS
            || self
                .read_dots(&target, &dir, offset, &mut each)?
                .is_continue()
        {
            match target {
                Target::Upper(node) => self.read_merged(&dir, &node, offset, plus, &mut each)?,
                Target::Lower(nid) => self.read_lower(&dir, nid, offset, plus, &mut each)?,
            }
        }
        let mut progress = lock(&dir.progress);
        (progress.from, progress.to) = (offset, to);
        Ok(())
    }

    fn read_dots(
        &self,
        target: &Target,
        dir: &OpenDir,
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
        if offset == 0 && dot(b".", dir.ino.0, 1).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let parent = self.parent_of(target)?;
        let parent = self.ino_of(&parent);
        if let Target::Upper(node) = target
            && dir.listings != Listings::Uncached
        {
            let mut dotdot = lock(&node.dir.dotdot);
            *dotdot = match self.dotdot(node, *dotdot)? {
                Dotdot::None => Dotdot::One(parent),
                Dotdot::One(ino) if ino == parent => Dotdot::One(ino),
                _ => Dotdot::Several,
            };
        }
        Ok(dot(b"..", parent, DOTS))
    }

    fn read_lower(
        &self,
        dir: &OpenDir,
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
                match self.found_still(dir.ino, &found) {
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

    fn read_merged(
        &self,
        dir: &OpenDir,
        node: &Arc<Node>,
        offset: u64,
        plus: bool,
        each: Each<'_>,
    ) -> Result<()> {
        let listing = self.listing_at(dir, node, offset)?;
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

    /// What a descriptor is to read at `offset`: what it has read before where it goes on, else
    /// what is there now.
    fn listing_at(&self, dir: &OpenDir, node: &Arc<Node>, offset: u64) -> Result<Arc<Listing>> {
        {
            let progress = lock(&dir.progress);
            let goes_on = progress.from < offset && offset <= progress.to;
            if let Some(listing) = &progress.listing
                && (goes_on || listing.is_current(node))
            {
                return Ok(Arc::clone(listing));
            }
        }
        let listing = self.listing_of(node)?;
        lock(&dir.progress).listing = Some(Arc::clone(&listing));
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
