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

/// Whether overlayfs has a work directory mounted, and so the upper that goes with it, in whatever
/// mount namespace. One that does not exist is in nobody's use.
///
/// # Errors
/// The system's; EPERM when this process may not ask.
pub fn overlayfs_has(work: &Path) -> io::Result<bool> {
    match File::open(work) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        opened => has_work(opened?.as_fd()),
    }
}

/// Whether overlayfs has one of two directories, which need not have been mounted together. It
/// takes no lock that could be seen, and what it has in its work directory must not be cleared.
pub(super) fn has(upper: BorrowedFd<'_>, workdir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(was_last(workdir)?
        && (sys::mount::overlayfs_has(workdir)? || sys::mount::overlayfs_has(upper)?))
}

fn has_work(workdir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(was_last(workdir)? && sys::mount::overlayfs_has(workdir)?)
}

/// Whether overlayfs was the last to use a work directory, whose mode tells. Only then is the
/// kernel asked, which logs each question.
fn was_last(workdir: BorrowedFd<'_>) -> io::Result<bool> {
    match fs::stat(workdir, b"work") {
        Ok(work) => Ok(work.attr.kind == Kind::Dir && work.attr.perm == 0),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
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
    if has_work(workdir.as_fd())? {
        return Ok(());
    }
    rustix::fs::syncfs(&root)?;
    let inner = File::open(work.join("work"))?;
    remove_tree(inner.as_fd(), INCOMPAT)?;
    Ok(())
}
