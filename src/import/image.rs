//! A whole image: its layers side by side, merged in their order, published at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

use super::budget::Budget;
use super::error::ImportError;
use super::layer::{Context, Ready, waiting};
use super::{Cost, Event, Imported, Options, Watch};
use crate::digest::Digest;
use crate::index::{self, Flat, Flattening};
use crate::source::{Layer, Manifest, Platform, Source};
use crate::store::{Blob, ImageLock, NewImage, Source as Origin, Store, StoreError, config_of};

/// Takes the image of `source`, which people call `from`, into the store; where it is there
/// already, only what it is known by is noted.
///
/// # Errors
/// [`ImportError`] in one line. Nothing can be seen of the image then.
pub fn image(
    store: &Store,
    source: &Arc<dyn Source>,
    from: &str,
    options: &Options,
    watch: Arc<dyn Watch + Send + Sync>,
) -> Result<Imported, ImportError> {
    let manifest = source.manifest(&options.platform)?;
    warn_of_platform(&manifest, from, options);
    // An index is of several machines: it means the image for this one, once that is there.
    let here = options.platform == Platform::here();
    let index = match manifest.index {
        Some(index) if here || store.resolve(&index.to_string())?.is_none() => Some(index),
        _ => None,
    };
    let aliases: Vec<Digest> = manifest.manifest.into_iter().chain(index).collect();
    let there = |lock: Option<&ImageLock>| match options.anew {
        true => Ok(None),
        false => found(store, &manifest.config, &aliases, lock),
    };
    if let Some(found) = there(None)? {
        return Ok(found);
    }
    store.prepare()?;
    let lock = lock(store, &manifest.config, &*watch)?;
    if let Some(found) = there(Some(&lock))? {
        return Ok(found);
    }
    discard_damaged(store, &manifest.config)?;
    let mut cost = Cost::default();
    let (flat, blobs) = layers(store, (source, from), &manifest, options, &watch, &mut cost)?;
    let new = NewImage {
        digest: manifest.config,
        aliases,
        source: Origin::Import {
            from: from.to_owned(),
        },
        config_json: Some(&manifest.config_json),
        config: config_of(&manifest.config_json),
        layers: blobs.iter().map(|blob| &**blob).collect(),
        flat: &flat,
    };
    publish(store, &new, &lock, &*watch, cost)
}

/// Publishes the image whose layers are all there; their `cost` and that of its index.
pub(super) fn publish(
    store: &Store,
    new: &NewImage<'_>,
    lock: &ImageLock,
    watch: &dyn Watch,
    mut cost: Cost,
) -> Result<Imported, ImportError> {
    watch.on(Event::Indexing);
    let start = Instant::now();
    let image = store.publish_image(new, lock)?;
    cost.indexing += start.elapsed();
    Ok(Imported {
        image,
        fresh: true,
        cost,
    })
}

/// An image that is alone, without an index, may be for other machines than what was asked for. It
/// can be looked into.
fn warn_of_platform(manifest: &Manifest, from: &str, options: &Options) {
    #[derive(serde::Deserialize)]
    struct Machine {
        architecture: Option<String>,
    }
    let config: Option<Machine> = serde_json::from_slice(&manifest.config_json).ok();
    let has = config.and_then(|config| config.architecture);
    if let Some(has) = has.filter(|has| !has.is_empty() && *has != options.platform.architecture) {
        tracing::warn!(
            "{from}: is for {has}, not for {}",
            options.platform.architecture
        );
    }
}

/// The right to make the image `digest`.
pub(super) fn lock(
    store: &Store,
    digest: &Digest,
    watch: &dyn Watch,
) -> Result<ImageLock, ImportError> {
    Ok(store.lock_image(digest, &mut waiting(watch, None))?)
}

/// The image, where it is in the store and whole; without its lock only where it has all `aliases`.
pub(super) fn found(
    store: &Store,
    own: &Digest,
    aliases: &[Digest],
    lock: Option<&ImageLock>,
) -> Result<Option<Imported>, ImportError> {
    match store.image(own) {
        Ok(image) => {
            match lock {
                Some(lock) => store.add_aliases(own, aliases, lock)?,
                None if image.knows(aliases) => store.point_aliases(own, aliases)?,
                None => return Ok(None),
            }
            Ok(Some(Imported {
                image,
                fresh: false,
                cost: Cost::default(),
            }))
        }
        // What is missing comes again.
        Err(
            StoreError::NoImage { .. }
            | StoreError::Layer { .. }
            | StoreError::Index { .. }
            | StoreError::Record { .. },
        ) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Layers of which it is plain that they are damaged are in the way of whole ones.
fn discard_damaged(store: &Store, own: &Digest) -> Result<(), ImportError> {
    loop {
        match store.image(own) {
            Err(StoreError::Layer { layer, .. }) => {
                if !store.discard_layer(&layer)? {
                    return Ok(());
                }
            }
            _ => return Ok(()),
        }
    }
}

/// Has all layers in the store, several at a time, and merges what their headers say.
fn layers(
    store: &Store,
    (source, from): (&Arc<dyn Source>, &str),
    manifest: &Manifest,
    options: &Options,
    watch: &Arc<dyn Watch + Send + Sync>,
    cost: &mut Cost,
) -> Result<(Flat, Vec<Arc<Blob>>), ImportError> {
    watch.on(Event::Layers(manifest.layers.len()));
    let context = Context {
        store,
        from,
        budget: Budget::new(options.max_bytes),
        watch: watch.clone(),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let mut seen = BTreeSet::new();
    let work: Vec<&Layer> = manifest
        .layers
        .iter()
        .filter(|layer| seen.insert(layer.diff_id))
        .collect();
    let next = AtomicUsize::new(0);
    let (to, ready) = channel::<Result<(usize, Ready), ImportError>>();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.get().min(work.len()) {
            let (to, context, work, next) = (to.clone(), &context, &work, &next);
            scope.spawn(move || {
                while let Some(layer) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if context.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let done = context.bring(source, layer);
                    let failed = done.is_err();
                    let sent = to.send(done.map(|ready| (layer.position, ready)));
                    if failed || sent.is_err() {
                        context.stop.store(true, Ordering::Relaxed);
                        break;
                    }
                }
            });
        }
        drop(to);
        let mut merge = Merge::new(&manifest.layers);
        let mut failed: Option<ImportError> = None;
        for done in ready {
            let done = done.and_then(|(position, ready)| {
                cost.add(&ready.cost);
                merge.take(position, ready)
            });
            if let Err(error) = done {
                context.stop.store(true, Ordering::Relaxed);
                // The first one that is no consequence of another.
                if failed
                    .as_ref()
                    .is_none_or(|first| matches!(first, ImportError::Stopped))
                {
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => merge.finish(),
        }
    })
}

/// Merges layers in their order, whatever the order in which they come.
struct Merge<'a> {
    layers: &'a [Layer],
    flattening: Flattening,
    /// Layers that came before their turn.
    early: BTreeMap<usize, index::Layer>,
    /// Each layer's blob, once it has come.
    blobs: BTreeMap<Digest, Arc<Blob>>,
    merged: Vec<Arc<Blob>>,
}

impl<'a> Merge<'a> {
    fn new(layers: &'a [Layer]) -> Self {
        Self {
            layers,
            flattening: Flattening::new(),
            early: BTreeMap::new(),
            blobs: BTreeMap::new(),
            merged: Vec::new(),
        }
    }

    fn take(&mut self, position: usize, ready: Ready) -> Result<(), ImportError> {
        self.blobs
            .insert(ready.blob.diff_id(), Arc::new(ready.blob));
        self.early.insert(position, ready.scan);
        self.go_on()
    }

    /// Merges all whose turn it is.
    fn go_on(&mut self) -> Result<(), ImportError> {
        while let Some(layer) = self.layers.get(self.merged.len()) {
            let Some(blob) = self.blobs.get(&layer.diff_id).cloned() else {
                break;
            };
            let scan = match self.early.remove(&layer.position) {
                Some(scan) => scan,
                // A layer that comes more than once: its headers are read once more.
                None => blob.scan()?,
            };
            self.flattening.add(scan, blob.path())?;
            self.merged.push(blob);
        }
        Ok(())
    }

    fn finish(self) -> Result<(Flat, Vec<Arc<Blob>>), ImportError> {
        if self.merged.len() < self.layers.len() {
            return Err(ImportError::Stopped);
        }
        Ok((self.flattening.finish()?, self.merged))
    }
}
