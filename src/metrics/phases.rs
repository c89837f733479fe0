//! How long it took until a root filesystem could be used, piece by piece.

use std::time::{Duration, Instant};

/// A piece of the way from "mount this" to the first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Finding the image, or making it, and opening its index.
    Image,
    /// Opening the upper, and finishing what a killed mount has left in it.
    Upper,
    /// Finding or making the image's mount by the kernel.
    Backing,
    /// Creating the filesystem: /dev/fuse, the kernel's INIT, the threads.
    Create,
    /// Attaching it to its place; with fusermount3 or an old kernel, creating it as well.
    Attach,
    /// All from the beginning until the mount could be used.
    Ready,
    /// From then until the first request came.
    FirstRequest,
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Self; 7] = [
        Self::Image,
        Self::Upper,
        Self::Backing,
        Self::Create,
        Self::Attach,
        Self::Ready,
        Self::FirstRequest,
    ];

    /// As in logs and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Upper => "upper",
            Self::Backing => "backing",
            Self::Create => "create",
            Self::Attach => "attach",
            Self::Ready => "ready",
            Self::FirstRequest => "first_request",
        }
    }
}

/// What the phases of one mount took.
#[derive(Debug, Clone)]
pub struct Phases {
    began: Instant,
    ready: Option<Instant>,
    took: [Option<Duration>; Phase::ALL.len()],
}

impl Default for Phases {
    fn default() -> Self {
        Self::begin()
    }
}

impl Phases {
    /// The mount has been asked for.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            began: Instant::now(),
            ready: None,
            took: [None; Phase::ALL.len()],
        }
    }

    /// A phase is over, which took so long; of one that was tried twice both count.
    pub fn note(&mut self, phase: Phase, took: Duration) {
        if let Some(place) = self.took.get_mut(phase as usize) {
            *place = Some(place.unwrap_or_default().saturating_add(took));
        }
    }

    /// The mount can be used: [`Phase::Ready`], which is given.
    pub fn ready(&mut self) -> Duration {
        let took = self.began.elapsed();
        self.ready = Some(self.began + took);
        self.note(Phase::Ready, took);
        took
    }

    /// When the mount could be used.
    #[must_use]
    pub fn ready_at(&self) -> Option<Instant> {
        self.ready
    }

    /// What a phase took, if it is over.
    #[must_use]
    pub fn took(&self, phase: Phase) -> Option<Duration> {
        self.took.get(phase as usize).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up() {
        let mut phases = Phases::begin();
        assert_eq!(phases.took(Phase::Image), None);
        phases.note(Phase::Attach, Duration::from_millis(1));
        phases.note(Phase::Attach, Duration::from_millis(2));
        assert_eq!(phases.took(Phase::Attach), Some(Duration::from_millis(3)));
        assert!(phases.ready_at().is_none());
        assert_eq!(Some(phases.ready()), phases.took(Phase::Ready));
        assert!(phases.ready_at().is_some());
        for (n, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, n);
        }
    }
}
