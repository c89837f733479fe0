//! The bytes of open files.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags, Result};

/// ftruncate(2).
///
/// # Errors
/// ftruncate(2)'s.
pub fn truncate(fd: BorrowedFd<'_>, len: u64) -> Result<()> {
    pass!(Grow);
    rustix::fs::ftruncate(fd, len)
}

/// fallocate(2).
///
/// # Errors
/// fallocate(2)'s.
pub fn fallocate(fd: BorrowedFd<'_>, mode: FallocateFlags, offset: u64, len: u64) -> Result<()> {
    pass!(Grow);
    rustix::fs::fallocate(fd, mode, offset, len)
}

/// copy_file_range(2): how much was copied, perhaps less than `len`.
///
/// # Errors
/// copy_file_range(2)'s.
pub fn copy_range(
    from: BorrowedFd<'_>,
    mut from_offset: u64,
    to: BorrowedFd<'_>,
    mut to_offset: u64,
    len: usize,
) -> Result<usize> {
    pass!(Grow);
    rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), len)
}

/// fsync(2), or fdatasync(2).
///
/// # Errors
/// fsync(2)'s.
pub fn sync(fd: BorrowedFd<'_>, datasync: bool) -> Result<()> {
    pass!(Change);
    if datasync {
        rustix::fs::fdatasync(fd)
    } else {
        rustix::fs::fsync(fd)
    }
}

/// Has the kernel begin to write a regular file's data to disk (sync_file_range(2)), and does not
/// wait for it.
///
/// # Errors
/// sync_file_range(2)'s.
#[allow(unsafe_code)]
pub fn write_out(fd: BorrowedFd<'_>) -> Result<()> {
    pass!(Change);
    // SAFETY: the descriptor is open; nothing else is passed but numbers.
    let done = unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if done == 0 {
        Ok(())
    } else {
        let error = std::io::Error::last_os_error();
        Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// Writes `data` at `offset` and answers how much: less than all only where an error (which then
/// waits for the next call, as of write(2)) or a full filesystem stopped it.
///
/// # Errors
/// pwrite(2)'s, if nothing was written.
pub fn write(fd: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<usize> {
    write_by(data, |rest, done| {
        write_once(fd, rest, offset.saturating_add(done as u64))
    })
}

/// The same at the end of the file, wherever that is.
///
/// # Errors
/// pwritev2(2)'s, if nothing was written.
pub fn append(fd: BorrowedFd<'_>, data: &[u8]) -> Result<usize> {
    write_by(data, |rest, _| {
        pass!(Grow);
        rustix::io::pwritev2(fd, &[IoSlice::new(rest)], 0, ReadWriteFlags::APPEND)
    })
}

fn write_by(data: &[u8], mut write: impl FnMut(&[u8], usize) -> Result<usize>) -> Result<usize> {
    let mut done = 0_usize;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        match write(rest, done) {
            Ok(0) => break,
            Ok(n) => done = done.saturating_add(n),
            Err(Errno::INTR) => {}
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

fn write_once(fd: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<usize> {
    pass!(Grow);
    rustix::io::pwrite(fd, data, offset)
}

/// Fills `buf` from `offset` and answers how much; short only at the end of the file.
///
/// # Errors
/// pread(2)'s.
pub fn read(fd: BorrowedFd<'_>, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let mut done = 0_usize;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let wanted = rest.len();
        match rustix::io::pread(fd, rest, offset.saturating_add(done as u64)) {
            // Of a regular file only the end makes a read short.
            Ok(n) => {
                let short = n < wanted;
                done = done.saturating_add(n);
                if short {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}
