//! Finding: from a number to where its inode is, and from a directory and a name to what is there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::attr::open_checked;
use super::error::{Doing, refuse};
use super::node::{
    FACT_IMPURE, FACT_PURE, FACT_REMOVED, FACT_XWHITEOUTS, Link, Node, Place, Seed, UPPER_BASE,
};
use super::{Entry, Error, Ino, Overlay, ROOT_INO, Result, Target};
use crate::inode::{Attr, Kind};
use crate::lower::Nid;
use crate::name::Name;
use crate::sys::fs::{self, Stat};
use crate::upper::markers::{Namespace, Opaque, Redirect};

/// What a name in a directory leads to. The two layers are looked at as
/// `fs/overlayfs/namei.c:ovl_lookup()` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nothing, in either layer.
    Absent,
    /// Nothing: the upper hides what the lower may have.
    Whiteout,
    /// An inode of the image alone.
    Lower(Nid),
    /// The same to who looks; but the upper has this name already, for a copy that may yet be
    /// undone ([`Place::Rising`]).
    Rising(Nid),
    /// An inode of the upper.
    Upper(InUpper),
}

impl Origin {
    /// The inode of the image that is seen under the name.
    pub(super) fn lower(self) -> Option<Nid> {
        match self {
            Self::Lower(nid) | Self::Rising(nid) => Some(nid),
            Self::Absent | Self::Whiteout | Self::Upper(_) => None,
        }
    }
}

/// An inode found in the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InUpper {
    /// Its attributes there.
    pub(super) stat: Stat,
    /// The number that the mount shows.
    pub(super) ino: u64,
    /// The lower directory that it merges with.
    pub(super) lower: Option<Nid>,
    /// What its own opaque mark says (directories).
    pub(super) opaque: Opaque,
}

/// How often a name is looked at again that changes while it is looked at.
pub(super) const PEEKS: u32 = 100;

/// Makes a name known to the inode that was found under it, if it still is. Who takes a name away
/// holds `place` from before the system call until it is forgotten here: so a name seen under
/// that lock is one that will be.
fn attach(node: &Arc<Node>, found: &InUpper, dir: BorrowedFd<'_>, link: Link) -> Result<bool> {
    let id = found.stat.attr.ino;
    let knows = |place: &Place| match place {
        Place::Upper { links, .. } => links.iter().any(|l| l.is(&link.parent, &link.name)),
        Place::Lower | Place::Rising { .. } => false,
    };
    if knows(&node.place()) {
        return Ok(true);
    }
    let mut place = node.place_mut();
    if matches!(*place, Place::Rising { .. }) {
        return Ok(false);
    }
    match fs::stat(dir, link.name.as_bytes()) {
        Ok(now) if now.attr.ino == id && now.attr.kind == node.kind => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(errno).doing("looking up"),
    }
    place.rise(id);
    place.gain(link);
    Ok(true)
}

impl Overlay {
    /// Looks `name` up in `parent` and counts one lookup of what is found.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ESTALE; EIO for what cannot be read.
    pub fn lookup(&self, parent: Ino, name: &Name) -> Result<Entry> {
        let parent = self.directory(parent)?;
        match self.find(&parent, name)? {
            Some(target) => self.entry(&target),
            None => refuse(Errno::NOENT),
        }
    }

    /// Takes back `lookups` counted lookups of `ino`.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        let held = || self.files.iter().any(|file| file.is_of(ino));
        self.table.forget(ino.0, lookups, held);
    }

    /// The number that the mount shows for an inode of the image.
    pub(super) fn lower_ino(&self, nid: Nid) -> Ino {
        if nid == self.lower.root() {
            ROOT_INO
        } else {
            Ino(nid.0)
        }
    }

    /// Where the inode of a number is.
    pub(super) fn target(&self, ino: Ino) -> Result<Target> {
        if ino == ROOT_INO {
            return Ok(match self.upper {
                Some(_) => Target::Upper(Arc::clone(&self.root)),
                None => Target::Lower(self.lower.root()),
            });
        }
        match self.table.get(ino.0) {
            Some(node) if node.is_upper() => Ok(Target::Upper(node)),
            // The number space ends at UPPER_BASE; whether there is such a nid, Lower says.
            _ if ino.0 < UPPER_BASE => Ok(Target::Lower(Nid(ino.0))),
            _ => refuse(Errno::STALE),
        }
    }

    /// The same, for a number that must be a directory's.
    pub(super) fn directory(&self, ino: Ino) -> Result<Target> {
        let target = self.target(ino)?;
        if self.kind(&target)? == Kind::Dir {
            Ok(target)
        } else {
            refuse(Errno::NOTDIR)
        }
    }

    pub(super) fn kind(&self, target: &Target) -> Result<Kind> {
        match target {
            Target::Lower(nid) => Ok(self.lower.attr(*nid)?.kind),
            Target::Upper(node) => Ok(node.kind),
        }
    }

    /// What `name` in `parent` leads to, its node made known.
    pub(super) fn find(&self, parent: &Target, name: &Name) -> Result<Option<Target>> {
        for _ in 0..PEEKS {
            let found = match self.peek(parent, name)? {
                Origin::Absent | Origin::Whiteout => return Ok(None),
                Origin::Lower(nid) | Origin::Rising(nid) => {
                    return self.target(self.lower_ino(nid)).map(Some);
                }
                Origin::Upper(found) => found,
            };
            let Target::Upper(parent) = parent else {
                return refuse(Errno::IO);
            };
            if let Some(node) = self.intern(parent, name, &found)? {
                return Ok(Some(Target::Upper(node)));
            }
        }
        refuse(Errno::STALE)
    }

    /// What the lower holds under `name` in `parent`, whatever the upper says.
    pub(super) fn lower_child(&self, parent: &Target, name: &Name) -> Result<Option<Nid>> {
        let dir = match parent {
            Target::Lower(nid) => *nid,
            Target::Upper(node) => match node.lower_part() {
                Some(nid) => nid,
                None => return Ok(None),
            },
        };
        Ok(self.lower.lookup(dir, name)?)
    }

    /// What `name` in `parent` leads to; changes nothing.
    pub(super) fn peek(&self, parent: &Target, name: &Name) -> Result<Origin> {
        if let Target::Upper(node) = parent {
            if node.dir.has(FACT_REMOVED) {
                return Ok(Origin::Absent);
            }
            let dir = self.dir_fd(node)?;
            for attempt in 0.. {
                let stat = match fs::stat(dir.as_fd(), name.as_bytes()) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => break,
                    Err(errno) => return Err(errno).doing("looking up"),
                };
                match self.peek_upper(node, dir.as_fd(), name, stat) {
                    // Another thread has taken the name away, or put something else there.
                    Err(Error::Upper {
                        errno: Errno::NOENT | Errno::NOTDIR,
                        ..
                    }) if attempt < PEEKS => {}
                    other => return other,
                }
            }
        }
        Ok(match self.lower_child(parent, name)? {
            Some(nid) => Origin::Lower(nid),
            None => Origin::Absent,
        })
    }

    fn peek_upper(
        &self,
        parent: &Arc<Node>,
        dir: BorrowedFd<'_>,
        name: &Name,
        stat: Stat,
    ) -> Result<Origin> {
        let marks = self.marks()?;
        let xwhiteouts = if parent.dir.has(FACT_XWHITEOUTS) {
            Opaque::XWhiteouts
        } else {
            Opaque::No
        };
        let bytes = name.as_bytes();
        if marks
            .is_whiteout(dir, bytes, &stat, xwhiteouts)
            .doing("reading a mark")?
        {
            return Ok(Origin::Whiteout);
        }
        let born = UPPER_BASE
            .checked_add(stat.attr.ino)
            .ok_or(Error::Refused(Errno::OVERFLOW))?;
        let mut found = InUpper {
            stat,
            ino: born,
            lower: None,
            opaque: Opaque::No,
        };
        if stat.attr.kind == Kind::Dir {
            let fd = fs::open(dir, bytes, OFlags::PATH | OFlags::DIRECTORY, 0).doing("opening")?;
            found.opaque = marks.opaque(fd.as_fd()).doing("reading a mark")?;
            if found.opaque != Opaque::Yes {
                found.lower = self.merge_with(parent, name, fd.as_fd())?;
            }
            if let Some(nid) = found.lower {
                found.ino = nid.0;
            } else if found.opaque == Opaque::Yes
                && let Some(ino) = marks.ino(fd.as_fd(), self.image).doing("reading a mark")?
                && ino < UPPER_BASE
            {
                // It merged once.
                found.ino = ino;
            }
        } else if self.is_impure(parent, dir)? {
            let fd = fs::open(dir, bytes, OFlags::PATH, 0).doing("opening")?;
            let marked = marks.ino(fd.as_fd(), self.image).doing("reading a mark")?;
            let ino = if marks.can_mark(stat.attr.kind) {
                marked
            } else {
                self.unmarked(&stat)
            };
            if let Some(ino) = ino.filter(|&ino| ino < UPPER_BASE) {
                let known = self.table.get(ino);
                if known.is_some_and(|node| node.is_rising_to(stat.attr.ino)) {
                    return Ok(Origin::Rising(Nid(ino)));
                }
                found.ino = ino;
            }
        }
        Ok(Origin::Upper(found))
    }

    /// The number of a copy that carries no mark, if this mount made it.
    fn unmarked(&self, stat: &Stat) -> Option<u64> {
        let node = self.table.unmarked(stat.attr.ino)?;
        // A copy that came to nothing may have left its number to another file.
        let its = match *node.place() {
            Place::Upper { id, .. } | Place::Rising { id } => id == stat.attr.ino,
            Place::Lower => false,
        };
        (its && node.kind == stat.attr.kind).then_some(node.ino.0)
    }

    /// The lower directory that an upper one (not opaque) goes on with.
    fn merge_with(
        &self,
        parent: &Arc<Node>,
        name: &Name,
        fd: BorrowedFd<'_>,
    ) -> Result<Option<Nid>> {
        let parent = Target::Upper(Arc::clone(parent));
        let nid = match self.marks()?.redirect(fd).doing("reading a mark")? {
            None => self.lower_child(&parent, name)?,
            Some(Redirect::Sibling(old)) => {
                let old = Name::new(&old).map_err(|_| Error::Refused(Errno::IO))?;
                self.lower_child(&parent, &old)?
            }
            Some(Redirect::Absolute(path)) => {
                let mut at = Some(self.lower.root());
                for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
                    let part = Name::new(part).map_err(|_| Error::Refused(Errno::IO))?;
                    at = match at {
                        Some(dir) if self.lower.attr(dir)?.kind == Kind::Dir => {
                            self.lower.lookup(dir, &part)?
                        }
                        _ => None,
                    };
                }
                at
            }
        };
        Ok(match nid {
            Some(nid) if self.lower.attr(nid)?.kind == Kind::Dir => Some(nid),
            _ => None,
        })
    }

    /// The node of an inode found in the upper under (`parent`, `name`); `None` if the name leads
    /// elsewhere by now, which cannot be while the parent's `entries` is held.
    pub(super) fn intern(
        &self,
        parent: &Arc<Node>,
        name: &Name,
        found: &InUpper,
    ) -> Result<Option<Arc<Node>>> {
        let link = Link {
            parent: Arc::clone(parent),
            name: name.clone(),
        };
        let dir = self.dir_fd(parent)?;
        let born = UPPER_BASE.checked_add(found.stat.attr.ino);
        let born = born.ok_or(Error::Refused(Errno::OVERFLOW))?;
        let id = found.stat.attr.ino;
        for ino in [found.ino, born] {
            let seed = Seed {
                ino,
                kind: found.stat.attr.kind,
                lower: found.lower,
                // One of the image is not in the upper until a name leads there: if that cannot be
                // made sure of, nothing has become known.
                place: if ino < UPPER_BASE {
                    Place::Lower
                } else {
                    Place::Upper {
                        id,
                        links: Vec::new(),
                        orphan: None,
                    }
                },
            };
            let (node, new) = self.table.intern(seed);
            if new && found.opaque == Opaque::XWhiteouts {
                node.dir.note(FACT_XWHITEOUTS);
            }
            if new || self.is_same(&node, found) {
                let attached = attach(&node, found, dir.as_fd(), link)?;
                return Ok(attached.then_some(node));
            }
            // Another inode bears this number already (an upper edited by hand): its own number
            // from the upper is free.
        }
        refuse(Errno::IO)
    }

    /// Whether a known node is the inode that was found; one that was just copied up is.
    fn is_same(&self, node: &Arc<Node>, found: &InUpper) -> bool {
        if node.kind != found.stat.attr.kind
            || (node.kind == Kind::Dir && node.lower_part() != found.lower)
        {
            return false;
        }
        match &*node.place() {
            Place::Upper { id, .. } | Place::Rising { id } => *id == found.stat.attr.ino,
            Place::Lower => true,
        }
    }

    /// What a lookup of `target` answers; counts it.
    pub(super) fn entry(&self, target: &Target) -> Result<Entry> {
        let attr = self.attr_of(target)?;
        let mut generation = 0;
        if let Target::Upper(node) = target {
            self.table.count_lookup(node);
            generation = node.generation;
        }
        Ok(Entry { attr, generation })
    }

    /// The attributes of `target` as the mount shows them.
    pub(super) fn attr_of(&self, target: &Target) -> Result<Attr> {
        match target {
            Target::Lower(nid) => self.lower_attr(*nid),
            Target::Upper(node) => self.node_attr(node),
        }
    }

    pub(super) fn marks(&self) -> Result<Namespace> {
        match &self.upper {
            Some(upper) => Ok(upper.marks()),
            None => refuse(Errno::IO),
        }
    }

    /// A descriptor (`O_PATH`) of a directory of the upper.
    pub(super) fn dir_fd(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = node.dir.fd() {
            return Ok(fd);
        }
        // Up to the first ancestor whose descriptor is kept (the root's always is), then down.
        'retry: loop {
            let mut chain = vec![Arc::clone(node)];
            let mut at = loop {
                let Some(last) = chain.last() else {
                    return refuse(Errno::STALE);
                };
                if let Some(fd) = last.dir.fd() {
                    break fd;
                }
                let parent = match &*last.place() {
                    Place::Upper { links, .. } => links.first().map(|l| Arc::clone(&l.parent)),
                    Place::Lower | Place::Rising { .. } => None,
                };
                let Some(parent) = parent else {
                    return refuse(Errno::STALE);
                };
                chain.push(parent);
            };
            let mut above = chain.pop();
            while let (Some(parent), Some(child)) = (above, chain.pop()) {
                // Held through the system call: a rename of `child` waits.
                let place = child.place();
                let known = match &*place {
                    Place::Upper { links, id, .. } => links.first().map(|link| (link, *id)),
                    Place::Lower | Place::Rising { .. } => None,
                };
                let known = known.filter(|(link, _)| Arc::ptr_eq(&link.parent, &parent));
                let Some((link, id)) = known else {
                    continue 'retry;
                };
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                at = Arc::new(open_checked(at.as_fd(), link.name.as_bytes(), flags, id)?);
                self.table.keep_dir_fd(&child, &at);
                drop(place);
                above = Some(child);
            }
            return Ok(at);
        }
    }

    /// Whether entries of an upper directory may bear a number of the lower.
    pub(super) fn is_impure(&self, node: &Arc<Node>, fd: BorrowedFd<'_>) -> Result<bool> {
        if node.dir.has(FACT_IMPURE) {
            return Ok(true);
        }
        if node.dir.has(FACT_PURE) {
            return Ok(false);
        }
        let impure = self.marks()?.impure(fd).doing("reading a mark")?;
        node.dir.note(if impure { FACT_IMPURE } else { FACT_PURE });
        Ok(impure)
    }

    /// Marks a directory as holding entries that came from the lower.
    pub(super) fn make_impure(&self, node: &Arc<Node>, fd: BorrowedFd<'_>) -> Result<()> {
        if !self.is_impure(node, fd)? {
            self.marks()?.set_impure(fd).doing("setting a mark")?;
            node.dir.note(FACT_IMPURE);
            node.dir.unnote(FACT_PURE);
        }
        Ok(())
    }

    /// Reads the marks of a directory that was not found through its parent.
    pub(super) fn note_dir_marks(&self, node: &Arc<Node>) -> Result<()> {
        let fd = self.dir_fd(node)?;
        if self.marks()?.opaque(fd.as_fd()).doing("reading a mark")? == Opaque::XWhiteouts {
            node.dir.note(FACT_XWHITEOUTS);
        }
        Ok(())
    }
}
