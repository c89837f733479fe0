//! A layer on its way into the store: hashed as it is written.

use std::io::{self, Write};

use crate::digest::{Digest, Hasher};
use crate::store::{BlobWriter, StoreError};

/// Output that is a new layer.
pub(super) struct LayerWriter {
    writer: BlobWriter,
    hasher: Hasher,
    /// Why the store has taken no more. Whoever writes may have made another error of it, or none.
    failed: Option<StoreError>,
}

impl LayerWriter {
    pub(super) fn new(writer: BlobWriter) -> Self {
        Self {
            writer,
            hasher: Hasher::new(),
            failed: None,
        }
    }

    /// Why a write has failed, if one has.
    pub(super) fn failed(&mut self) -> Option<StoreError> {
        self.failed.take()
    }

    /// What is to be published, its diff ID and its length.
    pub(super) fn finish(self) -> (BlobWriter, Digest, u64) {
        let len = self.writer.len();
        (self.writer, self.hasher.finish(), len)
    }
}

impl Write for LayerWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.writer.write(buf) {
            Ok(n) => {
                self.hasher.update(buf.get(..n).unwrap_or_default());
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let kind = e.kind();
                let error = self.writer.failed(e);
                let told = io::Error::new(kind, error.to_string());
                self.failed = Some(error);
                Err(told)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
