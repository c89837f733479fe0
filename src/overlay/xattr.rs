//! Extended attributes. The overlay's own marks do not exist for those inside the mount.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::io::Errno;

use super::create::{ACL_ACCESS, ACL_DEFAULT};
use super::error::{Doing, refuse};
use super::node::lock;
use super::quota::Claim;
use super::{Asker, Caller, Ino, Overlay, Result, Target};
use crate::sys::asker::S_ISGID;
use crate::sys::fs;
use crate::upper::markers::mark_in;

/// Sets an access ACL. Who is neither in the file's group nor privileged loses set-group-ID by it
/// (`fs/posix_acl.c:posix_acl_update_mode()`). The kernel leaves that to us
/// (`fs/fuse/acl.c:fuse_set_acl()`), and what it says of the asker comes with `SETXATTR_EXT` only.
fn set_access_acl(
    asker: Asker,
    fd: BorrowedFd<'_>,
    value: &[u8],
    flags: i32,
) -> rustix::io::Result<()> {
    let before = fs::fstat(fd)?.attr;
    if before.perm & S_ISGID == 0 || asker.keeps_set_group_id(before.uid, before.gid) {
        return fs::setxattr(fd, ACL_ACCESS, value, flags);
    }
    // First: what a crash leaves in between is less privilege, not more.
    fs::chmod(fd, before.perm & !S_ISGID)?;
    let set = fs::setxattr(fd, ACL_ACCESS, value, flags);
    if set.is_err()
        && let Err(errno) = fs::chmod(fd, before.perm)
    {
        tracing::warn!(%errno, "set-group-ID is lost though the ACL could not be set");
    }
    set
}

/// What the kernel reads of an inode again and again, since its FUSE keeps no attributes, and finds
/// missing nearly always: file capabilities before each write(2) and at each execve(2)
/// (security/commoncap.c:cap_inode_need_killpriv()), the access ACL of the root whenever somebody
/// but its owner walks through it (see docs/ARCHITECTURE.md, "Round trips").
const READ_OFTEN: [&[u8]; 2] = [b"security.capability", ACL_ACCESS];

/// Which of [`READ_OFTEN`] an inode of the upper is known not to have. An attribute that anybody
/// begins to set here is never known to be missing again, so that no reading that came before can
/// say so afterwards.
#[derive(Debug, Default)]
pub(super) struct Absent(AtomicU8);

impl Absent {
    /// The bits of a name: found missing, perhaps set.
    fn bits(name: &[u8]) -> Option<(u8, u8)> {
        let at = READ_OFTEN.iter().position(|often| *often == name)?;
        Some((1 << at, 16 << at))
    }

    fn is_known(&self, name: &[u8]) -> bool {
        Self::bits(name).is_some_and(|(missing, set)| {
            self.0.load(Ordering::Acquire) & (missing | set) == missing
        })
    }

    fn found(&self, name: &[u8]) {
        if let Some((missing, _)) = Self::bits(name) {
            self.0.fetch_or(missing, Ordering::AcqRel);
        }
    }

    /// To be called before the change.
    fn forget(&self, name: &[u8]) {
        if let Some((_, set)) = Self::bits(name) {
            self.0.fetch_or(set, Ordering::AcqRel);
        }
    }
}

/// What reading or removing an attribute that is not there gives: ENODATA in the classes that a
/// local filesystem has, EOPNOTSUPP in all others (fs/xattr.c:xattr_resolve_name()).
fn missing(name: &[u8]) -> Errno {
    let classes: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let known = classes.into_iter().any(|class| name.starts_with(class));
    match name {
        ACL_ACCESS | ACL_DEFAULT => Errno::NODATA,
        _ if known => Errno::NODATA,
        _ => Errno::OPNOTSUPP,
    }
}

impl Overlay {
    fn hidden(&self, name: &[u8]) -> bool {
        self.upper.is_some() && mark_in(name).is_some()
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// ENODATA, EOPNOTSUPP for a class that is not known.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let value = match self.target(ino)? {
            _ if self.hidden(name) => None,
            Target::Lower(nid) => self.lower.xattr(nid, name)?,
            Target::Upper(node) if node.dir.absent.is_known(name) => None,
            Target::Upper(node) => {
                let value = self.with_fd(&node, |fd| {
                    fs::getxattr(fd, name).doing("reading an extended attribute")
                })?;
                if value.is_none() {
                    node.dir.absent.found(name);
                }
                value
            }
        };
        match value {
            Some(value) => Ok(value),
            None => refuse(missing(name)),
        }
    }

    /// The names that `who` may know of. Those of class trusted. are listed to the superuser alone
    /// (fs/ext4/xattr_trusted.c:ext4_xattr_trusted_list(), fs/overlayfs/xattrs.c:ovl_can_list()),
    /// for whom, of the capabilities that the kernel asks for there, the user ID stands.
    ///
    /// # Errors
    /// ESTALE, EIO.
    pub fn listxattr_for(&self, who: Caller, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut names = self.listxattr(ino)?;
        if who.uid != 0 {
            names.retain(|name| !name.starts_with(b"trusted."));
        }
        Ok(names)
    }

    /// The names of an inode's extended attributes.
    ///
    /// # Errors
    /// ESTALE, EIO.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut names: Vec<Vec<u8>> = match self.target(ino)? {
            Target::Lower(nid) => self
                .lower
                .xattrs(nid)?
                .into_iter()
                .map(|x| x.name)
                .collect(),
            Target::Upper(node) => self.with_fd(&node, |fd| {
                fs::listxattr(fd).doing("listing extended attributes")
            })?,
        };
        names.retain(|name| !self.hidden(name));
        Ok(names)
    }

    /// Sets an extended attribute. `flags`: XATTR_CREATE, XATTR_REPLACE. `asker` counts where it is
    /// an ACL.
    ///
    /// # Errors
    /// EROFS, EEXIST, ENODATA, EOPNOTSUPP for a name that the overlay keeps for itself.
    pub fn setxattr(
        &self,
        asker: Asker,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        let set = |fd: BorrowedFd<'_>| match name {
            ACL_ACCESS => set_access_acl(asker, fd, value, flags),
            _ => fs::setxattr(fd, name, value, flags),
        };
        let len = name.len().saturating_add(value.len());
        self.with_room(|| {
            let mut claim = self.claim_inline(0, len)?;
            self.change_xattr(ino, name, set, &mut claim)
        })
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// EROFS, ENODATA (but for an ACL), EOPNOTSUPP for a name that the overlay keeps for itself or a
    /// class that is not known.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        // What is not there needs no copy-up (fs/overlayfs/xattrs.c:ovl_xattr_set()).
        if let Target::Lower(nid) = self.target(ino)?
            && self.lower.xattr(nid, name)?.is_none()
        {
            self.writable()?;
            // To take away an ACL that is not there is no error (fs/ext4/acl.c:ext4_set_acl()); only
            // overlayfs gives ENODATA (fs/overlayfs/inode.c:ovl_set_or_remove_acl()).
            return match name {
                ACL_ACCESS | ACL_DEFAULT => Ok(()),
                _ => refuse(missing(name)),
            };
        }
        self.with_room(|| self.change_xattr(ino, name, |fd| fs::removexattr(fd, name), &mut None))
    }

    fn change_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        change: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>,
        claim: &mut Option<Claim<'_>>,
    ) -> Result<()> {
        self.writable()?;
        if self.hidden(name) {
            return refuse(Errno::OPNOTSUPP);
        }
        let node = match self.target(ino)? {
            Target::Upper(node) => node,
            Target::Lower(nid) => self.copy_up(nid)?,
        };
        node.dir.absent.forget(name);
        // Read again when it is next needed; held so that no creation misses the change.
        let mut default_acl = (name == ACL_DEFAULT).then(|| lock(&node.dir.default_acl));
        if let Some(known) = &mut default_acl {
            **known = None;
        }
        self.with_fd(&node, |fd| {
            let changed = change(fd).doing("changing an extended attribute");
            self.settle(fd, claim);
            changed
        })
    }
}
