//! What it costs to count: of each request, and of who asks.
//!
//! ```sh
//! cargo bench --bench metrics
//! ```
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tarnfs::metrics::{Counter, Op, Requests, Snapshot, Value, table};

fn counting(c: &mut Criterion) {
    let requests = Requests::new(4);
    let mut now = 0_u64;
    c.bench_function("a request, begun and answered", |b| {
        b.iter(|| {
            now += 10_000;
            let request = requests.begin(black_box(Op::Lookup), now);
            request.end(now + (now & 0xffff), black_box(libc::ENOENT))
        });
    });
    let counter = Counter::default();
    c.bench_function("a counter", |b| b.iter(|| counter.add(black_box(1))));
    c.bench_function("all counts, summed", |b| b.iter(|| requests.totals()));
    let mut snapshot = Snapshot::default();
    for op in requests.totals().ops {
        let value = Value::Histogram(Box::new(op.answered));
        snapshot.put(&table::REQUEST_SECONDS, &[op.op.name()], value);
    }
    c.bench_function("text for Prometheus", |b| {
        b.iter(|| snapshot.to_prometheus());
    });
}

criterion_group!(benches, counting);
criterion_main!(benches);
