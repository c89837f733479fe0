//! Holding back, for a moment, all that a connection would write.

use std::sync::Arc;

use super::opens::Opens;
use crate::overlay::{self, Kept};

/// Freezes what a connection serves; may outlive it, and keeps nothing of it but counts.
#[derive(Debug, Clone)]
pub struct Freezer {
    overlay: overlay::Freezer,
    opens: Arc<Opens>,
}

/// While it lives, nothing is written: [`overlay::Frozen`].
#[derive(Debug)]
#[must_use = "changes go on as soon as it is dropped"]
pub struct Frozen {
    frozen: overlay::Frozen,
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

/// Why what is overwritten cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// The kernel may begin to write to files by itself (`Settings::upper_passthrough`).
    #[error(
        "files may be opened for writing past the server: what they overwrite is kept with --upper-passthrough off only"
    )]
    MayBeWrittenPastServer,
    /// There is no place for what is overwritten.
    #[error(transparent)]
    Overlay(#[from] overlay::Error),
}

impl Freezer {
    pub(super) fn new(overlay: overlay::Freezer, opens: Arc<Opens>) -> Self {
        Self { overlay, opens }
    }

    /// Waits until no change is under way, and holds back those that begin while the guard lives:
    /// [`Overlay::freeze`](crate::overlay::Overlay::freeze). What the upper holds then is said of
    /// [`overlay::Frozen`].
    ///
    /// # Errors
    /// [`FreezeError::WrittenPastServer`]; nothing is held back then.
    pub fn freeze(&self) -> Result<Frozen, FreezeError> {
        let frozen = self.overlay.freeze();
        // Counted before the overlay is asked to open: none can be missed now.
        match self.opens.written_past() {
            0 => Ok(Frozen {
                frozen,
                opens: Arc::clone(&self.opens),
            }),
            n => Err(FreezeError::WrittenPastServer(n)),
        }
    }

    /// How many files are open for writing past the server.
    #[must_use]
    pub fn written_past(&self) -> u64 {
        self.opens.written_past()
    }
}

impl Frozen {
    /// Lets writes go on, but keeps what they overwrite of some files:
    /// [`overlay::Frozen::keep`].
    ///
    /// # Errors
    /// [`KeepError`], and what was frozen, which
    /// still is.
    pub fn keep(self, files: impl IntoIterator<Item = u64>) -> Result<Kept, (Self, KeepError)> {
        let Self { frozen, opens } = self;
        if opens.may_write_past() {
            let error = KeepError::MayBeWrittenPastServer;
            return Err((Self { frozen, opens }, error));
        }
        frozen
            .keep(files)
            .map_err(|(frozen, error)| (Self { frozen, opens }, error.into()))
    }
}
