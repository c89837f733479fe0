//! What time it is, and what the processors have done.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The time since the epoch; none for a clock that is set before it.
#[must_use]
pub fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// The processor time that the calling thread has taken so far.
#[must_use]
pub fn thread_cpu() -> Duration {
    duration(clock_gettime(ClockId::ThreadCPUTime))
}

/// The processor time that all threads of this process have taken so far.
#[must_use]
pub fn process_cpu() -> Duration {
    duration(clock_gettime(ClockId::ProcessCPUTime))
}

/// These clocks begin at zero (clock_getres(2)).
fn duration(time: Timespec) -> Duration {
    let (sec, nsec) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(sec.unwrap_or_default(), nsec.unwrap_or_default())
}
