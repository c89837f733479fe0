//! What a mount shows is what the tar holds, judged by GNU tar's own comparison and against what
//! GNU tar unpacks: for each packer, through FUSE and through the kernel's EROFS over our index.

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

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::walk::{assert_same, describe};
use common::{Sandbox, can_mount, has, pack, run, small_image, text};

/// `tar -d` finds no difference between `tar` and the tree at `root`.
fn tar_agrees(tar: &Path, root: &Path) {
    let mut command = Command::new("tar");
    command
        .args(["--xattrs", "--acls", "--numeric-owner"])
        // bsdtar's own pax keys: GNU tar says that it passes over them.
        .arg("--warning=no-unknown-keyword")
        .arg("-df")
        .arg(tar)
        .arg("-C")
        .arg(root);
    let output = run(command);
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success() && said.is_empty(),
        "tar -df {tar:?} -C {root:?}: {}\n{}",
        output.status,
        said.lines().take(20).collect::<Vec<_>>().join("\n")
    );
}

/// What GNU tar makes of `tar` in a directory.
fn unpack(sandbox: &Sandbox, tar: &Path) -> PathBuf {
    let dir = sandbox.dir("unpacked");
    let mut command = Command::new("tar");
    command
        .args([
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "--numeric-owner",
            "--delay-directory-restore",
            "-xpf",
        ])
        .arg(tar)
        .arg("-C")
        .arg(&dir);
    common::assert_ok(&run(command), "tar -x");
    dir
}

/// Both trees are the same, but for the root itself: a tar need not hold it.
fn same_tree(want: &Path, got: &Path) {
    let below = |root: &Path| {
        let mut all = describe(root);
        all.remove(&b""[..]);
        all
    };
    assert_same(&below(want), &below(got));
}

/// Every group of names is one inode with that many links.
fn links_are_right(root: &Path) {
    let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    for group in [
        &[
            "odd/links/a",
            "odd/links/b",
            "odd/links/deep/a",
            "odd/links/deep/er/a",
        ][..],
        &["odd/links/big", "odd/links/deep/big"],
        &["odd/links/symlink", "odd/links/deep/symlink"],
    ] {
        let inos: HashSet<u64> = group.iter().map(|name| stat(name).ino()).collect();
        assert_eq!(inos.len(), 1, "inode numbers of {group:?}");
        for name in group {
            assert_eq!(stat(name).nlink(), group.len() as u64, "links of {name}");
        }
    }
    assert_ne!(stat("odd/links/a").ino(), stat("odd/links/big").ino());
}

fn fuse(packer: &str) {
    let Some(tar) = image(packer) else { return };
    let sandbox = Sandbox::new();
    let mount = sandbox.mount("mnt", &tar, &["--read-only"]);
    // The first stat of a name must already know of the others: no walk before this.
    links_are_right(mount.path());
    tar_agrees(&tar, mount.path());
    same_tree(&unpack(&sandbox, &tar), mount.path());
    mount.unmount();
}

fn erofs(packer: &str) {
    let Some(tar) = image(packer) else { return };
    if !kernel::can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let root = Erofs::mount(&sandbox, &tar);
    links_are_right(&root.path);
    tar_agrees(&tar, &root.path);
    same_tree(&unpack(&sandbox, &tar), &root.path);
}

fn image(packer: &str) -> Option<PathBuf> {
    if !can_mount() {
        return None;
    }
    Some(small_image()?.join(format!("small.{packer}.tar")))
}

/// The kernel's mount of our index, attached nowhere.
struct Erofs {
    path: PathBuf,
    _root: std::os::fd::OwnedFd,
}

impl Erofs {
    fn mount(sandbox: &Sandbox, tar: &Path) -> Self {
        let index = sandbox.at("index.erofs");
        let json = sandbox.tarnfs_ok([
            "index".as_ref(),
            "--json".as_ref(),
            "-o".as_ref(),
            index.as_os_str(),
            tar.as_os_str(),
        ]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let side = json
            .get("side")
            .map(|side| PathBuf::from(side.as_str().unwrap()));
        let mut blobs = vec![tar.to_owned()];
        blobs.extend(side);
        let root = kernel::mount(&index, &blobs).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), root.as_raw_fd());
        Self {
            path: path.into(),
            _root: root,
        }
    }
}

#[test]
fn fuse_shows_what_gnu_tar_packed_as_pax() {
    fuse("pax");
}

#[test]
fn fuse_shows_what_gnu_tar_packed_as_gnu() {
    fuse("gnu");
}

#[test]
fn fuse_shows_what_bsdtar_packed() {
    fuse("bsd");
}

#[test]
fn erofs_shows_what_gnu_tar_packed_as_pax() {
    erofs("pax");
}

#[test]
fn erofs_shows_what_gnu_tar_packed_as_gnu() {
    erofs("gnu");
}

#[test]
fn erofs_shows_what_bsdtar_packed() {
    erofs("bsd");
}

/// The comparison itself: it must see a difference where there is one.
#[test]
fn the_comparison_can_fail() {
    if !can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let tree = sandbox.dir("tree");
    fs::write(tree.join("file"), "one").unwrap();
    let tar = sandbox.at("t.tar");
    pack(&tree, &tar, &[]);
    tar_agrees(&tar, &tree);
    let before = describe(&tree);
    fs::write(tree.join("file"), "two").unwrap();
    assert!(std::panic::catch_unwind(|| tar_agrees(&tar, &tree)).is_err());
    fs::write(tree.join("other"), "").unwrap();
    let after = describe(&tree);
    assert!(std::panic::catch_unwind(|| assert_same(&before, &after)).is_err());
}

/// Every way in which GNU tar writes sparse files, and the plain old formats.
#[test]
fn each_sparse_format_is_served() {
    if !can_mount() || !has("tar") {
        return;
    }
    let sandbox = Sandbox::new();
    let tree = sandbox.dir("tree");
    let sparse = |name: &str, len: u64, data: &[(u64, &[u8])]| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::create(tree.join(name)).unwrap();
        file.set_len(len).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
    };
    sparse("hole", 64 << 20, &[]);
    sparse("middle", 10 << 20, &[(5 << 20, b"middle")]);
    sparse(
        "ends",
        (1 << 20) + 7,
        &[(0, b"start"), (1 << 20, b"the end")],
    );
    // More pieces than fit into a GNU header and its first extension block.
    let pieces: Vec<(u64, &[u8])> = (0..200).map(|n| (n * 65536, &b"piece"[..])).collect();
    sparse("pieces", 200 * 65536, &pieces);
    // Pieces that are no multiple of any block.
    sparse(
        "odd",
        100_001,
        &[(4096 * 3 + 17, &[7; 5000]), (90_001, &[8; 10_000])],
    );
    fs::write(tree.join("full"), vec![9; 70_000]).unwrap();
    fs::hard_link(tree.join("middle"), tree.join("same")).unwrap();

    for options in [
        &["--format=oldgnu", "--sparse"][..],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
        &["--format=ustar"],
        &["--format=v7"],
    ] {
        let tar = sandbox.at("sparse.tar");
        pack(&tree, &tar, &[options, &["--numeric-owner"]].concat());
        eprintln!("{options:?}");
        let mount = sandbox.mount("mnt", &tar, &["--read-only"]);
        tar_agrees(&tar, mount.path());
        mount.unmount();
        if kernel::can_mount() {
            tar_agrees(&tar, &Erofs::mount(&sandbox, &tar).path);
        }
    }
}
