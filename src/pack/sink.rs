//! The tar on its way out: in large pieces, and counted.
//!
//! Where it goes to a file the kernel copies large data by itself (copy_file_range(2)), or shares
//! their blocks where the filesystem can and they lie on its boundaries. A digest needs every byte
//! in memory, and takes that away.
//!
//! [`beside`] has a thread of its own hash and write, while the next files are read.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;

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
    /// Nowhere: its bytes are counted.
    Nowhere,
    /// To a thread that writes.
    Beside(Beside<'a>),
}

/// What a thread beside writes to.
pub(crate) enum To<'a> {
    /// To be written to as it is.
    Stream(&'a mut (dyn Write + Send)),
    /// An empty regular file, which is to be on disk soon.
    File(&'a File),
    /// One of which nobody waits for that.
    Lazy(&'a File),
}

/// Pieces that the thread may have to itself: one that is written, one that waits.
const WAITING: usize = 2;

/// The way to a thread that writes.
pub(crate) struct Beside<'a> {
    /// Pieces to be written, each with its offset and its length.
    full: SyncSender<(u64, usize, Vec<u8>)>,
    /// Pieces that have been.
    free: Receiver<Vec<u8>>,
    /// The file, if it is one that the kernel may copy to.
    file: Option<&'a File>,
    /// The disk is told to begin early.
    soon: bool,
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
        let copies = matches!(&out, Out::Beside(beside) if beside.file.is_some());
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

    /// Whether it goes to a file, of which nobody needs each byte now.
    pub(crate) fn is_file(&self) -> bool {
        matches!(&self.out, Out::Beside(beside) if beside.file.is_some())
    }

    /// Leaves `len` bytes of a file free, to be written by somebody else.
    pub(crate) fn leave(&mut self, len: u64) -> Result<(), NoMore> {
        self.flush()?;
        self.len += len;
        Ok(())
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
            while let Out::Beside(Beside {
                file: Some(to),
                soon,
                ..
            }) = &self.out
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
                        if *soon {
                            write_out(to, before, self.len);
                        }
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

    /// Sends what is in the piece on its way.
    fn flush(&mut self) -> Result<(), NoMore> {
        if self.used == 0 {
            return Ok(());
        }
        let at = self.len - self.used as u64;
        match &mut self.out {
            Out::Stream(out) => {
                let piece = self.piece.get(..self.used).unwrap_or_default();
                out.write_all(piece).map_err(NoMore)?;
            }
            Out::Beside(beside) => {
                // It is gone only when it has failed, and tells why when it is asked.
                let gone = || NoMore(io::ErrorKind::BrokenPipe.into());
                let piece = std::mem::take(&mut self.piece);
                let sent = beside.full.send((at, self.used, piece));
                sent.map_err(|_| gone())?;
                self.piece = beside.free.recv().map_err(|_| gone())?;
            }
            Out::Nowhere => {}
        }
        self.used = 0;
        Ok(())
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

/// Has the disk begin, where a boundary lies between `before` and `after`.
fn write_out(file: &File, before: u64, after: u64) {
    if after / WRITE_OUT > before / WRITE_OUT {
        // A hint; what fails of it, fsync will tell.
        sys::fs::write_out(file.as_fd()).ok();
    }
}

/// Does `work`, which puts a tar in, while another thread writes it to `to`. Gives what that gave,
/// the tar's length and, if `hash` says so, its digest.
pub(crate) fn beside<T, E: From<NoMore>>(
    to: To<'_>,
    hash: bool,
    work: impl FnOnce(&mut Sink<'_>) -> Result<T, E>,
) -> Result<(T, u64, Option<Digest>), E> {
    let file = match (&to, hash) {
        (To::File(file) | To::Lazy(file), false) => Some(*file),
        _ => None,
    };
    let soon = matches!(to, To::File(_));
    let (full, to_write) = sync_channel(WAITING);
    let (written, free) = channel();
    for _ in 0..WAITING {
        written.send(vec![0; PIECE]).ok();
    }
    thread::scope(|scope| {
        let write = move || {
            let mut to = to;
            let mut hasher = hash.then(Hasher::new);
            for (at, used, piece) in to_write {
                let piece: Vec<u8> = piece;
                let bytes = piece.get(..used).unwrap_or_default();
                if let Some(hasher) = &mut hasher {
                    hasher.update(bytes);
                }
                to.put(at, bytes)?;
                written.send(piece).ok();
            }
            to.end()?;
            Ok::<_, io::Error>(hasher.map(Hasher::finish))
        };
        let thread = thread::Builder::new().spawn_scoped(scope, write);
        let thread = thread.map_err(NoMore)?;
        let mut sink = Sink::new(Out::Beside(Beside {
            full,
            free,
            file,
            soon,
        }));
        let done = work(&mut sink);
        let done = done.and_then(|done| Ok((done, sink.finish()?)));
        // What went wrong there is why nothing could be put in here.
        let ended = thread.join();
        let ended = ended.unwrap_or_else(|_| Err(io::Error::other("the writing thread has died")));
        match (done, ended) {
            (Ok((done, len)), Ok(digest)) => Ok((done, len, digest)),
            (_, Err(error)) => Err(NoMore(error).into()),
            (Err(error), Ok(_)) => Err(error),
        }
    })
}

impl To<'_> {
    /// Writes bytes; to a file, from its offset `at` on.
    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let soon = matches!(self, Self::File(_));
        let file = match self {
            Self::Stream(out) => return out.write_all(bytes),
            Self::File(file) | Self::Lazy(file) => file,
        };
        let (mut rest, mut now) = (bytes, at);
        while !rest.is_empty() {
            let n = sys::fs::write(file.as_fd(), now, rest)?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest = rest.get(n..).unwrap_or_default();
            now += n as u64;
        }
        if soon {
            write_out(file, at, now);
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Stream(out) => out.flush(),
            Self::File(_) | Self::Lazy(_) => Ok(()),
        }
    }
}
