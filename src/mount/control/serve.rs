//! The thread that answers who asks.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::socket::{self, Name};
use super::talk::Freezing;
use super::{Control, Listen, http, talk};
use crate::mount::{MountError, MountOptions};

/// Most connections at a time, to each of the two; who comes then is sent away.
const MOST: usize = 32;

/// Threads for what takes a moment.
const WORKERS: usize = 4;

/// How long after nobody could be accepted (too many open files) it is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the end waits for what is under way.
const GRACE: Duration = Duration::from_secs(1);

/// Where an endpoint for Prometheus listens.
#[derive(Debug)]
enum Endpoint {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// What a server listens at, before it serves.
#[derive(Debug, Default)]
pub(in crate::mount) struct Listeners {
    control: Option<UnixListener>,
    metrics: Option<Endpoint>,
    names: Vec<Name>,
}

impl Listeners {
    /// Listens at what the options name.
    ///
    /// # Errors
    /// [`MountError::System`]: a living server listens there, the place cannot be had.
    pub(in crate::mount) fn open(options: &MountOptions) -> Result<Self, MountError> {
        let mut all = Self::default();
        if let Some(path) = &options.control {
            let listener = all.listen_at(path);
            let what = format!("the control socket {}", path.display());
            all.control = Some(listener.map_err(MountError::system(what))?);
        }
        if let Some(listen) = &options.metrics {
            let endpoint = match listen {
                Listen::Unix(path) => all.listen_at(path).map(Endpoint::Unix),
                Listen::Tcp(address) => TcpListener::bind(address).map(Endpoint::Tcp),
            };
            let endpoint = endpoint.and_then(|endpoint| {
                endpoint.set_up()?;
                Ok(endpoint)
            });
            let what = format!("metrics at {listen}");
            all.metrics = Some(endpoint.map_err(MountError::system(what))?);
        }
        Ok(all)
    }

    fn listen_at(&mut self, path: &Path) -> io::Result<UnixListener> {
        let (listener, name) = socket::listen_at(path)?;
        listener.set_nonblocking(true)?;
        self.names.push(name);
        Ok(listener)
    }

    /// Answers who asks for `control`, from now on. `None` where nobody can ask.
    ///
    /// # Errors
    /// The system's.
    pub(in crate::mount) fn serve(
        self,
        control: Arc<dyn Control>,
    ) -> Result<Option<Serving>, MountError> {
        if self.control.is_none() && self.metrics.is_none() {
            return Ok(None);
        }
        let failed = || MountError::system("the thread of the control socket");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(WORKERS)
            .build()
            .map_err(failed())?;
        let (stop, stopped) = oneshot::channel();
        let (socket, metrics) = (self.control, self.metrics);
        let thread = std::thread::Builder::new()
            .name("tarnfs-control".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        // Told, or its owner is gone.
                        _ = stopped => {}
                        () = accept_control(socket, &control) => {}
                        () = accept_metrics(metrics, &control) => {}
                    }
                });
                runtime.shutdown_timeout(GRACE);
            })
            .map_err(failed())?;
        Ok(Some(Serving {
            names: self.names,
            stop: Some(stop),
            thread: Some(thread),
        }))
    }
}

impl Endpoint {
    fn set_up(&self) -> io::Result<()> {
        match self {
            Self::Unix(_) => Ok(()),
            Self::Tcp(listener) => {
                tracing::info!(address = %listener.local_addr()?, "metrics");
                listener.set_nonblocking(true)
            }
        }
    }
}

/// Somebody may ask; ends when dropped.
#[derive(Debug)]
pub(in crate::mount) struct Serving {
    names: Vec<Name>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Before nobody listens any more: who finds the name then would take it for a dead one's.
        self.names.clear();
        // Nobody there to be told: it has ended by itself.
        self.stop
            .take()
            .map_or(Ok(()), |stop| stop.send(()))
            .unwrap_or(());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread of the control socket died");
        }
    }
}

/// Those who may be answered at a time.
#[derive(Debug)]
struct Places(Arc<Semaphore>);

impl Places {
    fn new() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }

    /// Answers a connection if there is a place.
    fn answer<S, F>(&self, stream: S, answer: impl FnOnce(S) -> F)
    where
        S: AsyncRead + AsyncWrite,
        F: Future<Output = ()> + Send + 'static,
    {
        let Ok(place) = Arc::clone(&self.0).try_acquire_owned() else {
            return;
        };
        let answering = answer(stream);
        tokio::spawn(async move {
            let _place: OwnedSemaphorePermit = place;
            answering.await;
        });
    }
}

/// Never ends where there is nothing to listen at.
async fn accept_control(listener: Option<UnixListener>, control: &Arc<dyn Control>) {
    let listener = listener.map(net::UnixListener::from_std).transpose();
    let Some(listener) = usable(listener) else {
        return std::future::pending().await;
    };
    let (places, freezing) = (Places::new(), Freezing::new());
    loop {
        match listener.accept().await {
            Ok((stream, _)) if may_ask(&stream) => places.answer(stream, |stream| {
                talk::talk(stream, Arc::clone(control), freezing.clone())
            }),
            Ok(_) => {}
            Err(error) => rest(&error).await,
        }
    }
}

async fn accept_metrics(endpoint: Option<Endpoint>, control: &Arc<dyn Control>) {
    match endpoint {
        None => std::future::pending().await,
        Some(Endpoint::Unix(listener)) => {
            let Some(listener) = usable(net::UnixListener::from_std(listener).map(Some)) else {
                return std::future::pending().await;
            };
            tell_all(async || Ok(listener.accept().await?.0), control).await;
        }
        Some(Endpoint::Tcp(listener)) => {
            let Some(listener) = usable(net::TcpListener::from_std(listener).map(Some)) else {
                return std::future::pending().await;
            };
            tell_all(async || Ok(listener.accept().await?.0), control).await;
        }
    }
}

/// Answers all who come, over whatever they come.
async fn tell_all<S>(accept: impl AsyncFn() -> io::Result<S>, control: &Arc<dyn Control>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Places::new();
    loop {
        match accept().await {
            Ok(stream) => places.answer(stream, |s| http::answer(s, Arc::clone(control))),
            Err(error) => rest(&error).await,
        }
    }
}

fn usable<T>(listener: io::Result<Option<T>>) -> Option<T> {
    listener
        .inspect_err(|error| tracing::error!("nobody can ask the server: {error}"))
        .ok()
        .flatten()
}

async fn rest(error: &io::Error) {
    tracing::debug!("somebody who asks is not heard: {error}");
    tokio::time::sleep(PAUSE).await;
}

/// Whether a peer is this process's own user, or root.
fn may_ask(stream: &net::UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "another user at the control socket");
            false
        }
        Err(error) => {
            tracing::debug!("who is at the control socket: {error}");
            false
        }
    }
}
