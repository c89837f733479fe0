//! Patterns of paths that are left out.

/// Which paths are left out, each with all below it.
///
/// An absolute path inside of the image; `*` stands for any bytes within a component, and a
/// component `**` for any number of components (at the end: one or more). A backslash is itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<Vec<u8>>,
}

/// Why bytes are no [`Pattern`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It does not begin with a slash.
    #[error("a pattern begins with /, as the path inside does")]
    Relative,
    /// It names the root.
    #[error("a pattern names something below /")]
    Root,
    /// A component `.` or `..`, which no path of an entry has.
    #[error("a pattern holds neither . nor ..")]
    Dots,
}

impl Pattern {
    /// Parses `text`. Slashes that are doubled, or stand at the end, count as one or none.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn new(text: &[u8]) -> Result<Self, PatternError> {
        let text = text.strip_prefix(b"/").ok_or(PatternError::Relative)?;
        let parts: Vec<_> = text
            .split(|&b| b == b'/')
            .filter(|part| !part.is_empty())
            .map(<[u8]>::to_vec)
            .collect();
        if parts.is_empty() {
            return Err(PatternError::Root);
        }
        if parts.iter().any(|part| matches!(&**part, b"." | b"..")) {
            return Err(PatternError::Dots);
        }
        Ok(Self { parts })
    }

    /// Whether `path` (no leading slash) is meant itself; what lies below what is meant is not
    /// looked at.
    pub(super) fn is_of(&self, path: &[u8]) -> bool {
        let path: Vec<_> = path.split(|&b| b == b'/').collect();
        // Where it went on from when it last came past a `**`.
        let (mut at, mut part) = (0, 0);
        let mut back = None;
        loop {
            match (self.parts.get(part), path.get(at)) {
                (None, None) => return true,
                (Some(wild), _) if wild == b"**" => {
                    // At the end it is one component at least: `/run/**` is not /run.
                    let least = usize::from(part + 1 == self.parts.len());
                    back = Some((part + 1, at + least));
                    (part, at) = (part + 1, at + least);
                    if at > path.len() {
                        return false;
                    }
                    continue;
                }
                (Some(glob), Some(name)) if is_name(glob, name) => {
                    (part, at) = (part + 1, at + 1);
                    continue;
                }
                _ => {}
            }
            match back {
                Some((from, tried)) if tried < path.len() => {
                    back = Some((from, tried + 1));
                    (part, at) = (from, tried + 1);
                }
                _ => return false,
            }
        }
    }
}

/// Whether a component with `*` in it means `name`.
fn is_name(glob: &[u8], name: &[u8]) -> bool {
    let mut pieces = glob.split(|&b| b == b'*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        let Some(found) = find(rest, piece) else {
            return false;
        };
        rest = rest.get(found + piece.len()..).unwrap_or_default();
    }
    true
}

fn find(within: &[u8], piece: &[u8]) -> Option<usize> {
    if piece.is_empty() {
        return Some(0);
    }
    within.windows(piece.len()).position(|at| at == piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pattern_means() {
        for (pattern, yes, no) in [
            (
                "/etc/resolv.conf",
                &["etc/resolv.conf"][..],
                &[
                    "etc",
                    "etc/resolv.confs",
                    "resolv.conf",
                    "a/etc/resolv.conf",
                ][..],
            ),
            (
                "/run/**",
                &["run/a", "run/a/b"],
                &["run", "runs/a", "a/run/b"],
            ),
            ("/dev//*/", &["dev/a"], &["dev", "dev/a/b"]),
            (
                "/a*c/*.*",
                &["ac/.", "abc/x.y", "aacc/..."],
                &["ac/x", "ab/x.y", "ac"],
            ),
            (
                "/x/**/y",
                &["x/y", "x/a/y", "x/y/y", "x/a/y/b/y"],
                &["x", "y", "x/a/y/b", "x/ya"],
            ),
            (
                "/**/p*/**/q",
                &["p/q", "a/p1/b/q", "p/p/q/q"],
                &["q", "p", "p/q/r"],
            ),
            ("/**", &["a", "a/b"], &[]),
            ("/a\\*", &["a\\b"], &["a*"]),
            ("/*a*b*", &["ab", "xaybz", "aab"], &["ba", "a"]),
        ] {
            let pattern = Pattern::new(pattern.as_bytes()).unwrap();
            for path in yes {
                assert!(pattern.is_of(path.as_bytes()), "{pattern:?} {path}");
            }
            for path in no {
                assert!(!pattern.is_of(path.as_bytes()), "{pattern:?} {path}");
            }
        }
    }

    #[test]
    fn what_is_no_pattern() {
        for (text, why) in [
            ("", PatternError::Relative),
            ("etc", PatternError::Relative),
            ("/", PatternError::Root),
            ("///", PatternError::Root),
            ("/a/../b", PatternError::Dots),
            ("/./a", PatternError::Dots),
        ] {
            assert_eq!(Pattern::new(text.as_bytes()), Err(why), "{text}");
        }
    }
}
