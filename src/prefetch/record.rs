//! The recorder: from touches to a record.
//!
//! Touches come through a bounded queue; what it had no room for is missing in the record, and
//! counted. One thread merges them, page by page, and appends each range that is new to the file,
//! in order, when nothing has come for a moment: a mount that is killed loses that moment.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::format::{self, GRAIN, MAX_LINES, ProfileError};
use crate::lower::{Lower, Nid, Touch, Watch};
use crate::overlay::Overlay;

/// Touches that may wait: the reads of some milliseconds of a busy mount.
const QUEUE: usize = 1 << 14;
/// A pause after which what is known is written.
const PAUSE: Duration = Duration::from_millis(250);
/// Bytes to write at once.
const ENOUGH: usize = 64 << 10;

/// A record that is about to be made.
#[derive(Debug)]
pub struct Recording {
    file: File,
    path: PathBuf,
    fingerprint: u64,
    sender: SyncSender<Option<Touch>>,
    queue: Receiver<Option<Touch>>,
    watch: Arc<Watch>,
}

impl Recording {
    /// Begins a record of the image with this fingerprint in the file at `path`: a new one, or one
    /// that is empty or an earlier record, which is given up when the mount is served.
    ///
    /// # Errors
    /// [`ProfileError::Foreign`] for a file that holds something else; [`ProfileError::Io`].
    pub fn create(path: &Path, fingerprint: u64) -> Result<Self, ProfileError> {
        let io = |source| ProfileError::Io {
            path: path.to_owned(),
            source,
        };
        // O_NONBLOCK: a FIFO in its place must not hold us up.
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .mode(0o644)
            .open(path)
            .map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(ProfileError::Foreign(path.to_owned()));
        }
        let mut start = Vec::new();
        (&file).take(64).read_to_end(&mut start).map_err(io)?;
        if !start.is_empty() && !format::is_record(&start) {
            return Err(ProfileError::Foreign(path.to_owned()));
        }
        let (sender, queue) = sync_channel(QUEUE);
        Ok(Self {
            file,
            path: path.to_owned(),
            fingerprint,
            watch: Arc::new(Watch::new(sender.clone())),
            sender,
            queue,
        })
    }

    /// For [`Lower::watch`].
    #[must_use]
    pub fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    /// Begins to write.
    pub(super) fn start(mut self, overlay: Arc<Overlay>) -> io::Result<Recorder> {
        // Not before: a mount that fails leaves the earlier record as it is.
        self.file.set_len(0)?;
        self.file.rewind()?;
        let mut head = Vec::new();
        format::write_head(self.fingerprint, &mut head);
        self.file.write_all(&head)?;
        let end = self.sender.clone();
        let thread = std::thread::Builder::new()
            .name("tarnfs-record".to_owned())
            .spawn(move || self.write(overlay.lower()))?;
        Ok(Recorder { end, thread })
    }

    fn write(self, lower: &Lower) {
        let mut notes = Notes::new(self.file);
        loop {
            match self.queue.recv_timeout(PAUSE) {
                Ok(Some(touch)) => notes.note(lower, touch),
                Ok(None) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    notes.write(lower);
                    // Nothing is left to write until the next touch.
                    match self.queue.recv() {
                        Ok(Some(touch)) => notes.note(lower, touch),
                        Ok(None) | Err(_) => break,
                    }
                }
            }
        }
        notes.write(lower);
        let dropped = self.watch.dropped();
        tracing::info!(
            record = %self.path.display(),
            files = notes.files.len(),
            ranges = notes.lines,
            dropped,
            "recorded"
        );
    }
}

/// The thread that writes a record.
#[derive(Debug)]
pub(super) struct Recorder {
    end: SyncSender<Option<Touch>>,
    thread: JoinHandle<()>,
}

impl Recorder {
    /// Writes what is left, and waits for it.
    pub(super) fn finish(self) {
        // It fails where the thread is gone already.
        if self.end.send(None).is_err() || self.thread.join().is_err() {
            tracing::error!("the recorder died");
        }
    }
}

/// What has been noted.
#[derive(Debug)]
struct Notes {
    file: File,
    files: HashMap<Nid, Ranges>,
    /// What came last, all of one file, not in `out` yet: it may grow.
    last: Option<(Nid, Ranges)>,
    out: Vec<u8>,
    lines: usize,
    /// The file could not be written, or is full.
    closed: bool,
}

impl Notes {
    fn new(file: File) -> Self {
        Self {
            file,
            files: HashMap::new(),
            last: None,
            out: Vec::new(),
            lines: 0,
            closed: false,
        }
    }

    fn note(&mut self, lower: &Lower, touch: Touch) {
        if self.closed {
            return;
        }
        let start = touch.offset / GRAIN * GRAIN;
        let end = touch.offset.saturating_add(touch.len);
        let end = end.checked_next_multiple_of(GRAIN).unwrap_or(end);
        let new = self.files.entry(touch.nid).or_default().add(start, end);
        if new.is_empty() {
            return;
        }
        if self.last.as_ref().is_some_and(|(nid, _)| *nid != touch.nid) {
            self.push_last(lower);
        }
        let (_, last) = self
            .last
            .get_or_insert_with(|| (touch.nid, Ranges::default()));
        for (start, end) in new {
            last.add(start, end);
        }
        if self.out.len() >= ENOUGH {
            self.write_out();
        }
    }

    /// Turns what came last into lines.
    fn push_last(&mut self, lower: &Lower) {
        let Some((nid, ranges)) = self.last.take() else {
            return;
        };
        let path = match lower.paths(nid) {
            Ok(paths) => paths.into_iter().next(),
            Err(error) => {
                tracing::warn!("a file that was read has no path: {error}");
                None
            }
        };
        let Some(path) = path else { return };
        for (start, end) in ranges.0 {
            if self.lines == MAX_LINES {
                tracing::warn!("the record is full");
                self.write_out();
                self.closed = true;
                return;
            }
            self.lines = self.lines.saturating_add(1);
            let len = end.saturating_sub(start);
            format::write_line(start, len, &path, &mut self.out);
        }
    }

    fn write(&mut self, lower: &Lower) {
        self.push_last(lower);
        self.write_out();
    }

    fn write_out(&mut self) {
        if self.out.is_empty() || self.closed {
            return;
        }
        if let Err(error) = self.file.write_all(&self.out) {
            tracing::warn!("the record ends here: {error}");
            self.closed = true;
        }
        self.out.clear();
    }
}

/// Disjoint ranges that do not touch each other: start → end.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range; answers those parts of it that are new, in order.
    pub(super) fn add(&mut self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut new = Vec::new();
        let (mut from, mut to) = (start, end);
        let mut at = start;
        // Those that reach `start` or begin up to `end`, the last one first.
        let mut met: Vec<(u64, u64)> = self
            .0
            .range(..=end)
            .rev()
            .take_while(|&(_, &e)| e >= start)
            .map(|(&s, &e)| (s, e))
            .collect();
        met.reverse();
        for (s, e) in met {
            if at < s {
                new.push((at, s));
            }
            at = at.max(e);
            from = from.min(s);
            to = to.max(e);
            self.0.remove(&s);
        }
        if at < end {
            new.push((at, end));
        }
        self.0.insert(from, to);
        new
    }
}
