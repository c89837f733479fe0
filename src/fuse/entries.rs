//! Names: lookup, creation, links, removal, rename.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use fuser::{Errno, FileAttr, Generation, INodeNo, RenameFlags, ReplyEmpty, ReplyEntry, Request};

use super::answering::noted;
use super::convert::{attr, bare_attr, caller, device, name, perm};
use super::{Adapter, Answer, FOREVER, NO_GENERATION, errno, guarded};
use crate::inode::Kind;
use crate::overlay::{Entry, Ino, Make};

/// A directory and a name in it, as the kernel sends them.
pub(super) type Place<'a> = (INodeNo, &'a OsStr);

impl Adapter {
    pub(super) fn on_lookup(&self, parent: INodeNo, name_: &OsStr, reply: ReplyEntry) {
        tracing::trace!(op = "lookup", %parent, name = ?name_);
        let answer = guarded("lookup", || {
            match name_.as_bytes() {
                // The two ways by which the kernel opens a file handle (FUSE_EXPORT_SUPPORT).
                b"." => self.overlay.revisit(self.ino(parent)),
                b".." => self.overlay.parent(self.ino(parent)),
                _ => self.overlay.lookup(self.ino(parent), &name(name_)?),
            }
            .map_err(errno)
        });
        match answer {
            // A file handle is opened by the number that it was made of.
            Ok(entry) if name_ == "." && entry.attr.ino == parent.0 => {
                self.reply_shown(self.shown_by(entry, parent), reply);
            }
            // A positive answer with nodeid 0 is "no such name, and you may remember that"
            // (fs/fuse/dir.c:fuse_lookup_name()); ENOENT would be asked again each time.
            Err(Errno::ENOENT) => {
                noted(Errno::ENOENT);
                reply.entry(&FOREVER, &bare_attr(0, Kind::File), NO_GENERATION);
            }
            answer => self.reply_entry(answer, reply),
        }
    }

    pub(super) fn on_forget(&self, nodeid: INodeNo, lookups: u64) {
        tracing::trace!(op = "forget", ino = %nodeid, lookups);
        // There is no reply to a forget; a panic in it has been logged.
        guarded("forget", || {
            if let Some(unopened) = &self.unopened {
                unopened.forget(nodeid);
            }
            let ino = self.opens.forget(nodeid, lookups);
            self.overlay.forget(ino, lookups);
            Ok(())
        })
        .unwrap_or(());
    }

    pub(super) fn on_mknod(
        &self,
        req: &Request,
        place: Place<'_>,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let answer = guarded("mknod", || {
            let what = match Kind::from_mode(mode) {
                Some(Kind::File) => Make::File,
                Some(Kind::Char) => Make::Char(device(rdev)),
                Some(Kind::Block) => Make::Block(device(rdev)),
                Some(Kind::Fifo) => Make::Fifo,
                Some(Kind::Socket) => Make::Socket,
                Some(Kind::Dir | Kind::Symlink) | None => return Err(Errno::EINVAL),
            };
            self.make("mknod", req, place, what, mode, umask)
        });
        self.reply_entry(answer, reply);
    }

    pub(super) fn on_mkdir(
        &self,
        req: &Request,
        place: Place<'_>,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let answer = guarded("mkdir", || {
            self.make("mkdir", req, place, Make::Dir, mode, umask)
        });
        self.reply_entry(answer, reply);
    }

    pub(super) fn on_symlink(
        &self,
        req: &Request,
        place: Place<'_>,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let what = Make::Symlink(target.as_os_str().as_bytes());
        // symlink(7): the mode of a symbolic link is 0777, no umask applies.
        let answer = guarded("symlink", || {
            self.make("symlink", req, place, what, 0o777, 0)
        });
        self.reply_entry(answer, reply);
    }

    fn make(
        &self,
        op: &'static str,
        req: &Request,
        (parent, name_): Place<'_>,
        what: Make<'_>,
        mode: u32,
        umask: u32,
    ) -> Answer<Entry> {
        tracing::trace!(op, %parent, name = ?name_, mode, umask);
        self.overlay
            .make(
                caller(req),
                self.ino(parent),
                &name(name_)?,
                what,
                perm(mode),
                perm(umask),
            )
            .map_err(errno)
    }

    pub(super) fn on_link(&self, nodeid: INodeNo, to: Place<'_>, reply: ReplyEntry) {
        tracing::trace!(op = "link", ino = %nodeid, parent = %to.0, name = ?to.1);
        let answer = guarded("link", || {
            self.overlay
                .link(self.ino(nodeid), self.ino(to.0), &name(to.1)?)
                .map_err(errno)
        });
        self.reply_entry(answer, reply);
    }

    pub(super) fn on_unlink(&self, parent: INodeNo, name_: &OsStr, reply: ReplyEmpty) {
        tracing::trace!(op = "unlink", %parent, name = ?name_);
        reply_empty(
            guarded("unlink", || {
                self.overlay
                    .unlink(self.ino(parent), &name(name_)?)
                    .map_err(errno)
            }),
            reply,
        );
    }

    pub(super) fn on_rmdir(&self, parent: INodeNo, name_: &OsStr, reply: ReplyEmpty) {
        tracing::trace!(op = "rmdir", %parent, name = ?name_);
        reply_empty(
            guarded("rmdir", || {
                self.overlay
                    .rmdir(self.ino(parent), &name(name_)?)
                    .map_err(errno)
            }),
            reply,
        );
    }

    pub(super) fn on_rename(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        tracing::trace!(op = "rename", ?from, ?to, ?flags);
        let answer = guarded("rename", || {
            let moved = self
                .overlay
                .rename(
                    self.ino(from.0),
                    &name(from.1)?,
                    self.ino(to.0),
                    &name(to.1)?,
                    flags.bits(),
                )
                .map_err(errno)?;
            for dir in moved {
                // The kernel's copy of its listing has the old number of `..`.
                self.opens.drop_pages(INodeNo(dir.0));
            }
            Ok(())
        });
        reply_empty(answer, reply);
    }

    fn reply_entry(&self, answer: Answer<Entry>, reply: ReplyEntry) {
        self.reply_shown(self.shown(answer), reply);
    }

    fn reply_shown(&self, answer: Answer<Shown>, reply: ReplyEntry) {
        match answer {
            Ok(shown) => {
                reply.entry_with_ttls(&shown.holds, &FOREVER, &shown.attr, shown.generation);
            }
            Err(errno) => reply.error(noted(errno)),
        }
    }

    /// An entry as the wire takes it; the lookup that the entry counts is given back where its
    /// attributes do not fit.
    pub(super) fn shown(&self, answer: Answer<Entry>) -> Answer<Shown> {
        let entry = answer?;
        let nodeid = INodeNo(self.opens.aliases().show(Ino(entry.attr.ino)));
        self.shown_by(entry, nodeid)
    }

    /// The same for an entry of a listing, which counts when it is taken.
    pub(super) fn shown_in_listing(&self, entry: Entry) -> Answer<Shown> {
        let nodeid = INodeNo(self.opens.aliases().show(Ino(entry.attr.ino)));
        self.shown_as(entry, nodeid).inspect_err(|_| {
            self.opens.forget(nodeid, 1);
        })
    }

    fn shown_by(&self, entry: Entry, nodeid: INodeNo) -> Answer<Shown> {
        self.shown_as(entry, nodeid)
            .inspect_err(|_| self.on_forget(nodeid, 1))
    }

    fn shown_as(&self, entry: Entry, nodeid: INodeNo) -> Answer<Shown> {
        let ino = entry.attr.ino;
        let mut attr = attr(&entry.attr)?;
        attr.ino = nodeid;
        let (generation, holds) = if nodeid.0 == ino {
            let generation = Generation(entry.generation.into());
            (generation, self.attributes_hold(nodeid))
        } else {
            // The number here is the alias; the attributes that are asked for have `st_ino`.
            (NO_GENERATION, Duration::ZERO)
        };
        Ok(Shown {
            attr,
            generation,
            holds,
        })
    }
}

/// What a lookup answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    /// `ino` is the nodeid.
    pub(super) attr: FileAttr,
    pub(super) generation: Generation,
    /// How long the attributes hold; the name always does.
    pub(super) holds: Duration,
}

pub(super) fn reply_empty(answer: Answer<()>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(noted(errno)),
    }
}
