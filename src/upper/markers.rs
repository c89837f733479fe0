//! The marks that an upper directory carries on disk: overlayfs' own, and the one that tarnfs
//! adds. Their only home.
//!
//! overlayfs' are described in Documentation/filesystems/overlayfs.rst and read by
//! fs/overlayfs/util.c: a whiteout is a character device 0:0 (or, as written for unprivileged
//! nesting since Linux 6.7, an empty regular file with `overlay.whiteout` in a directory whose
//! `overlay.opaque` is `x`); `overlay.opaque=y` hides the lower directory of that name;
//! `overlay.redirect` names the lower directory that a renamed one goes on with;
//! `overlay.impure=y` says that a directory holds entries that came from the lower;
//! `overlay.metacopy` says that a file has its attributes here and its data in the lower.
//! Ours: `tarnfs.ino` keeps the inode number that a file had before it was copied up;
//! `tarnfs.null-device` says that a character device is 0:0 to those inside the mount
//! ([`NULL_DEVICE`]).
//!
//! An unreadable mark is an error, never "not there".

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};

use crate::inode::{Kind, Xattr};
use crate::sys::fs::{self, Stat};

/// The namespace that the marks live in: `trusted.` needs `CAP_SYS_ADMIN` in the first user
/// namespace, `user.` is overlayfs' `userxattr` mount option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.overlay.*`, `trusted.tarnfs.*`
    Trusted,
    /// `user.overlay.*`, `user.tarnfs.*`
    User,
}

/// Where an upper directory's lower part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// The directory called so in the lower part of the parent.
    Sibling(Vec<u8>),
    /// The directory at this path from the lower root; no leading slash, components joined by `/`.
    Absolute(Vec<u8>),
}

/// Bytes of a redirect that overlayfs writes by default (`fs/overlayfs/dir.c`: `redirect_max`), and
/// that any filesystem holds. It reads them of any length.
const REDIRECT_SURE: usize = 256;

impl Redirect {
    /// The mark's value.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        match self {
            Self::Sibling(name) => name.clone(),
            Self::Absolute(path) => [b"/", path.as_slice()].concat(),
        }
    }

    /// Whether it depends on the filesystem if it can be noted.
    #[must_use]
    pub fn is_long(&self) -> bool {
        match self {
            Self::Sibling(_) => false,
            Self::Absolute(path) => path.len() >= REDIRECT_SURE,
        }
    }
}

/// What a directory's `overlay.opaque` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opaque {
    /// It merges with the lower directory.
    No,
    /// It hides the lower directory.
    Yes,
    /// It merges, and may hold whiteouts of the regular-file kind.
    XWhiteouts,
}

/// What an attribute that is a mark says ([`Namespace::mark`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Of a directory: it hides the lower one, or may hold whiteouts of the regular-file kind.
    Opaque,
    /// Where a directory's lower part is, or the lower file that has a file's data.
    Redirect,
    /// Of a file: its data are in the lower.
    Metacopy,
    /// Of an empty file: a whiteout, where its directory says so.
    Whiteout,
    /// Of a character device: 0:0 to those inside.
    NullDevice,
    /// One that says nothing of what is seen.
    Other,
}

/// Tells one index from another: numbers of inodes mean nothing in the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageId(pub u64);

/// A number of an inode with the index that it belongs to, as it is kept on disk.
pub(super) fn number(ino: u64, image: ImageId) -> String {
    format!("{ino}.{:016x}", image.0)
}

/// Reads [`number`].
pub(super) fn parse_number(bytes: &[u8]) -> Option<(u64, ImageId)> {
    let (ino, image) = std::str::from_utf8(bytes).ok()?.split_once('.')?;
    let image = u64::from_str_radix(image, 16).ok()?;
    Some((ino.parse().ok()?, ImageId(image)))
}

const INO: &str = "tarnfs.ino";
const OPAQUE: &str = "overlay.opaque";
const REDIRECT: &str = "overlay.redirect";
const IMPURE: &str = "overlay.impure";
const WHITEOUT: &str = "overlay.whiteout";
const METACOPY: &str = "overlay.metacopy";
const NULL: &str = "tarnfs.null-device";

/// The device number (makedev(3)), 0:1, that a character device 0:0 has in the upper, where it would be a
/// whiteout as itself. No driver answers to either: open(2) says ENXIO. overlayfs refuses to make
/// such a device (`fs/overlayfs/dir.c:ovl_mknod()`).
pub const NULL_DEVICE: u64 = 1;

impl Namespace {
    /// What the attribute called `name` says, if it is a mark of either namespace. That of the
    /// other one says nothing.
    #[must_use]
    pub fn mark(self, name: &[u8]) -> Option<Mark> {
        if mark_in(name)? != self {
            return Some(Mark::Other);
        }
        let marks = [
            (OPAQUE, Mark::Opaque),
            (REDIRECT, Mark::Redirect),
            (METACOPY, Mark::Metacopy),
            (WHITEOUT, Mark::Whiteout),
            (NULL, Mark::NullDevice),
        ];
        let rest = name.strip_prefix(self.prefix())?;
        let known = marks.iter().find(|known| known.0.as_bytes() == rest);
        Some(known.map_or(Mark::Other, |known| known.1))
    }

    /// The attribute that makes a directory opaque.
    #[must_use]
    pub fn opaque_xattr(self) -> Xattr {
        Xattr {
            name: self.key(OPAQUE),
            value: b"y".to_vec(),
        }
    }

    /// The attribute that tells where a directory's lower part is.
    #[must_use]
    pub fn redirect_xattr(self, redirect: &Redirect) -> Xattr {
        Xattr {
            name: self.key(REDIRECT),
            value: redirect.value(),
        }
    }

    /// The attribute that makes a character device stand for 0:0.
    #[must_use]
    pub fn null_device_xattr(self) -> Xattr {
        Xattr {
            name: self.key(NULL),
            value: b"y".to_vec(),
        }
    }

    /// The index that an inode's number belongs to; `None` for one that has none.
    ///
    /// # Errors
    /// getxattr(2)'s; EIO for a value that is no number.
    pub fn image(self, file: BorrowedFd<'_>) -> Result<Option<ImageId>> {
        let Some(value) = fs::getxattr(file, &self.key(INO))? else {
            return Ok(None);
        };
        let (_, image) = parse_number(&value).ok_or(Errno::IO)?;
        Ok(Some(image))
    }

    fn key(self, mark: &str) -> Vec<u8> {
        [self.prefix(), mark.as_bytes()].concat()
    }

    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.",
            Self::User => b"user.",
        }
    }

    /// Whether a directory hides the lower one (`fs/overlayfs/util.c:ovl_get_opaquedir_val()`).
    ///
    /// # Errors
    /// getxattr(2)'s.
    pub fn opaque(self, dir: BorrowedFd<'_>) -> Result<Opaque> {
        Ok(match fs::getxattr(dir, &self.key(OPAQUE))?.as_deref() {
            Some(b"y") => Opaque::Yes,
            Some(b"x") => Opaque::XWhiteouts,
            _ => Opaque::No,
        })
    }

    /// Makes a directory hide the lower one.
    ///
    /// # Errors
    /// setxattr(2)'s.
    pub fn set_opaque(self, dir: BorrowedFd<'_>) -> Result<()> {
        fs::setxattr(dir, &self.key(OPAQUE), b"y", 0)
    }

    /// Where a directory's lower part is, if not under its own name
    /// (`fs/overlayfs/namei.c:ovl_check_redirect()`).
    ///
    /// # Errors
    /// getxattr(2)'s; EIO for a value that names nothing.
    pub fn redirect(self, dir: BorrowedFd<'_>) -> Result<Option<Redirect>> {
        let Some(value) = fs::getxattr(dir, &self.key(REDIRECT))? else {
            return Ok(None);
        };
        if value.contains(&0) {
            return Err(Errno::IO);
        }
        let redirect = match value.strip_prefix(b"/") {
            Some(path) => Redirect::Absolute(path.to_vec()),
            None if value.is_empty() || value.contains(&b'/') => return Err(Errno::IO),
            None => Redirect::Sibling(value),
        };
        Ok(Some(redirect))
    }

    /// Notes where a directory's lower part is.
    ///
    /// # Errors
    /// setxattr(2)'s; EXDEV for a long one that the filesystem cannot hold.
    pub fn set_redirect(self, dir: BorrowedFd<'_>, redirect: &Redirect) -> Result<()> {
        match fs::setxattr(dir, &self.key(REDIRECT), &redirect.value(), 0) {
            // ext4 has one block for all attributes of a file, and says that it is full
            // (fs/overlayfs/dir.c:ovl_set_redirect() says EXDEV whatever was wrong).
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) if redirect.is_long() => {
                Err(Errno::XDEV)
            }
            other => other,
        }
    }

    /// Whether a directory may hold entries that came from the lower.
    ///
    /// # Errors
    /// getxattr(2)'s.
    pub fn impure(self, dir: BorrowedFd<'_>) -> Result<bool> {
        Ok(fs::getxattr(dir, &self.key(IMPURE))?.is_some())
    }

    /// Notes that a directory holds entries that came from the lower.
    ///
    /// # Errors
    /// setxattr(2)'s.
    pub fn set_impure(self, dir: BorrowedFd<'_>) -> Result<()> {
        fs::setxattr(dir, &self.key(IMPURE), b"y", 0)
    }

    /// Whether a file has its attributes alone in the upper (overlayfs' `metacopy=on`).
    ///
    /// # Errors
    /// getxattr(2)'s.
    pub fn is_metacopy(self, file: BorrowedFd<'_>) -> Result<bool> {
        Ok(fs::getxattr(file, &self.key(METACOPY))?.is_some())
    }

    /// The inode number that a copied-up file keeps; `None` for one of another image's index.
    ///
    /// # Errors
    /// getxattr(2)'s; EIO for a value that is no number.
    pub fn ino(self, file: BorrowedFd<'_>, image: ImageId) -> Result<Option<u64>> {
        let Some(value) = fs::getxattr(file, &self.key(INO))? else {
            return Ok(None);
        };
        let (ino, of) = parse_number(&value).ok_or(Errno::IO)?;
        Ok((of == image).then_some(ino))
    }

    /// Whether an inode of this type can carry a mark: `user.` attributes exist on regular files
    /// and directories only (xattr(7)).
    #[must_use]
    pub fn can_mark(self, kind: Kind) -> bool {
        self == Self::Trusted || matches!(kind, Kind::File | Kind::Dir)
    }

    /// Notes the inode number that a copied-up file keeps; where it cannot be marked
    /// ([`Self::can_mark`]), who copied it remembers the number for as long as it can.
    ///
    /// # Errors
    /// setxattr(2)'s.
    pub fn set_ino(self, file: BorrowedFd<'_>, kind: Kind, ino: u64, image: ImageId) -> Result<()> {
        match fs::setxattr(file, &self.key(INO), number(ino, image).as_bytes(), 0) {
            Err(Errno::PERM) if !self.can_mark(kind) => Ok(()),
            other => other,
        }
    }

    /// Whether a character device with the number [`NULL_DEVICE`] stands for 0:0.
    ///
    /// # Errors
    /// getxattr(2)'s.
    pub fn is_null_device(self, file: BorrowedFd<'_>) -> Result<bool> {
        Ok(fs::getxattr(file, &self.key(NULL))?.is_some())
    }

    /// Makes a character device with the number [`NULL_DEVICE`] stand for 0:0.
    ///
    /// # Errors
    /// setxattr(2)'s; EPERM in the `user.` namespace, which devices do not have (xattr(7)).
    pub fn set_null_device(self, file: BorrowedFd<'_>) -> Result<()> {
        fs::setxattr(file, &self.key(NULL), b"y", 0)
    }

    /// Whether `name` in `dir` is a whiteout (`fs/overlayfs/util.c:ovl_path_is_whiteout()`).
    ///
    /// # Errors
    /// open(2)'s and getxattr(2)'s.
    pub fn is_whiteout(
        self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        opaque: Opaque,
    ) -> Result<bool> {
        if is_whiteout_device(stat) {
            return Ok(true);
        }
        if opaque != Opaque::XWhiteouts || stat.attr.kind != Kind::File || stat.attr.size != 0 {
            return Ok(false);
        }
        let file = fs::open(dir, name, rustix::fs::OFlags::PATH, 0)?;
        Ok(fs::getxattr(std::os::fd::AsFd::as_fd(&file), &self.key(WHITEOUT))?.is_some())
    }
}

/// The namespace of an attribute whose name is that of a mark. Those of both are hidden from
/// programs inside: what they could set in the other one might be believed by a later mount.
#[must_use]
pub fn mark_in(name: &[u8]) -> Option<Namespace> {
    [Namespace::Trusted, Namespace::User]
        .into_iter()
        .find(|space| {
            name.strip_prefix(space.prefix())
                .is_some_and(|rest| rest.starts_with(b"overlay.") || rest.starts_with(b"tarnfs."))
        })
}

/// Whether a file is the character device 0:0.
#[must_use]
pub fn is_whiteout_device(stat: &Stat) -> bool {
    stat.attr.kind == Kind::Char && stat.attr.rdev == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_are_written() {
        let image = ImageId(0xfeed_0000_0000_0001);
        assert_eq!(
            parse_number(number(77, image).as_bytes()),
            Some((77, image))
        );
        for bad in [
            &b""[..],
            b"7",
            b"7.",
            b".7",
            b"x.1",
            b"7.x",
            b"-1.1",
            b"7.11111111111111111",
        ] {
            assert_eq!(parse_number(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn marks_are_told_by_their_names() {
        for (name, space) in [
            (&b"trusted.overlay.opaque"[..], Some(Namespace::Trusted)),
            (b"trusted.tarnfs.ino", Some(Namespace::Trusted)),
            (b"user.overlay.opaque", Some(Namespace::User)),
            (b"user.tarnfs.ino", Some(Namespace::User)),
            (b"trusted.overlayer", None),
            (b"user.overlay", None),
            (b"security.overlay.x", None),
        ] {
            assert_eq!(mark_in(name), space, "{name:?}");
        }
    }
}
