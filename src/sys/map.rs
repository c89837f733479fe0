//! A file mapped read-only into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;

/// The bytes of a whole file, mapped read-only.
///
/// Meant for files that are published once and never changed in place (an index): a file that is
/// truncated under the mapping ends the process with SIGBUS, so blobs are never mapped.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps `file`, all of it.
    ///
    /// # Errors
    /// What mmap(2) says; an empty file cannot be mapped.
    pub fn of(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is read-only and private to this value. The caller maps only files
        // that are never written after their publication, so the bytes do not change under `&[u8]`.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Self(map))
    }
}

impl Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
