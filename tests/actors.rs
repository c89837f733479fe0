//! The life of an actor: created, started, stopped, reset, destroyed, each twice; what a dead server
//! and a runtime leave; bundles; bad input, which changes nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::io::BufRead;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Sandbox, assert_ok, can_mount, mounts_below, pack, text};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

/// A store with an image called `img`, and the actors on it.
struct World {
    sandbox: Sandbox,
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let tree = sandbox.dir("tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::write(tree.join("bin/sh"), "#!").unwrap();
        ok("chmod", &["755", tree.join("bin/sh").to_str().unwrap()]);
        fs::write(tree.join("file"), "of the image").unwrap();
        pack(&tree, &sandbox.at("image.tar"), &[]);
        let world = Self { sandbox };
        let tar = world.sandbox.at("image.tar");
        world
            .sandbox
            .tarnfs_ok(["import", "--name", "img", tar.to_str().unwrap()]);
        world
    }

    fn actor(&self, args: &[&str]) -> String {
        self.sandbox.tarnfs_ok([&["actor"], args].concat())
    }

    /// Must fail with one line that has `says` in it.
    fn refused(&self, args: &[&str], says: &str) {
        let output = self.sandbox.tarnfs([&["actor"], args].concat());
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{args:?} succeeded");
        assert!(said.contains(says), "{args:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{args:?}: {said}");
    }

    fn start(&self, args: &[&str]) -> PathBuf {
        PathBuf::from(self.actor(args).trim_end())
    }

    fn inspect(&self, id: &str) -> Value {
        serde_json::from_str(&self.actor(&["inspect", id])).unwrap()
    }

    fn state(&self, id: &str) -> String {
        self.inspect(id)["state"].as_str().unwrap().to_owned()
    }

    /// Kills the server of an actor, and waits until it is gone.
    fn kill(&self, id: &str) {
        let pid = self.inspect(id)["server"]["pid"].as_i64().unwrap();
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        let mut polled = [rustix::event::PollFd::new(
            &process,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut polled, None).unwrap();
    }

    fn is_actor(&self, id: &str) -> bool {
        self.store()
            .join("actors")
            .join(id)
            .join("actor.json")
            .exists()
    }

    fn store(&self) -> PathBuf {
        self.sandbox.at("store")
    }

    /// Nothing is left of any actor.
    fn assert_none(&self) {
        let left: Vec<_> = fs::read_dir(self.store().join("actors"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let mounts = mounts_below(self.sandbox.path());
        assert!(mounts.is_empty(), "{mounts:?}");
    }
}

fn ok(program: &str, args: &[&str]) {
    common::ok(program, args);
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

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
        ok("sync", &[point.join("new").to_str().unwrap()]);
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
        ok("mount", &["-t", "tmpfs", "x", &at("etc")]);
        fs::create_dir(at("etc/deep")).unwrap();
        ok(
            "mount",
            &["--bind", host.to_str().unwrap(), &at("etc/deep")],
        );
        // On top of all of it.
        ok("mount", &["--bind", host.to_str().unwrap(), &at("")]);
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
    world.actor(&["reset", "c"]);
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
        &["-t", "tmpfs", "x", at("mounted/rootfs").to_str().unwrap()],
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
    ok("umount", &[at("mounted/rootfs").to_str().unwrap()]);
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
        let output = world.sandbox.tarnfs(["actor", "create", id, "img"]);
        assert!(!output.status.success(), "{id:?}");
        assert!(text(&output.stderr).contains("an actor's id is"), "{id:?}");
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
    ok("mount", &["-t", "tmpfs", "x", &at("taken")]);
    world.refused(&["start", "m"], "in use");
    assert_eq!(world.state("m"), "created");
    // By another path of it, too.
    symlink(world.sandbox.path(), world.sandbox.at("around")).unwrap();
    let around = at("around/taken");
    world.refused(&["create", "--mount", &around, "n", "img"], "in use");
    world.refused(&["inspect", "n"], "there is no actor n");
    ok("umount", &[&at("taken")]);
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
