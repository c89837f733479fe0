//! Plots: bars of ratios and lines of growth, on logarithmic axes.
//!
//! Positions along the axis are percentages and everything else is in pixels, so that a plot is as
//! wide as its place and its text never shrinks with it.

use std::fmt::{self, Write};

use super::{Point, Series, Summary, figure, times};

/// A logarithmic axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
}

/// 1, 2 and 5 times powers of ten.
fn rounds() -> impl Iterator<Item = f64> {
    (-12..13).flat_map(|k| [1.0, 2.0, 5.0].map(|n| n * 10_f64.powi(k)))
}

impl Axis {
    /// An axis that holds all of the values, from a round number to a round number.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (mut low, mut high) = (f64::MAX, 0.0_f64);
        for value in values.filter(|v| v.is_finite() && *v > 0.0) {
            low = low.min(value);
            high = high.max(value);
        }
        if high == 0.0 {
            return None;
        }
        let below = rounds().filter(|&r| r <= low).last().unwrap_or(low);
        let above = rounds().find(|&r| r >= high).unwrap_or(high);
        let above = if above > below { above } else { below * 2.0 };
        Some(Self {
            low: below,
            high: above,
        })
    }

    /// Where a value is, in percent.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        share.clamp(0.0, 1.0) * 100.0
    }

    /// Round numbers on the axis, not too many.
    pub(super) fn ticks(&self, most: usize) -> Vec<f64> {
        let on = |value: &f64| *value >= self.low * 0.999 && *value <= self.high * 1.001;
        let all: Vec<f64> = rounds().filter(on).collect();
        if all.len() <= most {
            return all;
        }
        let powers = |step: i32| -> Vec<f64> {
            (-12..13)
                .filter(|k| k % step == 0)
                .map(|k| 10_f64.powi(k))
                .filter(on)
                .collect()
        };
        (1..13)
            .map(powers)
            .find(|ticks| ticks.len() <= most)
            .unwrap_or_default()
    }
}

/// Most ticks of an axis: what has room on a telephone.
const TICKS: usize = 5;

/// Height of a bar's row.
const ROW: u32 = 22;

/// A bar from 1 to the ratio, with whiskers from quartile to quartile.
pub(super) fn bar(
    out: &mut String,
    axis: Axis,
    class: &str,
    ratio: &Summary,
    label: &str,
) -> fmt::Result {
    let (one, at) = (axis.at(1.0), axis.at(ratio.median));
    let (left, right) = (one.min(at), one.max(at));
    write!(
        out,
        "<svg class=\"bar\" width=\"100%\" height=\"{ROW}\" role=\"img\" aria-label=\"{label}\">"
    )?;
    grid(out, axis)?;
    write!(
        out,
        "<rect class=\"{class}\" x=\"{left:.2}%\" y=\"5\" width=\"{:.2}%\" height=\"12\"/>",
        (right - left).max(0.4)
    )?;
    let (q1, q3) = (axis.at(ratio.q1), axis.at(ratio.q3));
    line(out, "whisker", (q1, 11), (q3, 11))?;
    line(out, "whisker", (q1, 7), (q1, 15))?;
    line(out, "whisker", (q3, 7), (q3, 15))?;
    write!(out, "</svg>")
}

fn line(out: &mut String, class: &str, from: (f64, u32), to: (f64, u32)) -> fmt::Result {
    write!(
        out,
        "<line class=\"{class}\" x1=\"{:.2}%\" y1=\"{}\" x2=\"{:.2}%\" y2=\"{}\"/>",
        from.0, from.1, to.0, to.1
    )
}

fn grid(out: &mut String, axis: Axis) -> fmt::Result {
    for tick in axis.ticks(TICKS) {
        let at = axis.at(tick);
        let class = if (tick - 1.0).abs() < 1e-9 {
            "unit"
        } else {
            "grid"
        };
        line(out, class, (at, 0), (at, ROW))?;
    }
    Ok(())
}

/// The numbers of an axis of ratios.
pub(super) fn scale(out: &mut String, axis: Axis) -> fmt::Result {
    write!(
        out,
        "<svg class=\"scale\" width=\"100%\" height=\"20\" aria-hidden=\"true\">"
    )?;
    numbers(out, axis, 14, &|tick| format!("{}×", short(tick)))?;
    write!(out, "</svg>")
}

fn numbers(out: &mut String, axis: Axis, y: u32, label: &dyn Fn(f64) -> String) -> fmt::Result {
    for tick in axis.ticks(TICKS) {
        let at = axis.at(tick);
        // The outermost ones stay inside.
        let anchor = match at {
            at if at < 4.0 => "start",
            at if at > 96.0 => "end",
            _ => "middle",
        };
        write!(
            out,
            "<text x=\"{at:.2}%\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>",
            label(tick)
        )?;
    }
    Ok(())
}

/// A round number without needless digits.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", v / 1e6),
        v if v >= 1e3 => format!("{} k", v / 1e3),
        v => format!("{}", (v * 1e6).round() / 1e6),
    }
}

const HEIGHT: f64 = 240.0;

/// A chart of lines, both axes logarithmic: the numbers of y beside it, those of x below.
pub(super) fn lines(out: &mut String, series: &[&Series]) -> fmt::Result {
    let points = || series.iter().flat_map(|s| &s.points);
    let xs = Axis::of(points().map(|p| super::super::stats::float(p.x)));
    let ys = Axis::of(points().flat_map(|p| [p.summary.min, p.summary.max]));
    let (Some(xs), Some(ys), Some(first)) = (xs, ys, series.first()) else {
        return Ok(());
    };
    let y = |value: f64| 8.0 + (HEIGHT - 16.0) * (1.0 - ys.at(value) / 100.0);
    write!(
        out,
        "<div class=\"chart\"><svg class=\"y\" width=\"70\" height=\"{HEIGHT}\" aria-hidden=\"true\">"
    )?;
    for tick in ys.ticks(TICKS) {
        write!(
            out,
            "<text x=\"64\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            y(tick) + 4.0,
            tick_of(tick, first.unit)
        )?;
    }
    write!(
        out,
        "</svg><svg class=\"plot\" width=\"100%\" height=\"{}\" role=\"img\" \
         aria-label=\"{} by {}\">",
        HEIGHT + 22.0,
        first.chart,
        first.of
    )?;
    for tick in ys.ticks(TICKS) {
        let at = y(tick);
        write!(
            out,
            "<line class=\"grid\" x1=\"0%\" y1=\"{at:.1}\" x2=\"100%\" y2=\"{at:.1}\"/>"
        )?;
    }
    for one in series {
        let at = |p: &Point| (xs.at(super::super::stats::float(p.x)), y(p.summary.median));
        for pair in one.points.windows(2) {
            if let [a, b] = pair {
                let ((x1, y1), (x2, y2)) = (at(a), at(b));
                write!(
                    out,
                    "<line class=\"curve c-{}\" x1=\"{x1:.2}%\" y1=\"{y1:.1}\" x2=\"{x2:.2}%\" \
                     y2=\"{y2:.1}\"/>",
                    one.contender
                )?;
            }
        }
        for point in &one.points {
            let (x, median) = at(point);
            write!(
                out,
                "<line class=\"whisker\" x1=\"{x:.2}%\" y1=\"{:.1}\" x2=\"{x:.2}%\" y2=\"{:.1}\"/>\
                 <circle class=\"c-{}\" cx=\"{x:.2}%\" cy=\"{median:.1}\" r=\"5\">\
                 <title>{}: {}: {}</title></circle>",
                y(point.summary.q1),
                y(point.summary.q3),
                one.contender,
                one.contender,
                point.x,
                figure(point.summary.median, one.unit)
            )?;
        }
    }
    let below = 254;
    numbers(out, xs, below, &short)?;
    write!(out, "</svg></div>")
}

/// A tick in the unit that fits, without digits behind a point that say nothing.
fn tick_of(value: f64, unit: &str) -> String {
    let text = figure(value, unit);
    text.replace(".00 ", " ").replace(".0 ", " ")
}

/// What a screen reader says of a bar.
pub(super) fn spoken(contender: &str, work: &str, ratio: &Summary) -> String {
    format!(
        "{work}, {contender}: {} (quartiles {} to {})",
        times(ratio.median),
        times(ratio.q1),
        times(ratio.q3)
    )
}
