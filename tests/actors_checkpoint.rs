//! Checkpoints of an actor, who goes on from them, chains and forks.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::actors::{World, read};
use common::{Sandbox, assert_ok, can_mount, text};

/// All of a tree but what differs by itself: names, kinds, sizes, modes, content.
fn tree(at: &Path) -> String {
    let script = "find . -printf '%P %y %m %U %G %n %l\\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum";
    let mut command = Command::new("bash");
    command.args(["-euc", script]).current_dir(at);
    let output = common::run(command);
    assert_ok(&output, script);
    text(&output.stdout)
}

#[test]
fn others_go_on_from_a_checkpoint() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let point = world.start(&["create", "--start", "a", "img"]);
    fs::create_dir(point.join("new")).unwrap();
    fs::rename(point.join("etc"), point.join("new/etc")).unwrap();
    fs::remove_file(point.join("bin/sh")).unwrap();
    fs::write(point.join("file"), "changed").unwrap();
    fs::hard_link(point.join("file"), point.join("new/link")).unwrap();
    let first = world.actor(&["checkpoint", "--name", "first", "a"]);
    let want = tree(&point);
    // What is written later is not in it.
    fs::write(point.join("later"), "x").unwrap();
    for (id, of) in [("b", "first"), ("c", first.trim_end())] {
        assert_eq!(tree(&world.start(&["restore", "--start", id, of])), want);
    }
    // Of one that is stopped, and of one whose server is dead.
    fs::remove_file(point.join("later")).unwrap();
    world.kill("a");
    let stale = world.actor(&["checkpoint", "a"]);
    world.actor(&["stop", "a"]);
    let stopped = world.actor(&["checkpoint", "a"]);
    for (id, digest) in [("d", stale), ("e", stopped)] {
        assert_eq!(
            tree(&world.start(&["restore", "--start", id, digest.trim_end()])),
            want
        );
    }
    // On another node.
    let archive = world.sandbox.at("first.tar");
    let place = format!("oci-archive:{}", archive.display());
    world.sandbox.tarnfs_ok(["export", "first", &place]);
    let elsewhere = World {
        sandbox: Sandbox::new(),
    };
    let restored = elsewhere.start(&["restore", "--start", "b", &place]);
    assert_eq!(tree(&restored), want);
    elsewhere.actor(&["destroy", "b"]);
    world.actor(&["destroy", "a", "b", "c", "d", "e"]);
    world.assert_none();
}

#[test]
fn a_chain_of_checkpoints_and_its_squash() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let mut image = "img".to_owned();
    let mut want = String::new();
    for n in 0..12 {
        let point = world.start(&["restore", "--start", "a", &image]);
        fs::write(
            point.join(format!("round{n}")),
            vec![n; 1000 * usize::from(n)],
        )
        .unwrap();
        if n > 1 {
            fs::remove_file(point.join(format!("round{}", n - 2))).unwrap();
        }
        fs::write(point.join("file"), format!("round {n}")).unwrap();
        image = world.actor(&["checkpoint", "a"]).trim_end().to_owned();
        want = tree(&point);
        world.actor(&["destroy", "a"]);
    }
    let squashed = world.sandbox.tarnfs_ok(["squash", &image]);
    for image in [image.as_str(), squashed.trim_end()] {
        let point = world.start(&["restore", "--start", "a", image]);
        assert_eq!(tree(&point), want);
        world.actor(&["destroy", "a"]);
    }
    world.assert_none();
}

#[test]
fn forks_go_their_own_ways() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let point = world.start(&["create", "--start", "--size", "8M", "a", "img"]);
    fs::write(point.join("common"), "of all").unwrap();
    world.refused(&["fork", "a", "b", "a"], "another life");
    // Of a call that was broken off there is one.
    let first = world.actor(&["fork", "a", "b"]);
    fs::write(point.join("common"), "changed since").unwrap();
    assert_eq!(world.actor(&["fork", "--start", "a", "b", "c"]), first);
    world.actor(&["create", "d", "img"]);
    world.refused(&["fork", "a", "d", "e"], "another life");
    world.actor(&["destroy", "d"]);
    fs::write(point.join("common"), "of a").unwrap();
    for id in ["b", "c"] {
        let inspected = world.inspect(id);
        assert_eq!(inspected["size"], 8 << 20);
        let point = PathBuf::from(inspected["mount"].as_str().unwrap());
        assert_eq!(read(point.join("common")), "of all");
        fs::write(point.join("own"), id).unwrap();
        assert_eq!(read(point.join("own")), id);
    }
    assert!(!point.join("own").exists());
    world.actor(&["destroy", "a", "b", "c"]);
    world.assert_none();
}

#[test]
fn a_checkpoint_is_of_one_moment() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let point = world.start(&["create", "--start", "a", "img"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        for pair in 0..3 {
            let (point, stop) = (&point, &stop);
            scope.spawn(move || {
                // The first always before the second.
                let at = |which: &str| point.join(format!("{which}{pair}"));
                let mut n = 0_u64;
                while !stop.load(relaxed) {
                    n += 1;
                    fs::write(at("first"), format!("{n:020}")).unwrap();
                    let temp = at("second").with_extension("new");
                    fs::write(&temp, format!("{n:020}")).unwrap();
                    fs::rename(&temp, at("second")).unwrap();
                }
            });
        }
        for n in 0..8 {
            let digest = world.actor(&["checkpoint", "a"]);
            let id = format!("r{n}");
            let restored = world.start(&["restore", "--start", &id, digest.trim_end()]);
            for pair in 0..3 {
                let value = |which: &str| {
                    let read = fs::read_to_string(restored.join(format!("{which}{pair}")));
                    read.ok()
                        .filter(|text| !text.is_empty())
                        .map(|text| text.parse::<u64>().unwrap())
                };
                if let (Some(first), Some(second)) = (value("first"), value("second")) {
                    assert!(first == second || first == second + 1, "{first}, {second}");
                }
            }
            world.actor(&["destroy", &id]);
        }
        stop.store(true, relaxed);
    });
    world.actor(&["destroy", "a"]);
    world.assert_none();
}
