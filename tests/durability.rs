//! What is on disk when the machine dies: the upper lies on an ext4 of its own, whose disk is
//! copied while it is in use, and the copy is mounted as after a power failure. A plain directory
//! on the same ext4, to which the same is done, is the measure.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{Mount, Sandbox, can_mount, has, ok, pack, run};
use rustix::process::{Pid, Signal, kill_process};

/// An ext4 in a file, mounted.
struct Disk {
    image: PathBuf,
    dir: PathBuf,
}

impl Disk {
    fn new(sandbox: &Sandbox, name: &str) -> Self {
        let image = sandbox.at(format!("{name}.img"));
        File::create(&image).unwrap().set_len(96 << 20).unwrap();
        ok("mkfs.ext4", ["-q", "-F", image.to_str().unwrap()]);
        let disk = Self {
            dir: sandbox.dir(name),
            image,
        };
        disk.attach();
        disk
    }

    fn attach(&self) {
        // No commit but those that are asked for.
        let (image, dir) = (self.image.to_str().unwrap(), self.dir.to_str().unwrap());
        ok("mount", ["-o", "loop,commit=3600", image, dir]);
    }

    /// What is on the disk at this moment. Starts no process.
    fn copied(&self, sandbox: &Sandbox, name: &str) -> PathBuf {
        let image = sandbox.at(format!("{name}.img"));
        // The loop device may hold writes back until the filesystem asks: that is the disk's
        // cache, which a power failure takes.
        fs::copy(&self.image, &image).unwrap();
        image
    }

    /// A disk as it was when it was [copied](Self::copied): its journal is replayed as it is
    /// mounted.
    fn from_copy(sandbox: &Sandbox, name: &str, image: PathBuf) -> Self {
        let disk = Self {
            dir: sandbox.dir(name),
            image,
        };
        disk.attach();
        disk
    }

    fn crashed(&self, sandbox: &Sandbox, name: &str) -> Self {
        Self::from_copy(sandbox, name, self.copied(sandbox, name))
    }

    fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = run({
            let mut command = Command::new("umount");
            command.arg(&self.dir);
            command
        });
        if !unmounted.status.success() {
            eprintln!("umount {}: {unmounted:?}", self.dir.display());
        }
        fs::remove_file(&self.image).unwrap();
    }
}

/// The image: files that are told apart by their content.
const TREE: &str = r#"
mkdir -p d/e gone
for i in 1 2 3 4 5 6 7 8; do yes "file $i" | head -c 70000 >f$i; done
yes linked | head -c 50000 >l1; ln l1 d/l2; ln l1 d/e/l3
yes "in d" | head -c 30000 >d/in; touch gone/1
chmod 4755 f8
"#;

struct World {
    disk: Disk,
    tar: PathBuf,
    sandbox: Sandbox,
}

impl World {
    /// None where it cannot be.
    fn new() -> Option<Self> {
        if !can_mount() || !has("mkfs.ext4") {
            return None;
        }
        let sandbox = Sandbox::new();
        let disk = Disk::new(&sandbox, "disk");
        for dir in ["plain", "upper"] {
            fs::create_dir(disk.at(dir)).unwrap();
        }
        let plain = disk.at("plain");
        ok("sh", ["-euc", &format!("cd '{}'; {TREE}", plain.display())]);
        let tar = sandbox.at("image.tar");
        pack(&plain, &tar, &[]);
        let filesystem = File::open(&disk.dir).unwrap();
        rustix::fs::syncfs(&filesystem).unwrap();
        Some(Self { disk, tar, sandbox })
    }

    fn mount_of(&self, name: &str, disk: &Disk, options: &[&str]) -> Mount<'_> {
        let (upper, work) = (disk.at("upper"), disk.at("work"));
        self.sandbox
            .mount_over(name, &self.tar, (&upper, &work), options)
    }

    fn mount(&self) -> Mount<'_> {
        self.mount_of("mount", &self.disk, &[])
    }
}

/// Names, types, modes, link counts and content below a directory: what a crash may take.
fn show(root: &Path) -> BTreeMap<PathBuf, (u32, u64, Vec<u8>)> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mut content = Vec::new();
            let mut links = 0;
            if meta.is_dir() {
                todo.push(path.clone());
            } else {
                links = meta.nlink();
                content = fs::read(&path).unwrap();
            }
            let name = path.strip_prefix(root).unwrap().to_owned();
            seen.insert(name, (meta.mode(), links, content));
        }
    }
    seen
}

fn fsync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

fn put(path: &Path, data: &str) -> File {
    let mut file = File::create(path).unwrap();
    file.write_all(data.as_bytes()).unwrap();
    file
}

fn append(path: &Path, data: &str) -> File {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(data.as_bytes()).unwrap();
    file
}

/// A step that ends with something synced: done in the plain directory and in the mount.
type Step = (&'static str, fn(&Path));

const STEPS: &[Step] = &[
    ("fsync of a new file", |root| {
        put(&root.join("new"), "new\n").sync_all().unwrap();
    }),
    ("fsync of a file of the image", |root| {
        append(&root.join("f1"), "more").sync_all().unwrap();
    }),
    ("fdatasync of a file of the image", |root| {
        append(&root.join("f2"), "more").sync_data().unwrap();
    }),
    ("fsync through a descriptor for reading", |root| {
        drop(append(&root.join("f3"), "more"));
        fsync(&root.join("f3"));
    }),
    ("atomic replacement", |root| {
        put(&root.join("temp"), "replaced\n").sync_all().unwrap();
        fs::rename(root.join("temp"), root.join("f4")).unwrap();
        fsync(root);
    }),
    ("fsync of one of a group of links", |root| {
        append(&root.join("d/l2"), "more").sync_all().unwrap();
    }),
    ("removal, and fsync of the directory", |root| {
        fs::remove_file(root.join("f5")).unwrap();
        fs::remove_file(root.join("gone/1")).unwrap();
        fs::remove_dir(root.join("gone")).unwrap();
        fsync(root);
    }),
    ("rename, and fsync of both directories", |root| {
        fs::rename(root.join("f6"), root.join("d/moved")).unwrap();
        fsync(root);
        fsync(&root.join("d"));
    }),
    ("rename of a directory, and fsync of its parent", |root| {
        fs::rename(root.join("d/e"), root.join("e2")).unwrap();
        fsync(root);
        fsync(&root.join("d"));
    }),
    ("change of a mode, and fsync", |root| {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(root.join("f8"), mode).unwrap();
        fsync(&root.join("f8"));
    }),
    ("a new tree, each part synced", |root| {
        fs::create_dir(root.join("t")).unwrap();
        put(&root.join("t/f"), "tree\n").sync_all().unwrap();
        fsync(&root.join("t"));
        fsync(root);
    }),
    ("exchange, and fsync of both directories", |root| {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        let (a, b) = (root.join("f7"), root.join("d/in"));
        rustix::fs::renameat_with(rustix::fs::CWD, a, rustix::fs::CWD, b, flags).unwrap();
        fsync(root);
        fsync(&root.join("d"));
    }),
    ("sync of everything", |root| {
        drop(append(&root.join("f8"), "last"));
        drop(put(&root.join("t/g"), "synced by sync(2)\n"));
        rustix::fs::sync();
    }),
];

#[test]
fn what_was_synced_is_there_after_a_crash() {
    let Some(world) = World::new() else { return };
    let mount = world.mount();
    for (n, (what, step)) in STEPS.iter().enumerate() {
        step(mount.path());
        let image = world.disk.crashed(&world.sandbox, &format!("crash{n}"));
        let mounted = world.mount_of(&format!("after{n}"), &image, &[]);
        let got = show(mounted.path());
        // The plain directory is changed after that image, so that its fsync does nothing for it.
        step(&world.disk.at("plain"));
        let image = world.disk.crashed(&world.sandbox, &format!("plain{n}"));
        let want = show(&image.at("plain"));
        let differ: Vec<_> = want
            .keys()
            .chain(got.keys())
            .filter(|name| want.get(*name) != got.get(*name))
            .collect();
        assert!(differ.is_empty(), "{what}: {differ:?}");
        mounted.unmount();
    }
}

/// ext4 writes out what is renamed over a file (its `auto_da_alloc`), since so many programs do
/// not: the name leads to the old content or to the new, never to nothing.
#[test]
fn a_replacement_that_was_not_synced_is_old_or_new() {
    let Some(world) = World::new() else { return };
    let mount = world.mount();
    for root in [world.disk.at("plain"), mount.path().to_owned()] {
        drop(append(&root.join("f2"), "in the upper"));
        for name in ["f1", "f2"] {
            let new = "new content\n".repeat(10_000);
            drop(put(&root.join("temp"), &new));
            fs::rename(root.join("temp"), root.join(name)).unwrap();
        }
        // Commits the journal, with all names.
        put(&root.join("other"), "").sync_all().unwrap();
    }
    let image = world.disk.crashed(&world.sandbox, "crash");
    let mounted = world.mount_of("after", &image, &[]);
    for root in [image.at("plain"), mounted.path().to_owned()] {
        for name in ["f1", "f2"] {
            let size = fs::metadata(root.join(name)).unwrap().len();
            let old = if name == "f1" { 70_000 } else { 70_012 };
            assert!(
                size == 120_000 || size == old,
                "{}/{name}: {size} bytes",
                root.display()
            );
        }
    }
    mounted.unmount();
}

/// The server of a mount, held still: nothing of it reaches the disk until this is dropped.
///
/// Nothing may be started meanwhile: a new process has this one's descriptors, closes those of the
/// mount as it begins, and may wait there for the server (`fs/fuse/file.c:fuse_flush()`).
struct Stopped(Pid);

impl Stopped {
    fn new(mount: &Path) -> Self {
        let minor = tarnfs::mount::find_mount(mount).unwrap().unwrap().minor;
        let record = fs::read(format!("/run/tarnfs/{minor}.json")).unwrap();
        let record: tarnfs::mount::Record = serde_json::from_slice(&record).unwrap();
        let pid = Pid::from_raw(record.pid.try_into().unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        // A thread stops when the system call it is in has ended.
        let tasks = format!("/proc/{}/task", record.pid);
        let stopped = || {
            fs::read_dir(&tasks).unwrap().all(|task| {
                let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
                let (_, rest) = stat.rsplit_once(')').unwrap();
                rest.starts_with(" T")
            })
        };
        while !stopped() {
            std::thread::yield_now();
        }
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

/// Ends the others' loops with its own, however that comes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn version(n: usize) -> String {
    format!("version {n:08}\n").repeat(3_000)
}

/// What a file of the workload may hold after a crash: what the image has, or a version that was
/// synced before it got the name, `from` at the earliest.
fn assert_version(path: &Path, from: usize, to: usize) {
    let is = fs::read_to_string(path).unwrap();
    let known = (from..=to).any(|n| is == version(n)) || from == 0 && is.starts_with("file ");
    assert!(
        known,
        "{}: {} bytes, {is:.20?}, not of {from}..={to}",
        path.display(),
        is.len()
    );
    if is.starts_with("file ") {
        assert!(is.len() == 70_000 && is.lines().all(|line| line.starts_with("file ")));
    }
}

#[test]
fn a_crash_at_any_moment_leaves_whole_files() {
    let Some(world) = World::new() else { return };
    let rounds = std::env::var("TARNFS_TEST_CRASHES").map_or(6, |n| n.parse().unwrap());
    let mount = world.mount();
    let over = AtomicBool::new(false);
    // Versions of f1 and f2 that are under way, and that have been synced.
    let (begun, synced): ([AtomicUsize; 2], [AtomicUsize; 2]) = Default::default();
    let turns = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (over, begun, synced, turns, root) = (&over, &begun, &synced, &turns, mount.path());
        let going = move || !over.load(Ordering::Relaxed);
        for file in 0..2 {
            scope.spawn(move || {
                let _over = Over(over);
                let (temp, name) = (
                    root.join(format!("temp{file}")),
                    root.join(format!("f{}", file + 1)),
                );
                for n in (1..).take_while(|_| going()) {
                    begun[file].store(n, Ordering::SeqCst);
                    put(&temp, &version(n)).sync_all().unwrap();
                    fs::rename(&temp, &name).unwrap();
                    fsync(root);
                    synced[file].store(n, Ordering::SeqCst);
                }
            });
        }
        scope.spawn(move || {
            let _over = Over(over);
            // Copy-ups that nobody syncs: of a file, a group of links, a directory that moves.
            for n in (0..).take_while(|_| going()) {
                use std::os::unix::fs::PermissionsExt;
                for name in ["f3", "f4", "f5", "f6", "f7", "f8", "d/l2"] {
                    let mode = fs::Permissions::from_mode(0o600 + n % 64);
                    fs::set_permissions(root.join(name), mode).unwrap();
                    turns.fetch_add(1, Ordering::SeqCst);
                }
                let names = [root.join("gone"), root.join("moved")];
                let n = n as usize % 2;
                fs::rename(&names[n], &names[1 - n]).unwrap();
                // Made and removed, never synced.
                drop(put(&root.join("passing"), "passing"));
                fs::remove_file(root.join("passing")).unwrap();
            }
        });
        let _over = Over(over);
        for round in 0..rounds {
            let target = round * round * 3;
            while going()
                && (turns.load(Ordering::SeqCst) < target
                    || synced.iter().any(|n| n.load(Ordering::SeqCst) < round))
            {
                std::thread::yield_now();
            }
            let crash = format!("crash{round}");
            let (from, to, copy);
            {
                let _stopped = Stopped::new(root);
                let now = |of: &[AtomicUsize; 2]| [0, 1].map(|n| of[n].load(Ordering::SeqCst));
                from = now(synced);
                copy = world.disk.copied(&world.sandbox, &crash);
                to = now(begun);
            }
            let image = Disk::from_copy(&world.sandbox, &crash, copy);
            let name = format!("after{round}");
            let mounted = world.mount_of(&name, &image, &[]);
            for file in 0..2 {
                let path = mounted.at(format!("f{}", file + 1));
                assert_version(&path, from[file], to[file]);
            }
            for name in ["f3", "f4", "f5", "f6", "f7", "f8"] {
                assert_version(&mounted.at(name), 0, 0);
            }
            let links = ["l1", "d/l2", "d/e/l3"].map(|name| mounted.at(name));
            for link in &links {
                let meta = fs::metadata(link).unwrap();
                assert_eq!(meta.nlink(), 3, "{}", link.display());
                let whole = fs::read_to_string(link).unwrap();
                assert!(
                    whole.len() == 50_000 && whole.lines().all(|line| "linked".starts_with(line))
                );
            }
            let places = ["gone", "moved"].map(|name| mounted.at(name).join("1").exists());
            assert!(places[0] != places[1], "the moved directory: {places:?}");
            assert_eq!(fs::read_dir(image.at("work/work")).unwrap().count(), 0);
            mounted.unmount();
        }
    });
    mount.unmount();
}
