//! The adapter between the kernel's FUSE requests and [`Overlay`]: log, call, reply.
//!
//! Nothing here decides anything about files. Each request is one call of one [`Overlay`] method;
//! what this module adds is the translation of types, and that
//! - every call runs under `catch_unwind`: a panic is EIO for that request, the mount lives;
//! - names are parsed once, here, into [`Name`](crate::name::Name);
//! - entry, attribute and negative timeouts never run out: the server is the only writer of the
//!   tree, so the kernel's caches cannot be stale.
//!
//! State of its own has only what the kernel makes necessary: how each open file is served
//! ([`opens`]), and second numbers of inodes ([`alias`]).
//!
//! This is the only module that knows the `fuser` crate.

mod alias;
mod answering;
mod aside;
mod attrs;
mod convert;
mod dirs;
mod entries;
mod files;
mod freeze;
mod init;
mod kept;
mod opens;
mod pause;
mod spin;
mod unopened;
mod xattrs;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow,
    WriteFlags,
};

use crate::metrics::{Op, Requests};
use crate::overlay::{self, Ino, Overlay};

use answering::noted;
pub use aside::KeepAwake;
use files::Writer;
pub use freeze::{FreezeError, Freezer, Frozen, KeepError};
pub use init::threads;
use opens::Opens;
use spin::Spin;
use unopened::Unopened;

/// How long the kernel may trust an entry, attributes or the absence of a name: 136 years.
/// `fuse_time_to_jiffies()` (fs/fuse/dir.c) caps what does not fit in jiffies, so a larger number
/// would gain nothing and would overflow 32-bit kernels' arithmetic.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The generation of a name that leads nowhere.
const NO_GENERATION: Generation = Generation(0);

/// How a connection is to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Let the kernel read and write files by itself where it can (FUSE passthrough): those of the
    /// upper, and those of the image that have at least so many bytes. What is open of a file of
    /// the image that is served so does not see what is written to the file later, as with
    /// overlayfs. Needs root and Linux 6.9; without, all goes by requests. `None`: all does.
    pub passthrough: Option<u64>,
    /// Let it do so with files of the upper too. Without, all that is written, stores to shared
    /// maps included, comes to the server as requests, which can count it and hold it back
    /// ([`Connection::freezer`]); files of the image are read as [`Self::passthrough`] says. So it
    /// always is where the overlay has a quota.
    pub upper_passthrough: bool,
    /// Answer OPEN with ENOSYS: the kernel then opens and closes all files without asking, and
    /// reads and writes them by their inodes. Excludes passthrough.
    pub noopen: bool,
    /// When to keep idle CPUs from halting. Root alone can.
    pub keep_awake: KeepAwake,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            passthrough: Some(PASSTHROUGH_FROM),
            upper_passthrough: true,
            noopen: false,
            keep_awake: KeepAwake::default(),
        }
    }
}

/// The default of [`Settings::passthrough`]: a smaller file is read by one request.
pub const PASSTHROUGH_FROM: u64 = 64 << 10;

/// Serves the requests of one FUSE connection until it ends.
pub struct Connection {
    session: Session<Adapter>,
    freezer: Freezer,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Answers the kernel's INIT on `device` (/dev/fuse of a filesystem that has been created;
    /// it need not be attached anywhere yet). What is answered from then on is counted in
    /// `requests`, which is of [`threads`] threads.
    ///
    /// # Errors
    /// The device is not of a living connection, or the kernel speaks another protocol.
    pub fn open(
        overlay: Arc<Overlay>,
        device: OwnedFd,
        settings: Settings,
        requests: Arc<Requests>,
    ) -> io::Result<Self> {
        // Who may reach the mount is the kernel's to decide (`allow_other`,
        // fs/fuse/dir.c:fuse_allow_current_process()); a second filter here would refuse
        // set-user-ID programs of the mount's own user.
        let acl = SessionACL::All;
        let keep_awake = settings.keep_awake;
        let passthrough = settings.passthrough.filter(|_| !settings.noopen);
        // What is written past the overlay would not be counted.
        let upper = settings.upper_passthrough && overlay.options().quota.is_none();
        let opens = Arc::new(Opens::new(passthrough, upper));
        let freezer = Freezer::new(overlay.freezer(), Arc::clone(&opens));
        let adapter = Adapter {
            overlay,
            opens: Arc::clone(&opens),
            unopened: settings.noopen.then(Unopened::default),
            opens_dirs: true,
            spin: Spin::new(&device, threads(), keep_awake, requests.since())?,
            requests,
        };
        let session = Session::from_fd(adapter, device, acl, init::session_config(acl))?;
        opens.set_notifier(session.notifier());
        Ok(Self { session, freezer })
    }

    /// What holds back what is written, while this is served in whatever thread.
    #[must_use]
    pub fn freezer(&self) -> Freezer {
        self.freezer.clone()
    }

    /// Serves until the kernel ends the connection: the mount is gone and nobody holds a file of
    /// it, or the connection was aborted.
    ///
    /// # Errors
    /// The device failed in another way than by the end of the connection.
    pub fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

/// What a handler gives: a value, or the errno to answer with.
type Answer<T> = Result<T, Errno>;

struct Adapter {
    overlay: Arc<Overlay>,
    opens: Arc<Opens>,
    /// With [`Settings::noopen`].
    unopened: Option<Unopened>,
    /// The kernel cannot do without OPENDIR.
    opens_dirs: bool,
    spin: Spin,
    requests: Arc<Requests>,
}

impl Adapter {
    /// The inode that the kernel means.
    fn ino(&self, nodeid: INodeNo) -> Ino {
        self.opens.aliases().ino(nodeid.0)
    }
}

/// Runs a handler's call; a panic becomes EIO.
fn guarded<T>(op: &'static str, call: impl FnOnce() -> Answer<T>) -> Answer<T> {
    // Unwind safety: what a panic may leave half done belongs to the overlay, which poisons the
    // mount itself; the adapter has no state.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "(no message)".to_owned());
        tracing::error!(op, "handler panicked, answered with EIO: {what}");
        Err(Errno::EIO)
    })
}

/// The errno of an overlay error. EIO is worth a warning: something is damaged.
fn errno(error: overlay::Error) -> Errno {
    let number = error.errno();
    if number == libc::EIO {
        tracing::warn!("answered with EIO: {error}");
    } else {
        tracing::trace!(errno = number, "{error}");
    }
    Errno::from_i32(number)
}

/// A line or two a request; each goes to the method of the same name in a file of its theme.
impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let agreed = init::negotiate(config, self.opens.passthrough())?;
        if !agreed.contains(InitFlags::FUSE_PASSTHROUGH) {
            self.opens.no_passthrough();
        }
        self.opens_dirs = !agreed.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        Ok(())
    }

    // ---- entries.rs

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _request = self.begin(Op::Lookup, parent);
        self.opens.looks_up(req.pid());
        self.on_lookup(parent, name, reply);
    }
    fn forget(&self, _req: &Request, ino: INodeNo, lookups: u64) {
        let _away = self.spin.away();
        self.requests.forgot();
        self.on_forget(ino, lookups);
    }
    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _request = self.begin(Op::Mknod, parent);
        self.on_mknod(req, (parent, name), mode, umask, rdev, reply);
    }
    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let _request = self.begin(Op::Mkdir, parent);
        self.on_mkdir(req, (parent, name), mode, umask, reply);
    }
    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let _request = self.begin(Op::Symlink, parent);
        self.on_symlink(req, (parent, name), target, reply);
    }
    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let _request = self.begin(Op::Link, ino);
        self.on_link(ino, (newparent, newname), reply);
    }
    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _request = self.begin(Op::Unlink, parent);
        self.on_unlink(parent, name, reply);
    }
    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _request = self.begin(Op::Rmdir, parent);
        self.on_rmdir(parent, name, reply);
    }
    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _request = self.begin(Op::Rename, parent);
        self.on_rename((parent, name), (newparent, newname), flags, reply);
    }

    // ---- attrs.rs

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let _request = self.begin(Op::Getattr, ino);
        self.on_getattr(ino, fh, reply);
    }
    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _request = self.begin(Op::Setattr, ino);
        let set = convert::set_attr(req, mode, uid, gid, size, atime, mtime);
        self.on_setattr(ino, fh, set, reply);
    }
    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let _request = self.begin(Op::Readlink, ino);
        self.on_readlink(ino, reply);
    }
    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _request = self.begin(Op::Statfs, ino);
        self.on_statfs(reply);
    }

    // ---- files.rs

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _request = self.begin(Op::Open, ino);
        self.on_open(req, ino, flags, reply);
    }
    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _request = self.begin(Op::Create, parent);
        self.on_create(req, (parent, name), mode, umask, flags, reply);
    }
    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _request = self.begin(Op::Read, ino);
        self.on_read((ino, fh), offset, size, reply);
    }
    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        open_flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _request = self.begin(Op::Write, ino);
        let unprivileged = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let writer = Writer { req, ino, fh };
        self.on_write(writer, unprivileged, offset, (data, open_flags), reply);
    }
    fn flush(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _request = self.begin(Op::Flush, ino);
        // Writes reach the upper at once, so close(2) has nothing to report. ENOSYS is asked
        // once; then the kernel closes without a request (fs/fuse/file.c:fuse_flush()).
        reply.error(noted(Errno::ENOSYS));
    }
    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _request = self.begin(Op::Release, ino);
        self.on_release(ino, fh, flags, reply);
    }
    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let _request = self.begin(Op::Fsync, ino);
        self.on_fsync((ino, fh), datasync, reply);
    }
    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _request = self.begin(Op::Fallocate, ino);
        let writer = Writer { req, ino, fh };
        self.on_fallocate(writer, offset, length, mode, reply);
    }
    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _request = self.begin(Op::Lseek, ino);
        self.on_lseek((ino, fh), offset, whence, reply);
    }
    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _request = self.begin(Op::CopyFileRange, ino_out);
        let writer = Writer {
            req,
            ino: ino_out,
            fh: fh_out,
        };
        self.on_copy_file_range(((ino_in, fh_in), offset_in), writer, offset_out, len, reply);
    }
    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let _request = self.begin(Op::Ioctl, ino);
        // What a filesystem without an ioctl answers (lsattr, cp --reflink and tar expect it;
        // ENOSYS would reach them as it is on older kernels).
        reply.error(noted(Errno::ENOTTY));
    }

    // ---- dirs.rs

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _request = self.begin(Op::Opendir, ino);
        self.on_opendir(ino, reply);
    }
    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let _request = self.begin(Op::Readdir, ino);
        self.on_readdir(ino, offset, reply);
    }
    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let _request = self.begin(Op::Readdirplus, ino);
        self.on_readdirplus(ino, offset, reply);
    }
    fn releasedir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _request = self.begin(Op::Releasedir, ino);
        reply.ok();
    }
    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let _request = self.begin(Op::Fsyncdir, ino);
        self.on_fsyncdir(ino, reply);
    }

    // ---- xattrs.rs

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _request = self.begin(Op::Getxattr, ino);
        self.on_getxattr(ino, name, size, reply);
    }
    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _request = self.begin(Op::Listxattr, ino);
        self.on_listxattr(req, ino, size, reply);
    }
    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _request = self.begin(Op::Setxattr, ino);
        self.on_setxattr(req, ino, name, value, flags, reply);
    }
    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _request = self.begin(Op::Removexattr, ino);
        self.on_removexattr(ino, name, reply);
    }

    // access, poll, bmap, getlk and setlk stay fuser's ENOSYS. With default_permissions the
    // kernel checks access itself; locks are the kernel's own, which is right: every user of the
    // files is a user of this mount.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_eio() {
        let answer: Answer<()> = guarded("test", || panic!("boom {}", 1));
        assert_eq!(answer, Err(Errno::EIO));
        let answer: Answer<()> = guarded("test", || std::panic::panic_any(7_u8));
        assert_eq!(answer, Err(Errno::EIO));
    }

    #[test]
    fn an_answer_passes_as_it_is() {
        assert_eq!(guarded("test", || Ok(5)), Ok(5));
        let answer: Answer<()> = guarded("test", || Err(Errno::ENOENT));
        assert_eq!(answer, Err(Errno::ENOENT));
    }
}
