//! Where everything lies in the store's directory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{StoreError, publish};
use crate::digest::Digest;

/// Version of the layout of an entry and of image.json. An entry of another one is made anew, or
/// asks to be imported again.
pub(super) const FORMAT: u32 = 2;
/// The index of an image.
pub(super) const INDEX: &str = "index.erofs";
/// Sparse files that the blocks of the tars cannot serve.
pub(super) const SIDE: &str = "side.blob";
/// The record of an image.
pub(super) const RECORD: &str = "image.json";
/// The image's own configuration.
pub(super) const CONFIG: &str = "config.json";
/// An empty file; the time of its last change is that of the image's last use.
pub(super) const USED: &str = "used";
/// The digest of a local tar.
pub(super) const BLOB_DIGEST: &str = "blob.sha256";

/// The directories of a store.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
}

impl Layout {
    /// The uncompressed layer `diff_id`.
    pub(super) fn blob(&self, diff_id: &Digest) -> PathBuf {
        self.blobs().join(format!("{}.tar", diff_id.hex()))
    }

    /// All layers.
    pub(super) fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    /// The entry of image `digest`: a directory, or a link to that of the image's own digest.
    pub(super) fn image(&self, digest: &Digest) -> PathBuf {
        self.images().join(digest.hex())
    }

    /// All images by digest.
    pub(super) fn images(&self) -> PathBuf {
        self.dir.join("images/sha256")
    }

    /// All entries of local tars.
    pub(super) fn tars(&self) -> PathBuf {
        self.dir.join("tars")
    }

    /// The names of images.
    pub(super) fn names(&self) -> PathBuf {
        self.dir.join("names")
    }

    /// What sources turned out to be, to be looked up without reading them again.
    pub(super) fn sources(&self) -> PathBuf {
        self.dir.join("sources")
    }

    /// Who outside of the store counts on an image.
    pub(super) fn roots(&self) -> PathBuf {
        self.dir.join("roots")
    }

    /// Actors: each has a link to its image in its directory.
    pub(super) fn actors(&self) -> PathBuf {
        self.dir.join("actors")
    }

    /// What is being made.
    pub(super) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// Makes the directories that writers need.
    pub(super) fn make(&self) -> Result<(), StoreError> {
        for dir in [
            self.tars(),
            self.tmp(),
            self.blobs(),
            self.images(),
            self.names(),
            self.sources(),
            self.roots(),
        ] {
            private_dir(&dir).map_err(|e| StoreError::write(&self.dir, &dir, e))?;
        }
        Ok(())
    }
}

/// What lies in the directory `dir` of a store; nothing where there is no such directory yet.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let io = StoreError::io(dir);
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| Ok(entry.map_err(&io)?.path()))
            .collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(io(e)),
    }
}

/// The last part of a path, where it is text.
pub(super) fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Bytes that the file at `path` takes on the disk, if it is there.
pub(super) fn allocated(path: &Path) -> Option<u64> {
    // Of st_blocks the unit is 512 bytes, whatever the filesystem's is (inode(7)).
    fs::symlink_metadata(path).ok().map(|m| m.blocks() * 512)
}

/// Bytes that the files of the entry `dir` take on the disk.
pub(super) fn entry_allocated(dir: &Path) -> u64 {
    let files = list(dir).unwrap_or_default();
    files.iter().filter_map(|file| allocated(file)).sum()
}

/// Makes `dir` and its parents for their owner alone: names of files may be as private as their
/// content. They are on disk before anything in them is.
fn private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.is_dir() {
        return Ok(());
    }
    let new: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.is_dir()).collect();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    new.into_iter()
        .try_for_each(|dir| match publish::sync_parent(dir) {
            // Who may write to a directory need not be able to open it.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        })
}
