//! Images of layers: our merged tree beside what `umoci unpack` makes of the same layers, and what
//! GNU tar leaves that unpacks them one over the other.

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
#[path = "layers/make.rs"]
mod make;
#[path = "layers/merged.rs"]
mod merged;
#[path = "layers/unpack.rs"]
mod unpack;

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use common::tarball::Tarball;
use common::walk::assert_same;
use common::{Sandbox, has, skip};
use merged::same;

fn root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    skip("needs root (device nodes, owners)");
    false
}

/// umoci leaves directories the time at which it deletes something in them, or makes one that is
/// only implied, there or itself: none of these is from 2001.
fn beside_umoci(sandbox: &Sandbox, layers: &[PathBuf]) {
    if has("umoci") {
        let unpacked = unpack::umoci(sandbox, layers);
        let got = merged::tree(sandbox, layers);
        let today = |_: &[u8], time: &str| !time.starts_with("981173");
        same(merged::of_dir(&unpacked), got, &today);
    }
}

/// GNU tar gives directories that no entry tells of the time at which it makes them, we 1970.
fn beside_tar(sandbox: &Sandbox, layers: &[PathBuf]) {
    let unpacked = unpack::gnu_tar(sandbox, layers);
    let got = merged::tree(sandbox, layers);
    let told = make::told(layers);
    let implied = |path: &[u8], _: &str| !told.contains(path);
    same(merged::of_dir(&unpacked), got, &implied);
}

fn both(scripts: &[(&str, make::Pack)]) {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    let layers = make::layers(&sandbox, scripts);
    beside_tar(&sandbox, &layers);
    beside_umoci(&sandbox, &layers);
}

#[test]
fn a_system_with_updates() {
    use make::Pack::{All, Files, Without};
    both(&[
        (make::BASE, All),
        (make::UPDATE, All),
        (make::IMPLIED, Files),
        (make::LINKS, Without(&["./etc/hosts", "./srv/one"])),
        (make::TYPES, All),
        (make::LEFT, Files),
    ]);
}

#[test]
fn each_update_over_the_base() {
    use make::Pack::{All, Files, Without};
    for layer in [
        (make::UPDATE, All),
        (make::UPDATE, Files),
        (make::IMPLIED, Files),
        (make::LINKS, Without(&["./etc/hosts", "./srv/one"])),
        (make::TYPES, All),
        (make::LEFT, Files),
    ] {
        both(&[(make::BASE, All), layer]);
    }
}

#[test]
fn one_layer() {
    both(&[(make::BASE, make::Pack::All)]);
    both(&[(make::BASE, make::Pack::Files)]);
}

/// Absolute targets and `..` beyond the root: GNU tar would leave the directory by them.
#[test]
fn links_that_would_lead_out() {
    use make::Pack::{All, Files};
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    let base = "mkdir -p usr/bin usr/lib deep/er; echo 1 > usr/bin/a; echo 2 > usr/lib/b
        ln -s /usr/bin bin; ln -s ../../../../usr/lib lib; ln -s ../../lib deep/er/l";
    let upper = "mkdir -p bin lib deep/er/l; echo 3 > bin/new; ln bin/new bin/new2
        echo 4 > lib/.wh.b; echo 5 > deep/er/l/c";
    let layers = make::layers(&sandbox, &[(base, All), (upper, Files)]);
    beside_umoci(&sandbox, &layers);
}

/// The kernel's EROFS over one device for each layer, more than an image may have by any tool's
/// limit (127).
#[test]
fn the_kernel_shows_the_same_of_many_layers() {
    if !root() || !kernel::can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let mut layers = make::layers(
        &sandbox,
        &[
            (make::BASE, make::Pack::All),
            (make::UPDATE, make::Pack::All),
        ],
    );
    for n in layers.len()..130 {
        let tar = sandbox.at(format!("small{n}.tar"));
        let name = format!("srv/n{n}");
        let content = vec![b'x'; n * 100];
        let bytes = Tarball::default().file(name.as_bytes(), &content).end();
        std::fs::write(&tar, bytes).unwrap();
        layers.push(tar);
    }
    let (index, blobs) = merged::index(&sandbox, &layers);
    assert!(blobs.len() >= 130);
    let mount = kernel::mount(&index, &blobs).unwrap();
    let root = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let want = merged::tree(&sandbox, &layers);
    assert_same(&want, &merged::of_dir(Path::new(&root)));
}

/// The comparison itself: it must see a difference where there is one.
#[test]
fn the_comparison_can_fail() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    let layers = make::layers(&sandbox, &[(make::BASE, make::Pack::All)]);
    let want = merged::tree(&sandbox, &layers);
    let unpacked = unpack::gnu_tar(&sandbox, &layers);
    for change in [
        "chmod 600 etc/hosts",
        "echo 2 > etc/hosts",
        "touch -d @5 etc/hosts",
        "rm etc/hosts2; cp -p etc/hosts etc/hosts2",
        "setfattr -n user.more -v 1 etc",
        "touch -d @5 etc",
        "chown 77 etc/hosts",
        "rm dev/null",
    ] {
        common::ok("sh", ["-euc", &format!("cd {unpacked:?}; {change}")]);
        let other = merged::of_dir(&unpacked);
        assert_ne!(want, other, "{change}");
        let again = unpack::gnu_tar(&sandbox, &layers);
        assert_eq!(again, unpacked);
    }
    assert_eq!(want, merged::of_dir(&unpacked));
}
