//! From nothing to a program that has run; mounting and unmounting.

use std::process::Command;

use anyhow::Context;

use super::super::child;
use super::super::contenders::{Contender, How, Mount, Sources};
use super::super::facts::Facts;
use super::super::lab::drop_caches;
use super::super::slot::Slot;
use super::super::stats::float;
use super::{Number, PATH, Sample, Stage, any, timed};

const NO_PROGRAM: &str = "the image has none of node, sh, busybox, true; name one with --command";

pub(super) fn unfit(facts: &Facts, contender: &Contender) -> Option<String> {
    if facts.command.is_empty() {
        return Some(NO_PROGRAM.to_owned());
    }
    any(facts, contender)
}

/// The program of `--command`, with the mount as its root.
fn program(facts: &Facts, mount: &mut Mount) -> anyhow::Result<()> {
    mount.with_system()?;
    let mut chroot = Command::new("chroot");
    chroot.arg(mount.root()).args(&facts.command);
    child::run(chroot.env_clear().env("PATH", PATH))
}

/// Only the tar is there.
pub(super) fn first(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let slot = stage.slot_on_new_disk()?;
    let mut sources = Sources {
        store: slot.at("store"),
        tree: slot.at("tree"),
        index: slot.at("index.erofs"),
        blobs: Vec::new(),
        ..stage.lab.sources.clone()
    };
    drop_caches()?;
    let (mount, seconds) = timed(|| {
        match stage.contender.how {
            How::Untar => sources.extract()?,
            How::Erofs => sources.write_index()?,
            How::Tarnfs { .. } | How::Overlayfs | How::FuseOverlayfs => {}
        }
        let mut mount = stage.mount_of(&slot, &sources)?;
        program(&stage.lab.facts, &mut mount)?;
        Ok(mount)
    })?;
    mount.finish()?;
    Ok(Sample::seconds(seconds, 0))
}

/// The index or the tree is there: with empty caches, a second time, and beside another mount of
/// the image that has run the program, too.
pub(super) fn later(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    drop_caches()?;
    let cold = once(stage, &slot)?;
    let slot = stage.slot()?;
    let warm = once(stage, &slot)?;
    let another = stage.slot()?;
    let mut beside = stage.mount(&another)?;
    program(&stage.lab.facts, &mut beside)?;
    let slot = stage.slot()?;
    let in_use = once(stage, &slot)?;
    beside.finish()?;
    Ok(Sample::times(
        [("cold", cold), ("warm", warm), ("image in use", in_use)],
        0,
    ))
}

fn once(stage: &Stage<'_>, slot: &Slot) -> anyhow::Result<f64> {
    let (mount, seconds) = timed(|| {
        let mut mount = stage.mount(slot)?;
        program(&stage.lab.facts, &mut mount)?;
        Ok(mount)
    })?;
    mount.finish()?;
    Ok(seconds)
}

/// Mounts, one or many in a row, and takes them off again.
pub(super) fn mounts(stage: &Stage<'_>, number: usize) -> anyhow::Result<Sample> {
    let slots = (0..number)
        .map(|_| stage.slot())
        .collect::<anyhow::Result<Vec<_>>>()?;
    let (mut mounts, mounting) = timed(|| {
        slots
            .iter()
            .map(|slot| {
                child::check_interrupt()?;
                stage.mount(slot)
            })
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut found = 0;
    let file = stage.lab.facts.small.first().context("no file")?;
    for mount in &mounts {
        // The image is really there.
        let metadata = std::fs::metadata(mount.at(file)).context("looking into the mount")?;
        found += metadata.len();
    }
    let ((), unmounting) = timed(|| {
        mounts.iter_mut().try_for_each(|mount| {
            child::check_interrupt()?;
            mount.take_off()
        })
    })?;
    for mount in mounts {
        mount.finish()?;
    }
    Ok(Sample::times(
        [("mount", mounting), ("unmount", unmounting)],
        found,
    ))
}

/// What has to be done once for an image: `tarnfs index`, or `tar -x`. Then once more, for the
/// memory that it takes.
pub(super) fn index(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let slot = stage.slot_on_new_disk()?;
    let sources = Sources {
        tree: slot.at("tree"),
        index: slot.at("index.erofs"),
        ..stage.lab.sources.clone()
    };
    // In memory with both.
    std::io::copy(
        &mut std::fs::File::open(&sources.tar)?,
        &mut std::io::sink(),
    )?;
    if stage.contender.how == How::Untar {
        let ((), seconds) = timed(|| sources.extract())?;
        return Ok(Sample::seconds(seconds, 0));
    }
    let index = || sources.index_command();
    let ((), seconds) = timed(|| child::run(&mut index()))?;
    let length = std::fs::metadata(&sources.index)?.len();
    std::fs::remove_file(&sources.index)?;
    let peak = child::peak_mib(&mut index())?;
    let length = float(length) / float(1 << 20);
    let mut sample = Sample::seconds(seconds, 0);
    for (name, unit, value) in [
        ("peak memory", "MiB", peak),
        ("length of the index", "MiB", length),
        ("peak memory to the index's length", "×", peak / length),
    ] {
        sample.numbers.push(Number { name, unit, value });
    }
    Ok(sample)
}
