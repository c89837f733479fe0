//! The rounds: in each, every contender does every work once, in an order that changes from round
//! to round, so that no one is always first, or always behind the same other. Rounds are whole
//! before others begin: what is broken off has fewer samples of everything, not none of something.

use std::time::{Duration, Instant};

use super::child::{Interrupted, check_interrupt};
use super::contenders::Contender;
use super::lab::Lab;
use super::report::{Numbers, Outcome, WorkReport};
use super::stats::{InRound, Summary, count, paired_ratios};
use super::works::{Number, Stage, Work};

/// What one contender has done so far of one work.
#[derive(Debug, Default)]
struct Record {
    rounds: Vec<(usize, Vec<Number>)>,
    found: Option<u64>,
    missing: Option<String>,
    /// The whole time of it: what is timed, what is prepared, what is cleared up.
    seconds: f64,
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

/// One work with those who do it.
struct Doing {
    work: &'static Work,
    contenders: Vec<&'static Contender>,
    records: Vec<Record>,
    /// What its last round took.
    took: Option<f64>,
}

/// How far all of it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// From 0 on.
    pub(super) round: usize,
    pub(super) work: &'static str,
    pub(super) contender: &'static str,
    /// What the rest will take, as far as can be known; `None` at the beginning.
    pub(super) rest: Option<Duration>,
}

/// What is to be done, and until when.
pub(super) struct Course<'a> {
    pub(super) lab: &'a Lab,
    pub(super) works: &'a [&'static Work],
    pub(super) contenders: &'a [&'static Contender],
    /// Whether they were named by the user.
    pub(super) named: bool,
    pub(super) rounds: usize,
    /// No round of a work begins, after the first one, that is not likely to end before.
    pub(super) until: Option<Instant>,
}

impl Course<'_> {
    /// Does all of it.
    pub(super) fn run(&self, tell: &dyn Fn(Progress)) -> anyhow::Result<Vec<WorkReport>> {
        let mut all: Vec<Doing> = self.works.iter().map(|work| self.doing(work)).collect();
        for round in 0..self.rounds {
            for n in 0..all.len() {
                let rest = rest(&all, n, self.rounds - round - 1);
                let Some(doing) = all.get_mut(n) else {
                    continue;
                };
                let ends = Instant::now() + seconds(doing.took.unwrap_or_default());
                if round > 0 && self.until.is_some_and(|until| ends > until) {
                    continue;
                }
                let start = Instant::now();
                self.round(doing, round, rest, tell)?;
                doing.took = Some(start.elapsed().as_secs_f64());
            }
        }
        Ok(all.into_iter().map(report).collect())
    }

    fn doing(&self, work: &'static Work) -> Doing {
        let contenders = self.contenders.iter().copied();
        let contenders: Vec<_> = contenders
            .filter(|contender| work.is_for(contender, self.named))
            .collect();
        let records = contenders.iter().map(|contender| Record {
            missing: (work.unfit)(&self.lab.facts, contender),
            ..Record::default()
        });
        Doing {
            work,
            records: records.collect(),
            contenders,
            took: None,
        }
    }

    /// One round of one work.
    fn round(
        &self,
        doing: &mut Doing,
        round: usize,
        rest: Option<Duration>,
        tell: &dyn Fn(Progress),
    ) -> anyhow::Result<()> {
        for n in order(doing.contenders.len(), round) {
            check_interrupt()?;
            let (Some(contender), Some(record)) =
                (doing.contenders.get(n), doing.records.get_mut(n))
            else {
                continue;
            };
            if record.missing.is_some() {
                continue;
            }
            tell(Progress {
                round,
                work: doing.work.name,
                contender: contender.name,
                rest,
            });
            let lab = self.lab;
            let start = Instant::now();
            let done = (doing.work.run)(&Stage { lab, contender });
            record.seconds += start.elapsed().as_secs_f64();
            match done {
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
        Ok(())
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// What is still to come from the work `next` on: this round, and so many after it. A work that was
/// not done yet is taken to be as long as the others.
fn rest(all: &[Doing], next: usize, rounds: usize) -> Option<Duration> {
    let known: Vec<f64> = all.iter().filter_map(|doing| doing.took).collect();
    if known.is_empty() {
        return None;
    }
    let mean = known.iter().sum::<f64>() / count(known.len());
    let of = |doing: &Doing| doing.took.unwrap_or(mean);
    let here: f64 = all.iter().skip(next).map(of).sum();
    let whole: f64 = all.iter().map(of).sum();
    Some(seconds(here + whole * count(rounds)))
}

fn report(doing: Doing) -> WorkReport {
    let Doing {
        work,
        contenders,
        mut records,
        ..
    } = doing;
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
                seconds: record.seconds,
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
