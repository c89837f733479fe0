//! Where a file has data and where it has holes, in one way for the same bytes.
//!
//! What the index says is a hole stays one. A file in a side blob has none there, since its bytes
//! were copied with their holes: its holes are its blocks of 4 KiB that are all zeros. What holes
//! the filesystem below has in them is not asked: that is another on another machine.

use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::lower::{Lower, LowerError, Nid, Place};

use super::header::fill_block;

/// What is looked at for zeros, bytes.
const UNIT: u64 = 4096;
/// From how many bytes on a file is asked for holes whatever it stores.
const ASKED: u64 = 1 << 20;
/// What is read at once for that, bytes.
const PIECE: u64 = 1 << 20;
/// The most runs of data in a map: what this crate's reader takes, less one for the end.
const RUNS_MAX: usize = (1 << 20) - 1;

/// The runs of data of a file, in order, apart from each other: (offset, length > 0).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Map {
    runs: Vec<(u64, u64)>,
    /// Shorter holes are data, since there are too many.
    least: u64,
}

impl Map {
    /// The map of regular file `nid`; `side` are the side blobs.
    pub(crate) fn of(lower: &Lower, nid: Nid, side: &[u16]) -> Result<Self, LowerError> {
        let mut map = Self::default();
        let mut at = 0;
        while let Some(extent) = lower.extent(nid, at)? {
            match extent.place {
                Place::Hole => {}
                Place::Device { index, offset } if side.contains(&index) => {
                    let blob = lower.blob_files().nth(index.into());
                    map.look(lower, nid, at, extent.len, blob.map(|blob| (blob, offset)))?;
                }
                _ => map.push(at, extent.len),
            }
            at += extent.len;
        }
        Ok(map)
    }

    /// The map of an open file of `size` bytes, of which its filesystem stores `blocks` of 512.
    ///
    /// # Errors
    /// lseek(2)'s.
    pub(crate) fn of_file(
        file: BorrowedFd<'_>,
        size: u64,
        blocks: u64,
    ) -> rustix::io::Result<Self> {
        let mut map = Self::default();
        // A small one that stores as many as it has is not asked; it may have room beyond its end.
        let mut at = if blocks.saturating_mul(512) < size || size >= ASKED {
            0
        } else {
            map.runs.extend((size > 0).then_some((0, size)));
            size
        };
        while at < size {
            let data = match seek(file, SeekFrom::Data(at)) {
                Ok(data) if data < size => data,
                Ok(_) | Err(Errno::NXIO) => break,
                // A filesystem that knows no holes.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
                Err(errno) => return Err(errno),
            };
            let hole = match seek(file, SeekFrom::Hole(data)) {
                Ok(hole) if hole > data => hole.min(size),
                Ok(_) | Err(Errno::INVAL | Errno::OPNOTSUPP) => size,
                Err(errno) => return Err(errno),
            };
            map.push(data, hole - data);
            at = hole;
        }
        Ok(map)
    }

    /// The map of these runs, in order, none over another, of any length.
    pub(crate) fn of_runs(runs: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut map = Self::default();
        for (offset, len) in runs.into_iter().filter(|run| run.1 > 0) {
            map.push(offset, len);
        }
        map
    }

    /// Whether there is no hole in a file of `size` bytes.
    pub(crate) fn is_dense(&self, size: u64) -> bool {
        size == 0 || self.runs == [(0, size)]
    }

    /// The runs.
    pub(crate) fn runs(&self) -> &[(u64, u64)] {
        &self.runs
    }

    /// Bytes of data.
    pub(crate) fn stored(&self) -> u64 {
        self.runs.iter().map(|run| run.1).sum()
    }

    /// The map as it stands before the data of a file of `size` bytes, in whole blocks (GNU tar
    /// manual, "Storing Sparse Files", PAX format 1.0). Like GNU tar's it tells the end of a file
    /// that ends in a hole.
    pub(crate) fn text(&self, size: u64) -> Vec<u8> {
        let end = self.runs.last().map_or(0, |(offset, len)| offset + len);
        let last = (end < size).then_some((size, 0));
        let count = self.runs.len() + usize::from(last.is_some());
        let mut out = format!("{count}\n").into_bytes();
        for (offset, len) in self.runs.iter().chain(&last) {
            out.extend_from_slice(format!("{offset}\n{len}\n").as_bytes());
        }
        fill_block(&mut out);
        out
    }

    fn push(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        match self.runs.last_mut() {
            Some((from, length)) if offset - (*from + *length) <= self.least => {
                *length = end - *from;
            }
            _ => self.runs.push((offset, len)),
        }
        while self.runs.len() > RUNS_MAX {
            self.least = (self.least * 2).max(512);
            let runs = std::mem::take(&mut self.runs);
            for (offset, len) in runs {
                self.push(offset, len);
            }
        }
    }

    /// Adds what is not zero of `len` bytes at `start`, which lie in `blob` from an offset on.
    fn look(
        &mut self,
        lower: &Lower,
        nid: Nid,
        start: u64,
        len: u64,
        blob: Option<(&File, u64)>,
    ) -> Result<(), LowerError> {
        let end = start + len;
        let mut buf = vec![0; usize::try_from(PIECE).unwrap_or_default()];
        let mut at = start;
        while at < end {
            // A hole of the filesystem is zeros that need not be read.
            if let Some((blob, offset)) = blob {
                let here = offset + (at - start);
                match seek(blob, SeekFrom::Data(here)) {
                    Ok(data) => {
                        let to = start + data.saturating_sub(offset);
                        at = at.max(to / UNIT * UNIT);
                    }
                    Err(Errno::NXIO) => break,
                    // One that knows no holes.
                    Err(_) => {}
                }
                if at >= end {
                    break;
                }
            }
            // Whole units from there on, wherever the first begins.
            let to = end.min((at + PIECE) / UNIT * UNIT);
            let want = usize::try_from(to - at).unwrap_or(buf.len());
            let piece = buf.get_mut(..want).unwrap_or_default();
            lower.read(nid, at, piece)?;
            let mut rest = &*piece;
            while !rest.is_empty() {
                let unit = usize::try_from(UNIT - at % UNIT).unwrap_or(rest.len());
                let (unit, behind) = rest.split_at_checked(unit).unwrap_or((rest, &[]));
                if unit.iter().fold(0, |bits, byte| bits | byte) != 0 {
                    self.push(at, unit.len() as u64);
                }
                at += unit.len() as u64;
                rest = behind;
            }
        }
        // What was cut short had no data where it was looked for.
        lower.check_blobs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(runs: &[(u64, u64)]) -> Map {
        let mut map = Map::default();
        for &(offset, len) in runs {
            map.push(offset, len);
        }
        map
    }

    #[test]
    fn a_map_is_what_is_data() {
        assert!(map(&[]).is_dense(0) && !map(&[]).is_dense(1));
        assert!(map(&[(0, 512), (512, 100)]).is_dense(612));
        let holes = map(&[(512, 512), (2048, 100)]);
        assert!(!holes.is_dense(2148));
        assert_eq!(holes.stored(), 612);
        assert!(holes.text(2148).starts_with(b"2\n512\n512\n2048\n100\n\0"));
        assert!(
            holes
                .text(2149)
                .starts_with(b"3\n512\n512\n2048\n100\n2149\n0\n\0")
        );
        assert_eq!(map(&[]).text(7).len(), 512);
        assert!(map(&[]).text(7).starts_with(b"1\n7\n0\n\0"));
    }

    #[test]
    fn too_many_holes_become_fewer() {
        let count = RUNS_MAX as u64;
        let runs: Vec<_> = (0..count).map(|i| (i * 1024, 512)).collect();
        let mut many = map(&runs);
        assert_eq!(many.runs().len(), RUNS_MAX);
        many.push(count * 1024, 512);
        assert_eq!(many.runs(), [(0, count * 1024 + 512)]);
        many.push(count * 1024 + 1025, 1);
        assert_eq!(many.runs().len(), 2);
        let again = map(many.runs());
        assert_eq!(again.runs(), many.runs());
    }
}
