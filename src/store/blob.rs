//! Layers: uncompressed tars by their diff ID, each written once and shared by all images.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::hold::{self, Free};
use super::layout::{Layout, allocated, list, name_of};
use super::links::lock_dir_of;
use super::lock::Lock;
use super::{OnProgress, Store, StoreError, hash, publish};
use crate::digest::Digest;
use crate::index::{self, IndexError};
use crate::sys;

/// Bytes after which the disk is told to begin: the end of an import then waits for little.
const WRITE_OUT: u64 = 32 << 20;

/// A layer in the store, open. Nobody removes it as long as this lives.
#[derive(Debug)]
pub struct Blob {
    diff_id: Digest,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Blob {
    /// The layer's file, if it is there.
    pub(super) fn find(layout: &Layout, diff_id: &Digest) -> Result<Option<Self>, StoreError> {
        let path = layout.blob(diff_id);
        let io = StoreError::io(&path);
        let Some(file) = hold::locked(&path, FlockOperation::LockShared).map_err(&io)? else {
            return Ok(None);
        };
        let metadata = file.metadata().map_err(&io)?;
        if !metadata.is_file() {
            return Err(io(io::Error::other("is not a regular file")));
        }
        Ok(Some(Self {
            diff_id: *diff_id,
            len: metadata.len(),
            path,
            file,
        }))
    }

    /// The digest of its bytes.
    #[must_use]
    pub fn diff_id(&self) -> Digest {
        self.diff_id
    }

    /// The file, open for reading.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What its headers say.
    ///
    /// # Errors
    /// As of [`index::scan_layer_file`].
    pub fn scan(&self) -> Result<index::Layer, IndexError> {
        index::scan_layer_file(&self.file, &self.path, &())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A layer that is to come into the store.
#[derive(Debug)]
pub enum Begun {
    /// Another process has brought it meanwhile, or it was there.
    There(Blob),
    /// It is to be written; nobody else does.
    New(BlobWriter),
}

/// A layer that is being written.
#[derive(Debug)]
pub struct BlobWriter {
    layout: Layout,
    lock: Lock,
    temp: PathBuf,
    file: File,
    len: u64,
}

impl Store {
    /// The layer `diff_id`, if the store has it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn blob(&self, diff_id: &Digest) -> Result<Option<Blob>, StoreError> {
        Blob::find(&self.layout, diff_id)
    }

    /// Begins to write the layer `diff_id`, unless it is there; waits for others who write it.
    ///
    /// # Errors
    /// [`StoreError`] of writing to the store.
    pub fn begin_blob(
        &self,
        diff_id: &Digest,
        progress: OnProgress<'_>,
    ) -> Result<Begun, StoreError> {
        let key = format!("layer-{}", diff_id.hex());
        let lock = Lock::take(self.dir(), &key, progress)?;
        match Blob::find(&self.layout, diff_id)? {
            Some(blob) => Ok(Begun::There(blob)),
            None => Ok(Begun::New(BlobWriter::new(self, lock)?)),
        }
    }

    /// Begins to write a layer whose digest is known only when all of it has come.
    ///
    /// # Errors
    /// [`StoreError`] of writing to the store.
    pub fn begin_unknown_blob(&self) -> Result<BlobWriter, StoreError> {
        BlobWriter::new(self, Lock::fresh(self.dir(), "layer")?)
    }
}

impl BlobWriter {
    fn new(store: &Store, lock: Lock) -> Result<Self, StoreError> {
        let (temp, file) = lock.fresh_file()?;
        Ok(Self {
            layout: store.layout.clone(),
            lock,
            temp,
            file,
            len: 0,
        })
    }

    /// The bytes so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file itself, for who writes to it by himself and then says [how much](Self::wrote).
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Says that the file has so many bytes now.
    pub fn wrote(&mut self, len: u64) {
        self.len = len;
    }

    /// What the headers of what was written say; errors call it `name`.
    ///
    /// # Errors
    /// As of [`index::scan_layer_file`].
    pub fn scan(&self, name: &Path) -> Result<index::Layer, IndexError> {
        index::scan_layer_file(&self.file, name, &())
    }

    /// The error of a write to it, in the store's words.
    #[must_use]
    pub fn failed(&self, error: io::Error) -> StoreError {
        StoreError::write(&self.layout.dir, &self.temp, error)
    }

    /// Publishes what was written as the layer `diff_id`, which the caller has computed from the
    /// same bytes. Where the filesystem has fs-verity it guards them from then on.
    ///
    /// # Errors
    /// [`StoreError`] of writing to the store.
    pub fn publish(self, diff_id: &Digest) -> Result<Blob, StoreError> {
        let Self {
            layout,
            lock,
            temp,
            file,
            len,
        } = self;
        let target = layout.blob(diff_id);
        let failed = |e| StoreError::write(&layout.dir, &target, e);
        // fs-verity takes a file that nobody has open for writing, and that its user might write
        // to (fs/verity/enable.c:fsverity_ioctl_enable()): it comes before the file is sealed.
        drop(file);
        let sealed = || {
            sys::verity::enable(&File::open(&temp)?)?;
            publish::seal_at(&temp)?;
            // Locked before anybody can see it: nobody removes it at once.
            hold::locked(&temp, FlockOperation::LockShared)?.ok_or(io::ErrorKind::NotFound.into())
        };
        let file = sealed().map_err(failed)?;
        loop {
            match Blob::find(&layout, diff_id)? {
                // It was there, or has come meanwhile: who has it open is not to see another file.
                Some(there) if there.len == len => return Ok(there),
                Some(_) => drop(discard(&layout, diff_id)?),
                None => {}
            }
            if publish::new_file(&temp, &target).map_err(failed)? {
                break;
            }
        }
        drop(lock);
        Ok(Blob {
            diff_id: *diff_id,
            path: target,
            file,
            len,
        })
    }
}

/// Takes a damaged layer away; false where there is none, or a whole one.
pub(super) fn discard(layout: &Layout, diff_id: &Digest) -> Result<bool, StoreError> {
    let path = layout.blob(diff_id);
    let io = StoreError::io(&path);
    let failed = |e| StoreError::write(&layout.dir, &path, e);
    // Two who have found the same damage: the second one finds what the first has put there.
    let _locked = match lock_dir_of(&path) {
        Ok(locked) => locked,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(io(e)),
    };
    // A link is no layer, wherever it leads; what it leads to is not touched.
    let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
    if !is_link {
        let Some(blob) = Blob::find(layout, diff_id)? else {
            return Ok(false);
        };
        match hash::file(blob.file(), &mut |_| ()) {
            Ok(has) if has == *diff_id => return Ok(false),
            Ok(_) => {}
            // What cannot be read is damaged, too.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => {}
            Err(e) => return Err(io(e)),
        }
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(true),
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        let before = self.len / WRITE_OUT;
        self.len += n as u64;
        if self.len / WRITE_OUT > before {
            // A hint; what fails of it, fsync will tell.
            sys::fs::write_out(self.file.as_fd()).ok();
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All layers that lie in the store: their digests and allocated bytes.
pub(super) fn all(layout: &Layout) -> Result<Vec<(Digest, u64)>, StoreError> {
    let layer = |path: &PathBuf| {
        let hex = name_of(path)?.strip_suffix(".tar")?;
        Some((Digest::from_hex(hex).ok()?, allocated(path)?))
    };
    let mut all: Vec<_> = list(&layout.blobs())?.iter().filter_map(layer).collect();
    all.sort_unstable();
    Ok(all)
}

/// Has a layer alone, to remove it, if nobody holds it.
pub(super) fn alone(layout: &Layout, diff_id: &Digest) -> Free {
    hold::alone(&layout.blob(diff_id), "an import or a command has it open")
}
