//! Reads an EROFS image that is mapped into memory.
//!
//! What is read: block sizes 512 to 4096; inodes compact and extended; layouts `FLAT_PLAIN`,
//! `FLAT_INLINE` and `CHUNK_BASED` (with or without chunk indexes and a device table); inline and
//! shared extended attributes; the trailer of docs/FORMAT.md where there is one. What is not read
//! (compression, 48-bit addresses, long attribute prefixes, a metadata box) is refused by name.
//!
//! Invariants: every byte is hostile. A position is checked against the length of the map before
//! a byte there is touched, arithmetic on decoded numbers is checked, and no decoded number alone
//! sets the length of a loop or of an allocation: each is bounded by bytes that are really there.
//! Nothing here follows a directory tree, and nothing here opens a file.

mod dir;
mod inode;
mod trailer;
mod xattr;

#[cfg(test)]
mod tests;

pub use dir::{DirEntry, DirPosition};
pub use inode::{Inode, Layout, Place, Run};
pub use trailer::Reverse;

use std::io;
use std::ops::Deref;

use crate::sys::map::Map;

use super::layout as l;

/// Why an image could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The image contradicts itself.
    #[error("{what} (at byte {offset})")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// The image may be sound, but uses what this reader does not read.
    #[error("the image uses {0}, which tarnfs does not read")]
    Unsupported(&'static str),
    /// The inode is not a directory, or not what else the call needs.
    #[error("inode {0} is not of the type that the operation needs")]
    WrongKind(u64),
}

pub(crate) type Result<T> = std::result::Result<T, ReadError>;

pub(crate) fn damaged<T>(what: &'static str, offset: u64) -> Result<T> {
    Err(ReadError::Damaged { what, offset })
}

/// Where the image's bytes are.
#[derive(Debug)]
pub enum Bytes {
    /// A mapped file.
    Mapped(Map),
    /// Plain memory.
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(vec) => vec,
        }
    }
}

/// An external device (a blob) that chunks can lie in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The slot's tag without trailing NULs.
    pub tag: Vec<u8>,
    /// Length in blocks of the image's block size.
    pub blocks: u64,
    /// Where the device begins in the unified address space, in blocks; 0 = it has no place there.
    pub mapped: u64,
}

/// What the superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Super {
    /// log2 of the block size, 9 to 12.
    pub block_bits: u8,
    /// nid of the root directory.
    pub root: u64,
    /// Number of inodes, as noted.
    pub inodes: u64,
    /// Length of the image in blocks, as noted.
    pub blocks: u32,
    /// Seconds that the times of compact inodes count from.
    pub epoch: i64,
    /// Nanoseconds of compact inodes' times.
    pub epoch_nsec: u32,
    /// Byte position of nid 0.
    pub meta: u64,
    /// Byte position of shared attribute 0.
    pub shared_xattrs: u64,
    /// Volume identity.
    pub uuid: [u8; 16],
    /// The external devices: device id k is `devices[k - 1]`.
    pub devices: Vec<Device>,
}

/// An EROFS image in memory.
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
    sb: Super,
}

impl Reader {
    /// Reads the superblock and the device table.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] or [`ReadError::Unsupported`].
    pub fn new(bytes: Bytes) -> Result<Self> {
        let sb = superblock(&bytes)?;
        Ok(Self { bytes, sb })
    }

    /// The superblock.
    #[must_use]
    pub fn superblock(&self) -> &Super {
        &self.sb
    }

    /// The bytes of the whole file: image and trailer.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the pages that were looked at out of this process ([`Map::let_go`]).
    ///
    /// # Errors
    /// The system's.
    pub fn let_go(&self) -> io::Result<()> {
        match &self.bytes {
            Bytes::Mapped(map) => map.let_go(),
            Bytes::Owned(_) => Ok(()),
        }
    }

    /// The length of the whole file.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Never true: an image has a superblock.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn block_size(&self) -> u64 {
        1 << self.sb.block_bits
    }

    pub(crate) fn slice(&self, pos: u64, len: u64, what: &'static str) -> Result<&[u8]> {
        slice(&self.bytes, pos, len, what)
    }
}

pub(crate) fn slice<'a>(
    bytes: &'a [u8],
    pos: u64,
    len: u64,
    what: &'static str,
) -> Result<&'a [u8]> {
    let range = usize::try_from(pos).ok().zip(
        pos.checked_add(len)
            .and_then(|end| usize::try_from(end).ok()),
    );
    range
        .and_then(|(start, end)| bytes.get(start..end))
        .ok_or(ReadError::Damaged { what, offset: pos })
}

/// The longest file Linux can hold (`MAX_LFS_FILESIZE`).
const SIZE_MAX: u64 = i64::MAX as u64;

/// `feature_incompat` bits that change nothing for uncompressed data
/// (`EROFS_FEATURE_INCOMPAT_ZERO_PADDING`: how compressed blocks are padded).
const INCOMPAT_HARMLESS: u32 = 0x1;

/// The other `feature_incompat` bits, by name (fs/erofs/erofs_fs.h).
const INCOMPAT_REFUSED: [(u32, &str); 7] = [
    (0x2, "compressed files (big physical clusters)"),
    (0x10, "compressed files (inlined tails)"),
    (0x20, "compressed files (fragments)"),
    (0x40, "long extended attribute prefixes"),
    (0x80, "48-bit block addresses"),
    (0x100, "a metadata box"),
    (!0, "a feature newer than this reader"),
];

fn superblock(bytes: &[u8]) -> Result<Super> {
    let at = |field: usize| l::SUPER_OFFSET + field as u64;
    let short = "the file is too short for an EROFS superblock";
    let raw = slice(bytes, l::SUPER_OFFSET, l::SUPER_LEN as u64, short)?;
    let end = ReadError::Damaged {
        what: short,
        offset: l::SUPER_OFFSET,
    };
    let u16_at = |field: usize| l::get_u16(raw, field).ok_or(end);
    let u32_at = |field: usize| l::get_u32(raw, field).ok_or(end);
    let u64_at = |field: usize| l::get_u64(raw, field).ok_or(end);
    let u8_at = |field: usize| l::get_u8(raw, field).ok_or(end);

    if u32_at(l::sb::MAGIC)? != l::SUPER_MAGIC {
        return damaged(
            "not an EROFS image: the magic number is missing",
            at(l::sb::MAGIC),
        );
    }
    let incompat = u32_at(l::sb::FEATURE_INCOMPAT)?;
    let unknown = incompat & !(l::INCOMPAT_ALL | INCOMPAT_HARMLESS);
    if let Some((_, name)) = INCOMPAT_REFUSED
        .iter()
        .find(|(bits, _)| unknown & bits != 0)
    {
        return Err(ReadError::Unsupported(name));
    }
    let devices = incompat & l::INCOMPAT_DEVICE_TABLE != 0;
    // Without a device table this field lists compression algorithms (lz4's distance).
    let block_bits = u8_at(l::sb::BLKSZBITS)?;
    if !(9..=12).contains(&block_bits) {
        return damaged(
            "the block size is not 512 to 4096 bytes",
            at(l::sb::BLKSZBITS),
        );
    }
    // fs/erofs/super.c:erofs_read_superblock refuses it as well.
    if u8_at(l::sb::DIRBLKBITS)? != 0 {
        return Err(ReadError::Unsupported(
            "directory blocks of a size of their own",
        ));
    }
    let checked = u32_at(l::sb::FEATURE_COMPAT)? & l::COMPAT_SB_CHKSUM != 0;
    if checked && !checksum_matches(bytes, block_bits)? {
        return damaged(
            "the superblock's checksum does not match",
            at(l::sb::CHECKSUM),
        );
    }
    let epoch = u64_at(l::sb::BUILD_TIME)?;
    let epoch_nsec = u32_at(l::sb::BUILD_TIME_NSEC)?;
    if epoch_nsec >= 1_000_000_000 {
        return damaged("nanoseconds out of range", at(l::sb::BUILD_TIME_NSEC));
    }
    let block_start = |field: usize| -> Result<u64> {
        let start = u64::from(u32_at(field)?) << block_bits;
        if start > bytes.len() as u64 {
            return damaged("an area starts behind the end of the file", at(field));
        }
        Ok(start)
    };
    let mut uuid = [0; 16];
    uuid.copy_from_slice(slice(raw, l::sb::UUID as u64, 16, short)?);
    Ok(Super {
        block_bits,
        root: u64::from(u16_at(l::sb::ROOT_NID)?),
        inodes: u64_at(l::sb::INOS)?,
        blocks: u32_at(l::sb::BLOCKS)?,
        epoch: epoch.cast_signed(),
        epoch_nsec,
        meta: block_start(l::sb::META_BLKADDR)?,
        // Unused (and left as it comes by some writers) where no attribute is shared: checked
        // when an attribute is read.
        shared_xattrs: u64::from(u32_at(l::sb::XATTR_BLKADDR)?) << block_bits,
        uuid,
        devices: if devices {
            device_table(
                bytes,
                u16_at(l::sb::EXTRA_DEVICES)?,
                u16_at(l::sb::DEVT_SLOTOFF)?,
            )?
        } else {
            Vec::new()
        },
    })
}

/// fs/erofs/super.c:erofs_superblock_csum_verify: CRC-32C without the final inversion, from the
/// superblock to the end of its block (of one block where blocks are not larger than its offset),
/// with the checksum field taken as 0.
fn checksum_matches(bytes: &[u8], block_bits: u8) -> Result<bool> {
    let block = 1_u64 << block_bits;
    let len = if block > l::SUPER_OFFSET {
        block - l::SUPER_OFFSET
    } else {
        block
    };
    let area = slice(
        bytes,
        l::SUPER_OFFSET,
        len,
        "the file ends inside the superblock's block",
    )?;
    let (head, rest) = area
        .split_at_checked(l::sb::CHECKSUM)
        .unwrap_or((area, &[]));
    let (stored, tail) = rest.split_at_checked(4).unwrap_or((rest, &[]));
    let mut crc = crc32c::crc32c(head);
    crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc = crc32c::crc32c_append(crc, tail);
    Ok(stored == (!crc).to_le_bytes())
}

fn device_table(bytes: &[u8], count: u16, slot: u16) -> Result<Vec<Device>> {
    let slot_len = l::DEVICE_SLOT_LEN as u64;
    let start = u64::from(slot) * slot_len;
    let what = "the device table does not lie in the file";
    let table = slice(bytes, start, u64::from(count) * slot_len, what)?;
    table
        .chunks_exact(l::DEVICE_SLOT_LEN)
        .map(|raw| {
            let slot = l::DeviceSlot::decode(raw).map_err(|bad| ReadError::Damaged {
                what: bad.0,
                offset: start,
            })?;
            let used = slot
                .tag
                .iter()
                .position(|&b| b == 0)
                .unwrap_or(slot.tag.len());
            Ok(Device {
                tag: slot.tag.get(..used).unwrap_or_default().to_vec(),
                blocks: u64::from(slot.blocks),
                mapped: u64::from(slot.mapped_blkaddr),
            })
        })
        .collect()
}
