//! Extended attributes of the inode behind any descriptor.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use super::fd_path;
use crate::sys::outside;

/// An extended attribute of the inode behind any descriptor; `None` where it has none of that
/// name, or its filesystem has none at all.
///
/// # Errors
/// getxattr(2)'s but ENODATA and EOPNOTSUPP.
pub fn getxattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
    pass!(Look);
    let path = fd_path(fd);
    let mut value = vec![0_u8; 256];
    loop {
        match rustix::fs::getxattr(path.as_str(), name, value.as_mut_slice()) {
            Ok(len) => {
                value.truncate(len);
                return match outside::get() {
                    Some(outside) if names_nobody(name, &value) => {
                        outside.getxattr(fd, name).map(Some)
                    }
                    _ => Ok(Some(value)),
                };
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            // XATTR_SIZE_MAX is 65,536.
            Err(Errno::RANGE) if value.len() < 65_536 => value.resize(65_536, 0),
            Err(error) => return Err(error),
        }
    }
}

/// The names of all extended attributes of the inode behind any descriptor.
///
/// # Errors
/// listxattr(2)'s but EOPNOTSUPP.
pub fn listxattr(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    pass!(Look);
    let path = fd_path(fd);
    let mut list = vec![0_u8; 1024];
    loop {
        match rustix::fs::listxattr(path.as_str(), list.as_mut_slice()) {
            Ok(len) => {
                list.truncate(len);
                break;
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            // XATTR_LIST_MAX is 65,536.
            Err(Errno::RANGE) if list.len() < 65_536 => list.resize(65_536, 0),
            Err(error) => return Err(error),
        }
    }
    let names = list.split(|&b| b == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// The same into `names`, each with a NUL behind it, by a descriptor that is no `O_PATH`.
///
/// # Errors
/// flistxattr(2)'s but EOPNOTSUPP.
pub fn flistxattr(fd: BorrowedFd<'_>, names: &mut Vec<u8>) -> Result<()> {
    pass!(Look);
    names.resize(1024, 0);
    loop {
        match rustix::fs::flistxattr(fd, names.as_mut_slice()) {
            Ok(len) => {
                names.truncate(len);
                return Ok(());
            }
            Err(Errno::OPNOTSUPP) => {
                names.clear();
                return Ok(());
            }
            Err(Errno::RANGE) if names.len() < 65_536 => names.resize(65_536, 0),
            Err(error) => return Err(error),
        }
    }
}

/// Sets an extended attribute of the inode behind any descriptor. `flags`: XATTR_CREATE,
/// XATTR_REPLACE.
///
/// # Errors
/// setxattr(2)'s.
pub fn setxattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
    pass!(Grow);
    let flags = u32::try_from(flags).map_err(|_| Errno::INVAL)?;
    let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
    let done = rustix::fs::setxattr(fd_path(fd).as_str(), name, value, flags);
    match (done, outside::get()) {
        // An ACL that names somebody who does not exist here, or a file capability.
        (Err(Errno::INVAL), Some(outside)) if !name.starts_with(b"user.") => {
            outside.setxattr(fd, name, value, flags.bits().cast_signed())
        }
        (done, _) => done,
    }
}

/// Whether an attribute is an ACL with an entry for a user or group that does not exist in this
/// user namespace (`fs/posix_acl.c:posix_acl_to_xattr()`).
fn names_nobody(name: &[u8], value: &[u8]) -> bool {
    let entries = value.get(4..).unwrap_or_default();
    name.starts_with(b"system.posix_acl_")
        && entries.chunks_exact(8).any(|entry| {
            // ACL_USER and ACL_GROUP; the others have no number.
            matches!(entry, [2 | 8, 0, _, _, 0xff, 0xff, 0xff, 0xff])
        })
}

/// Removes an extended attribute of the inode behind any descriptor.
///
/// # Errors
/// removexattr(2)'s.
pub fn removexattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    pass!(Change);
    rustix::fs::removexattr(fd_path(fd).as_str(), name)
}
