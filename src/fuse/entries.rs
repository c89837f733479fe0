//! Names: lookup, creation, links, removal, rename.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fuser::{Errno, Generation, INodeNo, RenameFlags, ReplyEmpty, ReplyEntry, Request};

use super::convert::{attr, bare_attr, caller, device, ino, name, perm};
use super::{Adapter, Answer, FOREVER, NO_GENERATION, errno, guarded};
use crate::inode::Kind;
use crate::overlay::{Entry, Make};

/// A directory and a name in it, as the kernel sends them.
pub(super) type Place<'a> = (INodeNo, &'a OsStr);

impl Adapter {
    pub(super) fn on_lookup(&self, parent: INodeNo, name_: &OsStr, reply: ReplyEntry) {
        tracing::trace!(op = "lookup", %parent, name = ?name_);
        let answer = guarded("lookup", || {
            match name_.as_bytes() {
                // The two ways by which the kernel opens a file handle (FUSE_EXPORT_SUPPORT).
                b"." => self.overlay.revisit(ino(parent)),
                b".." => self.overlay.parent(ino(parent)),
                _ => self.overlay.lookup(ino(parent), &name(name_)?),
            }
            .map_err(errno)
        });
        match answer {
            // A positive answer with nodeid 0 is "no such name, and you may remember that"
            // (fs/fuse/dir.c:fuse_lookup_name()); ENOENT would be asked again each time.
            Err(Errno::ENOENT) => {
                reply.entry(&FOREVER, &bare_attr(0, Kind::File), NO_GENERATION);
            }
            answer => self.reply_entry(answer, reply),
        }
    }

    pub(super) fn on_forget(&self, nodeid: INodeNo, lookups: u64) {
        tracing::trace!(op = "forget", ino = %nodeid, lookups);
        // There is no reply to a forget; a panic in it has been logged.
        guarded("forget", || {
            self.overlay.forget(ino(nodeid), lookups);
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
                ino(parent),
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
                .link(ino(nodeid), ino(to.0), &name(to.1)?)
                .map_err(errno)
        });
        self.reply_entry(answer, reply);
    }

    pub(super) fn on_unlink(&self, parent: INodeNo, name_: &OsStr, reply: ReplyEmpty) {
        tracing::trace!(op = "unlink", %parent, name = ?name_);
        reply_empty(
            guarded("unlink", || {
                self.overlay
                    .unlink(ino(parent), &name(name_)?)
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
                    .rmdir(ino(parent), &name(name_)?)
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
        reply_empty(
            guarded("rename", || {
                self.overlay
                    .rename(
                        ino(from.0),
                        &name(from.1)?,
                        ino(to.0),
                        &name(to.1)?,
                        flags.bits(),
                    )
                    .map_err(errno)
            }),
            reply,
        );
    }

    fn reply_entry(&self, answer: Answer<Entry>, reply: ReplyEntry) {
        match self.shown(answer) {
            Ok((attr, generation)) => reply.entry(&FOREVER, &attr, generation),
            Err(errno) => reply.error(errno),
        }
    }

    /// The attributes of an entry as the wire takes them; the lookup that the entry counts is
    /// given back where they do not fit.
    pub(super) fn shown(&self, answer: Answer<Entry>) -> Answer<(fuser::FileAttr, Generation)> {
        let entry = answer?;
        let attr = attr(&entry.attr).inspect_err(|_| self.on_forget(INodeNo(entry.attr.ino), 1))?;
        Ok((attr, Generation(entry.generation.into())))
    }
}

pub(super) fn reply_empty(answer: Answer<()>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
