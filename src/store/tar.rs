//! Local tars, which stay where they are: the store has their indexes only, by what tells one
//! state of a file from every other.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::image::Image;
use super::{OnProgress, Store, StoreError, build, lock, publish};
use crate::digest::Hasher;
use crate::inode::Time;
use crate::lower::FileIdentity;

/// What tells one state of a local file from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TarIdentity {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change of the content: seconds, nanoseconds.
    pub mtime: (i64, i64),
    /// Time of the last change of the inode: seconds, nanoseconds.
    pub ctime: (i64, i64),
}

impl TarIdentity {
    /// The identity in `metadata`.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.len(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The name of the store's entry: SHA-256 over the numbers, in hex.
    #[must_use]
    pub fn key(&self) -> String {
        let mut hash = Hasher::new();
        hash.update(b"tarnfs tar identity 1\0");
        for n in [self.dev, self.ino, self.size] {
            hash.update(&n.to_le_bytes());
        }
        for n in [self.mtime.0, self.mtime.1, self.ctime.0, self.ctime.1] {
            hash.update(&n.to_le_bytes());
        }
        hash.finish().hex()
    }

    /// What a reader of the tar holds it to.
    pub(super) fn file(&self) -> FileIdentity {
        FileIdentity {
            len: self.size,
            mtime: Time {
                sec: self.mtime.0,
                nsec: u32::try_from(self.mtime.1).unwrap_or_default(),
            },
            dev_ino: Some((self.dev, self.ino)),
        }
    }
}

impl Store {
    /// The image of the local tar at `tar`, where its index is in the store: nothing of the tar is
    /// read.
    ///
    /// # Errors
    /// [`StoreError::Tar`], [`StoreError::NotAFile`].
    pub fn known_tar(&self, tar: &Path) -> Result<Option<Image>, StoreError> {
        let source = TarFile::open(tar)?;
        let entry = self.layout.tars().join(source.identity.key());
        Ok(Image::of_tar(&self.layout, &entry, &source))
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
    pub(super) fn tar_image_by(
        &self,
        tar: &Path,
        builder: &build::Builder<'_>,
        progress: OnProgress<'_>,
    ) -> Result<Image, StoreError> {
        let source = TarFile::open(tar)?;
        let key = source.identity.key();
        let entry = self.layout.tars().join(&key);
        if let Some(image) = Image::of_tar(&self.layout, &entry, &source) {
            return Ok(image);
        }
        self.layout.make()?;
        lock::sweep(&self.layout.tmp());
        let lock = lock::Lock::take(self.dir(), &key, progress)?;
        // Another process may have made it while this one waited.
        if let Some(image) = Image::of_tar(&self.layout, &entry, &source) {
            return Ok(image);
        }
        let temp = lock.fresh_dir()?;
        build::entry(self.dir(), &temp, &source, builder, progress)?;
        let _hold =
            publish::dir(&temp, &entry).map_err(|e| StoreError::write(self.dir(), &entry, e))?;
        drop(lock);
        let lost = || io::Error::other("the index cannot be read back after it was written");
        let mut image = Image::try_of_tar(&self.layout, &entry, &source)
            .and_then(|image| image.ok_or_else(lost))
            .map_err(StoreError::io(&entry))?;
        image.fresh = true;
        Ok(image)
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
    pub(super) fn open(given: &Path) -> Result<Self, StoreError> {
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
    pub(super) fn check(&self) -> Result<(), StoreError> {
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
