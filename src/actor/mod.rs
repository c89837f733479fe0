//! Actors: programs whose root filesystem is an image under a private layer of writes.
//!
//! [`run`] is a throwaway actor: this process serves the filesystem, a child process is the
//! init (process 1) of a new pid namespace, and the program runs under it. [`bundle`] writes what
//! another OCI runtime needs to do the same. Both speak of mounts, capabilities and users in the
//! vocabulary of the OCI runtime specification ([`spec`]), so their actors look alike.
//!
//! The init is this same executable, started again with a hidden subcommand; a program that uses
//! this module calls [`init::main`] (for [`init::SUBCOMMAND`]) and [`userns::helper_main`] (for
//! [`userns::SUBCOMMAND`]) first of all.
//!
//! An actor *never* outlives the process that serves its filesystem, *never* sees a mount of the
//! host's that it was not given, and *never* makes the host follow a symbolic link of the image:
//! every path of the image is resolved with the image's root as its root (openat2(2),
//! `RESOLVE_IN_ROOT`).

pub mod bundle;
pub mod caps;
pub mod image;
pub mod init;
mod inroot;
mod mounts;
pub mod probe;
pub mod rootfs;
pub mod run;
pub mod scratch;
pub mod spec;
pub mod userns;
pub mod users;

use std::path::PathBuf;

/// Why an actor or a bundle could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActorError {
    /// The system refused an operation on a path.
    #[error("{what} {path}")]
    Path {
        /// What was tried, as in "cannot create".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The system refused.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// What was asked for makes no sense or cannot be had; the text says it all.
    #[error("{0}")]
    Refused(String),
    /// User namespaces cannot be used.
    #[error("{0}")]
    UserNamespace(String),
    /// The filesystem could not be mounted.
    #[error(transparent)]
    Mount(Box<dyn std::error::Error + Send + Sync>),
}

impl ActorError {
    pub(crate) fn path<P: Into<PathBuf>>(
        what: &'static str,
        path: P,
    ) -> impl FnOnce(std::io::Error) -> Self + use<P> {
        let path = path.into();
        move |source| Self::Path { what, path, source }
    }

    pub(crate) fn system<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            what,
            source: source.into(),
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn in_one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
