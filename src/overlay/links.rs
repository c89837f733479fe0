//! Link counts of inodes that only the image holds.
//!
//! Such a group of hard links only ever loses names (any other change copies it up, whole). The
//! names lost are counted here; what an earlier mount took away is found by looking at each
//! name once.

use super::{Overlay, Result};
use crate::lower::Nid;

impl Overlay {
    /// `st_nlink` of a non-directory of the image that has `nlink` names there.
    pub(super) fn lower_nlink(&self, nid: Nid, nlink: u32) -> Result<u32> {
        if let Some(gone) = self.removed.get(&nid) {
            return Ok(nlink.saturating_sub(*gone));
        }
        if self.fresh || nlink == 1 {
            return Ok(nlink);
        }
        let visible = u32::try_from(self.visible_names(nid)?.len()).unwrap_or(u32::MAX);
        self.removed.insert(nid, nlink.saturating_sub(visible));
        Ok(visible)
    }

    /// Called before a name of an image's inode goes, so that it is counted once and not twice.
    pub(super) fn know_nlink(&self, nid: Nid) -> Result<()> {
        let attr = self.lower.attr(nid)?;
        self.lower_nlink(nid, attr.nlink).map(|_| ())
    }

    /// Called when a name of an image's inode has gone.
    pub(super) fn note_removed(&self, nid: Nid) {
        let mut gone = self.removed.entry(nid).or_insert(0);
        *gone = gone.saturating_add(1);
    }
}
