//! The life of a mount: checks, mounting, serving, signals, the end.
//!
//! - The server answers before the mount is attached anywhere, so nobody ever waits on a mount
//!   that is not served.
//! - It ends when the kernel ends the connection, whoever unmounted; then the overlay is flushed,
//!   and then the mount's state file goes away (in that order: `tarnfs umount` waits for it).
//! - Where the kernel serves ([`kernel`]) there is no such process, and nothing to wait for.
//! - It *never* holds a descriptor on its own mount and never looks at its own mount point; what
//!   is mounted where is read from mountinfo, so that no caller can hang on a dead server.

pub mod backing;
pub mod control;
mod error;
pub mod kernel;
mod memory;
mod point;
mod process;
mod registry;
pub mod rights;
mod scratch;
mod server;
mod signals;
mod stats;
mod unmount;
mod upper;
mod usage;

use std::ffi::OsString;
use std::path::PathBuf;

pub use error::MountError;
pub use kernel::{Engine, EngineChoice, engine_of};
pub use point::{check_point, check_point_among, find_mount, resolve_point, topmost};
pub use process::{detach_from_terminal, prepare_process};
pub use registry::{Record, record_of, state_dirs, wait_for_leaving};
pub use rights::Rights;
pub use scratch::{Scratch, remove_private};
pub use server::{Ended, Server};
pub use signals::Signals;
pub use stats::{About, timed};
pub use unmount::{How, Unmounted, unmount};
pub use upper::open_upper;

pub use crate::fuse::{FreezeError, Freezer, Frozen, KeepAwake, KeepError, Settings};
use crate::sys::fuse::FuseParams;
use crate::sys::mount::MountAttrs;

/// The type that /proc/mounts shows of a mount that we serve.
pub const FS_TYPE: &str = "fuse.tarnfs";

/// How to mount, by either engine.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The filesystem to create; `subtype`, `allow_other` and `max_read` are the FUSE engine's. A subtype other than `tarnfs` hides the mount from
    /// `tarnfs umount`; with `allow_other` an ordinary user needs `user_allow_other` in
    /// /etc/fuse.conf.
    pub fuse: FuseParams,
    /// Where the state file of the mount may go ([`state_dirs`]); empty: no state file.
    pub state_dirs: Vec<PathBuf>,
    /// State directories in which mounts of the image are found and told of, to share them; empty:
    /// nothing is shared.
    pub image_dirs: Vec<PathBuf>,
    /// How the kernel may read the image by itself.
    pub backing: backing::Choice,
    /// The upper directory, for the state file.
    pub upper: Option<PathBuf>,
    /// The work directory, likewise.
    pub work: Option<PathBuf>,
    /// How the FUSE engine serves.
    pub serving: Settings,
    /// KiB that the kernel reads ahead, where this process may say so (root); `None`:
    /// [`READ_AHEAD_KIB`].
    pub read_ahead_kib: Option<u32>,
    /// Where the control socket of the FUSE engine's server is to be; `None`: it has none.
    pub control: Option<PathBuf>,
    /// Where it answers Prometheus; `None`: nowhere.
    pub metrics: Option<control::Listen>,
    /// What it is to tell of the mount there.
    pub about: About,
}

/// What the kernel reads ahead of a mount unless told otherwise, in KiB: one READ request of the
/// largest size at a time is too little for a cold disk.
pub const READ_AHEAD_KIB: u32 = 2048;

/// The same where a record is made, which is to name what is asked for and not what the kernel
/// guesses: the kernel's own default.
pub const RECORDING_KIB: u32 = 128;

impl MountOptions {
    /// The options of a root filesystem: set-user-ID programs and devices work, all users may use
    /// it.
    #[must_use]
    pub fn new(source: impl Into<OsString>) -> Self {
        Self {
            fuse: FuseParams {
                source: source.into(),
                subtype: "tarnfs".to_owned(),
                read_only: false,
                allow_other: true,
                max_read: None,
                super_flags: Vec::new(),
                attrs: MountAttrs::default(),
            },
            state_dirs: Vec::new(),
            image_dirs: Vec::new(),
            backing: backing::Choice::default(),
            upper: None,
            work: None,
            serving: Settings::default(),
            read_ahead_kib: None,
            control: None,
            metrics: None,
            about: About::default(),
        }
    }
}
