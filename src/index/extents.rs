//! Where a file's bytes are in the blobs: in the tar itself, or copied to the side blob.
//!
//! EROFS maps files in chunks that begin at block boundaries in file and blob
//! (docs/FORMAT.md). A sparse file whose segments do not, or that would need more chunks than its
//! data is worth, is copied whole, holes as holes, into the side blob (blob 1).

use super::tree::Extent;
use crate::inode::Runs;
use crate::tar::{BLOCK, Segment};

/// The blob that is the tar.
const TAR_BLOB: u16 = 0;
/// The side blob.
const SIDE_BLOB: u16 = 1;
/// Files begin at page boundaries in the side blob, so that they can be mapped.
const SIDE_ALIGN: u64 = 4096;
/// The side blob's largest length (EROFS addresses 2^32 blocks of 512 bytes).
const SIDE_MAX: u64 = 1 << 40;
/// A map of this many chunks (8 bytes each) is cheap whatever the file holds.
const CHUNKS_FREE: u64 = 8192;
/// Beyond that, the map may take this part of the data's length.
const MAP_SHARE: u64 = 64;
/// Bytes a chunk takes in the map.
const CHUNK_ENTRY: u64 = 8;

/// Bytes to copy from the tar to the side blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SideCopy {
    /// Offset in the tar.
    pub tar_offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset in the side blob.
    pub side_offset: u64,
}

/// The side blob's layout. What no copy covers is a hole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SidePlan {
    /// Length in bytes; 0 = no side blob is needed.
    pub len: u64,
    /// What to copy.
    pub copies: Vec<SideCopy>,
}

/// The extents of a file of `size` bytes with `segments` in the tar, where they can stay there.
pub(super) fn in_tar(size: u64, segments: &[Segment]) -> Option<Runs<Extent>> {
    fits(size, segments).then(|| {
        segments
            .iter()
            .map(|s| Extent {
                offset: s.offset,
                len: s.len,
                blob: TAR_BLOB,
                blob_offset: s.tar_offset,
            })
            .collect()
    })
}

/// The extents of a file whose `segments` cannot stay in the tar: it is added to `side`.
pub(super) fn aside(
    size: u64,
    segments: &[Segment],
    side: &mut SidePlan,
) -> Result<Runs<Extent>, &'static str> {
    let start = side.len;
    let end = start
        .checked_add(size)
        .and_then(|end| end.checked_next_multiple_of(SIDE_ALIGN))
        .filter(|&end| end <= SIDE_MAX)
        .ok_or("its sparse map does not fit an index, and it is too large to copy (1 TiB)")?;
    for segment in segments {
        // Within `size`, as the reader has checked.
        let side_offset = start.saturating_add(segment.offset);
        side.copies.push(SideCopy {
            tar_offset: segment.tar_offset,
            len: segment.len,
            side_offset,
        });
    }
    side.len = end;
    Ok(Runs::One(Extent {
        offset: 0,
        len: size,
        blob: SIDE_BLOB,
        blob_offset: start,
    }))
}

/// Whether chunks can map the segments where they are, at a fair price.
fn fits(size: u64, segments: &[Segment]) -> bool {
    let (mut boundaries, mut data) = (0, 0_u64);
    for segment in segments {
        if !segment.tar_offset.is_multiple_of(BLOCK) {
            return false;
        }
        let end = segment.offset.saturating_add(segment.len);
        boundaries |= segment.offset;
        // A chunk that ends behind the end of the file is cut there.
        boundaries |= if end == size { 0 } else { end };
        data = data.saturating_add(segment.len);
    }
    // A chunk must not cross a boundary: the largest power of two that divides them all.
    let chunk = if boundaries == 0 {
        1 << 40
    } else {
        1_u64 << boundaries.trailing_zeros().min(40)
    };
    let chunks = size.div_ceil(chunk);
    chunk >= BLOCK
        && (chunks <= CHUNKS_FREE || chunks.saturating_mul(CHUNK_ENTRY) <= data / MAP_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lay_out(
        size: u64,
        segments: &[Segment],
        side: &mut SidePlan,
    ) -> Result<Runs<Extent>, &'static str> {
        in_tar(size, segments).map_or_else(|| aside(size, segments, side), Ok)
    }

    fn seg(offset: u64, len: u64, tar_offset: u64) -> Segment {
        Segment {
            offset,
            len,
            tar_offset,
        }
    }

    fn lay(size: u64, segments: &[Segment]) -> (Runs<Extent>, SidePlan) {
        let mut side = SidePlan {
            len: 4096,
            copies: vec![],
        };
        (lay_out(size, segments, &mut side).unwrap(), side)
    }

    #[test]
    fn aligned_segments_stay_in_the_tar() {
        for (size, segments) in [
            (0, vec![]),
            (1 << 44, vec![]),
            (100, vec![seg(0, 100, 512)]),
            (1 << 39, vec![seg(0, 1 << 39, 512)]),
            (9000, vec![seg(4096, 4904, 512)]),
            (9000, vec![seg(0, 512, 512), seg(4096, 512, 1024)]),
        ] {
            let (extents, side) = lay(size, &segments);
            assert_eq!(extents.len(), segments.len());
            assert!(extents.iter().all(|e| e.blob == TAR_BLOB) && side.copies.is_empty());
        }
    }

    #[test]
    fn what_chunks_cannot_map_goes_to_the_side_blob() {
        for (size, segments) in [
            (9000, vec![seg(100, 412, 512)]),
            (9000, vec![seg(0, 100, 512)]),
            (9000, vec![seg(0, 512, 700)]),
            (1 << 30, vec![seg(0, 512, 512), seg(1 << 29, 512, 1024)]),
        ] {
            let (extents, side) = lay(size, &segments);
            assert_eq!(
                extents[..],
                [Extent {
                    offset: 0,
                    len: size,
                    blob: 1,
                    blob_offset: 4096
                }]
            );
            assert_eq!(side.copies.len(), segments.len());
            assert_eq!(side.copies[0].side_offset, 4096 + segments[0].offset);
            assert!(side.len >= 4096 + size && side.len.is_multiple_of(4096));
        }
    }

    #[test]
    fn a_hostile_size_is_an_error() {
        let mut side = SidePlan::default();
        assert!(lay_out(1 << 43, &[seg(1, 1, 512)], &mut side).is_err());
        assert!(lay_out(u64::MAX, &[seg(1, 1, 512)], &mut side).is_err());
        assert_eq!(side, SidePlan::default());
    }

    #[test]
    fn much_data_may_have_a_large_map() {
        let segments: Vec<Segment> = (0..20_000)
            .map(|i| seg(i * 8192, 4096, 512 + i * 4096))
            .collect();
        let (extents, _) = lay(20_000 * 8192, &segments);
        assert_eq!(extents.len(), 20_000);
    }
}
