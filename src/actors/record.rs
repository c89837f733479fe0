//! actor.json: what an actor is, as it was created. It is written once, before anybody can see the
//! actor; what becomes of the actor afterwards other files tell ([`super::place`]).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Id;
use crate::actor::bundle::Config;
use crate::digest::Digest;
use crate::mount::Settings;
use crate::mount::control::Listen;

/// Version of the record.
pub(super) const FORMAT: u32 = 1;

/// The image below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageRef {
    /// One of the store, by its own digest.
    Stored(Digest),
    /// A local tar, which stays where it is: its absolute path.
    Tar(PathBuf),
}

/// Where an actor's writes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpperKind {
    /// To a directory of the actor's own in the store, which goes with the actor.
    Disk,
    /// To memory: a tmpfs of the actor's own, which goes with the actor or the machine.
    Tmpfs,
    /// To a directory of the caller's, which stays.
    Dir {
        /// The upper directory, absolute.
        upper: PathBuf,
        /// Its work directory, on the same filesystem.
        work: PathBuf,
    },
}

/// How the actor's server is to serve: what of [`Settings`] is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// As [`Settings::passthrough`].
    pub passthrough: Option<u64>,
    /// As [`Settings::upper_passthrough`]: faster, but what is written so cannot be held back for a
    /// checkpoint, nor counted.
    pub upper_passthrough: bool,
    /// As [`Settings::noopen`].
    pub noopen: bool,
}

impl Default for Serving {
    fn default() -> Self {
        let Settings {
            passthrough,
            noopen,
            ..
        } = Settings::default();
        Self {
            passthrough,
            upper_passthrough: false,
            noopen,
        }
    }
}

impl Serving {
    pub(super) fn settings(self) -> Settings {
        Settings {
            passthrough: self.passthrough,
            upper_passthrough: self.upper_passthrough,
            noopen: self.noopen,
            ..Settings::default()
        }
    }
}

/// An actor's place in an OCI bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InBundle {
    /// The bundle, absolute.
    pub dir: PathBuf,
    /// What its config.json is to say where the caller has written none.
    pub config: Config,
}

/// What an actor is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Make {
    /// Its image.
    pub image: ImageRef,
    /// Where its writes go.
    pub upper: UpperKind,
    /// The most bytes that it may have written, as they lie on disk.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size: Option<u64>,
    /// The most inodes that it may have written.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub inodes: Option<u64>,
    /// Where it is mounted, absolute; `None`: in its own directory, or in the bundle.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub point: Option<PathBuf>,
    /// The OCI bundle whose root filesystem it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bundle: Option<InBundle>,
    /// Where its server answers Prometheus.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub metrics: Option<Listen>,
    /// How it is served.
    #[serde(default)]
    pub serving: Serving,
}

/// actor.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this record.
    pub format: u32,
    /// The actor's id.
    pub id: Id,
    /// Seconds since the epoch when it was created.
    pub created: u64,
    /// What it is.
    #[serde(flatten)]
    pub make: Make,
}

impl Make {
    /// In what another differs, if it does.
    pub(super) fn differs(&self, other: &Self) -> Option<&'static str> {
        [
            (self.image != other.image, "image"),
            (self.upper != other.upper, "upper"),
            (self.size != other.size, "size"),
            (self.inodes != other.inodes, "number of inodes"),
            (self.point != other.point, "mount point"),
            (self.bundle != other.bundle, "bundle"),
            (self.metrics != other.metrics, "place for metrics"),
            (self.serving != other.serving, "way of serving"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}
