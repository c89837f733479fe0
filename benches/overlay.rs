//! How long the layers above the image take: looking up and listing through an overlay, copying a
//! file up, and a mount from its start to its end. `cargo bench --bench overlay`; as root, since an
//! upper's marks and mounts are root's.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tarnfs::lower::Lower;
use tarnfs::mount::{MountOptions, Server};
use tarnfs::name::Name;
use tarnfs::overlay::{Ino, Options, Overlay, ROOT_INO};
use tarnfs::store::Store;
use tarnfs::upper::Upper;

/// Lengths of the files that are copied up.
const LENGTHS: [usize; 3] = [1 << 10, 1 << 16, 1 << 20];

/// A tar with a directory of 1,000 files, and one file of each length.
fn pack(path: &Path) {
    let mut tar = tar::Builder::new(File::create(path).unwrap());
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data).unwrap();
    };
    for n in 0..1000 {
        add(&format!("dir/file{n}"), b"x");
    }
    for len in LENGTHS {
        add(&format!("of{len}"), &vec![7; len]);
    }
    tar.finish().unwrap();
}

/// The image of the tar in `dir`.
fn image(dir: &Path) -> Lower {
    let path = dir.join("image.tar");
    let image = Store::open(dir).tar_image(&path, &mut |_| {}).unwrap();
    image.lower().unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn benches(c: &mut Criterion) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: benches/overlay.rs needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    pack(&dir.path().join("image.tar"));
    let mut uppers = 0;
    let mut fresh = || {
        uppers += 1;
        let at = |what: &str| dir.path().join(format!("{what}{uppers}"));
        let (upper, work) = (at("upper"), at("work"));
        fs::create_dir(&upper).unwrap();
        let upper = Upper::open(&upper, &work).unwrap();
        Overlay::with_upper(image(dir.path()), upper, Options::default()).unwrap()
    };

    let overlay = fresh();
    let sub = Ino(overlay.lookup(ROOT_INO, &name("dir")).unwrap().attr.ino);
    c.bench_function("overlay/lookup", |b| {
        let file = name("file500");
        b.iter(|| overlay.lookup(sub, &file).unwrap());
    });
    c.bench_function("overlay/readdirplus of 1,000", |b| {
        b.iter(|| {
            let mut entries = 0;
            overlay
                .readdirplus(sub, 0, &mut |_| {
                    entries += 1;
                    ControlFlow::Continue(())
                })
                .unwrap();
            entries
        });
    });
    drop(overlay);

    let mut group = c.benchmark_group("overlay/copy-up");
    for len in LENGTHS {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            let file = name(&format!("of{len}"));
            b.iter_batched(
                || {
                    let overlay = fresh();
                    let ino = Ino(overlay.lookup(ROOT_INO, &file).unwrap().attr.ino);
                    (overlay, ino)
                },
                |(overlay, ino)| {
                    let handle = overlay.open(ino, libc::O_RDWR).unwrap();
                    overlay.release(handle);
                    overlay
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();

    let point = dir.path().join("mnt");
    fs::create_dir(&point).unwrap();
    let mut options = MountOptions::new("bench");
    options.fuse.read_only = true;
    c.bench_function("mount and unmount, in this process", |b| {
        b.iter_batched(
            || Arc::new(Overlay::read_only(image(dir.path()))),
            |overlay| drop(Server::start(overlay, &point, &options).unwrap().cancel()),
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(overlay, benches);
criterion_main!(overlay);
