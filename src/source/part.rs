//! Parts of images as ranges of files, and the directories that hold such files.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SourceError;
use super::oci::bad;
use crate::sys::regular;

/// Bytes of a file that belong together.
#[derive(Debug, Clone)]
pub(super) struct Part {
    file: Arc<File>,
    at: u64,
    len: u64,
}

impl Part {
    /// The `len` bytes at `at`.
    pub(super) fn new(file: Arc<File>, at: u64, len: u64) -> Self {
        Self { file, at, len }
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// All of it, if it is no longer than `max` bytes; `what` is what errors call it.
    pub(super) fn bytes(self, max: u64, what: &str) -> Result<Vec<u8>, SourceError> {
        if self.len > max {
            let why = format!("{} bytes long; at most {max} are read", self.len);
            return Err(bad(what, why));
        }
        let mut bytes = Vec::new();
        match self.stream(what.to_owned()).read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(source) => Err(SourceError::Io {
                what: what.to_owned(),
                source,
            }),
        }
    }

    /// Its bytes from the first one on; errors call it `what`.
    pub(super) fn stream(self, what: String) -> Stream {
        Stream { part: self, what }
    }
}

/// What is left of a part. It never ends early without an error.
pub(super) struct Stream {
    part: Part,
    what: String,
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Part { file, at, len } = &mut self.part;
        let want = usize::try_from(*len).map_or(out.len(), |len| len.min(out.len()));
        let out = out.get_mut(..want).unwrap_or_default();
        if out.is_empty() {
            return Ok(0);
        }
        let n = file.read_at(out, *at)?;
        if n == 0 {
            let why = format!("{len} bytes are missing at its end: it was changed meanwhile");
            let error = bad(&*self.what, why);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, error));
        }
        let n64 = u64::try_from(n).map_err(io::Error::other)?;
        *at = at.saturating_add(n64);
        *len = len.saturating_sub(n64);
        Ok(n)
    }
}

/// Files by their names.
pub(super) trait Files: Send + Sync {
    /// The file `name`: names joined by slashes, none of them `.` or `..`. `None`: there is none.
    ///
    /// # Errors
    /// It is no regular file, or the system's.
    fn find(&self, name: &str) -> Result<Option<Part>, SourceError>;

    /// What errors call the file `name`.
    fn label(&self, name: &str) -> String;
}

/// A directory.
pub(super) struct Directory(pub(super) PathBuf);

impl Files for Directory {
    fn find(&self, name: &str) -> Result<Option<Part>, SourceError> {
        let fail = |source| SourceError::Io {
            what: self.label(name),
            source,
        };
        let file = match regular::open(&self.0.join(name)) {
            Ok(file) => file,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(fail(error)),
        };
        let len = file.metadata().map_err(fail)?.len();
        Ok(Some(Part::new(Arc::new(file), 0, len)))
    }

    fn label(&self, name: &str) -> String {
        shown(&self.0.join(name))
    }
}

/// A path for a message of one line: whole, since somebody has to find it.
pub(super) fn shown(path: &Path) -> String {
    escaped(path.as_os_str())
}

/// What a person wrote, for a message of one line.
pub(super) fn escaped(text: &OsStr) -> String {
    let mut out = String::new();
    for c in text.to_string_lossy().chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A name of a file, wherever it is, that must be there.
pub(super) fn must(files: &dyn Files, name: &str) -> Result<Part, SourceError> {
    files
        .find(name)?
        .ok_or_else(|| bad(files.label(name), "is missing"))
}
