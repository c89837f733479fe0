//! Open directories.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use fuser::{
    Errno, FileHandle, FopenFlags, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyOpen,
};

use super::convert::{bare_attr, file_type, handle};
use super::entries::{Shown, reply_empty};
use super::{Adapter, Answer, FOREVER, NO_GENERATION, errno, guarded};
use crate::overlay::{DirEntry, Listings};

/// Every change of a directory goes through this mount, and the kernel drops its copy of a listing
/// then (fs/fuse/dir.c:fuse_dir_changed()).
fn flags(listings: Listings) -> FopenFlags {
    match listings {
        Listings::Kept => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        Listings::Anew => FopenFlags::FOPEN_CACHE_DIR,
        // Without the second the copy would be dropped, which others still read.
        Listings::Uncached => FopenFlags::FOPEN_KEEP_CACHE,
    }
}

impl Adapter {
    pub(super) fn on_opendir(&self, nodeid: INodeNo, reply: ReplyOpen) {
        tracing::trace!(op = "opendir", ino = %nodeid);
        match guarded("opendir", || {
            self.overlay.opendir(self.ino(nodeid)).map_err(errno)
        }) {
            Ok(opened) => reply.opened(FileHandle(opened.handle.0), flags(opened.listings)),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn on_readdir(&self, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        tracing::trace!(op = "readdir", fh = fh.0, offset);
        let mut taken = 0_usize;
        let answer = guarded("readdir", || {
            self.overlay
                .readdir(handle(fh), offset, &mut |e| {
                    let name = OsStr::from_bytes(e.name);
                    if reply.add(INodeNo(e.ino), e.next, file_type(e.kind), name) {
                        return ControlFlow::Break(());
                    }
                    taken += 1;
                    ControlFlow::Continue(())
                })
                .map_err(errno)
        });
        match listed(answer, taken) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn on_readdirplus(
        &self,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        tracing::trace!(op = "readdirplus", fh = fh.0, offset);
        let mut taken = 0_usize;
        let answer = guarded("readdirplus", || {
            let mut failed = Ok(());
            self.overlay
                .readdirplus(handle(fh), offset, &mut |e| {
                    let shown = match self.plus(&e) {
                        Ok(shown) => shown,
                        Err(errno) => {
                            failed = Err(errno);
                            return ControlFlow::Break(());
                        }
                    };
                    let name = OsStr::from_bytes(e.name);
                    let (attr, generation) = (&shown.attr, shown.generation);
                    if reply.add(attr.ino, e.next, name, &shown.holds, attr, generation) {
                        self.opens.forget(attr.ino, 1);
                        return ControlFlow::Break(());
                    }
                    taken += 1;
                    ControlFlow::Continue(())
                })
                .map_err(errno)?;
            failed
        });
        match listed(answer, taken) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// What goes with an entry of READDIRPLUS. `.` and `..` have nothing: the kernel links no
    /// inode for them and counts no lookup (fs/fuse/readdir.c:fuse_direntplus_link()).
    fn plus(&self, e: &DirEntry<'_>) -> Answer<Shown> {
        match e.entry {
            Some(entry) => self.shown_in_listing(entry),
            None if matches!(e.name, b"." | b"..") => Ok(Shown {
                attr: bare_attr(e.ino, e.kind),
                generation: NO_GENERATION,
                holds: FOREVER,
            }),
            None => Err(Errno::EIO),
        }
    }

    pub(super) fn on_releasedir(&self, fh: FileHandle, reply: ReplyEmpty) {
        tracing::trace!(op = "releasedir", fh = fh.0);
        let answer = guarded("releasedir", || {
            self.overlay.releasedir(handle(fh));
            Ok(())
        });
        reply_empty(answer, reply);
    }

    pub(super) fn on_fsyncdir(&self, fh: FileHandle, reply: ReplyEmpty) {
        tracing::trace!(op = "fsyncdir", fh = fh.0);
        reply_empty(
            guarded("fsyncdir", || {
                self.overlay.fsyncdir(handle(fh)).map_err(errno)
            }),
            reply,
        );
    }
}

/// An error behind entries that were taken is answered at the next request, which starts there:
/// the lookups of those entries are counted already, so the kernel must see them.
fn listed(answer: Answer<()>, taken: usize) -> Answer<()> {
    if taken > 0 { Ok(()) } else { answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_waits_behind_entries() {
        assert_eq!(listed(Err(Errno::EIO), 3), Ok(()));
        assert_eq!(listed(Err(Errno::EIO), 0), Err(Errno::EIO));
        assert_eq!(listed(Ok(()), 0), Ok(()));
    }
}
