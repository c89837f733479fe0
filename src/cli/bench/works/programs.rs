//! Programs that people run: those of the image with the mount as their root, or the machine's own
//! on the mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::super::child;
use super::super::contenders::{Contender, Mount};
use super::super::facts::Facts;
use super::super::lab::drop_caches;
use super::super::random::Random;
use super::super::slot::Slot;
use super::{PATH, Sample, Stage, any, names, own_dir, timed};

/// Length of each file of the tar that is unpacked in a mount.
const UNPACKED_BYTES: u64 = 20 << 10;

fn missing(what: &str) -> Option<String> {
    Some(format!("the image has no {what}"))
}

pub(super) fn unfit_webpack(facts: &Facts, contender: &Contender) -> Option<String> {
    if !facts.node {
        missing("node")
    } else if facts.webpack.is_none() {
        missing("node_modules/webpack")
    } else {
        any(facts, contender)
    }
}

pub(super) fn unfit_git(facts: &Facts, contender: &Contender) -> Option<String> {
    if !facts.git {
        missing("git")
    } else if facts.repository.is_none() {
        missing("git repository")
    } else {
        any(facts, contender)
    }
}

pub(super) fn unfit_npm(facts: &Facts, contender: &Contender) -> Option<String> {
    if !facts.npm {
        missing("npm")
    } else if facts.npm_project.is_none() {
        missing("package-lock.json")
    } else if facts.npm_cache.is_none() {
        missing("cache of npm (_cacache)")
    } else {
        any(facts, contender)
    }
}

/// A path of the image as a program in it says it.
fn inside(path: Option<&PathBuf>) -> anyhow::Result<String> {
    let path = path.context("not in the image")?;
    Ok(format!("/{}", path.display()))
}

/// A mount that programs of the image run in, with it as their root.
fn mounted(stage: &Stage<'_>, slot: &Slot) -> anyhow::Result<Mount> {
    let mut mount = stage.mount(slot)?;
    mount.with_system()?;
    own_dir(&mount)?;
    Ok(mount)
}

/// Runs a program of the image; the seconds that it took.
fn in_image(mount: &Mount, words: &[&str]) -> anyhow::Result<f64> {
    let mut chroot = Command::new("chroot");
    chroot.arg(mount.root()).args(words).env_clear();
    chroot.env("PATH", PATH);
    chroot.env("HOME", "/root").env("LC_ALL", "C");
    // The repository may be another user's.
    chroot.env("GIT_CONFIG_COUNT", "1");
    chroot.env("GIT_CONFIG_KEY_0", "safe.directory");
    chroot.env("GIT_CONFIG_VALUE_0", "*");
    Ok(timed(|| child::run(&mut chroot))?.1)
}

pub(super) fn webpack(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let dir = inside(stage.lab.facts.webpack.as_ref())?;
    let script = format!("require({:?})", format!("{dir}/node_modules/webpack"));
    let words = ["node", "-e", &script];
    let slot = stage.slot()?;
    let mount = mounted(stage, &slot)?;
    drop_caches()?;
    let cold = in_image(&mount, &words)?;
    let hot = in_image(&mount, &words)?;
    mount.finish()?;
    Ok(Sample::times([("cold", cold), ("hot", hot)], 0))
}

pub(super) fn git_status(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let dir = inside(stage.lab.facts.repository.as_ref())?;
    let words = ["git", "-C", &dir, "status", "--porcelain"];
    let slot = stage.slot()?;
    let mount = mounted(stage, &slot)?;
    in_image(&mount, &words)?;
    let seconds = in_image(&mount, &words)?;
    mount.finish()?;
    Ok(Sample::seconds(seconds, 0))
}

pub(super) fn git_clone(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let dir = inside(stage.lab.facts.repository.as_ref())?;
    let to = format!("/{}/clone", super::OWN);
    let slot = stage.slot_on_new_disk()?;
    let mount = mounted(stage, &slot)?;
    drop_caches()?;
    let words = ["git", "clone", "--quiet", "--no-hardlinks", &dir, &to];
    let seconds = in_image(&mount, &words)?;
    let found = names::walk(&mount.at(&to))?.entries;
    mount.finish()?;
    Ok(Sample::seconds(seconds, found))
}

pub(super) fn npm_ci(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let facts = &stage.lab.facts;
    let (project, cache) = (
        inside(facts.npm_project.as_ref())?,
        inside(facts.npm_cache.as_ref())?,
    );
    let words = [
        "npm",
        "ci",
        "--offline",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--prefix",
        &project,
        "--cache",
        &cache,
    ];
    let slot = stage.slot_on_new_disk()?;
    let mount = mounted(stage, &slot)?;
    drop_caches()?;
    let seconds = in_image(&mount, &words)?;
    let installed = mount.at(&project).join("node_modules");
    let found = names::walk(&installed).context("what npm has installed")?;
    mount.finish()?;
    if found.entries == 0 {
        bail!("npm has installed nothing");
    }
    Ok(Sample::seconds(seconds, found.entries))
}

/// A program of this machine on a fresh mount.
fn on_mount(
    stage: &Stage<'_>,
    cold: bool,
    program: impl Fn(&Mount) -> Command,
) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    if cold {
        drop_caches()?;
    } else {
        child::run(&mut program(&mount))?;
    }
    let ((), seconds) = timed(|| child::run(&mut program(&mount)))?;
    mount.finish()?;
    Ok(Sample::seconds(seconds, 0))
}

pub(super) fn pack(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    on_mount(stage, true, |mount| {
        let mut shell = Command::new("sh");
        // Through a pipe: GNU tar reads no file that it would write to /dev/null.
        shell.args(["-c", "tar -cf - -C \"$1\" . | cat >/dev/null", "sh"]);
        shell.arg(mount.root());
        shell
    })
}

pub(super) fn du(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    on_mount(stage, true, |mount| {
        let mut du = Command::new("du");
        du.arg("-s").arg(mount.root());
        du
    })
}

pub(super) fn grep(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let tree = stage.lab.facts.tree.clone().unwrap_or_default();
    on_mount(stage, false, |mount| {
        let mut shell = Command::new("sh");
        // grep finds nothing, which is no failure: 1.
        let script = "grep -rq tarnfs-bench-is-nowhere \"$1\"; test $? -eq 1";
        shell.args(["-c", script, "sh"]).arg(mount.at(&tree));
        shell
    })
}

/// `tar -x` of a tar that is in memory, into the mount.
pub(super) fn unpack(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let slot = stage.slot_on_new_disk()?;
    let mount = stage.mount(&slot)?;
    let dir = own_dir(&mount)?;
    let files = stage.lab.sizes.unpacked;
    let tar = stage.lab.path().join("payload.tar");
    if !tar.exists() {
        write_payload(&tar, files)?;
    }
    // In memory with everybody.
    std::fs::read(&tar)?;
    let mut command = Command::new("tar");
    command.arg("-xf").arg(&tar).arg("-C").arg(&dir);
    let ((), seconds) = timed(|| child::run(&mut command))?;
    let mut found = 0;
    for entry in std::fs::read_dir(&dir)? {
        found += entry?.metadata()?.len();
    }
    mount.finish()?;
    if found != files * UNPACKED_BYTES {
        bail!("{found} bytes were unpacked");
    }
    Ok(Sample::seconds(seconds, found))
}

fn write_payload(path: &Path, files: u64) -> anyhow::Result<()> {
    let mut out = tar::Builder::new(std::io::BufWriter::new(std::fs::File::create(path)?));
    let mut data = vec![0; usize::try_from(UNPACKED_BYTES)?];
    let mut random = Random::new(5);
    for n in 0..files {
        random.fill(&mut data);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(UNPACKED_BYTES);
        out.append_data(&mut header, format!("file{n:05}"), data.as_slice())?;
    }
    Ok(out.into_inner()?.into_inner()?.sync_all()?)
}
