//! Where images come from: OCI layouts, archives, directories of `skopeo`, registries.
//!
//! A source tells what an image is made of ([`Manifest`]) and gives its layers as streams, as
//! they are stored there. Every byte is hostile: what a source tells is checked for its form and
//! against the digests that name it; that a layer's bytes are those of its digest is for whoever
//! reads it to its end (`import`).
//!
//! Never here: decompression, the store, output.

mod archive;
mod dir;
mod docker;
mod layout;
pub mod location;
pub mod oci;
mod part;

#[cfg(test)]
mod hostile_tests;

pub use layout::SINCE;
pub use location::{Location, parse};
pub mod registry;

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use crate::digest::Digest;

/// An image of which the parts can be had.
pub trait Source: Send + Sync {
    /// Finds the image for `platform` and reads what it consists of.
    ///
    /// # Errors
    /// [`SourceError`] in one line, with what to do where there is something.
    fn manifest(&self, platform: &Platform) -> Result<Manifest, SourceError>;

    /// The bytes of a layer as they are stored, from its first one on. Layers may be read by
    /// several threads at once. A source that breaks off goes on by itself where it can; the
    /// stream never ends early without an error where the layer's length is known.
    ///
    /// # Errors
    /// As [`Self::manifest`]; the stream's own errors carry a [`SourceError`] where one is meant
    /// for a person.
    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send>, SourceError>;
}

/// What an image consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The digest of the index that led here, where there was one: the outermost.
    pub index: Option<Digest>,
    /// The digest of the manifest; a docker archive has none.
    pub manifest: Option<Digest>,
    /// The digest of [`Self::config_json`]: Docker's image ID.
    pub config: Digest,
    /// The image's configuration (the OCI image specification's config.md), as it was stored.
    pub config_json: Vec<u8>,
    /// The layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its place in [`Manifest::layers`].
    pub position: usize,
    /// The digest of what [`Source::layer`] gives, where the source knows it.
    pub digest: Option<Digest>,
    /// The length in bytes of what [`Source::layer`] gives, where the source knows it.
    pub len: Option<u64>,
    /// The digest of the uncompressed layer, by the image's configuration.
    pub diff_id: Digest,
}

/// For which machines an image is: `os/architecture[/variant]`, in the words of Go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The system: `linux`.
    pub os: String,
    /// The processor: `amd64`, `arm64` …
    pub architecture: String,
    /// Which of its kinds: `v8`.
    pub variant: Option<String>,
}

impl Platform {
    /// That of this machine.
    #[must_use]
    pub fn here() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "x86" => ("386", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let good = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture, variant @ ..]
                if variant.len() < 2 && parts.iter().all(|p| good(p)) =>
            {
                Ok(Self {
                    os: (*os).to_owned(),
                    architecture: (*architecture).to_owned(),
                    variant: variant.first().map(|v| (*v).to_owned()),
                })
            }
            _ => Err(SourceError::Asked(format!(
                "platform {text:?}: write OS/ARCHITECTURE[/VARIANT], as linux/arm64/v8"
            ))),
        }
    }
}

/// Why a source gives no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Asked(String),
    /// It cannot be read.
    #[error("{what}: {source}")]
    Io {
        /// What was read: a path or an address.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// The image is not what it should be: damaged, or of a kind that cannot be served.
    #[error("{what}: {why}")]
    Image {
        /// Which part: a path or an address.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms() {
        for text in ["linux/amd64", "linux/arm64/v8"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        assert_eq!(Platform::here().os, "linux");
    }
}
