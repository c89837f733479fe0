//! The rounds: every contender does the same work once a round, in an order that changes, so that
//! no one is always first, or always behind the same other.

use super::child::{Interrupted, check_interrupt};
use super::contenders::Contender;
use super::lab::Lab;
use super::report::{Numbers, Outcome, WorkReport};
use super::stats::{InRound, Summary, paired_ratios};
use super::works::{Number, Stage, Work};

/// What one contender has done so far of one work.
#[derive(Debug, Default)]
struct Record {
    rounds: Vec<(usize, Vec<Number>)>,
    found: Option<u64>,
    missing: Option<String>,
}

impl Record {
    fn samples(&self, number: usize) -> Vec<InRound> {
        let value =
            |(round, numbers): &(usize, Vec<Number>)| Some((*round, numbers.get(number)?.value));
        self.rounds.iter().filter_map(value).collect()
    }
}

/// The order of a round: the first one rotates, and each second round goes backwards.
pub(super) fn order(contenders: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..contenders).map(|n| (n + round) % contenders).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Does one work with everybody.
pub(super) fn work(
    lab: &Lab,
    contenders: &[&Contender],
    work: &Work,
    rounds: usize,
    tell: &dyn Fn(&str),
) -> anyhow::Result<WorkReport> {
    let contenders: Vec<_> = contenders
        .iter()
        .filter(|c| work.is_for(c))
        .copied()
        .collect();
    let mut records: Vec<Record> = contenders
        .iter()
        .map(|contender| Record {
            missing: (work.unfit)(&lab.facts, contender),
            ..Record::default()
        })
        .collect();
    for round in 0..rounds {
        for n in order(contenders.len(), round) {
            check_interrupt()?;
            let (Some(contender), Some(record)) = (contenders.get(n), records.get_mut(n)) else {
                continue;
            };
            if record.missing.is_some() {
                continue;
            }
            tell(&format!(
                "{}: round {} of {rounds}: {}",
                work.name,
                round + 1,
                contender.name
            ));
            let stage = Stage { lab, contender };
            match (work.run)(&stage) {
                Ok(sample) => {
                    if *record.found.get_or_insert(sample.found) != sample.found {
                        record.missing =
                            Some("failed: its results differ from round to round".into());
                    }
                    record.rounds.push((round, sample.numbers));
                }
                Err(error) if error.is::<Interrupted>() => return Err(error),
                // A child that a terminal's ^C ended as well is no failure of its own.
                Err(error) => {
                    check_interrupt()?;
                    record.missing = Some(format!("failed{}", crate::cli::print::causes(&error)));
                }
            }
        }
    }
    Ok(report(&contenders, work, records))
}

fn report(contenders: &[&Contender], work: &Work, mut records: Vec<Record>) -> WorkReport {
    let base = contenders.iter().position(|c| c.name == work.baseline);
    let found = base.and_then(|n| records.get(n)).and_then(|r| r.found);
    for record in &mut records {
        if let (Some(ours), Some(theirs)) = (record.found, found)
            && ours != theirs
        {
            record.missing = Some(format!(
                "failed: it found {ours}, {} found {theirs}",
                work.baseline
            ));
        }
    }
    let baseline = base.and_then(|n| records.get(n));
    let results = contenders
        .iter()
        .zip(&records)
        .map(|(contender, record)| {
            let names = record.rounds.first().map(|(_, numbers)| numbers.as_slice());
            let numbers = names
                .unwrap_or_default()
                .iter()
                .enumerate()
                .map(|(n, number)| {
                    let samples = record.samples(n);
                    let values: Vec<f64> = samples.iter().map(|(_, value)| *value).collect();
                    let theirs = baseline
                        .filter(|b| b.missing.is_none())
                        .map(|b| b.samples(n));
                    let ratios = theirs.and_then(|theirs| paired_ratios(&samples, &theirs));
                    Numbers {
                        name: number.name,
                        unit: number.unit,
                        summary: Summary::of(&values),
                        ratio: ratios.as_deref().and_then(Summary::of),
                        samples: values,
                    }
                });
            // Figures of who does something else are not shown.
            let numbers = if record.missing.is_none() {
                numbers.collect()
            } else {
                Vec::new()
            };
            Outcome {
                contender: contender.name,
                missing: record.missing.clone(),
                numbers,
            }
        })
        .collect();
    WorkReport {
        name: work.name,
        group: work.group,
        what: work.what,
        baseline: work.baseline,
        results,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_once_a_round_and_first_in_turn() {
        for round in 0..6 {
            let mut all = order(3, round);
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2]);
        }
        let firsts: std::collections::BTreeSet<_> = (0..6).map(|r| order(3, r)[0]).collect();
        assert_eq!(firsts.len(), 3);
        assert_eq!(order(0, 3), Vec::<usize>::new());
    }
}
