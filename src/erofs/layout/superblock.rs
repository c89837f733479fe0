//! The superblock and the device table behind it.

use super::bytes::{
    get_array, get_i64, get_u8, get_u16, get_u32, get_u64, put, put_u16, put_u32, put_u64,
};
use super::{BLOCK_BITS, BLOCK_LEN, Bad};
use crate::inode::Time;

/// First four bytes of the superblock (`EROFS_SUPER_MAGIC_V1`).
pub const SUPER_MAGIC: u32 = 0xE0F5_E1E2;
/// Length of the superblock without extension slots, which tarnfs does not use.
pub const SUPER_LEN: usize = 128;
/// `feature_compat`: [`SuperBlock::checksum`] is valid.
pub const COMPAT_SB_CHKSUM: u32 = 0x0000_0001;
/// `feature_compat`: the times of inodes are modification times.
pub const COMPAT_MTIME: u32 = 0x0000_0002;
/// `feature_incompat`: files of layout [`DataLayout::Chunk`](super::inode::DataLayout) occur.
pub const INCOMPAT_CHUNKED_FILE: u32 = 0x0000_0004;
/// `feature_incompat`: there is a device table.
pub const INCOMPAT_DEVICE_TABLE: u32 = 0x0000_0008;
/// Every `feature_incompat` bit that an index has. A reader refuses any other.
pub const INCOMPAT_ALL: u32 = INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE;

/// Offsets of the superblock's fields, from [`SUPER_OFFSET`](super::SUPER_OFFSET).
pub mod sb {
    /// u32 [`super::SUPER_MAGIC`].
    pub const MAGIC: usize = 0;
    /// u32 [`super::super_checksum`].
    pub const CHECKSUM: usize = 4;
    /// u32 `COMPAT_*` bits.
    pub const FEATURE_COMPAT: usize = 8;
    /// u8 log2 of the block size.
    pub const BLKSZBITS: usize = 12;
    /// u8 extension slots of 16 bytes; 0.
    pub const EXTSLOTS: usize = 13;
    /// u16 nid of the root directory.
    pub const ROOT_NID: usize = 14;
    /// u64 number of inodes.
    pub const INOS: usize = 16;
    /// i64 seconds of every compact inode's time.
    pub const BUILD_TIME: usize = 24;
    /// u32 nanoseconds of every compact inode's time.
    pub const BUILD_TIME_NSEC: usize = 32;
    /// u32 blocks of the image, without the trailer.
    pub const BLOCKS: usize = 36;
    /// u32 block at which nid 0 lies; 0.
    pub const META_BLKADDR: usize = 40;
    /// u32 block at which the shared xattrs start.
    pub const XATTR_BLKADDR: usize = 44;
    /// 16 bytes, the volume's UUID.
    pub const UUID: usize = 48;
    /// 16 bytes, the volume's name, NUL-padded.
    pub const VOLUME_NAME: usize = 64;
    /// u32 `INCOMPAT_*` bits.
    pub const FEATURE_INCOMPAT: usize = 80;
    /// u16 compression algorithms; 0.
    pub const COMPR_ALGS: usize = 84;
    /// u16 number of device slots.
    pub const EXTRA_DEVICES: usize = 86;
    /// u16 offset of the device table in units of 128 bytes.
    pub const DEVT_SLOTOFF: usize = 88;
    /// u8 log2 of directory block size / block size; 0.
    pub const DIRBLKBITS: usize = 90;
    /// u8 number of long xattr prefixes; 0. From here to 128: 0.
    pub const XATTR_PREFIX_COUNT: usize = 91;
}

/// The superblock's fields that vary in an index, or that a reader checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperBlock {
    /// CRC-32C; see [`super_checksum`].
    pub checksum: u32,
    /// `COMPAT_*`.
    pub feature_compat: u32,
    /// log2 of the block size.
    pub blkszbits: u8,
    /// nid of the root directory.
    pub root_nid: u16,
    /// Number of inodes.
    pub inos: u64,
    /// Time of every compact inode.
    pub build_time: Time,
    /// Blocks of the image, without the trailer.
    pub blocks: u32,
    /// Block at which nid 0 lies.
    pub meta_blkaddr: u32,
    /// Block at which the shared xattrs start.
    pub xattr_blkaddr: u32,
    /// The volume's UUID.
    pub uuid: [u8; 16],
    /// The volume's name, NUL-padded.
    pub volume_name: [u8; 16],
    /// `INCOMPAT_*`.
    pub feature_incompat: u32,
    /// Number of device slots.
    pub extra_devices: u16,
    /// Offset of the device table in units of [`DEVICE_SLOT_LEN`] from the file's start.
    pub devt_slotoff: u16,
}

impl SuperBlock {
    /// The superblock's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPER_LEN] {
        let mut b = [0; SUPER_LEN];
        put_u32(&mut b, sb::MAGIC, SUPER_MAGIC);
        put_u32(&mut b, sb::CHECKSUM, self.checksum);
        put_u32(&mut b, sb::FEATURE_COMPAT, self.feature_compat);
        put(&mut b, sb::BLKSZBITS, &[self.blkszbits]);
        put_u16(&mut b, sb::ROOT_NID, self.root_nid);
        put_u64(&mut b, sb::INOS, self.inos);
        put(&mut b, sb::BUILD_TIME, &self.build_time.sec.to_le_bytes());
        put_u32(&mut b, sb::BUILD_TIME_NSEC, self.build_time.nsec);
        put_u32(&mut b, sb::BLOCKS, self.blocks);
        put_u32(&mut b, sb::META_BLKADDR, self.meta_blkaddr);
        put_u32(&mut b, sb::XATTR_BLKADDR, self.xattr_blkaddr);
        put(&mut b, sb::UUID, &self.uuid);
        put(&mut b, sb::VOLUME_NAME, &self.volume_name);
        put_u32(&mut b, sb::FEATURE_INCOMPAT, self.feature_incompat);
        put_u16(&mut b, sb::EXTRA_DEVICES, self.extra_devices);
        put_u16(&mut b, sb::DEVT_SLOTOFF, self.devt_slotoff);
        b
    }

    /// Decodes the superblock at the start of `b` and refuses what no index of tarnfs has.
    ///
    /// # Errors
    /// [`Bad`] names the field.
    pub fn decode(b: &[u8]) -> Result<Self, Bad> {
        const SHORT: Bad = Bad("superblock: too short");
        if get_u32(b, sb::MAGIC).ok_or(SHORT)? != SUPER_MAGIC {
            return Err(Bad("superblock: not an EROFS image"));
        }
        let this = Self {
            checksum: get_u32(b, sb::CHECKSUM).ok_or(SHORT)?,
            feature_compat: get_u32(b, sb::FEATURE_COMPAT).ok_or(SHORT)?,
            blkszbits: get_u8(b, sb::BLKSZBITS).ok_or(SHORT)?,
            root_nid: get_u16(b, sb::ROOT_NID).ok_or(SHORT)?,
            inos: get_u64(b, sb::INOS).ok_or(SHORT)?,
            build_time: Time {
                sec: get_i64(b, sb::BUILD_TIME).ok_or(SHORT)?,
                nsec: get_u32(b, sb::BUILD_TIME_NSEC).ok_or(SHORT)?,
            },
            blocks: get_u32(b, sb::BLOCKS).ok_or(SHORT)?,
            meta_blkaddr: get_u32(b, sb::META_BLKADDR).ok_or(SHORT)?,
            xattr_blkaddr: get_u32(b, sb::XATTR_BLKADDR).ok_or(SHORT)?,
            uuid: get_array(b, sb::UUID).ok_or(SHORT)?,
            volume_name: get_array(b, sb::VOLUME_NAME).ok_or(SHORT)?,
            feature_incompat: get_u32(b, sb::FEATURE_INCOMPAT).ok_or(SHORT)?,
            extra_devices: get_u16(b, sb::EXTRA_DEVICES).ok_or(SHORT)?,
            devt_slotoff: get_u16(b, sb::DEVT_SLOTOFF).ok_or(SHORT)?,
        };
        if get_u8(b, sb::EXTSLOTS) != Some(0)
            || get_u16(b, sb::COMPR_ALGS) != Some(0)
            || get_u16(b, sb::DIRBLKBITS) != Some(0)
        {
            return Err(Bad("superblock: a field that must be 0 is not"));
        }
        if this.blkszbits != BLOCK_BITS || this.meta_blkaddr != 0 {
            return Err(Bad("superblock: not the geometry of a tarnfs index"));
        }
        if this.feature_incompat & !INCOMPAT_ALL != 0 {
            return Err(Bad(
                "superblock: features that a tarnfs index does not have",
            ));
        }
        if this.build_time.nsec >= 1_000_000_000 {
            return Err(Bad("superblock: nanoseconds out of range"));
        }
        Ok(this)
    }
}

/// The superblock's checksum over `block`, the 512 bytes from [`SUPER_OFFSET`](super::SUPER_OFFSET) on, with the
/// checksum field taken as 0: CRC-32C without the final inversion
/// (fs/erofs/super.c:erofs_superblock_csum_verify; with 512-byte blocks the length is one block,
/// which takes in the first three device slots).
#[must_use]
pub fn super_checksum(block: &[u8; BLOCK_LEN]) -> u32 {
    let mut zeroed = *block;
    put_u32(&mut zeroed, sb::CHECKSUM, 0);
    !crc32c::crc32c(&zeroed)
}

/// Length of a device slot.
pub const DEVICE_SLOT_LEN: usize = 128;
/// The slot (in units of its own length) at which tarnfs puts the table: right behind the
/// superblock, byte 1152.
pub const DEVICE_TABLE_SLOT: u16 = 9;

/// Offsets in a device slot.
pub mod dev {
    /// 64 bytes, NUL-padded text.
    pub const TAG: usize = 0;
    /// u32 blocks of the device.
    pub const BLOCKS: usize = 64;
    /// u32 its place in a flat address space; 0. From 72 to 128: 0.
    pub const MAPPED_BLKADDR: usize = 68;
}

/// A device slot: device id k + 1 is blob k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSlot {
    /// The blob's digest or another tag, NUL-padded.
    pub tag: [u8; 64],
    /// Its length in blocks, rounded up.
    pub blocks: u32,
    /// 0: the device has its own address space.
    pub mapped_blkaddr: u32,
}

impl DeviceSlot {
    /// The slot's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; DEVICE_SLOT_LEN] {
        let mut b = [0; DEVICE_SLOT_LEN];
        put(&mut b, dev::TAG, &self.tag);
        put_u32(&mut b, dev::BLOCKS, self.blocks);
        put_u32(&mut b, dev::MAPPED_BLKADDR, self.mapped_blkaddr);
        b
    }

    /// Decodes the slot at the start of `b`.
    ///
    /// # Errors
    /// [`Bad`] where it is short.
    pub fn decode(b: &[u8]) -> Result<Self, Bad> {
        const SHORT: Bad = Bad("device slot: too short");
        Ok(Self {
            tag: get_array(b, dev::TAG).ok_or(SHORT)?,
            blocks: get_u32(b, dev::BLOCKS).ok_or(SHORT)?,
            mapped_blkaddr: get_u32(b, dev::MAPPED_BLKADDR).ok_or(SHORT)?,
        })
    }
}
