//! The upper of an actor that is mounted, held still for no longer than has to be.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::holders;
use super::{Actor, Error};
use crate::diff::Hold;
use crate::mount::control::{Client, Freeze, Keep};
use crate::mount::find_mount;
use crate::sys::fuse::Waiting;
use crate::sys::mount::device_minor;

/// How long to wait for a moment in which no request is under way, of a mount whose programs may
/// leave none; and between two looks.
const DRAINING: Duration = Duration::from_secs(1);
const DRAINING_LOOK: Duration = Duration::from_millis(1);

/// What the server does.
#[derive(Debug)]
enum State {
    /// Holds all changes back, since then.
    Frozen(Freeze, Instant),
    /// Keeps what is overwritten.
    Keeps(Keep),
    /// Neither.
    Goes,
}

/// Changes of a mounted actor are held back until it lets go, or is dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    actor: &'a Actor,
    mounted: bool,
    state: RefCell<State>,
    /// For how long they were, before.
    frozen: RefCell<Duration>,
}

impl<'a> Held<'a> {
    /// Has the server of `actor` hold all changes back. `mounted`: its mount can be reached.
    ///
    /// # Errors
    /// [`Error::Frozen`].
    pub(super) fn hold(actor: &'a Actor, mounted: bool) -> Result<Self, Error> {
        let held = Self {
            actor,
            mounted,
            state: RefCell::new(State::Goes),
            frozen: RefCell::default(),
        };
        Hold::hold(&held).map_err(|source| failed(actor, source))?;
        Ok(held)
    }

    /// Lets go; for how long changes were held back.
    ///
    /// # Errors
    /// [`Error::Frozen`]: they may not have been all the time.
    pub(super) fn end(&self) -> Result<Duration, Error> {
        self.thaw().map_err(|source| failed(self.actor, source))?;
        Ok(*self.frozen.borrow())
    }

    /// Has all that was stored come to the server, which must not be this process.
    fn sync(&self) -> io::Result<()> {
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let point = self.actor.point();
        let root = if !self.mounted {
            holders::open_root(&self.actor.place)
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

impl Hold for Held<'_> {
    /// Only the server's answer says that they were held back until now: one that is told to end
    /// lets them go on.
    fn thaw(&self) -> io::Result<()> {
        if let State::Frozen(freeze, since) = self.state.replace(State::Goes) {
            freeze.thaw().map_err(ended)?;
            *self.frozen.borrow_mut() += since.elapsed();
        }
        Ok(())
    }

    fn keep(&self, files: &[u64]) -> io::Result<Option<File>> {
        let State::Frozen(freeze, since) = self.state.replace(State::Goes) else {
            return Err(io::Error::other("nothing is held back"));
        };
        match freeze.keep(files) {
            Ok(keep) => {
                *self.frozen.borrow_mut() += since.elapsed();
                // It has no name any more when it was ended.
                let log = File::open(self.actor.writes().1.join("work").join(keep.log()))?;
                self.state.replace(State::Keeps(keep));
                Ok(Some(log))
            }
            Err((freeze, error)) => {
                tracing::debug!("writes are held back until all is copied: {error}");
                self.state.replace(State::Frozen(freeze, since));
                Ok(None)
            }
        }
    }

    fn end_log(&self) -> io::Result<()> {
        match self.state.replace(State::Goes) {
            State::Keeps(keep) => keep.thaw().map(drop).map_err(ended),
            _ => Err(io::Error::other("nothing is kept")),
        }
    }

    fn hold(&self) -> io::Result<()> {
        // What programs have stored in maps is the kernel's still.
        self.sync()?;
        let client = Client::connect(&self.actor.control());
        let freeze = client.and_then(Client::freeze).map_err(ended)?;
        self.state.replace(State::Frozen(freeze, Instant::now()));
        Ok(())
    }

    fn spool(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.actor.place.dir)
    }
}

fn failed(actor: &Actor, source: io::Error) -> Error {
    Error::Frozen {
        id: actor.id().clone(),
        source,
    }
}

/// Says what it is that does not answer.
fn ended(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::UnexpectedEof => io::Error::new(
            error.kind(),
            format!("its server has ended; start the actor and try again ({error})"),
        ),
        _ => error,
    }
}

/// syncfs(2), and what it has begun: on FUSE it does not wait for that.
fn sync(root: BorrowedFd<'_>) -> io::Result<()> {
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
