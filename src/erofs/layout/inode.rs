//! Inodes and the chunk indexes of regular files.

use super::bytes::{get_i64, get_u16, get_u32, get_u64, put, put_u16, put_u32, put_u64};
use super::{BLOCK_BITS, Bad};
use crate::inode::Time;

/// Length of a compact inode.
pub const INODE_COMPACT_LEN: usize = 32;
/// Length of an extended inode.
pub const INODE_EXTENDED_LEN: usize = 64;
/// `i_format` bit 0: the inode is extended.
pub const FORMAT_EXTENDED: u16 = 0x0001;
/// Where the data layout stands in `i_format` (bits 1 to 3).
pub const FORMAT_LAYOUT_SHIFT: u16 = 1;
/// Mask of the data layout after the shift.
pub const FORMAT_LAYOUT_MASK: u16 = 0x0007;
/// Every bit of `i_format` that may be set.
pub const FORMAT_ALL: u16 = 0x000f;

/// Offsets in a compact inode.
pub mod compact {
    /// u16 `FORMAT_*`.
    pub const FORMAT: usize = 0;
    /// u16, see [`xattr_body_len`](super::super::entries::xattr_body_len).
    pub const XATTR_ICOUNT: usize = 2;
    /// u16 `st_mode`.
    pub const MODE: usize = 4;
    /// u16 `st_nlink`.
    pub const NLINK: usize = 6;
    /// u32 size.
    pub const SIZE: usize = 8;
    /// u32 0 (seconds after the superblock's time on Linux 6.15 and later).
    pub const MTIME: usize = 12;
    /// u32 union, see [`super::RawInode::u`].
    pub const U: usize = 16;
    /// u32 the nid's lower bits.
    pub const INO: usize = 20;
    /// u16 owner.
    pub const UID: usize = 24;
    /// u16 group. From 28 to 32: 0.
    pub const GID: usize = 26;
}

/// Offsets in an extended inode.
pub mod extended {
    /// u16 `FORMAT_*`.
    pub const FORMAT: usize = 0;
    /// u16, see [`xattr_body_len`](super::super::entries::xattr_body_len).
    pub const XATTR_ICOUNT: usize = 2;
    /// u16 `st_mode`. From 6 to 8: 0.
    pub const MODE: usize = 4;
    /// u64 size.
    pub const SIZE: usize = 8;
    /// u32 union, see [`super::RawInode::u`].
    pub const U: usize = 16;
    /// u32 the nid's lower bits.
    pub const INO: usize = 20;
    /// u32 owner.
    pub const UID: usize = 24;
    /// u32 group.
    pub const GID: usize = 28;
    /// i64 seconds of the modification time.
    pub const MTIME: usize = 32;
    /// u32 nanoseconds of it.
    pub const MTIME_NSEC: usize = 40;
    /// u32 `st_nlink`. From 48 to 64: 0.
    pub const NLINK: usize = 44;
}

/// How an inode's data is stored (`EROFS_INODE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataLayout {
    /// 0: all of it in consecutive blocks of the image, from block `u` on.
    Plain,
    /// 2: whole blocks as `Plain`, the last partial block behind inode and xattrs.
    Inline,
    /// 4: chunk indexes behind inode and xattrs; `u` is the chunk format.
    Chunk,
}

impl DataLayout {
    /// The number in `i_format`.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::Inline => 2,
            Self::Chunk => 4,
        }
    }

    /// The layout of that number, if tarnfs uses it (1 and 3 are compressed layouts).
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            0 => Self::Plain,
            2 => Self::Inline,
            4 => Self::Chunk,
            _ => return None,
        })
    }
}

/// An on-disk inode of either length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawInode {
    /// How the data is stored.
    pub layout: DataLayout,
    /// Size of the inline xattrs; see [`xattr_body_len`](super::entries::xattr_body_len).
    pub xattr_icount: u16,
    /// `st_mode`.
    pub mode: u16,
    /// `st_nlink`.
    pub nlink: u32,
    /// `st_size`.
    pub size: u64,
    /// By type and layout: first block of `Plain` and `Inline` data, the chunk format (lower 16
    /// bits) of `Chunk`, the device number as [`encode_dev`] has it of a device node, else 0.
    pub u: u32,
    /// The nid's lower 32 bits (only for tools; nothing depends on it).
    pub ino: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time; `None` makes the inode compact: it has the superblock's time.
    pub mtime: Option<Time>,
}

impl RawInode {
    /// Length on disk.
    #[must_use]
    pub fn len(&self) -> usize {
        if self.mtime.is_some() {
            INODE_EXTENDED_LEN
        } else {
            INODE_COMPACT_LEN
        }
    }

    /// An inode is never empty; stands beside [`Self::len`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The inode's bytes, the first [`Self::len`] of the array; `None` where it is compact and a
    /// number does not fit that form.
    #[must_use]
    pub fn encode(&self) -> Option<[u8; INODE_EXTENDED_LEN]> {
        let mut b = [0; INODE_EXTENDED_LEN];
        let format = self.layout.code() << FORMAT_LAYOUT_SHIFT;
        put_u16(&mut b, compact::XATTR_ICOUNT, self.xattr_icount);
        put_u16(&mut b, compact::MODE, self.mode);
        put_u32(&mut b, compact::U, self.u);
        put_u32(&mut b, compact::INO, self.ino);
        match self.mtime {
            None => {
                put_u16(&mut b, compact::FORMAT, format);
                put_u16(&mut b, compact::NLINK, u16::try_from(self.nlink).ok()?);
                put_u32(&mut b, compact::SIZE, u32::try_from(self.size).ok()?);
                put_u16(&mut b, compact::UID, u16::try_from(self.uid).ok()?);
                put_u16(&mut b, compact::GID, u16::try_from(self.gid).ok()?);
            }
            Some(mtime) => {
                put_u16(&mut b, extended::FORMAT, format | FORMAT_EXTENDED);
                put_u64(&mut b, extended::SIZE, self.size);
                put_u32(&mut b, extended::UID, self.uid);
                put_u32(&mut b, extended::GID, self.gid);
                put(&mut b, extended::MTIME, &mtime.sec.to_le_bytes());
                put_u32(&mut b, extended::MTIME_NSEC, mtime.nsec);
                put_u32(&mut b, extended::NLINK, self.nlink);
            }
        }
        Some(b)
    }

    /// Decodes the inode at the start of `b`.
    ///
    /// # Errors
    /// [`Bad`] where it is short, or of a form that an index does not have.
    pub fn decode(b: &[u8]) -> Result<Self, Bad> {
        const SHORT: Bad = Bad("inode: too short");
        let format = get_u16(b, compact::FORMAT).ok_or(SHORT)?;
        if format & !FORMAT_ALL != 0 {
            return Err(Bad("inode: unknown format bits"));
        }
        let layout = DataLayout::from_code((format >> FORMAT_LAYOUT_SHIFT) & FORMAT_LAYOUT_MASK)
            .ok_or(Bad(
                "inode: a data layout that a tarnfs index does not have",
            ))?;
        let common = Self {
            layout,
            xattr_icount: get_u16(b, compact::XATTR_ICOUNT).ok_or(SHORT)?,
            mode: get_u16(b, compact::MODE).ok_or(SHORT)?,
            nlink: 0,
            size: 0,
            u: get_u32(b, compact::U).ok_or(SHORT)?,
            ino: get_u32(b, compact::INO).ok_or(SHORT)?,
            uid: 0,
            gid: 0,
            mtime: None,
        };
        if format & FORMAT_EXTENDED == 0 {
            if get_u32(b, compact::MTIME).ok_or(SHORT)? != 0 {
                return Err(Bad("inode: compact, with a time of its own"));
            }
            // The four reserved bytes up to 32 must exist, whatever they hold.
            get_u32(b, INODE_COMPACT_LEN - 4).ok_or(SHORT)?;
            return Ok(Self {
                nlink: get_u16(b, compact::NLINK).ok_or(SHORT)?.into(),
                size: get_u32(b, compact::SIZE).ok_or(SHORT)?.into(),
                uid: get_u16(b, compact::UID).ok_or(SHORT)?.into(),
                gid: get_u16(b, compact::GID).ok_or(SHORT)?.into(),
                ..common
            });
        }
        get_u32(b, INODE_EXTENDED_LEN - 4).ok_or(SHORT)?;
        let mtime = Time {
            sec: get_i64(b, extended::MTIME).ok_or(SHORT)?,
            nsec: get_u32(b, extended::MTIME_NSEC).ok_or(SHORT)?,
        };
        if mtime.nsec >= 1_000_000_000 {
            return Err(Bad("inode: nanoseconds out of range"));
        }
        Ok(Self {
            nlink: get_u32(b, extended::NLINK).ok_or(SHORT)?,
            size: get_u64(b, extended::SIZE).ok_or(SHORT)?,
            uid: get_u32(b, extended::UID).ok_or(SHORT)?,
            gid: get_u32(b, extended::GID).ok_or(SHORT)?,
            mtime: Some(mtime),
            ..common
        })
    }
}

/// A device number as the kernel packs it in 32 bits (include/linux/kdev_t.h:new_encode_dev);
/// `None` where major (12 bits) or minor (20 bits) do not fit.
#[must_use]
pub fn encode_dev(major: u32, minor: u32) -> Option<u32> {
    if major > 0xfff || minor > 0xf_ffff {
        return None;
    }
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// (major, minor) of a packed device number (include/linux/kdev_t.h:new_decode_dev).
#[must_use]
pub fn decode_dev(dev: u32) -> (u32, u32) {
    (
        (dev & 0xf_ff00) >> 8,
        (dev & 0xff) | ((dev >> 12) & 0xf_ff00),
    )
}

/// Length of a chunk index. The array starts behind inode and xattrs at the next multiple of 8
/// (fs/erofs/data.c:erofs_map_blocks).
pub const CHUNK_INDEX_LEN: usize = 8;
/// Chunk format: log2 of blocks per chunk, bits 0 to 4.
pub const CHUNK_BLKBITS_MASK: u16 = 0x001f;
/// Chunk format: 8-byte chunk indexes follow (always set in an index).
pub const CHUNK_INDEXES: u16 = 0x0020;
/// Every bit of the chunk format that may be set.
pub const CHUNK_ALL: u16 = CHUNK_BLKBITS_MASK | CHUNK_INDEXES;
/// The largest chunk, log2 of its bytes: 1 TiB.
pub const CHUNK_MAX_BITS: u8 = BLOCK_BITS + 31;
/// Block address of a hole (`EROFS_NULL_ADDR`).
pub const NULL_ADDR: u32 = u32::MAX;

/// Offsets in a chunk index.
pub mod chunk {
    /// u16 0.
    pub const ADVISE: usize = 0;
    /// u16 blob number + 1; 0 in a hole.
    pub const DEVICE_ID: usize = 2;
    /// u32 first block in the blob, or [`super::NULL_ADDR`].
    pub const BLKADDR: usize = 4;
}

/// The chunk format word for chunks of `1 << chunk_bits` bytes.
#[must_use]
pub fn chunk_format(chunk_bits: u8) -> Option<u16> {
    let bits = chunk_bits.checked_sub(BLOCK_BITS)?;
    (chunk_bits <= CHUNK_MAX_BITS).then_some(CHUNK_INDEXES | u16::from(bits))
}

/// log2 of the chunk length in bytes, from [`RawInode::u`] of a chunked file.
///
/// # Errors
/// [`Bad`] where the format is not one of an index.
pub fn chunk_bits(u: u32) -> Result<u8, Bad> {
    let bad = Bad("inode: unknown chunk format");
    let format = u16::try_from(u).map_err(|_| bad)?;
    if format & !CHUNK_ALL != 0 || format & CHUNK_INDEXES == 0 {
        return Err(bad);
    }
    u8::try_from(format & CHUNK_BLKBITS_MASK)
        .map(|b| b + BLOCK_BITS)
        .map_err(|_| bad)
}

/// Where one chunk of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// Nowhere: it reads as zeros.
    Hole,
    /// In a blob.
    Data {
        /// Which (0 = the first; the device id is one more).
        blob: u16,
        /// First block in the blob.
        block: u32,
    },
}

impl Chunk {
    /// The chunk index's bytes. A hole is address -1 of device 0. `None`: the device id or the
    /// address is beyond the format.
    #[must_use]
    pub fn encode(self) -> Option<[u8; CHUNK_INDEX_LEN]> {
        let mut b = [0; CHUNK_INDEX_LEN];
        match self {
            Self::Hole => put_u32(&mut b, chunk::BLKADDR, NULL_ADDR),
            Self::Data {
                block: NULL_ADDR, ..
            } => return None,
            Self::Data { blob, block } => {
                put_u16(&mut b, chunk::DEVICE_ID, blob.checked_add(1)?);
                put_u32(&mut b, chunk::BLKADDR, block);
            }
        }
        Some(b)
    }

    /// Decodes the chunk index at the start of `b`.
    ///
    /// # Errors
    /// [`Bad`] where it is short, or names the index itself (device 0) as the data's place.
    pub fn decode(b: &[u8]) -> Result<Self, Bad> {
        const SHORT: Bad = Bad("chunk index: too short");
        let device = get_u16(b, chunk::DEVICE_ID).ok_or(SHORT)?;
        let block = get_u32(b, chunk::BLKADDR).ok_or(SHORT)?;
        if block == NULL_ADDR {
            return Ok(Self::Hole);
        }
        match device.checked_sub(1) {
            Some(blob) => Ok(Self::Data { blob, block }),
            None => Err(Bad("chunk index: data in the index itself")),
        }
    }
}
