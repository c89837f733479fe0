//! An image of the store that is ready to be opened.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hold::Hold;
use super::layout::{BLOB_DIGEST, INDEX, Layout, SIDE};
use super::lock::Lock;
use super::record::{BlobPlace, ImageJson, Source};
use super::tar::TarFile;
use super::{OnProgress, StoreError, hash, publish};
use crate::digest::Digest;
use crate::lower::{BlobFile, FileIdentity, Lower, OpenError};

/// An image that is ready to be opened. As long as it lives, and any [`Lower`] of it, nobody
/// removes it from the store.
#[derive(Debug, Clone)]
pub struct Image {
    store: PathBuf,
    dir: PathBuf,
    record: ImageJson,
    blobs: Vec<BlobFile>,
    hold: Arc<Hold>,
    pub(super) fresh: bool,
}

impl Image {
    /// The image in directory `entry` for `tar`; `None` when there is none, or one that is
    /// damaged, of another version, or of another state of the tar.
    pub(super) fn of_tar(layout: &Layout, entry: &Path, tar: &TarFile) -> Option<Self> {
        Self::try_of_tar(layout, entry, tar).ok().flatten()
    }

    /// [`Self::of_tar`], or why it cannot be told, as that no more files may be open.
    pub(super) fn try_of_tar(
        layout: &Layout,
        entry: &Path,
        tar: &TarFile,
    ) -> io::Result<Option<Self>> {
        let Some(hold) = Hold::take(entry)? else {
            return Ok(None);
        };
        let Some(record) = ImageJson::try_read(entry)? else {
            return Ok(None);
        };
        match &record.source {
            Source::Tar { identity, .. } if *identity == tar.identity => {}
            _ => return Ok(None),
        }
        if fs::metadata(entry.join(INDEX))?.len() != record.index.len {
            return Ok(None);
        }
        let blobs = record.blobs.iter().map(|blob| match blob.place {
            BlobPlace::Tar => Some(BlobFile {
                path: tar.path.clone(),
                identity: tar.identity.file(),
            }),
            BlobPlace::Side => blob_file(entry.join(SIDE), blob.len).ok(),
            BlobPlace::Layer(_) => None,
        });
        let Some(blobs) = blobs.collect::<Option<_>>() else {
            return Ok(None);
        };
        let image = Self {
            store: layout.dir.clone(),
            dir: entry.to_owned(),
            blobs,
            record,
            hold: Arc::new(hold),
            fresh: false,
        };
        // Superblock, device table and footer are checked, and the blobs' identities.
        match image.lower() {
            Ok(_) => {}
            Err(OpenError::Io { source, .. }) => return Err(source),
            Err(_) => return Ok(None),
        }
        image.hold.touch();
        Ok(Some(image))
    }

    /// The image `digest`, an own digest or an alias; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Record`], [`StoreError::Layer`], [`StoreError::Index`] where a part of it is
    /// missing, short, or of another version.
    pub(super) fn of_digest(layout: &Layout, digest: &Digest) -> Result<Option<Self>, StoreError> {
        let Some(own) = own_digest(layout, digest) else {
            return Ok(None);
        };
        let entry = layout.image(&own);
        let Some(hold) = Hold::take(&entry).map_err(StoreError::io(&entry))? else {
            return Ok(None);
        };
        let Some(record) = ImageJson::read(&entry) else {
            return Err(StoreError::Record { image: own });
        };
        // All layers first, also those of which the index needs nothing: the image is whole or it
        // is not.
        let mut layers = BTreeMap::new();
        for layer in &record.layers {
            let file = blob_file(layout.blob(&layer.diff_id), layer.len)
                .map_err(|e| e.of_layer(own, layer.diff_id))?;
            layers.insert(layer.diff_id, file);
        }
        let index = |what: String| StoreError::Index { image: own, what };
        match fs::metadata(entry.join(INDEX)) {
            Ok(found) if found.len() == record.index.len => {}
            Ok(found) => return Err(index(wrong_len(found.len(), record.index.len))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(index("is missing".to_owned()));
            }
            Err(e) => return Err(StoreError::io(&entry.join(INDEX))(e)),
        }
        let blob = |(place, len): (&BlobPlace, u64)| match place {
            BlobPlace::Layer(diff_id) => match layers.get(diff_id) {
                Some(file) if file.identity.len == len => Ok(file.clone()),
                _ => blob_file(layout.blob(diff_id), len).map_err(|e| e.of_layer(own, *diff_id)),
            },
            BlobPlace::Side => blob_file(entry.join(SIDE), len)
                .map_err(|e| index(format!("has a side blob that {}", e.what()))),
            BlobPlace::Tar => Err(index("is one of a local tar".to_owned())),
        };
        let blobs = record.blobs.iter().map(|b| blob((&b.place, b.len)));
        let image = Self {
            blobs: blobs.collect::<Result<_, _>>()?,
            store: layout.dir.clone(),
            dir: entry,
            record,
            hold: Arc::new(hold),
            fresh: false,
        };
        image.hold.touch();
        Ok(Some(image))
    }

    /// Opens the image.
    ///
    /// # Errors
    /// [`OpenError`]: the index or a blob was changed since.
    pub fn lower(&self) -> Result<Lower, OpenError> {
        let mut lower = Lower::open(&self.index_path(), self.blobs.clone())?;
        lower.keep(self.hold.clone());
        Ok(lower)
    }

    /// The blobs, in the order of the index's device table.
    #[must_use]
    pub fn blobs(&self) -> &[BlobFile] {
        &self.blobs
    }

    /// Which of its blobs, by position, are side blobs: in those a sparse file's holes are zeros.
    #[must_use]
    pub fn side_blobs(&self) -> Vec<u16> {
        let blobs = (0..).zip(&self.record.blobs);
        let side = blobs.filter(|(_, blob)| blob.place == BlobPlace::Side);
        side.map(|(n, _)| n).collect()
    }

    /// The index file.
    #[must_use]
    pub fn index_path(&self) -> PathBuf {
        self.dir.join(INDEX)
    }

    /// The local tar, as an absolute path; `None` for an image whose layers are in the store.
    #[must_use]
    pub fn tar_path(&self) -> Option<&Path> {
        match (&self.record.source, self.blobs.first()) {
            (Source::Tar { .. }, Some(tar)) => Some(&tar.path),
            _ => None,
        }
    }

    /// The directory of the image in the store.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// image.json.
    #[must_use]
    pub fn record(&self) -> &ImageJson {
        &self.record
    }

    /// Whether the image is known to be each of `aliases`, too.
    #[must_use]
    pub fn knows(&self, aliases: &[Digest]) -> bool {
        let known = |alias: &Digest| {
            self.record.aliases.contains(alias) || self.record.digest == Some(*alias)
        };
        aliases.iter().all(known)
    }

    /// Whether the index was made by this call, and not found in the store.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The image's own digest; of a local tar, that of the tar: reads all of it the first time;
    /// then it is remembered for this state of the tar.
    ///
    /// # Errors
    /// [`StoreError::Tar`], [`StoreError::Changed`].
    pub fn digest(&self, progress: OnProgress<'_>) -> Result<Digest, StoreError> {
        let path = match (self.record.digest, self.tar_path(), &self.record.source) {
            (Some(digest), ..) => return Ok(digest),
            (None, Some(path), Source::Tar { .. }) => path,
            _ => return Err(StoreError::io(&self.dir)(io::ErrorKind::InvalidData.into())),
        };
        let tar = TarFile::open(path)?;
        if !matches!(&self.record.source, Source::Tar { identity, .. } if *identity == tar.identity)
        {
            return Err(StoreError::Changed {
                path: path.to_owned(),
            });
        }
        let memo = self.dir.join(BLOB_DIGEST);
        if let Ok(text) = fs::read_to_string(&memo)
            && let Ok(digest) = text.trim_end().parse()
        {
            return Ok(digest);
        }
        let digest = hash::file(&tar.file, progress).map_err(|source| StoreError::Tar {
            path: path.to_owned(),
            source,
        })?;
        tar.check()?;
        // Only a memory: where it cannot be kept (a store of another user), the next one hashes
        // again.
        Lock::fresh(&self.store, "memo")
            .and_then(|lock| {
                let text = format!("{digest}\n");
                publish::file(lock.work(), &memo, text.as_bytes()).map_err(StoreError::io(&memo))
            })
            .ok();
        Ok(digest)
    }

    /// The digest of the index as it is now. [`ImageJson::index`] has the one it was published
    /// with.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn index_digest(&self, progress: OnProgress<'_>) -> Result<Digest, StoreError> {
        let path = self.index_path();
        let io = StoreError::io(&path);
        hash::file(&File::open(&path).map_err(&io)?, progress).map_err(&io)
    }

    /// Checks that the index's bytes are those that were published.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Io`].
    pub fn check_index(&self, progress: OnProgress<'_>) -> Result<(), StoreError> {
        let now = self.index_digest(progress)?;
        if now == self.record.index.digest {
            return Ok(());
        }
        let what = self.record.index.damage(&now);
        match self.record.digest {
            Some(image) => Err(StoreError::Index { image, what }),
            None => Err(StoreError::Io {
                path: self.index_path(),
                source: io::Error::other(format!(
                    "{what}; remove {} to have it made again",
                    self.dir.display()
                )),
            }),
        }
    }
}

/// The image's own digest where `digest` is an alias of it; `digest` itself otherwise.
pub(super) fn own_digest(layout: &Layout, digest: &Digest) -> Option<Digest> {
    let path = layout.image(digest);
    match fs::read_link(&path) {
        // An alias is one step: it leads to a directory beside it.
        Ok(target) => Digest::from_hex(target.to_str()?).ok(),
        Err(_) => path.is_dir().then_some(*digest),
    }
}

/// Why a file of an image cannot be used.
#[derive(Debug)]
pub(super) enum BadFile {
    Missing,
    Len { has: u64, wants: u64 },
    NoFile,
    Io(PathBuf, io::Error),
}

impl BadFile {
    pub(super) fn what(&self) -> String {
        match self {
            Self::Missing => "is missing".to_owned(),
            Self::Len { has, wants } => wrong_len(*has, *wants),
            Self::NoFile => "is not a regular file".to_owned(),
            Self::Io(_, e) => format!("cannot be read: {e}"),
        }
    }

    pub(super) fn of_layer(self, image: Digest, layer: Digest) -> StoreError {
        match self {
            Self::Io(path, source) => StoreError::Io { path, source },
            bad => StoreError::Layer {
                image,
                layer,
                what: bad.what(),
            },
        }
    }
}

fn wrong_len(has: u64, wants: u64) -> String {
    format!("has {has} bytes instead of {wants}")
}

/// The blob at `path`, which must be a regular file of `len` bytes.
pub(super) fn blob_file(path: PathBuf, len: u64) -> Result<BlobFile, BadFile> {
    let metadata = match fs::symlink_metadata(&path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(BadFile::Missing),
        Err(e) => return Err(BadFile::Io(path, e)),
    };
    if !metadata.is_file() {
        return Err(BadFile::NoFile);
    }
    if metadata.len() != len {
        let has = metadata.len();
        return Err(BadFile::Len { has, wants: len });
    }
    // Which file it is may change: a damaged layer is replaced by a whole one of the same bytes.
    let identity = FileIdentity {
        dev_ino: None,
        ..FileIdentity::of(&metadata)
    };
    Ok(BlobFile { path, identity })
}
