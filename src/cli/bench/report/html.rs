//! The report as one HTML file: no script, nothing from elsewhere. Its markup is XML too.

use std::fmt::{self, Write};

use super::svg::{self, Axis};
use super::{Numbers, Outcome, Report, Series, WorkReport, figure, times};
use crate::cli::bench::contenders;
use crate::cli::bench::works::Group;

const STYLE: &str = include_str!("style.css");

/// Text for between tags and in attributes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The whole page.
pub(in crate::cli::bench) fn page(report: &Report) -> Result<String, fmt::Error> {
    let mut out = String::new();
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>tarnfs bench: {}</title><style>\n{STYLE}",
        escape(&report.image.name)
    )?;
    for contender in &contenders::ALL {
        let name = contender.name;
        write!(
            out,
            ".c-{name} {{ fill: var(--{name}); stroke: var(--{name}); background: var(--{name}); }}\n\
             rect.c-{name} {{ stroke: none; }}\ncircle.c-{name} {{ stroke: var(--ground); }}\n"
        )?;
    }
    writeln!(out, "</style></head><body>")?;
    head(&mut out, report)?;
    for group in Group::ALL {
        let works: Vec<_> = report.works.iter().filter(|w| w.group == group).collect();
        if !works.is_empty() {
            section(&mut out, group, &works)?;
        }
    }
    growth(&mut out, &report.growth)?;
    environment(&mut out, report)?;
    writeln!(out, "</body></html>")?;
    Ok(out)
}

fn head(out: &mut String, report: &Report) -> fmt::Result {
    let (image, environment) = (&report.image, &report.environment);
    writeln!(
        out,
        "<h1>tarnfs bench</h1>\n<p class=\"soft\">{}: {} entries, {} MiB in files, in a tar of {} \
         MiB. {} on {} CPUs, {} UTC.</p>",
        escape(&image.name),
        image.entries,
        image.file_bytes >> 20,
        image.tar_bytes >> 20,
        escape(&environment.kernel),
        environment.cpus,
        escape(&environment.began)
    )?;
    if report.quick {
        warning(
            out,
            "A quick run: little data and few rounds. It shows that it works, not how fast.",
        )?;
    }
    for text in &environment.warnings {
        warning(out, text)?;
    }
    writeln!(
        out,
        "<p>Each bar is a ratio to the baseline, kernel overlayfs on an extracted tree unless it \
         says otherwise: the median of {} rounds, each of them against the baseline of the same \
         round. Left of the line at 1× is quicker, or less; right of it is slower, or more. The \
         thin line goes from the lower to the upper quartile. The axes are logarithmic: half and \
         twice are equally far from 1×.</p>",
        report.rounds
    )?;
    writeln!(out, "<ul class=\"legend\">")?;
    for contender in &report.contenders {
        let why = contender.missing.as_ref();
        let why = why.map_or_else(String::new, |why| format!(". Not here: {why}"));
        writeln!(
            out,
            "<li><span class=\"swatch c-{0}\"></span><strong>{0}</strong>\
             <span class=\"soft\">{1}{2}</span></li>",
            contender.name,
            escape(contender.what),
            escape(&why)
        )?;
    }
    writeln!(
        out,
        "</ul>\n<p>To repeat it:</p><pre><code>{}</code></pre>",
        escape(&report.command)
    )
}

fn warning(out: &mut String, text: &str) -> fmt::Result {
    writeln!(out, "<p class=\"warning\">{}</p>", escape(text))
}

fn section(out: &mut String, group: Group, works: &[&WorkReport]) -> fmt::Result {
    writeln!(out, "<section><h2>{}</h2>", escape(group.title()))?;
    let ratios = works
        .iter()
        .flat_map(|work| &work.results)
        .flat_map(|outcome| &outcome.numbers)
        .filter_map(|numbers| numbers.ratio);
    // One is always on the axis, with room on either side.
    let values = ratios.flat_map(|r| [r.q1, r.median, r.q3]);
    let axis = Axis::of(values.chain([0.5, 2.0]));
    axis_row(out, axis)?;
    for work in works {
        writeln!(
            out,
            "<div class=\"work\"><h3>{}</h3><p class=\"what\">{}</p>",
            escape(work.name),
            escape(work.what)
        )?;
        for (name, _) in work.kinds() {
            kind(out, work, name, axis)?;
        }
        for (who, why) in work.missing() {
            writeln!(
                out,
                "<div class=\"row\"><span class=\"name\">{who}</span>\
                 <span class=\"why\">{}</span></div>",
                escape(why)
            )?;
        }
        writeln!(out, "</div>")?;
    }
    axis_row(out, axis)?;
    table(out, works)?;
    writeln!(out, "</section>")
}

fn axis_row(out: &mut String, axis: Option<Axis>) -> fmt::Result {
    let Some(axis) = axis else {
        return Ok(());
    };
    write!(out, "<div class=\"row\"><span class=\"name\"></span>")?;
    svg::scale(out, axis)?;
    writeln!(out, "<span class=\"value\"></span></div>")
}

/// The bars of one kind of figures of a work.
fn kind(out: &mut String, work: &WorkReport, name: &str, axis: Option<Axis>) -> fmt::Result {
    if name != "time" {
        writeln!(out, "<p class=\"kind\">{}</p>", escape(name))?;
    }
    if let Some(base) = work.numbers(work.baseline, name)
        && let Some(s) = base.summary
    {
        let of = |value| figure(value, base.unit);
        writeln!(
            out,
            "<p class=\"base\">{} = 1×: {} (quartiles {} to {})</p>",
            work.baseline,
            of(s.median),
            of(s.q1),
            of(s.q3)
        )?;
    }
    for outcome in &work.results {
        let numbers = outcome.numbers.iter().find(|n| n.name == name);
        let Some(numbers) = numbers.filter(|_| outcome.contender != work.baseline) else {
            continue;
        };
        row(out, work, outcome, numbers, axis)?;
    }
    Ok(())
}

fn row(
    out: &mut String,
    work: &WorkReport,
    outcome: &Outcome,
    numbers: &Numbers,
    axis: Option<Axis>,
) -> fmt::Result {
    let name = outcome.contender;
    write!(out, "<div class=\"row\"><span class=\"name\">{name}</span>")?;
    match (&numbers.ratio, axis) {
        (Some(ratio), Some(axis)) => {
            let spoken = escape(&svg::spoken(name, work.name, ratio));
            svg::bar(out, axis, &format!("c-{name}"), ratio, &spoken)?;
            write!(out, "<span class=\"value\">{}</span>", times(ratio.median))?;
        }
        _ => {
            let median = numbers.summary.map_or(0.0, |s| s.median);
            let why = match work.numbers(work.baseline, numbers.name) {
                Some(_) => "",
                None => " (no ratio: the baseline was not measured)",
            };
            let value = figure(median, numbers.unit);
            write!(out, "<span class=\"why\">{value}{why}</span>")?;
        }
    }
    writeln!(out, "</div>")
}

fn table(out: &mut String, works: &[&WorkReport]) -> fmt::Result {
    writeln!(
        out,
        "<details><summary>The figures</summary><div class=\"scroll\"><table><thead><tr>\
         <th>work</th><th>contender</th><th>ratio</th><th>quartiles</th><th>min to max</th>\
         <th>median</th><th>quartiles</th><th>min</th><th>rounds</th></tr></thead><tbody>"
    )?;
    for work in works {
        for outcome in &work.results {
            if let Some(why) = &outcome.missing {
                writeln!(
                    out,
                    "<tr><td>{}</td><td>{}</td><td class=\"why\" colspan=\"7\">{}</td></tr>",
                    work.name,
                    outcome.contender,
                    escape(why)
                )?;
            }
            for numbers in &outcome.numbers {
                figures(out, work, outcome, numbers)?;
            }
        }
    }
    writeln!(out, "</tbody></table></div></details>")
}

fn figures(
    out: &mut String,
    work: &WorkReport,
    outcome: &Outcome,
    numbers: &Numbers,
) -> fmt::Result {
    let what = match numbers.name {
        "time" => String::new(),
        other => format!(", {other}"),
    };
    write!(
        out,
        "<tr><td>{}{}</td><td>{}</td>",
        work.name,
        escape(&what),
        outcome.contender
    )?;
    match &numbers.ratio {
        Some(r) => write!(
            out,
            "<td><strong>{}</strong></td><td>{} to {}</td><td>{} to {}</td>",
            times(r.median),
            times(r.q1),
            times(r.q3),
            times(r.min),
            times(r.max)
        )?,
        None => write!(out, "<td>-</td><td>-</td><td>-</td>")?,
    }
    let of = |value| figure(value, numbers.unit);
    if let Some(s) = numbers.summary {
        write!(
            out,
            "<td>{}</td><td>{} to {}</td><td>{}</td>",
            of(s.median),
            of(s.q1),
            of(s.q3),
            of(s.min)
        )?;
    }
    writeln!(out, "<td>{}</td></tr>", numbers.samples.len())
}

fn growth(out: &mut String, all: &[Series]) -> fmt::Result {
    let mut charts: Vec<&str> = Vec::new();
    for series in all {
        if !charts.contains(&series.chart) {
            charts.push(series.chart);
        }
    }
    if charts.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<section><h2>Growth</h2><p>Both axes are logarithmic: a straight line is a power, \
         x<sup>k</sup>; k = 1 is \"in proportion\", k = 0 \"whatever the size\".</p>"
    )?;
    for chart in charts {
        let series: Vec<&Series> = all.iter().filter(|s| s.chart == chart).collect();
        let of = series.first().map_or("", |s| s.of);
        writeln!(
            out,
            "<div class=\"work\"><h3>{}</h3><p class=\"what\">by {}</p>",
            escape(chart),
            escape(of)
        )?;
        svg::lines(out, &series)?;
        writeln!(out, "<ul class=\"legend\">")?;
        for one in &series {
            let fit = match (&one.missing, one.exponent) {
                (Some(why), _) => format!("not measured: {why}"),
                (None, Some(k)) => format!("k = {k:.2}"),
                (None, None) => String::new(),
            };
            writeln!(
                out,
                "<li><span class=\"swatch c-{0}\"></span><strong>{0}</strong>\
                 <span class=\"soft\">{1}</span></li>",
                one.contender,
                escape(&fit)
            )?;
        }
        writeln!(out, "</ul></div>")?;
        points(out, &series)?;
    }
    writeln!(out, "</section>")
}

fn points(out: &mut String, series: &[&Series]) -> fmt::Result {
    writeln!(
        out,
        "<details><summary>The figures</summary><div class=\"scroll\"><table><thead><tr>\
         <th>contender</th><th>size</th><th>median</th><th>quartiles</th><th>min</th>\
         <th>rounds</th></tr></thead><tbody>"
    )?;
    for one in series {
        for point in &one.points {
            let of = |value| figure(value, one.unit);
            let s = &point.summary;
            writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{} to {}</td><td>{}</td><td>{}</td></tr>",
                one.contender,
                point.x,
                of(s.median),
                of(s.q1),
                of(s.q3),
                of(s.min),
                point.samples.len()
            )?;
        }
    }
    writeln!(out, "</tbody></table></div></details>")
}

fn environment(out: &mut String, report: &Report) -> fmt::Result {
    writeln!(out, "<section><h2>Environment</h2><dl>")?;
    for (label, value) in report.environment.lines() {
        term(out, label, &value)?;
    }
    term(out, "program started", &report.image.command.join(" "))?;
    for contender in &report.contenders {
        if let Some(options) = &contender.options {
            term(out, contender.name, options)?;
        }
    }
    writeln!(out, "</dl>")?;
    if !report.not_measured.is_empty() {
        writeln!(out, "<p>Not measured:</p><ul>")?;
        for what in &report.not_measured {
            writeln!(out, "<li>{}</li>", escape(what))?;
        }
        writeln!(out, "</ul>")?;
    }
    writeln!(
        out,
        "<p class=\"soft\">tarnfs and fuse-overlayfs are mounted by starting their programs, \
         overlayfs and erofs by system calls. \"Caches empty\" is after sync(2) and 3 to \
         /proc/sys/vm/drop_caches. Every sample has a mount and an upper directory of its own, on \
         one filesystem. What a contender finds is compared with what the baseline finds.</p>\
         </section>"
    )
}

fn term(out: &mut String, label: &str, value: &str) -> fmt::Result {
    writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(label), escape(value))
}
