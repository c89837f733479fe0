//! The copy-on-write filesystem over a [`Lower`] image and an [`Upper`] directory.
//!
//! Every operation that FUSE can ask for is a plain method of [`Overlay`]; this module knows
//! nothing of FUSE. Permissions are the kernel's business (`default_permissions`); what an
//! operation checks here is what the kernel cannot know.
//!
//! Rooms: [`lookup`] finds, [`locate`] finds back, [`copy_up`] brings an inode from the lower to
//! the upper (with [`group`] and [`links`] for hard links), [`create`], [`remove`] and [`rename`]
//! change names, [`attr`], [`xattr`], [`mod@file`] and [`dir`] (with [`listing`]) do what their
//! names say, [`node`] holds the state, [`room`] waits for space that is about to come free,
//! [`gate`] holds all changes back for a moment, [`keep`] writes down what they throw away while
//! somebody copies, [`quota`] counts what the upper holds.
//!
//! Lock order: the [`gate`] of changing operations → an inode's `copying` → its ancestors' `copying` → `entries` of directories (two:
//! lower number first) → `redirects_found` → `place` of nodes (two: lower number first; a
//! directory's parent's may be read under its own) → the table's slots and the small leaf locks in
//! [`node`] → the ledger's of [`quota`]. Nothing but the first five is held across a system call,
//! and the locks of [`keep`] (a file's → the log's), under which nothing else is taken and which are
//! asked for under the gate alone. Debug builds assert the order
//! ([`order`]). Who finds under `entries` that a name must be waited for (a group of hard links is
//! rising) lets go of them first, and looks again.
//!
//! It never follows a symbolic link, never changes the lower, and never leaves an operation half
//! done: what can be neither finished nor undone poisons the overlay ([`Error::Poisoned`]).

mod api;
mod attr;
mod copy_up;
mod counters;
mod create;
mod dir;
mod error;
mod file;
mod gate;
mod group;
mod keep;
mod links;
mod listing;
mod locate;
mod lookup;
mod node;
mod order;
mod quota;
mod remove;
mod rename;
mod room;
mod xattr;

pub use api::*;
pub use counters::Counters;
pub use error::{Error, Result};
pub(crate) use gate::Freezer;
pub use gate::Frozen;
pub use keep::Kept;
pub use quota::{Quota, Usage};

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dashmap::DashMap;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::inode::Kind;
use crate::lower::{Lower, Nid};
use crate::sys::fs;
use crate::upper::Upper;
use crate::upper::markers::ImageId;
use error::{Doing, refuse};
use node::{Node, Place, Seed, Table};

/// How an overlay behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Every change is answered with EROFS.
    pub read_only: bool,
    /// No fsync on copy-up: a crash of the machine may lose what the upper holds (overlayfs'
    /// `volatile`).
    pub volatile: bool,
    /// Show every inode of the image as owned by this (user, group), as if they had unpacked it
    /// themselves. For servers that cannot chown.
    pub squash: Option<(u32, u32)>,
    /// How much the upper may hold. All that is written must come through these methods then, and
    /// not go past them to what [`Overlay::bytes_of`] gives.
    pub quota: Option<Quota>,
}

impl Options {
    /// [`Self::squash`] for a server of the user of this process: none for root. An ordinary user
    /// is shown the image as `tar -x` leaves it to him.
    #[must_use]
    pub fn squash_to_user() -> Option<(u32, u32)> {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        (!uid.is_root()).then(|| (uid.as_raw(), gid.as_raw()))
    }
}

/// The copy-on-write filesystem. All methods take `&self` and may be called from many threads.
#[derive(Debug)]
pub struct Overlay {
    lower: Lower,
    upper: Option<Upper>,
    options: Options,
    /// The index whose numbers the inodes of the image bear.
    image: ImageId,
    root: Arc<Node>,
    table: Arc<Table>,
    files: DashMap<u64, Arc<file::OpenFile>>,
    read_lately: dir::Lately,
    next_handle: AtomicU64,
    /// What inodes which only the lower holds have lost, where that is known.
    lost: DashMap<Nid, links::Lost>,
    /// The upper was empty when it was opened: no name of the lower had been touched.
    fresh: bool,
    /// Whether renamed directories of earlier mounts have been looked for. Held while they are, and
    /// while a directory moves: one that goes from where nobody has looked yet to where somebody
    /// has would be missed.
    redirects_found: Mutex<bool>,
    poisoned: AtomicBool,
    gate: Arc<gate::Gate>,
    counters: Counters,
    /// With a [`Quota`].
    ledger: Option<Arc<quota::Ledger>>,
    /// How many wait for a group of hard links to rise.
    #[cfg(test)]
    await_rise: std::sync::atomic::AtomicUsize,
}

/// Where the inode of a number is now.
#[derive(Debug, Clone)]
enum Target {
    /// In the image alone.
    Lower(Nid),
    /// In the upper; a directory may merge with a lower one.
    Upper(Arc<Node>),
}

impl Overlay {
    /// The image alone: every change is EROFS.
    #[must_use]
    pub fn read_only(lower: Lower) -> Self {
        let options = Options {
            read_only: true,
            ..Options::default()
        };
        Self::new(lower, None, options, Place::Lower)
    }

    /// The image under an upper. Finishes what a killed mount had begun there.
    ///
    /// # Errors
    /// [`Error::Upper`], [`Error::Lower`].
    pub fn with_upper(lower: Lower, upper: Upper, options: Options) -> Result<Self> {
        let id = fs::fstat(upper.root())
            .doing("reading the root's attributes")?
            .attr
            .ino;
        let fd = fs::open(upper.root(), b".", OFlags::PATH | OFlags::DIRECTORY, 0)
            .doing("opening the root")?;
        let fresh = fs::list(upper.root()).doing("listing the root")?.is_empty();
        let place = Place::Upper {
            id,
            links: Vec::new(),
            orphan: None,
        };
        let mut overlay = Self::new(lower, Some(upper), options, place);
        overlay.fresh = fresh;
        overlay.table.keep_dir_fd(&overlay.root, &Arc::new(fd));
        if fresh {
            overlay.adopt_root()?;
        }
        overlay.note_dir_marks(&overlay.root)?;
        overlay.settle_pending_links()?;
        overlay.open_ledger()?;
        Ok(overlay)
    }

    fn new(lower: Lower, upper: Option<Upper>, options: Options, place: Place) -> Self {
        let table = Table::new(max_dir_fds());
        let seed = Seed {
            ino: ROOT_INO.0,
            kind: Kind::Dir,
            lower: Some(lower.root()),
            place,
        };
        let (root, _) = table.intern(seed);
        let gate = gate::Gate::of(upper.as_ref());
        Self {
            image: ImageId(lower.fingerprint()),
            lower,
            upper,
            options,
            root,
            table,
            files: DashMap::new(),
            read_lately: dir::Lately::default(),
            next_handle: AtomicU64::new(1),
            lost: DashMap::new(),
            fresh: true,
            redirects_found: Mutex::new(false),
            poisoned: AtomicBool::new(false),
            gate: Arc::new(gate),
            counters: Counters::default(),
            ledger: None,
            #[cfg(test)]
            await_rise: std::sync::atomic::AtomicUsize::new(0),
        }
    }

    /// The image below.
    #[must_use]
    pub fn lower(&self) -> &Lower {
        &self.lower
    }

    /// The directories above, if anything can be written.
    #[must_use]
    pub fn upper(&self) -> Option<&Upper> {
        self.upper.as_ref()
    }

    /// How it behaves.
    #[must_use]
    pub fn options(&self) -> Options {
        self.options
    }

    /// The image, when this overlay is not to be served after all; the upper is let go of.
    #[must_use]
    pub fn into_lower(self) -> Lower {
        self.lower
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Number of inodes and open files that are kept in memory.
    #[must_use]
    pub fn in_memory(&self) -> (usize, usize) {
        (self.table.len(), self.files.len())
    }

    /// Writes what the upper's filesystem still holds in memory to disk; called once, when the
    /// mount has ended. Nothing with [`Options::volatile`] or without an upper.
    ///
    /// # Errors
    /// syncfs(2)'s.
    pub fn finish(&self) -> Result<()> {
        match &self.upper {
            Some(upper) if !self.options.volatile && !self.options.read_only => {
                // An O_PATH descriptor cannot be synced.
                let fd = fs::open(upper.root(), b".", OFlags::RDONLY | OFlags::DIRECTORY, 0)
                    .doing("opening the root")?;
                rustix::fs::syncfs(fd.as_fd()).doing("syncing")
            }
            _ => Ok(()),
        }
    }

    fn handle(&self) -> Handle {
        Handle(self.next_handle.fetch_add(1, Ordering::Relaxed))
    }

    /// The upper, for an operation that changes something.
    fn writable(&self) -> Result<&Upper> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(Error::Poisoned);
        }
        match &self.upper {
            Some(upper) if !self.options.read_only => Ok(upper),
            _ => refuse(Errno::ROFS),
        }
    }

    fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
        tracing::error!("the upper is half changed: no more writes");
    }
}

/// How many directory descriptors may be kept: half of what the process may open, and leaving
/// room for as many open files.
fn max_dir_fds() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    usize::try_from(limit.unwrap_or(65_536) / 2).unwrap_or(512)
}

#[cfg(test)]
mod tests;
