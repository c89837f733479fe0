//! The file tree of an image between the reading of tars and the writing of an index.
//!
//! Filled by [`super::builder`] from tar entries, complete and consistent when it is handed to
//! [`crate::erofs::writer`]: one root directory, children sorted by name (bytewise), link counts
//! right, no cycle.

use std::fmt;

use crate::inode::{Kind, Runs, Time, Xattr};

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
        extents: Runs<Extent>,
    },
    /// Directory: children sorted by name, without `.` and `..`.
    Dir {
        /// Names (each valid as a [`crate::name::Name`]) and what they lead to.
        children: Children,
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

impl Inode {
    /// A directory's children.
    #[must_use]
    pub fn children(&self) -> Option<&Children> {
        match &self.content {
            Content::Dir { children, .. } => Some(children),
            _ => None,
        }
    }

    /// [`Self::children`], to be changed.
    pub fn children_mut(&mut self) -> Option<&mut Children> {
        match &mut self.content {
            Content::Dir { children, .. } => Some(children),
            _ => None,
        }
    }
}

/// The whole tree: inodes by [`InodeId`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// All inodes; `inodes[0]` is the root directory.
    pub inodes: Vec<Inode>,
}

/// The children of a directory: names and what they lead to. All of them lie in one piece of
/// memory, since a tree has as many names as inodes: for each the inode's number, the length of
/// its name, its name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Children {
    bytes: Vec<u8>,
    /// Where the last one begins.
    last: usize,
}

/// What stands before a name.
const HEAD_LEN: usize = 6;

impl Children {
    /// Adds a child. Bytes of its name beyond 65,535, which no directory takes, are cut off.
    pub fn push(&mut self, name: &[u8], id: InodeId) {
        let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
        let name = name.get(..len.into()).unwrap_or(name);
        self.last = self.bytes.len();
        self.bytes.reserve(HEAD_LEN + name.len());
        self.bytes.extend_from_slice(&id.0.to_le_bytes());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(name);
    }

    /// Each child in its order.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter(&self.bytes)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sorts them by their names.
    pub fn sort(&mut self) {
        if self.iter().is_sorted_by_key(|(name, _)| name) {
            return;
        }
        let mut all: Vec<_> = self.iter().collect();
        all.sort_unstable();
        *self = all.into_iter().collect();
    }

    /// Where the next child goes, for [`Self::at`]; `None` beyond 4 GiB of children.
    pub(super) fn end(&self) -> Option<u32> {
        u32::try_from(self.bytes.len()).ok()
    }

    /// The last child, and where it begins.
    pub(super) fn last(&self) -> Option<(&[u8], u32)> {
        let at = u32::try_from(self.last).ok()?;
        self.at(at).map(|(name, _)| (name, at))
    }

    /// All children with where they begin.
    pub(super) fn places(&self) -> impl Iterator<Item = (&[u8], Option<u32>)> {
        let mut at = Some(0_u32);
        self.iter().map(move |(name, _)| {
            let len = u32::try_from(HEAD_LEN + name.len()).ok();
            let next = at.zip(len).and_then(|(at, len)| at.checked_add(len));
            (name, std::mem::replace(&mut at, next))
        })
    }

    /// The child that begins at `at`.
    pub(super) fn at(&self, at: u32) -> Option<(&[u8], InodeId)> {
        Iter(self.bytes.get(usize::try_from(at).ok()?..)?).next()
    }

    /// Lets the child that begins at `at` lead to `id`.
    pub(super) fn lead(&mut self, at: u32, id: InodeId) {
        let child = usize::try_from(at)
            .ok()
            .and_then(|at| self.bytes.get_mut(at..));
        if let Some(to) = child.and_then(|child| child.first_chunk_mut()) {
            *to = id.0.to_le_bytes();
        }
    }
}

/// The children of a directory one by one.
#[derive(Clone)]
pub struct Iter<'a>(&'a [u8]);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a [u8], InodeId);
    fn next(&mut self) -> Option<Self::Item> {
        let (&[a, b, c, d, e, f], rest) = self.0.split_first_chunk::<HEAD_LEN>()?;
        let (name, rest) = rest.split_at_checked(u16::from_le_bytes([e, f]).into())?;
        self.0 = rest;
        Some((name, InodeId(u32::from_le_bytes([a, b, c, d]))))
    }
}

impl<'a> IntoIterator for &'a Children {
    type Item = (&'a [u8], InodeId);
    type IntoIter = Iter<'a>;
    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl<N: AsRef<[u8]>> FromIterator<(N, InodeId)> for Children {
    fn from_iter<I: IntoIterator<Item = (N, InodeId)>>(children: I) -> Self {
        let mut this = Self::default();
        for (name, id) in children {
            this.push(name.as_ref(), id);
        }
        this
    }
}

impl fmt::Debug for Children {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, id): (&[u8], InodeId)| (name.escape_ascii().to_string(), id);
        f.debug_map().entries(self.iter().map(shown)).finish()
    }
}
