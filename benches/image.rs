//! How long the layers below the mount take: reading a tar's headers, building an index, and
//! looking into an image. `cargo bench`; figures are for comparing one change with another on one
//! machine.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs::File;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tarnfs::index;
use tarnfs::lower::{BlobFile, FileIdentity, Lower, Nid};
use tarnfs::name::Name;

const DIRS: u32 = 500;
const FILES: u32 = 20;

/// A tar of `dirs` directories with `FILES` small files each, or empty ones.
fn pack(at: &Path, dirs: u32, empty: bool) {
    let mut tar = tar::Builder::new(File::create(at).unwrap());
    let add = |tar: &mut tar::Builder<File>, path: &str, kind, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, path, data).unwrap();
    };
    for d in 0..dirs {
        add(
            &mut tar,
            &format!("dir{d}/"),
            tar::EntryType::Directory,
            b"",
        );
        for f in 0..FILES {
            let path = format!("dir{d}/file{f}");
            add(
                &mut tar,
                &path,
                tar::EntryType::Regular,
                path.repeat(if empty { 0 } else { 50 }).as_bytes(),
            );
        }
    }
    tar.finish().unwrap();
}

/// What an entry costs must not depend on how many there are.
fn growth(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    let mut group = c.benchmark_group("growth");
    for entries in [10_000, 100_000, 500_000] {
        pack(&path, entries / (FILES + 1), true);
        let tar = File::open(&path).unwrap();
        group
            .throughput(Throughput::Elements(entries.into()))
            .sample_size(10);
        group.bench_function(BenchmarkId::new("scan", entries), |b| {
            b.iter(|| index::scan(&tar, &path, &()).unwrap());
        });
        group.bench_function(BenchmarkId::new("stream", entries), |b| {
            b.iter(|| index::scan_stream(File::open(&path).unwrap(), &path).unwrap());
        });
        let scan = index::scan(&tar, &path, &()).unwrap();
        let no_side = || Err(std::io::Error::other("no sparse file here"));
        group.bench_function(BenchmarkId::new("write", entries), |b| {
            b.iter(|| index::write(&scan, &tar, &path, &mut std::io::sink(), no_side).unwrap());
        });
    }
}

fn benches(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let (tar_path, index_path) = (dir.path().join("image.tar"), dir.path().join("image.erofs"));
    pack(&tar_path, DIRS, false);
    let tar = File::open(&tar_path).unwrap();
    let entries = u64::from(DIRS * (FILES + 1));

    let mut group = c.benchmark_group("tar");
    group
        .throughput(Throughput::Elements(entries))
        .sample_size(20);
    group.bench_function("scan", |b| {
        b.iter(|| index::scan(&tar, &tar_path, &()).unwrap())
    });
    group.bench_function("index", |b| {
        let build = |mut out: Vec<u8>| {
            let no_side = || Err(std::io::Error::other("no sparse file here"));
            index::build(&tar, &tar_path, &mut out, no_side, &()).unwrap();
            out
        };
        b.iter_batched(Vec::new, build, BatchSize::LargeInput);
    });
    group.finish();

    let no_side = || Err(std::io::Error::other("no sparse file here"));
    index::build(
        &tar,
        &tar_path,
        &mut File::create(&index_path).unwrap(),
        no_side,
        &(),
    )
    .unwrap();
    let open = || {
        let identity = FileIdentity::of(&tar.metadata().unwrap());
        Lower::open(
            &index_path,
            vec![BlobFile {
                path: tar_path.clone(),
                identity,
            }],
        )
        .unwrap()
    };
    c.bench_function("lower/open", |b| b.iter(open));
    let lower = open();
    let name = |text: &str| Name::new(text.as_bytes()).unwrap();
    let (dir_name, file_name) = (name("dir250"), name("file10"));
    let sub = lower.lookup(lower.root(), &dir_name).unwrap().unwrap();
    c.bench_function("lower/lookup", |b| {
        b.iter(|| lower.lookup(black_box(lower.root()), &dir_name).unwrap());
    });
    let file = lower.lookup(sub, &file_name).unwrap().unwrap();
    c.bench_function("lower/attr", |b| {
        b.iter(|| lower.attr(black_box(file)).unwrap())
    });
    c.bench_function("lower/readdir", |b| {
        b.iter(|| {
            let mut last = Nid(0);
            lower
                .readdir(lower.root(), 0, &mut |entry| {
                    last = entry.nid;
                    ControlFlow::Continue(())
                })
                .unwrap();
            last
        });
    });
    let mut buf = [0; 4096];
    c.bench_function("lower/read", |b| {
        b.iter(|| lower.read(black_box(file), 0, &mut buf).unwrap())
    });
}

criterion_group!(image, benches, growth);
criterion_main!(image);
