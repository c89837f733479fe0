//! Faults for tests: the n-th system call of an operation fails, or the process dies at it; on
//! this thread.
//!
//! A crash between two system calls is the same as refusing every call from one on: nothing more
//! reaches the disk. That is quick to try; that it is the same is tried too ([`Fault::Kill`]).

use std::cell::{Cell, RefCell};

use rustix::io::{Errno, Result};

/// What happens at the n-th call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The n-th change fails with this errno.
    Once(Errno),
    /// From the n-th change on there is no room: this errno for all that may need some.
    Full(Errno),
    /// The n-th call that opens or looks at something fails with this errno.
    Blind(Errno),
    /// The n-th change and all after it fail: the process is dead.
    Crash,
    /// The process is killed before the n-th change.
    Kill,
}

/// What a call does, as far as faults ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Opens or looks at something, and changes nothing.
    Look,
    /// Changes something, and needs no room for it.
    Change,
    /// Changes something, and may need room for it.
    Grow,
}

/// What looks on: [`watch`].
struct Watcher {
    each: Box<dyn FnMut()>,
    /// Before what changes nothing too.
    looks: bool,
}

thread_local! {
    static PLAN: Cell<Option<(usize, Fault)>> = const { Cell::new(None) };
    static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
}

/// Calls `watcher` before every change that this thread makes, until [`unwatch`]: what somebody
/// else would see at that moment. No fault hits what it calls itself.
pub(crate) fn watch(watcher: impl FnMut() + 'static) {
    let each = Box::new(watcher);
    WATCHER.set(Some(Watcher { each, looks: false }));
}

/// The same, before every call that opens or looks at something too.
pub(crate) fn watch_all(watcher: impl FnMut() + 'static) {
    let each = Box::new(watcher);
    WATCHER.set(Some(Watcher { each, looks: true }));
}

/// Takes back [`watch`] or [`watch_all`].
pub(crate) fn unwatch() {
    WATCHER.set(None);
}

fn look_on(call: Call) {
    let concerned = |watcher: &mut Watcher| watcher.looks || call != Call::Look;
    let Some(mut watcher) = WATCHER.with_borrow_mut(|watcher| watcher.take_if(concerned)) else {
        return;
    };
    let plan = PLAN.take();
    (watcher.each)();
    // A plan that it made is for what comes.
    if PLAN.get().is_none() {
        PLAN.set(plan);
    }
    WATCHER.set(Some(watcher));
}

/// Lets n - 1 calls of the fault's kind pass and `fault` happen at the n-th.
pub(crate) fn plan(n: usize, fault: Fault) {
    PLAN.set(Some((n, fault)));
}

/// Ends the plan; whether its fault has happened.
pub(crate) fn end() -> bool {
    !matches!(PLAN.take(), Some((n, _)) if n > 0)
}

/// Every system call that a fault may hit passes here first.
pub(crate) fn pass(call: Call) -> Result<()> {
    look_on(call);
    let Some((n, fault)) = PLAN.get() else {
        return Ok(());
    };
    let hits = match fault {
        Fault::Blind(_) => call == Call::Look,
        Fault::Full(_) => call == Call::Grow,
        Fault::Once(_) | Fault::Crash | Fault::Kill => call != Call::Look,
    };
    if !hits {
        return Ok(());
    }
    PLAN.set(Some((n.saturating_sub(1), fault)));
    match (n, fault) {
        (1, Fault::Once(errno) | Fault::Blind(errno)) | (0 | 1, Fault::Full(errno)) => Err(errno),
        (0 | 1, Fault::Crash) => Err(Errno::IO),
        (1, Fault::Kill) => {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL)?;
            // The signal is there before the call returns: this is never reached.
            Err(Errno::IO)
        }
        _ => Ok(()),
    }
}
