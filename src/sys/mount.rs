//! Mounts: fsopen(2) and its kin, mount_setattr(2), umount2(2), /proc/self/mountinfo.
//!
//! Nothing here looks at a mount point with stat(2): a mount whose server hangs or has died would
//! hang or fail the caller. What is mounted where is read from mountinfo.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

/// Changes of a mount's own attributes, in the order they were asked for: the last word counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountAttrs {
    set: u64,
    clear: u64,
}

impl MountAttrs {
    /// `ro`.
    pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    /// `nosuid`.
    pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
    /// `nodev`.
    pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
    /// `noexec`.
    pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
    /// `nodiratime`.
    pub const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
    /// `nosymfollow`.
    pub const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
    /// `relatime`, a value of the access-time field.
    pub const RELATIME: u64 = libc::MOUNT_ATTR_RELATIME;
    /// `noatime`, a value of the access-time field.
    pub const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
    /// `strictatime`, a value of the access-time field.
    pub const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;

    /// Sets an attribute.
    pub fn set(&mut self, attr: u64) {
        self.set |= attr;
        self.clear &= !attr;
    }

    /// Clears an attribute.
    pub fn clear(&mut self, attr: u64) {
        self.set &= !attr;
        self.clear |= attr;
    }

    /// Sets the access-time field, which holds one of several values.
    pub fn set_atime(&mut self, value: u64) {
        // mount_setattr(2): to change the field, all of it must be in attr_clr.
        self.set = (self.set & !libc::MOUNT_ATTR__ATIME) | value;
        self.clear |= libc::MOUNT_ATTR__ATIME;
    }

    /// Whether an attribute is to be set.
    #[must_use]
    pub fn has(&self, attr: u64) -> bool {
        self.set & attr == attr
    }

    /// Whether an attribute is to be cleared.
    #[must_use]
    pub fn clears(&self, attr: u64) -> bool {
        self.clear & attr == attr
    }

    /// Whether nothing is to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn new_mount_flags(self) -> MountAttrFlags {
        MountAttrFlags::from_bits_retain(u32::try_from(self.set).unwrap_or(0))
    }

    /// The same for mount(2).
    fn old_flags(self) -> MountFlags {
        let mut flags = MountFlags::empty();
        for (attr, flag) in [
            (Self::RDONLY, MountFlags::RDONLY),
            (Self::NOSUID, MountFlags::NOSUID),
            (Self::NODEV, MountFlags::NODEV),
            (Self::NOEXEC, MountFlags::NOEXEC),
            (Self::NODIRATIME, MountFlags::NODIRATIME),
            (Self::NOATIME, MountFlags::NOATIME),
            (Self::STRICTATIME, MountFlags::STRICTATIME),
        ] {
            if self.has(attr) {
                flags |= flag;
            }
        }
        flags
    }
}

/// A parameter of a filesystem to create.
#[derive(Debug, Clone)]
pub enum Param<'a> {
    /// A word.
    Flag(&'static str),
    /// A key and its value.
    String(&'static str, OsString),
    /// A key and an open file or directory; overlayfs takes one since Linux 6.13.
    Fd(&'static str, BorrowedFd<'a>),
}

/// Creates a filesystem and its mount, attached nowhere (fsopen(2), fsconfig(2), fsmount(2)).
///
/// The mount lives as long as the descriptor, or after [`attach`] until it is unmounted.
/// `after_create` is called between the two: a FUSE server can begin to answer there.
///
/// # Errors
/// The system's error, with the kernel's own words where it left some.
pub fn create_detached(
    fs_type: &str,
    params: &[Param<'_>],
    attrs: MountAttrs,
    after_create: impl FnOnce() -> io::Result<()>,
) -> io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for param in params {
        match param {
            Param::Flag(key) => rustix::mount::fsconfig_set_flag(fs.as_fd(), *key),
            Param::String(key, value) => {
                rustix::mount::fsconfig_set_string(fs.as_fd(), *key, value.as_os_str())
            }
            Param::Fd(key, fd) => rustix::mount::fsconfig_set_fd(fs.as_fd(), *key, fd),
        }
        .map_err(|errno| with_kernel_words(fs.as_fd(), errno))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd())
        .map_err(|errno| with_kernel_words(fs.as_fd(), errno))?;
    after_create()?;
    rustix::mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attrs.new_mount_flags(),
    )
    .map_err(|errno| with_kernel_words(fs.as_fd(), errno))
}

/// The error together with what the kernel wrote to the filesystem context's log.
fn with_kernel_words(fs: BorrowedFd<'_>, errno: Errno) -> io::Error {
    let mut buffer = [0_u8; 1024];
    match rustix::io::read(fs, &mut buffer) {
        // "e Some words": the letter is the level.
        Ok(n) if n > 2 => {
            let words = buffer.get(2..n).unwrap_or_default();
            let words = String::from_utf8_lossy(words);
            io::Error::new(
                io::Error::from(errno).kind(),
                format!("{} ({errno})", words.trim()),
            )
        }
        // An empty log (ENODATA), or none.
        Ok(_) | Err(_) => errno.into(),
    }
}

/// mount(2), for kernels or sandboxes without fsopen(2).
///
/// # Errors
/// The system's.
pub fn mount_classic(
    source: &OsStr,
    target: &Path,
    fs_type: &str,
    attrs: MountAttrs,
    data: &OsStr,
) -> io::Result<()> {
    let data = CString::new(data.as_bytes())?;
    rustix::mount::mount(source, target, fs_type, attrs.old_flags(), data.as_c_str())?;
    Ok(())
}

/// Attaches a detached mount to a directory (move_mount(2)).
///
/// # Errors
/// The system's.
pub fn attach(mount: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    rustix::mount::move_mount(
        mount,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Another mount of the same filesystem, attached nowhere (open_tree(2), `OPEN_TREE_CLONE`): of the
/// mount that `name` in `dir` leads to.
///
/// # Errors
/// The system's; EINVAL for a mount that is attached nowhere itself, up to Linux 6.14 and from
/// other mount namespaces.
pub fn clone_mount(dir: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(dir, name, flags)?)
}

/// The minor number of a mount's `st_dev`: for FUSE, the number of its connection.
/// Asks the kernel alone, never the server.
///
/// # Errors
/// The system's.
pub fn device_minor(mount: BorrowedFd<'_>) -> io::Result<u32> {
    let stat = rustix::fs::statx(
        mount,
        "",
        AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
        StatxFlags::empty(),
    )?;
    Ok(stat.stx_dev_minor)
}

/// A private tmpfs, attached nowhere, of so many bytes and inodes; `None` is tmpfs' own: half of the
/// memory, and as many inodes as go with it (Documentation/filesystems/tmpfs.rst).
///
/// # Errors
/// The system's.
pub fn detached_tmpfs(size: Option<u64>, inodes: Option<u64>) -> io::Result<OwnedFd> {
    let mut params = vec![
        Param::String("source", "tarnfs".into()),
        Param::String("mode", "0700".into()),
    ];
    if let Some(size) = size {
        params.push(Param::String("size", size.to_string().into()));
    }
    if let Some(inodes) = inodes {
        params.push(Param::String("nr_inodes", inodes.to_string().into()));
    }
    create_detached("tmpfs", &params, MountAttrs::default(), || Ok(()))
}

/// Whether this process may create filesystems of a type (fsopen(2)), which loads its module.
///
/// # Errors
/// ENODEV when the kernel has none of that type, EPERM without CAP_SYS_ADMIN.
pub fn can_open(fs_type: &str) -> io::Result<()> {
    rustix::mount::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    Ok(())
}

/// Whether an overlayfs that is mounted anywhere, in whatever mount namespace or none, has `dir` as
/// its upper or work directory. Nothing is mounted or changed by asking; the kernel's log gets a
/// line.
///
/// # Errors
/// The system's; EPERM without CAP_SYS_ADMIN.
pub fn overlayfs_has(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let fs = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        // Not in this kernel, or not loaded yet and so not in use.
        Err(Errno::NODEV) => return Ok(false),
        opened => opened?,
    };
    // Who is mounted has claimed its two directories. With index=on overlayfs minds that (EBUSY),
    // for the upper before it finds that one directory cannot be both (EINVAL):
    // fs/overlayfs/super.c:ovl_get_upper(), ovl_get_workdir().
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let params = [
        ("lowerdir", path.as_str()),
        ("upperdir", path.as_str()),
        ("workdir", path.as_str()),
        ("index", "on"),
    ];
    let refused = params
        .into_iter()
        .try_for_each(|(key, value)| rustix::mount::fsconfig_set_string(fs.as_fd(), key, value))
        .and_then(|()| rustix::mount::fsconfig_create(fs.as_fd()));
    match refused {
        Err(Errno::BUSY) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
        Ok(()) => Err(io::Error::other("overlayfs takes one directory for two")),
    }
}

/// Changes attributes of the mount at `target` (mount_setattr(2)).
///
/// # Errors
/// The system's.
pub fn set_attrs(target: &Path, attrs: MountAttrs) -> io::Result<()> {
    let path = CString::new(target.as_os_str().as_bytes())?;
    set_attrs_at(CWD, &path, 0, attrs)
}

/// The same of a mount by its descriptor.
///
/// # Errors
/// The system's.
pub fn set_attrs_of(mount: BorrowedFd<'_>, attrs: MountAttrs) -> io::Result<()> {
    set_attrs_at(mount, c"", libc::AT_EMPTY_PATH, attrs)
}

fn set_attrs_at(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    attrs: MountAttrs,
) -> io::Result<()> {
    let change = libc::mount_attr {
        attr_set: attrs.set,
        attr_clr: attrs.clear,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: `path` is NUL-terminated and `change` is a live mount_attr of the size given; the
    // kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// umount2(2); never follows a symbolic link at the end of `target`. `lazy`: detach at once, end
/// when the last user is gone (MNT_DETACH).
///
/// # Errors
/// The system's: EBUSY when in use, EINVAL when nothing is mounted there.
pub fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    rustix::mount::unmount(target, flags)?;
    Ok(())
}

/// A line of /proc/self/mountinfo (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Number of the mount.
    pub id: u64,
    /// Number of the mount on which it is mounted.
    pub parent: u64,
    /// `st_dev`: major number.
    pub major: u32,
    /// `st_dev`: minor number; the connection's number for FUSE.
    pub minor: u32,
    /// Where it is mounted, as this process sees it.
    pub path: PathBuf,
    /// Options of the mount (`rw,nosuid`).
    pub options: String,
    /// Filesystem type (`fuse.tarnfs`).
    pub fs_type: String,
    /// Source.
    pub source: OsString,
    /// Options of the filesystem (`rw,user_id=0`).
    pub super_options: String,
}

/// All mounts of this process's mount namespace, oldest first.
///
/// # Errors
/// /proc cannot be read, or a line of it is not as proc(5) says.
pub fn mounts() -> io::Result<Vec<MountPoint>> {
    parse_mountinfo(&std::fs::read("/proc/self/mountinfo")?)
}

/// All mounts of the mount namespace of process `pid`, oldest first.
///
/// # Errors
/// As of [`mounts`]; the process is gone.
pub fn mounts_of(pid: u32) -> io::Result<Vec<MountPoint>> {
    parse_mountinfo(&std::fs::read(format!("/proc/{pid}/mountinfo"))?)
}

fn parse_mountinfo(text: &[u8]) -> io::Result<Vec<MountPoint>> {
    text.split(|&c| c == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line).into_owned();
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("mountinfo: not understood: {line}"),
                )
            })
        })
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|&c| c == b' ');
    let text = |field: &[u8]| String::from_utf8(field.to_vec()).ok();
    let id = text(fields.next()?)?.parse().ok()?;
    let parent = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.next()?)?;
    let (major, minor) = device.split_once(':')?;
    let _root = fields.next()?;
    let path = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let options = text(fields.next()?)?;
    // Any number of optional fields, then a lone hyphen.
    fields.by_ref().find(|field| *field == b"-")?;
    Some(MountPoint {
        id,
        parent,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        path,
        options,
        fs_type: text(&unescape(fields.next()?))?,
        source: OsString::from_vec(unescape(fields.next()?)),
        super_options: String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned(),
    })
}

/// Undoes the kernel's `\ooo` of space, tab, newline, backslash and `#`
/// (fs/proc_namespace.c:mangle()).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'\\'
            && let [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] = tail
        {
            plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            plain.push(first);
            rest = tail;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            41 25 0:52 / /x\\134y\\012z rw - fuse.tarnfs /tmp/a\\040b.tar rw,user_id=0\n";
        let mounts = parse_mountinfo(text).unwrap();
        assert_eq!(mounts[0].path, Path::new("/mnt 2"));
        assert_eq!((mounts[0].major, mounts[0].minor), (98, 0));
        assert_eq!(mounts[1].path, Path::new("/x\\y\nz"));
        assert_eq!(mounts[1].fs_type, "fuse.tarnfs");
        assert_eq!(mounts[1].source, "/tmp/a b.tar");
        assert_eq!(mounts[1].minor, 52);
    }

    #[test]
    fn odd_lines_are_errors_not_panics() {
        for bad in [
            &b"1"[..],
            b"1 2 x / / rw - a b c",
            b"1 2 0:1 / / rw a b c",
            b"a b c d e f",
        ] {
            assert!(
                parse_mountinfo(bad).is_err(),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\"), b"\\");
        assert_eq!(unescape(b"\\777\\377"), b"\\777\xff");
    }

    #[test]
    fn an_empty_source_is_no_error() {
        let mounts = parse_mountinfo(b"1 2 0:1 / / rw - tmpfs  rw").unwrap();
        assert_eq!(mounts[0].source, "");
        assert_eq!(mounts[0].super_options, "rw");
    }

    #[test]
    fn this_process_has_mounts() {
        assert!(mounts().unwrap().iter().any(|m| m.path == Path::new("/")));
    }

    #[test]
    fn the_last_word_counts() {
        let mut attrs = MountAttrs::default();
        attrs.set(MountAttrs::RDONLY);
        attrs.clear(MountAttrs::RDONLY);
        assert!(!attrs.has(MountAttrs::RDONLY));
        attrs.set_atime(MountAttrs::NOATIME);
        attrs.set_atime(MountAttrs::STRICTATIME);
        assert!(attrs.has(MountAttrs::STRICTATIME) && !attrs.has(MountAttrs::NOATIME));
        assert_eq!(
            attrs.new_mount_flags(),
            MountAttrFlags::MOUNT_ATTR_STRICTATIME
        );
    }
}
