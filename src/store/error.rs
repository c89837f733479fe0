//! What can go wrong in the store, in one line each.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// Why the store has no image to give, or cannot take one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The tar cannot be opened or read.
    #[error("{path}: {source}")]
    Tar {
        /// The tar.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The path leads to no regular file.
    #[error(
        "{path}: not a regular file, as a tar must be; a pipe is imported with `tarnfs import -`"
    )]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// The tar was written to while its headers were read.
    #[error("{path}: changed while it was being read; try again when it is complete")]
    Changed {
        /// The tar.
        path: PathBuf,
    },
    /// The tar is none, or holds what cannot be served.
    #[error("{0}")]
    Build(Box<dyn std::error::Error + Send + Sync>),
    /// There is no such image.
    #[error("{name}: no such image in the store {store}; `tarnfs images` lists what there is")]
    NoImage {
        /// What was asked for.
        name: String,
        /// The store's directory.
        store: PathBuf,
    },
    /// Several images have digests that begin so.
    #[error("{name}: {count} images have digests that begin so; give more digits")]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// How many there are.
        count: usize,
    },
    /// What was given as a name is none.
    #[error("{name:?}: {why}")]
    BadName {
        /// What was given.
        name: String,
        /// What a name is.
        why: &'static str,
    },
    /// A layer that an image needs is missing or damaged.
    #[error(
        "image {image}: its layer {layer} {what}; import the image again, or `tarnfs verify --repair`"
    )]
    Layer {
        /// The image.
        image: Digest,
        /// The layer's diff ID.
        layer: Digest,
        /// What is wrong with it: "is missing", "has 5 bytes instead of 10".
        what: String,
    },
    /// The index of an image is missing or damaged.
    #[error("image {image}: its index {what}; import the image again, or `tarnfs verify --repair`")]
    Index {
        /// The image.
        image: Digest,
        /// What is wrong with it.
        what: String,
    },
    /// What the store has noted of an image cannot be read, or is not the image's.
    #[error(
        "image {image}: its image.json is missing, damaged or of another version; import the image again, or `tarnfs verify --repair`"
    )]
    Record {
        /// The image.
        image: Digest,
    },
    /// It is in use and stays.
    #[error("{what} is in use: {by}")]
    InUse {
        /// The image.
        what: String,
        /// By whom.
        by: String,
    },
    /// The store cannot be written to by this user.
    #[error("the store {store} cannot be written to: {source}; choose another with --store DIR")]
    NotWritable {
        /// The store's directory.
        store: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The store's file system is full.
    #[error(
        "the store {store} is full: {source}; free space there (tarnfs gc) or choose another with --store DIR"
    )]
    Full {
        /// The store's directory.
        store: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Something else failed in the store.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl StoreError {
    /// The error of writing `path` in the store (or directory) `store`.
    pub(super) fn write(store: &Path, path: &Path, source: io::Error) -> Self {
        let store = store.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { store, source }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NotWritable { store, source }
            }
            _ => Self::Io {
                path: path.to_owned(),
                source,
            },
        }
    }

    /// The error of reading `path`.
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            path: path.clone(),
            source,
        }
    }
}
