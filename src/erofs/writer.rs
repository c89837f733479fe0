//! Writes the index of a [`Tree`] as an EROFS image with tarnfs' trailer.
//!
//! Two passes: [`plan`] gives every inode its place, breadth first, and this file then fills one
//! buffer of the final length. Deterministic: the same tree and blobs give the same bytes.
//! Inodes that no directory names are left out. Memory: the image itself and some 20 bytes for
//! each inode and directory entry. Recursion: none, whatever the depth of the tree.
//!
//! Never here: file contents. An index holds directories, link targets and attributes only.

mod chunks;
mod dirs;
mod plan;
mod space;
mod trailer;
mod xattrs;

use std::io::{self, Write};

use sha2::{Digest, Sha256};

pub use self::chunks::{ChunkPlan, MAX_CHUNKS, Unfit, plan as plan_chunks};
use self::plan::{Placed, Plan};
use super::layout::{
    self, BLOCK, BLOCK_BITS, BLOCK_LEN, CHUNK_INDEX_LEN, COMPAT_MTIME, COMPAT_SB_CHKSUM,
    DEVICE_SLOT_LEN, DEVICE_TABLE_SLOT, DataLayout, DeviceSlot, INCOMPAT_ALL, INODE_COMPACT_LEN,
    INODE_EXTENDED_LEN, RawInode, SUPER_OFFSET, SuperBlock, align_up, chunk_format, file_type,
    nid_to_offset, put, super_checksum, xattr_icount,
};
use crate::index::tree::{Content, Inode, InodeId, ROOT, Tree};
use crate::inode::Kind;

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
    let plan = Plan::new(tree, blobs)?;
    let len = usize::try_from(plan.image_len)
        .map_err(|_| limit("/", "the index does not fit in this machine's memory"))?;
    let mut image = Image(vec![0; len]);

    image.put(
        u64::from(DEVICE_TABLE_SLOT) * DEVICE_SLOT_LEN as u64,
        &devices,
    )?;
    image.put(plan.shared_at, plan.xattrs.shared())?;
    let mut scratch = Vec::new();
    for (n, inode) in (0..).zip(&tree.inodes) {
        put_inode(&mut image, tree, &plan, InodeId(n), inode, &mut scratch)?;
    }
    put_super(&mut image, &plan, blobs)?;

    out.write_all(&image.0)?;
    let body_crc = crc32c::crc32c(&image.0);
    drop(image);
    let trailer_len = trailer::write(tree, &plan, blobs, body_crc, out)?;
    Ok(Summary {
        len: plan.image_len + trailer_len,
        inodes: plan.inodes,
        dirents: plan.dirents,
        file_bytes: plan.file_bytes,
    })
}

/// The image while it is filled.
struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let to = usize::try_from(at)
            .ok()
            .and_then(|at| self.0.get_mut(at..))
            .and_then(|to| to.get_mut(..bytes.len()))
            .ok_or_else(changed)?;
        to.copy_from_slice(bytes);
        Ok(())
    }
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

/// Writes one inode with its xattrs, then its chunk indexes or its data.
fn put_inode(
    image: &mut Image,
    tree: &Tree,
    plan: &Plan<'_>,
    id: InodeId,
    inode: &Inode,
    scratch: &mut Vec<u8>,
) -> Result<(), WriteError> {
    let Some(placed) = plan.placed(id) else {
        return Ok(());
    };
    scratch.clear();
    plan.xattrs
        .put_body(&inode.xattrs, scratch)
        .map_err(|_| changed())?;
    let icount = xattr_icount(scratch.len()).ok_or_else(changed)?;
    let at = nid_to_offset(placed.nid.into()).ok_or_else(changed)?;
    let head_len = if placed.extended {
        INODE_EXTENDED_LEN
    } else {
        INODE_COMPACT_LEN
    };
    let xattrs_at = at + head_len as u64;
    let data_at = xattrs_at + scratch.len() as u64;
    image.put(xattrs_at, scratch)?;

    scratch.clear();
    let mut size = None;
    let mut u = 0;
    match &inode.content {
        Content::File { size: len, extents } => {
            size = Some(*len);
            if placed.layout == DataLayout::Chunk {
                let shape = plan_chunks(*len, extents).map_err(|_| changed())?;
                u = chunk_format(shape.bits).ok_or_else(changed)?.into();
                chunks::put(shape, extents, scratch).ok_or_else(changed)?;
                let indexes_at = align_up(data_at, CHUNK_INDEX_LEN as u64).ok_or_else(changed)?;
                image.put(indexes_at, scratch)?;
            }
        }
        Content::Dir { children, parent } => {
            dirs::pack(dirs::entries(id, *parent, children), scratch, |id| {
                let target = tree.inodes.get(id.0 as usize)?;
                Some((
                    plan.placed(id)?.nid.into(),
                    file_type(kind(&target.content)),
                ))
            })
            .ok_or_else(changed)?;
        }
        Content::Symlink(target) => scratch.extend_from_slice(target),
        Content::Device(_, dev) => u = plan::device_number(*dev).ok_or_else(changed)?,
        Content::Fifo | Content::Socket => {}
    }
    if !matches!(inode.content, Content::File { .. }) && !scratch.is_empty() {
        u = placed.block;
        put_flat(image, placed, data_at, scratch)?;
    }
    let kind_bits = kind(&inode.content).mode_bits();
    let raw = RawInode {
        layout: placed.layout,
        xattr_icount: icount,
        mode: u16::try_from(kind_bits | u32::from(inode.perm & 0o7777)).map_err(|_| changed())?,
        nlink: inode.nlink,
        size: size.unwrap_or(scratch.len() as u64),
        u,
        ino: placed.nid,
        uid: inode.uid,
        gid: inode.gid,
        mtime: placed.extended.then_some(inode.mtime),
    };
    let bytes = raw.encode().ok_or_else(changed)?;
    image.put(at, bytes.get(..head_len).ok_or_else(changed)?)
}

/// Writes the data of a directory or a link target: whole blocks at `placed.block`, and the rest
/// there as well, or behind the inode (`data_at`) where it is inline.
fn put_flat(
    image: &mut Image,
    placed: Placed,
    data_at: u64,
    data: &[u8],
) -> Result<(), WriteError> {
    let blocks_at = u64::from(placed.block) * BLOCK;
    if placed.layout != DataLayout::Inline {
        return image.put(blocks_at, data);
    }
    let (blocks, tail) = data.split_at(data.len() - data.len() % BLOCK_LEN);
    image.put(blocks_at, blocks)?;
    image.put(data_at, tail)
}

/// Writes the superblock, last: the UUID depends on everything else.
fn put_super(image: &mut Image, plan: &Plan<'_>, blobs: &[BlobSpec]) -> Result<(), WriteError> {
    let mut volume_name = [0; 16];
    put(&mut volume_name, 0, b"tarnfs");
    let mut this = SuperBlock {
        checksum: 0,
        feature_compat: COMPAT_SB_CHKSUM | COMPAT_MTIME,
        blkszbits: BLOCK_BITS,
        root_nid: plan
            .placed(ROOT)
            .and_then(|root| u16::try_from(root.nid).ok())
            .ok_or_else(|| limit("/", "too many blobs for the root's place in the index"))?,
        inos: plan.inodes,
        build_time: plan.build_time,
        blocks: u32::try_from(plan.image_len / BLOCK)
            .map_err(|_| limit("/", "the index is longer than 2 TiB"))?,
        meta_blkaddr: 0,
        xattr_blkaddr: u32::try_from(plan.shared_at / BLOCK)
            .map_err(|_| limit("/", "the index is longer than 2 TiB"))?,
        uuid: [0; 16],
        volume_name,
        feature_incompat: INCOMPAT_ALL,
        extra_devices: u16::try_from(blobs.len())
            .map_err(|_| limit("/", "more than 65,535 blobs"))?,
        devt_slotoff: DEVICE_TABLE_SLOT,
    };
    image.put(SUPER_OFFSET, &this.encode())?;
    this.uuid = uuid(&image.0, blobs);
    image.put(SUPER_OFFSET, &this.encode())?;
    let at = usize::try_from(SUPER_OFFSET).map_err(|_| changed())?;
    let block = layout::get_array(&image.0, at).ok_or_else(changed)?;
    this.checksum = super_checksum(&block);
    image.put(SUPER_OFFSET, &this.encode())
}

/// A UUID (version 8, RFC 9562) that differs between indexes: overlayfs tells its layers apart
/// by it (fs/overlayfs/super.c:ovl_lower_uuid_ok). From the blobs' tags and lengths and the
/// image's CRC-32C, so that it costs no second hash of the image.
fn uuid(image: &[u8], blobs: &[BlobSpec]) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(b"tarnfs index uuid 1\0");
    hash.update(crc32c::crc32c(image).to_le_bytes());
    hash.update((image.len() as u64).to_le_bytes());
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
