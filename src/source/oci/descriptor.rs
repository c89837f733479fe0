//! What documents say about each other: media types and descriptors.

use std::collections::BTreeMap;

use super::Platform;
use crate::digest::Digest;

/// Where a layout's index, or containerd's export, has an image's name.
const NAMES: [&str; 2] = [
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
];

/// What a media type stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A list of manifests for several platforms.
    Index,
    /// The manifest of one image.
    Manifest,
    /// The configuration of an image.
    Config,
    /// A layer.
    Layer,
    /// A layer that may be kept elsewhere than with the image.
    Foreign,
    /// A layer that only the owner of a key can read.
    Encrypted,
    /// A manifest of Docker's schema 1, which has no digests of the unpacked layers.
    Schema1,
    /// Anything else.
    Unknown,
}

impl Kind {
    /// What `media_type` stands for.
    #[must_use]
    pub fn of(media_type: &str) -> Self {
        const OCI: &str = "application/vnd.oci.image.";
        const DOCKER: &str = "application/vnd.docker.";
        if media_type.contains("+encrypted") {
            return Self::Encrypted;
        }
        match (
            media_type.strip_prefix(OCI),
            media_type.strip_prefix(DOCKER),
        ) {
            (Some(oci), _) => match oci {
                "index.v1+json" => Self::Index,
                "manifest.v1+json" => Self::Manifest,
                "config.v1+json" => Self::Config,
                "layer.v1.tar" | "layer.v1.tar+gzip" | "layer.v1.tar+zstd" => Self::Layer,
                "layer.nondistributable.v1.tar"
                | "layer.nondistributable.v1.tar+gzip"
                | "layer.nondistributable.v1.tar+zstd" => Self::Foreign,
                _ => Self::Unknown,
            },
            (_, Some(docker)) => match docker {
                "distribution.manifest.list.v2+json" => Self::Index,
                "distribution.manifest.v2+json" => Self::Manifest,
                "container.image.v1+json" => Self::Config,
                "image.rootfs.diff.tar"
                | "image.rootfs.diff.tar.gzip"
                | "image.rootfs.diff.tar.zstd" => Self::Layer,
                "image.rootfs.foreign.diff.tar" | "image.rootfs.foreign.diff.tar.gzip" => {
                    Self::Foreign
                }
                "distribution.manifest.v1+json" | "distribution.manifest.v1+prettyjws" => {
                    Self::Schema1
                }
                _ => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }
}

/// What a document says about another one or about a layer (descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Its media type, as written.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes, at most that of its kind.
    pub size: u64,
    /// Whether it may be had elsewhere.
    pub urls: bool,
    /// For which machines it is; indexes only.
    pub platform: Option<Platform>,
    /// What else is said about it.
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// What its media type stands for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::of(&self.media_type)
    }

    /// Whether it is no image but a statement on one (BuildKit's
    /// docs/attestations/attestation-storage.md).
    #[must_use]
    pub fn is_attestation(&self) -> bool {
        self.annotations.contains_key("vnd.docker.reference.type")
            || self.platform.as_ref().is_some_and(|platform| {
                platform.os == "unknown" || platform.architecture == "unknown"
            })
    }

    /// The names of the image in an OCI layout's index (image-layout.md).
    pub fn names(&self) -> impl Iterator<Item = &str> {
        NAMES
            .iter()
            .filter_map(|key| self.annotations.get(*key))
            .map(String::as_str)
    }
}
