//! From nothing to a program that has run; mounting and unmounting.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use super::super::child;
use super::super::contenders::{Contender, How, Mount, Sources};
use super::super::facts::Facts;
use super::super::lab::drop_caches;
use super::{PATH, Sample, Stage, any, timed};

const NO_PROGRAM: &str = "the image has none of node, sh, busybox, true; name one with --command";

pub(super) fn unfit(facts: &Facts, contender: &Contender) -> Option<String> {
    if facts.command.is_empty() {
        return Some(NO_PROGRAM.to_owned());
    }
    any(facts, contender)
}

pub(super) fn unfit_first(facts: &Facts, contender: &Contender) -> Option<String> {
    if facts.command.is_empty() {
        return Some(NO_PROGRAM.to_owned());
    }
    matches!(contender.how, How::Overlayfs | How::FuseOverlayfs)
        .then(|| "starts from an extracted tree; untar makes one first".to_owned())
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
    let slot = stage.slot()?;
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

/// The index or the tree is there.
pub(super) fn later(stage: &Stage<'_>, cold: bool) -> anyhow::Result<Sample> {
    if !cold {
        // What it reads is in the cache from now on.
        once(stage)?;
    }
    once_prepared(stage, cold)
}

fn once(stage: &Stage<'_>) -> anyhow::Result<()> {
    once_prepared(stage, false).map(drop)
}

fn once_prepared(stage: &Stage<'_>, cold: bool) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    if cold {
        drop_caches()?;
    }
    let (mount, seconds) = timed(|| {
        let mut mount = stage.mount(&slot)?;
        program(&stage.lab.facts, &mut mount)?;
        Ok(mount)
    })?;
    mount.finish()?;
    Ok(Sample::seconds(seconds, 0))
}

/// Mounts, one or many in a row, and takes them off again.
pub(super) fn mounts(stage: &Stage<'_>, many: bool, off: bool) -> anyhow::Result<Sample> {
    let number = if many { stage.lab.sizes.mounts } else { 1 };
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
    for mount in &mounts {
        // The image is really there.
        let big: PathBuf = mount.at(&stage.lab.facts.big);
        found += std::fs::metadata(&big)
            .context("looking into the mount")?
            .len();
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
    Ok(Sample::seconds(
        if off { unmounting } else { mounting },
        found,
    ))
}
