//! Times that several threads know of without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Something is not to be done until a moment.
#[derive(Debug)]
pub(super) struct Pause {
    since: Instant,
    /// In nanoseconds.
    pub(super) until: AtomicU64,
}

impl Pause {
    /// One that is over.
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            until: AtomicU64::new(0),
        }
    }

    /// It lasts so long from now on.
    pub(super) fn begin(&self, length: Duration) {
        let until = nanoseconds(self.since.elapsed()).saturating_add(nanoseconds(length));
        self.until.store(until, Ordering::Relaxed);
    }

    pub(super) fn lasts(&self) -> bool {
        nanoseconds(self.since.elapsed()) < self.until.load(Ordering::Relaxed)
    }
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lasts_from_its_beginning_to_its_end() {
        let pause = Pause::new();
        assert!(!pause.lasts());
        pause.begin(Duration::MAX);
        assert!(pause.lasts());
        pause.begin(Duration::ZERO);
        assert!(!pause.lasts());
    }
}
