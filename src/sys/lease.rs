//! Whether a file is open elsewhere, by the kernel's own count.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Whether anybody but the holder of `file`, which is open for reading, has the file open: another
/// process, a mapping, a loop device, a filesystem mounted from it, in whatever namespace.
///
/// A write lease is given only where nobody has (fs/locks.c:check_conflicting_open(), Linux 5.3);
/// it is given back at once. Takes the file's owner, or `CAP_LEASE`.
///
/// # Errors
/// fcntl(2)'s; `EINVAL` where the filesystem has no leases, so that nobody knows.
pub fn is_open_elsewhere(file: &File) -> io::Result<bool> {
    match set(file, libc::F_WRLCK) {
        Ok(()) => {
            set(file, libc::F_UNLCK)?;
            Ok(false)
        }
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

#[allow(unsafe_code)]
fn set(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETLEASE takes an integer and touches no memory of this process.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::map::Map;

    #[test]
    fn others_are_seen_and_the_holder_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        let file = File::open(&path).unwrap();
        assert!(!is_open_elsewhere(&file).unwrap());
        let other = File::open(&path).unwrap();
        assert!(is_open_elsewhere(&file).unwrap());
        let map = Map::of(&other).unwrap();
        drop(other);
        assert!(is_open_elsewhere(&file).unwrap(), "a mapping counts");
        drop(map);
        assert!(!is_open_elsewhere(&file).unwrap());
    }
}
