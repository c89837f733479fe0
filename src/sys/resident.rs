//! What of this process is in memory.
#![allow(unsafe_code)]

use std::io;

/// Bytes of it that are in memory, shared ones too (proc(5), `statm`).
///
/// # Errors
/// The system's, where there is no procfs.
pub fn resident() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    let pages: u64 = pages.ok_or(io::ErrorKind::InvalidData)?;
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Gives memory that was freed back to the system.
pub fn trim_heap() {
    // SAFETY: a call that touches only what is free, under malloc's own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Takes the pages of the program's code that have run so far out of this process; they stay in
/// the kernel's page cache, and those that run again come back.
///
/// # Errors
/// madvise(2)'s.
pub fn let_go_of_code() -> io::Result<()> {
    unsafe extern "C" {
        // Of the linker (ld(1), `--verbose`): where the program begins, and the end of its code.
        static __executable_start: u8;
        static etext: u8;
    }
    let start = &raw const __executable_start;
    let page = rustix::param::page_size();
    // The last page may be shared with what follows.
    let len = (&raw const etext).addr().saturating_sub(start.addr()) / page * page;
    // SAFETY: headers, constants and code, which are mapped from the file and never written to: the
    // linker puts what is relocated behind them. What is looked at again is read from the file.
    let rc = unsafe { libc::madvise(start.cast_mut().cast(), len, libc::MADV_DONTNEED) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_of_comes_back() {
        let before = resident().unwrap();
        let_go_of_code().unwrap();
        trim_heap();
        let after = resident().unwrap();
        assert!(before > 0 && after > 0);
        assert_eq!(format!("{}", 6 * 7), "42");
    }
}
