//! The blocks before an entry's data: its ustar header, and what ustar cannot say before that.
//!
//! Numbers, attributes and long names in UTF-8 stand in a pax header (POSIX.1 pax, "pax Extended
//! Header"). Long names that are not UTF-8, which a pax `path` must not be and of which bsdtar
//! complains there, stand in GNU's `L` and `K` headers, which every reader takes as bytes.
//! Records come in a fixed order.

pub(crate) use ::tar::EntryType;
use ::tar::Header;

use crate::inode::{Attr, Kind, Time, Xattr};

use super::acl;

/// Length of a tar block, bytes.
pub(crate) const BLOCK: u64 = crate::tar::BLOCK;
/// The largest id of a ustar header: seven octal digits.
const ID_MAX: u32 = 0o777_7777;
/// The largest size and time of a ustar header: eleven octal digits.
const NUMBER_MAX: u64 = 0o777_7777_7777;
/// The most bytes of extended headers that this crate's reader takes of an entry.
const EXTENDED_MAX: u64 = 16 << 20;
/// The longest extended header that libarchive and Go read.
const COMMON_MAX: u64 = 1 << 20;
/// The longest record that libarchive reads.
const RECORD_MAX: u64 = 999_999;

/// What an entry's headers say.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// Path; a directory's with a slash behind it.
    pub(crate) name: &'a [u8],
    pub(crate) kind: EntryType,
    /// Target of a symbolic or hard link.
    pub(crate) target: &'a [u8],
    pub(crate) perm: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Bytes behind the headers.
    pub(crate) size: u64,
    /// (major, minor) of a device.
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: &'a [Xattr],
    /// The length of a sparse file, whose map (GNU format 1.0) is the beginning of its bytes.
    pub(crate) sparse: Option<u64>,
}

/// Where an entry's data are to begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Where the headers go, bytes from the tar's start, a multiple of 512.
    pub(crate) at: u64,
    /// The data's offset is to be a multiple of this, a power of two of at least 512.
    pub(crate) align: u64,
    /// What stands between headers and data: a sparse file's map, a multiple of 512 bytes.
    pub(crate) lead: u64,
}

/// The attributes of an entry do not fit an extended header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

impl<'a> Entry<'a> {
    /// A file or directory of nobody in particular, without time or attributes.
    pub(crate) fn plain(name: &'a [u8], kind: EntryType, perm: u16, size: u64) -> Self {
        Self {
            name,
            kind,
            target: b"",
            perm,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size,
            device: (0, 0),
            xattrs: &[],
            sparse: None,
        }
    }

    /// What `attr` says of an inode, but for its data; `None` for a socket, which no tar can hold.
    pub(crate) fn of(name: &'a [u8], attr: &Attr) -> Option<Self> {
        let kind = match attr.kind {
            Kind::File => EntryType::Regular,
            Kind::Dir => EntryType::Directory,
            Kind::Symlink => EntryType::Symlink,
            Kind::Char => EntryType::Char,
            Kind::Block => EntryType::Block,
            Kind::Fifo => EntryType::Fifo,
            Kind::Socket => return None,
        };
        let device = match attr.kind {
            Kind::Char | Kind::Block => {
                (rustix::fs::major(attr.rdev), rustix::fs::minor(attr.rdev))
            }
            _ => (0, 0),
        };
        Some(Self {
            uid: attr.uid,
            gid: attr.gid,
            mtime: attr.mtime,
            device,
            ..Self::plain(name, kind, attr.perm, 0)
        })
    }

    /// A further name of an inode, its target yet to be given. It says again what the first name's
    /// entry says of owner, mode and time, and all of it: there are programs that set them by each
    /// name (podman's containers/storage, `pkg/archive`).
    pub(crate) fn link(path: &'a [u8], attr: &Attr) -> Self {
        Self {
            uid: attr.uid,
            gid: attr.gid,
            mtime: attr.mtime,
            ..Self::plain(path, EntryType::Link, attr.perm, 0)
        }
    }

    /// The blocks of all headers.
    pub(crate) fn blocks(&self, place: Place) -> Result<Vec<u8>, TooLong> {
        let mut records = Vec::new();
        let mut long = Vec::new();
        let (prefix, name) = split(self.name).unwrap_or_else(|| {
            long_text(&mut records, &mut long, b"path", b'L', self.name);
            (b"", self.name)
        });
        if self.target.len() > 100 {
            long_text(&mut records, &mut long, b"linkpath", b'K', self.target);
        }
        self.records(&mut records);
        let mut out = Vec::new();
        let behind = long.len() as u64 + BLOCK + place.lead;
        pad(&mut out, &mut records, place, behind);
        if records.len() as u64 > EXTENDED_MAX {
            return Err(TooLong);
        }
        if !records.is_empty() {
            extended(&mut out, EntryType::XHeader, &records);
        }
        out.extend_from_slice(&long);
        out.extend_from_slice(self.ustar(prefix, name).as_bytes());
        Ok(out)
    }

    fn records(&self, out: &mut Vec<u8>) {
        let mut number = |key: &[u8], value: u64| record(out, key, value.to_string().as_bytes());
        if self.size > NUMBER_MAX {
            number(b"size", self.size);
        }
        if self.uid > ID_MAX {
            number(b"uid", self.uid.into());
        }
        if self.gid > ID_MAX {
            number(b"gid", self.gid.into());
        }
        if !plain(self.mtime) && !in_base_256(self.mtime) {
            record(out, b"mtime", seconds(self.mtime).as_bytes());
        }
        for xattr in self.xattrs {
            let mut key = b"SCHILY.xattr.".to_vec();
            escape(&xattr.name, &mut key);
            record(out, &key, &xattr.value);
        }
        // Once more as text, for `tar --acls` and bsdtar.
        for xattr in self.xattrs {
            let key: &[u8] = match &*xattr.name {
                b"system.posix_acl_access" => b"SCHILY.acl.access",
                b"system.posix_acl_default" => b"SCHILY.acl.default",
                _ => continue,
            };
            if let Some(text) = acl::text(&xattr.value) {
                record(out, key, text.as_bytes());
            }
        }
        if let Some(size) = self.sparse {
            record(out, b"GNU.sparse.major", b"1");
            record(out, b"GNU.sparse.minor", b"0");
            record(out, b"GNU.sparse.realsize", size.to_string().as_bytes());
        }
    }

    fn ustar(&self, prefix: &[u8], name: &[u8]) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(self.kind);
        header.set_mode(self.perm.into());
        // What a record says stands as 0 in the header.
        let id = |id: u32| if id > ID_MAX { 0 } else { u64::from(id) };
        header.set_uid(id(self.uid));
        header.set_gid(id(self.gid));
        header.set_size(if self.size > NUMBER_MAX { 0 } else { self.size });
        header.set_mtime(match u64::try_from(self.mtime.sec) {
            Ok(sec) if sec <= NUMBER_MAX => sec,
            _ => 0,
        });
        if in_base_256(self.mtime)
            && let Some(field) = header.as_mut_bytes().get_mut(136..148)
        {
            field.fill(0xff);
            set(field.get_mut(4..), &self.mtime.sec.to_be_bytes());
        }
        let old = header.as_old_mut();
        set(Some(&mut old.name), name);
        set(Some(&mut old.linkname), self.target);
        if let Some(ustar) = header.as_ustar_mut() {
            set(Some(&mut ustar.prefix), prefix);
            ustar.set_device_major(self.device.0);
            ustar.set_device_minor(self.device.1);
        }
        header.set_cksum();
        header
    }
}

/// Copies what fits.
fn set(field: Option<&mut [u8]>, bytes: &[u8]) {
    for (to, from) in field.into_iter().flatten().zip(bytes) {
        *to = *from;
    }
}

/// `name` as ustar's prefix and name; `None` where it is too long for them.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= 100 {
        return Some((b"", name));
    }
    // The last slash that leaves a prefix of at most 155 bytes, and some name behind it.
    let within = name.get(..name.len().saturating_sub(1).min(156))?;
    let slash = within.iter().rposition(|&b| b == b'/')?;
    let (prefix, rest) = (name.get(..slash)?, name.get(slash + 1..)?);
    (!prefix.is_empty() && rest.len() <= 100).then_some((prefix, rest))
}

/// A text too long for its field: a record where it is UTF-8, else a header of GNU's `kind`.
fn long_text(records: &mut Vec<u8>, long: &mut Vec<u8>, key: &[u8], kind: u8, text: &[u8]) {
    if std::str::from_utf8(text).is_ok() {
        record(records, key, text);
        return;
    }
    let mut header = Header::new_gnu();
    fixed(
        &mut header,
        "././@LongLink",
        EntryType::new(kind),
        text.len() as u64 + 1,
    );
    long.extend_from_slice(header.as_bytes());
    long.extend_from_slice(text);
    long.push(0);
    fill_block(long);
}

/// Appends the name of an extended attribute as GNU tar reads it: `=`, which would end the key, as
/// `%3D`, and `%` as `%25`, but only where it would be taken for such an escape: libarchive and Go
/// undo none.
fn escape(name: &[u8], key: &mut Vec<u8>) {
    let mut rest = name;
    while let [byte, behind @ ..] = rest {
        match (byte, behind) {
            (b'=', _) => key.extend_from_slice(b"%3D"),
            (b'%', [a, b, ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                key.extend_from_slice(b"%25");
            }
            _ => key.push(*byte),
        }
        rest = behind;
    }
}

/// The `length key=value\n` of a pax header.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest;
    // The length counts its own digits.
    while len != rest + digits(len) {
        len = rest + digits(len);
    }
    out.extend_from_slice(format!("{len} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(n: usize) -> usize {
    n.to_string().len()
}

/// `comment` records of exactly `len` bytes together, at least 13.
fn comment(out: &mut Vec<u8>, len: u64) {
    if len > RECORD_MAX {
        comment(out, len / 2);
        return comment(out, len - len / 2);
    }
    let len = usize::try_from(len).unwrap_or_default();
    // Not by [`record`]: of 99 and 100 bytes, each of which counts itself, it takes the shorter.
    let end = out.len() + len;
    out.extend_from_slice(format!("{len} comment=").as_bytes());
    out.resize(end.saturating_sub(1), b' ');
    out.push(b'\n');
}

/// Makes the data begin where they are to, with a comment in `records` or, where the extended
/// header would be longer than others read, in a global header in `out`. `behind` bytes stand
/// between the extended header and the data.
fn pad(out: &mut Vec<u8>, records: &mut Vec<u8>, place: Place, behind: u64) {
    let len = (records.len() as u64).next_multiple_of(BLOCK);
    let own = if len == 0 { 0 } else { BLOCK + len };
    let at = place.at + own + behind;
    let mut gap = at.next_multiple_of(place.align) - at;
    if gap == 0 {
        return;
    }
    if len > 0 && len + gap <= COMMON_MAX {
        let rest = len + gap - records.len() as u64;
        return comment(records, rest);
    }
    // A header of its own takes two blocks at least.
    if gap == BLOCK {
        gap += place.align;
    }
    if len == 0 {
        return comment(records, gap - BLOCK);
    }
    let mut padding = Vec::new();
    comment(&mut padding, gap - BLOCK);
    extended(out, EntryType::XGlobalHeader, &padding);
}

fn extended(out: &mut Vec<u8>, kind: EntryType, records: &[u8]) {
    let mut header = Header::new_ustar();
    fixed(&mut header, "././@PaxHeader", kind, records.len() as u64);
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(records);
    fill_block(out);
}

/// A header that is the same for all entries but for its length.
fn fixed(header: &mut Header, name: &str, kind: EntryType, size: u64) {
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    set(Some(&mut header.as_old_mut().name), name.as_bytes());
    header.set_cksum();
}

/// Zeros up to a whole block.
pub(crate) fn fill_block(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(512), 0);
}

/// Whether a ustar header can say the time.
fn plain(time: Time) -> bool {
    time.nsec == 0 && u64::try_from(time.sec).is_ok_and(|sec| sec <= NUMBER_MAX)
}

/// The one time whose digits without their sign are beyond 64 bits. It stands in the header in
/// GNU's form.
fn in_base_256(time: Time) -> bool {
    time == Time {
        sec: i64::MIN,
        nsec: 0,
    }
}

/// POSIX pax, "mtime": decimal seconds with a fraction.
fn seconds(time: Time) -> String {
    match (time.sec, time.nsec) {
        (sec, 0) => sec.to_string(),
        (sec @ 0.., nsec) => format!("{sec}.{nsec:09}"),
        // -1.5 is second -2 and half a second.
        (sec, nsec) => {
            let nsec = 1_000_000_000_u32.saturating_sub(nsec);
            format!("-{}.{nsec:09}", (sec + 1).unsigned_abs())
        }
    }
}

#[cfg(test)]
mod tests;
