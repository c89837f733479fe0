//! The index of layers, and the side blob of what few sparse files of them need one.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::Flat;
use crate::erofs::writer::{self, BlobSpec, WriteError};
use crate::index::{Built, IndexError, copy_range};

/// A layer's uncompressed tar.
#[derive(Debug, Clone)]
pub struct LayerBlob<'a> {
    /// The tar; of it are read the bytes that go to the side blob.
    pub file: &'a File,
    /// Its name in errors.
    pub path: &'a Path,
    /// Its tag in the device table, at most 63 bytes.
    pub tag: String,
}

/// Writes the index of `flat` to `out`. `layers` are all that were added, in their order. `side`
/// is called if a side blob is needed, and gives an empty file, opened for writing, for it. The
/// index' blobs are those of `flat.used`, in that order, and the side blob.
///
/// # Errors
/// [`IndexError::Write`], [`IndexError::Side`], which name a layer. Half-written files are the
/// caller's to remove.
pub fn write_layers(
    flat: &Flat,
    layers: &[LayerBlob<'_>],
    out: &mut dyn Write,
    side: impl FnOnce() -> io::Result<File>,
) -> Result<Built, IndexError> {
    let top = flat.layers.last().map_or(Path::new(""), |top| &top.path);
    let write = |source| IndexError::Write {
        tar: top.to_owned(),
        source,
    };
    if layers.len() != flat.layers.len() {
        return Err(write(WriteError::Tree(
            "it has other layers than are given",
        )));
    }
    let mut blobs = Vec::with_capacity(flat.used.len() + 1);
    for &used in &flat.used {
        if let (Some(layer), Some(added)) = (layers.get(used), flat.layers.get(used)) {
            blobs.push(BlobSpec {
                tag: layer.tag.clone(),
                len: added.tar_len,
            });
        }
    }
    let side_len = (flat.side_len > 0).then_some(flat.side_len);
    if let Some(len) = side_len {
        let fail = |tar: &Path, source| IndexError::Side {
            tar: tar.to_owned(),
            source,
        };
        let file = side().map_err(|e| fail(top, e))?;
        file.set_len(len).map_err(|e| fail(top, e))?;
        for copy in &flat.side {
            if let Some(layer) = layers.get(copy.layer) {
                let copied = copy_range(layer.file, &file, copy.copy);
                copied.map_err(|e| fail(layer.path, e))?;
            }
        }
        let tag = String::new();
        blobs.push(BlobSpec { tag, len });
    }
    let summary = writer::write(&flat.tree, &blobs, out).map_err(write)?;
    let sum = |of: fn(&super::Added) -> u64| {
        let all = flat.layers.iter().map(of);
        all.fold(0_u64, u64::saturating_add)
    };
    Ok(Built {
        index_len: summary.len,
        tar_len: sum(|layer| layer.tar_len),
        side_len,
        entries: sum(|layer| layer.entries),
        inodes: flat.tree.inodes.len(),
    })
}
