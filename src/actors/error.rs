//! Why something could not be done with an actor.

use std::io;
use std::path::PathBuf;

use super::{Holder, Id};
use crate::actor::ActorError;
use crate::diff::DiffError;
use crate::lower::OpenError;
use crate::mount::MountError;
use crate::overlay;
use crate::stack::StackError;
use crate::store::StoreError;
use crate::upper::UpperError;

/// Why something could not be done with an actor. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that cannot be an id.
    #[error(
        "{0:?}: an actor's id is 1 to 128 letters, digits, \".\", \"_\" and \"-\", and begins with \
         a letter or a digit"
    )]
    BadId(String),
    /// No such actor.
    #[error("there is no actor {0} (`tarnfs actor list` shows which there are)")]
    Unknown(Id),
    /// There is one, made otherwise.
    #[error(
        "there is an actor {id} already, with another {what}; give another id, or destroy it first"
    )]
    Exists {
        /// The actor.
        id: Id,
        /// In what it differs.
        what: &'static str,
    },
    /// Its record cannot be read.
    #[error(
        "actor {id}: its record is damaged: {why} (`tarnfs actor destroy {id}` clears it away)"
    )]
    Damaged {
        /// The actor.
        id: Id,
        /// What is wrong.
        why: String,
    },
    /// What the actor wrote belongs to another image.
    #[error("{upper}: holds what was written on another image; give another upper directory")]
    OtherImage {
        /// The upper directory.
        upper: PathBuf,
    },
    /// The actor's tar is not the one any more on which it wrote.
    #[error(
        "{tar}: holds another image than the one on which actor {id} has written; put that back, or \
         give up what was written (`tarnfs actor reset {id}`)"
    )]
    OtherTar {
        /// The actor.
        id: Id,
        /// The tar.
        tar: PathBuf,
    },
    /// It is still used where it cannot be unmounted from here.
    #[error(
        "actor {id}: unmounted here, but still in use by {}; end that, or cut it off (--force)",
        said(.by)
    )]
    InUse {
        /// The actor.
        id: Id,
        /// In whose mount namespace it is; empty: in none that can be seen.
        by: Vec<Holder>,
    },
    /// Another call has not come to its end.
    #[error(
        "actor {id}: {} is at work on it; try again later, or end that (`tarnfs actor stop --force \
         {id}` does)",
        by.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The actor.
        id: Id,
        /// Whose it is.
        by: Option<u32>,
    },
    /// Its server does not hold its writes back.
    #[error("actor {id}: its writes cannot be held back: {source}")]
    Frozen {
        /// The actor.
        id: Id,
        /// Why not.
        source: io::Error,
    },
    /// What was asked for makes no sense or cannot be had; the text says it all.
    #[error("{0}")]
    Refused(String),
    /// The system refused an operation on a path.
    #[error("{what} {}: {source}", path.display())]
    Path {
        /// What was tried, as in "cannot make".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The image.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image cannot be opened.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// The upper directory.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// The filesystem.
    #[error(transparent)]
    Overlay(#[from] overlay::Error),
    /// The mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// What it has written cannot be read.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// No image can be made of it.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The bundle.
    #[error("{}", crate::actor::in_one_line(.0))]
    Bundle(#[from] ActorError),
}

impl Error {
    /// For `map_err`.
    pub(super) fn path<P: Into<PathBuf>>(
        what: &'static str,
        path: P,
    ) -> impl FnOnce(io::Error) -> Self + use<P> {
        let path = path.into();
        move |source| Self::Path { what, path, source }
    }
}

/// The first few of them.
fn said(by: &[Holder]) -> String {
    const SHOWN: usize = 3;
    if by.is_empty() {
        return "a container in another mount namespace, or by an open file".to_owned();
    }
    let mut shown: Vec<_> = by.iter().take(SHOWN).map(ToString::to_string).collect();
    match by.len().saturating_sub(SHOWN) {
        0 => {}
        more => shown.push(format!("{more} more")),
    }
    format!("the container of {}", shown.join(", "))
}
