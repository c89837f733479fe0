//! What an image has been asked.

use crate::metrics::Counter;

/// What an image has been asked, since it was opened.
#[derive(Debug, Default)]
pub struct Counters {
    /// Names looked up in the index.
    pub lookups: Counter,
    /// Bytes of files read.
    pub read_bytes: Counter,
}
