//! The file tree of an image between the reading of tars and the writing of an index.
//!
//! Filled by [`super::builder`] from tar entries, complete and consistent when it is handed to
//! [`crate::erofs::writer`]: one root directory, children sorted by name (bytewise), link counts
//! right, no cycle.

use crate::inode::{Kind, Time, Xattr};

/// Position of an inode in its [`Tree`]. The root is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(pub u32);

/// The root directory.
pub const ROOT: InodeId = InodeId(0);

/// A run of a file's bytes inside a blob. What no extent covers is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Length in bytes, > 0.
    pub len: u64,
    /// Which blob of the image (0 = the first).
    pub blob: u16,
    /// Offset in the blob, bytes.
    pub blob_offset: u64,
}

/// What an inode holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Regular file: extents sorted by offset, not overlapping, within `size`.
    File {
        /// Length in bytes.
        size: u64,
        /// Where the bytes are.
        extents: Vec<Extent>,
    },
    /// Directory: children sorted by name, without `.` and `..`.
    Dir {
        /// Names (each valid as a [`crate::name::Name`]) and what they lead to.
        children: Vec<(Box<[u8]>, InodeId)>,
        /// The directory that holds this one; the root's is the root.
        parent: InodeId,
    },
    /// Symbolic link: its target, 1 to 4,095 bytes, no NUL.
    Symlink(Box<[u8]>),
    /// Device node (`Kind::Char`, `Kind::Block`), with `makedev(3)`'s device number.
    Device(Kind, u64),
    /// Named pipe.
    Fifo,
    /// UNIX domain socket.
    Socket,
}

/// One inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// What it holds.
    pub content: Content,
    /// Permission bits with set-user-ID, set-group-ID, sticky (0o7777).
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// Names of a non-directory; 2 + subdirectories for a directory.
    pub nlink: u32,
    /// Extended attributes sorted by name, ACLs in the kernel's binary form
    /// (`system.posix_acl_access`, `system.posix_acl_default`).
    pub xattrs: Vec<Xattr>,
}

/// The whole tree: inodes by [`InodeId`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// All inodes; `inodes[0]` is the root directory.
    pub inodes: Vec<Inode>,
}
