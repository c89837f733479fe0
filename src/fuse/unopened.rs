//! Files that the kernel opens without asking ([`Settings::noopen`](super::Settings::noopen)): it
//! reads and writes them by their inodes, so what they are opened by here is found by those.

use std::sync::Arc;

use fuser::INodeNo;

use super::kept::Kept;
use super::{Answer, errno};
use crate::overlay::{Handle, Ino, Overlay};

/// Most files that are kept open.
const KEPT: usize = 256;

/// A file that is open until the last of these is dropped.
#[derive(Debug)]
pub(super) struct Held {
    overlay: Arc<Overlay>,
    pub(super) handle: Handle,
    writes: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.overlay.release(self.handle);
    }
}

/// The files that were read or written last.
#[derive(Debug, Default)]
pub(super) struct Unopened {
    kept: Kept<INodeNo, Arc<Held>, KEPT>,
}

impl Unopened {
    /// The file of `nodeid`, opened as it must be.
    ///
    /// # Errors
    /// As [`Overlay::open`]: a file of the image is copied up by its first write.
    pub(super) fn file(
        &self,
        overlay: &Arc<Overlay>,
        nodeid: INodeNo,
        writes: bool,
    ) -> Answer<Arc<Held>> {
        let known = self.kept.get(nodeid);
        if let Some(held) = known.filter(|held| held.writes || !writes) {
            return Ok(held);
        }
        let flags = if writes { libc::O_RDWR } else { libc::O_RDONLY };
        let handle = overlay.open(Ino(nodeid.0), flags).map_err(errno)?;
        let held = Arc::new(Held {
            overlay: Arc::clone(overlay),
            handle,
            writes,
        });
        self.kept.keep(nodeid, Arc::clone(&held));
        Ok(held)
    }

    /// The kernel has nothing open of `nodeid` any more.
    pub(super) fn forget(&self, nodeid: INodeNo) {
        self.kept.remove(nodeid);
    }
}
