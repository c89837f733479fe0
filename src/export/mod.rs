//! Images of the store for others: an OCI image layout (the OCI image specification's
//! image-layout.md), in a directory or in a tar.
//!
//! Layers go out as they lie in the store, uncompressed tars by their diff IDs, and the
//! configuration byte by byte: so an image has the same own digest wherever it is imported again.
//!
//! Invariants: each blob is hashed as it is copied, but where the filesystem shares its blocks; no
//! link of a file of the store leaves it. An archive is there whole or not at all, and the same
//! image gives the same bytes. A layout gets its blobs first and then, at once, its index.
//!
//! Never here: compression, registries.

mod archive;
mod document;
mod error;
mod layout;

pub use document::Tag;
pub use error::ExportError;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::{Digest, Hasher};
use crate::pack::Target;
use crate::pack::output::{NewFile, OutputError};
use crate::stack;
use crate::store::{Blob, Image, OnProgress, Progress, Store};
use document::Documents;

/// Where an image goes.
pub enum Dest<'a> {
    /// An OCI image layout in this directory, which is made if it is not there; else the image is
    /// added to what it holds.
    Layout(&'a Path),
    /// The same in a tar, in place of what is there.
    Archive(&'a Path),
    /// The tar as a stream.
    Stream(&'a mut dyn Write),
}

/// What is to be exported how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The name that the image has in the layout.
    pub tag: Option<&'a Tag>,
    /// Leave out the layers that this image has: whoever gets the rest has it already.
    pub since: Option<&'a Image>,
}

/// What was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Digest of the image's manifest.
    pub manifest: Digest,
    /// Digest of its configuration: its own digest, but for a bare tar, which gets one here.
    pub config: Digest,
    /// Layers that were written.
    pub written: usize,
    /// Layers that the layout had.
    pub there: usize,
    /// Layers that were left out.
    pub left_out: usize,
    /// Bytes that were written of layers.
    pub bytes: u64,
}

/// A layer to be exported.
struct Layer {
    digest: Digest,
    len: u64,
    path: PathBuf,
    bytes: Bytes,
}

/// Where a layer's bytes are.
enum Bytes {
    /// In the store; nobody removes it meanwhile.
    Store(Arc<Blob>),
    /// In a local tar.
    Tar(File),
}

impl Layer {
    fn file(&self) -> &File {
        match &self.bytes {
            Bytes::Store(blob) => blob.file(),
            Bytes::Tar(file) => file,
        }
    }
}

/// Told how many bytes were copied.
struct Meter<'a, 'p> {
    done: u64,
    total: u64,
    progress: &'a mut OnProgress<'p>,
}

impl Meter<'_, '_> {
    fn add(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
        let (done, total) = (self.done, self.total);
        (self.progress)(Progress::Hashing { done, total });
    }
}

/// Exports `image`.
///
/// # Errors
/// [`ExportError`] in one line. An archive is what it was before then, and a layout has at most
/// some blobs more.
pub fn export(
    store: &Store,
    image: &Image,
    options: &Options<'_>,
    dest: Dest<'_>,
    mut progress: OnProgress<'_>,
) -> Result<Exported, ExportError> {
    let layers = layers(store, image, &mut progress)?;
    let given = image.config_json()?;
    let config = match &given {
        Some(config) => config.clone(),
        None => stack::minimal_config(&layers.iter().map(|layer| layer.digest).collect::<Vec<_>>()),
    };
    let since = match options.since {
        Some(since) => Some(since.digest(&mut progress)?),
        None => None,
    };
    let documents = Documents::new(&layers, config, options.tag, since);
    let had = match (options.since, since) {
        (Some(image), Some(own)) => own_layers(image, own),
        _ => BTreeSet::new(),
    };
    let mut seen = BTreeSet::new();
    let all = layers.len();
    let mut layers = layers;
    layers.retain(|layer| !had.contains(&layer.digest));
    let left_out = all - layers.len();
    layers.retain(|layer| seen.insert(layer.digest));
    let mut meter = Meter {
        done: 0,
        total: layers.iter().map(|layer| layer.len).sum(),
        progress: &mut progress,
    };
    let mut exported = Exported {
        manifest: documents.manifest_digest(),
        config: documents.config_digest(),
        written: layers.len(),
        there: 0,
        left_out,
        bytes: 0,
    };
    match dest {
        Dest::Stream(out) => archive::write(&documents, &layers, out, &mut meter)?,
        Dest::Archive(path) => match Target::of(path)? {
            Target::Stream(mut out) => archive::write(&documents, &layers, &mut out, &mut meter)
                .map_err(|error| error.of(path))?,
            Target::File(path) => {
                let fail = OutputError::of(&path);
                let mut file = NewFile::beside(&path).map_err(&fail)?;
                archive::write(&documents, &layers, file.file(), &mut meter)
                    .map_err(|error| error.of(&path))?;
                unchanged(image, &layers)?;
                file.publish().map_err(&fail)?;
            }
        },
        Dest::Layout(dir) => {
            exported.there = layout::write(&documents, &layers, dir, &mut meter, || {
                unchanged(image, &layers)
            })?;
            exported.written -= exported.there;
        }
    }
    unchanged(image, &layers)?;
    exported.bytes = meter.done;
    if given.is_none()
        && let Some(own) = image.record().digest
    {
        remember(store, &own, &exported);
    }
    Ok(exported)
}

/// The layers of the image `own`; of a local tar, that tar.
fn own_layers(image: &Image, own: Digest) -> BTreeSet<Digest> {
    if image.tar_path().is_some() {
        return BTreeSet::from([own]);
    }
    image
        .record()
        .layers
        .iter()
        .map(|layer| layer.diff_id)
        .collect()
}

/// A bare tar is known here by what it is called where it was exported to. Only a help.
fn remember(store: &Store, own: &Digest, exported: &Exported) {
    let aliases = [exported.config, exported.manifest];
    let known = store
        .lock_image(own, &mut |_| ())
        .and_then(|lock| store.add_aliases(own, &aliases, &lock));
    if let Err(error) = known {
        tracing::debug!("not remembered as {}: {error}", exported.config);
    }
}

/// The layers of `image`, the lowest first.
fn layers(
    store: &Store,
    image: &Image,
    progress: &mut OnProgress<'_>,
) -> Result<Vec<Layer>, ExportError> {
    if let Some(path) = image.tar_path() {
        let digest = image.digest(progress)?;
        let io = |source| ExportError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        return Ok(vec![Layer {
            digest,
            len,
            path: path.to_owned(),
            bytes: Bytes::Tar(file),
        }]);
    }
    let blobs = store.layers_of(image)?;
    let layer = |blob: Arc<Blob>| Layer {
        digest: blob.diff_id(),
        len: blob.len(),
        path: blob.path().to_owned(),
        bytes: Bytes::Store(blob),
    };
    Ok(blobs.into_iter().map(layer).collect())
}

/// A local tar may be written to by others; its digest was told for the state that was indexed.
fn unchanged(image: &Image, layers: &[Layer]) -> Result<(), ExportError> {
    match layers.first() {
        Some(layer) if image.tar_path().is_some() => match image.lower() {
            Ok(_) => Ok(()),
            Err(_) => Err(ExportError::Changed(layer.path.clone())),
        },
        _ => Ok(()),
    }
}

/// Gives all bytes of `layer` to `put`, and checks that they are what they are called.
fn copy(
    layer: &Layer,
    meter: &mut Meter<'_, '_>,
    mut put: impl FnMut(&[u8]) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let read = |source| ExportError::Read {
        path: layer.path.clone(),
        source,
    };
    let mut hasher = Hasher::new();
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while at < layer.len {
        let want = usize::try_from(layer.len - at).map_or(piece.len(), |n| n.min(piece.len()));
        let piece = piece.get_mut(..want).unwrap_or_default();
        layer.file().read_exact_at(piece, at).map_err(read)?;
        hasher.update(piece);
        put(piece)?;
        at += want as u64;
        meter.add(want as u64);
    }
    let has = hasher.finish();
    if has != layer.digest {
        let damage = format!(
            "is damaged: its digest is {has}, it should be {}",
            layer.digest
        );
        return Err(read(io::Error::other(damage)));
    }
    Ok(())
}
