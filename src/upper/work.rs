//! New entries: made in the work directory, published in the upper by one rename.
//!
//! "Temp, complete it, sync, rename" is written here once. A [`Temp`] that is dropped unpublished
//! removes itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use rustix::fs::{OFlags, RenameFlags};
use rustix::io::{Errno, Result};

use super::Upper;
use super::markers::{ImageId, NULL_DEVICE, Redirect, number, parse_number};
use crate::inode::Kind;
use crate::sys::fs;

/// Directory beside `work/work` that outlives a mount: groups of hard links half copied up.
pub(super) const PENDING: &[u8] = b"pending-links";

/// Whiteout beside `work/work` that all others are links of; outlives a mount as well.
pub(super) const WHITEOUT: &[u8] = b"whiteout";

/// An entry of the work directory on its way into the upper.
#[derive(Debug)]
pub struct Temp<'a> {
    entry: Entry<'a>,
    fd: OwnedFd,
}

/// A name in work, swept with all it leads to when this is dropped, unless it has been taken away.
#[derive(Debug)]
struct Entry<'a> {
    upper: &'a Upper,
    name: Vec<u8>,
    gone: bool,
}

/// The way to a work directory, which it does not keep open.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    work: Weak<OwnedFd>,
    next_temp: Arc<AtomicU64>,
}

/// A file of the work directory that never becomes an entry; its name goes when this is dropped.
#[derive(Debug)]
pub struct Notes {
    work: Arc<OwnedFd>,
    name: String,
    fd: OwnedFd,
}

/// What a [`Temp`] is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blank<'a> {
    /// An empty regular file, opened for reading and writing.
    File,
    /// An empty directory.
    Dir,
    /// A symbolic link to this target.
    Symlink(&'a [u8]),
    /// A device, FIFO or socket, with its device number (else 0).
    Node(Kind, u64),
    /// What stands for a character device 0:0 ([`NULL_DEVICE`]).
    NullDevice,
}

impl Beside {
    /// Makes a file, mode 0600, for reading and writing.
    ///
    /// # Errors
    /// open(2)'s; EROFS where there is no upper, or none any more.
    pub fn notes(&self) -> Result<Notes> {
        let work = self.work.upgrade().ok_or(Errno::ROFS)?;
        let name = next_name(&self.next_temp);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let fd = fs::open(work.as_fd(), name.as_bytes(), flags, 0o600)?;
        Ok(Notes { work, name, fd })
    }
}

impl Notes {
    /// The file.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its name in `work/work`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        match fs::unlink(self.work.as_fd(), self.name.as_bytes()) {
            // Where the next mount has cleared it away.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => tracing::warn!(%errno, "leaving rubbish in work/"),
        }
    }
}

/// As kernel overlayfs names what it has in work, so that either clears the other's.
fn next_name(next: &AtomicU64) -> String {
    format!("#{:x}", next.fetch_add(1, Ordering::Relaxed))
}

impl Upper {
    /// The way to the work directory, for who may outlive the mount.
    #[must_use]
    pub fn beside(&self) -> Beside {
        Beside {
            work: Arc::downgrade(&self.work),
            next_temp: Arc::clone(&self.next_temp),
        }
    }

    fn temp_of(&self, name: Vec<u8>, fd: OwnedFd) -> Temp<'_> {
        let entry = Entry {
            upper: self,
            name,
            gone: false,
        };
        Temp { entry, fd }
    }

    fn temp_name(&self) -> Vec<u8> {
        next_name(&self.next_temp).into_bytes()
    }

    /// Makes an entry in the work directory, mode 0600 (0700 for a directory). Its descriptor is
    /// readable and writable for a regular file, `O_PATH` for all else.
    ///
    /// # Errors
    /// The creating system call's.
    pub fn temp(&self, blank: Blank<'_>) -> Result<Temp<'_>> {
        // From here on what is made is swept if it cannot be opened.
        let entry = Entry {
            upper: self,
            name: self.temp_name(),
            gone: false,
        };
        let (work, name) = (self.work.as_fd(), entry.name.as_slice());
        let path = OFlags::PATH;
        let fd = match blank {
            Blank::File => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                fs::open(work, name, flags, 0o600)
            }
            Blank::Dir => {
                fs::mkdir(work, name, 0o700)?;
                fs::open(work, name, path | OFlags::DIRECTORY, 0)
            }
            Blank::Symlink(target) => {
                fs::symlink(target, work, name)?;
                fs::open(work, name, path, 0)
            }
            Blank::Node(kind, rdev) => {
                fs::mknod(work, name, kind, 0o600, rdev)?;
                fs::open(work, name, path, 0)
            }
            Blank::NullDevice => {
                fs::mknod(work, name, Kind::Char, 0o600, NULL_DEVICE)?;
                fs::open(work, name, path, 0)
            }
        }?;
        if blank == Blank::NullDevice {
            self.namespace.set_null_device(fd.as_fd())?;
        }
        Ok(Temp { entry, fd })
    }

    /// Whether a directory of this filesystem can note a redirect, tried on one in the work
    /// directory.
    ///
    /// # Errors
    /// EXDEV if not; mkdirat(2)'s, and ENOSPC where there is no room for a short one either.
    pub fn can_redirect(&self, redirect: &Redirect) -> Result<()> {
        if !redirect.is_long() {
            return Ok(());
        }
        let temp = self.temp(Blank::Dir)?;
        // Long enough to need a block of its own.
        let short = Redirect::Sibling(vec![b'x'; 255]);
        self.namespace.set_redirect(temp.fd(), &short)?;
        self.namespace.set_redirect(temp.fd(), redirect)
    }

    /// Makes a whiteout at a name that the upper does not use yet.
    ///
    /// All whiteouts are links to one inode, as kernel overlayfs has it
    /// (`fs/overlayfs/dir.c:ovl_whiteout()`): removing a large tree then neither makes nor frees
    /// inodes, which ext4 is slow at when both happen at once, and files can be removed where no
    /// inode is free.
    ///
    /// # Errors
    /// mknodat(2)'s, linkat(2)'s; EEXIST.
    pub fn whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let shared = self.workdir.as_fd();
        match fs::link(shared, WHITEOUT, dir, name) {
            // None yet, or as many names as one inode can have.
            Err(Errno::NOENT) => {}
            Err(Errno::MLINK) => match fs::unlink(shared, WHITEOUT) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            },
            // A filesystem that does not link devices.
            Err(Errno::PERM | Errno::OPNOTSUPP) => return fs::mknod(dir, name, Kind::Char, 0, 0),
            other => return other,
        }
        match fs::mknod(shared, WHITEOUT, Kind::Char, 0, 0) {
            Ok(()) | Err(Errno::EXIST) => fs::link(shared, WHITEOUT, dir, name),
            Err(errno) => Err(errno),
        }
    }

    /// Puts a whiteout in place of a non-directory of the upper.
    ///
    /// # Errors
    /// As [`Self::whiteout`], and renameat2(2)'s.
    pub fn replace_by_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        self.by_whiteout(dir, name, RenameFlags::empty())
    }

    /// Puts a whiteout in place of a directory of the upper, and removes that with all it holds
    /// on disk.
    ///
    /// # Errors
    /// As [`Self::whiteout`], and renameat2(2)'s.
    pub fn exchange_for_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        self.by_whiteout(dir, name, RenameFlags::EXCHANGE)
    }

    fn by_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8], flags: RenameFlags) -> Result<()> {
        let temp = self.temp_name();
        let work = self.work.as_fd();
        self.whiteout(work, &temp)?;
        let renamed = fs::rename(work, &temp, dir, name, flags);
        if renamed.is_err() || flags == RenameFlags::EXCHANGE {
            // The whiteout that did not get there, or what was there.
            self.sweep(&temp);
        }
        renamed
    }

    /// Takes the inode behind `fd` to the work directory under a second name.
    ///
    /// # Errors
    /// linkat(2)'s.
    pub fn temp_link(&self, fd: OwnedFd) -> Result<Temp<'_>> {
        let name = self.temp_name();
        fs::link_fd(fd.as_fd(), self.work.as_fd(), &name)?;
        Ok(self.temp_of(name, fd))
    }

    /// Takes the new inode of a group of hard links of the image (by its inode number) to a place
    /// that outlives a crash, until [`Self::unpend`]: what makes a group that got only some of its
    /// names repairable.
    ///
    /// # Errors
    /// mkdirat(2)'s and renameat2(2)'s.
    pub fn pend(&self, temp: Temp<'_>, ino: u64, image: ImageId) -> Result<OwnedFd> {
        // Over what an earlier failure could not take back; it has been undone since.
        temp.replace(self.pending_dir()?.as_fd(), number(ino, image).as_bytes())
    }

    /// Takes back [`Self::pend`].
    ///
    /// # Errors
    /// unlinkat(2)'s.
    pub fn unpend(&self, ino: u64, image: ImageId) -> Result<()> {
        let Some(dir) = self.open_pending()? else {
            return Ok(());
        };
        match fs::unlink(dir.as_fd(), number(ino, image).as_bytes()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// What [`Self::pend`] noted and nothing took back: inode number, index, descriptor
    /// (`O_PATH`).
    ///
    /// # Errors
    /// open(2)'s; EIO for a name that is no number.
    pub fn pending(&self) -> Result<Vec<(u64, ImageId, OwnedFd)>> {
        let Some(dir) = self.open_pending()? else {
            return Ok(Vec::new());
        };
        let mut pending = Vec::new();
        for entry in fs::list(dir.as_fd())? {
            let name = entry.name.as_bytes();
            let (ino, image) = parse_number(name).ok_or(Errno::IO)?;
            pending.push((ino, image, fs::open(dir.as_fd(), name, OFlags::PATH, 0)?));
        }
        Ok(pending)
    }

    /// The directory of pending links, if anything was ever pending.
    fn open_pending(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match fs::open(self.workdir.as_fd(), PENDING, flags, 0) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn pending_dir(&self) -> Result<OwnedFd> {
        match fs::mkdir(self.workdir.as_fd(), PENDING, 0o700) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        fs::open(
            self.workdir.as_fd(),
            PENDING,
            OFlags::PATH | OFlags::DIRECTORY,
            0,
        )
    }

    /// Takes an entry out of the upper into the work directory, whatever it holds, and removes it
    /// there.
    ///
    /// # Errors
    /// renameat2(2)'s. What cannot be removed from work is left for the next mount.
    pub fn discard(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let temp = self.temp_name();
        fs::rename(dir, name, self.work.as_fd(), &temp, RenameFlags::NOREPLACE)?;
        self.sweep(&temp);
        Ok(())
    }

    /// Removes an entry of work. Failing is no error of the operation that has already happened:
    /// the next mount clears work.
    fn sweep(&self, name: &[u8]) {
        if let Err(errno) = remove_tree(self.work.as_fd(), name) {
            tracing::warn!(%errno, "leaving rubbish in work/");
        }
    }
}

impl Temp<'_> {
    /// The new inode.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Publishes it at a name that the upper does not use yet.
    ///
    /// # Errors
    /// renameat2(2)'s; EEXIST.
    pub fn publish(self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
        self.rename(dir, name, RenameFlags::NOREPLACE)
    }

    /// Publishes a non-directory in place of a non-directory of the upper, or where there is none.
    ///
    /// # Errors
    /// renameat2(2)'s.
    pub fn replace(self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
        self.rename(dir, name, RenameFlags::empty())
    }

    /// Publishes it in place of an entry of the upper of any type, and removes that one with all
    /// it holds on disk.
    ///
    /// # Errors
    /// renameat2(2)'s.
    pub fn exchange(self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
        let Self { entry, fd } = self;
        // From here on the name in work is that of the replaced entry, and swept with it.
        entry.rename(dir, name, RenameFlags::EXCHANGE)?;
        Ok(fd)
    }

    /// Removes its name, so that the inode lives by its descriptor alone.
    ///
    /// # Errors
    /// unlinkat(2)'s.
    pub fn orphan(self) -> Result<OwnedFd> {
        let Self { mut entry, fd } = self;
        fs::unlink(entry.upper.work.as_fd(), &entry.name)?;
        entry.gone = true;
        Ok(fd)
    }

    fn rename(self, dir: BorrowedFd<'_>, name: &[u8], flags: RenameFlags) -> Result<OwnedFd> {
        let Self { mut entry, fd } = self;
        entry.rename(dir, name, flags)?;
        entry.gone = true;
        Ok(fd)
    }
}

impl Entry<'_> {
    fn rename(&self, dir: BorrowedFd<'_>, name: &[u8], flags: RenameFlags) -> Result<()> {
        fs::rename(self.upper.work.as_fd(), &self.name, dir, name, flags)
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if !self.gone {
            self.upper.sweep(&self.name);
        }
    }
}

/// Removes `name` in `dir` with everything below it; nothing there is no error.
///
/// # Errors
/// The first system call's that failed.
pub fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match fs::unlink(dir, name) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // EISDIR on Linux; POSIX has EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    // A stack of open directories instead of recursion: uppers may be thousands deep.
    let open = |dir: BorrowedFd<'_>, name: &[u8]| {
        fs::open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY, 0)
    };
    struct Level {
        fd: OwnedFd,
        name: Vec<u8>,
        subdirs: Vec<Vec<u8>>,
    }
    let enter = |fd: OwnedFd, name: Vec<u8>| -> Result<Level> {
        let mut subdirs = Vec::new();
        for entry in fs::list(fd.as_fd())? {
            if entry.kind == Kind::Dir {
                subdirs.push(entry.name.as_bytes().to_vec());
            } else {
                fs::unlink(fd.as_fd(), entry.name.as_bytes())?;
            }
        }
        Ok(Level { fd, name, subdirs })
    };
    let mut stack = vec![enter(open(dir, name)?, name.to_vec())?];
    while let Some(top) = stack.last_mut() {
        if let Some(sub) = top.subdirs.pop() {
            let fd = open(top.fd.as_fd(), &sub)?;
            stack.push(enter(fd, sub)?);
        } else if let Some(done) = stack.pop() {
            let above = stack.last().map_or(dir, |level| level.fd.as_fd());
            fs::rmdir(above, &done.name)?;
        }
    }
    Ok(())
}
