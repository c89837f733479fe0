//! Bundles around an actor, and bad input, which changes nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::actors::{World, read};
use common::{can_mount, ok, pack};
use serde_json::Value;

#[test]
fn a_bundle_is_made_or_completed() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let bundle = world.sandbox.at("bundle");
    let shown = bundle.to_str().unwrap();
    let point = world.start(&[
        "create", "--start", "--bundle", shown, "a", "img", "--", "/bin/sh", "-c", "true",
    ]);
    assert_eq!(point, bundle.join("rootfs"));
    let config: Value = serde_json::from_str(&read(bundle.join("config.json"))).unwrap();
    assert_eq!(config["process"]["args"][0], "/bin/sh");
    assert_eq!(config["root"]["path"], "rootfs");
    assert!(point.join("etc/resolv.conf").is_file() && point.join("proc").is_dir());
    world.actor(&["destroy", "a"]);
    assert!(!bundle.exists());

    // The caller's own stays his, and his image plants a link.
    fs::create_dir(&bundle).unwrap();
    let outside = world.sandbox.dir("outside");
    let tree = world.sandbox.at("tree");
    symlink(&outside, tree.join("run")).unwrap();
    let inside = tree.join(outside.strip_prefix("/").unwrap());
    fs::create_dir_all(inside).unwrap();
    pack(&tree, &world.sandbox.at("links.tar"), &[]);
    let mine = serde_json::json!({
        "ociVersion": "1.0.2", "x": 7, "root": {"path": "/somewhere"},
        "mounts": [{"destination": "/run/secrets/key", "type": "tmpfs", "source": "tmpfs"}],
    });
    fs::write(bundle.join("config.json"), mine.to_string()).unwrap();
    let links = world.sandbox.at("links.tar");
    world.actor(&[
        "create",
        "--start",
        "--bundle",
        shown,
        "b",
        links.to_str().unwrap(),
    ]);
    let config: Value = serde_json::from_str(&read(bundle.join("config.json"))).unwrap();
    assert_eq!(
        (&config["x"], &config["root"]["path"]),
        (&7.into(), &"rootfs".into())
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    world.actor(&["destroy", "b"]);
    assert!(bundle.join("config.json").exists() && !bundle.join("rootfs").exists());
    world.assert_none();
}

/// What is below a directory, with what is in it.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            if kind.is_dir() {
                dirs.push(path.clone());
            }
            let bytes = match kind.is_file() {
                true => fs::read(&path).unwrap(),
                false => Vec::new(),
            };
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

#[test]
fn a_directory_that_cannot_become_the_bundle_is_refused_by_create() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let root = world.sandbox.dir("bundles");
    let at = |name: &str| root.join(name);
    let dir = |name: &str| fs::create_dir_all(at(name)).unwrap();
    let file = |name: &str, text: &str| fs::write(at(name), text).unwrap();
    dir("full");
    file("full/x", "mine");
    dir("rooted/rootfs/etc");
    file("rooted/rootfs/etc/passwd", "mine");
    file("file", "mine");
    dir("rootfs-is-file");
    file("rootfs-is-file/config.json", "{}");
    file("rootfs-is-file/rootfs", "mine");
    dir("rootfs-is-link");
    file("rootfs-is-link/config.json", "{}");
    symlink("/etc", at("rootfs-is-link/rootfs")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    for (name, text) in [("list", "[]"), ("torn", "{"), ("empty", "")] {
        dir(name);
        file(&format!("{name}/config.json"), text);
    }
    dir("directory/config.json");
    dir("damaged");
    file("damaged/tarnfs-bundle.json", "{");
    // Of an actor that lives, and one that another command has made.
    world.actor(&[
        "create",
        "--start",
        "--bundle",
        at("first").to_str().unwrap(),
        "first",
        "img",
    ]);
    world.actor(&["stop", "first"]);
    dir("mounted/rootfs");
    file("mounted/config.json", "{}");
    ok(
        "mount",
        ["-t", "tmpfs", "x", at("mounted/rootfs").to_str().unwrap()],
    );
    let before = snapshot(&root);
    for (name, says) in [
        ("full", "not empty"),
        ("rooted", "not empty"),
        ("file", "not a directory"),
        ("file/below/it", "not a directory"),
        ("rootfs-is-file", "not a directory"),
        ("rootfs-is-link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("dangling/below", "cannot make"),
        ("list", "no config.json of a bundle"),
        ("torn", "no config.json of a bundle"),
        ("empty", "no config.json of a bundle"),
        ("directory", "cannot read"),
        ("damaged", "cannot read"),
        ("first", "another image or upper"),
        ("mounted", "in use as a mount point"),
    ] {
        let bundle = at(name);
        let bundle = bundle.to_str().unwrap();
        world.refused(&["create", "--bundle", bundle, "b", "img"], says);
        world.refused(&["create", "--start", "--bundle", bundle, "b", "img"], says);
        world.refused(&["inspect", "b"], "there is no actor b");
        assert_eq!(snapshot(&root), before, "{name}");
    }
    // A mount point or an upper can be no better.
    let below = at("file/below");
    let below = below.to_str().unwrap();
    world.refused(&["create", "--mount", below, "b", "img"], "not a directory");
    world.refused(&["create", "--upper", below, "b", "img"], "not a directory");
    let (inside, upper) = (at("up/inside"), at("up"));
    let upper = ["--upper", upper.to_str().unwrap()];
    for how in ["--mount", "--bundle"] {
        let point = [how, inside.to_str().unwrap()];
        world.refused(
            &[&["create"][..], &upper, &point, &["b", "img"]].concat(),
            "inside",
        );
    }
    assert_eq!(snapshot(&root), before);
    ok("umount", [at("mounted/rootfs").to_str().unwrap()]);
    // What can become one does.
    dir("good");
    for name in ["good", "made/below"] {
        let bundle = at(name);
        world.actor(&[
            "create",
            "--start",
            "--bundle",
            bundle.to_str().unwrap(),
            "b",
            "img",
        ]);
        world.actor(&["destroy", "b"]);
    }
    world.actor(&["destroy", "first"]);
    world.assert_none();
}

#[test]
fn bad_input_changes_nothing() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let at = |name: &str| world.sandbox.at(name).to_str().unwrap().to_owned();
    for id in ["..", "a/b", "../a", ".a", "", "a b"] {
        world.refused(&["create", id, "img"], "an actor's id is");
    }
    for call in ["start", "stop", "reset", "inspect"] {
        world.refused(&[call, "none"], "there is no actor none");
    }
    world.refused(&["create", "a", "no-such-image"], "no-such-image");
    world.actor(&["create", "a", "img"]);
    world.refused(
        &["create", "--inodes", "7", "a", "img"],
        "another number of inodes",
    );
    world.refused(&["create", "--upper", "tmpfs", "a", "img"], "another upper");
    world.refused(&["create", "--upper", "tmpfs=1Q", "b", "img"], "1Q");
    world.refused(&["create", "--work", "/w", "b", "img"], "--work");
    for (upper, work) in [("up", "up"), ("up", "up/work"), ("up/upper", "up")] {
        let (upper, work) = (at(upper), at(work));
        let call = ["create", "--upper", &upper, "--work", &work, "b", "img"];
        world.refused(&call, "lie in one another");
    }
    world.refused(&["create", "--mount", "/proc", "b", "img"], "in use");
    world.refused(
        &["create", "--mount", &at("image.tar"), "b", "img"],
        "not a directory",
    );
    world.refused(
        &["create", "--upper", &at("image.tar"), "b", "img"],
        "not a directory",
    );
    symlink("tree", world.sandbox.at("link")).unwrap();
    world.refused(
        &["create", "--bundle", &at("link"), "b", "img"],
        "symbolic link",
    );
    world.refused(
        &["create", "--mount", &at("link"), "b", "img"],
        "symbolic link",
    );
    // A mount point that somebody takes after the actor was made.
    let taken = world.sandbox.at("taken");
    world.actor(&["create", "--mount", &at("taken"), "m", "img"]);
    fs::create_dir(&taken).unwrap();
    ok("mount", ["-t", "tmpfs", "x", &at("taken")]);
    world.refused(&["start", "m"], "in use");
    assert_eq!(world.state("m"), "created");
    // By another path of it, too.
    symlink(world.sandbox.path(), world.sandbox.at("around")).unwrap();
    let around = at("around/taken");
    world.refused(&["create", "--mount", &around, "n", "img"], "in use");
    world.refused(&["inspect", "n"], "there is no actor n");
    ok("umount", [&at("taken")]);
    world.actor(&["destroy", "m"]);
    assert!(taken.exists(), "it was not made for the actor");

    // An image that is gone.
    let tar = world.sandbox.at("gone.tar");
    fs::copy(world.sandbox.at("image.tar"), &tar).unwrap();
    world.actor(&["create", "g", tar.to_str().unwrap()]);
    fs::remove_file(&tar).unwrap();
    world.refused(&["start", "g"], "gone.tar");
    world.actor(&["destroy", "g"]);

    // A record that is damaged: told, and no obstacle.
    let record = world.store().join("actors/a/actor.json");
    for damage in ["", "{}", "[", "\u{0}"] {
        fs::write(&record, damage).unwrap();
        world.refused(&["start", "a"], "damaged");
        assert!(world.actor(&["list"]).contains("damaged"));
    }
    fs::remove_file(&record).unwrap();
    world.refused(&["stop", "a"], "damaged");
    world.actor(&["destroy", "a"]);
    world.assert_none();
}
