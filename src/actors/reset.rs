//! Back to the image: what was written goes.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::place::{Locked, Until};
use super::record::UpperKind;
use super::state::{self, State};
use super::stop::Stop;
use super::{Actor, Error};
use crate::mount::find_mount;
use crate::mount::remove_private;
use crate::sys;
use crate::upper::markers::mark_in;

impl Actor {
    /// Stops the actor and removes all that it has written; gives whether it was mounted. Nothing
    /// is mounted afterwards.
    ///
    /// # Errors
    /// Those of [`Actor::stop`]; the system's, after which the next call goes on with it.
    pub fn reset(&self, how: Stop) -> Result<bool, Error> {
        let locked = self.lock_until(Until::stopped(how))?;
        let was = matches!(state::look(&self.place)?.state, State::Mounted);
        self.stop_locked(&locked, how)?;
        // Before it is begun, since it has to be ended then.
        let (upper, work) = self.writes();
        if !how.force {
            self.check_own(&upper)?;
        }
        if self.record.make.upper != UpperKind::Tmpfs {
            for dir in [&upper, &work] {
                self.place.check_unmounted(dir)?;
            }
        }
        let wipe = self.place.wipe();
        File::create(&wipe).map_err(Error::path("cannot make", &wipe))?;
        self.finish_wipe(&locked)?;
        Ok(was)
    }

    /// Refuses a directory of the caller's that the actor has not written to: it never ran.
    fn check_own(&self, upper: &Path) -> Result<(), Error> {
        let given = matches!(self.record.make.upper, UpperKind::Dir { .. });
        if !given || self.place.server().exists() || self.place.wipe().exists() {
            return Ok(());
        }
        let entries = match fs::read_dir(upper) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::path("cannot read", upper))?,
        };
        match entries.count() {
            0 => Ok(()),
            _ => Err(Error::Refused(format!(
                "{}: what is in it is not of this actor, which never ran; --force removes it",
                upper.display()
            ))),
        }
    }

    /// Goes on with a reset that was broken off; whether there was one.
    pub(super) fn finish_wipe(&self, _locked: &Locked) -> Result<bool, Error> {
        let wipe = self.place.wipe();
        if !wipe.exists() {
            return Ok(false);
        }
        let failed = |path: &Path| Error::path("cannot clear", path.to_owned());
        if self.record.make.upper == UpperKind::Tmpfs {
            self.drop_tmpfs()?;
        } else {
            let (upper, work) = self.writes();
            for dir in [&upper, &work] {
                self.place.check_unmounted(dir)?;
            }
            for dir in [&upper, &work] {
                empty(dir).map_err(failed(dir))?;
            }
            unmark(&upper).map_err(failed(&upper))?;
        }
        remove_file(&self.place.server()).map_err(failed(&self.place.server()))?;
        remove_file(&wipe).map_err(failed(&wipe))?;
        Ok(true)
    }

    /// Takes the actor's tmpfs away, and what is in it.
    pub(super) fn drop_tmpfs(&self) -> Result<(), Error> {
        let mem = self.place.mem();
        let failed = || Error::path("cannot unmount", &mem);
        while find_mount(&mem).map_err(failed())?.is_some() {
            sys::mount::unmount(&mem, true).map_err(failed())?;
        }
        Ok(())
    }
}

/// Removes what is in a directory; the directory itself may be another's.
fn empty(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_private(&entry.path())?;
        } else {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Takes the marks off the upper's root, of which one tells on what image it was.
fn unmark(upper: &Path) -> io::Result<()> {
    let dir = match File::open(upper) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        dir => dir?,
    };
    for name in sys::fs::listxattr(dir.as_fd())? {
        if mark_in(&name).is_some() {
            sys::fs::removexattr(dir.as_fd(), &name)?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
