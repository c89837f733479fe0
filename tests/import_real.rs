//! Images that buildah, umoci and skopeo have made of a Debian root, with 6, 30 and 128 layers, in
//! each compression: a mount shows what `umoci unpack` unpacks; a registry gives the same.
//!
//! `TARNFS_TEST_FULL=1` takes a root of more than a gigabyte.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;
#[path = "erofs_support/kernel.rs"]
mod erofs;
#[path = "import_real/images.rs"]
mod images;
#[path = "import_real/layout.rs"]
mod layout;
#[path = "layers/make.rs"]
#[allow(dead_code)]
mod make;
#[path = "layers/merged.rs"]
#[allow(dead_code)]
mod merged;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use common::docker_registry::{CREDENTIALS, Server};
use common::{Sandbox, can_mount, has, ok, skip};
use images::{FEW, Images, SAYS, TAGS, layers};
use layout::{blob, digest, json, manifest, read_json};
use merged::{Tree, same};
use serde_json::Value;
use tarnfs::digest::Digest;

/// As skopeo is told.
const GZIP: &[&str] = &["--dest-compress", "--dest-compress-format=gzip"];
const ZSTD: &[&str] = &["--dest-compress", "--dest-compress-format=zstd"];

/// `tarnfs import --json args…`
fn import(sandbox: &Sandbox, args: &[&str]) -> Value {
    json(&sandbox.tarnfs_ok([&["import", "--json"], args].concat()))
}

/// What umoci unpacks, and when it began to: a directory in which it makes or deletes something
/// that no entry stands for (a parent that no layer tells of, a whiteout) is left with the time of
/// that. There is nothing else in which it may differ.
struct Unpacked {
    trees: BTreeMap<&'static str, Tree>,
    began: u64,
}

impl Unpacked {
    fn of(images: &Images) -> Self {
        let began = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let tree = |tag| {
            let root = images.unpack(tag);
            let tree = merged::of_dir(&root);
            holds_what_it_should(&tree);
            fs::remove_dir_all(root.parent().unwrap()).unwrap();
            (tag, tree)
        };
        Self {
            trees: TAGS.into_iter().map(tree).collect(),
            began,
        }
    }

    fn assert_same(&self, tag: &str, root: &Path) {
        let made_now = |_: &[u8], time: &str| {
            let (sec, _) = time.split_once('.').unwrap();
            sec.parse::<i64>().unwrap() >= self.began as i64
        };
        same(self.trees[tag].clone(), merged::of_dir(root), &made_now);
    }
}

/// A comparison of two trees that both lack what it is about would be none.
fn holds_what_it_should(tree: &Tree) {
    let line = |path: &str| tree.get(path.as_bytes()).map_or("", |line| line.as_str());
    for (path, has) in [
        ("usr/bin/id", "security.capability"),
        ("odd/acls/inherits", "system.posix_acl_access"),
        ("srv/new/fifo", "system.posix_acl_default"),
        ("srv/new/fifo", "trusted.new"),
        ("srv/new/setgid", "102755 12:34"),
        ("srv/new/char", "dev 1281"),
        ("srv/three4", "links 5"),
        ("usr/share/a", "links 3"),
        ("usr/share/symlink", "same as odd/links/deep/symlink"),
        ("etc/alternatives", " -> "),
        ("odd/types/dangling", "40755"),
        ("usr/bin/program", "same as srv/implied/program"),
        ("usr/lib/alternatives/through", "size 8"),
        ("srv/holes", "size 2097152"),
        ("srv/implied/deep", "4"),
        ("srv/short", "5:6"),
    ] {
        assert!(line(path).contains(has), "{path}: {:?}", line(path));
    }
    for gone in [
        "etc/apt",
        "usr/bin/yes",
        "odd/many/name-00002",
        "odd/types/loop",
    ] {
        assert_eq!(line(gone), "", "{gone}");
    }
}

#[test]
fn a_mount_is_what_umoci_unpacks() {
    if !can_mount() {
        return;
    }
    let Some(images) = Images::get() else { return };
    let unpacked = Unpacked::of(&images);
    let indexes: Vec<Vec<Digest>> = std::thread::scope(|scope| {
        let start = |compression: &'static str, args: Option<&'static [&str]>| {
            let (images, unpacked) = (&images, &unpacked);
            scope.spawn(move || {
                let layout = match args {
                    Some(args) => images.recompressed(compression, args),
                    None => images.plain(),
                };
                as_umoci(&layout, compression, unpacked)
            })
        };
        let gzip = start("gzip", Some(GZIP));
        let zstd = start("zstd", Some(ZSTD));
        let all = [gzip, zstd, start("plain", None)];
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    // Nothing of the way in which they came is left.
    assert!(
        indexes.windows(2).all(|two| two[0] == two[1]),
        "{indexes:?}"
    );
}

/// Imports and mounts all images of a layout; gives the digests of their indexes.
fn as_umoci(layout: &Path, compression: &str, unpacked: &Unpacked) -> Vec<Digest> {
    let sandbox = Sandbox::new();
    let mut before = 0;
    let each = TAGS.map(|tag| {
        let (of, told) = manifest(layout, tag);
        let of_layers = told["layers"].as_array().unwrap();
        assert_eq!(of_layers.len(), layers(tag));
        for layer in of_layers {
            let kind = layer["mediaType"].as_str().unwrap();
            let is = kind.rsplit_once("layer.v1.tar").unwrap().1;
            let should = match compression {
                "plain" => "",
                "gzip" => "+gzip",
                _ => "+zstd",
            };
            assert_eq!(is, should, "{kind}");
        }

        let source = format!("oci:{}:{tag}", layout.display());
        let took = import(&sandbox, &["--name", tag, &source]);
        assert_eq!(took["digest"], told["config"]["digest"]);
        assert_eq!(took["aliases"], serde_json::json!([of["digest"]]));
        // Each image adds its layers to those of the one before.
        let new = layers(tag) - before;
        assert_eq!(took["layers"]["fetched"], new);
        assert_eq!(took["layers"]["shared"], before);
        let read: u64 = of_layers[before..]
            .iter()
            .map(|l| l["size"].as_u64().unwrap())
            .sum();
        assert_eq!(took["bytes"]["read"], read, "{took}");
        before = layers(tag);
        let again = import(&sandbox, &[&source]);
        assert_eq!(again["fresh"], false);
        assert_eq!(again["bytes"]["read"], 0);

        mounts(&sandbox, tag, unpacked);
        known_by_all_its_names(&sandbox, tag, &took, layout);
        let hex = digest(&took["digest"]).hex();
        let record = sandbox.at(format!("store/images/sha256/{hex}/image.json"));
        digest(&read_json(&record)["index"]["digest"])
    });
    sandbox.tarnfs_ok(["verify"]);
    each.to_vec()
}

fn mounts(sandbox: &Sandbox, tag: &str, unpacked: &Unpacked) {
    let mount = sandbox.mount("fuse", Path::new(tag), &["--read-only"]);
    unpacked.assert_same(tag, mount.path());
    mount.unmount();
    if !erofs::can_mount() {
        return;
    }
    if let Err(error) = tarnfs::mount::kernel::check() {
        return skip(&error.to_string());
    }
    let options = ["--read-only", "--engine", "kernel"];
    let mount = sandbox.mount("kernel", Path::new(tag), &options);
    unpacked.assert_same(tag, mount.path());
    mount.unmount();
}

/// By each digest and name the image is the same one, and has the size of its files.
fn known_by_all_its_names(sandbox: &Sandbox, tag: &str, took: &Value, layout: &Path) {
    let (of, _) = manifest(layout, tag);
    let manifest = digest(&of["digest"]);
    let list = sandbox.tarnfs_ok(["ls", tag, "/srv"]);
    let hex = manifest.hex();
    for name in [
        took["digest"].as_str().unwrap(),
        &manifest.to_string(),
        &hex,
        &hex[..12],
    ] {
        assert_eq!(sandbox.tarnfs_ok(["ls", name, "/srv"]), list, "{name}");
    }
    let all = json(&sandbox.tarnfs_ok(["images", "--json"]));
    let all = all.as_array().unwrap();
    let listed = all
        .iter()
        .find(|image| image["names"] == serde_json::json!([tag]));
    let listed = listed.unwrap_or_else(|| panic!("{all:?}"));
    assert_eq!(listed["digest"], took["digest"]);
}

/// Programs get what the configuration says, or the command line instead.
#[test]
fn programs_get_what_the_image_says() {
    if !can_mount() {
        return;
    }
    let Some(images) = Images::get() else { return };
    let sandbox = Sandbox::new();
    let archive = images.docker_archive("few");
    let source = format!("docker-archive:{}", archive.display());
    let took = import(&sandbox, &["--name", "few", &source]);
    assert_eq!(took["layers"]["fetched"], FEW);
    let run = |args: &[&str]| sandbox.tarnfs_ok([&["run"], args].concat());
    assert_eq!(run(&["few"]), SAYS);
    assert_eq!(run(&["--engine=kernel", "few"]), SAYS);
    // The entry point stays, the command is another.
    assert_eq!(
        run(&["few", "--", "echo $FROM; pwd"]),
        "the image\n/srv/work dir\n"
    );
    let args = [
        "--user=0",
        "--workdir=/srv/new",
        "--env=FROM=here",
        "--entrypoint=/bin/sh",
    ];
    let said = run(&[&args[..], &["few", "--", "-c", "echo $FROM; pwd; id -u"]].concat());
    assert_eq!(said, "here\n/srv/new\n0\n");
    if has("runc") {
        let bundle = sandbox.at("bundle");
        let bundle = bundle.to_str().unwrap();
        sandbox.tarnfs_ok(["bundle", "few", bundle]);
        let id = format!("tarnfs-import-{}", std::process::id());
        let root = sandbox.at("runc");
        let args = ["--root", root.to_str().unwrap(), "run", "-b", bundle, &id];
        assert_eq!(ok("runc", args), SAYS);
        sandbox.tarnfs_ok(["bundle", "--remove", bundle]);
    }
}

#[test]
fn a_registry_gives_only_what_is_new() {
    registry(false);
}

#[test]
fn a_registry_with_a_password_too() {
    registry(true);
}

fn registry(password: bool) {
    let Some(server) = Server::start(password) else {
        return;
    };
    let Some(images) = Images::get() else { return };
    let sandbox = Sandbox::new();
    let (layout, args) = if password {
        let layout = images.recompressed("for-a-password", ZSTD);
        (layout, ["--dest-creds", CREDENTIALS])
    } else {
        (images.layout(), ["--preserve-digests", "--quiet"])
    };
    for tag in ["few", "some"] {
        let image = format!("{}:{tag}", layout.display());
        server.skopeo(&args, Path::new(&image), tag);
    }
    let auth = server.auth_file();
    let mut login = Vec::new();
    if password {
        let source = format!("docker://{}", server.image("few"));
        let said = common::text(&sandbox.tarnfs(["import", &source]).stderr);
        assert!(said.contains("wants a login"), "{said}");
        login = vec!["--authfile", auth.to_str().unwrap()];
    }
    let import = |tag: &str| {
        let source = format!("docker://{}", server.image(tag));
        import(&sandbox, &[&login[..], &["--name", tag, &source]].concat())
    };

    let (of, few) = manifest(&layout, "few");
    let took = import("few");
    assert_eq!(took["digest"], few["config"]["digest"]);
    assert_eq!(took["aliases"], serde_json::json!([of["digest"]]));
    assert_eq!(took["layers"]["fetched"], FEW);
    let config = read_json(&blob(&layout, &few["config"]["digest"]));
    let hex = digest(&took["digest"]).hex();
    let record = read_json(&sandbox.at(format!("store/images/sha256/{hex}/image.json")));
    let has = record["layers"].as_array().unwrap().iter();
    let says = config["rootfs"]["diff_ids"].as_array().unwrap().iter();
    assert!(has.map(|layer| &layer["diff_id"]).eq(says), "{record}");

    // What is not asked for need not be there.
    for layer in few["layers"].as_array().unwrap() {
        server.lose(&digest(&layer["digest"]));
    }
    let again = import("few");
    assert_eq!(again["fresh"], false);
    assert_eq!(again["bytes"]["read"], 0);
    let (_, some) = manifest(&layout, "some");
    let new = &some["layers"].as_array().unwrap()[FEW..];
    let took = import("some");
    assert_eq!(took["layers"]["fetched"], new.len());
    assert_eq!(took["layers"]["shared"], FEW);
    let bytes: u64 = new
        .iter()
        .map(|layer| layer["size"].as_u64().unwrap())
        .sum();
    assert_eq!(took["bytes"]["read"], bytes);
}
