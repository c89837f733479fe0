//! The image, read only: lookup, listing, attributes and bytes from the memory-mapped index and
//! the blobs.
//!
//! Every byte of the index is hostile: geometry is checked before arithmetic, and what does not
//! add up is a [`LowerError`], never a panic. Nothing here is ever written.
//!
//! The index is mapped (it is published once and never changed); a blob never is, because it is
//! another's file: a read of a mapping of a truncated file would end the process with SIGBUS.
//! Each read of a blob compares its size and time of change with those it was indexed with.

mod blob;
mod counters;
#[cfg(any(test, fuzzing))]
pub mod exercise;
mod names;
mod native;
mod resolve;
mod walk;
mod warm;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use blob::{BlobFile, FileIdentity};
pub use counters::Counters;
pub use resolve::{MAX_LINKS, ResolveError, Resolved};
pub use walk::{Step, Walked};
pub use warm::{Touch, Watch};

use std::any::Any;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

pub use crate::erofs::reader::Place;
use crate::erofs::reader::{Bytes, DirPosition, Inode, ReadError, Reader, Reverse};
use crate::inode::{Attr, Kind, Xattr};
use crate::name::Name;
use crate::sys::handle::NativeRoot;
use crate::sys::map::Map;

use blob::Blob;

/// Number of an inode in the index (EROFS nid: offset from the metadata start in 32-byte slots).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nid(pub u64);

/// Why the image could not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LowerError {
    /// The index contradicts itself.
    #[error("{index}: damaged index: {what} (at byte {offset})")]
    Damaged {
        /// The index file.
        index: PathBuf,
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// A blob is shorter, or other, than when it was indexed.
    #[error("{blob}: changed since it was indexed: {what}")]
    BlobChanged {
        /// The blob.
        blob: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// The operation needs a directory (or a symbolic link, or a regular file) and this is none.
    #[error("inode {0} is not of the type that the operation needs")]
    WrongKind(u64),
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// An entry of a lower directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowerEntry<'a> {
    /// Its name, checked as [`crate::name::check`] does.
    pub name: &'a [u8],
    /// What it leads to.
    pub nid: Nid,
    /// The type that the directory notes for it.
    pub kind: Kind,
    /// Position to go on from *after* this entry; strictly rising, > 0.
    pub next: u64,
}

/// What [`Lower::seek`] looks for (`SEEK_DATA`, `SEEK_HOLE` of lseek(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is stored.
    Data,
    /// The next byte of a hole; the end of the file counts as one.
    Hole,
}

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The index is damaged, or is no index.
    #[error("{index}: not a readable index: {source}")]
    Index {
        /// The index file.
        index: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// The index refers to more or fewer blobs than were given.
    #[error("{index}: the index refers to {wanted} blobs, {given} are given")]
    Blobs {
        /// The index file.
        index: PathBuf,
        /// Slots of its device table.
        wanted: usize,
        /// Blobs that were given.
        given: usize,
    },
    /// A blob is not the one that was indexed.
    #[error("{blob}: changed since it was indexed: {what}")]
    BlobChanged {
        /// The blob.
        blob: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Counts that an image tells without a walk through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Inodes, as the index notes them.
    pub inodes: u64,
    /// Names without `.` and `..`, where the index notes them.
    pub entries: Option<u64>,
    /// Bytes of all regular files, where the index notes them.
    pub file_bytes: Option<u64>,
    /// Length of the index file in bytes.
    pub index_len: u64,
    /// Lengths of the blobs together, in bytes.
    pub blob_len: u64,
}

/// Where a run of a file's bytes is: [`Lower::extent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes, > 0.
    pub len: u64,
    /// Where they are.
    pub place: Place,
}

/// An opened image.
#[derive(Debug)]
pub struct Lower {
    index: PathBuf,
    reader: Reader,
    root: Nid,
    blobs: Vec<Blob>,
    reverse: Option<Reverse>,
    /// The reverse table of an index without one: made by the first [`Self::names`], kept.
    scanned: OnceLock<Vec<(u64, u64)>>,
    /// The directory that [`Self::names`] asked last.
    last_dir: Mutex<Option<Arc<names::ByNid>>>,
    /// A mount of this index by the kernel: [`Self::set_native`].
    native: OnceLock<NativeRoot>,
    /// Who is told what is read.
    watch: Option<Arc<Watch>>,
    /// What lives as long as the image is open: [`Self::keep`].
    kept: Option<Arc<dyn Any + Send + Sync>>,
    counters: Counters,
}

impl Lower {
    /// Opens the index file `index` over `blobs`, in the order of its device table.
    ///
    /// # Errors
    /// [`OpenError`] says which file and what is wrong with it.
    pub fn open(index: &Path, blobs: Vec<BlobFile>) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io {
            path: index.to_owned(),
            source,
        };
        let file = File::open(index).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            let source = ReadError::Damaged {
                what: "the file is empty",
                offset: 0,
            };
            return Err(OpenError::Index {
                index: index.to_owned(),
                source,
            });
        }
        Self::of_bytes(index, Bytes::Mapped(Map::of(&file).map_err(io)?), blobs)
    }

    /// Opens an index whose bytes are at hand; `index` is its name in errors.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_bytes(index: &Path, bytes: Bytes, blobs: Vec<BlobFile>) -> Result<Self, OpenError> {
        let bad = |source| OpenError::Index {
            index: index.to_owned(),
            source,
        };
        let reader = Reader::new(bytes).map_err(bad)?;
        let wanted = reader.superblock().devices.len();
        if wanted != blobs.len() {
            let given = blobs.len();
            return Err(OpenError::Blobs {
                index: index.to_owned(),
                wanted,
                given,
            });
        }
        let root = reader.superblock().root;
        if reader.inode(root).map_err(bad)?.kind != Kind::Dir {
            let what = "the root is not a directory";
            return Err(bad(ReadError::Damaged { what, offset: 0 }));
        }
        let reverse = reader.reverse().map_err(bad)?;
        let blobs = blobs
            .into_iter()
            .map(Blob::open)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            index: index.to_owned(),
            reader,
            root: Nid(root),
            blobs,
            reverse,
            scanned: OnceLock::new(),
            last_dir: Mutex::new(None),
            native: OnceLock::new(),
            watch: None,
            kept: None,
            counters: Counters::default(),
        })
    }

    /// Has `what` live as long as the image is open, as its owner's right to count on its files.
    pub fn keep(&mut self, what: Arc<dyn Any + Send + Sync>) {
        self.kept = Some(what);
    }

    /// Takes the index's pages that were looked at out of this process. The kernel keeps them for
    /// all who have the image open.
    ///
    /// # Errors
    /// The system's.
    pub fn let_go_of_index(&self) -> std::io::Result<()> {
        self.reader.let_go()
    }

    /// The index file.
    #[must_use]
    pub fn index_path(&self) -> &Path {
        &self.index
    }

    /// The blobs, in the order of the index's device table.
    pub fn blobs(&self) -> impl ExactSizeIterator<Item = &BlobFile> {
        self.blobs.iter().map(Blob::spec)
    }

    /// The same blobs, as open files.
    pub fn blob_files(&self) -> impl ExactSizeIterator<Item = &File> {
        self.blobs.iter().map(Blob::file)
    }

    /// The volume's UUID in the index, by which the kernel's mounts of it can be told.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.reader.superblock().uuid
    }

    /// What the image tells of itself without a walk.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let footer = self.reader.footer().ok().flatten();
        Stats {
            inodes: self.reader.superblock().inodes,
            entries: footer.map(|f| f.dirents),
            file_bytes: footer.map(|f| f.file_bytes),
            index_len: self.reader.len(),
            blob_len: self
                .blobs()
                .fold(0, |sum, b| sum.saturating_add(b.identity.len)),
        }
    }

    /// Tells this index from another: the checksum of its bytes and their number, as its footer
    /// has them. 0 for an index without a footer.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let footer = self.reader.footer().ok().flatten();
        footer.map_or(0, |f| {
            u64::from(f.body_crc) << 32 | (self.reader.len() & 0xffff_ffff)
        })
    }

    /// What it has been asked so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Nid {
        self.root
    }

    /// The child of directory `dir` called `name`.
    ///
    /// # Errors
    /// [`LowerError::WrongKind`] when `dir` is no directory; [`LowerError::Damaged`].
    pub fn lookup(&self, dir: Nid, name: &Name) -> Result<Option<Nid>, LowerError> {
        self.counters.lookups.add(1);
        let dir = self.inode(dir)?;
        let found = self.of(self.reader.find(&dir, name.as_bytes()))?;
        Ok(found.map(|entry| Nid(entry.nid)))
    }

    /// The directory that holds directory `dir` (the root holds itself).
    ///
    /// # Errors
    /// [`LowerError::WrongKind`] when `dir` is no directory; [`LowerError::Damaged`].
    pub fn parent(&self, dir: Nid) -> Result<Nid, LowerError> {
        if dir == self.root {
            return Ok(dir);
        }
        let inode = self.inode(dir)?;
        let found = self.of(self.reader.find(&inode, b".."))?;
        let parent = found
            .ok_or_else(|| self.damaged("a directory without \"..\""))?
            .nid;
        if self.inode(Nid(parent))?.kind != Kind::Dir {
            return Err(self.damaged("a \"..\" that is no directory"));
        }
        Ok(Nid(parent))
    }

    /// Attributes of an inode; `ino` is the nid, atime = ctime = mtime. `blocks` counts what is
    /// stored, in whole 512-byte blocks: for a file without holes what the kernel's EROFS shows
    /// (fs/erofs/inode.c:erofs_read_inode), and less for one with holes, so that du(1) is right
    /// and cp(1) and tar(1) look for them.
    ///
    /// # Errors
    /// [`LowerError::Damaged`].
    pub fn attr(&self, nid: Nid) -> Result<Attr, LowerError> {
        let inode = self.inode(nid)?;
        let (major, minor) = inode.device;
        Ok(Attr {
            ino: nid.0,
            kind: inode.kind,
            perm: inode.perm,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: libc::makedev(major, minor),
            size: inode.size,
            blocks: self.of(self.reader.stored(&inode))?.div_ceil(512),
            blksize: 4096,
            atime: inode.mtime,
            mtime: inode.mtime,
            ctime: inode.mtime,
        })
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// [`LowerError::WrongKind`] when it is none; [`LowerError::Damaged`].
    pub fn readlink(&self, nid: Nid) -> Result<Vec<u8>, LowerError> {
        self.of(self.reader.target(&self.inode(nid)?))
    }

    /// Calls `each` for the entries of `dir` behind position `from` (0 = the start), without `.`
    /// and `..`, in byte order of names, until it breaks.
    ///
    /// # Errors
    /// [`LowerError::WrongKind`] when `dir` is no directory; [`LowerError::Damaged`].
    pub fn readdir(
        &self,
        dir: Nid,
        from: u64,
        each: &mut dyn FnMut(LowerEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), LowerError> {
        let dir = self.inode(dir)?;
        let listed = self
            .reader
            .list(&dir, DirPosition(from), &mut |entry, next| {
                if matches!(entry.name, b"." | b"..") {
                    return ControlFlow::Continue(());
                }
                each(LowerEntry {
                    name: entry.name,
                    nid: Nid(entry.nid),
                    kind: entry.kind,
                    next: next.0,
                })
            });
        self.of(listed)
    }

    /// All extended attributes, sorted by name.
    ///
    /// # Errors
    /// [`LowerError::Damaged`].
    pub fn xattrs(&self, nid: Nid) -> Result<Vec<Xattr>, LowerError> {
        self.of(self.reader.xattrs(&self.inode(nid)?))
    }

    /// The value of one extended attribute.
    ///
    /// # Errors
    /// [`LowerError::Damaged`].
    pub fn xattr(&self, nid: Nid, name: &[u8]) -> Result<Option<Vec<u8>>, LowerError> {
        self.of(self.reader.xattr(&self.inode(nid)?, name))
    }

    /// Reads into `buf` from `offset`; short only at the end of the file.
    ///
    /// # Errors
    /// [`LowerError::WrongKind`] when it is no regular file; [`LowerError::BlobChanged`] when a
    /// blob is no longer what was indexed; [`LowerError::Damaged`], [`LowerError::Io`].
    pub fn read(&self, nid: Nid, offset: u64, buf: &mut [u8]) -> Result<usize, LowerError> {
        let inode = self.file(nid)?;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(at) = offset.checked_add(done as u64) else {
                break;
            };
            let Some(run) = self.of(self.reader.run(&inode, at, rest.len() as u64))? else {
                break;
            };
            let len = usize::try_from(run.len)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let Some(part) = rest.get_mut(..len) else {
                break;
            };
            match run.place {
                Place::Hole => part.fill(0),
                Place::Image(pos) => {
                    let stored = self
                        .reader
                        .slice(pos, len as u64, "file data behind the end");
                    part.copy_from_slice(self.of(stored)?);
                }
                Place::Device { index, offset } => {
                    let blob = self.blobs.get(usize::from(index));
                    let blob = blob.ok_or_else(|| self.damaged("a blob that does not exist"))?;
                    let end = offset.checked_add(len as u64);
                    if end.is_none_or(|end| end > blob.spec().identity.len) {
                        return Err(self.damaged("file data behind the end of the blob"));
                    }
                    blob.read_exact_at(part, offset)?;
                }
            }
            done += len;
        }
        self.counters.read_bytes.add(done as u64);
        if let (Some(watch), 1..) = (&self.watch, done) {
            let len = done as u64;
            watch.note(Touch { nid, offset, len });
        }
        Ok(done)
    }

    /// The first offset >= `offset` that is data (or hole); `None` when there is none before the
    /// end (ENXIO of lseek(2)). `offset` >= size is `None` as well.
    ///
    /// # Errors
    /// [`LowerError::WrongKind`] when it is no regular file; [`LowerError::Damaged`].
    pub fn seek(&self, nid: Nid, offset: u64, what: Seek) -> Result<Option<u64>, LowerError> {
        let inode = self.file(nid)?;
        let mut at = offset;
        while let Some(run) = self.of(self.reader.run(&inode, at, u64::MAX))? {
            let hole = run.place == Place::Hole;
            if hole == (what == Seek::Hole) {
                return Ok(Some(at));
            }
            at += run.len;
        }
        // The end counts as a hole, unless `offset` is there already.
        Ok((what == Seek::Hole && offset < inode.size).then_some(inode.size))
    }

    /// Where the bytes of a regular file from `offset` on are; `None` at or behind its end.
    ///
    /// # Errors
    /// [`LowerError::WrongKind`] when it is no regular file; [`LowerError::Damaged`].
    pub fn extent(&self, nid: Nid, offset: u64) -> Result<Option<Extent>, LowerError> {
        let inode = self.file(nid)?;
        let run = self.of(self.reader.run(&inode, offset, u64::MAX))?;
        Ok(run.map(|run| Extent {
            offset,
            len: run.len,
            place: run.place,
        }))
    }

    fn inode(&self, nid: Nid) -> Result<Inode, LowerError> {
        self.of(self.reader.inode(nid.0))
    }

    fn file(&self, nid: Nid) -> Result<Inode, LowerError> {
        let inode = self.inode(nid)?;
        if inode.kind != Kind::File {
            return Err(LowerError::WrongKind(nid.0));
        }
        Ok(inode)
    }

    /// The reader's answer, with the index's name in the error.
    fn of<T>(&self, result: Result<T, ReadError>) -> Result<T, LowerError> {
        result.map_err(|error| match error {
            ReadError::Damaged { what, offset } => LowerError::Damaged {
                index: self.index.clone(),
                what,
                offset,
            },
            ReadError::Unsupported(what) => LowerError::Damaged {
                index: self.index.clone(),
                what,
                offset: 0,
            },
            ReadError::WrongKind(nid) => LowerError::WrongKind(nid),
        })
    }

    fn damaged(&self, what: &'static str) -> LowerError {
        LowerError::Damaged {
            index: self.index.clone(),
            what,
            offset: 0,
        }
    }
}
