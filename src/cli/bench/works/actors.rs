//! Several mounts of one image, which read the same at once: what that costs in time and memory.

use std::path::Path;

use anyhow::{Context, anyhow};

use super::super::child::check_interrupt;
use super::super::contenders::Mount;
use super::super::lab::drop_caches;
use super::super::stats::{count, float};
use super::{Number, Sample, Stage, files, timed};

pub(super) fn read(stage: &Stage<'_>, actors: usize) -> anyhow::Result<Sample> {
    let slots = (0..actors)
        .map(|_| stage.slot())
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut mounts = Vec::new();
    for slot in &slots {
        check_interrupt()?;
        mounts.push(stage.mount_large(slot)?);
    }
    drop_caches()?;
    let before = page_cache()?;
    let (found, seconds) = timed(|| all_at_once(stage, &mounts))?;
    let after = page_cache()?;
    let (mut pss, mut private) = (0, 0);
    let mut servers: Vec<u32> = mounts.iter().flat_map(Mount::servers).collect();
    servers.sort_unstable();
    servers.dedup();
    for pid in servers {
        let rollup = format!("/proc/{pid}/smaps_rollup");
        let rollup = std::fs::read_to_string(&rollup).with_context(|| rollup.clone())?;
        pss += kib(&rollup, "Pss:");
        private += kib(&rollup, "Private_Clean:") + kib(&rollup, "Private_Dirty:");
    }
    for mount in mounts {
        mount.finish()?;
    }
    let mib = |kib: u64| float(kib) / 1024.0;
    let each = |kib: u64| mib(kib) / count(actors);
    let mut sample = Sample::seconds(seconds, found);
    sample.numbers.extend([
        Number {
            name: "page cache grown",
            unit: "MiB",
            value: mib(after.saturating_sub(before)),
        },
        Number {
            name: "PSS of an actor's server",
            unit: "MiB",
            value: each(pss),
        },
        Number {
            name: "private memory of an actor's server",
            unit: "MiB",
            value: each(private),
        },
    ]);
    Ok(sample)
}

fn all_at_once(stage: &Stage<'_>, mounts: &[Mount]) -> anyhow::Result<u64> {
    std::thread::scope(|scope| {
        let actors: Vec<_> = mounts
            .iter()
            .map(|mount| scope.spawn(|| files::of_actor(stage, mount)))
            .collect();
        let mut found = 0;
        for actor in actors {
            found += actor
                .join()
                .map_err(|_| anyhow!("an actor's thread died"))??;
        }
        Ok(found)
    })
}

/// Memory that holds pages of files, in KiB: what is on the lists of file pages.
fn page_cache() -> anyhow::Result<u64> {
    let path = Path::new("/proc/meminfo");
    let text = std::fs::read_to_string(path).context("/proc/meminfo")?;
    Ok(kib(&text, "Active(file):") + kib(&text, "Inactive(file):"))
}

/// The number behind a key of meminfo or smaps, in KiB.
fn kib(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(key))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_of_meminfo() {
        let text = "Active(anon):  1 kB\nActive(file):    250 kB\nInactive(file): 7 kB\n";
        assert_eq!(super::kib(text, "Active(file):"), 250);
        assert_eq!(super::kib(text, "Nothing:"), 0);
    }
}
