//! The server of an actor's root filesystem: one process for each.

use std::fs::DirBuilder;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::create::check_free;
use super::place::{self, Locked};
use super::record::{ImageRef, UpperKind};
use super::state::{self, Seen, Serves, State};
use super::stop::Stop;
use super::{Actor, Error};
use crate::actor::bundle;
use crate::lower::Lower;
use crate::metrics::{Phase, Phases};
use crate::mount::backing::Choice;
use crate::mount::{
    About, MountOptions, Rights, Server, Signals, check_point_among, open_upper, prepare_process,
    rights, state_dirs, timed, topmost,
};
use crate::overlay::{self, Overlay, Quota};
use crate::store::Image;
use crate::sys;
use crate::sys::mount::MountPoint;
use crate::upper::Upper;

/// How long a server that was sent away may take to end before a new one begins.
const LEAVING: Duration = Duration::from_secs(10);

/// What the caller of a start has done for it already.
#[derive(Debug, Default)]
pub struct Begun {
    /// The actor's image, if it is open.
    pub image: Option<(Image, Lower)>,
    /// When it began, and what that took.
    pub phases: Phases,
}

/// What came of a start.
#[derive(Debug)]
pub enum Start {
    /// It is mounted already.
    Already,
    /// It is mounted, and this process is to serve it now.
    Ready(Box<Serving>),
}

/// An actor's mount that this process serves.
#[derive(Debug)]
pub struct Serving {
    actor: Actor,
    server: Server,
    serves: Serves,
    rights: Option<Rights>,
    signals: Signals,
    /// Nobody else changes the actor until its caller knows that it is ready.
    locked: Locked,
}

impl Actor {
    /// Mounts the root filesystem, in this process, which is to do nothing else from then on than
    /// [`Serving::serve`] it: a panic or a kill takes only this actor down. What an earlier server
    /// has left is cleared and finished first.
    ///
    /// The process must have one thread, and nothing open that its caller had.
    ///
    /// # Errors
    /// [`Error`]; then nothing is mounted.
    pub fn start(&self, begun: Begun) -> Result<Start, Error> {
        let locked = self.lock()?;
        let mut mounted = state::mounted()?;
        let seen = state::look_in(&self.place, &mounted)?;
        if seen.state == State::Mounted {
            return Ok(Start::Already);
        }
        if self.repair(&locked, &seen)? {
            mounted = state::mounted()?;
        }
        let Begun { image, mut phases } = begun;
        let (image, lower) = match image {
            Some(opened) => opened,
            None => timed(&mut phases, Phase::Image, || self.open_image())?,
        };
        let (upper, work) = self.writes();
        let point = self.make_point(&mounted, &[&upper, &work])?;
        prepare_process().map_err(Error::path("cannot prepare the server of", &self.place.dir))?;
        // Before there is a second thread.
        let rights = rights::needed().then(Rights::acquire).transpose()?;
        let overlay = timed(&mut phases, Phase::Upper, || {
            self.make_writes_among(&mounted)?;
            self.open_overlay(lower, &upper, &work)
        })?;
        let socket = self.place.socket();
        place::make_dir(&socket, 0o700).map_err(Error::path("cannot make", &socket))?;
        let serves = Serves::begin(&self.place)?;
        let signals =
            Signals::install().map_err(Error::path("cannot catch signals for", &self.place.dir))?;
        let mut options = self.mount_options(&upper, &work);
        options.about.image_hit = Some(!image.is_fresh());
        options.about.phases = phases;
        let server = Server::start(Arc::new(overlay), &point, &options)?;
        Ok(Start::Ready(Box::new(Serving {
            actor: self.clone(),
            server,
            serves,
            rights,
            signals,
            locked,
        })))
    }

    /// Clears and finishes what an earlier server or call has left; whether there was anything.
    fn repair(&self, locked: &Locked, seen: &Seen) -> Result<bool, Error> {
        let stop = Stop {
            wait: LEAVING,
            ..Stop::default()
        };
        match seen.state {
            State::Stale => self.clear_stale(seen)?,
            State::Detached => self.stop_locked(locked, stop)?,
            State::Created | State::Stopped | State::Mounted => {}
        }
        let wiped = self.finish_wipe(locked)?;
        Ok(wiped || matches!(seen.state, State::Stale | State::Detached))
    }

    fn open_image(&self) -> Result<(Image, Lower), Error> {
        let image = self.image()?;
        let lower = image.lower()?;
        Ok((image, lower))
    }

    /// The directories for what is written, made if they are missing.
    pub(super) fn make_writes(&self) -> Result<(PathBuf, PathBuf), Error> {
        let mounted = match self.record.make.upper {
            UpperKind::Tmpfs => state::mounted()?,
            UpperKind::Disk | UpperKind::Dir { .. } => Vec::new(),
        };
        self.make_writes_among(&mounted)
    }

    /// [`Self::make_writes`], where all mounts are known.
    fn make_writes_among(&self, mounted: &[MountPoint]) -> Result<(PathBuf, PathBuf), Error> {
        let (upper, work) = self.writes();
        let make = &self.record.make;
        match make.upper {
            UpperKind::Tmpfs => self.mount_tmpfs(mounted)?,
            UpperKind::Disk | UpperKind::Dir { .. } => {}
        }
        for (dir, mode) in [(&upper, 0o755), (&work, 0o700)] {
            place::make_dir(dir, mode).map_err(Error::path("cannot make", dir))?;
        }
        Ok((upper, work))
    }

    /// The actor's tmpfs, if it is not there already: it is not the server's, whose end it
    /// outlives.
    fn mount_tmpfs(&self, mounted: &[MountPoint]) -> Result<(), Error> {
        let mem = self.place.mem();
        let failed = || Error::path("cannot mount a tmpfs on", &mem);
        if topmost(mounted, &mem).is_some() {
            return Ok(());
        }
        place::make_dir(&mem, 0o700).map_err(failed())?;
        let make = &self.record.make;
        let tmpfs = sys::mount::detached_tmpfs(make.size, make.inodes).map_err(failed())?;
        sys::mount::attach(tmpfs.as_fd(), &mem).map_err(failed())
    }

    /// Where to mount, made if it is missing.
    fn make_point(&self, mounted: &[MountPoint], own: &[&Path]) -> Result<PathBuf, Error> {
        let point = self.point();
        if let Some(bundle) = &self.record.make.bundle {
            bundle::make_rootfs(&bundle.dir, &self.bundle_record())?;
        } else if !point.exists() {
            // So that it goes with the actor.
            let made = self.place.made_point();
            if self.record.make.point.is_some() {
                std::fs::File::create(&made).map_err(Error::path("cannot make", &made))?;
            }
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&point)
                .map_err(Error::path("cannot make", &point))?;
        }
        check_free(mounted, &point, "unmount that first")?;
        Ok(check_point_among(mounted, &point, own)?)
    }

    fn open_overlay(&self, lower: Lower, upper: &Path, work: &Path) -> Result<Overlay, Error> {
        let opened: Upper = open_upper(&state_dirs(), upper, work)?;
        if opened.is_of_other(lower.fingerprint()) {
            return Err(match (&self.record.make.upper, &self.record.make.image) {
                // Its own upper has never been on another image, so that this is another now.
                (UpperKind::Disk | UpperKind::Tmpfs, ImageRef::Tar(tar)) => Error::OtherTar {
                    id: self.id().clone(),
                    tar: tar.clone(),
                },
                _ => Error::OtherImage {
                    upper: upper.to_owned(),
                },
            });
        }
        let make = &self.record.make;
        let limited = make.size.is_some() || make.inodes.is_some();
        let in_memory = make.upper == UpperKind::Tmpfs;
        let options = overlay::Options {
            // A tmpfs has nothing to sync, and its own limits.
            volatile: in_memory,
            quota: (limited && !in_memory).then_some(Quota {
                bytes: make.size,
                inodes: make.inodes,
            }),
            squash: overlay::Options::squash_to_user(),
            ..overlay::Options::default()
        };
        Ok(Overlay::with_upper(lower, opened, options)?)
    }

    fn mount_options(&self, upper: &Path, work: &Path) -> MountOptions {
        let mut options = MountOptions::new(state::source(&self.place));
        options.fuse.allow_other = rustix::process::geteuid().is_root();
        options.serving = self.record.make.serving.settings();
        options.state_dirs = state_dirs();
        options.image_dirs = state_dirs();
        options.backing = Choice::of_environment();
        options.upper = Some(upper.to_owned());
        options.work = Some(work.to_owned());
        options.control = Some(self.place.control());
        options.metrics.clone_from(&self.record.make.metrics);
        options.about = About {
            digest: match &self.record.make.image {
                ImageRef::Stored(digest) => Some(digest.to_string()),
                ImageRef::Tar(_) => None,
            },
            actor: Some(self.id().to_string()),
            ..About::default()
        };
        options
    }
}

impl Serving {
    /// Takes the mount off again: its caller does not want it.
    ///
    /// # Errors
    /// [`Error::Mount`].
    pub fn cancel(self) -> Result<(), Error> {
        drop(self.server.cancel()?);
        self.serves.ended();
        Ok(())
    }

    /// Serves until the mount is gone, or a signal asks for the end.
    ///
    /// # Errors
    /// [`Error::Mount`]: the connection failed, or what was written last may be lost.
    pub fn serve(self) -> Result<(), Error> {
        drop(self.locked);
        // Beside the first requests: nobody waits for it.
        if let Err(error) = self.actor.place.sync() {
            tracing::warn!("{}: {error}", self.actor.place.dir.display());
        }
        let ended = self.server.serve(self.signals)?;
        drop(self.rights);
        self.serves.ended();
        drop(ended);
        Ok(())
    }
}
