//! Directories of one mount, and a filesystem of its own under them where that matters.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::child;
use super::contenders::take_off_below;

/// Programs that make a filesystem.
const MKFS: &str = "mkfs.ext4";

/// How large a filesystem of one mount is, and how many inodes it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

/// Directories of one mount: `upper`, `work`, `mnt`, `erofs`. Removed when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    base: PathBuf,
    dir: tempfile::TempDir,
}

impl Slot {
    /// On the filesystem of the scratch directory.
    pub(super) fn new(within: &Path) -> anyhow::Result<Self> {
        let dir = Self::dir(within)?;
        let base = dir.path().to_owned();
        Self { base, dir }.filled()
    }

    /// On a new ext4 in a file. One that is in use shows what was done on it before: for minutes,
    /// ext4 does not give out inodes that were removed (fs/ext4/ialloc.c:recently_deleted()), and
    /// looks for others the longer, the more of them there are.
    pub(super) fn on_new_disk(within: &Path, disk: Disk) -> anyhow::Result<Self> {
        let dir = Self::dir(within)?;
        let (image, base) = (dir.path().join("disk.img"), dir.path().join("disk"));
        std::fs::create_dir(&base)?;
        // Dropped from here on, it is taken off.
        let slot = Self { base, dir };
        std::fs::File::create_new(&image)?.set_len(disk.bytes)?;
        child::run(
            Command::new(MKFS)
                .args(["-q", "-F", "-E"])
                .arg("lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0")
                .args(["-N", &disk.inodes.to_string()])
                .arg(&image),
        )?;
        child::run(
            Command::new("mount")
                // No thread of the kernel is to fill inode tables meanwhile.
                .args(["-t", "ext4", "-o", "loop,noinit_itable"])
                .arg(&image)
                .arg(&slot.base),
        )?;
        slot.filled()
    }

    fn dir(within: &Path) -> anyhow::Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix("slot-")
            .tempdir_in(within)
            .with_context(|| within.display().to_string())
    }

    fn filled(self) -> anyhow::Result<Self> {
        for name in ["upper", "work", "mnt", "erofs"] {
            std::fs::create_dir(self.at(name))?;
        }
        Ok(self)
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        take_off_below(self.dir.path());
    }
}
