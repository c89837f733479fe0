//! Calls in the life of an actor are killed (SIGKILL) at random moments, under load: the command,
//! the server that it starts, or the server that is there; and calls of a runtime on its bundle.
//! What `list` then says is true, the same call made again succeeds, nothing that was synced is
//! lost, and nothing is left in the end.
//!
//! `TARNFS_TEST_KILLS` says how often each call is killed, `TARNFS_TEST_KILLS_OF` which calls, as
//! in `fork,diff,list,runc run`; else all are.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "actors_killed/runtime.rs"]
mod runtime;

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Sandbox, can_mount, mounts_below, pack, text};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use serde_json::Value;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The command alone.
    Command,
    /// The command, and the server that it is about to start.
    Both,
    /// The server that was there before.
    Server,
}

/// A call, and what there is before and after it.
struct Case {
    call: &'static [&'static str],
    /// Calls that make what is there before.
    before: &'static [&'static [&'static str]],
    /// What is said of the actor afterwards; `None`: it is gone.
    after: Option<&'static str>,
    /// Whether what was synced before is there afterwards.
    keeps: bool,
}

const CREATE: &[&str] = &["create", "a", "img"];
const START: &[&str] = &["start", "a"];
const WRITE: &[&str] = &["write"];
const STOP: &[&str] = &["stop", "--force", "a"];
const CHECKPOINT: &[&str] = &["checkpoint", "--name", "made", "a"];
const DESTROY: &[&str] = &["destroy", "--force", "a"];

const CASES: [Case; 13] = [
    Case {
        call: CREATE,
        before: &[],
        after: Some("created"),
        keeps: false,
    },
    Case {
        call: &["create", "--start", "--upper", "tmpfs=16M", "a", "img"],
        before: &[],
        after: Some("mounted"),
        keeps: false,
    },
    Case {
        call: START,
        before: &[CREATE],
        after: Some("mounted"),
        keeps: false,
    },
    Case {
        call: START,
        before: &[CREATE, START, WRITE, STOP],
        after: Some("mounted"),
        keeps: true,
    },
    Case {
        call: STOP,
        before: &[CREATE, START, WRITE],
        after: Some("stopped"),
        keeps: true,
    },
    Case {
        call: &["reset", "--force", "a"],
        before: &[CREATE, START, WRITE],
        // Who is killed may leave it unmounted: then it stays so.
        after: None,
        keeps: false,
    },
    Case {
        call: DESTROY,
        before: &[CREATE, START, WRITE],
        after: None,
        keeps: false,
    },
    Case {
        call: CHECKPOINT,
        before: &[CREATE, START, WRITE],
        after: Some("mounted"),
        keeps: true,
    },
    Case {
        call: CHECKPOINT,
        before: &[CREATE, START, WRITE, STOP],
        after: Some("stopped"),
        keeps: true,
    },
    Case {
        call: &["fork", "--start", "a", "made"],
        before: &[CREATE, START, WRITE],
        after: Some("mounted"),
        keeps: true,
    },
    Case {
        call: &["restore", "--start", "a", "made"],
        before: &[CREATE, START, WRITE, CHECKPOINT, DESTROY],
        after: Some("mounted"),
        keeps: true,
    },
    Case {
        call: &["diff", "--size", "a"],
        before: &[CREATE, START, WRITE],
        after: Some("mounted"),
        keeps: true,
    },
    Case {
        call: &["list"],
        before: &[CREATE, START, WRITE],
        after: Some("mounted"),
        keeps: true,
    },
];

/// Some part of `all`.
fn random(all: Duration) -> Duration {
    let n = RandomState::new().build_hasher().finish();
    all.mul_f64(n as f64 / u64::MAX as f64)
}

struct World {
    sandbox: Sandbox,
    /// Where the actor `a` is mounted.
    point: PathBuf,
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let tree = sandbox.dir("tree");
        for n in 0..50 {
            fs::write(tree.join(format!("file{n}")), vec![b'x'; n * 1000]).unwrap();
        }
        common::shell::put(&tree, &["/bin/sync", "/bin/sleep"]);
        pack(&tree, &sandbox.at("image.tar"), &[]);
        let tar = sandbox.at("image.tar");
        sandbox.tarnfs_ok(["import", "--name", "img", tar.to_str().unwrap()]);
        let point = sandbox.at("store/actors/a/rootfs");
        Self { sandbox, point }
    }

    fn store(&self) -> PathBuf {
        self.sandbox.at("store")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(common::TARNFS);
        command
            .env("TARNFS_STORE", self.store())
            .arg("actor")
            .args(args);
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        self.sandbox.tarnfs_ok([&["actor"], args].concat())
    }

    fn prepare(&self, case: &Case) {
        for call in case.before {
            match call {
                [word] if *word == "write" => self.write_synced(),
                call => drop(self.ok(call)),
            }
        }
    }

    fn write_synced(&self) {
        let mut file = File::create(self.point.join("synced")).unwrap();
        file.write_all(b"synced").unwrap();
        file.sync_all().unwrap();
        let dir = File::open(&self.point).unwrap();
        dir.sync_all().unwrap();
    }

    /// What is listed of the actor.
    fn listed(&self) -> Option<Value> {
        let all: Value = serde_json::from_str(&self.ok(&["list", "--json"])).unwrap();
        all.as_array()
            .unwrap()
            .iter()
            .find(|a| a["id"] == "a")
            .cloned()
    }

    fn state(&self) -> Option<String> {
        Some(self.listed()?["state"].as_str().unwrap().to_owned())
    }

    /// What `list` says is so.
    fn assert_truth(&self, what: &str) {
        let point = &self.point;
        match self.state().as_deref() {
            // Its server to be, which makes it, may have come to that only now.
            None => {
                let there = point.exists();
                assert!(!there || self.state().is_some(), "{what}: gone, and there");
            }
            // A server that was killed a moment ago may have been seen alive: it closes one file
            // after the other, and its mount is dead before its lock is free.
            Some("mounted") => {
                let server = self.server_process();
                let read = fs::read(point.join("file3"));
                if read.is_err() {
                    let dying = server.is_none_or(|server| ends(&server));
                    assert!(dying, "{what}: {read:?}, and its server lives");
                    assert_ne!(self.state().as_deref(), Some("mounted"), "{what}: {read:?}");
                }
            }
            Some("stale") => {
                let errno = fs::metadata(point.join("file3"))
                    .unwrap_err()
                    .raw_os_error();
                assert_eq!(errno, Some(libc::ENOTCONN), "{what}");
            }
            // Its server to be may have come to mount only now.
            Some("created" | "stopped") => {
                let there = mounts_below(point);
                let is = || self.state();
                assert!(
                    there.is_empty() || is().as_deref() == Some("mounted"),
                    "{what}: {there:?}"
                );
            }
            Some("detached") => {}
            Some(other) => panic!("{what}: {other}"),
        }
    }

    fn server_process(&self) -> Option<OwnedFd> {
        let pid = self.listed()?["server"]["pid"].as_i64()?;
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        pidfd_open(pid, PidfdFlags::empty()).ok()
    }

    /// Programs that write as fast as they can, until they are told to end.
    fn load<'s>(&'s self, scope: &'s std::thread::Scope<'s, '_>, end: &'s AtomicBool) {
        for n in 0..2 {
            scope.spawn(move || {
                let mut i = 0_u64;
                while !end.load(Ordering::Relaxed) {
                    let path = self.point.join(format!("load{n}-{}", i % 50));
                    // The mount comes and goes.
                    drop(fs::write(&path, vec![b'l'; 5000]));
                    drop(fs::rename(&path, path.with_extension("moved")));
                    drop(fs::remove_file(self.point.join("file7")));
                    i += 1;
                    std::thread::yield_now();
                }
            });
        }
    }

    fn judge(&self, case: &Case, what: &str) {
        self.assert_truth(what);
        let takes = matches!(case.call[0], "checkpoint" | "fork" | "diff");
        if takes {
            // Whole, or not there.
            self.sandbox.tarnfs_ok(["verify"]);
            self.ok(&["destroy", "--force", "made"]);
        }
        let again = common::run(self.command(case.call));
        let said = text(&again.stderr);
        assert!(again.status.success(), "{what}, again: {said}");
        if case.call != ["list"] {
            let state = self.state();
            match (case.after, case.call[0]) {
                (None, "reset") => {
                    let state = state.as_deref();
                    assert!(
                        matches!(state, Some("mounted" | "created")),
                        "{what}: {state:?}"
                    );
                }
                // Its server was killed; what it has written is there to be taken.
                (Some("mounted"), _) if takes && state.as_deref() == Some("stale") => {}
                (after, _) => assert_eq!(state.as_deref(), after, "{what}"),
            }
        }
        if case.keeps {
            self.ok(&["start", "a"]);
            let read = fs::read(self.point.join("synced")).unwrap();
            assert_eq!(read, b"synced", "{what}");
        }
        if takes {
            let made = match case.call[0] {
                "fork" => "made",
                "checkpoint" => {
                    self.ok(&["restore", "--start", "r", "made"]);
                    "r"
                }
                _ => "a",
            };
            let point = self.store().join("actors").join(made).join("rootfs");
            let read = fs::read(point.join("synced")).unwrap();
            assert_eq!(read, b"synced", "{what}");
            self.ok(&["destroy", "--force", "made", "r"]);
        }
        if case.call[0] == "reset" {
            self.ok(&["start", "a"]);
            assert!(!self.point.join("synced").exists(), "{what}");
        }
    }

    /// Destroys it: nothing is left.
    fn clear(&self, what: &str) {
        let server = self.server_process();
        self.ok(&["destroy", "--force", "a", "made", "r"]);
        let mounts = mounts_below(self.sandbox.path());
        assert!(mounts.is_empty(), "{what}: {mounts:?}");
        // What was killed while it was made or removed goes with the next call that makes.
        self.ok(&["create", "b", "img"]);
        self.ok(&["destroy", "b"]);
        let left: Vec<_> = fs::read_dir(self.store().join("actors"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{what}: {left:?}");
        if let Some(server) = server {
            // On its last steps, perhaps.
            assert!(ends(&server), "{what}: a server is left");
        }
    }
}

/// Waits until the process has ended, but not for ever.
fn ends(process: &OwnedFd) -> bool {
    let soon = Timespec::try_from(Duration::from_secs(60)).unwrap();
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&soon)).unwrap() > 0
}

/// Waits until the process ends, but not longer than `delay`; whether it has.
fn ends_within(child: &Child, delay: Duration) -> bool {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let delay = Timespec::try_from(delay).unwrap();
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&delay)).unwrap() > 0
}

/// Runs the call and kills the victim after `delay`; whether there was something left to kill.
fn kill_after(world: &World, case: &Case, victim: Victim, delay: Duration) -> bool {
    let server = match victim {
        Victim::Server => match world.server_process() {
            None => return false,
            server => server,
        },
        _ => None,
    };
    let mut child = world
        .command(case.call)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let was = !ends_within(&child, delay);
    let pid = Pid::from_child(&child);
    match (victim, &server) {
        (Victim::Server, Some(server)) => drop(pidfd_send_signal(server, Signal::KILL)),
        (Victim::Both, _) => drop(kill_process_group(pid, Signal::KILL)),
        _ => {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    if victim != Victim::Server {
        // What it has started goes on, or finds that nobody waits for it. It holds the actor's
        // lock meanwhile, for which every call waits.
        return was;
    }
    true
}

/// How often each call is killed.
fn kills() -> usize {
    std::env::var("TARNFS_TEST_KILLS").map_or(4, |n| n.parse().unwrap())
}

/// Whether a call is to be killed.
fn is_chosen(call: &str) -> bool {
    let only = std::env::var("TARNFS_TEST_KILLS_OF").ok();
    only.is_none_or(|only| only.split(',').any(|name| name == call))
}

fn run(cases: &[Case]) {
    let world = World::new();
    let kills = kills();
    for case in cases.iter().filter(|case| is_chosen(case.call[0])) {
        world.prepare(case);
        // Who is there to be killed.
        let victims = match world.server_process() {
            Some(_) => &[Victim::Command, Victim::Both, Victim::Server][..],
            None => &[Victim::Command, Victim::Both],
        };
        let start = Instant::now();
        world.ok(case.call);
        let takes = start.elapsed();
        world.clear("first");
        let mut killed = 0;
        for n in 0..kills {
            let victim = victims[n % victims.len()];
            world.prepare(case);
            let delay = random(takes);
            let what = format!(
                "{:?}, {victim:?} killed after {delay:?} of {takes:?}",
                case.call
            );
            let end = AtomicBool::new(false);
            std::thread::scope(|scope| {
                world.load(scope, &end);
                killed += usize::from(kill_after(&world, case, victim, delay));
                end.store(true, Ordering::Relaxed);
            });
            world.judge(case, &what);
            world.clear(&what);
        }
        eprintln!(
            "{:?}: {killed} of {kills} killed within {takes:?}",
            case.call
        );
    }
}

#[test]
fn at_random_moments() {
    if can_mount() {
        run(&CASES);
    }
}
