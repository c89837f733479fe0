//! Attributes of inodes and of the filesystem, and link targets.

use std::time::Duration;

use fuser::{FileHandle, INodeNo, ReplyAttr, ReplyData, ReplyStatfs};

use super::answering::noted;
use super::convert::{attr, handle};
use super::{Adapter, Answer, FOREVER, errno, guarded};
use crate::inode::Attr;
use crate::overlay::SetAttr;

impl Adapter {
    pub(super) fn on_getattr(&self, nodeid: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        tracing::trace!(op = "getattr", ino = %nodeid);
        let answer = guarded("getattr", || {
            self.overlay
                .getattr(self.ino(nodeid), fh.map(handle))
                .map_err(errno)
        });
        self.reply_attr(nodeid, answer, reply);
    }

    pub(super) fn on_setattr(
        &self,
        nodeid: INodeNo,
        fh: Option<FileHandle>,
        set: SetAttr,
        reply: ReplyAttr,
    ) {
        tracing::trace!(op = "setattr", ino = %nodeid, ?set);
        let answer = guarded("setattr", || {
            self.overlay
                .setattr(self.ino(nodeid), fh.map(handle), &set)
                .map_err(errno)
        });
        self.reply_attr(nodeid, answer, reply);
    }

    pub(super) fn on_readlink(&self, nodeid: INodeNo, reply: ReplyData) {
        tracing::trace!(op = "readlink", ino = %nodeid);
        match guarded("readlink", || {
            self.overlay.readlink(self.ino(nodeid)).map_err(errno)
        }) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(noted(errno)),
        }
    }

    pub(super) fn on_statfs(&self, reply: ReplyStatfs) {
        match guarded("statfs", || self.overlay.statfs().map_err(errno)) {
            Ok(s) => reply.statfs(
                s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
            ),
            Err(errno) => reply.error(noted(errno)),
        }
    }

    fn reply_attr(&self, nodeid: INodeNo, answer: Answer<Attr>, reply: ReplyAttr) {
        match answer.and_then(|a| attr(&a)) {
            Ok(attr) => reply.attr(&self.attributes_hold(nodeid), &attr),
            Err(errno) => reply.error(noted(errno)),
        }
    }

    /// How long the attributes of `nodeid` hold.
    pub(super) fn attributes_hold(&self, nodeid: INodeNo) -> Duration {
        if self.opens.attributes_change(nodeid) {
            Duration::ZERO
        } else {
            FOREVER
        }
    }
}
