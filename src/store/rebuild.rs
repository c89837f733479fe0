//! Making an image anew of what the store has: its layers and its configuration, whatever has become
//! of the index and the record.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::blob::Blob;
use super::layout::{CONFIG, name_of};
use super::record::{ImageJson, Source, config_of, diff_ids};
use super::{Image, NewImage, Store, StoreError};
use crate::digest::Digest;
use crate::index::{self, Flat, Flattening};

/// Where an image came from whose record was lost.
pub const UNKNOWN: &str = "unknown";

impl Store {
    /// Makes the index and the record of the image `own` anew from its layers and its
    /// configuration. Where the record cannot be read, it is not known any more where the image
    /// came from: [`UNKNOWN`].
    ///
    /// # Errors
    /// [`StoreError::Record`] where the configuration is not the image's, either;
    /// [`StoreError::Layer`]; those of writing to the store.
    pub fn rebuild(&self, own: &Digest) -> Result<Image, StoreError> {
        self.prepare()?;
        let lock = self.lock_image(own, &mut |_| ())?;
        let entry = self.layout.image(own);
        let lost = || StoreError::Record { image: *own };
        let config_json = match fs::read(entry.join(CONFIG)) {
            Ok(bytes) if Digest::of(&bytes) == *own => Some(bytes),
            Ok(_) => return Err(lost()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(StoreError::io(&entry.join(CONFIG))(e)),
        };
        let layers = match &config_json {
            Some(json) => diff_ids(json).ok_or_else(lost)?,
            // A bare tar, of which the one layer has the image's digest.
            None => match self.blob(own)? {
                Some(_) => vec![*own],
                None => return Err(lost()),
            },
        };
        let (source, aliases) = match ImageJson::read(&entry) {
            Some(ImageJson {
                source: source @ (Source::Import { .. } | Source::Made { .. }),
                aliases,
                ..
            }) => (source, aliases),
            _ => {
                let mut aliases = self.aliases()?;
                aliases.retain(|(_, of)| of == own);
                let digest = |(link, _): (PathBuf, Digest)| Digest::from_hex(name_of(&link)?).ok();
                let aliases = aliases.into_iter().filter_map(digest).collect();
                (
                    Source::Import {
                        from: UNKNOWN.to_owned(),
                    },
                    aliases,
                )
            }
        };
        let blobs = self.blobs_of(own, layers)?;
        let layers: Vec<&Blob> = blobs.iter().collect();
        let flat = flatten(&layers).map_err(|e| StoreError::Build(Box::new(e)))?;
        let new = NewImage {
            digest: *own,
            aliases,
            source,
            config: config_json.as_deref().and_then(config_of),
            config_json: config_json.as_deref(),
            layers,
            flat: &flat,
        };
        self.publish_image(&new, &lock)
    }

    /// The layers of the image `own`, which must all be there.
    pub(super) fn blobs_of(
        &self,
        own: &Digest,
        layers: impl IntoIterator<Item = Digest>,
    ) -> Result<Vec<Blob>, StoreError> {
        let blob = |layer: Digest| {
            self.blob(&layer)?.ok_or_else(|| StoreError::Layer {
                image: *own,
                layer,
                what: "is missing".to_owned(),
            })
        };
        layers.into_iter().map(blob).collect()
    }
}

/// What layers are on top of each other.
pub(super) fn flatten(layers: &[&Blob]) -> Result<Flat, index::IndexError> {
    let mut flattening = Flattening::new();
    for blob in layers {
        flattening.add(blob.scan()?, blob.path())?;
    }
    flattening.finish()
}
