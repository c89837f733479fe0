//! Files of the image as the kernel itself serves them: opened on an EROFS mount of this very
//! index, for whoever can hand the kernel a file in place of its bytes (FUSE passthrough).

use std::os::fd::OwnedFd;

use super::{Lower, LowerError, Nid};
use crate::sys::handle::NativeRoot;

impl Lower {
    /// Opens the image's files by `root`, a mount of this very index over these very blobs: to
    /// know that is the caller's part. The first one stays.
    pub fn set_native(&self, root: NativeRoot) {
        if self.native.set(root).is_err() {
            tracing::debug!("{}: has its mount already", self.index.display());
        }
    }

    /// Whether [`Self::open_native`] has something to open files on.
    #[must_use]
    pub fn has_native(&self) -> bool {
        self.native.get().is_some()
    }

    /// Opens a regular file for reading, on the image's mount; `None` where it has none, and where
    /// somebody is to be told of each read ([`Self::watch`]), who would not be.
    ///
    /// The blobs are compared with what was indexed when the file is opened, as they are at each
    /// read of [`Self::read`]; who reads the descriptor later is told nothing of a change.
    ///
    /// # Errors
    /// As [`Self::read`]. After [`LowerError::Io`] the file can still be read by [`Self::read`].
    pub fn open_native(&self, nid: Nid) -> Option<Result<OwnedFd, LowerError>> {
        if self.is_watched() {
            return None;
        }
        let root = self.native.get()?;
        Some(self.open_on(root, nid))
    }

    fn open_on(&self, root: &NativeRoot, nid: Nid) -> Result<OwnedFd, LowerError> {
        // By the index, before anything is opened: opening a device does something.
        self.file(nid)?;
        let file = root.open(nid.0).map_err(|errno| LowerError::Io {
            path: self.index.clone(),
            source: errno.into(),
        })?;
        self.check_blobs()?;
        Ok(file)
    }

    /// Compares the blobs with what was indexed.
    ///
    /// # Errors
    /// [`LowerError::BlobChanged`], [`LowerError::Io`].
    pub fn check_blobs(&self) -> Result<(), LowerError> {
        self.blobs.iter().try_for_each(super::blob::Blob::check)
    }
}
