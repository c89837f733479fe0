//! What is done: the table of works. Each one sets up, does the timed part, and looks whether it
//! was really done.

mod actors;
mod files;
mod names;
mod programs;
mod restore;
mod write;

use std::time::Instant;

use anyhow::Context;
use serde::Serialize;

use super::contenders::{Contender, How, Mount, Sources};
use super::facts::Facts;
use super::lab::Lab;
use super::slot::Slot;
use files::Via;

/// The directory in a mount that the works write to.
const OWN: &str = "tarnfs-bench";

/// Of programs in the image, and of chroot(8) itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What belongs together in a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Group {
    Start,
    Names,
    Read,
    Write,
    Change,
    Programs,
    Actors,
}

/// Who does a work, beside its baseline and [`OURS`], if nobody is named by `--against`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Who {
    /// All but these: they would do exactly what another one does.
    But(&'static [&'static str]),
    /// These: the others cannot do it.
    Only(&'static [&'static str]),
}

/// Where no file's bytes are read or written, it is tarnfs.
const OPENS: &[&str] = &["tarnfs-replies", "tarnfs-noopen"];
/// Where files are opened once and read long, that one is tarnfs-replies, and EROFS under overlayfs
/// is tarnfs-kernel, but for a superblock of its own in every mount.
const NOOPEN: &[&str] = &["tarnfs-noopen"];
const NOOPEN_AND_EROFS: &[&str] = &["tarnfs-noopen", "erofs"];
/// Where only the upper is worked on, it is overlayfs.
const EROFS: &[&str] = &["erofs"];
/// Both.
const OPENS_AND_EROFS: &[&str] = &["tarnfs-replies", "tarnfs-noopen", "erofs"];
/// Programs that read little for what they do.
const REPLIES_AND_EROFS: &[&str] = &["tarnfs-replies", "erofs"];

impl Work {
    /// Whether a contender is meant for it. `untar` is where a start from the tar alone is; from
    /// then on it is overlayfs, which takes part itself. Who was `named` takes part wherever it can.
    pub(super) fn is_for(&self, contender: &Contender, named: bool) -> bool {
        if contender.name == self.baseline {
            return true;
        }
        match self.who {
            _ if contender.how == How::Untar => false,
            Who::Only(names) => names.contains(&contender.name),
            Who::But(names) => named || !names.contains(&contender.name),
        }
    }
}

impl Group {
    pub(super) const ALL: [Self; 7] = [
        Self::Start,
        Self::Names,
        Self::Read,
        Self::Write,
        Self::Change,
        Self::Programs,
        Self::Actors,
    ];

    /// As `--only` takes it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Names => "names",
            Self::Read => "read",
            Self::Write => "write",
            Self::Change => "change",
            Self::Programs => "programs",
            Self::Actors => "actors",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Start => "Starting and ending",
            Self::Names => "Walking and opening",
            Self::Read => "Reading a large file",
            Self::Write => "Writing",
            Self::Change => "Changing names and copying up",
            Self::Programs => "Real programs",
            Self::Actors => "Many actors on one image",
        }
    }
}

/// One thing to do.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) group: Group,
    pub(super) what: &'static str,
    /// The contender that ratios are taken to.
    pub(super) baseline: &'static str,
    pub(super) who: Who,
    /// Whether it is done only where it is asked for.
    pub(super) extra: bool,
    /// Why this image, or this contender, cannot do it.
    pub(super) unfit: fn(&Facts, &Contender) -> Option<String>,
    pub(super) run: fn(&Stage<'_>) -> anyhow::Result<Sample>,
}

/// Where a work is done.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) lab: &'a Lab,
    pub(super) contender: &'a Contender,
}

impl Stage<'_> {
    fn slot(&self) -> anyhow::Result<Slot> {
        self.lab.slot()
    }

    /// For works that make or remove many files: what was done before them must not matter.
    fn slot_on_new_disk(&self) -> anyhow::Result<Slot> {
        self.lab.slot_on_new_disk()
    }

    fn mount(&self, slot: &Slot) -> anyhow::Result<Mount> {
        self.mount_of(slot, &self.lab.sources)
    }

    fn mount_large(&self, slot: &Slot) -> anyhow::Result<Mount> {
        self.mount_of(slot, &self.lab.large.sources)
    }

    fn mount_of(&self, slot: &Slot, sources: &Sources) -> anyhow::Result<Mount> {
        slot.mount(self.contender, sources)
    }
}

/// One number of a sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) value: f64,
}

/// What came of a work once.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) numbers: Vec<Number>,
    /// What was found there; must be the same with every contender.
    pub(super) found: u64,
}

/// The name of the only time of a sample.
pub(super) const TIME: &str = "time";

impl Sample {
    fn seconds(value: f64, found: u64) -> Self {
        Self::times([(TIME, value)], found)
    }

    /// Several times, in seconds.
    fn times<const N: usize>(times: [(&'static str, f64); N], found: u64) -> Self {
        let number = |(name, value)| Number {
            name,
            unit: "s",
            value,
        };
        Self {
            numbers: times.map(number).to_vec(),
            found,
        }
    }
}

/// Does it and gives the seconds that it took.
fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, f64)> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed().as_secs_f64()))
}

/// A directory for the works in a mount.
fn own_dir(mount: &Mount) -> anyhow::Result<std::path::PathBuf> {
    let dir = mount.at(OWN);
    std::fs::create_dir(&dir).context("making a directory in the mount")?;
    Ok(dir)
}

/// Every image and every contender will do.
fn any(_: &Facts, _: &Contender) -> Option<String> {
    None
}

macro_rules! works {
    ($($name:literal $group:ident $what:literal $baseline:literal $who:expr, $extra:literal
       $unfit:expr, $run:expr;)*) => {
        [$(Work {
            name: $name,
            group: Group::$group,
            what: $what,
            baseline: $baseline,
            who: $who,
            extra: !$extra.is_empty(),
            unfit: $unfit,
            run: $run,
        }),*]
    };
}

/// All of them, in the order that they are done and shown in.
pub(super) const ALL: [Work; 30] = works![
    "index" Start
        "tarnfs index and tar -x of the image, which is cached" "untar"
        Who::Only(&["tarnfs"]), "" any, restore::index;
    "first-restore" Start
        "from the tar alone to the end of the first program; caches empty" "untar"
        Who::Only(&["tarnfs", "tarnfs-kernel", "erofs"]), "" restore::unfit, restore::first;
    "later-restore" Start
        "index or tree are there; to the end of the first program" "overlayfs"
        Who::But(&[]), "" restore::unfit, restore::later;
    "mount-1" Start "one mount, one unmount" "overlayfs"
        Who::But(OPENS), "" any, |s| restore::mounts(s, 1);
    "mount-100" Start "100 mounts in a row, then 100 unmounts (--quick: 5)" "overlayfs"
        Who::But(OPENS), "" any, |s| restore::mounts(s, s.lab.sizes.mounts);

    "find" Names "lstat and readlink of everything, as find -ls has it; warm: a third time" "overlayfs"
        Who::But(OPENS), "" any, names::find;
    "small-files" Names "10,000 small files: lstat; open, read, close (--quick: 500)" "overlayfs"
        Who::But(&[]), "" any, files::small;

    "read" Read "512 MiB by read(2), 1 MiB each; pages of 4 KiB here and there" "overlayfs"
        Who::But(&[]), "" any, |s| files::big(s, Via::Read);
    "mmap" Read "512 MiB mapped, each page in order; pages here and there" "overlayfs"
        Who::But(NOOPEN_AND_EROFS), "" any, |s| files::big(s, Via::Map);

    "write-4k" Write "a new file of 64 MiB, 4 KiB a write, no fsync" "overlayfs"
        Who::But(EROFS), "" any, |s| write::new_file(s, 4 << 10, false);
    "write-64k" Write "a new file of 256 MiB, 64 KiB a write, no fsync" "overlayfs"
        Who::But(EROFS), "" any, |s| write::new_file(s, 64 << 10, false);
    "write-1m" Write "a new file of 256 MiB, 1 MiB a write, no fsync" "overlayfs"
        Who::But(EROFS), "" any, |s| write::new_file(s, 1 << 20, false);
    "write-4k-fsync" Write "a new file of 64 MiB, 4 KiB a write, one fsync at the end" "overlayfs"
        Who::But(EROFS), "extra" any, |s| write::new_file(s, 4 << 10, true);
    "write-1m-fsync" Write "a new file of 256 MiB, 1 MiB a write, one fsync at the end" "overlayfs"
        Who::But(EROFS), "extra" any, |s| write::new_file(s, 1 << 20, true);
    "overwrite" Write "a file that is there already, 64 KiB a write, no fsync" "overlayfs"
        Who::But(EROFS), "extra" any, write::again;
    "copy-up" Write "one byte written to a file of 100 MiB of the image; caches full" "overlayfs"
        Who::But(OPENS_AND_EROFS), "" any, write::copy_up;

    "create-10k" Change "10,000 files of 100 bytes made, renamed, removed; directories made (--quick: 500)"
        "overlayfs" Who::But(OPENS_AND_EROFS), "" any, names::create;
    "change-1k" Change "1,000 small files of the image: removed, renamed, chmod'ed, a third each (--quick: 48)"
        "overlayfs" Who::But(OPENS_AND_EROFS), "" any, names::change;
    "rm-rf" Change "a directory of the image (node_modules) removed with all in it" "overlayfs"
        Who::But(OPENS_AND_EROFS), "" names::unfit_tree, names::remove_tree;

    "node-webpack" Programs "node: require('webpack')" "overlayfs"
        Who::But(EROFS), "" programs::unfit_webpack, programs::webpack;
    "git-status" Programs "git status in a repository of the image, a second time" "overlayfs"
        Who::But(EROFS), "" programs::unfit_git, programs::git_status;
    "git-clone" Programs "git clone of a repository of the image; caches empty" "overlayfs"
        Who::But(REPLIES_AND_EROFS), "" programs::unfit_git, programs::git_clone;
    "npm-ci" Programs "npm ci, offline, from a cache in the image; caches empty" "overlayfs"
        Who::But(REPLIES_AND_EROFS), "" programs::unfit_npm, programs::npm_ci;
    "tar-x" Programs "tar -x of 50 MB in 2,500 files into the mount (--quick: 2 MB)" "overlayfs"
        Who::But(REPLIES_AND_EROFS), "" any, programs::unpack;
    "tar-c" Programs "tar -c of all of the mount to nowhere; caches empty" "overlayfs"
        Who::But(&[]), "extra" any, programs::pack;
    "du" Programs "du -s of all of the mount; caches empty" "overlayfs"
        Who::But(OPENS), "extra" any, programs::du;
    "grep" Programs "grep -r in the directory of rm-rf; caches full" "overlayfs"
        Who::But(&[]), "extra" names::unfit_tree, programs::grep;

    "actors-1" Actors "1 mount, which reads 512 MiB; caches empty" "overlayfs"
        Who::But(NOOPEN), "" any, |s| actors::read(s, 1);
    "actors-4" Actors "4 mounts, which read the same 512 MiB at once; caches empty" "overlayfs"
        Who::But(NOOPEN_AND_EROFS), "" any, |s| actors::read(s, 4);
    "actors-16" Actors "16 mounts, which read the same 512 MiB at once; caches empty" "overlayfs"
        Who::But(NOOPEN_AND_EROFS), "" any, |s| actors::read(s, 16);
];

/// The works that a word of `--only` means: a work, a group, or the beginning of names up to a
/// hyphen.
pub(super) fn named(word: &str) -> Vec<&'static Work> {
    let exact: Vec<_> = ALL.iter().filter(|work| work.name == word).collect();
    if !exact.is_empty() {
        return exact;
    }
    ALL.iter()
        .filter(|work| {
            work.group.name() == word
                || work
                    .name
                    .strip_prefix(word)
                    .is_some_and(|rest| rest.starts_with('-'))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_works() {
        let names = |word| named(word).iter().map(|w| w.name).collect::<Vec<_>>();
        assert_eq!(names("find"), ["find"]);
        assert_eq!(names("create"), ["create-10k"]);
        assert_eq!(names("mount"), ["mount-1", "mount-100"]);
        assert_eq!(names("write").len(), 7, "a group, not only what begins so");
        assert!(names("nothing").is_empty() && names("").is_empty());
    }

    #[test]
    fn names_are_said_once_and_baselines_exist() {
        let mut all: Vec<_> = ALL.iter().map(|work| work.name).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), ALL.len());
        for work in &ALL {
            assert!(super::super::contenders::named(work.baseline).is_some());
            let (Who::But(names) | Who::Only(names)) = work.who;
            for name in names {
                assert!(super::super::contenders::named(name).is_some(), "{name}");
            }
        }
    }
}
