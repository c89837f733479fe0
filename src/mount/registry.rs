//! State files: one per mount, while its server lives.
//!
//! `<state dir>/<connection>.json` says who serves which image on which upper, and is locked
//! (flock(2)) for the life of the server: the kernel releases the lock however the server ends, so
//! "the server has ended" is "the lock can be taken". A file without a lock is stale and harmless.
//!
//! The kernel gives a connection's number to the next mount while the server of the last one still
//! writes out. So a file is put in its place whole and locked, over what is there, and a server
//! removes its name only while that leads to its own file; both under a lock of the directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::sys::mount::MountPoint;

/// What a state file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The server's process, in its own PID namespace.
    pub pid: u32,
    /// The image.
    pub image: PathBuf,
    /// The upper directory; `None` for a read-only mount or a private upper.
    pub upper: Option<PathBuf>,
    /// Where it was mounted.
    pub point: Option<PathBuf>,
    /// Its control socket, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
}

/// A state file is a few hundred bytes; what is longer is none.
const LONGEST: u64 = 64 * 1024;

/// Where this user's state files may lie, the best place first: /run/tarnfs, the user's runtime
/// directory, a private directory in /tmp.
#[must_use]
pub fn state_dirs() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid();
    let mut dirs = Vec::new();
    if uid.is_root() {
        dirs.push(PathBuf::from("/run/tarnfs"));
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    dirs.extend(
        runtime
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join("tarnfs")),
    );
    dirs.push(PathBuf::from(format!("/tmp/tarnfs-{}", uid.as_raw())));
    dirs
}

/// Makes a state directory of this user's, if there is none.
pub(super) fn make_own_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    check_own_dir(dir)
}

/// Whether what is in a directory is this user's work: in /tmp anybody may have been first.
pub(super) fn check_own_dir(dir: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(dir)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("not a directory of this user"));
    }
    Ok(())
}

/// Opens a state file.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        // It may be another user's: no link followed, no FIFO waited for.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

pub(super) fn read_file(file: &mut File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

fn path(dir: &Path, connection: u32) -> PathBuf {
    dir.join(format!("{connection}.json"))
}

/// The state file of this process's mount; gone when dropped.
#[derive(Debug)]
pub(super) struct Registration {
    path: PathBuf,
    locked: File,
}

impl Registration {
    /// In the first of `dirs` that can be used.
    pub(super) fn new(dirs: &[PathBuf], connection: u32, record: &Record) -> Option<Self> {
        dirs.iter()
            .find_map(|dir| match Self::new_in(dir, connection, record) {
                Ok(registration) => Some(registration),
                Err(error) => {
                    tracing::debug!("no state file in {}: {error}", dir.display());
                    None
                }
            })
    }

    fn new_in(dir: &Path, connection: u32, record: &Record) -> io::Result<Self> {
        make_own_dir(dir)?;
        let mut temp = tempfile::NamedTempFile::new_in(dir)?;
        rustix::fs::flock(&temp, FlockOperation::LockExclusive)?;
        temp.write_all(&serde_json::to_vec(record)?)?;
        let path = path(dir, connection);
        let guard = lock_dir(dir)?;
        let locked = temp.persist(&path)?;
        drop(guard);
        Ok(Self { path, locked })
    }

    fn remove(&self) -> io::Result<()> {
        let guard = self.path.parent().map(lock_dir).transpose()?;
        let (ours, found) = (
            self.locked.metadata()?,
            std::fs::symlink_metadata(&self.path)?,
        );
        if (ours.dev(), ours.ino()) == (found.dev(), found.ino()) {
            std::fs::remove_file(&self.path)?;
        }
        drop(guard);
        Ok(())
    }
}

/// Removes the state file that a killed server has left behind.
pub(super) fn clear(dirs: &[PathBuf], connection: u32) -> io::Result<()> {
    for dir in dirs {
        let path = path(dir, connection);
        match std::fs::symlink_metadata(dir) {
            Ok(found) if found.uid() == rustix::process::geteuid().as_raw() => {}
            _ => continue,
        }
        let _guard = lock_dir(dir)?;
        match Watch::open_file(&path) {
            Ok(None) => std::fs::remove_file(&path)?,
            // The number is another living server's by now.
            Ok(Some(_)) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn lock_dir(dir: &Path) -> io::Result<File> {
    let dir = File::open(dir)?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
    Ok(dir)
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::debug!("{}: {error}", self.path.display());
        }
    }
}

/// Waits for the server that still writes to `upper` though its mount is gone: umount(2) does not
/// wait for a FUSE server. At once when there is none, at the latest after `timeout`.
///
/// False when the upper is in use by a mount that can be seen, so that waiting is of no use.
#[must_use]
pub fn wait_for_leaving(dirs: &[PathBuf], upper: &Path, timeout: Duration) -> bool {
    match holder(dirs, upper) {
        Ok(Holder::Mounted) => false,
        Ok(Holder::Leaving(watch)) => {
            let ended = watch.wait(timeout);
            tracing::debug!("the last server of {} has ended: {ended}", upper.display());
            true
        }
        Ok(Holder::Unknown) => true,
        Err(error) => {
            tracing::debug!("looking for who uses {}: {error}", upper.display());
            true
        }
    }
}

/// Who has an upper, as far as the state files tell.
#[derive(Debug)]
enum Holder {
    Mounted,
    Leaving(Watch),
    /// Nobody any more; or an actor, which has no state file; or a server whose state file gave
    /// way to the next mount with its number.
    Unknown,
}

fn holder(dirs: &[PathBuf], upper: &Path) -> io::Result<Holder> {
    let mounted = crate::sys::mount::mounts()?;
    let upper = upper.canonicalize()?;
    if super::kernel::shows_upper(dirs, &upper, &mounted) {
        return Ok(Holder::Mounted);
    }
    for dir in dirs {
        let entries = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let number = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            let Some(number) = number else { continue };
            let Some(watch) = Watch::open(std::slice::from_ref(dir), number) else {
                continue;
            };
            let its = watch
                .record
                .upper
                .as_ref()
                .map(|upper| upper.canonicalize());
            if !matches!(its, Some(Ok(its)) if its == upper) {
                continue;
            }
            let seen = |mount: &MountPoint| {
                mount.minor == number && Some(&mount.path) == watch.record.point.as_ref()
            };
            return Ok(if mounted.iter().any(seen) {
                Holder::Mounted
            } else {
                Holder::Leaving(watch)
            });
        }
    }
    Ok(Holder::Unknown)
}

/// What the state file of `connection` says (the minor number of a mount's `st_dev`), if one of
/// `dirs` has it and its server lives.
#[must_use]
pub fn record_of(dirs: &[PathBuf], connection: u32) -> Option<Record> {
    Watch::open(dirs, connection).map(|watch| watch.record)
}

/// A living server, seen from outside.
#[derive(Debug)]
pub(super) struct Watch {
    file: File,
    /// What its state file says.
    pub(super) record: Record,
}

impl Watch {
    /// The server of `connection`, if one of `dirs` knows it and it lives.
    pub(super) fn open(dirs: &[PathBuf], connection: u32) -> Option<Self> {
        dirs.iter().find_map(|dir| {
            let path = path(dir, connection);
            match Self::open_file(&path) {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::debug!("{}: {error}", path.display());
                    None
                }
            }
        })
    }

    fn open_file(path: &Path) -> io::Result<Option<Self>> {
        let mut file = open_file(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(errno.into()),
        }
        let record = serde_json::from_slice(&read_file(&mut file)?)?;
        Ok(Some(Self { file, record }))
    }

    /// Waits until the server has ended; false when it has not within `timeout`.
    pub(super) fn wait(self, timeout: Duration) -> bool {
        let (done, ended) = mpsc::channel();
        let file = self.file;
        std::thread::spawn(move || {
            let locked =
                rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockShared));
            // Nobody listens any more after the timeout.
            done.send(locked).unwrap_or(());
        });
        matches!(ended.recv_timeout(timeout), Ok(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            pid: 7,
            image: "/a.tar".into(),
            upper: None,
            point: Some("/mnt".into()),
            control: None,
        }
    }

    #[test]
    fn who_holds_an_upper() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("up");
        std::fs::create_dir(&upper).unwrap();
        let dirs = [dir.path().join("sub")];
        let of = |point: &str| Record {
            upper: Some(upper.clone()),
            point: Some(point.into()),
            ..record()
        };
        assert!(matches!(holder(&dirs, &upper), Ok(Holder::Unknown)));
        let other = Registration::new(&dirs, 4, &record()).unwrap();
        assert!(matches!(holder(&dirs, &upper), Ok(Holder::Unknown)));
        drop(other);
        let gone = Registration::new(&dirs, 5, &of("/not/mounted/here")).unwrap();
        assert!(matches!(holder(&dirs, &upper), Ok(Holder::Leaving(_))));
        drop(gone);
        let proc = crate::mount::find_mount(Path::new("/proc"))
            .unwrap()
            .unwrap();
        let seen = Registration::new(&dirs, proc.minor, &of("/proc")).unwrap();
        assert!(matches!(holder(&dirs, &upper), Ok(Holder::Mounted)));
        assert!(!wait_for_leaving(&dirs, &upper, Duration::ZERO));
        drop(seen);
    }

    #[test]
    fn a_server_is_watched_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("sub")];
        assert!(Watch::open(&dirs, 5).is_none());
        let registration = Registration::new(&dirs, 5, &record()).unwrap();
        let watch = Watch::open(&dirs, 5).unwrap();
        assert_eq!(watch.record, record());
        assert!(!Watch::open(&dirs, 5).unwrap().wait(Duration::ZERO));
        drop(registration);
        assert!(watch.wait(Duration::from_secs(60)));
        assert!(Watch::open(&dirs, 5).is_none());
    }

    #[test]
    fn a_stale_or_damaged_file_is_no_server() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        std::fs::write(path(dir.path(), 6), b"{}").unwrap();
        assert!(Watch::open(&dirs, 6).is_none());
        let locked = File::open(path(dir.path(), 6)).unwrap();
        rustix::fs::flock(&locked, FlockOperation::LockExclusive).unwrap();
        assert!(
            Watch::open(&dirs, 6).is_none(),
            "locked, but not understood"
        );
    }

    #[test]
    fn a_stale_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        std::fs::write(path(dir.path(), 6), vec![b'x'; 4096]).unwrap();
        let _registration = Registration::new(&dirs, 6, &record()).unwrap();
        assert_eq!(Watch::open(&dirs, 6).unwrap().record, record());
    }

    #[test]
    fn what_a_killed_server_leaves_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("none"), dir.path().to_owned()];
        std::fs::write(path(dir.path(), 6), b"{}").unwrap();
        let living = Registration::new(&dirs[1..], 7, &record()).unwrap();
        for connection in [5, 6, 7] {
            clear(&dirs, connection).unwrap();
        }
        assert!(!path(dir.path(), 6).exists());
        assert!(Watch::open(&dirs, 7).is_some());
        drop(living);
    }

    #[test]
    fn regression_the_number_goes_to_another_before_the_server_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        let old = Registration::new(&dirs, 6, &record()).unwrap();
        let old_watch = Watch::open(&dirs, 6).unwrap();
        let next = Record { pid: 8, ..record() };
        let new = Registration::new(&dirs, 6, &next).unwrap();
        drop(old);
        assert!(old_watch.wait(Duration::from_secs(60)));
        assert_eq!(Watch::open(&dirs, 6).unwrap().record, next);
        drop(new);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
