//! Docker archives.

use std::fs;

use serde_json::{Value, json};
use tarnfs::digest::Digest;

use super::common::Sandbox;
use super::common::image::{Doc, docker_archive, tar_of};
use super::common::tarball::{Header, Tarball};
use super::{layers, refused};

/// Names in docker archives that lead elsewhere.
#[test]
fn docker_archives() {
    type Change = fn(Doc, &mut Value);
    let cases: &[(&str, Change, &[&str])] = &[
        (
            "a layer out of the tar",
            |doc, v| {
                if doc == Doc::Manifest {
                    v[0]["Layers"][0] = json!("../../../../etc/passwd");
                }
            },
            &["../../../../etc/passwd", "out of the tar"],
        ),
        (
            "a layer by an absolute path",
            |doc, v| {
                if doc == Doc::Manifest {
                    v[0]["Layers"][0] = json!("/etc/passwd");
                }
            },
            &["/etc/passwd", "out of the tar"],
        ),
        (
            "a configuration out of the tar",
            |doc, v| {
                if doc == Doc::Manifest {
                    v[0]["Config"] = json!("a/../../x.json");
                }
            },
            &["a/../../x.json", "out of the tar"],
        ),
        (
            "a layer that is missing",
            |doc, v| {
                if doc == Doc::Manifest {
                    v[0]["Layers"][1] = json!("7/layer.tar");
                }
            },
            &["7/layer.tar", "is missing"],
        ),
        (
            "no layers",
            |doc, v| {
                if doc == Doc::Manifest {
                    v[0].as_object_mut().unwrap().remove("Layers");
                }
            },
            &["manifest.json", "no \"Layers\""],
        ),
        (
            "no images",
            |doc, v| {
                if doc == Doc::Manifest {
                    *v = json!([]);
                }
            },
            &["no image"],
        ),
        (
            "no list",
            |doc, v| {
                if doc == Doc::Manifest {
                    *v = json!({});
                }
            },
            &["manifest.json", "list"],
        ),
        (
            "too few diff IDs",
            |doc, v| {
                if doc == Doc::Config {
                    v["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
                }
            },
            &["diff IDs of 1 layers"],
        ),
        (
            "a wrong diff ID",
            |doc, v| {
                if doc == Doc::Config {
                    v["rootfs"]["diff_ids"][1] = json!(Digest::of(b"x").to_string());
                }
            },
            &["layer 2", "diff ID"],
        ),
    ];
    for (what, change, why) in cases {
        let sandbox = Sandbox::new();
        let file = sandbox.at("it.tar");
        let source = format!("docker-archive:{}", file.display());
        fs::write(&file, tar_of(&docker_archive(&layers(), change))).unwrap();
        refused(&sandbox, &["import", &source], why, what);
        fs::write(&file, tar_of(&docker_archive(&layers(), |_, _| ()))).unwrap();
        refused(
            &sandbox,
            &["import", &format!("{source}:no")],
            &["no", ":it:latest"],
            what,
        );
        sandbox.tarnfs_ok(["import", "--name", "it", &source]);
        assert_eq!(sandbox.tarnfs_ok(["cat", "it", "/etc/second"]), "2\n");
    }
    // Members that are links out of the tar, and to each other.
    let files = docker_archive(&layers(), |_, _| ());
    for (what, target, why) in [
        (
            "a link out",
            &b"../../../../etc/passwd"[..],
            "out of the tar",
        ),
        ("an absolute link", b"/etc/passwd", "out of the tar"),
        ("a link to itself", b"layer.tar", "leads to no file"),
    ] {
        let sandbox = Sandbox::new();
        let file = sandbox.at("it.tar");
        let rest: Vec<_> = files
            .iter()
            .filter(|(name, _)| name != "0/layer.tar")
            .cloned()
            .collect();
        let link = Tarball::default().header(Header::new(b"0/layer.tar", b'2', 0).link(target));
        fs::write(&file, [link.bytes, tar_of(&rest)].concat()).unwrap();
        let source = format!("docker-archive:{}", file.display());
        refused(&sandbox, &["import", &source], &["0/layer.tar", why], what);
    }
}
