//! A store whose disk is full, out of inodes, or read-only, and one of another user: one line that
//! names the store, nothing left but whole layers, and what was there is as it was.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;
// Not in `common` itself: only tests of the store need it.
#[path = "common/stored.rs"]
mod stored;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{Sandbox, can_mount, has, ok, text};
use stored::{assert_clean, assert_empties, content, layer, listed, tarnfs, tarnfs_ok};

const LEN: usize = 200_000;

/// Two images that share a layer; the second is imported into what is full.
struct World {
    sandbox: Sandbox,
    sources: [String; 2],
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let base = layer("base", 1, LEN);
        let source = |n: u64| {
            let dir = sandbox.at(format!("layout{n}"));
            let layers = [
                base.clone(),
                layer("a", n * 100, LEN),
                layer("b", n * 200, LEN),
            ];
            stored::layout(&dir, &layers);
            format!("oci:{}", dir.display())
        };
        let sources = [source(1), source(2)];
        Self { sandbox, sources }
    }

    /// A filesystem of its own for a store, mounted until the end of the test.
    fn disk(&self, kind: &str, options: &str) -> PathBuf {
        let dir = self
            .sandbox
            .dir(format!("{kind}{}", options.replace('/', "_")));
        let at = dir.to_str().unwrap();
        if kind == "tmpfs" {
            ok("mount", ["-t", "tmpfs", "-o", options, "tmpfs", at]);
        } else {
            let image = self.sandbox.at(format!("{options}.img"));
            fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
            let image = image.to_str().unwrap();
            let inodes: &[&str] = if options == "inodes" {
                &["-N", "64"]
            } else {
                &[]
            };
            ok(
                "mkfs.ext4",
                [&["-q", "-F", "-m", "0"], inodes, &[image]].concat(),
            );
            ok("mount", ["-o", "loop", image, at]);
        }
        dir
    }
}

/// One line, which names the store.
fn says(output: &Output, store: &Path, words: &str) {
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    let one = said.trim_end();
    assert!(!one.contains('\n'), "{said}");
    assert!(
        one.contains(store.to_str().unwrap()) && one.contains(words),
        "{said}"
    );
}

/// Takes all blocks of the filesystem but `blocks`, or all inodes but `inodes`.
fn fill(dir: &Path, blocks: Option<u64>, inodes: Option<u64>) {
    let filler = dir.join("filler");
    fs::create_dir_all(&filler).unwrap();
    let disk = rustix::fs::statvfs(dir).unwrap();
    if let Some(leave) = blocks {
        let mut blocks = disk.f_bavail.saturating_sub(leave);
        let file = fs::File::create(filler.join("blocks")).unwrap();
        // The file itself may need some.
        while blocks > 0 {
            let whole = rustix::fs::FallocateFlags::empty();
            match rustix::fs::fallocate(&file, whole, 0, blocks * disk.f_bsize) {
                Ok(()) => break,
                Err(error) => assert_eq!(error, rustix::io::Errno::NOSPC),
            }
            blocks -= 1;
        }
    }
    if let Some(leave) = inodes {
        for n in 0..disk.f_favail.saturating_sub(leave) {
            fs::File::create(filler.join(n.to_string())).unwrap();
        }
    }
}

fn clear(dir: &Path) {
    fs::remove_dir_all(dir.join("filler")).unwrap();
}

/// Imports the second image with so much room, less and less of it: wherever it runs out, nothing
/// is seen of the image, and the next import makes it.
fn runs_out(world: &World, disk: &Path, steps: impl Iterator<Item = (Option<u64>, Option<u64>)>) {
    let store = disk.join("store");
    let [first, second] = &world.sources;
    tarnfs_ok(&store, &["import", "--name", "first", first]);
    let want = content(&store, "first");
    let images = listed(&store);
    let mut said = BTreeSet::new();
    for (blocks, inodes) in steps {
        fill(disk, blocks, inodes);
        let what = format!(
            "{} with {blocks:?} blocks, {inodes:?} inodes",
            disk.display()
        );
        let args = ["import", "--name", "second", second];
        let output = tarnfs(&store, &args);
        if output.status.success() {
            said.insert("done");
            assert!(listed(&store).len() == 2, "{what}");
        } else {
            said.insert("full");
            says(&output, &store, "is full");
            // All that was begun is gone; layers are whole.
            assert_eq!(
                fs::read_dir(store.join("tmp")).unwrap().count(),
                0,
                "{what}"
            );
            let now = listed(&store);
            // The image may be there, and have no room for its name.
            assert!(now.is_superset(&images), "{what}");
            assert!(!store.join("names/second").exists(), "{what}");
        }
        assert_eq!(content(&store, "first"), want, "{what}");
        // What is there goes without any more room.
        for image in listed(&store).difference(&images) {
            tarnfs_ok(&store, &["rm", image]);
        }
        tarnfs_ok(&store, &["gc", "--min-age", "0"]);
        clear(disk);
        assert_clean(&store, &what);
        assert_eq!(listed(&store), images, "{what}");
        tarnfs_ok(&store, &args);
        tarnfs_ok(&store, &["rm", "second"]);
    }
    assert_eq!(said.len(), 2, "{said:?}");
    assert_empties(&store, "in the end");
}

#[test]
fn blocks_run_out() {
    if !can_mount() || !has("mkfs.ext4") {
        return;
    }
    let world = World::new();
    // The image takes about 110 blocks of 4 KiB, or 440 of 1 KiB.
    let steps = || (0..140).step_by(7).map(|n| (Some(n), None));
    runs_out(&world, &world.disk("tmpfs", "size=8m"), steps());
    let steps = (0..620).step_by(40).map(|n| (Some(n), None));
    runs_out(&world, &world.disk("ext4", "blocks"), steps);
}

#[test]
fn inodes_run_out() {
    if !can_mount() || !has("mkfs.ext4") {
        return;
    }
    let world = World::new();
    let steps = || (0..14).map(|n| (None, Some(n)));
    runs_out(&world, &world.disk("tmpfs", "nr_inodes=128"), steps());
    runs_out(&world, &world.disk("ext4", "inodes"), steps());
}

/// What is in a store that cannot be written to can be used; the rest is an error in one line.
#[test]
fn a_read_only_store_serves_what_it_has() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let disk = world.disk("tmpfs", "size=16m");
    let store = disk.join("store");
    let [first, second] = &world.sources;
    tarnfs_ok(&store, &["import", "--name", "first", first]);
    let want = content(&store, "first");
    ok("mount", ["-o", "remount,ro", disk.to_str().unwrap()]);
    assert_eq!(content(&store, "first"), want);
    assert_eq!(listed(&store).len(), 1);
    tarnfs_ok(&store, &["images", "--json"]);
    // It is there, by its source too.
    tarnfs_ok(&store, &["import", first]);
    tarnfs_ok(&store, &["gc", "--dry-run", "--all", "--min-age", "0"]);
    let inside = |engine: &str| {
        let dir = world.sandbox.dir(format!("mount-{engine}"));
        let at = dir.to_str().unwrap();
        let args = ["mount", "--engine", engine, "--read-only", "first", at];
        tarnfs_ok(&store, &args);
        let size = fs::metadata(dir.join("a/sparse")).unwrap().len();
        assert_eq!(size, 100_000);
        assert!(fs::read(dir.join("a/file3")).unwrap().len() > LEN / 8);
        tarnfs_ok(&store, &["umount", at]);
    };
    inside("fuse");
    inside("kernel");
    for args in [
        &["import", second][..],
        &["tag", "first", "other"],
        &["rm", "first"],
        &["gc", "--all", "--min-age", "0"],
        &["verify"],
    ] {
        says(&tarnfs(&store, args), &store, "cannot be written to");
    }
    assert_eq!(content(&store, "first"), want);
    ok("mount", ["-o", "remount,rw", disk.to_str().unwrap()]);
    assert_empties(&store, "in the end");
}

/// Another user sees nothing of a store, and is told so in one line.
#[test]
fn the_store_of_another_user() {
    if !can_mount() || !has("setpriv") {
        return;
    }
    let world = World::new();
    // The way to it is everybody's.
    let disk = tempfile::TempDir::new_in("/tmp").unwrap();
    ok("chmod", ["755", disk.path().to_str().unwrap()]);
    let store = disk.path().join("store");
    tarnfs_ok(&store, &["import", "--name", "first", &world.sources[0]]);
    let program = disk.path().join("tarnfs");
    fs::copy(common::TARNFS, &program).unwrap();
    for args in [
        &["images"][..],
        &["ls", "first", "/"],
        &["import", "/etc/hostname"],
        &["tag", "first", "b"],
        &["rm", "first"],
        &["gc"],
        &["verify"],
    ] {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(&program).arg("--store").arg(&store).args(args);
        let output = common::run(command);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{args:?}: {said}");
    }
    assert_clean(&store, "afterwards");
    assert_empties(&store, "in the end");
}
