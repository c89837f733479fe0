//! Gives every inode its place, before a byte is written.
//!
//! Breadth first: the children of one directory lie together, a directory's blocks close to its
//! inode. The root comes first, since its nid has 16 bits. Nothing here recurses.

use std::collections::VecDeque;

use super::space::Space;
use super::xattrs::Xattrs;
use super::{BlobSpec, WriteError, changed, chunks, dirs, kind};
use crate::erofs::layout::{
    BLOCK, BLOCK_BITS, CHUNK_INDEX_LEN, DEVICE_SLOT_LEN, DEVICE_TABLE_SLOT, DataLayout,
    INODE_COMPACT_LEN, INODE_EXTENDED_LEN, MIN_NID, align_up, encode_dev, offset_to_nid,
};
use crate::index::tree::{Content, Extent, Inode, InodeId, ROOT, Tree};
use crate::inode::{Kind, Time};

/// Longest target of a symbolic link (`PATH_MAX` with its NUL).
const SYMLINK_MAX: usize = 4095;

/// Where an inode goes. `nid` 0: nowhere, as no directory names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    /// Its nid; every inode lies within the first 128 GiB.
    pub(super) nid: u32,
    /// First block of its data, if it has whole blocks.
    pub(super) block: u32,
    /// How its data is stored.
    pub(super) layout: DataLayout,
    /// Whether it needs the long form.
    pub(super) extended: bool,
}

const NOWHERE: Placed = Placed {
    nid: 0,
    block: 0,
    layout: DataLayout::Plain,
    extended: false,
};

/// The places of all inodes.
pub(super) struct Plan<'t> {
    /// By inode of the tree.
    pub(super) placed: Vec<Placed>,
    pub(super) xattrs: Xattrs<'t>,
    /// The time of compact inodes.
    pub(super) build_time: Time,
    /// Where the shared xattrs start; a multiple of the block size.
    pub(super) shared_at: u64,
    /// Length of the EROFS image.
    pub(super) image_len: u64,
    pub(super) inodes: u64,
    pub(super) dirents: u64,
    pub(super) file_bytes: u64,
}

/// What is wrong with an inode, before its path is known.
enum Fault {
    Limit(String),
    Tree(&'static str),
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self::Limit(what)
    }
}

impl<'t> Plan<'t> {
    /// Plans the whole image.
    pub(super) fn new(tree: &'t Tree, blobs: &[BlobSpec]) -> Result<Self, WriteError> {
        if u32::try_from(tree.inodes.len()).is_err() {
            return Err(WriteError::Tree("more than 2^32 inodes"));
        }
        let start = (u64::from(DEVICE_TABLE_SLOT) + blobs.len() as u64) * DEVICE_SLOT_LEN as u64;
        let mut this = Self {
            placed: vec![NOWHERE; tree.inodes.len()],
            xattrs: Xattrs::new(&tree.inodes),
            build_time: commonest_time(&tree.inodes),
            shared_at: 0,
            image_len: 0,
            inodes: 0,
            dirents: 0,
            file_bytes: 0,
        };
        let mut space = Space::new(start);
        this.place(tree, blobs, &mut space, ROOT)
            .map_err(|fault| named(fault, tree, ROOT, b""))?;
        match tree.inodes.first().map(|root| &root.content) {
            Some(Content::Dir { parent: ROOT, .. }) => {}
            _ => {
                return Err(WriteError::Tree(
                    "its root is not a directory that holds itself",
                ));
            }
        }
        let mut queue = VecDeque::from([ROOT]);
        while let Some(dir) = queue.pop_front() {
            let Some(Content::Dir { children, .. }) =
                tree.inodes.get(slot(dir)).map(|i| &i.content)
            else {
                return Err(changed());
            };
            for (name, id) in children {
                let is_dir = this
                    .child(tree, blobs, &mut space, dir, id)
                    .map_err(|fault| named(fault, tree, dir, name))?;
                if is_dir {
                    queue.push_back(id);
                }
            }
        }
        this.shared_at = align_up(space.end(), BLOCK).ok_or_else(changed)?;
        let end = this
            .shared_at
            .checked_add(this.xattrs.shared().len() as u64)
            .ok_or_else(changed)?;
        this.image_len = align_up(end, BLOCK).ok_or_else(changed)?;
        Ok(this)
    }

    /// Where an inode of the tree went, if it has a place.
    pub(super) fn placed(&self, id: InodeId) -> Option<Placed> {
        self.placed
            .get(slot(id))
            .copied()
            .filter(|placed| placed.nid != 0)
    }

    /// Places what one name of `dir` leads to, unless another name did; whether it is a
    /// directory.
    fn child(
        &mut self,
        tree: &Tree,
        blobs: &[BlobSpec],
        space: &mut Space,
        dir: InodeId,
        id: InodeId,
    ) -> Result<bool, Fault> {
        self.dirents += 1;
        let inode = tree
            .inodes
            .get(slot(id))
            .ok_or(Fault::Tree("a name leads to no inode"))?;
        let known = self.placed(id).is_some();
        if let Content::Dir { parent, .. } = &inode.content {
            if known || *parent != dir {
                return Err(Fault::Tree("a directory lies in two directories"));
            }
            self.place(tree, blobs, space, id)?;
            return Ok(true);
        }
        if !known {
            self.place(tree, blobs, space, id)?;
        }
        Ok(false)
    }

    /// Gives inode `id` its place.
    fn place(
        &mut self,
        tree: &Tree,
        blobs: &[BlobSpec],
        space: &mut Space,
        id: InodeId,
    ) -> Result<(), Fault> {
        let inode = tree
            .inodes
            .get(slot(id))
            .ok_or(Fault::Tree("it has no root"))?;
        if inode.mtime.nsec >= 1_000_000_000 {
            return Err(Fault::Tree("nanoseconds beyond a second"));
        }
        if !inode.xattrs.is_sorted_by(|a, b| a.name < b.name) {
            return Err(Fault::Tree(
                "extended attributes are not sorted, or one occurs twice",
            ));
        }
        let body_len = self.xattrs.body_len(&inode.xattrs)? as u64;
        let mut placed = NOWHERE;
        let mut indexes = None;
        let mut flat = 0;
        let mut size = 0;
        match &inode.content {
            Content::File { size: len, extents } => {
                size = *len;
                let shape = chunks::plan(size, extents).map_err(|why| why.to_string())?;
                within_blobs(extents, blobs)?;
                self.file_bytes = self.file_bytes.saturating_add(size);
                if shape.count > 0 {
                    placed.layout = DataLayout::Chunk;
                    indexes = Some(shape.count * CHUNK_INDEX_LEN as u64);
                }
            }
            Content::Dir { children, parent } => {
                dirs::check(children).map_err(Fault::Tree)?;
                let names = dirs::entries(id, *parent, children).map(|(name, _)| name);
                flat = dirs::packed_len(names);
            }
            Content::Symlink(target) => {
                if target.is_empty() || target.len() > SYMLINK_MAX || target.contains(&0) {
                    return Err(Fault::Limit(
                        "a link target is 1 to 4,095 bytes long and holds no NUL".to_owned(),
                    ));
                }
                flat = target.len() as u64;
            }
            Content::Device(Kind::Char | Kind::Block, dev) => {
                device_number(*dev).ok_or_else(|| {
                    "its device number is beyond 12 bits (major) and 20 bits (minor)".to_owned()
                })?;
            }
            Content::Device(..) => return Err(Fault::Tree("a device that is none")),
            Content::Fifo | Content::Socket => {}
        }
        placed.extended = !self.is_compact(inode, size.max(flat));
        let head_len = if placed.extended {
            INODE_EXTENDED_LEN
        } else {
            INODE_COMPACT_LEN
        } as u64;
        let front = head_len + body_len;
        let at = match indexes {
            // The array begins at a multiple of 8 (fs/erofs/data.c:erofs_map_blocks). Inodes may
            // cross a block boundary (fs/erofs/inode.c:erofs_read_inode), and so may xattrs
            // between two of their 4-byte words (fs/erofs/xattr.c:erofs_xattr_iter_fixup).
            Some(indexes) => {
                let front = front.next_multiple_of(CHUNK_INDEX_LEN as u64);
                space.inode(front + indexes, |_| true)
            }
            None => place_flat(space, &mut placed, kind(&inode.content), front, flat)?,
        };
        // 32 bits of nid: what a row of the reverse table and FUSE on 32-bit kernels can hold.
        let nid = at.and_then(offset_to_nid).filter(|&nid| nid >= MIN_NID);
        placed.nid = nid
            .and_then(|nid| u32::try_from(nid).ok())
            .ok_or_else(|| "the index would be longer than 128 GiB".to_owned())?;
        *self
            .placed
            .get_mut(slot(id))
            .ok_or(Fault::Tree("it has no root"))? = placed;
        self.inodes += 1;
        Ok(())
    }

    /// Whether the short form holds everything (fs/erofs/erofs_fs.h:erofs_inode_compact).
    fn is_compact(&self, inode: &Inode, size: u64) -> bool {
        inode.mtime == self.build_time
            && u16::try_from(inode.uid).is_ok()
            && u16::try_from(inode.gid).is_ok()
            && u16::try_from(inode.nlink).is_ok()
            && u32::try_from(size).is_ok()
    }
}

/// Places an inode whose data, `flat` bytes, lies in the image itself.
fn place_flat(
    space: &mut Space,
    placed: &mut Placed,
    kind: Kind,
    front: u64,
    flat: u64,
) -> Result<Option<u64>, Fault> {
    let tail = flat % BLOCK;
    // Inline data lies within one block (fs/erofs/data.c:erofs_map_blocks). Before Linux 6.12 a
    // short link's inode, xattrs and target had to lie in the same one, or it was taken for
    // corruption (fs/erofs/inode.c:erofs_fill_symlink).
    let fits = |at: u64| match kind {
        Kind::Symlink => flat < BLOCK && at % BLOCK + front + tail <= BLOCK,
        _ => (at + front) % BLOCK + tail <= BLOCK,
    };
    let inline = if tail == 0 {
        None
    } else {
        space.inode(front + tail, fits)
    };
    let mut blocks = flat / BLOCK;
    let at = if inline.is_some() {
        placed.layout = DataLayout::Inline;
        inline
    } else {
        blocks = flat.div_ceil(BLOCK);
        space.inode(front, |_| true)
    };
    if blocks > 0 {
        placed.block = space
            .blocks(blocks)
            .and_then(|start| u32::try_from(start >> BLOCK_BITS).ok())
            .ok_or_else(|| "the index would be longer than 2 TiB".to_owned())?;
    }
    Ok(at)
}

/// The device number as EROFS has it, of one as makedev(3) has it.
pub(super) fn device_number(dev: u64) -> Option<u32> {
    encode_dev(rustix::fs::major(dev), rustix::fs::minor(dev))
}

fn slot(id: InodeId) -> usize {
    id.0 as usize
}

/// Checks that the blobs hold all data, in whole blocks: the kernel reads whole blocks and answers
/// EIO where a file that it mounts from ends within one (measured on Linux 6.18).
fn within_blobs(extents: &[Extent], blobs: &[BlobSpec]) -> Result<(), Fault> {
    for extent in extents {
        let end = extent.blob_offset.checked_add(extent.len);
        let (Some(end), Some(blob)) = (end, blobs.get(usize::from(extent.blob))) else {
            return Err(Fault::Tree("data outside its blob"));
        };
        if end > blob.len {
            return Err(Fault::Tree("data outside its blob"));
        }
        if align_up(end, BLOCK).is_none_or(|end| end > blob.len) {
            let len = blob.len;
            let what =
                format!("its blob ends at byte {len}, within the file's last 512-byte block");
            return Err(Fault::Limit(what));
        }
    }
    Ok(())
}

/// The time that most inodes have, and of several the earliest: they can be compact.
fn commonest_time(inodes: &[Inode]) -> Time {
    let mut times: Vec<Time> = inodes.iter().map(|inode| inode.mtime).collect();
    times.retain(|time| time.nsec < 1_000_000_000);
    times.sort_unstable();
    times
        .chunk_by(|a, b| a == b)
        .filter_map(|run| Some((run.len(), std::cmp::Reverse(*run.first()?))))
        .max()
        .map_or(Time::default(), |(_, std::cmp::Reverse(time))| time)
}

/// The error for what `name` of directory `dir` leads to (an empty name: `dir` itself).
fn named(fault: Fault, tree: &Tree, dir: InodeId, name: &[u8]) -> WriteError {
    let what = match fault {
        Fault::Tree(what) => return WriteError::Tree(what),
        Fault::Limit(what) => what,
    };
    let mut names = vec![name];
    let mut at = dir;
    // Directories form a tree as far as they have places; the bound holds if they do not.
    for _ in 0..tree.inodes.len() {
        let parent = match tree.inodes.get(slot(at)).map(|inode| &inode.content) {
            Some(Content::Dir { parent, .. }) if at != ROOT => *parent,
            _ => break,
        };
        if let Some(Content::Dir { children, .. }) =
            tree.inodes.get(slot(parent)).map(|inode| &inode.content)
        {
            let own = children.iter().find(|(_, id)| *id == at);
            names.extend(own.map(|(name, _)| name));
        }
        at = parent;
    }
    let mut path = String::new();
    for name in names.iter().rev() {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(name));
    }
    WriteError::Limit { path, what }
}
