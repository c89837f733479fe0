//! fs-verity: the filesystem itself checks what is read of a file that never changes
//! (Documentation/filesystems/fsverity.rst).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `FS_VERITY_HASH_ALG_SHA256`.
const SHA256: u32 = 1;
/// Bytes that a hash is of; the one size that every filesystem with fs-verity takes.
const BLOCK: u32 = 4096;
/// `_IOW('f', 133, struct fsverity_enable_arg)` of include/uapi/linux/fsverity.h.
const FS_IOC_ENABLE_VERITY: libc::Ioctl = 0x4080_6685_u32 as libc::Ioctl;

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// Turns fs-verity on for `file`, which is open for reading while nobody has it open for writing:
/// reads all of it once. False where the filesystem has none, or not for this file.
///
/// # Errors
/// The system's, as that the disk is full or cannot be read.
#[allow(unsafe_code)]
pub fn enable(file: &File) -> io::Result<bool> {
    let arg = EnableArg {
        version: 1,
        hash_algorithm: SHA256,
        block_size: BLOCK,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved1: 0,
        sig_ptr: 0,
        reserved2: [0; 11],
    };
    // SAFETY: `arg` has the kernel's layout of 128 bytes and lives through the call, which only
    // reads it; both of its pointers are null with length 0.
    if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_ENABLE_VERITY, &raw const arg) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EEXIST) => Ok(true),
        Some(code) if lacks(code) => Ok(false),
        _ => Err(error),
    }
}

/// Whether the error says that the file cannot have fs-verity, and nothing of the file's bytes
/// (fs-verity documentation, "FS_IOC_ENABLE_VERITY").
fn lacks(code: i32) -> bool {
    match code {
        // No such ioctl; a filesystem without the feature; a kernel without it, or without SHA-256.
        libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOPKG => true,
        // The caller may not write to it; the kernel wants signatures (fs.verity.require_signatures).
        libc::EACCES | libc::EPERM => true,
        // Somebody has it open for writing; it is too large for this filesystem.
        libc::ETXTBSY | libc::EFBIG => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<EnableArg>(), 128);
    }

    #[test]
    fn what_the_kernel_does_not_want_is_no_error_and_a_bad_disk_is() {
        for code in [libc::EACCES, libc::EPERM, libc::ETXTBSY, libc::EOPNOTSUPP] {
            assert!(lacks(code), "{}", io::Error::from_raw_os_error(code));
        }
        for code in [libc::EIO, libc::ENOSPC, libc::EROFS, libc::ENOMEM] {
            assert!(!lacks(code), "{}", io::Error::from_raw_os_error(code));
        }
    }

    #[test]
    fn a_filesystem_without_it_is_no_error() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        assert!(!enable(&File::open(&path).unwrap()).unwrap());
    }
}
