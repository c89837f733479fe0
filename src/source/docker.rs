//! What `docker save` writes, and `skopeo copy` and `podman save` as `docker-archive`: a tar with
//! `manifest.json`, which names a configuration and layers by their members (the Docker image
//! specification v1.2, "Combined Image JSON + Filesystem Changeset Format"). Docker 25 and later
//! write an OCI layout with the same file.

use std::io::Read;

use serde::Deserialize;

use super::archive::Archive;
use super::location::Pick;
use super::oci::{self, CONFIG_MAX, MANIFEST_MAX, bad, missing, shown};
use super::part::{Files, Part, must};
use super::{Layer, Manifest, Platform, Source, SourceError};
use crate::digest::Digest;

/// The document that all begins with.
pub(super) const MANIFEST: &str = "manifest.json";

/// The most images that an error lists.
const LISTED: usize = 24;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", expecting = "an image")]
struct Image {
    config: Option<String>,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl Image {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

/// One image of an archive.
pub(super) struct Docker {
    what: String,
    config: Vec<u8>,
    layers: Vec<Member>,
}

struct Member {
    label: String,
    part: Part,
    /// The digest of its bytes, where the name tells it.
    digest: Option<Digest>,
}

impl Docker {
    /// The image of `archive` that `pick` says; errors call it `what`.
    ///
    /// # Errors
    /// It is no such archive, or `pick` fits none or several images.
    pub(super) fn open(archive: &Archive, pick: &Pick, what: String) -> Result<Self, SourceError> {
        let label = archive.label(MANIFEST);
        let bytes = must(archive, MANIFEST)?.bytes(MANIFEST_MAX, &label)?;
        if !bytes.trim_ascii_start().starts_with(b"[") {
            return Err(bad(label, "not a JSON list of images"));
        }
        let images: Vec<Image> = oci::from_slice(&bytes, &label)?;
        let image = picked(images, pick, archive, &what)?;
        let (_, config) = config(&image, archive)?;
        let names = image.layers.ok_or_else(|| missing("Layers", &label))?;
        if names.len() > oci::LAYERS_MAX {
            return Err(oci::too_many(names.len(), &label));
        }
        let layers = names.iter().map(|name| member(archive, name));
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            what,
            config,
        })
    }
}

/// The configuration of `image` with its digest, against which its name is checked where it is
/// one: `<digest>.json`, `blobs/sha256/<digest>`.
fn config(image: &Image, archive: &Archive) -> Result<(Digest, Vec<u8>), SourceError> {
    let name = image
        .config
        .as_deref()
        .ok_or_else(|| missing("Config", &archive.label(MANIFEST)))?;
    let name = archive.named(name)?;
    let label = archive.label(name);
    let bytes = must(archive, name)?.bytes(CONFIG_MAX, &label)?;
    let digest = Digest::of(&bytes);
    let last = name.rsplit('/').next().unwrap_or_default();
    let told = Digest::from_hex(last.strip_suffix(".json").unwrap_or(last));
    if told.is_ok_and(|told| told != digest) {
        return Err(bad(label, format!("damaged: its digest is {digest}")));
    }
    Ok((digest, bytes))
}

fn member(archive: &Archive, name: &str) -> Result<Member, SourceError> {
    let name = archive.named(name)?;
    let part = must(archive, name)?;
    let label = archive.label(name);
    if part.len() > oci::LAYER_MAX {
        let why = format!("{} bytes; at most {} are read", part.len(), oci::LAYER_MAX);
        return Err(bad(label, why));
    }
    let digest = name
        .strip_prefix("blobs/sha256/")
        .and_then(|hex| Digest::from_hex(hex).ok());
    Ok(Member {
        label,
        part,
        digest,
    })
}

/// The one of `images` that `pick` says.
fn picked(
    images: Vec<Image>,
    pick: &Pick,
    archive: &Archive,
    what: &str,
) -> Result<Image, SourceError> {
    let listed = list(&images);
    let count = images.len();
    let mut fits = Vec::new();
    for (n, image) in images.into_iter().enumerate() {
        let fit = match pick {
            Pick::Only => true,
            Pick::Position(wanted) => n == *wanted,
            Pick::Name(name) => {
                let name = full(name);
                image.tags().iter().any(|tag| full(tag) == name)
            }
            Pick::Digest(digest) => config(&image, archive)?.0 == *digest,
        };
        if fit {
            fits.push(image);
        }
    }
    let only = fits.len() == 1;
    match fits.pop() {
        Some(image) if only => Ok(image),
        Some(_) => Err(bad(
            what,
            format!("several images; say which, behind the path: {listed}"),
        )),
        None if count == 0 => Err(bad(what, "it holds no image")),
        None => Err(bad(what, format!("no such image; there are {listed}"))),
    }
}

/// How each of `images` can be asked for.
fn list(images: &[Image]) -> String {
    let names = images.iter().enumerate().flat_map(|(n, image)| {
        let mut names: Vec<_> = image
            .tags()
            .iter()
            .map(|tag| format!(":{}", shown(tag)))
            .collect();
        if names.is_empty() {
            names.push(format!(":@{n}"));
        }
        names
    });
    let mut names: Vec<_> = names.take(LISTED + 1).collect();
    if names.len() > LISTED {
        names.pop();
        names.push("more".to_owned());
    }
    names.join(", ")
}

/// A name as Docker understands it: `alpine` is `docker.io/library/alpine:latest`.
fn full(name: &str) -> String {
    let (path, last) = name.rsplit_once('/').unwrap_or(("", name));
    let tag = if last.contains(':') { "" } else { ":latest" };
    let path = match path.strip_prefix("index.").unwrap_or(path) {
        "" => "docker.io/library".to_owned(),
        "docker.io" => "docker.io/library".to_owned(),
        // The first part is a registry where it looks like a host (distribution/reference).
        path if path
            .split('/')
            .next()
            .is_some_and(|host| host == "localhost" || host.contains(['.', ':'])) =>
        {
            path.to_owned()
        }
        path => format!("docker.io/{path}"),
    };
    format!("{path}/{last}{tag}")
}

impl Source for Docker {
    fn manifest(&self, platform: &Platform) -> Result<Manifest, SourceError> {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|member| (member.digest, Some(member.part.len())))
            .collect();
        oci::assemble(
            None,
            None,
            &layers,
            self.config.clone(),
            platform,
            &self.what,
        )
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send>, SourceError> {
        let member = self
            .layers
            .get(layer.position)
            .ok_or_else(|| bad(&*self.what, "it has fewer layers"))?;
        Ok(Box::new(member.part.clone().stream(member.label.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_docker_understands_them() {
        for (name, want) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("docker.io/alpine:3", "docker.io/library/alpine:3"),
            (
                "docker.io/library/alpine",
                "docker.io/library/alpine:latest",
            ),
            (
                "index.docker.io/library/alpine",
                "docker.io/library/alpine:latest",
            ),
            ("foo/bar", "docker.io/foo/bar:latest"),
            ("localhost/x:1", "localhost/x:1"),
            ("host:5000/a/b:c", "host:5000/a/b:c"),
            ("quay.io/a/b", "quay.io/a/b:latest"),
        ] {
            assert_eq!(full(name), want);
        }
    }
}
