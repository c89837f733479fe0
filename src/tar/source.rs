//! Bytes at offsets, and a small window over them.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::error::Problem;

/// Something that holds bytes at offsets: a file, or a slice in tests and fuzzing.
pub trait ReadAt {
    /// Reads up to `buf.len()` bytes at `offset`; fewer than that only at the end.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// How many bytes there are; `u64::MAX` as long as that is not known (a stream that goes on).
    /// Once less than what was asked for has been read, it must be.
    ///
    /// # Errors
    /// The system's.
    fn len(&self) -> io::Result<u64>;

    /// Whether there are none.
    ///
    /// # Errors
    /// The system's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl ReadAt for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset
                .checked_add(u64::try_from(done).map_err(io::Error::other)?)
                .ok_or_else(|| io::Error::other("offset overflow"))?;
            match std::os::unix::fs::FileExt::read_at(self, rest, at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|o| self.get(o..))
            .unwrap_or_default();
        let n = rest.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }

    fn len(&self) -> io::Result<u64> {
        u64::try_from(<[u8]>::len(self)).map_err(io::Error::other)
    }
}

/// [`ReadAt::len`] before it is known.
pub(super) const LEN_UNKNOWN: u64 = u64::MAX;

/// One header block.
pub(super) type Block = [u8; 512];

/// Bytes read at a time. To copy 4 KiB costs about as much as the system call that it saves. So
/// headers of small files, one soon behind the other, come together in large reads, and those of
/// larger files alone, with their pax headers, in small ones. The largest still fits the
/// processor's first cache.
const READ_MIN: usize = 4096;
const READ_MAX: usize = 32768;
/// Pieces (three for an entry with a pax header) that make a read worth its length.
const ENOUGH: usize = 6;
/// The largest piece that is looked for in the window.
const WINDOW: usize = READ_MIN;

/// A source with its length, read through a small window.
pub(super) struct Window<'a, R: ?Sized> {
    source: &'a R,
    len: u64,
    buf: Box<[u8]>,
    start: u64,
    filled: usize,
    /// Bytes that the next read takes.
    read: usize,
    /// Pieces that the last read served.
    served: usize,
    /// The last piece that was longer than the window.
    large: Vec<u8>,
}

impl<'a, R: ReadAt + ?Sized> Window<'a, R> {
    pub(super) fn new(source: &'a R) -> Result<Self, Problem> {
        let len = source.len()?;
        Ok(Self {
            source,
            len,
            buf: vec![0; READ_MAX].into(),
            start: 0,
            filled: 0,
            read: READ_MIN,
            served: ENOUGH,
            large: Vec::new(),
        })
    }

    /// The source's length when it was opened; [`LEN_UNKNOWN`] as long as it is not known.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The 512 bytes at `offset`; `None` where the source ends before.
    pub(super) fn block(&mut self, offset: u64) -> Result<Option<&Block>, Problem> {
        Ok(self
            .bytes(offset, 512)?
            .and_then(|bytes| bytes.try_into().ok()))
    }

    /// The `len` bytes at `offset`, of which the caller has checked that they lie within
    /// [`Self::len`] and his own bound. `None` where the source has shrunk meanwhile.
    pub(super) fn bytes(&mut self, offset: u64, len: usize) -> Result<Option<&[u8]>, Problem> {
        if len > WINDOW {
            self.large.resize(len, 0);
            let n = self.source.read_at(&mut self.large, offset)?;
            self.learn(n < len)?;
            return Ok((n == len).then_some(&self.large));
        }
        if self.cached(offset, len).is_none() {
            if self.served > ENOUGH {
                self.read = READ_MAX.min(self.read * 2);
            } else if self.served < ENOUGH {
                self.read = READ_MIN.max(self.read / 2);
            }
            (self.filled, self.served) = (0, 0);
            let to = self.buf.get_mut(..self.read).unwrap_or_default();
            let want = to.len();
            self.filled = self.source.read_at(to, offset)?;
            self.start = offset;
            self.learn(self.filled < want)?;
        }
        self.served += 1;
        Ok(self.cached(offset, len).and_then(|at| self.buf.get(at)))
    }

    /// A stream's length is known when it has `ended`.
    fn learn(&mut self, ended: bool) -> Result<(), Problem> {
        if ended && self.len == LEN_UNKNOWN {
            self.len = self.source.len()?;
        }
        Ok(())
    }

    /// Where in the window the `len` bytes at `offset` are, if they are there.
    fn cached(&self, offset: u64, len: usize) -> Option<Range<usize>> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        let to = from.checked_add(len).filter(|&to| to <= self.filled)?;
        Some(from..to)
    }
}
