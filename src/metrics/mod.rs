//! What a server counts and measures, as plain data.
//!
//! - [`Requests`] and [`Counter`] are what is written to while requests are served: without a lock
//!   and without an allocation, each thread its own part. Nobody who reads makes a writer wait.
//! - [`table`] says once what each metric is called and means. The text for Prometheus, the JSON of
//!   the control socket and docs/METRICS.md are made of it or compared with it.
//! - [`Snapshot`] is what somebody has been told: from the server to the socket, and from the
//!   socket to a person.

mod counter;
mod op;
mod phases;
mod requests;
mod snapshot;
pub mod table;
mod text;

pub use counter::Counter;
pub use op::{Class, Op};
pub use phases::{Phase, Phases};
pub use requests::{Oldest, OpTotals, OpenedBy, Requests, SLOW, Totals, UnderWay};
pub use snapshot::{BUCKETS, Family, Histogram, Sample, Snapshot, Value, bound};
pub use table::{Kind, Metric};
pub use text::CONTENT_TYPE;
