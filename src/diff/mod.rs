//! What an actor wrote, as a tar: straight from its upper, in one pass.
//!
//! [`Changes`] walks the upper (`walk`), a directory before what is in it, names in byte order, and
//! writes an entry for each name that it finds (`entry`). The lower is asked by name: what a
//! whiteout hides, what a redirected directory goes on with. Only what a [`Format`] cannot say
//! otherwise is read from it: a renamed directory of the image, the data of a file of which the
//! upper has attributes alone. docs/TAR.md ("Changes") says what each format holds.
//!
//! Invariants: applied to the image, the tar gives what the mount shows; the bytes depend on the
//! upper, the image and [`Options`] alone; no name twice; a hard link comes after what it leads to.
//!
//! It never changes the upper, follows a symbolic link or leaves the upper, and never leaves out
//! anything but sockets (which are counted) and what [`Options::exclude`] means.

mod entry;
mod group;
mod kept;
mod later;
mod pattern;
mod podman;
mod stream;
mod walk;

#[cfg(test)]
mod tests;

pub use later::Hold;
pub use pattern::{Pattern, PatternError};

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::OnceLock;

use rustix::io::Errno;

use crate::digest::Digest;
use crate::lower::{Lower, LowerError};
use crate::pack::output::NewFile;
use crate::pack::sink::{self, NoMore, Out, Sink, To};
use crate::pack::{Align, OutputError};
use crate::tar::printable;
use crate::upper::Upper;
use crate::upper::markers::{ImageId, Namespace};
use later::{Later, digest_of};
use walk::{Done, Walk};

/// How a tar says what is gone, and what lies over what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// A layer of an image (image-spec, layer.md): `.wh.NAME` and `.wh..wh..opq`.
    #[default]
    Oci,
    /// overlayfs' own: an upper directory that can be unpacked and mounted.
    Overlay,
    /// What gVisor takes as `dev.gvisor.tar.rootfs.upper`.
    Gvisor,
    /// `rootfs-diff.tar` and `deleted.files` of podman's checkpoints: a tar of both.
    Podman,
}

/// What is to be written, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The format.
    pub format: Format,
    /// What is left out.
    pub exclude: Vec<Pattern>,
    /// Where the data of each regular file begin; those of a MiB and more at a multiple of 64 KiB, too.
    pub align: Align,
    /// Whether output files are synced before they get their names: they are whole after a power
    /// cut, too.
    pub sync: bool,
    /// Whether the tar's digest is wanted, which takes as long as reading all of it.
    pub digest: bool,
    /// Which of the image's blobs are side blobs, as [`crate::flatten::Options`] has it.
    pub side_blobs: Vec<u16>,
    /// Who owns what comes from the image, as the mount's option of that name has it.
    pub squash: Option<(u32, u32)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            format: Format::default(),
            exclude: Vec::new(),
            align: Align::BLOCK,
            sync: true,
            digest: false,
            side_blobs: Vec::new(),
            squash: None,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Length in bytes; of podman's two files, if those were written, together.
    pub len: u64,
    /// Entries of the tar, whiteouts among them.
    pub entries: u64,
    /// Names of the image that are said to be gone.
    pub whiteouts: u64,
    /// Sockets, which no tar can hold: left out.
    pub sockets: u64,
    /// SHA-256 of the tar, where [`Options::digest`] asks for it: a layer's diff ID.
    pub digest: Option<Digest>,
}

/// Why there is no tar.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffError {
    /// The image does not answer.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// The upper does not answer.
    #[error("{path}: {doing}: {source}")]
    Upper {
        /// The path inside, printable; `/` for the root.
        path: String,
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// What cannot be said in this format.
    #[error("{path}: {what}")]
    Entry {
        /// The path inside, printable.
        path: String,
        /// Why not.
        what: &'static str,
    },
    /// Somebody writes to the upper.
    #[error("{0}: changed while it was read: nothing may write to the upper meanwhile")]
    Changed(String),
    /// The upper belongs to another image.
    #[error(
        "the upper was written over another image ({upper:016x}, this one is {image:016x}): name \
         that image"
    )]
    OtherImage {
        /// What the upper's root says, [`Lower::fingerprint`].
        upper: u64,
        /// This image's.
        image: u64,
    },
    /// The output takes no more.
    #[error("{0}")]
    Write(#[source] io::Error),
    /// A large file of the upper cannot be read.
    #[error("reading a large file of the upper: {0}")]
    Read(#[source] io::Error),
    /// What was kept of an upper in use cannot be had ([`Hold`]).
    #[error("changes of the upper were not held back: {0}")]
    Held(#[source] io::Error),
    /// The output file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl From<NoMore> for DiffError {
    fn from(error: NoMore) -> Self {
        Self::Write(error.0)
    }
}

impl DiffError {
    /// For `map_err`: what failed at `path` (no leading slash).
    fn upper(path: &[u8], doing: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| match errno {
            // It was listed a moment ago.
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Self::changed(path),
            errno => Self::Upper {
                path: shown(path),
                doing,
                source: errno.into(),
            },
        }
    }

    fn entry(path: &[u8], what: &'static str) -> Self {
        Self::Entry {
            path: shown(path),
            what,
        }
    }

    fn changed(path: &[u8]) -> Self {
        Self::Changed(shown(path))
    }
}

fn shown(path: &[u8]) -> String {
    printable(if path.is_empty() { b"/" } else { path })
}

/// Told how many bytes of files are done, holes aside.
pub type OnProgress<'p> = &'p mut dyn FnMut(u64);

/// An upper that nobody writes to: at rest and locked, or of a mount that is frozen.
pub struct Changes<'a> {
    lower: &'a Lower,
    root: BorrowedFd<'a>,
    marks: Namespace,
    options: Options,
    /// The length that was told.
    told: OnceLock<u64>,
    hold: Option<&'a dyn Hold>,
}

impl fmt::Debug for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Refuses an upper of another image than `lower`; one that does not tell is taken.
///
/// # Errors
/// [`DiffError::OtherImage`]; [`DiffError::Upper`] where its root cannot be read.
pub fn check_image(lower: &Lower, root: BorrowedFd<'_>, marks: Namespace) -> Result<(), DiffError> {
    let here = ImageId(lower.fingerprint());
    let there = marks
        .image(root)
        .map_err(DiffError::upper(b"", "reading a mark"))?;
    match there {
        Some(there) if there != here && here != ImageId::default() => Err(DiffError::OtherImage {
            upper: there.0,
            image: here.0,
        }),
        _ => Ok(()),
    }
}

impl<'a> Changes<'a> {
    /// What `upper` holds over `lower`.
    ///
    /// # Errors
    /// As [`check_image`].
    pub fn open(lower: &'a Lower, upper: &'a Upper, options: Options) -> Result<Self, DiffError> {
        Self::at(lower, upper.root(), upper.marks(), options)
    }

    /// The same of an upper's root directory, with its marks in `marks`.
    ///
    /// # Errors
    /// As [`check_image`].
    pub fn at(
        lower: &'a Lower,
        root: BorrowedFd<'a>,
        marks: Namespace,
        options: Options,
    ) -> Result<Self, DiffError> {
        check_image(lower, root, marks)?;
        Ok(Self {
            lower,
            root,
            marks,
            options,
            told: OnceLock::new(),
            hold: None,
        })
    }

    /// The same of an upper that is in use, and that `hold` holds still: no longer than it takes to
    /// walk it and to copy its small files.
    #[must_use]
    pub fn held_by(mut self, hold: &'a dyn Hold) -> Self {
        self.hold = Some(hold);
        self
    }

    /// The tar's exact length in bytes, by a walk that reads no file. [`Self::write`] then fails
    /// rather than write another number of bytes.
    ///
    /// # Errors
    /// [`DiffError`].
    pub fn size(&self) -> Result<u64, DiffError> {
        if let Some(len) = self.told.get() {
            return Ok(*len);
        }
        let mut sink = Sink::new(Out::Nowhere);
        self.put(&mut sink, &mut Later::never(), &mut |_| ())?;
        let len = sink.finish()?;
        Ok(*self.told.get_or_init(|| len))
    }

    /// Writes the tar to `out`, by a thread beside the one that reads the upper.
    ///
    /// # Errors
    /// [`DiffError`]; what was written by then is no tar.
    pub fn write(
        &self,
        out: &mut (dyn Write + Send),
        progress: OnProgress<'_>,
    ) -> Result<Written, DiffError> {
        match self.hold {
            Some(hold) => self.stream_held(hold, out, progress),
            None => self.stream(out, progress),
        }
    }

    /// Writes the tar to the file `path`, in place of what regular file is there. The kernel copies
    /// large files by itself, or shares their blocks where the filesystem can and
    /// [`Options::align`] is one of its blocks.
    ///
    /// # Errors
    /// [`DiffError`]; then nothing has changed.
    pub fn write_file(&self, path: &Path, progress: OnProgress<'_>) -> Result<Written, DiffError> {
        let fail = OutputError::of(path);
        let file = NewFile::beside(path).map_err(&fail)?;
        let mut file = file.synced(self.options.sync);
        let written = self.write_into(file.file(), progress);
        let written = written.map_err(|error| match error {
            DiffError::Write(source) => fail(source).into(),
            other => other,
        })?;
        file.publish().map_err(fail)?;
        Ok(written)
    }

    /// Writes the tar to an empty regular file, as [`Self::write_file`] does.
    ///
    /// # Errors
    /// [`DiffError`]; what was written by then is no tar.
    pub fn write_into(&self, file: &File, progress: OnProgress<'_>) -> Result<Written, DiffError> {
        let (done, len) = self.write_parted(file, progress, |sink, later, progress| {
            self.put(sink, later, progress)
        })?;
        let digest = self.options.digest.then(|| digest_of(file, len));
        self.written(&done, len, digest.transpose()?)
    }

    fn stream(
        &self,
        out: &mut (dyn Write + Send),
        progress: OnProgress<'_>,
    ) -> Result<Written, DiffError> {
        let hash = self.options.digest;
        let put = |sink: &mut Sink<'_>| self.put(sink, &mut Later::never(), progress);
        let (done, len, digest) = sink::beside(To::Stream(out), hash, put)?;
        self.written(&done, len, digest)
    }

    fn written(&self, done: &Done, len: u64, digest: Option<Digest>) -> Result<Written, DiffError> {
        if self.told.get().is_some_and(|told| *told != len) {
            return Err(DiffError::changed(b""));
        }
        Ok(Written {
            digest,
            ..done.written(len)
        })
    }

    /// Puts all of the format's tar in.
    fn put(
        &self,
        sink: &mut Sink<'_>,
        later: &mut Later,
        progress: OnProgress<'_>,
    ) -> Result<Done, DiffError> {
        match self.options.format {
            Format::Podman => podman::put(self, sink, later, progress),
            format => self.put_entries(format, sink, later, progress),
        }
    }

    /// Puts the tar of what the upper holds in.
    fn put_entries(
        &self,
        format: Format,
        sink: &mut Sink<'_>,
        later: &mut Later,
        progress: OnProgress<'_>,
    ) -> Result<Done, DiffError> {
        Walk::new(self, format, sink, later, progress).run()
    }
}
