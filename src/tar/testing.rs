//! Makes tar bytes for tests, valid or as damaged as wanted.

use std::path::Path;

use super::{Entry, ReadAt, Reader, Stream, TarError};

/// A pax record with its true length.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut len = body;
    while body + len.to_string().len() != len {
        len = body + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A ustar header whose fields can be set; `block` gives it its checksum.
#[derive(Clone)]
pub(crate) struct Raw(pub(crate) [u8; 512]);

impl Raw {
    pub(crate) fn new(flag: u8, name: &str, size: u64) -> Self {
        let mut raw = Self([0; 512]);
        raw.set(0, name.as_bytes());
        raw.set(100, b"0000644\0");
        raw.set(108, b"0000000\0");
        raw.set(116, b"0000000\0");
        raw.set(124, format!("{size:011o}\0").as_bytes());
        raw.set(136, b"00000000001\0");
        raw.set(156, &[flag]);
        raw.set(257, b"ustar\x0000");
        raw
    }

    pub(crate) fn gnu(flag: u8, name: &str, size: u64) -> Self {
        let mut raw = Self::new(flag, name, size);
        raw.set(257, b"ustar  \0");
        raw
    }

    pub(crate) fn link(flag: u8, name: &str, target: &str) -> Self {
        let mut raw = Self::new(flag, name, 0);
        raw.set(157, target.as_bytes());
        raw
    }

    pub(crate) fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.set(at, bytes);
        self
    }

    pub(crate) fn block(mut self) -> [u8; 512] {
        self.set(148, b"        ");
        let sum: u32 = self.0.iter().map(|&b| u32::from(b)).sum();
        self.set(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// Headers and bodies one behind the other.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn raw(mut self, raw: Raw, body: &[u8]) -> Self {
        self.0.extend_from_slice(&raw.block());
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, body: &[u8]) -> Self {
        self.raw(Raw::new(b'0', name, body.len() as u64), body)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.raw(Raw::new(b'5', name, 0), b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(Raw::link(b'1', name, target), b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(Raw::link(b'2', name, target), b"")
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records.iter().flat_map(|(k, v)| record(k, v)).collect();
        self.extension(b'x', &body)
    }

    pub(crate) fn extension(self, flag: u8, body: &[u8]) -> Self {
        self.raw(Raw::new(flag, "ext", body.len() as u64), body)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// All entries of `tar`; as a stream it must have the same.
pub(crate) fn entries(tar: &[u8]) -> Result<Vec<Entry>, TarError> {
    let at_offsets = all(tar);
    match (&at_offsets, all(&Stream::new(tar))) {
        (Ok(want), Ok(got)) => assert_eq!(got, *want),
        (Err(_), Err(_)) => {}
        (want, got) => panic!("{want:?} of a file, {got:?} of a stream"),
    }
    at_offsets
}

fn all(tar: &(impl ReadAt + ?Sized)) -> Result<Vec<Entry>, TarError> {
    let mut reader = Reader::new(tar, Path::new("t.tar"))?;
    let mut out = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        out.push(entry);
    }
    Ok(out)
}
