//! What a server has told of itself.

use serde_json::{Map, Number, Value as Json, json};

use super::table::{self, Metric};

/// Buckets of a histogram: one for each of [`bound`]'s, and one for what took longer.
pub const BUCKETS: usize = 22;

/// The longest time of a bucket in seconds: 2^`bucket` µs, from 1 µs to 1.048576 s; `None` for the
/// last one.
#[must_use]
pub fn bound(bucket: usize) -> Option<f64> {
    let power = u32::try_from(bucket)
        .ok()
        .filter(|_| bucket + 1 < BUCKETS)?;
    Some(f64::from(1_u32 << power) / 1e6)
}

/// How often something took how long.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    /// How often a time of each bucket.
    pub counts: [u64; BUCKETS],
    /// All times together.
    pub nanoseconds: u64,
}

impl Histogram {
    /// The bucket of a time in nanoseconds.
    pub(super) fn bucket(nanoseconds: u64) -> usize {
        let micros = nanoseconds.div_ceil(1_000).max(1);
        // Beyond 2^63 there is no power of two; that is longer than any bucket's.
        let power = micros
            .checked_next_power_of_two()
            .map_or(BUCKETS, |power| power.trailing_zeros() as usize);
        power.min(BUCKETS - 1)
    }

    /// How often in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// All times together, in seconds.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn seconds(&self) -> f64 {
        self.nanoseconds as f64 / 1e9
    }

    /// For each bucket that has a [`bound`]: it, and how often at most that.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut sum = 0_u64;
        self.counts
            .iter()
            .enumerate()
            .filter_map(move |(n, count)| {
                sum = sum.saturating_add(*count);
                Some((bound(n)?, sum))
            })
    }

    /// The seconds in which `percent` of them were done, as well as the buckets tell; `None` where
    /// there were none, infinity where it was longer than all bounds.
    #[must_use]
    pub fn within(&self, percent: u64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = u128::from(count) * u128::from(percent);
        let mut done = self.cumulative();
        let found = done.find(|&(_, sum)| u128::from(sum) * 100 >= wanted);
        Some(found.map_or(f64::INFINITY, |(bound, _)| bound))
    }

    fn to_json(&self) -> Json {
        let buckets: Vec<_> = self.cumulative().map(|(le, n)| json!([le, n])).collect();
        json!({ "count": self.count(), "sum": self.seconds(), "buckets": buckets })
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    fn from_json(json: &Json) -> Option<Self> {
        let mut histogram = Self {
            // Negative numbers and what is too large stay at the ends.
            nanoseconds: (json.get("sum")?.as_f64()? * 1e9).round() as u64,
            ..Self::default()
        };
        let mut before = 0_u64;
        let told = json.get("buckets")?.as_array()?;
        let sums = told.iter().map(|pair| pair.get(1)?.as_u64());
        let all = sums.chain([json.get("count")?.as_u64()]);
        for (count, sum) in histogram.counts.iter_mut().zip(all) {
            *count = sum?.checked_sub(before)?;
            before = sum?;
        }
        Some(histogram)
    }
}

/// A value of a metric.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number.
    Count(u64),
    /// Another.
    Number(f64),
    /// How often something took how long.
    Histogram(Box<Histogram>),
}

/// A value, and of what.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// In the order of [`Metric::labels`].
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: Value,
}

impl Sample {
    /// The value of a label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A metric with its values.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// What it is.
    pub metric: &'static Metric,
    /// The values, no two with the same labels.
    pub samples: Vec<Sample>,
}

/// What a server has told of itself at one time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    families: Vec<Family>,
}

impl Snapshot {
    /// Adds a value, with the values of all of the metric's labels.
    pub fn put(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        let names = metric.labels.iter().map(|&name| name.to_owned());
        let values = labels.iter().map(|&value| value.to_owned());
        let labels = names.zip(values).collect();
        self.put_sample(metric, Sample { labels, value });
    }

    fn put_sample(&mut self, metric: &'static Metric, sample: Sample) {
        let known = |family: &&mut Family| family.metric.name == metric.name;
        match self.families.iter_mut().find(known) {
            Some(family) => family.samples.push(sample),
            None => self.families.push(Family {
                metric,
                samples: vec![sample],
            }),
        }
    }

    /// The metrics that have a value.
    #[must_use]
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// The values of a metric.
    pub fn samples(&self, metric: &Metric) -> impl Iterator<Item = &Sample> {
        let its = |family: &&Family| family.metric.name == metric.name;
        self.families
            .iter()
            .filter(its)
            .flat_map(|family| &family.samples)
    }

    /// The value of a metric whose labels are these, in their order, if it is a number.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn number(&self, metric: &Metric, labels: &[&str]) -> Option<f64> {
        let mut samples = self.samples(metric);
        let found = samples.find(|sample| {
            let values = sample.labels.iter().map(|(_, value)| value.as_str());
            values.eq(labels.iter().copied())
        })?;
        match found.value {
            Value::Count(count) => Some(count as f64),
            Value::Number(number) => Some(number),
            Value::Histogram(_) => None,
        }
    }

    /// As JSON: an object of metrics, each a list of `{"labels": {…}, "value": …}`; the value of a
    /// histogram is `{"count": …, "sum": …, "buckets": [[seconds, how often at most], …]}`.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let of = |sample: &Sample| {
            let labels = sample.labels.iter();
            let labels = labels.map(|(name, value)| (name.clone(), Json::from(value.as_str())));
            let value = match &sample.value {
                Value::Count(count) => Json::from(*count),
                // What is no number (of a division by zero) is not told.
                Value::Number(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
                Value::Histogram(histogram) => histogram.to_json(),
            };
            json!({ "labels": labels.collect::<Map<_, _>>(), "value": value })
        };
        let families = self.families.iter().map(|family| {
            let samples = family.samples.iter().map(of).collect();
            (family.metric.name.to_owned(), Json::Array(samples))
        });
        Json::Object(families.collect())
    }

    /// From JSON as [`Self::to_json`] gives it. What a newer server tells besides is passed over.
    #[must_use]
    pub fn from_json(json: &Json) -> Self {
        let mut snapshot = Self::default();
        let told = json.as_object().into_iter().flatten();
        for (name, samples) in told {
            let Some(metric) = table::find(name) else {
                continue;
            };
            for sample in samples.as_array().into_iter().flatten() {
                let value = sample.get("value").unwrap_or(&Json::Null);
                let value = value
                    .as_u64()
                    .map(Value::Count)
                    .or_else(|| value.as_f64().map(Value::Number))
                    .or_else(|| {
                        let histogram = Histogram::from_json(value)?;
                        Some(Value::Histogram(Box::new(histogram)))
                    });
                let Some(value) = value else { continue };
                let labels = sample.get("labels").and_then(Json::as_object);
                let labels = labels.into_iter().flatten().map(|(name, value)| {
                    let value = value.as_str().unwrap_or_default();
                    (name.clone(), value.to_owned())
                });
                let labels = labels.collect();
                snapshot.put_sample(metric, Sample { labels, value });
            }
        }
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_goes_to_the_first_bucket_that_it_fits() {
        for (nanoseconds, bucket) in [
            (0, 0),
            (1, 0),
            (1_000, 0),
            (1_001, 1),
            (2_000, 1),
            (2_001, 2),
            (1_048_576_000, 20),
            (1_048_576_001, 21),
            (u64::MAX, 21),
        ] {
            assert_eq!(Histogram::bucket(nanoseconds), bucket, "{nanoseconds}");
        }
        assert_eq!(bound(0), Some(0.000_001));
        assert_eq!(bound(20), Some(1.048_576));
        assert_eq!(bound(21), None);
    }

    #[test]
    fn within_which_time() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.within(50), None);
        histogram.counts[3] = 98;
        histogram.counts[5] = 1;
        histogram.counts[21] = 1;
        assert_eq!(histogram.within(50), bound(3));
        assert_eq!(histogram.within(98), bound(3));
        assert_eq!(histogram.within(99), bound(5));
        assert_eq!(histogram.within(100), Some(f64::INFINITY));
    }

    #[test]
    fn json_and_back() {
        let mut histogram = Histogram {
            nanoseconds: 1_234_567,
            ..Histogram::default()
        };
        histogram.counts[0] = 2;
        histogram.counts[20] = 1;
        histogram.counts[21] = 4;
        let mut snapshot = Snapshot::default();
        snapshot.put(&table::REQUESTS, &["lookup"], Value::Count(7));
        snapshot.put(&table::REQUESTS, &["read"], Value::Count(u64::MAX));
        snapshot.put(&table::PHASE_SECONDS, &["image"], Value::Number(0.25));
        let value = Value::Histogram(Box::new(histogram));
        snapshot.put(&table::REQUEST_SECONDS, &["lookup"], value);
        let text = snapshot.to_json().to_string();
        let json = serde_json::from_str(&text).unwrap();
        assert_eq!(Snapshot::from_json(&json), snapshot);
        assert_eq!(snapshot.number(&table::REQUESTS, &["lookup"]), Some(7.0));
        assert_eq!(snapshot.number(&table::REQUESTS, &["write"]), None);
    }

    #[test]
    fn hostile_json_gives_what_can_be_read() {
        for bad in [
            "null",
            "[]",
            "{\"tarnfs_requests_total\": 5}",
            "{\"tarnfs_requests_total\": [5, {}, {\"value\": \"x\"}]}",
            "{\"what\": [{\"labels\": {}, \"value\": 1}]}",
            "{\"tarnfs_request_seconds\": [{\"value\": {\"count\": 1, \"sum\": -1, \"buckets\": [[1, 5], [1, 2]]}}]}",
        ] {
            let json = serde_json::from_str(bad).unwrap();
            assert_eq!(Snapshot::from_json(&json), Snapshot::default(), "{bad}");
        }
    }
}
