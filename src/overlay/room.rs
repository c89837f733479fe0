//! Room that is about to come free on the upper's filesystem.
//!
//! A removed file takes its space until the kernel has given it up, and of that it tells (by
//! RELEASE and FORGET) a moment after unlink(2) or close(2) have returned. Who removes a file to
//! make room would still find none; so an operation that finds none waits for those moments.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::node::lock;
use super::{Error, Overlay, Result};

/// How long a file without a name is expected to be on its way out. One that a program keeps open
/// is there for longer, and costs an operation that finds no room this much.
const MOMENT: Duration = Duration::from_millis(200);

/// The inodes that live on without a name.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    count: Mutex<Count>,
    event: Condvar,
}

#[derive(Debug, Default)]
struct Count {
    leaving: usize,
    left: u64,
}

/// Leads to an inode of the upper that no name leads to.
#[derive(Debug)]
pub(super) struct Orphan {
    /// Taken when it ends, before anybody is told.
    fd: Option<Arc<OwnedFd>>,
    leaving: Arc<Leaving>,
}

impl Leaving {
    pub(super) fn orphan(self: &Arc<Self>, fd: Arc<OwnedFd>) -> Orphan {
        let mut count = lock(&self.count);
        count.leaving = count.leaving.saturating_add(1);
        Orphan {
            fd: Some(fd),
            leaving: Arc::clone(self),
        }
    }

    fn left(&self) -> u64 {
        lock(&self.count).left
    }

    /// Waits until another one has left since `before`; `false` if none is to be expected.
    fn await_one(&self, before: u64, until: Instant) -> bool {
        let still = |count: &mut Count| count.left == before && count.leaving > 0;
        let left = until.saturating_duration_since(Instant::now());
        let (count, _) = self
            .event
            .wait_timeout_while(lock(&self.count), left, still)
            .unwrap_or_else(PoisonError::into_inner);
        count.left != before
    }
}

impl Orphan {
    pub(super) fn fd(&self) -> Option<&Arc<OwnedFd>> {
        self.fd.as_ref()
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        drop(self.fd.take());
        let mut count = lock(&self.leaving.count);
        count.leaving = count.leaving.saturating_sub(1);
        count.left = count.left.wrapping_add(1);
        self.leaving.event.notify_all();
    }
}

impl Overlay {
    /// Runs an operation, and again for each removed file whose space came free meanwhile as long
    /// as there is no room for it. An operation that fails has changed nothing.
    pub(super) fn with_room<T>(&self, operation: impl Fn() -> Result<T>) -> Result<T> {
        let leaving = self.table.leaving();
        let mut until = None;
        loop {
            let before = leaving.left();
            match operation() {
                Err(
                    error @ Error::Upper {
                        errno: Errno::NOSPC | Errno::DQUOT,
                        ..
                    },
                ) => {
                    let until = *until.get_or_insert_with(|| Instant::now() + MOMENT);
                    if !leaving.await_one(before, until) {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }
}
