//! A layer on its way into the store.

use std::fs::File;
use std::io::{self, Write};

use crate::digest::{Digest, Hasher};
use crate::store::{BlobWriter, StoreError};

/// A layer that is being written: to it as a stream, which is hashed on its way, or else to its
/// [file](Self::file).
#[derive(Debug)]
pub struct NewLayer {
    writer: BlobWriter,
    hasher: Hasher,
    /// Of what was written to the file.
    digest: Option<Digest>,
    /// Why the store has taken no more. Whoever writes may have made another error of it, or none.
    failed: Option<StoreError>,
}

impl NewLayer {
    pub(super) fn new(writer: BlobWriter) -> Self {
        Self {
            writer,
            hasher: Hasher::new(),
            digest: None,
            failed: None,
        }
    }

    /// The regular file that it becomes, empty yet, for who writes to it by himself and then says
    /// [what](Self::wrote).
    #[must_use]
    pub fn file(&self) -> &File {
        self.writer.file()
    }

    /// Says what the file holds now: so many bytes, of this digest.
    pub fn wrote(&mut self, len: u64, digest: Digest) {
        self.writer.wrote(len);
        self.digest = Some(digest);
    }

    /// Says that the file takes no more, and why; gives it in the store's words.
    pub fn refused(&mut self, error: io::Error) -> io::Error {
        let kind = error.kind();
        let error = self.writer.failed(error);
        let told = io::Error::new(kind, error.to_string());
        self.failed = Some(error);
        told
    }

    /// Why a write has failed, if one has.
    pub(super) fn failed(&mut self) -> Option<StoreError> {
        self.failed.take()
    }

    /// What is to be published, its diff ID and its length.
    pub(super) fn finish(self) -> (BlobWriter, Digest, u64) {
        let len = self.writer.len();
        let digest = self.digest.unwrap_or_else(|| self.hasher.finish());
        (self.writer, digest, len)
    }
}

impl Write for NewLayer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.writer.write(buf) {
            Ok(n) => {
                self.hasher.update(buf.get(..n).unwrap_or_default());
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => Err(self.refused(e)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
