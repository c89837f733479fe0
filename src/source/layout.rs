//! OCI image layouts (the OCI image specification's image-layout.md), as directories and in tars.

use std::collections::BTreeSet;
use std::io::Read;

use serde::Deserialize;

use super::location::Pick;
use super::oci::{self, Blobs, Descriptor, Kind, MANIFEST_MAX, bad, shown};
use super::part::{Files, must};
use super::{Layer, Manifest, Platform, Source, SourceError};
use crate::digest::Digest;

/// The file that says that it is a layout.
pub(super) const MARK: &str = "oci-layout";

const INDEX: &str = "index.json";

/// The most names that an error lists.
const LISTED: usize = 24;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an oci-layout file")]
struct Mark {
    image_layout_version: Option<String>,
}

/// An image, or several for different platforms, of a layout.
pub(super) struct Layout {
    blobs: Stored,
    what: String,
    /// Those that were asked for.
    entries: Vec<Descriptor>,
}

struct Stored {
    files: Box<dyn Files>,
    /// Of an image of which only a part is here: the image that has the other layers.
    since: Option<String>,
}

/// Of an entry of the index: not all layers of the image are here, the others are those of the image
/// with this digest. Import and export have it from here.
pub const SINCE: &str = "dev.tarnfs.since";

impl Layout {
    /// The image of `files` that `pick` says; errors call the layout `what`.
    ///
    /// # Errors
    /// It is no layout, or `pick` fits none or several images.
    pub(super) fn open(
        files: Box<dyn Files>,
        pick: &Pick,
        what: String,
    ) -> Result<Self, SourceError> {
        let label = files.label(MARK);
        let mark = must(&*files, MARK)?.bytes(1 << 16, &label)?;
        let mark: Mark = oci::json(&mark, 1 << 16, &label)?;
        let version = mark
            .image_layout_version
            .ok_or_else(|| oci::missing("imageLayoutVersion", &label))?;
        if !version.starts_with("1.") {
            let why = format!("version \"{}\" of the layout; 1.0 is read", shown(&version));
            return Err(bad(label, why));
        }
        let label = files.label(INDEX);
        let index = must(&*files, INDEX)?.bytes(MANIFEST_MAX, &label)?;
        let index = oci::index(&index, Some(oci::INDEX), &label)?;
        let mut blobs = Stored { files, since: None };
        let entries = picked(index.manifests, pick, &blobs, &what)?;
        let since = |entry: &Descriptor| entry.annotations.get(SINCE).cloned();
        blobs.since = entries.iter().find_map(since);
        Ok(Self {
            blobs,
            what,
            entries,
        })
    }
}

/// Those of an index's `entries` that `pick` says.
fn picked(
    entries: Vec<Descriptor>,
    pick: &Pick,
    blobs: &Stored,
    what: &str,
) -> Result<Vec<Descriptor>, SourceError> {
    match pick {
        Pick::Digest(digest) => Ok(vec![oci::named(&entries, *digest, what, blobs)?]),
        Pick::Name(name) => {
            let (found, others): (Vec<_>, Vec<_>) = entries
                .into_iter()
                .partition(|entry| entry.names().any(|n| n == name));
            if found.is_empty() {
                let why = format!("no image called \"{}\"; {}", shown(name), tags(&others));
                return Err(bad(what, why));
            }
            Ok(found)
        }
        Pick::Position(n) => Err(SourceError::Asked(format!(
            "{what}: @{n}: images of an OCI layout have no numbers; say :TAG or @sha256:DIGEST"
        ))),
        Pick::Only => {
            let images = entries.iter().filter(|entry| {
                matches!(entry.kind(), Kind::Index | Kind::Manifest) && !entry.is_attestation()
            });
            let digests: BTreeSet<Digest> = images.clone().map(|entry| entry.digest).collect();
            // One image for several platforms, of which the list is the layout's index itself.
            let platforms = images
                .clone()
                .all(|entry| entry.platform.is_some() && entry.names().next().is_none());
            if digests.len() > 1 && !platforms {
                let why = format!("several images; {}", tags(&entries));
                return Err(bad(what, why));
            }
            Ok(entries)
        }
    }
}

/// How each of `entries` can be asked for.
fn tags(entries: &[Descriptor]) -> String {
    let mut names: Vec<String> = Vec::new();
    for entry in entries {
        let name = match entry.names().next() {
            Some(name) => format!(":{}", shown(name)),
            None => format!("@{}", entry.digest),
        };
        if !names.contains(&name) {
            names.push(name);
        }
        if names.len() > LISTED {
            names.pop();
            names.push("more".to_owned());
            break;
        }
    }
    if names.is_empty() {
        return "it has no others".to_owned();
    }
    format!("say which, behind the path: {}", names.join(", "))
}

/// The name of a blob.
fn name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Blobs for Stored {
    fn json(&self, descriptor: &Descriptor, max: u64, what: &str) -> Result<Vec<u8>, SourceError> {
        let Some(part) = self.files.find(&name(descriptor.digest))? else {
            return Err(bad(what, "is missing: there is no such blob"));
        };
        oci::same_len(part.len(), descriptor, what)?;
        part.bytes(max, what)
    }

    fn layer(&self, descriptor: &Descriptor, what: &str) -> Result<(), SourceError> {
        let name = name(descriptor.digest);
        // Whether the store has it, only whoever imports knows.
        if self.since.is_some() && self.files.find(&name)?.is_none() {
            return Ok(());
        }
        present(&*self.files, &name, descriptor, what)
    }
}

/// Checks that the layer of `descriptor` is the file `name`, by its length.
pub(super) fn present(
    files: &dyn Files,
    name: &str,
    descriptor: &Descriptor,
    what: &str,
) -> Result<(), SourceError> {
    match files.find(name)? {
        Some(part) => oci::same_len(part.len(), descriptor, what),
        None if descriptor.kind() == Kind::Foreign || descriptor.urls => Err(bad(
            what,
            "is kept elsewhere, not with the image: copy the image with its foreign layers",
        )),
        None => Err(bad(what, "is missing: there is no such blob")),
    }
}

/// The bytes of `layer`, which is the file `name`.
pub(super) fn stream(
    files: &dyn Files,
    name: &str,
    layer: &Layer,
    what: &str,
) -> Result<Box<dyn Read + Send>, SourceError> {
    let what = format!("{what}: layer {}", layer.position + 1);
    let part = files
        .find(name)?
        .ok_or_else(|| bad(&*what, format!("{name} is missing")))?;
    if let Some(len) = layer.len.filter(|&len| len != part.len()) {
        let why = format!(
            "{name} is {} bytes long and was {len}: it was changed meanwhile",
            part.len()
        );
        return Err(bad(what, why));
    }
    Ok(Box::new(part.stream(what)))
}

/// The digest by which a layer of a layout is found.
pub(super) fn stored_digest(layer: &Layer, what: &str) -> Result<Digest, SourceError> {
    layer
        .digest
        .ok_or_else(|| bad(what, "a layer of another source"))
}

impl Source for Layout {
    fn manifest(&self, platform: &Platform) -> Result<Manifest, SourceError> {
        oci::resolve(&self.entries, platform, &self.what, &self.blobs)
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send>, SourceError> {
        let digest = stored_digest(layer, &self.what)?;
        let name = name(digest);
        let Stored { files, since } = &self.blobs;
        if let Some(since) = since
            && files.find(&name)?.is_none()
        {
            let what = format!("{}: layer {}", self.what, layer.position + 1);
            let since = shown(since);
            let why = format!(
                "is not here: this is only what the image has beyond {since}; import that one first"
            );
            return Err(bad(what, why));
        }
        stream(&**files, &name, layer, &self.what)
    }
}
