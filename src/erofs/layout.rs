//! The bytes of an index: EROFS' on-disk format (fs/erofs/erofs_fs.h of Linux) as far as tarnfs
//! uses it, and the trailer that tarnfs puts behind the image. docs/FORMAT.md mirrors this file.
//!
//! Invariants: every number is little-endian; every structure is encoded and decoded field by
//! field at the offsets named here; a decoder looks at nothing outside the bytes it was given.
//! Never here: a policy (what is inlined, which chunk size): that is [`super::writer`]'s.

mod bytes;
mod entries;
mod inode;
mod superblock;
mod trailer;

pub(super) use self::bytes::put;
pub use self::bytes::{get_array, get_i64, get_u8, get_u16, get_u32, get_u64};
pub use self::entries::*;
pub use self::inode::*;
pub use self::superblock::*;
pub use self::trailer::*;

/// Bytes that are not what the format says; the text names the structure and the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Bad(pub &'static str);

/// log2 of the block size. Tar data is aligned to 512 bytes, so a block address can name it.
pub const BLOCK_BITS: u8 = 9;
/// The block size in bytes.
pub const BLOCK: u64 = 1 << BLOCK_BITS;
/// The same, as a length in memory.
pub const BLOCK_LEN: usize = 1 << BLOCK_BITS;
/// log2 of an inode slot.
pub const SLOT_BITS: u8 = 5;
/// An inode slot in bytes: inodes start at multiples of it.
pub const SLOT: u64 = 1 << SLOT_BITS;
/// The same, as a length in memory.
pub const SLOT_LEN: usize = 1 << SLOT_BITS;
/// Offset of the superblock (`EROFS_SUPER_OFFSET`).
pub const SUPER_OFFSET: u64 = 1024;
/// The lowest nid an inode may have: FUSE keeps 0 for "none" and 1 for the root.
pub const MIN_NID: u64 = 2;
/// Longest name of a directory entry (`EROFS_NAME_LEN`).
pub const NAME_LEN: usize = 255;

/// The byte at which inode `nid` starts (`erofs_iloc` of fs/erofs/internal.h with
/// `meta_blkaddr` 0); `None` beyond what fits in 64 bits.
#[must_use]
pub fn nid_to_offset(nid: u64) -> Option<u64> {
    nid.checked_mul(SLOT)
}

/// The nid of the inode that starts at byte `offset`, if an inode can start there.
#[must_use]
pub fn offset_to_nid(offset: u64) -> Option<u64> {
    offset.is_multiple_of(SLOT).then_some(offset >> SLOT_BITS)
}

/// `value` rounded up to a multiple of `to` (> 0), if that fits.
#[must_use]
pub fn align_up(value: u64, to: u64) -> Option<u64> {
    value.checked_next_multiple_of(to)
}

#[cfg(test)]
mod tests;
