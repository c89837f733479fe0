//! The metadata area: inode slots and blocks side by side, filled from the front.

use std::collections::VecDeque;

use crate::erofs::layout::{BLOCK, SLOT, SLOT_LEN, align_up};

/// How many gaps are remembered. Inodes that fill one still lie near their neighbours.
const GAPS: usize = 16;

/// Gives out places. Gaps that alignment leaves are filled by later inodes.
pub(super) struct Space {
    end: u64,
    gaps: VecDeque<(u64, u64)>,
    /// No gap is longer.
    longest: u64,
}

impl Space {
    /// Begins at byte `start`, a multiple of an inode slot.
    pub(super) fn new(start: u64) -> Self {
        Self {
            end: start,
            gaps: VecDeque::with_capacity(GAPS + 1),
            longest: 0,
        }
    }

    /// The first byte that was never given out.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Room of `len` bytes at a slot that `fits`; `None` where none of the next block's does.
    pub(super) fn inode(&mut self, len: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
        let len = align_up(len, SLOT)?;
        let gaps = if len > self.longest {
            0
        } else {
            self.gaps.len()
        };
        for n in 0..gaps {
            let &(start, end) = self.gaps.get(n)?;
            if end - start < len {
                continue;
            }
            let slots = (start..).step_by(SLOT_LEN).take_while(|at| at + len <= end);
            if let Some(at) = { slots }.find(|&at| fits(at)) {
                self.gaps.remove(n);
                self.gap(start, at);
                self.gap(at + len, end);
                let lengths = self.gaps.iter().map(|(start, end)| end - start);
                self.longest = lengths.max().unwrap_or(0);
                return Some(at);
            }
        }
        let at = (self.end..self.end + BLOCK)
            .step_by(SLOT_LEN)
            .find(|&at| fits(at))?;
        self.gap(self.end, at);
        self.end = at.checked_add(len)?;
        Some(at)
    }

    /// `count` whole blocks; where they start.
    pub(super) fn blocks(&mut self, count: u64) -> Option<u64> {
        let at = align_up(self.end, BLOCK)?;
        self.gap(self.end, at);
        self.end = count.checked_mul(BLOCK)?.checked_add(at)?;
        Some(at)
    }

    fn gap(&mut self, start: u64, end: u64) {
        if start < end {
            self.gaps.push_back((start, end));
            self.longest = self.longest.max(end - start);
            if self.gaps.len() > GAPS {
                self.gaps.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_and_nothing_overlaps() {
        let mut space = Space::new(1152);
        assert_eq!(space.inode(64, |_| true), Some(1152));
        assert_eq!(space.blocks(2), Some(1536));
        assert_eq!(space.inode(100, |_| true), Some(1216));
        assert_eq!(space.inode(512, |at| at % 512 == 0), Some(2560));
        assert_eq!(space.inode(192, |_| true), Some(1344));
        assert_eq!(space.inode(32, |_| true), Some(3072));
        assert_eq!(space.inode(32, |_| false), None);
        assert_eq!(space.end(), 3104);
    }

    #[test]
    fn random_requests_never_overlap() {
        let mut space = Space::new(64);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for n in 0..2000_u64 {
            let len = n * 7919 % 700 + 1;
            let at = match n % 5 {
                0 => space.blocks(len % 3).unwrap(),
                _ => space.inode(len, |at| n % 3 > 0 || at % 512 <= 96).unwrap(),
            };
            let len = if n % 5 == 0 { len % 3 * 512 } else { len };
            taken.push((at, at + len));
        }
        taken.sort_unstable();
        assert!(taken.windows(2).all(|w| w[0].1 <= w[1].0));
        assert!(taken.iter().all(|&(_, end)| end <= space.end()));
    }
}
