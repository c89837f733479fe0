//! Why a mount could not be made, served or ended.

use std::io;
use std::path::PathBuf;

/// Why a mount could not be made, served or ended. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// No such mount point.
    #[error("{0}: no such directory to mount on (mkdir -p makes it)")]
    PointMissing(PathBuf),
    /// The mount point is no directory.
    #[error("{0}: not a directory, so nothing can be mounted on it")]
    PointNotDirectory(PathBuf),
    /// A living mount of ours is there.
    #[error("{point}: already a tarnfs mount of {image} (`tarnfs umount {point}` ends it)")]
    AlreadyMounted {
        /// The mount point.
        point: PathBuf,
        /// What is mounted there.
        image: String,
    },
    /// The mount point lies in the mount's own upper or work directory.
    #[error("{point}: lies inside {inside}, which the mount itself would write to")]
    PointInUpper {
        /// The mount point.
        point: PathBuf,
        /// The directory.
        inside: PathBuf,
    },
    /// A mount whose server is dead.
    #[error("{0}: a dead mount is in the way (`tarnfs umount {0}` or `umount -l {0}` clears it)")]
    Dead(PathBuf),
    /// /dev/fuse does not exist.
    #[error("/dev/fuse: {0} (`modprobe fuse` on the host; in a container, `--device /dev/fuse`)")]
    NoDevice(io::Error),
    /// /dev/fuse may not be opened.
    #[error("/dev/fuse: {0} (it must be readable and writable to whoever mounts)")]
    DeviceClosed(io::Error),
    /// Mounting is not permitted.
    #[error(
        "{point}: not permitted to mount here: {source} (be root, install fusermount3 from \
         package fuse3, or use a user namespace: unshare -rm)"
    )]
    NotPermitted {
        /// The mount point.
        point: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// fusermount3 refused.
    #[error("{point}: {source}")]
    Helper {
        /// The mount point.
        point: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The kernel engine cannot be used here; the text says what is missing.
    #[error("kernel engine: {0}")]
    KernelEngine(String),
    /// Something uses the mount.
    #[error("{0}: busy: a process works in it (`fuser -vm {0}` shows which; --lazy detaches it)")]
    Busy(PathBuf),
    /// Another mount lies below it.
    #[error("{point}: busy: {below} is mounted below it (umount that first; --lazy detaches both)")]
    Covered {
        /// The mount point.
        point: PathBuf,
        /// What is mounted below.
        below: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{point}: a mount of type {fs_type}, not of tarnfs (umount(8) ends it)")]
    NotOurs {
        /// The mount point.
        point: PathBuf,
        /// Its type.
        fs_type: String,
    },
    /// The server did not end.
    #[error("{0}: unmounted, but its server (pid {1}) has not ended; its last writes may be lost")]
    ServerRemains(PathBuf, u32),
    /// The kernel goes on serving what is unmounted here.
    #[error(
        "{0}: unmounted, but still in use: in another mount namespace (a container), or by a \
         process with a file open"
    )]
    StillUsed(PathBuf),
    /// The upper could not be flushed at the end.
    #[error("unmounted, but the last writes may be lost: {0}")]
    Finish(crate::overlay::Error),
    /// The system said no.
    #[error("{what}: {source}")]
    System {
        /// What was tried, with its object.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

impl MountError {
    /// For `map_err`.
    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
