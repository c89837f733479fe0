//! Link counts and times of change of inodes that only the image holds.
//!
//! Such a group of hard links only ever loses names (any other change copies it up, whole). The
//! names lost are counted here, and when the last of them went; what an earlier mount took away
//! is found by looking at each name once.

use std::os::fd::BorrowedFd;

use super::error::Doing;
use super::{Overlay, Result, Target};
use crate::inode::{Attr, Time};
use crate::lower::Nid;
use crate::sys::fs;

/// What an inode of the image has lost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lost {
    names: u32,
    /// When it lost the last one: its new `st_ctime`.
    at: Option<Time>,
}

impl Lost {
    /// Takes it off the attributes that the image gives.
    pub(super) fn show_in(self, attr: &mut Attr) {
        attr.nlink = attr.nlink.saturating_sub(self.names);
        attr.ctime = self.at.unwrap_or(attr.ctime);
    }
}

impl Overlay {
    /// What a non-directory of the image that has `nlink` names there has lost of them.
    pub(super) fn lost(&self, nid: Nid, nlink: u32) -> Result<Lost> {
        if let Some(lost) = self.lost.get(&nid) {
            return Ok(*lost);
        }
        if self.fresh || nlink == 1 {
            return Ok(Lost::default());
        }
        let lost = self.find_lost(nid, nlink)?;
        // Who takes a name away knows a count before: the first one is of the time before that.
        Ok(*self.lost.entry(nid).or_insert(lost))
    }

    /// What earlier mounts took from an inode: each of its names is looked at once, there may be
    /// tens of thousands.
    ///
    /// When the last one went is written nowhere, but the directory that lost it has changed
    /// since, or the one above it where it is no more. Later than the truth perhaps, but never
    /// earlier.
    fn find_lost(&self, nid: Nid, nlink: u32) -> Result<Lost> {
        let mut visible = 0_u32;
        let mut losers = Vec::new();
        let mut last: Option<(Nid, Option<Target>)> = None;
        for (dir, name) in self.lower.names(nid)? {
            // Names in one directory come one after the other.
            let found = match last.take() {
                Some((known, found)) if known == dir => found,
                _ => self.locate(dir)?,
            };
            if let Some(found) = &found
                && self.peek(found, &name)?.lower() == Some(nid)
            {
                visible = visible.saturating_add(1);
            } else if losers.last() != Some(&dir) {
                losers.push(dir);
            }
            last = Some((dir, found));
        }
        let names = nlink.saturating_sub(visible);
        if names == 0 {
            return Ok(Lost::default());
        }
        let mut at = None;
        for mut dir in losers {
            let mut found = self.locate(dir)?;
            while found.is_none() {
                dir = self.lower.parent(dir)?;
                found = self.locate(dir)?;
            }
            if let Some(Target::Upper(node)) = found {
                at = at.max(Some(self.node_stat(&node)?.attr.ctime));
            }
        }
        Ok(Lost { names, at })
    }

    /// Called before a name of an image's inode goes, so that it is counted once and not twice.
    pub(super) fn know_lost(&self, nid: Nid) -> Result<()> {
        let attr = self.lower.attr(nid)?;
        self.lost(nid, attr.nlink).map(|_| ())
    }

    /// Called when a name of an image's inode has gone from `dir`, whose `entries` are locked.
    pub(super) fn note_lost(&self, nid: Nid, dir: BorrowedFd<'_>) {
        let since = self.lost.get(&nid).and_then(|lost| lost.at);
        let at = changed(dir, since).inspect_err(|error| {
            tracing::warn!(%error, "the time of a removal is not known");
        });
        let mut lost = self.lost.entry(nid).or_default();
        lost.names = lost.names.saturating_add(1);
        lost.at = lost.at.max(at.ok());
    }
}

/// The time of a directory's last change, by the clock of the upper's filesystem, so that what it
/// stamps later is later. It stamps as coarsely as it can: where two changes look like one, the
/// directory is touched once more, which its other times do not show.
fn changed(dir: BorrowedFd<'_>, since: Option<Time>) -> Result<Time> {
    let attr = fs::fstat(dir).doing("reading attributes")?.attr;
    if Some(attr.ctime) > since {
        return Ok(attr.ctime);
    }
    fs::copy_times(dir, &attr).doing("touching a directory")?;
    Ok(fs::fstat(dir).doing("reading attributes")?.attr.ctime)
}
