//! image.json: what an index cannot hold (docs/FORMAT.md, "image.json").

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layout::{FORMAT, RECORD};
use super::tar::TarIdentity;
use crate::digest::Digest;

/// The record of 65,535 layers has some 10 MiB.
const RECORD_MAX: u64 = 16 << 20;

/// Where an image came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A local tar, which stays where it is.
    Tar {
        /// Its path when it was indexed (told only; bytes that are not UTF-8 are replaced).
        path: String,
        /// Its identity.
        identity: TarIdentity,
    },
    /// Something that was taken into the store.
    Import {
        /// What it was, as `tarnfs import` takes it: `docker://…`, `oci:…`, a path.
        from: String,
    },
    /// Made here, of another image of the store.
    Made {
        /// The own digest of that image, which may be gone by now.
        of: Digest,
        /// How: what its configuration's history says (`created_by`).
        by: String,
    },
}

impl Source {
    /// What a person is told; `None` of a local tar, which has its own place.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        match self {
            Self::Tar { .. } => None,
            Self::Import { from } => Some(from.clone()),
            Self::Made { of, by } => Some(format!("{by} (of {of})")),
        }
    }
}

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Counts {
    /// Inodes.
    pub inodes: u64,
    /// Names.
    pub entries: u64,
    /// Bytes of all regular files, each inode once.
    pub file_bytes: u64,
}

/// The index of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRecord {
    /// Length in bytes.
    pub len: u64,
    /// Its digest.
    pub digest: Digest,
}

impl IndexRecord {
    /// What is wrong with an index whose digest is `has` now, another than that.
    pub(super) fn damage(&self, has: &Digest) -> String {
        let published = self.digest;
        format!("is damaged: its digest is {has}, it was published with {published}")
    }
}

/// Which file a blob of an index is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobPlace {
    /// The local tar.
    Tar,
    /// The side blob, in the entry.
    Side,
    /// The layer of this diff ID, in the store.
    Layer(Digest),
}

/// A blob of an image, in the order of the index's device table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRecord {
    /// Which file it is.
    pub place: BlobPlace,
    /// Length in bytes.
    pub len: u64,
}

/// A layer of an image, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Its length in bytes.
    pub len: u64,
}

/// image.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageJson {
    /// Version of this record and of the entry.
    pub format: u32,
    /// The tarnfs that made it.
    pub tarnfs: String,
    /// The image's own digest: of its configuration, or of the tar where it has none. `None`: a
    /// local tar, which nobody has hashed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub digest: Option<Digest>,
    /// Digests of the manifests and indexes by which it is known too.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub aliases: Vec<Digest>,
    /// Seconds since the epoch when it came into the store.
    pub created: u64,
    /// Where it came from.
    pub source: Source,
    /// `config` of the image's configuration: entry point, environment, user, working directory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub config: Option<serde_json::Value>,
    /// Its layers, the lowest first; none of a local tar.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub layers: Vec<LayerRecord>,
    /// What it holds.
    pub counts: Counts,
    /// The index.
    pub index: IndexRecord,
    /// The files that the index's devices are.
    pub blobs: Vec<BlobRecord>,
}

impl ImageJson {
    /// The record in the entry `dir`; `None` where there is none of this version.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        Self::try_read(dir).ok().flatten()
    }

    /// [`Self::read`], or why it cannot be told.
    pub(super) fn try_read(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(RECORD);
        if fs::metadata(&path)?.len() > RECORD_MAX {
            return Ok(None);
        }
        let record = serde_json::from_slice::<Self>(&fs::read(&path)?).ok();
        Ok(record.filter(|record| record.format == FORMAT))
    }

    /// Its bytes. More than [`Self::read`] takes are an error: what is in a configuration is its
    /// maker's, and may be a hundred times as long when it is indented.
    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut json = Bounded(Vec::new());
        serde_json::to_writer_pretty(&mut json, self)?;
        json.write_all(b"\n")?;
        Ok(json.0)
    }
}

/// At most [`RECORD_MAX`] bytes.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if (self.0.len() + buf.len()) as u64 > RECORD_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "its image.json would be longer than {RECORD_MAX} bytes; the image's configuration is too large"
                ),
            ));
        }
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `config` of an image's configuration (the OCI image specification's config.md). Nothing else of
/// it comes into memory.
pub(crate) fn config_of(json: &[u8]) -> Option<serde_json::Value> {
    #[derive(Deserialize)]
    struct Configuration {
        config: Option<serde_json::Value>,
    }
    serde_json::from_slice::<Configuration>(json).ok()?.config
}

/// The layers that an image's configuration names.
pub(super) fn diff_ids(json: &[u8]) -> Option<Vec<Digest>> {
    #[derive(Deserialize)]
    struct Configuration {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<Digest>,
    }
    let Configuration { rootfs } = serde_json::from_slice(json).ok()?;
    Some(rootfs.diff_ids)
}
