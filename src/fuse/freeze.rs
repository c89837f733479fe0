//! Holding back, for a moment, all that a connection would write.

use std::sync::Arc;

use super::opens::Opens;
use crate::overlay::{self, Frozen};

/// Freezes what a connection serves; may outlive it, and keeps nothing of it but counts.
#[derive(Debug, Clone)]
pub struct Freezer {
    overlay: overlay::Freezer,
    opens: Arc<Opens>,
}

/// Why writes cannot be held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreezeError {
    /// The kernel writes to files by itself (`Settings::upper_passthrough`).
    #[error(
        "{0} files are open for writing past the server: mount with --upper-passthrough off, or close them"
    )]
    WrittenPastServer(u64),
}

impl Freezer {
    pub(super) fn new(overlay: overlay::Freezer, opens: Arc<Opens>) -> Self {
        Self { overlay, opens }
    }

    /// Waits until no change is under way, and holds back those that begin while the guard lives:
    /// [`Overlay::freeze`](crate::overlay::Overlay::freeze). What the upper holds then is said of
    /// [`Frozen`].
    ///
    /// # Errors
    /// [`FreezeError::WrittenPastServer`]; nothing is held back then.
    pub fn freeze(&self) -> Result<Frozen, FreezeError> {
        let frozen = self.overlay.freeze();
        // Counted before the overlay is asked to open: none can be missed now.
        match self.opens.written_past() {
            0 => Ok(frozen),
            n => Err(FreezeError::WrittenPastServer(n)),
        }
    }

    /// How many files are open for writing past the server.
    #[must_use]
    pub fn written_past(&self) -> u64 {
        self.opens.written_past()
    }
}
