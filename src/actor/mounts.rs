//! Mounts of an actor, made in its own mount namespace on top of its root filesystem.
//!
//! Every filesystem is made detached, given its flags, and only then moved to its place, which a
//! descriptor names: no path of the image is walked with the host's root.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::inroot::{self, Make};
use super::spec::Mount;
use crate::sys::namespace;

/// Options of a mount, sorted by who takes them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    set: u32,
    bind: bool,
    recursive: bool,
    data: Vec<(String, Option<String>)>,
}

/// Splits options as mount(8) does: flags of the mount, binding, and the filesystem's own.
fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    for option in options {
        let flag = match option.as_str() {
            "ro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
            "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
            "strictatime" => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            "bind" => {
                parsed.bind = true;
                continue;
            }
            "rbind" => {
                parsed.bind = true;
                parsed.recursive = true;
                continue;
            }
            // The defaults, and propagation: everything here is private already.
            "rw" | "relatime" | "private" | "rprivate" => continue,
            other => {
                let (key, value) = match other.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (other, None),
                };
                parsed.data.push((key.to_owned(), value));
                continue;
            }
        };
        parsed.set |= flag.bits();
    }
    parsed
}

/// A new filesystem, mounted nowhere yet.
fn new_filesystem(kind: &str, source: &Path, options: &Options) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    for (key, value) in &options.data {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(context.as_fd(), key.as_str())?,
        }
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::from_bits_retain(options.set);
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A copy of a part of the tree that this namespace has.
fn copy_tree(at: BorrowedFd<'_>, path: &Path, options: &Options) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if options.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    let tree = open_tree(at, path, flags)?;
    if options.set != 0 {
        let set = MountAttrFlags::from_bits_retain(options.set);
        // What sets an access-time rule must clear the old one (mount_setattr(2)).
        let atime = MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
        let clear = if set.intersects(atime) {
            MountAttrFlags::MOUNT_ATTR__ATIME
        } else {
            MountAttrFlags::empty()
        };
        namespace::mount_setattr(tree.as_fd(), set, clear, options.recursive)?;
    }
    Ok(tree)
}

/// Puts a detached mount on what a descriptor names.
fn attach(mount: &OwnedFd, on: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount.as_fd(), "", on.as_fd(), "", flags)?)
}

fn is_dir(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

/// Makes one mount of the specification inside `root`.
pub(super) fn mount(root: BorrowedFd<'_>, spec: &Mount) -> io::Result<()> {
    let mut options = parse(&spec.options);
    if options.bind || spec.kind == "bind" {
        let tree = copy_tree(CWD, &spec.source, &options)?;
        let make = if is_dir(&tree)? {
            Make::Dir
        } else {
            Make::File
        };
        return attach(&tree, &inroot::ensure(root, &spec.destination, make)?);
    }
    let made = match new_filesystem(&spec.kind, &spec.source, &options) {
        // The group tty has no number in a user namespace of one number.
        Err(Errno::INVAL) if spec.kind == "devpts" => {
            options.data.retain(|(key, _)| key != "gid");
            new_filesystem(&spec.kind, &spec.source, &options)
        }
        // sysfs shows a network namespace, and only who owns that may mount it: with the host's
        // network, a user namespace takes the host's /sys, read only.
        Err(Errno::PERM | Errno::ACCESS) if spec.kind == "sysfs" => {
            options.recursive = true;
            let tree = copy_tree(CWD, Path::new("/sys"), &options)?;
            return attach(&tree, &inroot::ensure(root, &spec.destination, Make::Dir)?);
        }
        Err(Errno::PERM) if spec.kind == "proc" => {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the kernel refuses a new proc where the surrounding container hides parts of its own",
            ));
        }
        other => other,
    }?;
    attach(&made, &inroot::ensure(root, &spec.destination, Make::Dir)?)
}

/// Binds a file of the host's over one that images may have, or lack, or have as a symbolic link
/// to a place that only exists when a system has booted (/etc/resolv.conf).
pub(super) fn bind_file(
    root: BorrowedFd<'_>,
    source: &Path,
    destination: &Path,
    may_create: bool,
) -> io::Result<()> {
    let tree = copy_tree(CWD, source, &Options::default())?;
    let on = match inroot::open(root, destination, OFlags::PATH) {
        Ok(on) => on,
        // A link to nothing: mounted on the link itself, the upper stays as it is.
        Err(Errno::NOENT) => {
            match inroot::open(root, destination, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(link) => link,
                Err(Errno::NOENT) if may_create => inroot::ensure(root, destination, Make::File)?,
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(error) => return Err(error.into()),
    };
    if is_dir(&on)? {
        return Ok(());
    }
    attach(&tree, &on)
}

/// The devices that "Default Devices" of the specification's config-linux.md demands.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Fills the new /dev of `root`. `console`: a terminal to show there as /dev/console.
pub(super) fn devices(root: BorrowedFd<'_>, console: Option<&Path>) -> io::Result<()> {
    let dev = inroot::open(root, Path::new("/dev"), OFlags::PATH | OFlags::DIRECTORY)?;
    for (name, major, minor) in DEVICES {
        let number = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o666);
        match rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, number) {
            Ok(()) => {}
            // A user namespace makes no devices: the host's is bound.
            Err(Errno::PERM) => bind_device(&dev, &Path::new("/dev").join(name), name)?,
            Err(error) => return Err(error.into()),
        }
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dev, name)?;
    }
    if let Some(terminal) = console {
        bind_device(&dev, terminal, "console")?;
    }
    Ok(())
}

fn bind_device(dev: &OwnedFd, path: &Path, name: &str) -> io::Result<()> {
    let tree = copy_tree(CWD, path, &Options::default())?;
    let how = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dev, name, how, Mode::from_raw_mode(0o600))?;
    attach(&tree, &file)
}

/// Hides the content of `path`, if it is there: an empty read-only directory, or /dev/null.
pub(super) fn mask(root: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let Some(on) = present(root, path)? else {
        return Ok(());
    };
    let cover = if is_dir(&on)? {
        let options = parse(&["ro", "nosuid", "nodev", "noexec"].map(str::to_owned));
        new_filesystem("tmpfs", Path::new("tmpfs"), &options)?
    } else {
        copy_tree(CWD, Path::new("/dev/null"), &Options::default())?
    };
    attach(&cover, &on)
}

/// Makes `path` read only, if it is there.
pub(super) fn make_read_only(root: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let Some(on) = present(root, path)? else {
        return Ok(());
    };
    let options = Options {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits(),
        recursive: true,
        ..Options::default()
    };
    attach(&copy_tree(on.as_fd(), Path::new(""), &options)?, &on)
}

/// A read-only copy of this executable's mount at `place`, an empty file: what runs from there
/// cannot be written through /proc/PID/exe, whoever gets hold of that.
pub(super) fn read_only_executable(place: &Path) -> io::Result<()> {
    let options = Options {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits(),
        ..Options::default()
    };
    // By its path: the link in /proc leads into the mount namespace that the process came from,
    // whose mounts cannot be copied here.
    let path = std::fs::read_link("/proc/self/exe")?;
    let tree = copy_tree(CWD, &path, &options)?;
    let (named, running) = (
        rustix::fs::fstat(&tree)?,
        rustix::fs::stat("/proc/self/exe")?,
    );
    if (named.st_dev, named.st_ino) != (running.st_dev, running.st_ino) {
        return Err(io::Error::other(format!(
            "{} is no longer the executable that is running",
            path.display()
        )));
    }
    let file = rustix::fs::open(place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    attach(&tree, &file)
}

fn present(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    match inroot::open(root, path, OFlags::PATH) {
        Ok(on) => Ok(Some(on)),
        // EACCES: a directory of the host's /sys that a user namespace may not enter.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes the mount at `root` the root of this namespace, and lets go of the old one.
pub(super) fn pivot(root: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends stacked under ".".
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Opens the directory that is to become the root.
pub(super) fn open_root(path: &PathBuf) -> io::Result<OwnedFd> {
    let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, how, Mode::empty())?)
}

/// The name of the terminal that is the standard input, where this mount namespace has it.
pub(super) fn terminal() -> Option<PathBuf> {
    let stdin = rustix::stdio::stdin();
    let name = rustix::termios::ttyname(stdin, Vec::new()).ok()?;
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()));
    // A terminal of another namespace may have the same name as one of ours, or none.
    let (named, open) = (
        rustix::fs::stat(&path).ok()?,
        rustix::fs::fstat(stdin).ok()?,
    );
    ((named.st_rdev, named.st_ino) == (open.st_rdev, open.st_ino)).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_where_they_belong() {
        let list: Vec<String> = [
            "rbind",
            "ro",
            "nosuid",
            "mode=755",
            "newinstance",
            "rprivate",
        ]
        .map(str::to_owned)
        .to_vec();
        let parsed = parse(&list);
        let set = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
        assert_eq!(
            parsed,
            Options {
                set: set.bits(),
                bind: true,
                recursive: true,
                data: vec![
                    ("mode".into(), Some("755".into())),
                    ("newinstance".into(), None)
                ],
            }
        );
    }
}
