//! What an actor has written, at one moment: of one that is at rest, or whose changes are held back
//! for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::create::real;
use super::hold::Held;
use super::holders;
use super::place::Locked;
use super::state::{self, State};
use super::{Actor, Error};
use crate::diff::{self, Changes};
use crate::lower::Lower;
use crate::mount::{open_upper, state_dirs};
use crate::overlay::{self, Overlay};
use crate::sys::mount::device_minor;
use crate::upper::{Upper, marks_of};

/// What was done with an actor's changes.
#[derive(Debug)]
pub struct Took<T> {
    /// What came of it.
    pub value: T,
    /// For how long whoever writes had to wait; `None`: nobody could write.
    pub frozen: Option<Duration>,
}

impl Actor {
    /// Runs `with` on what the actor has written, at one moment: it is not mounted, or its writes
    /// are held back, as long as [`Changes`] needs that.
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

    /// Refuses where one of `files`, or what is made in it, would be the actor's own: where writes are
    /// held back with the actor's, who copies what it has written would wait for himself, and could
    /// not be killed; in the upper they would go past the server. To be asked of all files that are
    /// written to meanwhile.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn refuse_own<'f>(
        &self,
        files: impl IntoIterator<Item = BorrowedFd<'f>>,
    ) -> Result<(), Error> {
        let files: Vec<_> = files.into_iter().collect();
        let (upper, work) = self.writes();
        let inside = |file: &BorrowedFd<'_>| {
            let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
            path.is_ok_and(|path| {
                [&upper, &work]
                    .iter()
                    .any(|dir| path.starts_with(real(dir)))
            })
        };
        if files.iter().any(inside) {
            return Err(Error::Refused(format!(
                "actor {}: the output is in its upper; write elsewhere",
                self.id()
            )));
        }
        let seen = state::look(&self.place)?;
        let minor = match seen.state {
            State::Mounted => seen.mounts.last().map(|mount| mount.minor),
            State::Detached => {
                holders::open_root(&self.place).and_then(|root| device_minor(root.as_fd()).ok())
            }
            State::Created | State::Stale | State::Stopped => None,
        };
        let Some(minor) = minor else {
            return Ok(());
        };
        // A mount without a device has major number 0.
        let own = rustix::fs::makedev(0, minor);
        let mut found = files
            .into_iter()
            .filter_map(|file| rustix::fs::fstat(file).ok());
        match found.any(|stat| stat.st_dev == own) {
            true => Err(Error::Refused(format!(
                "actor {}: the output is a file of the actor itself, whose writes are held back \
                 meanwhile; write elsewhere",
                self.id()
            ))),
            false => Ok(()),
        }
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
                let held = Held::hold(self, seen.state == State::Mounted)?;
                let changes = Changes::at(&lower, root.as_fd(), marks, options);
                let value = with(&changes.map_err(Error::from)?.held_by(&held))?;
                Ok(Took {
                    value,
                    frozen: Some(held.end()?),
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
}
