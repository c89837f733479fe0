//! What has become of an actor, as the kernel tells it: its locks and mountinfo. Nothing here asks
//! a mount anything, so nobody hangs on a dead server.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use serde::{Deserialize, Serialize};

use super::Error;
use super::place::Place;
use crate::digest::Digest;
use crate::mount::{FS_TYPE, record_of, state_dirs};
use crate::sys::clock::since_epoch;
use crate::sys::mount::{MountPoint, mounts};

/// What fsconfig(2) takes of a text (`fs/fsopen.c`: strndup_user() of 256, with its end).
const SOURCE_MAX: usize = 255;

/// What has become of an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Never started, or not since it was reset.
    Created,
    /// Its root filesystem is mounted and served.
    Mounted,
    /// Its mount is there and its server is dead: the next call clears it.
    Stale,
    /// Its mount is gone from here, and its server goes on for those who still use it: a container
    /// in another mount namespace, an open file.
    Detached,
    /// It was started, and is not mounted.
    Stopped,
}

impl State {
    /// The state in one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Mounted => "mounted",
            Self::Stale => "stale",
            Self::Detached => "detached",
            Self::Stopped => "stopped",
        }
    }
}

/// The last server of an actor (`server` in its directory).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Its process, in its own PID namespace.
    pub pid: u32,
    /// Seconds since the epoch when it began.
    pub started: u64,
    /// The same when it had ended in good order: everything is in the upper.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<u64>,
}

/// What is seen of an actor from outside.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its state.
    pub state: State,
    /// Its last server, if it was started.
    pub server: Option<ServerRecord>,
    /// Its mounts in this mount namespace, oldest first.
    pub mounts: Vec<MountPoint>,
}

/// All mounts of this mount namespace, oldest first: to be read once for a call, since there may be
/// thousands.
pub(super) fn mounted() -> Result<Vec<MountPoint>, Error> {
    mounts().map_err(Error::path("cannot read", "/proc/self/mountinfo"))
}

/// Looks at the actor in `place`.
pub(super) fn look(place: &Place) -> Result<Seen, Error> {
    look_in(place, &mounted()?)
}

/// [`look`], where mountinfo was read already.
pub(super) fn look_in(place: &Place, all: &[MountPoint]) -> Result<Seen, Error> {
    let (server, alive) = server(place)?;
    let its = server.as_ref().filter(|_| alive);
    let is_of =
        |mount: &MountPoint| is_of(mount, place) || its.is_some_and(|s| is_by(mount, place, s));
    let mounts: Vec<_> = all.iter().filter(|m| is_of(m)).cloned().collect();
    let state = match (&server, alive, mounts.is_empty()) {
        (_, true, false) => State::Mounted,
        (_, false, false) => State::Stale,
        (_, true, true) => State::Detached,
        (Some(_), false, true) => State::Stopped,
        (None, false, true) => State::Created,
    };
    Ok(Seen {
        state,
        server,
        mounts,
    })
}

/// What the mount of an actor shows as its source: its directory, which no other actor has, or what
/// stands for that where it is longer than the kernel takes.
pub(super) fn source(place: &Place) -> PathBuf {
    let path = place.dir.as_os_str().as_bytes();
    match path.len() > SOURCE_MAX {
        true => PathBuf::from(format!("actors/{}", Digest::of(path).hex())),
        false => place.dir.clone(),
    }
}

/// Whether it is a mount of the actor, in whatever mount namespace.
pub(super) fn is_of(mount: &MountPoint, place: &Place) -> bool {
    if mount.fs_type != FS_TYPE {
        return false;
    }
    let source = Path::new(&mount.source);
    // A store that was renamed since took the mounts in it along, but not what they are called.
    let moved = || mount.path == place.rootfs() && source.ends_with(last_two(&place.dir));
    source == self::source(place) || moved()
}

/// Whether it is a mount of the actor's living server, by the word of that: of a store that was
/// renamed since, where the mount is elsewhere.
fn is_by(mount: &MountPoint, place: &Place, server: &ServerRecord) -> bool {
    mount.fs_type == FS_TYPE
        && Path::new(&mount.source).ends_with(last_two(&place.dir))
        && record_of(&state_dirs(), mount.minor).is_some_and(|said| said.pid == server.pid)
}

/// `actors/<id>`
fn last_two(dir: &Path) -> PathBuf {
    let names = dir.iter().rev().take(2).collect::<Vec<_>>();
    names.into_iter().rev().collect()
}

/// The last server, and whether it lives.
fn server(place: &Place) -> Result<(Option<ServerRecord>, bool), Error> {
    let path = place.server();
    let failed = || Error::path("cannot read", &path);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((None, false)),
        Err(e) => return Err(failed()(e)),
    };
    let alive = match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => false,
        Err(Errno::WOULDBLOCK) => true,
        Err(e) => return Err(failed()(e.into())),
    };
    // Written whole before it is locked; else who was killed had not begun to serve.
    let text = fs::read(&path).map_err(failed())?;
    Ok((serde_json::from_slice(&text).ok(), alive))
}

/// Waits until the actor's server has ended; false when it has not within `timeout`.
pub(super) fn wait(place: &Place, timeout: Duration) -> bool {
    let Ok(file) = File::open(place.server()) else {
        return true;
    };
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return true;
    }
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let locked = retry_on_intr(|| flock(&file, FlockOperation::LockShared));
        // Nobody listens any more after the timeout.
        done.send(locked.is_ok()).unwrap_or(());
    });
    matches!(ended.recv_timeout(timeout), Ok(true))
}

/// This process as the actor's server, until it is dropped.
#[derive(Debug)]
pub(super) struct Serves {
    path: PathBuf,
    record: ServerRecord,
    locked: File,
}

impl Serves {
    /// Begins; the caller has the actor locked, and no server lives.
    pub(super) fn begin(place: &Place) -> Result<Self, Error> {
        let path = place.server();
        let failed = || Error::path("cannot write", &path);
        let record = ServerRecord {
            pid: std::process::id(),
            started: since_epoch().as_secs(),
            ended: None,
        };
        let mut temp = tempfile::NamedTempFile::new_in(&place.dir).map_err(failed())?;
        flock(&temp, FlockOperation::LockExclusive).map_err(|e| failed()(e.into()))?;
        write(&mut temp, &record).map_err(failed())?;
        let locked = temp.persist(&path).map_err(|e| failed()(e.error))?;
        Ok(Self {
            path,
            record,
            locked,
        })
    }

    /// Notes that all that was written is in the upper. The lock goes with the process, so that who
    /// waits for its end finds none of it.
    pub(super) fn ended(mut self) {
        self.record.ended = Some(since_epoch().as_secs());
        // In the file itself, which is the one that is locked. Tidiness: who reads half of it knows
        // no more than that a server was there.
        if let Ok(mut file) = File::options().write(true).open(&self.path) {
            write(&mut file, &self.record).ok();
        }
        std::mem::forget(self.locked);
    }
}

fn write(to: &mut impl Write, record: &ServerRecord) -> io::Result<()> {
    let mut text = serde_json::to_vec(record)?;
    text.push(b'\n');
    to.write_all(&text)
}
