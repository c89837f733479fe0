//! Room that is about to come free on the upper's filesystem.
//!
//! A removed file takes its space until the kernel has given it up, and of that it tells (by
//! RELEASE and FORGET) a moment after unlink(2) or close(2) have returned. Who removes a file to
//! make room would still find none; so an operation that finds none waits for those moments.

use std::os::fd::{AsFd, OwnedFd};
#[cfg(test)]
use std::sync::MutexGuard;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::node::lock;
use super::quota::{self, Ledger};
use super::{Error, Overlay, Result};

/// How long a file without a name is expected to be on its way out. One that a program keeps open
/// is there for longer, and costs an operation that finds no room this much.
const MOMENT: Duration = Duration::from_millis(200);

/// Bytes free below which a filesystem is nearly full, be it ever so large.
const TIGHT: u64 = 64 << 20;

/// The same while removed files are on their way out.
const TIGHT_MEANWHILE: u64 = 1 << 30;

/// The inodes that live on without a name.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    count: Mutex<Count>,
    event: Condvar,
    /// Where they are counted until they have left.
    ledger: OnceLock<Arc<Ledger>>,
}

#[derive(Debug, Default)]
struct Count {
    leaving: usize,
    left: u64,
    #[cfg(test)]
    waiting: usize,
}

/// Leads to an inode of the upper that no name leads to, or soon none will.
#[derive(Debug)]
pub(super) struct Orphan {
    /// Taken when it ends, before anybody is told.
    fd: Option<Arc<OwnedFd>>,
    leaving: Arc<Leaving>,
    /// Whether its last name has gone: the end of one that kept its name makes no room.
    leaves: bool,
}

impl Leaving {
    /// What an inode is to go on with when its last name goes.
    pub(super) fn orphan(self: &Arc<Self>, fd: Arc<OwnedFd>) -> Orphan {
        Orphan {
            fd: Some(fd),
            leaving: Arc::clone(self),
            leaves: false,
        }
    }

    /// Inodes are counted, and taken off when they leave.
    pub(super) fn count_in(&self, ledger: &Arc<Ledger>) {
        self.ledger.get_or_init(|| Arc::clone(ledger));
    }

    fn left(&self) -> u64 {
        lock(&self.count).left
    }

    /// Whether there are any.
    fn some(&self) -> bool {
        lock(&self.count).leaving > 0
    }

    /// Waits until another one has left since `before`; `false` if none is to be expected, or it
    /// is too late.
    fn await_one(&self, before: u64, until: Instant) -> bool {
        let still = |count: &mut Count| count.left == before && count.leaving > 0;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let count = lock(&self.count);
        #[cfg(test)]
        let count = waiting(count, 1);
        let (count, _) = self
            .event
            .wait_timeout_while(count, left, still)
            .unwrap_or_else(PoisonError::into_inner);
        #[cfg(test)]
        let count = waiting(count, -1);
        count.left != before
    }
}

/// Notes for tests that somebody has begun to wait, or waits no more.
#[cfg(test)]
fn waiting(mut count: MutexGuard<'_, Count>, change: isize) -> MutexGuard<'_, Count> {
    count.waiting = count.waiting.saturating_add_signed(change);
    count
}

impl Orphan {
    /// Its last name has gone.
    pub(super) fn leave(&mut self) {
        if !self.leaves {
            self.leaves = true;
            let mut count = lock(&self.leaving.count);
            count.leaving = count.leaving.saturating_add(1);
        }
    }

    pub(super) fn fd(&self) -> Option<&Arc<OwnedFd>> {
        self.fd.as_ref()
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        let fd = self.fd.take();
        // Before its number can be another's.
        if self.leaves
            && let (Some(ledger), Some(fd)) = (self.leaving.ledger.get(), &fd)
        {
            quota::leaves(ledger, fd.as_fd());
        }
        drop(fd);
        if !self.leaves {
            return;
        }
        let mut count = lock(&self.leaving.count);
        count.leaving = count.leaving.saturating_sub(1);
        count.left = count.left.wrapping_add(1);
        self.leaving.event.notify_all();
    }
}

impl Overlay {
    /// Runs a [changing](Self::changing) operation, and again for each removed file whose space
    /// came free meanwhile as long as there is no room for it. An operation that fails has changed
    /// nothing.
    pub(super) fn with_room<T>(&self, operation: impl Fn() -> Result<T>) -> Result<T> {
        let leaving = self.table.leaving();
        let mut until = None;
        loop {
            let before = leaving.left();
            match self.changing(&operation) {
                Err(
                    error @ Error::Upper {
                        errno: Errno::NOSPC | Errno::DQUOT,
                        ..
                    },
                ) => {
                    // The log takes from the same room, and writers are not to know of it.
                    if !quota::is_exceeded(&error) && self.give_up_log() {
                        continue;
                    }
                    let until = *until.get_or_insert_with(|| Instant::now() + MOMENT);
                    if !leaving.await_one(before, until) {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }

    /// Whether the upper's filesystem is nearly full, or half full while removed files are on their
    /// way out: who writes to it is better served by [`Self::write`], which waits for room, than by
    /// the kernel alone.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        let Some(upper) = &self.upper else {
            return false;
        };
        // What cannot be told is no reason to be slow.
        rustix::fs::fstatvfs(upper.root()).is_ok_and(|s| {
            let at_most = |share: u64, bytes: u64| {
                s.f_bfree <= (s.f_blocks / share).min(bytes / s.f_frsize.max(1))
            };
            at_most(16, TIGHT) || self.table.leaving().some() && at_most(2, TIGHT_MEANWHILE)
        })
    }

    /// Whether an operation waits for room.
    #[cfg(test)]
    pub(super) fn waits_for_room(&self) -> bool {
        lock(&self.table.leaving().count).waiting > 0
    }
}
