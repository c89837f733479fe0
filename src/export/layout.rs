//! A layout in a directory: blobs first, each whole when it has its name, and then its index.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::retry_on_intr;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::document::{self, Document, Documents, MARK};
use super::{ExportError, Layer, Meter, copy};
use crate::pack::output::{NewFile, OutputError, is_temporary};

const MARK_NAME: &str = "oci-layout";
const INDEX_NAME: &str = "index.json";

/// Writes the image to the layout `dir`; `last` must agree before the index leads to it. Gives how
/// many layers were there.
pub(super) fn write(
    documents: &Documents,
    layers: &[Layer],
    dir: &Path,
    meter: &mut Meter<'_, '_>,
    last: impl FnOnce() -> Result<(), ExportError>,
) -> Result<usize, ExportError> {
    // Another export to the same layout waits: each adds to what the index has.
    let _locked = open(dir)?;
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(OutputError::of(&blobs))?;
    let mut there = 0;
    for layer in layers {
        let path = dir.join(document::blob(&layer.digest));
        if has(&path, layer.len)? {
            meter.total = meter.total.saturating_sub(layer.len);
            there += 1;
        } else {
            copy_layer(layer, &path, meter)?;
        }
    }
    for Document { bytes, digest } in [&documents.config, &documents.manifest] {
        let path = dir.join(document::blob(digest));
        if !has(&path, bytes.len() as u64)? {
            put(&path, bytes)?;
        }
    }
    last()?;
    let mark = dir.join(MARK_NAME);
    if !mark.exists() {
        put(&mark, MARK)?;
    }
    let path = dir.join(INDEX_NAME);
    let mut index = read_index(dir)?.unwrap_or_else(document::empty_index);
    let before = index.clone();
    document::enter(&mut index, &documents.entry).map_err(|why| ExportError::Layout {
        dir: dir.to_owned(),
        why: format!("its {INDEX_NAME} {why}"),
    })?;
    if index != before {
        put(&path, Value::from(index).to_string().as_bytes())?;
    }
    Ok(there)
}

/// Removes the unfinished files of exports that were killed: nobody else writes here now.
fn sweep(dir: &Path) -> Result<(), ExportError> {
    for dir in [dir.to_owned(), dir.join("blobs/sha256")] {
        let io = OutputError::of(&dir);
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(&io)?,
        };
        for entry in entries {
            let name = entry.map_err(&io)?.file_name();
            if is_temporary(name.as_encoded_bytes()) {
                fs::remove_file(dir.join(name)).map_err(&io)?;
            }
        }
    }
    Ok(())
}

/// Opens and locks the directory, made where it is missing; it must be empty or a layout.
fn open(dir: &Path) -> Result<File, ExportError> {
    let io = OutputError::of(dir);
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(io(e).into()),
        _ => {}
    }
    let file = File::open(dir).map_err(&io)?;
    retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
        .map_err(|e| io(e.into()))?;
    sweep(dir)?;
    let bad = |why: String| ExportError::Layout {
        dir: dir.to_owned(),
        why,
    };
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Mark {
        image_layout_version: String,
    }
    match fs::read(dir.join(MARK_NAME)) {
        Ok(bytes) => {
            let mark: Mark = serde_json::from_slice(&bytes)
                .map_err(|e| bad(format!("its {MARK_NAME} is not what it should be: {e}")))?;
            let version = mark.image_layout_version;
            if !version.starts_with("1.") {
                let why = format!("a layout of version {version:?}; 1.0 is written");
                return Err(bad(why));
            }
            read_index(dir)?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            for entry in fs::read_dir(dir).map_err(&io)? {
                let name = entry.map_err(&io)?.file_name();
                // What a broken-off export has left.
                if name != "blobs" {
                    let why = "not empty, and no OCI image layout: it has no oci-layout; name \
                               another directory";
                    return Err(bad(why.to_owned()));
                }
            }
        }
        Err(e) => return Err(io(e).into()),
    }
    Ok(file)
}

fn read_index(dir: &Path) -> Result<Option<Map<String, Value>>, ExportError> {
    let path = dir.join(INDEX_NAME);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| ExportError::Layout {
                dir: dir.to_owned(),
                why: format!("its {INDEX_NAME} is not what it should be: {e}"),
            }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(OutputError::of(&path)(e).into()),
    }
}

/// Whether the blob is there, by its length.
fn has(path: &Path, len: u64) -> Result<bool, ExportError> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.is_file() && found.len() == len),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(OutputError::of(path)(e).into()),
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), ExportError> {
    let io = OutputError::of(path);
    let mut file = NewFile::beside(path).map_err(&io)?;
    file.file().write_all(bytes).map_err(&io)?;
    Ok(file.publish().map_err(&io)?)
}

fn copy_layer(layer: &Layer, path: &Path, meter: &mut Meter<'_, '_>) -> Result<(), ExportError> {
    let io = OutputError::of(path);
    let mut file = NewFile::beside(path).map_err(&io)?;
    // Where the filesystem shares blocks nothing is copied; elsewhere each byte is read and hashed.
    if rustix::fs::ioctl_ficlone(&*file.file(), layer.file()).is_ok() {
        meter.add(layer.len);
    } else {
        copy(layer, meter, |piece| {
            let written = file.file().write_all(piece);
            written.map_err(|e| ExportError::from(io(e)))
        })?;
    }
    Ok(file.publish().map_err(&io)?)
}
