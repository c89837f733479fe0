//! How long a mount takes by the number of blobs that its index refers to, which are the layers of
//! an image: as root with one EROFS of as many devices behind it. `cargo bench --bench blobs`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use tarnfs::erofs::writer::{self, BlobSpec};
use tarnfs::index::tree::{Children, Content, Extent, Inode, InodeId, ROOT, Tree};
use tarnfs::inode::{Runs, Time};
use tarnfs::lower::{BlobFile, FileIdentity, Lower};
use tarnfs::mount::{MountOptions, Server};
use tarnfs::overlay::Overlay;

/// Bytes of a blob, and of the one file that lies in it.
const LEN: usize = 128 << 10;

fn inode(content: Content, nlink: u32) -> Inode {
    Inode {
        content,
        perm: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        nlink,
        xattrs: Vec::new(),
    }
}

/// A directory of one file in each blob.
fn tree(blobs: u16) -> Tree {
    let file = |blob| {
        let all = Extent {
            offset: 0,
            len: LEN as u64,
            blob,
            blob_offset: 0,
        };
        let size = LEN as u64;
        let extents = Runs::One(all);
        inode(Content::File { size, extents }, 1)
    };
    let mut children = Children::default();
    for blob in 0..blobs {
        let name = format!("{blob:03}");
        children.push(name.as_bytes(), InodeId(u32::from(blob) + 1));
    }
    let parent = ROOT;
    let root = inode(Content::Dir { children, parent }, 2);
    let inodes = [root].into_iter().chain((0..blobs).map(file)).collect();
    Tree { inodes }
}

/// An index of so many blobs and a way to open it.
fn image(dir: &Path, blobs: u16) -> impl Fn() -> Lower + use<> {
    let index = dir.join(format!("index{blobs}"));
    let files: Vec<_> = (0..blobs)
        .map(|blob| {
            let path = dir.join(format!("{blobs}.{blob}"));
            fs::write(&path, vec![b'x'; LEN]).unwrap();
            let identity = FileIdentity::of(&fs::metadata(&path).unwrap());
            BlobFile { path, identity }
        })
        .collect();
    let spec = |_| BlobSpec {
        tag: String::new(),
        len: LEN as u64,
    };
    let specs: Vec<_> = files.iter().map(spec).collect();
    let mut out = File::create(&index).unwrap();
    writer::write(&tree(blobs), &specs, &mut out).unwrap();
    move || Lower::open(&index, files.clone()).unwrap()
}

fn benches(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("mnt");
    fs::create_dir(&point).unwrap();
    let mut options = MountOptions::new("bench");
    options.fuse.read_only = true;
    let mut group = c.benchmark_group("mount, by blobs");
    for blobs in [1, 16, 128] {
        let image = image(dir.path(), blobs);
        let mount = || {
            let overlay = Arc::new(Overlay::read_only(image()));
            Server::start(overlay, &point, &options).unwrap()
        };
        let server = mount();
        let last = fs::read(point.join(format!("{:03}", blobs - 1))).unwrap();
        assert_eq!(last, vec![b'x'; LEN], "each blob can be read");
        drop(server.cancel().unwrap());
        group.bench_function(BenchmarkId::from_parameter(blobs), |b| {
            b.iter_batched(
                || (),
                |()| drop(mount().cancel().unwrap()),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(blobs, benches);
criterion_main!(blobs);
