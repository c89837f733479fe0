//! Images by digest: publishing, finding, listing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::blob::Blob;
use super::build::{self, counts, create, index_record, write_records};
use super::image::{self, Image};
use super::layout::{
    CONFIG, FORMAT, INDEX, RECORD, SIDE, USED, allocated, entry_allocated, list, name_of,
};
use super::links::{leads_to, links_in};
use super::lock::Lock;
use super::record::{BlobPlace, BlobRecord, ImageJson, LayerRecord, Source};
use super::{ImageName, OnProgress, Store, StoreError, publish};
use crate::digest::{Digest, Hasher};
use crate::index::Flat;
use crate::sys::clock::since_epoch;

/// The shortest part of a digest that is looked for.
const PREFIX_MIN: usize = 4;

/// An image whose layers are in the store.
#[derive(Debug)]
pub struct NewImage<'a> {
    /// Its own digest.
    pub digest: Digest,
    /// Digests of manifests and indexes that it is known by too.
    pub aliases: Vec<Digest>,
    /// Where it came from; no local tar.
    pub source: Source,
    /// Its configuration, as it came.
    pub config_json: Option<&'a [u8]>,
    /// `config` of it.
    pub config: Option<serde_json::Value>,
    /// Its layers, the lowest first.
    pub layers: Vec<&'a Blob>,
    /// What they are on top of each other.
    pub flat: &'a Flat,
}

/// The right to make one image; others wait.
#[derive(Debug)]
pub struct ImageLock(Lock);

/// What a listing says of an image.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The image's own digest.
    pub digest: Digest,
    /// Its names.
    pub names: Vec<ImageName>,
    /// image.json; `None` where it cannot be read.
    pub record: Option<ImageJson>,
    /// Bytes of its layers and its index.
    pub bytes: u64,
    /// Those of them that no other image shares.
    pub own_bytes: u64,
    /// When it was used last, since the epoch.
    pub used: Duration,
}

impl Store {
    /// Waits until no other process makes the image `digest`.
    ///
    /// # Errors
    /// Those of writing to the store.
    pub fn lock_image(
        &self,
        digest: &Digest,
        progress: OnProgress<'_>,
    ) -> Result<ImageLock, StoreError> {
        let key = format!("image-{}", digest.hex());
        Lock::take(self.dir(), &key, progress).map(ImageLock)
    }

    /// Makes the directories of the store, and removes what killed processes have left.
    ///
    /// # Errors
    /// Those of writing to the store.
    pub fn prepare(&self) -> Result<(), StoreError> {
        self.layout.make()?;
        super::lock::sweep(&self.layout.tmp());
        Ok(())
    }

    /// Publishes an image, in place of one of the same digest.
    ///
    /// # Errors
    /// [`StoreError::Build`]; those of writing to the store.
    pub fn publish_image(&self, new: &NewImage<'_>, lock: &ImageLock) -> Result<Image, StoreError> {
        let temp = lock.0.fresh_dir()?;
        let entry = self.layout.image(&new.digest);
        let failed = |e| StoreError::write(self.dir(), &entry, e);
        let (index, side) = (temp.join(INDEX), temp.join(SIDE));
        let places = build::layers(self.dir(), new.flat, &new.layers, &index, &side)?;
        let len_of = |place: &BlobPlace| match place {
            BlobPlace::Layer(diff_id) => new
                .layers
                .iter()
                .find(|blob| blob.diff_id() == *diff_id)
                .map(|blob| blob.len())
                .ok_or_else(|| io::ErrorKind::NotFound.into()),
            BlobPlace::Side | BlobPlace::Tar => fs::metadata(&side).map(|m| m.len()),
        };
        let blobs = places.into_iter().map(|place| {
            let len = len_of(&place)?;
            Ok(BlobRecord { place, len })
        });
        let made = || {
            Ok(ImageJson {
                format: FORMAT,
                tarnfs: env!("CARGO_PKG_VERSION").to_owned(),
                digest: Some(new.digest),
                aliases: new.aliases.clone(),
                created: since_epoch().as_secs(),
                source: new.source.clone(),
                config: new.config.clone(),
                layers: new.layers.iter().map(|blob| record_of(blob)).collect(),
                counts: counts(&fs::File::open(&index)?)?,
                index: index_record(&index)?,
                blobs: blobs.collect::<io::Result<_>>()?,
            })
        };
        let record = made().map_err(failed)?;
        write_records(&temp, &record).map_err(failed)?;
        if let Some(config) = new.config_json {
            create(&temp.join(CONFIG))
                .and_then(|mut file| file.write_all(config))
                .map_err(failed)?;
        }
        let _hold = publish::dir(&temp, &entry).map_err(failed)?;
        self.point_aliases(&new.digest, &new.aliases)?;
        let mut image = self.image(&new.digest)?;
        image.fresh = true;
        Ok(image)
    }

    /// Notes that the image `own`, which the caller has locked, is known by `aliases` too.
    ///
    /// # Errors
    /// Those of writing to the store.
    pub fn add_aliases(
        &self,
        own: &Digest,
        aliases: &[Digest],
        lock: &ImageLock,
    ) -> Result<(), StoreError> {
        let entry = self.layout.image(own);
        let Some(mut record) = ImageJson::read(&entry) else {
            return Err(self.no_image(&own.to_string()));
        };
        let new = |alias: &&Digest| *alias != own && !record.aliases.contains(alias);
        let new: Vec<Digest> = aliases.iter().filter(new).copied().collect();
        if !new.is_empty() {
            record.aliases.extend(new);
            // Holders of the old record have the entry still; the next one locks the new.
            let path = entry.join(RECORD);
            record
                .bytes()
                .and_then(|bytes| publish::file(lock.0.work(), &path, &bytes))
                .map_err(|e| StoreError::write(self.dir(), &path, e))?;
        }
        self.point_aliases(own, aliases)
    }

    /// Lets `aliases`, which the image `own` is known by, lead to it, where links of them are
    /// missing.
    ///
    /// # Errors
    /// Those of writing to the store.
    pub fn point_aliases(&self, own: &Digest, aliases: &[Digest]) -> Result<(), StoreError> {
        for alias in aliases.iter().filter(|alias| *alias != own) {
            let link = self.layout.image(alias);
            // An image of that very digest stays.
            let is_own = |link: &Path| fs::symlink_metadata(link).is_ok_and(|found| found.is_dir());
            self.point_where(&link, own, |link| !is_own(link))?;
        }
        Ok(())
    }

    /// The image `digest`, its own or an alias.
    ///
    /// # Errors
    /// [`StoreError::NoImage`]; [`StoreError::Record`], [`StoreError::Layer`],
    /// [`StoreError::Index`] where a part of it is missing.
    pub fn image(&self, digest: &Digest) -> Result<Image, StoreError> {
        Image::of_digest(&self.layout, digest)?.ok_or_else(|| self.no_image(&digest.to_string()))
    }

    /// The digest of the image that `text` means: a name, a digest, or the beginning of one, with
    /// or without `sha256:`. `None` where there is none.
    ///
    /// # Errors
    /// [`StoreError::Ambiguous`], [`StoreError::Io`].
    pub fn resolve(&self, text: &str) -> Result<Option<Digest>, StoreError> {
        if let Ok(name) = text.parse::<ImageName>()
            && let Some(digest) = self.named(&name)
        {
            return Ok(Some(digest));
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() < PREFIX_MIN || !is_hex {
            return Ok(None);
        }
        if let Ok(digest) = Digest::from_hex(hex) {
            return Ok(image::own_digest(&self.layout, &digest));
        }
        let mut found: Vec<Digest> = self
            .entries()?
            .into_iter()
            .filter(|digest| digest.hex().starts_with(hex))
            .filter_map(|digest| image::own_digest(&self.layout, &digest))
            .collect();
        found.sort_unstable();
        found.dedup();
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            several => Err(StoreError::Ambiguous {
                name: text.to_owned(),
                count: several.len(),
            }),
        }
    }

    /// [`Self::resolve`], where there must be one.
    ///
    /// # Errors
    /// [`StoreError::NoImage`], and as [`Self::resolve`].
    pub fn find(&self, text: &str) -> Result<Digest, StoreError> {
        self.resolve(text)?.ok_or_else(|| self.no_image(text))
    }

    /// All digests in `images/sha256`, aliases included.
    fn entries(&self) -> Result<Vec<Digest>, StoreError> {
        let digest = |path: &PathBuf| Digest::from_hex(name_of(path)?).ok();
        let all = list(&self.layout.images())?;
        Ok(all.iter().filter_map(digest).collect())
    }

    /// The own digests of all images, sorted.
    pub(super) fn own_digests(&self) -> Result<Vec<Digest>, StoreError> {
        let mut own = self.entries()?;
        // What goes meanwhile is none.
        own.retain(|digest| {
            fs::symlink_metadata(self.layout.image(digest)).is_ok_and(|found| !found.is_symlink())
        });
        own.sort_unstable();
        Ok(own)
    }

    /// Links from other digests to images, with what they lead to.
    pub(super) fn aliases(&self) -> Result<Vec<(PathBuf, Digest)>, StoreError> {
        links_in(&self.layout.images())
    }

    /// Links from sources to images, with what they lead to.
    pub(super) fn sources(&self) -> Result<Vec<(PathBuf, Digest)>, StoreError> {
        links_in(&self.layout.sources())
    }

    /// image.json of the image `own`; `None` where it cannot be read.
    #[must_use]
    pub fn record(&self, own: &Digest) -> Option<ImageJson> {
        ImageJson::read(&self.layout.image(own))
    }

    /// All images, the one used last first.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn images(&self) -> Result<Vec<Listed>, StoreError> {
        let names = self.names()?;
        let mut all = Vec::new();
        for digest in self.own_digests()? {
            let entry = self.layout.image(&digest);
            let of = names.iter().filter(|(_, of)| *of == digest);
            let bytes = entry_allocated(&entry);
            all.push(Listed {
                digest,
                names: of.map(|(name, _)| name.clone()).collect(),
                record: ImageJson::read(&entry),
                bytes,
                own_bytes: bytes,
                used: used(&entry),
            });
        }
        self.add_layers(&mut all);
        all.sort_by(|a, b| b.used.cmp(&a.used).then(a.digest.cmp(&b.digest)));
        Ok(all)
    }

    /// Adds the layers to the sizes of images.
    fn add_layers(&self, images: &mut [Listed]) {
        let mut users: BTreeMap<Digest, usize> = BTreeMap::new();
        for listed in images.iter() {
            for layer in layers_of(listed.record.as_ref()) {
                *users.entry(layer).or_default() += 1;
            }
        }
        for listed in images {
            for layer in layers_of(listed.record.as_ref()) {
                let bytes = allocated(&self.layout.blob(&layer)).unwrap_or(0);
                listed.bytes += bytes;
                if users.get(&layer) == Some(&1) {
                    listed.own_bytes += bytes;
                }
            }
        }
    }

    /// The image that `source` was the last time: the key of what somebody has read, so that it
    /// is not read again. Only a memory.
    #[must_use]
    pub fn remembered(&self, source: &str) -> Option<Digest> {
        let own = leads_to(&self.layout.sources().join(source_key(source)))?;
        self.layout.image(&own).is_dir().then_some(own)
    }

    /// Remembers that `source` is the image `own`.
    ///
    /// # Errors
    /// Those of writing to the store.
    pub fn remember(&self, source: &str, own: &Digest) -> Result<(), StoreError> {
        if self.remembered(source) == Some(*own) {
            return Ok(());
        }
        self.point(&self.layout.sources().join(source_key(source)), own)
    }
}

fn source_key(source: &str) -> String {
    let mut hash = Hasher::new();
    hash.update(b"tarnfs source 1\0");
    hash.update(source.as_bytes());
    hash.finish().hex()
}

/// The layers of an image, each once.
pub(super) fn layers_of(record: Option<&ImageJson>) -> Vec<Digest> {
    let mut layers: Vec<Digest> = record
        .map(|record| record.layers.iter().map(|l| l.diff_id).collect())
        .unwrap_or_default();
    layers.sort_unstable();
    layers.dedup();
    layers
}

fn record_of(blob: &Blob) -> LayerRecord {
    LayerRecord {
        diff_id: blob.diff_id(),
        len: blob.len(),
    }
}

/// When an entry was used last, since the epoch.
pub(super) fn used(entry: &Path) -> Duration {
    let at = |name: &str| fs::metadata(entry.join(name)).and_then(|m| m.modified());
    at(USED)
        .or_else(|_| at(RECORD))
        .ok()
        .and_then(|t: SystemTime| t.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default()
}
