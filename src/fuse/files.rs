//! Open files.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fuser::{
    BackingId, Errno, FileHandle, FopenFlags, INodeNo, OpenFlags, ReplyCreate, ReplyData,
    ReplyEmpty, ReplyLseek, ReplyOpen, ReplyWrite, Request,
};

use super::answering::noted;
use super::convert::{asker, caller, handle, name, perm};
use super::entries::{Place, reply_empty};
use super::opens::Served;
use super::unopened::Held;
use super::{Adapter, Answer, FOREVER, errno, guarded};
use crate::lower::Seek;
use crate::metrics::OpenedBy;
use crate::overlay::Handle;

/// Cached pages stay right across opens: every change of a file goes through this mount. A file
/// opened with O_DIRECT needs no flag of ours: the kernel passes the cache by for that open, and
/// drops the pages that a direct write makes stale (mm/filemap.c:generic_file_direct_write()).
const OPENED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE;

/// Of a file that the kernel reads and writes by itself no pages are kept here.
const BY_KERNEL: FopenFlags = FopenFlags::empty();

/// Reads and writes come by requests all the same (fs/fuse/file.c:fuse_file_read_iter()).
const MAPS_ONLY: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;

/// The most bytes of one COPY_FILE_RANGE: as read(2) and write(2), and so that the answer, a
/// `u32`, always holds it (include/linux/fs.h: MAX_RW_COUNT).
const MAX_COPY: u64 = 0x7fff_f000;

/// Who changes the content of an open file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writer<'a> {
    pub(super) req: &'a Request,
    pub(super) ino: INodeNo,
    pub(super) fh: FileHandle,
}

/// An open file as the kernel names it.
pub(super) type OpenFile = (INodeNo, FileHandle);

/// The same as the overlay has it.
enum Found {
    /// Opened by an OPEN.
    Opened(Handle),
    /// Without.
    Unopened(Arc<Held>),
}

impl Found {
    fn handle(&self) -> Handle {
        match self {
            Self::Opened(handle) => *handle,
            Self::Unopened(held) => held.handle,
        }
    }
}

impl Served {
    /// The file that is passed through, and how the kernel is to open it.
    fn passed(&self) -> Option<(&BackingId, FopenFlags)> {
        match self {
            Self::Requests { .. } => None,
            Self::Kernel(id) => Some((id, BY_KERNEL)),
            Self::MapsOnly(id) => Some((id, MAPS_ONLY)),
        }
    }

    /// How the kernel is to open what is not.
    fn flags(&self) -> FopenFlags {
        match self {
            // What it has kept it drops, and what was stored there it writes back first
            // (fs/fuse/file.c:fuse_finish_open()).
            Self::Requests { anew: true } => FopenFlags::empty(),
            _ => OPENED,
        }
    }
}

thread_local! {
    /// Where this thread's READs are gathered, kept so that it is not cleared for each.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Adapter {
    fn file(&self, (nodeid, fh): OpenFile, writes: bool) -> Answer<Found> {
        match &self.unopened {
            None => Ok(Found::Opened(handle(fh))),
            Some(unopened) => unopened
                .file(&self.overlay, nodeid, writes)
                .map(Found::Unopened),
        }
    }

    /// As [`Served::passed`] of what the kernel is about to be told, which is counted.
    fn passed<'a>(&self, served: &'a Served) -> Option<(&'a BackingId, FopenFlags)> {
        self.requests.opened(match served {
            Served::Requests { .. } => OpenedBy::Requests,
            Served::Kernel(_) => OpenedBy::Kernel,
            Served::MapsOnly(_) => OpenedBy::Maps,
        });
        served.passed()
    }

    pub(super) fn on_open(
        &self,
        req: &Request,
        nodeid: INodeNo,
        flags: OpenFlags,
        reply: ReplyOpen,
    ) {
        tracing::trace!(op = "open", ino = %nodeid, flags = flags.0);
        if self.unopened.is_some() {
            // Asked once (fs/fuse/file.c:fuse_file_open()).
            return reply.error(noted(Errno::ENOSYS));
        }
        let answer = guarded("open", || {
            let expected = self.opens.expect(flags.0);
            let handle = self
                .overlay
                .open(self.ino(nodeid), flags.0)
                .map_err(errno)?;
            let backing = |fd: BorrowedFd<'_>| reply.open_backing(fd);
            self.opens
                .open(
                    &self.overlay,
                    req.pid(),
                    nodeid,
                    (handle, flags.0),
                    &backing,
                    expected,
                )
                .map(|served| (FileHandle(handle.0), served))
                .inspect_err(|_| self.overlay.release(handle))
        });
        match answer {
            Ok((fh, served)) => match self.passed(&served) {
                Some((id, flags)) => reply.opened_passthrough(fh, flags, id),
                None => reply.opened(fh, served.flags()),
            },
            Err(errno) => reply.error(noted(errno)),
        }
    }

    pub(super) fn on_create(
        &self,
        req: &Request,
        (parent, name_): Place<'_>,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        tracing::trace!(op = "create", %parent, name = ?name_, mode, umask, flags);
        if self.unopened.is_some() {
            // MKNOD comes instead, and no RELEASE (fs/fuse/dir.c:fuse_atomic_open()).
            return reply.error(noted(Errno::ENOSYS));
        }
        let answer = guarded("create", || {
            let expected = self.opens.expect(flags);
            let (entry, handle) = self
                .overlay
                .create(
                    caller(req),
                    self.ino(parent),
                    &name(name_)?,
                    perm(mode),
                    perm(umask),
                    flags,
                )
                .map_err(errno)?;
            let shown = self
                .shown(Ok(entry))
                .inspect_err(|_| self.overlay.release(handle))?;
            let backing = |fd: BorrowedFd<'_>| reply.open_backing(fd);
            // Nothing else is open of it, so there is nothing that this could not go with.
            let served = self
                .opens
                .open(
                    &self.overlay,
                    req.pid(),
                    shown.attr.ino,
                    (handle, flags),
                    &backing,
                    expected,
                )
                .inspect_err(|_| {
                    self.overlay.release(handle);
                    self.on_forget(shown.attr.ino, 1);
                })?;
            Ok((shown, FileHandle(handle.0), served))
        });
        match answer {
            Ok((shown, fh, served)) => {
                let (attr, generation) = (&shown.attr, shown.generation);
                match self.passed(&served) {
                    Some((id, flags)) => {
                        reply.created_passthrough(&FOREVER, attr, generation, fh, flags, id);
                    }
                    None => reply.created(&FOREVER, attr, generation, fh, served.flags()),
                }
            }
            Err(errno) => reply.error(noted(errno)),
        }
    }

    pub(super) fn on_read(&self, file: OpenFile, offset: u64, size: u32, reply: ReplyData) {
        tracing::trace!(op = "read", fh = file.1.0, offset, size);
        READ_BUFFER.with_borrow_mut(|buffer| {
            let answer: Answer<&[u8]> = guarded("read", || {
                let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                let place = buffer.get_mut(..size).ok_or(Errno::EIO)?;
                let file = self.file(file, false)?;
                let got = self
                    .overlay
                    .read(file.handle(), offset, place)
                    .map_err(errno)?;
                place.get(..got).ok_or(Errno::EIO)
            });
            match answer {
                Ok(data) => {
                    self.requests.read(data.len());
                    reply.data(data);
                }
                Err(errno) => reply.error(noted(errno)),
            }
        });
    }

    pub(super) fn on_write(
        &self,
        writer: Writer<'_>,
        unprivileged: bool,
        offset: u64,
        (data, flags): (&[u8], OpenFlags),
        reply: ReplyWrite,
    ) {
        let fh = writer.fh;
        tracing::trace!(op = "write", fh = fh.0, offset, len = data.len());
        let answer = guarded("write", || {
            let file = self.file((writer.ino, fh), true)?;
            if unprivileged {
                self.drop_privileges(writer, &file, true)?;
            }
            // By another number of the inode the file may have grown past the end that the kernel
            // knows of this one.
            let appends =
                flags.0 & libc::O_APPEND != 0 && self.opens.aliases().has_alias(writer.ino.0);
            let at = (!appends).then_some(offset);
            self.overlay
                .write(file.handle(), at, data)
                .inspect(|&n| self.requests.wrote(n))
                .map_err(errno)
        });
        reply_written(answer, reply);
    }

    /// With `HANDLE_KILLPRIV_V2` a write's privileges are the server's to drop. The kernel is told,
    /// since it starts programs by the mode that it knows.
    fn drop_privileges(&self, writer: Writer<'_>, file: &Found, unprivileged: bool) -> Answer<()> {
        let dropped = self
            .overlay
            .drop_privileges(file.handle(), asker(writer.req), unprivileged)
            .map_err(errno)?;
        if dropped {
            self.opens.ask_again(writer.ino);
        }
        Ok(())
    }

    pub(super) fn on_release(
        &self,
        nodeid: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        tracing::trace!(op = "release", fh = fh.0);
        let answer = guarded("release", || {
            self.opens.release(nodeid, flags.0);
            self.overlay.release(handle(fh));
            Ok(())
        });
        reply_empty(answer, reply);
    }

    pub(super) fn on_fsync(&self, file: OpenFile, datasync: bool, reply: ReplyEmpty) {
        tracing::trace!(op = "fsync", fh = file.1.0, datasync);
        reply_empty(
            guarded("fsync", || {
                let file = self.file(file, false)?;
                self.overlay.fsync(file.handle(), datasync).map_err(errno)
            }),
            reply,
        );
    }

    pub(super) fn on_fallocate(
        &self,
        writer: Writer<'_>,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let fh = writer.fh;
        tracing::trace!(op = "fallocate", fh = fh.0, offset, len, mode);
        reply_empty(
            guarded("fallocate", || {
                let file = self.file((writer.ino, fh), true)?;
                self.drop_privileges(writer, &file, false)?;
                self.overlay
                    .fallocate(file.handle(), mode, offset, len)
                    .map_err(errno)
            }),
            reply,
        );
    }

    pub(super) fn on_lseek(&self, file: OpenFile, offset: i64, whence: i32, reply: ReplyLseek) {
        tracing::trace!(op = "lseek", fh = file.1.0, offset, whence);
        let answer = guarded("lseek", || {
            // SEEK_SET, SEEK_CUR and SEEK_END never leave the kernel
            // (fs/fuse/file.c:fuse_file_llseek()).
            let what = match whence {
                libc::SEEK_DATA => Seek::Data,
                libc::SEEK_HOLE => Seek::Hole,
                _ => return Err(Errno::EINVAL),
            };
            // lseek(2): a negative offset is beyond the data as well.
            let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            let file = self.file(file, false)?;
            let found = self
                .overlay
                .seek(file.handle(), offset, what)
                .map_err(errno)?;
            i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        });
        match answer {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(noted(errno)),
        }
    }

    pub(super) fn on_copy_file_range(
        &self,
        from: (OpenFile, u64),
        writer: Writer<'_>,
        to_offset: u64,
        len: u64,
        reply: ReplyWrite,
    ) {
        tracing::trace!(op = "copy_file_range", ?from, ?writer, to_offset, len);
        let answer = guarded("copy_file_range", || {
            let file = self.file((writer.ino, writer.fh), true)?;
            self.drop_privileges(writer, &file, false)?;
            let source = self.file(from.0, false)?;
            let len = usize::try_from(len.min(MAX_COPY)).map_err(|_| Errno::EINVAL)?;
            self.overlay
                .copy_file_range(source.handle(), from.1, file.handle(), to_offset, len)
                .map_err(errno)
        });
        reply_written(answer, reply);
    }
}

fn reply_written(answer: Answer<usize>, reply: ReplyWrite) {
    match answer.and_then(|n| u32::try_from(n).map_err(|_| Errno::EIO)) {
        Ok(n) => reply.written(n),
        Err(errno) => reply.error(noted(errno)),
    }
}
