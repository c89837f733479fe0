//! Paths of entries and of hard-link targets.

use super::error::{Problem, printable};
use crate::name;

/// The longest path Linux takes (`PATH_MAX` without its NUL).
const PATH_LEN_MAX: usize = 4095;

/// `raw` as valid names joined by single slashes: without `.`, doubled and trailing slashes.
/// Empty for the root. Made in the buffer of `raw`.
///
/// `.` is dropped and nothing else is interpreted: a `..` or a leading slash, which would lead out
/// of the image or to somewhere else than written, is refused.
pub(super) fn normal(mut raw: Vec<u8>) -> Result<Vec<u8>, Problem> {
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
    Ok(raw)
}

/// The path rules for hard-link targets, with the target's name in the error.
pub(super) fn link_target(raw: &[u8]) -> Result<Vec<u8>, Problem> {
    normal(raw.to_vec()).map_err(|problem| Problem::LinkTarget {
        target: printable(raw),
        problem: Box::new(problem),
    })
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
