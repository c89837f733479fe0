//! Bad images, through the program: one line on standard error that says which part is wrong, an
//! exit status of 1, nothing in the store but whole layers, which `gc` takes; and the right image
//! comes in afterwards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

#[path = "../common/mod.rs"]
mod common;

mod docker;
mod layout;
mod other;
mod registry;
mod streams;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Output;

use common::image::{Layout, Stored, root};
use common::tarball::Tarball;
use common::{Sandbox, text};

/// The output is a refusal of one line that holds each of `why`.
fn assert_refusal(output: &Output, why: &[&str], what: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: {said}");
    assert!(
        output.stdout.is_empty(),
        "{what}: a word on standard output"
    );
    assert_eq!(said.lines().count(), 1, "{what}: one line, not\n{said}");
    assert!(said.starts_with("tarnfs: "), "{what}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
    assert!(!said.contains('\x1b'), "{what}: {said}");
    for why in why {
        assert!(
            said.to_lowercase().contains(&why.to_lowercase()),
            "{what}: \"{why}\" is not in: {said}"
        );
    }
    if std::env::var_os("SHOW_ERRORS").is_some() {
        eprint!("{what}: {said}");
    }
}

/// How many things lie in a directory, which may be missing.
fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Nothing of an image is in the store, and what is left of layers goes.
fn assert_nothing_left(sandbox: &Sandbox, what: &str) {
    let store = sandbox.at("store");
    for part in ["images/sha256", "names", "sources", "tars", "tmp", "roots"] {
        assert_eq!(count(&store.join(part)), 0, "{what}: something in {part}");
    }
    sandbox.tarnfs_ok(["gc", "--min-age=0"]);
    assert_eq!(
        count(&store.join("blobs/sha256")),
        0,
        "{what}: gc leaves it"
    );
    assert_eq!(sandbox.tarnfs_ok(["images", "-q"]), "", "{what}");
}

/// `tarnfs args…` is refused because of all of `why`, and leaves nothing.
fn refused<S: AsRef<OsStr>>(sandbox: &Sandbox, args: &[S], why: &[&str], what: &str) {
    assert_refusal(&sandbox.tarnfs(args), why, what);
    assert_nothing_left(sandbox, what);
}

fn layers() -> Vec<Stored> {
    let second = Tarball::default().file(b"etc/second", b"2\n").end();
    vec![Stored::gzip(&root("first", 3000)), Stored::plain(&second)]
}

/// An OCI layout, written for this.
struct Case {
    sandbox: Sandbox,
    source: String,
}

impl Case {
    fn new(layout: &Layout) -> Self {
        let sandbox = Sandbox::new();
        let dir = sandbox.dir("oci");
        layout.write(&dir);
        let source = format!("oci:{}", dir.display());
        Self { sandbox, source }
    }

    fn refused(&self, why: &[&str], what: &str) {
        let name = ["import", "--name", "it", &self.source];
        refused(&self.sandbox, &name, why, what);
        // Every command that takes an image says the same.
        let output = self.sandbox.tarnfs(["ls", &self.source]);
        assert_refusal(&output, why, &format!("{what}, with ls"));
        assert_nothing_left(&self.sandbox, what);
    }

    /// The right image in the same place is imported.
    fn then_good(&self) {
        let dir = self.sandbox.at("oci");
        fs::remove_dir_all(&dir).unwrap();
        Layout::of(&layers()).write(&dir);
        let args = ["import", "--name", "it", self.source.as_str()];
        let digest = self.sandbox.tarnfs_ok(args);
        assert!(digest.starts_with("sha256:") && digest.lines().count() == 1);
        let os = self.sandbox.tarnfs_ok(["cat", "it", "/etc/os-release"]);
        assert_eq!(os, "NAME=first\n");
    }
}
