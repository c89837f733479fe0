//! Writes the index of a [`Tree`] as an EROFS image with tarnfs' trailer.
//!
//! One walk through the tree: [`body`] gives every inode its place, breadth first, and fills one
//! buffer. Deterministic: the same tree and blobs give the same bytes. Inodes that no directory
//! names are left out. Memory: the image itself and some 20 bytes for each inode and directory
//! entry. Recursion: none, whatever the depth of the tree.
//!
//! Never here: file contents. An index holds directories, link targets and attributes only.

mod body;
mod chunks;
mod dirs;
mod space;
mod trailer;
mod xattrs;

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use self::body::Body;
pub use self::chunks::{ChunkPlan, MAX_CHUNKS, Unfit, plan as plan_chunks};
use super::layout::{
    self, BLOCK, BLOCK_BITS, COMPAT_MTIME, COMPAT_SB_CHKSUM, DEVICE_SLOT_LEN, DEVICE_TABLE_SLOT,
    DeviceSlot, INCOMPAT_ALL, SUPER_OFFSET, SuperBlock, put, super_checksum,
};
use crate::index::tree::{Content, Tree};
use crate::inode::{Kind, Time};
use crate::sys::memory;

/// A blob (external device) that the index refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobSpec {
    /// A tag of at most 63 bytes for the device slot (a digest, or nothing).
    pub tag: String,
    /// The blob's length in bytes.
    pub len: u64,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Length of the index in bytes.
    pub len: u64,
    /// Number of inodes.
    pub inodes: u64,
    /// Number of directory entries without `.` and `..`.
    pub dirents: u64,
    /// Sum of the sizes of all regular files, each inode once.
    pub file_bytes: u64,
}

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Something is beyond what the format holds.
    #[error("{path}: {what}")]
    Limit {
        /// The path in the image.
        path: String,
        /// Which limit.
        what: String,
    },
    /// The tree is not what [`Tree`] promises; a fault of who built it, not of the image.
    #[error("the file tree contradicts itself: {0}")]
    Tree(&'static str),
    /// The output could not be written.
    #[error("writing the index: {0}")]
    Io(#[from] io::Error),
}

/// Writes the index of `tree`, whose extents lie in `blobs`, to `out`.
///
/// # Errors
/// [`WriteError::Limit`] where the tree holds what EROFS cannot; [`WriteError::Tree`];
/// [`WriteError::Io`].
pub fn write(tree: &Tree, blobs: &[BlobSpec], out: &mut dyn Write) -> Result<Summary, WriteError> {
    let devices = device_table(blobs)?;
    let Body {
        mut image,
        rows,
        build_time,
        shared_at,
        root,
        inodes,
        file_bytes,
        ..
    } = Body::new(tree, blobs)?;
    let table_at = u64::from(DEVICE_TABLE_SLOT) * DEVICE_SLOT_LEN as u64;
    image.put(table_at, &devices)?;
    let head = Head {
        build_time,
        shared_at,
        root,
        inodes,
    };
    let body_crc = put_super(&mut image, &head, blobs)?;

    out.write_all(&image.0)?;
    let image_len = image.0.len() as u64;
    drop(image);
    let mut summary = Summary {
        len: image_len,
        inodes,
        dirents: rows.len() as u64,
        file_bytes,
    };
    let blobs = u32::try_from(blobs.len()).map_err(|_| limit("/", "too many blobs"))?;
    summary.len += trailer::write(rows, blobs, image_len, body_crc, &summary, out)?;
    Ok(summary)
}

/// Bytes by which the image grows.
const GROW: usize = 1 << 18;
/// Where the superblock is, and all that changes once everything else is written.
const FRONT: usize = 4096;
/// What an inode takes of the image with its name, at most in most images.
const INODE_SHARE: usize = 144;

/// The image while it is filled. What nobody writes is 0.
struct Image(Vec<u8>);

impl Image {
    /// An image of so many `inodes`.
    fn of(inodes: usize) -> Self {
        Self(memory::zeros(inodes.saturating_mul(INODE_SHARE)))
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let at = usize::try_from(at).map_err(|_| too_long())?;
        let end = at.checked_add(bytes.len()).ok_or_else(too_long)?;
        if end > self.0.len() {
            let len = end.checked_next_multiple_of(GROW).ok_or_else(too_long)?;
            self.0.resize(len, 0);
        }
        let to = self.0.get_mut(at..end).ok_or_else(changed)?;
        to.copy_from_slice(bytes);
        Ok(())
    }

    /// The CRC-32C of all of it, and that of what is behind [`FRONT`], which is not read again
    /// where it is `known`.
    fn crc(&self, known: Option<u32>) -> (u32, u32) {
        let (front, behind) = self.0.split_at(self.0.len().min(FRONT));
        let behind_crc = known.unwrap_or_else(|| crc32c::crc32c(behind));
        let whole = crc32c::crc32c_combine(crc32c::crc32c(front), behind_crc, behind.len());
        (whole, behind_crc)
    }

    fn set_len(&mut self, len: u64) -> Result<(), WriteError> {
        self.0
            .resize(usize::try_from(len).map_err(|_| too_long())?, 0);
        Ok(())
    }
}

#[cold]
fn too_long() -> WriteError {
    limit("/", "the index does not fit in this machine's memory")
}

/// The type of an inode.
fn kind(content: &Content) -> Kind {
    match content {
        Content::File { .. } => Kind::File,
        Content::Dir { .. } => Kind::Dir,
        Content::Symlink(_) => Kind::Symlink,
        Content::Device(kind, _) => *kind,
        Content::Fifo => Kind::Fifo,
        Content::Socket => Kind::Socket,
    }
}

fn limit(path: &str, what: &str) -> WriteError {
    WriteError::Limit {
        path: path.to_owned(),
        what: what.to_owned(),
    }
}

fn device_table(blobs: &[BlobSpec]) -> Result<Vec<u8>, WriteError> {
    let mut table = Vec::with_capacity(blobs.len() * DEVICE_SLOT_LEN);
    for (k, blob) in blobs.iter().enumerate() {
        let mut tag = [0; 64];
        // The last byte stays NUL, so that the tag is a C string for any tool.
        match tag.get_mut(..blob.tag.len()) {
            Some(to) if blob.tag.len() < 64 && !blob.tag.contains('\0') => {
                to.copy_from_slice(blob.tag.as_bytes());
            }
            _ => {
                return Err(limit(
                    "/",
                    &format!("the tag of blob {k} is not a short text"),
                ));
            }
        }
        let blocks = u32::try_from(blob.len.div_ceil(BLOCK))
            .map_err(|_| limit("/", &format!("blob {k} is longer than 2 TiB")))?;
        table.extend_from_slice(
            &DeviceSlot {
                tag,
                blocks,
                mapped_blkaddr: 0,
            }
            .encode(),
        );
    }
    Ok(table)
}

/// What a second look at the tree would find if it changed after the plan was made.
#[cold]
fn changed() -> WriteError {
    WriteError::Tree("it changed between planning and writing")
}

/// What the superblock tells of the image.
struct Head {
    build_time: Time,
    shared_at: u64,
    root: u32,
    inodes: u64,
}

/// Writes the superblock, last: the UUID depends on everything else. Gives the CRC-32C of the image.
fn put_super(image: &mut Image, head: &Head, blobs: &[BlobSpec]) -> Result<u32, WriteError> {
    let mut volume_name = [0; 16];
    put(&mut volume_name, 0, b"tarnfs");
    let mut this = SuperBlock {
        checksum: 0,
        feature_compat: COMPAT_SB_CHKSUM | COMPAT_MTIME,
        blkszbits: BLOCK_BITS,
        root_nid: u16::try_from(head.root)
            .map_err(|_| limit("/", "too many blobs for the root's place in the index"))?,
        inos: head.inodes,
        build_time: head.build_time,
        blocks: u32::try_from(image.0.len() as u64 / BLOCK)
            .map_err(|_| limit("/", "the index is longer than 2 TiB"))?,
        meta_blkaddr: 0,
        xattr_blkaddr: u32::try_from(head.shared_at / BLOCK)
            .map_err(|_| limit("/", "the index is longer than 2 TiB"))?,
        uuid: [0; 16],
        volume_name,
        feature_incompat: INCOMPAT_ALL,
        extra_devices: u16::try_from(blobs.len())
            .map_err(|_| limit("/", "more than 65,535 blobs"))?,
        devt_slotoff: DEVICE_TABLE_SLOT,
    };
    image.put(SUPER_OFFSET, &this.encode())?;
    let (crc, behind) = image.crc(None);
    this.uuid = uuid(crc, image.0.len(), blobs);
    image.put(SUPER_OFFSET, &this.encode())?;
    let at = usize::try_from(SUPER_OFFSET).map_err(|_| changed())?;
    let block = layout::get_array(&image.0, at).ok_or_else(changed)?;
    this.checksum = super_checksum(&block);
    image.put(SUPER_OFFSET, &this.encode())?;
    Ok(image.crc(Some(behind)).0)
}

/// A UUID (version 8, RFC 9562) that differs between indexes: overlayfs tells its layers apart
/// by it (fs/overlayfs/super.c:ovl_lower_uuid_ok). From the blobs' tags and lengths and the
/// image's CRC-32C, so that it costs no second hash of the image.
fn uuid(image_crc: u32, image_len: usize, blobs: &[BlobSpec]) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(b"tarnfs index uuid 1\0");
    hash.update(image_crc.to_le_bytes());
    hash.update((image_len as u64).to_le_bytes());
    for blob in blobs {
        hash.update(blob.tag.as_bytes());
        hash.update([0]);
        hash.update(blob.len.to_le_bytes());
    }
    let mut uuid = [0; 16];
    for (to, from) in uuid.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    let [.., version, _, variant, _, _, _, _, _, _, _] = &mut uuid;
    *version = (*version & 0x0f) | 0x80;
    *variant = (*variant & 0x3f) | 0x80;
    uuid
}

#[cfg(test)]
mod tests;
