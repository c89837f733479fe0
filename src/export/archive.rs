//! A layout in a tar: the documents first, so that who reads a stream knows what comes.

use std::io::Write;

use super::document::{self, Documents, MARK};
use super::{ExportError, Layer, Meter, copy};
use crate::pack::TOO_LONG;
use crate::pack::header::{BLOCK, Entry, EntryType, Place};
use crate::pack::sink::{Out, Sink};

/// Writes the tar. The same documents and layers give the same bytes.
pub(super) fn write(
    documents: &Documents,
    layers: &[Layer],
    out: &mut dyn Write,
    meter: &mut Meter<'_, '_>,
) -> Result<(), ExportError> {
    let mut index = document::empty_index();
    let fail = |why: &str| ExportError::Write(std::io::Error::other(why.to_owned()));
    document::enter(&mut index, &documents.entry).map_err(fail)?;
    let index = serde_json::Value::from(index).to_string();
    let mut out = Sink::new(Out::Stream(out));
    let config = document::blob(&documents.config.digest);
    let manifest = document::blob(&documents.manifest.digest);
    header(&mut out, "blobs/", EntryType::Directory, 0)?;
    header(&mut out, "blobs/sha256/", EntryType::Directory, 0)?;
    for (name, bytes) in [
        ("oci-layout", MARK),
        ("index.json", index.as_bytes()),
        (manifest.as_str(), &documents.manifest.bytes),
        (config.as_str(), &documents.config.bytes),
    ] {
        header(&mut out, name, EntryType::Regular, bytes.len() as u64)?;
        out.put(bytes)?;
        out.fill_block()?;
    }
    for layer in layers {
        let name = document::blob(&layer.digest);
        header(&mut out, &name, EntryType::Regular, layer.len)?;
        copy(layer, meter, |piece| Ok(out.put(piece)?))?;
        out.fill_block()?;
    }
    out.put(&[0; 1024])?;
    out.finish()?;
    Ok(())
}

fn header(out: &mut Sink<'_>, name: &str, kind: EntryType, size: u64) -> Result<(), ExportError> {
    let perm = match kind {
        EntryType::Directory => 0o755,
        _ => 0o644,
    };
    let entry = Entry::plain(name.as_bytes(), kind, perm, size);
    let place = Place {
        at: out.len(),
        align: BLOCK,
        lead: 0,
    };
    let blocks = entry.blocks(place);
    let blocks = blocks.map_err(|_| ExportError::Write(std::io::Error::other(TOO_LONG)))?;
    out.put(&blocks)?;
    Ok(())
}
