//! The report for a terminal: ratios first.

use std::fmt::{self, Write};

use super::{Numbers, Outcome, Report, Series, WorkReport, figure, times};
use crate::cli::bench::works::Group;

/// The whole report as text.
pub(in crate::cli::bench) fn text(report: &Report) -> Result<String, fmt::Error> {
    let mut out = String::new();
    writeln!(
        out,
        "tarnfs bench: {} rounds on {}",
        report.rounds, report.image.name
    )?;
    writeln!(
        out,
        "Ratios to the baseline of the same round: median (quartiles). Below 1 is quicker, or less."
    )?;
    for group in Group::ALL {
        let works: Vec<_> = report.works.iter().filter(|w| w.group == group).collect();
        if works.is_empty() {
            continue;
        }
        writeln!(out, "\n{}", group.title())?;
        for work in works {
            one(&mut out, work)?;
        }
    }
    growth(&mut out, &report.growth)?;
    writeln!(out, "\nEnvironment")?;
    for (label, value) in report.environment.lines() {
        writeln!(out, "  {label:<16}{value}")?;
    }
    let image = &report.image;
    let details = format!(
        "{} entries, {} MiB in files, tar of {} MiB",
        image.entries,
        image.file_bytes >> 20,
        image.tar_bytes >> 20
    );
    writeln!(out, "  {:<16}{details}", "image")?;
    writeln!(out, "  {:<16}{}", "command", report.command)?;
    let took = format!(
        "{:.1} min, of which {:.1} before the first work",
        report.seconds / 60.0,
        report.preparation_seconds / 60.0
    );
    writeln!(out, "  {:<16}{took}", "took")?;
    for warning in &report.environment.warnings {
        writeln!(out, "  warning: {warning}")?;
    }
    for contender in &report.contenders {
        if let Some(why) = &contender.missing {
            writeln!(out, "  without {}: {why}", contender.name)?;
        }
    }
    for what in &report.not_measured {
        writeln!(out, "  not measured: {what}")?;
    }
    Ok(out)
}

fn one(out: &mut String, work: &WorkReport) -> fmt::Result {
    writeln!(out, "\n  {}: {}", work.name, work.what)?;
    for (name, unit) in work.kinds() {
        let more = if name == "time" {
            String::new()
        } else {
            format!("{name}, ")
        };
        if let Some(base) = work.numbers(work.baseline, name) {
            writeln!(out, "    {more}{} = 1×: {}", work.baseline, spread(base))?;
        } else if !more.is_empty() {
            writeln!(out, "    {name}")?;
        }
        for outcome in &work.results {
            if outcome.contender != work.baseline
                && let Some(numbers) = outcome.numbers.iter().find(|n| n.name == name)
            {
                line(out, outcome, numbers, unit)?;
            }
        }
    }
    for (who, why) in work.missing() {
        writeln!(out, "    {who:<16}       -  {why}")?;
    }
    Ok(())
}

fn line(out: &mut String, outcome: &Outcome, numbers: &Numbers, unit: &str) -> fmt::Result {
    let (ratio, quartiles) = match &numbers.ratio {
        Some(r) => (
            times(r.median),
            format!("({} to {})", times(r.q1), times(r.q3)),
        ),
        None => ("-".to_owned(), String::new()),
    };
    let median = numbers.summary.map_or(0.0, |s| s.median);
    writeln!(
        out,
        "    {:<16}{ratio:>8}  {quartiles:<20}  {:>9}",
        outcome.contender,
        figure(median, unit)
    )
}

fn spread(numbers: &Numbers) -> String {
    let of = |value| figure(value, numbers.unit);
    numbers.summary.map_or_else(String::new, |s| {
        format!(
            "{} (quartiles {} to {}, min {})",
            of(s.median),
            of(s.q1),
            of(s.q3),
            of(s.min)
        )
    })
}

fn growth(out: &mut String, series: &[Series]) -> fmt::Result {
    let mut chart = "";
    for one in series {
        if one.chart != chart {
            chart = one.chart;
            writeln!(out, "\nGrowth: {chart}, by {}", one.of)?;
        }
        write!(out, "  {:<16}", one.contender)?;
        if let Some(why) = &one.missing {
            writeln!(out, "-  {why}")?;
            continue;
        }
        for point in &one.points {
            write!(
                out,
                "{}: {}   ",
                point.x,
                figure(point.summary.median, one.unit)
            )?;
        }
        match one.exponent {
            Some(k) => writeln!(out, "~ x^{k:.2}")?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}
