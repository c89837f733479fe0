//! Reading ahead what a record names.
//!
//! One thread goes through the record, a few MiB at a time: it looks the files up, puts what they
//! ask of the blobs in the order of the disk, and has the kernel read that into its page cache. It
//! is never more than a window ahead of the disk, so that the mount's own reads do not wait behind
//! it, and ends when it is told to, when memory is short, and when it has read what it may.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::format::{GRAIN, Line, Profile};
use crate::inode::Kind;
use crate::lower::{Lower, LowerError, Nid, Place};
use crate::name::Name;
use crate::overlay::Overlay;

/// Bytes that are looked up and put in order at once.
const BATCH: u64 = 4 << 20;
/// Gap that is read as well where two places are so near each other.
pub(super) const GAP: u64 = 128 << 10;
/// Bytes to ask the kernel for at once: the least read-ahead that a disk has by default, so that
/// nothing is cut off.
const STEP: u64 = 128 << 10;
/// Bytes that may be on their way.
const WINDOW: u64 = 8 << 20;
/// How long a mount that ends waits for the last step: a disk may hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes to read at most.
    pub bytes: u64,
    /// Says why memory is short, when it is.
    pub short_of_memory: fn() -> Option<&'static str>,
}

impl Limits {
    /// 256 MiB.
    pub const BYTES: u64 = 256 << 20;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: Self::BYTES,
            short_of_memory: memory_is_short,
        }
    }
}

/// Why it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All has been read.
    Done,
    /// The mount ended, or was told to.
    Cancelled,
    /// [`Limits::bytes`].
    Bytes,
    /// [`Limits::short_of_memory`].
    Memory(&'static str),
    /// A blob cannot be read.
    Failed,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Files of which something was read.
    pub files: usize,
    /// Bytes that were asked for, with the gaps between them.
    pub bytes: u64,
    /// Lines that name nothing (any more).
    pub gone: usize,
    /// Why it ended.
    pub end: End,
}

/// The thread that reads ahead.
#[derive(Debug)]
pub struct Replay {
    cancel: Arc<AtomicBool>,
    outcome: Receiver<Outcome>,
}

impl Replay {
    /// Begins.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(overlay: Arc<Overlay>, profile: Profile, limits: Limits) -> io::Result<Self> {
        let cancel = Arc::new(AtomicBool::new(false));
        let cancelled = Arc::clone(&cancel);
        let (tell, outcome) = channel();
        std::thread::Builder::new()
            .name("tarnfs-prefetch".to_owned())
            .spawn(move || {
                let outcome = run(overlay.lower(), &profile, limits, &cancelled);
                drop(overlay);
                if tell.send(outcome).is_err() {
                    tracing::debug!("nobody waited for the prefetch");
                }
            })?;
        Ok(Self { cancel, outcome })
    }

    /// Asks for the end; does not wait.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Waits for the end, but not for a disk that does not answer.
    pub fn finish(self) -> Option<Outcome> {
        match self.outcome.recv_timeout(PATIENCE) {
            Ok(outcome) => Some(outcome),
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!("the prefetch waits for its disk still");
                None
            }
            Err(RecvTimeoutError::Disconnected) => {
                tracing::error!("the prefetch died");
                None
            }
        }
    }
}

/// All of it, in the calling thread; one line in the log at the end.
fn run(lower: &Lower, profile: &Profile, limits: Limits, cancel: &AtomicBool) -> Outcome {
    let began = Instant::now();
    let mut reader = Reader {
        lower,
        limits,
        cancel,
        wanted: Vec::new(),
        pending: 0,
        flying: VecDeque::new(),
        in_flight: 0,
        spent: 0,
        bytes: 0,
        files: HashSet::new(),
        gone: 0,
    };
    let end = reader.all(&profile.lines).err().unwrap_or(End::Done);
    let outcome = Outcome {
        files: reader.files.len(),
        bytes: reader.bytes,
        gone: reader.gone,
        end,
    };
    tracing::info!(
        files = outcome.files,
        bytes = outcome.bytes,
        ms = began.elapsed().as_millis(),
        gone = outcome.gone,
        another_image = profile.fingerprint != lower.fingerprint(),
        end = ?outcome.end,
        "prefetched"
    );
    outcome
}

/// A place in a blob, to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Want {
    pub(super) blob: u16,
    pub(super) start: u64,
    pub(super) end: u64,
}

struct Reader<'a> {
    lower: &'a Lower,
    limits: Limits,
    cancel: &'a AtomicBool,
    /// The batch.
    wanted: Vec<Want>,
    /// Bytes of the batch.
    pending: u64,
    /// Asked for and not waited for: blob, last byte, bytes.
    flying: VecDeque<(u16, u64, u64)>,
    in_flight: u64,
    /// Of [`Limits::bytes`].
    spent: u64,
    bytes: u64,
    files: HashSet<Nid>,
    gone: usize,
}

impl Reader<'_> {
    fn all(&mut self, lines: &[Line]) -> Result<(), End> {
        for line in lines {
            self.go_on()?;
            match self.find(&line.path) {
                Ok(Some(nid)) => self.want(nid, line.offset, line.len)?,
                Ok(None) => self.gone = self.gone.saturating_add(1),
                Err(error) => return Err(failed(&error)),
            }
            if self.pending >= BATCH {
                self.read_batch()?;
            }
        }
        self.read_batch()?;
        self.settle(0)
    }

    fn go_on(&self) -> Result<(), End> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(End::Cancelled);
        }
        Ok(())
    }

    /// The regular file at a path, no link followed.
    fn find(&self, path: &[u8]) -> Result<Option<Nid>, LowerError> {
        let mut at = self.lower.root();
        for part in path.split(|&b| b == b'/').skip(1) {
            let Ok(name) = Name::new(part) else {
                return Ok(None);
            };
            at = match self.lower.lookup(at, &name) {
                Ok(Some(nid)) => nid,
                Ok(None) | Err(LowerError::WrongKind(_)) => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        let kind = self.lower.attr(at)?.kind;
        Ok((kind == Kind::File).then_some(at))
    }

    /// Adds a range of a file to the batch. All that is read ahead passes here.
    fn want(&mut self, nid: Nid, offset: u64, len: u64) -> Result<(), End> {
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            // A file of many pieces may have more of them than bytes worth reading.
            self.go_on()?;
            let extent = match self.lower.extent(nid, at) {
                Ok(Some(extent)) => extent,
                Ok(None) => break,
                Err(error) => return Err(failed(&error)),
            };
            let len = extent.len.min(end.saturating_sub(at));
            self.files.insert(nid);
            let cost = match extent.place {
                Place::Device { index, offset } => {
                    // What goes beyond the limit is not read; the rest is.
                    let len = len.min(self.limits.bytes.saturating_sub(self.spent));
                    self.wanted.push(Want {
                        blob: index,
                        start: offset,
                        end: offset.saturating_add(len),
                    });
                    self.pending = self.pending.saturating_add(len);
                    len
                }
                // Nothing to read, and not to be asked without end.
                Place::Hole | Place::Image(_) => 0,
            };
            self.spent = self.spent.saturating_add(cost.max(GRAIN));
            if self.spent >= self.limits.bytes {
                self.read_batch()?;
                self.settle(0)?;
                return Err(End::Bytes);
            }
            at = at.saturating_add(len);
        }
        if at == offset {
            self.gone = self.gone.saturating_add(1);
        }
        Ok(())
    }

    fn read_batch(&mut self) -> Result<(), End> {
        if let Some(why) = (self.limits.short_of_memory)() {
            return Err(End::Memory(why));
        }
        self.pending = 0;
        for want in in_disk_order(std::mem::take(&mut self.wanted)) {
            let mut at = want.start;
            while at < want.end {
                self.go_on()?;
                let len = (want.end.saturating_sub(at)).min(STEP);
                self.lower
                    .read_ahead(want.blob, at, len)
                    .map_err(|error| failed(&error))?;
                at = at.saturating_add(len);
                self.bytes = self.bytes.saturating_add(len);
                self.in_flight = self.in_flight.saturating_add(len);
                self.flying
                    .push_back((want.blob, at.saturating_sub(1), len));
                self.settle(WINDOW)?;
            }
        }
        Ok(())
    }

    /// Waits until at most `left` bytes are on their way.
    fn settle(&mut self, left: u64) -> Result<(), End> {
        while self.in_flight > left {
            let Some((blob, last, len)) = self.flying.pop_front() else {
                break;
            };
            self.go_on()?;
            self.lower
                .settle(blob, last)
                .map_err(|error| failed(&error))?;
            self.in_flight = self.in_flight.saturating_sub(len);
        }
        Ok(())
    }
}

fn failed(error: &LowerError) -> End {
    tracing::warn!("prefetch: {error}");
    End::Failed
}

/// By place on the disk; those near each other become one.
pub(super) fn in_disk_order(mut wanted: Vec<Want>) -> Vec<Want> {
    wanted.sort_unstable();
    let mut merged: Vec<Want> = Vec::new();
    for want in wanted {
        match merged.last_mut() {
            Some(last) if last.blob == want.blob && want.start <= last.end.saturating_add(GAP) => {
                last.end = last.end.max(want.end);
            }
            _ => merged.push(want),
        }
    }
    merged
}

/// Whether this machine has other uses for its memory.
fn memory_is_short() -> Option<&'static str> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    judge(&read("/proc/meminfo"), &read("/proc/pressure/memory"))
}

/// What the kernel says of its memory, judged. What it does not say (no PSI) is no reason.
pub(super) fn judge(meminfo: &str, pressure: &str) -> Option<&'static str> {
    let kib = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    if let (Some(total), Some(free)) = (kib("MemTotal:"), kib("MemAvailable:"))
        // A twentieth, 64 MiB at least.
        && free < (total / 20).max(64 << 10)
    {
        return Some("little memory is available");
    }
    // "some avg10=1.23 avg60=…": the share of the last ten seconds that somebody waited for memory.
    let waited: Option<f64> = pressure
        .lines()
        .find_map(|line| line.strip_prefix("some avg10="))
        .and_then(|rest| rest.split(' ').next()?.parse().ok());
    waited
        .is_some_and(|percent| percent >= 10.0)
        .then_some("programs wait for memory")
}
