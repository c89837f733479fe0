//! Files that the kernel opens without asking ([`Settings::noopen`](super::Settings::noopen)): it
//! reads and writes them by their inodes, so what they are opened by here is found by those.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::INodeNo;

use super::{Answer, errno};
use crate::overlay::{Handle, Ino, Overlay};

/// Files that are kept open.
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
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    files: HashMap<INodeNo, Arc<Held>>,
    /// In the order in which they were opened.
    order: VecDeque<INodeNo>,
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
        let known = self.kept().files.get(&nodeid).cloned();
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
        // Closed when no lock is held.
        let dropped = self.kept().keep(nodeid, Arc::clone(&held));
        drop(dropped);
        Ok(held)
    }

    /// The kernel has nothing open of `nodeid` any more.
    pub(super) fn forget(&self, nodeid: INodeNo) {
        let held = {
            let mut kept = self.kept();
            let held = kept.files.remove(&nodeid);
            if held.is_some() {
                kept.order.retain(|kept| *kept != nodeid);
            }
            held
        };
        // Closed when no lock is held.
        drop(held);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Keeps one more; answers those that are kept no longer.
    fn keep(&mut self, nodeid: INodeNo, held: Arc<Held>) -> [Option<Arc<Held>>; 2] {
        let replaced = self.files.insert(nodeid, held);
        if replaced.is_none() {
            self.order.push_back(nodeid);
        }
        let mut oldest = None;
        if self.order.len() > KEPT {
            oldest = self.order.pop_front().and_then(|it| self.files.remove(&it));
        }
        [replaced, oldest]
    }
}
