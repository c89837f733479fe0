//! Several layers that become one.

use std::sync::Arc;

use super::changes::Trees;
use super::error::StackError;
use super::layer::NewLayer;
use super::write::{self, WriteError};
use super::{Made, Stacked, config};
use crate::digest::Digest;
use crate::index::Flattening;
use crate::store::{Blob, Image, OnProgress, Store, StoreError};

/// Makes the image that is `image` with one layer in place of its checkpoints, or of all that it has
/// on top of the image `base`: what was overwritten or removed later is in none. Gives of how many
/// layers the new one was made; where it is one only, the image is the same. The same image gives
/// the same one.
///
/// The headers of all layers are read, and of the bytes those that are left.
///
/// # Errors
/// [`StackError::NothingOnTop`], [`StackError::OtherBase`]; in one line whatever else. Nothing can
/// be seen of the image then.
pub fn squash(
    store: &Store,
    image: &Digest,
    base: Option<&Digest>,
    progress: OnProgress<'_>,
) -> Result<Stacked<usize>, StackError> {
    store.prepare()?;
    let image = store.image(image)?;
    let layers = store.layers_of(&image)?;
    let own = image
        .record()
        .digest
        .ok_or_else(|| StackError::NotStored(image.dir().to_owned()))?;
    let base = base.map(|base| store.image(base)).transpose()?;
    let keep = kept(&image, base.as_ref(), layers.len())?;
    let (below, above) = layers.split_at_checked(keep).unwrap_or((&layers, &[]));
    match above {
        [] => return Err(StackError::NothingOnTop { image: own }),
        [only] => {
            return Ok(Stacked {
                layer: only.diff_id(),
                len: only.len(),
                image,
                digest: own,
                fresh: false,
                value: 1,
            });
        }
        _ => {}
    }
    let flattening = match &base {
        Some(base) => base.flattening(below)?,
        None => add(Flattening::new(), below)?,
    };
    let top = add(flattening.clone(), above)?.into_tree();
    let bottom = flattening.clone().into_tree();
    let trees = Trees::new(&bottom, &top);
    let mut layer = NewLayer::new(store.begin_unknown_blob()?);
    match (write::layer(&trees, &layers, &mut layer), layer.failed()) {
        (_, Some(error)) => return Err(error.into()),
        (Err(WriteError::Read { path, source }), None) => {
            return Err(StoreError::Io { path, source }.into());
        }
        (Err(error), None) => return Err(error.into()),
        (Ok(()), None) => {}
    }
    drop(trees);
    drop((top, bottom));
    let made = Made {
        own,
        by: format!("tarnfs squash of {} layers", above.len()),
        below,
    };
    let of: Vec<Digest> = layers.iter().map(|blob| blob.diff_id()).collect();
    let old = image.config_json()?;
    let config = |layer: &Digest| config::squashed(old.as_deref(), &of, keep, layer);
    made.finish(store, layer, || Ok(flattening), config, progress)
        .map(|stacked| stacked.with(above.len()))
}

/// How many of the layers of `image` stay as they are.
fn kept(image: &Image, base: Option<&Image>, layers: usize) -> Result<usize, StackError> {
    let Some(base) = base else {
        return Ok(layers.saturating_sub(super::checkpoints(image)?));
    };
    let (below, all) = (&base.record().layers, &image.record().layers);
    if all.starts_with(below) {
        return Ok(below.len());
    }
    match (image.record().digest, base.record().digest) {
        (Some(image), Some(base)) => Err(StackError::OtherBase { image, base }),
        _ => Err(StackError::NotStored(base.dir().to_owned())),
    }
}

/// Puts `layers` on top.
fn add(mut flattening: Flattening, layers: &[Arc<Blob>]) -> Result<Flattening, StackError> {
    for blob in layers {
        flattening.add(blob.scan()?, blob.path())?;
    }
    Ok(flattening)
}
