//! An upper that the kernel's overlayfs has or had mounted: whether it still has, and the note that
//! a volatile mount leaves.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::work::remove_tree;
use crate::inode::Kind;
use crate::sys::{self, fs};

/// Directory of `work/work` in which overlayfs notes what a mount must know before it clears it
/// (`fs/overlayfs/super.c:ovl_create_volatile_dirty()`).
pub(super) const INCOMPAT: &[u8] = b"incompat";

/// Whether overlayfs has one of the two directories mounted, in whatever mount namespace. It takes
/// no lock that could be seen, and what it has in its work directory must not be cleared. Paths
/// that do not exist are in nobody's use.
///
/// # Errors
/// The system's; EPERM when this process may not ask.
pub fn overlayfs_has(upper: &Path, work: &Path) -> io::Result<bool> {
    let open = |path: &Path| match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    };
    match (open(upper)?, open(work)?) {
        (Some(upper), Some(work)) => has(upper.as_fd(), work.as_fd()),
        _ => Ok(false),
    }
}

/// The kernel is asked only where overlayfs was the last to use the work directory, whose mode
/// tells: it logs each question.
pub(super) fn has(upper: BorrowedFd<'_>, workdir: BorrowedFd<'_>) -> io::Result<bool> {
    match fs::stat(workdir, b"work") {
        Ok(work) if work.attr.kind == Kind::Dir && work.attr.perm == 0 => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    }
    Ok(sys::mount::overlayfs_has(workdir)? || sys::mount::overlayfs_has(upper)?)
}

/// After a volatile overlayfs mount that has ended in good order: writes its upper to disk and
/// takes away the note that it may have lost data. Nothing where another mount has it by now.
///
/// # Errors
/// The system's; the note stays then.
pub fn end_volatile(upper: &Path, work: &Path) -> io::Result<()> {
    let (root, workdir) = (File::open(upper)?, File::open(work)?);
    match rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(()),
        locked => locked?,
    }
    if has(root.as_fd(), workdir.as_fd())? {
        return Ok(());
    }
    rustix::fs::syncfs(&root)?;
    let inner = File::open(work.join("work"))?;
    remove_tree(inner.as_fd(), INCOMPAT)?;
    Ok(())
}
