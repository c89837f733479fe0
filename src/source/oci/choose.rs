//! Which manifest of an index it is, and the way to it.

use std::collections::BTreeSet;

use super::{
    CONFIG_MAX, Descriptor, Document, ImageManifest, Kind, MANIFEST_MAX, assemble, bad, index,
    manifest, shown, verify,
};
use crate::digest::Digest;
use crate::source::{Manifest, Platform, SourceError};

/// How deep indexes may lie in each other; one in another is as much as anybody needs.
const DEPTH_MAX: usize = 8;

/// The most indexes that are read on the way to a manifest.
const INDEXES_MAX: usize = 256;

/// The most platforms that an error lists.
const LISTED: usize = 24;

/// Gives the bytes that a descriptor names: the descriptor, the most bytes to give, and what to
/// call it in errors. They need not be checked.
pub type Get<'a> = dyn FnMut(&Descriptor, u64, &str) -> Result<Vec<u8>, SourceError> + 'a;

/// Finds the image for `platform` among `entries`, and reads its manifest and its configuration
/// with `get`.
///
/// # Errors
/// [`SourceError::Image`]: no entry is for the platform (with those there are), or a document is
/// bad; those of `get`.
pub fn resolve(
    entries: &[Descriptor],
    platform: &Platform,
    what: &str,
    get: &mut Get<'_>,
) -> Result<Manifest, SourceError> {
    let mut search = Search {
        platform,
        what,
        get,
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
    get: &mut Get<'_>,
) -> Result<Manifest, SourceError> {
    let mut search = Search {
        platform,
        what,
        get,
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

struct Search<'a, 'g> {
    platform: &'a Platform,
    what: &'a str,
    get: &'a mut Get<'g>,
    /// The indexes that were read: one that is listed many times is read once.
    read: BTreeSet<Digest>,
    /// What was not chosen, for the error.
    others: Vec<String>,
}

impl Search<'_, '_> {
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
        let bytes = (self.get)(descriptor, max, &what)?;
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
            .filter(|entry| !is_attestation(entry))
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
        let lone = images.len() == 1;
        for entry in images {
            let is_index = entry.kind() == Kind::Index;
            match &entry.platform {
                Some(platform) if !serves(platform, self.platform) => {
                    self.other(shown(&platform.to_string()));
                    continue;
                }
                None if !lone && !is_index => {
                    self.other("one without a platform".to_owned());
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
        let layers: Vec<_> = found
            .manifest
            .layers
            .iter()
            .map(|layer| (Some(layer.digest), Some(layer.size)))
            .collect();
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

/// Whether it is no image but a statement on one (BuildKit's docs/attestations/attestation-storage.md).
fn is_attestation(entry: &Descriptor) -> bool {
    entry.annotations.contains_key("vnd.docker.reference.type")
        || entry
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "unknown" || platform.architecture == "unknown")
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
