//! What is found in the two directories when they are opened: whether the work directory is one,
//! before anything in it is removed.
//!
//! It changes nothing but the mode of a `work/work` that its owner could not read.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::markers::{is_whiteout_device, parse_number};
use super::work::{PENDING, WHITEOUT};
use super::{PROBES, UpperError, io_error};
use crate::inode::Kind;
use crate::sys::fs;

/// Directory of `work/work` in which overlayfs notes what a mount must know before it clears it
/// (`fs/overlayfs/super.c:ovl_create_volatile_dirty()`).
const INCOMPAT: &[u8] = b"incompat";

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
            (PENDING, Kind::Dir) => {
                let dir = open_dir(workdir, name).map_err(failed)?;
                let pending = fs::list(dir.as_fd()).map_err(failed)?;
                pending
                    .iter()
                    .all(|entry| parse_number(entry.name.as_bytes()).is_some())
            }
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
    let entries = match fs::list(dir.as_fd()) {
        // overlayfs' has mode 0, which keeps its owner out as well.
        Err(Errno::ACCESS) if mode == 0 => {
            fs::chmod(dir.as_fd(), 0o700).map_err(failed)?;
            fs::list(dir.as_fd())
        }
        listed => listed,
    }
    .map_err(failed)?;
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

/// Whether a name is one of those under which both engines make new entries.
fn is_temp(name: &[u8]) -> bool {
    name.strip_prefix(b"#")
        .is_some_and(|number| number.iter().all(u8::is_ascii_hexdigit))
}

fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<std::os::fd::OwnedFd> {
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
