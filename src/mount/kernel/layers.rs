//! How overlayfs is given its layers: as open directories, or by paths where the kernel takes only
//! those.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use crate::mount::MountError;
use crate::sys::mount::{MountAttrs, Param, attach, create_detached};
use crate::sys::namespace;
use crate::upper::Upper;

/// The first Linux whose overlayfs takes directories of mounts that are attached nowhere
/// (fs/namespace.c:clone_private_mount()). Open directories it takes since 6.13.
const DETACHED: (u32, u32) = (6, 15);

/// A directory that every system has and nobody keeps layers in.
const PLACE: &str = "/sys";

/// This kernel's version.
#[must_use]
pub fn version() -> Option<(u32, u32)> {
    parse_version(&rustix::system::uname().release().to_string_lossy())
}

pub(super) fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Refuses an upper that is attached nowhere where overlayfs does not take one.
pub(super) fn check_detached() -> Result<(), MountError> {
    if version() < Some(DETACHED) {
        return Err(MountError::KernelEngine(
            "needs Linux 6.15 or later for a private tmpfs (--upper on a tmpfs does not)"
                .to_owned(),
        ));
    }
    Ok(())
}

/// An overlayfs of `lower` and `upper` with `params`, attached nowhere.
pub(super) fn overlayfs(
    lower: &OwnedFd,
    upper: &Upper,
    params: Vec<Param<'static>>,
    attrs: MountAttrs,
) -> io::Result<OwnedFd> {
    if version() >= Some(DETACHED) {
        by_descriptors(lower, upper, params, attrs)
    } else {
        by_paths(lower, upper, params, attrs)
    }
}

fn by_descriptors(
    lower: &OwnedFd,
    upper: &Upper,
    params: Vec<Param<'static>>,
    attrs: MountAttrs,
) -> io::Result<OwnedFd> {
    // fsmount(2) gives an O_PATH descriptor.
    let lower = rustix::fs::openat(lower, c".", flags(OFlags::RDONLY), Mode::empty())?;
    let mut params: Vec<Param<'_>> = params;
    params.extend([
        Param::Fd("lowerdir+", lower.as_fd()),
        Param::Fd("upperdir", upper.root()),
        Param::Fd("workdir", upper.workdir()),
    ]);
    create_detached("overlay", &params, attrs, || Ok(()))
}

/// In a mount namespace of a thread's own, where the image is attached and nobody sees it; it goes
/// with the thread, and overlayfs keeps its own mount of it.
pub(super) fn by_paths(
    lower: &OwnedFd,
    upper: &Upper,
    params: Vec<Param<'static>>,
    attrs: MountAttrs,
) -> io::Result<OwnedFd> {
    let work = || {
        namespace::unshare(UnshareFlags::NEWNS | UnshareFlags::FS)?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private)?;
        attach(lower.as_fd(), Path::new(PLACE))?;
        let upper_dir = here(upper.root())?;
        let work_dir = here(upper.workdir())?;
        // Through /proc: overlayfs takes backslashes in a path for its own.
        let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd()).into();
        let mut params = params;
        params.extend([
            Param::String("lowerdir+", PLACE.into()),
            Param::String("upperdir", path(&upper_dir)),
            Param::String("workdir", path(&work_dir)),
        ]);
        create_detached("overlay", &params, attrs, || Ok(()))
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(work);
        let died = |_| Err(io::Error::other("the mounting thread died"));
        thread.join().unwrap_or_else(died)
    })
}

/// The same directory as this thread's mount namespace has it.
fn here(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
    let found = rustix::fs::open(&path, flags(OFlags::PATH), Mode::empty())?;
    let (there, here) = (rustix::fs::fstat(dir)?, rustix::fs::fstat(&found)?);
    if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino) {
        return Err(io::Error::other(format!(
            "{} was moved meanwhile",
            path.display()
        )));
    }
    Ok(found)
}

fn flags(how: OFlags) -> OFlags {
    how | OFlags::DIRECTORY | OFlags::CLOEXEC
}
