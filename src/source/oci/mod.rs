//! The JSON documents of an image: index, manifest, configuration (the OCI image specification's
//! image-index.md, manifest.md, config.md; Docker's schema 2 differs by its media types alone).
//!
//! Everything here works on bytes, so that layouts, archives and registries are checked alike.
//! The types are our own, not oci-spec's: a field that nobody needs cannot make an image
//! unreadable, and what is wrong is said with the field's name.
//!
//! Invariant: a document that a descriptor names is of its length and digest before a byte of it
//! is interpreted ([`verify`]).

mod choose;
mod descriptor;
mod raw;

#[cfg(test)]
mod tests;

pub use descriptor::{Descriptor, Kind};

pub(super) use choose::named;
pub use choose::{Blobs, resolve, resolve_document};
pub(super) use raw::{from_slice, json};

use super::{Layer, Manifest, Platform, SourceError};
use crate::digest::{Digest, DigestError};
use crate::tar::printable;
use raw::{RawConfig, RawDescriptor, RawDocument};

/// The media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The longest index or manifest, bytes: what registries take (the OCI distribution
/// specification, "Pushing Manifests").
pub const MANIFEST_MAX: u64 = 4 << 20;

/// The longest configuration, bytes.
pub const CONFIG_MAX: u64 = 8 << 20;

/// The longest layer, bytes.
pub const LAYER_MAX: u64 = 2 << 40;

/// The most layers: Docker makes no more than 127.
pub const LAYERS_MAX: usize = 4096;

/// An image that is damaged or not to be served: `what` is wrong in that `why`.
pub(super) fn bad(what: impl Into<String>, why: impl Into<String>) -> SourceError {
    SourceError::Image {
        what: what.into(),
        why: why.into(),
    }
}

/// A list of manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Manifests and further indexes, and whatever else is listed.
    pub manifests: Vec<Descriptor>,
}

/// The manifest of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first, at most [`LAYERS_MAX`].
    pub layers: Vec<Descriptor>,
}

/// What a registry answers to a tag, and what a descriptor in an index leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// A list of manifests.
    Index(Index),
    /// The manifest of an image.
    Manifest(ImageManifest),
}

/// Checks that `bytes` are what `descriptor` says.
///
/// # Errors
/// [`SourceError::Image`], with the one or the other length or digest.
pub fn verify(bytes: &[u8], descriptor: &Descriptor, what: &str) -> Result<(), SourceError> {
    same_len(bytes.len() as u64, descriptor, what)?;
    let digest = Digest::of(bytes);
    if digest != descriptor.digest {
        return Err(bad(what, format!("damaged: its digest is {digest}")));
    }
    Ok(())
}

/// Checks that `len`, bytes, is the length that `descriptor` says.
pub(super) fn same_len(len: u64, descriptor: &Descriptor, what: &str) -> Result<(), SourceError> {
    if len == descriptor.size {
        return Ok(());
    }
    let why = format!(
        "damaged: it is {len} bytes long, and its descriptor says {}",
        descriptor.size
    );
    Err(bad(what, why))
}

/// Reads an index or a manifest, of which `media_type` is the type by who led here; without, it
/// is taken for what it says itself.
///
/// # Errors
/// [`SourceError::Image`], with the field that is missing or wrong.
pub fn document(
    bytes: &[u8],
    media_type: Option<&str>,
    what: &str,
) -> Result<Document, SourceError> {
    let raw: RawDocument = json(bytes, MANIFEST_MAX, what)?;
    // As some registries' Content-Type has it.
    let told = media_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    let own = raw.media_type.as_deref().filter(|own| !own.is_empty());
    if let (Some(told), Some(own)) = (told, own)
        && told != own
        && Kind::of(told) != Kind::of(own)
    {
        // What is an index to one reader must not be a manifest to another (CVE-2021-41190).
        let why = format!(
            "its mediaType is \"{}\", and what led here says \"{}\"",
            shown(own),
            shown(told)
        );
        return Err(bad(what, why));
    }
    if raw.schema_version == Some(1) {
        return Err(schema1(what));
    }
    let kind = match told.or(own) {
        Some(text) => Kind::of(text),
        None if raw.manifests.is_some() => Kind::Index,
        None => Kind::Manifest,
    };
    match kind {
        Kind::Index => index_of(raw, what).map(Document::Index),
        Kind::Manifest => manifest_of(raw, what).map(Document::Manifest),
        Kind::Schema1 => Err(schema1(what)),
        _ => {
            let why = format!(
                "its media type is \"{}\", which is neither an image's manifest nor an index",
                shown(told.or(own).unwrap_or_default())
            );
            Err(bad(what, why))
        }
    }
}

/// Reads an index.
///
/// # Errors
/// As [`document`].
pub fn index(bytes: &[u8], media_type: Option<&str>, what: &str) -> Result<Index, SourceError> {
    match document(bytes, media_type, what)? {
        Document::Index(index) => Ok(index),
        Document::Manifest(_) => Err(bad(what, "it is a manifest, not an index")),
    }
}

/// Reads the manifest of an image.
///
/// # Errors
/// As [`document`].
pub fn manifest(
    bytes: &[u8],
    media_type: Option<&str>,
    what: &str,
) -> Result<ImageManifest, SourceError> {
    match document(bytes, media_type, what)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => Err(bad(what, "it is an index, not a manifest")),
    }
}

fn schema1(what: &str) -> SourceError {
    let why = "a manifest of Docker's schema 1, of before 2016: copy the image with `skopeo copy --format v2s2` or `--format oci` first";
    bad(what, why)
}

/// Of an index or a manifest: version 2 is the only one (manifest.md, image-index.md).
fn version(raw: &RawDocument, what: &str) -> Result<(), SourceError> {
    match raw.schema_version {
        Some(2) => Ok(()),
        Some(other) => Err(bad(
            what,
            format!("its schemaVersion is {other}; only 2 is read"),
        )),
        None => Err(missing("schemaVersion", what)),
    }
}

fn index_of(raw: RawDocument, what: &str) -> Result<Index, SourceError> {
    version(&raw, what)?;
    if raw.config.is_some() || raw.layers.is_some() {
        return Err(both(what));
    }
    let manifests = raw.manifests.ok_or_else(|| missing("manifests", what))?;
    let manifests = manifests
        .into_iter()
        .enumerate()
        .map(|(n, raw)| descriptor(raw, &format!("manifests[{n}]"), u64::MAX, what));
    Ok(Index {
        manifests: manifests.collect::<Result<_, _>>()?,
    })
}

fn manifest_of(raw: RawDocument, what: &str) -> Result<ImageManifest, SourceError> {
    version(&raw, what)?;
    if raw.manifests.is_some() {
        return Err(both(what));
    }
    let config = raw.config.ok_or_else(|| missing("config", what))?;
    let config = descriptor(config, "config", CONFIG_MAX, what)?;
    if config.kind() != Kind::Config {
        let why = format!(
            "not an image: its config is of the media type \"{}\"",
            shown(&config.media_type)
        );
        return Err(bad(what, why));
    }
    let layers = raw.layers.ok_or_else(|| missing("layers", what))?;
    if layers.len() > LAYERS_MAX {
        return Err(too_many(layers.len(), what));
    }
    let layers = layers.into_iter().enumerate().map(|(n, raw)| {
        let at = format!("layers[{n}]");
        let layer = descriptor(raw, &at, LAYER_MAX, what)?;
        let why = match layer.kind() {
            Kind::Layer | Kind::Foreign => return Ok(layer),
            Kind::Encrypted => format!(
                "{at} is encrypted (\"{}\"): copy the image with `skopeo copy --decryption-key` first",
                shown(&layer.media_type)
            ),
            _ => format!(
                "{at} is of the media type \"{}\", which is no layer that can be read",
                shown(&layer.media_type)
            ),
        };
        Err(bad(what, why))
    });
    Ok(ImageManifest {
        config,
        layers: layers.collect::<Result<_, _>>()?,
    })
}

fn both(what: &str) -> SourceError {
    bad(
        what,
        "ambiguous: it has the fields of a manifest and of an index",
    )
}

pub(super) fn too_many(len: usize, what: &str) -> SourceError {
    bad(what, format!("{len} layers; at most {LAYERS_MAX} are read"))
}

pub(super) fn missing(field: &str, what: &str) -> SourceError {
    bad(what, format!("it has no \"{field}\""))
}

/// A text of a document for a message.
pub(super) fn shown(text: &str) -> String {
    printable(text.as_bytes())
}

/// A digest that stands at `at`.
pub(super) fn digest(text: &str, at: &str, what: &str) -> Result<Digest, SourceError> {
    text.parse().map_err(|error| {
        let text = shown(text);
        let why = match error {
            DigestError::Algorithm(_) => {
                format!("{at}: \"{text}\" is of another algorithm than sha256, the only one read")
            }
            DigestError::Form(_) => {
                format!("{at}: \"{text}\" is no digest (sha256: and 64 hexadecimal digits)")
            }
        };
        bad(what, why)
    })
}

fn descriptor(
    raw: RawDescriptor,
    at: &str,
    max: u64,
    what: &str,
) -> Result<Descriptor, SourceError> {
    let lacks = |field: &str| missing(&format!("{at}.{field}"), what);
    let text = raw.digest.ok_or_else(|| lacks("digest"))?;
    let size = raw.size.ok_or_else(|| lacks("size"))?;
    let size = match u64::try_from(size) {
        Ok(size) if size <= max => size,
        Ok(size) => {
            let why = format!("{at}.size: {size} bytes; at most {max} are read");
            return Err(bad(what, why));
        }
        Err(_) => return Err(bad(what, format!("{at}.size: {size} is no length"))),
    };
    Ok(Descriptor {
        media_type: raw.media_type.ok_or_else(|| lacks("mediaType"))?,
        digest: digest(&text, &format!("{at}.digest"), what)?,
        size,
        urls: raw.urls.is_some_and(|urls| !urls.is_empty()),
        platform: raw.platform.map(raw::RawPlatform::platform),
        annotations: raw.annotations.unwrap_or_default(),
    })
}

/// What is needed of an image's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The digests of the uncompressed layers, the lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Reads an image's configuration, which must be for `platform`'s system.
///
/// # Errors
/// [`SourceError::Image`].
pub fn config(bytes: &[u8], platform: &Platform, what: &str) -> Result<Config, SourceError> {
    let raw: RawConfig = json(bytes, CONFIG_MAX, what)?;
    // Docker takes an image that does not say its system for one of its own.
    if let Some(os) = raw.os.filter(|os| !os.is_empty() && *os != platform.os) {
        let why = format!("the image is for {}, not for {}", shown(&os), platform.os);
        return Err(bad(what, why));
    }
    let rootfs = raw.rootfs.ok_or_else(|| missing("rootfs", what))?;
    match rootfs.kind.as_deref() {
        Some("layers") => {}
        Some(other) => {
            let why = format!("rootfs.type is \"{}\", not \"layers\"", shown(other));
            return Err(bad(what, why));
        }
        None => return Err(missing("rootfs.type", what)),
    }
    let texts = rootfs
        .diff_ids
        .ok_or_else(|| missing("rootfs.diff_ids", what))?;
    if texts.len() > LAYERS_MAX {
        return Err(too_many(texts.len(), what));
    }
    let diff_ids = texts
        .iter()
        .enumerate()
        .map(|(n, text)| digest(text, &format!("rootfs.diff_ids[{n}]"), what));
    Ok(Config {
        diff_ids: diff_ids.collect::<Result<_, _>>()?,
    })
}

/// Puts together what is known of an image: `layers` are the digest and the length, as far as
/// they are known, of each layer's stored bytes.
///
/// # Errors
/// [`SourceError::Image`]: the configuration is bad, or is not of as many layers.
pub fn assemble(
    index: Option<Digest>,
    manifest: Option<Digest>,
    layers: &[(Option<Digest>, Option<u64>)],
    config_json: Vec<u8>,
    platform: &Platform,
    what: &str,
) -> Result<Manifest, SourceError> {
    let id = Digest::of(&config_json);
    let what = format!("{what}: config {id}");
    let config = config(&config_json, platform, &what)?;
    if config.diff_ids.len() != layers.len() {
        let why = format!(
            "it has diff IDs of {} layers, and the manifest {}",
            config.diff_ids.len(),
            layers.len()
        );
        return Err(bad(what, why));
    }
    let layers = layers.iter().zip(config.diff_ids).enumerate();
    Ok(Manifest {
        index,
        manifest,
        config: id,
        config_json,
        layers: layers
            .map(|(position, (&(digest, len), diff_id))| Layer {
                position,
                digest,
                len,
                diff_id,
            })
            .collect(),
    })
}
