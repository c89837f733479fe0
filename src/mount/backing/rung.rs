//! The ways in which the kernel can read an image by itself, the best one first.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::lower::Lower;
use crate::mount::kernel::version;
use crate::sys::bdi;
use crate::sys::loopdev::{LoopDevice, SECTOR};
use crate::sys::mount::{MountAttrs, Param, create_detached};

/// How the kernel reads an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rung {
    /// EROFS mounted from the files themselves.
    File,
    /// EROFS over loop devices over the files.
    Loop,
}

impl Rung {
    /// In one word, as in `TARNFS_BACKING` and the labels of metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "erofs",
            Self::Loop => "loop",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "EROFS from files",
            Self::Loop => "EROFS over loop devices",
        })
    }
}

/// Which rungs may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The best one that can be had.
    #[default]
    Best,
    /// This one or none.
    Only(Rung),
    /// None.
    None,
}

impl Choice {
    /// What the environment variable `TARNFS_BACKING` says: `erofs`, `loop` or `none`. For tests.
    #[must_use]
    pub fn of_environment() -> Self {
        match std::env::var_os("TARNFS_BACKING") {
            Some(word) if word == "erofs" => Self::Only(Rung::File),
            Some(word) if word == "loop" => Self::Only(Rung::Loop),
            Some(word) if word == "none" => Self::None,
            _ => Self::Best,
        }
    }

    /// The rungs, the best one first.
    pub(super) fn rungs(self) -> impl Iterator<Item = Rung> {
        [Rung::File, Rung::Loop]
            .into_iter()
            .filter(move |&rung| self.allows(rung))
    }

    /// Whether it may be this one.
    pub(super) fn allows(self, rung: Rung) -> bool {
        match self {
            Self::Best => true,
            Self::Only(only) => only == rung,
            Self::None => false,
        }
    }
}

/// A mount of the image by `rung`, attached nowhere, with the source that mountinfo shows of it; or
/// why there is none.
pub(super) fn create(lower: &Lower, rung: Rung) -> Result<(OwnedFd, OsString), String> {
    match rung {
        Rung::File => from_files(lower),
        Rung::Loop => over_loops(lower),
    }
}

fn from_files(lower: &Lower) -> Result<(OwnedFd, OsString), String> {
    if version() < Some((6, 12)) {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        return Err(format!(
            "needs Linux 6.12 or later, which mounts EROFS from a file (this is {release})"
        ));
    }
    let source = lower.index_path().as_os_str();
    if source.len() > STRING_MAX {
        return Err(format!(
            "the index's path is longer than the {STRING_MAX} bytes that the kernel takes"
        ));
    }
    // The very files that were compared with the index, whatever their paths lead to by now.
    let paths: Vec<OsString> = lower
        .blob_files()
        .map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()).into())
        .collect();
    let before = bdi::names(FROM_FILES);
    let mount = erofs(lower, source, &paths).map_err(|error| in_words(&error))?;
    if let Err(error) = before.and_then(|before| read_far_ahead(&before)) {
        tracing::debug!("read-ahead of EROFS stays as it is: {error}");
    }
    Ok((mount, source.to_owned()))
}

/// Bytes of a string that fsconfig(2) takes (fs/fsopen.c: `strndup_user(_value, 256)`).
const STRING_MAX: usize = 255;

/// How names of what is behind an EROFS from files begin (fs/super.c:super_setup_bdi()). They have
/// a number on top which nothing else tells.
const FROM_FILES: &str = "erofs-";

/// Pages come in pieces of at most this length, and one fault maps a piece. Four times as much was
/// no quicker, and slow where memory is full and such pieces are hard to find.
const READ_AHEAD_KIB: u32 = 512;

/// Has the kernel read further ahead than its 128 KiB in an EROFS that was not `before`; in none
/// where others have come at the same moment.
fn read_far_ahead(before: &BTreeSet<OsString>) -> io::Result<()> {
    let now = bdi::names(FROM_FILES)?;
    let mut new = now.difference(before);
    match (new.next(), new.next()) {
        (Some(name), None) => bdi::set_read_ahead(name, READ_AHEAD_KIB),
        _ => Err(io::Error::other("which one it is cannot be told")),
    }
}

fn over_loops(lower: &Lower) -> Result<(OwnedFd, OsString), String> {
    let words = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "there are no loop devices here".to_owned(),
        io::ErrorKind::PermissionDenied => NEEDS_ROOT.to_owned(),
        _ => error.to_string(),
    };
    let index = File::open(lower.index_path()).map_err(words)?;
    let mut devices = Vec::new();
    for file in std::iter::once(&index).chain(lower.blob_files()) {
        if file.metadata().map_err(words)?.len() % SECTOR != 0 {
            return Err("the last bytes of index or tar fill no block".to_owned());
        }
        devices.push(LoopDevice::over(file.as_fd()).map_err(words)?);
    }
    let paths: Vec<OsString> = devices.iter().map(|device| device.path().into()).collect();
    let (source, blobs) = paths.split_first().ok_or("no index")?;
    // EROFS has them open by now: they go when it goes.
    let mount = erofs(lower, source, blobs).map_err(|error| in_words(&error))?;
    Ok((mount, source.clone()))
}

fn erofs(lower: &Lower, source: &OsStr, devices: &[OsString]) -> io::Result<OwnedFd> {
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

const NEEDS_ROOT: &str = "needs root, outside of user namespaces";

/// What the kernel says of an EROFS that it does not mount.
pub(super) fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => NEEDS_ROOT.to_owned(),
        Some(libc::ENODEV) => {
            "this kernel has no EROFS (modprobe erofs, or CONFIG_EROFS_FS)".to_owned()
        }
        // What EROFS says of a file where it wants a block device (fs/erofs/super.c).
        Some(libc::ENOTBLK) => "index and tar must be plain files of a filesystem that is not \
            stacked, and the kernel one with CONFIG_EROFS_FS_BACKED_BY_FILE"
            .to_owned(),
        _ => error.to_string(),
    }
}
