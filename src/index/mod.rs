//! From tars to an index: the file tree of an image, and the building of it.
//!
//! [`scan`] reads a tar's headers into a [`Tree`]; [`build`] also writes the index and,
//! for the few sparse files that need one, the side blob. Of an image of layers each tar is read
//! into a [`Layer`], in parallel with others; [`Flattening`] puts them on top of each other, and
//! [`write_layers`] writes the index.
//!
//! What it never does: print, choose where files lie, publish them (`store` does).

pub mod builder;
pub mod extents;
pub mod flatten;
pub mod layer;
pub mod misfit;
pub mod tree;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::erofs::writer::{self, BlobSpec, WriteError};
use crate::tar::{Entry, Problem, ReadAt, Reader, Stream, TarError};
use builder::Builder;
use extents::{SideCopy, SidePlan};
pub use flatten::{Flat, Flattening, IndexedLayer, LayerBlob, LayerCopy, write_layers};
pub use layer::{Layer, scan_layer, scan_layer_file};
use misfit::{Fault, Misfit};
use tree::Tree;

/// Entries between two reports of progress.
const REPORT_EVERY: u64 = 1024;

/// Told how far a long work has come. Called often; must be quick.
pub trait Progress {
    /// `done` of `total` bytes are behind us.
    fn at(&self, done: u64, total: u64);
}

/// Nobody watches.
impl Progress for () {
    fn at(&self, _done: u64, _total: u64) {}
}

/// Why there is no index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The tar is refused.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry has no place in the tree.
    #[error("{}: {entry}: {misfit} (at byte {offset})", tar.display())]
    Misfit {
        /// The tar.
        tar: PathBuf,
        /// The entry's path, printable.
        entry: String,
        /// Offset of its header.
        offset: u64,
        /// What is wrong.
        misfit: Misfit,
    },
    /// The tar was written to meanwhile.
    #[error("{}: changed while it was read", .0.display())]
    Changed(PathBuf),
    /// The index cannot be written.
    #[error("{}: {source}", tar.display())]
    Write {
        /// The tar.
        tar: PathBuf,
        /// Why.
        source: WriteError,
    },
    /// The side blob cannot be written.
    #[error("{}: copying its sparse files aside: {source}", tar.display())]
    Side {
        /// The tar.
        tar: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// What a tar holds.
#[derive(Debug)]
pub struct Scan {
    /// The image's tree, with extents in blob 0 (the tar) and 1 (the side blob).
    pub tree: Tree,
    /// What has to be copied to the side blob.
    pub side: SidePlan,
    /// The tar's length in bytes, with all padding.
    pub tar_len: u64,
    /// How many entries the tar has: duplicates and hard links count.
    pub entries: u64,
}

/// What [`build`] has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// Length of the index in bytes.
    pub index_len: u64,
    /// The tar's length in bytes; of layers, that of all together.
    pub tar_len: u64,
    /// Length of the side blob, if there is one.
    pub side_len: Option<u64>,
    /// How many entries the tar has, or all layers together.
    pub entries: u64,
    /// How many inodes the image has.
    pub inodes: usize,
}

/// Reads the headers of `tar`, which errors call `path`.
///
/// # Errors
/// The first thing that is wrong with it; nothing is skipped.
pub fn scan(tar: &File, path: &Path, progress: &dyn Progress) -> Result<Scan, IndexError> {
    of_file(tar, path, || scan_source(tar, path, progress))
}

/// Does `scan` with `tar`, which has to be a regular file and must not change meanwhile.
fn of_file<T>(
    tar: &File,
    path: &Path,
    scan: impl FnOnce() -> Result<T, IndexError>,
) -> Result<T, IndexError> {
    let fail = |problem| TarError::new(path.to_owned(), None, 0, problem);
    let before = tar.metadata().map_err(|e| fail(e.into()))?;
    let kind = before.file_type();
    let wrong = if kind.is_dir() {
        Some("directory")
    } else if kind.is_fifo() || kind.is_socket() {
        Some("pipe")
    } else if kind.is_char_device() || kind.is_block_device() {
        Some("device")
    } else {
        None
    };
    if let Some(wrong) = wrong {
        return Err(fail(Problem::WrongFileType(wrong)).into());
    }
    let scan = scan()?;
    unchanged(tar, path, &before)?;
    Ok(scan)
}

/// [`scan`] for anything that has bytes at offsets.
///
/// # Errors
/// As [`scan`].
pub fn scan_source<R: ReadAt + ?Sized>(
    tar: &R,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Scan, IndexError> {
    let mut builder = Builder::new();
    let (tar_len, entries) = read_entries(tar, path, progress, |entry| builder.add(entry))?;
    let built = builder.finish().map_err(|fault| fault.in_tar(path))?;
    let builder::Built { tree, side } = built;
    Ok(Scan {
        tree,
        side,
        tar_len,
        entries,
    })
}

/// Gives each entry of `tar` to `place`. Its length, and how many entries there are.
fn read_entries<R: ReadAt + ?Sized>(
    tar: &R,
    path: &Path,
    progress: &dyn Progress,
    mut place: impl FnMut(&mut Entry) -> Result<(), Fault>,
) -> Result<(u64, u64), IndexError> {
    let mut reader = Reader::new(tar, path)?;
    let mut entries = 0_u64;
    let mut entry = Entry::default();
    while reader.read_entry(&mut entry)? {
        place(&mut entry).map_err(|fault| fault.in_tar(path))?;
        entries += 1;
        if entries.is_multiple_of(REPORT_EVERY) {
            progress.at(reader.position(), reader.tar_len());
        }
    }
    let tar_len = reader.tar_len();
    progress.at(tar_len, tar_len);
    Ok((tar_len, entries))
}

/// [`scan`] for a tar that comes as a stream, as while it is being fetched and written to a file:
/// the tree is there as soon as the last byte is. Reads `input` to its end, but after an error.
/// [`write()`] makes the index of it.
///
/// # Errors
/// As [`scan`].
pub fn scan_stream(input: impl Read, path: &Path) -> Result<Scan, IndexError> {
    scan_source(&Stream::new(input), path, &())
}

/// Writes the index of `tar` to `out`. `side` is called if a side blob is needed, and gives an
/// empty file, opened for writing, for it.
///
/// # Errors
/// As [`scan`], and if something cannot be written. Half-written files are the caller's to remove.
pub fn build(
    tar: &File,
    path: &Path,
    out: &mut dyn Write,
    side: impl FnOnce() -> io::Result<File>,
    progress: &dyn Progress,
) -> Result<Built, IndexError> {
    let before = tar
        .metadata()
        .map_err(|e| TarError::new(path.to_owned(), None, 0, e.into()))?;
    let scan = scan(tar, path, progress)?;
    let built = write(&scan, tar, path, out, side)?;
    if built.side_len.is_some() {
        unchanged(tar, path, &before)?;
    }
    Ok(built)
}

/// Writes the index of a tar that was read before, as [`build`] does; `tar` is the file with its
/// bytes, of which those of `scan.side` are read.
///
/// # Errors
/// [`IndexError::Write`], [`IndexError::Side`].
pub fn write(
    scan: &Scan,
    tar: &File,
    path: &Path,
    out: &mut dyn Write,
    side: impl FnOnce() -> io::Result<File>,
) -> Result<Built, IndexError> {
    let mut blobs = vec![BlobSpec {
        tag: String::new(),
        len: scan.tar_len,
    }];
    let side_len = (scan.side.len > 0).then_some(scan.side.len);
    if let Some(len) = side_len {
        let fail = |source| IndexError::Side {
            tar: path.to_owned(),
            source,
        };
        let file = side().map_err(fail)?;
        copy_aside(tar, &file, &scan.side).map_err(fail)?;
        blobs.push(BlobSpec {
            tag: String::new(),
            len,
        });
    }
    let summary = writer::write(&scan.tree, &blobs, out).map_err(|source| IndexError::Write {
        tar: path.to_owned(),
        source,
    })?;
    Ok(Built {
        index_len: summary.len,
        tar_len: scan.tar_len,
        side_len,
        entries: scan.entries,
        inodes: scan.tree.inodes.len(),
    })
}

/// Fills `side`, an empty file, as `plan` says.
fn copy_aside(tar: &File, side: &File, plan: &SidePlan) -> io::Result<()> {
    side.set_len(plan.len)?;
    plan.copies
        .iter()
        .try_for_each(|copy| copy_range(tar, side, *copy))
}

fn copy_range(tar: &File, side: &File, copy: SideCopy) -> io::Result<()> {
    let mut buf = vec![0; 1 << 16];
    let mut done = 0;
    while done < copy.len {
        let want = usize::try_from((copy.len - done).min(1 << 16)).map_err(io::Error::other)?;
        let piece = buf.get_mut(..want).ok_or(io::ErrorKind::InvalidInput)?;
        tar.read_exact_at(piece, copy.tar_offset + done)?;
        side.write_all_at(piece, copy.side_offset + done)?;
        done += u64::try_from(want).map_err(io::Error::other)?;
    }
    Ok(())
}

fn unchanged(tar: &File, path: &Path, before: &std::fs::Metadata) -> Result<(), IndexError> {
    let now = tar
        .metadata()
        .map_err(|e| TarError::new(path.to_owned(), None, 0, e.into()))?;
    let stamp = |m: &std::fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec());
    if stamp(&now) == stamp(before) {
        Ok(())
    } else {
        Err(IndexError::Changed(path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::testing::Tar;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let refused = |path: &str| {
            scan(&File::open(path).unwrap(), Path::new(path), &())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(refused("/"), "/: is a directory, not a tar file");
        assert_eq!(
            refused("/dev/null"),
            "/dev/null: is a device, not a tar file"
        );
    }

    #[test]
    fn the_side_blob_holds_the_data_at_its_place() {
        let tar = Tar::new()
            .pax(&[
                ("GNU.sparse.size", b"9000"),
                ("GNU.sparse.map", b"100,2,300,1"),
            ])
            .file("s", b"xyz")
            .end();
        let (tar, side) = (file(&tar), file(b""));
        let scan = scan(&tar, Path::new("t.tar"), &()).unwrap();
        copy_aside(&tar, &side, &scan.side).unwrap();
        let mut got = vec![1; 12289];
        assert_eq!(ReadAt::read_at(&side, &mut got, 0).unwrap(), 12288);
        let mut want = vec![0; 12288];
        want[100..102].copy_from_slice(b"xy");
        want[300] = b'z';
        assert_eq!(got[..12288], want);
    }

    /// Gives its bytes in pieces of odd lengths.
    struct Pieces<'a>(&'a [u8], usize);
    impl Read for Pieces<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 = (self.1 * 7 + 5) % 1021;
            let n = buf.len().min(self.0.len()).min(self.1 + 1);
            let (now, later) = self.0.split_at(n);
            buf[..n].copy_from_slice(now);
            self.0 = later;
            Ok(n)
        }
    }

    #[test]
    fn a_stream_gives_what_the_file_gives() {
        let path = Path::new("t.tar");
        let tar = Tar::new()
            .file("a", &[b'x'; 20_000])
            .pax(&[("comment", &[b'y'; 40_000]), ("mtime", b"1.5")])
            .file("dir/b", b"b")
            .pax(&[
                ("GNU.sparse.size", b"9000"),
                ("GNU.sparse.map", b"100,2,300,1"),
            ])
            .file("s", b"xyz")
            .end();
        let long = [&tar[..], &[0; 300_000]].concat();
        for tar in [&tar, &long] {
            let want = scan_source(&tar[..], path, &()).unwrap();
            let got = scan_stream(Pieces(tar, 0), path).unwrap();
            assert_eq!((got.tree, got.side), (want.tree, want.side));
            assert_eq!((got.tar_len, got.entries), (tar.len() as u64, 3));
        }
        let says = |tar: &[u8]| scan_stream(Pieces(tar, 0), path).unwrap_err().to_string();
        for len in (0..tar.len()).step_by(256) {
            assert!(scan_source(&tar[..len], path, &()).is_err(), "{len}");
            says(&tar[..len]);
        }
        assert_eq!(
            says(b""),
            scan_source(&b""[..], path, &()).unwrap_err().to_string()
        );
        assert!(says(&tar[..15_000]).contains("in the middle of a body"));
        let mut bad = long;
        *bad.last_mut().unwrap() = 1;
        assert_eq!(
            says(&bad),
            scan_source(&bad[..], path, &()).unwrap_err().to_string()
        );
    }

    #[test]
    fn progress_reaches_the_end() {
        struct Last(std::cell::Cell<(u64, u64)>);
        impl Progress for Last {
            fn at(&self, done: u64, total: u64) {
                assert!(self.0.get().0 <= done && done <= total);
                self.0.set((done, total));
            }
        }
        let mut tar = Tar::new();
        for i in 0..3000 {
            tar = tar.file(&i.to_string(), b"");
        }
        let tar = tar.end();
        let last = Last(std::cell::Cell::default());
        let got = scan_source(&tar[..], Path::new("t.tar"), &last).unwrap();
        assert_eq!((got.entries, got.tar_len), (3000, tar.len() as u64));
        assert_eq!(last.0.get(), (got.tar_len, got.tar_len));
    }
}
