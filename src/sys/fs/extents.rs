//! Which ranges of a file have blocks.

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::SeekFrom;
use rustix::io::{Errno, Result};

/// `_IOWR('f', 11, struct fiemap)` of include/uapi/linux/fs.h.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;

/// `struct fiemap` with room for one extent (include/uapi/linux/fiemap.h).
#[repr(C)]
#[derive(Default)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extent: Extent,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `_IOR('X', 31, struct fsxattr)` of include/uapi/linux/fs.h.
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
/// Of `fsx_xflags`: fallocate(2) has been called for the file.
const FS_XFLAG_PREALLOC: u32 = 2;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// `XFS_SUPER_MAGIC` of include/uapi/linux/magic.h.
const XFS: u32 = 0x5846_5342;

/// Whether a file lies on XFS, which allocates on its own behind the end of a file that grows.
///
/// # Errors
/// fstatfs(2)'s.
pub fn is_xfs(fd: BorrowedFd<'_>) -> Result<bool> {
    pass!(Look);
    Ok(u32::try_from(rustix::fs::fstatfs(fd)?.f_type) == Ok(XFS))
}

/// Whether what a file of XFS has behind its end was asked for, by fallocate(2).
///
/// # Errors
/// ioctl(2)'s; EBADF for `O_PATH`.
#[allow(unsafe_code)]
pub fn was_asked_for(fd: BorrowedFd<'_>) -> Result<bool> {
    pass!(Look);
    let mut attr = FsXattr::default();
    // SAFETY: `attr` has the kernel's layout of 28 bytes and lives through the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attr) } == 0 {
        return Ok(attr.xflags & FS_XFLAG_PREALLOC != 0);
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// The first part of `range` that has blocks, reserved or not yet written ones too
/// (Documentation/filesystems/fiemap.rst). On a filesystem without FIEMAP (tmpfs), the first that
/// has data.
///
/// # Errors
/// ioctl(2)'s, lseek(2)'s.
#[allow(unsafe_code)]
pub fn next_allocated(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<Option<Range<u64>>> {
    pass!(Look);
    let mut map = Fiemap {
        start: range.start,
        length: range.end.saturating_sub(range.start),
        extent_count: 1,
        ..Fiemap::default()
    };
    // SAFETY: `map` has the kernel's layout, with room for as many extents as it says.
    if unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } == 0 {
        let found = map.extent.logical..map.extent.logical.saturating_add(map.extent.length);
        return Ok(clip(&found, &range).filter(|_| map.mapped_extents > 0));
    }
    match Errno::from_io_error(&std::io::Error::last_os_error()) {
        Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => next_data(fd, &range),
        errno => Err(errno.unwrap_or(Errno::IO)),
    }
}

/// The first part of `range` that has data: the rest, and what follows it, reads as zeros.
///
/// # Errors
/// lseek(2)'s; EINVAL where the filesystem cannot tell.
pub fn next_data(fd: BorrowedFd<'_>, range: &Range<u64>) -> Result<Option<Range<u64>>> {
    pass!(Look);
    let start = match rustix::fs::seek(fd, SeekFrom::Data(range.start)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    match rustix::fs::seek(fd, SeekFrom::Hole(start)) {
        Ok(end) => Ok(clip(&(start..end), range)),
        // Cut meanwhile.
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn clip(found: &Range<u64>, range: &Range<u64>) -> Option<Range<u64>> {
    let clipped = found.start.max(range.start)..found.end.min(range.end);
    (!clipped.is_empty()).then_some(clipped)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use rustix::fs::FallocateFlags;

    use super::*;

    fn ranges(fd: BorrowedFd<'_>, end: u64, data: bool) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        loop {
            let next = match data {
                true => next_data(fd, &(at..end)),
                false => next_allocated(fd, at..end),
            };
            let Some(next) = next.unwrap() else {
                return found;
            };
            assert!(next.start >= at && next.end <= end);
            at = next.end;
            match found.last_mut().filter(|last| last.end == next.start) {
                Some(last) => last.end = next.end,
                None => found.push(next),
            }
        }
    }

    #[test]
    fn data_and_what_is_allocated_for_it() {
        const MIB: u64 = 1 << 20;
        for dir in [std::env::temp_dir(), "/dev/shm".into()] {
            let file = tempfile::tempfile_in(dir).unwrap();
            file.set_len(8 * MIB).unwrap();
            let fd = file.as_fd();
            assert_eq!(next_allocated(fd, 0..8 * MIB), Ok(None));
            file.write_all_at(&[7; 4096], MIB).unwrap();
            file.write_all_at(&[7; 4096], 3 * MIB).unwrap();
            let written = [MIB..MIB + 4096, 3 * MIB..3 * MIB + 4096];
            assert_eq!(ranges(fd, 8 * MIB, false), written);
            assert_eq!(ranges(fd, 8 * MIB, true), written);
            assert_eq!(next_allocated(fd, 0..MIB + 100), Ok(Some(MIB..MIB + 100)));
            let keep = FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(fd, keep, 9 * MIB, MIB).unwrap();
            let beyond = next_allocated(fd, 8 * MIB..12 * MIB).unwrap();
            // tmpfs has no FIEMAP.
            assert!(beyond.is_none() || beyond == Some(9 * MIB..10 * MIB));
        }
    }
}
