//! Who else on this machine has an image mounted: EROFS makes a superblock, with a page cache of
//! its own, at each mount, so whoever mounts an image looks for a mount of it first.
//!
//! Two kinds of records lie in `<state dir>/images/`, which is its user's own:
//!
//! - of a process that holds a mount which is attached nowhere: `<image>.<unique>.json`, locked
//!   (flock(2)) for its life. It says the process, the number of its descriptor on the mount, and
//!   the number of its descriptor on this very record, by which the process is known for the one
//!   that wrote it. Everybody who has a mount writes one, so that the last of them is found too.
//! - of a pin, where no process stays (the kernel engine): `<image>.<mount namespace>.pin`, of the
//!   mount at `<state dir>/images/<image>/`. It is taken off when no mount of the image is left that
//!   needs it.
//!
//! A record is *never* believed because of where it lies alone: it must belong to this user, its
//! writer must live, and what it leads to must be an EROFS of this index with the device number
//! that it says. All of this is done under a lock of the directory. Where anything fails, a mount
//! is made anew: to share is never a condition.

use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use serde::{Deserialize, Serialize};

use super::{Rung, check, open_root};
use crate::lower::Lower;
use crate::mount::registry;
use crate::sys::mount::{attach, clone_mount, unmount};

/// The directory of records and pins in a state directory.
const DIR: &str = "images";

/// How long others may hold the directory's lock.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// A state of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct FileState {
    dev: u64,
    ino: u64,
    len: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl FileState {
    fn of(metadata: &Metadata) -> Self {
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            len: metadata.len(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What a mount shows: the index by its content, the blobs by what they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Identity {
    uuid: [u8; 16],
    fingerprint: u64,
    blobs: Vec<FileState>,
}

impl Identity {
    /// `None` for an index that cannot be told from others.
    pub(super) fn of(lower: &Lower) -> Option<Self> {
        let blobs = lower.blob_files();
        let blobs = blobs.map(|file| file.metadata().map(|metadata| FileState::of(&metadata)));
        Some(Self {
            uuid: lower.uuid(),
            fingerprint: Some(lower.fingerprint()).filter(|&f| f != 0)?,
            blobs: blobs.collect::<io::Result<_>>().ok()?,
        })
    }

    /// A name for it. Two may have one: records tell them apart.
    pub(in crate::mount) fn name(&self) -> String {
        let mut hash = DefaultHasher::new();
        self.hash(&mut hash);
        format!("{:016x}{:016x}", self.fingerprint, hash.finish())
    }
}

/// A process and two of its descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    /// On the root of the mount.
    mount: i32,
    /// On the record.
    record: i32,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    identity: Identity,
    rung: Rung,
    /// What mountinfo shows as its source.
    source: PathBuf,
    /// `st_dev` of its files.
    dev: u64,
    /// `None` for a pin.
    holder: Option<Holder>,
}

/// A mount that was found.
#[derive(Debug)]
pub(super) struct Found {
    /// A mount of our own of the same superblock; `None` where the kernel makes none.
    pub(super) mount: Option<OwnedFd>,
    pub(super) root: OwnedFd,
    pub(super) rung: Rung,
    pub(super) source: PathBuf,
}

/// A record of this process; gone when dropped.
#[derive(Debug)]
pub(super) struct Publication {
    path: PathBuf,
    _locked: File,
}

impl Drop for Publication {
    fn drop(&mut self) {
        // Before the lock goes: a file without one is stale to others, who may be first.
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!("{}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

/// The locked directory of records and pins.
#[derive(Debug)]
pub(in crate::mount) struct Images {
    dir: PathBuf,
    _locked: File,
}

impl Images {
    /// In the first of `dirs` that can be used, made if missing; `None`: nothing is shared.
    pub(in crate::mount) fn lock(dirs: &[PathBuf]) -> Option<Self> {
        let made = dirs.iter().find_map(|dir| {
            registry::make_own_dir(dir)
                .and_then(|()| registry::make_own_dir(&dir.join(DIR)))
                .and_then(|()| open_own(&dir.join(DIR)))
                .inspect_err(|error| tracing::debug!("{}: {error}", dir.display()))
                .ok()
        });
        Self::locked(made?)
    }

    /// Of a state directory that has been used before.
    pub(in crate::mount) fn lock_used(dir: &Path) -> Option<Self> {
        Self::locked(open_own(&dir.join(DIR)).ok()?)
    }

    fn locked((dir, file): (PathBuf, File)) -> Option<Self> {
        let shown = dir.display().to_string();
        Self::wait(dir, file)
            .inspect_err(|error| tracing::debug!("{shown}: {error}"))
            .ok()
    }

    fn wait(dir: PathBuf, locked: File) -> io::Result<Self> {
        let until = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(&locked, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                    std::thread::sleep(PAUSE);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Self {
            dir,
            _locked: locked,
        })
    }

    /// A mount of the image by one of the rungs that `allowed` allows.
    pub(super) fn find(
        &self,
        identity: &Identity,
        lower: &Lower,
        allowed: impl Fn(Rung) -> bool,
    ) -> Option<Found> {
        let mut second = None;
        for (path, file, record) in self.records(&identity.name()) {
            if record.identity != *identity || !allowed(record.rung) {
                continue;
            }
            match self.follow(&file, &record, lower) {
                Ok(found) if found.mount.is_some() => return Some(found),
                // One that cannot be mounted elsewhere, but read.
                Ok(found) => second = Some(found),
                Err(error) => tracing::debug!("{}: {error}", path.display()),
            }
        }
        second
    }

    /// The records of an image whose writers live, and its pins, each read when it is asked for: a
    /// hundred mounts of the image have a hundred. The dead are removed on the way.
    fn records(&self, name: &str) -> impl Iterator<Item = (PathBuf, File, Record)> {
        let is_its = |path: &PathBuf| {
            path.file_name().is_some_and(|file| {
                let rest = file.as_bytes().strip_prefix(name.as_bytes());
                rest.is_some_and(|rest| rest.starts_with(b"."))
            })
        };
        let living = |path: PathBuf| match read(&path) {
            Ok(Some((file, record))) => Some((path, file, record)),
            Ok(None) => {
                remove(&path);
                None
            }
            Err(error) => {
                tracing::debug!("{}: {error}", path.display());
                None
            }
        };
        self.files().into_iter().filter(is_its).filter_map(living)
    }

    fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let mut paths: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.sort();
        paths
    }

    /// The mount that a record leads to, if it is what the record says.
    fn follow(&self, file: &File, record: &Record, lower: &Lower) -> io::Result<Found> {
        let (from, name) = match &record.holder {
            None => (
                File::open(&self.dir)?.into(),
                PathBuf::from(record.identity.name()),
            ),
            Some(holder) => writer(file, holder)?,
        };
        let mount = clone_mount(from.as_fd(), &name);
        let root = match &mount {
            Ok(mount) => open_root(mount.as_fd())?,
            Err(_) => open_root_at(from.as_fd(), &name)?,
        };
        if rustix::fs::fstat(&root)?.st_dev != record.dev {
            return Err(io::Error::other("another filesystem is there"));
        }
        check(root.as_fd(), lower).map_err(io::Error::other)?;
        Ok(Found {
            mount: mount.ok(),
            root,
            rung: record.rung,
            source: record.source.clone(),
        })
    }

    /// Tells others of the mount with this root, which this process keeps open.
    pub(super) fn publish(
        &self,
        identity: &Identity,
        root: BorrowedFd<'_>,
        rung: Rung,
        source: &Path,
    ) -> io::Result<Publication> {
        let name = identity.name();
        let temp = tempfile::Builder::new()
            .prefix(&format!("{name}."))
            .suffix(".json")
            .tempfile_in(&self.dir)?;
        rustix::fs::flock(&temp, FlockOperation::LockExclusive)?;
        let record = Record {
            identity: identity.clone(),
            rung,
            source: source.to_owned(),
            dev: rustix::fs::fstat(root)?.st_dev,
            holder: Some(Holder {
                pid: std::process::id(),
                mount: root.as_raw_fd(),
                record: temp.as_file().as_raw_fd(),
            }),
        };
        temp.as_file().write_all(&serde_json::to_vec(&record)?)?;
        let (locked, path) = temp.keep()?;
        Ok(Publication {
            path,
            _locked: locked,
        })
    }

    /// Attaches a mount of the image where others find it when no process is left that holds one.
    /// What is given may be taken for it; gives a mount, attached nowhere, to go on with.
    pub(super) fn pin(
        &self,
        identity: &Identity,
        mount: OwnedFd,
        rung: Rung,
        source: &Path,
    ) -> io::Result<OwnedFd> {
        let name = identity.name();
        let place = self.dir.join(&name);
        let record = Record {
            identity: identity.clone(),
            rung,
            source: source.to_owned(),
            dev: rustix::fs::fstat(open_root(mount.as_fd())?)?.st_dev,
            holder: None,
        };
        let path = self.dir.join(format!("{name}.{}.pin", namespace()?));
        if let Ok(Some((_, old))) = read(&path) {
            if old == record && is_at(&place, record.dev) {
                return Ok(mount);
            }
            self.take_off(&path, &old);
        }
        match std::fs::create_dir(&place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut temp = tempfile::NamedTempFile::new_in(&self.dir)?;
        temp.write_all(&serde_json::to_vec(&record)?)?;
        temp.persist(&path)?;
        let pin = clone_mount(mount.as_fd(), Path::new(""));
        attach(pin.as_ref().unwrap_or(&mount).as_fd(), &place)?;
        // What is mounted on its clones must not come here.
        rustix::mount::mount_change(&place, MountPropagationFlags::PRIVATE)?;
        match pin {
            Ok(_) => Ok(mount),
            // Linux before 6.15 clones what is attached alone.
            Err(_) => clone_mount(rustix::fs::CWD, &place),
        }
    }

    /// Takes off the pins of this mount namespace that nobody needs, by `needed`, which is told an
    /// image's name; and removes what the dead have left, for which no record is read.
    pub(in crate::mount) fn sweep(&self, needed: impl Fn(&str) -> bool) {
        let Ok(here) = namespace() else { return };
        let pin = format!("{here}.pin");
        for path in self.files() {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some((image, kind)) = name.and_then(|name| name.split_once('.')) else {
                continue;
            };
            if kind == pin {
                if !needed(image)
                    && let Ok(Some((_, record))) = read(&path)
                {
                    self.take_off(&path, &record);
                }
            } else if let Ok((_, false)) = open(&path) {
                remove(&path);
            }
        }
    }

    fn take_off(&self, path: &Path, record: &Record) {
        let place = self.dir.join(record.identity.name());
        // Another's mount may be there by now, or none in this mount namespace.
        if is_at(&place, record.dev)
            && let Err(error) = unmount(&place, true)
        {
            tracing::debug!("{}: {error}", place.display());
        }
        remove(path);
        // Not empty, or not there, where others have mounted on it.
        std::fs::remove_dir(&place).ok();
    }
}

/// The directory of records and pins of a state directory, as mountinfo shows it.
pub(in crate::mount) fn place_of_pins(state: &Path) -> Option<PathBuf> {
    state.join(DIR).canonicalize().ok()
}

fn open_own(dir: &Path) -> io::Result<(PathBuf, File)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(dir, flags, Mode::empty())?);
    if !is_own(&file.metadata()?) {
        return Err(io::Error::other("not of this user alone"));
    }
    Ok((dir.canonicalize()?, file))
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!("{}: {error}", path.display());
    }
}

/// Whether the filesystem with this number is at `place`.
fn is_at(place: &Path, dev: u64) -> bool {
    let root = open_root_at(rustix::fs::CWD, place);
    let found = root.and_then(|root| Ok(rustix::fs::fstat(&root)?.st_dev));
    found.is_ok_and(|found| found == dev)
}

/// Whether this user alone can write to it.
fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0
}

/// Opens a record, and tells whether its writer lives; a pin has none, and counts as one that does.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let file = registry::open_file(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    if !is_own(&metadata) {
        return Err(io::Error::other("another user's"));
    }
    if is_pin(path) {
        return Ok((file, true));
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok((file, false)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok((file, true)),
        Err(errno) => Err(errno.into()),
    }
}

fn is_pin(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "pin")
}

/// A record and its open file. `None`: its writer is dead.
fn read(path: &Path) -> io::Result<Option<(File, Record)>> {
    let (mut file, lives) = open(path)?;
    if !lives {
        return Ok(None);
    }
    let record: Record = serde_json::from_slice(&registry::read_file(&mut file)?)?;
    if is_pin(path) != record.holder.is_none() {
        return Err(io::Error::other("not what its name says"));
    }
    Ok(Some((file, record)))
}

/// Where the mount is that a process holds: a directory of procfs and a name in it. It must have
/// `record` open, whose numbers these are: another process has its number else, here or in another
/// PID namespace.
fn writer(record: &File, holder: &Holder) -> io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // It leads to this process for good, or nowhere.
    let process = rustix::fs::open(format!("/proc/{}", holder.pid), flags, Mode::empty())?;
    let its = rustix::fs::statat(&process, format!("fd/{}", holder.record), AtFlags::empty())?;
    let ours = rustix::fs::fstat(record)?;
    if (its.st_dev, its.st_ino) != (ours.st_dev, ours.st_ino) {
        return Err(io::Error::other("another process has its number"));
    }
    Ok((process, PathBuf::from(format!("fd/{}", holder.mount))))
}

fn open_root_at(dir: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// The number of this thread's mount namespace.
fn namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/thread-self/ns/mnt")?.ino())
}
