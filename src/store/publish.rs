//! Publishing: written under another name, synced, renamed, directory synced. The one place for
//! it: whoever finds the final name finds all of it, also after a power cut.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::layout::USED;
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Makes directory `temp`, with the files in it, appear as `target`; what was there goes.
///
/// Files become 0400. The directory stays writable for its owner: an unprivileged rename to
/// another parent needs that (fs/namei.c:vfs_rename), and digests are added to it. It and what was
/// there before must be for the caller alone to make.
pub(super) fn dir(temp: &Path, target: &Path) -> io::Result<()> {
    for entry in fs::read_dir(temp)? {
        seal(&File::open(entry?.path())?)?;
    }
    sync_dir(temp)?;
    match fs::symlink_metadata(target) {
        // At no moment is there none: also who is killed here leaves the old one or the new.
        Ok(_) => {
            keep_lock(temp, target)?;
            renameat_with(CWD, temp, CWD, target, RenameFlags::EXCHANGE)?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::rename(temp, target)?,
        Err(e) => return Err(e),
    }
    sync_parent(target)?;
    // What was there before.
    remove(temp)
}

/// Gives the entry `temp` the lock file of `target`, in whose place it comes: who has the old entry
/// open is seen to use the new one.
fn keep_lock(temp: &Path, target: &Path) -> io::Result<()> {
    let (new, old) = (temp.join(USED), target.join(USED));
    if !old.is_file() {
        return Ok(());
    }
    remove(&new)?;
    fs::hard_link(&old, &new)?;
    sync_dir(temp)
}

/// Lets the symbolic link `link` lead to `target`, all or nothing, whatever was there. `temp` is
/// where it is made.
pub(super) fn link(target: impl AsRef<Path>, temp: &Path, link: &Path) -> io::Result<()> {
    remove(temp)?;
    std::os::unix::fs::symlink(target.as_ref(), temp)?;
    fs::rename(temp, link)?;
    sync_parent(link)
}

/// Takes `path` out of its directory at once, to `temp`, and removes it there.
pub(super) fn withdraw(path: &Path, temp: &Path) -> io::Result<()> {
    match fs::rename(path, temp) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    sync_parent(path)?;
    remove(temp)
}

/// Makes the finished file `temp` appear as `target`, in the same directory.
pub(super) fn finished(temp: &Path, target: &Path) -> io::Result<()> {
    seal(&File::open(temp)?)?;
    fs::rename(temp, target)?;
    sync_parent(target)
}

/// Writes `bytes` to the file `target`, all or nothing.
pub(super) fn file(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let temp = with_suffix(target, &format!(".tmp-{}", std::process::id()));
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temp)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| finished(&temp, target));
    if written.is_err() {
        remove(&temp)?;
    }
    written
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
