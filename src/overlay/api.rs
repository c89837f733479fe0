//! What the overlay takes and gives: plain values, no FUSE.

pub use crate::inode::SetTime;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::inode::{Attr, Kind};
use crate::lower::Nid;
pub use crate::sys::asker::Asker;

/// Number of an inode as the mount shows it: nodeid and `st_ino` at once. The root is 1; an inode
/// that came from the image has its nid for life; one born in the upper has 2^40 + the upper's
/// own inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// The root directory of a mount (`FUSE_ROOT_ID`).
pub const ROOT_INO: Ino = Ino(1);

/// An open file. Unique for the life of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// Who asks: the file-system IDs of the calling thread, as the kernel gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a lookup or a creation leads to. It counts as one lookup until
/// [`Overlay::forget`](super::Overlay::forget).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The attributes; `attr.ino` is the nodeid as well.
    pub attr: Attr,
    /// Tells this inode from others that bear its number before or after it (`i_generation`):
    /// a file handle (name_to_handle_at(2)) opens no other file. 0 for those of the image, whose
    /// numbers are never used again.
    pub generation: u32,
}

/// The attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits (0o7777).
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
    /// Who asks, where a new length or owner takes set-user-ID and set-group-ID from the file if
    /// they do not keep them.
    pub asker: Option<Asker>,
}

/// An inode to create: [`Overlay::make`](super::Overlay::make).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make<'a> {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link to this target.
    Symlink(&'a [u8]),
    /// Character device with this `makedev(3)` number.
    Char(u64),
    /// Block device with this `makedev(3)` number.
    Block(u64),
    /// Named pipe.
    Fifo,
    /// UNIX domain socket.
    Socket,
}

/// Where the bytes of an open file are: [`Overlay::bytes_of`](super::Overlay::bytes_of).
#[derive(Debug, Clone)]
pub enum Bytes {
    /// In the image.
    Lower(Nid),
    /// In this file of the upper.
    Upper(Arc<OwnedFd>),
}

/// One entry of a listing.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// The name; `.` and `..` come first.
    pub name: &'a [u8],
    /// Its inode number (`d_ino`).
    pub ino: u64,
    /// Its type (`d_type`).
    pub kind: Kind,
    /// Offset to go on from after this entry (`d_off`): leads there whoever reads, whenever. It is
    /// one number as long as the directory does not change.
    pub next: u64,
    /// With [`Overlay::readdirplus`](super::Overlay::readdirplus): what a lookup of it gives,
    /// counted as one lookup if the entry is taken. `None` for `.` and `..`.
    pub entry: Option<Entry>,
}

/// What statvfs(3) tells of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks of `frsize` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for unprivileged users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred I/O size.
    pub bsize: u32,
    /// Unit of the block counts, bytes.
    pub frsize: u32,
    /// Longest name.
    pub namelen: u32,
}
