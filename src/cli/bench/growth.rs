//! How the cost grows: indexing and mounting with the number of entries, looking up with the size
//! of a directory.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::bail;
use tar::EntryType;
use tarnfs::store::Store;

use super::child::{self, Interrupted, check_interrupt};
use super::contenders::{Contender, How, OURS, Sources};
use super::lab::Lab;
use super::random::Random;
use super::report::{Point, Series};
use super::run::order;
use super::stats::{Summary, count, exponent, float};

/// Files of one directory where the number of entries is what grows.
const FILES_PER_DIR: u64 = 20;

/// Most names that are looked up.
const LOOKUPS: u64 = 2_000;

const INDEX_TIME: &str = "time to index";
const INDEX_MEMORY: &str = "peak memory of indexing";
const MOUNT_TIME: &str = "time to mount";
const LOOKUP_TIME: &str = "time of one lookup";

/// Everything that grows.
pub(super) fn all(
    lab: &Lab,
    contenders: &[&Contender],
    rounds: usize,
    tell: &dyn Fn(&str),
) -> anyhow::Result<Vec<Series>> {
    let mut all = Growing::default();
    for &entries in lab.sizes.growth {
        by_entries(lab, contenders, rounds, entries, tell, &mut all)?;
    }
    for &entries in lab.sizes.lookup {
        lookups(lab, contenders, rounds, entries, tell, &mut all)?;
    }
    Ok(all.finish())
}

/// The series in the making.
#[derive(Debug, Default)]
struct Growing(Vec<Series>);

impl Growing {
    fn series(
        &mut self,
        chart: &'static str,
        contender: &'static str,
        of: &'static str,
        unit: &'static str,
    ) -> Option<&mut Series> {
        let same = |s: &Series| s.chart == chart && s.contender == contender;
        if !self.0.iter().any(same) {
            self.0.push(Series {
                chart,
                contender,
                of,
                unit,
                points: Vec::new(),
                exponent: None,
                missing: None,
            });
        }
        self.0.iter_mut().find(|s| same(s))
    }

    fn finish(self) -> Vec<Series> {
        let mut all = self.0;
        for series in &mut all {
            let points: Vec<(f64, f64)> = series
                .points
                .iter()
                .map(|point| (float(point.x), point.summary.median))
                .collect();
            series.exponent = exponent(&points);
        }
        let order = [INDEX_TIME, INDEX_MEMORY, MOUNT_TIME, LOOKUP_TIME];
        all.sort_by_key(|series| order.iter().position(|chart| *chart == series.chart));
        all
    }
}

fn add(series: Option<&mut Series>, x: u64, samples: Vec<f64>) {
    if let (Some(series), Some(summary)) = (series, Summary::of(&samples)) {
        series.points.push(Point {
            x,
            samples,
            summary,
        });
    }
}

/// A tar of directories with `per_dir` files each; empty files, for it is names that count.
fn pack(path: &Path, entries: u64, per_dir: u64) -> anyhow::Result<()> {
    let mut out = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
    let mut add = |kind, name: String| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        out.append_data(&mut header, name, std::io::empty())
    };
    let mut left = entries;
    let mut dir = 0;
    while left > 0 {
        add(EntryType::Directory, format!("dir{dir}"))?;
        let files = per_dir.min(left);
        for file in 0..files {
            add(EntryType::Regular, format!("dir{dir}/file{file:06}"))?;
        }
        left -= files;
        dir += 1;
    }
    Ok(out
        .into_inner()?
        .into_inner()
        .map_err(|e| e.into_error())?
        .sync_all()?)
}

/// A tar of its own directory, with its index.
struct Made {
    sources: Sources,
    dir: tempfile::TempDir,
}

fn make(lab: &Lab, entries: u64, per_dir: u64) -> anyhow::Result<Made> {
    let dir = tempfile::Builder::new()
        .prefix("growth-")
        .tempdir_in(lab.path())?;
    let at = |name: &str| dir.path().join(name);
    pack(&at("image.tar"), entries, per_dir)?;
    let sources = Sources {
        tar: at("image.tar"),
        store: at("store"),
        tree: at("tree"),
        index: PathBuf::new(),
        blobs: Vec::new(),
    };
    Ok(Made { sources, dir })
}

impl Made {
    fn index(&mut self) -> anyhow::Result<()> {
        let image = Store::open(&self.sources.store).tar_image(&self.sources.tar, &mut |_| {})?;
        self.sources
            .take_index(image.index_path(), image.blobs().to_vec());
        Ok(())
    }
}

fn by_entries(
    lab: &Lab,
    contenders: &[&Contender],
    rounds: usize,
    entries: u64,
    tell: &dyn Fn(&str),
    all: &mut Growing,
) -> anyhow::Result<()> {
    tell(&format!("growth: indexing {entries} entries"));
    let mut made = make(lab, entries, FILES_PER_DIR)?;
    let index = made.dir.path().join("index.erofs");
    let command = || {
        let mut command = made.sources.tarnfs("index");
        command.arg("-o").arg(&index).arg(&made.sources.tar);
        command
    };
    let (mut times, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = std::time::Instant::now();
        child::run(&mut command())?;
        times.push(start.elapsed().as_secs_f64());
        peaks.push(child::peak_mib(&mut command())?);
    }
    add(all.series(INDEX_TIME, OURS, "entries", "s"), entries, times);
    add(
        all.series(INDEX_MEMORY, OURS, "entries", "MiB"),
        entries,
        peaks,
    );
    made.index()?;
    let able: Vec<_> = contenders
        .iter()
        .filter(|c| matches!(c.how, How::Tarnfs { .. } | How::Erofs))
        .copied()
        .collect();
    rounds_of(
        lab,
        &able,
        rounds,
        entries,
        MOUNT_TIME,
        "entries",
        all,
        &|contender| {
            tell(&format!(
                "growth: mounting {entries} entries: {}",
                contender.name
            ));
            let slot = lab.slot()?;
            let start = std::time::Instant::now();
            let mount = slot.mount(contender, &made.sources)?;
            let seconds = start.elapsed().as_secs_f64();
            mount.finish()?;
            Ok(seconds)
        },
    )
}

fn lookups(
    lab: &Lab,
    contenders: &[&Contender],
    rounds: usize,
    entries: u64,
    tell: &dyn Fn(&str),
    all: &mut Growing,
) -> anyhow::Result<()> {
    tell(&format!("growth: a directory of {entries} entries"));
    let mut made = make(lab, entries, entries)?;
    made.index()?;
    let able: Vec<_> = contenders
        .iter()
        .filter(|c| c.how != How::Untar)
        .copied()
        .collect();
    if able
        .iter()
        .any(|c| matches!(c.how, How::Overlayfs | How::FuseOverlayfs))
    {
        made.sources.extract()?;
    }
    let mut random = Random::new(6);
    let mut names: Vec<u64> = (0..entries).collect();
    random.shuffle(&mut names);
    names.truncate(usize::try_from(LOOKUPS)?);
    let what = "entries of the directory";
    rounds_of(
        lab,
        &able,
        rounds,
        entries,
        LOOKUP_TIME,
        what,
        all,
        &|contender| {
            tell(&format!(
                "growth: lookups among {entries}: {}",
                contender.name
            ));
            let slot = lab.slot()?;
            let each = |mount: &super::contenders::Mount| -> anyhow::Result<()> {
                for name in &names {
                    let path = mount.at(format!("dir0/file{name:06}"));
                    if !std::fs::symlink_metadata(&path)?.is_file() {
                        bail!("{}: not a file", path.display());
                    }
                }
                Ok(())
            };
            // What lies under it is cached, what it keeps itself is not.
            let mount = slot.mount(contender, &made.sources)?;
            each(&mount)?;
            mount.finish()?;
            let slot = lab.slot()?;
            let mount = slot.mount(contender, &made.sources)?;
            let start = std::time::Instant::now();
            each(&mount)?;
            let seconds = start.elapsed().as_secs_f64();
            mount.finish()?;
            Ok(seconds / count(names.len()))
        },
    )
}

/// All contenders in turn, `rounds` times.
#[allow(clippy::too_many_arguments)]
fn rounds_of(
    _lab: &Lab,
    contenders: &[&Contender],
    rounds: usize,
    x: u64,
    chart: &'static str,
    of: &'static str,
    all: &mut Growing,
    work: &dyn Fn(&Contender) -> anyhow::Result<f64>,
) -> anyhow::Result<()> {
    let mut samples = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        for n in order(contenders.len(), round) {
            check_interrupt()?;
            let (Some(contender), Some(samples)) = (contenders.get(n), samples.get_mut(n)) else {
                continue;
            };
            let Some(series) = all.series(chart, contender.name, of, "s") else {
                continue;
            };
            if series.missing.is_some() {
                continue;
            }
            match work(contender) {
                Ok(seconds) => samples.push(seconds),
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => {
                    check_interrupt()?;
                    series.missing = Some(format!("failed{}", crate::cli::print::causes(&error)));
                }
            }
        }
    }
    for (contender, samples) in contenders.iter().zip(samples) {
        add(all.series(chart, contender.name, of, "s"), x, samples);
    }
    Ok(())
}
