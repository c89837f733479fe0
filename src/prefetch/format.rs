//! The record of a start-up: text, one range a line (docs/FORMAT.md, "The record of a start-up").
//!
//! A person may read, shorten and reorder it. Everything in it is checked before it is used: it
//! *never* names a place outside of the image, nor bytes that no file can have.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::name;

/// What the first line begins with.
const MAGIC: &str = "tarnfs-prefetch";
/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

/// Bytes that a record may have.
const MAX_BYTES: u64 = 32 << 20;
/// Ranges that a record may have.
pub(super) const MAX_LINES: usize = 1 << 18;
/// Bytes of a path, escapes resolved: trees may be deeper than PATH_MAX.
const MAX_PATH: usize = 64 << 10;

/// Ranges begin and end at multiples of this when they are recorded: a page.
pub(super) const GRAIN: u64 = 4096;

/// A range of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// First byte.
    pub offset: u64,
    /// Bytes, > 0; `offset` + `len` fits a file's size.
    pub len: u64,
    /// The file: `/` and names, at least one, with one `/` between two.
    pub path: Box<[u8]>,
}

/// A whole record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// [`crate::lower::Lower::fingerprint`] of the image that it was made of: for people, and for
    /// the log. Paths decide.
    pub fingerprint: u64,
    /// In the order of the first touches.
    pub lines: Vec<Line>,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// It is something else.
    #[error("{0}: not a record of tarnfs (its first line is not \"{MAGIC} {VERSION} …\")")]
    Foreign(PathBuf),
    /// It is of another version.
    #[error("{path}: a record of version {version:?}; this tarnfs knows version {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: String,
    },
    /// A line of it makes no sense.
    #[error("{path}: line {line}: {what}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// It is too large.
    #[error("{0}: too large for a record")]
    TooLarge(PathBuf),
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Profile {
    /// Reads the record in `path`, all of it.
    ///
    /// # Errors
    /// [`ProfileError`].
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let io = |source| ProfileError::Io {
            path: path.to_owned(),
            source,
        };
        // O_NONBLOCK: a FIFO in its place must not hold us up.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.is_dir() {
            return Err(io(io::Error::from_raw_os_error(libc::EISDIR)));
        }
        if !metadata.is_file() {
            return Err(ProfileError::Foreign(path.to_owned()));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(ProfileError::TooLarge(path.to_owned()));
        }
        Self::parse(path, &bytes)
    }

    /// Parses a record; `path` is its name in errors.
    ///
    /// # Errors
    /// [`ProfileError`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ProfileError> {
        let whole = bytes.last() == Some(&b'\n');
        let mut rows = bytes.split(|&b| b == b'\n').enumerate().peekable();
        let first = rows.next().map(|(_, row)| row).unwrap_or_default();
        let fingerprint = head(path, first)?;
        let mut lines = Vec::new();
        while let Some((number, row)) = rows.next() {
            if row.is_empty() || row.starts_with(b"#") {
                continue;
            }
            if lines.len() == MAX_LINES {
                return Err(ProfileError::TooLarge(path.to_owned()));
            }
            match line(row) {
                Ok(line) => lines.push(line),
                // Whoever wrote it was killed in the middle of the line.
                Err(_) if !whole && rows.peek().is_none() => {}
                Err(what) => {
                    return Err(ProfileError::Line {
                        path: path.to_owned(),
                        line: number.saturating_add(1),
                        what,
                    });
                }
            }
        }
        Ok(Self { fingerprint, lines })
    }
}

/// Whether bytes are the beginning of a record, of any version.
pub(super) fn is_record(start: &[u8]) -> bool {
    start
        .strip_prefix(MAGIC.as_bytes())
        .is_some_and(|rest| rest.first() == Some(&b' '))
}

/// The first line.
fn head(path: &Path, row: &[u8]) -> Result<u64, ProfileError> {
    let foreign = || ProfileError::Foreign(path.to_owned());
    if !is_record(row) {
        return Err(foreign());
    }
    let text = std::str::from_utf8(row).map_err(|_| foreign())?;
    let mut words = text.split(' ').skip(1);
    let version = words.next().unwrap_or_default();
    if version != VERSION.to_string() {
        return Err(ProfileError::Version {
            path: path.to_owned(),
            version: version.chars().take(20).collect(),
        });
    }
    let bad = |what| ProfileError::Line {
        path: path.to_owned(),
        line: 1,
        what,
    };
    let digits = words.next().unwrap_or_default();
    let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    if digits.len() != 16 || !hex || words.next().is_some() {
        return Err(bad("the image's fingerprint must be 16 hexadecimal digits"));
    }
    u64::from_str_radix(digits, 16)
        .map_err(|_| bad("the image's fingerprint must be 16 hexadecimal digits"))
}

/// `OFFSET LENGTH PATH`.
fn line(row: &[u8]) -> Result<Line, &'static str> {
    let mut words = row.splitn(3, |&b| b == b' ');
    let offset = number(words.next()).ok_or("OFFSET is not a number of bytes")?;
    let len = number(words.next()).ok_or("LENGTH is not a number of bytes")?;
    let path = words.next().ok_or("OFFSET LENGTH PATH are wanted")?;
    if len == 0 {
        return Err("LENGTH is 0");
    }
    let largest = u64::try_from(i64::MAX).unwrap_or(u64::MAX);
    if offset.checked_add(len).is_none_or(|end| end > largest) {
        return Err("no file has so many bytes");
    }
    Ok(Line {
        offset,
        len,
        path: checked(unescape(path)?)?,
    })
}

fn number(word: Option<&[u8]>) -> Option<u64> {
    let word = word?;
    // `parse` takes a sign.
    if !word.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// An absolute path without `.`, `..` and empty components.
fn checked(path: Vec<u8>) -> Result<Box<[u8]>, &'static str> {
    if path.len() > MAX_PATH {
        return Err("the path is too long");
    }
    let below = path
        .strip_prefix(b"/")
        .ok_or("the path does not begin with /")?;
    if below
        .split(|&b| b == b'/')
        .any(|part| name::check(part).is_err())
    {
        return Err("the path has a component that cannot be a name");
    }
    Ok(path.into())
}

/// A path as it stands in a record: `\\` for a backslash, `\xNN` for what is not a visible
/// character of ASCII or a space.
fn escape(path: &[u8], to: &mut Vec<u8>) {
    for &byte in path {
        match byte {
            b'\\' => to.extend_from_slice(b"\\\\"),
            b' '..=b'~' => to.push(byte),
            _ => {
                to.extend_from_slice(b"\\x");
                for digit in [byte >> 4, byte & 15] {
                    let digit = char::from_digit(digit.into(), 16).unwrap_or('0');
                    to.extend_from_slice(digit.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
    }
}

fn unescape(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    const BAD: &str = "a backslash that is neither \\\\ nor \\xNN";
    let mut path = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(b'\\') => path.push(b'\\'),
                Some(b'x') => {
                    let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                    let (high, low) = (digit().ok_or(BAD)?, digit().ok_or(BAD)?);
                    path.push(u8::try_from(high << 4 | low).map_err(|_| BAD)?);
                }
                _ => return Err(BAD),
            },
            // Bytes above ASCII stand for themselves, as people write them.
            0..=0x1f | 0x7f => return Err("a control character in the path"),
            byte => path.push(byte),
        }
    }
    Ok(path)
}

/// The lines in front of the ranges.
pub(super) fn write_head(fingerprint: u64, to: &mut Vec<u8>) {
    let text = format!(
        "{MAGIC} {VERSION} {fingerprint:016x}\n\
         # What was read first, in order: OFFSET LENGTH PATH, in bytes.\n"
    );
    to.extend_from_slice(text.as_bytes());
}

/// One range of the file at `path`, which begins with `/`.
pub(super) fn write_line(offset: u64, len: u64, path: &[u8], to: &mut Vec<u8>) {
    to.extend_from_slice(format!("{offset} {len} ").as_bytes());
    escape(path, to);
    to.push(b'\n');
}
