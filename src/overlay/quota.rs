//! How much the upper may hold, counted here: for any filesystem, and for servers without rights.
//!
//! The ledger knows the blocks of each inode of the upper, as they were when it was last changed.
//! An operation that may need room claims the most that it can need, does what it does, and settles
//! what it has come to; what is claimed counts, so that the limit is kept however many there are
//! at once. Where much is left, that is all. Where little is, what a write needs is looked up: the
//! parts of its range that have no blocks.
//!
//! An inode is in the ledger from when it can be seen in the upper until nothing leads to it, no
//! open file either ([`room`](super::room) tells). Whiteouts are not counted: they are links of one
//! inode, and what is removed to make room must never fail for want of it.
//!
//! An inode is settled under the ledger's lock, so that what is counted last is what is so. That
//! lock comes after all others, and nothing is done under it but one look at an inode.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::error::Doing;
use super::node::{Node, lock};
use super::{Error, Overlay, Result};
use crate::inode::Kind;
use crate::lower::{Nid, Seek};
use crate::sys::fs::{self, Stat};
use crate::upper::Upper;

/// How much an upper may hold; `None` sets no limit, but is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// Bytes of all blocks: data, directories, attributes.
    pub bytes: Option<u64>,
    /// Inodes: files of all types, each once however many names it has, and directories.
    pub inodes: Option<u64>,
}

/// What an upper holds: [`Quota`] says of which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of all blocks.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Bytes of a unit of `st_blocks`.
const BLOCK: u64 = 512;

/// Where so much is left, the most that an operation can need is claimed without a look.
const PLENTY: u64 = 16 << 20;

/// What a file may have behind its end, and in blocks that are not its data's, and still be counted
/// for all of it.
const AHEAD: u64 = 64 << 10;

/// A link's target or an attribute that is longer may need blocks of its own.
const INLINE: usize = 40;

/// What the upper holds, inode by inode.
#[derive(Debug)]
pub(super) struct Ledger {
    quota: Quota,
    /// Bytes that the filesystem allocates at once.
    unit: u64,
    /// The filesystem allocates behind the end of files without being asked.
    ahead: bool,
    totals: Mutex<Totals>,
}

#[derive(Debug, Default)]
struct Totals {
    /// Of each inode.
    blocks: HashMap<u64, u64>,
    used: Usage,
    claimed: Usage,
}

/// Room that is kept for an operation; what is left of it is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    ledger: &'a Ledger,
    left: Usage,
}

/// What an operation was doing for which there is no room in the quota.
const WITHIN: &str = "staying within the quota";

fn full() -> Error {
    Error::Upper {
        doing: WITHIN,
        errno: Errno::NOSPC,
    }
}

/// Whether there is no room in the quota, though there may be some on the filesystem.
pub(super) fn is_exceeded(error: &Error) -> bool {
    matches!(error, Error::Upper { doing, .. } if *doing == WITHIN)
}

impl Ledger {
    /// Counts what an upper holds.
    pub(super) fn open(upper: &Upper, quota: Quota) -> Result<Self> {
        let stat = rustix::fs::fstatvfs(upper.root()).doing("reading filesystem statistics")?;
        let ledger = Self {
            quota,
            unit: stat.f_frsize.clamp(BLOCK, 1 << 16),
            ahead: fs::is_xfs(upper.root()).doing("reading filesystem statistics")?,
            totals: Mutex::default(),
        };
        let mut totals = lock(&ledger.totals);
        walk(upper, &mut |stat| totals.enter(stat, None))?;
        drop(totals);
        Ok(ledger)
    }

    /// Counts an inode as it is now.
    fn settle(&self, fd: BorrowedFd<'_>, claim: Option<&mut Claim<'_>>) -> rustix::io::Result<()> {
        let mut totals = lock(&self.totals);
        let mut stat = fs::fstat(fd)?;
        if let Some(most) = self.is_ahead(fd, &stat)? {
            stat.attr.blocks = stat.attr.blocks.min(most / BLOCK);
        }
        totals.enter(&stat, claim);
        Ok(())
    }

    /// What a file is to count for at most, if it has more behind its end than it was asked to have.
    /// XFS doubles what it allocates so for a file that grows: counted, a single one would use up the
    /// quota with half as many bytes, and could then be written on where it is allocated.
    fn is_ahead(&self, fd: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<Option<u64>> {
        if !self.ahead || stat.attr.kind != Kind::File {
            return Ok(None);
        }
        let end = stat.attr.size.checked_next_multiple_of(self.unit);
        let most = end.unwrap_or(u64::MAX).saturating_add(AHEAD);
        if stat.attr.blocks.saturating_mul(BLOCK) <= most {
            return Ok(None);
        }
        let asked_for = match fs::was_asked_for(fd) {
            Err(Errno::BADF) => {
                let fd = fs::reopen(fd, OFlags::RDONLY | OFlags::NONBLOCK)?;
                fs::was_asked_for(fd.as_fd())?
            }
            told => told?,
        };
        Ok((!asked_for).then_some(most))
    }

    /// Keeps room, if `spare` bytes are left besides.
    fn claim(&self, need: Usage, spare: u64) -> Option<Claim<'_>> {
        let mut totals = lock(&self.totals);
        let fits = |limit: Option<u64>, used: u64, claimed: u64, need: u64| {
            limit.is_none_or(|limit| used.saturating_add(claimed).saturating_add(need) <= limit)
        };
        let bytes = need.bytes.saturating_add(spare);
        let (used, claimed) = (totals.used, totals.claimed);
        let granted = fits(self.quota.bytes, used.bytes, claimed.bytes, bytes)
            && (need.inodes == 0
                || fits(self.quota.inodes, used.inodes, claimed.inodes, need.inodes));
        if !granted {
            return None;
        }
        totals.claimed.bytes = claimed.bytes.saturating_add(need.bytes);
        totals.claimed.inodes = claimed.inodes.saturating_add(need.inodes);
        Some(Claim {
            ledger: self,
            left: need,
        })
    }

    /// Bytes that may still be claimed.
    fn available(&self) -> u64 {
        let totals = lock(&self.totals);
        let taken = totals.used.bytes.saturating_add(totals.claimed.bytes);
        self.quota
            .bytes
            .map_or(u64::MAX, |limit| limit.saturating_sub(taken))
    }

    /// How many of `len` bytes from `offset` on can be written, and how many bytes of blocks that
    /// needs.
    fn fitting(&self, fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(u64, u64)> {
        let available = self.available();
        let end = offset.saturating_add(len);
        let stat = fs::fstat(fd).doing("looking for free room")?;
        // What is not counted is not there.
        let known_end = match self.is_ahead(fd, &stat).doing("looking for free room")? {
            Some(_) => stat
                .attr
                .size
                .checked_next_multiple_of(self.unit)
                .unwrap_or(end),
            None => end,
        };
        let (mut at, mut need) = (offset, 0_u64);
        while at < end {
            let upto = end.min(known_end);
            let found = match at < upto {
                true => fs::next_allocated(fd, at..upto).doing("looking for free room")?,
                false => None,
            };
            let hole = found.as_ref().map_or(end, |found| found.start);
            if hole > at {
                let first = at - at % self.unit;
                let left = available.saturating_sub(need);
                let more = hole.checked_next_multiple_of(self.unit).unwrap_or(hole) - first;
                if more > left {
                    let room = first.saturating_add(left - left % self.unit);
                    need = need.saturating_add(room.saturating_sub(first));
                    return Ok((room.clamp(at, end).saturating_sub(offset), need));
                }
                need = need.saturating_add(more);
            }
            at = found.map_or(end, |found| found.end.max(at.saturating_add(1)));
        }
        Ok((len, need))
    }
}

impl Totals {
    /// What has been claimed pays for what has come.
    fn enter(&mut self, stat: &Stat, claim: Option<&mut Claim<'_>>) {
        let bytes = |blocks: u64| blocks.saturating_mul(BLOCK);
        let was = self.blocks.insert(stat.attr.ino, stat.attr.blocks);
        let (old, new) = (bytes(was.unwrap_or(0)), bytes(stat.attr.blocks));
        let inodes = u64::from(was.is_none());
        let used = &mut self.used;
        used.bytes = used.bytes.saturating_sub(old).saturating_add(new);
        used.inodes = used.inodes.saturating_add(inodes);
        if let Some(claim) = claim {
            let paid = Usage {
                bytes: new.saturating_sub(old).min(claim.left.bytes),
                inodes: inodes.min(claim.left.inodes),
            };
            claim.left.bytes = claim.left.bytes.saturating_sub(paid.bytes);
            claim.left.inodes = claim.left.inodes.saturating_sub(paid.inodes);
            self.give_back(paid);
        }
    }

    /// Nothing leads to an inode any more.
    fn leave(&mut self, ino: u64) {
        if let Some(blocks) = self.blocks.remove(&ino) {
            let used = &mut self.used;
            used.bytes = used.bytes.saturating_sub(blocks.saturating_mul(BLOCK));
            used.inodes = used.inodes.saturating_sub(1);
        }
    }

    fn give_back(&mut self, claim: Usage) {
        self.claimed.bytes = self.claimed.bytes.saturating_sub(claim.bytes);
        self.claimed.inodes = self.claimed.inodes.saturating_sub(claim.inodes);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.ledger.totals).give_back(self.left);
    }
}

/// Tells of each inode of an upper, of those with several names as often as they have.
fn walk(upper: &Upper, tell: &mut dyn FnMut(&Stat)) -> Result<()> {
    struct Level {
        fd: OwnedFd,
        subdirs: Vec<crate::name::Name>,
    }
    let doing = "counting what the upper holds";
    let marks = upper.marks();
    let mut enter = |fd: OwnedFd| -> Result<Level> {
        tell(&fs::fstat(fd.as_fd()).doing(doing)?);
        let opaque = marks.opaque(fd.as_fd()).doing(doing)?;
        let mut subdirs = Vec::new();
        for entry in fs::list(fd.as_fd()).doing(doing)? {
            let name = entry.name.as_bytes();
            if entry.kind == Kind::Dir {
                subdirs.push(entry.name);
                continue;
            }
            let stat = fs::stat(fd.as_fd(), name).doing(doing)?;
            let whiteout = marks
                .is_whiteout(fd.as_fd(), name, &stat, opaque)
                .doing(doing)?;
            if !whiteout {
                tell(&stat);
            }
        }
        Ok(Level { fd, subdirs })
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut stack = vec![enter(fs::open(upper.root(), b".", flags, 0).doing(doing)?)?];
    while let Some(level) = stack.last_mut() {
        match level.subdirs.pop() {
            Some(name) => {
                let fd = fs::open(level.fd.as_fd(), name.as_bytes(), flags, 0).doing(doing)?;
                stack.push(enter(fd)?);
            }
            None => drop(stack.pop()),
        }
    }
    Ok(())
}

impl Overlay {
    /// What the upper holds. With a [`Quota`] it is known at any time; without, the upper is walked
    /// through, and what has no name is not seen. Nothing without an upper.
    ///
    /// # Errors
    /// EIO where the upper cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        match (&self.ledger, &self.upper) {
            (Some(ledger), _) => Ok(lock(&ledger.totals).used),
            (None, None) => Ok(Usage::default()),
            (None, Some(upper)) => {
                let ledger = Ledger::open(upper, Quota::default())?;
                let used = lock(&ledger.totals).used;
                Ok(used)
            }
        }
    }

    /// Begins to count, if there is a quota.
    pub(super) fn open_ledger(&mut self) -> Result<()> {
        if let (Some(quota), Some(upper)) = (self.options.quota, &self.upper) {
            let ledger = Arc::new(Ledger::open(upper, quota)?);
            self.table.leaving().count_in(&ledger);
            self.ledger = Some(ledger);
        }
        Ok(())
    }

    /// Keeps room for so many inodes and bytes; where nothing is counted, that needs none. Of an
    /// upper that holds more than its quota nobody gets any.
    ///
    /// # Errors
    /// ENOSPC.
    pub(super) fn claim(&self, inodes: u64, bytes: u64) -> Result<Option<Claim<'_>>> {
        let Some(ledger) = &self.ledger else {
            return Ok(None);
        };
        let bytes = bytes
            .checked_next_multiple_of(ledger.unit)
            .ok_or_else(full)?;
        ledger
            .claim(Usage { bytes, inodes }, 0)
            .map(Some)
            .ok_or_else(full)
    }

    /// The same for an extended attribute of so many bytes, or for the target of a link.
    pub(super) fn claim_inline(&self, inodes: u64, bytes: usize) -> Result<Option<Claim<'_>>> {
        let bytes = if bytes > INLINE { bytes } else { 0 };
        self.claim(inodes, u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    /// The same for a copy of an inode of the image, of which `size` bytes at most are copied.
    pub(super) fn claim_copy(&self, nid: Nid, size: u64) -> Result<Option<Claim<'_>>> {
        let Some(ledger) = &self.ledger else {
            return Ok(None);
        };
        let attr = self.lower.attr(nid)?;
        let up = |bytes: u64| {
            bytes
                .checked_next_multiple_of(ledger.unit)
                .unwrap_or(u64::MAX)
        };
        let mut bytes = match attr.kind {
            Kind::Dir => ledger.unit,
            Kind::Symlink if attr.size > INLINE as u64 => up(attr.size),
            _ => 0,
        };
        let size = attr.size.min(size);
        let mut at = 0;
        while attr.kind == Kind::File && at < size {
            let Some(data) = self
                .lower
                .seek(nid, at, Seek::Data)?
                .filter(|at| *at < size)
            else {
                break;
            };
            let hole = self
                .lower
                .seek(nid, data, Seek::Hole)?
                .unwrap_or(size)
                .min(size);
            bytes = bytes.saturating_add(up(hole) - (data - data % ledger.unit));
            at = hole.max(data.saturating_add(1));
        }
        let xattrs = self.lower.xattrs(nid)?;
        let long: usize = xattrs.iter().map(|x| x.name.len() + x.value.len()).sum();
        if long > INLINE {
            bytes = bytes.saturating_add(up(u64::try_from(long).unwrap_or(u64::MAX)));
        }
        self.claim(1, bytes)
    }

    /// Keeps room for bytes of a file that are to be written; answers how many can be.
    ///
    /// # Errors
    /// ENOSPC if none can.
    pub(super) fn claim_data(
        &self,
        fd: BorrowedFd<'_>,
        offset: Option<u64>,
        len: u64,
    ) -> Result<(Option<Claim<'_>>, u64)> {
        let Some(ledger) = self.ledger.as_ref().filter(|it| it.quota.bytes.is_some()) else {
            return Ok((None, len));
        };
        let most = Usage {
            bytes: len.saturating_add(2 * ledger.unit),
            inodes: 0,
        };
        if let Some(claim) = ledger.claim(most, PLENTY) {
            return Ok((Some(claim), len));
        }
        let offset = match offset {
            Some(offset) => offset,
            None => fs::fstat(fd).doing("reading attributes")?.attr.size,
        };
        let (fits, bytes) = ledger.fitting(fd, offset, len)?;
        if fits == 0 && len > 0 {
            return Err(full());
        }
        if bytes == 0 {
            return Ok((None, fits));
        }
        let claim = ledger.claim(Usage { bytes, inodes: 0 }, 0);
        claim.map(|claim| (Some(claim), fits)).ok_or_else(full)
    }

    /// The same for fallocate(2): all of it, or none.
    pub(super) fn claim_range(
        &self,
        fd: BorrowedFd<'_>,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<Option<Claim<'_>>> {
        let none = FallocateFlags::PUNCH_HOLE
            | FallocateFlags::COLLAPSE_RANGE
            | FallocateFlags::INSERT_RANGE;
        if mode.intersects(none) {
            return Ok(None);
        }
        match self.claim_data(fd, Some(offset), len)? {
            (claim, fits) if fits == len => Ok(claim),
            _ => Err(full()),
        }
    }

    /// Counts an inode as it is after a change. Its node must be held: an inode that ends meanwhile
    /// would be counted for good.
    pub(super) fn settle(&self, fd: BorrowedFd<'_>, claim: &mut Option<Claim<'_>>) {
        if let Some(ledger) = &self.ledger
            && let Err(errno) = ledger.settle(fd, claim.as_mut())
        {
            tracing::warn!(%errno, "an inode of the upper is not counted");
        }
    }

    /// The same of an inode, or of a directory whose names have changed.
    pub(super) fn settle_node(&self, node: &Arc<Node>) {
        if self.ledger.is_none() {
            return;
        }
        match self.fd_of(node) {
            Ok(fd) => self.settle(fd.as_fd(), &mut None),
            Err(error) => tracing::debug!(%error, "it has gone before it was counted"),
        }
    }

    /// Counts a file that was written to and is closed by now: XFS reserves room behind the end of
    /// one that is open, and gives it back then (fs/xfs/xfs_inode.c:xfs_release()).
    pub(super) fn settle_closed(&self, node: &Arc<Node>) {
        let Some(ledger) = &self.ledger else { return };
        let Ok(stat) = self.node_stat(node) else {
            return;
        };
        let known = lock(&ledger.totals).blocks.get(&stat.attr.ino).copied();
        if known.is_some_and(|known| known != stat.attr.blocks) {
            self.settle_node(node);
        }
    }

    /// Whether what is written is counted.
    pub(super) fn counts(&self) -> bool {
        self.ledger.is_some()
    }

    /// What the filesystem's statistics are to show: its own, or the quota's where that is less, as
    /// with project quotas (fs/xfs/xfs_qm_bhv.c:xfs_fill_statvfs_from_dquot()).
    pub(super) fn within_quota(&self, stat: &mut super::StatFs) {
        let Some(ledger) = &self.ledger else { return };
        let used = lock(&ledger.totals).used;
        if let Some(limit) = ledger.quota.bytes {
            let unit = u64::from(stat.frsize).max(1);
            let free = limit.saturating_sub(used.bytes) / unit;
            stat.blocks = stat.blocks.min(limit / unit);
            stat.bfree = stat.bfree.min(free);
            stat.bavail = stat.bavail.min(free);
        }
        if let Some(limit) = ledger.quota.inodes {
            let free = limit.saturating_sub(used.inodes);
            // Those of btrfs are not limited, and it says so by 0.
            let limits = stat.files > 0;
            stat.files = if limits { stat.files.min(limit) } else { limit };
            stat.ffree = if limits { stat.ffree.min(free) } else { free };
        }
    }
}

/// An inode without a name is about to be let go of.
pub(super) fn leaves(ledger: &Ledger, fd: BorrowedFd<'_>) {
    match fs::fstat(fd) {
        Ok(stat) if stat.attr.nlink == 0 => lock(&ledger.totals).leave(stat.attr.ino),
        // A name that nobody has looked up leads to it.
        Ok(_) => {}
        Err(errno) => tracing::warn!(%errno, "an inode that has gone is counted on"),
    }
}
