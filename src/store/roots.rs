//! Who outside of the store counts on an image: a bundle that is not mounted now, say.
//!
//! A root is a link `roots/<key>` to a file elsewhere. As long as that file exists, or nobody can
//! tell, the image that stands in the link's name is not collected; when it is gone, so is the root.
//! An actor of the store is one by itself: the link `actors/<id>/image` leads to its image, and goes
//! with the actor.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layout::{Layout, list, name_of};
use super::links::{is_gone, lock_dir_of};
use super::lock::Lock;
use super::{Store, StoreError, publish};
use crate::digest::{Digest, Hasher};

/// A root that is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) image: Digest,
    pub(super) record: PathBuf,
}

impl Root {
    /// Why the image stays.
    pub(super) fn why(&self) -> String {
        format!("{} counts on it", self.record.display())
    }
}

impl Store {
    /// Has the image `own` be kept as long as there is a file at `record`, an absolute path.
    ///
    /// # Errors
    /// Those of writing to the store.
    pub fn add_root(&self, own: &Digest, record: &Path) -> Result<(), StoreError> {
        self.layout.make()?;
        let link = self.layout.roots().join(key(own, record));
        let failed = |e| StoreError::write(self.dir(), &link, e);
        let _locked = lock_dir_of(&link).map_err(failed)?;
        let lock = Lock::fresh(self.dir(), "link")?;
        publish::link(record, lock.work(), &link).map_err(failed)
    }
}

/// `<image>-<digest of the path>`: several images for one record, and several records of an image.
fn key(own: &Digest, record: &Path) -> String {
    let mut hash = Hasher::new();
    hash.update(record.as_os_str().as_encoded_bytes());
    format!("{}-{}", own.hex(), hash.finish().hex())
}

/// The roots that are alive; those whose file is gone are removed.
pub(super) fn alive(layout: &Layout) -> Result<Vec<Root>, StoreError> {
    let mut alive = Vec::new();
    for link in list(&layout.roots())? {
        let image = name_of(&link)
            .and_then(|name| name.split('-').next())
            .and_then(|hex| Digest::from_hex(hex).ok());
        let Some(image) = image else {
            continue;
        };
        let io = StoreError::io(&layout.roots());
        let record = match fs::read_link(&link) {
            Ok(record) => record,
            // Somebody else has removed it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io(e)),
        };
        // What cannot be seen may be there.
        if is_gone(&record).unwrap_or(false) && bury(&link, &record).map_err(io)? {
            continue;
        }
        alive.push(Root { image, record });
    }
    of_actors(layout, &mut alive)?;
    Ok(alive)
}

/// The images of actors.
fn of_actors(layout: &Layout, alive: &mut Vec<Root>) -> Result<(), StoreError> {
    for actor in list(&layout.actors())? {
        let image = fs::read_link(actor.join("image")).ok();
        let image = image.as_deref().and_then(name_of);
        if let Some(image) = image.and_then(|hex| Digest::from_hex(hex).ok()) {
            let record = actor.join("actor.json");
            alive.push(Root { image, record });
        }
    }
    Ok(())
}

/// Removes the root `link`; false where its file has come back meanwhile.
fn bury(link: &Path, record: &Path) -> io::Result<bool> {
    let _locked = lock_dir_of(link)?;
    if !is_gone(record).unwrap_or(false) {
        return Ok(false);
    }
    // Tidiness: a store that cannot be written to keeps it, and nobody counts on it.
    fs::remove_file(link).ok();
    Ok(true)
}
