//! Writing: new files, files that are there, files of the image.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::bail;

use super::super::contenders::Mount;
use super::super::image::MIDDLE;
use super::super::random::Random;
use super::{Sample, Stage, own_dir, timed};

fn fill(file: &File, data: &[u8], len: u64) -> anyhow::Result<()> {
    let mut at = 0;
    while at < len {
        file.write_all_at(data, at)?;
        at += u64::try_from(data.len())?;
    }
    Ok(())
}

fn noise(size: usize) -> Vec<u8> {
    let mut data = vec![0; size];
    Random::new(4).fill(&mut data);
    data
}

/// The file's length and last byte are what was written.
fn check(mount: Mount, file: &std::path::Path, data: &[u8], len: u64) -> anyhow::Result<u64> {
    let written = File::open(file)?;
    let mut last = [0];
    written.read_exact_at(&mut last, len.saturating_sub(1))?;
    if written.metadata()?.len() != len || Some(&last[0]) != data.last() {
        bail!("the file does not hold what was written");
    }
    drop(written);
    mount.finish()?;
    Ok(len)
}

/// A new file, a write after the other.
pub(super) fn new_file(stage: &Stage<'_>, size: usize, fsync: bool) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    let path = own_dir(&mount)?.join("file");
    let sizes = &stage.lab.sizes;
    let small = size < 64 << 10;
    let len = if small { sizes.trickled } else { sizes.written };
    let data = noise(size);
    rustix::fs::sync();
    let ((), seconds) = timed(|| {
        let file = File::create_new(&path)?;
        fill(&file, &data, len)?;
        if fsync {
            file.sync_all()?;
        }
        Ok(())
    })?;
    let found = check(mount, &path, &data, len)?;
    Ok(Sample::seconds(seconds, found))
}

/// A file whose blocks and pages are there.
pub(super) fn again(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    let path = own_dir(&mount)?.join("file");
    let (data, len) = (noise(64 << 10), stage.lab.sizes.written);
    fill(&File::create_new(&path)?, &data, len)?;
    rustix::fs::sync();
    let ((), seconds) = timed(|| {
        let file = OpenOptions::new().write(true).open(&path)?;
        fill(&file, &data, len)
    })?;
    let found = check(mount, &path, &data, len)?;
    Ok(Sample::seconds(seconds, found))
}

/// The first write to a large file of the image.
pub(super) fn copy_up(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    let mount = stage.mount_large(&slot)?;
    let path = mount.at(MIDDLE);
    // In memory with everybody: this is about copying, not about the disk.
    let bytes = std::fs::read(&path)?;
    rustix::fs::sync();
    let ((), seconds) = timed(|| {
        let file = OpenOptions::new().write(true).open(&path)?;
        Ok(file.write_all_at(b"!", 0)?)
    })?;
    let mut now = std::fs::read(&path)?;
    if now.first() != Some(&b'!') {
        bail!("the byte was not written");
    }
    if let (Some(new), Some(old)) = (now.first_mut(), bytes.first()) {
        *new = *old;
    }
    if now != bytes {
        bail!("the copy is not what the image has");
    }
    mount.finish()?;
    Ok(Sample::seconds(seconds, stage.lab.large.middle_len))
}
