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

pub use client::{Client, Freeze};
pub use listen::Listen;
pub(super) use serve::{Listeners, Serving};

/// Kept while a mount is frozen; it thaws when this is dropped.
pub type Frozen = Box<dyn Send>;

/// What can be asked of a server.
pub trait Control: Send + Sync {
    /// What it knows of itself. May take a moment.
    fn stats(&self) -> Snapshot;

    /// Holds all changes until what is given is dropped; returns when none is under way. May take
    /// long.
    ///
    /// # Errors
    /// Why it cannot be, in one line.
    fn freeze(&self) -> Result<Frozen, String>;
}
