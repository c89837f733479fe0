//! Why an image does not come into the store.

use crate::index::IndexError;
use crate::source::SourceError;
use crate::store::StoreError;

/// Why an import failed. Nothing of it can be seen in the store then but whole layers, which the
/// next try uses and `gc` removes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer is no tar, or holds what cannot be served.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A layer is not what it should be.
    #[error("{layer}: {why}")]
    Layer {
        /// Which one.
        layer: String,
        /// What is wrong.
        why: String,
    },
    /// More than was allowed.
    #[error("{layer}: the import would write more than the {max} bytes that --max-bytes allows")]
    TooLarge {
        /// Where it came to that.
        layer: String,
        /// How many are allowed.
        max: u64,
    },
    /// What came is a tar, but of another kind.
    #[error("{0}")]
    NotARoot(String),
    /// Another layer has failed before.
    #[error("given up, since another layer failed")]
    Stopped,
}
