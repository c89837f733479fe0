//! The log of what was overwritten in an upper that is in use, which may still grow.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The head of a record: a file's number, an offset, a length.
const HEAD: usize = 24;

/// Bytes that a file had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// The file's number in the upper's filesystem.
    pub(super) ino: u64,
    /// Where the bytes were.
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Where in the log they are.
    pub(super) data: u64,
}

/// A log that is read.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) file: File,
    /// Where the next record begins.
    at: u64,
}

impl Log {
    pub(super) fn new(file: File) -> Self {
        Self { file, at: 0 }
    }

    /// The next record that is there whole.
    ///
    /// # Errors
    /// read(2)'s; the log was given up.
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        let end = self.file.metadata()?.len();
        if end < self.at {
            return Err(io::Error::other("what was overwritten could not be kept"));
        }
        let data = self.at.saturating_add(HEAD as u64);
        if end < data {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        self.file.read_exact_at(&mut head, self.at)?;
        let [ino, offset, len] = numbers(&head);
        let next = data.saturating_add(len);
        if end < next {
            return Ok(None);
        }
        self.at = next;
        Ok(Some(Record {
            ino,
            offset,
            len,
            data,
        }))
    }

    /// Of one that grows no more: whether all of it was read.
    ///
    /// # Errors
    /// fstat(2)'s.
    pub(super) fn is_done(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() == self.at)
    }
}

/// Three numbers as they stand in the log.
fn numbers(head: &[u8; HEAD]) -> [u64; 3] {
    let (numbers, _) = head.as_chunks::<8>();
    let number = |n: usize| numbers.get(n).copied().unwrap_or_default();
    [0, 1, 2].map(|n| u64::from_le_bytes(number(n)))
}
