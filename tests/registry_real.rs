//! `docker://` from the reference registry (`docker-registry`), filled by `skopeo`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;
// Not in `common` itself: only tests of registries need TLS.
#[path = "common/registry.rs"]
mod fake;

use std::fs;
use std::io::Read;
use std::path::Path;

use common::docker_registry::Server;
use fake::Images;
use serde_json::json;
use tarnfs::digest::{Digest, Hashed};
use tarnfs::source::registry::{Registry, RegistryOptions};
use tarnfs::source::{Platform, Source};

/// An OCI layout with one image.
fn layout(dir: &Path, layers: &[&[u8]]) -> Digest {
    let images = Images::of(layers);
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for bytes in images.files.values() {
        fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
    }
    let manifest = &images.files["manifests/latest"];
    let digest = Digest::of(manifest);
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": fake::MANIFEST,
            "digest": digest.to_string(),
            "size": manifest.len(),
        }],
    });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    let version = json!({"imageLayoutVersion": "1.0.0"});
    fs::write(dir.join("oci-layout"), version.to_string()).unwrap();
    digest
}

fn opened(server: &Server, tag: &str, options: &RegistryOptions) -> Registry {
    Registry::open(&server.image(tag), options).unwrap()
}

fn check(registry: &Registry, digest: Digest, layers: &[&[u8]]) {
    let platform: Platform = "linux/amd64".parse().unwrap();
    let manifest = registry.manifest(&platform).unwrap();
    assert_eq!(manifest.manifest, Some(digest));
    assert_eq!(manifest.layers.len(), layers.len());
    for (layer, bytes) in manifest.layers.iter().zip(layers) {
        let mut input = Hashed::new(registry.layer(layer).unwrap());
        let mut read = Vec::new();
        input.read_to_end(&mut read).unwrap();
        assert_eq!(&read, bytes);
        assert_eq!(input.finish().0, layer.digest.unwrap());
    }
}

/// Layers as tars are: `skopeo` copies them as they are.
fn layers() -> [Vec<u8>; 2] {
    [vec![0; 10_240], vec![7; 3 << 20]]
}

#[test]
fn for_anybody() {
    let Some(server) = Server::start(false) else {
        return;
    };
    let layers = layers();
    let layers = [layers[0].as_slice(), layers[1].as_slice()];
    let dir = server.path().join("layout");
    let digest = layout(&dir, &layers);
    server.skopeo(&["--preserve-digests"], &dir, "one");

    let options = RegistryOptions::default();
    check(&opened(&server, "one", &options), digest, &layers);
    let by_digest = format!("one@{digest}");
    check(&opened(&server, &by_digest, &options), digest, &layers);

    let none = opened(&server, "none", &options);
    let error = none.manifest(&Platform::here()).unwrap_err().to_string();
    assert!(error.contains("no such image or tag"), "{error}");
}

#[test]
fn with_a_password() {
    let Some(server) = Server::start(true) else {
        return;
    };
    let layers = layers();
    let layers = [layers[0].as_slice(), layers[1].as_slice()];
    let dir = server.path().join("layout");
    let digest = layout(&dir, &layers);
    let to_server = ["--preserve-digests", "--dest-creds", "user:secret"];
    server.skopeo(&to_server, &dir, "one");

    let mut options = RegistryOptions::default();
    let open = opened(&server, "one", &options);
    let error = open.manifest(&Platform::here()).unwrap_err().to_string();
    assert!(error.contains("wants a login"), "{error}");

    options.auth_file = Some(server.auth_file());
    check(&opened(&server, "one", &options), digest, &layers);
}
