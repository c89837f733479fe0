//! Medians, quartiles, ratios of pairs, a straight line through points.

use serde::Serialize;

/// Five numbers of a set of samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) min: f64,
    pub(super) q1: f64,
    pub(super) median: f64,
    pub(super) q3: f64,
    pub(super) max: f64,
}

impl Summary {
    /// Of the samples, in whatever order; `None` of no samples.
    pub(super) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            min: quantile(&sorted, 0.0)?,
            q1: quantile(&sorted, 0.25)?,
            median: quantile(&sorted, 0.5)?,
            q3: quantile(&sorted, 0.75)?,
            max: quantile(&sorted, 1.0)?,
        })
    }
}

/// Between the two neighbours, linearly (Hyndman and Fan's type 7, the default of R and NumPy).
fn quantile(sorted: &[f64], p: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = p * count(last);
    let low = (0..=last)
        .rev()
        .find(|&n| count(n) <= at)
        .unwrap_or_default();
    let below = *sorted.get(low)?;
    let above = sorted.get(low + 1).copied().unwrap_or(below);
    Some(below + (above - below) * (at - count(low)))
}

/// A small number as a fraction.
pub(super) fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}

/// A number of bytes or entries as a fraction; exact to 2^53.
#[allow(clippy::cast_precision_loss)]
pub(super) fn float(n: u64) -> f64 {
    n as f64
}

/// A sample and the round that it was taken in.
pub(super) type InRound = (usize, f64);

/// The ratios of the samples to those of the baseline *of the same round*: what slowed the machine
/// for a while slowed both. `None` where there is no pair, or nothing to divide by.
pub(super) fn paired_ratios(samples: &[InRound], baseline: &[InRound]) -> Option<Vec<f64>> {
    let mut ratios = Vec::new();
    for (round, value) in samples {
        let Some((_, base)) = baseline.iter().find(|(other, _)| other == round) else {
            continue;
        };
        if *base <= 0.0 {
            return None;
        }
        ratios.push(value / base);
    }
    (!ratios.is_empty()).then_some(ratios)
}

/// The exponent `k` of `y = c·x^k` through the points, by least squares of the logarithms.
pub(super) fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<(f64, f64)> = points
        .iter()
        .filter(|(x, y)| *x > 0.0 && *y > 0.0)
        .map(|(x, y)| (x.ln(), y.ln()))
        .collect();
    if logs.len() < 2 {
        return None;
    }
    let n = count(logs.len());
    let (mx, my) = (
        logs.iter().map(|(x, _)| x).sum::<f64>() / n,
        logs.iter().map(|(_, y)| y).sum::<f64>() / n,
    );
    let spread: f64 = logs.iter().map(|(x, _)| (x - mx).powi(2)).sum();
    let together: f64 = logs.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    (spread > 0.0).then(|| together / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_numbers() {
        let s = Summary::of(&[5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!(
            (s.min, s.q1, s.median, s.q3, s.max),
            (1.0, 2.0, 3.0, 4.0, 5.0)
        );
        let s = Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((s.q1, s.median, s.q3), (1.75, 2.5, 3.25));
        let s = Summary::of(&[7.0]).unwrap();
        assert_eq!((s.min, s.q1, s.median, s.max), (7.0, 7.0, 7.0, 7.0));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn ratios_are_of_one_round() {
        // The machine was twice as slow in round 1: the ratio does not see it.
        let base = [(0, 1.0), (1, 2.0), (3, 1.0)];
        let ours = [(1, 6.0), (0, 3.0), (2, 100.0), (3, 3.0)];
        assert_eq!(paired_ratios(&ours, &base).unwrap(), [3.0, 3.0, 3.0]);
        assert_eq!(paired_ratios(&[(5, 1.0)], &base), None, "no pair");
        assert_eq!(paired_ratios(&[(0, 1.0)], &[(0, 0.0)]), None, "by nothing");
    }

    #[test]
    fn exponents() {
        let at = |k: f64| [10.0_f64, 1e3, 1e5].map(|x| (x, 3.0 * x.powf(k)));
        assert!((exponent(&at(1.0)).unwrap() - 1.0).abs() < 1e-9);
        assert!(exponent(&at(0.0)).unwrap().abs() < 1e-9);
        assert_eq!(exponent(&[(1.0, 1.0)]), None);
        assert_eq!(exponent(&[(2.0, 1.0), (2.0, 3.0)]), None);
    }
}
