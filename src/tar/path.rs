//! Paths of entries and of hard-link targets.

use super::error::{Problem, printable};
use crate::name;

/// The longest path Linux takes (`PATH_MAX` without its NUL).
const PATH_LEN_MAX: usize = 4095;

/// The directory that the last entry lies in, in the tar's spelling and in ours, each with its
/// slash: most entries follow their siblings, and only their last name is left to check.
#[derive(Debug, Default)]
pub(super) struct Parent {
    raw: Vec<u8>,
    normal: Vec<u8>,
}

impl Parent {
    /// Makes `out` what [`normal`] makes of `raw`.
    pub(super) fn path(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<(), Problem> {
        out.clear();
        if let Some(name) = raw.strip_prefix(&*self.raw) {
            let name = name.strip_suffix(b"/").unwrap_or(name);
            let len = self.normal.len() + name.len();
            if len <= PATH_LEN_MAX && name::check(name).is_ok() {
                out.reserve(len);
                out.extend_from_slice(&self.normal);
                out.extend_from_slice(name);
                return Ok(());
            }
        }
        out.extend_from_slice(raw);
        normal(out)?;
        self.raw.clear();
        self.normal.clear();
        let (raw_dir, raw_name) = split(raw.strip_suffix(b"/").unwrap_or(raw));
        let (dir, name) = split(out);
        // Not where the last name is one that was dropped.
        if raw_name == name && !name.is_empty() {
            self.raw.extend_from_slice(raw_dir);
            self.normal.extend_from_slice(dir);
        }
        Ok(())
    }
}

/// `path` behind its last slash, and what is before that.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|&b| b == b'/');
    path.split_at_checked(slash.map_or(0, |slash| slash + 1))
        .unwrap_or_default()
}

/// Makes `raw` valid names joined by single slashes: without `.`, doubled and trailing slashes.
/// Empty for the root.
///
/// `.` is dropped and nothing else is interpreted: a `..` or a leading slash, which would lead out
/// of the image or to somewhere else than written, is refused.
fn normal(raw: &mut Vec<u8>) -> Result<(), Problem> {
    match raw.as_slice() {
        [] => return Err(name::NameError::Empty.into()),
        [b'/', ..] => return Err(Problem::Absolute),
        // As most tars have it: one move instead of one for each name.
        [b'.', b'/', ..] => drop(raw.drain(..2)),
        _ => {}
    }
    let mut end = 0;
    let mut from = 0;
    while from < raw.len() {
        let rest = raw.get(from..).unwrap_or_default();
        let len = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
        let part = rest.get(..len).unwrap_or_default();
        match part {
            b"" | b"." => {}
            b".." => return Err(Problem::DotDot),
            _ => {
                name::check(part)?;
                // What is kept is never longer than what was read: the slash has its place.
                if end > 0
                    && let Some(slash) = raw.get_mut(end)
                {
                    *slash = b'/';
                    end += 1;
                }
                if end != from {
                    raw.copy_within(from..from + len, end);
                }
                end += len;
            }
        }
        from += len + 1;
    }
    raw.truncate(end);
    if end > PATH_LEN_MAX {
        return Err(Problem::PathTooLong(end));
    }
    Ok(())
}

/// The path rules for hard-link targets, with the target's name in the error.
pub(super) fn link_target(raw: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut path = raw.to_vec();
    match normal(&mut path) {
        Ok(()) => Ok(path),
        Err(problem) => Err(Problem::LinkTarget {
            target: printable(raw),
            problem: Box::new(problem),
        }),
    }
}

/// Checks a symbolic link's target, which is free text for whoever follows it.
pub(super) fn symlink_target(raw: &[u8]) -> Result<(), Problem> {
    match raw {
        [] => Err(Problem::Symlink("is empty")),
        _ if raw.contains(&0) => Err(Problem::Symlink("holds a NUL byte")),
        _ if raw.len() > PATH_LEN_MAX => {
            Err(Problem::Symlink("is longer than Linux allows (4095 bytes)"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(mut raw: Vec<u8>) -> Result<Vec<u8>, Problem> {
        super::normal(&mut raw).map(|()| raw)
    }

    #[test]
    fn the_last_directory_changes_nothing() {
        let raws: [&[u8]; 18] = [
            b"./",
            b"./a",
            b"./a/",
            b"./a/b",
            b"./a/b/",
            b"./a/b/c",
            b"./a/b/d",
            b"./a/b/.",
            b"./a/b/..",
            b"./a/b//",
            b"./a/b//e",
            b"./a/b/",
            b"./a/b/f/g",
            b"a/b/h",
            b"a/b/",
            b"x",
            b"",
            b"a/b/\0",
        ];
        for first in raws {
            for second in raws {
                let mut parent = Parent::default();
                let mut got = vec![];
                for raw in [first, second, second] {
                    match (parent.path(raw, &mut got), normal(raw.to_vec())) {
                        (Ok(()), Ok(want)) => assert_eq!(got, want, "{first:?} {second:?}"),
                        (Err(got), Err(want)) => assert_eq!(got.to_string(), want.to_string()),
                        (got, want) => panic!("{got:?} {want:?}"),
                    }
                }
            }
        }
        let mut parent = Parent::default();
        let mut out = vec![];
        let dir = b"x/".repeat(2000);
        parent.path(&[&dir, &b"a"[..]].concat(), &mut out).unwrap();
        let long = [&dir, &[b'y'; 96][..]].concat();
        assert!(matches!(
            parent.path(&long, &mut out),
            Err(Problem::PathTooLong(4096))
        ));
    }

    #[test]
    fn dots_and_slashes_are_dropped() {
        for (raw, want) in [
            (&b"./"[..], &b""[..]),
            (b".", b""),
            (b"./a//b/./c/", b"a/b/c"),
            (b".//./a", b"a"),
            (b"a/./bcd//e/.", b"a/bcd/e"),
            (b"a", b"a"),
            (b"...", b"..."),
        ] {
            assert_eq!(normal(raw.to_vec()).unwrap(), want);
        }
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for raw in [&b""[..], b"/", b"/etc", b"..", b"a/../b", b"./..", b"a\0b"] {
            assert!(normal(raw.to_vec()).is_err(), "{raw:?}");
        }
        assert!(normal(vec![b'x'; 255]).is_ok());
        assert!(normal(vec![b'x'; 256]).is_err());
        assert!(normal(b"x/".repeat(2047)).is_ok());
        assert!(matches!(
            normal(b"x/".repeat(5000)),
            Err(Problem::PathTooLong(9999))
        ));
    }

    #[test]
    fn symlink_targets_are_free_but_bounded() {
        assert!(symlink_target(b"../../etc/passwd").is_ok());
        assert!(symlink_target(&[b'x'; 4095]).is_ok());
        for bad in [&b""[..], b"a\0", &[b'x'; 4096]] {
            assert!(symlink_target(bad).is_err());
        }
    }
}
