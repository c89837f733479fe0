//! IMAGE on the command line: a tar, an image of the store, or a place to import it from.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tarnfs::compress::{self, Format};
use tarnfs::digest::Digest;
use tarnfs::import::{self, Imported, Options};
use tarnfs::lower::Lower;
use tarnfs::source::location::{self, Location};
use tarnfs::source::registry::{Registry, RegistryOptions, default_auth_files};
use tarnfs::source::{Platform, Source, SourceError};
use tarnfs::store::{Image, ImageName, Progress, Store, StoreError, TarIdentity};

use super::progress::Bars;
use super::{Global, print};

/// The store that the command line, the environment or the user's home names. The environment is
/// read here and nowhere below.
pub(crate) fn store(global: &Global) -> anyhow::Result<Store> {
    if let Some(dir) = &global.store {
        return Ok(Store::open(dir));
    }
    let (data, home) = (var("XDG_DATA_HOME"), var("HOME"));
    let root = rustix::process::geteuid().is_root();
    Store::default_dir(root, data.as_deref(), home.as_deref())
        .map(|dir| Store::open(&dir))
        .context(
            "there is no store: neither $XDG_DATA_HOME nor $HOME is set; name one with --store DIR",
        )
}

fn var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// A name for an image, by which every command finds it: none that a place begins with.
pub(crate) fn parse_name(text: &str) -> Result<ImageName, String> {
    match location::parse(text.as_ref()) {
        Ok(None) => text.parse().map_err(|e: StoreError| e.to_string()),
        _ => Err("as IMAGE this means a place, and never a name".to_owned()),
    }
}

/// What IMAGE means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImageArg {
    /// A local file: a tar, compressed or not.
    Tar(PathBuf),
    /// An image of the store, by what it was called.
    Stored(String, Digest),
    /// Somewhere else.
    Elsewhere(Location),
    /// Nothing: what was written, and why it means nothing. Whoever needs the image says so.
    Nothing(String, String),
}

impl ImageArg {
    /// What `text` means: a place with a prefix, else a file, else an image of the store.
    pub(crate) fn parse(store: &Store, text: &OsStr) -> anyhow::Result<Self> {
        if text == "-" {
            let why = "standard input can only be imported: `tarnfs import --name NAME -`, and then \
                       use NAME";
            return Ok(Self::Nothing("-".to_owned(), why.to_owned()));
        }
        if text.is_empty() {
            return Ok(Self::Nothing(
                "\"\"".to_owned(),
                "the name is empty".to_owned(),
            ));
        }
        if let Some(location) = location::parse(text)? {
            return Ok(Self::Elsewhere(location));
        }
        let path = Path::new(text);
        let there = fs::metadata(path);
        if there.as_ref().is_ok_and(|found| !found.is_dir()) {
            return Ok(Self::Tar(path.to_owned()));
        }
        if let Some(text) = text.to_str()
            && let Some(digest) = store.resolve(text)?
        {
            return Ok(Self::Stored(text.to_owned(), digest));
        }
        let shown = print::escape(text.as_encoded_bytes());
        Ok(match there {
            Ok(_) => {
                let why = format!(
                    "not a regular file but a directory; write oci:{shown} for an OCI image \
                     layout, dir:{shown} for what `skopeo copy … dir:` has written"
                );
                Self::Nothing(shown, why)
            }
            Err(_) if is_path(text) => Self::Tar(path.to_owned()),
            Err(error) => {
                let store = store.dir().display();
                let mut why = format!("{error}, and no image of the store {store} is called so");
                if text.to_str().is_some_and(may_be_in_registry) {
                    why = format!("{why}; for one of a registry write docker://{shown}");
                }
                Self::Nothing(shown, why)
            }
        })
    }

    /// The same from any directory.
    pub(crate) fn absolute(self) -> anyhow::Result<Self> {
        Ok(match self {
            Self::Tar(path) => Self::Tar(absolute(&path)?),
            Self::Elsewhere(location) => Self::Elsewhere(from_anywhere(location)?),
            other @ (Self::Stored(..) | Self::Nothing(..)) => other,
        })
    }

    /// What it is called: what a mount shows as its source.
    pub(crate) fn text(&self) -> OsString {
        match self {
            Self::Tar(path) => path.clone().into_os_string(),
            Self::Stored(text, _) | Self::Nothing(text, _) => text.into(),
            Self::Elsewhere(location) => location.to_string().into(),
        }
    }

    /// The image, brought into the store if it is elsewhere.
    pub(crate) fn get(&self, store: &Store) -> anyhow::Result<Image> {
        match self {
            Self::Nothing(text, why) => bail!("{text}: {why}"),
            Self::Stored(_, digest) => Ok(store.image(digest)?),
            Self::Tar(path) => {
                if is_compressed(path) {
                    let taken = import_file(store, path, &Options::default())?;
                    return Ok(taken.image);
                }
                let mut bar = Bar::new("indexing");
                Ok(store.tar_image(path, &mut |p| bar.on(p))?)
            }
            Self::Elsewhere(location) => {
                // Of a registry's name nobody asks again what it leads to; `tarnfs import` does.
                if let Location::Registry(name) = location {
                    let key = Registry::open(name, &registry_options())?.name();
                    if let Some(own) = store.remembered(&format!("docker://{key}"))
                        && let Ok(image) = store.image(&own)
                    {
                        return Ok(image);
                    }
                }
                let asked = Sources::default();
                Ok(import_location(store, location, &asked, &Options::default())?.image)
            }
        }
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// A place as one says it in any directory.
fn from_anywhere(location: Location) -> anyhow::Result<Location> {
    let here = |rest: OsString| absolute(Path::new(&rest)).map(PathBuf::into_os_string);
    Ok(match location {
        Location::Oci(rest) => Location::Oci(here(rest)?),
        Location::OciArchive(rest) => Location::OciArchive(here(rest)?),
        Location::DockerArchive(rest) => Location::DockerArchive(here(rest)?),
        Location::Dir(rest) => Location::Dir(here(rest)?),
        location @ Location::Registry(_) => location,
    })
}

/// Whether somebody who writes `text` means a file.
fn is_path(text: &OsStr) -> bool {
    let bytes = text.as_encoded_bytes();
    bytes.starts_with(b"/")
        || bytes.starts_with(b".")
        || bytes.windows(4).any(|part| part == b".tar")
        || text.to_str().is_none()
}

/// Whether `text`, which is no file, is rather the name of an image than a digest or its beginning.
fn may_be_in_registry(text: &str) -> bool {
    text.parse::<ImageName>().is_ok() && !text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The image that `path`, IMAGE on the command line, means.
pub(crate) fn image(global: &Global, path: &Path) -> anyhow::Result<Image> {
    let store = store(global)?;
    ImageArg::parse(&store, path.as_os_str())?.get(&store)
}

/// [`image`], opened.
pub(crate) fn open(global: &Global, path: &Path) -> anyhow::Result<(Image, Lower)> {
    let image = image(global, path)?;
    let lower = image.lower()?;
    Ok((image, lower))
}

/// How registries are to be asked.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Sources {
    /// Plain HTTP, and certificates that nobody vouches for, also to other machines
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Credentials, as `podman login` and `docker login` write them [default: theirs]
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    pub(crate) authfile: Option<PathBuf>,
    /// Ask LOCATION first for what PREFIX has, as docker.io=mirror.local:5000 (may be repeated)
    #[arg(long, value_name = "PREFIX=LOCATION", value_parser = parse_mirror)]
    pub(crate) mirror: Vec<(String, String)>,
    /// How often a request to a registry is made again that came to nothing [default: 5]
    #[arg(long, value_name = "N")]
    pub(crate) retries: Option<u32>,
    /// How long to wait for a registry's next byte: 10s, 2m [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub(crate) timeout: Option<Duration>,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match super::gc::parse_time(text)? {
        Duration::ZERO => Err("no time at all".to_owned()),
        time => Ok(time),
    }
}

impl Sources {
    /// What of these options is the registries'.
    fn registries(&self) -> RegistryOptions {
        let mut how = registry_options();
        how.insecure = self.insecure;
        how.auth_file.clone_from(&self.authfile);
        how.mirrors = self
            .mirror
            .iter()
            .map(|(prefix, at)| mirror(prefix, at))
            .collect();
        if let Some(retries) = self.retries {
            how.patience.tries = retries.saturating_add(1);
        }
        if let Some(time) = self.timeout {
            how.patience.stall = time;
            how.patience.connect = how.patience.connect.min(time);
        }
        how
    }
}

fn parse_mirror(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((prefix, location)) if !prefix.is_empty() && !location.is_empty() => {
            Ok((prefix.to_owned(), location.to_owned()))
        }
        _ => Err("write PREFIX=LOCATION, as docker.io=mirror.local:5000".to_owned()),
    }
}

/// Registries as this user's machine has them.
fn registry_options() -> RegistryOptions {
    RegistryOptions {
        auth_files: default_auth_files(
            var("XDG_RUNTIME_DIR").as_deref(),
            var("XDG_CONFIG_HOME").as_deref(),
            var("HOME").as_deref(),
        ),
        certificate_dirs: vec![
            PathBuf::from("/etc/containers/certs.d"),
            PathBuf::from("/etc/docker/certs.d"),
        ],
        ..RegistryOptions::default()
    }
}

/// As many open files as this process may have, while this lives: an import has each layer open.
/// Not longer, since programs that are run get the limit that was there before.
struct OpenFiles(Rlimit);

impl OpenFiles {
    fn raise() -> Self {
        let before = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: before.maximum,
            ..before
        };
        // What could not be raised may be enough.
        setrlimit(Resource::Nofile, raised).ok();
        Self(before)
    }
}

impl Drop for OpenFiles {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).ok();
    }
}

/// Imports what is at `location`.
pub(crate) fn import_location(
    store: &Store,
    location: &Location,
    asked: &Sources,
    options: &Options,
) -> anyhow::Result<Imported> {
    let _files = OpenFiles::raise();
    let bars = Arc::new(Bars::new());
    let Location::Registry(name) = location else {
        let source: Arc<dyn Source> = local(location)?.into();
        // Whoever imports it again may be elsewhere.
        let from = from_anywhere(location.clone())?.to_string();
        return Ok(import::image(store, &source, &from, options, bars)?);
    };
    let registry = Registry::open(name, &asked.registries())?;
    let from = format!("docker://{}", registry.name());
    let source: Arc<dyn Source> = Arc::new(registry);
    let imported = import::image(store, &source, &from, options, bars)?;
    // The name alone means the image for this machine.
    if options.platform == Platform::here()
        && let Some(own) = imported.image.record().digest
    {
        store.remember(&from, &own)?;
    }
    Ok(imported)
}

fn mirror(prefix: &str, location: &str) -> tarnfs::source::registry::Mirror {
    tarnfs::source::registry::Mirror {
        prefix: prefix.to_owned(),
        location: location.to_owned(),
        insecure: false,
    }
}

fn local(location: &Location) -> Result<Box<dyn Source>, SourceError> {
    location
        .open_local()?
        .ok_or_else(|| SourceError::Asked(format!("{location}: not a place of this machine")))
}

/// Whether the file is a compressed one that can be read. What is wrong with it otherwise, whoever
/// opens it as a tar will say.
pub(crate) fn is_compressed(path: &Path) -> bool {
    let format = || -> std::io::Result<Format> {
        // O_NONBLOCK: opening a FIFO must not wait for a writer.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Ok(Format::Plain);
        }
        Ok(compress::decoder(file)?.format())
    };
    format().is_ok_and(|format| format != Format::Plain)
}

/// Imports a tar that is a file; finds it again without reading it as long as it stays as it is.
pub(crate) fn import_file(
    store: &Store,
    path: &Path,
    options: &Options,
) -> anyhow::Result<Imported> {
    let told = || path.display().to_string();
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(told)?;
    let before = file.metadata().with_context(told)?;
    if !before.is_file() {
        bail!("{}: not a regular file; for a pipe write -", path.display());
    }
    let key = |metadata: &fs::Metadata| format!("tar:{}", TarIdentity::of(metadata).key());
    if !options.anew
        && let Some(own) = store.remembered(&key(&before))
        && let Ok(image) = store.image(&own)
    {
        return Ok(Imported {
            image,
            fresh: false,
            cost: import::Cost::default(),
        });
    }
    let from = std::path::absolute(path).with_context(told)?;
    let from = from.to_string_lossy().into_owned();
    let stream = import::Stream {
        input: Box::new(file.try_clone().with_context(told)?),
        len: Some(before.len()),
    };
    let imported = import::tar(store, stream, &from, options, Arc::new(Bars::new()))?;
    let after = file.metadata().with_context(told)?;
    if TarIdentity::of(&after) != TarIdentity::of(&before) {
        bail!(
            "{}: changed while it was being read; try again when it is complete",
            path.display()
        );
    }
    if let Some(own) = imported.image.record().digest {
        store.remember(&key(&before), &own)?;
    }
    Ok(imported)
}

/// A progress bar that shows itself on a terminal only, and goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Bar {
    what: &'static str,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar for work called `what`; nothing is drawn before the work tells of itself.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, bar: None }
    }

    /// Shows how far the work is.
    pub(crate) fn on(&mut self, progress: Progress) {
        // indicatif draws on stderr, and not at all where that is no terminal.
        let bar = self.bar.get_or_insert_with(|| {
            let (done, total) = match progress {
                Progress::Indexing { done, total } | Progress::Hashing { done, total } => {
                    (done, total)
                }
                _ => (0, 0),
            };
            // All of it before it is first drawn: a bar of nothing would look like a full one.
            let bar = ProgressBar::new(total)
                .with_position(done)
                .with_message(self.what);
            match ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {eta}") {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        match progress {
            Progress::Indexing { done, total } | Progress::Hashing { done, total } => {
                bar.set_message(self.what);
                bar.set_length(total);
                bar.set_position(done);
            }
            Progress::Waiting => bar.set_message("waiting for another tarnfs"),
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_the_same_from_anywhere() {
        let here = std::env::current_dir().unwrap();
        let of = |text: &str| {
            let location = location::parse(text.as_ref()).unwrap().unwrap();
            from_anywhere(location).unwrap().to_string()
        };
        for prefix in ["oci", "oci-archive", "docker-archive", "dir"] {
            let want = format!("{prefix}:{}/a/b:1", here.display());
            assert_eq!(of(&format!("{prefix}:a/b:1")), want);
            assert_eq!(of(&want), want);
        }
        assert_eq!(of("docker://a/b:1"), "docker://a/b:1");
    }

    #[test]
    fn no_name_is_a_place() {
        for good in ["debian:12", "oci", "a/oci:1"] {
            assert!(parse_name(good).is_ok(), "{good}");
        }
        for bad in ["oci:1", "docker://a", "dir:x", "", "sha256:1"] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }
}
