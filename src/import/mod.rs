//! Takes images into the store, in one pass: fetched, decompressed, hashed, written and indexed as
//! the bytes come.
//!
//! ```text
//! source ─► fetch, hash, decompress ─► hash, write the layer, read its headers ─► merge ─► publish
//!           one thread a layer         one thread a layer                         this one
//! ```
//! Layers come several at a time, each once; what the store has is not fetched. Nothing of an image
//! can be seen before all of it is there and every digest was right. Memory is bounded by a few
//! pieces a layer and the tree of the image.
//!
//! Never here: what a source is ([`crate::source`]), how things lie in the store, output.

mod budget;
mod error;
mod image;
mod layer;
mod pipe;
mod tar;

#[cfg(test)]
mod tests;

pub use error::ImportError;
pub use image::image;
pub use tar::{Stream, tar};

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::source::Platform;
use crate::store::Image;

/// How to import.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which of an index's images.
    pub platform: Platform,
    /// How many layers at a time.
    pub jobs: NonZeroUsize,
    /// The most bytes that may be written to the store.
    pub max_bytes: Option<u64>,
    /// Make the image anew, from the layers that are there and those that are not.
    pub anew: bool,
}

impl Default for Options {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
        Self {
            platform: Platform::here(),
            // Each has two threads, and a registry is asked for no more than a few at a time.
            jobs: NonZeroUsize::new(cpus.clamp(1, 4)).unwrap_or(NonZeroUsize::MIN),
            max_bytes: None,
            anew: false,
        }
    }
}

/// Who is told what happens, by several threads. Must be quick.
pub trait Watch: Sync {
    /// Something has happened.
    fn on(&self, event: Event);
}

/// Nobody watches.
impl Watch for () {
    fn on(&self, _event: Event) {}
}

/// What happens in an import. Layers are told by their position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The image has so many layers.
    Layers(usize),
    /// Another process makes the same image, or layer; this one waits.
    Waiting(Option<usize>),
    /// The store has the layer.
    There(usize),
    /// The layer begins to come; its stored length, if that is known.
    Begun(usize, Option<u64>),
    /// So many more of its stored bytes have come.
    Read(usize, u64),
    /// The layer is in the store.
    Done(usize),
    /// All layers are there, and the index is written.
    Indexing,
}

/// An image that is in the store now.
#[derive(Debug)]
pub struct Imported {
    /// The image. Nobody removes it as long as this lives.
    pub image: Image,
    /// Whether it was made now, and not found.
    pub fresh: bool,
    /// What it took.
    pub cost: Cost,
}

/// What an import took. Times are sums over threads; those of decompressing and hashing are
/// processor time, which a busy machine does not stretch, the others are by the clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Layers that came.
    pub layers: usize,
    /// Layers that were there.
    pub shared: usize,
    /// Bytes read from the source.
    pub read: u64,
    /// Bytes written to the store.
    pub written: u64,
    /// Waiting for the source, and hashing what it gave.
    pub reading: Duration,
    /// Decompressing.
    pub decompressing: Duration,
    /// Hashing the uncompressed layers.
    pub hashing: Duration,
    /// Writing them.
    pub writing: Duration,
    /// Having them on disk.
    pub syncing: Duration,
    /// Reading headers of layers, and making the index.
    pub indexing: Duration,
}

impl Cost {
    fn add(&mut self, other: &Self) {
        self.layers += other.layers;
        self.shared += other.shared;
        self.read += other.read;
        self.written += other.written;
        self.reading += other.reading;
        self.decompressing += other.decompressing;
        self.hashing += other.hashing;
        self.writing += other.writing;
        self.syncing += other.syncing;
        self.indexing += other.indexing;
    }
}
