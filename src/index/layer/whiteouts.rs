//! Whiteouts: how a layer says what it deletes (OCI image-spec, layer.md: "Whiteouts"; the names
//! are those of AUFS).

use std::collections::{BTreeMap, BTreeSet};

use crate::index::builder::{INODES_MAX, TOO_MANY, split, steps};
use crate::index::misfit::{Fault, Misfit, shown};
use crate::tar::Entry;

/// What the name of a whiteout begins with; the rest is what it hides.
const WHITEOUT: &[u8] = b".wh.";
/// What AUFS' own files begin with.
const OWN: &[u8] = b".wh..wh.";
/// Hides all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an entry of a layer is, by its path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// A file, directory or whatever its header says.
    Entry,
    /// Hides `name` in `dir`.
    Whiteout { dir: &'a [u8], name: &'a [u8] },
    /// Hides everything in `dir`.
    Opaque { dir: &'a [u8] },
    /// AUFS' own business.
    Nothing,
}

/// What the entry with this path is.
pub(super) fn meaning(path: &[u8]) -> Result<Meaning<'_>, Misfit> {
    // Nearly no path has one.
    if !path.starts_with(WHITEOUT) && !path.windows(5).any(|part| part == b"/.wh.") {
        return Ok(Meaning::Entry);
    }
    let Some((dir, name)) = split(path) else {
        return Ok(Meaning::Entry);
    };
    let mut above = steps(dir, 0).filter(|(name, _)| name.starts_with(WHITEOUT));
    if let Some((reserved, so_far)) = above.next() {
        return if reserved.starts_with(OWN) {
            Ok(Meaning::Nothing)
        } else {
            Err(Misfit::BelowWhiteout(shown(so_far)))
        };
    }
    match name {
        OPAQUE => Ok(Meaning::Opaque { dir }),
        own if own.starts_with(OWN) => Ok(Meaning::Nothing),
        _ => match name.strip_prefix(WHITEOUT) {
            None => Ok(Meaning::Entry),
            Some(b"" | b"." | b"..") => Err(Misfit::EmptyWhiteout),
            Some(name) => Ok(Meaning::Whiteout { dir, name }),
        },
    }
}

/// What a layer hides in one directory of the layers below.
#[derive(Debug)]
pub(in crate::index) struct Hidden {
    /// Everything.
    pub(in crate::index) all: bool,
    /// These names.
    pub(in crate::index) names: BTreeSet<Box<[u8]>>,
    /// The path of the first whiteout there, and the offset of its header.
    first: (Box<[u8]>, u64),
}

impl Hidden {
    /// What is wrong with the directory.
    pub(in crate::index) fn fault(&self, misfit: Misfit) -> Fault {
        Fault {
            entry: shown(&self.first.0),
            offset: self.first.1,
            misfit,
        }
    }
}

/// All that a layer hides, by the path of the directory.
#[derive(Debug, Default)]
pub(in crate::index) struct Whiteouts {
    pub(in crate::index) dirs: BTreeMap<Box<[u8]>, Hidden>,
    count: usize,
}

impl Whiteouts {
    /// Takes a whiteout of `name` in `dir`.
    pub(super) fn hide(&mut self, dir: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        self.dir(dir, entry)?.names.insert(name.into());
        Ok(())
    }

    /// Takes an opaque whiteout in `dir`.
    pub(super) fn hide_all(&mut self, dir: &[u8], entry: &Entry) -> Result<(), Fault> {
        self.dir(dir, entry)?.all = true;
        Ok(())
    }

    fn dir(&mut self, dir: &[u8], entry: &Entry) -> Result<&mut Hidden, Fault> {
        self.count += 1;
        if self.count > INODES_MAX {
            return Err(Fault::of(entry, Misfit::Limit(TOO_MANY)));
        }
        let hidden = self.dirs.entry(dir.into());
        Ok(hidden.or_insert_with(|| Hidden {
            all: false,
            names: BTreeSet::new(),
            first: (entry.path.as_slice().into(), entry.offset),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_mean() {
        let whiteout = |dir, name| Ok(Meaning::Whiteout { dir, name });
        for (path, want) in [
            (&b""[..], Ok(Meaning::Entry)),
            (b"a", Ok(Meaning::Entry)),
            (b"a/.wha", Ok(Meaning::Entry)),
            (b"a.wh.b", Ok(Meaning::Entry)),
            (b"a/b.wh./.wh", Ok(Meaning::Entry)),
            (b".wh.a", whiteout(&b""[..], &b"a"[..])),
            (b"a/b/.wh.c", whiteout(b"a/b", b"c")),
            (b".wh.....", whiteout(b"", b"....")),
            (b".wh..wh", whiteout(b"", b".wh")),
            (b".wh.wh..opq", whiteout(b"", b"wh..opq")),
            (b".wh..wh..opq", Ok(Meaning::Opaque { dir: b"" })),
            (b"a/.wh..wh..opq", Ok(Meaning::Opaque { dir: b"a" })),
            (b".wh..wh.", Ok(Meaning::Nothing)),
            (b".wh..wh.aufs", Ok(Meaning::Nothing)),
            (b"a/.wh..wh.plnk", Ok(Meaning::Nothing)),
            (b".wh..wh.plnk/123.456", Ok(Meaning::Nothing)),
            (b".wh..wh.plnk/.wh.x", Ok(Meaning::Nothing)),
            (b".wh..wh..opq/x", Ok(Meaning::Nothing)),
            (b".wh..wh..opq2", Ok(Meaning::Nothing)),
        ] {
            let got = meaning(path).map_err(|e| e.to_string());
            assert_eq!(got, want, "{}", path.escape_ascii());
        }
    }

    #[test]
    fn reserved_names_are_refused() {
        for (path, why) in [
            (&b".wh."[..], "whiteout of nothing"),
            (b"a/.wh..", "whiteout of nothing"),
            (b".wh...", "whiteout of nothing"),
            (b".wh.a/b", ".wh.a is used as a directory"),
            (b"a/.wh.b/.wh.c", "a/.wh.b is used as a directory"),
            (b".wh./a", ".wh. is used as a directory"),
        ] {
            let said = meaning(path).unwrap_err().to_string();
            assert!(said.contains(why), "{}: {said}", path.escape_ascii());
        }
    }
}
