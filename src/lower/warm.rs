//! What is read of an image: told to who wants to know, and read ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use super::{Lower, LowerError, Nid};

/// What was read of a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// The file.
    pub nid: Nid,
    /// First byte.
    pub offset: u64,
    /// Bytes, > 0.
    pub len: u64,
}

/// Where touches go: a queue that nobody waits for. `None` through it asks its reader to end.
#[derive(Debug)]
pub struct Watch {
    queue: SyncSender<Option<Touch>>,
    dropped: AtomicU64,
}

impl Watch {
    /// A watch that sends to `queue`.
    #[must_use]
    pub fn new(queue: SyncSender<Option<Touch>>) -> Self {
        Self {
            queue,
            dropped: AtomicU64::new(0),
        }
    }

    /// Touches that the queue had no room for.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn note(&self, touch: Touch) {
        if self.queue.try_send(Some(touch)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Lower {
    /// Tells `watch` of each read from now on.
    pub fn watch(&mut self, watch: Arc<Watch>) {
        self.watch = Some(watch);
    }

    /// Whether each read must come to [`Self::read`], so that it can be told of.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    /// Has the kernel begin to read bytes of blob `blob` into its page cache, what of them lies in
    /// the blob. At most some 128 KiB at once are sure to be read whole.
    ///
    /// # Errors
    /// [`LowerError::Damaged`] where there is no such blob; [`LowerError::Io`].
    pub fn read_ahead(&self, blob: u16, offset: u64, len: u64) -> Result<(), LowerError> {
        let blob = self.blob(blob)?;
        let rest = blob.spec().identity.len.saturating_sub(offset);
        blob.will_need(offset, len.min(rest))
    }

    /// Waits until the byte at `offset` of blob `blob` is in the page cache.
    ///
    /// # Errors
    /// As [`Self::read_ahead`].
    pub fn settle(&self, blob: u16, offset: u64) -> Result<(), LowerError> {
        self.blob(blob)?.settle(offset)
    }

    fn blob(&self, blob: u16) -> Result<&super::Blob, LowerError> {
        let blob = self.blobs.get(usize::from(blob));
        blob.ok_or_else(|| self.damaged("a blob that does not exist"))
    }
}
