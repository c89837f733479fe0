//! Making an entry of the store, or an index where the user wants it.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::blob::Blob;
use crate::digest::Digest;
use crate::erofs::reader::{Bytes, Reader};
use crate::erofs::writer::WriteError;
use crate::index::{self, Flat, IndexError, LayerBlob};
use crate::sys::clock::since_epoch;
use crate::sys::map::Map;

use super::layout::{FORMAT, INDEX, RECORD, SIDE, USED};
use super::record::{BlobPlace, BlobRecord, Counts, ImageJson, IndexRecord, Source};
use super::tar::TarFile;
use super::{OnProgress, Progress, StoreError, hash, publish};

/// Makes the index of a tar in the two files; says what is in it.
pub(super) type Builder<'b> =
    dyn Fn(&TarFile, &Outputs<'_>, OnProgress<'_>) -> Result<Counts, StoreError> + 'b;

/// Where an index goes.
pub(super) struct Outputs<'a> {
    /// The store, for messages; `None`: the user chose the files.
    pub(super) store: Option<&'a Path>,
    /// The index file, to be created.
    pub(super) index: &'a Path,
    /// The side blob, to be created only if one is needed.
    pub(super) side: &'a Path,
}

/// What [`write_index`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The index.
    pub index: PathBuf,
    /// Its length in bytes.
    pub index_len: u64,
    /// The side blob, where one was needed.
    pub side: Option<PathBuf>,
    /// What the image holds.
    pub counts: Counts,
}

/// Fills the directory `temp` with an entry for `tar`.
pub(super) fn entry(
    store: &Path,
    temp: &Path,
    tar: &TarFile,
    builder: &Builder<'_>,
    progress: OnProgress<'_>,
) -> Result<(), StoreError> {
    let (index, side) = (temp.join(INDEX), temp.join(SIDE));
    let counts = builder(
        tar,
        &Outputs {
            store: Some(store),
            index: &index,
            side: &side,
        },
        progress,
    )?;
    tar.check()?;
    let fail = |e| StoreError::write(store, temp, e);
    let mut blobs = vec![BlobRecord {
        place: BlobPlace::Tar,
        len: tar.identity.size,
    }];
    match fs::metadata(&side) {
        Ok(metadata) => blobs.push(BlobRecord {
            place: BlobPlace::Side,
            len: metadata.len(),
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(fail(e)),
    }
    let record = ImageJson {
        format: FORMAT,
        tarnfs: env!("CARGO_PKG_VERSION").to_owned(),
        digest: None,
        aliases: Vec::new(),
        created: since_epoch().as_secs(),
        source: Source::Tar {
            path: tar.path.to_string_lossy().into_owned(),
            identity: tar.identity,
        },
        config: None,
        layers: Vec::new(),
        counts,
        index: index_record(&index).map_err(fail)?,
        blobs,
    };
    write_records(temp, &record).map_err(fail)
}

/// What is recorded of the finished index.
pub(super) fn index_record(index: &Path) -> io::Result<IndexRecord> {
    let file = File::open(index)?;
    Ok(IndexRecord {
        len: file.metadata()?.len(),
        digest: hash::file(&file, &mut |_| ())?,
    })
}

/// Writes what stands beside the index in an entry.
pub(super) fn write_records(temp: &Path, record: &ImageJson) -> io::Result<()> {
    create(&temp.join(USED))?;
    create(&temp.join(RECORD))?.write_all(&record.bytes()?)
}

/// A new file for its owner alone.
pub(super) fn create(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Writes the index of the tar at `tar` to `index`, and the side blob, where one is needed, to
/// `index` with `.side` behind its name. Either is there whole, or not at all.
///
/// # Errors
/// [`StoreError`] names the file and what is wrong.
pub fn write_index(
    tar: &Path,
    index: &Path,
    progress: OnProgress<'_>,
) -> Result<Built, StoreError> {
    let source = TarFile::open(tar)?;
    let suffix = format!(".tmp-{}", std::process::id());
    let side = publish::with_suffix(index, ".side");
    let (temp, temp_side) = (
        publish::with_suffix(index, &suffix),
        publish::with_suffix(&side, &suffix),
    );
    let fail = |e| StoreError::Io {
        path: index.to_owned(),
        source: e,
    };
    let made = build(
        &source,
        &Outputs {
            store: None,
            index: &temp,
            side: &temp_side,
        },
        progress,
    )
    .and_then(|counts| {
        source.check()?;
        let has_side = temp_side.try_exists().map_err(fail)?;
        if has_side {
            publish::finished(&temp_side, &side).map_err(fail)?;
        }
        let index_len = fs::metadata(&temp).map_err(fail)?.len();
        publish::finished(&temp, index).map_err(fail)?;
        Ok(Built {
            index: index.to_owned(),
            index_len,
            side: has_side.then_some(side),
            counts,
        })
    });
    if made.is_err() {
        publish::remove(&temp)
            .and_then(|()| publish::remove(&temp_side))
            .map_err(fail)?;
    }
    // The name that the user knows, not the one it has until it is finished.
    made.map_err(|error| match error {
        StoreError::Io { path, source } if path == temp => fail(source),
        error => error,
    })
}

/// The [`Builder`] of this program.
pub(super) fn build(
    tar: &TarFile,
    out: &Outputs<'_>,
    progress: OnProgress<'_>,
) -> Result<Counts, StoreError> {
    // The index comes in few and large pieces.
    let mut index = create(out.index).map_err(|e| out.failed(out.index, e))?;
    let side = || create(out.side);
    index::build(
        &tar.file,
        &tar.given,
        &mut index,
        side,
        &Watch(RefCell::new(progress)),
    )
    .map_err(|error| out.of_index(error))?;
    counts(&index).map_err(StoreError::io(out.index))
}

/// Writes the index of `flat`, of `layers`, to `index`, and to `side` the side blob, where one is
/// needed. Gives what the index's devices are.
pub(super) fn layers(
    store: &Path,
    flat: &Flat,
    layers: &[&Blob],
    index: &Path,
    side: &Path,
) -> Result<Vec<BlobPlace>, StoreError> {
    let out = Outputs {
        store: Some(store),
        index,
        side,
    };
    let blobs: Vec<LayerBlob<'_>> = layers
        .iter()
        .map(|blob| LayerBlob {
            file: blob.file(),
            path: blob.path(),
            tag: tag(&blob.diff_id()),
        })
        .collect();
    let mut file = create(index).map_err(|e| out.failed(index, e))?;
    let built = index::write_layers(flat, &blobs, &mut file, || create(side))
        .map_err(|error| out.of_index(error))?;
    let layer = |position: &usize| Some(BlobPlace::Layer(layers.get(*position)?.diff_id()));
    let side = built.side_len.map(|_| BlobPlace::Side);
    Ok(flat.used.iter().filter_map(layer).chain(side).collect())
}

/// What a layer is called in the device table: as much of its digest as there is room for.
fn tag(diff_id: &Digest) -> String {
    let mut hex = diff_id.hex();
    hex.truncate(56);
    hex
}

impl Outputs<'_> {
    fn failed(&self, path: &Path, source: io::Error) -> StoreError {
        match self.store {
            Some(store) => StoreError::write(store, path, source),
            None => StoreError::io(path)(source),
        }
    }

    /// The store's error for one of the index.
    fn of_index(&self, error: IndexError) -> StoreError {
        match error {
            IndexError::Changed(path) => StoreError::Changed { path },
            IndexError::Write {
                source: WriteError::Io(e),
                ..
            } => self.failed(self.index, e),
            IndexError::Side { source, .. } => self.failed(self.side, source),
            error => StoreError::Build(Box::new(error)),
        }
    }
}

/// What the index that was just written says it holds.
pub(super) fn counts(index: &File) -> io::Result<Counts> {
    let footer = Reader::new(Bytes::Mapped(Map::of(index)?))
        .and_then(|reader| reader.footer())
        .map_err(io::Error::other)?
        .ok_or_else(|| io::Error::other("the index has no footer"))?;
    Ok(Counts {
        inodes: footer.inodes,
        entries: footer.dirents,
        file_bytes: footer.file_bytes,
    })
}

/// The index's progress, as the store tells it.
struct Watch<'a>(RefCell<OnProgress<'a>>);

impl index::Progress for Watch<'_> {
    fn at(&self, done: u64, total: u64) {
        if let Ok(mut tell) = self.0.try_borrow_mut() {
            tell(Progress::Indexing { done, total });
        }
    }
}
