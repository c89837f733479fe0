//! Where an actor lies, and who may change it.
//!
//! ```text
//! <store>/actors/<id>/actor.json   what it is
//!                     image        link to its image: keeps that from being collected
//!                     upper, work  what it has written, if it is to lie here
//!                     mem          where its tmpfs is mounted, if it has one
//!                     rootfs       where it is mounted, unless elsewhere
//!                     server       the last server: who it is; locked as long as it lives
//!                     socket/control   where it is asked; who binds it locks its directory
//!                     log          what it had to say; log.old: what was said before that
//!                     made-point   its mount point elsewhere goes with it
//!                     wipe         an unfinished reset
//! <store>/actors/.new-*, .gone-*   what is being made or removed
//! ```
//! An actor is there whole or not at all: it gets its name, and loses it, by a rename. Who changes
//! one has its directory locked (flock(2)), which ends with the process.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::Signal;

use super::locker::Locker;
use super::record::{FORMAT, ImageRef, Record, UpperKind};
use super::stop::Stop;
use super::{Error, Id};
use crate::mount::remove_private;
use crate::sys::clock::since_epoch;
use crate::sys::mount::mounts;

const NEW: &str = ".new-";
const GONE: &str = ".gone-";
/// A record has some hundred bytes.
const RECORD_MAX: u64 = 1 << 20;

/// How long a call waits for another on the same actor: longer than a large checkpoint takes.
const PATIENT: Duration = Duration::from_secs(600);
/// How long who is at work on an actor may go on when it is to be stopped by force.
const GRACE: Duration = Duration::from_secs(5);
/// Between two attempts to lock.
const PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The directory of an actor.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// All actors.
    pub(super) actors: PathBuf,
    /// This one.
    pub(super) dir: PathBuf,
}

/// The right to change an actor, until it is dropped.
#[derive(Debug)]
pub(super) struct Locked {
    _dir: File,
}

/// How long to wait for whoever has an actor locked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until {
    end: Instant,
    /// From when on it is ended.
    force: Option<Instant>,
}

impl Until {
    /// As long as any work on an actor may take.
    pub(super) fn patient() -> Self {
        Self {
            end: Instant::now() + PATIENT,
            force: None,
        }
    }

    /// As long as `how` says; who then still is at work on it is one of those who use it, and can
    /// be killed at any point. It may have been stopped, or be held up by whom it writes to.
    pub(super) fn stopped(how: Stop) -> Self {
        let now = Instant::now();
        Self {
            end: now + how.wait.min(PATIENT) + if how.force { GRACE } else { Duration::ZERO },
            force: how.force.then_some(now + how.wait.min(GRACE)),
        }
    }

    /// Locks; whether it could in time. In one thread, as the process that is to serve must have.
    fn locked(self, file: &File) -> io::Result<bool> {
        let mut pause = PAUSE;
        let mut told = None;
        loop {
            match flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let now = Instant::now();
            if now >= self.end {
                return Ok(false);
            }
            if self.force.is_some_and(|when| now >= when)
                && let Some(holder) = Locker::of(file)
            {
                // One that hangs in the kernel does not go at once.
                if told.replace(holder.pid) != Some(holder.pid) {
                    tracing::warn!(pid = holder.pid, "cut off at its work on an actor");
                }
                // Gone by itself is as good.
                holder.signal(Signal::KILL).ok();
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

impl Place {
    pub(super) fn new(actors: &Path, id: &Id) -> Self {
        Self {
            actors: actors.to_owned(),
            dir: actors.join(id.as_str()),
        }
    }

    pub(super) fn record(&self) -> PathBuf {
        self.dir.join("actor.json")
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    pub(super) fn mem(&self) -> PathBuf {
        self.dir.join("mem")
    }

    pub(super) fn server(&self) -> PathBuf {
        self.dir.join("server")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    pub(super) fn control(&self) -> PathBuf {
        self.socket().join("control")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// There as long as the mount point is one that was made for the actor.
    pub(super) fn made_point(&self) -> PathBuf {
        self.dir.join("made-point")
    }

    pub(super) fn wipe(&self) -> PathBuf {
        self.dir.join("wipe")
    }

    /// Upper and work directory.
    pub(super) fn writes(&self, kind: &UpperKind) -> (PathBuf, PathBuf) {
        match kind {
            UpperKind::Disk => (self.dir.join("upper"), self.dir.join("work")),
            UpperKind::Tmpfs => (self.mem().join("upper"), self.mem().join("work")),
            UpperKind::Dir { upper, work } => (upper.clone(), work.clone()),
        }
    }

    /// Locks the actor, for which it waits until `until`; `None` where there is none.
    pub(super) fn lock(&self, id: &Id, until: Until) -> Result<Option<Locked>, Error> {
        let failed = || Error::path("cannot lock", &self.dir);
        loop {
            let dir = match File::open(&self.dir) {
                Ok(dir) => dir,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(failed()(e)),
            };
            if !until.locked(&dir).map_err(failed())? {
                return Err(Error::Locked {
                    id: id.clone(),
                    by: Locker::of(&dir).map(|holder| holder.pid),
                });
            }
            let here = dir.metadata().map_err(failed())?;
            match fs::symlink_metadata(&self.dir) {
                Ok(there) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => {
                    return Ok(Some(Locked { _dir: dir }));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(failed()(e)),
            }
        }
    }

    /// The record; `None` where there is no actor.
    pub(super) fn read(&self, id: &Id) -> Result<Option<Record>, Error> {
        let damaged = |why: String| Error::Damaged {
            id: id.clone(),
            why,
        };
        let path = self.record();
        let text = match fs::metadata(&path).map(|found| found.len()) {
            Ok(len) if len <= RECORD_MAX => {
                fs::read(&path).map_err(Error::path("cannot read", &path))?
            }
            Ok(len) => return Err(damaged(format!("it has {len} bytes"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return match fs::symlink_metadata(&self.dir) {
                    Ok(_) => Err(damaged("it is missing".to_owned())),
                    Err(_) => Ok(None),
                };
            }
            Err(e) => return Err(Error::path("cannot read", &path)(e)),
        };
        let record: Record = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if record.format != FORMAT {
            let format = record.format;
            return Err(damaged(format!(
                "its format is {format}, this tarnfs knows {FORMAT}"
            )));
        }
        if record.id != *id {
            return Err(damaged(format!("it is that of {}", record.id)));
        }
        Ok(Some(record))
    }

    /// Lets the actor of `record` be there; false where there is one of that id already.
    pub(super) fn publish(&self, record: &Record) -> Result<bool, Error> {
        make_dir(&self.actors, 0o700).map_err(Error::path("cannot make", &self.actors))?;
        // Whoever sweeps takes what nobody has locked.
        let all = lock_all(&self.actors).map_err(Error::path("cannot lock", &self.actors))?;
        let temp = tempfile::Builder::new()
            .prefix(NEW)
            .tempdir_in(&self.actors)
            .map_err(Error::path("cannot make a directory in", &self.actors))?;
        let lock = File::open(temp.path()).map_err(Error::path("cannot open", temp.path()))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| Error::path("cannot lock", temp.path())(e.into()))?;
        drop(all);
        let there = Self {
            actors: self.actors.clone(),
            dir: temp.path().to_owned(),
        };
        there.fill(record)?;
        let renamed = renameat_with(CWD, temp.path(), CWD, &self.dir, RenameFlags::NOREPLACE);
        match renamed {
            Ok(()) => {
                // It has its name now: there is nothing left to remove under the first one.
                let _first_name: PathBuf = temp.keep();
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(Error::path("cannot make", &self.dir)(e.into())),
        }
    }

    fn fill(&self, record: &Record) -> Result<(), Error> {
        if let ImageRef::Stored(digest) = &record.make.image {
            let link = self.dir.join("image");
            std::os::unix::fs::symlink(format!("../../images/sha256/{}", digest.hex()), &link)
                .map_err(Error::path("cannot make", &link))?;
        }
        let mut dirs = vec![(self.rootfs(), 0o755), (self.socket(), 0o700)];
        match record.make.upper {
            UpperKind::Disk => {
                dirs.push((self.dir.join("upper"), 0o755));
                dirs.push((self.dir.join("work"), 0o700));
            }
            UpperKind::Tmpfs => dirs.push((self.mem(), 0o700)),
            UpperKind::Dir { .. } => {}
        }
        for (dir, mode) in dirs {
            DirBuilder::new()
                .mode(mode)
                .create(&dir)
                .map_err(Error::path("cannot make", &dir))?;
        }
        let path = self.record();
        let failed = Error::path("cannot write", &path);
        let mut text = match serde_json::to_vec_pretty(record) {
            Ok(text) => text,
            Err(e) => return Err(failed(io::Error::other(e))),
        };
        text.push(b'\n');
        fs::write(&path, text).map_err(failed)
    }

    /// Has it on disk that the actor is there. What is written through its mount sees to itself.
    pub(super) fn sync(&self) -> io::Result<()> {
        for path in [&self.record(), &self.dir, &self.actors] {
            File::open(path)?.sync_all()?;
        }
        Ok(())
    }

    /// Refuses where something is mounted on or in `dir`: what is in there is others'.
    pub(super) fn check_unmounted(&self, dir: &Path) -> Result<(), Error> {
        let failed = Error::path("cannot read", "/proc/self/mountinfo");
        let dir = match dir.canonicalize() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(Error::path("cannot find", dir))?,
        };
        match mounted_in(&dir).map_err(failed)? {
            None => Ok(()),
            Some(found) => Err(Error::Refused(format!(
                "{}: something else is mounted there, in what is to be removed; unmount it first",
                found.display()
            ))),
        }
    }

    /// Lets the actor be gone, and removes what it had here. Nothing must be mounted in it.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let failed = || Error::path("cannot remove", &self.dir);
        self.check_unmounted(&self.dir)?;
        let nanos = since_epoch().as_nanos();
        let name = format!("{GONE}{}-{nanos}", std::process::id());
        let gone = self.actors.join(name);
        match fs::rename(&self.dir, &gone) {
            Ok(()) => clear(&gone).map_err(failed()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed()(e)),
        }
    }
}

/// Removes a directory in which nothing is mounted: what is mounted there is others'.
fn clear(dir: &Path) -> io::Result<()> {
    if mounted_in(dir)?.is_some() {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    remove_private(dir)
}

/// What is mounted on or in a directory.
fn mounted_in(dir: &Path) -> io::Result<Option<PathBuf>> {
    let found = mounts()?
        .into_iter()
        .find(|mount| mount.path.starts_with(dir));
    Ok(found.map(|mount| mount.path))
}

/// The sole right to give directories of actors their first names, or to sweep.
fn lock_all(actors: &Path) -> io::Result<File> {
    let dir = File::open(actors)?;
    retry_on_intr(|| flock(&dir, FlockOperation::LockExclusive))?;
    Ok(dir)
}

/// Makes a directory and those above it; one that is there is good.
pub(super) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(dir)
}

/// Removes what was being made or removed when somebody was killed.
pub(super) fn sweep(actors: &Path) {
    let (Ok(_all), Ok(entries)) = (lock_all(actors), fs::read_dir(actors)) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| name.starts_with(NEW) || name.starts_with(GONE)) else {
            continue;
        };
        let Ok(dir) = File::open(&path) else {
            continue;
        };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = clear(&path)
        {
            tracing::warn!("{}: left behind: {error}", actors.join(name).display());
        }
    }
}
