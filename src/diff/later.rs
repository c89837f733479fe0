//! Large files of an upper in use: copied when its changes go on again.
//!
//! While the upper is held still it is walked, and small files are copied. Of large ones a
//! descriptor is kept, and their place in the output stays free. Then whoever holds the upper lets
//! go of it, and keeps in a log what is overwritten or cut off in those files from then on. They
//! are copied as they are by now, and what the log has is put in place of what has come over it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::kept::Log;
use super::walk::Done;
use super::{Changes, DiffError, OnProgress};
use crate::digest::{Digest, Hasher};
use crate::pack::sink::{self, Sink, To};
use crate::pack::sparse::Map;
use crate::sys::fs;

/// From how many bytes of data on a file is left for later: copied in less than a millisecond it
/// would delay nobody.
const LARGE: u64 = 1 << 20;
/// Most files that are.
const MOST: u64 = 1024;
/// What is copied at once, bytes.
const AT_ONCE: u64 = 64 << 20;
/// What is read at once, bytes.
const PIECE: usize = 1 << 20;

/// Who holds an upper still that is in use.
pub trait Hold {
    /// Lets changes go on.
    ///
    /// # Errors
    /// They may have gone on before.
    fn thaw(&self) -> io::Result<()>;

    /// Lets changes go on, and has what is about to be overwritten or cut off in `files`, by their
    /// numbers in the upper's filesystem, written to a log before. Gives that: records of a file's
    /// number, an offset, a length (64 bits each, little endian) and so many bytes, none over
    /// another. What was a hole need not be in one. `None` where it cannot; the upper is held still
    /// as before.
    ///
    /// # Errors
    /// The upper may have changed.
    fn keep(&self, files: &[u64]) -> io::Result<Option<File>>;

    /// Ends the log.
    ///
    /// # Errors
    /// Some of it is lost: there was no room for it.
    fn end_log(&self) -> io::Result<()>;

    /// Holds the upper still again.
    ///
    /// # Errors
    /// It cannot.
    fn hold(&self) -> io::Result<()>;

    /// A new file without a name, for what waits for a slow reader.
    ///
    /// # Errors
    /// open(2)'s.
    fn spool(&self) -> io::Result<File>;
}

/// Puts a tar in, of which what `Later` takes is left for later.
type Put<'p> = dyn Fn(&mut Sink<'_>, &mut Later, OnProgress<'_>) -> Result<Done, DiffError> + 'p;

impl Changes<'_> {
    /// How a file is written.
    fn to<'f>(&self, file: &'f File) -> To<'f> {
        match self.options.sync {
            true => To::File(file),
            false => To::Lazy(file),
        }
    }

    /// Writes what `put` puts in to an empty regular file; an upper that is held still is let go of
    /// as soon as it was walked. Gives the length, too.
    pub(super) fn write_parted(
        &self,
        file: &File,
        progress: OnProgress<'_>,
        put: impl Fn(&mut Sink<'_>, &mut Later, OnProgress<'_>) -> Result<Done, DiffError>,
    ) -> Result<(Done, u64), DiffError> {
        let Some(hold) = self.hold else {
            return write(self.to(file), &put, &mut Later::never(), progress);
        };
        let mut later = Later::new();
        let written = write(self.to(file), &put, &mut later, progress)?;
        let log = later.let_go(hold)?;
        later.copy(file, self.options.sync, written.0.bytes, progress)?;
        let Some(log) = log else {
            hold.thaw().map_err(DiffError::Held)?;
            return Ok(written);
        };
        if let Err(error) = hold.end_log() {
            tracing::debug!("all is copied again, and writes are held back: {error}");
            hold.hold().map_err(DiffError::Held)?;
            file.set_len(0).map_err(DiffError::Write)?;
            let written = write(self.to(file), &put, &mut Later::never(), progress)?;
            hold.thaw().map_err(DiffError::Held)?;
            return Ok(written);
        }
        later.restore(file, Log::new(log))?;
        Ok(written)
    }
}

/// Writes what `put` puts in to an empty regular file; gives its length, too.
pub(super) fn write(
    to: To<'_>,
    put: &Put<'_>,
    later: &mut Later,
    progress: OnProgress<'_>,
) -> Result<(Done, u64), DiffError> {
    let put = |sink: &mut Sink<'_>| put(sink, later, progress);
    let (done, len, _) = sink::beside(to, false, put)?;
    Ok((done, len))
}

/// The files that are left for later.
#[derive(Debug)]
pub(super) struct Later {
    files: Vec<Large>,
    /// How many it takes.
    most: usize,
}

#[derive(Debug)]
pub(super) struct Large {
    pub(super) file: OwnedFd,
    /// Its number in the upper's filesystem.
    pub(super) ino: u64,
    /// Where its data go.
    runs: Vec<Run>,
}

/// So many bytes from `offset` of a file on, which go to `at` in the output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) at: u64,
}

impl Later {
    /// Takes what may be left for later.
    pub(super) fn new() -> Self {
        // Half of what a process may have open.
        let open = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self {
            files: Vec::new(),
            most: usize::try_from((open / 2).min(MOST)).unwrap_or(0),
        }
    }

    /// Takes nothing.
    pub(super) fn never() -> Self {
        Self {
            files: Vec::new(),
            most: 0,
        }
    }

    /// Takes a file of the upper whose data go to `at`, run after run; says whether it does.
    pub(super) fn take(&mut self, file: BorrowedFd<'_>, ino: u64, map: &Map, at: u64) -> bool {
        if map.stored() < LARGE || self.files.len() >= self.most {
            return false;
        }
        let Ok(file) = file.try_clone_to_owned() else {
            return false;
        };
        let mut at = at;
        let runs = map.runs().iter().map(|&(offset, len)| {
            let run = Run { offset, len, at };
            at += len;
            run
        });
        let runs = runs.collect();
        self.files.push(Large { file, ino, runs });
        true
    }

    /// Copies all of them to `out` as they are, to be on disk soon or not. `progress` is told of bytes beyond `before`.
    fn copy(
        &self,
        out: &File,
        soon: bool,
        before: u64,
        progress: OnProgress<'_>,
    ) -> Result<(), DiffError> {
        let mut done = before;
        let mut piece = Vec::new();
        for large in &self.files {
            for run in &large.runs {
                copy(large.file.as_fd(), *run, out, &mut piece, &mut |n| {
                    if soon {
                        // A hint; what fails of it, fsync will tell.
                        fs::write_out(out.as_fd()).ok();
                    }
                    done += n;
                    progress(done);
                })?;
            }
        }
        Ok(())
    }

    /// Lets go of an upper that was walked, if that takes a log; gives that.
    pub(super) fn let_go(&self, hold: &dyn Hold) -> Result<Option<File>, DiffError> {
        let files: Vec<u64> = self.files.iter().map(|large| large.ino).collect();
        match files.is_empty() {
            true => Ok(None),
            false => hold.keep(&files).map_err(DiffError::Held),
        }
    }

    /// What goes where, in the order of the output.
    pub(super) fn runs(&self) -> impl Iterator<Item = (&Large, Run)> {
        let runs = |large: &'_ Large| large.runs.clone();
        self.files
            .iter()
            .flat_map(move |large| runs(large).into_iter().map(move |run| (large, run)))
    }

    /// Puts what the log has kept in place of what came over it.
    fn restore(&self, out: &File, mut log: Log) -> Result<(), DiffError> {
        let files: HashMap<u64, &[Run]> = self
            .files
            .iter()
            .map(|large| (large.ino, large.runs.as_slice()))
            .collect();
        let failed = |error| DiffError::Held(error);
        let mut piece = Vec::new();
        while let Some(record) = log.next().map_err(failed)? {
            // Zeros of what was allocated and never written may be as long as a file.
            let runs = files.get(&record.ino).copied().unwrap_or_default();
            for kept in overlap(runs, record.offset, record.len) {
                let run = Run {
                    offset: record.data + (kept.offset - record.offset),
                    ..kept
                };
                copy(log.file.as_fd(), run, out, &mut piece, &mut |_| ())?;
            }
        }
        match log.is_done().map_err(failed)? {
            true => Ok(()),
            false => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// The parts of `runs` that are within `len` bytes from `offset` on.
fn overlap(runs: &[Run], offset: u64, len: u64) -> impl Iterator<Item = Run> {
    let end = offset.saturating_add(len);
    let first = runs.partition_point(|run| run.offset + run.len <= offset);
    let within = runs.iter().skip(first);
    within
        .take_while(move |run| run.offset < end)
        .map(move |run| {
            let (from, to) = (run.offset.max(offset), (run.offset + run.len).min(end));
            Run {
                offset: from,
                len: to - from,
                at: run.at + (from - run.offset),
            }
        })
}

/// Copies a run of `file` to `out`. What is cut off by now is left free: the log has it.
fn copy(
    file: BorrowedFd<'_>,
    run: Run,
    out: &File,
    piece: &mut Vec<u8>,
    on: &mut dyn FnMut(u64),
) -> Result<(), DiffError> {
    let mut done = 0;
    let mut by_kernel = true;
    while done < run.len {
        let (from, to, left) = (run.offset + done, run.at + done, run.len - done);
        let now = if by_kernel {
            let want = usize::try_from(left.min(AT_ONCE)).unwrap_or(PIECE);
            match fs::copy_range(file, from, out.as_fd(), to, want) {
                Ok(copied) => copied,
                Err(Errno::INTR) => continue,
                // Two filesystems, or one that cannot; what else is wrong, reading or writing finds.
                Err(_) => {
                    by_kernel = false;
                    piece.resize(PIECE, 0);
                    continue;
                }
            }
        } else {
            let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let bytes = piece.get_mut(..want).unwrap_or_default();
            let read = fs::read(file, from, bytes);
            let read = read.map_err(|errno| DiffError::Read(errno.into()))?;
            let bytes = bytes.get(..read).unwrap_or_default();
            To::Lazy(out).put(to, bytes).map_err(DiffError::Write)?;
            read
        };
        if now == 0 {
            break;
        }
        done += now as u64;
        on(now as u64);
    }
    Ok(())
}

/// The digest of the first `len` bytes of `file`.
pub(super) fn digest_of(file: &File, len: u64) -> Result<Digest, DiffError> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE];
    let mut done = 0;
    while done < len {
        let want = usize::try_from(len - done).unwrap_or(PIECE).min(PIECE);
        let bytes = piece.get_mut(..want).unwrap_or_default();
        let read = fs::read(file.as_fd(), done, bytes);
        let read = read.map_err(|errno| DiffError::Write(errno.into()))?;
        if read == 0 {
            return Err(DiffError::Write(io::ErrorKind::UnexpectedEof.into()));
        }
        hasher.update(bytes.get(..read).unwrap_or_default());
        done += read as u64;
    }
    Ok(hasher.finish())
}
