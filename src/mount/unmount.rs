//! Unmounting from outside: `tarnfs umount`.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::kernel::{self, Engine, engine_of};
use super::registry::{Watch, state_dirs};
use super::{MountError, find_mount, resolve_point};
use crate::sys;
use crate::sys::mount::MountPoint;

/// How long a busy mount is asked for again. A process between fork(2) and execve(2) holds what
/// its parent had open, and a file that was just closed is let go of a moment later; neither is
/// what "busy" means to a person.
const MOMENT: Duration = Duration::from_millis(500);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// Detach now, end when the last user is gone.
    pub lazy: bool,
    /// Abort the connection first: what waits for the server fails. For a server that hangs.
    pub force: bool,
    /// How long to wait for the server to write out and end.
    pub wait: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// Nothing was mounted there.
    NotMounted,
    /// Unmounted; its server has ended.
    Ended,
    /// Unmounted; its server had been dead, or is not known.
    Dead,
    /// Detached; the server goes on for those who still hold files.
    Detached,
}

/// Ends the tarnfs mount on `point` and waits for its server, without a request to it.
///
/// # Errors
/// [`MountError`]: busy, not ours, not permitted.
pub fn unmount(point: &Path, how: How) -> Result<Unmounted, MountError> {
    let (mount, engine) = match ours(point)? {
        Some(ours) => ours,
        None => {
            // umount(8) may have been here before.
            kernel::sweep_all(&state_dirs());
            kernel::sweep_all_pins(&state_dirs());
            return Ok(Unmounted::NotMounted);
        }
    };
    if engine == Engine::Kernel {
        return unmount_kernel(&mount, how);
    }
    // Before the end: the state file goes with the server.
    let watch = Watch::open(&places(&mount), mount.minor);
    if how.force {
        abort(mount.minor, &mount.path)?;
    }
    if !detach_soon(&mount.path, how)? {
        return Ok(Unmounted::NotMounted);
    }
    let Some(watch) = watch else {
        return Ok(Unmounted::Dead);
    };
    if how.lazy {
        return Ok(Unmounted::Detached);
    }
    let pid = watch.record.pid;
    if watch.wait(how.wait) {
        Ok(Unmounted::Ended)
    } else {
        Err(MountError::ServerRemains(mount.path, pid))
    }
}

/// No server to wait for: what overlayfs holds in memory is written by umount2(2) itself.
fn unmount_kernel(mount: &MountPoint, how: How) -> Result<Unmounted, MountError> {
    let record = kernel::find_record(&state_dirs(), mount);
    if !detach_soon(&mount.path, how)? {
        return Ok(Unmounted::NotMounted);
    }
    if let Some(record) = record {
        let shown = mount.path.display();
        record.ended().map_err(MountError::system(format!(
            "{shown}: unmounted, but not cleared up"
        )))?;
    }
    kernel::sweep_all_pins(&state_dirs());
    Ok(if how.lazy {
        Unmounted::Detached
    } else {
        Unmounted::Ended
    })
}

/// The mount of ours on `point`, if there is one, and who serves it.
fn ours(point: &Path) -> Result<Option<(MountPoint, Engine)>, MountError> {
    let no_path = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    };
    let find = |path: &Path| find_mount(path).map_err(MountError::system("/proc/self/mountinfo"));
    let failed = |error| MountError::system(point.display().to_string())(error);
    let path = match resolve_point(point) {
        Ok(path) => path,
        Err(error) if no_path(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut found = find(&path)?;
    if found.is_none() {
        // Not a mount point, so it is safe to look at: perhaps a symbolic link to one.
        // (readlink(2) of what it leads to asks no server.)
        match path.canonicalize() {
            Ok(path) => found = find(&path)?,
            Err(error) if no_path(&error) => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
    }
    let Some(mount) = found else {
        return Ok(None);
    };
    match engine_of(&mount) {
        Some(engine) => Ok(Some((mount, engine))),
        // The mount that holds the whole system is no answer to "/".
        None => Err(MountError::NotOurs {
            point: mount.path,
            fs_type: mount.fs_type,
        }),
    }
}

/// This user's state files, and those of the user who mounted (root unmounts for others).
fn places(mount: &MountPoint) -> Vec<PathBuf> {
    let owner = mount
        .super_options
        .split(',')
        .find_map(|option| option.strip_prefix("user_id="))
        .and_then(|uid| uid.parse::<u32>().ok());
    let mut places = state_dirs();
    if let Some(uid) = owner {
        places.push(PathBuf::from(format!("/run/user/{uid}/tarnfs")));
        places.push(PathBuf::from(format!("/tmp/tarnfs-{uid}")));
    }
    places
}

fn abort(minor: u32, point: &Path) -> Result<(), MountError> {
    match sys::fuse::abort_connection(minor) {
        // A connection that is gone is aborted enough; without it, detaching has to do.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::warn!(
                "{}: cannot abort: the connection has ended, or fusectl cannot be had",
                point.display()
            );
            Ok(())
        }
        result => result.map_err(MountError::system(format!("abort connection {minor}"))),
    }
}

/// As [`detach`], again for a moment while a process is in the way.
fn detach_soon(path: &Path, how: How) -> Result<bool, MountError> {
    let until = Instant::now() + how.wait.min(MOMENT);
    loop {
        match detach(path, how.lazy || how.force) {
            Err(MountError::Busy(_)) if Instant::now() < until => thread::sleep(PAUSE),
            other => return other,
        }
    }
}

/// Takes the mount off; false when there was none after all.
pub(super) fn detach(path: &Path, lazy: bool) -> Result<bool, MountError> {
    let error = match sys::mount::unmount(path, lazy) {
        Ok(()) => return Ok(true),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::EBUSY) => Err(busy(path)),
        // umount2(2): not a mount point (any more).
        Some(libc::EINVAL | libc::ENOENT) => Ok(false),
        Some(libc::EPERM) => match ask_to_unmount(path, lazy) {
            Ok(was) => Ok(was),
            Err(said) if said.kind() == io::ErrorKind::NotFound => Err(MountError::NotPermitted {
                point: path.to_owned(),
                source: error,
            }),
            Err(said) if said.raw_os_error() == Some(libc::EBUSY) => Err(busy(path)),
            Err(said) if said.to_string().contains("busy") => Err(busy(path)),
            Err(said) => Err(MountError::Helper {
                point: path.to_owned(),
                source: said,
            }),
        },
        _ => Err(MountError::system(format!("unmount {}", path.display()))(
            error,
        )),
    }
}

/// Through fusermount3, which has no effect where its owner does not exist.
fn ask_to_unmount(path: &Path, lazy: bool) -> io::Result<bool> {
    match sys::outside::get() {
        Some(outside) => outside.unmount(path, lazy),
        None => sys::fuse::fusermount_unmount(path, lazy).map(|()| true),
    }
}

/// Why the mount on `path` cannot be taken off: the last mount below it, or else a process.
fn busy(path: &Path) -> MountError {
    let point = path.to_owned();
    let below = |mounts: Vec<MountPoint>| {
        let below = |mount: &MountPoint| mount.path.starts_with(path) && mount.path != path;
        mounts.into_iter().rfind(below)
    };
    match sys::mount::mounts().map(below) {
        Ok(Some(MountPoint { path: below, .. })) => MountError::Covered { point, below },
        _ => MountError::Busy(point),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOW: How = How {
        lazy: false,
        force: false,
        wait: Duration::ZERO,
    };

    #[test]
    fn nothing_mounted_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(unmount(dir.path(), HOW).unwrap(), Unmounted::NotMounted);
        let gone = dir.path().join("a/b");
        assert_eq!(unmount(&gone, HOW).unwrap(), Unmounted::NotMounted);
    }

    #[test]
    fn other_mounts_are_left_alone() {
        assert!(matches!(
            unmount(Path::new("/proc"), HOW),
            Err(MountError::NotOurs { fs_type, .. }) if fs_type == "proc"
        ));
    }
}
