//! From an entry's own header, and what the extended headers before it said, to an [`Entry`].

use super::error::Problem;
use super::header::{Dialect, Header, unsigned};
use super::path;
use super::pax::Overrides;
use super::reader::{Extensions, Walk};
use super::source::{Block, ReadAt};
use super::sparse::{BodyMap, Map, PaxSparse, SEGMENTS_MAX};
use super::xattr::{self, AclTarget};
use super::{BLOCK, Entry, EntryKind, Segment};
use crate::inode::{Kind, Runs, Time};

impl<R: ReadAt + ?Sized> Walk<'_, R> {
    /// Fills `entry` with the one whose own header is at the current position; takes what it
    /// keeps of `ext`.
    pub(super) fn entry(
        &mut self,
        header: &Header<'_>,
        ext: &mut Extensions,
        entry: &mut Entry,
    ) -> Result<(), Problem> {
        let Extensions {
            overrides,
            long_name,
            long_link,
            ..
        } = ext;
        entry.offset = self.pos;
        // The header's own name of a sparse file is a made-up one (GNU.sparse.name is the real).
        let sparse_name = overrides.sparse.as_ref().and_then(|s| s.name.as_deref());
        self.name.clear();
        match sparse_name
            .or(overrides.path.get())
            .or_else(|| long_name.get())
        {
            Some(raw) => self.name.extend_from_slice(raw),
            None => header.put_name(&mut self.name),
        }
        self.named = true;
        self.parent.path(&self.name, &mut entry.path)?;
        let is_dir_name = self.name.ends_with(b"/") || entry.path.is_empty();
        let linkname = overrides.linkpath.get().or_else(|| long_link.get());
        let linkname = || linkname.unwrap_or_else(|| header.linkname());
        let size = || overrides.size.map_or_else(|| header.size(), Ok);
        let flag = header.typeflag();
        entry.kind = match flag {
            // An old way to say directory (POSIX, "typeflag").
            b'0' | b'7' if is_dir_name => {
                if size()? != 0 {
                    return Err(Problem::Unsupported("a directory with content".into()));
                }
                self.pos += BLOCK;
                EntryKind::Dir
            }
            // 7: contiguous files, a property that no Linux filesystem has.
            b'0' | b'7' => match overrides.sparse.take_if(|sparse| sparse.is_sparse()) {
                Some(sparse) => self.pax_sparse(size()?, *sparse)?,
                None => {
                    let body = self.body(size()?)?;
                    self.pos = body.next;
                    EntryKind::File {
                        size: body.len,
                        segments: if body.len == 0 {
                            Runs::default()
                        } else {
                            Runs::One(Segment {
                                offset: 0,
                                len: body.len,
                                tar_offset: body.start,
                            })
                        },
                    }
                }
            },
            b'S' => self.old_sparse(header, overrides)?,
            b'1' => {
                let data = self.link_data(header, overrides)?;
                self.pos = self.body(data.unwrap_or(0))?.next;
                EntryKind::HardLink {
                    target: path::link_target(linkname())?,
                    data,
                }
            }
            b'2' => {
                let target = linkname();
                path::symlink_target(target)?;
                self.pos += BLOCK;
                EntryKind::Symlink(target.to_vec())
            }
            b'3' | b'4' => {
                self.pos += BLOCK;
                let (major, minor) = header.device()?;
                EntryKind::Device(
                    if flag == b'3' {
                        Kind::Char
                    } else {
                        Kind::Block
                    },
                    device(
                        overrides.devmajor.unwrap_or(major),
                        overrides.devminor.unwrap_or(minor),
                    )?,
                )
            }
            // The size of types 1 to 6 says nothing of a body (POSIX, "size").
            b'5' => {
                self.pos += BLOCK;
                EntryKind::Dir
            }
            b'6' => {
                self.pos += BLOCK;
                EntryKind::Fifo
            }
            // GNU's incremental backup: a directory, whose body lists what was in it.
            b'D' => {
                self.pos = self.body(size()?)?.next;
                EntryKind::Dir
            }
            _ => return Err(Problem::Unsupported(unsupported(flag))),
        };
        let target = match entry.kind {
            EntryKind::Dir => AclTarget::Dir,
            EntryKind::Symlink(_) => AclTarget::Symlink,
            _ => AclTarget::Other,
        };
        let perm = u16::try_from(header.mode()? & 0o7777).unwrap_or(0);
        (entry.xattrs, entry.perm) = match entry.kind {
            // A hard link has its target's attributes; what its own header says of them is moot.
            EntryKind::HardLink { .. } => (Vec::new(), perm),
            _ => xattr::finish(
                std::mem::take(&mut overrides.xattrs),
                overrides.acl_access.as_deref(),
                overrides.acl_default.as_deref(),
                target,
                perm,
            )?,
        };
        entry.uid = id("user id", overrides.uid.map_or_else(|| header.uid(), Ok)?)?;
        entry.gid = id("group id", overrides.gid.map_or_else(|| header.gid(), Ok)?)?;
        entry.mtime = match overrides.mtime {
            Some(mtime) => mtime,
            None => Time {
                sec: header.mtime()?,
                nsec: 0,
            },
        };
        Ok(())
    }

    /// How many bytes of content a hard link carries.
    ///
    /// POSIX lets pax tars store the target's content with each link, says that ustar links have
    /// none whatever their size says, and gives no way to tell the two apart. A pax `size`
    /// decides; else (as libarchive does) the body is there if no header follows without it.
    fn link_data(
        &mut self,
        header: &Header<'_>,
        overrides: &Overrides,
    ) -> Result<Option<u64>, Problem> {
        let size = match overrides.size {
            Some(size) => return Ok((size > 0).then_some(size)),
            None => header.size()?,
        };
        if size == 0 {
            return Ok(None);
        }
        let next = self.window.block(self.pos + BLOCK)?;
        let header_follows =
            next.is_none_or(|block| *block == [0; 512] || Header::new(block).is_ok());
        Ok((!header_follows).then_some(size))
    }

    /// A sparse file told by pax records (GNU formats 0.0, 0.1, 1.0).
    fn pax_sparse(&mut self, len: u64, sparse: PaxSparse) -> Result<EntryKind, Problem> {
        let body = self.body(len)?;
        let size = sparse
            .size
            .ok_or(Problem::Sparse("it does not say the file's size"))?;
        let mut start = body.start;
        let map = if sparse.map_in_body()? {
            let mut map = BodyMap::default();
            loop {
                if start - body.start >= body.len {
                    return Err(Problem::Sparse("it is longer than the entry"));
                }
                let block = self
                    .window
                    .block(start)?
                    .ok_or(Problem::Truncated("in a sparse map"))?;
                start += BLOCK;
                if map.block(block)? {
                    break map.finish();
                }
            }
        } else {
            sparse.take_map()?
        };
        let stored = body
            .len
            .checked_sub(start - body.start)
            .ok_or(Problem::Sparse("it is longer than the entry"))?;
        self.pos = body.next;
        Ok(EntryKind::File {
            size,
            segments: map.finish(size, stored, start)?.into(),
        })
    }

    /// A sparse file of GNU's old format: the map's first four segments stand in the header, 21
    /// in each block that follows.
    fn old_sparse(&mut self, header: &Header<'_>, pax: &Overrides) -> Result<EntryKind, Problem> {
        if header.dialect() != Dialect::Gnu || pax.sparse.as_ref().is_some_and(|s| s.is_sparse()) {
            return Err(Problem::Unsupported(
                "a sparse file of star's format".into(),
            ));
        }
        let mut map = Map::default();
        let mut more = add_segments(&mut map, header.bytes(386, 4 * 24), header.bytes(482, 1))?;
        let mut start = self.pos + BLOCK;
        for _ in 0..=SEGMENTS_MAX {
            if !more {
                break;
            }
            let block: &Block = self
                .window
                .block(start)?
                .ok_or(Problem::Truncated("in a sparse map"))?;
            start += BLOCK;
            let (segments, rest) = block.split_at_checked(21 * 24).unwrap_or_default();
            more = add_segments(&mut map, segments, rest.get(..1).unwrap_or_default())?;
        }
        let size = unsigned("real size", header.bytes(483, 12))?;
        let body = self.body_at(start, pax.size.map_or_else(|| header.size(), Ok)?)?;
        self.pos = body.next;
        Ok(EntryKind::File {
            size,
            segments: map.finish(size, body.len, start)?.into(),
        })
    }
}

/// Adds the segments of an old sparse header; true if the map goes on in a further block.
fn add_segments(map: &mut Map, fields: &[u8], extended: &[u8]) -> Result<bool, Problem> {
    let (pairs, _) = fields.as_chunks::<24>();
    for pair in pairs {
        let (offset, len) = pair.split_at_checked(12).unwrap_or_default();
        // An empty length ends the map (GNU tar's oldgnu_add_sparse()).
        if len.first() == Some(&0) {
            break;
        }
        map.push(
            unsigned("sparse offset", offset)?,
            unsigned("sparse length", len)?,
        )?;
    }
    Ok(extended != [0])
}

fn id(field: &'static str, id: u64) -> Result<u32, Problem> {
    // 4294967295 is "no id" to the kernel (include/linux/uidgid.h:uid_valid()).
    match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Problem::Field {
            field,
            what: "is larger than Linux allows",
        }),
    }
}

/// Linux has 12 bits for the major and 20 for the minor number (include/linux/kdev_t.h).
fn device(major: u64, minor: u64) -> Result<u64, Problem> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major @ 0..4096), Ok(minor @ 0..1_048_576)) => Ok(rustix::fs::makedev(major, minor)),
        _ => Err(Problem::Field {
            field: "device number",
            what: "is larger than Linux allows",
        }),
    }
}

fn unsupported(flag: u8) -> String {
    match flag {
        b'M' => "a file continued from another volume; join the volumes first (type M)".into(),
        b'N' => "a list of long names of an old GNU tar (type N)".into(),
        b'A' => "a Solaris ACL (type A)".into(),
        b'E' => "a Solaris extended attribute file (type E)".into(),
        b'I' => "star's inode metadata (type I)".into(),
        b'V' => "a volume label in the middle of an entry (type V)".into(),
        flag => format!("type {}", flag.escape_ascii()),
    }
}
