//! The tar of a layer that makes one tree of another.

use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::changes::{Change, Trees};
use super::error::StackError;
use crate::index::tree::{Content, Extent};
use crate::inode::{Attr, Kind, Time};
use crate::pack::header::{BLOCK, Entry, EntryType, Place};
use crate::pack::sink::{NoMore, Out, Sink};
use crate::pack::sparse::Map;
use crate::pack::{NO_SOCKETS, PATH_LEN_MAX, TOO_DEEP, TOO_LONG};
use crate::store::Blob;
use crate::tar::printable;

/// Why a layer is not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// An entry that a tar cannot hold.
    #[error("{path}: {what}")]
    Entry { path: String, what: &'static str },
    /// A layer below cannot be read.
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The output takes no more.
    #[error("{0}")]
    Write(io::Error),
}

impl From<NoMore> for WriteError {
    fn from(error: NoMore) -> Self {
        Self::Write(error.0)
    }
}

impl From<WriteError> for StackError {
    fn from(error: WriteError) -> Self {
        Self::Writer(Box::new(error))
    }
}

/// Writes the layer of `trees`, whose files' bytes lie in `blobs`, to `out`.
pub(super) fn layer(
    trees: &Trees<'_>,
    blobs: &[Arc<Blob>],
    out: &mut dyn Write,
) -> Result<(), WriteError> {
    let mut out = Sink::new(Out::Stream(out));
    trees.each(|path, change| entry(&mut out, blobs, path, change))?;
    out.put(&[0; 1024])?;
    out.finish()?;
    Ok(())
}

fn entry(
    out: &mut Sink<'_>,
    blobs: &[Arc<Blob>],
    path: &[u8],
    change: Change<'_>,
) -> Result<(), WriteError> {
    let bad = |what| WriteError::Entry {
        path: printable(path),
        what,
    };
    if path.len() > PATH_LEN_MAX {
        return Err(bad(TOO_DEEP));
    }
    let inode = match change {
        Change::Mark => {
            let attr = attr(0o600, 0, 0, Time::default());
            let mark = Entry {
                kind: EntryType::Regular,
                ..Entry::link(path, &attr)
            };
            return put(out, &mark, 0, bad);
        }
        Change::Link { inode, first } => {
            let attr = attr(inode.perm, inode.uid, inode.gid, inode.mtime);
            let link = Entry {
                target: first,
                ..Entry::link(path, &attr)
            };
            return put(out, &link, 0, bad);
        }
        Change::Entry(inode) => inode,
    };
    let mut name = path.to_vec();
    let mut target: &[u8] = &[];
    let (mut device, mut size, mut map) = ((0, 0), 0, Map::default());
    let kind = match &inode.content {
        Content::File {
            size: bytes,
            extents,
        } => {
            size = *bytes;
            map = Map::of_runs(extents.iter().map(|extent| (extent.offset, extent.len)));
            EntryType::Regular
        }
        Content::Dir { .. } => {
            name.extend_from_slice(if path.is_empty() { b"./" } else { b"/" });
            EntryType::Directory
        }
        Content::Symlink(to) => {
            target = to;
            EntryType::Symlink
        }
        Content::Device(kind, number) => {
            device = (rustix::fs::major(*number), rustix::fs::minor(*number));
            match kind {
                Kind::Block => EntryType::Block,
                _ => EntryType::Char,
            }
        }
        Content::Fifo => EntryType::Fifo,
        Content::Socket => return Err(bad(NO_SOCKETS)),
    };
    let sparse = kind == EntryType::Regular && !map.is_dense(size);
    let lead = if sparse { map.text(size) } else { Vec::new() };
    let entry = Entry {
        name: &name,
        kind,
        target,
        perm: inode.perm,
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime,
        size: lead.len() as u64 + map.stored(),
        device,
        xattrs: &inode.xattrs,
        sparse: sparse.then_some(size),
    };
    put(out, &entry, lead.len() as u64, bad)?;
    out.put(&lead)?;
    if let Content::File { extents, .. } = &inode.content {
        for &(offset, len) in map.runs() {
            out.fill(len, |to, at| read(blobs, extents, offset + at, to))?;
        }
    }
    out.fill_block()?;
    Ok(())
}

/// Puts the blocks of an entry's headers in; `lead` bytes stand between them and its data.
fn put(
    out: &mut Sink<'_>,
    entry: &Entry<'_>,
    lead: u64,
    bad: impl Fn(&'static str) -> WriteError,
) -> Result<(), WriteError> {
    let place = Place {
        at: out.len(),
        align: BLOCK,
        lead,
    };
    let blocks = entry.blocks(place).map_err(|_| bad(TOO_LONG))?;
    out.put(&blocks)?;
    Ok(())
}

/// What headers of marks and links say of an inode.
fn attr(perm: u16, uid: u32, gid: u32, mtime: Time) -> Attr {
    Attr {
        ino: 0,
        kind: Kind::File,
        perm,
        nlink: 1,
        uid,
        gid,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 0,
        atime: mtime,
        mtime,
        ctime: mtime,
    }
}

/// Fills `to` with the bytes of a file from `offset` on: what no extent covers is zeros.
fn read(
    blobs: &[Arc<Blob>],
    extents: &[Extent],
    offset: u64,
    to: &mut [u8],
) -> Result<(), WriteError> {
    let end = offset.saturating_add(to.len() as u64);
    let first =
        extents.partition_point(|extent| extent.offset.saturating_add(extent.len) <= offset);
    let mut done = 0;
    for extent in extents.get(first..).unwrap_or_default() {
        if extent.offset >= end {
            break;
        }
        // From here on both are within the file and the piece.
        let from = extent.offset.max(offset);
        let until = extent.offset.saturating_add(extent.len).min(end);
        let place = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
        if let Some(hole) = to.get_mut(done..place(from)) {
            hole.fill(0);
        }
        done = place(until);
        let (Some(piece), Some(blob)) = (
            to.get_mut(place(from)..done),
            blobs.get(usize::from(extent.blob)),
        ) else {
            return Err(WriteError::Read {
                path: PathBuf::new(),
                source: io::ErrorKind::InvalidData.into(),
            });
        };
        let at = extent.blob_offset + (from - extent.offset);
        let read = blob.file().read_exact_at(piece, at);
        read.map_err(|source| WriteError::Read {
            path: blob.path().to_owned(),
            source,
        })?;
    }
    if let Some(hole) = to.get_mut(done..) {
        hole.fill(0);
    }
    Ok(())
}
