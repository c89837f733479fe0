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
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fake::Images;
use serde_json::json;
use tarnfs::digest::{Digest, Hashed};
use tarnfs::source::registry::{Registry, RegistryOptions};
use tarnfs::source::{Platform, Source};
use tempfile::TempDir;

/// user `user`, password `secret`.
const HTPASSWD: &str = "user:$2y$05$TMvX6YNnvWyPxwGYPVyABOZ4fAPRhWFHLJgnh2/.DUCDt3Bl0nSyW\n";
const AUTH: &str = "dXNlcjpzZWNyZXQ=";

/// A registry of this test alone.
struct Server {
    dir: TempDir,
    address: String,
    child: Child,
}

impl Server {
    /// None, loudly, where it cannot be.
    fn start(password: bool) -> Option<Self> {
        if !common::has("docker-registry") || !common::has("skopeo") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let auth = if password {
            fs::write(root.join("htpasswd"), HTPASSWD).unwrap();
            json!({"htpasswd": {"realm": "test", "path": root.join("htpasswd")}})
        } else {
            json!({})
        };
        let config = json!({
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": root.join("data")}},
            "http": {"addr": "127.0.0.1:0"},
            "auth": auth,
        });
        // JSON is YAML.
        fs::write(root.join("config.yml"), config.to_string()).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(root.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            if log.read_line(&mut line).unwrap() == 0 {
                panic!("the registry ended: {:?}", child.wait());
            }
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ' ', ',']).next().unwrap().to_owned();
            }
        };
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Self {
            dir,
            address,
            child,
        })
    }

    fn skopeo(&self, args: &[&str], layout: &Path, tag: &str) {
        let mut command = vec!["copy", "--quiet", "--dest-tls-verify=false"];
        command.extend(args);
        let from = format!("oci:{}", layout.display());
        let to = format!("docker://{}/a/b:{tag}", self.address);
        command.extend([from.as_str(), to.as_str()]);
        common::ok("skopeo", command);
    }

    fn open(&self, tag: &str, options: &RegistryOptions) -> Registry {
        Registry::open(&format!("{}/a/b:{tag}", self.address), options).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

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
    let dir = server.dir.path().join("layout");
    let digest = layout(&dir, &layers);
    server.skopeo(&["--preserve-digests"], &dir, "one");

    let options = RegistryOptions::default();
    check(&server.open("one", &options), digest, &layers);
    let by_digest = format!("one@{digest}");
    check(&server.open(&by_digest, &options), digest, &layers);

    let none = server.open("none", &options);
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
    let dir = server.dir.path().join("layout");
    let digest = layout(&dir, &layers);
    let to_server = ["--preserve-digests", "--dest-creds", "user:secret"];
    server.skopeo(&to_server, &dir, "one");

    let mut options = RegistryOptions::default();
    let open = server.open("one", &options);
    let error = open.manifest(&Platform::here()).unwrap_err().to_string();
    assert!(error.contains("wants a login"), "{error}");

    let file = server.dir.path().join("auth.json");
    let auths = json!({"auths": {server.address.as_str(): {"auth": AUTH}}});
    fs::write(&file, auths.to_string()).unwrap();
    options.auth_file = Some(file);
    check(&server.open("one", &options), digest, &layers);
}
