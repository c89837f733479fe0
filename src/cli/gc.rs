//! `tarnfs gc`

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::HumanBytes;
use serde_json::{Value, json};
use tarnfs::store::{Collected, Decision, GcOptions, Item, Limit};

use super::{Global, image, import, print};

/// Free space in the store
///
/// Removes layers that no image needs, and indexes of tars that are gone. With --max-bytes also
/// images, the one used longest ago first, until the store is within --low. What a mount, a command
/// or a bundle uses stays, and so does whatever nobody can be sure of.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs gc --dry-run --max-bytes 50G
  tarnfs gc --max-bytes 50G --low 40G
  tarnfs gc --max-bytes 85% --low 75%      of the disk, by whatever is on it
  tarnfs gc --all                          every image that is not used")]
pub(crate) struct Args {
    /// The most that the store may have, or percent of its disk that may be in use
    #[arg(long, value_name = "SIZE|N%", value_parser = parse_limit)]
    max_bytes: Option<Limit>,
    /// Once that is exceeded, free as much as this [default: a tenth below]
    #[arg(long, value_name = "SIZE|N%", value_parser = parse_limit, requires = "max_bytes")]
    low: Option<Limit>,
    /// Remove every image that is not used
    #[arg(long, conflicts_with = "max_bytes")]
    all: bool,
    /// What was used within this time stays: 30s, 10m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "10m")]
    min_age: Duration,
    /// Remove nothing, say what would be removed and why
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// One object: dry_run, bytes_before, bytes_freed, bytes_short, decisions
    #[arg(long)]
    json: bool,
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    match text.strip_suffix('%') {
        Some(percent) => match percent.parse() {
            Ok(percent @ 1..=100) => Ok(Limit::DiskPercent(percent)),
            _ => Err("a part of the disk is 1% to 100%".to_owned()),
        },
        None => import::parse_bytes(text).map(Limit::Bytes),
    }
}

pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let bad = || "a time is a number with s, m, h or d behind it".to_owned();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.get(digits.len()..) {
        Some("" | "s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        Some("d") => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number
        .checked_mul(unit)
        .map(Duration::from_secs)
        .ok_or_else(bad)
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let store = image::store(global)?;
    let collected = store.collect(&GcOptions {
        high: args.max_bytes,
        low: args.low,
        all: args.all,
        min_age: args.min_age,
        dry_run: args.dry_run,
    })?;
    if collected.short > 0 {
        eprintln!(
            "tarnfs: {} more should go, but what is left is in use, or was until just now (--min-age)",
            HumanBytes(collected.short)
        );
    }
    let mut out = print::out();
    let shown = if args.json {
        writeln!(
            out,
            "{}",
            serde_json::to_string_pretty(&object(&collected, args.dry_run))?
        )
    } else {
        text(&collected, args.dry_run, &mut out)
    };
    print::finish(shown.and_then(|()| out.flush()).map_err(Into::into))
}

fn words(item: &Item) -> (&'static str, String) {
    match item {
        Item::Image(digest) => ("image", digest.to_string()),
        Item::TarIndex(path) => ("index", print::escape(path.as_bytes())),
        Item::Layer(digest) => ("layer", digest.to_string()),
    }
}

fn text(collected: &Collected, dry_run: bool, out: &mut dyn Write) -> std::io::Result<()> {
    let verb = match dry_run {
        true => "would remove",
        false => "removed",
    };
    for decision in &collected.decisions {
        // What stays is of interest to those who ask why.
        if !decision.goes && !dry_run {
            continue;
        }
        let (kind, name) = words(&decision.item);
        let verb = if decision.goes { verb } else { "keeps" };
        let (bytes, why) = (HumanBytes(decision.bytes), &decision.why);
        writeln!(out, "{verb} {kind} {name} ({bytes}): {why}")?;
    }
    let (freed, before) = (HumanBytes(collected.freed), HumanBytes(collected.before));
    let verb = if dry_run { "would free" } else { "freed" };
    writeln!(out, "{verb} {freed} of {before}")?;
    let kept = collected.decisions.iter().filter(|d| !d.goes).count();
    if kept > 0 && !dry_run {
        writeln!(out, "kept {kept}; --dry-run says why")?;
    }
    Ok(())
}

fn object(collected: &Collected, dry_run: bool) -> Value {
    let decision = |decision: &Decision| {
        let (kind, name) = words(&decision.item);
        json!({
            "kind": kind,
            "name": name,
            "goes": decision.goes,
            "bytes": decision.bytes,
            "why": decision.why,
        })
    };
    json!({
        "dry_run": dry_run,
        "bytes_before": collected.before,
        "bytes_freed": collected.freed,
        "bytes_short": collected.short,
        "decisions": collected.decisions.iter().map(decision).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_times() {
        assert_eq!(parse_limit("85%"), Ok(Limit::DiskPercent(85)));
        assert_eq!(parse_limit("1G"), Ok(Limit::Bytes(1 << 30)));
        assert_eq!(parse_time("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse_time("0"), Ok(Duration::ZERO));
        for bad in ["0%", "101%", "%", "-1", "x"] {
            assert!(parse_limit(bad).is_err(), "{bad}");
        }
        for bad in ["", "h", "1y", "1 h", "99999999999999999999d"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
