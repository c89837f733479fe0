//! A blob: read by position, never mapped, and never trusted to be what it was.

use std::fs::{File, Metadata};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::{Advice, fadvise};

use crate::inode::Time;

use super::{LowerError, OpenError};

/// What tells that a file is still the one that was indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    /// Length in bytes.
    pub len: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// (st_dev, st_ino), where the file must be the very same one.
    pub dev_ino: Option<(u64, u64)>,
}

impl FileIdentity {
    /// The identity of the file that `metadata` was taken from, its place included.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            mtime: Time {
                sec: metadata.mtime(),
                nsec: u32::try_from(metadata.mtime_nsec()).unwrap_or_default(),
            },
            dev_ino: Some((metadata.dev(), metadata.ino())),
        }
    }

    /// What differs in `now`, if anything does.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<&'static str> {
        if self.len != now.len {
            Some("its length is another")
        } else if self.mtime != now.mtime {
            Some("it was written to")
        } else if self.dev_ino.is_some() && self.dev_ino != now.dev_ino {
            Some("it is another file")
        } else {
            None
        }
    }
}

/// A blob to open: where it is, and what it was when it was indexed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobFile {
    /// The file.
    pub path: PathBuf,
    /// What it must still be.
    pub identity: FileIdentity,
}

/// An open blob.
#[derive(Debug)]
pub(super) struct Blob {
    spec: BlobFile,
    file: File,
}

impl Blob {
    pub(super) fn open(spec: BlobFile) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: spec.path.clone(),
            source,
        };
        // O_NONBLOCK: a FIFO in its place must not hold us up.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(&spec.path)
            .map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let now = FileIdentity::of(&metadata);
        let what = if metadata.is_file() {
            spec.identity.difference(&now)
        } else {
            Some("it is not a regular file")
        };
        match what {
            Some(what) => Err(OpenError::BlobChanged {
                blob: spec.path,
                what,
            }),
            None => Ok(Self { spec, file }),
        }
    }

    pub(super) fn spec(&self) -> &BlobFile {
        &self.spec
    }

    /// Has the kernel begin to read a range into its page cache. A range longer than what the disk
    /// takes at once is cut short without a word (mm/readahead.c:force_page_cache_ra()).
    pub(super) fn will_need(&self, offset: u64, len: u64) -> Result<(), LowerError> {
        let Some(len) = NonZeroU64::new(len) else {
            return Ok(());
        };
        fadvise(&self.file, offset, Some(len), Advice::WillNeed).map_err(|errno| LowerError::Io {
            path: self.spec.path.clone(),
            source: errno.into(),
        })
    }

    /// Waits until the byte at `offset` is in the page cache.
    pub(super) fn settle(&self, offset: u64) -> Result<(), LowerError> {
        let mut byte = [0];
        self.file
            .read_at(&mut byte, offset)
            .map(drop)
            .map_err(|source| LowerError::Io {
                path: self.spec.path.clone(),
                source,
            })
    }

    /// Fills `buf` from `offset`. The blob is compared with what was indexed *after* the read, so
    /// that no byte of a changed one is ever given out.
    pub(super) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), LowerError> {
        let io = |source| LowerError::Io {
            path: self.spec.path.clone(),
            source,
        };
        let changed = |what| LowerError::BlobChanged {
            blob: self.spec.path.clone(),
            what,
        };
        match self.file.read_exact_at(buf, offset) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(changed("it is too short"));
            }
            Err(e) => return Err(io(e)),
        }
        self.check()
    }

    /// Compares the blob with what was indexed.
    pub(super) fn check(&self) -> Result<(), LowerError> {
        let metadata = self.file.metadata().map_err(|source| LowerError::Io {
            path: self.spec.path.clone(),
            source,
        })?;
        let difference = self.spec.identity.difference(&FileIdentity::of(&metadata));
        difference.map_or(Ok(()), |what| {
            Err(LowerError::BlobChanged {
                blob: self.spec.path.clone(),
                what,
            })
        })
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}
