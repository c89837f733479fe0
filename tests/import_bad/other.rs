//! What is no image at all, and names.

use std::fs;

use tarnfs::digest::Digest;

use super::common::image::{gzip, root};
use super::common::{Sandbox, text};
use super::{assert_nothing_left, assert_refusal, refused};

/// Things that are no images.
#[test]
fn other_things() {
    let sandbox = Sandbox::new();
    let dir = sandbox.dir("dir");
    let fifo = sandbox.at("fifo");
    let mode = rustix::fs::Mode::RWXU;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
    let [dir, fifo] = [&dir, &fifo].map(|path| path.to_str().unwrap());
    let file = sandbox.at("file");
    fs::write(&file, root("x", 1)).unwrap();
    let file = file.to_str().unwrap();
    let none = Digest::of(b"none").to_string();
    for command in ["import", "ls"] {
        let cases: &[(&str, &[&str])] = &[
            (dir, &["directory", "oci:"]),
            (fifo, &["fifo", "regular file"]),
            ("/dev/null", &["/dev/null", "regular file"]),
            ("/nowhere/x.tar", &["/nowhere/x.tar", "no such file"]),
            (
                "nothing-of-this-name",
                &["nothing-of-this-name", "docker://", "store"],
            ),
            ("two\nlines", &["two\\nlines"]),
            (&none, &[&none, "store"]),
            (&none[..20], &[&none[..20], "store"]),
            ("sha256:", &["sha256:"]),
            ("oci:", &["nothing stands behind"]),
            ("oci:/nowhere", &["/nowhere", "no such file"]),
            (&format!("oci:{file}"), &["not a directory", "oci-archive:"]),
            (&format!("oci-archive:{dir}"), &["a directory", "oci:"]),
            (
                &format!("oci-archive:{file}"),
                &["oci-layout", "tarnfs import"],
            ),
            (
                &format!("docker-archive:{file}"),
                &["manifest.json", "tarnfs import"],
            ),
            (&format!("oci-archive:{fifo}"), &["fifo"]),
            (&format!("docker-archive:{fifo}"), &["fifo"]),
            ("docker-archive:/dev/null", &["/dev/null"]),
            (&format!("dir:{dir}"), &["manifest.json", "tarnfs import"]),
            ("docker:debian", &["docker://"]),
            ("docker://", &["nothing stands behind"]),
            ("docker://UPPER", &["UPPER", "lower"]),
            ("docker://a b", &["a b"]),
            ("docker://a:b:c", &["a:b:c"]),
            ("docker://a@sha256:12", &["sha256:12"]),
            ("docker://../../etc", &["../../etc"]),
        ];
        for (text, why) in cases {
            refused(
                &sandbox,
                &[command, text],
                why,
                &format!("{command} {text:?}"),
            );
        }
    }
    // Of the other commands' arguments clap says so.
    refused(&sandbox, &["import", ""], &["empty"], "an empty name");
    for command in [
        &["ls"][..],
        &["run"],
        &["mount"],
        &["inspect"],
        &["flatten", "-o/nowhere/x"],
    ] {
        let mut args = command.to_vec();
        args.push("-");
        if command == ["mount"] {
            args.push(dir);
        }
        let output = sandbox.tarnfs(&args);
        assert_eq!(
            output.status.code(),
            Some(if command == ["run"] { 125 } else { 1 })
        );
        let said = text(&output.stderr);
        assert!(
            said.lines().count() == 1 && said.contains("tarnfs import"),
            "{said}"
        );
    }
    // Bad names are the command line's fault: usage, 2.
    for bad in ["", "../x", "a b", "-x", "sha256:0", &"x".repeat(300)] {
        let output = sandbox.tarnfs(["import", &format!("--name={bad}"), file]);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{bad}: {}",
            text(&output.stderr)
        );
    }
    assert_nothing_left(&sandbox, "bad names");
}

/// An abbreviation of several digests.
#[test]
fn ambiguous_prefixes() {
    let sandbox = Sandbox::new();
    let images = sandbox.at("store/images/sha256");
    let file = sandbox.at("a.tar.gz");
    fs::write(&file, gzip(&root("x", 1))).unwrap();
    sandbox.tarnfs_ok(["import", file.to_str().unwrap()]);
    for end in ["1", "2"] {
        fs::create_dir(images.join(format!("abcdef{}{end}", "0".repeat(57)))).unwrap();
    }
    for args in [
        &["ls", "abcdef"][..],
        &["rm", "abcdef"],
        &["tag", "sha256:abcdef0", "x"],
    ] {
        assert_refusal(
            &sandbox.tarnfs(args),
            &["2 images", "more digits"],
            "abcdef",
        );
    }
}
