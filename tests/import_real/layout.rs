//! Reading OCI image layouts.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tarnfs::digest::Digest;

pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

pub(crate) fn read_json(path: &Path) -> Value {
    json(&fs::read_to_string(path).unwrap())
}

pub(crate) fn digest(value: &Value) -> Digest {
    value.as_str().unwrap().parse().unwrap()
}

/// The file of a blob.
pub(crate) fn blob(layout: &Path, of: &Value) -> PathBuf {
    layout.join("blobs/sha256").join(digest(of).hex())
}

/// What the index says of the image `tag`, and its manifest.
pub(crate) fn manifest(layout: &Path, tag: &str) -> (Value, Value) {
    let index = read_json(&layout.join("index.json"));
    let of = index["manifests"].as_array().unwrap();
    let name = "org.opencontainers.image.ref.name";
    let found = of.iter().find(|m| m["annotations"][name] == tag).unwrap();
    let manifest = read_json(&blob(layout, &found["digest"]));
    (found.clone(), manifest)
}
