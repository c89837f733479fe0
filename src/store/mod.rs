//! The image store: where indexes (and later blobs) live, by digest or by the tar's identity.
//!
//! ```text
//! <store>/tars/<key>/index.erofs    the index of one local tar
//!                    side.blob      sparse files that the tar's blocks cannot serve, if any
//!                    image.json     what EROFS cannot hold
//!                    blob.sha256    the tar's digest, once somebody asked for it
//! <store>/tmp/<key>, <key>.lock     an index in the making, and who makes it
//! ```
//! The key of a local tar is the SHA-256 of its identity (device, inode, size, times of change),
//! so that nothing of the tar is read to find its index; its name is no part of it.
//!
//! Invariants: an entry is published whole, by a rename, or not at all; a published index is never
//! changed in place; an entry that is damaged or of another version is made anew, never trusted.
//! Never here: an environment variable (the command line passes directories in), output.

mod build;
mod digest;
mod image;
mod lock;
mod publish;

#[cfg(test)]
mod tests;

pub use build::{Built, write_index};
pub use image::{BlobRecord, Counts, Image, ImageJson, IndexRecord, Source, TarIdentity};

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What long work is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Another process makes the same index; this one waits for it.
    Waiting,
    /// Reading the tar's headers: bytes passed, of all.
    Indexing {
        /// Position in the tar.
        done: u64,
        /// Length of the tar.
        total: u64,
    },
    /// Hashing a file: bytes hashed, of all.
    Hashing {
        /// Bytes so far.
        done: u64,
        /// Length of the file.
        total: u64,
    },
}

/// Who is told of [`Progress`].
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress);

/// Why the store has no image to give.
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
    #[error("{path}: not a regular file; an image is a tar file")]
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
        "the store {store} is full: {source}; free space there or choose another with --store DIR"
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
    fn write(store: &Path, path: &Path, source: io::Error) -> Self {
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
}

/// A directory of images.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The store in `dir`, which need not exist yet: it is made when something is written.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        // A server changes its directory, and opens files of the store after that. Without a
        // current directory the path stays as it is, and its use will say what is wrong.
        Self {
            dir: std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()),
        }
    }

    /// Where the store is when nobody says: `/var/lib/tarnfs` for root, else `tarnfs` under
    /// `xdg_data_home` (`$XDG_DATA_HOME`; must be absolute to count) or `home/.local/share`.
    #[must_use]
    pub fn default_dir(
        root: bool,
        xdg_data_home: Option<&Path>,
        home: Option<&Path>,
    ) -> Option<PathBuf> {
        if root {
            return Some(PathBuf::from("/var/lib/tarnfs"));
        }
        xdg_data_home
            .filter(|dir| dir.is_absolute())
            .map(Path::to_owned)
            .or_else(|| {
                home.filter(|dir| dir.is_absolute())
                    .map(|home| home.join(".local/share"))
            })
            .map(|data| data.join("tarnfs"))
    }

    /// The store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The image of the local tar at `tar`: at once where its index is in the store, else the
    /// index is made first.
    ///
    /// # Errors
    /// [`StoreError`] names the file and what is wrong.
    pub fn tar_image(&self, tar: &Path, progress: OnProgress<'_>) -> Result<Image, StoreError> {
        self.tar_image_by(tar, &build::build, progress)
    }

    /// [`Self::tar_image`] with the maker of the index given.
    fn tar_image_by(
        &self,
        tar: &Path,
        builder: &build::Builder<'_>,
        progress: OnProgress<'_>,
    ) -> Result<Image, StoreError> {
        let source = TarFile::open(tar)?;
        let key = source.identity.key();
        let entry = self.dir.join("tars").join(&key);
        if let Some(image) = Image::load(&entry, &source) {
            return Ok(image);
        }
        self.make_dirs()?;
        lock::sweep(&self.dir.join("tmp"));
        let lock = lock::Lock::take(&self.dir, &key, progress)?;
        // Another process may have made it while this one waited.
        if let Some(image) = Image::load(&entry, &source) {
            return Ok(image);
        }
        let temp = lock.fresh_dir()?;
        build::entry(&self.dir, &temp, &source, builder, progress)?;
        publish::dir(&temp, &entry).map_err(|e| StoreError::write(&self.dir, &entry, e))?;
        drop(lock);
        let mut image = Image::load(&entry, &source).ok_or_else(|| StoreError::Io {
            path: entry.clone(),
            source: io::Error::other("the index cannot be read back after it was written"),
        })?;
        image.fresh = true;
        Ok(image)
    }

    fn make_dirs(&self) -> Result<(), StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        for sub in ["tars", "tmp"] {
            let dir = self.dir.join(sub);
            // Names of files may be as private as their content.
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|e| StoreError::write(&self.dir, &dir, e))?;
        }
        Ok(())
    }
}

/// An open local tar.
#[derive(Debug)]
pub(crate) struct TarFile {
    /// Its name as the caller gave it, for messages.
    pub(crate) given: PathBuf,
    /// Its absolute name without links.
    pub(crate) path: PathBuf,
    /// The open file.
    pub(crate) file: File,
    /// What it was when it was opened.
    pub(crate) identity: TarIdentity,
}

impl TarFile {
    fn open(given: &Path) -> Result<Self, StoreError> {
        let tar = |source| StoreError::Tar {
            path: given.to_owned(),
            source,
        };
        // O_NONBLOCK: opening a FIFO must not wait for a writer.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(given)
            .map_err(tar)?;
        let metadata = file.metadata().map_err(tar)?;
        if !metadata.is_file() {
            return Err(StoreError::NotAFile {
                path: given.to_owned(),
            });
        }
        let path = std::fs::canonicalize(given).map_err(tar)?;
        let identity = TarIdentity::of(&metadata);
        Ok(Self {
            given: given.to_owned(),
            path,
            file,
            identity,
        })
    }

    /// Whether the file is still what it was when it was opened.
    fn check(&self) -> Result<(), StoreError> {
        let tar = |source| StoreError::Tar {
            path: self.given.clone(),
            source,
        };
        let now = TarIdentity::of(&self.file.metadata().map_err(tar)?);
        if now == self.identity {
            Ok(())
        } else {
            Err(StoreError::Changed {
                path: self.given.clone(),
            })
        }
    }
}
