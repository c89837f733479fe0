//! The ways in which the kernel can read an image by itself, the best one first.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::lower::Lower;
use crate::mount::kernel::version;
use crate::sys::mount::{MountAttrs, Param, create_detached};

/// How the kernel reads an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// EROFS mounted from the files themselves.
    File,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "EROFS from files",
        })
    }
}

/// A mount of the image by `rung`, attached nowhere; or why there is none.
pub(super) fn create(lower: &Lower, rung: Rung) -> Result<OwnedFd, String> {
    match rung {
        Rung::File => from_files(lower),
    }
}

fn from_files(lower: &Lower) -> Result<OwnedFd, String> {
    if version() < Some((6, 12)) {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        return Err(format!(
            "needs Linux 6.12 or later, which mounts EROFS from a file (this is {release})"
        ));
    }
    // The very files that were compared with the index, whatever their paths lead to by now.
    let paths: Vec<String> = lower
        .blob_files()
        .map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()))
        .collect();
    erofs(lower, lower.index_path().as_os_str(), &paths).map_err(|error| in_words(&error))
}

fn erofs(lower: &Lower, source: &std::ffi::OsStr, devices: &[String]) -> io::Result<OwnedFd> {
    let mut params = vec![Param::String("source", source.into()), Param::Flag("ro")];
    let devices = devices.iter();
    params.extend(devices.map(|path| Param::String("device", path.into())));
    let mut attrs = MountAttrs::default();
    attrs.set(MountAttrs::RDONLY);
    let mount = create_detached("erofs", &params, attrs, || Ok(()))?;
    // Not between the comparison and the mount either.
    lower.check_blobs().map_err(io::Error::other)?;
    Ok(mount)
}

/// What the kernel says of an EROFS that it does not mount.
fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "needs root, outside of user namespaces".to_owned(),
        Some(libc::ENODEV) => {
            "this kernel has no EROFS (modprobe erofs, or CONFIG_EROFS_FS)".to_owned()
        }
        // What EROFS says of a file where it wants a block device.
        Some(libc::ENOTBLK) => {
            "this kernel mounts no files (CONFIG_EROFS_FS_BACKED_BY_FILE)".to_owned()
        }
        _ => format!(
            "{error} (index and tar must be plain files of a filesystem that is not stacked)"
        ),
    }
}
