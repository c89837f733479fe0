//! The gate that every changing operation passes, and that can be closed.
//!
//! Passing it is one atomic addition, and one more when the operation is done; only who finds it
//! closed takes a lock. It is before all locks in the order of [`overlay`](super): who has passed
//! never waits for it again, so that what is under way always comes to its end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::keep::{Kept, Log};
use super::node::lock;
use super::order::{Class, Held, Lock};
use super::{Overlay, ROOT_INO, Result};
use crate::upper::Upper;
use crate::upper::work::Beside;

/// Of [`Gate::state`]: closed. The bits below count who has passed.
const CLOSED: u64 = 1 << 63;

/// Where changing operations pass.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: AtomicU64,
    turn: Mutex<Turn>,
    event: Condvar,
    /// Whether there is a log: looked at by who has passed.
    keeping: AtomicBool,
    log: Mutex<Option<Arc<Log>>>,
    /// Where logs are made.
    beside: Beside,
    /// How many are held back.
    #[cfg(test)]
    held: std::sync::atomic::AtomicUsize,
}

#[derive(Debug, Default)]
struct Turn {
    /// Somebody has closed it or is about to, or keeps what is overwritten: the next one waits.
    taken: bool,
    /// It is closed, or about to be.
    shut: bool,
}

/// It is this one's turn until this is dropped.
#[derive(Debug)]
pub(super) struct Taken(Arc<Gate>);

/// The gate is closed until this is dropped.
#[derive(Debug)]
struct Shut(Arc<Gate>);

/// Has passed the gate; is done when dropped.
#[derive(Debug)]
pub(super) struct Pass<'a>(&'a Gate);

/// While it lives, the overlay changes nothing in its upper: [`Overlay::freeze`].
///
/// In the upper then is
/// - the result of every operation that was answered before, and of no other: names, attributes,
///   marks, and the bytes of every write(2) that has returned;
/// - what was stored through shared maps, as far as the kernel had sent it. To have all of it, let
///   nobody store any more, call syncfs(2) on the mount, and wait until the connection has no
///   request waiting (`/sys/fs/fuse/connections/N/waiting` says 0), since syncfs(2) on a FUSE mount
///   does not wait for what it has begun: and all that before freezing, since what it sends is held
///   back like any other write.
///
/// Not in the upper, or not consistent with the rest:
/// - what the kernel writes past the server to files of the upper that it has been passed
///   (`fuse::Settings::upper_passthrough`): that goes on meanwhile. `fuse::Freezer` says so;
/// - files that have no name any more: they are nowhere in the upper;
/// - `st_atime`, which reading changes.
///
/// In the work directory there may be a file that nobody sees yet, but not while this lives: an
/// operation is done or has not begun. All of it is in the page cache; on disk only after fsync(2)
/// or syncfs(2) of the upper's filesystem, which need no thaw.
///
/// Readers go on. But who changes something waits in a thread of whoever serves, and where all of
/// the server's threads (two to four) wait so, requests that only read wait behind them, those of
/// the freezing process too: who holds this looks at the upper, not at the mount, and not for long.
#[derive(Debug)]
#[must_use = "changes go on as soon as it is dropped"]
pub struct Frozen {
    // In this order: opened before it is the next one's turn, whose closing would else be undone.
    shut: Shut,
    taken: Taken,
}

impl Gate {
    /// Of an overlay with this upper.
    pub(super) fn of(upper: Option<&Upper>) -> Self {
        Self {
            beside: upper.map(Upper::beside).unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Passes, when it is open.
    fn pass(&self) -> Pass<'_> {
        loop {
            if self.state.fetch_add(1, Ordering::AcqRel) & CLOSED == 0 {
                return Pass(self);
            }
            self.leave();
            let shut = |turn: &mut Turn| turn.shut;
            #[cfg(test)]
            self.held.fetch_add(1, Ordering::SeqCst);
            drop(
                self.event
                    .wait_while(self.turn(), shut)
                    .unwrap_or_else(PoisonError::into_inner),
            );
            #[cfg(test)]
            self.held.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn leave(&self) {
        if self.state.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1 {
            // Who closes it looks at the count under the lock, and so hears of this.
            drop(self.turn());
            self.event.notify_all();
        }
    }

    /// Closes it when it is open, and waits until all who have passed are done.
    pub(super) fn close(self: &Arc<Self>) -> Frozen {
        let wait = |turn, condition: &mut dyn FnMut(&mut Turn) -> bool| {
            self.event
                .wait_while(turn, condition)
                .unwrap_or_else(PoisonError::into_inner)
        };
        let mut turn = wait(self.turn(), &mut |turn| turn.taken);
        *turn = Turn {
            taken: true,
            shut: true,
        };
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        drop(wait(turn, &mut |_| {
            self.state.load(Ordering::Acquire) != CLOSED
        }));
        Frozen {
            shut: Shut(Arc::clone(self)),
            taken: Taken(Arc::clone(self)),
        }
    }

    /// The log, if there is one, for who has passed: who made it had all others waited for.
    pub(super) fn log(&self) -> Option<Arc<Log>> {
        if !self.keeping.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.log).clone()
    }

    fn set_log(&self, log: Option<Arc<Log>>) {
        let is_some = log.is_some();
        *lock(&self.log) = log;
        self.keeping.store(is_some, Ordering::Release);
    }

    /// How many are held back.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        lock(&self.turn)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        let mut turn = self.0.turn();
        self.0.state.fetch_and(!CLOSED, Ordering::AcqRel);
        turn.shut = false;
        drop(turn);
        self.0.event.notify_all();
    }
}

impl Taken {
    /// Nobody who comes finds a log any more.
    pub(super) fn end_log(&self) {
        self.0.set_log(None);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.turn().taken = false;
        self.0.event.notify_all();
    }
}

impl Frozen {
    /// Lets changes go on, but for the bytes of some files: what is overwritten or cut off of those
    /// is written to a [log](Kept) first. `files` are their numbers (`st_ino`) in the upper.
    ///
    /// # Errors
    /// Why no log can be made, and what was frozen, which still is: EROFS where there is no upper;
    /// open(2)'s.
    pub fn keep(self, files: impl IntoIterator<Item = u64>) -> Result<Kept, (Self, super::Error)> {
        let Self { shut, taken } = self;
        let log = match Log::new(&taken.0.beside, files) {
            Ok(log) => Arc::new(log),
            Err(error) => return Err((Self { shut, taken }, error)),
        };
        taken.0.set_log(Some(Arc::clone(&log)));
        // Who passes from here on finds it.
        drop(shut);
        Ok(Kept::new(log, taken))
    }
}

/// Freezes an overlay, for whoever has not got it. It does not keep it in memory.
#[derive(Debug, Clone)]
pub(crate) struct Freezer(Arc<Gate>);

impl Freezer {
    /// [`Overlay::freeze`].
    pub(crate) fn freeze(&self) -> Frozen {
        self.0.close()
    }
}

impl Overlay {
    /// What freezes this overlay.
    pub(crate) fn freezer(&self) -> Freezer {
        Freezer(Arc::clone(&self.gate))
    }

    /// Waits until no changing operation is under way, and holds back those that begin meanwhile
    /// until the guard is dropped, in whatever thread and however. Who freezes what is frozen waits
    /// for the thaw: so a thread that has a guard must not ask for another.
    ///
    /// An operation that is under way is waited for, be it the copy-up of a large file.
    pub fn freeze(&self) -> Frozen {
        self.gate.close()
    }

    /// Runs an operation that changes the upper.
    pub(super) fn changing<T>(&self, operation: impl FnOnce() -> T) -> T {
        let lock = Lock {
            class: Class::Gate,
            ino: ROOT_INO,
            is_dir: true,
        };
        let _pass = Held::take(lock, || self.gate.pass());
        operation()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Waits until `count` have passed or try to.
    fn await_count(gate: &Gate, count: u64) {
        while gate.state.load(Ordering::SeqCst) & !CLOSED != count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_has_passed_is_waited_for_and_who_comes_is_held_back() {
        let gate = Arc::new(Gate::default());
        let inside = gate.pass();
        let closed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| {
                let frozen = gate.close();
                closed.store(true, Ordering::SeqCst);
                frozen
            });
            while gate.state.load(Ordering::SeqCst) & CLOSED == 0 {
                std::thread::yield_now();
            }
            let (tell, told) = mpsc::channel();
            let of_gate = Arc::clone(&gate);
            scope.spawn(move || {
                let _pass = of_gate.pass();
                tell.send(()).unwrap();
            });
            assert!(!closed.load(Ordering::SeqCst), "one is still inside");
            drop(inside);
            let frozen = closing.join().unwrap();
            assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
            drop(frozen);
            told.recv_timeout(Duration::from_secs(60)).unwrap();
        });
        await_count(&gate, 0);
    }

    #[test]
    fn the_second_waits_for_the_first_and_a_panic_opens() {
        let gate = Arc::new(Gate::default());
        let first = gate.close();
        let of_gate = Arc::clone(&gate);
        let second = std::thread::spawn(move || {
            let _frozen = of_gate.close();
            panic!("with the guard");
        });
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap_err();
        drop(gate.pass());
        drop(gate.close());
        drop(gate.pass());
    }

    /// Two counters that are changed one after the other are seen so by who freezes.
    #[test]
    fn nothing_changes_while_it_is_closed() {
        const EACH: u64 = 3000;
        let gate = Arc::new(Gate::default());
        let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let _pass = gate.pass();
                        begun.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                        ended.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    while ended.load(Ordering::Relaxed) < 3 * EACH {
                        let frozen = gate.close();
                        let seen = begun.load(Ordering::Relaxed);
                        assert_eq!(seen, ended.load(Ordering::Relaxed));
                        std::thread::yield_now();
                        assert_eq!(seen, begun.load(Ordering::Relaxed));
                        drop(frozen);
                    }
                });
            }
        });
        assert_eq!(begun.into_inner(), 3 * EACH);
        assert_eq!(gate.state.load(Ordering::SeqCst), 0);
    }
}
