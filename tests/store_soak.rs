//! Many processes use one store at once: they import, mount, read, tag, remove, collect and verify.
//! Nothing that is in use goes, no command fails but for what the others do, nothing is damaged.
//!
//! `TARNFS_TEST_SOAK` says for how many seconds.

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
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Sandbox, can_mount, text};
use stored::{assert_clean, assert_empties, content, layer, listed, tarnfs, tarnfs_ok};

const LEN: usize = 100_000;

struct Made {
    source: String,
    digest: String,
    content: String,
    /// A file in it, and what it holds.
    file: (&'static str, Vec<u8>),
}

struct World {
    sandbox: Sandbox,
    store: PathBuf,
    images: Vec<Made>,
    over: AtomicBool,
    until: Instant,
    /// What came of each kind of command: how often it was done, and how often refused.
    done: Mutex<BTreeMap<String, [usize; 2]>>,
}

fn random(below: usize) -> usize {
    let n = RandomState::new().build_hasher().finish();
    usize::try_from(n % below as u64).unwrap()
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let base = layer("base", 1, LEN);
        let (one, two) = (layer("one", 100, LEN), layer("two", 200, LEN));
        let at = |name: &str| sandbox.at(name);
        stored::layout(&at("a"), &[base.clone(), one.clone()]);
        stored::layout(&at("b"), &[base.clone(), two.clone(), one.clone()]);
        stored::docker_archive(&at("c.tar"), &[two, base]);
        stored::tar_gz(&at("d.tar.gz"), &one);
        let sources = [
            (format!("oci:{}", at("a").display()), "base/file1"),
            (format!("oci:{}", at("b").display()), "two/file2"),
            (
                format!("docker-archive:{}", at("c.tar").display()),
                "base/sparse",
            ),
            (at("d.tar.gz").display().to_string(), "one/file3"),
        ];
        let store = at("store");
        let images = sources.map(|(source, file)| {
            let digest = tarnfs_ok(&store, &["import", &source])
                .trim_end()
                .to_owned();
            let cat = tarnfs(&store, &["cat", &digest, &format!("/{file}")]);
            common::assert_ok(&cat, "tarnfs cat");
            Made {
                content: content(&store, &digest),
                source,
                digest,
                file: (file, cat.stdout),
            }
        });
        let seconds = std::env::var("TARNFS_TEST_SOAK").map_or(12, |n| n.parse().unwrap());
        Self {
            store,
            images: images.into(),
            over: AtomicBool::new(false),
            until: Instant::now() + Duration::from_secs(seconds),
            done: Mutex::default(),
            sandbox,
        }
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed) && Instant::now() < self.until
    }

    fn count(&self, what: &str, refused: bool) {
        let mut done = self.done.lock().unwrap();
        done.entry(what.to_owned()).or_default()[usize::from(refused)] += 1;
    }

    /// A command that must succeed, or fail with one of these words; what it printed if it did.
    fn command(&self, args: &[&str], allowed: &[&str]) -> Option<String> {
        let output = tarnfs(&self.store, args);
        let said = text(&output.stderr);
        if output.status.success() {
            self.count(args[0], false);
            return Some(text(&output.stdout));
        }
        let right = said
            .lines()
            .all(|line| allowed.iter().any(|words| line.contains(words)));
        if !right || output.status.code() != Some(1) {
            self.over.store(true, Ordering::Relaxed);
            panic!(
                "tarnfs {args:?}: {}\n{}{said}",
                output.status,
                text(&output.stdout)
            );
        }
        self.count(args[0], true);
        None
    }
}

const ABSENT: [&str; 2] = ["no such image", "no image of the store"];
const USED: [&str; 3] = ["no such image", "no image of the store", "in use"];

/// `image2`, its digest, or the other name.
fn called(world: &World, n: usize) -> String {
    match random(3) {
        0 => format!("image{n}"),
        1 => format!("also{n}"),
        _ => world.images[n].digest.clone(),
    }
}

fn imports(world: &World) {
    let n = random(world.images.len());
    let (made, name) = (&world.images[n], format!("image{n}"));
    let digest = world.command(&["import", "--name", &name, &made.source], &[]);
    assert_eq!(digest.unwrap().trim_end(), made.digest);
}

fn tags(world: &World) {
    let n = random(world.images.len());
    world.command(&["tag", &called(world, n), &format!("also{n}")], &ABSENT);
}

fn removes(world: &World) {
    let n = random(world.images.len());
    world.command(&["rm", &called(world, n)], &USED);
}

fn collects(world: &World) {
    let args: [&[&str]; 3] = [
        &["--all"],
        &["--max-bytes", "300K"],
        &["--dry-run", "--all"],
    ];
    let args = [&["gc", "--min-age", "0"], args[random(3)]].concat();
    world.command(&args, &[]);
}

fn verifies(world: &World) {
    let args: [&[&str]; 2] = [&["verify"], &["verify", "--repair"]];
    world.command(args[random(2)], &[]);
}

fn reads(world: &World) {
    let made = &world.images[random(world.images.len())];
    let args = ["flatten", &made.digest, "-o", "/dev/null"];
    if let Some(content) = world.command(&args, &ABSENT) {
        assert_eq!(content, made.content);
    }
    world.command(&["images", "--json"], &[]);
}

fn mounts(world: &World, engine: &str, dir: &Path) {
    let n = random(world.images.len());
    let (made, at) = (&world.images[n], dir.to_str().unwrap());
    let args = [
        "mount",
        "--engine",
        engine,
        "--read-only",
        &called(world, n),
        at,
    ];
    if world.command(&args, &ABSENT).is_none() {
        return;
    }
    let (file, want) = (dir.join(made.file.0), &made.file.1);
    for _ in 0..random(6) {
        assert!(
            &fs::read(&file).unwrap() == want,
            "{engine}: {}",
            made.file.0
        );
        assert!(
            listed(&world.store).contains(&made.digest),
            "{engine}: not listed"
        );
    }
    world.command(&["umount", "--timeout=240", at], &[]);
}

#[test]
fn many_at_once() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let worker = |work: &dyn Fn()| {
        while world.goes_on() {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                world.over.store(true, Ordering::Relaxed);
                panic!("see above");
            }
        }
    };
    std::thread::scope(|scope| {
        let works: [fn(&World); 8] = [
            imports, imports, tags, removes, removes, collects, verifies, reads,
        ];
        for work in works {
            let (worker, world) = (&worker, &world);
            scope.spawn(move || worker(&|| work(world)));
        }
        for (n, engine) in ["fuse", "kernel", "fuse", "kernel"].into_iter().enumerate() {
            let (worker, world) = (&worker, &world);
            let dir = world.sandbox.dir(format!("mount{n}"));
            scope.spawn(move || worker(&|| mounts(world, engine, &dir)));
        }
    });
    for (what, [done, refused]) in world.done.lock().unwrap().iter() {
        eprintln!("{what}: {done} done, {refused} refused");
    }
    assert_clean(&world.store, "in the end");
    for made in &world.images {
        tarnfs_ok(&world.store, &["import", &made.source]);
        assert_eq!(content(&world.store, &made.digest), made.content);
    }
    assert_empties(&world.store, "in the end");
}
