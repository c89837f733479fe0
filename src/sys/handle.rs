//! Files of EROFS opened by their number (`open_by_handle_at(2)`), without a walk along names.
//!
//! A handle of EROFS is the inode number (nid) and a generation of 0, in one of two forms: older
//! kernels read `FILEID_INO32_GEN` alone, newer ones `FILEID_INO64_GEN` alone (Linux 6.18;
//! fs/erofs/super.c:erofs_fh_to_dentry()). Which one it is is asked of the kernel, with the handle
//! of the root.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

/// `FILEID_INO32_GEN` of include/linux/exportfs.h: inode number, generation.
const INO32_GEN: libc::c_int = 0x1;
/// `FILEID_INO64_GEN`: the number's upper half, its lower half, generation.
const INO64_GEN: libc::c_int = 0x81;

/// `struct file_handle` with room for either form.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Handle {
    bytes: u32,
    form: libc::c_int,
    words: [u32; 8],
}

impl Handle {
    fn of(form: libc::c_int, ino: u64) -> Option<Self> {
        let low = u32::try_from(ino & 0xffff_ffff).ok()?;
        let high = u32::try_from(ino >> 32).ok()?;
        let (bytes, words) = match form {
            INO32_GEN if high == 0 => (8, [low, 0, 0, 0, 0, 0, 0, 0]),
            INO64_GEN => (12, [high, low, 0, 0, 0, 0, 0, 0]),
            _ => return None,
        };
        Some(Self { bytes, form, words })
    }
}

/// The root of a mount of EROFS, by which its files are opened.
#[derive(Debug)]
pub struct NativeRoot {
    dir: OwnedFd,
    form: libc::c_int,
}

impl NativeRoot {
    /// For the mount that `dir` is the root of: a directory that is open for reading, since a mere
    /// place (`O_PATH`) opens no handles.
    ///
    /// # Errors
    /// EOPNOTSUPP where this kernel's EROFS has no handles, or of a form that is not known; EPERM
    /// for who may not open by handle (CAP_DAC_READ_SEARCH in the first user namespace).
    pub fn new(dir: OwnedFd) -> Result<Self> {
        let mut handle = Handle {
            bytes: 32,
            form: 0,
            words: [0; 8],
        };
        let mut mount = 0;
        // SAFETY: the name is a string, `handle` has room for the 32 bytes that it says, `mount`
        // for a number; the kernel writes no more than that.
        let done = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                dir.as_raw_fd(),
                c"".as_ptr(),
                &raw mut handle,
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if done != 0 {
            return Err(last());
        }
        let ino = rustix::fs::fstat(&dir)?.st_ino;
        let ours = Handle::of(handle.form, ino).ok_or(Errno::OPNOTSUPP)?;
        if (ours.bytes, ours.words) != (handle.bytes, handle.words) {
            return Err(Errno::OPNOTSUPP);
        }
        let root = Self {
            form: handle.form,
            dir,
        };
        // The right to open by handle shows here, and not at somebody's first read.
        root.open_any(ino, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(root)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens the file with number `ino` for reading. It must be a regular one: a device or a pipe
    /// would be opened as such.
    ///
    /// # Errors
    /// open_by_handle_at(2)'s; ESTALE when what was opened is not the regular file `ino`.
    pub fn open(&self, ino: u64) -> Result<OwnedFd> {
        let file = self.open_any(ino, OFlags::RDONLY | OFlags::NOFOLLOW)?;
        let found = rustix::fs::fstat(&file)?;
        let kind = rustix::fs::FileType::from_raw_mode(found.st_mode);
        if found.st_ino != ino || kind != rustix::fs::FileType::RegularFile {
            return Err(Errno::STALE);
        }
        Ok(file)
    }

    fn open_any(&self, ino: u64, flags: OFlags) -> Result<OwnedFd> {
        #[cfg(test)]
        super::faults::pass(super::faults::Call::Look)?;
        let mut handle = Handle::of(self.form, ino).ok_or(Errno::STALE)?;
        // SAFETY: `handle` is alive and has the bytes that it says, which the kernel only reads.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                self.dir.as_raw_fd(),
                &raw mut handle,
                (flags | OFlags::CLOEXEC).bits(),
            )
        };
        let fd = RawFd::try_from(fd).map_err(|_| Errno::IO)?;
        if fd < 0 {
            return Err(last());
        }
        // SAFETY: the kernel has just given this descriptor, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let old = Handle::of(INO32_GEN, 40).unwrap();
        assert_eq!((old.bytes, &old.words[..3]), (8, &[40, 0, 0][..]));
        assert!(Handle::of(INO32_GEN, 1 << 32).is_none());
        let new = Handle::of(INO64_GEN, (1 << 32) | 40).unwrap();
        assert_eq!((new.bytes, &new.words[..3]), (12, &[1, 40, 0][..]));
        assert!(Handle::of(2, 40).is_none());
    }

    #[test]
    fn other_filesystems_are_refused() {
        let dir = std::fs::File::open("/proc/self").unwrap();
        assert!(NativeRoot::new(dir.into()).is_err());
    }
}
