//! The walk from header to header.

use std::path::{Path, PathBuf};

use super::error::{Problem, TarError};
use super::header::{Header, compression, unsigned};
use super::path;
use super::pax::{Overrides, Scope};
use super::source::{Block, LEN_UNKNOWN, ReadAt, Window};
use super::sparse::{BodyMap, Map, SEGMENTS_MAX};
use super::xattr::{self, AclTarget};
use super::{BLOCK, Entry, EntryKind, Segment};
use crate::inode::{Kind, Time};

/// The longest extended headers of one entry together. Linux holds 64 KiB an attribute; a map of
/// a million segments is the largest that anybody could mean.
const EXTENSION_MAX: u64 = 16 << 20;

/// The most bytes of padding behind the end marker (GNU tar's largest usual record is 10 KiB).
const TAIL_MAX: u64 = 64 << 20;

/// Reads the entries of a tar one by one; [`Reader::next_entry`] is the only way forward.
pub struct Reader<'a, R: ?Sized> {
    path: PathBuf,
    window: Window<'a, R>,
    /// Where the next header is.
    pos: u64,
    /// The header being looked at, for errors.
    at: u64,
    /// The name of the entry being looked at, for errors; the buffer of all of them.
    name: Vec<u8>,
    /// Whether the name is known.
    named: bool,
    globals: Overrides,
    ended: bool,
}

/// What the extended headers before an entry told.
struct Extensions {
    overrides: Overrides,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// Bytes read of them.
    read: u64,
    any: bool,
}

/// The body of an entry: where it begins, how long it is, where the next header is.
#[derive(Clone, Copy)]
struct Body {
    start: u64,
    len: u64,
    next: u64,
}

impl<'a, R: ReadAt + ?Sized> Reader<'a, R> {
    /// A reader of the tar `source`, which errors call `path`.
    ///
    /// # Errors
    /// The source's length cannot be read, or it is empty.
    pub fn new(source: &'a R, path: &Path) -> Result<Self, TarError> {
        let fail = |problem| TarError::new(path.to_owned(), None, 0, problem);
        let window = Window::new(source).map_err(fail)?;
        if window.len() == 0 {
            return Err(fail(Problem::Empty));
        }
        Ok(Self {
            path: path.to_owned(),
            window,
            pos: 0,
            at: 0,
            name: Vec::new(),
            named: false,
            globals: Overrides::default(),
            ended: false,
        })
    }

    /// The tar's length in bytes; `u64::MAX` as long as it is not known (of a [`super::Stream`],
    /// before all entries are read).
    pub fn tar_len(&self) -> u64 {
        self.window.len()
    }

    /// How far the walk has come: the offset of the next header, or of the end marker's end.
    pub fn position(&self) -> u64 {
        self.pos
    }

    /// The next entry; `None` behind the end marker. After an error the walk is over.
    ///
    /// # Errors
    /// Whatever is wrong with the tar, with the offset of the header at fault.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.named = false;
        let result = self.step();
        if !matches!(result, Ok(Some(_))) {
            self.ended = true;
        }
        result.map_err(|problem| {
            let name = self.named.then_some(&*self.name);
            TarError::new(self.path.clone(), name, self.at, problem)
        })
    }

    fn step(&mut self) -> Result<Option<Entry>, Problem> {
        let mut ext = Extensions {
            overrides: self.globals.clone(),
            long_name: None,
            long_link: None,
            read: 0,
            any: false,
        };
        loop {
            self.at = self.pos;
            let Some(&block) = self.window.block(self.pos)? else {
                return Err(self.no_block()?);
            };
            if block.first() == Some(&0) && block == [0; 512] {
                if ext.any {
                    return Err(Problem::DanglingExtension);
                }
                self.end_marker()?;
                return Ok(None);
            }
            let header = match Header::new(&block) {
                Err(_) if self.pos == 0 => return Err(not_a_tar(&block)),
                other => other?,
            };
            match header.typeflag() {
                // X: Solaris' name for x.
                b'x' | b'X' => {
                    ext.any = true;
                    let body = self.extension(&header, &mut ext.read)?;
                    ext.overrides.apply(body, Scope::Entry)?;
                }
                b'g' => {
                    let body = self.extension(&header, &mut 0)?.to_vec();
                    self.globals.apply(&body, Scope::Global)?;
                    ext.overrides.apply(&body, Scope::Global)?;
                }
                b'L' => {
                    ext.any = true;
                    ext.long_name = Some(c_string(self.extension(&header, &mut ext.read)?));
                }
                b'K' => {
                    ext.any = true;
                    ext.long_link = Some(c_string(self.extension(&header, &mut ext.read)?));
                }
                // A volume label names the tar, not a file.
                b'V' if !ext.any => self.pos = self.body(header.size()?)?.next,
                _ => return self.entry(&header, ext).map(Some),
            }
        }
    }

    /// Why there is no block at the current position.
    fn no_block(&mut self) -> Result<Problem, Problem> {
        let len = self.window.len();
        let left = len.saturating_sub(self.pos);
        Ok(match (self.pos, left) {
            (0, 0) => Problem::Empty,
            (0, _) => {
                let start = self
                    .window
                    .bytes(0, usize::try_from(left.min(BLOCK)).unwrap_or(0))?;
                compressed(start.unwrap_or_default()).unwrap_or(Problem::NotATar)
            }
            // Only a stream's: of others it was known before that the body lies within.
            (pos, 0) if pos > len => Problem::Truncated("in the middle of a body"),
            (_, 0) => Problem::Truncated("without its end marker (two blocks of zeros)"),
            (_, 1..BLOCK) => Problem::Truncated("in the middle of a header"),
            _ => Problem::Truncated("earlier than it did when it was opened"),
        })
    }

    /// The end marker's first block is at the current position: checks the second, and that only
    /// zeros follow.
    fn end_marker(&mut self) -> Result<(), Problem> {
        self.at = self.pos + BLOCK;
        match self.window.block(self.at)? {
            None => return Err(Problem::Truncated("in the middle of its end marker")),
            Some(block) if *block != [0; 512] => return Err(Problem::LoneZeroBlock),
            Some(_) => {}
        }
        self.pos += 2 * BLOCK;
        let mut at = self.pos;
        while at < self.window.len() {
            let len = self.window.len();
            // A stream that goes on has this much at least.
            let tail = if len == LEN_UNKNOWN { at } else { len } - self.pos;
            if tail > TAIL_MAX {
                self.at = self.pos;
                return Err(Problem::LongTail(tail));
            }
            let want = usize::try_from((len - at).min(1 << 16)).unwrap_or(1 << 16);
            let Some(bytes) = self.window.bytes(at, want)? else {
                if len == LEN_UNKNOWN {
                    continue;
                }
                return Err(Problem::Truncated("earlier than it did when it was opened"));
            };
            if let Some(index) = bytes.iter().position(|&b| b != 0) {
                let byte = at + u64::try_from(index).unwrap_or(0);
                let block_start = byte - byte % BLOCK;
                let header = self.window.block(block_start)?;
                if header.is_some_and(|block| Header::new(block).is_ok()) {
                    self.at = block_start;
                    return Err(Problem::EntryAfterEnd);
                }
                self.at = byte;
                return Err(Problem::DataAfterEnd);
            }
            at += u64::try_from(want).unwrap_or(1 << 16);
        }
        Ok(())
    }

    /// The body of `size` bytes behind the header at the current position, which must lie within
    /// the tar with its padding.
    fn body(&self, size: u64) -> Result<Body, Problem> {
        let beyond = || Problem::BodyBeyondEnd {
            size,
            len: self.window.len(),
        };
        let start = self.pos.checked_add(BLOCK).ok_or_else(beyond)?;
        self.body_at(start, size)
    }

    fn body_at(&self, start: u64, size: u64) -> Result<Body, Problem> {
        let len = self.window.len();
        let beyond = || Problem::BodyBeyondEnd { size, len };
        let end = start
            .checked_add(size)
            .filter(|&end| end <= len)
            .ok_or_else(beyond)?;
        let next = end.checked_next_multiple_of(BLOCK).ok_or_else(beyond)?;
        if next > len {
            return Err(Problem::Truncated(
                "in the middle of the padding behind a body",
            ));
        }
        Ok(Body {
            start,
            len: size,
            next,
        })
    }

    /// The body of an extended header at the current position; goes on behind it.
    fn extension(&mut self, header: &Header<'_>, read: &mut u64) -> Result<&[u8], Problem> {
        let body = self.body(header.size()?)?;
        *read = read.saturating_add(body.len);
        if *read > EXTENSION_MAX {
            return Err(Problem::Unsupported(
                "extended headers of more than 16 MiB".into(),
            ));
        }
        let len = usize::try_from(body.len)
            .map_err(|_| Problem::Unsupported("an extended header larger than memory".into()))?;
        self.pos = body.next;
        self.window
            .bytes(body.start, len)?
            .ok_or(Problem::Truncated("in the middle of an extended header"))
    }

    /// The entry whose own header is at the current position.
    fn entry(&mut self, header: &Header<'_>, ext: Extensions) -> Result<Entry, Problem> {
        let Extensions {
            mut overrides,
            long_name,
            long_link,
            ..
        } = ext;
        let offset = self.pos;
        // The header's own name of a sparse file is a made-up one (GNU.sparse.name is the real).
        let raw = [
            overrides.sparse.name.take(),
            overrides.path.take(),
            long_name,
        ]
        .into_iter()
        .flatten()
        .next()
        .unwrap_or_else(|| header.name());
        self.name.clear();
        self.name.extend_from_slice(&raw);
        self.named = true;
        let slash = raw.ends_with(b"/");
        let name = path::normal(raw)?;
        let is_dir_name = slash || name.is_empty();
        let linkpath = overrides.linkpath.take().or(long_link);
        let linkname = || linkpath.unwrap_or_else(|| header.linkname().to_vec());
        let flag = header.typeflag();
        let kind = match flag {
            // An old way to say directory (POSIX, "typeflag").
            b'0' | b'7' if is_dir_name => {
                if overrides.size.map_or_else(|| header.size(), Ok)? != 0 {
                    return Err(Problem::Unsupported("a directory with content".into()));
                }
                self.pos += BLOCK;
                EntryKind::Dir
            }
            // 7: contiguous files, a property that no Linux filesystem has.
            b'0' | b'7' if overrides.sparse.is_sparse() => {
                self.pax_sparse(header, &mut overrides)?
            }
            b'0' | b'7' => {
                let body = self.body(overrides.size.map_or_else(|| header.size(), Ok)?)?;
                self.pos = body.next;
                let segment = Segment {
                    offset: 0,
                    len: body.len,
                    tar_offset: body.start,
                };
                EntryKind::File {
                    size: body.len,
                    segments: if body.len == 0 {
                        Vec::new()
                    } else {
                        vec![segment]
                    },
                }
            }
            b'S' => self.old_sparse(header, &overrides)?,
            b'1' => {
                let data = self.link_data(header, &overrides)?;
                self.pos = self.body(data.unwrap_or(0))?.next;
                EntryKind::HardLink {
                    target: path::link_target(&linkname())?,
                    data,
                }
            }
            b'2' => {
                let target = linkname();
                path::symlink_target(&target)?;
                self.pos += BLOCK;
                EntryKind::Symlink(target)
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
                self.pos = self
                    .body(overrides.size.map_or_else(|| header.size(), Ok)?)?
                    .next;
                EntryKind::Dir
            }
            _ => return Err(Problem::Unsupported(unsupported(flag))),
        };
        let target = match kind {
            EntryKind::Dir => AclTarget::Dir,
            EntryKind::Symlink(_) => AclTarget::Symlink,
            _ => AclTarget::Other,
        };
        let perm = u16::try_from(header.mode()? & 0o7777).unwrap_or(0);
        let (xattrs, perm) = match kind {
            // A hard link has its target's attributes; what its own header says of them is moot.
            EntryKind::HardLink { .. } => (Vec::new(), perm),
            _ => xattr::finish(
                overrides.xattrs,
                overrides.acl_access.as_deref(),
                overrides.acl_default.as_deref(),
                target,
                perm,
            )?,
        };
        Ok(Entry {
            offset,
            path: name,
            kind,
            perm,
            uid: id("user id", overrides.uid.map_or_else(|| header.uid(), Ok)?)?,
            gid: id("group id", overrides.gid.map_or_else(|| header.gid(), Ok)?)?,
            mtime: match overrides.mtime {
                Some(mtime) => mtime,
                None => Time {
                    sec: header.mtime()?,
                    nsec: 0,
                },
            },
            xattrs,
        })
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
    fn pax_sparse(
        &mut self,
        header: &Header<'_>,
        overrides: &mut Overrides,
    ) -> Result<EntryKind, Problem> {
        let body = self.body(overrides.size.map_or_else(|| header.size(), Ok)?)?;
        let sparse = &mut overrides.sparse;
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
            segments: map.finish(size, stored, start)?,
        })
    }

    /// A sparse file of GNU's old format: the map's first four segments stand in the header, 21
    /// in each block that follows.
    fn old_sparse(&mut self, header: &Header<'_>, pax: &Overrides) -> Result<EntryKind, Problem> {
        if header.dialect() != super::header::Dialect::Gnu || pax.sparse.is_sparse() {
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
            segments: map.finish(size, body.len, start)?,
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

/// A GNU long name: C text, with one NUL or more behind it.
fn c_string(body: &[u8]) -> Vec<u8> {
    let end = body
        .iter()
        .rposition(|&b| b != 0)
        .map_or(0, |last| last + 1);
    body.get(..end).unwrap_or_default().to_vec()
}

fn id(field: &'static str, id: u64) -> Result<u32, Problem> {
    // 4294967295 is "no id" to the kernel (include/linux/uidgid.h:uid_valid()).
    u32::try_from(id)
        .ok()
        .filter(|&id| id != u32::MAX)
        .ok_or(Problem::Field {
            field,
            what: "is larger than Linux allows",
        })
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

/// What a first block that is no header is instead.
fn not_a_tar(block: &Block) -> Problem {
    // A tar whose first header is damaged still has its magic.
    compressed(block).unwrap_or_else(|| match (block.get(257..262), Header::new(block)) {
        (Some(b"ustar"), Err(checksum)) => checksum,
        _ => Problem::NotATar,
    })
}

fn compressed(start: &[u8]) -> Option<Problem> {
    compression(start).map(|(format, command)| Problem::Compressed { format, command })
}
