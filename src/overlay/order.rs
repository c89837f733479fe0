//! The lock order, asserted in debug builds: each lock of a node says what it is before it is
//! waited for, so that an inversion is a panic in a test and not a hang in production.
//!
//! The order itself is in the documentation of [`overlay`](super).

use std::ops::{Deref, DerefMut};

use super::Ino;

/// Which lock of a node, or the one of the overlay that comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Passed by each changing operation, and by one at a time of each thread.
    Gate,
    /// Held through a copy-up.
    Copying,
    /// Held while names in a directory change.
    Entries,
    /// Held while a directory moves.
    Moves,
    /// Where an inode is stored, to look at.
    PlaceRead,
    /// Where an inode is stored, to change.
    PlaceWrite,
    /// Held while what a file held is written down; the number is the upper's own.
    Keeping,
}

/// One lock of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lock {
    pub(super) class: Class,
    pub(super) ino: Ino,
    pub(super) is_dir: bool,
}

/// A guard, and the note that it is held.
#[derive(Debug)]
pub(super) struct Held<G> {
    // In this order: released first, noted after.
    guard: G,
    _note: Note,
}

impl<G> Held<G> {
    /// Takes `lock` by `take`.
    pub(super) fn take(lock: Lock, take: impl FnOnce() -> G) -> Self {
        let note = Note::new(lock);
        Self {
            guard: take(),
            _note: note,
        }
    }
}

impl<G: Deref> Deref for Held<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Held<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

#[cfg(not(debug_assertions))]
#[derive(Debug)]
struct Note;

#[cfg(not(debug_assertions))]
impl Note {
    fn new(_: Lock) -> Self {
        Self
    }
}

#[cfg(debug_assertions)]
use checked::Note;
#[cfg(all(test, debug_assertions))]
pub(super) use checked::held;

#[cfg(debug_assertions)]
mod checked {
    use std::cell::RefCell;

    use super::{Class, Lock};

    thread_local! {
        static HELD: RefCell<Vec<Lock>> = const { RefCell::new(Vec::new()) };
    }

    #[derive(Debug)]
    pub(super) struct Note(Lock);

    impl Note {
        pub(super) fn new(next: Lock) -> Self {
            HELD.with_borrow_mut(|held| {
                let wrong = held.iter().find(|held| !may_follow(held, &next));
                assert!(
                    wrong.is_none(),
                    "lock order: {next:?} is asked for under {wrong:?}"
                );
                held.push(next);
            });
            Self(next)
        }
    }

    impl Drop for Note {
        fn drop(&mut self) {
            HELD.with_borrow_mut(|held| {
                // Not always the last: a guard may be let go of before one that was taken later.
                if let Some(at) = held.iter().rposition(|held| *held == self.0) {
                    held.remove(at);
                }
            });
        }
    }

    /// The locks that this thread holds.
    #[cfg(test)]
    pub(in super::super) fn held() -> Vec<Lock> {
        HELD.with_borrow(Vec::clone)
    }

    fn may_follow(held: &Lock, next: &Lock) -> bool {
        use Class::{Copying, Entries, Gate, Keeping, Moves, PlaceRead, PlaceWrite};
        match (held.class, next.class) {
            (_, Gate) | (Keeping, _) => false,
            (Gate, _) | (_, Keeping) => true,
            // An inode's, then those of the directories above it.
            (Copying, Copying) => next.is_dir && held.ino != next.ino,
            (Copying, _)
            | (Entries, Moves | PlaceRead | PlaceWrite)
            | (Moves, PlaceRead | PlaceWrite) => true,
            (Entries, Entries) => held.ino < next.ino,
            (PlaceRead | PlaceWrite, PlaceWrite) => held.ino < next.ino,
            // The way up to the root is read from below; else the lower number first.
            (PlaceRead | PlaceWrite, PlaceRead) => {
                held.ino < next.ino || (next.is_dir && held.ino != next.ino)
            }
            (Entries | Moves | PlaceRead | PlaceWrite, Copying)
            | (Moves | PlaceRead | PlaceWrite, Entries | Moves) => false,
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    const DIR: (u64, bool) = (7, true);
    const FILE: (u64, bool) = (9, false);

    fn lock(class: Class, (ino, is_dir): (u64, bool)) -> Lock {
        Lock {
            class,
            ino: Ino(ino),
            is_dir,
        }
    }

    fn allowed(locks: &[Lock]) -> bool {
        catch_unwind(|| {
            let held: Vec<_> = locks.iter().map(|l| Held::take(*l, || ())).collect();
            drop(held);
        })
        .is_ok()
    }

    #[test]
    fn the_order_is_held() {
        use Class::{Copying, Entries, Gate, Keeping, Moves, PlaceRead, PlaceWrite};
        assert!(allowed(&[lock(Gate, DIR), lock(Copying, FILE)]));
        assert!(allowed(&[lock(Gate, DIR), lock(Keeping, FILE)]));
        assert!(!allowed(&[lock(Keeping, FILE), lock(Keeping, DIR)]));
        assert!(!allowed(&[lock(Keeping, FILE), lock(PlaceRead, DIR)]));
        assert!(!allowed(&[lock(Keeping, FILE), lock(Gate, DIR)]));
        assert!(!allowed(&[lock(Copying, FILE), lock(Gate, DIR)]));
        assert!(!allowed(&[lock(Gate, DIR), lock(Gate, DIR)]));
        let copying = [lock(Copying, FILE), lock(Copying, DIR), lock(Entries, DIR)];
        assert!(allowed(&copying));
        assert!(allowed(&[lock(Entries, DIR), lock(PlaceWrite, FILE)]));
        let moving = [lock(Entries, DIR), lock(Moves, DIR), lock(PlaceWrite, DIR)];
        assert!(allowed(&moving));
        assert!(allowed(&[lock(PlaceWrite, DIR), lock(PlaceWrite, FILE)]));
        assert!(allowed(&[lock(PlaceRead, FILE), lock(PlaceRead, DIR)]));

        assert!(!allowed(&[lock(Copying, DIR), lock(Copying, FILE)]));
        assert!(!allowed(&[lock(Entries, DIR), lock(Copying, DIR)]));
        assert!(!allowed(&[lock(PlaceRead, FILE), lock(Entries, DIR)]));
        assert!(!allowed(&[lock(PlaceRead, FILE), lock(PlaceWrite, DIR)]));
        assert!(!allowed(&[lock(PlaceRead, DIR), lock(PlaceRead, DIR)]));
        assert!(!allowed(&[lock(Moves, DIR), lock(Entries, DIR)]));
        assert!(!allowed(&[lock(Moves, DIR), lock(Moves, DIR)]));
    }

    #[test]
    fn what_was_let_go_of_is_not_held() {
        let entries = Held::take(lock(Class::Entries, FILE), || ());
        let place = Held::take(lock(Class::PlaceRead, FILE), || ());
        drop(entries);
        drop(place);
        drop(Held::take(lock(Class::Entries, DIR), || ()));
        // A panic under a lock leaves no note behind.
        assert!(!allowed(&[
            lock(Class::Entries, FILE),
            lock(Class::Entries, DIR)
        ]));
        assert!(allowed(&[lock(Class::Copying, DIR)]));
    }
}
