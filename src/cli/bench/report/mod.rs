//! What was measured, as data; and the forms that it is shown in.

pub(super) mod html;
mod svg;
pub(super) mod table;

#[cfg(test)]
mod tests;

use serde::Serialize;

use super::environment::Environment;
use super::lab::Sizes;
use super::stats::Summary;
use super::works::Group;

/// The version of the JSON; another number is another form.
pub(super) const SCHEMA: &str = "tarnfs-bench/2";

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) schema: &'static str,
    /// The command to repeat it with.
    pub(super) command: String,
    pub(super) environment: Environment,
    pub(super) image: ImageReport,
    pub(super) rounds: usize,
    /// The time of everything, in seconds; and of what came before the first work.
    pub(super) seconds: f64,
    pub(super) preparation_seconds: f64,
    pub(super) quick: bool,
    /// Files, bytes and mounts of a work.
    pub(super) sizes: Sizes,
    pub(super) contenders: Vec<ContenderReport>,
    pub(super) works: Vec<WorkReport>,
    pub(super) growth: Vec<Series>,
    /// What was not measured at all, and why.
    pub(super) not_measured: Vec<String>,
}

/// The image that it was measured on.
#[derive(Debug, Serialize)]
pub(super) struct ImageReport {
    pub(super) name: String,
    pub(super) tar_bytes: u64,
    pub(super) entries: u64,
    pub(super) file_bytes: u64,
    pub(super) small_files: usize,
    /// Of the image of large files, which is made.
    pub(super) big_file_bytes: u64,
    pub(super) command: Vec<String>,
}

/// Who took part.
#[derive(Debug, Serialize)]
pub(super) struct ContenderReport {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    /// The arguments of `tarnfs mount`, for ours.
    pub(super) mount_arguments: Vec<&'static str>,
    /// The options that the kernel shows of its mount.
    pub(super) options: Option<String>,
    /// Why it did not take part.
    pub(super) missing: Option<String>,
}

/// One work with everybody.
#[derive(Debug, Serialize)]
pub(super) struct WorkReport {
    pub(super) name: &'static str,
    pub(super) group: Group,
    pub(super) what: &'static str,
    pub(super) baseline: &'static str,
    pub(super) results: Vec<Outcome>,
}

/// One work with one contender.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) contender: &'static str,
    /// Why there are no figures.
    pub(super) missing: Option<String>,
    /// The whole time of all rounds, preparations included.
    pub(super) seconds: f64,
    pub(super) numbers: Vec<Numbers>,
}

/// One kind of figure: its samples in the order of the rounds.
#[derive(Debug, Serialize)]
pub(super) struct Numbers {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) samples: Vec<f64>,
    pub(super) summary: Option<Summary>,
    /// To the baseline of the same round.
    pub(super) ratio: Option<Summary>,
}

/// How something grows with something else.
#[derive(Debug, Serialize)]
pub(super) struct Series {
    /// Series of one chart have the same.
    pub(super) chart: &'static str,
    pub(super) contender: &'static str,
    /// What x counts.
    pub(super) of: &'static str,
    pub(super) unit: &'static str,
    pub(super) points: Vec<Point>,
    /// The k of y = c·x^k, fitted to the medians.
    pub(super) exponent: Option<f64>,
    pub(super) missing: Option<String>,
}

/// A size and what it cost.
#[derive(Debug, Serialize)]
pub(super) struct Point {
    pub(super) x: u64,
    pub(super) samples: Vec<f64>,
    pub(super) summary: Summary,
}

impl WorkReport {
    /// How many rounds there were of it, at most.
    pub(super) fn rounds(&self) -> usize {
        let numbers = self.results.iter().flat_map(|result| &result.numbers);
        // Where nobody could do it, none is missing.
        let samples = numbers.map(|numbers| numbers.samples.len());
        samples.max().unwrap_or(usize::MAX)
    }

    /// The figures of one contender that are called so.
    pub(super) fn numbers(&self, contender: &str, name: &str) -> Option<&Numbers> {
        let outcome = self.results.iter().find(|r| r.contender == contender)?;
        outcome.numbers.iter().find(|numbers| numbers.name == name)
    }

    /// Who has no figures, and why; all of them at once where nobody has, for one reason.
    pub(super) fn missing(&self) -> Vec<(&'static str, &str)> {
        let all: Vec<(&'static str, &str)> = self
            .results
            .iter()
            .filter_map(|r| Some((r.contender, r.missing.as_deref()?)))
            .collect();
        match all.first() {
            Some(&(_, why))
                if all.len() > 1
                    && all.len() == self.results.len()
                    && all.iter().all(|(_, other)| *other == why) =>
            {
                vec![("everybody", why)]
            }
            _ => all,
        }
    }

    /// The kinds of figures, in their order.
    pub(super) fn kinds(&self) -> Vec<(&'static str, &'static str)> {
        let best = self.results.iter().max_by_key(|r| r.numbers.len());
        best.map(|r| r.numbers.iter().map(|n| (n.name, n.unit)).collect())
            .unwrap_or_default()
    }
}

/// A figure with three digits and a unit that fits.
pub(super) fn figure(value: f64, unit: &str) -> String {
    let (value, unit) = match unit {
        "s" if value >= 1.0 || value == 0.0 => (value, "s"),
        "s" if value >= 1e-3 => (value * 1e3, "ms"),
        "s" if value >= 1e-6 => (value * 1e6, "µs"),
        "s" => (value * 1e9, "ns"),
        _ => (value, unit),
    };
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}

/// A ratio: `0.042×`, `0.97×`, `12.3×`, `345×`.
pub(super) fn times(ratio: f64) -> String {
    let digits = match ratio {
        r if r >= 100.0 => 0,
        r if r >= 10.0 => 1,
        r if r >= 0.1 => 2,
        _ => 3,
    };
    format!("{ratio:.digits$}×")
}
