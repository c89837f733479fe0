//! What a server has in memory without need: pages of the index that it has looked at, which the
//! kernel keeps for all mounts of an image, and what it has freed.
//!
//! Nothing is done for a request: from time to time somebody looks, seldom where nothing happens.

use std::time::Duration;

use crate::lower::Lower;
use crate::sys::clock::process_cpu;
use crate::sys::resident::{let_go_of_code, resident, trim_heap};

/// How long until the next look while requests are answered.
const SOON: Duration = Duration::from_secs(1);
/// And the longest while none are.
const LATE: Duration = Duration::from_secs(8);

/// So much more than at the last look is worth an attempt.
const MORE: u64 = 1 << 20;

/// A server that has used less of the processor since the last look is at rest.
const REST: Duration = Duration::from_millis(10);

/// Looks after the memory of a server.
#[derive(Debug)]
pub(super) struct Memory {
    /// What was in memory when it last rested, or less.
    was: u64,
    /// The processor's time that was used until then.
    cpu: Duration,
    /// There may be something to let go of when it rests.
    untidy: bool,
    pause: Duration,
}

impl Memory {
    /// Of a server that is ready to serve: what ran until then does not run again.
    pub(super) fn new() -> Self {
        if let Err(error) = let_go_of_code() {
            tracing::debug!("the program stays in memory: {error}");
        }
        trim_heap();
        Self {
            // Somebody may be looking around in the mount already.
            was: 0,
            cpu: process_cpu(),
            untidy: false,
            pause: SOON,
        }
    }

    /// How long until the next look.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// Looks, and lets go of what is not needed.
    pub(super) fn look(&mut self, lower: &Lower) {
        let cpu = process_cpu();
        let rests = cpu.saturating_sub(self.cpu) < REST;
        self.cpu = cpu;
        let Ok(now) = resident() else { return };
        self.untidy |= !rests || now.saturating_sub(self.was) >= MORE;
        if self.untidy
            && let Err(error) = lower.let_go_of_index()
        {
            tracing::debug!("the index stays in memory: {error}");
        }
        // Where requests are being answered, much of it comes back in the same moment.
        self.was = if rests && std::mem::take(&mut self.untidy) {
            trim_heap();
            resident().unwrap_or(now)
        } else {
            self.was.min(now)
        };
        self.pause = if rests {
            self.pause.saturating_mul(2).min(LATE)
        } else {
            SOON
        };
    }
}
