//! Reading: many small files, one large one.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tarnfs::sys::map::Map;

use super::super::contenders::{How, Mount};
use super::super::image::BIG;
use super::super::lab::drop_caches;
use super::super::random::Random;
use super::{Sample, Stage, timed};

const PAGE: u64 = 4096;
const CHUNK: usize = 1 << 20;

/// By which system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    Read,
    Map,
}

/// The small files in an order of their own: open, read, close with empty caches and a second time;
/// lstat of all, a second time too.
pub(super) fn small(stage: &Stage<'_>) -> anyhow::Result<Sample> {
    let slot = stage.slot()?;
    let mount = stage.mount(&slot)?;
    let paths: Vec<PathBuf> = stage.lab.facts.small.iter().map(|p| mount.at(p)).collect();
    drop_caches()?;
    let (found, cold) = timed(|| read_all(&paths))?;
    let (again, hot) = timed(|| read_all(&paths))?;
    // Where reading changes st_atime, this asks for it.
    let (lengths, second) = timed(|| stat_all(&paths))?;
    let (at_last, warm) = timed(|| stat_all(&paths))?;
    mount.finish()?;
    if again != found || at_last != lengths {
        bail!("a second time, other bytes or lengths were found");
    }
    Ok(Sample::times(
        [
            ("open, cold", cold),
            ("open, hot", hot),
            ("lstat, once read", second),
            ("lstat, warm", warm),
        ],
        found + lengths,
    ))
}

/// The sum of the lengths.
fn stat_all(paths: &[PathBuf]) -> anyhow::Result<u64> {
    paths
        .iter()
        .map(|path| Ok(std::fs::symlink_metadata(path)?.len()))
        .sum()
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

/// The large file. First: what is mounted is cached, and nobody has read through the mount. Hot: a
/// second time. Cold: with empty caches.
pub(super) fn big(stage: &Stage<'_>, via: Via) -> anyhow::Result<Sample> {
    let (large, sizes) = (&stage.lab.large, &stage.lab.sizes);
    let slot = stage.slot()?;
    let mount = stage.mount_large(&slot)?;
    let path = mount.at(BIG);
    let len = large.big_len;
    let all: Vec<u64> = (0..len.div_ceil(PAGE)).map(|page| page * PAGE).collect();
    let some = here_and_there(len, sizes.random_hot);
    let few = here_and_there(len, sizes.random_cold);
    let in_order = || match via {
        Via::Read => in_order(&path, len),
        Via::Map => through_map(&path, &all),
    };
    let at = |pages: &[u64]| match via {
        Via::Read => pages_of(&path, pages),
        Via::Map => through_map(&path, pages),
    };
    drop_caches()?;
    read_sources(stage)?;
    let (found, first) = timed(in_order)?;
    let (again, hot) = timed(in_order)?;
    let (random, random_hot) = timed(|| at(&some))?;
    drop_caches()?;
    let (once_more, cold) = timed(in_order)?;
    drop_caches()?;
    let (random_few, random_cold) = timed(|| at(&few))?;
    mount.finish()?;
    if [again, once_more] != [found, found] {
        bail!("another time, other bytes were read");
    }
    Ok(Sample::times(
        [
            ("first", first),
            ("hot", hot),
            ("cold", cold),
            ("here and there, hot", random_hot),
            ("here and there, cold", random_cold),
        ],
        found + random + random_few,
    ))
}

/// The first byte of each page that is read.
fn here_and_there(len: u64, count: u64) -> Vec<u64> {
    let mut random = Random::new(3);
    let pages = len.div_ceil(PAGE);
    (0..count).map(|_| random.below(pages) * PAGE).collect()
}

/// The sum of the first bytes of pages, which are read one by one.
fn pages_of(path: &Path, pages: &[u64]) -> anyhow::Result<u64> {
    let file = File::open(path)?;
    let mut page = [0; 4096];
    let mut sum = 0;
    for &at in pages {
        if file.read_at(&mut page, at)? == 0 {
            bail!("the file is too short");
        }
        sum += u64::from(page[0]);
    }
    Ok(sum)
}

/// The same sum of all pages, which are read in order and many at once.
fn in_order(path: &Path, len: u64) -> anyhow::Result<u64> {
    let file = File::open(path)?;
    let mut chunk = vec![0; CHUNK];
    let (mut at, mut sum) = (0, 0);
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
    let large = &stage.lab.large;
    let sources = &large.sources;
    match stage.contender.how {
        How::Tarnfs { .. } | How::Erofs => {
            for &(blob, offset, len) in &large.big_runs {
                let blob = sources.blobs.get(blob).context("a blob")?;
                read_run(blob, offset, offset + len)?;
            }
        }
        How::Overlayfs | How::Untar | How::FuseOverlayfs => {
            read_run(&sources.tree.join(BIG), 0, u64::MAX)?;
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

/// What one actor reads: the large file, in order.
pub(super) fn of_actor(stage: &Stage<'_>, mount: &Mount) -> anyhow::Result<u64> {
    in_order(&mount.at(BIG), stage.lab.large.big_len)
}
