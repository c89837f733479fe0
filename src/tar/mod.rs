//! The tar header reader: from the bytes of an uncompressed tar to a sequence of [`Entry`].
//!
//! Reads v7, ustar, GNU and pax headers in one pass. docs/TAR.md says what is accepted, what is
//! refused, and how each odd case is decided.
//!
//! Invariants: every byte is hostile; geometry is checked before arithmetic; what an entry
//! promises (paths, extents, attributes) has been checked when it is handed out; each error names
//! the tar, the entry and the byte offset of the header at fault.
//!
//! What it never does: read a file's body (only those of extended headers and sparse maps; a
//! [`Stream`] has to pass over the others), skip an entry that it cannot serve, look at the tree
//! that the entries form ([`crate::index::builder`] does), write anything.

mod acl;
mod entry;
mod error;
mod header;
mod number;
mod path;
mod pax;
mod reader;
mod source;
mod sparse;
mod stream;
mod xattr;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
pub(crate) mod testing;

pub use error::{Problem, TarError, printable};
pub use reader::Reader;
pub use source::ReadAt;
pub use stream::Stream;

use crate::inode::{Kind, Runs, Time, Xattr};

/// Length of a tar block: headers are one block, bodies are padded to whole ones.
pub const BLOCK: u64 = 512;

/// A run of a file's bytes in the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Length in bytes, > 0.
    pub len: u64,
    /// Offset in the tar, bytes.
    pub tar_offset: u64,
}

/// What an entry is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Where its bytes are: sorted by offset, not overlapping, within `size` and the tar.
        segments: Runs<Segment>,
    },
    /// Directory.
    #[default]
    Dir,
    /// Symbolic link: its target, 1 to 4,095 bytes, no NUL.
    Symlink(Vec<u8>),
    /// Hard link.
    HardLink {
        /// The path it leads to, in the form of [`Entry::path`].
        target: Vec<u8>,
        /// Length of the copy of the target's content that the entry carries (pax `linkdata`).
        data: Option<u64>,
    },
    /// Device node ([`Kind::Char`], [`Kind::Block`]) with `makedev(3)`'s device number.
    Device(Kind, u64),
    /// Named pipe.
    Fifo,
}

/// One entry of a tar. The default stands for none: it is there to be read into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Offset in the tar of the entry's own header (behind its extended headers).
    pub offset: u64,
    /// Path from the image's root: valid names joined by single slashes; empty for the root.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with set-user-ID, set-group-ID and sticky.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// Extended attributes, sorted by name, each name once.
    pub xattrs: Vec<Xattr>,
}
