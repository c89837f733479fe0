//! What a start-up reads: noted once, brought into the page cache the next time.
//!
//! A **record** is a text file that says which byte ranges of which files of an image were read
//! first, in order ([`mod@format`]). A recording mount writes one ([`Recording`]); a mount that is
//! given one reads those places of the blobs ahead of its programs ([`replay`]).
//!
//! - Paths decide, so a record of an image serves the next build of it, and what a record names
//!   that is not there is passed over and counted.
//! - A record is from outside: it is read whole and checked before anything is mounted, and its
//!   paths are looked up in the image, following no link.
//! - Nothing here *ever* delays a request, the readiness of a mount or its end: touches go through
//!   a queue that drops when it is full, and reading ahead stops between two small steps.

pub mod format;
pub mod record;
pub mod replay;

use std::sync::Arc;

pub use format::{Profile, ProfileError};
pub use record::Recording;
pub use replay::Limits;

use crate::overlay::Overlay;

/// What is asked of a mount.
#[derive(Debug, Default)]
pub struct Prefetch {
    /// Note what is read. Its watch must have been given to the image
    /// ([`crate::lower::Lower::watch`]).
    pub record: Option<Recording>,
    /// Read this ahead.
    pub replay: Option<(Profile, Limits)>,
}

/// What goes on beside a mount.
#[derive(Debug, Default)]
pub struct Running {
    recorder: Option<record::Recorder>,
    replay: Option<replay::Replay>,
}

impl Prefetch {
    /// Begins, in threads of its own. What cannot be begun is logged: a mount does not need it.
    #[must_use]
    pub fn start(self, overlay: &Arc<Overlay>) -> Running {
        let recorder = self.record.and_then(|recording| {
            recording
                .start(Arc::clone(overlay))
                .map_err(|error| tracing::warn!("nothing is recorded: {error}"))
                .ok()
        });
        let replay = self.replay.and_then(|(profile, limits)| {
            replay::Replay::start(Arc::clone(overlay), profile, limits)
                .map_err(|error| tracing::warn!("nothing is prefetched: {error}"))
                .ok()
        });
        Running { recorder, replay }
    }
}

impl Running {
    /// Asks the reading ahead to end; does not wait.
    pub fn cancel(&self) {
        if let Some(replay) = &self.replay {
            replay.cancel();
        }
    }

    /// Ends all and waits for it. The record is whole then.
    pub fn finish(self) {
        self.cancel();
        if let Some(replay) = self.replay {
            replay.finish();
        }
        if let Some(recorder) = self.recorder {
            recorder.finish();
        }
    }
}

#[cfg(test)]
mod tests;
