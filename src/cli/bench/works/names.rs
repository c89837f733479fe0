//! Names: walking, making, renaming, removing.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::super::contenders::{Contender, Mount};
use super::super::facts::Facts;
use super::super::lab::drop_caches;
use super::{OWN, Sample, Stage, any, own_dir, timed};

/// What `find -ls` learns: each entry with lstat(2), each link with readlink(2).
pub(super) fn find(stage: &Stage<'_>, cold: bool) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    if cold {
        drop_caches()?;
    } else {
        walk(mount.root())?;
    }
    let (found, seconds) = timed(|| walk(mount.root()))?;
    mount.finish()?;
    if found.entries != stage.lab.facts.entries {
        bail!(
            "found {} entries, {} are in the image",
            found.entries,
            stage.lab.facts.entries
        );
    }
    let sum = found.entries + found.file_bytes + found.link_bytes;
    Ok(Sample::seconds(seconds, sum))
}

#[derive(Debug, Default)]
struct Walked {
    entries: u64,
    file_bytes: u64,
    link_bytes: u64,
}

fn walk(root: &Path) -> anyhow::Result<Walked> {
    let mut all = Walked::default();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            all.entries += 1;
            if metadata.is_dir() {
                todo.push(path);
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path)?;
                all.link_bytes += u64::try_from(target.as_os_str().len())?;
            } else {
                all.file_bytes += metadata.len();
            }
        }
    }
    Ok(all)
}

/// Names in the works' own directory.
fn own(dir: &Path, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|n| dir.join(format!("name{n:05}")))
        .collect()
}

fn make(paths: &[PathBuf]) -> anyhow::Result<()> {
    for path in paths {
        fs::File::create_new(path)?.write_all_at(&[b'x'; 100], 0)?;
    }
    Ok(())
}

fn entries(dir: &Path) -> anyhow::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        entry?;
        count += 1;
    }
    Ok(count)
}

/// A work on a fresh mount: `prepare`, then `timed` on the paths it gives, then what is left in
/// the own directory.
fn on_own(
    stage: &Stage<'_>,
    prepare: impl FnOnce(&[PathBuf]) -> anyhow::Result<()>,
    work: impl FnOnce(&[PathBuf]) -> anyhow::Result<()>,
    left: usize,
) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    let dir = own_dir(&mount)?;
    let paths = own(&dir, stage.lab.sizes.files);
    prepare(&paths)?;
    rustix::fs::sync();
    let ((), seconds) = timed(|| work(&paths))?;
    let found = entries(&dir)?;
    mount.finish()?;
    if found != u64::try_from(left)? {
        bail!("{found} names are there, not {left}");
    }
    Ok(Sample::seconds(seconds, found))
}

pub(super) fn create(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    on_own(stage, |_| Ok(()), make, stage.lab.sizes.files)
}

pub(super) fn mkdir(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let all = |paths: &[PathBuf]| paths.iter().try_for_each(|p| Ok(fs::create_dir(p)?));
    on_own(stage, |_| Ok(()), all, stage.lab.sizes.files)
}

pub(super) fn rename(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let all = |paths: &[PathBuf]| {
        paths
            .iter()
            .try_for_each(|path| Ok(fs::rename(path, path.with_extension("new"))?))
    };
    on_own(stage, make, all, stage.lab.sizes.files)
}

pub(super) fn unlink(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let all = |paths: &[PathBuf]| paths.iter().try_for_each(|p| Ok(fs::remove_file(p)?));
    on_own(stage, make, all, 0)
}

/// A work on a tenth of the small files of the image.
fn on_image(
    stage: &Stage<'_>,
    work: impl FnOnce(&[PathBuf]) -> anyhow::Result<()>,
    check: impl Fn(&Path) -> anyhow::Result<u64>,
) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    let paths = some_of_image(stage, &mount);
    own_dir(&mount)?;
    rustix::fs::sync();
    let ((), seconds) = timed(|| work(&paths))?;
    let mut found = 0;
    for path in &paths {
        found += check(path)?;
    }
    mount.finish()?;
    Ok(Sample::seconds(seconds, found))
}

fn some_of_image(stage: &Stage<'_>, mount: &Mount) -> Vec<PathBuf> {
    let small = &stage.lab.facts.small;
    let count = (stage.lab.sizes.files / 10).min(small.len());
    small
        .iter()
        .take(count)
        .map(|path| mount.at(path))
        .collect()
}

fn is_gone(path: &Path) -> anyhow::Result<u64> {
    if path.symlink_metadata().is_ok() {
        bail!("{} is still there", path.display());
    }
    Ok(1)
}

pub(super) fn unlink_image(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let all = |paths: &[PathBuf]| paths.iter().try_for_each(|p| Ok(fs::remove_file(p)?));
    on_image(stage, all, is_gone)
}

pub(super) fn rename_image(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let name = |path: &Path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".renamed");
        PathBuf::from(name)
    };
    let all = |paths: &[PathBuf]| paths.iter().try_for_each(|p| Ok(fs::rename(p, name(p))?));
    on_image(stage, all, |path| {
        is_gone(path)?;
        Ok(fs::metadata(name(path))?.len())
    })
}

pub(super) fn chmod_image(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let all = |paths: &[PathBuf]| {
        let mode = fs::Permissions::from_mode(0o700);
        paths
            .iter()
            .try_for_each(|path| Ok(fs::set_permissions(path, mode.clone())?))
    };
    on_image(stage, all, |path| {
        let metadata = fs::metadata(path)?;
        if metadata.permissions().mode() & 0o7777 != 0o700 {
            bail!("{} has its old mode", path.display());
        }
        Ok(metadata.len())
    })
}

pub(super) fn unfit_tree(facts: &Facts, contender: &Contender) -> Option<String> {
    if facts.tree.is_none() {
        return Some("the image has no directory that is neither too large nor empty".to_owned());
    }
    any(facts, contender)
}

pub(super) fn remove_tree(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let tree = stage.lab.facts.tree.as_ref().context("no tree")?;
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    let path = mount.at(tree);
    if path.ends_with(OWN) {
        bail!("the tree is not the image's");
    }
    rustix::fs::sync();
    let ((), seconds) = timed(|| Ok(fs::remove_dir_all(&path)?))?;
    is_gone(&path)?;
    mount.finish()?;
    Ok(Sample::seconds(seconds, stage.lab.facts.tree_entries))
}
