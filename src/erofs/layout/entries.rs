//! Directory entries and extended attributes.

use super::Bad;
use super::bytes::{get_u8, get_u16, get_u64, put, put_u16, put_u64};
use crate::inode::Kind;

/// Length of a directory entry, without the name.
pub const DIRENT_LEN: usize = 12;

/// Offsets in a directory entry. A directory block (512 bytes, the last one as long as it needs)
/// holds the entries and then their names in the same order; `nameoff` of the first entry is the
/// length of all entries. A name ends where the next begins; the last one at the block's end or
/// the first NUL. Entries are sorted by their bytes over the whole directory, with `.` and `..`
/// among them.
pub mod dirent {
    /// u64 nid.
    pub const NID: usize = 0;
    /// u16 offset of the name in the block.
    pub const NAMEOFF: usize = 8;
    /// u8 file type (`FT_*`). Byte 11: 0.
    pub const FILE_TYPE: usize = 10;
}

/// A directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawDirent {
    /// What it leads to.
    pub nid: u64,
    /// Where its name starts, from the block's start.
    pub nameoff: u16,
    /// See [`file_type`].
    pub file_type: u8,
}

impl RawDirent {
    /// The entry's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; DIRENT_LEN] {
        let mut b = [0; DIRENT_LEN];
        put_u64(&mut b, dirent::NID, self.nid);
        put_u16(&mut b, dirent::NAMEOFF, self.nameoff);
        put(&mut b, dirent::FILE_TYPE, &[self.file_type]);
        b
    }

    /// Decodes the entry at the start of `b`.
    ///
    /// # Errors
    /// [`Bad`] where it is short.
    pub fn decode(b: &[u8]) -> Result<Self, Bad> {
        const SHORT: Bad = Bad("directory entry: too short");
        let this = Self {
            nid: get_u64(b, dirent::NID).ok_or(SHORT)?,
            nameoff: get_u16(b, dirent::NAMEOFF).ok_or(SHORT)?,
            file_type: get_u8(b, dirent::FILE_TYPE).ok_or(SHORT)?,
        };
        get_u8(b, DIRENT_LEN - 1).ok_or(SHORT)?;
        Ok(this)
    }
}

/// The file type of a directory entry (`FT_*` of include/linux/fs_types.h).
#[must_use]
pub fn file_type(kind: Kind) -> u8 {
    match kind {
        Kind::File => 1,
        Kind::Dir => 2,
        Kind::Char => 3,
        Kind::Block => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink => 7,
    }
}

/// What a directory entry's file type stands for; `None`: no type that an index notes.
#[must_use]
pub fn kind_of_file_type(file_type: u8) -> Option<Kind> {
    Some(match file_type {
        1 => Kind::File,
        2 => Kind::Dir,
        3 => Kind::Char,
        4 => Kind::Block,
        5 => Kind::Fifo,
        6 => Kind::Socket,
        7 => Kind::Symlink,
        _ => return None,
    })
}

/// Length of the header in front of an inode's xattrs: u32 name filter (0), u8 number of shared
/// ids, 7 bytes 0. Then the ids (u32 each), then the inline entries.
pub const XATTR_HEADER_LEN: usize = 12;
/// Offset of the number of shared ids in the header.
pub const XATTR_SHARED_COUNT: usize = 4;
/// Most shared ids an inode can have.
pub const XATTR_SHARED_MAX: usize = 255;
/// Length of a shared id: the entry is at `xattr_blkaddr * 512 + id * 4`.
pub const XATTR_ID_LEN: usize = 4;
/// Length of an entry's header; entry = header, name without prefix, value, padded to 4.
pub const XATTR_ENTRY_LEN: usize = 4;
/// Most bytes of inline xattrs (header and ids included) that `i_xattr_icount` can tell.
pub const XATTR_BODY_MAX: usize = XATTR_HEADER_LEN + 4 * (u16::MAX as usize - 1);

/// Offsets in an xattr entry.
pub mod xattr {
    /// u8 length of the name without its prefix.
    pub const NAME_LEN: usize = 0;
    /// u8 prefix number.
    pub const NAME_INDEX: usize = 1;
    /// u16 length of the value.
    pub const VALUE_SIZE: usize = 2;
}

/// Prefix numbers and what they stand for. The two ACLs are whole names.
pub const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Splits a full name into its prefix number and the rest; `None`: no prefix that EROFS has.
/// The ACL names match only whole, the others only with something behind the dot.
#[must_use]
pub fn xattr_split(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|&(index, prefix)| {
        let rest = name.strip_prefix(prefix)?;
        (rest.is_empty() != prefix.ends_with(b".")).then_some((index, rest))
    })
}

/// The text that a prefix number stands for.
#[must_use]
pub fn xattr_prefix(index: u8) -> Option<&'static [u8]> {
    XATTR_PREFIXES
        .iter()
        .find(|&&(i, _)| i == index)
        .map(|&(_, prefix)| prefix)
}

/// Bytes between an inode and what follows its xattrs (fs/erofs/erofs_fs.h:
/// erofs_xattr_ibody_size). 1 would be a bare header, which the kernel refuses.
#[must_use]
pub fn xattr_body_len(icount: u16) -> usize {
    match usize::from(icount).checked_sub(1) {
        None => 0,
        Some(n) => XATTR_HEADER_LEN + 4 * n,
    }
}

/// The `i_xattr_icount` of a body of `len` bytes (0, or 12 + a multiple of 4).
#[must_use]
pub fn xattr_icount(len: usize) -> Option<u16> {
    if len == 0 {
        return Some(0);
    }
    let rest = len.checked_sub(XATTR_HEADER_LEN)?;
    if !rest.is_multiple_of(4) {
        return None;
    }
    u16::try_from(rest / 4 + 1).ok()
}

/// The header of an xattr entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrEntry {
    /// Length of the name without its prefix.
    pub name_len: u8,
    /// Prefix number.
    pub name_index: u8,
    /// Length of the value.
    pub value_size: u16,
}

impl XattrEntry {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; XATTR_ENTRY_LEN] {
        let [lo, hi] = self.value_size.to_le_bytes();
        [self.name_len, self.name_index, lo, hi]
    }

    /// Decodes the header at the start of `b`.
    ///
    /// # Errors
    /// [`Bad`] where it is short.
    pub fn decode(b: &[u8]) -> Result<Self, Bad> {
        const SHORT: Bad = Bad("xattr entry: too short");
        Ok(Self {
            name_len: get_u8(b, xattr::NAME_LEN).ok_or(SHORT)?,
            name_index: get_u8(b, xattr::NAME_INDEX).ok_or(SHORT)?,
            value_size: get_u16(b, xattr::VALUE_SIZE).ok_or(SHORT)?,
        })
    }

    /// Length of header, name and value, padded to 4 (fs/erofs/erofs_fs.h:
    /// erofs_xattr_entry_size).
    #[must_use]
    pub fn len(&self) -> usize {
        (XATTR_ENTRY_LEN + usize::from(self.name_len) + usize::from(self.value_size))
            .next_multiple_of(4)
    }

    /// An entry is never empty; stands beside [`Self::len`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}
