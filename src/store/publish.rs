//! Publishing: written under another name, synced, renamed, directory synced. The one place for
//! it: whoever finds the final name finds all of it, also after a power cut.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Makes directory `temp`, with the files in it, appear as `target`; what was there goes.
///
/// Files become 0400. The directory stays writable for its owner: an unprivileged rename to
/// another parent needs that (fs/namei.c:vfs_rename), and digests are added to it.
pub(super) fn dir(temp: &Path, target: &Path) -> io::Result<()> {
    for entry in fs::read_dir(temp)? {
        seal(&File::open(entry?.path())?)?;
    }
    sync_dir(temp)?;
    let old = with_suffix(temp, ".old");
    match fs::rename(target, &old) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    fs::rename(temp, target)?;
    sync_parent(target)?;
    remove(&old)
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

fn seal(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o400))?;
    file.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}
