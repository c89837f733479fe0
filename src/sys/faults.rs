//! Faults for tests: the n-th call that changes something fails, on this thread.
//!
//! A crash between two system calls is the same as refusing every call from one on: nothing more
//! reaches the disk.

use std::cell::Cell;

use rustix::io::{Errno, Result};

/// What happens at the n-th change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// That one fails with this errno.
    Once(Errno),
    /// That one and all after it fail: the process is dead.
    Crash,
}

thread_local! {
    static PLAN: Cell<Option<(usize, Fault)>> = const { Cell::new(None) };
}

/// Lets `n` changes pass and then `fault` happen.
pub(crate) fn plan(n: usize, fault: Fault) {
    PLAN.set(Some((n, fault)));
}

/// Ends the plan; whether its fault has happened.
pub(crate) fn end() -> bool {
    !matches!(PLAN.take(), Some((n, _)) if n > 0)
}

pub(crate) fn change() -> Result<()> {
    match PLAN.get() {
        None => Ok(()),
        Some((0, Fault::Crash)) => Err(Errno::IO),
        Some((0, Fault::Once(_))) => Ok(()),
        Some((1, fault)) => {
            PLAN.set(Some((0, fault)));
            match fault {
                Fault::Once(errno) => Err(errno),
                Fault::Crash => Err(Errno::IO),
            }
        }
        Some((n, fault)) => {
            PLAN.set(Some((n - 1, fault)));
            Ok(())
        }
    }
}
