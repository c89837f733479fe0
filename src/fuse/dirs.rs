//! Open directories.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use fuser::{
    Errno, FileHandle, FopenFlags, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyOpen,
};

use super::answering::noted;
use super::convert::{bare_attr, file_type};
use super::entries::{Shown, reply_empty};
use super::{Adapter, Answer, FOREVER, NO_GENERATION, errno, guarded};
use crate::overlay::DirEntry;

/// What the kernel may do with listings: answer from what it has kept, and keep what it reads.
/// Every change of a directory goes through this mount, and the kernel drops its copy then
/// (fs/fuse/dir.c:fuse_dir_changed()).
const KEPT: FopenFlags = FopenFlags::FOPEN_CACHE_DIR.union(FopenFlags::FOPEN_KEEP_CACHE);

impl Adapter {
    pub(super) fn on_opendir(&self, nodeid: INodeNo, reply: ReplyOpen) {
        tracing::trace!(op = "opendir", ino = %nodeid);
        if self.opens_dirs {
            reply.opened(FileHandle(0), KEPT);
        } else {
            // Once; then the kernel opens and closes directories without a request, with the same
            // flags (fs/fuse/file.c:fuse_file_open()).
            reply.error(noted(Errno::ENOSYS));
        }
    }

    pub(super) fn on_readdir(&self, nodeid: INodeNo, offset: u64, mut reply: ReplyDirectory) {
        tracing::trace!(op = "readdir", ino = %nodeid, offset);
        let mut taken = 0_usize;
        let answer = guarded("readdir", || {
            self.overlay
                .readdir(self.ino(nodeid), offset, &mut |e| {
                    let name = OsStr::from_bytes(e.name);
                    if reply.add(INodeNo(e.ino), e.next, file_type(e.kind), name) {
                        return ControlFlow::Break(());
                    }
                    taken += 1;
                    ControlFlow::Continue(())
                })
                .map_err(errno)
        });
        match self.listed(nodeid, offset, answer, taken) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(noted(errno)),
        }
    }

    pub(super) fn on_readdirplus(
        &self,
        nodeid: INodeNo,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        tracing::trace!(op = "readdirplus", ino = %nodeid, offset);
        let mut taken = 0_usize;
        let answer = guarded("readdirplus", || {
            let mut failed = Ok(());
            self.overlay
                .readdirplus(self.ino(nodeid), offset, &mut |e| {
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
        match self.listed(nodeid, offset, answer, taken) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(noted(errno)),
        }
    }

    /// What is told of a piece of a listing, from `offset` on, of which so much was taken.
    fn listed(&self, nodeid: INodeNo, offset: u64, answer: Answer<()>, taken: usize) -> Answer<()> {
        if taken == 0 && answer.is_ok() {
            self.listed_all(nodeid, offset);
        }
        with_taken(answer, taken)
    }

    /// A listing is about to end at `offset`: from then on the kernel answers from its copy, also
    /// somebody who is under way with positions of before a change. It does not find those, and
    /// asks the server, unless the copy ends with a page that is full to the last byte: that it
    /// takes for the end of the listing (fs/fuse/readdir.c:fuse_readdir_cached(), after "skip to
    /// next page"). So such a copy must not stay whole: where a page is missing it asks.
    fn listed_all(&self, nodeid: INodeNo, offset: u64) {
        let all = guarded("readdir", || {
            let mut copy = Copy::new(rustix::param::page_size());
            let unchanged = self
                .overlay
                .list_again(self.ino(nodeid), offset, &mut |name| copy.add(name.len()))
                .map_err(errno)?;
            // Of what has changed meanwhile nobody knows how long the copy is; it is of no use.
            Ok(unchanged && !copy.is_full())
        });
        if all != Ok(true) {
            self.opens.drop_pages(nodeid);
        }
    }

    /// What goes with an entry of READDIRPLUS.
    fn plus(&self, e: &DirEntry<'_>) -> Answer<Shown> {
        match e.entry {
            Some(entry) => self.shown_in_listing(entry),
            None => dots(e),
        }
    }

    pub(super) fn on_fsyncdir(&self, nodeid: INodeNo, reply: ReplyEmpty) {
        tracing::trace!(op = "fsyncdir", ino = %nodeid);
        reply_empty(
            guarded("fsyncdir", || {
                self.overlay.fsyncdir(self.ino(nodeid)).map_err(errno)
            }),
            reply,
        );
    }
}

/// How the kernel keeps a listing, in pages (fs/fuse/readdir.c:fuse_add_dirent_to_cache()).
#[derive(Debug)]
struct Copy {
    page: usize,
    size: usize,
}

impl Copy {
    /// `FUSE_NAME_OFFSET` and `FUSE_DIRENT_ALIGN` of include/uapi/linux/fuse.h.
    const HEAD: usize = 24;
    const ALIGN: usize = 8;

    fn new(page: usize) -> Self {
        Self { page, size: 0 }
    }

    fn add(&mut self, name: usize) {
        let entry = (Self::HEAD + name).next_multiple_of(Self::ALIGN);
        if self.size % self.page + entry > self.page {
            self.size = self.size.next_multiple_of(self.page);
        }
        self.size += entry;
    }

    fn is_full(&self) -> bool {
        self.size > 0 && self.size.is_multiple_of(self.page)
    }
}

/// `.` and `..` go without attributes: the kernel links no inode for them and counts no lookup
/// (fs/fuse/readdir.c:fuse_direntplus_link()).
fn dots(e: &DirEntry<'_>) -> Answer<Shown> {
    if !matches!(e.name, b"." | b"..") {
        return Err(Errno::EIO);
    }
    Ok(Shown {
        attr: bare_attr(e.ino, e.kind),
        generation: NO_GENERATION,
        holds: FOREVER,
    })
}

/// An error behind entries that were taken is answered at the next request, which starts there:
/// the lookups of those entries are counted already, so the kernel must see them.
fn with_taken(answer: Answer<()>, taken: usize) -> Answer<()> {
    if taken > 0 { Ok(()) } else { answer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inode::Kind;

    #[test]
    fn only_dots_go_without_attributes() {
        let entry = |name| DirEntry {
            name,
            ino: 7,
            kind: Kind::Dir,
            next: 1,
            entry: None,
        };
        for name in [&b"."[..], b".."] {
            assert_eq!(
                dots(&entry(name)).map(|shown| shown.attr.ino),
                Ok(INodeNo(7))
            );
        }
        for name in [&b"..."[..], b"x", b""] {
            assert_eq!(dots(&entry(name)).map(|_| ()), Err(Errno::EIO));
        }
    }

    #[test]
    fn a_copy_fills_pages() {
        let of = |names: &[usize]| {
            let mut copy = Copy::new(4096);
            names.iter().for_each(|&name| copy.add(name));
            (copy.size, copy.is_full())
        };
        assert_eq!(of(&[]), (0, false));
        assert_eq!(of(&[1, 2]), (64, false));
        // 126 names of 8 bytes, and the dots.
        let all = [&[1, 2][..], &[8; 126]].concat();
        assert_eq!(of(&all), (4096, true));
        assert_eq!(of(&all[1..]), (4064, false));
        // The last one goes to the next page, as a whole.
        assert_eq!(of(&[&all[1..], &[9]].concat()), (4096 + 40, false));
    }

    #[test]
    fn an_error_waits_behind_entries() {
        assert_eq!(with_taken(Err(Errno::EIO), 3), Ok(()));
        assert_eq!(with_taken(Err(Errno::EIO), 0), Err(Errno::EIO));
        assert_eq!(with_taken(Ok(()), 0), Ok(()));
    }
}
