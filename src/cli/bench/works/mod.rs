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

use super::contenders::{Contender, How, Mount, Slot, Sources};
use super::facts::Facts;
use super::lab::Lab;
use files::{Pattern, State, Via};

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

impl Work {
    /// Whether a contender is meant for it. `untar` is where a start from the tar alone is; from
    /// then on it is overlayfs, which takes part itself.
    pub(super) fn is_for(&self, contender: &Contender) -> bool {
        contender.how != How::Untar || self.baseline == contender.name
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

    fn mount(&self, slot: &Slot) -> anyhow::Result<Mount> {
        self.mount_of(slot, &self.lab.sources)
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

impl Sample {
    fn seconds(value: f64, found: u64) -> Self {
        let time = Number {
            name: "time",
            unit: "s",
            value,
        };
        Self {
            numbers: vec![time],
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
    ($($name:literal $group:ident $what:literal $baseline:literal $unfit:expr, $run:expr;)*) => {
        [$(Work {
            name: $name,
            group: Group::$group,
            what: $what,
            baseline: $baseline,
            unfit: $unfit,
            run: $run,
        }),*]
    };
}

/// All of them, in the order that they are done and shown in.
pub(super) const ALL: [Work; 49] = works![
    "first-restore" Start
        "from the tar alone to the end of the first program; caches empty" "untar"
        restore::unfit_first, restore::first;
    "later-restore-cold" Start
        "index or tree are there; caches empty" "overlayfs"
        restore::unfit, |s| restore::later(s, true);
    "later-restore" Start
        "index or tree are there; caches full" "overlayfs"
        restore::unfit, |s| restore::later(s, false);
    "mount" Start "one mount" "overlayfs" any, |s| restore::mounts(s, false, false);
    "unmount" Start "one unmount" "overlayfs" any, |s| restore::mounts(s, false, true);
    "mount-100" Start "100 mounts in a row, which stay (--quick: 5)" "overlayfs"
        any, |s| restore::mounts(s, true, false);
    "unmount-100" Start "100 mounts are there; 100 unmounts in a row (--quick: 5)" "overlayfs"
        any, |s| restore::mounts(s, true, true);

    "find-cold" Names "lstat and readlink of everything; caches empty" "overlayfs"
        any, |s| names::find(s, true);
    "find-warm" Names "lstat and readlink of everything, a second time" "overlayfs"
        any, |s| names::find(s, false);
    "small-open-cold" Names "small files: open, read, close, each; caches empty" "overlayfs"
        any, |s| files::small(s, true);
    "small-open-hot" Names "small files: open, read, close, each, a second time" "overlayfs"
        any, |s| files::small(s, false);

    "read-seq-cold" Read "read(2) in order, 1 MiB each; caches empty" "overlayfs"
        any, |s| files::big(s, Pattern::Sequential, State::Cold, Via::Read);
    "read-seq-first" Read "read(2) in order; the tar or tree is cached, the mount is new" "overlayfs"
        any, |s| files::big(s, Pattern::Sequential, State::First, Via::Read);
    "read-seq-hot" Read "read(2) in order, a second time" "overlayfs"
        any, |s| files::big(s, Pattern::Sequential, State::Hot, Via::Read);
    "read-random-cold" Read "read(2) of 4 KiB here and there; caches empty" "overlayfs"
        any, |s| files::big(s, Pattern::Random, State::Cold, Via::Read);
    "read-random-first" Read "read(2) of 4 KiB here and there; the tar or tree is cached" "overlayfs"
        any, |s| files::big(s, Pattern::Random, State::First, Via::Read);
    "read-random-hot" Read "read(2) of 4 KiB here and there, a second time" "overlayfs"
        any, |s| files::big(s, Pattern::Random, State::Hot, Via::Read);
    "mmap-seq-cold" Read "mmap(2), each page in order; caches empty" "overlayfs"
        any, |s| files::big(s, Pattern::Sequential, State::Cold, Via::Map);
    "mmap-seq-first" Read "mmap(2), each page in order; the tar or tree is cached" "overlayfs"
        any, |s| files::big(s, Pattern::Sequential, State::First, Via::Map);
    "mmap-seq-hot" Read "mmap(2), each page in order, a second time" "overlayfs"
        any, |s| files::big(s, Pattern::Sequential, State::Hot, Via::Map);
    "mmap-random-first" Read "mmap(2), pages here and there; the tar or tree is cached" "overlayfs"
        any, |s| files::big(s, Pattern::Random, State::First, Via::Map);
    "mmap-random-hot" Read "mmap(2), pages here and there, a second time" "overlayfs"
        any, |s| files::big(s, Pattern::Random, State::Hot, Via::Map);

    "write-4k" Write "a new file, 4 KiB a write, no fsync" "overlayfs"
        any, |s| write::new_file(s, 4 << 10, false);
    "write-64k" Write "a new file, 64 KiB a write, no fsync" "overlayfs"
        any, |s| write::new_file(s, 64 << 10, false);
    "write-1m" Write "a new file, 1 MiB a write, no fsync" "overlayfs"
        any, |s| write::new_file(s, 1 << 20, false);
    "write-4k-fsync" Write "a new file, 4 KiB a write, one fsync at the end" "overlayfs"
        any, |s| write::new_file(s, 4 << 10, true);
    "write-1m-fsync" Write "a new file, 1 MiB a write, one fsync at the end" "overlayfs"
        any, |s| write::new_file(s, 1 << 20, true);
    "overwrite-hot" Write "a file that is there already, 64 KiB a write, no fsync" "overlayfs"
        any, write::again;

    "create-10k" Change "10,000 new files of 100 bytes in one directory (--quick: 500)" "overlayfs"
        any, names::create;
    "mkdir-10k" Change "10,000 new directories (--quick: 500)" "overlayfs" any, names::mkdir;
    "rename-10k" Change "10,000 new files renamed (--quick: 500)" "overlayfs" any, names::rename;
    "unlink-10k" Change "10,000 new files removed (--quick: 500)" "overlayfs" any, names::unlink;
    "unlink-image" Change "small files of the image removed" "overlayfs"
        any, names::unlink_image;
    "rename-image" Change "small files of the image renamed, which copies them up" "overlayfs"
        any, names::rename_image;
    "chmod-image" Change "small files of the image chmod'ed, which copies them up" "overlayfs"
        any, names::chmod_image;
    "copy-up" Change "one byte written to a large file of the image; caches full" "overlayfs"
        any, write::copy_up;
    "rm-rf" Change "a directory of the image removed with all in it" "overlayfs"
        names::unfit_tree, names::remove_tree;

    "node-webpack" Programs "node: require('webpack'); caches full" "overlayfs"
        programs::unfit_webpack, programs::webpack;
    "node-webpack-cold" Programs "node: require('webpack'); caches empty" "overlayfs"
        programs::unfit_webpack, programs::webpack_cold;
    "git-status" Programs "git status in a repository of the image" "overlayfs"
        programs::unfit_git, programs::git_status;
    "git-clone" Programs "git clone of a repository of the image" "overlayfs"
        programs::unfit_git, programs::git_clone;
    "npm-ci" Programs "npm ci, offline, from a cache in the image" "overlayfs"
        programs::unfit_npm, programs::npm_ci;
    "tar-x" Programs "tar -x of 50 MB in 2,500 files into the mount (--quick: 2 MB)" "overlayfs"
        any, programs::unpack;
    "tar-c" Programs "tar -c of all of the mount to nowhere; caches empty" "overlayfs"
        any, programs::pack;
    "du" Programs "du -s of all of the mount; caches empty" "overlayfs" any, programs::du;
    "grep" Programs "grep -r in the small files' directory; caches full" "overlayfs"
        any, programs::grep;

    "actors-1" Actors "1 mount, which reads the largest file" "overlayfs"
        any, |s| actors::read(s, 1);
    "actors-4" Actors "4 mounts, which read the same file at once" "overlayfs"
        any, |s| actors::read(s, 4);
    "actors-16" Actors "16 mounts, which read the same file at once" "overlayfs"
        any, |s| actors::read(s, 16);
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
        assert_eq!(names("find-warm"), ["find-warm"]);
        assert_eq!(names("create"), ["create-10k"]);
        assert_eq!(names("mount"), ["mount"], "the work, not what begins so");
        assert_eq!(names("names").len(), 4, "a group");
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
        }
    }
}
