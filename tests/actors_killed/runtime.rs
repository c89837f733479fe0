//! A runtime is killed in the middle of its calls on the bundle of an actor: alone, or with what it
//! has forked. What it leaves is whatever it is (no container, a half of one, one that goes on):
//! the actor can be stopped, started and destroyed, and the next container runs on it.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::{World, ends, ends_within, is_chosen, kills, random};
use crate::common::shell::Lines;
use crate::common::{can_mount, has, mounts_below, run, text};

/// What runs in the container: says that it does when that is on disk, and goes on to write.
const PROGRAM: &str = "echo ran >>/ran; sync /ran /; echo ready; \
    while :; do echo load >/load; sleep 0.01; done";

/// What is run beside it.
const BESIDE: &str = "echo beside >>/beside; sync /beside /; echo done";

/// The calls that are killed.
const CALLS: [&str; 4] = ["runc run", "runc exec", "runc kill", "runc delete"];

struct Runc<'w> {
    world: &'w World,
}

impl Runc<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("runc");
        let root = self.world.sandbox.at("runc");
        command.arg("--root").arg(root).args(args);
        command
    }

    /// The call on the container `id`.
    fn call(&self, call: &str, id: &str) -> Command {
        let bundle = self.world.sandbox.at("b").display().to_string();
        match call {
            "runc run" => self.command(&["run", "--detach", "--bundle", &bundle, id]),
            "runc exec" => self.command(&["exec", id, "/bin/sh", "-c", BESIDE]),
            "runc kill" => self.command(&["kill", id, "KILL"]),
            _ => self.command(&["delete", "--force", id]),
        }
    }

    /// Starts a container, and waits until its program has begun.
    fn begin(&self, id: &str) -> Lines {
        let (mut child, lines) = spawn(self.call("runc run", id));
        if !child.wait().unwrap().success() {
            let mut said = String::new();
            child.stderr.unwrap().read_to_string(&mut said).unwrap();
            panic!("{id}: {said}");
        }
        assert_eq!(lines.until("ready"), [""; 0]);
        lines
    }

    /// Ends a container, or what there is of it.
    fn end(&self, id: &str) {
        // Of what was killed early it knows nothing.
        drop(run(self.call("runc delete", id)));
        for group in groups(Path::new("/sys/fs/cgroup"), id) {
            let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
            for pid in members.lines() {
                end(pid.parse().unwrap());
            }
            fs::remove_dir(&group).unwrap();
        }
    }
}

/// The cgroups of a container.
fn groups(dir: &Path, id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && entry.file_name() == id => found.push(entry.path()),
            Ok(kind) if kind.is_dir() => found.extend(groups(&entry.path(), id)),
            _ => {}
        }
    }
    found
}

fn spawn(mut command: Command) -> (Child, Lines) {
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = Lines::of(child.stdout.take().unwrap());
    (child, lines)
}

/// Kills a process, and waits for its end.
fn end(pid: i32) {
    let pid = Pid::from_raw(pid).unwrap();
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ended_by_now = pidfd_send_signal(&process, Signal::KILL);
        assert!(ends(&process), "{pid:?} outlives SIGKILL");
    }
}

/// The name of a container of this test.
fn name(n: usize) -> String {
    format!("killed-{}-{n}", std::process::id())
}

/// Stops the actor as its messages say to: who is named as using it is ended. Of others' containers
/// only such have it as are being made, which have all mounts of the machine until they have a root
/// of their own: they are waited for.
fn stop(world: &World, what: &str) {
    let mut timeout = "0";
    for _ in 0..20 {
        let output = world
            .sandbox
            .tarnfs(["actor", "stop", "--timeout", timeout, "a"]);
        if output.status.success() {
            assert_eq!(world.state().as_deref(), Some("stopped"), "{what}");
            return;
        }
        let said = text(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{what}: {said}");
        let named = said.split_once("by the container of process ");
        let named = named.and_then(|(_, who)| who.split(' ').next()?.parse().ok());
        match named {
            Some(pid) if is_ours(pid) => end(pid),
            _ => timeout = "30",
        }
    }
    panic!("{what}: it cannot be stopped");
}

/// Whether a process is in a container of this test.
fn is_ours(pid: i32) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.contains(&format!("/killed-{}-", std::process::id()))
}

fn kill_calls(world: &World, call: &str) {
    let runc = Runc { world };
    let kills = kills();
    let bundle = world.sandbox.at("b").display().to_string();
    let create = ["create", "--start", "--bundle", &bundle, "a", "img", "--"];
    let create = [&create[..], &["/bin/sh", "-c", PROGRAM]].concat();
    let prepare = |id: &str| {
        world.ok(&create);
        world.write_synced();
        (call != "runc run").then(|| runc.begin(id))
    };
    let first = name(0);
    let lines = prepare(&first);
    let begun = Instant::now();
    let (mut child, said) = spawn(runc.call(call, &first));
    assert!(child.wait().unwrap().success(), "{call}");
    let takes = begun.elapsed();
    drop((lines, said));
    runc.end(&first);
    world.clear("first");
    let mut killed = 0;
    for n in 1..=kills {
        let id = name(n);
        let before = prepare(&id);
        let delay = random(takes);
        let all = n % 2 == 0;
        let what = format!("{call} {id}, all: {all}, killed after {delay:?} of {takes:?}");
        let (mut child, lines) = spawn(runc.call(call, &id));
        killed += usize::from(!ends_within(&child, delay));
        if all {
            let _ended_by_now = kill_process_group(Pid::from_child(&child), Signal::KILL);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let repaired = judge(&runc, &create, &id, n, &what);
        // All of the container has ended: none has its output open. What it said to be on disk is
        // there.
        let said = before.into_iter().chain([lines]).flat_map(Lines::rest);
        let said: Vec<_> = said.collect();
        if repaired == Repaired::Kept {
            let there = |name: &str| world.point.join(name).exists();
            let has_said = |word: &str| said.iter().any(|line| line == word);
            let ran = call != "runc run" || has_said("ready");
            assert!(!ran || there("ran"), "{what}");
            assert!(!has_said("done") || there("beside"), "{what}");
        }
        let next = format!("{id}-next");
        let lines = runc.begin(&next);
        runc.end(&next);
        assert_eq!(lines.rest(), [""; 0], "{what}");
        stop(world, &what);
        world.clear(&what);
        assert!(!world.sandbox.at("b").exists(), "{what}");
    }
    eprintln!("{call}: {killed} of {kills} killed within {takes:?}");
}

/// What has become of the actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repaired {
    /// What was written is there.
    Kept,
    /// It was destroyed, and is a new one.
    Anew,
}

/// The runtime is dead; the container may be there or not. Gives the actor mounted, and without it.
fn judge(runc: &Runc<'_>, create: &[&str], id: &str, n: usize, what: &str) -> Repaired {
    let world = runc.world;
    world.assert_truth(what);
    let how = n / 2 % 4;
    match how {
        0 => {
            world.ok(&["stop", "--force", "a"]);
            assert_eq!(world.state().as_deref(), Some("stopped"), "{what}");
            runc.end(id);
        }
        1 => {
            stop(world, what);
            runc.end(id);
        }
        2 => {
            // The container is ended by its runtime, and nothing is said to the actor.
            runc.end(id);
            world.assert_truth(what);
        }
        _ => {
            world.ok(&["destroy", "--force", "a"]);
            assert_eq!(world.state(), None, "{what}");
            runc.end(id);
            // A runtime that began just then has made its mount points below what was the root.
            let bundle = world.sandbox.at("b");
            if bundle.exists() {
                assert_eq!(mounts_below(&bundle), [""; 0], "{what}");
                let left = fs::read_dir(&bundle).unwrap();
                let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
                assert_eq!(left, ["rootfs"], "{what}");
                fs::remove_dir_all(&bundle).unwrap();
            }
            // Nothing of it is in the way of another.
            world.ok(create);
            world.write_synced();
        }
    }
    world.assert_truth(what);
    world.ok(&["start", "a"]);
    assert_eq!(world.state().as_deref(), Some("mounted"), "{what}");
    let read = fs::read(world.point.join("synced")).unwrap();
    assert_eq!(read, b"synced", "{what}");
    match how {
        3 => Repaired::Anew,
        _ => Repaired::Kept,
    }
}

#[test]
fn a_runtime_at_random_moments() {
    if !can_mount() || !has("runc") {
        return;
    }
    let mut world = World::new();
    world.point = world.sandbox.at("b/rootfs");
    for call in CALLS.into_iter().filter(|call| is_chosen(call)) {
        kill_calls(&world, call);
    }
}
