//! What the tests of the image store share: images in layers, written without any other program,
//! and what a store must be like.

// Each test file uses its part of this.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tarnfs::digest::Digest;

use super::common::tarball::{Header, Tarball};
use super::common::{TARNFS, assert_ok, run, text};

/// Bytes that do not compress, and are the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next)
        .flatten()
        .take(len)
        .collect()
}

/// A layer with files in `dir`, one of them sparse, so that its image has a side blob.
pub(crate) fn layer(dir: &str, seed: u64, len: usize) -> Vec<u8> {
    let name = |file: &str| format!("{dir}/{file}").into_bytes();
    let mut tar = Tarball::default().dir(dir.as_bytes());
    for n in 0..8 {
        let content = noise(seed + n, len / 8 + 13);
        tar = tar.file(&name(&format!("file{n}")), &content);
    }
    // GNU tar's old form: 1,500 bytes at 1,000, of a file of 100,000.
    let mut sparse = Header::new(&name("sparse"), b'S', 1500);
    sparse.put(257, b"ustar  \0");
    let field = |n: u64| format!("{n:011o}\0").into_bytes();
    for (at, n) in [
        (386, 1000),
        (398, 1500),
        (410, 100_000),
        (422, 0),
        (483, 100_000),
    ] {
        sparse.put(at, &field(n));
    }
    tar.header(&sparse).body(&noise(seed, 1500)).end()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
    serde_json::to_vec(&json!({
        "architecture": tarnfs_architecture(), "os": "linux",
        "config": { "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    }))
    .unwrap()
}

fn tarnfs_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Writes an OCI image layout; every other layer is compressed.
pub(crate) fn layout(dir: &Path, layers: &[Vec<u8>]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let described = |media_type: &str, bytes: &[u8]| -> Value {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({
            "mediaType": format!("application/vnd.oci.image.{media_type}"),
            "digest": digest.to_string(),
            "size": bytes.len(),
        })
    };
    let stored = |(n, layer): (usize, &Vec<u8>)| match n % 2 {
        0 => described("layer.v1.tar+gzip", &gzip(layer)),
        _ => described("layer.v1.tar", layer),
    };
    let layers_json: Vec<Value> = layers.iter().enumerate().map(stored).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("config.v1+json", &config(layers)),
        "layers": layers_json,
    });
    let manifest = described("manifest.v1+json", &serde_json::to_vec(&manifest).unwrap());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Writes what `docker save` writes, of the old form.
pub(crate) fn docker_archive(path: &Path, layers: &[Vec<u8>]) {
    let names: Vec<String> = (0..layers.len()).map(|n| format!("l{n}.tar")).collect();
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["a:b"], "Layers": names }]);
    let mut tar = Tarball::default()
        .file(b"manifest.json", manifest.to_string().as_bytes())
        .file(b"c.json", &config(layers));
    for (name, layer) in names.iter().zip(layers) {
        tar = tar.file(name.as_bytes(), layer);
    }
    fs::write(path, tar.end()).unwrap();
}

/// Writes one tar, compressed.
pub(crate) fn tar_gz(path: &Path, layer: &[u8]) {
    fs::write(path, gzip(layer)).unwrap();
}

/// `tarnfs args…` with the store `store`.
pub(crate) fn command(store: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(TARNFS);
    command.arg("--store").arg(store).args(args);
    command
}

/// The same, run to its end.
pub(crate) fn tarnfs(store: &Path, args: &[&str]) -> Output {
    run(command(store, args))
}

/// The same, which must succeed.
pub(crate) fn tarnfs_ok(store: &Path, args: &[&str]) -> String {
    let output = tarnfs(store, args);
    assert_ok(&output, &format!("tarnfs {args:?}"));
    text(&output.stdout)
}

/// The digest of all that an image holds.
pub(crate) fn content(store: &Path, image: &str) -> String {
    tarnfs_ok(store, &["flatten", image, "-o", "/dev/null"])
}

/// Digests of the images that are listed.
pub(crate) fn listed(store: &Path) -> BTreeSet<String> {
    let out = tarnfs_ok(store, &["images", "-q"]);
    out.lines().map(str::to_owned).collect()
}

/// Everything in the store but its directories.
pub(crate) fn left(store: &Path) -> Vec<PathBuf> {
    let mut left = Vec::new();
    let mut todo = vec![store.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let depth = entry
                .path()
                .strip_prefix(store)
                .unwrap()
                .components()
                .count();
            // An entry's own directory is something; the store's are not.
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && depth <= 2 && entry.path().parent() != Some(&store.join("tmp")) {
                todo.push(entry.path());
            } else {
                left.push(entry.path());
            }
        }
    }
    left
}

/// After everything was removed there is nothing.
pub(crate) fn assert_empties(store: &Path, what: &str) {
    let said = tarnfs_ok(store, &["gc", "--all", "--min-age", "0"]);
    let left = left(store);
    assert!(left.is_empty(), "{what}: {left:?}\n{said}");
}

/// Nothing in the store is damaged.
pub(crate) fn assert_clean(store: &Path, what: &str) {
    assert_ok(&tarnfs(store, &["verify"]), what);
}

/// Copies a store, with its times.
pub(crate) fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).unwrap();
    }
    let args: [OsString; 4] = ["-a".into(), "--reflink=auto".into(), from.into(), to.into()];
    super::common::ok("cp", args);
}

/// Writes over a byte of a file, whatever its mode.
pub(crate) fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::remove_file(path).unwrap();
    File::create(path).unwrap().write_all(&bytes).unwrap();
}

/// The layers of a store, the largest first.
pub(crate) fn blobs(store: &Path) -> Vec<PathBuf> {
    let dir = fs::read_dir(store.join("blobs/sha256")).unwrap();
    let mut all: Vec<PathBuf> = dir.map(|entry| entry.unwrap().path()).collect();
    all.sort_by_key(|path| std::cmp::Reverse((fs::metadata(path).unwrap().len(), path.clone())));
    all
}
