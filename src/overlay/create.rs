//! New names: mknod, mkdir, symlink, create, link.
//!
//! Where the server's own IDs are those of the new file, one creating system call makes it in
//! place, and the upper's filesystem sees to set-group-ID directories and default ACLs. In all
//! other cases (another owner, a whiteout in the way, an opaque mark to set) it is made whole in
//! the work directory and published by a rename.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::{Doing, refuse};
use super::lookup::{InUpper, Origin};
use super::node::{FACT_PURE, Node, lock};
use super::{Caller, Entry, Error, Handle, Ino, Make, Overlay, Result, Target};
use crate::inode::{Attr, Kind};
use crate::name::Name;
use crate::sys::asker::S_ISGID;
use crate::sys::fs::{self, Stat};
use crate::upper::acl;
use crate::upper::markers::Opaque;
use crate::upper::work::{Blank, Temp};

pub(super) const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// A new inode and whom it belongs to.
struct Birth<'a> {
    caller: Caller,
    what: Make<'a>,
    perm: u16,
    umask: u16,
}

impl Birth<'_> {
    fn kind(&self) -> Kind {
        match self.what {
            Make::File => Kind::File,
            Make::Dir => Kind::Dir,
            Make::Symlink(_) => Kind::Symlink,
            Make::Char(_) => Kind::Char,
            Make::Block(_) => Kind::Block,
            Make::Fifo => Kind::Fifo,
            Make::Socket => Kind::Socket,
        }
    }

    fn blank(&self) -> Blank<'_> {
        match self.what {
            Make::File => Blank::File,
            Make::Dir => Blank::Dir,
            Make::Symlink(target) => Blank::Symlink(target),
            Make::Char(0) => Blank::NullDevice,
            Make::Char(rdev) => Blank::Node(Kind::Char, rdev),
            Make::Block(rdev) => Blank::Node(Kind::Block, rdev),
            Make::Fifo => Blank::Node(Kind::Fifo, 0),
            Make::Socket => Blank::Node(Kind::Socket, 0),
        }
    }
}

/// What stands at a name that is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vacancy {
    /// Nothing in the upper.
    Empty,
    /// A whiteout in the upper.
    Whiteout,
}

impl Overlay {
    /// mknod(2), mkdir(2), symlink(2). `perm` as the caller gave it; `umask` is applied unless
    /// the parent has a default ACL.
    ///
    /// # Errors
    /// EEXIST, EROFS, and what the upper's filesystem says.
    pub fn make(
        &self,
        caller: Caller,
        parent: Ino,
        name: &Name,
        what: Make<'_>,
        perm: u16,
        umask: u16,
    ) -> Result<Entry> {
        let birth = Birth {
            caller,
            what,
            perm,
            umask,
        };
        let (_, _, entry) = self.with_room(|| self.bear(&birth, parent, name))?;
        Ok(entry)
    }

    /// creat(2): makes a regular file and opens it. `flags` are open(2)'s.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &Name,
        perm: u16,
        umask: u16,
        flags: i32,
    ) -> Result<(Entry, Handle)> {
        let birth = Birth {
            caller,
            what: Make::File,
            perm,
            umask,
        };
        let (node, fd, entry) = self.with_room(|| self.bear(&birth, parent, name))?;
        match self.keep_open(node, fd, flags) {
            Ok(handle) => Ok((entry, handle)),
            Err(error) => {
                self.forget(Ino(entry.attr.ino), 1);
                Err(error)
            }
        }
    }

    /// Makes it, and counts one lookup of it.
    fn bear(
        &self,
        birth: &Birth<'_>,
        parent: Ino,
        name: &Name,
    ) -> Result<(Arc<Node>, OwnedFd, Entry)> {
        let upper = self.writable()?;
        let parent = self.directory(parent)?;
        // Refused before anything is copied up.
        if let Target::Lower(_) = parent
            && self.lower_child(&parent, name)?.is_some()
        {
            return refuse(Errno::EXIST);
        }
        let parent = self.upper_dir(&parent)?;
        let target = Target::Upper(Arc::clone(&parent));
        let _entries = parent.lock_entries();
        let mut claim = match birth.what {
            Make::Dir => self.claim(1, 1),
            Make::Symlink(target) => self.claim_inline(1, target.len()),
            _ => self.claim(1, 0),
        }?;
        let lower = self.lower_child(&target, name)?;
        let vacancy = match lower {
            Some(_) => self.vacancy(&target, name)?,
            None => Vacancy::Empty,
        };
        let dir = self.dir_fd(&parent)?;
        let default_acl = self.default_acl(&parent, dir.as_fd())?;
        // Inheriting a group is the filesystem's business; the owner must be the server's own.
        let in_place = vacancy == Vacancy::Empty
            && birth.blank() != Blank::NullDevice
            && (birth.caller.uid, birth.caller.gid) == upper.ids();
        let (fd, stat) = if in_place {
            match self.bear_in_place(birth, dir.as_fd(), name, default_acl.is_some()) {
                Ok(made) => {
                    if birth.kind() == Kind::Dir {
                        parent.dir.add_subdirs(1);
                    }
                    Ok(made)
                }
                Err(Error::Upper {
                    errno: Errno::EXIST,
                    ..
                }) => {
                    // A whiteout over nothing, or the name is taken.
                    let vacancy = self.vacancy(&target, name)?;
                    self.bear_in_work(birth, &parent, name, vacancy, default_acl.as_deref())
                }
                other => other,
            }
        } else {
            self.bear_in_work(birth, &parent, name, vacancy, default_acl.as_deref())
        }?;
        let found = InUpper {
            stat,
            ino: super::node::UPPER_BASE.saturating_add(stat.attr.ino),
            lower: None,
            opaque: Opaque::No,
        };
        let Some(node) = self.intern(&parent, name, &found)? else {
            return refuse(Errno::STALE);
        };
        if birth.kind() == Kind::Dir {
            node.dir.note(FACT_PURE);
        }
        self.settle(fd.as_fd(), &mut claim);
        self.settle(dir.as_fd(), &mut None);
        let attr = match birth.blank() {
            Blank::NullDevice => self.node_attr(&node)?,
            _ => Attr {
                ino: node.ino.0,
                ..stat.attr
            },
        };
        self.table.count_lookup(&node);
        let generation = node.generation;
        Ok((node, fd, Entry { attr, generation }))
    }

    /// Whether a name can be used.
    pub(super) fn vacancy(&self, parent: &Target, name: &Name) -> Result<Vacancy> {
        match self.peek(parent, name)? {
            Origin::Absent => Ok(Vacancy::Empty),
            Origin::Whiteout => Ok(Vacancy::Whiteout),
            Origin::Lower(_) | Origin::Rising(_) | Origin::Upper(_) => refuse(Errno::EXIST),
        }
    }

    fn default_acl(&self, parent: &Node, dir: BorrowedFd<'_>) -> Result<Option<Arc<[u8]>>> {
        let mut known = lock(&parent.dir.default_acl);
        if let Some(acl) = &*known {
            return Ok(acl.clone());
        }
        let acl = fs::getxattr(dir, ACL_DEFAULT).doing("reading a default ACL")?;
        let acl: Option<Arc<[u8]>> = acl.map(Into::into);
        *known = Some(acl.clone());
        Ok(acl)
    }

    fn bear_in_place(
        &self,
        birth: &Birth<'_>,
        dir: BorrowedFd<'_>,
        name: &Name,
        inherits: bool,
    ) -> Result<(OwnedFd, Stat)> {
        let name = name.as_bytes();
        let perm = if inherits {
            birth.perm
        } else {
            birth.perm & !birth.umask
        };
        let mode = u32::from(perm);
        let made = match birth.what {
            Make::File => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                fs::open(dir, name, flags, mode).map(Some)
            }
            Make::Dir => fs::mkdir(dir, name, mode).map(|()| None),
            Make::Symlink(target) => fs::symlink(target, dir, name).map(|()| None),
            Make::Char(rdev) => fs::mknod(dir, name, Kind::Char, mode, rdev).map(|()| None),
            Make::Block(rdev) => fs::mknod(dir, name, Kind::Block, mode, rdev).map(|()| None),
            Make::Fifo => fs::mknod(dir, name, Kind::Fifo, mode, 0).map(|()| None),
            Make::Socket => fs::mknod(dir, name, Kind::Socket, mode, 0).map(|()| None),
        };
        let opened = made.doing("creating")?;
        let kind = birth.kind();
        let settled = match opened {
            Some(fd) => Ok(fd),
            None => fs::open(dir, name, OFlags::PATH, 0).doing("opening"),
        }
        .and_then(|fd| self.settle_mode(fd, perm, inherits, kind));
        if settled.is_err() {
            // The caller is told that there is none.
            let undone = match kind {
                Kind::Dir => fs::rmdir(dir, name),
                _ => fs::unlink(dir, name),
            };
            if let Err(errno) = undone {
                tracing::warn!(%errno, "leaving a new entry whose creation was refused");
            }
        }
        settled
    }

    /// The process's umask is not ours to change: what it took away is put back.
    fn settle_mode(
        &self,
        fd: OwnedFd,
        perm: u16,
        inherits: bool,
        kind: Kind,
    ) -> Result<(OwnedFd, Stat)> {
        let mut stat = fs::fstat(fd.as_fd()).doing("reading attributes")?;
        let want = perm | (stat.attr.perm & S_ISGID);
        if kind != Kind::Symlink && !inherits && stat.attr.perm != want {
            fs::chmod(fd.as_fd(), want).doing("setting the mode")?;
            stat.attr.perm = want;
        }
        Ok((fd, stat))
    }

    fn bear_in_work(
        &self,
        birth: &Birth<'_>,
        parent: &Arc<Node>,
        name: &Name,
        vacancy: Vacancy,
        default_acl: Option<&[u8]>,
    ) -> Result<(OwnedFd, Stat)> {
        let upper = self.writable()?;
        let dir = self.dir_fd(parent)?;
        let around = fs::fstat(dir.as_fd()).doing("reading attributes")?.attr;
        let kind = birth.kind();
        let temp = upper.temp(birth.blank()).doing("creating")?;
        let inherits_group = around.perm & S_ISGID != 0;
        let gid = if inherits_group {
            around.gid
        } else {
            birth.caller.gid
        };
        if (birth.caller.uid, gid) != upper.ids() || inherits_group {
            fs::chown(temp.fd(), Some(birth.caller.uid), Some(gid)).doing("setting the owner")?;
        }
        if kind != Kind::Symlink {
            self.set_birth_mode(birth, temp.fd(), inherits_group, default_acl)?;
        }
        if kind == Kind::Dir && vacancy == Vacancy::Whiteout {
            upper
                .marks()
                .set_opaque(temp.fd())
                .doing("setting a mark")?;
        }
        let fd = self.settle_in(temp, dir.as_fd(), name, kind, vacancy)?;
        if kind == Kind::Dir {
            // It is there, whatever comes after.
            parent.dir.add_subdirs(1);
        }
        let stat = fs::fstat(fd.as_fd()).doing("reading attributes")?;
        Ok((fd, stat))
    }

    fn set_birth_mode(
        &self,
        birth: &Birth<'_>,
        fd: BorrowedFd<'_>,
        inherits_group: bool,
        default_acl: Option<&[u8]>,
    ) -> Result<()> {
        let dir = birth.kind() == Kind::Dir;
        let mut perm = birth.perm & !birth.umask;
        if let Some(default) = default_acl {
            let (masked, access) = acl::inherit(default, birth.perm).doing("inheriting an ACL")?;
            perm = masked;
            if let Some(access) = access {
                fs::setxattr(fd, ACL_ACCESS, &access, 0).doing("inheriting an ACL")?;
            }
            if dir {
                fs::setxattr(fd, ACL_DEFAULT, default, 0).doing("inheriting an ACL")?;
            }
        }
        if dir && inherits_group {
            perm |= S_ISGID;
        }
        fs::chmod(fd, perm).doing("setting the mode")
    }

    /// Publishes a new entry at a name that is free in the merged view.
    pub(super) fn settle_in(
        &self,
        temp: Temp<'_>,
        dir: BorrowedFd<'_>,
        name: &Name,
        kind: Kind,
        vacancy: Vacancy,
    ) -> Result<OwnedFd> {
        let name = name.as_bytes();
        match (vacancy, kind) {
            (Vacancy::Empty, _) => temp.publish(dir, name),
            // A directory cannot be renamed over a device (rename(2): ENOTDIR).
            (Vacancy::Whiteout, Kind::Dir) => temp.exchange(dir, name),
            (Vacancy::Whiteout, _) => temp.replace(dir, name),
        }
        .doing("publishing")
    }

    /// link(2).
    ///
    /// # Errors
    /// EEXIST, EROFS, EPERM for a directory, ENOENT for an inode without a name, EMLINK.
    pub fn link(&self, ino: Ino, new_parent: Ino, new_name: &Name) -> Result<Entry> {
        self.with_room(|| self.link_once(ino, new_parent, new_name))
    }

    fn link_once(&self, ino: Ino, new_parent: Ino, new_name: &Name) -> Result<Entry> {
        let upper = self.writable()?;
        let node = match self.target(ino)? {
            Target::Upper(node) => node,
            Target::Lower(nid) => self.copy_up(nid)?,
        };
        if node.kind == Kind::Dir {
            return refuse(Errno::PERM);
        }
        self.check_whole(&node)?;
        let parent = self.upper_dir(&self.directory(new_parent)?)?;
        let target = Target::Upper(Arc::clone(&parent));
        let _entries = parent.lock_entries();
        let vacancy = self.vacancy(&target, new_name)?;
        let _claim = self.claim(0, 0)?;
        let dir = self.dir_fd(&parent)?;
        if node.came_from_lower() {
            self.make_impure(&parent, dir.as_fd())?;
        }
        // ENOENT if no name leads to it any more: one that is not known here may.
        self.with_fd(&node, |fd| match vacancy {
            Vacancy::Empty => fs::link_fd(fd, dir.as_fd(), new_name.as_bytes()).doing("linking"),
            Vacancy::Whiteout => {
                let fd = rustix::io::fcntl_dupfd_cloexec(fd, 0).doing("linking")?;
                let temp = upper.temp_link(fd).doing("linking")?;
                temp.replace(dir.as_fd(), new_name.as_bytes())
                    .doing("linking")
                    .map(|_| ())
            }
        })?;
        self.settle(dir.as_fd(), &mut None);
        let parent = Arc::clone(&parent);
        node.add_link(super::node::Link {
            parent,
            name: new_name.clone(),
        });
        self.entry(&Target::Upper(node))
    }
}
