//! Commands that change the store are killed (SIGKILL) at random moments: nothing that was
//! published is damaged, what was there before is there still, the same command then succeeds, and
//! nothing is left over in the end.
//!
//! `TARNFS_TEST_KILLS` says how often each command is killed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;
// Not in `common` itself: only tests of the store need it.
#[path = "common/stored.rs"]
mod stored;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Sandbox, can_mount, has};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use stored::{assert_clean, assert_empties, content, copy, layer, listed, tarnfs_ok};

/// Bytes of a layer.
const LEN: usize = 150_000;

/// Some part of `all`.
fn random(all: Duration) -> Duration {
    let n = RandomState::new().build_hasher().finish();
    all.mul_f64(n as f64 / u64::MAX as f64)
}

/// Runs the command and kills it after `delay`; whether it was still there.
fn kill_after(mut command: Command, delay: Duration) -> bool {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
    let delay = Timespec::try_from(delay).unwrap();
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&delay)).unwrap() > 0;
    pidfd_send_signal(&process, Signal::KILL).unwrap();
    child.wait().unwrap();
    !ended
}

struct World {
    sandbox: Sandbox,
    /// What `tarnfs import` takes.
    sources: Vec<String>,
    /// Stores as they are before a command: empty, with the images, with image0 damaged, and with
    /// that one's files cut short.
    empty: PathBuf,
    full: PathBuf,
    damaged: PathBuf,
    short: PathBuf,
    /// With the images, and `below`, the lowest layer of image0.
    chain: PathBuf,
    /// The images by name, and what they hold.
    known: Vec<(String, String)>,
    store: PathBuf,
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let at = |name: &str| sandbox.at(name);
        let base = layer("base", 1, LEN);
        stored::layout(&at("below"), std::slice::from_ref(&base));
        let layers = [base.clone(), layer("mid", 100, LEN), layer("top", 200, LEN)];
        stored::layout(&at("layout"), &layers);
        stored::docker_archive(&at("docker.tar"), &[base, layer("other", 300, LEN)]);
        stored::tar_gz(&at("one.tar.gz"), &layer("one", 400, LEN));
        let shown = |prefix: &str, name: &str| format!("{prefix}{}", at(name).display());
        let below = shown("oci:", "below");
        let sources = vec![
            shown("oci:", "layout"),
            shown("docker-archive:", "docker.tar"),
            shown("", "one.tar.gz"),
        ];
        let mut world = Self {
            empty: at("empty"),
            full: at("full"),
            damaged: at("damaged"),
            short: at("short"),
            chain: at("chain"),
            store: at("store"),
            known: Vec::new(),
            sources,
            sandbox,
        };
        fs::create_dir(&world.empty).unwrap();
        for (n, source) in world.sources.iter().enumerate() {
            let name = format!("image{n}");
            tarnfs_ok(&world.full, &["import", "--name", &name, source]);
            let content = content(&world.full, &name);
            world.known.push((name, content));
        }
        tarnfs_ok(&world.full, &["tag", "image0", "also"]);
        copy(&world.full, &world.chain);
        tarnfs_ok(&world.chain, &["import", "--name", "below", &below]);
        // image0: a layer of its own, and its index. The one that it shares stays right.
        let top = tarnfs::digest::Digest::of(&layers[2]).hex();
        let layer = |store: &Path| store.join(format!("blobs/sha256/{top}.tar"));
        copy(&world.full, &world.damaged);
        stored::damage(&layer(&world.damaged));
        stored::damage(&entry(&world.damaged, "image0").join("index.erofs"));
        copy(&world.damaged, &world.short);
        for file in [
            layer(&world.short),
            entry(&world.short, "image0").join("index.erofs"),
        ] {
            let bytes = fs::read(&file).unwrap();
            fs::remove_file(&file).unwrap();
            fs::write(&file, &bytes[..5000]).unwrap();
        }
        world
    }

    /// What was killed has left nothing that is damaged, can be done again, and leaves nothing.
    fn judge(&self, case: &Case, what: &str) {
        let (store, args) = (self.store.as_path(), case.args());
        let want = |name: &str| match self.known.iter().find(|(known, _)| known == name) {
            Some((_, content)) => content,
            None => &self.known[0].1,
        };
        if case.before == self.empty || case.before == self.full {
            assert_clean(store, what);
        }
        for name in case.keeps {
            assert_eq!(&content(store, name), want(name), "{what}: {name}");
        }
        // What is listed can be used, named or not.
        if case.before == self.empty && store.exists() {
            for digest in listed(store) {
                content(store, &digest);
            }
        }
        common::assert_ok(&stored::tarnfs(store, &args), what);
        assert_clean(store, what);
        for name in case.after {
            let renamed = args.first() == Some(&"tag");
            let want = want(if renamed { "image0" } else { name });
            assert_eq!(&content(store, name), want, "{what}: {name}");
        }
        assert_empties(store, what);
    }
}

/// The directory of an image.
fn entry(store: &Path, name: &str) -> PathBuf {
    let own = fs::read_link(store.join("names").join(name)).unwrap();
    store.join("images/sha256").join(own)
}

/// A command, what the store is like before, which images it must not touch, and which there are
/// afterwards.
struct Case {
    args: Vec<String>,
    before: PathBuf,
    keeps: &'static [&'static str],
    after: &'static [&'static str],
}

impl Case {
    fn new(
        before: &Path,
        args: &[&str],
        keeps: &'static [&'static str],
        after: &'static [&'static str],
    ) -> Self {
        Self {
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            before: before.to_owned(),
            keeps,
            after,
        }
    }

    fn args(&self) -> Vec<&str> {
        self.args.iter().map(String::as_str).collect()
    }
}

fn cases(world: &World) -> Vec<Case> {
    let (empty, full, damaged) = (&world.empty, &world.full, &world.damaged);
    let all: &[&str] = &["image0", "image1", "image2", "also"];
    let [oci, docker, tar] = [0, 1, 2].map(|n| world.sources[n].as_str());
    vec![
        Case::new(
            empty,
            &["import", "--name", "image0", oci],
            &[],
            &["image0"],
        ),
        Case::new(
            empty,
            &["import", "--name", "image1", docker],
            &[],
            &["image1"],
        ),
        Case::new(
            empty,
            &["import", "--name", "image2", tar],
            &[],
            &["image2"],
        ),
        Case::new(
            full,
            &["import", "--name", "new", oci],
            all,
            &["image0", "new"],
        ),
        Case::new(full, &["gc", "--all", "--min-age", "0"], &[], &[]),
        Case::new(
            full,
            &["gc", "--max-bytes", "300K", "--min-age", "0"],
            &[],
            &[],
        ),
        Case::new(
            full,
            &["rm", "--ignore", "image1"],
            &["image0", "image2", "also"],
            &["image0"],
        ),
        Case::new(
            full,
            &["rm", "--ignore", "also"],
            &["image0", "image1", "image2"],
            &["image0"],
        ),
        Case::new(
            full,
            &["tag", "image0", "image1"],
            &["image0", "image2"],
            &["image1"],
        ),
        Case::new(full, &["verify"], all, all),
        Case::new(damaged, &["verify", "--repair"], &["image1", "image2"], all),
        Case::new(
            damaged,
            &["verify", "--repair", "image0"],
            &["image1", "image2"],
            all,
        ),
        Case::new(
            &world.chain,
            &["squash", "--base", "below", "--name", "one", "image0"],
            all,
            &["image0", "one"],
        ),
        Case::new(&world.short, &["import", oci], &["image1", "image2"], all),
    ]
}

#[test]
fn at_random_moments() {
    let world = World::new();
    let kills = std::env::var("TARNFS_TEST_KILLS").map_or(6, |n| n.parse().unwrap());
    for case in cases(&world) {
        let (store, args) = (world.store.as_path(), case.args());
        copy(&case.before, store);
        let start = Instant::now();
        tarnfs_ok(store, &args);
        let takes = start.elapsed();
        let mut killed = 0;
        for _ in 0..kills {
            copy(&case.before, store);
            let delay = random(takes);
            let what = format!("tarnfs {args:?}, killed after {delay:?} of {takes:?}");
            killed += usize::from(kill_after(stored::command(store, &args), delay));
            world.judge(&case, &what);
        }
        eprintln!("tarnfs {args:?}: {killed} of {kills} killed within {takes:?}");
    }
}

/// By what the store is changed. strace counts each by itself, and each thread's.
const CHANGES: [&str; 16] = [
    "mkdir",
    "write",
    "ftruncate",
    "flock",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "rename",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "fchmod",
    "fsync",
    "utimensat",
];

/// `tarnfs args…` under strace.
fn traced(store: &Path, args: &[&str], options: &[&str]) -> Command {
    let mut command = Command::new("strace");
    let plain = stored::command(store, args);
    command.arg("-f").args(options).arg(plain.get_program());
    command.args(plain.get_args());
    command
}

/// How often the command makes each of the changes, by the thread that makes most of them.
fn counted(world: &World, args: &[&str]) -> Vec<(&'static str, usize)> {
    let log = world.sandbox.at("strace.log");
    let set = format!("trace=?{}", CHANGES.join(",?"));
    let options = ["-o", log.to_str().unwrap(), "-e", &set];
    common::assert_ok(&common::run(traced(&world.store, args, &options)), &set);
    let mut counts: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let name = call.trim_start().split('(').next().unwrap();
        if let Some(name) = CHANGES.iter().find(|known| **known == name) {
            *counts.entry((thread.to_owned(), name)).or_default() += 1;
        }
    }
    let most = |name: &'static str| {
        let of = counts.iter().filter(|((_, known), _)| *known == name);
        of.map(|(_, &count)| (name, count)).max()
    };
    CHANGES.into_iter().filter_map(most).collect()
}

/// Before each change that a command makes; some of them, unless TARNFS_TEST_ALL is set.
#[test]
fn at_each_change() {
    if !has("strace") {
        return;
    }
    let world = World::new();
    let all = std::env::var_os("TARNFS_TEST_ALL").is_some();
    for (n, case) in cases(&world).into_iter().enumerate() {
        let (store, args) = (world.store.as_path(), case.args());
        copy(&case.before, store);
        let counts = counted(&world, &args);
        let deaths = counts
            .iter()
            .flat_map(|(name, count)| (1..=*count).map(move |k| (*name, k)));
        let (mut killed, mut tried) = (0, 0);
        let (first, step) = if all { (0, 1) } else { (n % 4, 16) };
        for (call, k) in deaths.skip(first).step_by(step) {
            copy(&case.before, store);
            let what = format!("tarnfs {args:?}, killed at {call} {k}");
            let inject = format!("inject={call}:signal=SIGKILL:when={k}");
            let options = ["-o", "/dev/null", "-e", &inject];
            let output = common::run(traced(store, &args, &options));
            // Another thread may have made that change.
            killed += usize::from(!output.status.success());
            tried += 1;
            world.judge(&case, &what);
        }
        eprintln!("tarnfs {args:?}: killed at {killed} of {tried} changes ({counts:?})");
    }
}

/// A mount goes on whatever happens to the store's other users.
#[test]
fn under_a_mount() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let sandbox = &world.sandbox;
    copy(&world.full, &world.store);
    let mount = sandbox.mount("mount", Path::new("image0"), &["--read-only"]);
    let want = fs::read(mount.at("top/file3")).unwrap();
    let kills = std::env::var("TARNFS_TEST_KILLS").map_or(6, |n| n.parse().unwrap());
    let (store, args) = (world.store.as_path(), ["gc", "--all", "--min-age", "0"]);
    for n in 0..kills {
        kill_after(
            stored::command(store, &args),
            random(Duration::from_millis(40)),
        );
        tarnfs_ok(store, &args);
        assert_eq!(fs::read(mount.at("top/file3")).unwrap(), want);
        assert_eq!(listed(store).len(), 1, "{n}");
        let said = common::text(&stored::tarnfs(store, &["rm", "also", "image0"]).stderr);
        assert!(said.contains("in use"), "{said}");
        tarnfs_ok(
            store,
            &["tag", &listed(store).into_iter().next().unwrap(), "also"],
        );
    }
    assert_clean(store, "mounted");
    mount.unmount();
    assert_empties(store, "unmounted");
}
