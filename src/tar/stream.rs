//! A tar that comes as a stream.

use std::cell::RefCell;
use std::io::{self, Read};

use super::source::{LEN_UNKNOWN, ReadAt};

/// Bytes read from a stream at a time.
const PIECE: usize = 1 << 16;

/// The bytes of a stream at rising offsets: what lies before the last offset that was asked for is
/// gone. [`super::Reader`] asks for nothing else.
pub struct Stream<R>(RefCell<State<R>>);

struct State<R> {
    input: R,
    /// Offset of the first byte that is held.
    start: u64,
    /// What is held, among what was and what will be.
    buf: Vec<u8>,
    from: usize,
    to: usize,
    ended: bool,
}

impl<R: Read> Stream<R> {
    /// The bytes that `input` will give.
    pub fn new(input: R) -> Self {
        Self(RefCell::new(State {
            input,
            start: 0,
            buf: Vec::new(),
            from: 0,
            to: 0,
            ended: false,
        }))
    }
}

impl<R: Read> State<R> {
    fn held(&self) -> &[u8] {
        self.buf.get(self.from..self.to).unwrap_or_default()
    }

    /// Reads on until `want` bytes are held, or the stream ends.
    fn fill(&mut self, want: usize) -> io::Result<()> {
        while self.held().len() < want && !self.ended {
            if self.from > 0 {
                self.buf.copy_within(self.from..self.to, 0);
                (self.from, self.to) = (0, self.to - self.from);
            }
            let room = want.max(self.to + PIECE);
            if self.buf.len() < room {
                self.buf.resize(room, 0);
            }
            match self
                .input
                .read(self.buf.get_mut(self.to..).unwrap_or(&mut []))
            {
                Ok(n) => {
                    self.to = self.buf.len().min(self.to.saturating_add(n));
                    self.ended = n == 0;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Lets go of the bytes before `offset`.
    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        while self.start < offset {
            let before = offset - self.start;
            let held = self.held().len();
            let gone = usize::try_from(before).map_or(held, |before| before.min(held));
            self.from += gone;
            self.start += u64::try_from(gone).map_err(io::Error::other)?;
            if self.start < offset {
                self.fill(1)?;
                if self.held().is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl<R: Read> ReadAt for Stream<R> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.0.try_borrow_mut().map_err(io::Error::other)?;
        if offset < state.start {
            let what = "a stream cannot be read backwards";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        state.skip_to(offset)?;
        if state.start < offset {
            return Ok(0);
        }
        state.fill(buf.len())?;
        ReadAt::read_at(state.held(), buf, 0)
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.0.try_borrow().map_err(io::Error::other)?;
        if !state.ended {
            return Ok(LEN_UNKNOWN);
        }
        let held = u64::try_from(state.held().len()).map_err(io::Error::other)?;
        Ok(state.start.saturating_add(held))
    }
}
