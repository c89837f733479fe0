//! A file's extents as EROFS chunks.
//!
//! A file in one piece is one chunk. A file with holes is cut into the largest chunks, a power of
//! two of bytes, on whose boundaries all its pieces begin and end.

use crate::erofs::layout::{BLOCK, BLOCK_BITS, CHUNK_MAX_BITS, Chunk};
use crate::index::tree::Extent;

/// Most chunks that one file may have: half a MiB of index. A file that needs more is cheaper as
/// a real sparse file in a side blob.
pub const MAX_CHUNKS: u64 = 65_536;

/// How a file is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlan {
    /// log2 of the chunk length in bytes.
    pub bits: u8,
    /// Number of chunks; 0 for an empty file.
    pub count: u64,
}

/// Why extents cannot be chunks of their blob. The file's bytes must then go to a side blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// An extent begins, or ends before the file does, off a 512-byte boundary, in the file or
    /// in the blob.
    #[error("an extent does not lie on 512-byte boundaries")]
    Unaligned,
    /// More than [`MAX_CHUNKS`].
    #[error("its map of holes needs more than 65,536 chunks")]
    TooManyChunks,
    /// The extents are unsorted, overlapping, empty or outside the file.
    #[error("its extents contradict each other or the file's size")]
    Contradiction,
    /// An extent ends beyond what a block address can name.
    #[error("its data lies beyond the first 2 TiB of its blob")]
    BlobTooLong,
}

/// How a file of `size` bytes with these `extents` is cut into chunks.
///
/// # Errors
/// [`Unfit`] where it cannot be.
pub fn plan(size: u64, extents: &[Extent]) -> Result<ChunkPlan, Unfit> {
    // inode.i_size is a loff_t.
    if i64::try_from(size).is_err() {
        return Err(Unfit::Contradiction);
    }
    // Every place where one piece (data or hole) ends and another begins, OR-ed: its trailing
    // zeros are the largest power of two that divides them all.
    let mut boundaries = 0;
    let mut before: Option<&Extent> = None;
    for extent in extents {
        let end = extent
            .offset
            .checked_add(extent.len)
            .ok_or(Unfit::Contradiction)?;
        let from = before.map_or(0, |b| b.offset + b.len);
        if extent.len == 0 || extent.offset < from || end > size {
            return Err(Unfit::Contradiction);
        }
        if !extent.offset.is_multiple_of(BLOCK)
            || !extent.blob_offset.is_multiple_of(BLOCK)
            || (!end.is_multiple_of(BLOCK) && end != size)
        {
            return Err(Unfit::Unaligned);
        }
        let blob_end = extent
            .blob_offset
            .checked_add(extent.len)
            .ok_or(Unfit::BlobTooLong)?;
        if u32::try_from(blob_end.div_ceil(BLOCK)).is_err() {
            return Err(Unfit::BlobTooLong);
        }
        if !before.is_some_and(|b| continues(b, extent)) {
            boundaries |= from | extent.offset;
        }
        before = Some(extent);
    }
    let end = before.map_or(0, |b| b.offset + b.len);
    if end != size {
        boundaries |= end;
    }
    if size == 0 {
        return Ok(ChunkPlan {
            bits: BLOCK_BITS,
            count: 0,
        });
    }
    let whole = u64::BITS - (size - 1).leading_zeros();
    let bits = boundaries
        .trailing_zeros()
        .min(whole)
        .min(CHUNK_MAX_BITS.into());
    let bits = u8::try_from(bits).unwrap_or(CHUNK_MAX_BITS).max(BLOCK_BITS);
    let count = size.div_ceil(1 << bits);
    if count > MAX_CHUNKS {
        return Err(Unfit::TooManyChunks);
    }
    Ok(ChunkPlan { bits, count })
}

/// Whether `next` goes on where `before` ends, in the file and in the blob.
fn continues(before: &Extent, next: &Extent) -> bool {
    before.blob == next.blob
        && before.offset + before.len == next.offset
        && before.blob_offset + before.len == next.blob_offset
}

/// Appends the chunk indexes of a file that was planned as `shape`. `None`: it was not.
pub(super) fn put(shape: ChunkPlan, extents: &[Extent], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = extents.iter().peekable();
    for n in 0..shape.count {
        let at = n << shape.bits;
        while rest.peek().is_some_and(|e| e.offset + e.len <= at) {
            rest.next();
        }
        let chunk = match rest.peek() {
            Some(e) if e.offset <= at => Chunk::Data {
                blob: e.blob,
                block: u32::try_from((e.blob_offset + (at - e.offset)) / BLOCK).ok()?,
            },
            _ => Chunk::Hole,
        };
        out.extend_from_slice(&chunk.encode()?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, len: u64, blob_offset: u64) -> Extent {
        Extent {
            offset,
            len,
            blob: 0,
            blob_offset,
        }
    }

    fn chunks(size: u64, extents: &[Extent]) -> (u8, Vec<Chunk>) {
        let shape = plan(size, extents).unwrap();
        let mut out = Vec::new();
        put(shape, extents, &mut out).unwrap();
        (
            shape.bits,
            out.chunks(8).map(|b| Chunk::decode(b).unwrap()).collect(),
        )
    }

    fn at(block: u32) -> Chunk {
        Chunk::Data { blob: 0, block }
    }

    #[test]
    fn one_piece_is_one_chunk() {
        assert_eq!(chunks(0, &[]), (9, vec![]));
        assert_eq!(chunks(1, &[extent(0, 1, 1024)]), (9, vec![at(2)]));
        assert_eq!(chunks(512, &[extent(0, 512, 0)]), (9, vec![at(0)]));
        assert_eq!(chunks(513, &[extent(0, 513, 512)]), (10, vec![at(1)]));
        let pieces = [
            extent(0, 512, 512),
            extent(512, 1024, 1024),
            extent(1536, 3, 2048),
        ];
        assert_eq!(chunks(1539, &pieces), (11, vec![at(1)]));
    }

    #[test]
    fn holes_cut_at_the_largest_power() {
        use Chunk::Hole;
        assert_eq!(chunks(5, &[]), (9, vec![Hole]));
        assert_eq!(chunks(1 << 41, &[]), (40, vec![Hole, Hole]));
        assert_eq!(
            chunks(8192, &[extent(4096, 4096, 512)]),
            (12, vec![Hole, at(1)])
        );
        assert_eq!(
            chunks(8193, &[extent(0, 4096, 512)]),
            (12, vec![at(1), Hole, Hole])
        );
        let both = [extent(0, 1024, 0), extent(2048, 1000, 1024)];
        assert_eq!(chunks(3048, &both), (10, vec![at(0), Hole, at(2)]));
        // Adjacent in the file, apart in the blob.
        let apart = [extent(0, 1024, 4096), extent(1024, 512, 0)];
        assert_eq!(chunks(1536, &apart), (10, vec![at(8), at(0)]));
    }

    #[test]
    fn refuses_what_is_no_chunk() {
        use Unfit::{BlobTooLong, Contradiction, TooManyChunks, Unaligned};
        for (size, extents, why) in [
            (1024, vec![extent(1, 511, 0)], Unaligned),
            (1024, vec![extent(0, 512, 7)], Unaligned),
            (1024, vec![extent(0, 700, 0)], Unaligned),
            (512, vec![extent(0, 513, 0)], Contradiction),
            (512, vec![extent(0, 0, 0)], Contradiction),
            (0, vec![extent(0, 1, 0)], Contradiction),
            (
                2048,
                vec![extent(512, 512, 0), extent(0, 512, 0)],
                Contradiction,
            ),
            (
                2048,
                vec![extent(0, 1024, 0), extent(512, 512, 0)],
                Contradiction,
            ),
            (u64::MAX, vec![], Contradiction),
            (
                u64::MAX / 2,
                vec![extent(u64::MAX - 5, 10, 0)],
                Contradiction,
            ),
            (1 << 40, vec![extent(512, 512, 0)], TooManyChunks),
            (512, vec![extent(0, 512, u64::MAX - 511)], BlobTooLong),
            (512, vec![extent(0, 512, (1 << 41) - 512)], BlobTooLong),
        ] {
            assert_eq!(plan(size, &extents), Err(why), "{size} {extents:?}");
        }
        assert!(plan(512, &[extent(0, 512, (1 << 41) - 1024)]).is_ok());
        assert_eq!(
            plan(MAX_CHUNKS * 512, &[extent(512, 512, 0)])
                .unwrap()
                .count,
            MAX_CHUNKS
        );
    }
}
