//! An image as what a further layer is put on.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::sync::Arc;

use super::blob::Blob;
use super::layout::CONFIG;
use super::record::{BlobPlace, ImageJson};
use super::{Image, Store, StoreError};
use crate::digest::Digest;
use crate::erofs::reader::{Bytes, ReadError, Reader};
use crate::index::{Flattening, IndexedLayer};
use crate::sys::map::Map;

impl Store {
    /// The layers of `image`, the lowest first, open; one that comes twice is opened once.
    ///
    /// # Errors
    /// [`StoreError::Layer`], [`StoreError::Io`].
    pub fn layers_of(&self, image: &Image) -> Result<Vec<Arc<Blob>>, StoreError> {
        let record = image.record();
        let own = record.digest.unwrap_or_else(|| Digest::of(b""));
        let mut all: Vec<Arc<Blob>> = Vec::with_capacity(record.layers.len());
        let mut known = HashMap::new();
        for layer in &record.layers {
            let blob = match known.get(&layer.diff_id) {
                Some(blob) => Arc::clone(blob),
                None => {
                    let opened = self.blobs_of(&own, [layer.diff_id])?;
                    let opened = opened.into_iter().next().map(Arc::new);
                    let Some(blob) = opened.filter(|blob| blob.len() == layer.len) else {
                        return Err(StoreError::Layer {
                            image: own,
                            layer: layer.diff_id,
                            what: "has another length".to_owned(),
                        });
                    };
                    known.insert(layer.diff_id, Arc::clone(&blob));
                    blob
                }
            };
            all.push(blob);
        }
        Ok(all)
    }
}

impl Image {
    /// The image's configuration, as it came; `None` of a bare tar.
    ///
    /// # Errors
    /// [`StoreError::Record`]: it is not the image's.
    pub fn config_json(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.dir().join(CONFIG);
        let own = self.record().digest;
        match (fs::read(&path), own) {
            (Ok(bytes), own) if own == Some(Digest::of(&bytes)) => Ok(Some(bytes)),
            (Err(e), own) if e.kind() == io::ErrorKind::NotFound => {
                match (own, self.record().layers.as_slice()) {
                    (Some(image), [layer]) if layer.diff_id == image => Ok(None),
                    (None, []) => Ok(None),
                    (Some(image), _) => Err(StoreError::Record { image }),
                    (None, _) => Err(StoreError::io(&path)(e)),
                }
            }
            (Err(e), _) => Err(StoreError::io(&path)(e)),
            (Ok(_), Some(image)) => Err(StoreError::Record { image }),
            (Ok(_), None) => Err(StoreError::io(&path)(io::ErrorKind::InvalidData.into())),
        }
    }

    /// The image's layers, which `layers` are, on top of each other, to be gone on with. They come
    /// out of its index, after a check of its digest; where that does not hold, or does not tell
    /// all (a side blob), the headers of all layers are read.
    ///
    /// # Errors
    /// [`StoreError::Build`].
    pub fn flattening(&self, layers: &[Arc<Blob>]) -> Result<Flattening, StoreError> {
        match self.indexed(layers) {
            Ok(Some(flattening)) => return Ok(flattening),
            Ok(None) => {}
            Err(why) => tracing::warn!(
                "{}: {why}; the image's layers are read instead",
                self.index_path().display()
            ),
        }
        let failed = |e| StoreError::Build(Box::new(e));
        let mut flattening = Flattening::new();
        for blob in layers {
            flattening
                .add(blob.scan().map_err(failed)?, blob.path())
                .map_err(failed)?;
        }
        Ok(flattening)
    }

    fn indexed(&self, layers: &[Arc<Blob>]) -> Result<Option<Flattening>, StoreError> {
        let Some(devices) = devices(self.record()) else {
            return Ok(None);
        };
        // Its bytes go into another index, so that damage would spread.
        self.check_index(&mut |_| ())?;
        let path = self.index_path();
        let io = StoreError::io(&path);
        let map = Map::of(&File::open(&path).map_err(&io)?).map_err(&io)?;
        let added = |blob: &Arc<Blob>| IndexedLayer {
            path: blob.path().to_owned(),
            tar_len: blob.len(),
        };
        Reader::new(Bytes::Mapped(map))
            .and_then(|reader| {
                let layers = layers.iter().map(added).collect();
                Flattening::of_index(&reader, layers, &devices)
            })
            .map(Some)
            .map_err(|error: ReadError| io(io::Error::other(error)))
    }
}

/// Which of the image's layers the devices of its index are; `None` where that does not tell all.
fn devices(record: &ImageJson) -> Option<Vec<usize>> {
    if record.layers.is_empty() {
        return None;
    }
    let mut devices = Vec::with_capacity(record.blobs.len());
    let mut from = 0;
    for blob in &record.blobs {
        let BlobPlace::Layer(diff_id) = &blob.place else {
            return None;
        };
        // A layer that comes twice: the first of them that is behind the device before, which
        // gives the same order of devices.
        let behind = record.layers.get(from..)?;
        let at = from + behind.iter().position(|layer| layer.diff_id == *diff_id)?;
        devices.push(at);
        from = at + 1;
    }
    Some(devices)
}
