//! The upper directory: an actor's writes, in overlayfs' own on-disk format.
//!
//! [`Upper`] owns the descriptors of the upper and the work directory and the lock on both; the
//! marks on disk have their home in [`markers`], the making and publishing of new entries in
//! [`work`], the look at what is there already in [`found`], what is shared with a living overlayfs
//! in [`overlayfs`]. It knows nothing of the lower.
//!
//! Invariants: one mount at a time uses an upper (flock on both directories; overlayfs is asked,
//! which takes none); everything in `work/work` is rubbish once no mount uses it, and what is no
//! such directory is never cleared; an entry appears in the upper complete, by one rename or one
//! creating system call.
//!
//! It never follows a symbolic link and never leaves its two directories.

pub mod acl;
mod found;
pub mod markers;
mod overlayfs;
pub mod work;

use std::fs::DirBuilder;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use crate::sys::fs;
use found::Bears;
use markers::{ImageId, Namespace};
pub use overlayfs::{end_volatile, overlayfs_has};

/// Why an upper directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpperError {
    /// A directory could not be opened or prepared.
    #[error("{path}: {doing}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Another mount uses it.
    #[error("{0}: in use by another mount; unmount that one first or give another directory")]
    Busy(PathBuf),
    /// Upper and work lie on different filesystems: rename(2) could not publish.
    #[error("{upper} and {work}: upper and work must lie on one filesystem (one mount)")]
    OtherFilesystem {
        /// The upper directory.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// One of the two holds the other, or both are one.
    #[error("{upper} and {work}: upper and work must be two directories, neither inside the other")]
    Nested {
        /// The upper directory.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// The work directory holds what no mount has put there: nothing in it is to be removed.
    #[error(
        "{path}: no work directory: {holds} in it is not a mount's; give a new or empty directory"
    )]
    NoWork {
        /// The directory.
        path: PathBuf,
        /// The first such name.
        holds: String,
    },
    /// The work directory is somebody else's, who could have what he puts there published.
    #[error(
        "{path}: the work directory belongs to user {uid}, who is neither you nor the owner of the upper; give another (--work)"
    )]
    OthersWork {
        /// The work directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// overlayfs notes there that the upper cannot be used as it is.
    #[error(
        "{0}: left by overlayfs, whose upper may have lost data in a crash: remove it to use the upper all the same"
    )]
    Incompatible(PathBuf),
    /// Its marks are root's, as it seems, and this process cannot see them: files that were removed
    /// would come back.
    #[error(
        "{0}: seems to be written by root, whose marks only root can read: mount it as root (or say that it is not: setfattr -n user.overlay.impure -v y DIR)"
    )]
    Unreadable(PathBuf),
    /// The filesystem lacks what the format needs.
    #[error("{path}: this filesystem cannot hold an upper: {what}")]
    Unfit {
        /// The upper directory.
        path: PathBuf,
        /// What it lacks.
        what: &'static str,
    },
}

/// An upper and a work directory, opened and locked.
#[derive(Debug)]
pub struct Upper {
    root: OwnedFd,
    work: Arc<OwnedFd>,
    /// The directory given as `work`; holds the lock and [`Self::work`].
    workdir: OwnedFd,
    namespace: Namespace,
    /// The caller's IDs that need no chown: those that the server itself creates files with.
    ids: (u32, u32),
    next_temp: Arc<AtomicU64>,
}

impl Upper {
    /// Opens, checks and locks the two directories, and clears what a killed mount left in work.
    ///
    /// `upper` must exist; `work` is made if it does not. Their paths may be of any kind the
    /// caller trusts (`/proc/self/fd/N` too).
    ///
    /// # Errors
    /// [`UpperError`], each naming the directory.
    pub fn open(upper: &Path, work: &Path) -> Result<Self, UpperError> {
        // Nobody else has business in it, and a server has no umask: what is planted in work/work
        // would be published.
        let made = match DirBuilder::new().mode(0o700).create(work) {
            Ok(()) => true,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(io_error(work, "making the work directory", error)),
        };
        let opened = Self::open_both(upper, work);
        if made && opened.is_err() {
            // The error says more than what may come of this.
            std::fs::remove_dir(work).ok();
        }
        opened
    }

    fn open_both(upper: &Path, work: &Path) -> Result<Self, UpperError> {
        let root = open_dir(upper)?;
        let workdir = open_dir(work)?;
        check_pair(upper, root.as_fd(), work, workdir.as_fd())?;
        lock(upper, root.as_fd())?;
        lock(work, workdir.as_fd())?;
        let failed = |doing| move |errno: Errno| io_error(work, doing, errno.into());
        match overlayfs::has(root.as_fd(), workdir.as_fd()) {
            Ok(false) => {}
            Ok(true) => return Err(UpperError::Busy(upper.into())),
            // An ordinary user, who cannot know.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(io_error(upper, "asking who uses it", error)),
        }
        found::check_work(work, workdir.as_fd())?;
        // As kernel overlayfs names it (fs/overlayfs/super.c:ovlworkdir_create()), so that
        // either engine clears the other's leftovers.
        work::remove_tree(workdir.as_fd(), b"work").map_err(failed("clearing leftovers"))?;
        fs::mkdir(workdir.as_fd(), b"work", 0o700).map_err(failed("making work/"))?;
        let work_fd = fs::open(
            workdir.as_fd(),
            b"work",
            OFlags::PATH | OFlags::DIRECTORY,
            0,
        )
        .map_err(failed("opening work/"))?;
        let probed = probe_names(upper, work_fd.as_fd())
            .and_then(|()| probe_marks(upper, root.as_fd(), work_fd.as_fd()));
        if probed.is_err() {
            // The error says more than what may come of this.
            work::remove_tree(workdir.as_fd(), b"work").ok();
        }
        let namespace = probed?;
        let ids = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        Ok(Self {
            root,
            work: Arc::new(work_fd),
            workdir,
            namespace,
            ids,
            next_temp: Arc::default(),
        })
    }

    /// The upper's root directory.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether its root was copied from another image than that of `fingerprint`
    /// ([`crate::lower::Lower::fingerprint`]). One that nothing tells of is of none.
    #[must_use]
    pub fn is_of_other(&self, fingerprint: u64) -> bool {
        let image = self.namespace.image(self.root());
        matches!(image, Ok(Some(image)) if image != ImageId(fingerprint))
    }

    /// The directory that was given as `work`.
    #[must_use]
    pub fn workdir(&self) -> BorrowedFd<'_> {
        self.workdir.as_fd()
    }

    /// The namespace of the marks.
    #[must_use]
    pub fn marks(&self) -> Namespace {
        self.namespace
    }

    /// The user and group that new files belong to by themselves.
    #[must_use]
    pub fn ids(&self) -> (u32, u32) {
        self.ids
    }

    /// Whether files are shown and made without privilege: marks in `user.`.
    #[must_use]
    pub fn unprivileged(&self) -> bool {
        self.namespace == Namespace::User
    }
}

/// The namespace of the marks of the upper with the root directory `root`, which others may be using:
/// the one that it bears, or else that in which this process would set them.
///
/// # Errors
/// Those of reading it.
pub fn marks_of(root: BorrowedFd<'_>) -> rustix::io::Result<Namespace> {
    let me = rustix::process::geteuid();
    Ok(match found::marks(root, me.as_raw())? {
        Bears::Marks(namespace) => namespace,
        Bears::Nothing | Bears::Doubt if me.is_root() => Namespace::Trusted,
        Bears::Nothing | Bears::Doubt => Namespace::User,
    })
}

fn io_error(path: &Path, doing: &'static str, source: std::io::Error) -> UpperError {
    UpperError::Io {
        path: path.into(),
        doing,
        source,
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, UpperError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map_err(|errno| io_error(path, "opening the directory", errno.into()))
}

fn lock(path: &Path, fd: BorrowedFd<'_>) -> Result<(), UpperError> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(UpperError::Busy(path.into())),
        Err(errno) => Err(io_error(path, "locking", errno.into())),
    }
}

fn check_pair(
    upper: &Path,
    upper_fd: BorrowedFd<'_>,
    work: &Path,
    work_fd: BorrowedFd<'_>,
) -> Result<(), UpperError> {
    let stat = |path: &Path, fd: BorrowedFd<'_>| {
        fs::fstat(fd).map_err(|errno| io_error(path, "reading its attributes", errno.into()))
    };
    let (u, w) = (stat(upper, upper_fd)?, stat(work, work_fd)?);
    let me = rustix::process::geteuid().as_raw();
    // Beside an upper in /tmp anybody may have been first; what waits there for its names
    // (`work::PENDING`) would be given those of the image.
    if ![me, 0, u.attr.uid].contains(&w.attr.uid) {
        return Err(UpperError::OthersWork {
            path: work.into(),
            uid: w.attr.uid,
        });
    }
    if u.dev != w.dev {
        return Err(UpperError::OtherFilesystem {
            upper: upper.into(),
            work: work.into(),
        });
    }
    let inside = |path: &Path, from: BorrowedFd<'_>, of: u64| -> Result<bool, UpperError> {
        let mut here = stat(path, from)?;
        let mut fd = None;
        loop {
            if here.attr.ino == of && here.dev == u.dev {
                return Ok(true);
            }
            let at = fd.as_ref().map_or(from, |fd: &OwnedFd| fd.as_fd());
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let up = rustix::fs::openat(at, c"..", flags, rustix::fs::Mode::empty())
                .map_err(|errno| io_error(path, "walking up", errno.into()))?;
            let above = stat(path, up.as_fd())?;
            if (above.attr.ino, above.dev) == (here.attr.ino, here.dev) {
                return Ok(false);
            }
            here = above;
            fd = Some(up);
        }
    };
    if inside(upper, upper_fd, w.attr.ino)? || inside(work, work_fd, u.attr.ino)? {
        return Err(UpperError::Nested {
            upper: upper.into(),
            work: work.into(),
        });
    }
    Ok(())
}

/// What [`probe_names`] makes in work, and removes.
const PROBES: [&[u8]; 2] = [b"whiteout", b"probe"];

/// Refuses filesystems that lack what the format needs of names: whiteouts, RENAME_EXCHANGE and
/// RENAME_WHITEOUT.
fn probe_names(upper: &Path, work: BorrowedFd<'_>) -> Result<(), UpperError> {
    let failed = |doing| move |errno: Errno| io_error(upper, doing, errno.into());
    let unfit = |what| UpperError::Unfit {
        path: upper.into(),
        what,
    };
    let [whiteout, probe] = PROBES;
    match fs::mknod(work, whiteout, crate::inode::Kind::Char, 0, 0) {
        Ok(()) => {}
        // No room to try: what is missing, the operation that needs it will say. A full
        // filesystem can still be mounted.
        Err(Errno::NOSPC | Errno::DQUOT) => return Ok(()),
        Err(_) => {
            return Err(unfit(
                "whiteouts (character devices 0:0) cannot be made here",
            ));
        }
    }
    match fs::mkdir(work, probe, 0o700) {
        Err(Errno::NOSPC | Errno::DQUOT) => {
            return fs::unlink(work, whiteout).map_err(failed("probing"));
        }
        other => other.map_err(failed("probing"))?,
    }
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    if fs::rename(work, probe, work, whiteout, exchange).is_err() {
        return Err(unfit("it has no RENAME_EXCHANGE"));
    }
    // The directory, now under the other name, is out of the way of the next try.
    fs::rmdir(work, whiteout).map_err(failed("probing"))?;
    match fs::rename(
        work,
        probe,
        work,
        whiteout,
        rustix::fs::RenameFlags::WHITEOUT,
    ) {
        Ok(()) => fs::unlink(work, probe).map_err(failed("probing"))?,
        // Without room for the whiteout the device has kept its name.
        Err(Errno::NOSPC | Errno::DQUOT) => {
            return fs::unlink(work, probe).map_err(failed("probing"));
        }
        Err(_) => return Err(unfit("it has no RENAME_WHITEOUT")),
    }
    fs::unlink(work, whiteout).map_err(failed("probing"))
}

/// Finds the namespace that the upper's marks are in, or else the one in which they can be set.
fn probe_marks(
    upper: &Path,
    root: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
) -> Result<Namespace, UpperError> {
    let failed = |errno: Errno| io_error(upper, "setting an attribute", errno.into());
    let bears = found::marks(root, rustix::process::geteuid().as_raw())
        .map_err(|errno| io_error(upper, "looking for marks", errno.into()))?;
    // On work/ itself, where the mark means nothing.
    if bears != Bears::Marks(Namespace::User) {
        match Namespace::Trusted.set_opaque(work) {
            Ok(()) => return Ok(Namespace::Trusted),
            Err(Errno::PERM) if bears == Bears::Nothing => {}
            // No such attributes there at all.
            Err(Errno::OPNOTSUPP) if bears != Bears::Marks(Namespace::Trusted) => {}
            Err(Errno::PERM) => return Err(UpperError::Unreadable(upper.into())),
            Err(errno) => return Err(failed(errno)),
        }
    }
    match Namespace::User.set_opaque(work) {
        Ok(()) => Ok(Namespace::User),
        Err(Errno::OPNOTSUPP) => Err(UpperError::Unfit {
            path: upper.into(),
            what: "it has no extended attributes",
        }),
        Err(errno) => Err(failed(errno)),
    }
}

#[cfg(test)]
pub(crate) mod tests;
