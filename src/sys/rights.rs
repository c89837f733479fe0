//! Capabilities of a thread (capabilities(7)).

use std::io;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Runs `call` without CAP_FSETID in this thread's effective set.
///
/// # Errors
/// What `call` gives; the system's, and then `call` was not run.
pub fn without_fsetid<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let had = capabilities(None)?;
    if !had.effective.contains(CapabilitySet::FSETID) {
        return call();
    }
    let mut less = had;
    less.effective -= CapabilitySet::FSETID;
    set_capabilities(None, less)?;
    let result = call();
    // What was permitted before is permitted still.
    set_capabilities(None, had)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_comes_back() {
        let effective = || capabilities(None).unwrap().effective;
        let before = effective();
        let within = without_fsetid(|| Ok(effective())).unwrap();
        assert_eq!(within, before - CapabilitySet::FSETID);
        let failed = without_fsetid(|| Err::<(), _>(io::Error::other("no")));
        assert!(failed.is_err());
        assert_eq!(effective(), before);
    }
}
