//! A counter that several threads add to without hindering each other.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// As many as a server has threads that answer requests.
const CELLS: usize = 4;

/// A number on a cache line of its own (two, as the processor fetches them in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Which cell this thread adds to.
    static CELL: Cell<Option<usize>> = const { Cell::new(None) };
}

fn cell() -> usize {
    CELL.get().unwrap_or_else(|| {
        let cell = NEXT.fetch_add(1, Ordering::Relaxed) % CELLS;
        CELL.set(Some(cell));
        cell
    })
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter {
    cells: [Padded; CELLS],
}

impl Counter {
    /// Adds `n`; some nanoseconds.
    pub fn add(&self, n: u64) {
        if let Some(cell) = self.cells.get(cell()) {
            cell.0.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// The sum so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        let cells = self.cells.iter();
        cells.fold(0, |sum, cell| {
            sum.wrapping_add(cell.0.load(Ordering::Relaxed))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_between_threads() {
        let counter = Counter::default();
        std::thread::scope(|scope| {
            for _ in 0..7 {
                scope.spawn(|| (0..1000).for_each(|n| counter.add(n)));
            }
        });
        assert_eq!(counter.get(), 7 * 499_500);
    }
}
