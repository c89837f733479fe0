//! How much an upper holds, looked at now and then by a thread of its own.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::inode::Kind;
use crate::overlay::{Overlay, Usage};
use crate::sys::fs;

/// What was found so long ago is told again.
const FRESH: Duration = Duration::from_secs(5);

/// So many times as long as looking takes it is not done again.
const SELDOM: u32 = 20;

/// How long who asks waits for a look that is under way; then he is told what was found before.
const PATIENCE: Duration = Duration::from_secs(1);

/// The usage of one overlay's upper, as it was found last.
#[derive(Debug, Clone)]
pub(super) struct Watched(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    overlay: Weak<Overlay>,
    state: Mutex<State>,
    done: Condvar,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    found: Option<Usage>,
    /// When to look again.
    again: Option<Instant>,
    looking: bool,
}

impl Watched {
    pub(super) fn new(overlay: Weak<Overlay>) -> Self {
        Self(Arc::new(Shared {
            overlay,
            state: Mutex::default(),
            done: Condvar::new(),
            stop: AtomicBool::new(false),
        }))
    }

    /// What the upper holds; `None` without one, and where that is not known yet.
    pub(super) fn get(&self) -> Option<Usage> {
        // With a quota it is known.
        let overlay = self.0.overlay.upgrade()?;
        if overlay.options().quota.is_some() {
            return overlay.usage().ok();
        }
        drop(overlay);
        let mut state = self.0.state();
        if !state.looking && state.again.is_none_or(|again| Instant::now() >= again) {
            let shared = Arc::clone(&self.0);
            let started = std::thread::Builder::new()
                .name("tarnfs-usage".to_owned())
                .spawn(move || shared.look());
            match started {
                Ok(_) => state.looking = true,
                Err(error) => tracing::debug!("the upper's usage: {error}"),
            }
        }
        let waited = self
            .0
            .done
            .wait_timeout_while(state, PATIENCE, |state| state.looking);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.found
    }

    /// Looks no more: the mount is about to end.
    pub(super) fn stop(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
        let state = self.0.state();
        // One directory more at most; then the overlay is let go of.
        let ended = self.0.done.wait_while(state, |state| state.looking);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) {
        let looking = Looking(self);
        let began = Instant::now();
        let found = self.overlay.upgrade().and_then(|overlay| {
            let root = overlay.upper()?.root();
            self.walk(root)
        });
        let mut state = self.state();
        state.found = found.or(state.found);
        let pause = FRESH.max(began.elapsed().saturating_mul(SELDOM));
        state.again = Instant::now().checked_add(pause);
        drop(state);
        drop(looking);
    }

    /// All below `root`; `None` if it is to stop. What goes away meanwhile is not counted.
    fn walk(&self, root: BorrowedFd<'_>) -> Option<Usage> {
        let mut usage = Usage::default();
        let mut linked = HashSet::new();
        // By paths: of descriptors the mount itself has need.
        let mut rest = vec![b".".to_vec()];
        while let Some(path) = rest.pop() {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let Ok(dir) = fs::open(root, &path, flags, 0) else {
                continue;
            };
            for entry in fs::list(dir.as_fd()).unwrap_or_default() {
                count(dir.as_fd(), entry.name.as_bytes(), &mut usage, &mut linked);
                if entry.kind == Kind::Dir {
                    rest.push([&path, &b"/"[..], entry.name.as_bytes()].concat());
                }
            }
        }
        Some(usage)
    }
}

/// Somebody looks; whoever waits for the end of it goes on when this is dropped, whatever happened.
struct Looking<'a>(&'a Shared);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.state().looking = false;
        self.0.done.notify_all();
    }
}

fn count(dir: BorrowedFd<'_>, name: &[u8], usage: &mut Usage, linked: &mut HashSet<u64>) {
    let Ok(stat) = fs::stat(dir, name) else {
        return;
    };
    let attr = stat.attr;
    // All whiteouts are links of one inode.
    if attr.kind != Kind::Dir && attr.nlink > 1 && !linked.insert(attr.ino) {
        return;
    }
    usage.inodes = usage.inodes.saturating_add(1);
    usage.bytes = usage.bytes.saturating_add(attr.blocks.saturating_mul(512));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared {
            overlay: Weak::new(),
            state: Mutex::default(),
            done: Condvar::new(),
            stop: AtomicBool::new(false),
        }
    }

    #[test]
    fn each_inode_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/file"), vec![1; 10_000]).unwrap();
        std::fs::hard_link(at("a/b/file"), at("link")).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let usage = shared().walk(root.as_fd()).unwrap();
        assert_eq!(usage.inodes, 3);
        assert!(usage.bytes >= 10_000, "{usage:?}");
        let stopped = shared();
        stopped.stop.store(true, Ordering::Relaxed);
        assert_eq!(stopped.walk(root.as_fd()), None);
    }

    #[test]
    fn without_an_upper_nothing_is_known() {
        let watched = Watched(Arc::new(shared()));
        assert_eq!(watched.get(), None);
        watched.stop();
    }
}
