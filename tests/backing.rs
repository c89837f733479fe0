//! The mounts of an image share what the kernel has of it, whoever serves them and in whatever
//! order they come and go; and leave nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "erofs_support/kernel.rs"]
mod erofs;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::walk::{assert_same, described};
use common::{Mount, Sandbox, TARNFS, assert_ok, can_mount, has, mounts_below, ok, pack, run};
use serde_json::Value;
use tarnfs::mount::find_mount;

/// Where root's servers and pins are found.
const IMAGES: &str = "/run/tarnfs/images";

struct World {
    sandbox: Sandbox,
    tar: PathBuf,
}

/// An image; `None` where the kernel cannot read it.
fn world() -> Option<World> {
    if !can_mount() || !erofs::can_mount() {
        return None;
    }
    let sandbox = Sandbox::new();
    let tree = sandbox.dir("tree");
    let make = "mkdir a; head -c 300000 /dev/urandom >a/y; printf x >x; ln x a/same; mkfifo fifo
        truncate -s 1M sparse; printf end >>sparse; head -c 16M /dev/urandom >large";
    ok("sh", ["-euc", &format!("cd '{}'; {make}", tree.display())]);
    let tar = sandbox.at("image.tar");
    pack(&tree, &tar, &["--format=pax", "--sparse"]);
    Some(World { sandbox, tar })
}

impl World {
    fn mount(&self, name: &str, options: &[&str]) -> Mount<'_> {
        self.sandbox.mount(name, &self.tar, options)
    }

    /// Records of servers and pins of this image, by their file names.
    fn records(&self) -> Vec<(String, Value)> {
        let Ok(entries) = fs::read_dir(IMAGES) else {
            return Vec::new();
        };
        let store = self.sandbox.path().to_str().unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).ok()?;
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            text.contains(store)
                .then(|| (name, serde_json::from_str(&text).unwrap()))
        };
        paths.filter_map(read).collect()
    }

    /// What a server has mounted: the device number of its files.
    fn held_by(&self, server: u32) -> u64 {
        let records = self.records();
        let holder = |record: &Value| record["holder"].clone();
        let mut of = records.iter().map(|(_, record)| holder(record));
        let its = of.find(|holder| holder["pid"] == server).unwrap();
        let held = format!("/proc/{server}/fd/{}", its["mount"]);
        fs::metadata(held).unwrap().dev()
    }

    /// Where the image is pinned, for mounts without a server.
    fn pins(&self) -> Vec<PathBuf> {
        let records = self.records();
        let pins = records.iter().filter(|(name, _)| name.ends_with(".pin"));
        let place = |name: &String| Path::new(IMAGES).join(name.split('.').next().unwrap());
        pins.map(|(name, _)| place(name)).collect()
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!(self.records(), []);
        assert!(mounts_below(self.sandbox.path()).is_empty());
        let source = self.sandbox.path().to_str().unwrap();
        let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!info.contains(source), "{info}");
    }
}

/// How much of a file is in memory, without reading it.
fn cached(file: &Path) -> u64 {
    let words = ["--bytes", "--noheadings", "--output", "RES"].map(OsStr::new);
    let words = words.into_iter().chain([file.as_os_str()]);
    ok("fincore", words).trim().parse().unwrap()
}

#[test]
fn sixteen_servers_have_one_superblock() {
    let Some(world) = world() else { return };
    // The first ones begin at once.
    let names: Vec<String> = (0..16).map(|n| format!("m{n:02}")).collect();
    let mut mounts: Vec<Mount<'_>> = std::thread::scope(|scope| {
        let mount = |name: &String| {
            let name = name.clone();
            let world = &world;
            scope.spawn(move || world.mount(&name, &["--read-only"]))
        };
        let threads: Vec<_> = names.iter().map(mount).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let held = |mount: &Mount<'_>| world.held_by(mount.server());
    let devices: BTreeSet<u64> = mounts.iter().map(held).collect();
    assert_eq!(devices.len(), 1, "{devices:?}");
    // All but the last are killed or unmounted: who comes then finds the last.
    for mount in mounts.drain(..15).enumerate() {
        if let (0..8, mount) = &mount {
            ok("kill", ["-9", &mount.server().to_string()]);
        }
        mount.1.unmount();
    }
    let late = world.mount("late", &[]);
    assert_eq!(BTreeSet::from([held(&late)]), devices);
    assert_eq!(world.records().len(), 2);
    assert_same(
        &described(&world.sandbox.at("tree")),
        &described(late.path()),
    );
    late.unmount();
    for mount in mounts {
        mount.unmount();
    }
    world.assert_nothing_is_left();
}

#[test]
fn all_engines_share_and_leave_nothing() {
    let Some(world) = world() else { return };
    let Some(upper) = world.sandbox.at("up").to_str().map(str::to_owned) else {
        return;
    };
    let kernel = ["--engine", "kernel"];
    let server = world.mount("server", &["--read-only"]);
    let device = world.held_by(server.server());
    let first = world.mount("first", &[&kernel[..], &["--upper", &upper]].concat());
    let [pin] = &world.pins()[..] else {
        panic!("one pin: {:?}", world.records());
    };
    assert_eq!(fs::metadata(pin).unwrap().dev(), device);
    // It is not a mount of anybody's.
    assert!(tarnfs::mount::engine_of(&find_mount(pin).unwrap().unwrap()).is_none());
    server.unmount();
    // Without a server the pin is what others find.
    let bare = world.mount("bare", &[&kernel[..], &["--read-only"]].concat());
    let second = world.mount("again", &[&kernel[..], &["--read-only"]].concat());
    for mount in [&bare, &second] {
        assert_eq!(fs::metadata(mount.path()).unwrap().dev(), device);
        let found = find_mount(mount.path()).unwrap().unwrap();
        assert!(tarnfs::mount::engine_of(&found).is_some());
    }
    let server = world.mount("server", &[]);
    assert_eq!(world.held_by(server.server()), device);
    // What is mounted in one of them is not seen in another, or in the pin.
    ok(
        "mount",
        ["-t", "tmpfs", "none"]
            .map(OsStr::new)
            .into_iter()
            .chain([bare.at("a").as_os_str()]),
    );
    assert!(second.at("a/y").exists() && pin.join("a/y").exists() && !bare.at("a/y").exists());
    ok("umount", [bare.at("a")]);
    bare.unmount();
    first.unmount();
    assert_eq!(world.pins().len(), 1);
    server.unmount();
    second.unmount();
    world.assert_nothing_is_left();
    // umount(8) tells nobody: whoever unmounts or mounts next takes the pin off.
    for next in ["umount", "mount"] {
        let mount = world.mount("first", &[&kernel[..], &["--upper", &upper]].concat());
        ok("umount", [mount.path()]);
        assert_eq!(world.pins().len(), 1);
        if next == "mount" {
            world.mount("server", &[]).unmount();
            assert_eq!(world.pins().len(), 0);
        }
        mount.unmount();
        world.assert_nothing_is_left();
    }
}

#[test]
fn a_second_mount_of_the_kernel_engine_needs_no_memory() {
    let Some(world) = world() else { return };
    if !has("fincore") {
        return;
    }
    let at = |name: &str| {
        let upper = world.sandbox.at(format!("up-{name}"));
        let upper = upper.to_str().unwrap();
        world.mount(name, &["--engine", "kernel", "--upper", upper])
    };
    let (first, second) = (at("first"), at("second"));
    assert_eq!(cached(&second.at("large")), 0);
    let bytes = fs::read(first.at("large")).unwrap();
    assert_eq!(bytes.len(), 16 << 20);
    assert_eq!(cached(&second.at("large")), 16 << 20);
    first.unmount();
    assert_eq!(cached(&second.at("large")), 16 << 20);
    second.unmount();
    world.assert_nothing_is_left();
}

/// Bytes of the index that a server has mapped and in memory.
fn index_held(server: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{server}/smaps")).unwrap();
    let mut lines = maps.lines().skip_while(|l| !l.ends_with("/index.erofs"));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:"));
    let rss = rss.unwrap().trim().trim_end_matches(" kB");
    rss.parse::<u64>().unwrap() * 1024
}

#[test]
fn what_a_server_has_looked_at_does_not_stay_in_its_memory() {
    if !can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    let tree = sandbox.dir("tree");
    let make = "seq 30000 | sed 's/^/a-name-of-some-length-/' | xargs touch";
    ok("sh", ["-euc", &format!("cd '{}'; {make}", tree.display())]);
    let tar = sandbox.at("image.tar");
    let places = [tree.as_os_str(), "-cf".as_ref(), tar.as_os_str()];
    let words = ["-C".as_ref()].into_iter().chain(places);
    ok("tar", words.chain([OsStr::new(".")]));
    let mount = sandbox.mount("m", &tar, &["--read-only"]);
    for round in 0..2 {
        let find = [mount.path().as_os_str(), "-size".as_ref(), "0".as_ref()];
        assert_eq!(ok("find", find).lines().count(), 30_000);
        let until = Instant::now() + Duration::from_secs(60);
        // It lets go of what is worth it: 1 MiB may stay, of nearly 3.
        while index_held(mount.server()) > 1280 << 10 {
            assert!(Instant::now() < until, "round {round}: it keeps its index");
            std::thread::sleep(Duration::from_millis(50));
        }
        // So that the kernel asks for all of it again.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    }
    mount.unmount();
}

#[test]
fn every_rung_shows_the_same() {
    let Some(world) = world() else { return };
    let want = described(&world.sandbox.at("tree"));
    let dir = world.sandbox.dir("mnt");
    for rung in ["erofs", "loop", "none"] {
        if rung == "loop" && !Path::new("/dev/loop-control").exists() {
            common::skip("there are no loop devices");
            continue;
        }
        for engine in ["fuse", "kernel"] {
            let log = world.sandbox.at("log");
            fs::remove_file(&log).ok();
            let mut command = Command::new(TARNFS);
            command.args(["--log", "info", "--log-file"]).arg(&log);
            command.args(["mount", "--engine", engine, "--read-only"]);
            command.arg(&world.tar).arg(&dir);
            command.env("TARNFS_STORE", world.sandbox.at("store"));
            command.env("TARNFS_BACKING", rung);
            let done = run(command);
            if (rung, engine) == ("none", "kernel") {
                assert!(!done.status.success());
                continue;
            }
            assert_ok(&done, rung);
            assert_same(&want, &described(&dir));
            let said = fs::read_to_string(&log).unwrap();
            let words = match rung {
                "erofs" => "rung=EROFS from files",
                "loop" => "rung=EROFS over loop devices",
                _ => "none is wanted",
            };
            assert!(said.contains(words), "{rung}: {said}");
            let words = [OsStr::new("umount"), dir.as_os_str()];
            world.sandbox.tarnfs_ok(words);
        }
    }
    world.assert_nothing_is_left();
}

/// An actor that goes on until its input ends, and what is said of it.
fn actor(world: &World, tar: &Path, engine: &str) -> std::process::Child {
    let mut command = Command::new(TARNFS);
    command.args(["run", "--engine", engine, "--read-only"]);
    command
        .arg(tar)
        .args(["--", "/bin/sh", "-c", "echo ready; read x"]);
    command.env("TARNFS_STORE", world.sandbox.at("store"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut actor = command.spawn().unwrap();
    let mut said = [0; 5];
    let out = actor.stdout.as_mut().unwrap();
    std::io::Read::read_exact(out, &mut said).unwrap();
    actor
}

#[test]
fn actors_share_with_everybody() {
    let Some(world) = world() else { return };
    let Some(images) = common::small_image() else {
        return;
    };
    // One that no other test has.
    let tar = world.sandbox.at("small.tar");
    fs::copy(images.join("small.pax.tar"), &tar).unwrap();
    let mut actors = ["fuse", "kernel", "fuse"].map(|engine| actor(&world, &tar, engine));
    let mount = world.sandbox.mount("mnt", &tar, &["--read-only"]);
    let records = world.records();
    let devices: BTreeSet<u64> = records
        .iter()
        .map(|(_, record)| {
            let pid = record["holder"]["pid"].as_u64().unwrap();
            world.held_by(u32::try_from(pid).unwrap())
        })
        .collect();
    assert_eq!((records.len(), devices.len()), (4, 1), "{records:?}");
    mount.unmount();
    for actor in &mut actors {
        drop(actor.stdin.take());
        actor.wait().unwrap();
    }
    world.assert_nothing_is_left();
}

#[test]
fn root_of_a_user_namespace_is_told_why_there_is_none() {
    let Some(world) = world() else { return };
    let home = world.sandbox.dir("home");
    std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
    let log = home.join("log");
    let script =
        "\"$0\" --store \"$1\" --log info --log-file \"$1/log\" mount --read-only \"$2\" \"$1\"
        test -e \"$1/large\"; \"$0\" umount \"$1\"";
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]);
    command.args(["unshare", "-rm", "sh", "-euc", script]);
    command.arg(TARNFS).arg(&home).arg(&world.tar);
    command.env("XDG_RUNTIME_DIR", &home);
    let done = run(command);
    if common::text(&done.stderr).contains("unshare failed") {
        return common::skip("needs user namespaces");
    }
    assert_ok(&done, "a mount in a user namespace");
    let said = fs::read_to_string(log).unwrap();
    let words = "needs root, outside of user namespaces";
    assert!(said.contains(words), "{said}");
    assert!(!home.join("tarnfs/images").exists());
}
