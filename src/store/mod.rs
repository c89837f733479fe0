//! The image store: layers and indexes, by digest; of local tars the indexes alone.
//!
//! ```text
//! <store>/blobs/sha256/<diff id>.tar      a layer, uncompressed
//!         images/sha256/<digest>/         an image: of its configuration, or of its one tar
//!                       index.erofs       names, attributes, where each file's bytes are
//!                       side.blob         sparse files that the layers' blocks cannot serve, if any
//!                       image.json        what EROFS cannot hold
//!                       config.json       the image's configuration, as it came
//!                       used              its time of change is that of the last use
//!         images/sha256/<alias>           link to an image, from its manifest's or index's digest
//!         names/<name>                    link to an image, from the name that a person gave
//!         sources/<key>                   link to an image, from where it was read before
//!         roots/<key>                     a file elsewhere that counts on an image
//!         tars/<key>/                     as images/, of a local tar, which stays where it is
//!         tmp/<key>, <key>.lock           what is being made, and who makes it
//! ```
//! The key of a local tar is the SHA-256 of its identity (device, inode, size, times of change),
//! so that nothing of the tar is read to find its index; its name is no part of it.
//!
//! Invariants: an entry or a layer is published whole, by a rename, or not at all; what is
//! published is never changed in place; an entry that is damaged or of another version is made
//! anew, never trusted; what is in use ([`hold`]), or may be, is never removed. Readers take no
//! lock but a shared one on what they read.
//! Never here: an environment variable (the command line passes directories in), output, where
//! images come from (`import`).

mod below;
mod blob;
mod build;
mod error;
mod gc;
mod hash;
mod hold;
mod image;
mod images;
mod layout;
mod links;
mod lock;
mod names;
mod publish;
mod rebuild;
mod record;
mod remove;
mod roots;
mod tar;
mod verify;

#[cfg(test)]
mod tests;

pub use blob::{Begun, Blob, BlobWriter};
pub use build::{Built, write_index};
pub use error::StoreError;
pub use gc::{Collected, Decision, GcOptions, Item, Limit};
pub use image::Image;
pub use images::{ImageLock, Listed, NewImage};
pub use names::ImageName;
pub use rebuild::UNKNOWN;
pub(crate) use record::config_of;
pub use record::{BlobPlace, BlobRecord, Counts, ImageJson, IndexRecord, LayerRecord, Source};
pub use remove::Removed;
pub use tar::TarIdentity;
pub use verify::{Checked, Verdict};

use std::path::{Path, PathBuf};

use layout::Layout;

/// What long work is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Another process makes the same index; this one waits for it.
    Waiting,
    /// Reading the tar's headers: bytes passed, of all.
    Indexing {
        /// Position in the tar.
        done: u64,
        /// Length of the tar.
        total: u64,
    },
    /// Hashing a file: bytes hashed, of all.
    Hashing {
        /// Bytes so far.
        done: u64,
        /// Length of the file.
        total: u64,
    },
}

/// Who is told of [`Progress`].
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress);

/// A directory of images.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Layout,
}

impl Store {
    /// The store in `dir`, which need not exist yet: it is made when something is written.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        // A server changes its directory, and opens files of the store after that. Without a
        // current directory the path stays as it is, and its use will say what is wrong.
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        Self {
            layout: Layout { dir },
        }
    }

    /// Where the store is when nobody says: `/var/lib/tarnfs` for root, else `tarnfs` under
    /// `xdg_data_home` (`$XDG_DATA_HOME`; must be absolute to count) or `home/.local/share`.
    #[must_use]
    pub fn default_dir(
        root: bool,
        xdg_data_home: Option<&Path>,
        home: Option<&Path>,
    ) -> Option<PathBuf> {
        if root {
            return Some(PathBuf::from("/var/lib/tarnfs"));
        }
        xdg_data_home
            .filter(|dir| dir.is_absolute())
            .map(Path::to_owned)
            .or_else(|| {
                home.filter(|dir| dir.is_absolute())
                    .map(|home| home.join(".local/share"))
            })
            .map(|data| data.join("tarnfs"))
    }

    /// The store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.layout.dir
    }
}
