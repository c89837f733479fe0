//! How open files are served: by the kernel alone from a backing file (FUSE passthrough), or by
//! READ and WRITE requests.
//!
//! The kernel reads all that is open of one inode in one way: from the one backing file that its
//! first open gave, or through its page cache (fs/fuse/iomode.c, fs/fuse/passthrough.c). An open
//! that wants it otherwise fails with EIO there. So the way is chosen by the first open and kept
//! until the last one is closed; where an open cannot go that way, the inode gets another nodeid
//! ([`super::alias`]). While it has one, nothing is opened by the old number: what is written by one
//! must not go past what is cached, or appended, by the other. Only who has nothing but the number
//! (a descriptor's name in /proc, a file handle) is served by it then, as well as can be.
//!
//! A file of the image is read from the image's mount by the kernel, which all mounts of the image
//! share, so that its pages are in memory once. A small one is not: it is read by one request into
//! the mount's own cache, and what is open of it sees what is written to it later. A file of the
//! upper is read and written in the upper.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use fuser::{BackingId, Errno, INodeNo, Notifier};

use super::alias::Aliases;
use super::kept::Kept;
use super::{Answer, errno};
use crate::lower::Nid;
use crate::overlay::{Bytes, Handle, Ino, Overlay};
use crate::sys;
use crate::sys::asker::PRIVILEGES;

/// Of open(2)'s flags: the file is to be started as a program (include/linux/fs.h: `__FMODE_EXEC`).
const FMODE_EXEC: i32 = 0x20;

/// Most backing files of the image that are kept for the next open.
const KEPT: usize = 1024;

/// What makes a backing file of an open one: `ReplyOpen::open_backing` and its like.
pub(super) type OpenBacking<'a> = &'a dyn Fn(BorrowedFd<'_>) -> io::Result<BackingId>;

/// How an inode that is open is served.
#[derive(Debug, Clone)]
enum How {
    /// By requests.
    Requests,
    /// By the kernel, from the image's mount.
    Image(Arc<BackingId>),
    /// By the kernel, from the upper.
    Upper(Arc<BackingId>),
}

/// How one open file is served.
#[derive(Debug)]
pub(super) enum Served {
    /// By requests. `anew`: pages that the kernel has kept under this number may be old, since what
    /// was written by another number of the inode has not changed them.
    Requests { anew: bool },
    /// By the kernel, from this file.
    Kernel(Arc<BackingId>),
    /// Its maps by the kernel, from this file; reads and writes by requests.
    MapsOnly(Arc<BackingId>),
}

/// An inode that is open.
#[derive(Debug)]
struct Open {
    how: How,
    count: u64,
    /// How many of them write by the kernel alone. Stores by a shared map change times and size of
    /// which it does not know then, and writes take privileges.
    writers: u64,
}

/// All that is open, by nodeid.
#[derive(Debug, Default)]
pub(super) struct Opens {
    /// Files of the image of at least so many bytes are served by the kernel; `None`: nothing is.
    from: Option<u64>,
    /// Those of the upper are not, whatever `from` says.
    not_upper: bool,
    open: DashMap<u64, Open>,
    /// Backing files of the image.
    image: Kept<Nid, Arc<BackingId>, KEPT>,
    /// The kernel takes no backing files.
    refused: AtomicBool,
    /// It takes none of the upper's filesystem.
    upper_refused: AtomicBool,
    /// How many open files the kernel may write to by itself, or is about to be let.
    written_past: AtomicU64,
    aliases: Aliases,
    refusals: Refusals,
    notifier: OnceLock<Notifier>,
}

impl Opens {
    /// `from` as in [`Settings::passthrough`](super::Settings::passthrough), `upper` as in
    /// [`Settings::upper_passthrough`](super::Settings::upper_passthrough).
    pub(super) fn new(from: Option<u64>, upper: bool) -> Self {
        Self {
            from,
            not_upper: !upper,
            ..Self::default()
        }
    }

    /// Whether backing files are wanted.
    pub(super) fn passthrough(&self) -> bool {
        self.from().is_some()
    }

    fn from(&self) -> Option<u64> {
        self.from.filter(|_| !self.refused.load(Ordering::Relaxed))
    }

    /// The kernel takes no backing files.
    pub(super) fn no_passthrough(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// What tells the kernel of attributes that it must ask for again.
    pub(super) fn set_notifier(&self, notifier: Notifier) {
        // There is one connection, which sets it once.
        let _first = self.notifier.set(notifier);
    }

    pub(super) fn aliases(&self) -> &Aliases {
        &self.aliases
    }

    /// To be called before the overlay opens a file, which waits while it is frozen: who freezes it
    /// must know of all that the kernel may be let write to. What is counted is not taken back where
    /// [`Self::open`] answers that the kernel may.
    pub(super) fn expect(&self, flags: i32) -> Expected<'_> {
        let counts = self.may_write_past() && writes(flags);
        if counts {
            self.written_past.fetch_add(1, Ordering::SeqCst);
        }
        Expected {
            opens: self,
            counts,
        }
    }

    /// How many files are open that the kernel may write to by itself.
    pub(super) fn written_past(&self) -> u64 {
        self.written_past.load(Ordering::SeqCst)
    }

    /// Whether the kernel may be let write to what is opened by itself.
    pub(super) fn may_write_past(&self) -> bool {
        !self.not_upper && self.passthrough()
    }

    /// Chooses how what has just been opened is served. [`Self::release`] takes it back.
    ///
    /// # Errors
    /// ESTALE where that cannot be with what is open already; the inode has another nodeid then.
    pub(super) fn open(
        &self,
        overlay: &Overlay,
        thread: u32,
        nodeid: INodeNo,
        (handle, flags): (Handle, i32),
        backing: OpenBacking<'_>,
        expected: Expected<'_>,
    ) -> Answer<Served> {
        let Some(from) = self.from() else {
            return Ok(Served::Requests { anew: false });
        };
        // Looked at under the lock of the entry: two first opens must not choose differently.
        let entry = self.open.entry(nodeid.0);
        let bytes = overlay.bytes_of(handle).map_err(errno)?;
        let direct = flags & libc::O_DIRECT != 0;
        let writes = writes(flags);
        let how = match &entry {
            Entry::Occupied(open) => open.get().how.clone(),
            Entry::Vacant(_) => match &bytes {
                // EROFS takes no O_DIRECT. An alias would need an alias when the file is written to.
                Bytes::Lower(nid) if !direct && !super::alias::is_alias(nodeid.0) => {
                    self.image_file(overlay, *nid, from, backing)
                }
                Bytes::Lower(_) => How::Requests,
                Bytes::Upper(fd) => self.upper_file(fd.as_fd(), backing),
            },
        };
        let fits = match (&how, &bytes) {
            (How::Requests, _) | (How::Upper(_), Bytes::Upper(_)) => true,
            (How::Image(_), Bytes::Lower(_)) => !direct,
            (How::Image(_), Bytes::Upper(_)) | (How::Upper(_), Bytes::Lower(_)) => false,
        };
        let passed = matches!(entry, Entry::Vacant(_)) && self.aliases.is_passed(nodeid.0);
        let fits = fits && !passed;
        let again = self.refusals.end(thread) == Some(nodeid);
        // Nothing of the image's mount can be opened for writing.
        if !fits && (!again || writes && matches!(how, How::Image(_))) {
            drop(entry);
            let ino = self.aliases.ino(nodeid.0);
            self.refusals.note(thread, nodeid, ino);
            self.aliases.renew(nodeid.0);
            self.ask_again(nodeid);
            return Err(Errno::ESTALE);
        }
        if let (How::Image(_), Bytes::Lower(_)) = (&how, &bytes) {
            overlay.keep_lower(handle).map_err(errno)?;
        }
        let mut open = entry.or_insert_with(|| Open {
            how: how.clone(),
            count: 0,
            writers: 0,
        });
        open.count = open.count.saturating_add(1);
        let id = match how {
            How::Requests => {
                let anew = self.aliases.is_known_twice(nodeid.0);
                return Ok(Served::Requests { anew });
            }
            // What is started is read by maps as well, and must be one program.
            How::Image(id) if flags & FMODE_EXEC != 0 => return Ok(Served::Kernel(id)),
            How::Image(id) => match bytes {
                Bytes::Lower(_) => return Ok(Served::Kernel(id)),
                Bytes::Upper(_) => return Ok(Served::MapsOnly(id)),
            },
            How::Upper(id) => id,
        };
        if writes {
            open.writers = open.writers.saturating_add(1);
            expected.comes_true();
        }
        drop(open);
        // What is open for writing alone cannot be mapped.
        if flags & libc::O_ACCMODE == libc::O_RDWR {
            self.ask_again(nodeid);
        }
        let asks = match &bytes {
            Bytes::Upper(fd) if writes => asks_to_write(overlay, fd.as_fd(), flags),
            _ => false,
        };
        Ok(if asks {
            Served::MapsOnly(id)
        } else {
            Served::Kernel(id)
        })
    }

    /// A file of the image that nobody has open.
    fn image_file(&self, overlay: &Overlay, nid: Nid, from: u64, backing: OpenBacking<'_>) -> How {
        let lower = overlay.lower();
        if !lower.has_native() || lower.attr(nid).map_or(true, |attr| attr.size < from) {
            return How::Requests;
        }
        if let Some(id) = self.image.get(nid) {
            return How::Image(id);
        }
        let opened = match lower.open_native(nid) {
            Some(Ok(file)) => backing(file.as_fd()),
            Some(Err(error)) => Err(io::Error::other(error)),
            None => return How::Requests,
        };
        match opened {
            Ok(id) => {
                let id = Arc::new(id);
                self.image.keep(nid, Arc::clone(&id));
                How::Image(id)
            }
            Err(error) => {
                // A read will tell what is wrong, if something is.
                tracing::debug!(nid = nid.0, "no backing file: {error}");
                How::Requests
            }
        }
    }

    /// A file of the upper that nobody has open.
    fn upper_file(&self, fd: BorrowedFd<'_>, backing: OpenBacking<'_>) -> How {
        if self.not_upper || self.upper_refused.load(Ordering::Relaxed) {
            return How::Requests;
        }
        // What gets set-user-ID later loses it by a write: the kernel writes as who gives it the
        // file, and root would keep it.
        match sys::rights::without_fsetid(|| backing(fd)) {
            Ok(id) => How::Upper(Arc::new(id)),
            Err(error) => {
                // Of a stacked filesystem, or a user who may not.
                let refused = [libc::ELOOP, libc::EPERM, libc::EOPNOTSUPP];
                if error.raw_os_error().is_some_and(|e| refused.contains(&e))
                    && !self.upper_refused.swap(true, Ordering::Relaxed)
                {
                    tracing::info!("the upper is read and written by requests: {error}");
                }
                How::Requests
            }
        }
    }

    /// An open of `nodeid` with these flags is closed, or was never answered.
    pub(super) fn release(&self, nodeid: INodeNo, flags: i32) {
        let Entry::Occupied(mut entry) = self.open.entry(nodeid.0) else {
            return;
        };
        let open = entry.get_mut();
        open.count = open.count.saturating_sub(1);
        if let How::Upper(_) = open.how
            && writes(flags)
        {
            open.writers = open.writers.saturating_sub(1);
            self.written_past.fetch_sub(1, Ordering::SeqCst);
        }
        if open.count == 0 {
            let open = entry.remove();
            if !self.refusals.is_any_of(Ino(nodeid.0)) {
                self.aliases.not_needed(Ino(nodeid.0));
            }
            // The end of a backing file is a system call.
            drop(open);
        }
    }

    /// A thread looks a name up: it does not open again by what it had.
    pub(super) fn looks_up(&self, thread: u32) {
        self.refusals.looks_up(thread);
    }

    /// Takes counted lookups back, and answers whose they were.
    pub(super) fn forget(&self, nodeid: INodeNo, lookups: u64) -> Ino {
        self.aliases.forget(nodeid.0, lookups, |ino| {
            self.open.contains_key(&ino.0) || self.refusals.is_any_of(ino)
        })
    }

    /// Whether the kernel must ask for the attributes of `nodeid` each time: they may change
    /// without its knowing.
    pub(super) fn attributes_change(&self, nodeid: INodeNo) -> bool {
        if self.from().is_none() {
            return false;
        }
        let written = self
            .open
            .get(&nodeid.0)
            .is_some_and(|open| open.writers > 0);
        written || self.aliases.has_alias(nodeid.0)
    }

    /// What the kernel knows of the attributes holds no longer.
    pub(super) fn ask_again(&self, nodeid: INodeNo) {
        // A negative offset: no pages.
        self.invalidate(nodeid, -1);
    }

    /// Nor does what it has kept of the content, or of the listing.
    pub(super) fn drop_pages(&self, nodeid: INodeNo) {
        self.invalidate(nodeid, 0);
    }

    fn invalidate(&self, nodeid: INodeNo, offset: i64) {
        let Some(notifier) = self.notifier.get() else {
            return;
        };
        if let Err(error) = notifier.inval_inode(nodeid, offset, 0) {
            tracing::debug!(ino = %nodeid, "the kernel was not told: {error}");
        }
    }
}

/// An open file that the kernel may be let write to by itself. Not so after all, if it is dropped.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    opens: &'a Opens,
    counts: bool,
}

impl Expected<'_> {
    /// It is counted until [`Opens::release`].
    fn comes_true(mut self) {
        self.counts = false;
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        if self.counts {
            self.opens.written_past.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Whether what is opened with these flags can be written to.
fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// Whether what an open file is written has to come by requests, though it is served by the kernel:
/// - what O_APPEND was given up for (fcntl(2)) the kernel would append still;
/// - a filesystem that is nearly full may have room in a moment;
/// - set-user-ID and set-group-ID are the server's to drop, and where it is not asked the kernel
///   would go on to start the file as what it was.
fn asks_to_write(overlay: &Overlay, fd: BorrowedFd<'_>, flags: i32) -> bool {
    flags & libc::O_APPEND != 0
        || overlay.is_tight()
        || rustix::fs::fstat(fd).map_or(true, |stat| stat.st_mode & u32::from(PRIVILEGES) != 0)
}

/// Opens that were answered with ESTALE, by thread.
///
/// The kernel tries once more: by a LOOKUP if it goes by a name, and finds the alias, which is kept
/// until then; and else with the same number, which has to do.
#[derive(Debug, Default)]
struct Refusals {
    by_thread: Mutex<HashMap<u32, Refusal>>,
    /// Whether there may be any.
    any: AtomicBool,
}

#[derive(Debug)]
struct Refusal {
    nodeid: INodeNo,
    ino: Ino,
    /// The thread has looked a name up since.
    by_name: bool,
}

impl Refusals {
    fn note(&self, thread: u32, nodeid: INodeNo, ino: Ino) {
        let refusal = Refusal {
            nodeid,
            ino,
            by_name: false,
        };
        self.lock().insert(thread, refusal);
        self.any.store(true, Ordering::Release);
    }

    fn looks_up(&self, thread: u32) {
        if self.any.load(Ordering::Acquire)
            && let Some(refusal) = self.lock().get_mut(&thread)
        {
            refusal.by_name = true;
        }
    }

    /// The thread opens again; answers by what it was refused, if it has looked nothing up since.
    fn end(&self, thread: u32) -> Option<INodeNo> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut threads = self.lock();
        let refusal = threads.remove(&thread)?;
        self.any.store(!threads.is_empty(), Ordering::Release);
        (!refusal.by_name).then_some(refusal.nodeid)
    }

    /// Whether somebody is about to look for the alias of an inode.
    fn is_any_of(&self, ino: Ino) -> bool {
        self.any.load(Ordering::Acquire) && self.lock().values().any(|it| it.ino == ino)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Refusal>> {
        self.by_thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_by_a_name_is_not_served_by_the_number() {
        let (refusals, nodeid, ino) = (Refusals::default(), INodeNo(7), Ino(7));
        assert_eq!(refusals.end(1), None);
        refusals.note(1, nodeid, ino);
        refusals.note(2, nodeid, ino);
        refusals.looks_up(2);
        assert!(refusals.is_any_of(ino) && !refusals.is_any_of(Ino(8)));
        assert_eq!((refusals.end(3), refusals.end(2)), (None, None));
        assert_eq!((refusals.end(1), refusals.end(1)), (Some(nodeid), None));
        assert!(!refusals.is_any_of(ino));
    }
}
