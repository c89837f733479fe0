//! Copy-up: an inode of the image becomes one of the upper, complete, by one rename
//! (`fs/overlayfs/copy_up.c`).
//!
//! Owner, mode, times, extended attributes, ACLs and holes are all carried, or it fails and
//! nothing has changed. The data is on disk before the name is (but for `volatile`), so that no
//! crash leaves a name with half of its bytes. The parent's times stay what they were. An inode
//! with several names has one more step: [`group`](super::group).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::error::{Doing, refuse};
use super::lookup::{Origin, PEEKS};
use super::node::{Link, Node, Place, Seed};
use super::quota::Claim;
use super::{Error, Overlay, Result, Target};
use crate::inode::{Attr, Kind, SetTime};
use crate::lower::{Nid, Seek};
use crate::sys::fs;
use crate::upper::markers::mark_in;
use crate::upper::work::{Blank, Temp};

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// The mode of a file that is about to be cut and then to have the mode `perm`: set-user-ID and
/// set-group-ID that are to go must not be seen with the new content, nor be left with it by a
/// crash.
pub(super) fn privileges_left(was: u16, perm: u16) -> u16 {
    was & (perm | 0o1777)
}

impl Overlay {
    /// Brings an inode of the image to the upper, if it is not there yet.
    pub(super) fn copy_up(&self, nid: Nid) -> Result<Arc<Node>> {
        self.copy_up_cut(nid, u64::MAX, None)
    }

    /// The same for a file that is about to be cut to `size` bytes: of one with one name, the copy
    /// is cut already, and without the privileges that a mode of `perm` has not.
    pub(super) fn copy_up_cut(&self, nid: Nid, size: u64, perm: Option<u16>) -> Result<Arc<Node>> {
        let attr = self.lower.attr(nid)?;
        if attr.kind == Kind::Dir {
            return self.copy_up_dir(nid);
        }
        let node = self.lower_node(nid, attr.kind);
        let _copying = node.lock_copying();
        if node.is_upper() {
            return Ok(Arc::clone(&node));
        }
        let links = self.names_to_rise(nid)?;
        // Names that are given one after the other must not show that the file has been cut.
        let size = if links.len() > 1 { u64::MAX } else { size };
        let began = Instant::now();
        let mut claim = self.claim_copy(nid, size)?;
        let temp = self.copy(nid, &attr, size, perm)?;
        let id = fs::fstat(temp.fd()).doing("reading attributes")?.attr.ino;
        let copy = self.to_count(&temp)?;
        match links.as_slice() {
            [] => self.publish_orphan(&node, temp, id),
            [link] => self.publish(&node, temp, id, link),
            _ => self.publish_group(&node, temp, id, &links),
        }?;
        self.counters.copied(attr.kind, began.elapsed());
        if let Some(copy) = copy {
            self.settle_copy(&node, copy.as_fd(), id, &mut claim);
            links.iter().for_each(|link| self.settle_node(&link.parent));
        }
        Ok(Arc::clone(&node))
    }

    /// Another descriptor of a copy, if it is to be counted when it is published.
    fn to_count(&self, copy: &Temp<'_>) -> Result<Option<OwnedFd>> {
        if !self.counts() {
            return Ok(None);
        }
        let fd = rustix::io::fcntl_dupfd_cloexec(copy.fd(), 0).doing("counting a copy")?;
        Ok(Some(fd))
    }

    /// Counts a copy, if it has become the inode's.
    fn settle_copy(
        &self,
        node: &Arc<Node>,
        copy: BorrowedFd<'_>,
        id: u64,
        claim: &mut Option<Claim<'_>>,
    ) {
        if matches!(*node.place(), Place::Upper { id: now, .. } if now == id) {
            self.settle(copy, claim);
        }
    }

    /// The names that an inode of the image still has, their directories in the upper.
    fn names_to_rise(&self, nid: Nid) -> Result<Vec<Link>> {
        'again: for _ in 0..PEEKS {
            let mut links = Vec::new();
            for (dir, name) in self.visible_names(nid)? {
                match self.upper_dir(&dir) {
                    Ok(parent) => links.push(Link { parent, name }),
                    // Removed since, and so was the name.
                    Err(Error::Refused(Errno::STALE)) => continue 'again,
                    Err(error) => return Err(error),
                }
            }
            return Ok(links);
        }
        refuse(Errno::STALE)
    }

    /// The directory's node in the upper, copied up if it is not there yet.
    pub(super) fn upper_dir(&self, dir: &Target) -> Result<Arc<Node>> {
        match dir {
            Target::Upper(node) => Ok(Arc::clone(node)),
            Target::Lower(nid) => self.copy_up_dir(*nid),
        }
    }

    /// Brings a directory and those above it to the upper, topmost first.
    fn copy_up_dir(&self, nid: Nid) -> Result<Arc<Node>> {
        let mut chain = vec![nid];
        let mut above = loop {
            let Some(&last) = chain.last() else {
                return refuse(Errno::STALE);
            };
            let parent = self.lower.parent(last)?;
            if let Target::Upper(node) = self.target(self.lower_ino(parent))? {
                break node;
            }
            // A loop in a damaged index ends here: no tree is that deep.
            if chain.len() > 1 << 20 {
                return refuse(Errno::IO);
            }
            chain.push(parent);
        };
        while let Some(nid) = chain.pop() {
            above = self.copy_up_dir_in(&above, nid)?;
        }
        Ok(above)
    }

    fn copy_up_dir_in(&self, parent: &Arc<Node>, nid: Nid) -> Result<Arc<Node>> {
        let node = self.lower_node(nid, Kind::Dir);
        let _copying = node.lock_copying();
        if node.is_upper() {
            return Ok(Arc::clone(&node));
        }
        let target = Target::Upper(Arc::clone(parent));
        for (_, name) in self.lower.names(nid)? {
            match self.peek(&target, &name)? {
                Origin::Lower(found) if found == nid => {
                    let attr = self.lower.attr(nid)?;
                    let began = Instant::now();
                    let mut claim = self.claim_copy(nid, 0)?;
                    let temp = self.copy(nid, &attr, 0, None)?;
                    let id = fs::fstat(temp.fd()).doing("reading attributes")?.attr.ino;
                    let copy = self.to_count(&temp)?;
                    let link = Link {
                        parent: Arc::clone(parent),
                        name,
                    };
                    self.publish(&node, temp, id, &link)?;
                    self.counters.copied(Kind::Dir, began.elapsed());
                    if let Some(copy) = copy {
                        self.settle_copy(&node, copy.as_fd(), id, &mut claim);
                        self.settle_node(parent);
                    }
                    return Ok(Arc::clone(&node));
                }
                Origin::Upper(found) if found.lower == Some(nid) => {
                    if let Some(node) = self.intern(parent, &name, &found)? {
                        return Ok(node);
                    }
                }
                _ => {}
            }
        }
        // Removed meanwhile, or moved by an earlier mount and not looked up since.
        match self.locate(nid)? {
            Some(Target::Upper(node)) => Ok(node),
            _ => refuse(Errno::STALE),
        }
    }

    fn lower_node(&self, nid: Nid, kind: Kind) -> Arc<Node> {
        let lower = (kind == Kind::Dir).then_some(nid);
        let ino = self.lower_ino(nid).0;
        self.table
            .intern(Seed {
                ino,
                kind,
                lower,
                place: Place::Lower,
            })
            .0
    }

    /// A complete copy in the work directory, with its inode number noted.
    fn copy(&self, nid: Nid, attr: &Attr, size: u64, perm: Option<u16>) -> Result<Temp<'_>> {
        let upper = self.writable()?;
        let target;
        let blank = match attr.kind {
            Kind::File => Blank::File,
            Kind::Dir => Blank::Dir,
            Kind::Symlink => {
                target = self.lower.readlink(nid)?;
                Blank::Symlink(&target)
            }
            // As itself it would be a whiteout: the file would vanish.
            Kind::Char if attr.rdev == 0 => Blank::NullDevice,
            kind => Blank::Node(kind, attr.rdev),
        };
        let temp = upper.temp(blank).doing("making a copy")?;
        if attr.kind == Kind::File {
            self.copy_data(nid, temp.fd(), attr.size.min(size))?;
        }
        self.copy_attributes(nid, temp.fd())?;
        if attr.kind != Kind::Dir {
            let ino = self.lower_ino(nid).0;
            upper
                .marks()
                .set_ino(temp.fd(), attr.kind, ino, self.image)
                .doing("setting a mark")?;
        }
        self.copy_times(nid, temp.fd())?;
        if attr.kind == Kind::File && size < attr.size {
            if let Some(perm) = perm {
                let left = privileges_left(attr.perm, perm);
                fs::chmod(temp.fd(), left).doing("dropping privileges")?;
            }
            // The name that shows this shows a file that has been cut (truncate(2)).
            let now = Some(SetTime::Now);
            fs::utimens(temp.fd(), None, now).doing("setting times")?;
        }
        if attr.kind == Kind::File && attr.size > 0 && !self.options.volatile {
            fs::sync(temp.fd(), false).doing("syncing a copy")?;
        }
        Ok(temp)
    }

    fn copy_data(&self, nid: Nid, to: BorrowedFd<'_>, size: u64) -> Result<()> {
        let mut buf = vec![0_u8; usize::try_from(size).map_or(CHUNK, |size| size.min(CHUNK))];
        let mut at = 0;
        while at < size {
            let Some(data) = self
                .lower
                .seek(nid, at, Seek::Data)?
                .filter(|&data| data < size)
            else {
                break;
            };
            let hole = self
                .lower
                .seek(nid, data, Seek::Hole)?
                .unwrap_or(size)
                .min(size);
            at = data;
            while at < hole {
                let want = usize::try_from(hole - at).map_or(buf.len(), |n| n.min(buf.len()));
                let part = buf.get_mut(..want).unwrap_or_default();
                let got = self.lower.read(nid, at, part)?;
                let part = part.get(..got).unwrap_or_default();
                if part.is_empty() {
                    return refuse(Errno::IO);
                }
                super::file::write_all(to, at, part).doing("copying data")?;
                self.counters.copied_bytes.add(got as u64);
                at = at.saturating_add(got as u64);
            }
        }
        fs::truncate(to, size).doing("copying data")
    }

    /// Carries owner, mode and extended attributes over.
    pub(super) fn copy_attributes(&self, nid: Nid, to: BorrowedFd<'_>) -> Result<()> {
        let attr = self.lower.attr(nid)?;
        if self.options.squash.is_none() {
            let now = fs::fstat(to).doing("reading attributes")?.attr;
            if (now.uid, now.gid) != (attr.uid, attr.gid) {
                fs::chown(to, Some(attr.uid), Some(attr.gid)).doing("copying the owner")?;
            }
        }
        for xattr in self.lower.xattrs(nid)? {
            if mark_in(&xattr.name).is_some() {
                continue;
            }
            match fs::setxattr(to, &xattr.name, &xattr.value, 0) {
                Ok(()) => {}
                // An unprivileged server cannot set these, and its mount never lets them count.
                Err(Errno::PERM | Errno::OPNOTSUPP)
                    if self
                        .upper
                        .as_ref()
                        .is_some_and(crate::upper::Upper::unprivileged)
                        && !xattr.name.starts_with(b"user.") => {}
                Err(errno) => return Err(errno).doing("copying an extended attribute"),
            }
        }
        // After chown and the ACL, which both change mode bits.
        if attr.kind != Kind::Symlink {
            fs::chmod(to, attr.perm).doing("copying the mode")?;
        }
        Ok(())
    }

    /// Carries the times over; last, since all else changes them.
    pub(super) fn copy_times(&self, nid: Nid, to: BorrowedFd<'_>) -> Result<()> {
        let attr = self.lower.attr(nid)?;
        fs::copy_times(to, &attr).doing("copying times")
    }

    /// Makes a copy the inode behind its one name, if that still leads to the lower inode.
    fn publish(&self, node: &Arc<Node>, temp: Temp<'_>, id: u64, link: &Link) -> Result<()> {
        let _entries = link.parent.lock_entries();
        if !self.still_lower(node, link)? {
            return self.publish_orphan(node, temp, id);
        }
        self.unnoticed(node.kind, &link.parent, |dir| {
            let mut place = node.place_mut();
            if !matches!(*place, Place::Lower) {
                // Found in the upper under another name meanwhile.
                return Ok(());
            }
            self.note_unmarked(node, id)?;
            let fd = temp
                .publish(dir, link.name.as_bytes())
                .inspect_err(|_| self.table.unnote_unmarked(id, node))
                .doing("publishing a copy")?;
            place.rise(id);
            place.gain(link.clone());
            drop(place);
            if node.kind == Kind::Dir {
                self.table.keep_dir_fd(node, &Arc::new(fd));
            }
            Ok(())
        })
    }

    /// Where the copy of an inode cannot be marked with its number (xattr(7)), this mount must
    /// remember it: before somebody can see the copy.
    pub(super) fn note_unmarked(&self, node: &Node, id: u64) -> Result<()> {
        if !self.marks()?.can_mark(node.kind) {
            self.table.note_unmarked(id, node);
        }
        Ok(())
    }

    /// Whether a name still shows the lower inode that `node` is about to leave.
    pub(super) fn still_lower(&self, node: &Arc<Node>, link: &Link) -> Result<bool> {
        let target = Target::Upper(Arc::clone(&link.parent));
        Ok(match self.peek(&target, &link.name)? {
            Origin::Lower(nid) => self.lower_ino(nid) == node.ino,
            _ => false,
        })
    }

    /// An inode without a name (unlinked while open) lives on by its descriptor.
    fn publish_orphan(&self, node: &Arc<Node>, temp: Temp<'_>, id: u64) -> Result<()> {
        let fd = temp.orphan().doing("keeping an unlinked file")?;
        self.becomes_orphan(node, fd, id);
        Ok(())
    }

    pub(super) fn becomes_orphan(&self, node: &Arc<Node>, fd: OwnedFd, id: u64) {
        let mut place = node.place_mut();
        if matches!(*place, Place::Upper { .. }) {
            // Found in the upper under another name meanwhile.
            return;
        }
        let mut orphan = self.table.leaving().orphan(Arc::new(fd));
        orphan.leave();
        *place = Place::Upper {
            id,
            links: Vec::new(),
            orphan: Some(orphan),
        };
    }

    /// Gives `parent` a name that a copy-up of an inode of `kind` brings. The directory's times
    /// are put back: nothing that can be seen has changed there
    /// (`fs/overlayfs/copy_up.c:ovl_set_timestamps()`).
    pub(super) fn unnoticed(
        &self,
        kind: Kind,
        parent: &Arc<Node>,
        add: impl FnOnce(BorrowedFd<'_>) -> Result<()>,
    ) -> Result<()> {
        let dir = self.dir_fd(parent)?;
        let was = fs::fstat(dir.as_fd()).doing("reading attributes")?.attr;
        if kind != Kind::Dir {
            self.make_impure(parent, dir.as_fd())?;
        }
        add(dir.as_fd())?;
        fs::copy_times(dir.as_fd(), &was).doing("restoring times")
    }
}
