//! The trailer behind the image: the reverse table and the footer.

use super::bytes::{get_array, get_u32, get_u64, put, put_u32, put_u64};
use super::{BLOCK, Bad, SUPER_LEN, SUPER_OFFSET, align_up};

/// First eight bytes of the footer.
pub const FOOTER_MAGIC: [u8; 8] = *b"TARNFSIX";
/// The format version this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// Length of the footer: the file's last block.
pub const FOOTER_LEN: usize = 512;
/// Length of a row of the reverse table: u32 nid, u32 nid of the directory that names it.
pub const ROW_LEN: usize = 8;

/// Offsets in the footer.
pub mod footer {
    /// 8 bytes [`super::FOOTER_MAGIC`].
    pub const MAGIC: usize = 0;
    /// u32 [`super::FORMAT_VERSION`].
    pub const VERSION: usize = 8;
    /// u32 number of blobs.
    pub const BLOBS: usize = 12;
    /// u64 number of inodes.
    pub const INODES: usize = 16;
    /// u64 number of directory entries without `.` and `..`.
    pub const DIRENTS: usize = 24;
    /// u64 length of the EROFS image in bytes.
    pub const IMAGE_LEN: usize = 32;
    /// u64 offset of the reverse table, a multiple of 512.
    pub const TABLE_OFFSET: usize = 40;
    /// u64 rows of the reverse table.
    pub const TABLE_ROWS: usize = 48;
    /// u64 sum of the sizes of all regular files, each inode once.
    pub const FILE_BYTES: usize = 56;
    /// u32 CRC-32C of every byte in front of the footer. From 68 to 508: 0.
    pub const BODY_CRC: usize = 64;
    /// u32 CRC-32C of the footer's first 508 bytes.
    pub const FOOTER_CRC: usize = 508;
}

/// The last 512 bytes of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Number of blobs.
    pub blobs: u32,
    /// Number of inodes.
    pub inodes: u64,
    /// Number of directory entries without `.` and `..`.
    pub dirents: u64,
    /// Length of the EROFS image in bytes.
    pub image_len: u64,
    /// Offset of the reverse table.
    pub table_offset: u64,
    /// Rows of the reverse table.
    pub table_rows: u64,
    /// Sum of the sizes of all regular files, each inode once.
    pub file_bytes: u64,
    /// CRC-32C (RFC 3720's, with the final inversion) of every byte in front of the footer.
    pub body_crc: u32,
}

impl Footer {
    /// The footer's bytes, its own checksum included.
    #[must_use]
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut b = [0; FOOTER_LEN];
        put(&mut b, footer::MAGIC, &FOOTER_MAGIC);
        put_u32(&mut b, footer::VERSION, FORMAT_VERSION);
        put_u32(&mut b, footer::BLOBS, self.blobs);
        put_u64(&mut b, footer::INODES, self.inodes);
        put_u64(&mut b, footer::DIRENTS, self.dirents);
        put_u64(&mut b, footer::IMAGE_LEN, self.image_len);
        put_u64(&mut b, footer::TABLE_OFFSET, self.table_offset);
        put_u64(&mut b, footer::TABLE_ROWS, self.table_rows);
        put_u64(&mut b, footer::FILE_BYTES, self.file_bytes);
        put_u32(&mut b, footer::BODY_CRC, self.body_crc);
        let crc = crc32c::crc32c(b.get(..footer::FOOTER_CRC).unwrap_or_default());
        put_u32(&mut b, footer::FOOTER_CRC, crc);
        b
    }

    /// Decodes the footer `b`, the last [`FOOTER_LEN`] bytes of a file of `file_len` bytes.
    /// Checks magic, version, its own checksum and the geometry, not the body's checksum.
    ///
    /// # Errors
    /// [`Bad`] names the fault.
    pub fn decode(b: &[u8], file_len: u64) -> Result<Self, Bad> {
        const SHORT: Bad = Bad("footer: too short");
        if get_array(b, footer::MAGIC).ok_or(SHORT)? != FOOTER_MAGIC {
            return Err(Bad("footer: not a tarnfs index"));
        }
        if get_u32(b, footer::VERSION).ok_or(SHORT)? != FORMAT_VERSION {
            return Err(Bad(
                "footer: a format version that this tarnfs does not know",
            ));
        }
        let head = b.get(..footer::FOOTER_CRC).ok_or(SHORT)?;
        if get_u32(b, footer::FOOTER_CRC).ok_or(SHORT)? != crc32c::crc32c(head) {
            return Err(Bad("footer: its checksum does not match"));
        }
        let this = Self {
            blobs: get_u32(b, footer::BLOBS).ok_or(SHORT)?,
            inodes: get_u64(b, footer::INODES).ok_or(SHORT)?,
            dirents: get_u64(b, footer::DIRENTS).ok_or(SHORT)?,
            image_len: get_u64(b, footer::IMAGE_LEN).ok_or(SHORT)?,
            table_offset: get_u64(b, footer::TABLE_OFFSET).ok_or(SHORT)?,
            table_rows: get_u64(b, footer::TABLE_ROWS).ok_or(SHORT)?,
            file_bytes: get_u64(b, footer::FILE_BYTES).ok_or(SHORT)?,
            body_crc: get_u32(b, footer::BODY_CRC).ok_or(SHORT)?,
        };
        let table_end = this
            .table_rows
            .checked_mul(ROW_LEN as u64)
            .and_then(|len| this.table_offset.checked_add(len))
            .and_then(|end| align_up(end, BLOCK));
        if this.image_len < SUPER_OFFSET + SUPER_LEN as u64
            || !this.image_len.is_multiple_of(BLOCK)
            || !this.table_offset.is_multiple_of(BLOCK)
            || this.table_offset < this.image_len
            || table_end.is_none()
            || table_end != file_len.checked_sub(FOOTER_LEN as u64)
        {
            return Err(Bad("footer: the geometry contradicts the file's length"));
        }
        Ok(this)
    }
}

/// A row of the reverse table: inode `nid` has a name in directory `parent`. One row for each
/// directory entry but `.` and `..`, sorted by (nid, parent).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The named inode.
    pub nid: u32,
    /// The directory with the name.
    pub parent: u32,
}

impl Row {
    /// The row's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ROW_LEN] {
        let mut b = [0; ROW_LEN];
        put_u32(&mut b, 0, self.nid);
        put_u32(&mut b, 4, self.parent);
        b
    }

    /// Decodes the row at the start of `b`.
    ///
    /// # Errors
    /// [`Bad`] where it is short.
    pub fn decode(b: &[u8]) -> Result<Self, Bad> {
        const SHORT: Bad = Bad("reverse table: too short");
        Ok(Self {
            nid: get_u32(b, 0).ok_or(SHORT)?,
            parent: get_u32(b, 4).ok_or(SHORT)?,
        })
    }
}
