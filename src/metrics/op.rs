//! What a request asks for, and how it can fail.

/// A kind of request, by its name in the FUSE protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Op {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Symlink,
    Link,
    Rename,
    Open,
    Create,
    Read,
    Write,
    Flush,
    Release,
    Fsync,
    Fallocate,
    Lseek,
    CopyFileRange,
    Ioctl,
    Opendir,
    Readdir,
    Readdirplus,
    Releasedir,
    Fsyncdir,
    Statfs,
    Getxattr,
    Listxattr,
    Setxattr,
    Removexattr,
}

impl Op {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 33] = [
        Self::Lookup,
        Self::Forget,
        Self::Getattr,
        Self::Setattr,
        Self::Readlink,
        Self::Mknod,
        Self::Mkdir,
        Self::Unlink,
        Self::Rmdir,
        Self::Symlink,
        Self::Link,
        Self::Rename,
        Self::Open,
        Self::Create,
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Release,
        Self::Fsync,
        Self::Fallocate,
        Self::Lseek,
        Self::CopyFileRange,
        Self::Ioctl,
        Self::Opendir,
        Self::Readdir,
        Self::Readdirplus,
        Self::Releasedir,
        Self::Fsyncdir,
        Self::Statfs,
        Self::Getxattr,
        Self::Listxattr,
        Self::Setxattr,
        Self::Removexattr,
    ];

    /// As in logs and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Forget => "forget",
            Self::Getattr => "getattr",
            Self::Setattr => "setattr",
            Self::Readlink => "readlink",
            Self::Mknod => "mknod",
            Self::Mkdir => "mkdir",
            Self::Unlink => "unlink",
            Self::Rmdir => "rmdir",
            Self::Symlink => "symlink",
            Self::Link => "link",
            Self::Rename => "rename",
            Self::Open => "open",
            Self::Create => "create",
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Release => "release",
            Self::Fsync => "fsync",
            Self::Fallocate => "fallocate",
            Self::Lseek => "lseek",
            Self::CopyFileRange => "copy_file_range",
            Self::Ioctl => "ioctl",
            Self::Opendir => "opendir",
            Self::Readdir => "readdir",
            Self::Readdirplus => "readdirplus",
            Self::Releasedir => "releasedir",
            Self::Fsyncdir => "fsyncdir",
            Self::Statfs => "statfs",
            Self::Getxattr => "getxattr",
            Self::Listxattr => "listxattr",
            Self::Setxattr => "setxattr",
            Self::Removexattr => "removexattr",
        }
    }

    pub(super) const fn number(self) -> usize {
        self as usize
    }
}

/// What kind of error a request was answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// ENOENT, also where the kernel is told so as an entry without an inode.
    NotFound,
    /// EEXIST, ENOTEMPTY.
    Exists,
    /// EPERM, EACCES.
    Denied,
    /// EROFS.
    ReadOnly,
    /// ENOSPC, EDQUOT, EMLINK, EFBIG.
    NoSpace,
    /// ENODATA: no such extended attribute.
    NoAttribute,
    /// ENOSYS, EOPNOTSUPP, ENOTTY.
    Unsupported,
    /// ESTALE.
    Stale,
    /// EIO: something is damaged.
    Io,
    /// Any other.
    Other,
}

impl Class {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::NotFound,
        Self::Exists,
        Self::Denied,
        Self::ReadOnly,
        Self::NoSpace,
        Self::NoAttribute,
        Self::Unsupported,
        Self::Stale,
        Self::Io,
        Self::Other,
    ];

    /// The class of an error number (errno(3)); `None` for 0.
    #[must_use]
    pub fn of(errno: i32) -> Option<Self> {
        Some(match errno {
            0 => return None,
            libc::ENOENT => Self::NotFound,
            libc::EEXIST | libc::ENOTEMPTY => Self::Exists,
            libc::EPERM | libc::EACCES => Self::Denied,
            libc::EROFS => Self::ReadOnly,
            libc::ENOSPC | libc::EDQUOT | libc::EMLINK | libc::EFBIG => Self::NoSpace,
            libc::ENODATA => Self::NoAttribute,
            libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTTY => Self::Unsupported,
            libc::ESTALE => Self::Stale,
            libc::EIO => Self::Io,
            _ => Self::Other,
        })
    }

    /// As in labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::Denied => "denied",
            Self::ReadOnly => "read_only",
            Self::NoSpace => "no_space",
            Self::NoAttribute => "no_attribute",
            Self::Unsupported => "unsupported",
            Self::Stale => "stale",
            Self::Io => "io",
            Self::Other => "other",
        }
    }

    pub(super) const fn number(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places() {
        for (n, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op.number(), n);
        }
        for (n, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class.number(), n);
        }
    }

    #[test]
    fn no_error_is_no_class() {
        assert_eq!(Class::of(0), None);
        assert_eq!(Class::of(libc::ENOENT), Some(Class::NotFound));
        assert_eq!(Class::of(libc::ELOOP), Some(Class::Other));
    }
}
