//! The store through its commands, as who knows podman, docker and skopeo expects them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

#[path = "../common/mod.rs"]
mod common;

mod collecting;
mod importing;
mod names;
mod programs;
mod verifying;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::image::{Layout, Stored, root};
use common::tarball::Tarball;
use common::{Sandbox, text};
use serde_json::Value;

/// The one line of complaint of a command that must fail.
fn bad<S: AsRef<OsStr>>(sandbox: &Sandbox, args: &[S]) -> String {
    let output = sandbox.tarnfs(args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("tarnfs: "), "{said}");
    said
}

/// Standard output of a command that must succeed without a word of complaint.
fn good<S: AsRef<OsStr>>(sandbox: &Sandbox, args: &[S]) -> String {
    let output = sandbox.tarnfs(args);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    text(&output.stdout)
}

fn json<S: AsRef<OsStr>>(sandbox: &Sandbox, args: &[S]) -> Value {
    serde_json::from_str(&good(sandbox, args)).unwrap()
}

/// A layer of one file.
fn layer(name: &str) -> Stored {
    let tar = Tarball::default().file(name.as_bytes(), name.as_bytes());
    Stored::gzip(&tar.end())
}

/// An OCI layout in the sandbox; gives `oci:` and its path.
fn write_layout(sandbox: &Sandbox, name: &str, layers: &[Stored]) -> String {
    let dir = sandbox.dir(name);
    Layout::of(layers).write(&dir);
    format!("oci:{}", dir.display())
}

/// Imports an image of these layers under `name`; gives its digest.
fn import(sandbox: &Sandbox, name: &str, layers: &[Stored]) -> String {
    let source = write_layout(sandbox, &format!("{name}.oci"), layers);
    let digest = good(sandbox, &["import", "--name", name, &source]);
    digest.trim_end().to_owned()
}

/// The directory of an image in the store.
fn entry(sandbox: &Sandbox, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    sandbox.at("store/images/sha256").join(hex)
}

/// A layer in the store.
fn blob(sandbox: &Sandbox, layer: &Stored) -> PathBuf {
    let hex = layer.diff_id.hex();
    sandbox.at("store/blobs/sha256").join(format!("{hex}.tar"))
}

/// Turns one bit of a file in the store over, at the last place where `near` stands. The file is
/// made anew: nothing keeps fs-verity from it, and no link shares it.
fn flip(path: &Path, near: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let at = match near {
        b"" => bytes.len() / 2,
        near => bytes.windows(near.len()).rposition(|w| w == near).unwrap(),
    };
    bytes[at] ^= 1;
    replace(path, &bytes);
}

/// Other bytes in a file's place, with its times: what only reading finds.
fn replace(path: &Path, bytes: &[u8]) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

/// Has an image be used last so many seconds ago.
fn used(sandbox: &Sandbox, digest: &str, ago: u64) {
    let time = SystemTime::now() - Duration::from_secs(ago);
    let file = File::open(entry(sandbox, digest).join("used")).unwrap();
    file.set_modified(time).unwrap();
}

/// Every name below a directory.
fn names_below(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path.clone());
            }
            all.push(path);
        }
    }
    all.sort();
    all
}

/// A root with a layer on top.
fn two_layers(name: &str) -> Vec<Stored> {
    vec![Stored::zstd(&root(name, 20_000)), layer("top")]
}
