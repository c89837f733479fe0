//! Images that lie: one case for each field of each document, of each kind of place.

mod docker;
mod fields;
mod files;
mod places;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use docker::{docker, docker_image};
use serde_json::{Value, json};

use super::oci::{INDEX, LAYERS_MAX};
use super::{Manifest, Platform, SourceError, parse};
use crate::digest::Digest;
use crate::tar::testing::Tar;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

const LAYERS: [&[u8]; 2] = [b"the lower layer", b"the upper layer"];

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

/// The document that a case changes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum At {
    Mark,
    Index,
    Manifest,
    Config,
}

/// Sets what `pointer` leads to in `json`; removes it for `Value::Null`.
fn set(json: &mut Value, pointer: &str, value: &Value) {
    if pointer.is_empty() {
        *json = value.clone();
        return;
    }
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match json.pointer_mut(parent).unwrap() {
        Value::Object(map) if value.is_null() => drop(map.shift_remove(key)),
        Value::Object(map) => drop(map.insert(key.to_owned(), value.clone())),
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
        other => panic!("{other}"),
    }
}

/// An image's files, by the names that they have in a layout.
struct Image {
    manifest: Vec<u8>,
    config: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
}

/// An image of which one field is `value`.
fn image(at: At, pointer: &str, value: &Value) -> Image {
    let edit = |here: At, mut json: Value| {
        if here == at {
            set(&mut json, pointer, value);
        }
        json.to_string().into_bytes()
    };
    let config = edit(
        At::Config,
        json!({"architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": LAYERS.map(Digest::of)},
            "history": [{"created_by": "x"}, {"empty_layer": true}, {"created_by": "y"}]}),
    );
    let manifest = edit(
        At::Manifest,
        json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": LAYERS.map(|layer| descriptor(LAYER, layer))}),
    );
    let index = edit(
        At::Index,
        json!({"schemaVersion": 2, "mediaType": INDEX,
            "manifests": [descriptor(MANIFEST, &manifest)]}),
    );
    let mut files = BTreeMap::from([
        ("index.json".to_owned(), index),
        (
            "oci-layout".to_owned(),
            edit(At::Mark, json!({"imageLayoutVersion": "1.0.0"})),
        ),
    ]);
    for bytes in [&config, &manifest]
        .map(|b| &b[..])
        .into_iter()
        .chain(LAYERS)
    {
        files.insert(blob(bytes), bytes.to_vec());
    }
    Image {
        manifest,
        config,
        files,
    }
}

fn good() -> Image {
    image(At::Mark, "/x", &json!(1))
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

fn write(dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn tar(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let tar = files.iter();
    tar.fold(Tar::new(), |tar, (name, bytes)| tar.file(name, bytes))
        .end()
}

/// The same image as skopeo's directory transport has it.
fn dir(image: &Image) -> BTreeMap<String, Vec<u8>> {
    let blobs = image.files.iter().filter_map(|(name, bytes)| {
        let hex = name.strip_prefix("blobs/sha256/")?;
        Some((hex.to_owned(), bytes.clone()))
    });
    let mut files: BTreeMap<_, _> = blobs.collect();
    files.insert("manifest.json".into(), image.manifest.clone());
    files.insert(
        "version".into(),
        b"Directory Transport Version: 1.1\n".to_vec(),
    );
    files
}

/// Opens `prefix` and the path of `of`, and reads all of the image.
fn open(prefix: &str, of: &Path) -> Result<Manifest, SourceError> {
    open_as(&format!("{prefix}:{}", of.display()))
}

fn open_as(text: &str) -> Result<Manifest, SourceError> {
    let platform: Platform = "linux/amd64".parse().unwrap();
    let location = parse(text.as_ref())?.unwrap();
    assert_eq!(location.to_string(), text);
    let source = location.open_local()?.unwrap();
    let manifest = source.manifest(&platform)?;
    for layer in &manifest.layers {
        let mut bytes = Vec::new();
        source.layer(layer)?.read_to_end(&mut bytes).unwrap();
        assert_eq!(Digest::of(&bytes), layer.diff_id, "{text}");
        assert_eq!(layer.len, Some(bytes.len() as u64));
    }
    Ok(manifest)
}

#[track_caller]
fn refused(result: Result<Manifest, SourceError>, place: &Path, why: &str) {
    let error = result.expect_err(why).to_string();
    assert!(error.contains(why), "{error}\n  is not: {why}");
    assert!(!error.contains('\n') && error.len() < 800, "{error}");
    let place = place.to_str().unwrap();
    assert!(error.contains(place), "{error}\n  does not name {place}");
}

#[test]
fn a_good_image_is_the_same_from_everywhere() {
    let there = tempfile::tempdir().unwrap();
    let at = |name: &str| there.path().join(name);
    let image = good();
    write(&at("oci"), &image.files);
    write(&at("dir"), &dir(&image));
    fs::write(at("oci.tar"), tar(&image.files)).unwrap();
    let manifest = Some(Digest::of(&image.manifest));
    for (prefix, name) in [("oci", "oci"), ("oci-archive", "oci.tar"), ("dir", "dir")] {
        let found = open(prefix, &at(name)).unwrap();
        assert_eq!(found.manifest, manifest);
        assert_eq!(found.config, Digest::of(&image.config));
        assert_eq!(found.config_json, image.config);
        assert_eq!(found.index, None);
    }
    let archive = docker(&json!([docker_image()]));
    fs::write(at("docker.tar"), archive.end()).unwrap();
    let found = open("docker-archive", &at("docker.tar")).unwrap();
    assert_eq!(
        (found.manifest, found.config),
        (None, Digest::of(&image.config))
    );
}

#[test]
fn foreign_layers_that_are_there_are_taken() {
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let image = image(At::Manifest, "/layers/0/mediaType", &json!(foreign));
    let there = tempfile::tempdir().unwrap();
    write(there.path(), &image.files);
    open("oci", there.path()).unwrap();
}

#[test]
fn tags_and_digests_choose_an_image() {
    let there = tempfile::tempdir().unwrap();
    let place = there.path().join("a:b");
    let (one, two) = (good(), image(At::Config, "/author", &json!("me")));
    let named = |image: &Image, name: &str| {
        let mut entry = descriptor(MANIFEST, &image.manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entry
    };
    let index = json!({"schemaVersion": 2, "manifests":
        [named(&one, "one"), named(&two, "docker.io/library/two:v2")]});
    let mut files = one.files.clone();
    files.extend(two.files.clone());
    files.insert("index.json".into(), index.to_string().into_bytes());
    write(&place, &files);
    let tar_path = there.path().join("t.tar");
    fs::write(&tar_path, tar(&files)).unwrap();
    for (prefix, path) in [("oci", &place), ("oci-archive", &tar_path)] {
        let found = |behind: &str| open_as(&format!("{prefix}:{}{behind}", path.display()));
        for (behind, image) in [
            (":one".to_owned(), &one),
            (":docker.io/library/two:v2".to_owned(), &two),
            (format!("@{}", Digest::of(&one.manifest)), &one),
            (format!(":@{}", Digest::of(&two.manifest)), &two),
            (format!("@{}", Digest::of(&two.config)), &two),
        ] {
            let found = found(&behind).unwrap();
            assert_eq!(found.config, Digest::of(&image.config), "{behind}");
        }
        for (behind, why) in [
            (
                "",
                "several images; say which, behind the path: :one, :docker.io/library/two:v2",
            ),
            (":none", "no image called \"none\"; say which"),
            (":@0", "images of an OCI layout have no numbers"),
            (
                &*format!("@{}", Digest::of(b"x")),
                "with the digest sha256:2d71",
            ),
            ("@sha256:0", "64 hexadecimal digits"),
        ] {
            refused(found(behind), there.path(), why);
        }
    }
    // One image under two names, and a statement on it.
    let statement = {
        let mut entry = descriptor(MANIFEST, &two.manifest);
        entry["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        entry
    };
    let entries = [named(&one, "a"), named(&one, "b"), statement];
    let index = json!({"schemaVersion": 2, "manifests": entries});
    fs::write(place.join("index.json"), index.to_string()).unwrap();
    let found = open("oci", &place).unwrap();
    assert_eq!(found.config, Digest::of(&one.config));
    // All for their platforms, and none has a name: the index itself is the image.
    let on = |image: &Image, architecture: &str| {
        let mut entry = descriptor(MANIFEST, &image.manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let index = json!({"schemaVersion": 2, "manifests": [on(&one, "arm64"), on(&two, "amd64")]});
    fs::write(place.join("index.json"), index.to_string()).unwrap();
    let found = open("oci", &place).unwrap();
    assert_eq!(found.config, Digest::of(&two.config));
}
