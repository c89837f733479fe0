//! Directories: lookup by two binary searches, and listing.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use crate::inode::Kind;
use crate::name;

use super::{Inode, Layout, ReadError, Reader, Result, damaged, l};

/// An entry of a directory block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name: `.`, `..`, or one that [`name::check`] takes.
    pub name: &'a [u8],
    /// What it leads to.
    pub nid: u64,
    /// The type that the entry notes.
    pub kind: Kind,
}

/// Position in a directory: the block and the number of the entry in it, as one rising number
/// that is never 0 behind an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct DirPosition(pub u64);

/// A block holds at most 4096 / 12 entries.
const ENTRY_BITS: u32 = 16;

impl DirPosition {
    fn behind(block: u64, entry: usize) -> Self {
        Self((block << ENTRY_BITS) | (entry as u64 + 1))
    }

    fn split(self) -> (u64, usize) {
        let entry = self.0 & ((1 << ENTRY_BITS) - 1);
        (
            self.0 >> ENTRY_BITS,
            usize::try_from(entry).unwrap_or(usize::MAX),
        )
    }
}

/// One block of a directory: entries, then names.
struct Block<'a> {
    bytes: &'a [u8],
    /// Its byte position in the image, for errors.
    pos: u64,
    count: usize,
}

impl<'a> Block<'a> {
    fn new(bytes: &'a [u8], pos: u64) -> Result<Self> {
        // As fs/erofs/dir.c:erofs_readdir and namei.c:erofs_find_target_block check it.
        let first = l::get_u16(bytes, l::dirent::NAMEOFF).map(usize::from);
        match first {
            Some(names) if names >= l::DIRENT_LEN && names <= bytes.len() => {
                if !names.is_multiple_of(l::DIRENT_LEN) {
                    return damaged("a directory block whose names start inside an entry", pos);
                }
                Ok(Self {
                    bytes,
                    pos,
                    count: names / l::DIRENT_LEN,
                })
            }
            _ => damaged("a directory block whose names start outside it", pos),
        }
    }

    fn raw(&self, i: usize) -> Result<l::RawDirent> {
        let at = i * l::DIRENT_LEN;
        let raw = self.bytes.get(at..).unwrap_or_default();
        l::RawDirent::decode(raw).map_err(|bad| ReadError::Damaged {
            what: bad.0,
            offset: self.pos,
        })
    }

    fn entry(&self, i: usize) -> Result<DirEntry<'a>> {
        let raw = self.raw(i)?;
        let start = usize::from(raw.nameoff);
        let last = i + 1 >= self.count;
        let end = if last {
            self.bytes.len()
        } else {
            usize::from(self.raw(i + 1)?.nameoff)
        };
        let what = "a directory entry whose name lies outside its block";
        let bad = ReadError::Damaged {
            what,
            offset: self.pos,
        };
        if start < self.count * l::DIRENT_LEN {
            return Err(bad);
        }
        let mut name = self.bytes.get(start..end).ok_or(bad)?;
        if last {
            // The last name of a block ends at the block's end or at the first NUL.
            let used = name.iter().position(|&b| b == 0).unwrap_or(name.len());
            name = name.get(..used).ok_or(bad)?;
        }
        let dots = matches!(name, b"." | b"..");
        if !dots && name::check(name).is_err() {
            return damaged(
                "a directory entry with a name that no file can have",
                self.pos,
            );
        }
        let Some(kind) = l::kind_of_file_type(raw.file_type) else {
            return damaged("a directory entry of an unknown type", self.pos);
        };
        if dots && kind != Kind::Dir {
            return damaged("a \".\" or \"..\" that is no directory", self.pos);
        }
        Ok(DirEntry {
            name,
            nid: raw.nid,
            kind,
        })
    }
}

impl Reader {
    fn dir_blocks(&self, dir: &Inode) -> Result<u64> {
        if dir.kind != Kind::Dir {
            return Err(ReadError::WrongKind(dir.nid));
        }
        Ok(dir.size.div_ceil(self.block_size()))
    }

    fn dir_block(&self, dir: &Inode, number: u64) -> Result<Block<'_>> {
        let Layout::Flat { start, head, tail } = dir.layout else {
            return Err(ReadError::WrongKind(dir.nid));
        };
        let offset = number << self.sb.block_bits;
        let len = dir.size.saturating_sub(offset).min(self.block_size());
        // `head` is the size, or a multiple of the block size: no block lies in both parts.
        let pos = if offset < head {
            start + offset
        } else {
            tail + (offset - head)
        };
        Block::new(
            self.slice(pos, len, "a directory block behind the end of the file")?,
            pos,
        )
    }

    /// The entry of directory `dir` called `name` (`.` and `..` are found as well), by binary
    /// searches for the block and in it (fs/erofs/namei.c:erofs_namei).
    ///
    /// # Errors
    /// [`ReadError::WrongKind`] when `dir` is no directory, [`ReadError::Damaged`].
    pub fn find(&self, dir: &Inode, name: &[u8]) -> Result<Option<DirEntry<'_>>> {
        let (mut low, mut high) = (0, self.dir_blocks(dir)?);
        let mut candidate = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.dir_block(dir, middle)?;
            let first = block.entry(0)?;
            match first.name.cmp(name) {
                Ordering::Equal => return Ok(Some(first)),
                Ordering::Less => {
                    low = middle + 1;
                    candidate = Some(block);
                }
                Ordering::Greater => high = middle,
            }
        }
        let Some(block) = candidate else {
            return Ok(None);
        };
        let (mut low, mut high) = (1, block.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = block.entry(middle)?;
            match entry.name.cmp(name) {
                Ordering::Equal => return Ok(Some(entry)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// Calls `each` for the entries of `dir` behind position `from`, with `.` and `..` among them,
    /// in the byte order of names, until it breaks. `each` gets the position behind the entry.
    ///
    /// # Errors
    /// [`ReadError::WrongKind`] when `dir` is no directory; [`ReadError::Damaged`], also where the
    /// names do not rise (so that no name comes twice).
    pub fn list(
        &self,
        dir: &Inode,
        from: DirPosition,
        each: &mut dyn FnMut(DirEntry<'_>, DirPosition) -> ControlFlow<()>,
    ) -> Result<()> {
        let blocks = self.dir_blocks(dir)?;
        let (first, mut entry) = from.split();
        let mut before: Option<&[u8]> = None;
        for number in first..blocks {
            let block = self.dir_block(dir, number)?;
            for i in entry..block.count {
                let found = block.entry(i)?;
                if before.is_some_and(|name| name >= found.name) {
                    return damaged("a directory whose names are not in order", block.pos);
                }
                before = Some(found.name);
                if each(found, DirPosition::behind(number, i)).is_break() {
                    return Ok(());
                }
            }
            entry = 0;
        }
        Ok(())
    }
}
