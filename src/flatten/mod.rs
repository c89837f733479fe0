//! The flattened tar of an image: one uncompressed layer that holds all of it.
//!
//! Invariants: the bytes depend on the tree and on [`Options`] alone. Directories come before what
//! is in them, names in byte order, the root first; the data of a hard-link group stand at its
//! first name; headers are ustar, with more before them only where ustar cannot say it
//! (docs/TAR.md, "Flattened"). This crate's reader reads the same tree back.
//!
//! What it never does: leave an entry out. What tar has no form for (a socket) is an error.

#[cfg(test)]
mod tests;

pub use crate::pack::{Align, OutputError, Target};

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use crate::digest::Digest;
use crate::inode::Kind;
use crate::lower::{Lower, LowerError, Nid, Step};
use crate::pack::header::{BLOCK, Entry, Place};
use crate::pack::output::NewFile;
use crate::pack::sink::{Hashing, NoMore, Out, Sink};
use crate::pack::sparse::Map;
use crate::pack::{NO_SOCKETS, PATH_LEN_MAX, TOO_DEEP, TOO_LONG};
use crate::tar::printable;

/// How the tar is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the data of each regular file begin (of a sparse one: those of its first run).
    pub align: Align,
    /// Which of the image's blobs are side blobs: their files' holes are found by content.
    pub side_blobs: Vec<u16>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            align: Align::BLOCK,
            side_blobs: Vec::new(),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flattened {
    /// SHA-256 of the tar: its diff ID.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
    /// Its entries: each name of each inode, and the root.
    pub entries: u64,
}

/// Why there is no flattened tar.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlattenError {
    /// The image does not answer.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// An entry that a tar cannot hold.
    #[error("{path}: {what}")]
    Entry {
        /// Its path, printable.
        path: String,
        /// Why not.
        what: &'static str,
    },
    /// The output takes no more.
    #[error("{0}")]
    Write(#[source] io::Error),
    /// The output file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl From<NoMore> for FlattenError {
    fn from(error: NoMore) -> Self {
        Self::Write(error.0)
    }
}

/// Told how many bytes of files are done, holes included, of how many (0: not known).
pub type OnProgress<'p> = &'p mut dyn FnMut(u64, u64);

/// Writes the flattened tar of `lower` to `out`.
///
/// # Errors
/// [`FlattenError`]; what was written by then is no tar.
pub fn write(
    lower: &Lower,
    options: &Options,
    out: &mut dyn Write,
    progress: OnProgress<'_>,
) -> Result<Flattened, FlattenError> {
    let mut out = Hashing::new(out);
    let mut writer = Writer {
        lower,
        options,
        out: Sink::new(Out::Stream(&mut out)),
        first: HashMap::new(),
        entries: 0,
        done: 0,
        total: lower.stats().file_bytes.unwrap_or(0),
        progress,
    };
    writer.entry(b"", lower.root(), Kind::Dir)?;
    lower.walk(lower.root(), &mut |walked| {
        writer.entry(walked.path, walked.nid, walked.kind)?;
        Ok::<_, FlattenError>(Step::Into)
    })?;
    // Also where there was no byte to read.
    lower.check_blobs()?;
    writer.out.put(&[0; 1024])?;
    let entries = writer.entries;
    let len = writer.out.finish()?;
    Ok(Flattened {
        digest: out.finish(),
        len,
        entries,
    })
}

/// Writes the flattened tar of `lower` to the file `path`, in place of what regular file is there.
///
/// # Errors
/// [`FlattenError`]; then nothing has changed.
pub fn write_file(
    lower: &Lower,
    options: &Options,
    path: &Path,
    progress: OnProgress<'_>,
) -> Result<Flattened, FlattenError> {
    let fail = OutputError::of(path);
    let mut file = NewFile::beside(path).map_err(&fail)?;
    let made = write(lower, options, file.file(), progress).map_err(|error| match error {
        FlattenError::Write(source) => fail(source).into(),
        other => other,
    })?;
    file.publish().map_err(fail)?;
    Ok(made)
}

/// A tar in the making.
struct Writer<'a> {
    lower: &'a Lower,
    options: &'a Options,
    out: Sink<'a>,
    /// The first name of each inode that has several.
    first: HashMap<Nid, Box<[u8]>>,
    entries: u64,
    /// Bytes of files that are done, and that there are.
    done: u64,
    total: u64,
    progress: OnProgress<'a>,
}

impl Writer<'_> {
    /// Writes what has `path`, of which the directory says that it is of `kind`.
    fn entry(&mut self, path: &[u8], nid: Nid, kind: Kind) -> Result<(), FlattenError> {
        let bad = |what| FlattenError::Entry {
            path: printable(path),
            what,
        };
        let attr = self.lower.attr(nid)?;
        if attr.kind != kind {
            return Err(bad(
                "the index is damaged: the directory and the inode tell different types",
            ));
        }
        if path.len() > PATH_LEN_MAX {
            return Err(bad(TOO_DEEP));
        }
        self.entries += 1;
        if kind != Kind::Dir && attr.nlink > 1 {
            if let Some(first) = self.first.get(&nid) {
                let link = Entry {
                    target: first,
                    ..Entry::link(path, &attr)
                };
                let blocks = link.blocks(self.place(0)).map_err(|_| bad(TOO_LONG))?;
                return Ok(self.out.put(&blocks)?);
            }
            self.first.insert(nid, path.into());
        }
        let dir_name = match (attr.kind, path) {
            (Kind::Dir, b"") => b"./".to_vec(),
            (Kind::Dir, path) => [path, b"/"].concat(),
            _ => Vec::new(),
        };
        let target = match attr.kind {
            Kind::Symlink => self.lower.readlink(nid)?,
            _ => Vec::new(),
        };
        let map = match attr.kind {
            Kind::File => Map::of(self.lower, nid, &self.options.side_blobs)?,
            _ => Map::default(),
        };
        let sparse = attr.kind == Kind::File && !map.is_dense(attr.size);
        let lead = if sparse {
            map.text(attr.size)
        } else {
            Vec::new()
        };
        let xattrs = self.lower.xattrs(nid)?;
        let name = if dir_name.is_empty() { path } else { &dir_name };
        let entry = Entry {
            target: &target,
            size: lead.len() as u64 + map.stored(),
            xattrs: &xattrs,
            sparse: sparse.then_some(attr.size),
            ..Entry::of(name, &attr).ok_or_else(|| bad(NO_SOCKETS))?
        };
        let mut place = self.place(lead.len() as u64);
        if map.runs().is_empty() {
            place.align = BLOCK;
        }
        let blocks = entry.blocks(place).map_err(|_| bad(TOO_LONG))?;
        self.out.put(&blocks)?;
        self.out.put(&lead)?;
        for &(offset, len) in map.runs() {
            self.data(path, nid, offset, len)?;
        }
        self.out.fill_block()?;
        if attr.kind == Kind::File {
            self.done = self.done.saturating_add(attr.size - map.stored());
            (self.progress)(self.done, self.total);
        }
        Ok(())
    }

    /// Where the next entry's headers go.
    fn place(&self, lead: u64) -> Place {
        Place {
            at: self.out.len(),
            align: self.options.align.bytes(),
            lead,
        }
    }

    /// Copies `len` bytes from `offset` on of file `nid`.
    fn data(&mut self, path: &[u8], nid: Nid, offset: u64, len: u64) -> Result<(), FlattenError> {
        let Self {
            lower,
            out,
            done,
            total,
            progress,
            ..
        } = self;
        out.fill(len, |to, at| {
            // Compares the blob with what was indexed after each read.
            if lower.read(nid, offset + at, to)? != to.len() {
                return Err(FlattenError::Entry {
                    path: printable(path),
                    what: "the index is damaged: the file is shorter than its runs",
                });
            }
            *done = done.saturating_add(to.len() as u64);
            progress(*done, *total);
            Ok(())
        })
    }
}
