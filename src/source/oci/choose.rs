//! Which manifest of an index it is, and the way to it.

use std::collections::BTreeSet;

use super::{
    CONFIG_MAX, Descriptor, Document, ImageManifest, Kind, MANIFEST_MAX, assemble, bad, document,
    index, manifest, shown, verify,
};
use crate::digest::Digest;
use crate::source::{Manifest, Platform, SourceError};

/// How deep indexes may lie in each other; one in another is as much as anybody needs.
const DEPTH_MAX: usize = 8;

/// The most indexes that are read on the way to a manifest.
const INDEXES_MAX: usize = 256;

/// The most platforms that an error lists.
const LISTED: usize = 24;

/// Where the parts of an image are, by their digests.
pub trait Blobs {
    /// The bytes that `descriptor` names, at most `max`; they need not be checked. `what` is
    /// what errors call it.
    ///
    /// # Errors
    /// [`SourceError`].
    fn json(&self, descriptor: &Descriptor, max: u64, what: &str) -> Result<Vec<u8>, SourceError>;

    /// Checks as well as it can be done before it is read that the layer that `descriptor` names
    /// is there and of its length.
    ///
    /// # Errors
    /// [`SourceError`].
    fn layer(&self, descriptor: &Descriptor, what: &str) -> Result<(), SourceError>;
}

/// Finds the image for `platform` among `entries`, and reads its manifest and its configuration
/// out
/// of `blobs`.
///
/// # Errors
/// [`SourceError::Image`]: no entry is for the platform (with those there are), or a document is
/// bad; those of `blobs`.
pub fn resolve(
    entries: &[Descriptor],
    platform: &Platform,
    what: &str,
    blobs: &dyn Blobs,
) -> Result<Manifest, SourceError> {
    let mut search = Search {
        platform,
        what,
        blobs,
        read: BTreeSet::new(),
        others: Vec::new(),
    };
    match search.find(entries, None, 0)? {
        Some(found) => search.image(found),
        None => Err(search.nothing()),
    }
}

/// The same for a document that is there already, as a registry answers: its `digest`, and what
/// it was found to be.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_document(
    digest: Digest,
    found: Document,
    platform: &Platform,
    what: &str,
    blobs: &dyn Blobs,
) -> Result<Manifest, SourceError> {
    let mut search = Search {
        platform,
        what,
        blobs,
        read: BTreeSet::from([digest]),
        others: Vec::new(),
    };
    let found = match found {
        Document::Manifest(manifest) => Some(Found {
            index: None,
            digest,
            manifest,
        }),
        Document::Index(index) => search.find(&index.manifests, Some(digest), 1)?,
    };
    match found {
        Some(found) => search.image(found),
        None => Err(search.nothing()),
    }
}

/// A manifest, and the outermost index that led to it.
struct Found {
    index: Option<Digest>,
    digest: Digest,
    manifest: ImageManifest,
}

struct Search<'a> {
    platform: &'a Platform,
    what: &'a str,
    blobs: &'a dyn Blobs,
    /// The indexes that were read: one that is listed many times is read once.
    read: BTreeSet<Digest>,
    /// What was not chosen, for the error.
    others: Vec<String>,
}

impl Search<'_> {
    fn document(
        &mut self,
        role: &str,
        descriptor: &Descriptor,
    ) -> Result<(String, Vec<u8>), SourceError> {
        let what = format!("{}: {role} {}", self.what, descriptor.digest);
        let max = if role == "config" {
            CONFIG_MAX
        } else {
            MANIFEST_MAX
        };
        if descriptor.size > max {
            let why = format!("{} bytes long; at most {max} are read", descriptor.size);
            return Err(bad(what, why));
        }
        let bytes = self.blobs.json(descriptor, max, &what)?;
        verify(&bytes, descriptor, &what)?;
        Ok((what, bytes))
    }

    /// The first of `entries`, at `depth` below the top, that is for the platform.
    fn find(
        &mut self,
        entries: &[Descriptor],
        outer: Option<Digest>,
        depth: usize,
    ) -> Result<Option<Found>, SourceError> {
        let (images, others): (Vec<_>, Vec<_>) = entries
            .iter()
            .filter(|entry| !entry.is_attestation())
            .partition(|entry| {
                matches!(entry.kind(), Kind::Index | Kind::Manifest | Kind::Schema1)
            });
        for other in others {
            // To be ignored, says image-index.md of media types that are not known.
            self.other(format!(
                "something of the media type \"{}\"",
                shown(&other.media_type)
            ));
        }
        let lone = images
            .iter()
            .all(|image| Some(image.digest) == images.first().map(|first| first.digest));
        for entry in images {
            let is_index = entry.kind() == Kind::Index;
            match &entry.platform {
                Some(platform) if !serves(platform, self.platform) => {
                    self.other(shown(&platform.to_string()));
                    continue;
                }
                None if !lone && !is_index => {
                    self.other(format!("one without a platform ({})", entry.digest));
                    continue;
                }
                _ => {}
            }
            if !is_index {
                let (what, bytes) = self.document("manifest", entry)?;
                return Ok(Some(Found {
                    index: outer,
                    digest: entry.digest,
                    manifest: manifest(&bytes, Some(&entry.media_type), &what)?,
                }));
            }
            if depth >= DEPTH_MAX {
                let why = format!("indexes lie more than {DEPTH_MAX} deep in each other");
                return Err(bad(self.what, why));
            }
            if !self.read.insert(entry.digest) {
                continue;
            }
            if self.read.len() > INDEXES_MAX {
                let why = format!("more than {INDEXES_MAX} indexes lie in each other");
                return Err(bad(self.what, why));
            }
            let (what, bytes) = self.document("index", entry)?;
            let inner = index(&bytes, Some(&entry.media_type), &what)?;
            let outer = outer.or(Some(entry.digest));
            if let Some(found) = self.find(&inner.manifests, outer, depth + 1)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn other(&mut self, text: String) {
        if self.others.len() <= LISTED && !self.others.contains(&text) {
            self.others.push(text);
        }
    }

    fn nothing(&mut self) -> SourceError {
        if self.others.len() > LISTED {
            self.others.truncate(LISTED);
            self.others.push("more".to_owned());
        }
        let why = if self.others.is_empty() {
            "it lists no image".to_owned()
        } else {
            format!(
                "no image for {}; there are {}",
                self.platform,
                self.others.join(", ")
            )
        };
        bad(self.what, why)
    }

    fn image(&mut self, found: Found) -> Result<Manifest, SourceError> {
        let (_, config) = self.document("config", &found.manifest.config)?;
        let mut layers = Vec::new();
        for (n, layer) in found.manifest.layers.iter().enumerate() {
            let what = format!("{}: layer {} {}", self.what, n + 1, layer.digest);
            self.blobs.layer(layer, &what)?;
            layers.push((Some(layer.digest), Some(layer.size)));
        }
        assemble(
            found.index,
            Some(found.digest),
            &layers,
            config,
            self.platform,
            self.what,
        )
    }
}

/// Whether what is for `there` is for `asked`: a variant counts where it is asked for.
fn serves(there: &Platform, asked: &Platform) -> bool {
    let (arch, variant) = normal(there);
    let (asked_arch, asked_variant) = normal(asked);
    there.os == asked.os
        && arch == asked_arch
        && (asked.variant.is_none() || variant == asked_variant)
}

/// Architecture and variant in one of their spellings, as containerd's platforms package has it:
/// arm64 is v8, and arm v7, where nothing else is said.
fn normal(platform: &Platform) -> (&str, Option<&str>) {
    let variant = platform.variant.as_deref();
    match (platform.architecture.as_str(), variant) {
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", Some("v8")),
        ("aarch64", variant) => ("arm64", variant),
        ("arm" | "armhf", None | Some("7")) => ("arm", Some("v7")),
        ("arm", Some("6")) => ("arm", Some("v6")),
        ("arm", Some("5")) => ("arm", Some("v5")),
        ("armel", None) => ("arm", Some("v6")),
        ("i386", variant) => ("386", variant),
        (architecture, variant) => (architecture, variant),
    }
}

/// The manifest for a digest that somebody named: one that `entries` lead to, of an index, a
/// manifest or a configuration, as an entry that is for every platform.
///
/// # Errors
/// As [`resolve`].
pub(in crate::source) fn named(
    entries: &[Descriptor],
    wanted: Digest,
    what: &str,
    blobs: &dyn Blobs,
) -> Result<Descriptor, SourceError> {
    let mut left: Vec<(Descriptor, usize)> = entries.iter().rev().map(|e| (e.clone(), 0)).collect();
    let mut read = BTreeSet::new();
    while let Some((entry, depth)) = left.pop() {
        let found = |entry: Descriptor| Descriptor {
            platform: None,
            annotations: Default::default(),
            ..entry
        };
        if entry.digest == wanted {
            return Ok(found(entry));
        }
        let follow = matches!(entry.kind(), Kind::Index | Kind::Manifest);
        if !follow || depth > DEPTH_MAX || entry.size > MANIFEST_MAX {
            continue;
        }
        if read.len() >= INDEXES_MAX || !read.insert(entry.digest) {
            continue;
        }
        let label = format!("{what}: {}", entry.digest);
        // What is not wanted may be missing or damaged: of many platforms one is kept.
        let Ok(bytes) = blobs.json(&entry, MANIFEST_MAX, &label) else {
            continue;
        };
        if verify(&bytes, &entry, &label).is_err() {
            continue;
        }
        match document(&bytes, Some(&entry.media_type), &label) {
            Ok(Document::Manifest(manifest)) if manifest.config.digest == wanted => {
                return Ok(found(entry));
            }
            Ok(Document::Index(index)) => {
                left.extend(index.manifests.into_iter().rev().map(|e| (e, depth + 1)));
            }
            _ => {}
        }
    }
    Err(bad(
        what,
        format!("no index, manifest or configuration with the digest {wanted} is in it"),
    ))
}
