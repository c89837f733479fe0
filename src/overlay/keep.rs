//! What changes throw away while somebody copies large files: written down first.
//!
//! Who has frozen an overlay and opened the large files of its upper need not hold all changes back
//! until they are copied: [`Frozen::keep`] lets them go on, but before existing bytes of one of
//! those files change or are cut off, they are written to a log. The copy, torn as it may be, and
//! then the log over it, is each file as it was while all was frozen.
//!
//! An operation looks for the log when it has passed the [`gate`](super::gate), so that none is
//! missed. Two operations on one file wait for each other here, so that what is saved is what was
//! there; and nothing is saved twice. Whoever only adds to a file says so too: from then on its
//! size is not what it was.
//!
//! Holes are not saved: who copies has seen where they are. But what is allocated and not yet
//! written (fallocate(2)) is a hole to lseek(2) only as long as none of it has been read, and it is
//! one again when the pages have gone. So zeros are saved for it, which take no room.
//!
//! What cannot be written down must not hold up who writes: the log is given up then, and its
//! reader is told at the end. So it is where it would use up the room of those who write.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::error::Doing;
use super::gate::Taken;
use super::node::lock;
use super::order::{Class, Held, Lock};
use super::{Ino, Overlay, Result};
use crate::sys::fs;
use crate::upper::work::{Beside, Notes};

#[cfg(doc)]
use super::Frozen;

/// Bytes of a record before its data.
const HEAD: usize = 24;

/// Most bytes of data in a record: who waits for the log waits for one.
const RECORD: u64 = 16 << 20;

/// What is no longer is written with its head, by one call.
const SMALL: u64 = 64 << 10;

/// Room of the filesystem that is left to those who write: so many bytes, or the 16th part.
const SPARE: u64 = 64 << 20;

/// While it lives, changes go on, and what they throw away of some files is in a log:
/// [`Frozen::keep`]. Another freeze waits. When it is dropped nothing more is written down, and the
/// log's name is gone.
///
/// The log is a file in the directory `work` of the work directory, and belongs to who serves, mode
/// 0600. It is records one after the other, of little-endian numbers of 64 bits: the number of the
/// file (`st_ino` in the upper), an offset in it, and a length (not 0); then as many bytes, which
/// were there while all was frozen. Records of one file do not overlap, and none reaches beyond its
/// size then. What was a hole is in none: who copies must know from before changes went on where
/// holes are. But there may be zeros for what was allocated and never written, in records that may
/// be as long as a file and are holes in the log themselves: who knows of the hole skips them.
///
/// It is whole when [`Self::finish`] has answered so; who reads it must have opened it before.
#[derive(Debug)]
#[must_use = "nothing is kept any more when it is dropped"]
pub struct Kept {
    log: Arc<Log>,
    taken: Taken,
}

impl Kept {
    pub(super) fn new(log: Arc<Log>, taken: Taken) -> Self {
        Self { log, taken }
    }

    /// The log's name, in the directory `work` of the work directory.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.log.name
    }

    /// Ends it: when this returns nothing more is written to the log, which has lost its name.
    ///
    /// # Errors
    /// Not all is in the log, and why: ENOSPC, EDQUOT, EIO. It is of no use then.
    pub fn finish(self) -> Result<()> {
        self.end()
    }

    fn end(&self) -> Result<()> {
        self.taken.end_log();
        self.log.end()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::debug!(%error, "what was overwritten has not been kept");
        }
    }
}

/// The log, and what is in it.
#[derive(Debug)]
pub(super) struct Log {
    name: String,
    files: HashMap<u64, Mutex<Touched>>,
    out: Mutex<Out>,
}

/// One of the files.
#[derive(Debug, Default)]
struct Touched {
    /// What its size was when it was first touched.
    size: Option<u64>,
    /// What is in the log, or was a hole.
    saved: Ranges,
}

/// Where records go.
#[derive(Debug)]
struct Out {
    /// Until the end.
    notes: Option<Notes>,
    /// Where the next record goes.
    at: u64,
    lost: Option<Errno>,
}

impl Log {
    /// Makes one.
    ///
    /// # Errors
    /// [`Beside::notes`]'s.
    pub(super) fn new(beside: &Beside, files: impl IntoIterator<Item = u64>) -> Result<Self> {
        let touched = |ino| (ino, Mutex::default());
        let notes = beside.notes().doing("making a log")?;
        Ok(Self {
            name: notes.name().to_owned(),
            files: files.into_iter().map(touched).collect(),
            out: Mutex::new(Out {
                notes: Some(notes),
                at: 0,
                lost: None,
            }),
        })
    }

    fn end(&self) -> Result<()> {
        let mut out = lock(&self.out);
        out.notes = None;
        match out.lost {
            None => Ok(()),
            Some(errno) => Err(errno).doing("keeping what was overwritten"),
        }
    }

    /// Saves what a file has in `range`, which is about to change.
    fn save(&self, fd: BorrowedFd<'_>, range: Range<u64>) {
        if let Err(errno) = self.try_save(fd, range) {
            lock(&self.out).give_up(errno);
        }
    }

    fn try_save(&self, fd: BorrowedFd<'_>, range: Range<u64>) -> rustix::io::Result<()> {
        let ino = fs::fstat(fd)?.attr.ino;
        let Some(file) = self.files.get(&ino) else {
            return Ok(());
        };
        let order = Lock {
            class: Class::Keeping,
            ino: Ino(ino),
            is_dir: false,
        };
        let mut touched = Held::take(order, || lock(file));
        let size = match touched.size {
            Some(size) => size,
            None => *touched.size.insert(fs::fstat(fd)?.attr.size),
        };
        let range = range.start..range.end.min(size);
        let missing = touched.saved.missing(&range);
        if missing.is_empty() {
            return Ok(());
        }
        let readable = readable(fd)?;
        let fd = readable.as_ref().map_or(fd, AsFd::as_fd);
        for part in missing {
            let mut at = part.start;
            while at < part.end {
                let data = next_data(fd, &(at..part.end))?;
                let data = data.unwrap_or(part.end..part.end);
                self.write_blanks(ino, fd, at..data.start)?;
                at = data.end;
                self.write(ino, fd, data)?;
            }
            touched.saved.add(part);
        }
        Ok(())
    }

    fn write(&self, ino: u64, fd: BorrowedFd<'_>, data: Range<u64>) -> rustix::io::Result<()> {
        let mut at = data.start;
        while at < data.end {
            let end = data.end.min(at.saturating_add(RECORD));
            if !lock(&self.out).write(ino, Some(fd), at..end)? {
                return Ok(());
            }
            at = end;
        }
        Ok(())
    }

    /// Writes zeros for what is allocated of a hole.
    fn write_blanks(
        &self,
        ino: u64,
        fd: BorrowedFd<'_>,
        mut hole: Range<u64>,
    ) -> rustix::io::Result<()> {
        while !hole.is_empty()
            && let Some(blank) = fs::next_allocated(fd, hole.clone())?
        {
            hole.start = blank.end;
            if !lock(&self.out).write(ino, None, blank)? {
                break;
            }
        }
        Ok(())
    }
}

impl Out {
    /// Writes a record, of zeros if it is from nowhere; `false` if none is wanted any more.
    fn write(
        &mut self,
        ino: u64,
        from: Option<BorrowedFd<'_>>,
        data: Range<u64>,
    ) -> rustix::io::Result<bool> {
        let Some(notes) = self.notes.as_ref().filter(|_| self.lost.is_none()) else {
            return Ok(false);
        };
        let to = notes.fd();
        let len = data.end.saturating_sub(data.start);
        if !has_room(to, from.map_or(0, |_| len))? {
            return Err(Errno::NOSPC);
        }
        let mut head = Vec::with_capacity(HEAD);
        for number in [ino, data.start, len] {
            head.extend_from_slice(&number.to_le_bytes());
        }
        let small = if len <= SMALL { len } else { 0 };
        head.resize(HEAD.saturating_add(usize::try_from(small).unwrap_or(0)), 0);
        let buf = head.get_mut(HEAD..).unwrap_or_default();
        if let Some(from) = from
            && fs::read(from, data.start, buf)? < buf.len()
        {
            return Err(Errno::IO);
        }
        super::file::write_all(to, self.at, &head)?;
        let at = self.at.saturating_add(head.len() as u64);
        let end = at.saturating_add(len.saturating_sub(small));
        match from {
            Some(from) => copy(from, data.start.saturating_add(small)..data.end, to, at)?,
            // A hole reads as zeros.
            None => fs::truncate(to, end)?,
        }
        self.at = end;
        Ok(true)
    }

    /// The log is of no use any more; what it took is free again. Answers whether it was of any.
    fn give_up(&mut self, errno: Errno) -> bool {
        let Some(notes) = self.notes.as_ref().filter(|_| self.lost.is_none()) else {
            return false;
        };
        tracing::info!(%errno, "what is overwritten can be kept no longer");
        self.lost = Some(errno);
        if let Err(errno) = fs::truncate(notes.fd(), 0) {
            tracing::warn!(%errno, "its log takes room until it is removed");
        }
        true
    }
}

/// The same file for reading, where `fd` is not.
fn readable(fd: BorrowedFd<'_>) -> rustix::io::Result<Option<std::os::fd::OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    let is = flags & OFlags::ACCMODE != OFlags::WRONLY;
    let again = || fs::reopen(fd, OFlags::RDONLY | OFlags::NONBLOCK);
    (!is).then(again).transpose()
}

/// The first part of `range` that has data; all of it where the filesystem cannot tell.
fn next_data(fd: BorrowedFd<'_>, range: &Range<u64>) -> rustix::io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    match fs::next_data(fd, range) {
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(range.clone())),
        told => told,
    }
}

/// Whether there is room for so many bytes, and some besides.
fn has_room(fd: BorrowedFd<'_>, len: u64) -> rustix::io::Result<bool> {
    let s = rustix::fs::fstatvfs(fd)?;
    let bytes = |blocks: u64| blocks.saturating_mul(s.f_frsize);
    let spare = SPARE.min(bytes(s.f_blocks) / 16);
    // A tmpfs without a limit says 0.
    Ok(s.f_blocks == 0 || bytes(s.f_bavail) >= len.saturating_add(spare))
}

/// Copies bytes that are there.
fn copy(
    from: BorrowedFd<'_>,
    range: Range<u64>,
    to: BorrowedFd<'_>,
    mut to_offset: u64,
) -> rustix::io::Result<()> {
    let mut at = range.start;
    let mut buf = Vec::new();
    while at < range.end {
        let left = usize::try_from(range.end.saturating_sub(at)).unwrap_or(usize::MAX);
        // Once by hand, always so.
        let copied = if buf.is_empty() {
            match fs::copy_range(from, at, to, to_offset, left) {
                Ok(0) => None,
                Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(errno),
                Err(_) => None,
                Ok(n) => Some(n),
            }
        } else {
            None
        };
        let copied = match copied {
            Some(n) => n,
            None => {
                buf.resize(usize::try_from(SMALL).unwrap_or(0), 0);
                let got = fs::read(from, at, &mut buf)?.min(left);
                if got == 0 {
                    return Err(Errno::IO);
                }
                super::file::write_all(to, to_offset, buf.get(..got).unwrap_or_default())?;
                got
            }
        };
        at = at.saturating_add(copied as u64);
        to_offset = to_offset.saturating_add(copied as u64);
    }
    Ok(())
}

/// The bytes of a file that fallocate(2) may change.
pub(super) fn changed_by(mode: FallocateFlags, offset: u64, len: u64) -> Range<u64> {
    let within =
        FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
    let none = FallocateFlags::KEEP_SIZE | FallocateFlags::UNSHARE_RANGE;
    if none.contains(mode) {
        return offset..offset;
    }
    if within.contains(mode) {
        return offset..offset.saturating_add(len);
    }
    // Moves what follows, or is not known here.
    offset..u64::MAX
}

/// Which bytes of a file.
#[derive(Debug, Default)]
struct Ranges {
    /// Where each ends, by where it starts; none touches another.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// What of `range` is in none.
    fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        let before = self.ends.range(..=at).next_back();
        let within = self.ends.range(at.saturating_add(1)..);
        for (&start, &end) in before.into_iter().chain(within) {
            if start >= range.end {
                break;
            }
            if start > at {
                missing.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    fn add(&mut self, mut range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.ends.range(..=range.end).next_back() {
            if end < range.start {
                break;
            }
            self.ends.remove(&start);
            range = range.start.min(start)..range.end.max(end);
        }
        self.ends.insert(range.start, range.end);
    }
}

impl Overlay {
    /// Whether what is thrown away is kept.
    pub(super) fn keeps(&self) -> bool {
        self.gate.log().is_some()
    }

    /// To be called before bytes of a file of the upper change or go, or are added (with an empty
    /// range), by who has passed the gate.
    pub(super) fn keep_old(&self, fd: BorrowedFd<'_>, range: Range<u64>) {
        if let Some(log) = self.gate.log() {
            log.save(fd, range);
        }
    }

    /// Gives the log up where it may have taken the room that somebody has not found; answers
    /// whether there is more now.
    pub(super) fn give_up_log(&self) -> bool {
        let log = self.gate.log();
        log.is_some_and(|log| {
            let mut out = lock(&log.out);
            out.at > 0 && out.give_up(Errno::NOSPC)
        })
    }

    /// ftruncate(2).
    pub(super) fn cut_to(&self, fd: BorrowedFd<'_>, size: u64) -> Result<()> {
        self.keep_old(fd, size..u64::MAX);
        fs::truncate(fd, size).doing("truncating")
    }

    /// Writes at `offset`, or at the end.
    pub(super) fn write_kept(
        &self,
        fd: BorrowedFd<'_>,
        offset: Option<u64>,
        data: &[u8],
    ) -> rustix::io::Result<usize> {
        let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let at = offset.unwrap_or(u64::MAX);
        self.keep_old(fd, at..at.saturating_add(len));
        let write = |done: usize| {
            let data = data.get(done..).unwrap_or_default();
            match offset {
                Some(offset) => fs::write(fd, offset.saturating_add(done as u64), data),
                None => fs::append(fd, data),
            }
        };
        let done = write(0)?;
        if done < data.len() && self.give_up_log() {
            // As if there had been no log. Why the rest fails the next call will say.
            return Ok(done.saturating_add(write(done).unwrap_or(0)));
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_what_was_added(
            added in prop::collection::vec((0_u64..60, 0_u64..12), 0..20),
            (start, len) in (0_u64..60, 0_u64..60),
        ) {
            let mut ranges = Ranges::default();
            let mut all = [false; 72];
            for (start, len) in added {
                ranges.add(start..start + len);
                for n in start..start + len {
                    all[usize::try_from(n).unwrap()] = true;
                }
            }
            let missing = ranges.missing(&(start..start + len));
            let mut last = 0;
            for part in &missing {
                prop_assert!(part.start >= last && part.start < part.end);
                last = part.end + 1;
            }
            for n in 0..72 {
                let asked = (start..start + len).contains(&n);
                let expected = asked && !all[usize::try_from(n).unwrap()];
                let found = missing.iter().any(|part| part.contains(&n));
                prop_assert_eq!(found, expected, "{}", n);
            }
            let ends: Vec<_> = ranges.ends.iter().collect();
            prop_assert!(ends.windows(2).all(|two| two[0].1 < two[1].0), "{:?}", ends);
        }
    }

    #[test]
    fn what_fallocate_changes() {
        const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
        let changed = |mode| changed_by(mode, 10, 5);
        for mode in [FallocateFlags::empty(), KEEP, FallocateFlags::UNSHARE_RANGE] {
            assert!(changed(mode).is_empty(), "{mode:?}");
        }
        let (punch, zero) = (FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE);
        for mode in [punch | KEEP, zero, zero | KEEP] {
            assert_eq!(changed(mode), 10..15, "{mode:?}");
        }
        let (collapse, insert) = (FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE);
        // FALLOC_FL_WRITE_ZEROES, or whatever comes.
        let unknown = FallocateFlags::from_bits_retain(0x80);
        for mode in [collapse, insert, unknown] {
            assert_eq!(changed(mode), 10..u64::MAX, "{mode:?}");
        }
        assert_eq!(changed_by(punch, u64::MAX - 1, 5), u64::MAX - 1..u64::MAX);
    }
}
