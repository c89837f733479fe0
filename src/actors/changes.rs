//! What an actor has written, at one moment: of one that is at rest, or whose changes are held back
//! meanwhile.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::holders;
use super::place::Locked;
use super::state::{self, State};
use super::{Actor, Error};
use crate::diff::{self, Changes};
use crate::lower::Lower;
use crate::mount::control::{Client, Freeze};
use crate::mount::{find_mount, open_upper, state_dirs};
use crate::overlay::{self, Overlay};
use crate::sys::fuse::Waiting;
use crate::sys::mount::device_minor;
use crate::upper::{Upper, marks_of};

/// How long to wait for a moment in which no request is under way, of a mount whose programs may
/// leave none; and between two looks.
const DRAINING: Duration = Duration::from_secs(1);
const DRAINING_LOOK: Duration = Duration::from_millis(1);

/// What was done with an actor's changes.
#[derive(Debug)]
pub struct Took<T> {
    /// What came of it.
    pub value: T,
    /// For how long whoever writes had to wait; `None`: nobody could write.
    pub frozen: Option<Duration>,
}

impl Actor {
    /// Runs `with` on what the actor has written. Nothing changes it meanwhile: it is not mounted,
    /// or its writes are held back.
    ///
    /// # Errors
    /// [`Error::Frozen`]: its server does not hold still; those of opening its image and its upper;
    /// that of `with`.
    pub fn with_changes<T, E>(
        &self,
        options: diff::Options,
        with: impl FnOnce(&Changes<'_>) -> Result<T, E>,
    ) -> Result<Took<T>, E>
    where
        E: From<Error>,
    {
        let locked = self.lock()?;
        let lower = self.image()?.lower().map_err(Error::from)?;
        self.with_changes_locked(&locked, lower, options, with)
    }

    pub(super) fn with_changes_locked<T, E>(
        &self,
        locked: &Locked,
        lower: Lower,
        mut options: diff::Options,
        with: impl FnOnce(&Changes<'_>) -> Result<T, E>,
    ) -> Result<Took<T>, E>
    where
        E: From<Error>,
    {
        options.squash = overlay::Options::squash_to_user();
        let seen = state::look(&self.place)?;
        match seen.state {
            State::Mounted | State::Detached => {
                let root = self.open_root()?;
                let marks = marks_of(root.as_fd()).map_err(|e| self.unreadable(e.into()))?;
                let frozen = self.freeze(seen.state == State::Mounted)?;
                let since = Instant::now();
                let changes = Changes::at(&lower, root.as_fd(), marks, options);
                let value = with(&changes.map_err(Error::from)?)?;
                let took = since.elapsed();
                drop(frozen);
                Ok(Took {
                    value,
                    frozen: Some(took),
                })
            }
            State::Created | State::Stale | State::Stopped => {
                self.finish_wipe(locked)?;
                let (upper, work) = self.make_writes()?;
                let opened = open_upper(&state_dirs(), &upper, &work).map_err(Error::from)?;
                let overlay = self.settled(lower, opened)?;
                let upper = overlay
                    .upper()
                    .ok_or_else(|| Error::Refused(format!("actor {}: has no upper", self.id())))?;
                let changes = Changes::open(overlay.lower(), upper, options);
                let value = with(&changes.map_err(Error::from)?)?;
                Ok(Took {
                    value,
                    frozen: None,
                })
            }
        }
    }

    /// What a server that was killed had begun is finished.
    fn settled(&self, lower: Lower, upper: Upper) -> Result<Overlay, Error> {
        let options = overlay::Options {
            squash: overlay::Options::squash_to_user(),
            ..overlay::Options::default()
        };
        Ok(Overlay::with_upper(lower, upper, options)?)
    }

    /// The root of the upper, which is in use.
    fn open_root(&self) -> Result<std::os::fd::OwnedFd, Error> {
        let (upper, _) = self.writes();
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&upper, how, Mode::empty()).map_err(|e| self.unreadable(e.into()))
    }

    fn unreadable(&self, error: std::io::Error) -> Error {
        Error::path("cannot read", self.writes().0)(error)
    }

    /// Has the server hold all changes back, as long as what this gives is there.
    fn freeze(&self, mounted: bool) -> Result<Freeze, Error> {
        let failed = |source| Error::Frozen {
            id: self.id().clone(),
            source,
        };
        // What programs have stored in maps is the kernel's still.
        self.sync_mount(mounted).map_err(failed)?;
        let client = Client::connect(&self.control()).map_err(failed)?;
        client.freeze().map_err(failed)
    }

    /// Has all that was stored come to the server, which must not be this process.
    fn sync_mount(&self, mounted: bool) -> std::io::Result<()> {
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let point = self.point();
        let root = if !mounted {
            holders::open_root(&self.place)
        } else if find_mount(&point)?.is_some() {
            Some(rustix::fs::open(&point, how, Mode::empty())?)
        } else {
            None
        };
        match root {
            Some(root) => sync(root.as_fd()),
            None => Ok(()),
        }
    }
}

/// syncfs(2), and what it has begun: on FUSE it does not wait for that.
fn sync(root: BorrowedFd<'_>) -> std::io::Result<()> {
    rustix::fs::syncfs(root)?;
    let waiting = match Waiting::of(device_minor(root)?) {
        Ok(waiting) => waiting,
        Err(error) => {
            tracing::debug!("what was stored in maps may not be there: fusectl: {error}");
            return Ok(());
        }
    };
    let until = Instant::now() + DRAINING;
    while waiting.now().is_ok_and(|requests| requests > 0) && Instant::now() < until {
        std::thread::sleep(DRAINING_LOOK);
    }
    Ok(())
}
