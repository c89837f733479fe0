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

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Sandbox, can_mount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use stored::{assert_clean, assert_empties, content, copy, layer, listed, tarnfs_ok};

/// Bytes of a layer.
const LEN: usize = 400_000;

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
    /// Stores as they are before a command: empty, with the images, with damaged ones.
    empty: PathBuf,
    full: PathBuf,
    damaged: PathBuf,
    store: PathBuf,
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let at = |name: &str| sandbox.at(name);
        let base = layer("base", 1, LEN);
        let layers = [base.clone(), layer("mid", 100, LEN), layer("top", 200, LEN)];
        stored::layout(&at("layout"), &layers);
        stored::docker_archive(&at("docker.tar"), &[base, layer("other", 300, LEN)]);
        stored::tar_gz(&at("one.tar.gz"), &layer("one", 400, LEN));
        let shown = |prefix: &str, name: &str| format!("{prefix}{}", at(name).display());
        let sources = vec![
            shown("oci:", "layout"),
            shown("docker-archive:", "docker.tar"),
            shown("", "one.tar.gz"),
        ];
        let world = Self {
            empty: at("empty"),
            full: at("full"),
            damaged: at("damaged"),
            store: at("store"),
            sources,
            sandbox,
        };
        fs::create_dir(&world.empty).unwrap();
        for (n, source) in world.sources.iter().enumerate() {
            let name = format!("image{n}");
            tarnfs_ok(&world.full, &["import", "--name", &name, source]);
        }
        tarnfs_ok(&world.full, &["tag", "image0", "also"]);
        copy(&world.full, &world.damaged);
        // image0: a layer of its own, and its index. The one that it shares stays right.
        let top = tarnfs::digest::Digest::of(&layers[2]).hex();
        let layer = world.damaged.join(format!("blobs/sha256/{top}.tar"));
        stored::damage(&layer);
        let index = world.entry(&world.damaged, "image0").join("index.erofs");
        stored::damage(&index);
        world
    }

    /// The directory of an image.
    fn entry(&self, store: &Path, name: &str) -> PathBuf {
        let own = fs::read_link(store.join("names").join(name)).unwrap();
        store.join("images/sha256").join(own)
    }
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
            &["gc", "--max-bytes", "2M", "--min-age", "0"],
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
            &world.sandbox.at("short"),
            &["import", oci],
            &["image1", "image2"],
            all,
        ),
    ]
}

#[test]
fn at_random_moments() {
    let world = World::new();
    let kills = std::env::var("TARNFS_TEST_KILLS").map_or(6, |n| n.parse().unwrap());
    // The image's layers and index are not as long as they should be.
    let short = world.sandbox.at("short");
    copy(&world.damaged, &short);
    let index = world.entry(&short, "image0").join("index.erofs");
    let blob = fs::OpenOptions::new().write(true).open(index).unwrap();
    blob.set_len(4096).unwrap();
    let layer = tarnfs::digest::Digest::of(&layer("top", 200, LEN)).hex();
    let blob = short.join(format!("blobs/sha256/{layer}.tar"));
    let blob = fs::OpenOptions::new().write(true).open(blob).unwrap();
    blob.set_len(5000).unwrap();
    let content_of = |name: &str| content(&world.full, name);
    let known: Vec<(&str, String)> = ["image0", "image1", "image2"]
        .into_iter()
        .map(|name| (name, content_of(name)))
        .collect();
    let want = |name: &str| match known.iter().find(|(known, _)| *known == name) {
        Some((_, content)) => content.clone(),
        None => known[0].1.clone(),
    };
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
            if case.before == world.empty || case.before == world.full {
                assert_clean(store, &what);
            }
            for name in case.keeps {
                assert_eq!(content(store, name), want(name), "{what}: {name}");
            }
            // What is listed can be used, named or not.
            if case.before == world.empty {
                for digest in listed(store) {
                    content(store, &digest);
                }
            }
            let again = stored::tarnfs(store, &args);
            common::assert_ok(&again, &what);
            assert_clean(store, &what);
            for name in case.after {
                let renamed = args.first() == Some(&"tag");
                let want = if renamed { want("image0") } else { want(name) };
                assert_eq!(content(store, name), want, "{what}: {name}");
            }
            assert_empties(store, &what);
        }
        eprintln!("tarnfs {args:?}: {killed} of {kills} killed within {takes:?}");
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
