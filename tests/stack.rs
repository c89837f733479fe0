//! Checkpoints and chains of them through the program and the kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;
#[path = "erofs_support/kernel.rs"]
mod kernel;
// Not in `common` itself: only tests of the store need it.
#[path = "common/stored.rs"]
mod stored;

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use common::tarball::Tarball;
use common::walk::{assert_same, described};
use common::{Sandbox, can_mount, text};
use serde_json::Value;
use stored::{content, layer, tarnfs, tarnfs_ok};
use tarnfs::digest::Digest;
use tarnfs::stack::{NewLayer, Note, add_layer};
use tarnfs::store::Store;

/// Layers of a chain: each changes what all have, adds, and removes what the one before has added.
fn step(n: usize) -> Vec<u8> {
    let name = |what: &str, n: usize| format!("{what}{n}").into_bytes();
    let mut tar = Tarball::default()
        .file(b"base/file0", format!("step {n}").as_bytes())
        .dir(&name("dir", n))
        .file(&name("new", n), &vec![n as u8; 3000])
        .file(&name("stays", n), b"x");
    if n > 0 {
        tar = tar
            .file(&name(".wh.new", n - 1), b"")
            .file(&name(".wh.dir", n - 1), b"");
    }
    tar = tar.hard_link(&name("link", n), b"base/file1");
    tar.end()
}

/// A store with `base` and `len` checkpoints on it, the last of which is `top`.
fn chain(sandbox: &Sandbox, len: usize) -> Vec<Digest> {
    let at = sandbox.at("store");
    stored::layout(&sandbox.at("layout"), &[layer("base", 1, 50_000)]);
    let from = format!("oci:{}", sandbox.at("layout").display());
    let base = tarnfs_ok(&at, &["import", "--name", "base", &from]);
    let mut all = vec![base.trim_end().parse().unwrap()];
    let store = Store::open(&at);
    for n in 0..len {
        let note = Note {
            id: n.to_string(),
            comment: None,
            created: 1,
        };
        let tar = step(n);
        let write = |out: &mut NewLayer| out.write_all(&tar);
        let made = add_layer(&store, all.last().unwrap(), &note, write, &mut |_| ()).unwrap();
        all.push(made.digest);
    }
    let top = all.last().unwrap().to_string();
    tarnfs_ok(&at, &["tag", &top, "top"]);
    all
}

/// The index of an image, and its devices.
fn parts(store: &Path, image: &Digest) -> (PathBuf, Vec<PathBuf>) {
    let image = Store::open(store).image(image).unwrap();
    let blobs = image.blobs().iter().map(|blob| blob.path.clone());
    (image.index_path(), blobs.collect())
}

#[test]
fn a_chain_becomes_one_layer() {
    let sandbox = Sandbox::new();
    let store = sandbox.at("store");
    let all = chain(&sandbox, 50);
    let want = content(&store, "top");
    let says = tarnfs_ok(&store, &["squash", "--json", "--name", "one", "top"]);
    let says: Value = serde_json::from_str(&says).unwrap();
    assert_eq!(
        (&says["squashed"], &says["fresh"]),
        (&50.into(), &true.into())
    );
    assert_eq!(content(&store, "one"), want);
    let one: Digest = says["digest"].as_str().unwrap().parse().unwrap();
    // The chain has a device a layer; the one layer and what lies below have theirs.
    let devices = |image: &Digest| parts(&store, image).1.len();
    assert!(devices(&all[50]) > 50, "{}", devices(&all[50]));
    assert_eq!(devices(&one), 3, "base, its sparse file, the layer");
    assert!(says["bytes"].as_u64().unwrap() < 150_000, "{says}");
    // In two steps, and from the middle.
    let middle = all[25].to_string();
    let half = tarnfs_ok(&store, &["squash", "--base", &middle, "top"]);
    assert_eq!(content(&store, half.trim_end()), want);
    let again = tarnfs_ok(&store, &["squash", half.trim_end()]);
    assert_eq!(content(&store, again.trim_end()), want);
    tarnfs_ok(&store, &["verify"]);
    // The chain goes; the one layer and the base stay.
    tarnfs_ok(&store, &["rm", "top"]);
    assert_eq!(content(&store, "one"), want);
    let inspected = tarnfs_ok(&store, &["inspect", "one"]);
    assert!(
        inspected.contains("tarnfs squash of 50 layers"),
        "{inspected}"
    );
    let unknown = tarnfs(&store, &["squash", "base"]);
    let said = text(&unknown.stderr);
    assert!(said.contains("has no checkpoints on top"), "{said}");
    for (args, why) in [
        (vec!["squash", "nothing"], "no image of the store"),
        (vec!["squash", "--base", "one", "base"], "does not lie on"),
        (vec!["squash", "docker://x/y"], "import it first"),
        (vec!["squash", "./x.tar"], "one layer"),
    ] {
        let output = tarnfs(&store, &args);
        let said = text(&output.stderr);
        assert_eq!(
            (output.status.code(), said.lines().count()),
            (Some(1), 1),
            "{said}"
        );
        assert!(said.contains(why), "{args:?}: {said}");
    }
}

/// What the kernel shows of the squashed image, of the chain, and what a mount shows.
#[test]
fn the_kernel_and_a_mount_show_one_tree() {
    let sandbox = Sandbox::new();
    let store = sandbox.at("store");
    let all = chain(&sandbox, 7);
    let one = tarnfs_ok(&store, &["squash", "--name", "one", "top"]);
    let one: Digest = one.trim_end().parse().unwrap();
    if kernel::can_mount() {
        let tree = |image: &Digest| {
            let (index, blobs) = parts(&store, image);
            let mount = kernel::mount(&index, &blobs).unwrap();
            described(&PathBuf::from(format!(
                "/proc/self/fd/{}",
                mount.as_raw_fd()
            )))
        };
        let want = tree(&all[7]);
        assert!(want.len() > 10);
        assert_same(&want, &tree(&one));
    }
    if can_mount() {
        let chain = sandbox.mount("chain", Path::new("top"), &["--read-only"]);
        let squashed = sandbox.mount("squashed", Path::new("one"), &["--read-only"]);
        assert_same(&described(chain.path()), &described(squashed.path()));
        assert_eq!(fs::read(squashed.at("base/file0")).unwrap(), b"step 6");
        chain.unmount();
        squashed.unmount();
    }
}
