//! The documents as they are written: every field may be missing.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::{Platform, bad, shown};
use crate::source::SourceError;

/// An index or a manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a manifest or an index")]
pub(super) struct RawDocument {
    pub(super) schema_version: Option<i64>,
    pub(super) media_type: Option<String>,
    #[serde(default, deserialize_with = "list")]
    pub(super) manifests: Option<Vec<RawDescriptor>>,
    pub(super) config: Option<RawDescriptor>,
    #[serde(default, deserialize_with = "list")]
    pub(super) layers: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a descriptor")]
pub(super) struct RawDescriptor {
    pub(super) media_type: Option<String>,
    pub(super) digest: Option<String>,
    pub(super) size: Option<i64>,
    pub(super) urls: Option<Vec<String>>,
    pub(super) platform: Option<RawPlatform>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(expecting = "a platform")]
pub(super) struct RawPlatform {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

impl RawPlatform {
    pub(super) fn platform(self) -> Platform {
        Platform {
            os: self.os.unwrap_or_default(),
            architecture: self.architecture.unwrap_or_default(),
            variant: self.variant.filter(|variant| !variant.is_empty()),
        }
    }
}

/// An image's configuration.
#[derive(Deserialize)]
#[serde(expecting = "an image's configuration")]
pub(super) struct RawConfig {
    pub(super) os: Option<String>,
    pub(super) rootfs: Option<RawRootfs>,
}

#[derive(Deserialize)]
#[serde(expecting = "a rootfs")]
pub(super) struct RawRootfs {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(default, deserialize_with = "list")]
    pub(super) diff_ids: Option<Vec<String>>,
}

/// A list that is there; Go writes an empty one as null.
fn list<'de, D, T>(from: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Some(Option::deserialize(from)?.unwrap_or_default()))
}

/// The JSON object in `bytes`, at most `max` of them.
pub(in crate::source) fn json<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    max: u64,
    what: &str,
) -> Result<T, SourceError> {
    if bytes.len() as u64 > max {
        let why = format!("{} bytes long; at most {max} are read", bytes.len());
        return Err(bad(what, why));
    }
    // What is derived would take a list too, for the fields in their order.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(bad(what, "not a JSON object"));
    }
    from_slice(bytes, what)
}

/// The same, whatever kind of JSON it is.
pub(in crate::source) fn from_slice<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    what: &str,
) -> Result<T, SourceError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let error = shown(&error.to_string());
        bad(what, format!("not the JSON that it should be: {error}"))
    })
}
