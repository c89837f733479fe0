//! Entries: what one name is in the tar.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::OFlags;

use super::walk::{Dir, File, Walk};
use super::{DiffError, Format};
use crate::inode::{Attr, Kind, Time, Xattr};
use crate::lower::Nid;
use crate::name::Name;
use crate::pack::TOO_LONG;
use crate::pack::header::{BLOCK, Entry, EntryType, Place};
use crate::pack::sparse::Map;
use crate::sys::fs::{self, Stat};
use crate::tar::printable;
use crate::upper::markers::{
    Mark, NULL_DEVICE, Namespace, Opaque, Redirect, is_whiteout_device, mark_in,
};

/// How a whiteout of [`Format::Oci`] begins (image-spec, layer.md, "Whiteouts").
const WH: &[u8] = b".wh.";
/// What makes a directory opaque there.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// From how many bytes on the data of a file begin at a multiple of [`LARGE_ALIGN`] at least: the
/// kernel copies pages in runs of that, and as fast as to a file of its own; filesystems that can
/// share blocks do. It costs 3 bytes of 100 at most on average.
const LARGE: u64 = 1 << 20;
const LARGE_ALIGN: u64 = 64 << 10;

/// From how many bytes of extended attributes on a header might be padded by another.
const LONG_XATTRS: usize = 512 << 10;

const NO_DATA: &str = "has its attributes alone in the upper, and the image has no such file";

/// What a directory of the upper bears.
#[derive(Debug)]
pub(super) struct DirMarks {
    pub(super) opaque: Opaque,
    pub(super) redirect: Option<Redirect>,
    /// What is no mark.
    pub(super) xattrs: Vec<Xattr>,
}

/// The extended attributes of an inode of the upper: which marks it has, and what is none.
#[derive(Debug, Default)]
struct Found {
    marks: Vec<Mark>,
    xattrs: Vec<Xattr>,
}

impl Found {
    fn has(&self, mark: Mark) -> bool {
        self.marks.contains(&mark)
    }
}

/// Where an entry's data are.
#[derive(Debug, Clone, Copy)]
enum Data<'d> {
    /// It has none.
    None,
    /// In an open file of the upper.
    Upper(BorrowedFd<'d>),
    /// In a file of the image.
    Lower(Nid),
}

impl Walk<'_, '_> {
    /// Reads a directory's attributes and marks.
    pub(super) fn look_at_dir(
        &mut self,
        fd: BorrowedFd<'_>,
    ) -> Result<(Attr, DirMarks), DiffError> {
        let attr = self.stat(fd, Kind::Dir)?.attr;
        let found = self.found(fd, false)?;
        let marks = self.of.marks;
        let failed = DiffError::upper(&self.path, "reading a mark");
        let opaque = match found.has(Mark::Opaque) {
            true => marks.opaque(fd),
            false => Ok(Opaque::No),
        };
        let redirect = match found.has(Mark::Redirect) {
            true => marks.redirect(fd),
            false => Ok(None),
        };
        let (opaque, redirect) = opaque
            .and_then(|opaque| Ok((opaque, redirect?)))
            .map_err(failed)?;
        let xattrs = found.xattrs;
        Ok((
            attr,
            DirMarks {
                opaque,
                redirect,
                xattrs,
            },
        ))
    }

    /// Writes a directory.
    pub(super) fn dir_entry(&mut self, attr: &Attr, xattrs: Vec<Xattr>) -> Result<(), DiffError> {
        self.entry(attr, b"", xattrs, Data::None)
    }

    /// Writes a file of the upper; false for one that is not to be seen.
    pub(super) fn upper_file(
        &mut self,
        dir: &Dir,
        parent: BorrowedFd<'_>,
        name: &Name,
        kind: Kind,
    ) -> Result<bool, DiffError> {
        match kind {
            Kind::File => self.regular(dir, parent, name),
            Kind::Socket => {
                if self.sink.writes() {
                    tracing::warn!("{}: a socket is left out", printable(&self.path));
                }
                self.done.sockets += 1;
                Ok(false)
            }
            _ => self.special(parent, name, kind),
        }
    }

    fn regular(
        &mut self,
        dir: &Dir,
        parent: BorrowedFd<'_>,
        name: &Name,
    ) -> Result<bool, DiffError> {
        let fd = self.open(parent, name.as_bytes(), OFlags::empty())?;
        let stat = self.stat(fd.as_fd(), Kind::File)?;
        let attr = stat.attr;
        let may_be_whiteout = dir.xwhiteouts && attr.size == 0;
        if !may_be_whiteout && self.again(&attr)? {
            return Ok(true);
        }
        let found = self.found(fd.as_fd(), false)?;
        if may_be_whiteout {
            if found.has(Mark::Whiteout) {
                return Ok(false);
            }
            if self.again(&attr)? {
                return Ok(true);
            }
        }
        let data = if found.has(Mark::Metacopy) {
            Data::Lower(self.data_of(dir, fd.as_fd(), name, &found, attr.size)?)
        } else {
            Data::Upper(fd.as_fd())
        };
        self.entry(&attr, b"", found.xattrs, data)?;
        if attr.size > 0 {
            let now = self.stat(fd.as_fd(), Kind::File)?;
            if (now.attr.size, now.attr.mtime, now.attr.ctime)
                != (attr.size, attr.mtime, attr.ctime)
            {
                return Err(DiffError::changed(&self.path));
            }
        }
        Ok(true)
    }

    /// The file of the image that has the data of one with attributes alone
    /// (`fs/overlayfs/namei.c:ovl_lookup()`).
    fn data_of(
        &self,
        dir: &Dir,
        fd: BorrowedFd<'_>,
        name: &Name,
        found: &Found,
        size: u64,
    ) -> Result<Nid, DiffError> {
        let redirect = match found.has(Mark::Redirect) {
            true => self.of.marks.redirect(fd),
            false => Ok(None),
        };
        let redirect = redirect.map_err(DiffError::upper(&self.path, "reading a mark"))?;
        let redirect = redirect.unwrap_or_else(|| Redirect::Sibling(name.as_bytes().to_vec()));
        let nid = self.redirected(dir.from, &redirect, Kind::File)?;
        let nid = nid.ok_or_else(|| DiffError::entry(&self.path, NO_DATA))?;
        if self.lower.attr(nid)?.size != size {
            return Err(DiffError::entry(&self.path, NO_DATA));
        }
        Ok(nid)
    }

    /// A symbolic link, device or FIFO; false for a whiteout.
    fn special(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &Name,
        kind: Kind,
    ) -> Result<bool, DiffError> {
        let name = name.as_bytes();
        if kind == Kind::Char {
            let stat = fs::stat(parent, name);
            let stat = stat.map_err(DiffError::upper(&self.path, "reading attributes"))?;
            if is_whiteout_device(&stat) {
                return Ok(false);
            }
        }
        let fd = fs::open(parent, name, OFlags::PATH, 0);
        let fd = fd.map_err(DiffError::upper(&self.path, "opening"))?;
        let mut attr = self.stat(fd.as_fd(), kind)?.attr;
        if self.again(&attr)? {
            return Ok(true);
        }
        let mut found = self.found(fd.as_fd(), true)?;
        if found.has(Mark::NullDevice) && kind == Kind::Char && attr.rdev == NULL_DEVICE {
            match self.format {
                Format::Oci | Format::Podman => attr.rdev = 0,
                // As itself it would be a whiteout there.
                Format::Overlay => {
                    let mark = Namespace::Trusted.null_device_xattr();
                    found.xattrs.push(mark);
                }
                Format::Gvisor => {}
            }
        }
        let target = match kind {
            Kind::Symlink => fs::readlink(parent, name),
            _ => Ok(Vec::new()),
        };
        let target = target.map_err(DiffError::upper(&self.path, "reading the link"))?;
        self.entry(&attr, &target, found.xattrs, Data::None)?;
        Ok(true)
    }

    /// Writes a file of the image; false for one that no tar can hold.
    pub(super) fn lower_file(&mut self, nid: Nid) -> Result<bool, DiffError> {
        let mut attr = self.lower_attr(nid)?;
        if attr.kind == Kind::Socket {
            self.done.sockets += 1;
            return Ok(false);
        }
        if attr.nlink > 1 && self.again_of_lower(nid, &attr)? {
            return Ok(true);
        }
        if attr.kind == Kind::Char && attr.rdev == 0 && self.format == Format::Gvisor {
            attr.rdev = NULL_DEVICE;
        }
        let target = match attr.kind {
            Kind::Symlink => self.lower.readlink(nid)?,
            _ => Vec::new(),
        };
        let data = match attr.kind {
            Kind::File => Data::Lower(nid),
            _ => Data::None,
        };
        let xattrs = self.lower_xattrs(nid)?;
        self.entry(&attr, &target, xattrs, data)?;
        Ok(true)
    }

    /// The extended attributes that the mount shows of an inode of the image.
    pub(super) fn lower_xattrs(&self, nid: Nid) -> Result<Vec<Xattr>, DiffError> {
        let mut xattrs = self.lower.xattrs(nid)?;
        xattrs.retain(|xattr| mark_in(&xattr.name).is_none());
        Ok(xattrs)
    }

    /// Writes a further name of a file of the upper; false for its first one, which is noted.
    fn again(&mut self, attr: &Attr) -> Result<bool, DiffError> {
        if attr.nlink < 2 {
            return Ok(false);
        }
        let file = File::Upper(attr.ino);
        if let Some(first) = self.first.get(&file).cloned() {
            self.link(attr, &first)?;
            return Ok(true);
        }
        self.first.insert(file, self.path.as_slice().into());
        Ok(false)
    }

    /// Writes a hard link to the path `first`.
    pub(super) fn link(&mut self, attr: &Attr, first: &[u8]) -> Result<(), DiffError> {
        self.set_name(false)?;
        let target = [self.prefix(), first].concat();
        let link = Entry {
            target: &target,
            ..Entry::link(&self.name, attr)
        };
        let place = self.place(0);
        let blocks = link.blocks(place);
        let blocks = blocks.map_err(|_| DiffError::entry(&self.path, TOO_LONG))?;
        self.sink.put(&blocks)?;
        self.done.entries += 1;
        Ok(())
    }

    /// Says that `name`, the last of the path, is gone.
    pub(super) fn whiteout(&mut self, name: &Name) -> Result<(), DiffError> {
        self.done.whiteouts += 1;
        match self.format {
            Format::Oci => {
                self.check_plain(name.as_bytes())?;
                let dir = self.path.len() - name.as_bytes().len();
                self.name.clear();
                self.name
                    .extend_from_slice(self.path.get(..dir).unwrap_or_default());
                self.name.extend_from_slice(WH);
                self.name.extend_from_slice(name.as_bytes());
                self.made(EntryType::Regular)
            }
            Format::Overlay | Format::Gvisor => {
                self.set_name(false)?;
                self.made(EntryType::Char)
            }
            Format::Podman => self.delete(),
        }
    }

    /// Says that the directory at the path hides what the image has in it.
    pub(super) fn opaque_file(&mut self) -> Result<(), DiffError> {
        self.set_name(true)?;
        self.name.extend_from_slice(OPAQUE);
        self.made(EntryType::Regular)
    }

    /// Writes an entry of nobody's, without data: a whiteout of either kind.
    fn made(&mut self, kind: EntryType) -> Result<(), DiffError> {
        let entry = Entry {
            name: &self.name,
            kind,
            target: b"",
            perm: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            device: (0, 0),
            xattrs: &[],
            sparse: None,
        };
        let blocks = entry.blocks(self.place(0));
        let blocks = blocks.map_err(|_| DiffError::entry(&self.path, TOO_LONG))?;
        self.sink.put(&blocks)?;
        self.done.entries += 1;
        Ok(())
    }

    fn prefix(&self) -> &'static [u8] {
        match self.format {
            Format::Gvisor => b"./",
            _ => b"",
        }
    }

    /// Puts the name of the entry at the path together.
    fn set_name(&mut self, is_dir: bool) -> Result<(), DiffError> {
        let last = self.path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        self.check_plain(last)?;
        let prefix = self.prefix();
        self.name.clear();
        self.name.extend_from_slice(prefix);
        self.name.extend_from_slice(&self.path);
        match (is_dir, self.path.is_empty()) {
            (true, true) => {
                self.name.clear();
                self.name.extend_from_slice(b"./");
            }
            (true, false) => self.name.push(b'/'),
            (false, _) => {}
        }
        Ok(())
    }

    /// Refuses a name that would say something else.
    fn check_plain(&self, name: &[u8]) -> Result<(), DiffError> {
        if self.format == Format::Oci && name.starts_with(WH) {
            return Err(DiffError::entry(
                &self.path,
                "begins with .wh., which means something else in a layer: leave it out \
                 (--exclude), or take another format",
            ));
        }
        Ok(())
    }

    /// Where the next entry's headers go.
    fn place(&self, lead: u64) -> Place {
        Place {
            at: self.sink.len() - self.base,
            align: self.of.options.align.bytes(),
            lead,
        }
    }

    /// Writes the first name of an inode.
    fn entry(
        &mut self,
        attr: &Attr,
        target: &[u8],
        mut xattrs: Vec<Xattr>,
        data: Data<'_>,
    ) -> Result<(), DiffError> {
        self.set_name(attr.kind == Kind::Dir)?;
        if xattrs.len() > 1 {
            xattrs.sort_unstable();
        }
        if self.format == Format::Gvisor {
            for acl in xattrs
                .iter_mut()
                .filter(|x| x.name.starts_with(b"system.posix_acl_"))
            {
                acl.value = base64(&acl.value);
            }
        }
        let map = match data {
            Data::None => Map::default(),
            Data::Upper(fd) => Map::of_file(fd, attr.size, attr.blocks)
                .map_err(DiffError::upper(&self.path, "looking for holes"))?,
            Data::Lower(nid) => Map::of(self.lower, nid, &self.of.options.side_blobs)?,
        };
        let sparse = attr.kind == Kind::File && !map.is_dense(attr.size);
        let lead = match sparse {
            true => map.text(attr.size),
            false => Vec::new(),
        };
        let plain = Entry::of(&self.name, attr).ok_or_else(|| DiffError::changed(&self.path))?;
        let entry = Entry {
            target,
            size: lead.len() as u64 + map.stored(),
            xattrs: &xattrs,
            sparse: sparse.then_some(attr.size),
            ..plain
        };
        let mut place = self.place(lead.len() as u64);
        if map.stored() >= LARGE {
            place.align = place.align.max(LARGE_ALIGN);
        }
        // gVisor takes no global header, which stands before attributes as long as these.
        let is_long = || xattrs.iter().map(|x| x.value.len()).sum::<usize>() > LONG_XATTRS;
        if map.runs().is_empty() || (self.format == Format::Gvisor && is_long()) {
            place.align = BLOCK;
        }
        let blocks = entry.blocks(place);
        let blocks = blocks.map_err(|_| DiffError::entry(&self.path, TOO_LONG))?;
        self.sink.put(&blocks)?;
        self.sink.put(&lead)?;
        if !self.is_left(data, attr.ino, &map)? {
            for &(offset, len) in map.runs() {
                self.run_of(data, offset, len)?;
            }
        }
        self.sink.fill_block()?;
        self.done.entries += 1;
        Ok(())
    }

    /// Leaves room for a file's data, if they are to be copied later; false if not.
    fn is_left(&mut self, data: Data<'_>, ino: u64, map: &Map) -> Result<bool, DiffError> {
        let Data::Upper(fd) = data else {
            return Ok(false);
        };
        if !self.sink.is_file() || !self.later.take(fd, ino, map, self.sink.len()) {
            return Ok(false);
        }
        self.sink.leave(map.stored())?;
        Ok(true)
    }

    /// Puts `len` bytes of a file's data in, from `offset` on.
    fn run_of(&mut self, data: Data<'_>, offset: u64, len: u64) -> Result<(), DiffError> {
        let Self {
            lower,
            sink,
            path,
            done,
            progress,
            ..
        } = self;
        let bytes = std::cell::Cell::new(done.bytes);
        let progress = std::cell::RefCell::new(progress);
        let on = |n: u64| {
            bytes.set(bytes.get().saturating_add(n));
            progress.borrow_mut()(bytes.get());
        };
        match data {
            Data::None => {}
            Data::Upper(fd) => sink.copy(fd, offset, len, on, |to, at| {
                let read = fs::read(fd, offset + at, to);
                if read.map_err(DiffError::upper(path, "reading"))? != to.len() {
                    return Err(DiffError::changed(path));
                }
                on(to.len() as u64);
                Ok(())
            })?,
            Data::Lower(nid) => sink.fill(len, |to, at| {
                if lower.read(nid, offset + at, to)? != to.len() {
                    return Err(DiffError::entry(
                        path,
                        "is shorter in the image than it says",
                    ));
                }
                on(to.len() as u64);
                Ok::<_, DiffError>(())
            })?,
        }
        done.bytes = bytes.get();
        Ok(())
    }

    fn stat(&self, fd: BorrowedFd<'_>, kind: Kind) -> Result<Stat, DiffError> {
        let stat = fs::fstat(fd).map_err(DiffError::upper(&self.path, "reading attributes"))?;
        if stat.attr.kind != kind {
            return Err(DiffError::changed(&self.path));
        }
        Ok(stat)
    }

    /// Reads the extended attributes of an inode of the upper; `is_path` tells that the descriptor
    /// is an `O_PATH` one.
    fn found(&mut self, fd: BorrowedFd<'_>, is_path: bool) -> Result<Found, DiffError> {
        let failed = |errno| DiffError::upper(&self.path, "reading extended attributes")(errno);
        if is_path {
            let names = fs::listxattr(fd).map_err(failed)?;
            self.xattr_names = names.join(&0);
        } else {
            fs::flistxattr(fd, &mut self.xattr_names).map_err(failed)?;
        }
        let mut found = Found::default();
        for name in self.xattr_names.split(|&b| b == 0) {
            if name.is_empty() {
                continue;
            }
            if let Some(mark) = self.of.marks.mark(name) {
                found.marks.push(mark);
                continue;
            }
            let value = fs::getxattr(fd, name).map_err(failed)?;
            let value = value.ok_or_else(|| DiffError::changed(&self.path))?;
            found.xattrs.push(Xattr {
                name: name.to_vec(),
                value,
            });
        }
        Ok(found)
    }
}

/// RFC 4648, "Base 64 Encoding", without padding: how gVisor has ACLs
/// (pkg/sentry/fsimpl/tmpfs/tar.go).
fn base64(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |n: usize| three.get(n).map_or(0, |&b| u32::from(b));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..=three.len() {
            let digit = bits >> (18 - 6 * n) & 63;
            let digit = usize::try_from(digit)
                .ok()
                .and_then(|digit| DIGITS.get(digit));
            out.extend(digit);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_the_standard_has_it() {
        for (plain, text) in [
            (&b""[..], &b""[..]),
            (b"f", b"Zg"),
            (b"fo", b"Zm8"),
            (b"foo", b"Zm9v"),
            (b"foobar", b"Zm9vYmFy"),
            (b"\xff\xfe\xfb\xef", b"//777w"),
        ] {
            assert_eq!(base64(plain), text);
        }
    }
}
