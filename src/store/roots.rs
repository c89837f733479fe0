//! Who outside of the store counts on an image: a bundle that is not mounted now, say.
//!
//! A root is a link `roots/<key>` to a file elsewhere. As long as that file exists, or nobody can
//! tell, the image that stands in the link's name is not collected; when it is gone, so is the root.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layout::Layout;
use super::lock::Lock;
use super::{Store, StoreError, publish};
use crate::digest::{Digest, Hasher};

/// A root that is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) image: Digest,
    pub(super) record: PathBuf,
}

impl Store {
    /// Has the image `own` be kept as long as there is a file at `record`, an absolute path.
    ///
    /// # Errors
    /// Those of writing to the store.
    pub fn add_root(&self, own: &Digest, record: &Path) -> Result<(), StoreError> {
        self.layout.make()?;
        let link = self.layout.roots().join(key(own, record));
        let lock = Lock::fresh(self.dir(), "link")?;
        publish::link(record, lock.work(), &link)
            .map_err(|e| StoreError::write(self.dir(), &link, e))
    }
}

/// `<image>-<digest of the path>`: several images for one record, and several records of an image.
fn key(own: &Digest, record: &Path) -> String {
    let mut hash = Hasher::new();
    hash.update(record.as_os_str().as_encoded_bytes());
    format!("{}-{}", own.hex(), hash.finish().hex())
}

/// The roots that are alive; those whose file is gone are removed.
pub(super) fn alive(layout: &Layout) -> io::Result<Vec<Root>> {
    let entries = match fs::read_dir(layout.roots()) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut alive = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let image = name
            .to_str()
            .and_then(|name| name.split('-').next())
            .and_then(|hex| Digest::from_hex(hex).ok());
        let Some(image) = image else {
            continue;
        };
        let record = fs::read_link(entry.path())?;
        match fs::symlink_metadata(&record) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::remove_file(entry.path())?;
            }
            // What cannot be seen may be there.
            _ => alive.push(Root { image, record }),
        }
    }
    Ok(alive)
}
