//! `docker://NAME`: images in registries, by the OCI distribution specification.
//!
//! A [`Registry`] is one image in one registry and its mirrors. The places where it may be are
//! tried in order ([`Mirror`]s first), each with TLS and, where that is allowed, then without;
//! the one that has the manifest is asked first for the rest. Requests run on a thread of their
//! own (`worker`), so that everything here blocks and can be called from anywhere.
//!
//! Bounds: a manifest and a configuration are as long as [`oci`] takes; of a layer a
//! few pieces are in memory; a request that fails is made again as often as [`Patience`] says.
//!
//! Never here: environment variables (but for those that name proxies and the system's
//! certificates, which the HTTP and TLS crates read), output, secrets in errors or in the log.

mod auth;
mod certs;
mod failure;
mod name;
mod place;
mod stream;
mod worker;

pub use auth::default_auth_files;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::oci::{self, Blobs, Descriptor, Kind};
use super::{Layer, Manifest, Platform, Source, SourceError};
use crate::digest::Digest;
use failure::{Failure, Kind as Fault};
use name::Name;
use place::{Place, Settings};
use stream::Stream;
use worker::Worker;

/// How a registry is to be asked.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Takes certificates that nobody vouches for, and plain HTTP where there is no TLS. Plain
    /// HTTP to this machine (`localhost`, `127.0.0.0/8`, `::1`) needs no such leave.
    pub insecure: bool,
    /// The login file, which must be there; instead of [`Self::auth_files`].
    pub auth_file: Option<PathBuf>,
    /// Login files, which may be missing: the first that has a login for the image counts.
    pub auth_files: Vec<PathBuf>,
    /// Where `docker-credential-*` programs are; None: in `PATH`.
    pub helpers: Option<PathBuf>,
    /// Directories with `HOST[:PORT]/*.crt`: authorities trusted beside those of the system.
    pub certificate_dirs: Vec<PathBuf>,
    /// Where the image may be as well; tried in order, before the registry itself.
    pub mirrors: Vec<Mirror>,
    /// How long to wait, and how often to try.
    pub patience: Patience,
}

impl Default for RegistryOptions {
    /// No logins, no mirrors, certificates where podman and Docker have them
    /// (containers-certs.d(5)).
    fn default() -> Self {
        Self {
            insecure: false,
            auth_file: None,
            auth_files: Vec::new(),
            helpers: None,
            certificate_dirs: vec![
                "/etc/containers/certs.d".into(),
                "/etc/docker/certs.d".into(),
            ],
            mirrors: Vec::new(),
            patience: Patience::default(),
        }
    }
}

/// Another place of images: in their names, `prefix` is replaced by `location`, as with
/// `prefix` and `location` in containers-registries.conf(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The beginning of whole names, up to the end of one of their parts: `docker.io`,
    /// `docker.io/library`.
    pub prefix: String,
    /// `HOST[:PORT][/PATH]`.
    pub location: String,
    /// As [`RegistryOptions::insecure`], for this place.
    pub insecure: bool,
}

/// How long to wait, and how often to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How often a request is made that comes to nothing, or brings a layer no further.
    pub tries: u32,
    /// The pause before the second try; twice as long before each further one, and each a half
    /// longer or shorter by chance.
    pub pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How long a connection may take to come about.
    pub connect: Duration,
    /// How long to wait for an answer, and for the next bytes of one.
    pub stall: Duration,
    /// How long a credential helper may take, which may have to ask a person.
    pub helper: Duration,
}

impl Default for Patience {
    /// Six tries in about a quarter of a minute, and half a minute without a byte.
    fn default() -> Self {
        Self {
            tries: 6,
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            helper: Duration::from_secs(60),
        }
    }
}

/// An image in a registry.
pub struct Registry {
    places: Arc<Places>,
    worker: Arc<Worker>,
}

/// The whole name that `reference` stands for: `docker.io/library/debian:12`. Nothing is prepared for
/// asking for it.
///
/// # Errors
/// [`SourceError::Asked`]: no such names.
pub fn canonical(reference: &str) -> Result<String, SourceError> {
    Ok(Name::parse(reference)?.to_string())
}

impl Registry {
    /// Reads a name as [`docker` and `podman`](https://github.com/distribution/reference) write
    /// it, without `docker://`, and prepares to ask for it. Nothing is asked yet.
    ///
    /// # Errors
    /// [`SourceError::Asked`]: no such names; else a certificate file that cannot be read, or
    /// that no thread can be had.
    pub fn open(reference: &str, options: &RegistryOptions) -> Result<Self, SourceError> {
        let name = Name::parse(reference)?;
        let (files, must_exist) = match &options.auth_file {
            Some(file) => (vec![file.clone()], true),
            None => (options.auth_files.clone(), false),
        };
        let settings = Settings {
            logins: Arc::new(auth::Lookup {
                files,
                must_exist,
                helpers: options.helpers.clone(),
                patience: options.patience.helper,
            }),
            certificate_dirs: options.certificate_dirs.clone(),
            patience: options.patience,
        };
        let mut list = Vec::new();
        for mirror in &options.mirrors {
            let Mirror {
                prefix, location, ..
            } = mirror;
            let Some(repository) = name.repository.mirrored(prefix, location) else {
                continue;
            };
            let repository = repository.map_err(|why| {
                SourceError::Asked(format!("mirror {location:?} of {prefix:?}: {why}"))
            })?;
            list.extend(Place::all(&repository, mirror.insecure, &settings)?);
        }
        list.extend(Place::all(&name.repository, options.insecure, &settings)?);
        let worker = Worker::start().map_err(|source| SourceError::Io {
            what: name.to_string(),
            source,
        })?;
        Ok(Self {
            places: Arc::new(Places {
                name,
                list,
                first: AtomicUsize::new(0),
                patience: options.patience,
            }),
            worker: Arc::new(worker),
        })
    }

    /// The whole name: `docker.io/library/debian:12`.
    #[must_use]
    pub fn name(&self) -> String {
        self.places.name.to_string()
    }

    /// Waits for a document, from wherever it can be had.
    fn read(&self, wanted: Wanted, max: u64) -> Result<Vec<u8>, Failure> {
        let places = Arc::clone(&self.places);
        let limit = usize::try_from(max).unwrap_or(usize::MAX);
        self.worker
            .run(async move { places.read(&wanted, limit).await })
            .unwrap_or_else(|| Err(Failure::new(Fault::Here, "the download has failed")))
    }

    /// What the name leads to: an index or a manifest.
    fn top(&self) -> Result<Vec<u8>, SourceError> {
        let name = &self.places.name;
        let wanted = Wanted::Manifest(name.wanted(), name.digest);
        self.read(wanted, oci::MANIFEST_MAX).map_err(|failure| {
            match name.digest {
                Some(digest) if failure.kind == Fault::Missing && self.is_config(digest) => {
                    Failure::new(
                        Fault::Content,
                        "that is the digest of a configuration (an image ID), from which a registry finds no image: name it by a tag, or by the digest of its manifest",
                    )
                }
                _ => failure,
            }
            .of(name.to_string())
        })
    }

    fn is_config(&self, digest: Digest) -> bool {
        let bytes = self.read(Wanted::Blob(digest), oci::CONFIG_MAX);
        let json = bytes.map(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes));
        matches!(json, Ok(Ok(value)) if value.get("rootfs").is_some())
    }
}

/// The parts of an image, for those who look at its documents.
struct Parts<'a>(&'a Registry);

impl Blobs for Parts<'_> {
    fn json(&self, part: &Descriptor, max: u64, what: &str) -> Result<Vec<u8>, SourceError> {
        let wanted = match part.kind() {
            Kind::Index | Kind::Manifest => {
                Wanted::Manifest(part.digest.to_string(), Some(part.digest))
            }
            _ => Wanted::Blob(part.digest),
        };
        self.0
            .read(wanted, max)
            .map_err(|failure| failure.of(what.to_owned()))
    }

    /// Nothing is asked for: that a layer is there says its first byte as well.
    fn layer(&self, _: &Descriptor, _: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&self.name()).finish()
    }
}

impl Source for Registry {
    fn manifest(&self, platform: &Platform) -> Result<Manifest, SourceError> {
        let what = self.name();
        let bytes = self.top()?;
        let document = oci::document(&bytes, None, &what)?;
        let digest = Digest::of(&bytes);
        oci::resolve_document(digest, document, platform, &what, &Parts(self))
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send>, SourceError> {
        let digest = layer.digest.ok_or_else(|| SourceError::Image {
            what: self.name(),
            why: format!("layer {} has no digest to ask for", layer.position),
        })?;
        Ok(Box::new(Stream::start(
            &self.worker,
            &self.places,
            digest,
            layer.len,
        )))
    }
}

/// A document of a registry.
enum Wanted {
    /// A manifest or an index: the tag or digest to ask for, and the digest that it must have.
    Manifest(String, Option<Digest>),
    /// A small blob.
    Blob(Digest),
}

/// Everywhere that an image may be.
struct Places {
    name: Name,
    list: Vec<Place>,
    /// The one that had the manifest.
    first: AtomicUsize,
    patience: Patience,
}

/// Which place it is now.
struct Choice {
    index: usize,
    /// Why it is not one of before: what is told if none helps.
    told: Option<Failure>,
}

impl Places {
    fn first(&self) -> Choice {
        Choice {
            index: self.first.load(Ordering::Relaxed),
            told: None,
        }
    }

    fn at(&self, choice: &Choice) -> Option<&Place> {
        self.list.get(choice.index)
    }

    /// The place after one that failed; the failure to tell where it was the last.
    fn after(&self, choice: Choice, failure: Failure) -> Result<Choice, Failure> {
        let Choice { index, told } = choice;
        let is_plain = self.list.get(index).is_some_and(|place| place.plain);
        tracing::debug!(name = %self.name, index, why = failure.why, "a place failed");
        let may_be_plain = failure.may_be_plain();
        let told = match told {
            // Nobody listens without TLS either: what TLS said is the better word.
            Some(told) if is_plain && failure.kind == Fault::Unreachable => told,
            _ => failure,
        };
        let next = self
            .list
            .iter()
            .enumerate()
            .skip(index.saturating_add(1))
            .find(|(n, place)| !place.plain || (may_be_plain && *n == index.saturating_add(1)));
        match next {
            Some((index, _)) => Ok(Choice {
                index,
                told: Some(told),
            }),
            None => Err(told),
        }
    }

    async fn read(&self, wanted: &Wanted, limit: usize) -> Result<Vec<u8>, Failure> {
        let mut choice = self.first();
        let mut tries = 0;
        loop {
            let Some(place) = self.at(&choice) else {
                return Err(Failure::new(Fault::Here, "there is no place to ask"));
            };
            let failure = match read(place, wanted, limit).await {
                Ok(bytes) => {
                    self.first.store(choice.index, Ordering::Relaxed);
                    return Ok(bytes);
                }
                Err(failure) => failure,
            };
            tries += 1;
            if failure.may_pass() && tries < self.patience.tries {
                tracing::debug!(why = failure.why, tries, "asking again");
                pause(&self.patience, tries).await;
            } else {
                choice = self.after(choice, failure.after(tries))?;
                tries = 0;
            }
        }
    }
}

async fn read(place: &Place, wanted: &Wanted, limit: usize) -> Result<Vec<u8>, Failure> {
    let (bytes, digest) = match wanted {
        Wanted::Manifest(wanted, digest) => (place.manifest(wanted, limit).await?, *digest),
        Wanted::Blob(digest) => (place.small_blob(digest, limit).await?, Some(*digest)),
    };
    match digest {
        Some(digest) if Digest::of(&bytes) != digest => Err(place.explained(Failure::new(
            Fault::Content,
            format!(
                "it came damaged: its bytes are {}, not {digest}",
                Digest::of(&bytes)
            ),
        ))),
        _ => Ok(bytes),
    }
}

/// Waits before try `tries`, the first being 0: longer each time, and not all who wait at once.
async fn pause(patience: &Patience, tries: u32) {
    let doubled = 1_u32
        .checked_shl(tries.saturating_sub(1))
        .unwrap_or(u32::MAX);
    let pause = patience
        .pause
        .saturating_mul(doubled)
        .min(patience.longest_pause);
    // The standard library's hash keys are by chance.
    let chance = RandomState::new().hash_one(tries) % 1024;
    let part = 0.5 + f64::from(u32::try_from(chance).unwrap_or_default()) / 1024.0;
    tokio::time::sleep(pause.mul_f64(part)).await;
}
