//! Why a tar was refused.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::name::NameError;

/// What is wrong with a tar.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The system said no.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Nothing in it.
    #[error("the file is empty")]
    Empty,
    /// Not something with bytes at offsets.
    #[error("is a {0}, not a tar file")]
    WrongFileType(&'static str),
    /// The first block is no header.
    #[error("not a tar: the first 512 bytes are no tar header")]
    NotATar,
    /// A compressed file.
    #[error(
        "compressed with {format}: decompress it first (`{command}`); `tarnfs import` will take it as it is"
    )]
    Compressed {
        /// The compression's name.
        format: &'static str,
        /// What decompresses it.
        command: &'static str,
    },
    /// The file ends too early.
    #[error("truncated: the tar ends {0}")]
    Truncated(&'static str),
    /// An end marker of one block only.
    #[error("a lone zero block: the end marker of a tar is two, and what follows is not one")]
    LoneZeroBlock,
    /// A valid header behind the end marker.
    #[error(
        "an entry behind the end marker: these are tars one after another; unpack them with GNU tar's `--ignore-zeros` and pack them as one"
    )]
    EntryAfterEnd,
    /// Bytes behind the end marker.
    #[error("bytes other than zero behind the end marker")]
    DataAfterEnd,
    /// More zeros behind the end marker than anybody pads with.
    #[error("{0} bytes follow the end marker")]
    LongTail(u64),
    /// The header's checksum does not match.
    #[error("damaged header: its checksum says {stored}, its bytes add up to {computed}")]
    Checksum {
        /// What the header says, if it says a number.
        stored: Stored,
        /// What its bytes add up to.
        computed: u32,
    },
    /// A header field that is not what it must be.
    #[error("the header's {field} {what}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The body reaches beyond the end of the tar.
    #[error("truncated: the body of {size} bytes reaches beyond the end of the tar (byte {len})")]
    BodyBeyondEnd {
        /// The size that the header tells.
        size: u64,
        /// The tar's length.
        len: u64,
    },
    /// A pax extended header that is not one.
    #[error("damaged pax header: {0}")]
    Pax(&'static str),
    /// A pax record with a value that it cannot have.
    #[error("pax record {key}: {what}")]
    PaxValue {
        /// The record's key, printable.
        key: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An extended header with no entry behind it.
    #[error("an extended header with no entry behind it")]
    DanglingExtension,
    /// A path with a part that is no name.
    #[error("the path is refused: {0}")]
    Name(#[from] NameError),
    /// An absolute path.
    #[error("the path is refused: it is absolute (pack the tree with `tar -C ROOT .`)")]
    Absolute,
    /// A path with `..` in it.
    #[error("the path is refused: it holds \"..\"")]
    DotDot,
    /// A path that is longer than Linux takes.
    #[error("the path is refused: it is {0} bytes long; Linux allows 4095")]
    PathTooLong(usize),
    /// A hard link whose target is refused.
    #[error("hard link to {target}: {problem}")]
    LinkTarget {
        /// The target, printable.
        target: String,
        /// What is wrong with it.
        problem: Box<Problem>,
    },
    /// A symbolic link's target that Linux does not take.
    #[error("the symbolic link's target {0}")]
    Symlink(&'static str),
    /// A type of entry that is not served.
    #[error("entries of this type cannot be served: {0}")]
    Unsupported(String),
    /// A sparse map that contradicts itself.
    #[error("damaged sparse map: {0}")]
    Sparse(&'static str),
    /// An extended attribute that cannot be kept.
    #[error("extended attribute {name}: {what}")]
    Xattr {
        /// Its name, printable.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// An ACL that cannot be kept.
    #[error("ACL: {0}")]
    Acl(String),
}

/// A checksum field as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It holds a number.
    Number(u64),
    /// It holds something else.
    NotANumber,
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => n.fmt(f),
            Self::NotANumber => f.write_str("no number"),
        }
    }
}

#[derive(Debug)]
struct Place {
    tar: PathBuf,
    entry: Option<String>,
    offset: u64,
    problem: Problem,
}

/// Why a tar was refused, and where: one line, with the entry's name and the byte offset.
#[derive(Debug)]
pub struct TarError(Box<Place>);

impl TarError {
    /// `problem` in `tar`, in the header at byte `offset`, of the entry with the raw name `entry`.
    #[must_use]
    pub fn new(tar: PathBuf, entry: Option<&[u8]>, offset: u64, problem: Problem) -> Self {
        Self(Box::new(Place {
            tar,
            entry: entry.map(printable),
            offset,
            problem,
        }))
    }

    /// The tar's path.
    #[must_use]
    pub fn tar(&self) -> &std::path::Path {
        &self.0.tar
    }

    /// The entry's name, printable; `None` where no entry is at fault.
    #[must_use]
    pub fn entry(&self) -> Option<&str> {
        self.0.entry.as_deref()
    }

    /// The byte offset in the tar: of the header at fault, or of the bytes that are none.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.0.problem
    }
}

impl fmt::Display for TarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place {
            tar,
            entry,
            offset,
            problem,
        } = &*self.0;
        write!(f, "{}: ", printable_path(tar))?;
        if let Some(entry) = entry {
            write!(f, "{entry}: ")?;
        }
        problem.fmt(f)?;
        match problem {
            Problem::Io(_)
            | Problem::Empty
            | Problem::WrongFileType(_)
            | Problem::Compressed { .. }
            | Problem::NotATar => Ok(()),
            _ => write!(f, " (at byte {offset})"),
        }
    }
}

impl std::error::Error for TarError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0.problem)
    }
}

/// The longest name an error prints, in characters.
const SHOWN: usize = 160;

/// `bytes` for a message of one line: what is not UTF-8 and what a terminal would act on is
/// escaped, and a long name is cut.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut shown = 0;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' || c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c) {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
            shown += 1;
            if shown >= SHOWN {
                out.push('…');
                return out;
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
            shown += 1;
        }
    }
    out
}

/// A host path for a message of one line.
pub(crate) fn printable_path(path: &std::path::Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= SHOWN {
        printable(bytes)
    } else {
        path.display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_escaped() {
        assert_eq!(printable(b"a\x1b[31m\n\xff\\"), "a\\u{1b}[31m\\n\\xff\\\\");
        assert_eq!(printable("späße".as_bytes()), "späße");
        assert!(printable(&[b'x'; 5000]).len() < 200);
    }

    #[test]
    fn an_error_is_one_line_with_entry_and_offset() {
        let error = TarError::new(
            PathBuf::from("/i.tar"),
            Some(b"a\nb"),
            1024,
            Problem::Absolute,
        );
        let text = error.to_string();
        assert!(text.starts_with("/i.tar: a\\nb: "), "{text}");
        assert!(text.ends_with("(at byte 1024)"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}
