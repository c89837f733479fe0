//! Prometheus' text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::Write as _;

use super::snapshot::{Sample, Snapshot, Value};

/// What the text is, in HTTP's words.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Snapshot {
    /// As Prometheus' text: HELP and TYPE of each metric, and its values.
    #[must_use]
    pub fn to_prometheus(&self) -> String {
        let mut text = String::new();
        for family in self.families() {
            let metric = family.metric;
            let (name, help) = (metric.name, escape(metric.help, false));
            // Writing to a String cannot fail.
            writeln!(text, "# HELP {name} {help}").ok();
            writeln!(text, "# TYPE {name} {}", metric.kind.name()).ok();
            for sample in &family.samples {
                put(&mut text, name, sample);
            }
        }
        text
    }
}

fn put(text: &mut String, name: &str, sample: &Sample) {
    let labels: Vec<_> = sample
        .labels
        .iter()
        .map(|(label, value)| format!("{label}=\"{}\"", escape(value, true)))
        .collect();
    let mut line = |suffix: &str, le: Option<&str>, value: &dyn std::fmt::Display| {
        let le = le.map(|le| format!("le=\"{le}\""));
        let all: Vec<_> = labels.iter().cloned().chain(le).collect();
        let all = if all.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", all.join(","))
        };
        writeln!(text, "{name}{suffix}{all} {value}").ok();
    };
    match &sample.value {
        Value::Count(count) => line("", None, count),
        Value::Number(number) => line("", None, number),
        Value::Histogram(histogram) => {
            for (bound, sum) in histogram.cumulative() {
                line("_bucket", Some(&bound.to_string()), &sum);
            }
            line("_bucket", Some("+Inf"), &histogram.count());
            line("_sum", None, &histogram.seconds());
            line("_count", None, &histogram.count());
        }
    }
}

fn escape(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes {
        text.replace('"', "\\\"")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Histogram, table};
    use super::*;

    #[test]
    fn what_the_text_looks_like() {
        let mut histogram = Histogram {
            nanoseconds: 1_500_000,
            ..Histogram::default()
        };
        histogram.counts[0] = 2;
        histogram.counts[21] = 1;
        let mut snapshot = Snapshot::default();
        snapshot.put(&table::ANSWERED, &[], Value::Count(3));
        let value = Value::Histogram(Box::new(histogram));
        snapshot.put(&table::REQUEST_SECONDS, &["read"], value);
        let odd = ["a\"b\\c\nd", "", "", ""];
        snapshot.put(&table::MOUNT_INFO, &odd, Value::Count(1));
        let text = snapshot.to_prometheus();
        assert!(text.contains("# TYPE tarnfs_requests_answered_total counter\n"));
        assert!(text.contains("\ntarnfs_requests_answered_total 3\n"));
        let read = |what: &str| text.contains(&format!("\ntarnfs_request_seconds{what}\n"));
        assert!(read("_bucket{op=\"read\",le=\"0.000001\"} 2"), "{text}");
        assert!(read("_bucket{op=\"read\",le=\"1.048576\"} 2"), "{text}");
        assert!(read("_bucket{op=\"read\",le=\"+Inf\"} 3"), "{text}");
        assert!(read("_sum{op=\"read\"} 0.0015"), "{text}");
        assert!(read("_count{op=\"read\"} 3"), "{text}");
        assert!(text.contains("image=\"a\\\"b\\\\c\\nd\""), "{text}");
        assert!(text.ends_with('\n'));
    }
}
