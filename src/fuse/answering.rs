//! A request from its coming to its answer: counted, timed, logged.

use std::cell::Cell;

use fuser::{Errno, INodeNo};

use super::Adapter;
use super::spin::Turn;
use crate::metrics::{Op, UnderWay};

thread_local! {
    /// The error that this thread's request is answered with; 0: none so far.
    static ERRNO: Cell<i32> = const { Cell::new(0) };
}

/// The errno that a request is about to be answered with.
pub(super) fn noted(errno: Errno) -> Errno {
    ERRNO.set(errno.code());
    errno
}

/// A request is being answered; it has been when this is dropped.
#[derive(Debug)]
pub(super) struct Answering<'a> {
    request: UnderWay<'a>,
    ino: INodeNo,
    // Dropped last: it waits for the next request.
    turn: Turn<'a>,
}

impl Adapter {
    /// A request has come, about this inode.
    pub(super) fn begin(&self, op: Op, ino: INodeNo) -> Answering<'_> {
        let turn = self.spin.turn();
        ERRNO.set(0);
        Answering {
            request: self.requests.begin(op, turn.began()),
            ino,
            turn,
        }
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let (now, errno) = (self.turn.answered(), ERRNO.get());
        let took = self.request.end(now, errno);
        tracing::trace!(
            op = self.request.op().name(),
            ino = self.ino.0,
            errno,
            micros = took.as_nanos() as f64 / 1e3,
            "answered"
        );
    }
}
