//! What is being done, and how long the rest will take: on a terminal a line that changes, else a
//! line now and then.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::run::Progress;

/// How long a file or a pipe hears nothing, at least.
const QUIET: Duration = Duration::from_secs(20);

/// Tells the user.
pub(super) struct Teller {
    bar: ProgressBar,
    rounds: usize,
    began: Instant,
    /// When a line was last written where there is no terminal.
    told: Cell<Instant>,
}

impl Teller {
    pub(super) fn new(began: Instant, rounds: usize) -> Self {
        let bar = ProgressBar::new_spinner();
        let bar = match ProgressStyle::with_template("{elapsed_precise} {wide_msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        Self {
            bar,
            rounds,
            began,
            told: Cell::new(began),
        }
    }

    pub(super) fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        if self.bar.is_hidden() && self.told.get().elapsed() >= QUIET {
            self.told.set(Instant::now());
            let minutes = minutes(self.began.elapsed());
            eprintln!("tarnfs bench: {minutes} min: {what}");
        }
    }

    pub(super) fn course(&self, progress: Progress) {
        let rest = progress.rest.map_or_else(String::new, |rest| {
            format!("; about {} min left", minutes(rest))
        });
        self.say(&format!(
            "round {} of {}, {}, {}{rest}",
            progress.round + 1,
            self.rounds,
            progress.work,
            progress.contender
        ));
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// With one digit behind the point.
fn minutes(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() / 60.0)
}
