//! The thread that runs a registry's requests, and how a blocking caller waits for it.
//!
//! A caller may itself be inside another runtime: nothing here asks which (tokio's own blocking
//! calls panic there). The thread ends with its [`Worker`], which waits for it, so that a process
//! has no thread left when it goes on to make a user namespace.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// How long a look-up of a name, which cannot be broken off, may keep the end waiting.
const LAST_LOOKUP: Duration = Duration::from_secs(1);

/// A runtime of one thread.
#[derive(Debug)]
pub(super) struct Worker {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or no descriptors can be had.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || {
                // An error says that the sender is gone, which stops as well.
                runtime.block_on(stopped).ok();
                runtime.shutdown_timeout(LAST_LOOKUP);
            })?;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Runs `future` on the thread and waits for it. None where the thread has ended.
    pub(super) fn run<F>(&self, future: F) -> Option<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (to, from) = oneshot::channel();
        self.handle.spawn(async move {
            // The caller waits; where it does not, nobody needs the result.
            to.send(future.await).ok();
        });
        wait(from).ok()
    }

    /// Begins `future` on the thread.
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        self.handle.spawn(future).abort_handle()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic there has been printed; there is nothing to add here.
            thread.join().ok();
        }
    }
}

/// Waits for `future` on this thread, inside a runtime or not.
pub(super) fn wait<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_ends_also_inside_another_runtime() {
        let outer = Builder::new_current_thread().build().unwrap();
        outer.block_on(async {
            let worker = Worker::start().unwrap();
            assert_eq!(worker.run(async { 7 }), Some(7));
            worker.spawn(std::future::pending());
            drop(worker);
        });
    }

    #[test]
    fn a_panic_is_none() {
        let worker = Worker::start().unwrap();
        let nothing = worker.run(async { assert_eq!(1, 2, "on purpose") });
        assert_eq!(nothing, None);
        assert_eq!(worker.run(async { 7 }), Some(7));
    }
}
