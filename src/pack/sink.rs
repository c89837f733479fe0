//! The tar on its way out: in large pieces, and counted.
//!
//! Where it goes to a file the kernel copies large data by itself (copy_file_range(2)), or shares
//! their blocks where the filesystem can and they lie on its boundaries. A digest needs every byte
//! in memory: a tar that is to be hashed goes to a stream ([`Hashing`]).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::digest::{Digest, Hasher};
use crate::sys;

/// What is written at once, bytes.
const PIECE: usize = 1 << 20;
/// From how many bytes on the kernel is asked to copy: it then takes one call more than reading,
/// and what waits in memory goes out first.
const LARGE: u64 = 256 << 10;
/// What the kernel is asked to copy at once, bytes.
const AT_ONCE: u64 = 64 << 20;
/// Bytes after which the disk is told to begin: the end then waits for little.
const WRITE_OUT: u64 = 32 << 20;

/// The output takes no more.
#[derive(Debug)]
pub(crate) struct NoMore(pub(crate) io::Error);

/// Where a tar goes.
pub(crate) enum Out<'a> {
    /// To be written to as it is.
    Stream(&'a mut dyn Write),
    /// An empty regular file.
    File(&'a File),
    /// Nowhere: its bytes are counted.
    Nowhere,
}

/// A stream whose bytes are hashed on their way.
pub(crate) struct Hashing<'a> {
    out: &'a mut dyn Write,
    hasher: Hasher,
}

impl<'a> Hashing<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> Self {
        let hasher = Hasher::new();
        Self { out, hasher }
    }

    /// The digest of all that was written.
    pub(crate) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl Write for Hashing<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or(buf));
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Output that counts.
pub(crate) struct Sink<'a> {
    out: Out<'a>,
    piece: Vec<u8>,
    /// Bytes of `piece` that are to be written.
    used: usize,
    /// Bytes that were put in.
    len: u64,
    /// Whether the kernel copies from file to file here, as far as is known.
    copies: bool,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(out: Out<'a>) -> Self {
        let copies = matches!(out, Out::File(_));
        let piece = match out {
            Out::Nowhere => Vec::new(),
            _ => vec![0; PIECE],
        };
        Self {
            out,
            piece,
            used: 0,
            len: 0,
            copies,
        }
    }

    /// Whether what is put in goes anywhere.
    pub(crate) fn writes(&self) -> bool {
        !matches!(self.out, Out::Nowhere)
    }

    /// Bytes that were put in.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Puts `bytes` in.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), NoMore> {
        let mut rest = bytes;
        self.fill(bytes.len() as u64, |to, _| {
            let (now, behind) = rest.split_at_checked(to.len()).unwrap_or((rest, &[]));
            to.copy_from_slice(now);
            rest = behind;
            Ok(())
        })
    }

    /// Puts zeros in up to a whole block.
    pub(crate) fn fill_block(&mut self) -> Result<(), NoMore> {
        let rest = self.len.next_multiple_of(super::header::BLOCK) - self.len;
        self.fill(rest, |to, _| {
            to.fill(0);
            Ok(())
        })
    }

    /// Puts `len` bytes in, which `read` fills in piece by piece; told how many bytes of them are
    /// before it. It is not asked where nothing is written.
    pub(crate) fn fill<E: From<NoMore>>(
        &mut self,
        len: u64,
        mut read: impl FnMut(&mut [u8], u64) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.writes() {
            self.len += len;
            return Ok(());
        }
        let mut done = 0;
        while done < len {
            let room = self.piece.get_mut(self.used..).unwrap_or_default();
            let want = usize::try_from(len - done).unwrap_or(usize::MAX);
            let want = want.min(room.len());
            read(room.get_mut(..want).unwrap_or_default(), done)?;
            done += want as u64;
            self.len += want as u64;
            self.used += want;
            if self.used == self.piece.len() {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Puts `len` bytes of file `from` in, from `offset` on: by the kernel where that pays and it
    /// can, the rest by `read`, as [`Self::fill`] has it. `on_copied` is told what the kernel did.
    pub(crate) fn copy<E: From<NoMore>>(
        &mut self,
        from: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        mut on_copied: impl FnMut(u64),
        mut read: impl FnMut(&mut [u8], u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut done = 0;
        if self.copies && len >= LARGE {
            self.flush()?;
            while let Out::File(to) = &self.out
                && done < len
            {
                let want = usize::try_from((len - done).min(AT_ONCE)).unwrap_or(PIECE);
                match sys::fs::copy_range(from, offset + done, to.as_fd(), self.len, want) {
                    // Of a file that has become shorter, as `read` will find.
                    Ok(0) => break,
                    Ok(copied) => {
                        let before = self.len;
                        self.len += copied as u64;
                        done += copied as u64;
                        on_copied(copied as u64);
                        self.write_out(before);
                    }
                    Err(Errno::INTR) => {}
                    // Two filesystems, or one that cannot. What else is wrong `read`, or writing,
                    // will find.
                    Err(_) => {
                        self.copies = done > 0;
                        break;
                    }
                }
            }
        }
        self.fill(len - done, |to, at| read(to, done + at))
    }

    fn flush(&mut self) -> Result<(), NoMore> {
        let piece = self.piece.get(..self.used).unwrap_or_default();
        let before = self.len - self.used as u64;
        match &mut self.out {
            Out::Stream(out) => out.write_all(piece).map_err(NoMore)?,
            Out::File(file) => {
                let mut rest = piece;
                let mut at = before;
                while !rest.is_empty() {
                    match sys::fs::write(file.as_fd(), at, rest) {
                        Ok(0) => return Err(NoMore(io::ErrorKind::WriteZero.into())),
                        Ok(n) => {
                            rest = rest.get(n..).unwrap_or_default();
                            at += n as u64;
                        }
                        Err(errno) => return Err(NoMore(errno.into())),
                    }
                }
            }
            Out::Nowhere => {}
        }
        self.used = 0;
        self.write_out(before);
        Ok(())
    }

    /// Has the disk begin, where a boundary lies between `before` and the end.
    fn write_out(&self, before: u64) {
        if let Out::File(file) = &self.out
            && self.len / WRITE_OUT > before / WRITE_OUT
        {
            // A hint; what fails of it, fsync will tell.
            sys::fs::write_out(file.as_fd()).ok();
        }
    }

    /// Writes what is left; gives the length of all.
    pub(crate) fn finish(mut self) -> Result<u64, NoMore> {
        self.flush()?;
        if let Out::Stream(out) = &mut self.out {
            out.flush().map_err(NoMore)?;
        }
        Ok(self.len)
    }
}
