//! Images made document by document, as OCI layouts and docker archives: what a test wants to be
//! wrong, it changes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use tarnfs::digest::Digest;

use super::tarball::{Header, Tarball};

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer as it is stored.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
    /// The digest of the uncompressed bytes.
    pub(crate) diff_id: Digest,
}

impl Stored {
    pub(crate) fn plain(tar: &[u8]) -> Self {
        Self::of(tar, tar.to_vec(), "")
    }

    pub(crate) fn gzip(tar: &[u8]) -> Self {
        Self::of(tar, gzip(tar), "+gzip")
    }

    pub(crate) fn zstd(tar: &[u8]) -> Self {
        Self::of(tar, zstd(tar), "+zstd")
    }

    fn of(tar: &[u8], bytes: Vec<u8>, suffix: &str) -> Self {
        Self {
            media_type: format!("{LAYER}{suffix}"),
            bytes,
            diff_id: Digest::of(tar),
        }
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A document of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doc {
    Config,
    Manifest,
    Index,
}

/// An OCI layout: its blobs and its index.
#[derive(Clone, Default)]
pub(crate) struct Layout {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) index: Vec<u8>,
    pub(crate) config: Option<Digest>,
}

impl Layout {
    /// An image of these layers under the tag `latest`.
    pub(crate) fn of(layers: &[Stored]) -> Self {
        Self::changed(layers, |_, _| ())
    }

    /// The same, each document changed before anything refers to it.
    pub(crate) fn changed(layers: &[Stored], change: impl Fn(Doc, &mut Value)) -> Self {
        let mut layout = Self::default();
        let manifest = layout.image(layers, "amd64", &change);
        let mut index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
        index["manifests"][0]["annotations"] =
            json!({"org.opencontainers.image.ref.name": "latest"});
        change(Doc::Index, &mut index);
        layout.index = serde_json::to_vec(&index).unwrap();
        layout
    }

    /// Adds an image; gives the descriptor of its manifest.
    pub(crate) fn image(
        &mut self,
        layers: &[Stored],
        architecture: &str,
        change: &impl Fn(Doc, &mut Value),
    ) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|l| l.diff_id.to_string()).collect();
        let mut config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        change(Doc::Config, &mut config);
        let config = serde_json::to_vec(&config).unwrap();
        self.config = Some(Digest::of(&config));
        let config = self.descriptor(CONFIG, &config);
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| self.descriptor(&layer.media_type, &layer.bytes))
            .collect();
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        change(Doc::Manifest, &mut manifest);
        let manifest = serde_json::to_vec(&manifest).unwrap();
        self.descriptor(MANIFEST, &manifest)
    }

    /// Adds a blob; gives its descriptor.
    pub(crate) fn descriptor(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.blobs.insert(digest.hex(), bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Its files, by their paths.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mark = br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec();
        let mut files = vec![
            ("oci-layout".to_owned(), mark),
            ("index.json".to_owned(), self.index.clone()),
        ];
        for (hex, bytes) in &self.blobs {
            files.push((format!("blobs/sha256/{hex}"), bytes.clone()));
        }
        files
    }

    pub(crate) fn write(&self, dir: &Path) {
        for (name, bytes) in self.files() {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// As a tar.
    pub(crate) fn archive(&self) -> Vec<u8> {
        tar_of(&self.files())
    }
}

/// A tar of these files.
pub(crate) fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let tar = files.iter().fold(Tarball::default(), |tar, (name, bytes)| {
        tar.file(name.as_bytes(), bytes)
    });
    tar.end()
}

/// What `docker save` writes of an image, its `manifest.json` changed.
pub(crate) fn docker_archive(
    layers: &[Stored],
    change: impl Fn(Doc, &mut Value),
) -> Vec<(String, Vec<u8>)> {
    let diff_ids: Vec<_> = layers.iter().map(|l| l.diff_id.to_string()).collect();
    let mut config = json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    change(Doc::Config, &mut config);
    let config = serde_json::to_vec(&config).unwrap();
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let mut files = Vec::new();
    let mut names = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        let name = format!("{n}/layer.tar");
        files.push((name.clone(), layer.bytes.clone()));
        names.push(name);
    }
    let mut manifest = json!([
        {"Config": config_name, "RepoTags": ["it:latest"], "Layers": names}
    ]);
    change(Doc::Manifest, &mut manifest);
    files.push((config_name, config));
    files.push((
        "manifest.json".to_owned(),
        serde_json::to_vec(&manifest).unwrap(),
    ));
    files
}

/// A small root filesystem: `etc/os-release` says `name`, and one file has `len` bytes.
pub(crate) fn root(name: &str, len: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
    Tarball::default()
        .dir(b"etc/")
        .file(b"etc/os-release", format!("NAME={name}\n").as_bytes())
        .file(b"data", &bytes)
        .end()
}

/// A tar of sparse files (GNU's format 1.0 would do; the old one is shorter), so that the image
/// has a side blob: data that does not lie on the tar's blocks.
pub(crate) fn sparse_root() -> Vec<u8> {
    let mut header = Header::new(b"sparse", b'S', 512);
    header
        .put(257, b"ustar  \0")
        // One extent: 512 bytes from 1000 on, of a file of 5000 bytes.
        .put(386, format!("{:011o}\0", 1000).as_bytes())
        .put(398, format!("{:011o}\0", 512).as_bytes())
        .put(483, format!("{:011o}\0", 5000).as_bytes());
    Tarball::default().header(&header).body(&[b's'; 512]).end()
}
