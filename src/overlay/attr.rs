//! Attributes: getattr, setattr, readlink, statfs.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::copy_up::privileges_left;
use super::error::{Doing, refuse};
use super::lookup::Origin;
use super::node::{Node, Place, lock};
use super::room::Orphan;
use super::{Handle, Ino, Overlay, ROOT_INO, Result, SetAttr, StatFs, Target};
use crate::inode::{Attr, Kind};
use crate::lower::Nid;
use crate::sys::asker::PRIVILEGES;
use crate::sys::fs::{self, Stat};
use crate::upper::markers::NULL_DEVICE;

/// Refuses what lies in the upper in place of an inode that the kernel knows: it has judged by that
/// one's owner and mode. Who can write to a directory of the upper without the mount could else put
/// a file of root's there, and have it opened.
fn check_id(found: Stat, id: u64) -> Result<()> {
    if found.attr.ino == id {
        return Ok(());
    }
    tracing::warn!("the upper has been changed behind the mount");
    refuse(Errno::STALE)
}

/// Opens a name of the upper if it still leads to the inode of that number.
pub(super) fn open_checked(
    dir: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    id: u64,
) -> Result<OwnedFd> {
    let fd = fs::open(dir, name, flags, 0).doing("opening")?;
    check_id(fs::fstat(fd.as_fd()).doing("opening")?, id)?;
    Ok(fd)
}

impl Overlay {
    /// The attributes of an inode.
    ///
    /// # Errors
    /// ESTALE for a number that leads nowhere; EIO.
    pub fn getattr(&self, ino: Ino, handle: Option<Handle>) -> Result<Attr> {
        match self.target(ino) {
            Ok(target) => self.attr_of(&target),
            // A forgotten inode that is still open.
            Err(error) => match handle.and_then(|handle| self.file(handle).ok()) {
                Some(file) => self.file_attr(&file),
                None => Err(error),
            },
        }
    }

    /// Changes attributes and answers the new ones.
    ///
    /// # Errors
    /// EROFS on a read-only mount; else what chmod(2), chown(2), truncate(2), utimensat(2) give.
    pub fn setattr(&self, ino: Ino, handle: Option<Handle>, set: &SetAttr) -> Result<Attr> {
        self.with_room(|| self.set(ino, handle, set))
    }

    fn set(&self, ino: Ino, handle: Option<Handle>, set: &SetAttr) -> Result<Attr> {
        self.writable()?;
        let target = self.target(ino)?;
        let mut set = *set;
        if set.size.is_some() && set.perm.is_none() {
            set.perm = self.privileges_left(&target, set.asker)?;
        }
        let set = &set;
        let node = match (target, set.size) {
            (Target::Upper(node), _) => node,
            // Of a file that is about to be cut, the rest needs no copying.
            (Target::Lower(nid), Some(size)) => self.copy_up_cut(nid, size, set.perm)?,
            (Target::Lower(nid), None) => self.copy_up(nid)?,
        };
        if let Some(size) = set.size {
            let cut = self.cut(&node, handle, size, set.perm);
            self.settle_node(&node);
            cut?;
        }
        let only_size = SetAttr {
            size: set.size,
            asker: set.asker,
            ..SetAttr::default()
        };
        if *set != only_size || set.size.is_none() {
            self.with_fd(&node, |fd| self.set_inode(fd, &node, set))?;
        }
        self.node_attr(&node)
    }

    /// Sets the size of a file that is to have the mode `perm` then: what the kernel asks for where
    /// cutting a file drops its privileges (fs/fuse/dir.c:fuse_setattr()). They go first.
    fn cut(
        &self,
        node: &Arc<Node>,
        handle: Option<Handle>,
        size: u64,
        perm: Option<u16>,
    ) -> Result<()> {
        let Some(perm) = perm.filter(|_| node.kind == Kind::File) else {
            return self.truncate(node, handle, size);
        };
        self.with_fd(node, |fd| {
            let was = fs::fstat(fd).doing("reading attributes")?.attr.perm;
            let left = privileges_left(was, perm);
            if left == was {
                return self.truncate(node, handle, size);
            }
            fs::chmod(fd, left).doing("dropping privileges")?;
            let cut = self.truncate(node, handle, size);
            if cut.is_err() && fs::chmod(fd, was).is_err() {
                self.poison();
            }
            cut
        })
    }

    fn truncate(&self, node: &Arc<Node>, handle: Option<Handle>, size: u64) -> Result<()> {
        if node.kind == Kind::Dir {
            return refuse(Errno::ISDIR);
        }
        // Through the caller's own descriptor where it can: it may have been opened while the
        // mode allowed it.
        let own = handle.and_then(|handle| self.file(handle).ok());
        if let Some(fd) = own.and_then(|file| file.writable()) {
            return self.cut_to(fd.as_fd(), size);
        }
        self.check_whole(node)?;
        let fd = self.open_node(node, OFlags::WRONLY)?;
        self.cut_to(fd.as_fd(), size)
    }

    fn set_inode(&self, fd: BorrowedFd<'_>, node: &Arc<Node>, set: &SetAttr) -> Result<()> {
        // chown(2) of neither sets st_ctime too (fs/open.c:chown_common()).
        let nothing = SetAttr {
            asker: set.asker,
            ..SetAttr::default()
        };
        let neither = *set == nothing;
        if set.uid.is_some() || set.gid.is_some() || neither {
            let before = fs::fstat(fd).doing("reading attributes")?.attr;
            let privileged = node.kind != Kind::Dir && before.perm & PRIVILEGES != 0;
            if neither && privileged && set.asker.is_some_and(|asker| !asker.owns(before.uid)) {
                // Whether somebody writes to the file, whose privileges go with what is written,
                // or calls chown(2), which must not take them, is not told.
                return Ok(());
            }
            let (uid, gid) = (set.uid, set.gid);
            fs::chown(fd, uid, gid).doing("changing the owner")?;
            if set.perm.is_none() && node.kind == Kind::File {
                // As of whoever asks: what the server's own chown(2) leaves depends on its groups.
                let Attr { perm, uid, gid, .. } = before;
                let left = set
                    .asker
                    .map_or(perm, |a| a.privileges_left(perm, uid, gid));
                fs::chmod(fd, left).doing("changing the mode")?;
            }
        }
        if let Some(perm) = set.perm {
            if node.kind == Kind::Symlink {
                return refuse(Errno::OPNOTSUPP);
            }
            fs::chmod(fd, perm).doing("changing the mode")?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            fs::utimens(fd, set.atime, set.mtime).doing("setting times")?;
        }
        Ok(())
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// EINVAL for another type; ESTALE, EIO.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.target(ino)? {
            Target::Lower(nid) => Ok(self.lower.readlink(nid)?),
            Target::Upper(node) => {
                self.with_fd(&node, |fd| fs::readlink(fd, b"").doing("reading a link"))
            }
        }
    }

    /// What statvfs(3) tells: of the upper's filesystem, within the quota; of a full one
    /// without an upper.
    ///
    /// # Errors
    /// fstatvfs(3)'s.
    pub fn statfs(&self) -> Result<StatFs> {
        let Some(upper) = &self.upper else {
            return Ok(StatFs {
                blocks: 0,
                bfree: 0,
                bavail: 0,
                files: 0,
                ffree: 0,
                bsize: 4096,
                frsize: 4096,
                namelen: 255,
            });
        };
        let s = rustix::fs::fstatvfs(upper.root()).doing("reading filesystem statistics")?;
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let mut shown = StatFs {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: small(s.f_bsize),
            frsize: small(s.f_frsize),
            namelen: 255,
        };
        self.within_quota(&mut shown);
        Ok(shown)
    }

    pub(super) fn lower_attr(&self, nid: Nid) -> Result<Attr> {
        let mut attr = self.lower.attr(nid)?;
        attr.ino = self.lower_ino(nid).0;
        if attr.kind != Kind::Dir && (attr.nlink > 1 || !self.lost.is_empty()) {
            self.lost(nid, attr.nlink)?.show_in(&mut attr);
            // Copied up meanwhile: names of the copy may have been taken for lost ones.
            if let Target::Upper(node) = self.target(Ino(attr.ino))? {
                return self.node_attr(&node);
            }
        }
        if let Some((uid, gid)) = self.options.squash {
            (attr.uid, attr.gid) = (uid, gid);
        }
        Ok(attr)
    }

    pub(super) fn node_attr(&self, node: &Arc<Node>) -> Result<Attr> {
        let mut attr = self.node_stat(node)?.attr;
        attr.ino = node.ino.0;
        if node.kind == Kind::Char && attr.rdev == NULL_DEVICE {
            let marks = self.marks()?;
            if self.with_fd(node, |fd| marks.is_null_device(fd).doing("reading a mark"))? {
                attr.rdev = 0;
            }
        }
        if node.kind == Kind::Dir && node.lower_part().is_some() {
            attr.nlink = self.merged_nlink(node)?;
        }
        Ok(attr)
    }

    /// The upper's own attributes of an inode.
    pub(super) fn node_stat(&self, node: &Arc<Node>) -> Result<Stat> {
        if let Some(fd) = node.dir.fd() {
            return fs::fstat(fd.as_fd()).doing("reading attributes");
        }
        self.at_name(
            node,
            |dir, name, id| {
                let stat = fs::stat(dir, name).doing("reading attributes")?;
                check_id(stat, id).map(|()| stat)
            },
            |fd| fs::fstat(fd.as_fd()).doing("reading attributes"),
        )
    }

    /// Runs `named` with the directory, name and number of an upper inode, or `orphan` with the
    /// descriptor of one that has no name left. Its name does not change meanwhile, unless behind
    /// the mount: `named` is to look at the number before anything is done ([`check_id`]).
    fn at_name<T>(
        &self,
        node: &Arc<Node>,
        named: impl FnOnce(BorrowedFd<'_>, &[u8], u64) -> Result<T>,
        orphan: impl FnOnce(&Arc<OwnedFd>) -> Result<T>,
    ) -> Result<T> {
        match &*node.place() {
            Place::Upper {
                links,
                orphan: fd,
                id,
            } => match (links.first(), fd.as_ref().and_then(Orphan::fd)) {
                (Some(link), _) => {
                    let dir = self.dir_fd(&link.parent)?;
                    named(dir.as_fd(), link.name.as_bytes(), *id)
                }
                (None, Some(fd)) => orphan(fd),
                (None, None) => refuse(Errno::STALE),
            },
            Place::Lower | Place::Rising { .. } => refuse(Errno::STALE),
        }
    }

    /// Opens an upper inode anew, with flags that change nothing.
    pub(super) fn open_node(&self, node: &Arc<Node>, flags: OFlags) -> Result<OwnedFd> {
        if node.kind == Kind::Dir {
            let fd = self.dir_fd(node)?;
            return fs::open(fd.as_fd(), b".", flags, 0).doing("opening");
        }
        self.at_name(
            node,
            |dir, name, id| open_checked(dir, name, flags, id),
            |fd| fs::reopen(fd.as_fd(), flags).doing("opening"),
        )
    }

    /// A descriptor (`O_PATH`) of an upper inode.
    pub(super) fn fd_of(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if node.kind == Kind::Dir {
            return self.dir_fd(node);
        }
        self.at_name(
            node,
            |dir, name, id| open_checked(dir, name, OFlags::PATH, id).map(Arc::new),
            |fd| Ok(Arc::clone(fd)),
        )
    }

    /// Runs `f` with a descriptor (`O_PATH`) of an upper inode.
    pub(super) fn with_fd<T>(
        &self,
        node: &Arc<Node>,
        f: impl FnOnce(BorrowedFd<'_>) -> Result<T>,
    ) -> Result<T> {
        f(self.fd_of(node)?.as_fd())
    }

    /// `st_nlink` of a merged directory: 2 and one for each subdirectory in the merged view, as
    /// on ext4 (overlayfs gives up and says 1).
    fn merged_nlink(&self, node: &Arc<Node>) -> Result<u32> {
        let known = *lock(&node.dir.subdirs);
        if let Some(subdirs) = known {
            return Ok(subdirs.saturating_add(2));
        }
        // Counted under the directory's lock, so that no change of names is missed.
        let _entries = node.keep_entries();
        let mut upper = HashSet::new();
        let mut subdirs = 0_u32;
        let fd = self.dir_fd(node)?;
        let target = Target::Upper(Arc::clone(node));
        for entry in fs::list(fd.as_fd()).doing("listing")? {
            // What is no directory can be a whiteout or a file: neither counts.
            subdirs = subdirs.saturating_add(u32::from(entry.kind == Kind::Dir));
            upper.insert(entry.name);
        }
        if let Some(nid) = node.lower_part() {
            let mut lower = Vec::new();
            self.lower.readdir(nid, 0, &mut |entry| {
                if entry.kind == Kind::Dir {
                    lower.push(entry.name.to_vec());
                }
                std::ops::ControlFlow::Continue(())
            })?;
            for name in lower {
                let name =
                    crate::name::Name::new(&name).map_err(|_| super::Error::Refused(Errno::IO))?;
                if !upper.contains(&name) && matches!(self.peek(&target, &name)?, Origin::Lower(_))
                {
                    subdirs = subdirs.saturating_add(1);
                }
            }
        }
        *lock(&node.dir.subdirs) = Some(subdirs);
        Ok(subdirs.saturating_add(2))
    }

    /// Gives the upper's root the attributes of the image's, the first time it is used.
    pub(super) fn adopt_root(&self) -> Result<()> {
        let marks = self.marks()?;
        let fd = self.dir_fd(&self.root)?;
        if self.options.read_only
            || marks
                .ino(fd.as_fd(), self.image)
                .doing("reading a mark")?
                .is_some()
        {
            return Ok(());
        }
        self.copy_attributes(self.lower.root(), fd.as_fd())?;
        marks
            .set_ino(fd.as_fd(), Kind::Dir, ROOT_INO.0, self.image)
            .doing("setting a mark")?;
        self.copy_times(self.lower.root(), fd.as_fd())
    }
}
