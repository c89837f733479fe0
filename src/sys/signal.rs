//! Signals that a system call would end the process with.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

/// Does nothing: that there is a handler is enough.
extern "C" fn caught(_: libc::c_int) {}

/// Lets a write beyond the limit of file sizes (`ulimit -f`) fail with EFBIG instead of ending the
/// process with SIGXFSZ. Programs that this process executes have the signal as it was: a handler
/// does not outlive execve(2), as being ignored does.
///
/// # Errors
/// sigaction(2)'s.
pub fn survive_file_size_limit() -> io::Result<()> {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null action changes nothing; the other is room for the one that is set.
    if unsafe { libc::sigaction(libc::SIGXFSZ, std::ptr::null(), now.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sigaction(2) has filled it in; it was zeroed, which is valid too.
    let mut action = unsafe { now.assume_init() };
    if action.sa_sigaction != libc::SIG_DFL {
        return Ok(());
    }
    let handler: extern "C" fn(libc::c_int) = caught;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler does nothing, which is safe at any moment, and lives as long as the
    // program.
    if unsafe { libc::sigaction(libc::SIGXFSZ, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Set by [`interrupt`] alone.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Notes that somebody wants the program to end.
extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on SIGINT, SIGTERM and SIGHUP do not end the process but are noted ([`interrupted`]),
/// and break off a system call that waits. SIGINT and SIGHUP stay ignored where they are: the shell
/// of a job in the background ignores them for it, and SIGTERM is what is left to end it. Programs
/// that it executes have them as they were, but for a SIGTERM that was ignored.
///
/// # Errors
/// sigaction(2)'s.
pub fn catch_interrupts() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int) = interrupt;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let mut now = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a null action changes nothing; the other is room for the one that is set.
        if unsafe { libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: sigaction(2) has filled it in; it was zeroed, which is valid too.
        let is_ignored = unsafe { now.assume_init() }.sa_sigaction == libc::SIG_IGN;
        if is_ignored && signal != libc::SIGTERM {
            continue;
        }
        // SAFETY: a zeroed sigaction is a valid one: no flags, an empty mask.
        let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
        action.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe, and lives as
        // long as the program.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether one of the signals of [`catch_interrupts`] has come.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}
