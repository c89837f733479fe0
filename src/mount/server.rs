//! A mount and the threads that serve it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::backing::{self, Backing};
use super::control::{Listeners, Serving};
use super::memory::Memory;
use super::registry::{Record, Registration};
use super::signals::{Inbox, Signals};
use super::stats::Stats;
use super::unmount::detach;
use super::{MountError, MountOptions, READ_AHEAD_KIB, Settings, find_mount};
use crate::fuse::{Connection, Freezer};
use crate::metrics::Phase;
use crate::overlay::Overlay;
use crate::prefetch::{Prefetch, Running};
use crate::sys;

/// How long those who still hold files are served after a signal has asked for the end.
const GRACE: Duration = Duration::from_secs(10);

/// How long an aborted connection may take to end.
const ABORT_GRACE: Duration = Duration::from_secs(5);

/// A mount that has ended and been flushed. Whoever waits for the server (`tarnfs umount`) goes on
/// when this is dropped: after the caller's own clearing up.
#[derive(Debug)]
#[must_use = "what is cleared up must be cleared up before this is dropped"]
pub struct Ended {
    _registration: Option<Registration>,
}

/// A mount that is being served.
#[derive(Debug)]
pub struct Server {
    overlay: Arc<Overlay>,
    /// Told when the connection has ended, and how.
    ended: oneshot::Receiver<io::Result<()>>,
    freezer: Freezer,
    connection: Option<u32>,
    point: Option<PathBuf>,
    registration: Option<Registration>,
    /// The image's mount by the kernel, for others to find.
    backing: Option<Box<Backing>>,
    /// What goes on beside it.
    beside: Running,
    stats: Arc<Stats>,
    /// Somebody may ask it.
    control: Option<Box<Serving>>,
}

impl Server {
    /// Mounts `overlay` on `point` (as [`super::check_point`] gives it) and serves it in threads
    /// of this process. The mount is ready when this returns.
    ///
    /// As root, or with CAP_SYS_ADMIN in a user namespace, by mount system calls; else through
    /// fusermount3.
    ///
    /// # Errors
    /// [`MountError`]; nothing stays mounted then.
    pub fn start(
        overlay: Arc<Overlay>,
        point: &Path,
        options: &MountOptions,
    ) -> Result<Self, MountError> {
        // Before anything is mounted: a place that cannot be had fails the mount.
        let listeners = Listeners::open(options)?;
        let stats = Arc::new(Stats::new(&overlay, options));
        let serving = listeners.serve(stats.clone())?.map(Box::new);
        let mut server = Self::start_by(overlay, point, options, &stats)?;
        server.control = serving;
        Ok(server)
    }

    /// In the first of the ways that goes.
    fn start_by(
        overlay: Arc<Overlay>,
        point: &Path,
        options: &MountOptions,
        stats: &Arc<Stats>,
    ) -> Result<Self, MountError> {
        let backing = equip(&overlay, options, stats);
        let direct = stats.timed(Phase::Create, || Self::create(&overlay, options, stats));
        let (mut server, mount) = match direct {
            Ok((server, mount)) => (server, mount),
            Err(MountError::System { source, .. }) if is_errno(&source, libc::ENOSYS) => {
                return Self::start_classic(overlay, point, options, stats);
            }
            Err(MountError::System { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                return Self::start_helped(overlay, point, options, stats, source);
            }
            Err(MountError::DeviceClosed(_))
                if sys::fuse::has_fusermount() && !rustix::process::geteuid().is_root() =>
            {
                let source = io::Error::from_raw_os_error(libc::EACCES);
                return Self::start_helped(overlay, point, options, stats, source);
            }
            Err(error) => return Err(error),
        };
        let attached = stats.timed(Phase::Attach, || sys::mount::attach(mount.as_fd(), point));
        attached.map_err(|source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                MountError::NotPermitted {
                    point: point.to_owned(),
                    source,
                }
            } else {
                MountError::system(format!("mount on {}", point.display()))(source)
            }
        })?;
        // The server holds no descriptor on its own mount.
        drop(mount);
        server.backing = backing;
        server.attached(point, options);
        Ok(server)
    }

    /// Creates the mount and serves it, attached nowhere: for a caller who moves it to a place of
    /// his own (`sys::mount::attach`), perhaps in another mount namespace. It ends when the
    /// descriptor is closed before it is attached, else when it is unmounted.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn start_detached(
        overlay: Arc<Overlay>,
        options: &MountOptions,
    ) -> Result<(Self, OwnedFd), MountError> {
        let listeners = Listeners::open(options)?;
        let stats = Arc::new(Stats::new(&overlay, options));
        let serving = listeners.serve(stats.clone())?.map(Box::new);
        let backing = equip(&overlay, options, &stats);
        let (mut server, mount) =
            stats.timed(Phase::Create, || Self::create(&overlay, options, &stats))?;
        server.backing = backing;
        server.control = serving;
        server.register(options);
        Ok((server, mount))
    }

    /// The filesystem, its mount attached nowhere, and the threads that serve it.
    fn create(
        overlay: &Arc<Overlay>,
        options: &MountOptions,
        stats: &Arc<Stats>,
    ) -> Result<(Self, OwnedFd), MountError> {
        let device = open_device()?;
        let mut settings = options.serving;
        if settings.passthrough.is_some() && !may_pass_through() {
            tracing::info!("all files are served by requests: passthrough needs root");
            settings.passthrough = None;
        }
        let mut ended = None;
        let mount = sys::fuse::create(&device, &options.fuse, || {
            let served = device.try_clone()?;
            let connection = Connection::open(overlay.clone(), served, settings, stats.requests())?;
            let freezer = connection.freezer();
            ended = Some((serve_in_thread(connection)?, freezer));
            Ok(())
        })
        .map_err(MountError::system("create the FUSE filesystem"))?;
        let (ended, freezer) = ended.ok_or_else(|| {
            MountError::system("serve the FUSE filesystem")(io::ErrorKind::NotConnected.into())
        })?;
        let connection = sys::mount::device_minor(mount.as_fd())
            .map_err(MountError::system("statx of the new mount"))?;
        let server = Self {
            overlay: overlay.clone(),
            ended,
            freezer,
            connection: Some(connection),
            point: None,
            registration: None,
            backing: None,
            beside: Running::default(),
            stats: stats.clone(),
            control: None,
        };
        Ok((server, mount))
    }

    /// Through mount(2).
    fn start_classic(
        overlay: Arc<Overlay>,
        point: &Path,
        options: &MountOptions,
        stats: &Arc<Stats>,
    ) -> Result<Self, MountError> {
        let device = open_device()?;
        let mounted = stats.timed(Phase::Attach, || {
            sys::fuse::mount_at(&device, &options.fuse, point)
        });
        match mounted {
            Ok(()) => Self::answer_mounted(overlay, device, point, options, stats),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::start_helped(overlay, point, options, stats, source)
            }
            Err(source) => Err(MountError::system(format!("mount on {}", point.display()))(
                source,
            )),
        }
    }

    /// Through fusermount3. `refused` is why it could not be done without.
    fn start_helped(
        overlay: Arc<Overlay>,
        point: &Path,
        options: &MountOptions,
        stats: &Arc<Stats>,
        refused: io::Error,
    ) -> Result<Self, MountError> {
        if rustix::process::geteuid().is_root() {
            // fusermount3 has no more rights than root.
            return Err(MountError::NotPermitted {
                point: point.to_owned(),
                source: refused,
            });
        }
        let device = stats.timed(Phase::Attach, || {
            sys::fuse::fusermount(&options.fuse, point)
        });
        let device = device.map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                MountError::NotPermitted {
                    point: point.to_owned(),
                    source: refused,
                }
            } else {
                MountError::Helper {
                    point: point.to_owned(),
                    source,
                }
            }
        })?;
        Self::answer_mounted(overlay, device, point, options, stats)
    }

    /// Begins to serve what is attached already; takes it off again if that fails.
    fn answer_mounted(
        overlay: Arc<Overlay>,
        device: OwnedFd,
        point: &Path,
        options: &MountOptions,
        stats: &Arc<Stats>,
    ) -> Result<Self, MountError> {
        // Here an ordinary user serves, of whom the kernel takes no backing files.
        let settings = Settings {
            passthrough: None,
            ..options.serving
        };
        let started = stats.timed(Phase::Create, || {
            let connection = Connection::open(overlay.clone(), device, settings, stats.requests())?;
            let freezer = connection.freezer();
            Ok((serve_in_thread(connection)?, freezer))
        });
        let (ended, freezer) = match started {
            Ok(started) => started,
            Err(source) => {
                if let Err(error) = detach(point, true) {
                    tracing::error!("{error}");
                }
                return Err(MountError::system("answer the kernel's FUSE INIT")(source));
            }
        };
        let connection = match find_mount(point) {
            Ok(found) => found.map(|mount| mount.minor),
            Err(error) => {
                tracing::warn!("/proc/self/mountinfo: {error}");
                None
            }
        };
        let mut server = Self {
            overlay,
            ended,
            freezer,
            connection,
            point: None,
            registration: None,
            backing: None,
            beside: Running::default(),
            stats: stats.clone(),
            control: None,
        };
        server.attached(point, options);
        Ok(server)
    }

    fn attached(&mut self, point: &Path, options: &MountOptions) {
        self.point = Some(point.to_owned());
        self.register(options);
    }

    /// What makes life easier for others, and must not fail the mount.
    fn register(&mut self, options: &MountOptions) {
        self.stats.ready(self.point.as_ref(), &self.freezer);
        let Some(connection) = self.connection else {
            return;
        };
        let read_ahead = options.read_ahead_kib.unwrap_or(READ_AHEAD_KIB);
        if let Err(error) = sys::fuse::set_read_ahead(connection, read_ahead) {
            tracing::debug!("read-ahead stays as it is: {error}");
        }
        let record = Record {
            pid: std::process::id(),
            image: PathBuf::from(&options.fuse.source),
            upper: options.upper.clone(),
            point: self.point.clone(),
            control: options.control.clone(),
        };
        self.registration = Registration::new(&options.state_dirs, connection, &record);
    }

    /// Begins what is to go on beside the mount, until it ends: for a caller whose mount is in
    /// use already, since it takes from the same disk.
    pub fn beside(&mut self, prefetch: Prefetch) {
        self.beside = prefetch.start(&self.overlay);
    }

    /// What holds back for a moment all that is written through the mount, so that the upper can be
    /// read as it is at one moment. It can be used while another thread [serves](Self::serve).
    #[must_use]
    pub fn freezer(&self) -> Freezer {
        self.freezer.clone()
    }

    /// The number of the FUSE connection (the minor number of the mount's `st_dev`).
    #[must_use]
    pub fn connection(&self) -> Option<u32> {
        self.connection
    }

    /// Waits until the mount has ended, then flushes the overlay. Signals are the caller's.
    ///
    /// # Errors
    /// [`MountError`]: the connection failed, or the flush.
    pub fn wait(mut self) -> Result<Ended, MountError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let ended = match runtime {
            Ok(runtime) => runtime.block_on(self.ended()),
            Err(_) => {
                let (_, done) = oneshot::channel();
                of_thread(std::mem::replace(&mut self.ended, done).blocking_recv())
            }
        };
        finish(self, ended)
    }

    /// As [`Self::wait`]; a signal unmounts: plainly if nobody uses the mount, else it is detached
    /// and its users are served for a while before they are cut off. A second signal cuts them off
    /// at once.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn serve(mut self, signals: Signals) -> Result<Ended, MountError> {
        let Signals { runtime, mut inbox } = signals;
        let ended = runtime.block_on(self.until_ended(&mut inbox));
        finish(self, ended)
    }

    /// Takes the mount off again at once and waits as [`Self::wait`] does: for a caller who finds
    /// that nobody wants it.
    ///
    /// # Errors
    /// As [`Self::wait`], and those of unmounting.
    pub fn cancel(self) -> Result<Ended, MountError> {
        if let Some(point) = &self.point {
            detach(point, true)?;
        }
        self.wait()
    }

    /// Waits until the mount has ended, and looks after this process' memory meanwhile.
    async fn ended(&mut self) -> io::Result<()> {
        let mut memory = Memory::new();
        loop {
            tokio::select! {
                ended = &mut self.ended => return of_thread(ended),
                () = tokio::time::sleep(memory.pause()) => memory.look(self.overlay.lower()),
            }
        }
    }

    async fn until_ended(&mut self, inbox: &mut Inbox) -> io::Result<()> {
        let signal = tokio::select! {
            ended = self.ended() => return ended,
            signal = inbox.next() => signal,
        };
        tracing::info!("{signal}: unmounting");
        self.beside.cancel();
        // What is frozen thaws: nobody is to wait for it now.
        drop(self.control.take());
        self.take_off().await;
        tokio::select! {
            ended = &mut self.ended => return of_thread(ended),
            signal = inbox.next() => tracing::warn!("{signal} again: cutting off its users"),
            () = tokio::time::sleep(GRACE) => {
                tracing::warn!("still in use after {GRACE:?}: cutting off its users");
            }
        }
        let Some(connection) = self.connection else {
            return Ok(());
        };
        if let Err(error) = sys::fuse::abort_connection(connection) {
            // Without fusectl the end of this process does it: it closes the device. What is
            // flushed before is all that was answered so far.
            tracing::debug!("abort connection {connection}: {error}");
            return Ok(());
        }
        match tokio::time::timeout(ABORT_GRACE, &mut self.ended).await {
            Ok(ended) => of_thread(ended),
            // A request that was being worked on is not done yet; it has no answer to lose.
            Err(_) => Ok(()),
        }
    }

    /// Unmounts, or at least detaches.
    async fn take_off(&self) {
        let Some(point) = self.point.clone() else {
            return;
        };
        let connection = self.connection;
        // In a thread of its own: umount2(2) may wait for requests that other threads answer.
        let work = tokio::task::spawn_blocking(move || {
            // Another mount may have taken the place since.
            if let Ok(Some(top)) = find_mount(&point)
                && Some(top.minor) != connection
            {
                tracing::warn!("{}: another mount lies on top", point.display());
                return;
            }
            match detach(&point, false) {
                Ok(_) => return,
                Err(MountError::Busy(_)) => {
                    tracing::warn!("{}: busy, so it is detached", point.display());
                }
                Err(error) => tracing::warn!("{error}"),
            }
            if let Err(error) = detach(&point, true) {
                tracing::error!("{error}");
            }
        });
        if let Err(error) = work.await {
            tracing::error!("unmounting: {error}");
        }
    }
}

/// The end, in the order that the module promises.
fn finish(server: Server, ended: io::Result<()>) -> Result<Ended, MountError> {
    // Nobody asks any more, and what is frozen thaws: the flush would wait for it.
    drop(server.control);
    server.stats.stop();
    server.beside.finish();
    let flushed = server.overlay.finish().map_err(MountError::Finish);
    drop(server.overlay);
    ended.map_err(MountError::system("the FUSE connection"))?;
    flushed?;
    Ok(Ended {
        _registration: server.registration,
    })
}

/// Gives the image its mount by the kernel, if there can be one.
fn equip(overlay: &Overlay, options: &MountOptions, stats: &Stats) -> Option<Box<Backing>> {
    let backing = stats.timed(Phase::Backing, || backing::equip(overlay.lower(), options));
    stats.note_backing(backing.as_deref());
    backing
}

fn open_device() -> Result<OwnedFd, MountError> {
    sys::fuse::open_device().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => MountError::NoDevice(error),
        _ => MountError::DeviceClosed(error),
    })
}

/// Whether the kernel takes backing files of this process (fs/fuse/backing.c:fuse_backing_open()).
fn may_pass_through() -> bool {
    let admin = rustix::thread::CapabilitySet::SYS_ADMIN;
    rustix::thread::capabilities(None).is_ok_and(|caps| caps.effective.contains(admin))
        && sys::namespace::in_first_user_namespace()
}

fn serve_in_thread(connection: Connection) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (tell, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("tarnfs-fuse".to_owned())
        .spawn(move || {
            // Nobody may be waiting: a server that failed to attach.
            if let Err(Err(error)) = tell.send(connection.serve()) {
                tracing::debug!("unattended connection: {error}");
            }
        })?;
    Ok(ended)
}

/// What the serving thread has told of the end, if it has.
fn of_thread(told: Result<io::Result<()>, oneshot::error::RecvError>) -> io::Result<()> {
    told.unwrap_or_else(|_| Err(io::Error::other("the serving thread died")))
}

fn is_errno(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}
