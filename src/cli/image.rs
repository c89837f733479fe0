//! IMAGE on the command line: a tar, an image of the store, or a place to import it from.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tarnfs::digest::Digest;
use tarnfs::import::Options;
use tarnfs::lower::Lower;
use tarnfs::source::location::{self, Location};
use tarnfs::source::registry;
use tarnfs::store::{Image, ImageName, Store, StoreError};

use super::progress::Bar;
use super::{Global, fetch, print};

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

/// A path in the environment.
pub(crate) fn var(name: &str) -> Option<PathBuf> {
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
            Self::Tar(path) => Self::Tar(fetch::absolute(&path)?),
            Self::Elsewhere(location) => Self::Elsewhere(fetch::from_anywhere(location)?),
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
                // Of a tar that is known nothing is read, not even what it begins with.
                if let Some(image) = store.known_tar(path)? {
                    return Ok(image);
                }
                if fetch::is_compressed(path) {
                    let taken = fetch::import_file(store, path, &Options::default())?;
                    return Ok(taken.image);
                }
                let mut bar = Bar::new("indexing");
                Ok(store.tar_image(path, &mut |p| bar.on(p))?)
            }
            Self::Elsewhere(location) => {
                // Of a registry's name nobody asks again what it leads to; `tarnfs import` does.
                if let Location::Registry(name) = location {
                    let name = registry::canonical(name)?;
                    if let Some(own) = store.remembered(&format!("docker://{name}"))
                        && let Ok(image) = store.image(&own)
                    {
                        return Ok(image);
                    }
                }
                let asked = fetch::Sources::default();
                Ok(fetch::import_location(store, location, &asked, &Options::default())?.image)
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
