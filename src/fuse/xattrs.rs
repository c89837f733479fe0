//! Extended attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{Errno, INodeNo, ReplyEmpty, ReplyXattr, Request};

use super::answering::noted;
use super::convert::{asker, caller};
use super::entries::reply_empty;
use super::{Adapter, Answer, errno, guarded};

impl Adapter {
    pub(super) fn on_getxattr(&self, nodeid: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        tracing::trace!(op = "getxattr", ino = %nodeid, ?name, size);
        let answer = guarded("getxattr", || {
            self.overlay
                .getxattr(self.ino(nodeid), name.as_bytes())
                .map_err(errno)
        });
        reply_sized(answer, size, reply);
    }

    pub(super) fn on_listxattr(
        &self,
        req: &Request,
        nodeid: INodeNo,
        size: u32,
        reply: ReplyXattr,
    ) {
        tracing::trace!(op = "listxattr", ino = %nodeid, size);
        let answer = guarded("listxattr", || {
            let names = self
                .overlay
                .listxattr_for(caller(req), self.ino(nodeid))
                .map_err(errno)?;
            Ok(joined(&names))
        });
        reply_sized(answer, size, reply);
    }

    pub(super) fn on_setxattr(
        &self,
        req: &Request,
        nodeid: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        reply: ReplyEmpty,
    ) {
        tracing::trace!(op = "setxattr", ino = %nodeid, ?name, len = value.len(), flags);
        reply_empty(
            guarded("setxattr", || {
                self.overlay
                    .setxattr(asker(req), self.ino(nodeid), name.as_bytes(), value, flags)
                    .map_err(errno)
            }),
            reply,
        );
    }

    pub(super) fn on_removexattr(&self, nodeid: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        tracing::trace!(op = "removexattr", ino = %nodeid, ?name);
        reply_empty(
            guarded("removexattr", || {
                self.overlay
                    .removexattr(self.ino(nodeid), name.as_bytes())
                    .map_err(errno)
            }),
            reply,
        );
    }
}

/// listxattr(2): each name with a NUL behind it.
fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.iter().map(|n| n.len() + 1).sum());
    for name in names {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

/// What getxattr(2) and listxattr(2) want: the size alone for size 0, ERANGE for too little room.
#[derive(Debug, PartialEq, Eq)]
enum Sized<'a> {
    Size(u32),
    Data(&'a [u8]),
}

fn sized(value: &[u8], room: u32) -> Answer<Sized<'_>> {
    // XATTR_SIZE_MAX and XATTR_LIST_MAX are 64 KiB; what is longer cannot be passed on.
    let len = u32::try_from(value.len()).map_err(|_| Errno::E2BIG)?;
    match room {
        0 => Ok(Sized::Size(len)),
        room if len > room => Err(Errno::ERANGE),
        _ => Ok(Sized::Data(value)),
    }
}

fn reply_sized(answer: Answer<Vec<u8>>, room: u32, reply: ReplyXattr) {
    match answer
        .as_deref()
        .map_err(|&e| e)
        .and_then(|value| sized(value, room))
    {
        Ok(Sized::Size(len)) => reply.size(len),
        Ok(Sized::Data(data)) => reply.data(data),
        Err(errno) => reply.error(noted(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(sized(b"abc", 0), Ok(Sized::Size(3)));
        assert_eq!(sized(b"abc", 2), Err(Errno::ERANGE));
        assert_eq!(sized(b"abc", 3), Ok(Sized::Data(b"abc")));
        assert_eq!(sized(b"", 5), Ok(Sized::Data(b"")));
    }

    #[test]
    fn lists_end_each_name() {
        assert_eq!(
            joined(&[b"user.a".to_vec(), b"user.b".to_vec()]),
            b"user.a\0user.b\0"
        );
        assert_eq!(joined(&[]), b"");
    }
}
