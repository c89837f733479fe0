//! The signals that ask a server to end.

use std::io;
use std::os::unix::net::UnixStream;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT and SIGHUP, caught from the moment this is made: before the mount exists, so
/// that none of them can end the process and leave a dead mount behind.
#[derive(Debug)]
pub struct Signals {
    pub(super) runtime: Runtime,
    pub(super) inbox: Inbox,
}

#[derive(Debug)]
pub(super) struct Inbox {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Catches the signals.
    ///
    /// # Errors
    /// The system's.
    pub fn install() -> io::Result<Self> {
        // tokio needs a pair of sockets and some descriptors more, and panics where it has none.
        let room = [
            UnixStream::pair()?,
            UnixStream::pair()?,
            UnixStream::pair()?,
        ];
        drop(room);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let guard = runtime.enter();
        let inbox = Inbox {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        };
        drop(guard);
        Ok(Self { runtime, inbox })
    }
}

impl Inbox {
    /// The next signal's name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = self.hup.recv() => "SIGHUP",
        }
    }
}
