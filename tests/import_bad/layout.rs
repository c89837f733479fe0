//! OCI layouts.

use std::fs;

use serde_json::{Value, json};
use tarnfs::digest::Digest;

use super::common::image::{Doc, INDEX, LAYER, Layout, Stored, root};
use super::{Case, layers, refused};

/// Each field of the documents of a layout, wrong in turn.
#[test]
fn documents_of_a_layout() {
    type Change = fn(Doc, &mut Value);
    let cases: &[(&str, Change, &[&str])] = &[
        (
            "config media type",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["config"]["mediaType"] = json!("application/x-wasm");
                }
            },
            &["not an image", "application/x-wasm"],
        ),
        (
            "layer media type",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["layers"][1]["mediaType"] = json!("text/plain");
                }
            },
            &["layers[1]", "text/plain"],
        ),
        (
            "encrypted",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["layers"][0]["mediaType"] = json!(format!("{LAYER}+gzip+encrypted"));
                }
            },
            &["layers[0]", "encrypted", "--decryption-key"],
        ),
        (
            "foreign",
            |doc, v| {
                if doc == Doc::Manifest {
                    let kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
                    v["layers"][0]["mediaType"] = json!(kind);
                    v["layers"][0]["urls"] = json!(["http://127.0.0.1:1/x"]);
                    v["layers"][0]["digest"] = json!(Digest::of(b"away").to_string());
                }
            },
            &["layer", "kept elsewhere", "copy the image"],
        ),
        (
            "layer missing",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["layers"][1]["digest"] = json!(Digest::of(b"no").to_string());
                }
            },
            &["layer", "is missing"],
        ),
        (
            "layer size",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["layers"][1]["size"] = json!(17);
                }
            },
            &["layer", "descriptor says 17"],
        ),
        (
            "absurd layer size",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["layers"][1]["size"] = json!(u64::MAX / 2);
                }
            },
            &["layers[1].size"],
        ),
        (
            "negative layer size",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["layers"][1]["size"] = json!(-1);
                }
            },
            &["layers[1].size", "-1"],
        ),
        (
            "absurd config size",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["config"]["size"] = json!(1_u64 << 40);
                }
            },
            &["config.size"],
        ),
        (
            "config missing",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["config"]["digest"] = json!(Digest::of(b"no").to_string());
                }
            },
            &["config", "is missing"],
        ),
        (
            "no config",
            |doc, v| {
                if doc == Doc::Manifest {
                    v.as_object_mut().unwrap().remove("config");
                }
            },
            &["no \"config\""],
        ),
        (
            "no layers",
            |doc, v| {
                if doc == Doc::Manifest {
                    v.as_object_mut().unwrap().remove("layers");
                }
            },
            &["no \"layers\""],
        ),
        (
            "fewer layers than diff IDs",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["layers"].as_array_mut().unwrap().pop();
                }
            },
            &["diff IDs of 2 layers", "1"],
        ),
        (
            "a digest of another algorithm",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)));
                }
            },
            &["layers[0].digest", "sha256"],
        ),
        (
            "a digest that is a path",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd");
                }
            },
            &["layers[0].digest", "no digest"],
        ),
        (
            "schema 1",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["schemaVersion"] = json!(1);
                }
            },
            &["schema 1", "skopeo copy"],
        ),
        (
            "schema 7",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["schemaVersion"] = json!(7);
                }
            },
            &["schemaVersion is 7"],
        ),
        (
            "a manifest that is an index, too",
            |doc, v| {
                if doc == Doc::Manifest {
                    v["manifests"] = json!([]);
                }
            },
            &["ambiguous"],
        ),
        (
            "wrong diff ID",
            |doc, v| {
                if doc == Doc::Config {
                    v["rootfs"]["diff_ids"][0] = json!(Digest::of(b"other").to_string());
                }
            },
            &["layer 1", "diff ID", "the image says"],
        ),
        (
            "diff IDs swapped",
            |doc, v| {
                if doc == Doc::Config {
                    v["rootfs"]["diff_ids"].as_array_mut().unwrap().reverse();
                }
            },
            &["layer", "diff ID"],
        ),
        (
            "no rootfs",
            |doc, v| {
                if doc == Doc::Config {
                    v.as_object_mut().unwrap().remove("rootfs");
                }
            },
            &["config", "no \"rootfs\""],
        ),
        (
            "another system",
            |doc, v| {
                if doc == Doc::Config {
                    v["os"] = json!("windows");
                }
            },
            &["for windows"],
        ),
        (
            "words that are no line",
            |doc, v| {
                if doc == Doc::Config {
                    v["os"] = json!("a\nb\x1b[31m");
                }
            },
            &["config"],
        ),
        (
            "no platform that fits",
            |doc, v| {
                if doc == Doc::Index {
                    v["manifests"][0]["platform"] = json!({"os": "linux", "architecture": "pdp11"});
                }
            },
            &["pdp11"],
        ),
        (
            "manifest missing",
            |doc, v| {
                if doc == Doc::Index {
                    v["manifests"][0]["digest"] = json!(Digest::of(b"no").to_string());
                }
            },
            &["manifest", "is missing"],
        ),
        (
            "manifest size",
            |doc, v| {
                if doc == Doc::Index {
                    v["manifests"][0]["size"] = json!(3);
                }
            },
            &["manifest", "descriptor says 3"],
        ),
        (
            "manifest media type",
            |doc, v| {
                if doc == Doc::Index {
                    v["manifests"][0]["mediaType"] = json!(INDEX);
                }
            },
            &["mediaType"],
        ),
        (
            "no manifests",
            |doc, v| {
                if doc == Doc::Index {
                    v["manifests"] = json!([]);
                }
            },
            &["no image"],
        ),
        (
            "no index version",
            |doc, v| {
                if doc == Doc::Index {
                    v.as_object_mut().unwrap().remove("schemaVersion");
                }
            },
            &["index.json", "schemaVersion"],
        ),
    ];
    for (what, change, why) in cases {
        let case = Case::new(&Layout::changed(&layers(), change));
        case.refused(why, what);
        case.then_good();
    }
}

/// Files of a layout: gone, empty, cut off, changed, not files.
#[test]
fn files_of_a_layout() {
    let good = Layout::of(&layers());
    for (name, bytes) in good.files() {
        let short = name.rsplit('/').next().unwrap();
        for (what, changed) in [
            ("missing", None),
            ("empty", Some(Vec::new())),
            ("half", Some(bytes[..bytes.len() / 2].to_vec())),
            ("flipped", {
                let mut flipped = bytes.clone();
                let at = bytes.len() / 2;
                flipped[at] ^= 0x80;
                Some(flipped)
            }),
            ("longer", Some([&bytes[..], b"}"].concat())),
        ] {
            // A space more is JSON still, and a flipped byte of a version or a comment may be.
            let case = Case::new(&good);
            let path = case.sandbox.at("oci").join(&name);
            match changed {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            case.refused(&[short], &format!("{name} {what}"));
            case.then_good();
        }
        let case = Case::new(&good);
        let path = case.sandbox.at("oci").join(&name);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        case.refused(&[short], &format!("{name} a directory"));
        fs::remove_dir(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        case.refused(&[short], &format!("{name} a FIFO"));
        case.then_good();
    }
}

/// Indexes that lead to themselves, or too deep.
#[test]
fn indexes_of_indexes() {
    // The digest of what contains it cannot be made; an index that says it is the outermost is as
    // near as one comes.
    let mut layout = Layout::of(&layers());
    let mut inner: Value = serde_json::from_slice(&layout.index).unwrap();
    for _ in 0..40 {
        let bytes = serde_json::to_vec(&inner).unwrap();
        let entry = layout.descriptor(INDEX, &bytes);
        inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    }
    layout.index = serde_json::to_vec(&inner).unwrap();
    let case = Case::new(&layout);
    case.refused(&["index"], "40 indexes in each other");
    case.then_good();

    let mut layout = Layout::of(&layers());
    let itself = json!({"mediaType": INDEX, "digest": Digest::of(b"me").to_string(), "size": 500});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [itself]});
    layout.index = serde_json::to_vec(&index).unwrap();
    let bytes = layout.index.clone();
    layout.blobs.insert(Digest::of(b"me").hex(), bytes);
    let case = Case::new(&layout);
    case.refused(&["index"], "an index that leads to itself");
    case.then_good();
}

#[test]
fn tags_and_platforms() {
    let mut layout = Layout::default();
    let mut entries = Vec::new();
    for (n, architecture) in ["amd64", "arm64"].iter().enumerate() {
        let layers = [Stored::plain(&root(architecture, n))];
        let mut entry = layout.image(&layers, architecture, &|_, _| ());
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": format!("tag{n}")});
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    layout.index = serde_json::to_vec(&index).unwrap();
    let case = Case::new(&layout);
    case.refused(&["several images", ":tag0, :tag1"], "no tag");
    let (sandbox, source) = (&case.sandbox, &case.source);
    let import = |args: &[&str], why: &[&str]| {
        let args = [&["import"], args].concat();
        refused(sandbox, &args, why, &format!("{args:?}"));
    };
    import(&[&format!("{source}:tag2")], &["tag2", "no image", ":tag0"]);
    import(&[&format!("{source}:")], &["no tag"]);
    import(&[&format!("{source}@sha256:12")], &["64 hexadecimal"]);
    let none = Digest::of(b"none");
    import(&[&format!("{source}@{none}")], &[&none.hex()]);
    import(&[&format!("{source}:@1")], &["no numbers"]);
    for bad in ["linux", "/", "linux/amd64/v1/v2", "linux/a b"] {
        let output = sandbox.tarnfs(["import", "--platform", bad, source]);
        assert_eq!(output.status.code(), Some(2), "{bad}");
    }
    let args = [
        "import",
        &format!("{source}:tag1"),
        "--platform=linux/arm64",
    ];
    sandbox.tarnfs_ok(args);
}
