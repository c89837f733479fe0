//! Open directories.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyOpen,
};

use super::convert::{attr, bare_attr, file_type, handle, ino};
use super::entries::reply_empty;
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
            self.overlay.opendir(ino(nodeid)).map_err(errno)
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
                    let attr = match plus_attr(&e) {
                        Ok(attr) => attr,
                        Err(errno) => {
                            failed = Err(errno);
                            return ControlFlow::Break(());
                        }
                    };
                    let name = OsStr::from_bytes(e.name);
                    let generation = e
                        .entry
                        .map_or(NO_GENERATION, |entry| Generation(entry.generation.into()));
                    if reply.add(attr.ino, e.next, name, &FOREVER, &attr, generation) {
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

/// The attributes that go with an entry of READDIRPLUS. `.` and `..` have none: the kernel links
/// no inode for them and counts no lookup (fs/fuse/readdir.c:fuse_direntplus_link()).
fn plus_attr(e: &DirEntry<'_>) -> Answer<fuser::FileAttr> {
    match e.entry {
        Some(entry) => attr(&entry.attr),
        None if matches!(e.name, b"." | b"..") => Ok(bare_attr(e.ino, e.kind)),
        None => Err(Errno::EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inode::Kind;

    #[test]
    fn an_error_waits_behind_entries() {
        assert_eq!(listed(Err(Errno::EIO), 3), Ok(()));
        assert_eq!(listed(Err(Errno::EIO), 0), Err(Errno::EIO));
        assert_eq!(listed(Ok(()), 0), Ok(()));
    }

    #[test]
    fn only_dots_go_without_attributes() {
        let entry = |name| DirEntry {
            name,
            ino: 7,
            kind: Kind::Dir,
            next: 1,
            entry: None,
        };
        assert_eq!(plus_attr(&entry(b"..")).unwrap().ino, INodeNo(7));
        assert_eq!(plus_attr(&entry(b"a")), Err(Errno::EIO));
    }
}
