//! Links of the store to images: names, aliases, sources.
//!
//! Who changes a link has its directory locked (flock(2)), so that nobody takes away what another
//! has just let lead elsewhere, or to an image that has come back.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

use super::layout::{Layout, list};
use super::lock::Lock;
use super::{Store, StoreError, publish};
use crate::digest::Digest;

/// The digest that a link of the store leads to.
pub(super) fn leads_to(link: &Path) -> Option<Digest> {
    Digest::from_hex(fs::read_link(link).ok()?.to_str()?).ok()
}

/// The links in `dir`, with what they lead to.
pub(super) fn links_in(dir: &Path) -> Result<Vec<(PathBuf, Digest)>, StoreError> {
    let link = |path: PathBuf| {
        let own = leads_to(&path)?;
        Some((path, own))
    };
    Ok(list(dir)?.into_iter().filter_map(link).collect())
}

/// The sole right to change what is in the directory of `path`, until it is dropped. Needs no room
/// on the disk. Nobody waits for anything else while he has it. Where directories cannot be locked
/// (NFS), nobody is kept out.
pub(super) fn lock_dir_of(path: &Path) -> io::Result<File> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let file = File::open(dir)?;
    match retry_on_intr(|| flock(&file, FlockOperation::LockExclusive)) {
        Ok(()) | Err(Errno::BADF | Errno::INVAL | Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS) => {
            Ok(file)
        }
        Err(e) => Err(e.into()),
    }
}

/// Whether nothing is at `path`; an error where nobody can tell.
pub(super) fn is_gone(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

impl Store {
    /// Lets the link `link` of the store lead to image `own`.
    pub(super) fn point(&self, link: &Path, own: &Digest) -> Result<(), StoreError> {
        self.point_where(link, own, |_| true)
    }

    /// The same, if `may` says so of the link as it is; nobody else changes it meanwhile.
    pub(super) fn point_where(
        &self,
        link: &Path,
        own: &Digest,
        may: impl FnOnce(&Path) -> bool,
    ) -> Result<(), StoreError> {
        if leads_to(link) == Some(*own) {
            return Ok(());
        }
        self.layout.make()?;
        let failed = |e| StoreError::write(self.dir(), link, e);
        let _locked = lock_dir_of(link).map_err(failed)?;
        if leads_to(link) == Some(*own) || !may(link) {
            return Ok(());
        }
        let lock = Lock::fresh(self.dir(), "link")?;
        publish::link(own.hex(), lock.work(), link).map_err(failed)
    }
}

/// Removes the link `link` if it leads to the image `own` still, and that is gone.
pub(super) fn unlink_lost(layout: &Layout, link: &Path, own: &Digest) -> Result<(), StoreError> {
    let failed = |e| StoreError::write(&layout.dir, link, e);
    let entry = layout.image(own);
    // Most are not lost, and in a store that cannot be written to none can be removed.
    if !is_gone(&entry).map_err(failed)? {
        return Ok(());
    }
    let _locked = lock_dir_of(link).map_err(failed)?;
    if leads_to(link) != Some(*own) || !is_gone(&entry).map_err(failed)? {
        return Ok(());
    }
    match fs::remove_file(link) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => publish::sync_parent(link).map_err(failed),
    }
}
