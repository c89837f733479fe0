//! Looking for the next request for a moment before sleeping.
//!
//! A program that asks one thing after another has its next request ready some microseconds after
//! an answer. To sleep meanwhile costs more than the request itself: an idle CPU has to be woken,
//! in a virtual machine through the hypervisor. So where requests follow each other quickly, one
//! thread of the server keeps looking. One look in vain, and it sleeps until they are quick again;
//! where something else wants its CPU, it does not look for a while.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long to look; requests that are further apart are not waited for.
const WINDOW: Duration = Duration::from_micros(100);

/// A look that takes so long was interrupted by something else that computes. Less is the program
/// whose next request we look for, on this CPU, or the hypervisor.
const INTERRUPTED: Duration = Duration::from_millis(1);

/// How long not to look then.
const REST: Duration = Duration::from_millis(10);

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// When there were requests, and who looks for more.
#[derive(Debug)]
pub(super) struct Spin {
    /// `None`: with one CPU, whoever is to ask would wait for us.
    device: Option<OwnedFd>,
    since: Instant,
    /// When the last answer was given, in nanoseconds.
    answered: AtomicU64,
    /// When to look again at the earliest, likewise.
    rests_until: AtomicU64,
    looking: AtomicBool,
}

/// A request is being answered; looks for the next one when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    spin: &'a Spin,
    quick: bool,
}

impl Spin {
    /// Looks at `device`, /dev/fuse of the connection.
    pub(super) fn new(device: &OwnedFd) -> io::Result<Self> {
        let many = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        Ok(Self {
            device: many.then(|| device.try_clone()).transpose()?,
            since: Instant::now(),
            answered: AtomicU64::new(0),
            rests_until: AtomicU64::new(0),
            looking: AtomicBool::new(false),
        })
    }

    /// A request has come.
    pub(super) fn turn(&self) -> Turn<'_> {
        let gap = self
            .now()
            .saturating_sub(self.answered.load(Ordering::Relaxed));
        let quick = gap < nanoseconds(WINDOW);
        Turn { spin: self, quick }
    }

    fn now(&self) -> u64 {
        nanoseconds(self.since.elapsed())
    }

    fn look(&self, device: &OwnedFd) {
        let start = self.now();
        if start < self.rests_until.load(Ordering::Relaxed)
            || self.looking.swap(true, Ordering::Acquire)
        {
            return;
        }
        let mut last = start;
        loop {
            let mut fds = [PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN)];
            // An error is the reader's to find.
            if poll(&mut fds, Some(&AT_ONCE)) != Ok(0) {
                break;
            }
            rustix::thread::sched_yield();
            let now = self.now();
            if now.saturating_sub(last) > nanoseconds(INTERRUPTED) {
                let until = now.saturating_add(nanoseconds(REST));
                self.rests_until.store(until, Ordering::Relaxed);
                break;
            }
            if now.saturating_sub(start) > nanoseconds(WINDOW) {
                break;
            }
            last = now;
        }
        self.looking.store(false, Ordering::Release);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(device) = &self.spin.device else {
            return;
        };
        let now = self.spin.now();
        self.spin.answered.store(now, Ordering::Relaxed);
        if self.quick {
            self.spin.look(device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_only_where_requests_are_quick() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let spin = Spin::new(&reader).unwrap();
        // Long ago.
        spin.answered.store(0, Ordering::Relaxed);
        while spin.since.elapsed() <= WINDOW {
            std::thread::yield_now();
        }
        assert!(!spin.turn().quick);
        // Long to come: the clock cannot run so far ahead.
        spin.answered.store(u64::MAX, Ordering::Relaxed);
        let turn = spin.turn();
        assert!(turn.quick);
        rustix::io::write(&writer, b"x").unwrap();
        drop(turn);
        assert!(!spin.looking.load(Ordering::Relaxed));
        assert!(spin.answered.load(Ordering::Relaxed) < u64::MAX);
    }

    #[test]
    fn one_thread_looks() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let spin = Spin::new(&reader).unwrap();
        spin.looking.store(true, Ordering::Relaxed);
        spin.look(&reader);
        assert!(spin.looking.load(Ordering::Relaxed), "another's turn");
    }

    #[test]
    fn rests_where_the_cpu_is_wanted() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let spin = Spin::new(&reader).unwrap();
        spin.rests_until.store(u64::MAX, Ordering::Relaxed);
        // Returns at once, and by no look.
        spin.look(&reader);
        assert!(!spin.looking.load(Ordering::Relaxed));
        assert_eq!(spin.rests_until.load(Ordering::Relaxed), u64::MAX);
    }
}
