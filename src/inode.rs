//! The vocabulary that every layer shares: what an inode is, apart from where it is stored.

use std::ops::{Deref, DerefMut};

/// The type of an inode (`S_IFMT` of `st_mode`, inode(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
    /// UNIX domain socket.
    Socket,
}

impl Kind {
    /// The `S_IFMT` bits of this type.
    #[must_use]
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::File => libc::S_IFREG,
            Self::Dir => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::Char => libc::S_IFCHR,
            Self::Block => libc::S_IFBLK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
        }
    }

    /// The type in a `st_mode`, if it holds one that Linux knows.
    #[must_use]
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFREG => Self::File,
            libc::S_IFDIR => Self::Dir,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFCHR => Self::Char,
            libc::S_IFBLK => Self::Block,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            _ => return None,
        })
    }
}

/// Seconds and nanoseconds since the epoch. `nsec` < 1,000,000,000; `sec` may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds, rounded towards minus infinity.
    pub sec: i64,
    /// Nanoseconds after `sec`.
    pub nsec: u32,
}

/// A time to set (utimensat(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// This instant.
    At(Time),
    /// The current time.
    Now,
}

/// What stat(2) tells of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The inode number (`st_ino`).
    pub ino: u64,
    /// The type.
    pub kind: Kind,
    /// Permission bits with set-user-ID, set-group-ID and sticky: `st_mode & 0o7777`.
    pub perm: u16,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as `makedev(3)` encodes it; else 0.
    pub rdev: u64,
    /// Length in bytes (a link target's length for a symbolic link).
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
}

impl Attr {
    /// `st_mode`: type and permission bits.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.kind.mode_bits() | u32::from(self.perm)
    }
}

/// An extended attribute: full name (`user.x`, `security.capability`) and value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xattr {
    /// Name with its namespace prefix; no NUL; at most 255 bytes (`XATTR_NAME_MAX`).
    pub name: Vec<u8>,
    /// Value, at most 65,536 bytes (`XATTR_SIZE_MAX`).
    pub value: Vec<u8>,
}

/// The pieces of a file's content: nearly always one, which then takes no memory of its own.
#[derive(Debug, Clone)]
pub enum Runs<T> {
    /// One piece.
    One(T),
    /// Any number.
    Many(Vec<T>),
}

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> Deref for Runs<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Self::One(run) => std::slice::from_ref(run),
            Self::Many(runs) => runs,
        }
    }
}

impl<T> DerefMut for Runs<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::One(run) => std::slice::from_mut(run),
            Self::Many(runs) => runs,
        }
    }
}

impl<T> From<Vec<T>> for Runs<T> {
    fn from(runs: Vec<T>) -> Self {
        Self::Many(runs)
    }
}

impl<T> FromIterator<T> for Runs<T> {
    fn from_iter<I: IntoIterator<Item = T>>(runs: I) -> Self {
        let mut runs = runs.into_iter();
        match (runs.next(), runs.next()) {
            (None, _) => Self::default(),
            (Some(run), None) => Self::One(run),
            (Some(first), Some(second)) => {
                Self::Many([first, second].into_iter().chain(runs).collect())
            }
        }
    }
}

impl<'a, T> IntoIterator for &'a Runs<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: PartialEq> PartialEq for Runs<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Runs<T> {}
