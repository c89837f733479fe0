//! Looking for the next request for a moment before sleeping.
//!
//! A program that asks one thing after another has its next request ready some microseconds after
//! an answer. To sleep meanwhile costs more than the request itself: an idle CPU has to be woken,
//! in a virtual machine through the hypervisor. So where requests follow each other quickly, one
//! thread of the server keeps looking, and the others stand [aside](super::aside). One look in
//! vain, and it sleeps until they are quick again; where something else wants its CPU, it does not
//! look for a while.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::aside::{Aside, KeepAwake};
use super::pause::{Pause, nanoseconds};

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
    /// How many threads there are, and how many of them do not read: they answer, look or stand
    /// aside.
    threads: usize,
    away: AtomicUsize,
    since: Instant,
    /// When the last answer was given, in nanoseconds.
    answered: AtomicU64,
    /// Nobody looks.
    rests: Pause,
    looking: AtomicBool,
    aside: Aside,
}

/// A thread does not read.
#[derive(Debug)]
pub(super) struct Away<'a>(&'a AtomicUsize);

/// A request is being answered; looks for the next one when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    spin: &'a Spin,
    // Dropped after the look.
    _away: Away<'a>,
    began: u64,
    answered: Option<u64>,
    quick: bool,
}

impl Spin {
    /// Looks at `device`, /dev/fuse of the connection, from which so many threads read. Times are
    /// counted from `since`.
    pub(super) fn new(
        device: &OwnedFd,
        threads: usize,
        keep_awake: KeepAwake,
        since: Instant,
    ) -> io::Result<Self> {
        let many = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        Ok(Self {
            device: many.then(|| device.try_clone()).transpose()?,
            threads,
            away: AtomicUsize::new(0),
            since,
            answered: AtomicU64::new(0),
            rests: Pause::new(),
            looking: AtomicBool::new(false),
            aside: Aside::new(keep_awake),
        })
    }

    /// A request has come.
    pub(super) fn turn(&self) -> Turn<'_> {
        let away = self.away();
        let began = self.now();
        let gap = began.saturating_sub(self.answered.load(Ordering::Relaxed));
        Turn {
            spin: self,
            _away: away,
            began,
            answered: None,
            quick: gap < nanoseconds(WINDOW),
        }
    }

    /// What nobody waits for has come, perhaps much of it at once (FORGET): no program has its next
    /// request ready when it is done.
    pub(super) fn away(&self) -> Away<'_> {
        self.away.fetch_add(1, Ordering::Relaxed);
        Away(&self.away)
    }

    fn now(&self) -> u64 {
        nanoseconds(self.since.elapsed())
    }

    /// Waits a moment for the next request, unless another thread does.
    fn wait(&self, device: &OwnedFd) {
        if self.is_to_look() {
            self.look(device);
            self.looking.store(false, Ordering::Release);
        } else {
            self.aside.stand();
        }
    }

    /// No other thread reads or looks; from now on this one does.
    fn is_to_look(&self) -> bool {
        let another_reads = self.away.load(Ordering::Relaxed) < self.threads;
        !another_reads && !self.looking.swap(true, Ordering::Acquire)
    }

    fn look(&self, device: &OwnedFd) {
        if self.rests.lasts() {
            return;
        }
        let start = self.now();
        let mut last = start;
        let mut at_once = true;
        loop {
            let mut fds = [PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN)];
            // An error is the reader's to find.
            if poll(&mut fds, Some(&AT_ONCE)) != Ok(0) {
                self.aside.found(at_once);
                break;
            }
            at_once = false;
            rustix::thread::sched_yield();
            let now = self.now();
            if now.saturating_sub(last) > nanoseconds(INTERRUPTED) {
                self.rests.begin(REST);
                break;
            }
            if now.saturating_sub(start) > nanoseconds(WINDOW) {
                break;
            }
            last = now;
        }
    }
}

impl Turn<'_> {
    /// When the request came, in nanoseconds since the time that all are counted from.
    pub(super) fn began(&self) -> u64 {
        self.began
    }

    /// The request has been answered; gives when. The clock is looked at once.
    pub(super) fn answered(&mut self) -> u64 {
        *self.answered.get_or_insert_with(|| self.spin.now())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = self.answered();
        self.spin.answered.store(now, Ordering::Relaxed);
        if let Some(device) = &self.spin.device {
            let took = now.saturating_sub(self.began);
            self.spin.aside.answered(Duration::from_nanos(took));
            if self.quick {
                self.spin.wait(device);
            }
        }
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one thread.
    fn spin(reader: &OwnedFd) -> Spin {
        Spin::new(reader, 1, KeepAwake::Never, Instant::now()).unwrap()
    }

    #[test]
    fn looks_only_where_requests_are_quick() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let spin = spin(&reader);
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
    fn what_nobody_waits_for_is_no_request() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let spin = Spin::new(&reader, 2, KeepAwake::Never, Instant::now()).unwrap();
        let chore = spin.away();
        assert_eq!(spin.away.load(Ordering::Relaxed), 1);
        drop(chore);
        assert_eq!(spin.away.load(Ordering::Relaxed), 0);
        assert_eq!(spin.answered.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_thread_reads_or_looks() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let spin = Spin::new(&reader, 2, KeepAwake::Never, Instant::now()).unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        let first = spin.turn();
        assert!(!spin.is_to_look(), "the second reads");
        let second = spin.turn();
        assert!(spin.is_to_look());
        assert!(!spin.is_to_look(), "the first does");
        spin.wait(&reader);
        assert!(spin.looking.load(Ordering::Relaxed), "still its turn");
        drop((first, second));
        assert_eq!(spin.away.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn rests_where_the_cpu_is_wanted() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let spin = spin(&reader);
        spin.rests.until.store(u64::MAX, Ordering::Relaxed);
        // Returns at once, and by no look.
        spin.look(&reader);
        assert!(!spin.looking.load(Ordering::Relaxed));
        assert_eq!(spin.rests.until.load(Ordering::Relaxed), u64::MAX);
    }
}
