//! Names that people give to images.
//!
//! A name is a symbolic link `names/<name>`, with each `/` written as `%2F`, to the image's own
//! digest: to give it to another image is one rename.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use super::hold::Hold;
use super::layout::name_of;
use super::links::{leads_to, links_in, unlink_lost};
use super::{Store, StoreError, publish};
use crate::digest::Digest;

/// The longest file name that Linux' filesystems take (`NAME_MAX` of limits.h).
const NAME_MAX: usize = 255;

/// A name of an image: letters, digits and `._-:/@+`, as `debian:12` or `docker.io/library/debian`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

impl ImageName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn file(&self) -> String {
        self.0.replace('/', "%2F")
    }

    fn of_file(name: &str) -> Option<Self> {
        name.replace("%2F", "/").parse().ok()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageName {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"._-:/@+".contains(&b);
        let why = if text.is_empty() || !text.bytes().all(good) {
            "a name is letters, digits and . _ - : / @ +"
        } else if !text
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric)
        {
            "a name begins with a letter or a digit"
        } else if text.starts_with("sha256:") || Digest::from_hex(text).is_ok() {
            "a name must not look like a digest"
        } else if text.replace('/', "%2F").len() > NAME_MAX {
            "a name of more than 255 bytes (a / counts as three)"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(StoreError::BadName {
            name: text.to_owned(),
            why,
        })
    }
}

impl Store {
    /// Gives `name` to the image `digest`; it is no longer another's then.
    ///
    /// # Errors
    /// [`StoreError::NoImage`]; those of writing to the store.
    pub fn tag(&self, digest: &Digest, name: &ImageName) -> Result<(), StoreError> {
        let none = || self.no_image(&digest.to_string());
        let own = super::image::own_digest(&self.layout, digest).ok_or_else(none)?;
        let entry = self.layout.image(&own);
        // Nobody removes it before it has the name.
        let _hold = Hold::take(&entry)
            .map_err(StoreError::io(&entry))?
            .ok_or_else(none)?;
        self.point(&self.layout.names().join(name.file()), &own)
    }

    /// Takes a name away; the image stays. False where no image had it.
    ///
    /// # Errors
    /// Those of writing to the store.
    pub fn untag(&self, name: &ImageName) -> Result<bool, StoreError> {
        let link = self.layout.names().join(name.file());
        match fs::remove_file(&link) {
            Ok(()) => {
                publish::sync_parent(&link).map_err(|e| StoreError::write(self.dir(), &link, e))?;
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(StoreError::write(self.dir(), &link, e)),
        }
    }

    /// Takes a name away from an image that is gone.
    pub(super) fn untag_lost(&self, name: &ImageName, own: &Digest) -> Result<(), StoreError> {
        unlink_lost(&self.layout, &self.layout.names().join(name.file()), own)
    }

    /// The image that has `name`.
    pub(super) fn named(&self, name: &ImageName) -> Option<Digest> {
        leads_to(&self.layout.names().join(name.file()))
    }

    /// All names and what they are of, sorted.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn names(&self) -> Result<Vec<(ImageName, Digest)>, StoreError> {
        let name =
            |(link, own): (PathBuf, Digest)| Some((ImageName::of_file(name_of(&link)?)?, own));
        let links = links_in(&self.layout.names())?;
        let mut all: Vec<_> = links.into_iter().filter_map(name).collect();
        all.sort();
        Ok(all)
    }

    pub(super) fn no_image(&self, name: &str) -> StoreError {
        StoreError::NoImage {
            name: name.to_owned(),
            store: self.dir().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_files_and_back() {
        for text in [
            "debian",
            "debian:12",
            "docker.io/library/debian:12",
            "a@b+c_d-e.f",
        ] {
            let name: ImageName = text.parse().unwrap();
            assert!(!name.file().contains('/'));
            assert_eq!(ImageName::of_file(&name.file()), Some(name));
        }
    }

    #[test]
    fn what_is_no_name() {
        let long = "x".repeat(256);
        let slashes = format!("x{}", "/".repeat(90));
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "/x",
            "-x",
            "a b",
            "a\nb",
            "a%2Fb",
            "ä",
            "sha256:00",
            &"a1".repeat(32),
            &long,
            &slashes,
        ] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }
}
