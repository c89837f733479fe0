//! What an overlay has done.

use std::time::Duration;

use crate::inode::Kind;
use crate::metrics::Counter;

/// What an overlay has done, since it was opened.
#[derive(Debug, Default)]
pub struct Counters {
    /// Files that were copied up.
    pub copied_files: Counter,
    /// Directories.
    pub copied_dirs: Counter,
    /// Symbolic links, devices, FIFOs, sockets.
    pub copied_others: Counter,
    /// Bytes of file data that were copied.
    pub copied_bytes: Counter,
    /// Nanoseconds that all that has taken.
    pub copying: Counter,
    /// Whiteouts that were made.
    pub whiteouts: Counter,
}

impl Counters {
    /// An inode has been copied up, which took so long.
    pub(super) fn copied(&self, kind: Kind, took: Duration) {
        let count = match kind {
            Kind::File => &self.copied_files,
            Kind::Dir => &self.copied_dirs,
            _ => &self.copied_others,
        };
        count.add(1);
        // 584 years.
        self.copying
            .add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}
