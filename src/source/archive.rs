//! Tars that hold an image's parts as members: nothing is unpacked, a member is a range of the
//! file.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SourceError;
use super::oci::bad;
use super::part::{Files, Part, shown};
use crate::compress::betrayed;
use crate::sys::regular;
use crate::tar::{EntryKind, ReadAt as _, Reader, Segment, printable};

/// The most members: an image of the most layers has some ten thousand.
const MEMBERS_MAX: usize = 200_000;

/// The most links that lead from one to the next.
const LINKS_MAX: usize = 8;

/// What a member is.
enum Member {
    /// A file's place in the tar.
    File(Option<Segment>),
    /// A link to another member, from the root.
    Link(Vec<u8>),
    /// A link that leads out of the tar.
    Outside(Vec<u8>),
    Dir,
    /// Anything else: a device, a sparse file.
    Odd(&'static str),
}

/// A tar and its members.
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: BTreeMap<Vec<u8>, Member>,
}

impl Archive {
    /// Reads the headers of the tar at `path`.
    ///
    /// # Errors
    /// It is no tar, or a compressed one, or two members have one name.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let what = shown(path);
        let fail = |source| SourceError::Io {
            what: what.clone(),
            source,
        };
        let file = regular::open(path).map_err(fail)?;
        let mut start = [0; 512];
        let len = file.read_at(&mut start, 0).map_err(fail)?;
        // The tar reader says so too, but with another way out.
        if start.get(257..262) != Some(b"ustar")
            && let Some((format, command)) = betrayed(start.get(..len).unwrap_or_default())
        {
            let why = format!(
                "compressed with {format} as a whole: decompress it first (`{command}`); its layers may be compressed"
            );
            return Err(bad(what, why));
        }
        let members = members(&file, path)?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            members,
        })
    }

    /// The path of a member by a name that a document in the tar gives it.
    ///
    /// # Errors
    /// The name leads out of the tar.
    pub(super) fn named<'a>(&self, name: &'a str) -> Result<&'a str, SourceError> {
        let path = name.strip_prefix("./").unwrap_or(name);
        let odd = |part: &str| matches!(part, "" | "." | "..") || part.contains('\0');
        if path.split('/').any(odd) {
            let why = format!(
                "the name \"{}\" of a member leads out of the tar or is none",
                printable(name.as_bytes())
            );
            return Err(bad(self.label("manifest.json"), why));
        }
        Ok(path)
    }
}

fn members(file: &File, path: &Path) -> Result<BTreeMap<Vec<u8>, Member>, SourceError> {
    let what = shown(path);
    let refused = |error: crate::tar::TarError| {
        let text = error.to_string();
        let why = text.strip_prefix(&format!("{what}: ")).unwrap_or(&text);
        bad(&*what, why)
    };
    let mut reader = Reader::new(file, path).map_err(refused)?;
    let mut members = BTreeMap::new();
    while let Some(entry) = reader.next_entry().map_err(refused)? {
        let member = match entry.kind {
            EntryKind::File { size: 0, .. } => Member::File(None),
            EntryKind::File { size, segments } => match segments.first() {
                Some(whole) if whole.offset == 0 && whole.len == size => Member::File(Some(*whole)),
                _ => Member::Odd("a sparse file"),
            },
            EntryKind::Symlink(target) => match resolved(&entry.path, &target) {
                Some(path) => Member::Link(path),
                None => Member::Outside(target),
            },
            EntryKind::HardLink { target, .. } => Member::Link(target),
            EntryKind::Dir => Member::Dir,
            EntryKind::Device(..) => Member::Odd("a device"),
            EntryKind::Fifo => Member::Odd("a FIFO"),
        };
        let is_dir = matches!(member, Member::Dir);
        if members.len() >= MEMBERS_MAX {
            let why = format!("more than {MEMBERS_MAX} members: this is no archive of images");
            return Err(bad(what, why));
        }
        let name = printable(&entry.path);
        match members.insert(entry.path, member) {
            None => {}
            Some(Member::Dir) if is_dir => {}
            Some(_) => {
                let why = format!("two members are called {name}");
                return Err(bad(what, why));
            }
        }
    }
    Ok(members)
}

/// The path from the root to which a symbolic link at `path` leads; `None` where it leads out.
fn resolved(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    if target.starts_with(b"/") {
        return None;
    }
    let mut parts: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
    parts.pop();
    for part in target.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join(&b'/'))
}

impl Files for Archive {
    fn find(&self, name: &str) -> Result<Option<Part>, SourceError> {
        let refused = |why: String| Err(bad(self.label(name), why));
        let mut path = name.as_bytes();
        for _ in 0..=LINKS_MAX {
            match self.members.get(path) {
                // The first name may be missing; what a link leads to must not.
                None if path == name.as_bytes() => return Ok(None),
                None => {
                    let target = printable(path);
                    return refused(format!("a link to {target}, which is not in the tar"));
                }
                Some(Member::File(place)) => {
                    let (at, len) = place.map_or((0, 0), |place| (place.tar_offset, place.len));
                    return Ok(Some(Part::new(Arc::clone(&self.file), at, len)));
                }
                Some(Member::Link(target)) => path = target,
                Some(Member::Outside(target)) => {
                    let target = printable(target);
                    return refused(format!("a link to {target}, out of the tar"));
                }
                Some(Member::Dir) => return refused("is a directory".to_owned()),
                Some(Member::Odd(what)) => return refused(format!("is {what}, not a file")),
            }
        }
        refused("a link that leads to no file".to_owned())
    }

    fn label(&self, name: &str) -> String {
        format!("{}: {}", shown(&self.path), printable(name.as_bytes()))
    }
}
