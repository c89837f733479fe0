//! How a server is asked, while it serves, for what it knows of itself, and told to hold still:
//! a control socket, and an endpoint for Prometheus. docs/METRICS.md has both protocols.
//!
//! One thread serves all who ask, however many they are and whatever they send: each has a bound on
//! what he may send and on how long he may take, and there is one on how many they may be. It
//! answers no request of the mount and holds no lock that one waits for.
//!
//! Through the control socket *nobody* is answered but the server's own user and root.

mod client;
mod http;
mod listen;
mod serve;
mod socket;
mod talk;

use crate::metrics::Snapshot;

pub use client::{Client, Freeze, Keep};
pub use listen::Listen;
pub(super) use serve::{Listeners, Serving};

/// A mount that is frozen; it thaws when this is dropped.
pub trait Frozen: Send {
    /// Lets changes go on, but has what they overwrite of some files, by their numbers in the
    /// upper, written to a log first.
    ///
    /// # Errors
    /// Why not, in one line, and what still is frozen.
    fn keep(self: Box<Self>, files: &[u64]) -> Result<Box<dyn Kept>, (Box<dyn Frozen>, String)>;
}

/// A mount that keeps what is overwritten; it does so no more when this is dropped.
pub trait Kept: Send {
    /// The log's name, in the directory `work` of the work directory.
    fn log(&self) -> String;

    /// Ends it; the log has lost its name then.
    ///
    /// # Errors
    /// Why not all is in the log, in one line.
    fn finish(self: Box<Self>) -> Result<(), String>;
}

/// What can be asked of a server.
pub trait Control: Send + Sync {
    /// What it knows of itself. May take a moment.
    fn stats(&self) -> Snapshot;

    /// Holds all changes until what is given is dropped; returns when none is under way. May take
    /// long.
    ///
    /// # Errors
    /// Why it cannot be, in one line.
    fn freeze(&self) -> Result<Box<dyn Frozen>, String>;
}
