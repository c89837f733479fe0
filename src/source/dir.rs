//! What `skopeo copy … dir:DIR` writes: `version`, `manifest.json`, and blobs named by the digits
//! of their digests (containers/image's directory transport).

use std::io::Read;

use super::layout::{present, stored_digest, stream};
use super::oci::{self, Blobs, Descriptor, Document, Kind, MANIFEST_MAX, bad, shown};
use super::part::{Directory, Files, must};
use super::{Layer, Manifest, Platform, Source, SourceError};
use crate::digest::Digest;

/// The document that all begins with.
pub(super) const MANIFEST: &str = "manifest.json";

/// What the file `version` begins with; 1.0 had other names.
const VERSION: &[u8] = b"Directory Transport Version: 1.";

/// A directory with one image, or with those of several platforms.
pub(super) struct Dir {
    files: Directory,
    what: String,
    digest: Digest,
    document: Document,
}

impl Dir {
    /// The image of `files`, which errors call `what`.
    ///
    /// # Errors
    /// It is no such directory.
    pub(super) fn open(files: Directory, what: String) -> Result<Self, SourceError> {
        let label = files.label("version");
        if let Some(version) = files.find("version")? {
            let version = version.bytes(1 << 16, &label)?;
            if !version.starts_with(VERSION) {
                let why = "not of the version 1.1 of `skopeo copy … dir:`";
                return Err(bad(label, why));
            }
        }
        let label = files.label(MANIFEST);
        let bytes = must(&files, MANIFEST)?.bytes(MANIFEST_MAX, &label)?;
        if bytes.trim_ascii_start().starts_with(b"[") {
            let why = "of an unpacked docker archive: give the archive itself, docker-archive:FILE";
            return Err(bad(label, why));
        }
        let document = oci::document(&bytes, None, &label)?;
        Ok(Self {
            files,
            what,
            digest: Digest::of(&bytes),
            document,
        })
    }
}

impl Blobs for Dir {
    fn json(&self, descriptor: &Descriptor, max: u64, what: &str) -> Result<Vec<u8>, SourceError> {
        let hex = descriptor.digest.hex();
        let name = match descriptor.kind() {
            Kind::Config => hex,
            _ => format!("{hex}.manifest.json"),
        };
        let Some(part) = self.files.find(&name)? else {
            let why = format!("is missing: there is no file {}", shown(&name));
            return Err(bad(what, why));
        };
        oci::same_len(part.len(), descriptor, what)?;
        part.bytes(max, what)
    }

    fn layer(&self, descriptor: &Descriptor, what: &str) -> Result<(), SourceError> {
        present(&self.files, &descriptor.digest.hex(), descriptor, what)
    }
}

impl Source for Dir {
    fn manifest(&self, platform: &Platform) -> Result<Manifest, SourceError> {
        let document = self.document.clone();
        oci::resolve_document(self.digest, document, platform, &self.what, self)
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send>, SourceError> {
        let digest = stored_digest(layer, &self.what)?;
        stream(&self.files, &digest.hex(), layer, &self.what)
    }
}
