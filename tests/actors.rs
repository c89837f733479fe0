//! The life of an actor: created, started, stopped, reset, destroyed, each twice; what a dead server
//! and a runtime leave; quotas; what its server says of itself.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::actors::{World, read};
use common::{assert_ok, can_mount, mounts_below, ok, pack};
use serde_json::Value;

#[test]
fn a_life_in_which_everything_is_said_twice() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    for _ in 0..2 {
        world.actor(&["create", "a", "img"]);
    }
    assert_eq!(world.state("a"), "created");
    let point = world.start(&["start", "a"]);
    assert_eq!(world.start(&["start", "a"]), point);
    assert_eq!(world.state("a"), "mounted");
    assert_eq!(read(point.join("file")), "of the image");
    fs::write(point.join("file"), "the actor's").unwrap();
    for _ in 0..2 {
        world.actor(&["stop", "a"]);
        assert_eq!(world.state("a"), "stopped");
    }
    assert!(world.inspect("a")["server"]["ended"].is_u64());
    assert!(mounts_below(world.sandbox.path()).is_empty());
    world.actor(&["start", "a"]);
    assert_eq!(read(point.join("file")), "the actor's");
    // It goes on where it was.
    world.actor(&["reset", "a"]);
    assert_eq!(world.state("a"), "mounted");
    assert_eq!(read(point.join("file")), "of the image");
    world.actor(&["stop", "a"]);
    for _ in 0..2 {
        world.actor(&["reset", "a"]);
        assert_eq!(world.state("a"), "created");
    }
    world.actor(&["create", "--start", "b", "img"]);
    let listed: Value = serde_json::from_str(&world.actor(&["list", "--json"])).unwrap();
    let ids: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["id"])
        .collect();
    assert_eq!(ids, ["a", "b"]);
    for _ in 0..2 {
        world.actor(&["destroy", "a", "b"]);
    }
    world.assert_none();
}

#[test]
fn what_a_dead_server_leaves_is_cleared_and_kept() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    for upper in ["disk", "tmpfs=8M"] {
        let point = world.start(&["create", "--start", "--upper", upper, "a", "img"]);
        fs::write(point.join("new"), "written").unwrap();
        ok("sync", [point.join("new").to_str().unwrap()]);
        world.kill("a");
        assert_eq!(world.state("a"), "stale");
        // No command hangs on it, or needs it.
        world.actor(&["list"]);
        world.actor(&["start", "a"]);
        assert_eq!(read(point.join("new")), "written", "{upper}");
        world.kill("a");
        world.actor(&["stop", "a"]);
        assert_eq!(world.state("a"), "stopped");
        world.actor(&["start", "a"]);
        world.kill("a");
        world.actor(&["reset", "a"]);
        assert_eq!(world.state("a"), "created");
        world.actor(&["start", "a"]);
        assert!(!point.join("new").exists());
        world.kill("a");
        world.actor(&["destroy", "a"]);
        world.assert_none();
    }
}

#[test]
fn mounts_that_a_runtime_leaves_are_taken_off() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let point = world.start(&["create", "--start", "a", "img"]);
    let host = world.sandbox.dir("host");
    fs::write(host.join("precious"), "of the host").unwrap();
    let at = |name: &str| point.join(name).to_str().unwrap().to_owned();
    let mount = |dead: bool| {
        fs::create_dir_all(at("etc/deep")).unwrap();
        ok("mount", ["-t", "tmpfs", "x", &at("etc")]);
        fs::create_dir(at("etc/deep")).unwrap();
        ok("mount", ["--bind", host.to_str().unwrap(), &at("etc/deep")]);
        // On top of all of it.
        ok("mount", ["--bind", host.to_str().unwrap(), &at("")]);
        if dead {
            world.kill("a");
        }
    };
    mount(false);
    world.actor(&["stop", "a"]);
    assert!(mounts_below(world.sandbox.path()).is_empty());
    world.actor(&["start", "a"]);
    mount(true);
    world.actor(&["start", "a"]);
    assert_eq!(read(point.join("file")), "of the image");
    mount(false);
    world.actor(&["destroy", "a"]);
    assert_eq!(read(host.join("precious")), "of the host");
    world.assert_none();
}

#[test]
fn those_who_still_use_it() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let point = world.start(&["create", "--start", "a", "img"]);
    let open = fs::File::open(point.join("file")).unwrap();
    world.refused(&["stop", "a"], "busy");
    assert_eq!(world.state("a"), "mounted");
    world.actor(&["stop", "--lazy", "a"]);
    assert_eq!(world.state("a"), "detached");
    // Whoever has it open is served.
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &open, &mut text).unwrap();
    assert_eq!(text, "of the image");
    world.refused(&["stop", "--timeout", "0", "a"], "still in use");
    drop(open);
    world.actor(&["stop", "a"]);
    assert_eq!(world.state("a"), "stopped");
    world.actor(&["start", "a"]);
    let _open = fs::File::open(point.join("file")).unwrap();
    world.actor(&["destroy", "--force", "a"]);
    world.assert_none();
}

#[test]
fn uppers_of_the_callers_stay() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let upper = world.sandbox.at("mine");
    let shown = upper.to_str().unwrap();
    let point = world.start(&["create", "--start", "--upper", shown, "a", "img"]);
    fs::write(point.join("new"), "written").unwrap();
    world.actor(&["destroy", "a"]);
    assert_eq!(read(upper.join("new")), "written");
    let point = world.start(&["create", "--start", "--upper", shown, "b", "img"]);
    assert_eq!(read(point.join("new")), "written");
    world.actor(&["destroy", "b"]);
    // Not on another image.
    fs::write(world.sandbox.at("tree/more"), "another image").unwrap();
    pack(
        &world.sandbox.at("tree"),
        &world.sandbox.at("other.tar"),
        &[],
    );
    let other = world.sandbox.at("other.tar");
    world.actor(&["create", "--upper", shown, "c", other.to_str().unwrap()]);
    world.refused(&["start", "c"], "another image");
    assert_eq!(world.state("c"), "created");
    world.refused(&["reset", "c"], "never ran; --force removes it");
    assert_eq!(read(upper.join("new")), "written");
    world.actor(&["reset", "--force", "c"]);
    let point = world.start(&["start", "c"]);
    assert!(!point.join("new").exists());
    world.actor(&["destroy", "c"]);
    world.assert_none();
}

#[test]
fn images_of_actors_are_not_collected() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    world.actor(&["create", "a", "img"]);
    let gc = ["gc", "--all", "--min-age", "0"];
    world.sandbox.tarnfs_ok(gc);
    let point = world.start(&["start", "a"]);
    assert_eq!(read(point.join("file")), "of the image");
    world.actor(&["destroy", "a"]);
    world.sandbox.tarnfs_ok(gc);
    world.refused(&["create", "a", "img"], "img");
}

#[test]
fn several_at_once_are_done_one_by_one() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let call = |args: &[&str]| {
        let mut command = Command::new(common::TARNFS);
        command
            .env("TARNFS_STORE", world.store())
            .arg("actor")
            .args(args);
        command
    };
    for args in [
        &["create", "--start", "a", "img"][..],
        &["start", "a"],
        &["reset", "a"],
        &["stop", "a"],
        &["destroy", "a"],
    ] {
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| assert_ok(&common::run(call(args)), &format!("{args:?}")));
            }
        });
    }
    world.assert_none();
}

#[test]
fn who_fills_his_quota_is_alone_with_it() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let full = |error: std::io::Error| error.raw_os_error() == Some(libc::ENOSPC);
    let other = world.start(&["create", "--start", "other", "img"]);
    let made: [(&str, &[&str]); 4] = [
        ("bytes", &["--size", "4M"]),
        ("inodes", &["--inodes", "40"]),
        ("memory", &["--upper", "tmpfs=4M"]),
        ("names", &["--upper", "tmpfs=64M", "--inodes", "40"]),
    ];
    for (id, options) in made {
        let point = world.start(&[&["create", "--start"], options, &[id, "img"]].concat());
        let filled = (0..2000).find_map(|n| {
            let bytes = vec![1; if options[0] == "--inodes" { 1 } else { 60_000 }];
            fs::write(point.join(format!("f{n}")), bytes).err()
        });
        assert!(full(filled.unwrap()), "{id}");
        fs::write(other.join("goes-on"), vec![7; 8 << 20]).unwrap();
        assert_eq!(read(point.join("file")), "of the image");
        // What is removed makes room, also after a crash.
        world.kill(id);
        world.actor(&["start", id]);
        let error = fs::write(point.join("more"), vec![1; 8 << 20]).unwrap_err();
        assert!(full(error), "{id}");
        for n in 0..30 {
            drop(fs::remove_file(point.join(format!("f{n}"))));
        }
        fs::write(point.join("more"), vec![1; 500_000]).unwrap();
    }
    let stats: Value = serde_json::from_str(&world.actor(&["stats", "--json", "bytes"])).unwrap();
    assert!(stats.to_string().contains("upper_bytes"), "{stats}");
    world.actor(&["destroy", "bytes", "inodes", "memory", "names", "other"]);
    world.assert_none();
}

#[test]
fn a_start_is_told_of_from_its_image_on() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let told = |id: &str| -> Value {
        serde_json::from_str(&world.actor(&["stats", "--json", id])).unwrap()
    };
    let hit = |id: &str| told(id)["tarnfs_image_hit"][0]["value"].as_f64().unwrap();
    let phases = |id: &str| -> Vec<String> {
        let told = told(id);
        let phases = told["tarnfs_phase_seconds"].as_array().unwrap();
        let name = |phase: &Value| phase["labels"]["phase"].as_str().unwrap().to_owned();
        phases.iter().map(name).collect()
    };
    let all = ["image", "upper", "backing", "create", "attach", "ready"];
    // A tar that is new to the store, and one that only start finds changed.
    let tar = world.sandbox.at("image.tar");
    let tar = tar.to_str().unwrap();
    world.actor(&["create", "--start", "fresh", tar]);
    assert_eq!(hit("fresh"), 0.0);
    world.actor(&["create", "--start", "again", tar]);
    assert_eq!(hit("again"), 1.0);
    world.actor(&["stop", "fresh"]);
    let log = world.sandbox.at("log");
    let log = log.to_str().unwrap();
    let mut start = vec!["--log", "info", "--log-format", "json", "--log-file", log];
    start.extend(["actor", "start", "fresh"]);
    world.sandbox.tarnfs_ok(start);
    assert_eq!(hit("fresh"), 1.0);
    world.actor(&["create", "--start", "stored", "img"]);
    assert_eq!(hit("stored"), 1.0);
    for id in ["fresh", "again", "stored"] {
        assert_eq!(phases(id)[..all.len()], all, "{id}");
    }
    // As the log has it.
    let lines = read(log);
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let over = lines.filter(|line| line["fields"]["message"] == "phase is over");
    let logged: Vec<_> = over.map(|line| line["span"]["phase"].clone()).collect();
    assert_eq!(logged, all[..5]);
    // A tar that was changed since is indexed by start.
    let copy = world.sandbox.at("copy.tar");
    fs::copy(tar, &copy).unwrap();
    world.actor(&["create", "changed", copy.to_str().unwrap()]);
    fs::copy(tar, world.sandbox.at("new.tar")).unwrap();
    fs::rename(world.sandbox.at("new.tar"), &copy).unwrap();
    world.actor(&["start", "changed"]);
    assert_eq!(hit("changed"), 0.0);
    world.actor(&["destroy", "fresh", "again", "stored", "changed"]);
    world.assert_none();
}

/// There are thousands of mounts where there are thousands of actors.
#[test]
fn a_start_reads_mountinfo_and_its_image_once() {
    if !can_mount() || !common::has("strace") {
        return;
    }
    let world = World::new();
    world.actor(&["create", "there", "img"]);
    let calls: [&[&str]; 3] = [
        &["start", "there"],
        &["create", "--start", "new", "img"],
        &["create", "--start", "--upper", "tmpfs", "memory", "img"],
    ];
    for call in calls {
        let log = world.sandbox.at("strace.log");
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=openat", "-o"]);
        command.arg(&log).arg(env!("CARGO_BIN_EXE_tarnfs"));
        command.arg("--store").arg(world.store()).arg("actor");
        let mut traced = command
            .args(call)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It goes on with the server; the point is printed when that is ready.
        let mut point = String::new();
        std::io::BufReader::new(traced.stdout.take().unwrap())
            .read_line(&mut point)
            .unwrap();
        assert!(!point.is_empty(), "{call:?}");
        let id = call.iter().find(|word| world.is_actor(word)).unwrap();
        let lines = read(&log);
        let count = |name: &str| lines.lines().filter(|line| line.contains(name)).count();
        assert_eq!(count("self/mountinfo\""), 1, "{call:?}");
        assert_eq!(count("/image.json\""), 1, "{call:?}");
        world.actor(&["destroy", id]);
        assert!(traced.wait().unwrap().success(), "{call:?}");
    }
    world.assert_none();
}

#[test]
fn the_log_of_a_server_is_bounded() {
    const MAX: u64 = 1 << 20;
    if !can_mount() {
        return;
    }
    let world = World::new();
    world.actor(&["create", "a", "img"]);
    let log = PathBuf::from(world.inspect("a")["log"].as_str().unwrap());
    let old = log.with_extension("old");
    let len = |path: &Path| path.metadata().map_or(0, |found| found.len());
    // What an earlier server has left.
    fs::write(&log, vec![b'x'; 3 << 20]).unwrap();
    world
        .sandbox
        .tarnfs_ok(["--log", "trace", "actor", "start", "a"]);
    assert_eq!(len(&old), 3 << 20);
    let point = PathBuf::from(world.inspect("a")["mount"].as_str().unwrap());
    for n in 0.. {
        assert!(n < 100_000, "{} bytes are never moved", len(&log));
        drop(fs::symlink_metadata(point.join(format!("none-{n}"))));
        assert!(len(&log) <= MAX);
        if n % 100 == 0 && len(&old) <= MAX {
            break;
        }
    }
    let newest = read(&old);
    assert!(newest.ends_with('\n') && newest.contains("answered"));
    // Others do not end it, and who removes it gets a new one.
    world.actor(&["start", "a"]);
    fs::remove_file(&log).unwrap();
    drop(fs::symlink_metadata(point.join("one-more")));
    world.actor(&["stop", "a"]);
    assert!(read(&log).contains("unmounted"));
    world.actor(&["destroy", "a"]);
    world.assert_none();
}
