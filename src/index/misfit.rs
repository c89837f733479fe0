//! Why an entry has no place in the tree of an image.

use std::path::Path;

use super::IndexError;
use crate::tar::{Entry, printable};

/// Why an entry has no place in the tree.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Misfit {
    /// A part of the path is something other than a directory.
    #[error("{0} is not a directory: a file used as a directory")]
    NotADirectory(String),
    /// A part of the path is a symbolic link.
    #[error(
        "its path leads through the symbolic link {0}; pack the entry under the directory that the link means"
    )]
    ThroughSymlink(String),
    /// A symbolic link of a lower layer that the layer takes for a directory.
    #[error(
        "its path leads through {0}, a symbolic link in a lower layer, which leads to no directory"
    )]
    NoDirectoryBehind(String),
    /// A whiteout that names nothing.
    #[error("a whiteout of nothing: what follows .wh. must be a file's name")]
    EmptyWhiteout,
    /// A name reserved for whiteouts, used as a directory.
    #[error("{0} is used as a directory: names that begin with .wh. say what a layer deletes")]
    BelowWhiteout(String),
    /// A non-directory where a directory with children is.
    #[error("it would replace a directory that is not empty")]
    OverDirectory,
    /// The root is not a directory.
    #[error("the root of an image must be a directory")]
    RootNotDirectory,
    /// A hard link to what the tar does not hold.
    #[error("hard link to {0}, which is not in the tar, nor in a layer below it")]
    LinkToNothing(String),
    /// A hard link to a directory.
    #[error("hard link to {0}, which is a directory")]
    LinkToDirectory(String),
    /// A hard link to its own name.
    #[error("hard link to itself")]
    LinkToItself,
    /// Hard links that lead to each other only.
    #[error("hard link to {0}, which is a hard link that leads back here")]
    LinkCycle(String),
    /// A hard link whose target cannot be reached.
    #[error("hard link to {target}: {misfit}")]
    LinkTarget {
        /// The target, printable.
        target: String,
        /// What is in the way.
        misfit: Box<Misfit>,
    },
    /// A hard link that carries content other than its target's.
    #[error("hard link to {target}: it carries {carried} bytes of content, its target has {size}")]
    LinkContent {
        /// The target, printable.
        target: String,
        /// Length of the content that the link carries.
        carried: u64,
        /// Length of the target.
        size: u64,
    },
    /// More than an index can hold.
    #[error("{0}")]
    Limit(&'static str),
}

/// A [`Misfit`], and of which entry.
#[derive(Debug)]
pub struct Fault {
    /// The path of the entry at fault, printable.
    pub entry: String,
    /// Offset of its header in the tar.
    pub offset: u64,
    /// What is wrong.
    pub misfit: Misfit,
}

impl Fault {
    /// What is wrong with `entry`.
    pub(super) fn of(entry: &Entry, misfit: Misfit) -> Self {
        Self {
            entry: shown(&entry.path),
            offset: entry.offset,
            misfit,
        }
    }

    /// As the fault of `tar`.
    pub(super) fn in_tar(self, tar: &Path) -> IndexError {
        IndexError::Misfit {
            tar: tar.to_owned(),
            entry: self.entry,
            offset: self.offset,
            misfit: self.misfit,
        }
    }
}

/// A path of the image for a person.
pub(super) fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        "./".into()
    } else {
        printable(path)
    }
}
