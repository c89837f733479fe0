//! From a stored layer to its uncompressed bytes, in a thread of its own: so that decompression,
//! which is most of the work, has a processor to itself.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::ImportError;
use super::{Event, Watch};
use crate::compress::{self, Format};
use crate::digest::{Digest, Hashed};
use crate::source::SourceError;
use crate::sys::clock::thread_cpu;

/// Bytes that go from one thread to the other at a time.
const PIECE: usize = 512 << 10;
/// Pieces on their way: so much may come before the other has taken it.
const PIECES: usize = 4;

/// What came of reading a stored layer to its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) digest: Digest,
    pub(super) len: u64,
    pub(super) reading: Duration,
    pub(super) decompressing: Duration,
}

/// The reading end: uncompressed pieces.
pub(super) struct Pipe {
    pieces: Receiver<Vec<u8>>,
    free: SyncSender<Vec<u8>>,
    thread: JoinHandle<Result<Ended, ImportError>>,
}

/// Opens the stored bytes of a layer.
pub(super) type Open = Box<dyn FnOnce() -> Result<Box<dyn Read + Send>, SourceError> + Send>;

/// What the reading thread knows of its layer.
pub(super) struct Of {
    /// Its name in errors.
    pub(super) name: String,
    /// Its position.
    pub(super) position: usize,
    /// Its stored length; it is not read further than one byte beyond.
    pub(super) len: Option<u64>,
}

impl Pipe {
    /// Begins to read. The thread is not waited for when this is dropped: it may wait for a network.
    pub(super) fn open(
        open: Open,
        of: Of,
        watch: Arc<dyn Watch + Send + Sync>,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let (to, pieces) = sync_channel(PIECES);
        let (free, used) = sync_channel(PIECES + 2);
        let thread = std::thread::Builder::new()
            .name(format!("layer {}", of.position))
            .spawn(move || run(open, &of, &*watch, &stop, &to, &used))?;
        Ok(Self {
            pieces,
            free,
            thread,
        })
    }

    /// The next piece; `None` at the end, or where the other side has failed, which
    /// [`Self::finish`] tells.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        self.pieces.recv().ok()
    }

    /// Gives the memory of a piece back.
    pub(super) fn give_back(&self, piece: Vec<u8>) {
        self.free.try_send(piece).ok();
    }

    /// What came of it; only behind the last piece.
    pub(super) fn finish(self) -> Result<Ended, ImportError> {
        drop(self.pieces);
        self.thread.join().unwrap_or(Err(ImportError::Stopped))
    }
}

/// What the decoder reads from: the time that goes there is none of its own.
struct Timed<R> {
    input: R,
    time: Duration,
    cpu: Duration,
}

impl<R: Read> Read for Timed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (start, cpu) = (Instant::now(), thread_cpu());
        let n = self.input.read(buf);
        self.time += start.elapsed();
        self.cpu += thread_cpu().saturating_sub(cpu);
        n
    }
}

/// Counts, and stops.
struct Counted<'a> {
    input: Box<dyn Read + Send>,
    of: &'a Of,
    watch: &'a dyn Watch,
    stop: &'a AtomicBool,
    len: u64,
    error: Option<ImportError>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            self.error = Some(ImportError::Stopped);
            return Err(io::Error::other("stopped"));
        }
        let n = match self.input.read(buf) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                let what = e.to_string();
                self.error = Some(match e.downcast::<SourceError>() {
                    Ok(source) => source.into(),
                    Err(e) => ImportError::Layer {
                        layer: self.of.name.clone(),
                        why: e.to_string(),
                    },
                });
                return Err(io::Error::other(what));
            }
        };
        self.len += n as u64;
        if let Some(len) = self.of.len.filter(|len| self.len > *len) {
            self.error = Some(ImportError::Layer {
                layer: self.of.name.clone(),
                why: format!("is longer than the {len} bytes that it should have"),
            });
            return Err(io::Error::other("too long"));
        }
        self.watch.on(Event::Read(self.of.position, n as u64));
        Ok(n)
    }
}

fn run(
    open: Open,
    of: &Of,
    watch: &dyn Watch,
    stop: &AtomicBool,
    to: &SyncSender<Vec<u8>>,
    used: &Receiver<Vec<u8>>,
) -> Result<Ended, ImportError> {
    let counted = Counted {
        input: open()?,
        of,
        watch,
        stop,
        len: 0,
        error: None,
    };
    let mut input = Timed {
        input: Hashed::new(counted),
        time: Duration::ZERO,
        cpu: Duration::ZERO,
    };
    let start = thread_cpu();
    let done = decompress(&mut input, to, used);
    let spent = thread_cpu().saturating_sub(start);
    let Timed {
        mut input,
        time: reading,
        cpu,
    } = input;
    let len = input.get_mut().len;
    if let Err(error) = done {
        if let Some(told) = input.get_mut().error.take() {
            return Err(told);
        }
        // Fewer bytes than there should be explain whatever else looks wrong.
        let why = match of.len {
            Some(want) if len < want && error.kind() == io::ErrorKind::UnexpectedEof => {
                format!("ends after {len} of {want} bytes")
            }
            _ => error.to_string(),
        };
        return Err(ImportError::Layer {
            layer: of.name.clone(),
            why,
        });
    }
    let (digest, len) = input.finish();
    Ok(Ended {
        digest,
        len,
        reading,
        decompressing: spent.saturating_sub(cpu),
    })
}

fn decompress(
    input: &mut impl Read,
    to: &SyncSender<Vec<u8>>,
    used: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut decoder = compress::decoder(&mut *input)?;
    let outer = decoder.format();
    let mut first = true;
    loop {
        let mut piece = used.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let n = fill(&mut decoder, &mut piece)?;
        if n == 0 {
            break;
        }
        piece.truncate(n);
        if std::mem::take(&mut first)
            && outer != Format::Plain
            && piece.get(257..262) != Some(b"ustar")
            && let Some((inner, _)) = compress::betrayed(&piece)
        {
            let why = format!("compressed twice, {inner} in {outer}: decompress it once");
            return Err(io::Error::other(why));
        }
        if to.send(piece).is_err() {
            // The other side has failed, and knows why.
            return Err(io::Error::other("nobody takes it"));
        }
    }
    drop(decoder);
    // What lies behind the compressed data is part of the blob, too.
    io::copy(input, &mut io::sink())?;
    Ok(())
}

/// Fills `buf` as far as there are bytes.
fn fill(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
