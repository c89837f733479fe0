//! Publishing: written under another name, synced, renamed, directory synced. The one place for
//! it: whoever finds the final name finds all of it, also after a power cut.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::hold::Hold;
use super::layout::{INDEX, USED};
use super::links;

/// Makes directory `temp`, an entry with all its files, appear as `target`; what was there goes.
/// Nobody removes it before the hold that this gives is dropped.
///
/// Files become 0400. The directory stays writable for its owner: an unprivileged rename to
/// another parent needs that (fs/namei.c:vfs_rename), and digests are added to it. It and what was
/// there before must be for the caller alone to make; others may remove it at any time.
pub(super) fn dir(temp: &Path, target: &Path) -> io::Result<Hold> {
    for entry in fs::read_dir(temp)? {
        seal(&File::open(entry?.path())?)?;
    }
    sync_dir(temp)?;
    let hold = loop {
        let there = match fs::symlink_metadata(target) {
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        if there {
            keep_files(temp, target)?;
        }
        // Where the lock is that of an old entry, this waits for who is about to remove that.
        let hold = Hold::take(temp)?.ok_or(io::ErrorKind::NotFound)?;
        let flags = match there {
            // At no moment is there none: also who is killed here leaves the old one or the new.
            true => RenameFlags::EXCHANGE,
            false => RenameFlags::empty(),
        };
        match renameat_with(CWD, temp, CWD, target, flags) {
            Ok(()) => break hold,
            // It was removed meanwhile.
            Err(Errno::NOENT) if there && links::is_gone(target)? => {}
            Err(e) => return Err(e.into()),
        }
    };
    sync_parent(target)?;
    // What was there before.
    remove(temp)?;
    Ok(hold)
}

/// Gives the entry `temp` the lock file of `target`, in whose place it comes, and its index where
/// that is the same: who has the old entry open, or the kernel mounted, is seen to use the new one.
fn keep_files(temp: &Path, target: &Path) -> io::Result<()> {
    let old = |name: &str| match fs::symlink_metadata(target.join(name)) {
        Ok(found) if found.is_file() => Some(target.join(name)),
        _ => None,
    };
    let (used, index) = (temp.join(USED), temp.join(INDEX));
    let kept = with_suffix(&used, ".old");
    if let Some(old) = old(USED) {
        replace_by_link(&old, &kept, &used)?;
    }
    if let Some(old) = old(INDEX)
        && same_bytes(&old, &index)?
    {
        replace_by_link(&old, &kept, &index)?;
    }
    sync_dir(temp)
}

/// Puts a link of `old`, by way of `temp`, in the place of `new`, unless `old` is gone.
fn replace_by_link(old: &Path, temp: &Path, new: &Path) -> io::Result<()> {
    match fs::hard_link(old, temp) {
        Ok(()) => fs::rename(temp, new)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    // Two names of one file are not renamed to one (rename(2)).
    remove(temp)
}

/// Whether two files have the same bytes; false where one is not there.
fn same_bytes(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = match (File::open(a), File::open(b)) {
        (Ok(a), Ok(b)) => (a, b),
        _ => return Ok(false),
    };
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut of_a, mut of_b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = a.read(&mut of_a)?;
        let (Some(read), Some(room)) = (of_a.get(..n), of_b.get_mut(..n)) else {
            return Ok(false);
        };
        b.read_exact(room)?;
        if read != room {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

/// Lets the symbolic link `link` lead to `target`, all or nothing, whatever was there. `temp` is
/// where it is made.
pub(super) fn link(target: impl AsRef<Path>, temp: &Path, link: &Path) -> io::Result<()> {
    remove(temp)?;
    std::os::unix::fs::symlink(target.as_ref(), temp)?;
    fs::rename(temp, link)?;
    sync_parent(link)
}

/// Takes `path` out of its directory at once, to `temp`, and removes it there; whoever sweeps may
/// help.
pub(super) fn withdraw(path: &Path, temp: &Path) -> io::Result<()> {
    match fs::rename(path, temp) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    sync_parent(path)?;
    remove(temp)
}

/// Makes the finished file `temp` appear as `target`.
pub(super) fn finished(temp: &Path, target: &Path) -> io::Result<()> {
    seal_at(temp)?;
    fs::rename(temp, target)?;
    sync_parent(target)
}

/// Makes the sealed file `temp` appear as `target`; false where something is there.
pub(super) fn new_file(temp: &Path, target: &Path) -> io::Result<bool> {
    match renameat_with(CWD, temp, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(false),
        // Not every filesystem knows how (NFS): by a link, of which the caller removes the other end.
        Err(Errno::INVAL | Errno::NOSYS) => match fs::hard_link(temp, target) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(e) => return Err(e),
        },
        Err(e) => return Err(e.into()),
    }
    sync_parent(target)?;
    Ok(true)
}

/// Writes `bytes` to the file `target`, all or nothing, by way of `temp`, which is the caller's.
pub(super) fn file(temp: &Path, target: &Path, bytes: &[u8]) -> io::Result<()> {
    remove(temp)?;
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temp)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| finished(temp, target))
}

/// Removes what is at `path`, a file or a directory, if anything is.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let gone = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match gone {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// `path` with `suffix` behind its last component.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the file at `path` unchangeable and has it on disk.
pub(super) fn seal_at(path: &Path) -> io::Result<()> {
    seal(&File::open(path)?)
}

fn seal(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o400))?;
    file.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}
