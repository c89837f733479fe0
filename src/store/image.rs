//! An image of the store: its files, and the record of what the index cannot hold.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::inode::Time;
use crate::lower::{BlobFile, FileIdentity, Lower, OpenError};

use super::digest::{self, hex};
use super::{OnProgress, StoreError, TarFile, publish};

/// Version of the layout of an entry and of image.json. An entry of another one is made anew.
pub(super) const FORMAT: u32 = 1;
/// The index.
pub(super) const INDEX: &str = "index.erofs";
/// Sparse files that the tar's blocks cannot serve.
pub(super) const SIDE: &str = "side.blob";
/// The record.
pub(super) const RECORD: &str = "image.json";
/// The tar's digest.
const BLOB_DIGEST: &str = "blob.sha256";
/// image.json is a few hundred bytes; more is not ours.
const RECORD_MAX: u64 = 1 << 20;

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
        let mut hash = Sha256::new();
        hash.update(b"tarnfs tar identity 1\0");
        for n in [self.dev, self.ino, self.size] {
            hash.update(n.to_le_bytes());
        }
        for n in [self.mtime.0, self.mtime.1, self.ctime.0, self.ctime.1] {
            hash.update(n.to_le_bytes());
        }
        hex(&hash.finalize())
    }

    /// What a reader of the tar holds it to.
    fn file(&self) -> FileIdentity {
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

/// Where an image came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The tar's path when it was indexed (told only; bytes that are not UTF-8 are replaced).
    pub path: String,
    /// The tar's identity.
    pub identity: TarIdentity,
}

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Counts {
    /// Inodes.
    pub inodes: u64,
    /// Names.
    pub entries: u64,
    /// Bytes of all regular files, each inode once.
    pub file_bytes: u64,
}

/// The index of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRecord {
    /// Length in bytes.
    pub len: u64,
    /// SHA-256 in hex.
    pub sha256: String,
}

/// A blob of an image, in the order of the index's device table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRecord {
    /// Its file in the entry; `None`: the tar itself.
    pub file: Option<String>,
    /// Length in bytes.
    pub len: u64,
    /// Time of its last change: seconds, nanoseconds.
    pub mtime: (i64, i64),
}

/// image.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageJson {
    /// Version of this record and of the entry.
    pub format: u32,
    /// The tarnfs that made it.
    pub tarnfs: String,
    /// Seconds since the epoch when it was made.
    pub built: u64,
    /// Where it came from.
    pub source: Source,
    /// What it holds.
    pub counts: Counts,
    /// The index.
    pub index: IndexRecord,
    /// The blobs.
    pub blobs: Vec<BlobRecord>,
}

/// An image that is ready to be opened.
#[derive(Debug, Clone)]
pub struct Image {
    dir: PathBuf,
    tar: PathBuf,
    record: ImageJson,
    pub(super) fresh: bool,
}

impl Image {
    /// The image in directory `entry` for `tar`; `None` when there is none, or one that is
    /// damaged, of another version, or of another state of the tar.
    pub(super) fn load(entry: &Path, tar: &TarFile) -> Option<Self> {
        let path = entry.join(RECORD);
        if fs::metadata(&path).ok()?.len() > RECORD_MAX {
            return None;
        }
        let record: ImageJson = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        if record.format != FORMAT || record.source.identity != tar.identity {
            return None;
        }
        if fs::metadata(entry.join(INDEX)).ok()?.len() != record.index.len {
            return None;
        }
        let files = record.blobs.iter().filter_map(|blob| blob.file.as_deref());
        // One name is known; any other could lead out of the entry.
        if files.into_iter().any(|file| file != SIDE) {
            return None;
        }
        let image = Self {
            dir: entry.to_owned(),
            tar: tar.path.clone(),
            record,
            fresh: false,
        };
        // Superblock, device table and footer are checked, and the blobs' identities.
        image.lower().ok()?;
        Some(image)
    }

    /// Opens the image.
    ///
    /// # Errors
    /// [`OpenError`]: the index or a blob was changed since.
    pub fn lower(&self) -> Result<Lower, OpenError> {
        Lower::open(&self.index_path(), self.blobs())
    }

    /// The blobs, in the order of the index's device table.
    #[must_use]
    pub fn blobs(&self) -> Vec<BlobFile> {
        let of = |blob: &BlobRecord| match &blob.file {
            None => BlobFile {
                path: self.tar.clone(),
                identity: self.record.source.identity.file(),
            },
            Some(file) => BlobFile {
                path: self.dir.join(file),
                identity: FileIdentity {
                    len: blob.len,
                    mtime: Time {
                        sec: blob.mtime.0,
                        nsec: u32::try_from(blob.mtime.1).unwrap_or_default(),
                    },
                    dev_ino: None,
                },
            },
        };
        self.record.blobs.iter().map(of).collect()
    }

    /// The index file.
    #[must_use]
    pub fn index_path(&self) -> PathBuf {
        self.dir.join(INDEX)
    }

    /// The tar, as an absolute path.
    #[must_use]
    pub fn tar_path(&self) -> &Path {
        &self.tar
    }

    /// The directory of the image in the store.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// image.json.
    #[must_use]
    pub fn record(&self) -> &ImageJson {
        &self.record
    }

    /// Whether the index was made by this call, and not found in the store.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The tar's SHA-256 in hex. Reads all of it the first time; then it is remembered for this
    /// state of the tar.
    ///
    /// # Errors
    /// [`StoreError::Tar`], [`StoreError::Changed`].
    pub fn blob_digest(&self, progress: OnProgress<'_>) -> Result<String, StoreError> {
        let tar = TarFile::open(&self.tar)?;
        if tar.identity != self.record.source.identity {
            return Err(StoreError::Changed {
                path: self.tar.clone(),
            });
        }
        let memo = self.dir.join(BLOB_DIGEST);
        if let Ok(text) = fs::read_to_string(&memo)
            && let Some(digest) = digest::parse(text.trim_end())
        {
            return Ok(digest);
        }
        let digest = digest::file(&tar.file, progress).map_err(|source| StoreError::Tar {
            path: self.tar.clone(),
            source,
        })?;
        tar.check()?;
        // Only a memory: where it cannot be kept (a store of another user), the next one hashes
        // again.
        publish::file(&memo, format!("{digest}\n").as_bytes()).ok();
        Ok(digest)
    }

    /// The SHA-256 of the index as it is now, in hex. [`ImageJson::index`] has the one it was
    /// published with.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn index_digest(&self, progress: OnProgress<'_>) -> Result<String, StoreError> {
        let path = self.index_path();
        let io = |source| StoreError::Io {
            path: path.clone(),
            source,
        };
        digest::file(&File::open(&path).map_err(io)?, progress).map_err(io)
    }
}
