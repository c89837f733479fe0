//! `import`, and images that commands bring in themselves.

use std::fs;
use std::process::Command;

use super::common::image::{Layout, gzip, root, xz, zstd};
use super::common::{Sandbox, TARNFS, assert_ok, can_mount, run, text};
use super::{bad, good, import, json, names_below, replace, two_layers, write_layout};

#[test]
fn import_prints_the_digest_alone() {
    let sandbox = Sandbox::new();
    let source = write_layout(&sandbox, "oci", &two_layers("a"));
    let config = Layout::of(&two_layers("a")).config.unwrap().to_string();
    assert_eq!(good(&sandbox, &["import", &source]), format!("{config}\n"));
    let told = json(&sandbox, &["import", "--json", "--name=b", &source]);
    assert_eq!(told["digest"], config);
    assert_eq!(told["name"], "b");
    assert_eq!(told["fresh"], false);
    assert_eq!(told["layers"]["fetched"], 0);
    assert_eq!(told["bytes"]["read"], 0);
    assert!(told["seconds"]["total"].is_number());
    assert_eq!(good(&sandbox, &["cat", "b", "top"]), "top");
    // By its name it is what it was; by another name as well.
    assert_eq!(
        good(&sandbox, &["import", "b", "--name=c"]),
        format!("{config}\n")
    );
    assert_eq!(good(&sandbox, &["cat", "c", "top"]), "top");
    // By the digest of its manifest, of which one finds it, too.
    let alias = told["aliases"][0].as_str().unwrap();
    assert_eq!(good(&sandbox, &["cat", alias, "top"]), "top");
    assert_eq!(good(&sandbox, &["cat", &alias[..20], "top"]), "top");
}

/// What is there is not read again: it may even be gone by then, but for its documents.
#[test]
fn what_is_there_is_not_fetched() {
    let sandbox = Sandbox::new();
    let layers = two_layers("a");
    let source = write_layout(&sandbox, "oci", &layers);
    let first = json(&sandbox, &["import", "--json", &source]);
    assert_eq!(
        (&first["fresh"], &first["layers"]["fetched"]),
        (&true.into(), &2.into())
    );
    let before = names_below(&sandbox.at("store"));
    for layer in &layers {
        let digest = tarnfs::digest::Digest::of(&layer.bytes).hex();
        let path = sandbox.at("oci/blobs/sha256").join(digest);
        let len = layer.bytes.len();
        replace(&path, &vec![b'x'; len]);
    }
    let second = json(&sandbox, &["import", "--json", &source]);
    assert_eq!(second["fresh"], false);
    assert_eq!(names_below(&sandbox.at("store")), before);
    // Another image of one of them fetches the other alone.
    let mut more = layers.clone();
    more[1] = super::layer("other");
    let third = json(
        &sandbox,
        &["import", "--json", &write_layout(&sandbox, "more", &more)],
    );
    assert_eq!(third["layers"]["fetched"], 1);
    assert_eq!(third["layers"]["shared"], 1);
}

/// Where it came from is noted so that it can be asked again from anywhere.
#[test]
fn relative_sources() {
    let sandbox = Sandbox::new();
    write_layout(&sandbox, "oci", &two_layers("a"));
    fs::write(sandbox.at("it.tar.gz"), gzip(&root("b", 10))).unwrap();
    for (source, from) in [
        (
            "oci:oci:latest",
            format!("oci:{}:latest", sandbox.at("oci").display()),
        ),
        ("it.tar.gz", sandbox.at("it.tar.gz").display().to_string()),
    ] {
        let mut command = Command::new(TARNFS);
        command
            .current_dir(sandbox.path())
            .env("TARNFS_STORE", "store")
            .args(["import", "--name=it", source]);
        assert_ok(&run(command), source);
        let told = json(&sandbox, &["inspect", "--json", "it"]);
        assert_eq!(told["from"], from);
    }
}

/// Compressed tars in the place of an image: imported once, and found again.
#[test]
fn compressed_tars_are_images() {
    let sandbox = Sandbox::new();
    let tar = root("packed", 50_000);
    for (name, bytes) in [
        ("a.gz", gzip(&tar)),
        ("a.zst", zstd(&tar)),
        ("a.xz", xz(&tar)),
    ] {
        let file = sandbox.at(name);
        fs::write(&file, bytes).unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(
            good(&sandbox, &["cat", path, "/etc/os-release"]),
            "NAME=packed\n"
        );
        let before = names_below(&sandbox.at("store"));
        good(&sandbox, &["ls", path]);
        good(&sandbox, &["stat", path, "data"]);
        assert_eq!(names_below(&sandbox.at("store")), before, "{name}");
        if can_mount() {
            let mount = sandbox.mount("mnt", &file, &["--read-only"]);
            let os = fs::read_to_string(mount.at("etc/os-release")).unwrap();
            assert_eq!(os, "NAME=packed\n");
            mount.unmount();
        }
        assert_eq!(names_below(&sandbox.at("store")), before, "{name}");
    }
    // The same tar in three packings is one image.
    assert_eq!(good(&sandbox, &["images", "-q"]).lines().count(), 1);
    fs::write(sandbox.at("a.gz"), gzip(&root("changed", 50_000))).unwrap();
    let path = sandbox.at("a.gz");
    let args = ["cat".as_ref(), path.as_os_str(), "/etc/os-release".as_ref()];
    assert_eq!(good(&sandbox, &args), "NAME=changed\n");
    assert_eq!(good(&sandbox, &["images", "-q"]).lines().count(), 2);
}

/// Every command that takes an image takes a name, a digest, and its beginning.
#[test]
fn every_command_takes_names() {
    let sandbox = Sandbox::new();
    let digest = import(&sandbox, "it", &two_layers("a"));
    let flat_file = sandbox.at("flat.tar");
    let flat_file = flat_file.to_str().unwrap();
    for image in ["it", &digest, &digest[7..], &digest[7..19]] {
        assert!(good(&sandbox, &["ls", image]).contains("top\n"));
        assert_eq!(good(&sandbox, &["cat", image, "top"]), "top");
        good(&sandbox, &["stat", image, "top"]);
        good(&sandbox, &["tree", image]);
        let flat = good(&sandbox, &["flatten", image, "-o", flat_file]);
        assert!(flat.starts_with("sha256:"), "{flat}");
        let told = json(&sandbox, &["inspect", "--json", image]);
        assert_eq!(told["digest"], digest);
    }
}

#[test]
fn inspect_tells_all() {
    let sandbox = Sandbox::new();
    let layers = two_layers("a");
    let digest = import(&sandbox, "it", &layers);
    good(&sandbox, &["tag", "it", "also/this:1"]);
    let told = json(&sandbox, &["inspect", "--json", "it"]);
    assert_eq!(told["digest"], digest);
    assert_eq!(told["tags"], serde_json::json!(["also/this:1", "it"]));
    assert_eq!(told["layers"][0]["diff_id"], layers[0].diff_id.to_string());
    assert_eq!(told["layers"].as_array().unwrap().len(), 2);
    assert!(told["config"].is_object() && told["aliases"].is_array());
    assert!(told["from"].as_str().unwrap().starts_with("oci:/"));
    assert!(told["created"].is_number());
    let words = good(&sandbox, &["inspect", "it"]);
    for part in [
        &digest,
        "also/this:1",
        "it\n",
        "oci:/",
        &layers[1].diff_id.to_string(),
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
}

#[test]
fn names_that_are_none_are_told() {
    let sandbox = Sandbox::new();
    let said = bad(&sandbox, &["ls", "debian:12"]);
    assert!(said.contains("docker://debian:12"), "{said}");
    let output = sandbox.tarnfs(["run", "debian:12"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("docker://debian:12"));
}
