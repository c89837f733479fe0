//! The flattened tar of an image: one uncompressed layer that holds all of it.
//!
//! Invariants: the bytes depend on the tree and on [`Options`] alone. Directories come before what
//! is in them, names in byte order, the root first; the data of a hard-link group stand at its
//! first name; headers are ustar, with more before them only where ustar cannot say it
//! (docs/TAR.md, "Flattened"). This crate's reader reads the same tree back.
//!
//! What it never does: leave an entry out. What tar has no form for (a socket) is an error.

mod acl;
mod header;
mod output;
mod sink;
mod sparse;

#[cfg(test)]
mod tests;

pub use output::{Target, write_file};

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;

use ::tar::EntryType;

use crate::digest::Digest;
use crate::inode::{Attr, Kind, Time};
use crate::lower::{Lower, LowerError, Nid, Step};
use crate::tar::printable;

use header::{Entry, ID_MAX, NUMBER_MAX, Place};
use sink::Sink;
use sparse::Map;

/// The longest path that readers take (`PATH_MAX` without its NUL), bytes.
const PATH_LEN_MAX: usize = 4095;

/// A boundary for the data of files: a power of two, 512 bytes to 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Align(u64);

impl Align {
    /// As every tar has it: 512.
    pub const BLOCK: Self = Self(header::BLOCK);

    /// Multiples of `bytes`, where that can be asked for.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let good = bytes.is_power_of_two() && (header::BLOCK..=1 << 20).contains(&bytes);
        good.then_some(Self(bytes))
    }
}

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
    #[error("{}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
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
    let mut writer = Writer {
        lower,
        options,
        out: Sink::new(out),
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
    let (digest, len) = writer.out.finish()?;
    Ok(Flattened {
        digest,
        len,
        entries: writer.entries,
    })
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
            return Err(bad("its path is longer than Linux allows (4095 bytes)"));
        }
        self.entries += 1;
        if kind != Kind::Dir && attr.nlink > 1 {
            if let Some(first) = self.first.get(&nid) {
                let link = Entry {
                    target: first,
                    ..link(path, &attr)
                };
                let blocks = link.blocks(self.place(0)).map_err(|_| bad(TOO_LONG))?;
                return self.out.put(&blocks);
            }
            self.first.insert(nid, path.into());
        }
        let kind = match kind {
            Kind::File => EntryType::Regular,
            Kind::Dir => EntryType::Directory,
            Kind::Symlink => EntryType::Symlink,
            Kind::Char => EntryType::Char,
            Kind::Block => EntryType::Block,
            Kind::Fifo => EntryType::Fifo,
            Kind::Socket => return Err(bad("is a socket, which a tar cannot hold")),
        };
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
        let entry = Entry {
            name: if dir_name.is_empty() { path } else { &dir_name },
            kind,
            target: &target,
            perm: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            mtime: attr.mtime,
            size: lead.len() as u64 + map.stored(),
            device: match attr.kind {
                Kind::Char | Kind::Block => {
                    (rustix::fs::major(attr.rdev), rustix::fs::minor(attr.rdev))
                }
                _ => (0, 0),
            },
            xattrs: &xattrs,
            sparse: sparse.then_some(attr.size),
        };
        let mut place = self.place(lead.len() as u64);
        if map.runs().is_empty() {
            place.align = header::BLOCK;
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
            align: self.options.align.0,
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
        out.fill(len, &mut |to, at| {
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

const TOO_LONG: &str = "its extended attributes take more than the 16 MiB that readers take";

/// A further name of an inode: what its header says of the inode is moot, since the first name's
/// has said it, and stands there only as far as ustar can say it.
fn link<'a>(path: &'a [u8], attr: &Attr) -> Entry<'a> {
    let id = |id: u32| if id > ID_MAX { 0 } else { id };
    Entry {
        name: path,
        kind: EntryType::Link,
        target: b"",
        perm: attr.perm,
        uid: id(attr.uid),
        gid: id(attr.gid),
        mtime: Time {
            sec: match u64::try_from(attr.mtime.sec) {
                Ok(sec) if sec <= NUMBER_MAX => attr.mtime.sec,
                _ => 0,
            },
            nsec: 0,
        },
        size: 0,
        device: (0, 0),
        xattrs: &[],
        sparse: None,
    }
}
