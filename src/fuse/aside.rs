//! Standing aside while one thread answers requests that follow each other quickly.
//!
//! Threads that wait in read(2) are woken for each request, though the one that looks for it
//! ([`spin`](super::spin)) has it first: a waking for nothing that the asking program pays for. So
//! while one thread answers alone, the others do not read. They come back when requests become
//! slow, or more than one thread can answer.
//!
//! The first of them has the watch: it ends the burst when it is over, and keeps this machine's
//! idle CPUs from halting meanwhile where that is wanted. The program that waits for its answer
//! sleeps on such a CPU, and in a virtual machine to wake it takes longer than to answer.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::pause::Pause;
use crate::sys::idle::{self, Idle};

/// How often it is seen whether the burst goes on.
const TICK: Duration = Duration::from_millis(1);

/// So many requests in a tick are a burst.
const BURST: u64 = 10;

/// How long all threads read after it was seen that one does not do.
const TOGETHER: Duration = Duration::from_millis(10);

/// A request that takes so long is not to keep others waiting.
const SLOW: Duration = Duration::from_micros(500);

/// So many requests in a row that were there before they were looked for are more than one thread
/// can answer. One program has two under way at most: a file that it closes and one that it opens.
const FULL: u32 = 32;

/// More CPUs than that are not kept awake for one program.
const MANY_CPUS: usize = 4;

/// When to keep idle CPUs from halting while requests follow each other quickly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeepAwake {
    /// In a virtual machine of up to 4 CPUs that halts them through its hypervisor.
    #[default]
    Auto,
    /// On every machine.
    Always,
    /// Nowhere.
    Never,
}

/// Where threads stand aside.
#[derive(Debug)]
pub(super) struct Aside {
    idle: Option<Idle>,
    /// Requests answered so far.
    answered: AtomicU64,
    /// Those that were there at once, without one between that was not.
    at_once: AtomicU32,
    /// All threads read.
    together: Pause,
    watched: Mutex<bool>,
    relieved: Condvar,
}

/// Has the watch; gives it up and calls the others back when dropped.
struct Watch<'a>(&'a Aside);

impl KeepAwake {
    /// The right to do it, where it is to be done and may be.
    #[must_use]
    pub fn idle(self) -> Option<Idle> {
        let wanted = match self {
            Self::Auto => idle::halts_through_hypervisor() && idle::cpus() <= MANY_CPUS,
            Self::Always => true,
            Self::Never => false,
        };
        if !wanted {
            return None;
        }
        match Idle::open() {
            Ok(idle) => Some(idle),
            Err(error) if self == Self::Always => {
                tracing::warn!("cannot keep idle CPUs from halting: {error}");
                None
            }
            Err(error) => {
                tracing::debug!("idle CPUs halt: {error}");
                None
            }
        }
    }
}

impl Aside {
    pub(super) fn new(keep_awake: KeepAwake) -> Self {
        Self {
            idle: keep_awake.idle(),
            answered: AtomicU64::new(0),
            at_once: AtomicU32::new(0),
            together: Pause::new(),
            watched: Mutex::new(false),
            relieved: Condvar::new(),
        }
    }

    /// A request was answered, which took so long.
    pub(super) fn answered(&self, took: Duration) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        if took > SLOW {
            self.together.begin(TOGETHER);
        }
    }

    /// Another request came: it was there already when it was first looked for, or only later.
    pub(super) fn found(&self, at_once: bool) {
        if !at_once {
            self.at_once.store(0, Ordering::Relaxed);
        } else if self.at_once.fetch_add(1, Ordering::Relaxed) >= FULL {
            self.at_once.store(0, Ordering::Relaxed);
            self.together.begin(TOGETHER);
        }
    }

    /// Stands aside while another thread answers a burst of requests.
    pub(super) fn stand(&self) {
        if self.together.lasts() {
            return;
        }
        let Some(watch) = self.watch() else {
            return;
        };
        let mut awake = None;
        let mut before = self.answered.load(Ordering::Relaxed);
        loop {
            std::thread::sleep(TICK);
            let now = self.answered.load(Ordering::Relaxed);
            if self.together.lasts() || now.saturating_sub(before) < BURST {
                break;
            }
            before = now;
            if awake.is_none() {
                // Where it is refused, it goes on as without.
                awake = self.idle.as_ref().and_then(|idle| idle.keep_awake().ok());
            }
        }
        drop(awake);
        drop(watch);
    }

    /// Takes the watch; waits until it is given up and gives `None` if another has it.
    fn watch(&self) -> Option<Watch<'_>> {
        let mut watched = self.watched();
        if !*watched {
            *watched = true;
            return Some(Watch(self));
        }
        drop(self.relieved.wait_while(watched, |watched| *watched));
        None
    }

    fn watched(&self) -> MutexGuard<'_, bool> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        *self.0.watched() = false;
        self.0.relieved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_when_the_burst_is_over() {
        let aside = Aside::new(KeepAwake::Never);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| aside.stand());
            }
        });
        assert!(!*aside.watched());
    }

    #[test]
    fn waits_for_who_has_the_watch() {
        let aside = Aside::new(KeepAwake::Never);
        let watch = aside.watch().unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| aside.watch().is_none());
            drop(watch);
            // It waited, or came so late that it has the watch itself: nobody is left behind.
            let _ = second.join().unwrap();
        });
        assert!(!*aside.watched());
    }

    #[test]
    fn a_slow_request_calls_all_together() {
        let aside = Aside::new(KeepAwake::Never);
        aside.answered(SLOW);
        assert!(!aside.together.lasts());
        aside.together.until.store(0, Ordering::Relaxed);
        aside.answered(SLOW + Duration::from_nanos(1));
        assert!(aside.together.until.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn so_do_more_requests_than_one_can_answer() {
        let aside = Aside::new(KeepAwake::Never);
        let called = || aside.together.until.load(Ordering::Relaxed) > 0;
        for _ in 0..10 {
            for _ in 0..FULL {
                aside.found(true);
            }
            aside.found(false);
        }
        assert!(!called());
        for _ in 0..=FULL {
            aside.found(true);
        }
        assert!(called());
    }

    #[test]
    fn together_nobody_stands_aside() {
        let aside = Aside::new(KeepAwake::Never);
        aside.together.until.store(u64::MAX, Ordering::Relaxed);
        let watch = aside.watch().unwrap();
        // Else it waited for ever.
        aside.stand();
        drop(watch);
    }

    #[test]
    fn never_asks_for_no_right() {
        assert!(KeepAwake::Never.idle().is_none());
    }
}
