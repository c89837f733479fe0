//! File names as bytes.
//!
//! A [`Name`] is parsed once, where bytes enter the program (a tar header, an index, a FUSE
//! request, an upper directory), and from then on cannot hold what would lead out of its
//! directory.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The longest name Linux accepts in one directory entry, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// Why some bytes are not a [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("the name is empty")]
    Empty,
    /// `.` or `..`.
    #[error("the name is \".\" or \"..\"")]
    Dots,
    /// A `/` or a NUL byte.
    #[error("the name holds a slash or a NUL byte")]
    BadByte,
    /// Longer than [`NAME_MAX`].
    #[error("the name is {0} bytes long; Linux allows 255")]
    TooLong(usize),
}

/// Checks that `bytes` can name a directory entry.
///
/// # Errors
/// [`NameError`] tells which rule they break.
pub fn check(bytes: &[u8]) -> Result<(), NameError> {
    match bytes {
        [] => Err(NameError::Empty),
        b"." | b".." => Err(NameError::Dots),
        b if has_bad_byte(b) => Err(NameError::BadByte),
        b if b.len() > NAME_MAX => Err(NameError::TooLong(b.len())),
        _ => Ok(()),
    }
}

/// Whether there is a slash or a NUL; eight bytes at a time, the last eight again with those
/// before them.
fn has_bad_byte(bytes: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const SLASHES: u64 = u64::from_ne_bytes([b'/'; 8]);
    // Not 0 if one of the bytes is 0.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & ONES << 7;
    let Some(last) = bytes.last_chunk::<8>() else {
        return bytes.iter().any(|&c| c == b'/' || c == 0);
    };
    let (words, _) = bytes.as_chunks::<8>();
    let bad = words.iter().chain([last]).fold(0, |bad, word| {
        let word = u64::from_ne_bytes(*word);
        bad | zeros(word) | zeros(word ^ SLASHES)
    });
    bad != 0
}

/// One component of a path: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Parses `bytes`.
    ///
    /// # Errors
    /// [`NameError`] tells which rule they break.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        check(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// The name's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as the standard library wants it.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// An owned copy for path building.
    #[must_use]
    pub fn to_os_string(&self) -> OsString {
        OsString::from_vec(self.0.to_vec())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_os_str(), f)
    }
}

impl TryFrom<&OsStr> for Name {
    type Error = NameError;
    fn try_from(name: &OsStr) -> Result<Self, NameError> {
        Self::new(name.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_leads_elsewhere() {
        assert_eq!(Name::new(b""), Err(NameError::Empty));
        assert_eq!(Name::new(b"."), Err(NameError::Dots));
        assert_eq!(Name::new(b".."), Err(NameError::Dots));
        assert_eq!(Name::new(b"a/b"), Err(NameError::BadByte));
        assert_eq!(Name::new(b"a\0"), Err(NameError::BadByte));
        assert_eq!(Name::new(&[b'x'; 256]), Err(NameError::TooLong(256)));
    }

    #[test]
    fn takes_any_other_bytes() {
        for good in [&b"..."[..], b"\xff\xfe", b" ", b"\n", &[b'x'; 255]] {
            assert_eq!(Name::new(good).unwrap().as_bytes(), good);
        }
    }
}
