//! Gives every inode its place and writes it there, in one walk through the tree.
//!
//! Breadth first: the children of one directory lie together, a directory's blocks close to its
//! inode. The root comes first, since its nid has 16 bits. A directory's data is written when its
//! children have their places. Nothing here recurses.

use std::collections::VecDeque;

use super::space::Space;
use super::trailer::Rows;
use super::xattrs::Xattrs;
use super::{BlobSpec, Image, WriteError, changed, chunks, dirs, kind};
use crate::erofs::layout::{
    BLOCK, BLOCK_BITS, BLOCK_LEN, CHUNK_INDEX_LEN, DEVICE_SLOT_LEN, DEVICE_TABLE_SLOT, DataLayout,
    INODE_COMPACT_LEN, INODE_EXTENDED_LEN, MIN_NID, RawInode, align_up, chunk_format, encode_dev,
    file_type, offset_to_nid, xattr_icount,
};
use crate::index::tree::{Children, Content, Extent, Inode, InodeId, ROOT, Tree};
use crate::inode::{Kind, Time};

/// Longest target of a symbolic link (`PATH_MAX` with its NUL).
const SYMLINK_MAX: usize = 4095;

/// A directory that has its place and waits for its data.
struct Waiting {
    id: InodeId,
    place: Flat,
}

/// Where the data of a directory or a link target goes: whole blocks from `block` on, what is left
/// there as well, or behind the inode.
#[derive(Clone, Copy)]
struct Flat {
    block: u32,
    inline_at: Option<u64>,
}

/// The image while it is filled.
pub(super) struct Body<'t> {
    tree: &'t Tree,
    blobs: &'t [BlobSpec],
    space: Space,
    pub(super) image: Image,
    /// By inode of the tree; 0: it has no place, as no directory has named it yet.
    nids: Vec<u32>,
    xattrs: Xattrs<'t>,
    scratch: Vec<u8>,
    /// The time of compact inodes.
    pub(super) build_time: Time,
    /// Where the shared xattrs start; a multiple of the block size.
    pub(super) shared_at: u64,
    /// The nid of the root.
    pub(super) root: u32,
    pub(super) rows: Rows,
    pub(super) inodes: u64,
    pub(super) file_bytes: u64,
}

/// What is wrong with an inode, before its path is known.
enum Fault {
    Limit(String),
    Tree(&'static str),
    Write(WriteError),
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self::Limit(what)
    }
}

impl From<WriteError> for Fault {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}

impl<'t> Body<'t> {
    /// Lays out and fills the whole image but superblock and device table.
    pub(super) fn new(tree: &'t Tree, blobs: &'t [BlobSpec]) -> Result<Self, WriteError> {
        if u32::try_from(tree.inodes.len()).is_err() {
            return Err(WriteError::Tree("more than 2^32 inodes"));
        }
        let start = (u64::from(DEVICE_TABLE_SLOT) + blobs.len() as u64) * DEVICE_SLOT_LEN as u64;
        let mut this = Self {
            tree,
            blobs,
            space: Space::new(start),
            image: Image::of(tree.inodes.len()),
            nids: vec![0; tree.inodes.len()],
            xattrs: Xattrs::new(&tree.inodes),
            scratch: Vec::new(),
            build_time: commonest_time(&tree.inodes),
            shared_at: 0,
            root: 0,
            rows: Rows::of(tree.inodes.len()),
            inodes: 0,
            file_bytes: 0,
        };
        let root = this
            .place(ROOT)
            .map_err(|fault| named(fault, tree, ROOT, b""))?;
        match tree.inodes.first().map(|root| &root.content) {
            Some(Content::Dir { parent: ROOT, .. }) => {}
            _ => {
                return Err(WriteError::Tree(
                    "its root is not a directory that holds itself",
                ));
            }
        }
        this.root = this.nid(ROOT).ok_or_else(changed)?;
        let mut queue = VecDeque::from_iter(root);
        while let Some(dir) = queue.pop_front() {
            let Some(Content::Dir { children, parent }) =
                tree.inodes.get(slot(dir.id)).map(|inode| &inode.content)
            else {
                return Err(changed());
            };
            let own = this.nid(dir.id).ok_or_else(changed)?;
            for (name, id) in children {
                let below = this
                    .child(dir.id, id)
                    .map_err(|fault| named(fault, tree, dir.id, name))?;
                queue.extend(below);
                this.rows.push(this.nid(id).ok_or_else(changed)?, own);
            }
            this.put_dir(&dir, *parent, children)?;
        }
        this.finish()
    }

    /// Puts the shared xattrs behind everything else.
    fn finish(mut self) -> Result<Self, WriteError> {
        self.shared_at = align_up(self.space.end(), BLOCK).ok_or_else(changed)?;
        let shared = self.xattrs.shared();
        let end = self.shared_at.checked_add(shared.len() as u64);
        let end = end.and_then(|end| align_up(end, BLOCK));
        self.image.put(self.shared_at, shared)?;
        self.image.set_len(end.ok_or_else(changed)?)?;
        Ok(self)
    }

    /// The place of an inode, if it has one.
    pub(super) fn nid(&self, id: InodeId) -> Option<u32> {
        self.nids.get(slot(id)).copied().filter(|&nid| nid != 0)
    }

    /// Places what one name of `dir` leads to, unless another name did; gives it if it is a
    /// directory.
    fn child(&mut self, dir: InodeId, id: InodeId) -> Result<Option<Waiting>, Fault> {
        let inode = self
            .tree
            .inodes
            .get(slot(id))
            .ok_or(Fault::Tree("a name leads to no inode"))?;
        let known = self.nid(id).is_some();
        match &inode.content {
            Content::Dir { parent, .. } if known || *parent != dir => {
                Err(Fault::Tree("a directory lies in two directories"))
            }
            _ if known => Ok(None),
            _ => self.place(id),
        }
    }

    /// Gives inode `id` its place and writes all of it there but a directory's data.
    fn place(&mut self, id: InodeId) -> Result<Option<Waiting>, Fault> {
        let tree = self.tree;
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
        let xattrs_len = self.xattrs.body_len(&inode.xattrs)?;
        let mut indexes = None;
        let mut flat = 0;
        let mut size = 0;
        let mut u = 0;
        match &inode.content {
            Content::File { size: len, extents } => {
                size = *len;
                let shape = chunks::plan(size, extents).map_err(|why| why.to_string())?;
                within_blobs(extents, self.blobs)?;
                self.file_bytes = self.file_bytes.saturating_add(size);
                if shape.count > 0 {
                    u = chunk_format(shape.bits).ok_or_else(changed)?.into();
                    indexes = Some((shape, extents));
                }
            }
            Content::Dir { children, .. } => flat = dirs::measure(children).map_err(Fault::Tree)?,
            Content::Symlink(target) => {
                if target.is_empty() || target.len() > SYMLINK_MAX || target.contains(&0) {
                    return Err(Fault::Limit(
                        "a link target is 1 to 4,095 bytes long and holds no NUL".to_owned(),
                    ));
                }
                flat = target.len() as u64;
            }
            Content::Device(Kind::Char | Kind::Block, dev) => {
                u = device_number(*dev).ok_or_else(|| {
                    "its device number is beyond 12 bits (major) and 20 bits (minor)".to_owned()
                })?;
            }
            Content::Device(..) => return Err(Fault::Tree("a device that is none")),
            Content::Fifo | Content::Socket => {}
        }
        let size = size.max(flat);
        let extended = !self.is_compact(inode, size);
        let head_len = if extended {
            INODE_EXTENDED_LEN
        } else {
            INODE_COMPACT_LEN
        };
        let front = (head_len + xattrs_len) as u64;
        let (at, layout, block) = match indexes {
            // The array begins at a multiple of 8 (fs/erofs/data.c:erofs_map_blocks). Inodes may
            // cross a block boundary (fs/erofs/inode.c:erofs_read_inode), and so may xattrs
            // between two of their 4-byte words (fs/erofs/xattr.c:erofs_xattr_iter_fixup).
            Some((shape, _)) => {
                let front = front.next_multiple_of(CHUNK_INDEX_LEN as u64);
                let len = front + shape.count * CHUNK_INDEX_LEN as u64;
                (self.space.inode(len, |_| true), DataLayout::Chunk, 0)
            }
            None => place_flat(&mut self.space, kind(&inode.content), front, flat)?,
        };
        // 32 bits of nid: what a row of the reverse table and FUSE on 32-bit kernels can hold.
        let placed = at
            .and_then(|at| Some((at, offset_to_nid(at).filter(|&nid| nid >= MIN_NID)?)))
            .and_then(|(at, nid)| Some((at, u32::try_from(nid).ok()?)));
        let (at, nid) =
            placed.ok_or_else(|| "the index would be longer than 128 GiB".to_owned())?;
        *self
            .nids
            .get_mut(slot(id))
            .ok_or(Fault::Tree("it has no root"))? = nid;
        self.inodes += 1;

        let raw = RawInode {
            layout,
            xattr_icount: xattr_icount(xattrs_len).ok_or_else(changed)?,
            mode: u16::try_from(kind(&inode.content).mode_bits() | u32::from(inode.perm & 0o7777))
                .map_err(|_| changed())?,
            nlink: inode.nlink,
            size,
            u: if flat > 0 { block } else { u },
            ino: nid,
            uid: inode.uid,
            gid: inode.gid,
            mtime: extended.then_some(inode.mtime),
        };
        let bytes = raw.encode().ok_or_else(changed)?;
        self.image
            .put(at, bytes.get(..head_len).ok_or_else(changed)?)?;
        let mut scratch = std::mem::take(&mut self.scratch);
        if xattrs_len > 0 {
            scratch.clear();
            self.xattrs.put_body(&inode.xattrs, &mut scratch)?;
            self.image.put(at + head_len as u64, &scratch)?;
        }
        let place = Flat {
            block,
            inline_at: (layout == DataLayout::Inline).then_some(at + front),
        };
        let mut waiting = None;
        match (&inode.content, indexes) {
            (_, Some((shape, extents))) => {
                scratch.clear();
                chunks::put(shape, extents, &mut scratch).ok_or_else(changed)?;
                let at = align_up(at + front, CHUNK_INDEX_LEN as u64).ok_or_else(changed)?;
                self.image.put(at, &scratch)?;
            }
            (Content::Symlink(target), _) => self.put_flat(place, target)?,
            (Content::Dir { .. }, _) => waiting = Some(Waiting { id, place }),
            _ => {}
        }
        self.scratch = scratch;
        Ok(waiting)
    }

    /// Writes the data of a directory whose children have their places.
    fn put_dir(
        &mut self,
        dir: &Waiting,
        parent: InodeId,
        children: &Children,
    ) -> Result<(), WriteError> {
        let mut data = std::mem::take(&mut self.scratch);
        data.clear();
        dirs::pack(dirs::entries(dir.id, parent, children), &mut data, |id| {
            let inode = self.tree.inodes.get(slot(id))?;
            Some((self.nid(id)?.into(), file_type(kind(&inode.content))))
        })
        .ok_or_else(changed)?;
        self.put_flat(dir.place, &data)?;
        self.scratch = data;
        Ok(())
    }

    fn put_flat(&mut self, place: Flat, data: &[u8]) -> Result<(), WriteError> {
        let blocks_at = u64::from(place.block) * BLOCK;
        let Some(inline_at) = place.inline_at else {
            return self.image.put(blocks_at, data);
        };
        let (blocks, tail) = data.split_at(data.len() - data.len() % BLOCK_LEN);
        self.image.put(blocks_at, blocks)?;
        self.image.put(inline_at, tail)
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

/// Places an inode whose data, `flat` bytes, lies in the image itself; gives its place, how the
/// data is stored and the first block of it, if it has whole blocks.
fn place_flat(
    space: &mut Space,
    kind: Kind,
    front: u64,
    flat: u64,
) -> Result<(Option<u64>, DataLayout, u32), Fault> {
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
    let (at, layout, blocks) = if inline.is_some() {
        (inline, DataLayout::Inline, flat / BLOCK)
    } else {
        let at = space.inode(front, |_| true);
        (at, DataLayout::Plain, flat.div_ceil(BLOCK))
    };
    let mut block = 0;
    if blocks > 0 {
        block = space
            .blocks(blocks)
            .and_then(|start| u32::try_from(start >> BLOCK_BITS).ok())
            .ok_or_else(|| "the index would be longer than 2 TiB".to_owned())?;
    }
    Ok((at, layout, block))
}

/// The device number as EROFS has it, of one as makedev(3) has it.
fn device_number(dev: u64) -> Option<u32> {
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
    let times = || {
        let times = inodes.iter().map(|inode| inode.mtime);
        times.filter(|time| time.nsec < 1_000_000_000)
    };
    // Times fall into groups. One that is in a smaller group than some time is common is not the
    // commonest, so that few of them have to be sorted.
    let mut groups = vec![0_u32; TIME_GROUPS];
    for time in times() {
        if let Some(count) = groups.get_mut(time_group(time)) {
            *count += 1;
        }
    }
    let of_groups = |least: usize| {
        let least = u32::try_from(least).unwrap_or(u32::MAX);
        let held = |time: &Time| groups.get(time_group(*time)).is_some_and(|&n| n >= least);
        commonest(times().filter(held).collect())
    };
    let fullest = groups.iter().copied().max().unwrap_or(0) as usize;
    of_groups(of_groups(fullest).0).1
}

/// The commonest of `times`, the earliest of several, and how often it is there.
fn commonest(mut times: Vec<Time>) -> (usize, Time) {
    times.sort_unstable();
    times
        .chunk_by(|a, b| a == b)
        .filter_map(|run| Some((run.len(), std::cmp::Reverse(*run.first()?))))
        .max()
        .map_or((0, Time::default()), |(count, time)| (count, time.0))
}

/// How many groups of times there are.
const TIME_GROUPS: usize = 4096;

/// The group of `time`.
fn time_group(time: Time) -> usize {
    let mixed =
        (time.sec.cast_unsigned() << 30 ^ u64::from(time.nsec)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::try_from(mixed >> 32).unwrap_or(0) % TIME_GROUPS
}

/// The error for what `name` of directory `dir` leads to (an empty name: `dir` itself).
fn named(fault: Fault, tree: &Tree, dir: InodeId, name: &[u8]) -> WriteError {
    let what = match fault {
        Fault::Tree(what) => return WriteError::Tree(what),
        Fault::Write(error) => return error,
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
