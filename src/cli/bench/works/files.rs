//! Reading: many small files, one large one.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tarnfs::sys::map::Map;

use super::super::contenders::{How, Mount};
use super::super::lab::drop_caches;
use super::super::random::Random;
use super::{Sample, Stage, timed};

const PAGE: u64 = 4096;
const CHUNK: usize = 1 << 20;
/// Most pages that are read here and there.
const RANDOM_READS: u64 = 32_768;

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    Sequential,
    Random,
}

/// What is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing.
    Cold,
    /// The tar or the tree; nobody has read through the mount.
    First,
    /// The file, as the mount has shown it.
    Hot,
}

/// By which system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    Read,
    Map,
}

/// Open, read, close of the small files, in an order of their own.
pub(super) fn small(stage: &Stage<'_>, cold: bool) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    let paths: Vec<PathBuf> = stage.lab.facts.small.iter().map(|p| mount.at(p)).collect();
    if cold {
        drop_caches()?;
    } else {
        read_all(&paths)?;
    }
    let (found, seconds) = timed(|| read_all(&paths))?;
    mount.finish()?;
    Ok(Sample::seconds(seconds, found))
}

/// Bytes and their sum.
fn read_all(paths: &[PathBuf]) -> anyhow::Result<u64> {
    let mut buffer = vec![0; 32 << 10];
    let mut found = 0;
    for path in paths {
        let mut file = File::open(path)?;
        loop {
            let n = file.read(&mut buffer)?;
            let Some(data) = buffer.get(..n).filter(|data| !data.is_empty()) else {
                break;
            };
            found += u64::try_from(n)? + data.first().copied().map_or(0, u64::from);
        }
    }
    Ok(found)
}

/// The biggest file of the image.
pub(super) fn big(
    stage: &Stage<'_>,
    pattern: Pattern,
    state: State,
    via: Via,
) -> anyhow::Result<Sample> {
    let facts = &stage.lab.facts;
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    let path = mount.at(&facts.big);
    let len = facts.big_len.min(stage.lab.sizes.read);
    let pages = offsets(len, pattern);
    match state {
        State::Cold => drop_caches()?,
        State::First => {
            drop_caches()?;
            read_sources(stage)?;
        }
        State::Hot => {
            through_map(&path, &pages)?;
            by_read(&path, len, Pattern::Sequential, &pages)?;
        }
    }
    let (found, seconds) = timed(|| match via {
        Via::Read => by_read(&path, len, pattern, &pages),
        Via::Map => through_map(&path, &pages),
    })?;
    mount.finish()?;
    Ok(Sample::seconds(seconds, found))
}

/// The first byte of each page that is read.
fn offsets(len: u64, pattern: Pattern) -> Vec<u64> {
    let pages = len.div_ceil(PAGE);
    match pattern {
        Pattern::Sequential => (0..pages).map(|page| page * PAGE).collect(),
        Pattern::Random => {
            let mut random = Random::new(3);
            let count = pages.min(RANDOM_READS);
            (0..count).map(|_| random.below(pages) * PAGE).collect()
        }
    }
}

/// The sum of the first bytes of pages, which are read whole.
fn by_read(path: &Path, len: u64, pattern: Pattern, pages: &[u64]) -> anyhow::Result<u64> {
    let file = File::open(path)?;
    let mut sum = 0;
    if pattern == Pattern::Random {
        let mut page = [0; 4096];
        for &at in pages {
            if file.read_at(&mut page, at)? == 0 {
                bail!("the file is too short");
            }
            sum += u64::from(page[0]);
        }
        return Ok(sum);
    }
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let want = usize::try_from((len - at).min(CHUNK as u64))?;
        let part = chunk.get_mut(..want).context("a chunk")?;
        file.read_exact_at(part, at)?;
        sum += part
            .chunks(4096)
            .filter_map(|page| page.first())
            .map(|&byte| u64::from(byte))
            .sum::<u64>();
        at += u64::try_from(want)?;
    }
    Ok(sum)
}

/// The same sum, by touching mapped pages.
fn through_map(path: &Path, pages: &[u64]) -> anyhow::Result<u64> {
    let file = File::open(path)?;
    // The file is in a mount of this process's own, and nobody cuts it.
    let map = Map::of(&file)?;
    let mut sum = 0;
    for &at in pages {
        let byte = map
            .get(usize::try_from(at)?)
            .context("the file is too short")?;
        sum += u64::from(*byte);
    }
    Ok(sum)
}

/// Brings into memory what the contender reads from.
fn read_sources(stage: &Stage<'_>) -> anyhow::Result<()> {
    let sources = &stage.lab.sources;
    match stage.contender.how {
        How::Tarnfs { .. } | How::Erofs => {
            for &(blob, offset, len) in &stage.lab.facts.big_runs {
                let blob = sources.blobs.get(blob).context("a blob")?;
                read_run(blob, offset, offset + len)?;
            }
        }
        How::Overlayfs | How::Untar | How::FuseOverlayfs => {
            read_run(&sources.tree.join(&stage.lab.facts.big), 0, u64::MAX)?;
        }
    }
    Ok(())
}

/// Reads from `at` to `end`, or to the end of the file.
fn read_run(path: &Path, mut at: u64, end: u64) -> anyhow::Result<()> {
    let file = File::open(path)?;
    let mut chunk = vec![0; CHUNK];
    while at < end {
        let want = usize::try_from((end - at).min(CHUNK as u64))?;
        let n = file.read_at(chunk.get_mut(..want).context("a chunk")?, at)?;
        if n == 0 {
            break;
        }
        at += u64::try_from(n)?;
    }
    Ok(())
}

/// What one actor reads: the biggest file, in order.
pub(super) fn of_actor(stage: &Stage<'_>, mount: &Mount) -> anyhow::Result<u64> {
    let facts = &stage.lab.facts;
    let len = facts.big_len.min(stage.lab.sizes.read);
    by_read(&mount.at(&facts.big), len, Pattern::Sequential, &[])
}
