//! Open files: open, read, write and what else goes by a handle.
//!
//! A handle opened on the lower goes on with the upper's copy as soon as there is one: a reader
//! sees what a writer writes (overlayfs keeps showing the old data). Not so one whose bytes the
//! kernel reads by itself: [`Overlay::keep_lower`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::error::{Doing, refuse};
use super::node::{FACT_WHOLE, Node, Place};
use super::{Asker, Bytes, Error, Handle, Ino, Overlay, Result, Target, keep};
use crate::inode::{Attr, Kind};
use crate::lower::{Nid, Seek};
use crate::sys::asker::PRIVILEGES;
use crate::sys::fs;

/// Most bytes of one copy_file_range(2) that the server itself moves.
const COPY_MAX: usize = 1 << 20;

/// An open regular file.
#[derive(Debug)]
pub(super) struct OpenFile {
    ino: Ino,
    writable: bool,
    backing: RwLock<Backing>,
    /// Stays with the image's bytes.
    keeps_lower: AtomicBool,
}

#[derive(Debug, Clone)]
enum Backing {
    Lower(Nid),
    // The descriptor ends before the node does: its end tells that the file is closed.
    Upper(Arc<OwnedFd>, Arc<Node>),
}

impl OpenFile {
    pub(super) fn is_of(&self, ino: Ino) -> bool {
        self.ino == ino
    }

    /// The upper descriptor, if it may be written through.
    pub(super) fn writable(&self) -> Option<Arc<OwnedFd>> {
        match &*self.backing.read().unwrap_or_else(PoisonError::into_inner) {
            Backing::Upper(fd, _) if self.writable => Some(Arc::clone(fd)),
            _ => None,
        }
    }
}

/// Whether open(2) with these flags changes a file, or is to change it.
fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

/// One of a file's paths.
fn path_for_log(node: &Arc<Node>) -> String {
    let mut path = String::new();
    let mut at = Arc::clone(node);
    loop {
        let link = match &*at.place() {
            Place::Upper { links, .. } => links.first().cloned(),
            Place::Lower | Place::Rising { .. } => None,
        };
        let Some(link) = link else { return path };
        path = format!("/{}{path}", link.name.as_bytes().escape_ascii());
        at = link.parent;
    }
}

/// The permissions that a file is left with when `asker` changes its content, if they change.
/// `unprivileged` as of [`Overlay::drop_privileges`].
fn left_by(asker: Asker, was: &Attr, unprivileged: bool) -> Option<u16> {
    // What the asker may do is read from /proc: only where it matters.
    if was.perm & PRIVILEGES == 0 || !unprivileged && asker.keeps_privileges() {
        return None;
    }
    let left = asker.privileges_left(was.perm, was.uid, was.gid);
    (left != was.perm).then_some(left)
}

/// Writes all of `data` at `offset`.
pub(super) fn write_all(to: BorrowedFd<'_>, offset: u64, data: &[u8]) -> rustix::io::Result<()> {
    let mut done = 0_usize;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        match fs::write(to, offset.saturating_add(done as u64), rest)? {
            0 => return Err(Errno::IO),
            n => done = done.saturating_add(n),
        }
    }
    Ok(())
}

impl Overlay {
    /// Opens a regular file. `flags` are open(2)'s: an access mode that writes, or O_TRUNC, copies
    /// a file of the image up.
    ///
    /// # Errors
    /// EROFS, EISDIR, and what the copy-up gives.
    pub fn open(&self, ino: Ino, flags: i32) -> Result<Handle> {
        if writes(flags) {
            self.with_room(|| self.open_once(ino, flags))
        } else {
            self.open_once(ino, flags)
        }
    }

    fn open_once(&self, ino: Ino, flags: i32) -> Result<Handle> {
        let mut target = self.target(ino)?;
        match self.kind(&target)? {
            Kind::File => {}
            Kind::Dir => return refuse(Errno::ISDIR),
            // The kernel opens the others by itself.
            _ => return refuse(Errno::NXIO),
        }
        if writes(flags) {
            self.writable()?;
            if let Target::Lower(nid) = target {
                let cut = flags & libc::O_TRUNC != 0;
                let node = self.copy_up_cut(nid, if cut { 0 } else { u64::MAX }, None)?;
                target = Target::Upper(node);
            }
        }
        match target {
            Target::Lower(nid) => Ok(self.keep(OpenFile {
                ino,
                writable: false,
                backing: RwLock::new(Backing::Lower(nid)),
                keeps_lower: AtomicBool::new(false),
            })),
            Target::Upper(node) => {
                let fd = self.open_backing(&node, flags)?;
                if flags & libc::O_TRUNC != 0 {
                    let cut = self.cut_to(fd.as_fd(), 0);
                    self.settle(fd.as_fd(), &mut None);
                    cut?;
                }
                self.keep_open(node, fd, flags)
            }
        }
    }

    /// Opens the upper's file for what `flags` ask. Reading is always asked for too, since a
    /// writer's file may be mapped or copied from; appending is the kernel's to place. Not cut yet.
    fn open_backing(&self, node: &Arc<Node>, flags: i32) -> Result<OwnedFd> {
        self.check_whole(node)?;
        let sync = u32::try_from(flags & (libc::O_SYNC | libc::O_DSYNC)).unwrap_or(0);
        let extra = OFlags::from_bits_retain(sync) | OFlags::NONBLOCK;
        match flags & libc::O_ACCMODE {
            libc::O_RDONLY if flags & libc::O_TRUNC == 0 => {
                self.open_node(node, OFlags::RDONLY | extra)
            }
            libc::O_WRONLY => match self.open_node(node, OFlags::RDWR | extra) {
                Err(Error::Upper {
                    errno: Errno::ACCESS,
                    ..
                }) => self.open_node(node, OFlags::WRONLY | extra),
                other => other,
            },
            _ => self.open_node(node, OFlags::RDWR | extra),
        }
    }

    /// Refuses a file that an overlayfs mounted with `metacopy=on` left without its data: here it
    /// would read as zeros, and under another name overlayfs would not find the data again. None
    /// is in an upper that was empty when it was opened.
    pub(super) fn check_whole(&self, node: &Arc<Node>) -> Result<()> {
        if self.fresh || node.kind != Kind::File || node.dir.has(FACT_WHOLE) {
            return Ok(());
        }
        let marks = self.marks()?;
        if self.with_fd(node, |fd| marks.is_metacopy(fd).doing("reading a mark"))? {
            tracing::error!(
                file = path_for_log(node),
                "its data is not in the upper (metacopy of overlayfs)"
            );
            return refuse(Errno::IO);
        }
        node.dir.note(FACT_WHOLE);
        Ok(())
    }

    /// Makes a handle of an open upper file.
    pub(super) fn keep_open(&self, node: Arc<Node>, fd: OwnedFd, flags: i32) -> Result<Handle> {
        Ok(self.keep(OpenFile {
            ino: node.ino,
            writable: flags & libc::O_ACCMODE != libc::O_RDONLY,
            backing: RwLock::new(Backing::Upper(Arc::new(fd), node)),
            keeps_lower: AtomicBool::new(false),
        }))
    }

    fn keep(&self, file: OpenFile) -> Handle {
        let handle = self.handle();
        self.files.insert(handle.0, Arc::new(file));
        handle
    }

    /// Closes a handle.
    pub fn release(&self, handle: Handle) {
        let Some((_, file)) = self.files.remove(&handle.0) else {
            return;
        };
        let node = match &*file.backing.read().unwrap_or_else(PoisonError::into_inner) {
            Backing::Upper(_, node) if file.writable && self.counts() => Some(Arc::clone(node)),
            _ => None,
        };
        // Closed first, if this was the last to have it.
        drop(file);
        if let Some(node) = node {
            self.settle_closed(&node);
        }
    }

    pub(super) fn file(&self, handle: Handle) -> Result<Arc<OpenFile>> {
        match self.files.get(&handle.0) {
            Some(file) => Ok(Arc::clone(&file)),
            None => refuse(Errno::BADF),
        }
    }

    /// Where a handle's bytes are now.
    fn backing(&self, file: &OpenFile) -> Result<Backing> {
        let backing = file
            .backing
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Backing::Lower(_) = backing
            && !file.keeps_lower.load(Ordering::Acquire)
            && let Target::Upper(node) = self.target(file.ino)?
        {
            let fd = Arc::new(self.open_node(&node, OFlags::RDONLY)?);
            let risen = Backing::Upper(fd, node);
            *file.backing.write().unwrap_or_else(PoisonError::into_inner) = risen.clone();
            return Ok(risen);
        }
        Ok(backing)
    }

    /// Where the bytes of an open file are.
    ///
    /// # Errors
    /// EBADF; ESTALE, EIO for what cannot be opened.
    pub fn bytes_of(&self, handle: Handle) -> Result<Bytes> {
        Ok(match self.backing(&*self.file(handle)?)? {
            Backing::Lower(nid) => Bytes::Lower(nid),
            Backing::Upper(fd, _) => Bytes::Upper(fd),
        })
    }

    /// A file open on the image stays with the image's bytes, copied up or not: the kernel reads
    /// them by itself, and what the server does by this handle must not show others.
    ///
    /// # Errors
    /// EBADF.
    pub fn keep_lower(&self, handle: Handle) -> Result<()> {
        self.file(handle)?
            .keeps_lower
            .store(true, Ordering::Release);
        Ok(())
    }

    /// The upper descriptor of a handle that may write.
    fn writing(&self, handle: Handle) -> Result<Arc<OwnedFd>> {
        self.writable()?;
        match self.file(handle)?.writable() {
            Some(fd) => Ok(fd),
            None => refuse(Errno::BADF),
        }
    }

    pub(super) fn file_attr(&self, file: &OpenFile) -> Result<Attr> {
        match self.backing(file)? {
            Backing::Lower(nid) => self.lower_attr(nid),
            Backing::Upper(fd, node) => {
                let mut attr = fs::fstat(fd.as_fd()).doing("reading attributes")?.attr;
                attr.ino = node.ino.0;
                Ok(attr)
            }
        }
    }

    /// Fills `buf` from `offset` and answers how much; short only at the end of the file.
    ///
    /// # Errors
    /// EBADF; EIO where the blob has changed.
    pub fn read(&self, handle: Handle, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let fd = match self.backing(&*self.file(handle)?)? {
            Backing::Lower(nid) => return Ok(self.lower.read(nid, offset, buf)?),
            Backing::Upper(fd, _) => fd,
        };
        fs::read(fd.as_fd(), offset, buf).doing("reading")
    }

    /// Writes `data` at `offset`, or at the end of the file, and answers how much: all of it, or as
    /// much as there is room for.
    ///
    /// # Errors
    /// EBADF, EROFS, ENOSPC, EDQUOT, EFBIG, EIO.
    pub fn write(
        &self,
        handle: Handle,
        offset: impl Into<Option<u64>>,
        data: &[u8],
    ) -> Result<usize> {
        let fd = self.writing(handle)?;
        let offset = offset.into();
        self.with_room(|| {
            let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
            let (mut claim, fits) = self.claim_data(fd.as_fd(), offset, len)?;
            let fits = usize::try_from(fits).unwrap_or(data.len());
            let data = data.get(..fits).unwrap_or(data);
            let written = self.write_kept(fd.as_fd(), offset, data).doing("writing");
            self.settle(fd.as_fd(), &mut claim);
            written
        })
    }

    /// Takes from an open file the privileges that it loses when `asker` changes its content: to be
    /// called before that. `unprivileged`: the kernel has said that the asker does not keep them.
    /// Answers whether there were any.
    ///
    /// # Errors
    /// EBADF, EROFS, EIO.
    pub fn drop_privileges(
        &self,
        handle: Handle,
        asker: Asker,
        unprivileged: bool,
    ) -> Result<bool> {
        let fd = self.writing(handle)?;
        let left = || {
            let was = fs::fstat(fd.as_fd()).doing("reading attributes")?.attr;
            Ok::<_, Error>(left_by(asker, &was, unprivileged))
        };
        if left()?.is_none() {
            return Ok(false);
        }
        // Looked at again: it may have taken a while to pass.
        self.changing(|| match left()? {
            Some(left) => {
                fs::chmod(fd.as_fd(), left).doing("dropping privileges")?;
                Ok(true)
            }
            None => Ok(true),
        })
    }

    /// The permissions that a file is left with when `asker` cuts it, if they change.
    pub(super) fn privileges_left(
        &self,
        target: &Target,
        asker: Option<Asker>,
    ) -> Result<Option<u16>> {
        let Some(asker) = asker else {
            return Ok(None);
        };
        let attr = self.attr_of(target)?;
        Ok(match attr.kind {
            Kind::File => left_by(asker, &attr, false),
            _ => None,
        })
    }

    /// fsync(2), fdatasync(2). With `volatile`, and on the lower, there is nothing to wait for.
    ///
    /// # Errors
    /// EIO, ENOSPC.
    pub fn fsync(&self, handle: Handle, datasync: bool) -> Result<()> {
        match self.backing(&*self.file(handle)?)? {
            Backing::Upper(fd, _) if !self.options.volatile => {
                fs::sync(fd.as_fd(), datasync).doing("syncing")
            }
            _ => Ok(()),
        }
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// EBADF, EROFS, EOPNOTSUPP, ENOSPC.
    pub fn fallocate(&self, handle: Handle, mode: i32, offset: u64, len: u64) -> Result<()> {
        let fd = self.writing(handle)?;
        let mode = u32::try_from(mode).ok().and_then(FallocateFlags::from_bits);
        let mode = mode.ok_or(Error::Refused(Errno::OPNOTSUPP))?;
        self.with_room(|| {
            let mut claim = self.claim_range(fd.as_fd(), mode, offset, len)?;
            self.keep_old(fd.as_fd(), keep::changed_by(mode, offset, len));
            let done = fs::fallocate(fd.as_fd(), mode, offset, len).doing("allocating");
            self.settle(fd.as_fd(), &mut claim);
            done
        })
    }

    /// lseek(2) with SEEK_DATA, SEEK_HOLE.
    ///
    /// # Errors
    /// ENXIO beyond the end, or where no data follows.
    pub fn seek(&self, handle: Handle, offset: u64, what: Seek) -> Result<u64> {
        match self.backing(&*self.file(handle)?)? {
            Backing::Lower(nid) => match self.lower.seek(nid, offset, what)? {
                Some(at) => Ok(at),
                None => refuse(Errno::NXIO),
            },
            Backing::Upper(fd, _) => {
                let from = match what {
                    Seek::Data => SeekFrom::Data(offset),
                    Seek::Hole => SeekFrom::Hole(offset),
                };
                rustix::fs::seek(&*fd, from).doing("seeking")
            }
        }
    }

    /// copy_file_range(2); may copy less than asked.
    ///
    /// # Errors
    /// As of reading and writing.
    pub fn copy_file_range(
        &self,
        from: Handle,
        from_offset: u64,
        to: Handle,
        to_offset: u64,
        len: usize,
    ) -> Result<usize> {
        self.with_room(|| self.copy_range_once(from, from_offset, to, to_offset, len))
    }

    fn copy_range_once(
        &self,
        from: Handle,
        from_offset: u64,
        to: Handle,
        to_offset: u64,
        len: usize,
    ) -> Result<usize> {
        let out = self.writing(to)?;
        let source = self.file(from)?;
        match self.backing(&source)? {
            Backing::Upper(fd, _) => {
                let mut most = u64::try_from(len).unwrap_or(u64::MAX);
                if self.counts() || self.keeps() {
                    // No more than there is, for which room is kept, or what it replaces.
                    let size = fs::fstat(fd.as_fd()).doing("copying")?.attr.size;
                    most = most.min(size.saturating_sub(from_offset));
                }
                let (mut claim, fits) = self.claim_data(out.as_fd(), Some(to_offset), most)?;
                let len = usize::try_from(fits).unwrap_or(len);
                let end = to_offset.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
                self.keep_old(out.as_fd(), to_offset..end);
                let copied = fs::copy_range(fd.as_fd(), from_offset, out.as_fd(), to_offset, len);
                self.settle(out.as_fd(), &mut claim);
                copied.doing("copying")
            }
            Backing::Lower(nid) => {
                // To the kernel a descriptor of the image's bytes is of another file.
                if source.ino == self.file(to)?.ino {
                    let left = self.lower.attr(nid)?.size.saturating_sub(from_offset);
                    let len = u64::try_from(len).unwrap_or(u64::MAX).min(left);
                    if to_offset.saturating_add(len) > from_offset
                        && to_offset < from_offset.saturating_add(len)
                    {
                        return refuse(Errno::INVAL);
                    }
                }
                let mut buf = vec![0_u8; len.min(COPY_MAX)];
                let got = self.lower.read(nid, from_offset, &mut buf)?;
                let data = buf.get(..got).unwrap_or_default();
                // As of write(2): what there was room for is told before the error is.
                let most = u64::try_from(data.len()).unwrap_or(u64::MAX);
                let (mut claim, fits) = self.claim_data(out.as_fd(), Some(to_offset), most)?;
                let fits = usize::try_from(fits).unwrap_or(data.len());
                let data = data.get(..fits).unwrap_or(data);
                let written = self
                    .write_kept(out.as_fd(), Some(to_offset), data)
                    .doing("copying");
                self.settle(out.as_fd(), &mut claim);
                written
            }
        }
    }
}
