//! The walk from header to header.

use std::path::{Path, PathBuf};

use super::error::{Problem, TarError};
use super::header::Header;
use super::path::Parent;
use super::pax::{Overrides, Scope, Text};
use super::source::{Block, LEN_UNKNOWN, ReadAt, Window};
use super::{BLOCK, Entry};
use crate::compress::betrayed;

/// The longest extended headers of one entry together. Linux holds 64 KiB an attribute; a map of
/// a million segments is the largest that anybody could mean.
const EXTENSION_MAX: u64 = 16 << 20;

/// The most bytes of padding behind the end marker (GNU tar's largest usual record is 10 KiB).
const TAIL_MAX: u64 = 64 << 20;

/// Reads the entries of a tar one by one; [`Reader::next_entry`] and [`Reader::read_entry`] are
/// the only way forward.
pub struct Reader<'a, R: ?Sized> {
    path: PathBuf,
    walk: Walk<'a, R>,
    globals: Overrides,
    ext: Extensions,
    ended: bool,
}

/// Where the walk is.
pub(super) struct Walk<'a, R: ?Sized> {
    pub(super) window: Window<'a, R>,
    /// Where the next header is.
    pub(super) pos: u64,
    /// The header being looked at, for errors.
    at: u64,
    /// The name of the entry being looked at, as the tar has it; the buffer of all of them.
    pub(super) name: Vec<u8>,
    /// Whether the name is known.
    pub(super) named: bool,
    /// The directory that the last entry lies in.
    pub(super) parent: Parent,
}

/// What the extended headers before an entry told. One for all entries, so that their texts need
/// no memory of their own.
#[derive(Default)]
pub(super) struct Extensions {
    pub(super) overrides: Overrides,
    pub(super) long_name: Text,
    pub(super) long_link: Text,
    /// Bytes read of them.
    read: u64,
    /// Whether there is one that must have an entry behind it.
    any: bool,
    /// Whether it holds more than the global headers tell.
    used: bool,
}

impl Extensions {
    /// As before the next entry.
    fn reset(&mut self, globals: &Overrides) {
        self.overrides.reset(globals);
        self.long_name.clear();
        self.long_link.clear();
        (self.read, self.any, self.used) = (0, false, false);
    }
}

/// The body of an entry: where it begins, how long it is, where the next header is.
#[derive(Clone, Copy)]
pub(super) struct Body {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) next: u64,
}

impl<'a, R: ReadAt + ?Sized> Reader<'a, R> {
    /// A reader of the tar `source`, which errors call `path`.
    ///
    /// # Errors
    /// The source's length cannot be read, or it is empty.
    pub fn new(source: &'a R, path: &Path) -> Result<Self, TarError> {
        let fail = |problem| TarError::new(path.to_owned(), None, 0, problem);
        let window = Window::new(source).map_err(fail)?;
        if window.len() == 0 {
            return Err(fail(Problem::Empty));
        }
        Ok(Self {
            path: path.to_owned(),
            walk: Walk {
                window,
                pos: 0,
                at: 0,
                name: Vec::new(),
                named: false,
                parent: Parent::default(),
            },
            globals: Overrides::default(),
            ext: Extensions::default(),
            ended: false,
        })
    }

    /// The tar's length in bytes; `u64::MAX` as long as it is not known (of a [`super::Stream`],
    /// before all entries are read).
    pub fn tar_len(&self) -> u64 {
        self.walk.window.len()
    }

    /// How far the walk has come: the offset of the next header, or of the end marker's end.
    pub fn position(&self) -> u64 {
        self.walk.pos
    }

    /// The next entry; `None` behind the end marker. After an error the walk is over.
    ///
    /// # Errors
    /// Whatever is wrong with the tar, with the offset of the header at fault.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut entry = Entry::default();
        Ok(self.read_entry(&mut entry)?.then_some(entry))
    }

    /// [`Self::next_entry`] in place of another entry, whose memory is used again; false, with
    /// anything in `entry`, behind the end marker.
    ///
    /// # Errors
    /// As [`Self::next_entry`].
    pub fn read_entry(&mut self, entry: &mut Entry) -> Result<bool, TarError> {
        if self.ended {
            return Ok(false);
        }
        self.walk.named = false;
        let result = self.step(entry);
        if !matches!(result, Ok(true)) {
            self.ended = true;
        }
        result.map_err(|problem| {
            let name = self.walk.named.then_some(&*self.walk.name);
            TarError::new(self.path.clone(), name, self.walk.at, problem)
        })
    }

    fn step(&mut self, entry: &mut Entry) -> Result<bool, Problem> {
        let Self {
            walk, globals, ext, ..
        } = self;
        if ext.used {
            ext.reset(globals);
        }
        loop {
            walk.at = walk.pos;
            let Some(block) = walk.window.block(walk.pos)? else {
                return Err(walk.no_block()?);
            };
            if block.first() == Some(&0) && *block == [0; 512] {
                if ext.any {
                    return Err(Problem::DanglingExtension);
                }
                walk.end_marker()?;
                return Ok(false);
            }
            let header = match Header::new(block) {
                Err(_) if walk.pos == 0 => return Err(not_a_tar(block)),
                other => other?,
            };
            match header.typeflag() {
                // X: Solaris' name for x.
                b'x' | b'X' => {
                    (ext.any, ext.used) = (true, true);
                    let size = header.size()?;
                    let body = walk.extension(size, &mut ext.read)?;
                    ext.overrides.apply(body, Scope::Entry)?;
                }
                b'g' => {
                    ext.used = true;
                    let size = header.size()?;
                    let body = walk.extension(size, &mut 0)?;
                    globals.apply(body, Scope::Global)?;
                    ext.overrides.apply(body, Scope::Global)?;
                }
                b'L' => {
                    (ext.any, ext.used) = (true, true);
                    let size = header.size()?;
                    let name = walk.extension(size, &mut ext.read)?;
                    ext.long_name.set(c_string(name));
                }
                b'K' => {
                    (ext.any, ext.used) = (true, true);
                    let size = header.size()?;
                    let link = walk.extension(size, &mut ext.read)?;
                    ext.long_link.set(c_string(link));
                }
                // A volume label names the tar, not a file.
                b'V' if !ext.any => {
                    let size = header.size()?;
                    walk.pos = walk.body(size)?.next;
                }
                _ => {
                    // The window goes on to what follows a sparse file or a hard link.
                    let mut block = [0; 512];
                    let header = header.copy_to(&mut block);
                    walk.entry(&header, ext, entry)?;
                    return Ok(true);
                }
            }
        }
    }
}

impl<R: ReadAt + ?Sized> Walk<'_, R> {
    /// Why there is no block at the current position.
    fn no_block(&mut self) -> Result<Problem, Problem> {
        let len = self.window.len();
        let left = len.saturating_sub(self.pos);
        Ok(match (self.pos, left) {
            (0, 0) => Problem::Empty,
            (0, _) => {
                let start = self
                    .window
                    .bytes(0, usize::try_from(left.min(BLOCK)).unwrap_or(0))?;
                compressed(start.unwrap_or_default()).unwrap_or(Problem::NotATar)
            }
            // Only a stream's: of others it was known before that the body lies within.
            (pos, 0) if pos > len => Problem::Truncated("in the middle of a body"),
            (_, 0) => Problem::Truncated("without its end marker (two blocks of zeros)"),
            (_, 1..BLOCK) => Problem::Truncated("in the middle of a header"),
            _ => Problem::Truncated("earlier than it did when it was opened"),
        })
    }

    /// The end marker's first block is at the current position: checks the second, and that only
    /// zeros follow.
    fn end_marker(&mut self) -> Result<(), Problem> {
        self.at = self.pos + BLOCK;
        match self.window.block(self.at)? {
            None => return Err(Problem::Truncated("in the middle of its end marker")),
            Some(block) if *block != [0; 512] => return Err(Problem::LoneZeroBlock),
            Some(_) => {}
        }
        self.pos += 2 * BLOCK;
        let mut at = self.pos;
        while at < self.window.len() {
            let len = self.window.len();
            // A stream that goes on has this much at least.
            let tail = if len == LEN_UNKNOWN { at } else { len } - self.pos;
            if tail > TAIL_MAX {
                self.at = self.pos;
                return Err(Problem::LongTail(tail));
            }
            let want = usize::try_from((len - at).min(1 << 16)).unwrap_or(1 << 16);
            let Some(bytes) = self.window.bytes(at, want)? else {
                if len == LEN_UNKNOWN {
                    continue;
                }
                return Err(Problem::Truncated("earlier than it did when it was opened"));
            };
            if let Some(index) = bytes.iter().position(|&b| b != 0) {
                let byte = at + u64::try_from(index).unwrap_or(0);
                let block_start = byte - byte % BLOCK;
                let header = self.window.block(block_start)?;
                if header.is_some_and(|block| Header::new(block).is_ok()) {
                    self.at = block_start;
                    return Err(Problem::EntryAfterEnd);
                }
                self.at = byte;
                return Err(Problem::DataAfterEnd);
            }
            at += u64::try_from(want).unwrap_or(1 << 16);
        }
        Ok(())
    }

    /// The body of `size` bytes behind the header at the current position, which must lie within
    /// the tar with its padding.
    pub(super) fn body(&self, size: u64) -> Result<Body, Problem> {
        let beyond = || Problem::BodyBeyondEnd {
            size,
            len: self.window.len(),
        };
        let start = self.pos.checked_add(BLOCK).ok_or_else(beyond)?;
        self.body_at(start, size)
    }

    pub(super) fn body_at(&self, start: u64, size: u64) -> Result<Body, Problem> {
        let len = self.window.len();
        let beyond = || Problem::BodyBeyondEnd { size, len };
        let end = start
            .checked_add(size)
            .filter(|&end| end <= len)
            .ok_or_else(beyond)?;
        let next = end.checked_next_multiple_of(BLOCK).ok_or_else(beyond)?;
        if next > len {
            return Err(Problem::Truncated(
                "in the middle of the padding behind a body",
            ));
        }
        Ok(Body {
            start,
            len: size,
            next,
        })
    }

    /// The body, of `size` bytes, of an extended header at the current position; goes on behind it.
    fn extension(&mut self, size: u64, read: &mut u64) -> Result<&[u8], Problem> {
        let body = self.body(size)?;
        *read = read.saturating_add(body.len);
        if *read > EXTENSION_MAX {
            return Err(Problem::Unsupported(
                "extended headers of more than 16 MiB".into(),
            ));
        }
        let len = usize::try_from(body.len)
            .map_err(|_| Problem::Unsupported("an extended header larger than memory".into()))?;
        self.pos = body.next;
        self.window
            .bytes(body.start, len)?
            .ok_or(Problem::Truncated("in the middle of an extended header"))
    }
}

/// A GNU long name: C text, with one NUL or more behind it.
fn c_string(body: &[u8]) -> &[u8] {
    let end = body
        .iter()
        .rposition(|&b| b != 0)
        .map_or(0, |last| last + 1);
    body.get(..end).unwrap_or_default()
}

/// What a first block that is no header is instead.
fn not_a_tar(block: &Block) -> Problem {
    // A tar whose first header is damaged still has its magic.
    compressed(block).unwrap_or_else(|| match (block.get(257..262), Header::new(block)) {
        (Some(b"ustar"), Err(checksum)) => checksum,
        _ => Problem::NotATar,
    })
}

fn compressed(start: &[u8]) -> Option<Problem> {
    betrayed(start).map(|(format, command)| Problem::Compressed { format, command })
}
