//! Sparse maps: GNU's old one in the header, and pax 0.0, 0.1 and 1.0
//! (GNU tar manual, "Storing Sparse Files").
//!
//! In the tar, the bytes of all segments stand one behind the other.

use super::Segment;
use super::error::Problem;
use super::number;

/// The most segments a file may have. More would be a map larger than anybody's file.
pub(super) const SEGMENTS_MAX: usize = 1 << 20;

/// The longest file that an index can hold: ext4's limit, and far beyond any blob's.
const SIZE_MAX: u64 = 16 << 40;

/// Collects a map: (offset, length) pairs, checked as they come.
#[derive(Debug, Clone, Default)]
pub(super) struct Map {
    segments: Vec<(u64, u64)>,
    end: u64,
    stored: u64,
    entries: usize,
}

impl Map {
    /// Adds the next segment. A length of 0, which marks the end of a file that ends in a hole,
    /// adds nothing.
    pub(super) fn push(&mut self, offset: u64, len: u64) -> Result<(), Problem> {
        self.entries += 1;
        if self.entries > SEGMENTS_MAX {
            return Err(Problem::Sparse("it has more than a million segments"));
        }
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= SIZE_MAX)
            .ok_or(Problem::Sparse("a segment lies beyond 16 TiB"))?;
        if offset < self.end {
            return Err(Problem::Sparse("its segments overlap or are out of order"));
        }
        self.end = end;
        if len == 0 {
            return Ok(());
        }
        self.stored = self
            .stored
            .checked_add(len)
            .ok_or(Problem::Sparse("its segments add up to too much"))?;
        match self.segments.last_mut() {
            Some((start, length)) if *start + *length == offset => *length += len,
            _ => self.segments.push((offset, len)),
        }
        Ok(())
    }

    /// How many pairs were pushed.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// The segments of a file of `size` bytes, whose `stored` bytes stand at `tar_offset`.
    pub(super) fn finish(
        self,
        size: u64,
        stored: u64,
        tar_offset: u64,
    ) -> Result<Vec<Segment>, Problem> {
        if size > SIZE_MAX {
            return Err(Problem::Sparse("the file is longer than 16 TiB"));
        }
        if self.end > size {
            return Err(Problem::Sparse("a segment lies beyond the end of the file"));
        }
        if self.stored != stored {
            return Err(Problem::Sparse(
                "its segments do not add up to the bytes stored",
            ));
        }
        let mut tar_offset = tar_offset;
        let mut out = Vec::with_capacity(self.segments.len());
        for (offset, len) in self.segments {
            out.push(Segment {
                offset,
                len,
                tar_offset,
            });
            // Within the tar: `stored` bytes are, and the segments add up to them.
            tar_offset = tar_offset
                .checked_add(len)
                .ok_or(Problem::Sparse("its segments add up to too much"))?;
        }
        Ok(out)
    }
}

/// What pax records say of a sparse file.
#[derive(Debug, Clone, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(super) size: Option<u64>,
    pub(super) count: Option<u64>,
    pub(super) map: Option<Map>,
    /// The offset of format 0.0 that waits for its length.
    pub(super) offset: Option<u64>,
}

impl PaxSparse {
    /// Whether the entry is a sparse file at all.
    pub(super) fn is_sparse(&self) -> bool {
        self.major.is_some() || self.map.is_some() || self.size.is_some() || self.offset.is_some()
    }

    /// Format 1.0: its map stands before the data.
    pub(super) fn map_in_body(&self) -> Result<bool, Problem> {
        match (self.major, self.minor) {
            (None | Some(0), None | Some(0 | 1)) => Ok(false),
            (Some(1), Some(0)) => Ok(true),
            (major, minor) => Err(Problem::Unsupported(format!(
                "a sparse file of GNU format {}.{}",
                major.unwrap_or(0),
                minor.unwrap_or(0)
            ))),
        }
    }

    /// One record, whose key is behind `GNU.sparse.`.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"major" => self.major = Some(number::decimal(value)?),
            b"minor" => self.minor = Some(number::decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number::decimal(value)?),
            b"numblocks" => self.count = Some(number::decimal(value)?),
            b"offset" => {
                if self.offset.replace(number::decimal(value)?).is_some() {
                    return Err("comes twice without a length between");
                }
            }
            b"numbytes" => {
                let offset = self
                    .offset
                    .take()
                    .ok_or("comes without an offset before it")?;
                let len = number::decimal(value)?;
                let map = self.map.get_or_insert_default();
                map.push(offset, len)
                    .map_err(|_| "makes the map contradict itself")?;
            }
            b"map" => {
                let mut map = Map::default();
                let mut numbers = value.split(|&b| b == b',');
                while let Some(offset) = numbers.next().filter(|_| !value.is_empty()) {
                    let offset = number::decimal(offset)?;
                    let len =
                        number::decimal(numbers.next().ok_or("has an odd count of numbers")?)?;
                    map.push(offset, len).map_err(|_| "contradicts itself")?;
                }
                self.map = Some(map);
            }
            _ => return Err("is not one that is known"),
        }
        Ok(())
    }

    /// The map of formats 0.0 and 0.1.
    pub(super) fn take_map(mut self) -> Result<Map, Problem> {
        if self.offset.is_some() {
            return Err(Problem::Sparse("its last segment has no length"));
        }
        let map = self.map.take().unwrap_or_default();
        match self.count {
            Some(count) if usize::try_from(count) != Ok(map.entries()) => Err(Problem::Sparse(
                "it does not have as many segments as it says",
            )),
            _ => Ok(map),
        }
    }
}

/// Reads the decimal numbers, one a line, of the map that stands before a file's data in pax
/// format 1.0.
#[derive(Debug, Default)]
pub(super) struct BodyMap {
    left: Option<u64>,
    offset: Option<u64>,
    number: Option<u64>,
    map: Map,
}

impl BodyMap {
    /// Takes the next block; true when the map is complete (the rest of the block is padding).
    pub(super) fn block(&mut self, block: &[u8]) -> Result<bool, Problem> {
        for &byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let number = self.number.unwrap_or(0).checked_mul(10);
                    self.number = Some(
                        number
                            .and_then(|n| n.checked_add(digit))
                            .ok_or(Problem::Sparse("a number in it is too large"))?,
                    );
                }
                b'\n' => {
                    let number = self
                        .number
                        .take()
                        .ok_or(Problem::Sparse("a number in it is empty"))?;
                    if self.line(number)? {
                        return Ok(true);
                    }
                }
                _ => return Err(Problem::Sparse("it holds something other than numbers")),
            }
        }
        Ok(false)
    }

    fn line(&mut self, number: u64) -> Result<bool, Problem> {
        match (self.left, self.offset.take()) {
            (None, _) => {
                self.left = Some(number);
                Ok(number == 0)
            }
            (Some(_), None) => {
                self.offset = Some(number);
                Ok(false)
            }
            (Some(left), Some(offset)) => {
                self.map.push(offset, number)?;
                self.left = Some(left - 1);
                Ok(left == 1)
            }
        }
    }

    pub(super) fn finish(self) -> Map {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_in_order_within_the_file_and_adds_up() {
        let map = |pairs: &[(u64, u64)]| {
            let mut map = Map::default();
            for &(offset, len) in pairs {
                map.push(offset, len)?;
            }
            Ok::<_, Problem>(map)
        };
        let good = map(&[(0, 512), (512, 512), (4096, 100), (9000, 0)]).unwrap();
        assert_eq!(
            good.clone().finish(9000, 1124, 2048).unwrap(),
            [
                Segment {
                    offset: 0,
                    len: 1024,
                    tar_offset: 2048
                },
                Segment {
                    offset: 4096,
                    len: 100,
                    tar_offset: 3072
                },
            ]
        );
        assert!(good.clone().finish(8999, 1124, 0).is_err());
        assert!(good.clone().finish(9000, 1123, 0).is_err());
        assert!(good.clone().finish(u64::MAX, 1124, 0).is_err());
        assert!(good.finish(9000, 1124, u64::MAX - 1100).is_err());
        assert!(map(&[(512, 512), (0, 512)]).is_err());
        assert!(map(&[(0, 512), (511, 1)]).is_err());
        assert!(map(&[(u64::MAX, 1)]).is_err());
        assert!(map(&[(1 << 50, 1)]).is_err());
    }

    #[test]
    fn the_map_before_the_data() {
        let read = |text: &str| {
            let mut map = BodyMap::default();
            map.block(text.as_bytes())
                .map(|done| (done, map.finish().segments))
        };
        assert_eq!(read("0\n\0\0").unwrap(), (true, vec![]));
        assert_eq!(
            read("2\n0\n5\n512\n7\n\0").unwrap(),
            (true, vec![(0, 5), (512, 7)])
        );
        assert!(!read("2\n0\n5\n512\n").unwrap().0);
        for bad in [
            "\n",
            "x",
            "-1\n",
            "1\n\n",
            "99999999999999999999\n",
            "1\n5\n99999999999999\n",
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
