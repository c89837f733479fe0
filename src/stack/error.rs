//! Why there is no such image.

use std::path::PathBuf;

use crate::digest::Digest;
use crate::import::ImportError;
use crate::index::IndexError;
use crate::store::StoreError;

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StackError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layer is no tar, or holds what cannot be served.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A local tar does not come into the store.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Whoever writes the layer.
    #[error(transparent)]
    Writer(Box<dyn std::error::Error + Send + Sync>),
    /// The image below is a local tar.
    #[error("{}: a layer goes on an image of the store only; import it first", .0.display())]
    NotStored(PathBuf),
    /// The local tar was written to while it was taken into the store.
    #[error("{}: changed since it was indexed", .0.display())]
    Changed(PathBuf),
    /// There is nothing to make one layer of.
    #[error(
        "image {image}: has no checkpoints on top; say with --base on which image the layers lie that are to become one"
    )]
    NothingOnTop {
        /// The image.
        image: Digest,
    },
    /// An image does not lie on another.
    #[error("image {image}: does not lie on {base}: its lowest layers are others")]
    OtherBase {
        /// The image.
        image: Digest,
        /// The other.
        base: Digest,
    },
    /// The configuration of the image below is none.
    #[error("image {image}: its configuration {why}")]
    Config {
        /// The image.
        image: Digest,
        /// What is wrong with it.
        why: String,
    },
}
