//! `tarnfs stats`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use indicatif::HumanBytes;
use tarnfs::metrics::table as t;
use tarnfs::metrics::{Class, Histogram, Metric, Op, OpenedBy, Phase, Sample, Snapshot, Value};
use tarnfs::mount::control::Client;
use tarnfs::mount::{Engine, engine_of, find_mount, record_of, resolve_point, state_dirs};

use super::{Global, print};

/// Show what a mount's server has done
///
/// How many requests of which kind, how long they took and how they failed, what was copied up, and
/// what the mount took to make. The mount must have been made with --control.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs mount --control /run/app.sock image.tar /mnt
  tarnfs stats /mnt
  tarnfs stats --control /run/app.sock --json | jq .tarnfs_requests_total
  tarnfs stats --prometheus /mnt > /var/lib/node_exporter/tarnfs.prom")]
pub(crate) struct Args {
    /// The directory that it is mounted on
    #[arg(
        value_name = "DIR",
        required_unless_present = "control",
        conflicts_with = "control"
    )]
    dir: Option<PathBuf>,
    /// Its control socket
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
}

/// How statistics are printed.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Form {
    /// An object of metrics, as the server gives it
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,
    /// Prometheus' text format
    #[arg(long)]
    prometheus: bool,
}

pub(crate) fn run(_global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let socket = match (&args.control, &args.dir) {
        (Some(socket), _) => socket.clone(),
        (None, Some(dir)) => socket_of(dir)?,
        (None, None) => bail!("name a directory or a control socket"),
    };
    show(&socket, args.form)
}

/// The control socket of the mount on a directory.
fn socket_of(dir: &Path) -> anyhow::Result<PathBuf> {
    let point = resolve_point(dir).with_context(|| dir.display().to_string())?;
    let mount = find_mount(&point)?;
    let shown = point.display();
    let Some(mount) = mount.filter(|mount| engine_of(mount).is_some()) else {
        bail!("{shown}: no tarnfs mount");
    };
    if engine_of(&mount) == Some(Engine::Kernel) {
        bail!("{shown}: the kernel serves it, and no process that could be asked");
    }
    let Some(record) = record_of(&state_dirs(), mount.minor) else {
        bail!("{shown}: its server is dead, another user's, or an actor's: use --control PATH");
    };
    record
        .control
        .with_context(|| format!("{shown}: was mounted without --control"))
}

/// Asks the server at `socket`, and prints what it says.
pub(crate) fn show(socket: &Path, form: Form) -> anyhow::Result<ExitCode> {
    let at = || socket.display().to_string();
    let mut client = Client::connect(socket).with_context(at)?;
    let told = client.stats_json().with_context(at)?;
    let mut out = print::out();
    let shown = if form.json {
        serde_json::to_writer_pretty(&mut out, &told)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out))
    } else if form.prometheus {
        write!(out, "{}", Snapshot::from_json(&told).to_prometheus())
    } else {
        write!(out, "{}", text(&Snapshot::from_json(&told)))
    };
    print::finish(shown.and_then(|()| out.flush()).map_err(Into::into))
}

/// Statistics for people.
pub(crate) fn text(stats: &Snapshot) -> String {
    let mut lines = vec![];
    lines.extend(about(stats));
    lines.push(("requests", requests(stats)));
    let mut text = String::new();
    let put = |text: &mut String, lines: Vec<(&str, String)>| {
        for (name, said) in lines.into_iter().filter(|(_, said)| !said.is_empty()) {
            text.push_str(&format!("{name:<10} {said}\n"));
        }
    };
    put(&mut text, lines);
    text.push('\n');
    text.push_str(&operations(stats));
    text.push('\n');
    put(&mut text, work(stats));
    text
}

fn about(stats: &Snapshot) -> Vec<(&'static str, String)> {
    let info = stats.samples(&t::MOUNT_INFO).next();
    let of = |label| {
        let value = info.and_then(|info| info.label(label)).unwrap_or_default();
        print::escape(value.as_bytes())
    };
    let backing = stats.samples(&t::BACKING_INFO).next().map(|sample| {
        let shared = match sample.label("shared") {
            Some("true") => ", shared with other mounts",
            _ => "",
        };
        format!("{}{shared}", sample.label("rung").unwrap_or_default())
    });
    let hit = match stats.number(&t::IMAGE_HIT, &[]) {
        Some(0.0) => "indexed or imported for this mount",
        Some(_) => "found ready",
        None => "",
    };
    let phases = Phase::ALL.iter().filter_map(|phase| {
        let took = stats.number(&t::PHASE_SECONDS, &[phase.name()])?;
        Some(format!("{} {}", phase.name(), duration(took)))
    });
    vec![
        ("image", of("image")),
        ("digest", of("digest")),
        ("found", hit.to_owned()),
        ("actor", of("actor")),
        ("mounted on", of("point")),
        ("backing", backing.unwrap_or_default()),
        ("phases", phases.collect::<Vec<_>>().join(", ")),
    ]
}

fn requests(stats: &Snapshot) -> String {
    let mut said = format!(
        "{} answered, {} under way, {} slow",
        count(stats, &t::ANSWERED, &[]),
        count(stats, &t::IN_FLIGHT, &[]),
        count(stats, &t::SLOW, &[]),
    );
    if let Some(oldest) = stats.samples(&t::OLDEST).next()
        && let Value::Number(age) = oldest.value
    {
        let op = oldest.label("op").unwrap_or_default();
        said.push_str(&format!("; the oldest: {op}, for {}", duration(age)));
    }
    said
}

/// A table of all kinds of requests that have come.
fn operations(stats: &Snapshot) -> String {
    let mut rows = vec![["OPERATION", "COUNT", "P50", "P99", "MEAN", "ERRORS"].map(String::from)];
    for op in Op::ALL.map(Op::name) {
        let came = stats.number(&t::REQUESTS, &[op]).unwrap_or_default();
        if came == 0.0 {
            continue;
        }
        let its = |sample: &&Sample| sample.label("op") == Some(op);
        let took = stats.samples(&t::REQUEST_SECONDS).find(its);
        let took = took.and_then(|sample| match &sample.value {
            Value::Histogram(histogram) => Some(histogram),
            _ => None,
        });
        let within = |percent| {
            let within = took.and_then(|took| took.within(percent));
            within.map_or_else(|| "-".to_owned(), at_most)
        };
        let errors = Class::ALL.iter().filter_map(|class| {
            let count = stats.number(&t::ERRORS, &[op, class.name()])?;
            Some(format!("{count} {}", class.name()))
        });
        rows.push([
            op.to_owned(),
            came.to_string(),
            within(50),
            within(99),
            took.and_then(|took| mean(took))
                .map_or_else(|| "-".to_owned(), duration),
            errors.collect::<Vec<_>>().join(", "),
        ]);
    }
    aligned(&rows)
}

#[allow(clippy::cast_precision_loss)]
fn mean(histogram: &Histogram) -> Option<f64> {
    let count = histogram.count();
    (count > 0).then(|| histogram.seconds() / count as f64)
}

/// Columns: the first and the last to the left, numbers to the right.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            if column == 0 {
                line.push_str(&format!("{cell:<width$}"));
            } else if column + 1 == N {
                line.push_str(&format!("  {cell}"));
            } else {
                line.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn work(stats: &Snapshot) -> Vec<(&'static str, String)> {
    let bytes = |metric| bytes(stats.number(metric, &[]).unwrap_or_default());
    let copied = |kind| count(stats, &t::COPY_UPS, &[kind]);
    let took = stats.number(&t::COPY_UP_SECONDS, &[]).unwrap_or_default();
    let upper = stats.number(&t::UPPER_INODES, &[]);
    let seconds = |metric| duration(stats.number(metric, &[]).unwrap_or_default());
    vec![
        ("opens", opens(stats)),
        (
            "data",
            format!(
                "{} read and {} written by requests; {} read from the image by the server",
                bytes(&t::READ_BYTES),
                bytes(&t::WRITTEN_BYTES),
                bytes(&t::IMAGE_READ_BYTES)
            ),
        ),
        (
            "copy-ups",
            format!(
                "{} files, {} directories, {} others: {} in {}",
                copied("file"),
                copied("directory"),
                copied("other"),
                bytes(&t::COPY_UP_BYTES),
                duration(took)
            ),
        ),
        ("whiteouts", count(stats, &t::WHITEOUTS, &[])),
        (
            "index",
            format!("{} lookups", count(stats, &t::INDEX_LOOKUPS, &[])),
        ),
        (
            "upper",
            upper.map_or_else(String::new, |inodes| {
                format!("{} in {inodes} inodes", bytes(&t::UPPER_BYTES))
            }),
        ),
        (
            "in memory",
            format!(
                "{} inodes, {} open files",
                count(stats, &t::INODES_IN_MEMORY, &[]),
                count(stats, &t::OPEN_FILES, &[])
            ),
        ),
        (
            "process",
            format!(
                "{}, {} descriptors, up {}",
                bytes(&t::RSS),
                count(stats, &t::OPEN_FDS, &[]),
                seconds(&t::UPTIME)
            ),
        ),
    ]
}

fn opens(stats: &Snapshot) -> String {
    if stats.number(&t::NOOPEN, &[]) == Some(1.0) {
        return "not asked for (noopen)".to_owned();
    }
    let [kernel, maps, requests] =
        OpenedBy::ALL.map(|by| stats.number(&t::OPENS, &[by.name()]).unwrap_or_default());
    let all = kernel + maps + requests;
    let share = if all > 0.0 {
        format!(" ({:.0} %)", kernel / all * 100.0)
    } else {
        String::new()
    };
    format!("{all}: {kernel} passed through{share}, {maps} but for maps, {requests} by requests")
}

fn count(stats: &Snapshot, metric: &Metric, labels: &[&str]) -> String {
    stats.number(metric, labels).unwrap_or_default().to_string()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn bytes(number: f64) -> String {
    HumanBytes(number as u64).to_string()
}

/// The longest time of a bucket.
fn at_most(seconds: f64) -> String {
    if seconds.is_finite() {
        duration(seconds)
    } else {
        "> 1 s".to_owned()
    }
}

fn duration(seconds: f64) -> String {
    let digits = |number: f64| if number < 9.95 { 1 } else { 0 };
    let (micros, millis) = (seconds * 1e6, seconds * 1e3);
    if micros < 999.5 {
        format!("{micros:.0$} µs", digits(micros))
    } else if millis < 999.5 {
        format!("{millis:.0$} ms", digits(millis))
    } else if seconds < 60.0 {
        format!("{seconds:.0$} s", digits(seconds))
    } else if seconds < 3600.0 {
        format!("{:.0} min", (seconds / 60.0).floor())
    } else {
        format!("{:.1} h", seconds / 3600.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, said) in [
            (0.0, "0.0 µs"),
            (0.000_001, "1.0 µs"),
            (0.000_064, "64 µs"),
            (0.001_024, "1.0 ms"),
            (0.999_6, "1.0 s"),
            (12.3, "12 s"),
            (61.0, "1 min"),
            (5400.0, "1.5 h"),
        ] {
            assert_eq!(duration(seconds), said);
        }
        assert_eq!(at_most(f64::INFINITY), "> 1 s");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["A", "N", "E"], ["long", "12345", ""], ["x", "1", "y"]];
        let rows = rows.map(|row| row.map(String::from));
        assert_eq!(
            aligned(&rows),
            "A         N  E\nlong  12345\nx         1  y\n"
        );
    }

    #[test]
    fn nothing_told_is_no_error() {
        let shown = text(&Snapshot::default());
        assert!(shown.contains("requests   0 answered"), "{shown}");
    }
}
