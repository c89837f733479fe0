//! The documents of a layout: index, manifest, configuration.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::{ExportError, Layer};
use crate::digest::Digest;

/// Where the index of a layout has an image's name (the OCI image specification's annotations.md).
pub(super) const NAME: &str = "org.opencontainers.image.ref.name";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What a layout's `oci-layout` holds.
pub(super) const MARK: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The name of an image in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tag {
    type Err = ExportError;

    /// annotations.md has the grammar: letters and digits, with one of `-._:@/+` or `--` between.
    fn from_str(text: &str) -> Result<Self, ExportError> {
        let bad = |why| ExportError::Tag {
            tag: text.to_owned(),
            why,
        };
        let sign = |c: char| "-._:@/+".contains(c);
        if !text.chars().all(|c| c.is_ascii_alphanumeric() || sign(c)) {
            return Err(bad("a name in a layout is of letters, digits and -._:@/+"));
        }
        if text.is_empty() || text.starts_with(sign) || text.ends_with(sign) || text.len() > 255 {
            return Err(bad(
                "a name in a layout begins and ends with a letter or a digit, and has at most 255",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A document, as it is.
pub(super) struct Document {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
}

impl Document {
    fn new(bytes: Vec<u8>) -> Self {
        let digest = Digest::of(&bytes);
        Self { bytes, digest }
    }
}

/// What stands beside the layers.
pub(super) struct Documents {
    pub(super) config: Document,
    pub(super) manifest: Document,
    /// What the index says of the manifest.
    pub(super) entry: Value,
}

impl Documents {
    /// Those of an image of `layers`.
    pub(super) fn new(
        layers: &[Layer],
        config: Vec<u8>,
        tag: Option<&Tag>,
        since: Option<Digest>,
    ) -> Self {
        let config = Document::new(config);
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| descriptor(LAYER, &layer.digest, layer.len))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config.digest, config.bytes.len() as u64),
            "layers": layers,
        });
        let manifest = Document::new(manifest.to_string().into_bytes());
        let mut entry = descriptor(MANIFEST, &manifest.digest, manifest.bytes.len() as u64);
        let mut annotations = Map::new();
        if let Some(tag) = tag {
            annotations.insert(NAME.to_owned(), tag.as_str().into());
        }
        if let Some(since) = since {
            let key = crate::source::SINCE.to_owned();
            annotations.insert(key, since.to_string().into());
        }
        if let Some(entry) = entry.as_object_mut().filter(|_| !annotations.is_empty()) {
            entry.insert("annotations".to_owned(), annotations.into());
        }
        Self {
            config,
            manifest,
            entry,
        }
    }

    pub(super) fn config_digest(&self) -> Digest {
        self.config.digest
    }

    pub(super) fn manifest_digest(&self) -> Digest {
        self.manifest.digest
    }
}

fn descriptor(kind: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": kind, "digest": digest, "size": size })
}

/// An index of no image yet.
pub(super) fn empty_index() -> Map<String, Value> {
    let mut index = Map::new();
    index.insert("schemaVersion".to_owned(), 2.into());
    index.insert("mediaType".to_owned(), INDEX.into());
    index.insert("manifests".to_owned(), Value::Array(Vec::new()));
    index
}

/// Lets `index` lead to the manifest that `entry` describes, in place of what had its name.
pub(super) fn enter(index: &mut Map<String, Value>, entry: &Value) -> Result<(), &'static str> {
    let name = |entry: &Value| entry.pointer("/annotations")?.get(NAME).cloned();
    let all = index
        .entry("manifests")
        .or_insert_with(|| Value::Array(Vec::new()));
    if all.is_null() {
        *all = Value::Array(Vec::new());
    }
    let all = all.as_array_mut().ok_or("has manifests that are no list")?;
    if all.contains(entry) {
        return Ok(());
    }
    let (own, digest) = (name(entry), entry.get("digest"));
    all.retain(|there| match (name(there), &own) {
        (Some(there), Some(own)) => there != *own,
        // The same image without a name says nothing that this entry does not say.
        (None, _) => there.get("digest") != digest,
        (Some(_), None) => true,
    });
    // One with a name says all that one without would.
    if own.is_some() || !all.iter().any(|there| there.get("digest") == digest) {
        all.push(entry.clone());
    }
    Ok(())
}

/// The name of a blob.
pub(super) fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_in_a_layout() {
        for good in ["a", "latest", "a/b:1.2", "x--y", "A@1+2"] {
            assert!(good.parse::<Tag>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "a\n", "ä", &"a".repeat(256)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_entry_takes_the_place_of_what_had_its_name() {
        let entry = |digest: &str, name: Option<&str>| match name {
            Some(name) => json!({"digest": digest, "annotations": {NAME: name}}),
            None => json!({"digest": digest}),
        };
        let mut index = empty_index();
        index.insert("other".into(), 1.into());
        let mut becomes = |new: Value, want: &[Value]| {
            enter(&mut index, &new).unwrap();
            assert_eq!(index["manifests"], json!(want));
            assert_eq!(index["other"], 1);
        };
        let (a, b) = (entry("a", None), entry("b", Some("x")));
        becomes(a.clone(), std::slice::from_ref(&a));
        becomes(a.clone(), std::slice::from_ref(&a));
        becomes(b.clone(), &[a.clone(), b.clone()]);
        becomes(entry("b", None), &[a.clone(), b.clone()]);
        let c = entry("c", Some("x"));
        becomes(c.clone(), &[a.clone(), c.clone()]);
        let named = entry("a", Some("y"));
        becomes(named.clone(), &[c, named]);
        let mut odd = Map::new();
        odd.insert("manifests".into(), 1.into());
        assert!(enter(&mut odd, &a).is_err());
    }
}
