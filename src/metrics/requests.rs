//! Requests as they are answered: how many, how long, how they failed, and what is under way.
//!
//! Each thread that answers has a lane of its own, which it alone writes to, so that no two of them
//! wait for each other's cache lines. Who reads adds the lanes up; what he sees may be a request
//! apart from lane to lane.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::op::{Class, Op};
use super::snapshot::{BUCKETS, Histogram};

/// A request that takes longer counts as slow.
pub const SLOW: Duration = Duration::from_secs(1);

/// How a file that was opened is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenedBy {
    /// By the kernel alone, from a backing file (FUSE passthrough).
    Kernel,
    /// Its maps by the kernel, its reads and writes by requests.
    Maps,
    /// By requests.
    Requests,
}

impl OpenedBy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kernel, Self::Maps, Self::Requests];

    /// As in labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Maps => "maps",
            Self::Requests => "requests",
        }
    }
}

#[derive(Debug, Default)]
struct OpCells {
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
    errors: [AtomicU64; Class::ALL.len()],
}

/// What one thread writes.
#[derive(Debug)]
#[repr(align(128))]
struct Lane {
    /// 0, or what is under way: see [`pack`].
    under_way: AtomicU64,
    slow: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    opened: [AtomicU64; OpenedBy::ALL.len()],
    forgets: AtomicU64,
    ops: [OpCells; Op::ALL.len()],
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            under_way: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            opened: Default::default(),
            forgets: AtomicU64::new(0),
            ops: std::array::from_fn(|_| OpCells::default()),
        }
    }
}

/// Of a request under way: when it began, in units of 1,024 ns, above its kind and 1. The time fits
/// for two thousand years.
fn pack(op: Op, began: u64) -> u64 {
    began >> 10 << 8 | (op as u64).saturating_add(1)
}

fn unpack(packed: u64) -> Option<(Op, u64)> {
    let number = usize::try_from(packed & 0xff).ok()?.checked_sub(1)?;
    Some((*Op::ALL.get(number)?, packed >> 8 << 10))
}

static NEXT: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Whose lane this thread has, and which.
    static LANE: Cell<(u64, usize)> = const { Cell::new((0, 0)) };
}

/// All requests of one connection.
#[derive(Debug)]
pub struct Requests {
    id: u64,
    since: Instant,
    started: SystemTime,
    /// When the first one came, in nanoseconds; 0: none has.
    first: AtomicU64,
    taken: AtomicUsize,
    lane: Lane,
    more: Box<[Lane]>,
}

/// A request that is being answered.
#[derive(Debug)]
pub struct UnderWay<'a> {
    lane: &'a Lane,
    op: Op,
    began: u64,
}

impl UnderWay<'_> {
    /// The kind.
    #[must_use]
    pub fn op(&self) -> Op {
        self.op
    }

    /// It was answered at `now` (nanoseconds since [`Requests::since`]), with this error number or
    /// 0; gives how long it took.
    pub fn end(&self, now: u64, errno: i32) -> Duration {
        let took = now.saturating_sub(self.began);
        let lane = self.lane;
        lane.under_way.store(0, Ordering::Relaxed);
        if let Some(op) = lane.ops.get(self.op.number()) {
            op.nanoseconds.fetch_add(took, Ordering::Relaxed);
            add(&op.buckets, Histogram::bucket(took), 1);
            if let Some(class) = Class::of(errno) {
                add(&op.errors, class.number(), 1);
            }
        }
        let took = Duration::from_nanos(took);
        if took > SLOW {
            lane.slow.fetch_add(1, Ordering::Relaxed);
        }
        took
    }
}

fn add(cells: &[AtomicU64], at: usize, n: u64) {
    if let Some(cell) = cells.get(at) {
        cell.fetch_add(n, Ordering::Relaxed);
    }
}

/// Of one kind of request.
#[derive(Debug, Clone, PartialEq)]
pub struct OpTotals {
    /// The kind.
    pub op: Op,
    /// How many were answered, and how long that took; of FORGET, which has no answer, how many
    /// came.
    pub answered: Histogram,
    /// How many of them with an error.
    pub errors: [u64; Class::ALL.len()],
}

/// All that was counted so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Totals {
    /// By kind, in the order of [`Op::ALL`].
    pub ops: Vec<OpTotals>,
    /// Requests that took longer than [`SLOW`].
    pub slow: u64,
    /// Bytes that READ requests were answered with.
    pub read: u64,
    /// Bytes that WRITE requests have written.
    pub written: u64,
    /// Files opened, in the order of [`OpenedBy::ALL`].
    pub opened: [u64; OpenedBy::ALL.len()],
    /// FORGETs.
    pub forgets: u64,
}

impl Totals {
    /// Requests that were answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.ops
            .iter()
            .fold(0, |sum, op| sum.saturating_add(op.answered.count()))
    }
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oldest {
    /// How many requests are.
    pub in_flight: u64,
    /// The one that has been for longest, and for how long.
    pub oldest: Option<(Op, Duration)>,
}

impl Requests {
    /// Of a connection that so many threads answer.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            since: Instant::now(),
            started: SystemTime::now(),
            first: AtomicU64::new(0),
            taken: AtomicUsize::new(0),
            lane: Lane::default(),
            more: (1..threads).map(|_| Lane::default()).collect(),
        }
    }

    /// What times are counted from.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The same, as a date.
    #[must_use]
    pub fn started(&self) -> SystemTime {
        self.started
    }

    fn lane(&self) -> &Lane {
        let (id, lane) = LANE.get();
        let lane = if id == self.id {
            lane
        } else {
            // A thread answers one connection; its first request takes the lane.
            let lane = self.taken.fetch_add(1, Ordering::Relaxed) % self.lanes();
            LANE.set((self.id, lane));
            lane
        };
        let more = lane.checked_sub(1).and_then(|lane| self.more.get(lane));
        more.unwrap_or(&self.lane)
    }

    fn lanes(&self) -> usize {
        self.more.len().saturating_add(1)
    }

    fn all(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.lane).chain(&self.more)
    }

    /// A request has come at `now`, nanoseconds since [`Self::since`].
    pub fn begin(&self, op: Op, now: u64) -> UnderWay<'_> {
        if self.first.load(Ordering::Relaxed) == 0 {
            self.first.store(now.max(1), Ordering::Relaxed);
        }
        let lane = self.lane();
        lane.under_way.store(pack(op, now), Ordering::Relaxed);
        UnderWay {
            lane,
            op,
            began: now,
        }
    }

    /// One that has no answer, and may come by the ten thousand: FORGET.
    pub fn forgot(&self) {
        self.lane().forgets.fetch_add(1, Ordering::Relaxed);
    }

    /// A READ was answered with so many bytes.
    pub fn read(&self, bytes: usize) {
        self.lane().read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A WRITE has written so many bytes.
    pub fn wrote(&self, bytes: usize) {
        self.lane()
            .written
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A file was opened.
    pub fn opened(&self, by: OpenedBy) {
        add(&self.lane().opened, by as usize, 1);
    }

    /// When the first request came, from [`Self::since`] on.
    #[must_use]
    pub fn first(&self) -> Option<Duration> {
        let first = self.first.load(Ordering::Relaxed);
        (first > 0).then(|| Duration::from_nanos(first))
    }

    /// What is under way.
    #[must_use]
    pub fn under_way(&self) -> Oldest {
        let now = self.since.elapsed();
        let all = || {
            self.all()
                .filter_map(|lane| unpack(lane.under_way.load(Ordering::Relaxed)))
        };
        let oldest = all().min_by_key(|(_, began)| *began);
        Oldest {
            in_flight: all().count() as u64,
            oldest: oldest.map(|(op, began)| (op, now.saturating_sub(Duration::from_nanos(began)))),
        }
    }

    /// What was counted so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let sum = |of: &dyn Fn(&Lane) -> Option<&AtomicU64>| {
            self.all().filter_map(of).fold(0_u64, |sum, cell| {
                sum.wrapping_add(cell.load(Ordering::Relaxed))
            })
        };
        let ops = Op::ALL.into_iter().map(|op| {
            let n = op.number();
            OpTotals {
                op,
                answered: Histogram {
                    counts: std::array::from_fn(|bucket| {
                        sum(&|lane| lane.ops.get(n)?.buckets.get(bucket))
                    }),
                    nanoseconds: sum(&|lane| Some(&lane.ops.get(n)?.nanoseconds)),
                },
                errors: std::array::from_fn(|class| {
                    sum(&|lane| lane.ops.get(n)?.errors.get(class))
                }),
            }
        });
        Totals {
            ops: ops.collect(),
            slow: sum(&|lane| Some(&lane.slow)),
            read: sum(&|lane| Some(&lane.read)),
            written: sum(&|lane| Some(&lane.written)),
            opened: std::array::from_fn(|by| sum(&|lane| lane.opened.get(by))),
            forgets: sum(&|lane| Some(&lane.forgets)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_survives_packing() {
        for op in Op::ALL {
            for began in [0, 1 << 10, 1 << 50] {
                assert_eq!(unpack(pack(op, began)), Some((op, began)));
            }
        }
        assert_eq!(unpack(0), None);
        assert_eq!(unpack(0xff), None);
    }

    #[test]
    fn a_request_is_counted_once_and_where_it_belongs() {
        let requests = Requests::new(2);
        assert_eq!(requests.first(), None);
        let under_way = requests.begin(Op::Lookup, 5_000);
        assert_eq!(requests.under_way().in_flight, 1);
        assert_eq!(requests.under_way().oldest.unwrap().0, Op::Lookup);
        under_way.end(5_000 + 3_000, libc::ENOENT);
        assert_eq!(requests.under_way().oldest, None);
        requests.begin(Op::Read, 0).end(2_000_000_000, 0);
        requests.read(10);
        requests.wrote(20);
        requests.opened(OpenedBy::Maps);
        requests.forgot();
        let totals = requests.totals();
        let lookup = &totals.ops[Op::Lookup.number()];
        assert_eq!(lookup.answered.count(), 1);
        assert_eq!(lookup.answered.nanoseconds, 3_000);
        assert_eq!(lookup.errors[Class::NotFound.number()], 1);
        assert_eq!(totals.answered(), 2);
        assert_eq!((totals.slow, totals.read, totals.written), (1, 10, 20));
        assert_eq!((totals.opened, totals.forgets), ([0, 1, 0], 1));
        assert_eq!(requests.first(), Some(Duration::from_nanos(5_000)));
    }

    #[test]
    fn each_thread_has_a_lane_and_nothing_is_lost() {
        let requests = Requests::new(3);
        let barrier = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let under_way = requests.begin(Op::Read, 0);
                    barrier.wait();
                    assert_eq!(requests.under_way().in_flight, 3);
                    barrier.wait();
                    under_way.end(1, 0);
                    for _ in 0..1000 {
                        requests.begin(Op::Getattr, 0).end(1, libc::EIO);
                    }
                });
            }
        });
        assert_eq!(requests.totals().answered(), 3003);
        let getattr = &requests.totals().ops[Op::Getattr.number()];
        assert_eq!(getattr.errors[Class::Io.number()], 3000);
        assert_eq!(requests.under_way().in_flight, 0);
    }

    #[test]
    fn a_thread_of_two_connections_counts_for_both() {
        let (one, other) = (Requests::new(1), Requests::new(1));
        for _ in 0..3 {
            one.begin(Op::Open, 0).end(1, 0);
            other.begin(Op::Open, 0).end(1, 0);
        }
        assert_eq!((one.totals().answered(), other.totals().answered()), (3, 3));
    }
}
