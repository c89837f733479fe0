//! The end of an actor's mount.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::holders;
use super::locker::Locker;
use super::place::{Locked, Until};
use super::state::{self, Seen, State};
use super::{Actor, Error};
use crate::mount::{How, MountError, find_mount, unmount};
use crate::sys;
use crate::sys::mount::MountPoint;

/// How long a server is asked to end before it is killed, and between two times.
const URGED: Duration = Duration::from_secs(5);
const BETWEEN: Duration = Duration::from_millis(100);

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Detach now: its server goes on for those who still use it.
    pub lazy: bool,
    /// Cut off those who still use it.
    pub force: bool,
    /// How long to wait until everything is written and the server has ended.
    pub wait: Duration,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            lazy: false,
            force: false,
            wait: Duration::from_secs(60),
        }
    }
}

impl Actor {
    /// Unmounts the root filesystem, with what is mounted below it, and waits for the server; one
    /// that is not mounted is as good. What is left of a dead server is cleared.
    ///
    /// # Errors
    /// [`Error::Mount`]: busy; [`Error::InUse`].
    pub fn stop(&self, how: Stop) -> Result<(), Error> {
        let locked = self.lock_until(Until::stopped(how))?;
        self.stop_locked(&locked, how)
    }

    pub(super) fn stop_locked(&self, _locked: &Locked, how: Stop) -> Result<(), Error> {
        let seen = state::look(&self.place)?;
        match seen.state {
            State::Created | State::Stopped => Ok(()),
            State::Stale => self.clear_stale(&seen),
            State::Mounted => self.unmount(&seen, how),
            State::Detached => self.wait_for_end(how),
        }
    }

    /// Takes away the mounts of a dead server, with all that is mounted below.
    pub(super) fn clear_stale(&self, seen: &Seen) -> Result<(), Error> {
        for mount in seen.mounts.iter().rev() {
            detach_tree(mount)?;
        }
        Ok(())
    }

    fn unmount(&self, seen: &Seen, how: Stop) -> Result<(), Error> {
        for mount in seen.mounts.iter().rev() {
            self.unmount_one(mount, how)?;
        }
        if how.lazy {
            return Ok(());
        }
        self.wait_for_end(how)
    }

    fn unmount_one(&self, mount: &MountPoint, how: Stop) -> Result<(), Error> {
        if how.force {
            abort(mount)?;
        }
        if how.lazy || how.force {
            return detach_tree(mount);
        }
        // A runtime that was killed leaves what it had mounted below, or on top.
        for path in below(mount)? {
            match sys::mount::unmount(&path, false) {
                Ok(()) => {}
                // Its path leads elsewhere by now, or it went with another.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
                // Its user may keep it; here it is in the way.
                Err(_) => detach(&path)?,
            }
        }
        let ended = unmount(
            &mount.path,
            How {
                lazy: false,
                force: false,
                wait: how.wait,
            },
        );
        match ended {
            Ok(_) => Ok(()),
            Err(MountError::ServerRemains(..)) => Err(self.in_use()),
            Err(error) => Err(error.into()),
        }
    }

    fn wait_for_end(&self, how: Stop) -> Result<(), Error> {
        if how.lazy {
            return Ok(());
        }
        if how.force {
            self.urge();
        }
        match state::wait(&self.place, how.wait) {
            true => Ok(()),
            false => Err(self.in_use()),
        }
    }

    fn in_use(&self) -> Error {
        Error::InUse {
            id: self.id().clone(),
            by: holders::find(&self.place),
        }
    }

    /// Has the server end though its mount is used: by its own means, of which the second signal
    /// is to cut its users off, else by force.
    fn urge(&self) {
        let until = Instant::now() + URGED;
        while !state::wait(&self.place, BETWEEN) {
            let signal = match Instant::now() < until {
                true => Signal::TERM,
                false => Signal::KILL,
            };
            let server = File::open(self.place.server()).ok();
            let Some(server) = server.and_then(|file| Locker::of(&file)) else {
                return;
            };
            if server.signal(signal).is_err() || signal == Signal::KILL {
                return;
            }
        }
    }
}

/// What is mounted on top of `mount` or below it, the innermost first.
fn below(mount: &MountPoint) -> Result<Vec<PathBuf>, Error> {
    let all = state::mounted()?;
    let mut inside = vec![mount.id];
    let mut paths = Vec::new();
    // A mount comes after the one it is mounted on, but for those that were moved.
    loop {
        let before = inside.len();
        for found in &all {
            if inside.contains(&found.parent) && !inside.contains(&found.id) {
                inside.push(found.id);
                paths.push(found.path.clone());
            }
        }
        if inside.len() == before {
            break;
        }
    }
    paths.reverse();
    Ok(paths)
}

/// Takes a mount away with all that is below it, and what lies on top of it.
fn detach_tree(mount: &MountPoint) -> Result<(), Error> {
    loop {
        let top = find_mount(&mount.path).map_err(Error::path("cannot look at", &mount.path))?;
        match top {
            None => return Ok(()),
            Some(top) if top.id == mount.id => return detach(&mount.path),
            Some(top) => detach(&top.path)?,
        }
    }
}

/// Takes a mount away with all that is below it; those who have it open keep it.
fn detach(path: &Path) -> Result<(), Error> {
    let how = How {
        lazy: true,
        force: false,
        wait: Duration::ZERO,
    };
    match sys::mount::unmount(path, true) {
        Ok(()) => Ok(()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(()),
        // An ordinary user's: through fusermount3.
        Err(_) => Ok(unmount(path, how).map(drop)?),
    }
}

/// Ends the connection to the server: whoever waits for it gets an error.
fn abort(mount: &MountPoint) -> Result<(), Error> {
    match sys::fuse::abort_connection(mount.minor) {
        // It is gone, or fusectl is not mounted: then detaching has to do.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(Error::path("cannot abort the connection of", &mount.path)),
    }
}
