//! Names: walking, making, renaming, removing.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::super::contenders::Contender;
use super::super::facts::Facts;
use super::super::lab::drop_caches;
use super::{Sample, Stage, any, own_dir, timed};

/// What `find -ls` learns: each entry with lstat(2), each link with readlink(2).
pub(super) fn find(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    drop_caches()?;
    let (found, cold) = timed(|| walk(mount.root()))?;
    // Where reading changes st_atime of directories, the second walk asks for it.
    let (again, second) = timed(|| walk(mount.root()))?;
    let (at_last, warm) = timed(|| walk(mount.root()))?;
    mount.finish()?;
    if found.entries != stage.lab.facts.entries || again != found || at_last != found {
        bail!(
            "found {}, {}, {} entries, {} are in the image",
            found.entries,
            again.entries,
            at_last.entries,
            stage.lab.facts.entries
        );
    }
    let sum = found.entries + found.file_bytes + found.link_bytes;
    let times = [("cold", cold), ("second", second), ("warm", warm)];
    Ok(Sample::times(times, sum))
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Walked {
    pub(super) entries: u64,
    file_bytes: u64,
    link_bytes: u64,
}

pub(super) fn walk(root: &Path) -> anyhow::Result<Walked> {
    let mut all = Walked::default();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let metadata = match fs::symlink_metadata(&path) {
                // A device 0:0 of the image, which overlayfs lists and does not have.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
                continue;
            }
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

fn entries(dir: &Path) -> anyhow::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        entry?;
        count += 1;
    }
    Ok(count)
}

fn check_entries(dir: &Path, wanted: usize) -> anyhow::Result<()> {
    let found = entries(dir)?;
    if found != wanted {
        bail!("{found} names are there, not {wanted}");
    }
    Ok(())
}

/// Names that the image does not have: files made, renamed, removed; directories made.
pub(super) fn create(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let slot = stage.slot_on_new_disk()?;
    let mount = stage.mount(&slot)?;
    let dir = own_dir(&mount)?;
    let count = stage.lab.sizes.files;
    let paths = own(&dir, count);
    let renamed: Vec<_> = paths
        .iter()
        .map(|path| path.with_extension("new"))
        .collect();
    let ((), creating) = timed(|| make(&paths))?;
    check_entries(&dir, count)?;
    let ((), renaming) = timed(|| {
        let mut both = paths.iter().zip(&renamed);
        both.try_for_each(|(from, to)| Ok(fs::rename(from, to)?))
    })?;
    check_entries(&dir, count)?;
    let ((), removing) = timed(|| renamed.iter().try_for_each(|p| Ok(fs::remove_file(p)?)))?;
    check_entries(&dir, 0)?;
    let ((), mkdir) = timed(|| paths.iter().try_for_each(|p| Ok(fs::create_dir(p)?)))?;
    check_entries(&dir, count)?;
    mount.finish()?;
    Ok(Sample::times(
        [
            ("create", creating),
            ("rename", renaming),
            ("unlink", removing),
            ("mkdir", mkdir),
        ],
        u64::try_from(count)?,
    ))
}

fn is_gone(path: &Path) -> anyhow::Result<()> {
    if path.symlink_metadata().is_ok() {
        bail!("{} is still there", path.display());
    }
    Ok(())
}

/// Some small files of the image: a third of them removed, a third renamed, which copies them up, a
/// third chmod'ed, which does too.
pub(super) fn change(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let slot = stage.slot_on_new_disk()?;
    let mount = stage.mount(&slot)?;
    let small = &stage.lab.facts.small;
    let each = stage.lab.sizes.files.min(small.len()) / 30;
    if each == 0 {
        bail!("too few small files");
    }
    let paths: Vec<PathBuf> = small.iter().take(3 * each).map(|p| mount.at(p)).collect();
    // In memory with everybody: this is not about the disk.
    let mut bytes = 0;
    for path in &paths {
        bytes += fs::read(path)?.len();
    }
    let mut thirds = paths.chunks(each);
    let mut third = || thirds.next().unwrap_or_default();
    let (removed, renamed, changed) = (third(), third(), third());
    let ((), unlink) = timed(|| removed.iter().try_for_each(|p| Ok(fs::remove_file(p)?)))?;
    let new = |path: &Path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".renamed");
        PathBuf::from(name)
    };
    let ((), rename) = timed(|| renamed.iter().try_for_each(|p| Ok(fs::rename(p, new(p))?)))?;
    let mode = fs::Permissions::from_mode(0o700);
    let ((), chmod) = timed(|| {
        let mut all = changed.iter();
        all.try_for_each(|path| Ok(fs::set_permissions(path, mode.clone())?))
    })?;
    removed.iter().chain(renamed).try_for_each(|p| is_gone(p))?;
    let mut found = u64::try_from(bytes)?;
    for path in renamed {
        found += fs::metadata(new(path))?.len();
    }
    for path in changed {
        let metadata = fs::metadata(path)?;
        if metadata.permissions().mode() & 0o7777 != 0o700 {
            bail!("{} has its old mode", path.display());
        }
        found += metadata.len();
    }
    mount.finish()?;
    Ok(Sample::times(
        [("unlink", unlink), ("rename", rename), ("chmod", chmod)],
        found,
    ))
}

pub(super) fn unfit_tree(facts: &Facts, contender: &Contender) -> Option<String> {
    if facts.tree.is_none() {
        return Some("the image has no directory that is neither too large nor empty".to_owned());
    }
    any(facts, contender)
}

pub(super) fn remove_tree(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let tree = stage.lab.facts.tree.as_ref().context("no tree")?;
    let slot = stage.slot_on_new_disk()?;
    let mount = stage.mount(&slot)?;
    let path = mount.at(tree);
    // Its names are in memory with everybody.
    walk(&path)?;
    let ((), seconds) = timed(|| Ok(fs::remove_dir_all(&path)?))?;
    is_gone(&path)?;
    mount.finish()?;
    Ok(Sample::seconds(seconds, stage.lab.facts.tree_entries))
}
