//! What is found in the two directories when they are opened: whether the work directory is one,
//! before anything in it is removed; and by which namespace's marks the upper is to be read.
//!
//! It changes nothing but directories of the work directory that it cannot read: one that is empty
//! goes, one that its owner has closed to himself is opened.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::markers::{Namespace, is_whiteout_device, mark_in, parse_number};
use super::overlayfs::INCOMPAT;
use super::work::{PENDING, WHITEOUT};
use super::{PROBES, UpperError, io_error};
use crate::inode::Kind;
use crate::sys::fs;

/// Refuses a work directory that holds anything else than what overlayfs and tarnfs leave in one.
pub(super) fn check_work(path: &Path, workdir: BorrowedFd<'_>) -> Result<(), UpperError> {
    let failed = |errno: Errno| io_error(path, "looking for what it holds", errno.into());
    for entry in fs::list(workdir).map_err(failed)? {
        let name = entry.name.as_bytes();
        let known = match (name, entry.kind) {
            (b"work", Kind::Dir) => {
                check_inner(path, workdir)?;
                true
            }
            // overlayfs' with index=on. No use to us.
            (b"index", Kind::Dir) => true,
            (WHITEOUT, Kind::Char) => is_whiteout_device(&fs::stat(workdir, name).map_err(failed)?),
            (PENDING, Kind::Dir) => list_or_remove(workdir, name)
                .map_err(failed)?
                .iter()
                .all(|entry| parse_number(entry.name.as_bytes()).is_some()),
            _ => false,
        };
        if !known {
            return Err(foreign(path, &[name]));
        }
    }
    Ok(())
}

/// The same for `work/work`, all of which is cleared.
fn check_inner(path: &Path, workdir: BorrowedFd<'_>) -> Result<(), UpperError> {
    let failed = |errno: Errno| io_error(path, "looking for what work/ holds", errno.into());
    let dir = open_dir(workdir, b"work").map_err(failed)?;
    let mode = fs::fstat(dir.as_fd()).map_err(failed)?.attr.perm;
    let entries = list_or_remove(workdir, b"work").map_err(failed)?;
    // overlayfs' mode, and ours, which fuse-overlayfs has as well.
    if !entries.is_empty() && !matches!(mode, 0 | 0o700) {
        return Err(foreign(path, &[b"work"]));
    }
    for entry in &entries {
        let name = entry.name.as_bytes();
        if (name, entry.kind) == (INCOMPAT, Kind::Dir) {
            let incompat = open_dir(dir.as_fd(), name).map_err(failed)?;
            if let Some(feature) = fs::list(incompat.as_fd()).map_err(failed)?.first() {
                let feature = lossy(feature.name.as_bytes());
                let path = path.join("work/incompat").join(feature);
                return Err(UpperError::Incompatible(path));
            }
        } else if !is_temp(name) && !PROBES.contains(&name) {
            return Err(foreign(path, &[b"work", name]));
        }
    }
    Ok(())
}

/// Whose marks an upper bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bears {
    /// This namespace's.
    Marks(Namespace),
    /// None that can be seen.
    Nothing,
    /// None that can be seen; but there are whiteouts, or files of others, and so perhaps marks
    /// that only root can see.
    Doubt,
}

/// Finds out by which marks an upper is to be read. Its root tells: tarnfs leaves its number there,
/// overlayfs (since Linux 6.6) the upper's UUID. One that overlayfs left without is looked
/// through; what a mount without root has in `user.` a program inside a mount of root's overlayfs
/// could have set as well, so that `trusted.` wins.
pub(super) fn marks(root: BorrowedFd<'_>, me: u32) -> rustix::io::Result<Bears> {
    let mut seen = Seen {
        me,
        user: false,
        doubt: false,
    };
    if seen.look_at(root)? {
        return Ok(Bears::Marks(Namespace::Trusted));
    }
    if seen.user {
        return Ok(Bears::Marks(Namespace::User));
    }
    let mut stack =
        vec![seen.enter(fs::open(root, b".", OFlags::RDONLY | OFlags::DIRECTORY, 0)?)?];
    while let Some((dir, subdirs)) = stack.last_mut() {
        let Some(name) = subdirs.pop() else {
            stack.pop();
            continue;
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = match fs::open(dir.as_fd(), &name, flags, 0) {
            Ok(dir) => dir,
            Err(Errno::ACCESS) => {
                seen.doubt = true;
                continue;
            }
            Err(errno) => return Err(errno),
        };
        if seen.look_at(dir.as_fd())? {
            return Ok(Bears::Marks(Namespace::Trusted));
        }
        stack.push(seen.enter(dir)?);
    }
    Ok(match seen {
        Seen { user: true, .. } => Bears::Marks(Namespace::User),
        Seen { doubt: true, .. } => Bears::Doubt,
        _ => Bears::Nothing,
    })
}

/// What a walk through an upper has come across.
struct Seen {
    me: u32,
    /// A mark in `user.`.
    user: bool,
    /// A whiteout, or a file that belongs to somebody else.
    doubt: bool,
}

impl Seen {
    /// Notes whose marks a directory bears; true for `trusted.`.
    fn look_at(&mut self, dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        for name in fs::listxattr(dir)? {
            match mark_in(&name) {
                Some(Namespace::Trusted) => return Ok(true),
                Some(Namespace::User) => self.user = true,
                None => {}
            }
        }
        Ok(false)
    }

    /// Notes what a directory holds, and gives the names of its subdirectories.
    fn enter(&mut self, dir: OwnedFd) -> rustix::io::Result<(OwnedFd, Vec<Vec<u8>>)> {
        let mut subdirs = Vec::new();
        for entry in fs::list(dir.as_fd())? {
            let name = entry.name.as_bytes();
            if !self.doubt {
                let stat = fs::stat(dir.as_fd(), name)?;
                self.doubt = is_whiteout_device(&stat) || stat.attr.uid != self.me;
            }
            if entry.kind == Kind::Dir {
                subdirs.push(name.to_vec());
            }
        }
        Ok((dir, subdirs))
    }
}

/// Lists a directory. One that is closed to us, since it is another user's or has overlayfs'
/// mode 0, is removed if it is empty, and else opened to its owner.
fn list_or_remove(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Vec<fs::DirEntry>> {
    let fd = open_dir(dir, name)?;
    match fs::list(fd.as_fd()) {
        Err(Errno::ACCESS) => {}
        listed => return listed,
    }
    match fs::rmdir(dir, name) {
        Ok(()) => return Ok(Vec::new()),
        Err(Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno),
    }
    if fs::fstat(fd.as_fd())?.attr.perm != 0 {
        return Err(Errno::ACCESS);
    }
    fs::chmod(fd.as_fd(), 0o700)?;
    fs::list(fd.as_fd())
}

/// Whether a name is one of those under which both engines make new entries.
fn is_temp(name: &[u8]) -> bool {
    name.strip_prefix(b"#")
        .is_some_and(|number| number.iter().all(u8::is_ascii_hexdigit))
}

fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    fs::open(dir, name, OFlags::PATH | OFlags::DIRECTORY, 0)
}

fn foreign(path: &Path, names: &[&[u8]]) -> UpperError {
    UpperError::NoWork {
        path: path.into(),
        holds: lossy(&names.join(&b'/')),
    }
}

fn lossy(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}
