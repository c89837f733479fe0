//! Why an operation of the overlay failed, and the one table from that to an errno.

use rustix::io::Errno;

use crate::lower::LowerError;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked cannot be: the errno is the answer that POSIX names.
    #[error("{0}")]
    Refused(Errno),
    /// A system call on the upper failed.
    #[error("upper: {doing}: {errno}")]
    Upper {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        errno: Errno,
    },
    /// The image could not answer.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// An earlier operation could be neither finished nor undone; nothing may be changed any more.
    #[error(
        "an earlier failure left the upper half changed: writes are off until it is mounted anew"
    )]
    Poisoned,
}

/// Result of the overlay's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The errno (> 0) that the caller's system call gets.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused(errno) | Self::Upper { errno, .. } => errno.raw_os_error(),
            Self::Lower(error) => match error {
                LowerError::WrongKind(_) => libc::EINVAL,
                LowerError::Damaged { .. }
                | LowerError::BlobChanged { .. }
                | LowerError::Io { .. } => libc::EIO,
            },
            Self::Poisoned => libc::EIO,
        }
    }
}

/// Gives a failed system call of the upper its context.
pub(super) trait Doing<T> {
    /// Names what was being done.
    fn doing(self, doing: &'static str) -> Result<T>;
}

impl<T> Doing<T> for rustix::io::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T> {
        self.map_err(|errno| Error::Upper { doing, errno })
    }
}

/// An ordinary refusal.
pub(super) fn refuse<T>(errno: Errno) -> Result<T> {
    Err(Error::Refused(errno))
}
