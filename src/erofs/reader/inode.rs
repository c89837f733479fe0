//! Inodes, and where their bytes are.

use crate::inode::{Kind, Time};

use super::{ReadError, Reader, Result, SIZE_MAX, damaged, l};

/// How an inode's data is stored, with positions that were checked against the file's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `head` bytes at `start`, then the rest of the size at `tail`, all in the image.
    Flat {
        /// Byte position of the whole blocks.
        start: u64,
        /// Bytes there.
        head: u64,
        /// Byte position of what follows.
        tail: u64,
    },
    /// A table of chunk addresses.
    Chunks {
        /// log2 of the chunk length in bytes.
        bits: u8,
        /// 8-byte chunk indexes with device numbers, else 4-byte block addresses.
        indexes: bool,
        /// Byte position of the table; all of it lies in the image.
        table: u64,
    },
}

/// A decoded inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub nid: u64,
    /// Its type.
    pub kind: Kind,
    /// `st_mode & 0o7777`.
    pub perm: u16,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// Length in bytes; 0 for device nodes, FIFOs and sockets.
    pub size: u64,
    /// (major, minor) of a device node, else (0, 0).
    pub device: (u32, u32),
    /// Where the bytes are.
    pub layout: Layout,
    /// Byte position of the attribute area.
    pub(super) xattr_pos: u64,
    /// Its length; 0 = none. The area lies in the image.
    pub(super) xattr_len: u64,
}

/// Where a run of a file's bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: zeros.
    Hole,
    /// In the image at this byte; the run lies in the file.
    Image(u64),
    /// In an external device.
    Device {
        /// Which: index into [`Super::devices`](super::Super::devices).
        index: u16,
        /// Byte position there.
        offset: u64,
    },
}

impl Place {
    /// Whether a run here of `len` bytes goes on in `next`.
    fn goes_on(self, len: u64, next: Self) -> bool {
        match (self, next) {
            (Self::Hole, Self::Hole) => true,
            (Self::Image(a), Self::Image(b)) => a.checked_add(len) == Some(b),
            (
                Self::Device {
                    index: i,
                    offset: a,
                },
                Self::Device {
                    index: j,
                    offset: b,
                },
            ) => i == j && a.checked_add(len) == Some(b),
            _ => false,
        }
    }
}

/// Consecutive bytes of a file that are stored together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// How many bytes, > 0.
    pub len: u64,
    /// Where they are.
    pub place: Place,
}

impl Reader {
    /// Byte position of inode `nid` (fs/erofs/internal.h:erofs_iloc).
    fn inode_pos(&self, nid: u64) -> Result<u64> {
        l::nid_to_offset(nid)
            .and_then(|offset| offset.checked_add(self.sb.meta))
            .ok_or(ReadError::Damaged {
                what: "an inode number beyond the file",
                offset: 0,
            })
    }

    /// Decodes inode `nid`.
    ///
    /// # Errors
    /// [`ReadError::Damaged`].
    pub fn inode(&self, nid: u64) -> Result<Inode> {
        let pos = self.inode_pos(nid)?;
        let at = |what: &'static str| ReadError::Damaged { what, offset: pos };
        // At the very end only a compact inode may fit.
        let raw = self
            .slice(pos, l::INODE_EXTENDED_LEN as u64, "")
            .or_else(|_| {
                self.slice(
                    pos,
                    l::INODE_COMPACT_LEN as u64,
                    "an inode behind the end of the file",
                )
            })?;
        let inode = l::RawInode::decode(raw).map_err(|bad| at(bad.0))?;
        let mode = u32::from(inode.mode);
        let kind = Kind::from_mode(mode).ok_or(at("an inode of an unknown type"))?;
        if inode.size > SIZE_MAX {
            return Err(at("a file size beyond 2^63"));
        }
        let xattr_pos = pos + inode.len() as u64;
        let xattr_len = l::xattr_body_len(inode.xattr_icount) as u64;
        self.slice(
            xattr_pos,
            xattr_len,
            "extended attributes behind the end of the file",
        )?;
        let body = xattr_pos + xattr_len;
        let (size, device, layout) = match kind {
            Kind::File | Kind::Dir | Kind::Symlink => {
                (inode.size, (0, 0), self.layout(&inode, kind, body)?)
            }
            Kind::Char | Kind::Block => (0, l::decode_dev(inode.u), NOWHERE),
            Kind::Fifo | Kind::Socket => (0, (0, 0), NOWHERE),
        };
        Ok(Inode {
            nid,
            kind,
            perm: inode.mode & 0o7777,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime.unwrap_or(Time {
                sec: self.sb.epoch,
                nsec: self.sb.epoch_nsec,
            }),
            size,
            device,
            layout,
            xattr_pos,
            xattr_len,
        })
    }

    /// Checks where the data of `inode` is; `body` is the position behind its attributes.
    fn layout(&self, inode: &l::RawInode, kind: Kind, body: u64) -> Result<Layout> {
        let size = inode.size;
        let what = "file data behind the end of the file";
        match inode.layout {
            l::DataLayout::Plain | l::DataLayout::Inline => {
                // fs/erofs/data.c:erofs_map_blocks: the last block of FLAT_INLINE is the tail.
                let blocks = size.div_ceil(self.block_size());
                let tailed = inode.layout == l::DataLayout::Inline;
                let head = match blocks.checked_sub(1) {
                    Some(full) if tailed => full << self.sb.block_bits,
                    _ => size,
                };
                let start = if head == 0 {
                    0
                } else {
                    u64::from(inode.u) << self.sb.block_bits
                };
                self.slice(start, head, what)?;
                let tail_len = size.saturating_sub(head);
                self.slice(body, tail_len, what)?;
                if tail_len > self.block_size() - (body & (self.block_size() - 1)) {
                    return damaged("inline data that crosses a block boundary", body);
                }
                Ok(Layout::Flat {
                    start,
                    head,
                    tail: body,
                })
            }
            l::DataLayout::Chunk if kind != Kind::File => {
                damaged("a directory or symbolic link made of chunks", body)
            }
            l::DataLayout::Chunk => {
                let format = u16::try_from(inode.u & 0xffff).unwrap_or(u16::MAX);
                if format & !l::CHUNK_ALL != 0 {
                    return damaged("an unknown chunk format", body);
                }
                let indexes = format & l::CHUNK_INDEXES != 0;
                let unit: u64 = if indexes { 8 } else { 4 };
                let bits = self.sb.block_bits
                    + u8::try_from(format & l::CHUNK_BLKBITS_MASK).unwrap_or_default();
                let table =
                    l::align_up(body, unit).ok_or(ReadError::Damaged { what, offset: body })?;
                // At most 2^54 chunks of 512 bytes: times 8 fits.
                let chunks = size.div_ceil(1 << bits);
                self.slice(
                    table,
                    chunks * unit,
                    "a chunk table behind the end of the file",
                )?;
                Ok(Layout::Chunks {
                    bits,
                    indexes,
                    table,
                })
            }
        }
    }

    /// The bytes of `inode` from `offset` on that are stored together, up to `want` (> 0) of them
    /// and the end of the file; `None` at or behind the end.
    ///
    /// # Errors
    /// [`ReadError::Damaged`].
    pub fn run(&self, inode: &Inode, offset: u64, want: u64) -> Result<Option<Run>> {
        let left = inode.size.saturating_sub(offset).min(want);
        if left == 0 {
            return Ok(None);
        }
        match inode.layout {
            Layout::Flat { start, head, tail } => Ok(Some(if offset < head {
                Run {
                    len: left.min(head - offset),
                    place: Place::Image(start + offset),
                }
            } else {
                Run {
                    len: left,
                    place: Place::Image(tail + (offset - head)),
                }
            })),
            Layout::Chunks { bits, .. } => {
                let chunk_len = 1_u64 << bits;
                let within = offset & (chunk_len - 1);
                let mut number = offset >> bits;
                let mut len = left.min(chunk_len - within);
                let place = self.chunk(inode, number, within, len)?;
                // Bounded by the table, which lies in the file.
                while len < left {
                    number += 1;
                    let more = chunk_len.min(left - len);
                    if !place.goes_on(len, self.chunk(inode, number, 0, more)?) {
                        break;
                    }
                    len += more;
                }
                Ok(Some(Run { len, place }))
            }
        }
    }

    /// Where `len` bytes from `within` chunk `number` on are.
    fn chunk(&self, inode: &Inode, number: u64, within: u64, len: u64) -> Result<Place> {
        let Layout::Chunks { indexes, table, .. } = inode.layout else {
            return Err(ReadError::WrongKind(inode.nid));
        };
        let unit = if indexes { 8 } else { 4 };
        let pos = table + number * unit;
        let what = "a chunk index behind the end of the file";
        let raw = self.slice(pos, unit, what)?;
        let end = ReadError::Damaged { what, offset: pos };
        let (device, block) = if indexes {
            (
                l::get_u16(raw, l::chunk::DEVICE_ID).ok_or(end)?,
                l::get_u32(raw, l::chunk::BLKADDR).ok_or(end)?,
            )
        } else {
            (0, l::get_u32(raw, 0).ok_or(end)?)
        };
        if block == l::NULL_ADDR {
            return Ok(Place::Hole);
        }
        let byte = (u64::from(block) << self.sb.block_bits) + within;
        if device == 0 {
            return self.unified(byte, len);
        }
        // fs/erofs/data.c:erofs_map_blocks masks the id; more than the table has is damage.
        let index = device - 1;
        if usize::from(index) >= self.sb.devices.len() {
            return damaged("a chunk in a device that the table does not list", pos);
        }
        // Whether the device is that long, only its file can tell: erofs-utils leaves the length
        // in the table 0, and fs/erofs/data.c:erofs_map_dev does not look at it either.
        Ok(Place::Device {
            index,
            offset: byte,
        })
    }

    /// An address without a device: in the image, or where a device is mapped behind it
    /// (fs/erofs/data.c:erofs_map_dev).
    fn unified(&self, byte: u64, len: u64) -> Result<Place> {
        for (index, slot) in self
            .sb
            .devices
            .iter()
            .enumerate()
            .filter(|(_, d)| d.mapped != 0)
        {
            let start = slot.mapped << self.sb.block_bits;
            let device_len = slot.blocks << self.sb.block_bits;
            let Some(offset) = byte.checked_sub(start).filter(|&o| o < device_len) else {
                continue;
            };
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            return match offset.checked_add(len) {
                Some(end) if end <= device_len => Ok(Place::Device { index, offset }),
                _ => damaged("a chunk behind the end of its device", byte),
            };
        }
        self.slice(byte, len, "a chunk behind the end of the file")?;
        Ok(Place::Image(byte))
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`ReadError::WrongKind`] when it is none, [`ReadError::Damaged`].
    pub fn target(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.kind != Kind::Symlink {
            return Err(ReadError::WrongKind(inode.nid));
        }
        let pos = inode.xattr_pos;
        // PATH_MAX counts the NUL.
        if inode.size == 0 || inode.size >= 4096 {
            return damaged(
                "a symbolic link that is empty or longer than 4095 bytes",
                pos,
            );
        }
        let mut target = Vec::new();
        while let Some(Run { len, place }) = self.run(inode, target.len() as u64, inode.size)? {
            let Place::Image(at) = place else {
                return damaged("a symbolic link outside the image", pos);
            };
            target.extend_from_slice(self.slice(at, len, "a symbolic link behind the end")?);
        }
        if target.contains(&0) {
            return damaged("a symbolic link with a NUL byte", pos);
        }
        Ok(target)
    }

    /// Bytes that are stored for a regular file: its size without the holes.
    ///
    /// # Errors
    /// [`ReadError::Damaged`].
    pub fn stored(&self, inode: &Inode) -> Result<u64> {
        if !matches!(inode.layout, Layout::Chunks { .. }) {
            return Ok(inode.size);
        }
        let mut offset = 0;
        let mut stored = 0;
        while let Some(run) = self.run(inode, offset, u64::MAX)? {
            offset += run.len;
            if run.place != Place::Hole {
                stored += run.len;
            }
        }
        Ok(stored)
    }
}

const NOWHERE: Layout = Layout::Flat {
    start: 0,
    head: 0,
    tail: 0,
};
