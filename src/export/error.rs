//! Why an image does not go out.

use std::io;
use std::path::{Path, PathBuf};

use crate::pack::output::OutputError;
use crate::pack::sink::NoMore;
use crate::store::StoreError;

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer cannot be read, or is damaged.
    #[error("{}: {source}", path.display())]
    Read {
        /// The layer.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The output file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The stream takes no more.
    #[error("{0}")]
    Write(#[source] io::Error),
    /// A directory that is something else.
    #[error("{}: {why}", dir.display())]
    Layout {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What is no name for an image in a layout.
    #[error("{tag:?}: {why}")]
    Tag {
        /// What was given.
        tag: String,
        /// What a name is.
        why: &'static str,
    },
    /// A local tar was written to.
    #[error("{}: changed since it was indexed", .0.display())]
    Changed(PathBuf),
}

impl ExportError {
    /// The error where the stream was the file `path`.
    pub(super) fn of(self, path: &Path) -> Self {
        match self {
            Self::Write(source) => OutputError::of(path)(source).into(),
            other => other,
        }
    }
}

impl From<NoMore> for ExportError {
    fn from(error: NoMore) -> Self {
        Self::Write(error.0)
    }
}
