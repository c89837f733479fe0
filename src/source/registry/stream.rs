//! A layer as a blocking reader, with the network behind a few pieces: what breaks off is asked
//! for again from where it was.
//!
//! Memory: [`PIECES`] pieces of what one read of a connection gave, whatever comes.

use std::io::{self, Read};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::failure::{self, Failure, Kind};
use super::place::{Blob, Place};
use super::worker::{Worker, wait};
use super::{Places, pause};
use crate::digest::Digest;
use crate::source::SourceError;

/// How many pieces wait for the reader.
const PIECES: usize = 4;

/// So many bytes are progress: the tries before them are forgotten. Less would let a hostile
/// registry, which gives a byte and hangs up, go on without end.
const PROGRESS: u64 = 1 << 20;

/// What comes through the channel.
enum Piece {
    Bytes(Vec<u8>),
    /// The blob is whole.
    End,
    Failed(SourceError),
}

/// A layer that is on its way.
pub(super) struct Stream {
    pieces: mpsc::Receiver<Piece>,
    task: AbortHandle,
    piece: Vec<u8>,
    read: usize,
    ended: bool,
    // The thread ends after the last stream: dropped last.
    _worker: Arc<Worker>,
}

impl Stream {
    /// Begins to fetch the blob `digest`, of `len` bytes where that is known.
    pub(super) fn start(
        worker: &Arc<Worker>,
        places: &Arc<Places>,
        digest: Digest,
        len: Option<u64>,
    ) -> Self {
        let (to, pieces) = mpsc::channel(PIECES);
        let places = Arc::clone(places);
        let task = worker.spawn(async move {
            let download = Download {
                places: &places,
                digest,
                len,
                to: &to,
                at: 0,
            };
            let last = match download.run().await {
                Ok(()) => Piece::End,
                Err(failure) => {
                    Piece::Failed(failure.of(format!("{}, layer {digest}", places.name)))
                }
            };
            // Where the reader is gone, nobody wants to know.
            to.send(last).await.ok();
        });
        Self {
            pieces,
            task,
            piece: Vec::new(),
            read: 0,
            ended: false,
            _worker: Arc::clone(worker),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !buf.is_empty() && !self.ended {
            let rest = self.piece.get(self.read..).unwrap_or_default();
            if !rest.is_empty() {
                let n = rest.len().min(buf.len());
                if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
                    to.copy_from_slice(from);
                }
                self.read = self.read.saturating_add(n);
                return Ok(n);
            }
            match wait(self.pieces.recv()) {
                Some(Piece::Bytes(piece)) => {
                    self.piece = piece;
                    self.read = 0;
                }
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(error)) => {
                    let kind = match &error {
                        SourceError::Io { source, .. } => source.kind(),
                        SourceError::Image { .. } | SourceError::Asked(_) => {
                            io::ErrorKind::InvalidData
                        }
                    };
                    return Err(io::Error::new(kind, error));
                }
                None => return Err(io::Error::other("the download has failed")),
            }
        }
        Ok(0)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A blob that is fetched, over as many connections as it takes.
struct Download<'a> {
    places: &'a Places,
    digest: Digest,
    len: Option<u64>,
    to: &'a mpsc::Sender<Piece>,
    /// How many bytes the reader was given.
    at: u64,
}

impl Download<'_> {
    async fn run(mut self) -> Result<(), Failure> {
        let patience = self.places.patience;
        let mut choice = self.places.first();
        let mut tries = 0;
        let mut counted_at = 0;
        // Whether to ask for the whole blob once more, and pass over what was had.
        let mut whole = false;
        while let Some(place) = self.places.at(&choice) {
            let failure = match self.go_on(place, whole).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            tracing::debug!(
                digest = %self.digest, at = self.at, why = failure.why, "a layer broke off"
            );
            if self.to.is_closed() {
                return Ok(());
            }
            if self.at.saturating_sub(counted_at) >= PROGRESS {
                counted_at = self.at;
                tries = 0;
            }
            tries += 1;
            if failure.may_pass() && tries < patience.tries {
                whole = failure.kind == Kind::Range;
                pause(&patience, tries).await;
            } else if failure.kind == Kind::Content && self.at > 0 {
                // The reader has bytes that are not the layer's; no other place mends that.
                return Err(failure);
            } else {
                choice = self.places.after(choice, failure.after(tries))?;
                tries = 0;
                whole = false;
            }
        }
        Ok(())
    }

    /// Fetches from where it was, until the end or a failure.
    async fn go_on(&mut self, place: &Place, whole: bool) -> Result<(), Failure> {
        if self.len == Some(self.at) && self.at > 0 {
            return Ok(());
        }
        let asked = if whole { 0 } else { self.at };
        let Blob { mut stream, from } = place.blob(&self.digest, asked).await?;
        if let (Some(told), Some(len)) = (stream.content_length, self.len)
            && from.saturating_add(told) > len
        {
            if from > 0 {
                let why = format!("the bytes from {from} on were asked for, others came");
                return Err(place.explained(Failure::new(Kind::Range, why)));
            }
            return Err(place.explained(too_long(len)));
        }
        let mut pass_over = self.at.saturating_sub(from);
        loop {
            let mut piece = match place.next(&mut stream).await? {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => {
                    return self.ended(Some(&error)).map_err(|f| place.explained(f));
                }
                None => return self.ended(None).map_err(|f| place.explained(f)),
            };
            let n = piece.len() as u64;
            if pass_over >= n {
                pass_over -= n;
                continue;
            }
            let skip = usize::try_from(pass_over).unwrap_or(usize::MAX);
            pass_over = 0;
            piece.drain(..skip.min(piece.len()));
            let at = self.at.saturating_add(piece.len() as u64);
            if let Some(len) = self.len
                && at > len
            {
                return Err(place.explained(too_long(len)));
            }
            if self.to.send(Piece::Bytes(piece)).await.is_err() {
                return Ok(());
            }
            self.at = at;
        }
    }

    /// A stream ended, well or not.
    fn ended(&self, error: Option<&io::Error>) -> Result<(), Failure> {
        match (self.len, error) {
            (Some(len), _) if self.at < len => Err(Failure::new(
                Kind::Broken,
                match error {
                    Some(error) if !failure::is_digest(error) => {
                        format!(
                            "{} of {len} bytes came: {}",
                            self.at,
                            failure::of_stream(error).why
                        )
                    }
                    _ => format!("{} of {len} bytes came", self.at),
                },
            )),
            (_, Some(error)) if failure::is_digest(error) => Err(failure::of_stream(error)),
            // All bytes are there; how the connection ended does not matter.
            (Some(_), _) | (None, None) => Ok(()),
            (None, Some(error)) => Err(failure::of_stream(error)),
        }
    }
}

fn too_long(len: u64) -> Failure {
    Failure::new(
        Kind::Content,
        format!("is longer than the {len} bytes that the manifest says"),
    )
}
