//! Bringing an image into the store from where it is: how registries are asked, and what a local
//! file is found again by.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tarnfs::compress::{self, Format};
use tarnfs::import::{self, Imported, Options};
use tarnfs::source::location::Location;
use tarnfs::source::registry::{Mirror, Registry, RegistryOptions, default_auth_files};
use tarnfs::source::{Platform, Source, SourceError};
use tarnfs::store::{Store, TarIdentity};
use tarnfs::sys::regular;

use super::image::var;
use super::progress::Bars;

pub(crate) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// A place as one says it in any directory.
pub(crate) fn from_anywhere(location: Location) -> anyhow::Result<Location> {
    let here = |rest: OsString| absolute(Path::new(&rest)).map(PathBuf::into_os_string);
    Ok(match location {
        Location::Oci(rest) => Location::Oci(here(rest)?),
        Location::OciArchive(rest) => Location::OciArchive(here(rest)?),
        Location::DockerArchive(rest) => Location::DockerArchive(here(rest)?),
        Location::Dir(rest) => Location::Dir(here(rest)?),
        location @ Location::Registry(_) => location,
    })
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
        let mirror = |(prefix, location): &(String, String)| Mirror {
            prefix: prefix.clone(),
            location: location.clone(),
            insecure: false,
        };
        how.mirrors = self.mirror.iter().map(mirror).collect();
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

fn local(location: &Location) -> Result<Box<dyn Source>, SourceError> {
    location
        .open_local()?
        .ok_or_else(|| SourceError::Asked(format!("{location}: not a place of this machine")))
}

/// Whether the file is a compressed one that can be read. What is wrong with it otherwise, whoever
/// opens it as a tar will say.
pub(crate) fn is_compressed(path: &Path) -> bool {
    let format =
        || -> std::io::Result<Format> { Ok(compress::decoder(regular::open(path)?)?.format()) };
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

#[cfg(test)]
mod tests {
    use tarnfs::source::location;

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
}
