//! Images that lie: one case for each field of each document, of each kind of place.

mod docker;
mod places;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::symlink;
use std::path::Path;

use docker::{docker, docker_image};
use serde_json::{Value, json};

use super::oci::{CONFIG_MAX, INDEX, LAYER_MAX, LAYERS_MAX, MANIFEST_MAX};
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
fn each_field_is_checked() {
    let other = Digest::of(b"other");
    let sha512 = format!("sha512:{}", "0".repeat(128));
    let many = vec![descriptor(LAYER, b"x"); LAYERS_MAX + 1];
    let cases: Vec<(At, &str, Value, &str)> = vec![
        (At::Mark, "", json!([]), "not a JSON object"),
        (
            At::Mark,
            "/imageLayoutVersion",
            json!(null),
            "no \"imageLayoutVersion\"",
        ),
        (At::Mark, "/imageLayoutVersion", json!(1), "not the JSON"),
        (
            At::Mark,
            "/imageLayoutVersion",
            json!("2.0.0"),
            "version \"2.0.0\"",
        ),
        (At::Index, "", json!("x"), "not a JSON object"),
        (
            At::Index,
            "/schemaVersion",
            json!(null),
            "no \"schemaVersion\"",
        ),
        (At::Index, "/schemaVersion", json!(1), "schema 1"),
        (At::Index, "/schemaVersion", json!(3), "schemaVersion is 3"),
        (At::Index, "/schemaVersion", json!("2"), "not the JSON"),
        (
            At::Index,
            "/mediaType",
            json!(MANIFEST),
            "what led here says",
        ),
        (At::Index, "/mediaType", json!("x/y"), "what led here says"),
        (At::Index, "/manifests", json!(null), "no \"manifests\""),
        (At::Index, "/manifests", json!({}), "not the JSON"),
        (At::Index, "/manifests", json!([]), "it lists no image"),
        (At::Index, "/manifests/0", json!("x"), "not the JSON"),
        (
            At::Index,
            "/manifests/0/mediaType",
            json!(null),
            "no \"manifests[0].mediaType\"",
        ),
        (
            At::Index,
            "/manifests/0/mediaType",
            json!("x/y"),
            "media type \"x/y\"",
        ),
        (
            At::Index,
            "/manifests/0/mediaType",
            json!(INDEX),
            "what led here says",
        ),
        (
            At::Index,
            "/manifests/0/digest",
            json!(null),
            "no \"manifests[0].digest\"",
        ),
        (
            At::Index,
            "/manifests/0/digest",
            json!("../../etc"),
            "is no digest",
        ),
        (
            At::Index,
            "/manifests/0/digest",
            json!(sha512),
            "another algorithm",
        ),
        (
            At::Index,
            "/manifests/0/digest",
            json!(other),
            "no such blob",
        ),
        (
            At::Index,
            "/manifests/0/size",
            json!(null),
            "no \"manifests[0].size\"",
        ),
        (At::Index, "/manifests/0/size", json!(-1), "-1 is no length"),
        (At::Index, "/manifests/0/size", json!(1.5), "not the JSON"),
        (
            At::Index,
            "/manifests/0/size",
            json!(u64::MAX),
            "not the JSON",
        ),
        (
            At::Index,
            "/manifests/0/size",
            json!(7),
            "its descriptor says 7",
        ),
        (
            At::Index,
            "/manifests/0/size",
            json!(MANIFEST_MAX + 1),
            "at most 4194304",
        ),
        (At::Index, "/manifests/0/platform", json!(5), "not the JSON"),
        (
            At::Index,
            "/manifests/0/platform",
            json!({"os": "windows", "architecture": "amd64"}),
            "no image for linux/amd64; there are windows/amd64",
        ),
        (
            At::Index,
            "/manifests/0/platform",
            json!({"os": "unknown", "architecture": "unknown"}),
            "it lists no image",
        ),
        (
            At::Index,
            "/manifests/0/annotations",
            json!({"vnd.docker.reference.type": "attestation-manifest"}),
            "it lists no image",
        ),
        (At::Manifest, "", json!([]), "not a JSON object"),
        (
            At::Manifest,
            "/schemaVersion",
            json!(null),
            "no \"schemaVersion\"",
        ),
        (At::Manifest, "/schemaVersion", json!(1), "schema 1"),
        (
            At::Manifest,
            "/mediaType",
            json!(INDEX),
            "what led here says",
        ),
        (
            At::Manifest,
            "/mediaType",
            json!(LAYER),
            "what led here says",
        ),
        (At::Manifest, "/manifests", json!([]), "ambiguous"),
        (At::Manifest, "/config", json!(null), "no \"config\""),
        (At::Manifest, "/config", json!("x"), "not the JSON"),
        (
            At::Manifest,
            "/config/mediaType",
            json!(null),
            "no \"config.mediaType\"",
        ),
        (
            At::Manifest,
            "/config/mediaType",
            json!("application/vnd.cncf.helm.config.v1+json"),
            "not an image: its config is of the media type",
        ),
        (
            At::Manifest,
            "/config/digest",
            json!(null),
            "no \"config.digest\"",
        ),
        (At::Manifest, "/config/digest", json!(other), "is missing"),
        (
            At::Manifest,
            "/config/digest",
            json!(sha512),
            "another algorithm",
        ),
        (
            At::Manifest,
            "/config/size",
            json!(null),
            "no \"config.size\"",
        ),
        (
            At::Manifest,
            "/config/size",
            json!(-5),
            "config.size: -5 is no length",
        ),
        (
            At::Manifest,
            "/config/size",
            json!(1),
            "its descriptor says 1",
        ),
        (
            At::Manifest,
            "/config/size",
            json!(CONFIG_MAX + 1),
            "at most 8388608",
        ),
        (At::Manifest, "/layers", json!(null), "no \"layers\""),
        (At::Manifest, "/layers", json!(1), "not the JSON"),
        (
            At::Manifest,
            "/layers",
            json!([]),
            "2 layers, and the manifest 0",
        ),
        (At::Manifest, "/layers", json!(many), "4097 layers"),
        (
            At::Manifest,
            "/layers/1/mediaType",
            json!(null),
            "no \"layers[1].mediaType\"",
        ),
        (
            At::Manifest,
            "/layers/1/mediaType",
            json!("application/vnd.example.squashfs"),
            "layers[1] is of the media type \"application/vnd.example.squashfs\"",
        ),
        (
            At::Manifest,
            "/layers/1/mediaType",
            json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
            "layers[1] is encrypted",
        ),
        (
            At::Manifest,
            "/layers/1/digest",
            json!(null),
            "no \"layers[1].digest\"",
        ),
        (At::Manifest, "/layers/1/digest", json!(other), "is missing"),
        (At::Manifest, "/layers/1/digest", json!(""), "is no digest"),
        (
            At::Manifest,
            "/layers/1/size",
            json!(null),
            "no \"layers[1].size\"",
        ),
        (
            At::Manifest,
            "/layers/1/size",
            json!(-1),
            "layers[1].size: -1 is no length",
        ),
        (
            At::Manifest,
            "/layers/1/size",
            json!(14),
            "its descriptor says 14",
        ),
        (
            At::Manifest,
            "/layers/1/size",
            json!(LAYER_MAX + 1),
            "layers[1].size",
        ),
        (
            At::Manifest,
            "/layers/1",
            json!({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "digest": other, "size": 5, "urls": ["https://example.com"]}),
            "is kept elsewhere",
        ),
        (At::Config, "", json!("x"), "not a JSON object"),
        (
            At::Config,
            "/os",
            json!("windows"),
            "for windows, not for linux",
        ),
        (At::Config, "/os", json!(1), "not the JSON"),
        (At::Config, "/rootfs", json!(null), "no \"rootfs\""),
        (
            At::Config,
            "/rootfs/type",
            json!(null),
            "no \"rootfs.type\"",
        ),
        (
            At::Config,
            "/rootfs/type",
            json!("flat"),
            "rootfs.type is \"flat\"",
        ),
        (
            At::Config,
            "/rootfs/diff_ids",
            json!(null),
            "no \"rootfs.diff_ids\"",
        ),
        (At::Config, "/rootfs/diff_ids", json!("x"), "not the JSON"),
        (
            At::Config,
            "/rootfs/diff_ids",
            json!([other]),
            "1 layers, and the manifest 2",
        ),
        (
            At::Config,
            "/rootfs/diff_ids/1",
            json!("sha256:0"),
            "rootfs.diff_ids[1]",
        ),
        (
            At::Config,
            "/rootfs/diff_ids/1",
            json!(sha512),
            "another algorithm",
        ),
    ];
    for (at, pointer, value, why) in cases {
        eprintln!("{at:?} {pointer} {why}");
        let image = image(at, pointer, &value);
        let there = tempfile::tempdir().unwrap();
        let place = there.path().join("oci");
        write(&place, &image.files);
        refused(open("oci", &place), &place, why);
        let place = there.path().join("oci.tar");
        fs::write(&place, tar(&image.files)).unwrap();
        refused(open("oci-archive", &place), &place, why);
        if matches!(at, At::Manifest | At::Config) {
            // Here nothing leads to the manifest but its name.
            let why = match (pointer, &value) {
                ("/mediaType", value) if value == INDEX => "ambiguous",
                ("/mediaType", _) => "neither an image's manifest",
                ("", Value::Array(_)) => "of an unpacked docker archive",
                _ => why,
            };
            let place = there.path().join("dir");
            write(&place, &dir(&image));
            refused(open("dir", &place), &place, why);
        }
        if at == At::Config {
            let place = there.path().join("docker.tar");
            let name = format!("{}.json", Digest::of(&image.config).hex());
            let mut listed = docker_image();
            set(&mut listed, "/Config", &json!(name));
            let tar = docker(&json!([listed])).file(&name, &image.config);
            fs::write(&place, tar.end()).unwrap();
            refused(open("docker-archive", &place), &place, why);
        }
    }
}

#[test]
fn each_file_is_checked() {
    type Change = fn(&Path);
    let cases: [(&str, Option<Change>, &str); 14] = [
        ("oci-layout", None, "not an OCI image layout"),
        ("index.json", None, "index.json: is missing"),
        ("manifest", None, "is missing"),
        ("config", None, "is missing"),
        ("layer", None, "is missing"),
        (
            "index.json",
            Some(|path| fs::write(path, "{").unwrap()),
            "not the JSON",
        ),
        (
            "index.json",
            Some(|path| fs::write(path, "").unwrap()),
            "not a JSON object",
        ),
        (
            "index.json",
            Some(|path| fs::File::create(path).unwrap().set_len(1 << 30).unwrap()),
            "1073741824 bytes long; at most",
        ),
        ("manifest", Some(other_bytes), "damaged: its digest is"),
        ("config", Some(other_bytes), "damaged: its digest is"),
        (
            "manifest",
            Some(longer),
            "bytes long, and its descriptor says",
        ),
        (
            "config",
            Some(longer),
            "bytes long, and its descriptor says",
        ),
        (
            "layer",
            Some(longer),
            "16 bytes long, and its descriptor says 15",
        ),
        (
            "layer",
            Some(|path| fs::create_dir(path).unwrap()),
            "is a directory",
        ),
    ];
    for (file, change, why) in cases {
        eprintln!("{file} {why}");
        for prefix in ["oci", "dir"] {
            let image = good();
            let there = tempfile::tempdir().unwrap();
            let place = there.path().join("place");
            let (files, blobs) = match prefix {
                "oci" => (image.files.clone(), "blobs/sha256/"),
                _ => (dir(&image), ""),
            };
            let blob = |bytes: &[u8]| format!("{blobs}{}", Digest::of(bytes).hex());
            let name = match (file, prefix) {
                ("manifest", "oci") => blob(&image.manifest),
                ("config", _) => blob(&image.config),
                ("layer", _) => blob(LAYERS[1]),
                ("manifest", _) => continue,
                (other, "oci") => other.to_owned(),
                _ => continue,
            };
            write(&place, &files);
            let path = place.join(name);
            let before = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            if let Some(change) = change {
                if why.contains("damaged") || why.contains("descriptor") {
                    fs::write(&path, before).unwrap();
                }
                change(&path);
            }
            refused(open(prefix, &place), &place, why);
        }
    }
}

fn other_bytes(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[1] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn longer(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes.push(b'\n');
    fs::write(path, bytes).unwrap();
}

#[test]
fn blobs_may_be_links_to_regular_files_and_nothing_else() {
    let image = good();
    let there = tempfile::tempdir().unwrap();
    let place = there.path().join("oci");
    write(&place, &image.files);
    let layer = place.join(blob(LAYERS[0]));
    let kept = there.path().join("kept");
    fs::rename(&layer, &kept).unwrap();
    symlink(&kept, &layer).unwrap();
    open("oci", &place).unwrap();
    for (target, why) in [
        ("/dev/zero", "is a character device"),
        ("nowhere", "is missing"),
        ("/", "is a directory"),
    ] {
        fs::remove_file(&layer).unwrap();
        symlink(target, &layer).unwrap();
        refused(open("oci", &place), &place, why);
    }
    for name in [
        blob(LAYERS[0]),
        blob(&image.config),
        blob(&image.manifest),
        "index.json".into(),
    ] {
        let path = place.join(name);
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        refused(open("oci", &place), &place, "is a FIFO, not a regular file");
    }
}

#[test]
fn a_layer_that_shrinks_while_it_is_read_is_an_error() {
    let image = good();
    let there = tempfile::tempdir().unwrap();
    let place = there.path().join("oci");
    write(&place, &image.files);
    let text = format!("oci:{}", place.display());
    let source = parse(text.as_ref())
        .unwrap()
        .unwrap()
        .open_local()
        .unwrap()
        .unwrap();
    let manifest = source.manifest(&"linux/amd64".parse().unwrap()).unwrap();
    let layer = &manifest.layers[0];
    let path = place.join(blob(LAYERS[0]));
    let mut stream = source.layer(layer).unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(7)
        .unwrap();
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(
        error.to_string().contains("layer 1: 8 bytes are missing"),
        "{error}"
    );
    let error = source.layer(layer).err().unwrap().to_string();
    assert!(error.contains("changed meanwhile"), "{error}");
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
