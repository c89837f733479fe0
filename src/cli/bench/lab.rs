//! What all works share: the scratch directory, the image, its index and its extracted tree.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use tarnfs::store::Store;

use super::contenders::{Contender, How, Sources, take_off_below};
use super::facts::{self, Facts};
use super::image::{self, Amounts};
use super::scratch::Scratch;
use super::slot::{Disk, Slot};

/// How much is done.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Sizes {
    #[serde(skip)]
    pub(super) image: Amounts,
    /// Small files that are opened, files that are made.
    pub(super) files: usize,
    /// Bytes that are written, and those that are written in small pieces.
    pub(super) written: u64,
    pub(super) trickled: u64,
    /// Pages that are read here and there with empty caches, and with full ones.
    pub(super) random_cold: u64,
    pub(super) random_hot: u64,
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
            written: 256 << 20,
            trickled: 64 << 20,
            random_cold: 1_024,
            random_hot: 32_768,
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
            written: 8 << 20,
            trickled: 2 << 20,
            random_cold: 256,
            random_hot: 1_024,
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
    /// The image of large files.
    pub(super) large: Large,
    pub(super) sizes: Sizes,
    /// Whether a mount can have a filesystem of its own.
    new_disks: bool,
    /// Last: it is removed when nothing in it is mounted any more.
    dir: Scratch,
}

/// An image of two large files, which no image can be relied on to have.
#[derive(Debug)]
pub(super) struct Large {
    pub(super) sources: Sources,
    pub(super) big_len: u64,
    /// Where the bytes of the bigger one are: number of the blob, offset, length.
    pub(super) big_runs: Vec<(usize, u64, u64)>,
    pub(super) middle_len: u64,
}

impl Large {
    fn new(sources: Sources, amounts: Amounts) -> anyhow::Result<Self> {
        let mut sources = sources;
        image::large(&sources.tar, amounts)?;
        let image = Store::open(&sources.store).tar_image(&sources.tar, &mut |_| {})?;
        sources.take_index(image.index_path(), image.blobs().to_vec());
        let lower = image.lower()?;
        let big = lower.resolve(image::BIG.as_bytes(), true)?;
        Ok(Self {
            sources,
            big_len: amounts.big_mib << 20,
            big_runs: facts::runs(&lower, big.nid)?,
            middle_len: amounts.middle_mib << 20,
        })
    }
}

impl Lab {
    /// Makes what is needed; `tell` hears of what takes long.
    pub(super) fn new(
        dir: Scratch,
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
                image::small(&at("image.tar"), sizes.image)?;
                at("image.tar")
            }
        };
        let from = |tar, tree: &str| Sources {
            tar,
            store: at("store"),
            tree: at(tree),
            index: PathBuf::new(),
            blobs: Vec::new(),
        };
        let mut sources = from(tar, "tree");
        tell("indexing the image");
        let image = Store::open(&sources.store).tar_image(&sources.tar, &mut |_| {})?;
        sources.take_index(image.index_path(), image.blobs().to_vec());
        let facts = facts::look(&image.lower()?, sizes.files, command)?;
        tell("making an image of large files");
        let large = Large::new(from(at("large.tar"), "large"), sizes.image)?;
        let mut lab = Self {
            sources,
            facts,
            large,
            sizes,
            new_disks: true,
            dir,
        };
        if let Err(error) = lab.slot_on_new_disk() {
            tracing::debug!("no filesystems of their own for mounts: {error:#}");
            lab.new_disks = false;
        }
        Ok(lab)
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
            tell("extracting the images");
            self.sources.extract()?;
            self.large.sources.extract()?;
        }
        Ok(())
    }

    /// Fresh directories for a mount.
    pub(super) fn slot(&self) -> anyhow::Result<Slot> {
        Slot::new(self.path())
    }

    /// Fresh directories for a mount on a filesystem that nothing was done on yet, if that can be.
    pub(super) fn slot_on_new_disk(&self) -> anyhow::Result<Slot> {
        if !self.new_disks {
            return self.slot();
        }
        let tar = std::fs::metadata(&self.sources.tar)?.len();
        let disk = Disk {
            bytes: (4 << 30) + 2 * tar,
            inodes: 2 * self.facts.entries + 200_000,
        };
        Slot::on_new_disk(self.path(), disk)
    }

    /// Whether it can.
    pub(super) fn has_new_disks(&self) -> bool {
        self.new_disks
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
