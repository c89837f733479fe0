//! What a mount is compared with: a plain directory, or the kernel's overlayfs over one.

use std::ffi::{CString, OsStr};
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::common::{Sandbox, mounts_below, ok, skip};
use super::more::More;
use super::ops::Op;
use super::side::Outcome;

/// The directory of the unpacked tree in a sandbox.
pub(crate) const TREE: &str = "plain";

/// Where a comparison with overlayfs looks away: what it is, and the text of docs/SEMANTICS.md
/// that says so.
pub(crate) const KNOWN: &[(&str, &str)] = &[
    (
        "st_nlink of directories",
        "overlayfs says 1 for a merged directory.",
    ),
    (
        "d_ino",
        "overlayfs does not always give the same number for what it has copied up.",
    ),
    (
        "st_ctime of directories",
        "changes st_ctime of a directory too when something in it is copied.",
    ),
    ("holes", "overlayfs fills those that do not begin a MiB."),
    (
        "descriptors from before a copy-up",
        "overlayfs goes on showing the image's bytes to such a descriptor, against POSIX.",
    ),
    (
        "chown(2) of neither by others",
        "answers that it is done, and leaves set-user-ID where it is",
    ),
    (
        "what is read by the descriptor that cut a file of the image",
        "What open(2) with O_RDONLY and O_TRUNC opens",
    ),
    (
        "renames of directories of the image, so mounted with redirect_dir=on",
        "overlayfs gives EXDEV unless mounted with `redirect_dir=on`",
    ),
    (
        "hard links of the image, so mounted with index=on",
        "overlayfs without `index=on` tears them",
    ),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    Directory,
    Overlayfs,
    /// A mount whose files the kernel reads by itself: descriptors from before a copy-up go on with
    /// the image's bytes on both sides.
    OverlayfsByKernel,
    /// The same of the image's files; what is written comes as requests.
    OverlayfsByRequests,
    /// A mount whose files the kernel opens without asking.
    DirectoryUnopened,
}

/// The operation, whoever does it.
fn what(op: &Op) -> &Op {
    match op {
        Op::As(_, _, op) => op,
        op => op,
    }
}

fn allocates(op: &Op) -> bool {
    matches!(
        what(op),
        Op::Allocate(..) | Op::More(More::AllocateHeld(..))
    )
}

/// Whether an open(2) cuts a file that it does not open for writing.
fn only_cuts(flags: u32) -> bool {
    let flags = OFlags::from_bits_retain(flags);
    flags.contains(OFlags::TRUNC) && !flags.intersects(OFlags::RDWR | OFlags::WRONLY)
}

impl Beside {
    pub(crate) fn is_overlayfs(self) -> bool {
        matches!(
            self,
            Self::Overlayfs | Self::OverlayfsByKernel | Self::OverlayfsByRequests
        )
    }

    /// How the mount beside it is to serve.
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            // What of the image is open before it is written to goes on with what is written.
            Self::Directory => &["-o", "passthrough=2M"],
            Self::Overlayfs => &[],
            Self::OverlayfsByKernel => &["-o", "passthrough=all"],
            Self::OverlayfsByRequests => &["-o", "passthrough=all,upper_passthrough=off"],
            Self::DirectoryUnopened => &["-o", "noopen"],
        }
    }

    /// Whether the kernel has overlayfs.
    pub(crate) fn overlayfs_is_there() -> bool {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap();
        if known.lines().any(|line| line.ends_with("\toverlay")) {
            return true;
        }
        skip("needs overlayfs");
        false
    }

    /// Its root in a sandbox.
    pub(crate) fn root(self, sandbox: &Sandbox) -> PathBuf {
        match self {
            Self::Directory | Self::DirectoryUnopened => sandbox.at(TREE),
            Self::Overlayfs | Self::OverlayfsByKernel | Self::OverlayfsByRequests => {
                sandbox.at("overlay")
            }
        }
    }

    /// Mounts it, anew if it was mounted.
    pub(crate) fn remount(self, sandbox: &Sandbox) {
        if !self.is_overlayfs() {
            return;
        }
        let tree = sandbox.at(TREE);
        self.unmount(sandbox);
        let at = sandbox.dir("overlay");
        let upper = sandbox.at("their-upper");
        if !upper.exists() {
            // The root of an overlayfs is that of its upper.
            std::fs::create_dir(&upper).unwrap();
            ok(
                "touch",
                [OsStr::new("-r"), tree.as_os_str(), upper.as_os_str()],
            );
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on,index=on",
            tree.display(),
            upper.display(),
            sandbox.dir("their-work").display()
        );
        let options = CString::new(options).unwrap();
        mount(
            "overlay",
            &at,
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
    }

    pub(crate) fn unmount(self, sandbox: &Sandbox) {
        let at = sandbox.at("overlay");
        if self.is_overlayfs() && !mounts_below(&at).is_empty() {
            unmount(&at, UnmountFlags::empty()).unwrap();
        }
    }

    /// Whether an operation is left out: RENAME_WHITEOUT, which a local filesystem has.
    pub(crate) fn leaves_out(self, op: &Op) -> bool {
        !self.is_overlayfs() && matches!(what(op), Op::Rename(_, _, 4))
    }

    /// Whether both gave the same, as far as they should; `before` is what was done before.
    pub(crate) fn same(self, before: &[Op], op: &Op, want: Outcome, got: Outcome) -> bool {
        match what(op) {
            // Bytes of a descriptor from before; a link count of a directory.
            Op::ReadHeld if self == Self::Overlayfs => want.map(|_| ()) == got.map(|_| ()),
            Op::InHeldDir(4..) if self.is_overlayfs() => want.map(|_| ()) == got.map(|_| ()),
            Op::More(More::Open(_, flags)) if self.is_overlayfs() && only_cuts(*flags) => {
                want.map(|_| ()) == got.map(|_| ())
            }
            Op::More(More::ChownOne(_, None, None)) if want == Err(Errno::PERM) => {
                got == want || got == Ok(0)
            }
            Op::RemoveAcl(..) if self.is_overlayfs() && want == Err(Errno::NODATA) => got == Ok(0),
            Op::More(More::Seek(..) | More::SeekHeld(..)) => match self {
                Self::Overlayfs | Self::OverlayfsByKernel | Self::OverlayfsByRequests => true,
                // Whether a range that was allocated and never written is data is for the
                // filesystem to say, and ext4 says it by what lies in memory
                // (mm/filemap.c:mapping_seek_hole_data()).
                Self::Directory | Self::DirectoryUnopened => {
                    let found = |outcome| matches!(outcome, Ok(_) | Err(Errno::NXIO));
                    let allocated = before.iter().any(allocates);
                    want == got || allocated && found(want) && found(got)
                }
            },
            _ => want == got,
        }
    }
}
