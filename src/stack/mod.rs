//! Images that are made of images: one more layer on top, and layers that become one.
//!
//! A checkpoint is a layer of what an actor has written, on the image that it ran on. The result is
//! an image of the store as any other: what is restored is an actor on that image, and nothing is
//! unpacked. Its configuration is that of the image below with one more layer and one more entry
//! of its history, which says that it is a checkpoint (`config`).
//!
//! Invariants: a layer is written once, hashed on its way, and published before the image that
//! names it; of the layers below nothing is read but the index. Nobody sees an image before all of
//! it is there, and whoever is killed leaves a whole layer at most, which `gc` removes.
//!
//! Never here: how a layer's bytes come to be, but for those of layers that become one.

mod changes;
mod config;
mod error;
mod layer;
mod squash;
mod write;

#[cfg(test)]
mod tests;

pub use config::{CHECKPOINT, Note};
pub use error::StackError;
pub use layer::NewLayer;
pub use squash::squash;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::digest::Digest;
use crate::import::{self, Options, Stream, Watch};
use crate::index::{Flat, Flattening};
use crate::store::{Blob, Image, NewImage, OnProgress, Source, Store, StoreError, config_of};

/// An image with a new layer on top.
#[derive(Debug)]
pub struct Stacked<T> {
    /// The image. Nobody removes it as long as this lives.
    pub image: Image,
    /// Its own digest.
    pub digest: Digest,
    /// The new layer's diff ID.
    pub layer: Digest,
    /// The layer's length in bytes.
    pub len: u64,
    /// Whether the image was made now, and not found.
    pub fresh: bool,
    /// What the writer of the layer gave.
    pub value: T,
}

impl<T> Stacked<T> {
    fn with<U>(self, value: U) -> Stacked<U> {
        let Self {
            image,
            digest,
            layer,
            len,
            fresh,
            ..
        } = self;
        Stacked {
            image,
            digest,
            layer,
            len,
            fresh,
            value,
        }
    }
}

/// Makes the image that is `base`, by its own digest or an alias, with one more layer, whose bytes
/// (a whole tar, an OCI layer) `write` writes to it.
///
/// The same base, bytes and note give the same image. A layer without entries is one as any other.
///
/// # Errors
/// [`StackError`] in one line; that of `write` as [`StackError::Writer`]. Nothing can be seen of
/// the image then.
pub fn add_layer<T, E>(
    store: &Store,
    base: &Digest,
    note: &Note,
    write: impl FnOnce(&mut NewLayer) -> Result<T, E>,
    progress: OnProgress<'_>,
) -> Result<Stacked<T>, StackError>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    store.prepare()?;
    // Held until the end: neither it nor its layers go meanwhile.
    let base = store.image(base)?;
    let below = store.layers_of(&base)?;
    let own = base
        .record()
        .digest
        .ok_or_else(|| StackError::NotStored(base.dir().to_owned()))?;
    let mut layer = NewLayer::new(store.begin_unknown_blob()?);
    let value = match (write(&mut layer), layer.failed()) {
        (_, Some(error)) => return Err(error.into()),
        (Err(error), None) => return Err(StackError::Writer(error.into())),
        (Ok(value), None) => value,
    };
    let made = Made {
        own,
        by: note.created_by(),
        below: &below,
    };
    let of: Vec<Digest> = below.iter().map(|blob| blob.diff_id()).collect();
    let old = base.config_json()?;
    let config = |layer: &Digest| config::with_layer(old.as_deref(), &of, layer, note);
    made.finish(store, layer, || base.flattening(&below), config, progress)
        .map(|stacked| stacked.with(value))
}

/// An image in the making.
struct Made<'a> {
    /// The image that it is made of.
    own: Digest,
    /// How.
    by: String,
    /// The layers below the new one.
    below: &'a [Arc<Blob>],
}

impl Made<'_> {
    /// Publishes the new layer, and then the image. `flattening` is what lies below the layer.
    fn finish(
        self,
        store: &Store,
        layer: NewLayer,
        flattening: impl FnOnce() -> Result<Flattening, StoreError>,
        config: impl FnOnce(&Digest) -> Result<Vec<u8>, String>,
        progress: OnProgress<'_>,
    ) -> Result<Stacked<()>, StackError> {
        let Self { own, by, below } = self;
        let (writer, diff_id, len) = layer.finish();
        let scan = writer.scan(Path::new(&by))?;
        let mut flattening = flattening()?;
        flattening.add(scan, Path::new(&by))?;
        let flat = flattening.finish()?;
        let config = config(&diff_id).map_err(|why| StackError::Config { image: own, why })?;
        let blob = writer.publish(&diff_id)?;
        let layers: Vec<&Blob> = below.iter().map(|blob| &**blob).chain([&blob]).collect();
        let source = Source::Made { of: own, by };
        let (image, fresh) = publish(store, &config, source, &layers, &flat, progress)?;
        Ok(Stacked {
            image,
            digest: Digest::of(&config),
            layer: diff_id,
            len,
            fresh,
            value: (),
        })
    }
}

/// Publishes the image with the configuration `config`, unless it is there; whether it was not.
fn publish(
    store: &Store,
    config: &[u8],
    source: Source,
    layers: &[&Blob],
    flat: &Flat,
    progress: OnProgress<'_>,
) -> Result<(Image, bool), StackError> {
    let digest = Digest::of(config);
    let lock = store.lock_image(&digest, progress)?;
    match store.image(&digest) {
        Ok(image) => return Ok((image, false)),
        // What is missing or damaged is made anew.
        Err(
            StoreError::NoImage { .. }
            | StoreError::Layer { .. }
            | StoreError::Index { .. }
            | StoreError::Record { .. },
        ) => {}
        Err(error) => return Err(error.into()),
    }
    let new = NewImage {
        digest,
        aliases: Vec::new(),
        source,
        config_json: Some(config),
        config: config_of(config),
        layers: layers.to_vec(),
        flat,
    };
    Ok((store.publish_image(&new, &lock)?, true))
}

/// How many of the layers of `image` are checkpoints, those on top of all others. The history of its
/// configuration tells, also where it was imported.
///
/// # Errors
/// [`StackError::Config`], [`StackError::Store`].
pub fn checkpoints(image: &Image) -> Result<usize, StackError> {
    let Some(config) = image.config_json()? else {
        return Ok(0);
    };
    let failed = |why| StackError::Config {
        image: Digest::of(&config),
        why,
    };
    config::checkpoints(&config, image.record().layers.len()).map_err(failed)
}

/// A configuration for a bare tar, which has none: what the OCI image specification asks for, of an
/// image of `layers` for this machine.
#[must_use]
pub fn minimal_config(layers: &[Digest]) -> Vec<u8> {
    config::minimal(layers)
}

/// The own digest of `image` in the store, for [`add_layer`]: a local tar, which lies elsewhere and
/// may change, is taken into the store first, as `tarnfs import` does.
///
/// # Errors
/// [`StackError::Import`]; [`StackError::Changed`].
pub fn ensure_in_store(
    store: &Store,
    image: &Image,
    watch: Arc<dyn Watch + Send + Sync>,
) -> Result<Digest, StackError> {
    if let Some(own) = image.record().digest {
        return Ok(own);
    }
    let path = image
        .tar_path()
        .ok_or_else(|| StackError::NotStored(image.dir().to_owned()))?;
    let changed = || StackError::Changed(path.to_owned());
    let io = |source| StoreError::Tar {
        path: path.to_owned(),
        source,
    };
    let tar = File::open(path).map_err(io)?;
    let len = Some(tar.metadata().map_err(io)?.len());
    let stream = Stream {
        input: Box::new(tar),
        len,
    };
    let options = Options::default();
    let taken = import::tar(store, stream, &path.to_string_lossy(), &options, watch)?;
    // What was taken is what the image was made of.
    image.lower().map_err(|_| changed())?;
    taken.image.record().digest.ok_or_else(changed)
}
