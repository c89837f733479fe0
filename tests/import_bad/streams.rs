//! Tars that are none, or not whole, as files and on standard input.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use super::common::image::{Layout, Stored, docker_archive, gzip, root, tar_of, xz, zstd};
use super::common::tarball::{Header, Tarball};
use super::common::{Sandbox, TARNFS, assert_ok};
use super::{Case, assert_nothing_left, assert_refusal, layers, refused};

/// `tarnfs args…` with these bytes on standard input.
fn piped(sandbox: &Sandbox, args: &[&str], bytes: &[u8]) -> Output {
    let mut child = Command::new("timeout")
        .args(["--kill-after=10", "300", TARNFS])
        .env("TARNFS_STORE", sandbox.at("store"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || {
        // Who refuses its input does not read all of it.
        stdin.write_all(&bytes).ok();
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// What is no tar, or no whole one, as a file and on standard input.
#[test]
fn files_and_streams() {
    let tar = root("it", 100_000);
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let flipped = |mut bytes: Vec<u8>| {
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        bytes
    };
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("nothing", Vec::new(), "empty"),
        ("text", b"hello".to_vec(), "tar"),
        ("half a tar", cut(tar.clone()), "truncated"),
        ("half a gzip", cut(gzip(&tar)), "gzip"),
        ("half a zstd", cut(zstd(&tar)), "zstd"),
        ("half an xz", cut(xz(&tar)), "xz"),
        ("a damaged gzip", flipped(gzip(&tar)), "gzip"),
        ("a damaged xz", flipped(xz(&tar)), "xz"),
        ("a gzip of nothing", gzip(b""), "empty"),
        ("a gzip of text", gzip(b"hello"), "tar"),
        ("a gzip in a zstd", zstd(&gzip(&tar)), "twice, gzip in zstd"),
        ("bzip2", b"BZh91AY&SY and so on".to_vec(), "bzip2"),
        (
            "a docker archive",
            tar_of(&docker_archive(&layers(), |_, _| ())),
            "docker-archive:",
        ),
        (
            "an OCI archive",
            Layout::of(&layers()).archive(),
            "oci-archive:",
        ),
        ("a zip", b"PK\x03\x04 and so on".to_vec(), "zip"),
    ];
    for (what, bytes, why) in cases {
        let sandbox = Sandbox::new();
        let file = sandbox.at("it.tar");
        fs::write(&file, bytes).unwrap();
        let path = file.to_str().unwrap();
        refused(
            &sandbox,
            &["import", "--name=it", path],
            &["it.tar", why],
            what,
        );
        let output = piped(&sandbox, &["import", "--name=it", "-"], bytes);
        assert_refusal(&output, &["standard input", why], &format!("{what}, piped"));
        assert_nothing_left(&sandbox, what);
        fs::write(&file, gzip(&tar)).unwrap();
        sandbox.tarnfs_ok(["import", path]);
        assert_ok(&piped(&sandbox, &["import", "-"], &tar), what);
    }
}

/// A little that becomes much.
#[test]
fn bombs() {
    let zeros = |len: usize| {
        let mut tar = Tarball::default()
            .header(&Header::new(b"zeros", b'0', len as u64))
            .bytes;
        tar.resize(tar.len() + len + 1024, 0);
        tar
    };
    let tar = zeros(64 << 20);
    let sandbox = Sandbox::new();
    let why = ["--max-bytes", "1048576"];
    for (name, bytes) in [
        ("a.gz", gzip(&tar)),
        ("a.zst", zstd(&tar)),
        ("a.xz", xz(&tar)),
    ] {
        let file = sandbox.at(name);
        fs::write(&file, &bytes).unwrap();
        let path = file.to_str().unwrap();
        refused(&sandbox, &["import", "--max-bytes=1M", path], &why, name);
        let output = piped(&sandbox, &["import", "--max-bytes=1M", "-"], &bytes);
        assert_refusal(&output, &why, name);
        assert_nothing_left(&sandbox, name);
    }
    // The bound is of all layers together.
    let layers: Vec<_> = (0..3)
        .map(|n| Stored::gzip(&root(&n.to_string(), 400 << 10)))
        .collect();
    let case = Case::new(&Layout::of(&layers));
    let args = ["import", "--max-bytes=1M", &case.source];
    refused(&case.sandbox, &args, &why, "three layers");
    case.sandbox
        .tarnfs_ok(["import", "--max-bytes=2M", &case.source]);
}
