//! Where an image is, as a person writes it: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`,
//! `docker-archive:FILE[:REF]`, `dir:DIR`, `docker://NAME`, the words of `skopeo`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::dir::{self, Dir};
use super::docker::{self, Docker};
use super::layout::{self, Layout};
use super::oci::bad;
use super::part::{Directory, Files as _, escaped, shown};
use super::{Source, SourceError};
use crate::digest::Digest;

/// Where an image is. What stands behind the prefix is taken apart when it is opened: which colon
/// ends the path depends on which paths there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `oci:DIR[:TAG]`: an OCI image layout.
    Oci(OsString),
    /// `oci-archive:FILE[:TAG]`: the same in a tar.
    OciArchive(OsString),
    /// `docker-archive:FILE[:REF]`: what `docker save` writes.
    DockerArchive(OsString),
    /// `dir:DIR`: what `skopeo copy … dir:DIR` writes.
    Dir(OsString),
    /// `docker://NAME[:TAG][@DIGEST]`: a registry. Behind the slashes.
    Registry(String),
}

/// Which of the images of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pick {
    /// There must be only one.
    Only,
    /// That of a name or a tag.
    Name(String),
    /// That of the digest of an index, a manifest or a configuration.
    Digest(Digest),
    /// By its place, from 0.
    Position(usize),
}

/// Recognises a place of images by its prefix; `None` for anything else, as is a path.
///
/// # Errors
/// [`SourceError::Asked`]: there is nothing behind the prefix, or no text where one is needed.
pub fn parse(text: &OsStr) -> Result<Option<Location>, SourceError> {
    let bytes = text.as_bytes();
    let Some((prefix, rest)) = bytes
        .iter()
        .position(|&b| b == b':')
        .and_then(|colon| Some((bytes.get(..colon)?, bytes.get(colon + 1..)?)))
    else {
        return Ok(None);
    };
    let owned = || OsStr::from_bytes(rest).to_owned();
    let location = match prefix {
        b"oci" => Location::Oci(owned()),
        b"oci-archive" => Location::OciArchive(owned()),
        b"docker-archive" => Location::DockerArchive(owned()),
        b"dir" => Location::Dir(owned()),
        b"docker" => {
            let name = rest
                .strip_prefix(b"//")
                .ok_or_else(|| asked(text, "write docker://NAME for an image of a registry"))?;
            let name = str::from_utf8(name).map_err(|_| asked(text, "the name is not UTF-8"))?;
            Location::Registry(name.to_owned())
        }
        _ => return Ok(None),
    };
    let empty = match &location {
        Location::Oci(rest)
        | Location::OciArchive(rest)
        | Location::DockerArchive(rest)
        | Location::Dir(rest) => rest.is_empty(),
        Location::Registry(name) => name.is_empty(),
    };
    if empty {
        return Err(asked(text, "nothing stands behind the prefix"));
    }
    Ok(Some(location))
}

fn asked(text: &OsStr, why: &str) -> SourceError {
    SourceError::Asked(format!("{}: {why}", escaped(text)))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, rest) = match self {
            Self::Oci(rest) => ("oci:", rest),
            Self::OciArchive(rest) => ("oci-archive:", rest),
            Self::DockerArchive(rest) => ("docker-archive:", rest),
            Self::Dir(rest) => ("dir:", rest),
            Self::Registry(name) => return write!(f, "docker://{name}"),
        };
        write!(f, "{prefix}{}", rest.display())
    }
}

impl Location {
    /// Opens a place of this machine; `None` for [`Self::Registry`], which is none.
    ///
    /// # Errors
    /// [`SourceError`]: it is not there, it is something else, or it does not hold the one image
    /// that was asked for.
    pub fn open_local(&self) -> Result<Option<Box<dyn Source>>, SourceError> {
        let what = escaped(self.to_string().as_ref());
        Ok(Some(match self {
            Self::Registry(_) => return Ok(None),
            Self::Oci(rest) => {
                let (path, pick) = split(rest)?;
                let files = directory(&path)?;
                if files.find(layout::MARK)?.is_none() {
                    return Err(no_layout(&files, &path));
                }
                Box::new(Layout::open(Box::new(files), &pick, what)?)
            }
            Self::OciArchive(rest) => {
                let (path, pick) = split(rest)?;
                let files = archive(&path, "oci:")?;
                if files.find(layout::MARK)?.is_none() {
                    return Err(no_archive(
                        &files,
                        &path,
                        "an OCI image layout (oci-layout)",
                    ));
                }
                Box::new(Layout::open(Box::new(files), &pick, what)?)
            }
            Self::DockerArchive(rest) => {
                let (path, pick) = split(rest)?;
                let files = archive(&path, "dir:")?;
                if files.find(docker::MANIFEST)?.is_none() {
                    let wanted = "a docker archive (manifest.json)";
                    return Err(no_archive(&files, &path, wanted));
                }
                Box::new(Docker::open(&files, &pick, what)?)
            }
            Self::Dir(rest) => {
                let path = Path::new(rest);
                let files = directory(path)?;
                if files.find(dir::MANIFEST)?.is_none() {
                    return Err(no_dir(&files, path));
                }
                Box::new(Dir::open(files, what)?)
            }
        }))
    }
}

/// Takes apart what stands behind a prefix: the whole is the path where there is such a file, else
/// the longest beginning before a colon that is one, else the beginning before the last colon.
fn split(rest: &OsStr) -> Result<(PathBuf, Pick), SourceError> {
    let bytes = rest.as_bytes();
    let there = |path: &[u8]| fs::metadata(OsStr::from_bytes(path)).is_ok();
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    if there(bytes) {
        return Ok((path(bytes), Pick::Only));
    }
    // A digest has a colon of its own.
    const DIGEST: &[u8] = b"@sha256:";
    if let Some(at) = bytes.windows(DIGEST.len()).rposition(|w| w == DIGEST) {
        let (before, digest) = bytes.split_at_checked(at).unwrap_or_default();
        let digest = String::from_utf8_lossy(digest.get(1..).unwrap_or_default());
        let before = before.strip_suffix(b":").unwrap_or(before);
        let digest = digest
            .parse()
            .map_err(|_| asked(rest, "behind @sha256: 64 hexadecimal digits must stand"))?;
        return Ok((path(before), Pick::Digest(digest)));
    }
    let colons = || {
        (0..bytes.len())
            .rev()
            .filter(|&n| bytes.get(n) == Some(&b':'))
    };
    let Some(colon) = colons()
        .find(|&n| bytes.get(..n).is_some_and(there))
        .or_else(|| colons().next())
    else {
        return Ok((path(bytes), Pick::Only));
    };
    let name = bytes.get(colon + 1..).unwrap_or_default();
    let name = str::from_utf8(name).map_err(|_| asked(rest, "the tag is not UTF-8"))?;
    let pick = match name.strip_prefix('@') {
        _ if name.is_empty() => return Err(asked(rest, "no tag stands behind the colon")),
        Some(n) => Pick::Position(n.parse().map_err(|_| {
            asked(
                rest,
                "behind @ the place of an image, from 0, or a digest must stand",
            )
        })?),
        None => Pick::Name(name.to_owned()),
    };
    Ok((path(bytes.get(..colon).unwrap_or_default()), pick))
}

fn directory(path: &Path) -> Result<Directory, SourceError> {
    let fail = |source| SourceError::Io {
        what: shown(path),
        source,
    };
    if fs::metadata(path).map_err(fail)?.is_dir() {
        return Ok(Directory(path.to_owned()));
    }
    let why = "not a directory: an OCI layout in a tar is oci-archive:FILE, what `docker save` writes docker-archive:FILE";
    Err(bad(shown(path), why))
}

fn archive(path: &Path, directory: &str) -> Result<Archive, SourceError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            let why = format!("a directory, not a tar: of a directory it is {directory}DIR");
            Err(bad(shown(path), why))
        }
        Ok(_) => Archive::open(path),
        Err(source) => Err(SourceError::Io {
            what: shown(path),
            source,
        }),
    }
}

/// What a plain tree of files is imported with.
fn plain(path: &Path) -> String {
    format!(
        "a plain tree of files is imported with `tar -C {} -c . | tarnfs import -`",
        shown(path)
    )
}

fn no_layout(files: &Directory, path: &Path) -> SourceError {
    let hint = match files.find(dir::MANIFEST) {
        Ok(Some(_)) => format!("this is of the kind dir:{}", shown(path)),
        _ => plain(path),
    };
    bad(
        shown(path),
        format!("not an OCI image layout, it has no oci-layout; {hint}"),
    )
}

fn no_dir(files: &Directory, path: &Path) -> SourceError {
    let hint = match files.find(layout::MARK) {
        Ok(Some(_)) => format!("this is an OCI image layout, oci:{}", shown(path)),
        _ => plain(path),
    };
    bad(
        shown(path),
        format!("not written by `skopeo copy … dir:`, it has no manifest.json; {hint}"),
    )
}

fn no_archive(files: &Archive, path: &Path, wanted: &str) -> SourceError {
    let there = |name: &str| matches!(files.find(name), Ok(Some(_)));
    let path = shown(path);
    let hint = if there(layout::MARK) {
        format!("this is of the kind oci-archive:{path}")
    } else if there(docker::MANIFEST) {
        format!("this is of the kind docker-archive:{path}")
    } else {
        format!("the tar of a plain tree of files is imported with `tarnfs import {path}`")
    };
    bad(path, format!("not the tar of {wanted}; {hint}"))
}
