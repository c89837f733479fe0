//! What all works share: the scratch directory, the image, its index and its extracted tree.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;
use tarnfs::store::Store;

use super::contenders::{Contender, How, Slot, Sources, take_off_below};
use super::facts::{self, Facts};
use super::image::{self, Amounts};

/// How much is done.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Sizes {
    #[serde(skip)]
    pub(super) image: Amounts,
    /// Small files that are opened, files that are made.
    pub(super) files: usize,
    /// Bytes that are read of the biggest file, at most.
    pub(super) read: u64,
    pub(super) written: u64,
    /// Files of 20 KiB that are unpacked.
    pub(super) unpacked: u64,
    /// Mounts in a row.
    pub(super) mounts: usize,
    /// Sizes of images, in entries, for growth.
    pub(super) growth: &'static [u64],
    pub(super) lookup: &'static [u64],
}

impl Sizes {
    pub(super) fn full() -> Self {
        Self {
            image: Amounts {
                small_files: 10_000,
                big_mib: 512,
                middle_mib: 100,
            },
            files: 10_000,
            read: 512 << 20,
            written: 256 << 20,
            unpacked: 2_500,
            mounts: 100,
            growth: &[10_000, 100_000, 500_000],
            lookup: &[10, 1_000, 100_000],
        }
    }

    pub(super) fn quick() -> Self {
        Self {
            image: Amounts {
                small_files: 1_000,
                big_mib: 16,
                middle_mib: 4,
            },
            files: 500,
            read: 16 << 20,
            written: 8 << 20,
            unpacked: 100,
            mounts: 5,
            growth: &[1_000, 5_000],
            lookup: &[10, 1_000],
        }
    }
}

/// The place of all works. All of it goes when it is dropped.
#[derive(Debug)]
pub(super) struct Lab {
    pub(super) sources: Sources,
    pub(super) facts: Facts,
    pub(super) sizes: Sizes,
    /// Last: it is removed when nothing in it is mounted any more.
    dir: tempfile::TempDir,
}

/// A scratch directory in `within`.
pub(super) fn scratch(within: &Path) -> anyhow::Result<tempfile::TempDir> {
    let within = within
        .canonicalize()
        .with_context(|| within.display().to_string())?;
    // They mean something to overlayfs and to fuse-overlayfs.
    if within.to_string_lossy().contains([':', ',', '\\']) {
        bail!(
            "--dir {}: its path must be without : , and \\",
            within.display()
        );
    }
    tempfile::Builder::new()
        .prefix("tarnfs-bench-")
        .tempdir_in(&within)
        .with_context(|| within.display().to_string())
}

impl Lab {
    /// Makes what is needed; `tell` hears of what takes long.
    pub(super) fn new(
        dir: tempfile::TempDir,
        tar: Option<&Path>,
        sizes: Sizes,
        command: Option<&str>,
        tell: &dyn Fn(&str),
    ) -> anyhow::Result<Self> {
        let at = |name: &str| dir.path().join(name);
        let tar = match tar {
            Some(tar) => tar
                .canonicalize()
                .with_context(|| tar.display().to_string())?,
            None => {
                tell("making an image");
                image::make(&at("image.tar"), sizes.image)?;
                at("image.tar")
            }
        };
        let mut sources = Sources {
            tar,
            store: at("store"),
            tree: at("tree"),
            index: PathBuf::new(),
            blobs: Vec::new(),
        };
        tell("indexing the image");
        let image = Store::open(&sources.store).tar_image(&sources.tar, &mut |_| {})?;
        sources.take_index(image.index_path(), image.blobs());
        let facts = facts::look(&image.lower()?, sizes.files, command)?;
        Ok(Self {
            sources,
            facts,
            sizes,
            dir,
        })
    }

    /// The directory of everything.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Extracts the tree, if one of `contenders` needs it.
    pub(super) fn extract(
        &self,
        contenders: &[&Contender],
        tell: &dyn Fn(&str),
    ) -> anyhow::Result<()> {
        let needed = |c: &&&Contender| matches!(c.how, How::Overlayfs | How::FuseOverlayfs);
        if contenders.iter().any(|c| needed(&c)) {
            tell("extracting the image");
            self.sources.extract()?;
        }
        Ok(())
    }

    /// Fresh directories for a mount.
    pub(super) fn slot(&self) -> anyhow::Result<Slot> {
        Slot::new(self.path())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        take_off_below(self.path());
    }
}

/// Writes everything out and empties the caches of pages, names and inodes
/// (proc_sys_vm(5), drop_caches).
pub(super) fn drop_caches() -> anyhow::Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("/proc/sys/vm/drop_caches")
}
