//! One layer: into the store, and its headers read as it goes.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::error::ImportError;
use super::pipe::{Of, Open, Pipe};
use super::{Cost, Event, Watch};
use crate::digest::{Digest, Hasher};
use crate::index;
use crate::source::{Layer, Source};
use crate::store::{Begun, Blob, BlobWriter, Progress, Store};
use crate::sys::clock::thread_cpu;

/// What all layers of an import share.
pub(super) struct Context<'a> {
    pub(super) store: &'a Store,
    /// What people call the image.
    pub(super) from: &'a str,
    pub(super) budget: Budget,
    pub(super) watch: Arc<dyn Watch + Send + Sync>,
    pub(super) stop: Arc<AtomicBool>,
}

/// A layer that is in the store, and what its headers say.
pub(super) struct Ready {
    pub(super) blob: Blob,
    pub(super) scan: index::Layer,
    pub(super) cost: Cost,
}

impl Context<'_> {
    /// What a layer is called in errors.
    fn name_of(&self, layer: &Layer) -> String {
        let (from, n) = (self.from, layer.position + 1);
        match layer.digest {
            Some(digest) => format!("{from}: layer {n} ({digest})"),
            None => format!("{from}: layer {n} (diff ID {})", layer.diff_id),
        }
    }

    /// Has `layer` of `source` in the store, by whomever.
    pub(super) fn bring(
        &self,
        source: &Arc<dyn Source>,
        layer: &Layer,
    ) -> Result<Ready, ImportError> {
        if let Some(blob) = self.store.blob(&layer.diff_id)? {
            match self.there(layer, blob) {
                // What cannot be read may be damaged, then it comes again.
                Err(error) if !self.store.discard_layer(&layer.diff_id)? => return Err(error),
                Err(_) => {}
                ready => return ready,
            }
        }
        let mut waiting = waiting(&*self.watch, Some(layer.position));
        let writer = match self.store.begin_blob(&layer.diff_id, &mut waiting)? {
            Begun::There(blob) => return self.there(layer, blob),
            Begun::New(writer) => writer,
        };
        let open: Open = {
            let (source, layer) = (source.clone(), layer.clone());
            Box::new(move || source.layer(&layer))
        };
        let of = Of {
            name: self.name_of(layer),
            position: layer.position,
            len: layer.len,
        };
        let (name, position) = (of.name.clone(), of.position);
        self.watch.on(Event::Begun(position, layer.len));
        let pipe = Pipe::open(open, of, self.watch.clone(), self.stop.clone())
            .map_err(|e| wrong(&name, format!("a thread cannot be started: {e}")))?;
        let mut taken = self.take(pipe, writer, &name)?;
        if let Some(want) = layer.digest.filter(|want| *want != taken.stored) {
            let has = taken.stored;
            return Err(wrong(
                &name,
                format!("its digest is {has}, it should be {want}: the bytes are damaged"),
            ));
        }
        if let Some(want) = layer.len.filter(|want| *want != taken.cost.read) {
            let has = taken.cost.read;
            return Err(wrong(
                &name,
                format!("has {has} bytes, it should have {want}"),
            ));
        }
        if taken.diff_id != layer.diff_id {
            let (has, want) = (taken.diff_id, layer.diff_id);
            return Err(wrong(
                &name,
                format!("its uncompressed bytes have the diff ID {has}, the image says {want}"),
            ));
        }
        let start = Instant::now();
        let blob = taken.writer.publish(&layer.diff_id)?;
        taken.cost.syncing = start.elapsed();
        taken.cost.layers = 1;
        self.watch.on(Event::Done(position));
        Ok(Ready {
            blob,
            scan: taken.scan,
            cost: taken.cost,
        })
    }

    /// A layer that the store has.
    fn there(&self, layer: &Layer, blob: Blob) -> Result<Ready, ImportError> {
        let start = Instant::now();
        let scan = blob.scan()?;
        self.watch.on(Event::There(layer.position));
        Ok(Ready {
            blob,
            scan,
            cost: Cost {
                shared: 1,
                indexing: start.elapsed(),
                ..Cost::default()
            },
        })
    }

    /// Takes all bytes of `pipe` to `writer`, hashes them and reads the headers among them.
    pub(super) fn take(
        &self,
        pipe: Pipe,
        writer: BlobWriter,
        name: &str,
    ) -> Result<Taken, ImportError> {
        let start = Instant::now();
        let mut tee = Tee {
            pipe: &pipe,
            budget: &self.budget,
            name,
            writer,
            hasher: Hasher::new(),
            piece: Vec::new(),
            at: 0,
            waiting: Duration::ZERO,
            hashing: Duration::ZERO,
            cost: Cost::default(),
            error: None,
            ended: false,
        };
        let scanned = index::scan_layer(&mut tee, Path::new(name));
        let Tee {
            writer,
            hasher,
            waiting,
            hashing,
            mut cost,
            error,
            ended,
            ..
        } = tee;
        if let Some(error) = error {
            return Err(error);
        }
        let (scan, read) = match scanned {
            Ok(scan) => (scan, pipe.finish()?),
            // An end that came too early is the fault of whoever reads, not of the tar. Where the
            // tar is at fault, nobody waits for the rest.
            Err(error) => {
                if ended {
                    pipe.finish()?;
                }
                return Err(error.into());
            }
        };
        let passed = start.elapsed().saturating_sub(waiting);
        cost.indexing = passed.saturating_sub(hashing + cost.writing);
        cost.written = writer.len();
        cost.read = read.len;
        cost.reading = read.reading;
        cost.decompressing = read.decompressing;
        Ok(Taken {
            writer,
            scan,
            diff_id: hasher.finish(),
            stored: read.digest,
            cost,
        })
    }
}

/// Tells that another process makes the same thing: a layer, or the whole image.
pub(super) fn waiting(watch: &dyn Watch, layer: Option<usize>) -> impl FnMut(Progress) {
    move |progress| {
        if progress == Progress::Waiting {
            watch.on(Event::Waiting(layer));
        }
    }
}

pub(super) fn wrong(layer: &str, why: String) -> ImportError {
    ImportError::Layer {
        layer: layer.to_owned(),
        why,
    }
}

/// A layer of which all bytes have come.
pub(super) struct Taken {
    pub(super) writer: BlobWriter,
    pub(super) scan: index::Layer,
    pub(super) diff_id: Digest,
    /// Digest of the bytes as they were stored.
    pub(super) stored: Digest,
    pub(super) cost: Cost,
}

/// Gives the bytes of a pipe to whoever reads headers, and to the store.
struct Tee<'a> {
    pipe: &'a Pipe,
    budget: &'a Budget,
    name: &'a str,
    writer: BlobWriter,
    hasher: Hasher,
    piece: Vec<u8>,
    at: usize,
    waiting: Duration,
    /// By the clock, and not the processor's time.
    hashing: Duration,
    cost: Cost,
    error: Option<ImportError>,
    /// The pipe has no more pieces.
    ended: bool,
}

impl Tee<'_> {
    /// Takes the next piece; false at the end.
    fn next(&mut self) -> Result<bool, ImportError> {
        let start = Instant::now();
        self.pipe.give_back(std::mem::take(&mut self.piece));
        self.at = 0;
        let Some(piece) = self.pipe.next() else {
            self.ended = true;
            return Ok(false);
        };
        let came = Instant::now();
        self.waiting += came - start;
        self.budget.spend(piece.len() as u64, self.name)?;
        let cpu = thread_cpu();
        self.hasher.update(&piece);
        self.cost.hashing += thread_cpu().saturating_sub(cpu);
        let hashed = Instant::now();
        self.hashing += hashed - came;
        self.writer
            .write_all(&piece)
            .map_err(|e| self.writer.failed(e))?;
        self.cost.writing += hashed.elapsed();
        self.piece = piece;
        Ok(true)
    }
}

impl Read for Tee<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.next() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    let what = error.to_string();
                    self.error = Some(error);
                    return Err(io::Error::other(what));
                }
            }
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        self.at += n;
        Ok(n)
    }
}
