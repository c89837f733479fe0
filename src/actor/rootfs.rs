//! The joint to the layers below, and to either engine: puts the root filesystem of an actor at a
//! directory.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ActorError, userns};
use crate::lower::Lower;
use crate::mount::backing::{Backing, Choice};
use crate::mount::{
    EngineChoice, MountError, MountOptions, RECORDING_KIB, Server, kernel, state_dirs,
};
use crate::overlay::{self, Overlay};
use crate::prefetch::Prefetch;
use crate::sys;

/// Where an actor's root filesystem comes from.
#[derive(Debug)]
pub enum Source {
    /// An opened image.
    Image {
        /// What the mount is called: the image's path.
        name: PathBuf,
        /// The image.
        lower: Box<Lower>,
        /// What goes on beside its mount, which must be a server's then.
        prefetch: Option<Prefetch>,
    },
    /// A directory, bound as it is: no layer of writes is put on it.
    Dir(PathBuf),
}

/// Where an actor's writes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writes {
    /// Nowhere: every write fails (EROFS).
    ReadOnly,
    /// Into this upper.
    Upper {
        /// The upper directory.
        upper: PathBuf,
        /// Its work directory, on the same filesystem.
        work: PathBuf,
        /// Nobody reads the upper again after a crash: no fsync on copy-up.
        volatile: bool,
    },
}

/// A root filesystem that is served.
#[derive(Debug)]
pub struct Served {
    by: By,
}

#[derive(Debug)]
enum By {
    /// This process.
    Server(Server),
    /// The kernel. The overlay keeps the locks on the upper, and others find the image's mount.
    Kernel {
        _locked: Box<Overlay>,
        _image: Box<Backing>,
    },
    /// Whoever serves the directory.
    Others,
}

/// Mounts `source` at `at`, in the mount namespace of the calling thread, and serves it from
/// threads of this process until [`Served::finish`], unless the kernel does.
///
/// # Errors
/// [`ActorError::Mount`] and the system's.
pub fn serve(
    source: Source,
    writes: &Writes,
    engine: EngineChoice,
    at: &Path,
) -> Result<Served, ActorError> {
    let by = match source {
        Source::Dir(dir) => {
            rustix::mount::mount_bind_recursive(&dir, at)
                .map_err(|e| ActorError::path("cannot bind at", at)(e.into()))?;
            By::Others
        }
        Source::Image {
            name,
            lower,
            prefetch,
        } => {
            let mut options = MountOptions::new(name);
            options.fuse.read_only = *writes == Writes::ReadOnly;
            options.image_dirs = state_dirs();
            options.backing = Choice::of_environment();
            if prefetch.as_ref().is_some_and(|p| p.record.is_some()) {
                options.read_ahead_kib = Some(RECORDING_KIB);
            }
            let engine = engine_for(engine, prefetch.as_ref())?;
            let overlay = open(*lower, writes)?;
            serve_image(overlay, writes, engine, at, &options, prefetch)?
        }
    };
    Ok(Served { by })
}

/// Who can serve: a server alone records and reads ahead.
fn engine_for(
    engine: EngineChoice,
    prefetch: Option<&Prefetch>,
) -> Result<EngineChoice, ActorError> {
    match (engine, prefetch) {
        (EngineChoice::Kernel, Some(_)) => Err(failed(MountError::KernelEngine(
            "--record and --prefetch are for a server, and it has none".to_owned(),
        ))),
        (_, Some(_)) => Ok(EngineChoice::Fuse),
        (engine, None) => Ok(engine),
    }
}

fn serve_image(
    mut overlay: Overlay,
    writes: &Writes,
    engine: EngineChoice,
    at: &Path,
    options: &MountOptions,
    prefetch: Option<Prefetch>,
) -> Result<By, ActorError> {
    if engine != EngineChoice::Fuse {
        match kernel::create(&overlay, options) {
            Ok((mount, image)) => {
                sys::mount::attach(mount.as_fd(), at)
                    .map_err(ActorError::path("cannot mount on", at))?;
                let _locked = Box::new(overlay);
                return Ok(By::Kernel {
                    _locked,
                    _image: Box::new(image),
                });
            }
            Err(error @ MountError::KernelEngine(_)) if engine == EngineChoice::Auto => {
                tracing::info!("engine fuse: {error}");
            }
            Err(error) => return Err(failed(error)),
        }
        // overlayfs may have been in the work directory before it failed.
        overlay = open(overlay.into_lower(), writes)?;
    }
    let mut server = Server::start(Arc::new(overlay), at, options).map_err(failed)?;
    if let Some(prefetch) = prefetch {
        server.beside(prefetch);
    }
    Ok(By::Server(server))
}

fn open(lower: Lower, writes: &Writes) -> Result<Overlay, ActorError> {
    let Writes::Upper {
        upper,
        work,
        volatile,
    } = writes
    else {
        return Ok(Overlay::read_only(lower));
    };
    std::fs::create_dir_all(upper).map_err(ActorError::path("cannot make the upper", upper))?;
    let options = overlay::Options {
        volatile: *volatile,
        // Where nobody else exists nobody else can own a file.
        squash: userns::is_single().then_some((0, 0)),
        ..overlay::Options::default()
    };
    let upper = kernel::open_upper(&state_dirs(), upper, work).map_err(failed)?;
    Overlay::with_upper(lower, upper, options).map_err(failed)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> ActorError {
    ActorError::Mount(Box::new(error))
}

impl Served {
    /// Waits for the end of the service: to be called when the mount is gone from every
    /// namespace. What a later mount of the same upper must find is written then.
    ///
    /// # Errors
    /// [`ActorError::Mount`].
    pub fn finish(self) -> Result<(), ActorError> {
        match self.by {
            By::Server(server) => server.wait().map(drop).map_err(failed),
            // overlayfs has written all before its mount was gone.
            By::Kernel { .. } | By::Others => Ok(()),
        }
    }
}
