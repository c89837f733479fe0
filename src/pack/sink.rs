//! The tar on its way out: in large pieces, hashed and counted.
//!
//! The digest needs every byte, so that each is read into memory anyway: nothing would be won by
//! copy_file_range(2) on top.

use std::io::{self, Write};

use crate::digest::{Digest, Hasher};

/// What is written at once, bytes.
const PIECE: usize = 1 << 20;

/// The output takes no more.
#[derive(Debug)]
pub(crate) struct NoMore(pub(crate) io::Error);

/// Output that hashes.
pub(crate) struct Sink<'a> {
    out: &'a mut dyn Write,
    piece: Vec<u8>,
    /// Bytes of `piece` that are to be written.
    used: usize,
    hasher: Hasher,
    /// Bytes that were put in.
    len: u64,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out,
            piece: vec![0; PIECE],
            used: 0,
            hasher: Hasher::new(),
            len: 0,
        }
    }

    /// Bytes that were put in.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Puts `bytes` in.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), NoMore> {
        let mut rest = bytes;
        self.fill(bytes.len() as u64, |to, _| {
            let (now, behind) = rest.split_at_checked(to.len()).unwrap_or((rest, &[]));
            to.copy_from_slice(now);
            rest = behind;
            Ok(())
        })
    }

    /// Puts zeros in up to a whole block.
    pub(crate) fn fill_block(&mut self) -> Result<(), NoMore> {
        let rest = self.len.next_multiple_of(super::header::BLOCK) - self.len;
        self.fill(rest, |to, _| {
            to.fill(0);
            Ok(())
        })
    }

    /// Puts `len` bytes in, which `read` fills in piece by piece.
    pub(crate) fn fill<E: From<NoMore>>(
        &mut self,
        len: u64,
        mut read: impl FnMut(&mut [u8], u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut done = 0;
        while done < len {
            let room = self.piece.get_mut(self.used..).unwrap_or_default();
            let want = usize::try_from(len - done).unwrap_or(usize::MAX);
            let want = want.min(room.len());
            read(room.get_mut(..want).unwrap_or_default(), done)?;
            done += want as u64;
            self.len += want as u64;
            self.used += want;
            if self.used == self.piece.len() {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), NoMore> {
        let piece = self.piece.get(..self.used).unwrap_or_default();
        self.hasher.update(piece);
        self.used = 0;
        self.out.write_all(piece).map_err(NoMore)
    }

    /// Writes what is left; gives the digest of all and its length.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64), NoMore> {
        self.flush()?;
        self.out.flush().map_err(NoMore)?;
        Ok((self.hasher.finish(), self.len))
    }
}
