//! The walk through the upper: what each name leads to, and what of the image lies beneath it.
//!
//! Two directories of the image matter to one of the upper, nearly always the same: the one that it
//! goes on with in the mount (`from`), and the one that is at its path in the image, over which the
//! tar is applied (`under`). Where they differ, for a directory that was renamed or made anew, the
//! one beneath is to be hidden, and what comes from the other to be written in full.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::vec;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::later::Later;
use super::{Changes, DiffError, Format, OnProgress, Written};
use crate::inode::{Attr, Kind};
use crate::lower::{Lower, Nid};
use crate::name::Name;
use crate::pack::sink::Sink;
use crate::pack::{PATH_LEN_MAX, TOO_DEEP};
use crate::sys::fs;
use crate::upper::markers::{Opaque, Redirect};

/// Directories above the one that is read whose descriptors are kept; farther ones are opened
/// again.
const KEPT: usize = 64;

/// What a walk has done.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) entries: u64,
    pub(super) whiteouts: u64,
    pub(super) sockets: u64,
    /// Bytes of files.
    pub(super) bytes: u64,
    /// The paths that are gone, as [`Format::Podman`] has them: the elements of a JSON array.
    pub(super) deleted: Vec<u8>,
}

impl Done {
    pub(super) fn written(&self, len: u64) -> Written {
        Written {
            len,
            entries: self.entries,
            whiteouts: self.whiteouts,
            sockets: self.sockets,
            digest: None,
        }
    }
}

/// Tells the files of both layers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum File {
    /// By its number in the upper's filesystem.
    Upper(u64),
    /// In the image.
    Lower(Nid),
}

/// A directory on the way.
#[derive(Debug)]
pub(super) struct Dir {
    /// Its descriptor in the upper, while it is kept.
    fd: Option<OwnedFd>,
    /// Whether the upper has it.
    in_upper: bool,
    /// Whether it may hold whiteouts that are files.
    pub(super) xwhiteouts: bool,
    /// The directory of the image that it goes on with.
    pub(super) from: Option<Nid>,
    /// The directory of the image that shows through the tar's, unless it is told otherwise.
    pub(super) under: Option<Nid>,
    /// Its entries that are still to come.
    left: vec::IntoIter<Child>,
    /// Length of its path.
    path_len: usize,
}

/// A name in a directory.
#[derive(Debug)]
struct Child {
    name: Name,
    here: Here,
}

/// Where what a name leads to is.
#[derive(Debug, Clone, Copy)]
enum Here {
    /// In the upper, of this type.
    Upper(Kind),
    /// In the image alone, in a directory that is written in full.
    Lower(Nid, Kind),
    /// Nowhere, though the image has the name at this path.
    Nowhere,
}

/// A walk that writes.
pub(super) struct Walk<'w, 's> {
    pub(super) of: &'w Changes<'w>,
    pub(super) format: Format,
    pub(super) lower: &'w Lower,
    pub(super) sink: &'w mut Sink<'s>,
    /// Large files that are not written now.
    pub(super) later: &'w mut Later,
    /// Where the tar begins in the sink.
    pub(super) base: u64,
    /// The path that it is at: no leading slash.
    pub(super) path: Vec<u8>,
    /// Where names of entries are put together.
    pub(super) name: Vec<u8>,
    /// Where names of extended attributes are read to.
    pub(super) xattr_names: Vec<u8>,
    /// The first name of each file that has several.
    pub(super) first: HashMap<File, Box<[u8]>>,
    /// Links that are written at the end, of what was written in full: by path, with the first
    /// name ([`Format::Gvisor`]).
    pub(super) late: BTreeMap<Vec<u8>, (Nid, Box<[u8]>)>,
    /// Whether files can be opened without a trace in their times of access.
    noatime: bool,
    pub(super) done: Done,
    pub(super) progress: OnProgress<'w>,
}

impl<'w, 's> Walk<'w, 's> {
    pub(super) fn new(
        of: &'w Changes<'w>,
        format: Format,
        sink: &'w mut Sink<'s>,
        later: &'w mut Later,
        progress: OnProgress<'w>,
    ) -> Self {
        Self {
            of,
            format,
            lower: of.lower,
            base: sink.len(),
            sink,
            later,
            path: Vec::new(),
            name: Vec::new(),
            xattr_names: Vec::new(),
            first: HashMap::new(),
            late: BTreeMap::new(),
            noatime: true,
            done: Done::default(),
            progress,
        }
    }

    /// Writes all of it.
    pub(super) fn run(mut self) -> Result<Done, DiffError> {
        let mut dirs = vec![self.root()?];
        while let Some(dir) = dirs.last_mut() {
            self.path.truncate(dir.path_len);
            let Some(child) = dir.left.next() else {
                dirs.pop();
                continue;
            };
            if dir.in_upper && dir.fd.is_none() {
                dir.fd = Some(self.reopen()?);
            }
            if let Some(next) = self.child(dir, &child)? {
                dirs.push(next);
                // None too many for a process that may have a thousand open.
                let far = dirs.len().checked_sub(KEPT);
                if let Some(far) = far.and_then(|far| dirs.get_mut(far)) {
                    far.fd = None;
                }
            }
        }
        self.path.clear();
        self.late_links()?;
        // Also where there was no byte to read.
        self.lower.check_blobs()?;
        self.sink.put(&[0; 1024])?;
        Ok(self.done)
    }

    fn root(&mut self) -> Result<Dir, DiffError> {
        let fd = self.reopen()?;
        let (attr, marks) = self.look_at_dir(fd.as_fd())?;
        let root = Some(self.lower.root());
        self.dir_entry(&attr, marks.xattrs)?;
        self.enter(Some(fd), marks.opaque == Opaque::XWhiteouts, root, root)
    }

    /// What is at the path that the walk is at.
    fn child(&mut self, dir: &Dir, child: &Child) -> Result<Option<Dir>, DiffError> {
        let name = &child.name;
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.as_bytes());
        if self.is_excluded(&self.path) {
            return Ok(None);
        }
        if self.path.len() > PATH_LEN_MAX {
            return Err(DiffError::entry(&self.path, TOO_DEEP));
        }
        let is_there = match (child.here, &dir.fd) {
            (Here::Upper(Kind::Dir), Some(fd)) => {
                return self.upper_dir(dir, fd.as_fd(), name).map(Some);
            }
            (Here::Upper(kind), Some(fd)) => self.upper_file(dir, fd.as_fd(), name, kind)?,
            (Here::Lower(nid, Kind::Dir), _) => return self.lower_dir(dir, nid, name).map(Some),
            (Here::Lower(nid, _), _) => self.lower_file(nid)?,
            (Here::Nowhere | Here::Upper(_), _) => false,
        };
        if !is_there {
            // overlayfs' whiteouts hide what the directory goes on with.
            let hides = match self.format {
                Format::Overlay => dir.from,
                _ => dir.under,
            };
            if let Some(hides) = hides
                && self.lower.lookup(hides, name)?.is_some()
            {
                self.whiteout(name)?;
            }
        }
        Ok(None)
    }

    pub(super) fn is_excluded(&self, path: &[u8]) -> bool {
        let mut patterns = self.of.options.exclude.iter();
        patterns.any(|pattern| pattern.is_of(path))
    }

    fn upper_dir(
        &mut self,
        dir: &Dir,
        parent: BorrowedFd<'_>,
        name: &Name,
    ) -> Result<Dir, DiffError> {
        let fd = self.open(parent, name.as_bytes(), OFlags::DIRECTORY)?;
        let (attr, mut marks) = self.look_at_dir(fd.as_fd())?;
        let from = match (marks.opaque, &marks.redirect) {
            (Opaque::Yes, _) => None,
            (_, Some(redirect)) => self.redirected(dir.from, redirect, Kind::Dir)?,
            (_, None) => self.lower_dir_in(dir.from, name)?,
        };
        let mut under = match self.format {
            Format::Overlay => from,
            _ => self.lower_dir_in(dir.under, name)?,
        };
        let hides = under.is_some() && from != under;
        let ours = crate::upper::markers::Namespace::Trusted;
        match self.format {
            Format::Gvisor if hides => marks.xattrs.push(ours.opaque_xattr()),
            Format::Overlay if marks.opaque == Opaque::Yes => {
                marks.xattrs.push(ours.opaque_xattr());
            }
            Format::Overlay => marks
                .xattrs
                .extend(marks.redirect.as_ref().map(|to| ours.redirect_xattr(to))),
            _ => {}
        }
        self.dir_entry(&attr, marks.xattrs)?;
        if hides && self.format == Format::Oci {
            self.opaque_file()?;
        }
        if hides && self.format != Format::Podman {
            under = None;
        }
        self.enter(Some(fd), marks.opaque == Opaque::XWhiteouts, from, under)
    }

    fn lower_dir(&mut self, dir: &Dir, nid: Nid, name: &Name) -> Result<Dir, DiffError> {
        let attr = self.lower_attr(nid)?;
        let xattrs = self.lower_xattrs(nid)?;
        let under = self.lower_dir_in(dir.under, name)?;
        self.dir_entry(&attr, xattrs)?;
        self.enter(None, false, Some(nid), under)
    }

    /// A directory that has been written, to be walked.
    fn enter(
        &mut self,
        fd: Option<OwnedFd>,
        xwhiteouts: bool,
        from: Option<Nid>,
        under: Option<Nid>,
    ) -> Result<Dir, DiffError> {
        let mut all = Vec::new();
        if let Some(fd) = &fd {
            let listed = fs::list(fd.as_fd());
            let listed = listed.map_err(DiffError::upper(&self.path, "listing the directory"))?;
            all.extend(listed.into_iter().map(|entry| Child {
                name: entry.name,
                here: Here::Upper(entry.kind),
            }));
            all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        }
        if from != under {
            self.add(&mut all, from, Here::Lower)?;
            self.add(&mut all, under, |_, _| Here::Nowhere)?;
        }
        Ok(Dir {
            in_upper: fd.is_some(),
            fd,
            xwhiteouts,
            from,
            under,
            left: all.into_iter(),
            path_len: self.path.len(),
        })
    }

    /// Adds the names of a directory of the image that are not among `all`, which is in order.
    fn add(
        &self,
        all: &mut Vec<Child>,
        dir: Option<Nid>,
        here: impl Fn(Nid, Kind) -> Here,
    ) -> Result<(), DiffError> {
        let Some(dir) = dir else { return Ok(()) };
        let mut more = Vec::new();
        self.lower.readdir(dir, 0, &mut |entry| {
            let there = all.binary_search_by(|child| child.name.as_bytes().cmp(entry.name));
            if there.is_err()
                && let Ok(name) = Name::new(entry.name)
            {
                let here = here(entry.nid, entry.kind);
                more.push(Child { name, here });
            }
            ControlFlow::Continue(())
        })?;
        all.append(&mut more);
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// The directory of the image called `name` in `dir`.
    fn lower_dir_in(&self, dir: Option<Nid>, name: &Name) -> Result<Option<Nid>, DiffError> {
        let Some(dir) = dir else { return Ok(None) };
        match self.lower.lookup(dir, name)? {
            Some(nid) if self.lower.attr(nid)?.kind == Kind::Dir => Ok(Some(nid)),
            _ => Ok(None),
        }
    }

    /// What of `kind` a redirect leads to from a directory that goes on with `dir`
    /// (`fs/overlayfs/namei.c:ovl_lookup_layer()`).
    pub(super) fn redirected(
        &self,
        dir: Option<Nid>,
        redirect: &Redirect,
        kind: Kind,
    ) -> Result<Option<Nid>, DiffError> {
        let (mut at, path) = match redirect {
            Redirect::Sibling(name) => (dir, name),
            Redirect::Absolute(path) => (Some(self.lower.root()), path),
        };
        for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
            let part = Name::new(part).map_err(|_| {
                DiffError::entry(&self.path, "its redirect (an overlayfs mark) names nothing")
            })?;
            at = match at {
                Some(dir) if self.lower.attr(dir)?.kind == Kind::Dir => {
                    self.lower.lookup(dir, &part)?
                }
                _ => None,
            };
        }
        Ok(match at {
            Some(nid) if self.lower.attr(nid)?.kind == kind => Some(nid),
            _ => None,
        })
    }

    /// The attributes that the mount shows of an inode of the image.
    pub(super) fn lower_attr(&self, nid: Nid) -> Result<Attr, DiffError> {
        let mut attr = self.lower.attr(nid)?;
        if let Some((uid, gid)) = self.of.options.squash {
            (attr.uid, attr.gid) = (uid, gid);
        }
        Ok(attr)
    }

    /// Opens `name` in a directory of the upper for reading.
    pub(super) fn open(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        more: OFlags,
    ) -> Result<OwnedFd, DiffError> {
        // What is no file by now must not make anybody wait.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | more;
        let mut opened = Err(Errno::PERM);
        if self.noatime {
            opened = fs::open(dir, name, flags | OFlags::NOATIME, 0);
        }
        if matches!(opened, Err(Errno::PERM)) {
            // Only its owner may leave no trace (open(2)).
            self.noatime = false;
            opened = fs::open(dir, name, flags, 0);
        }
        opened.map_err(DiffError::upper(&self.path, "opening"))
    }

    /// Opens the directory of the upper at the path that the walk is at.
    fn reopen(&mut self) -> Result<OwnedFd, DiffError> {
        let path = std::mem::take(&mut self.path);
        let name: &[u8] = if path.is_empty() { b"." } else { &path };
        let opened = self.open(self.of.root, name, OFlags::DIRECTORY);
        self.path = path;
        opened
    }

    /// Writes the links that could not be written where they are.
    fn late_links(&mut self) -> Result<(), DiffError> {
        let mut made = HashSet::new();
        for (path, (nid, first)) in std::mem::take(&mut self.late) {
            self.late_dirs(&path, &mut made)?;
            self.path = path;
            let attr = self.lower_attr(nid)?;
            self.link(&attr, &first)?;
        }
        Ok(())
    }

    /// Writes the directories of the image above a late link that are not written yet.
    fn late_dirs(&mut self, path: &[u8], made: &mut HashSet<Vec<u8>>) -> Result<(), DiffError> {
        let mut at = self.lower.root();
        let mut end = 0;
        let mut in_upper = true;
        while let Some(len) = path
            .get(end..)
            .and_then(|rest| rest.iter().position(|&b| b == b'/'))
        {
            let part = Name::new(path.get(end..end + len).unwrap_or_default());
            let part = part.map_err(|_| DiffError::changed(path))?;
            let Some(nid) = self.lower.lookup(at, &part)? else {
                return Err(DiffError::changed(path));
            };
            at = nid;
            let dir = path.get(..end + len).unwrap_or_default();
            in_upper = in_upper && self.upper_has(dir)?;
            if !in_upper && made.insert(dir.to_vec()) {
                self.path = dir.to_vec();
                let attr = self.lower_attr(nid)?;
                let xattrs = self.lower_xattrs(nid)?;
                self.dir_entry(&attr, xattrs)?;
            }
            end += len + 1;
        }
        Ok(())
    }
}
