//! The server of a mount is killed (SIGKILL) while programs use it: at each system call by which
//! an operation changes the upper, and at random moments under load. Programs get an error,
//! `tarnfs umount` clears the mount away, and the next mount shows the tree before or after.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Mount, Sandbox, can_mount, has, ok, pack, run, text};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

const TREE: &str = r#"
mkdir -p d/e d/x t/u b
for i in 1 2 3 4; do yes "file $i" | head -c 70000 >f$i; done
printf linked >l1; ln l1 d/l2; ln l1 d/e/l3
for i in 1 2 3; do echo $i >t/$i; echo $i >t/u/$i; done
echo in >b/in; echo gone >gone
"#;

/// What is done before, and then, with the server dying meanwhile. Only the names in the third
/// column may be in a state of their own: a beginning of what they become.
const OPERATIONS: &[(&str, &str, &str)] = &[
    (":", "cp b/in f1", "f1"),
    (":", "mv d b/d", ""),
    (":", "rm -r t", ""),
    (":", "ln f1 b/new", ""),
    ("rm -r t", "mkdir t", ""),
    (":", "chmod 600 f2", ""),
    (":", "setfattr -n user.k -v v f3", ""),
    (":", "echo more >>f4", ""),
    (":", "chmod 700 d/l2", ""),
    ("echo 1 >new", "mv -T new f1", ""),
    ("rm gone", "echo new >gone", "gone"),
    (":", "mv -T f1 l1", ""),
    ("rm -r t/u", "mv d t/u", ""),
    ("mkdir n; echo 1 >n/1; rm b/in", "mv -T n b", ""),
];

/// By what the upper is changed, but for openat2(2), which mostly only looks. strace counts each by
/// itself.
const CHANGES: &[&str] = &[
    "mkdirat",
    "mknodat",
    "symlinkat",
    "linkat",
    "unlinkat",
    "renameat2",
    "chmod",
    "fchmodat",
    "fchownat",
    "utimensat",
    "setxattr",
    "removexattr",
    "ftruncate",
    "pwrite64",
    "fsync",
];

type Tree = BTreeMap<PathBuf, (u32, u64, Vec<u8>, String)>;

/// Types, modes, link counts, content and attributes; of directories no link counts.
fn show(root: &Path) -> Tree {
    let mut seen = Tree::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let (mut links, mut content) = (0, Vec::new());
            if meta.is_dir() {
                todo.push(path.clone());
            } else {
                links = meta.nlink();
                content = fs::read(&path).unwrap();
            }
            let xattrs = format!("{:?}", common::walk::xattrs(&path));
            let name = path.strip_prefix(root).unwrap().to_owned();
            seen.insert(name, (meta.mode(), links, content, xattrs));
        }
    }
    seen
}

struct World {
    sandbox: Sandbox,
    tar: PathBuf,
}

impl World {
    fn new() -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let sandbox = Sandbox::new();
        let from = sandbox.dir("from");
        ok("sh", ["-euc", &format!("cd '{}'; {TREE}", from.display())]);
        let tar = sandbox.at("image.tar");
        pack(&from, &tar, &[]);
        Some(Self { sandbox, tar })
    }

    fn mount(&self, upper: &str) -> Mount<'_> {
        let (upper, work) = (
            self.sandbox.dir(upper),
            self.sandbox.at(format!("{upper}.work")),
        );
        self.sandbox
            .mount_over("mount", &self.tar, (&upper, &work), &[])
    }

    /// A mount of a new upper, prepared by a script.
    fn prepared(&self, upper: &str, script: &str) -> Mount<'_> {
        self.mount(upper).unmount_after(|mount| {
            ok(
                "sh",
                ["-euc", &format!("cd '{}'; {script}", mount.display())],
            );
        });
        self.mount(upper)
    }

    /// No rubbish is in a work directory.
    fn assert_clean(&self, upper: &str, what: &str) {
        let work = self.sandbox.at(format!("{upper}.work"));
        assert_eq!(
            fs::read_dir(work.join("work")).unwrap().count(),
            0,
            "{what}"
        );
        if let Ok(pending) = fs::read_dir(work.join("pending-links")) {
            assert_eq!(pending.count(), 0, "{what}");
        }
    }
}

trait UnmountAfter {
    fn unmount_after(self, then: impl FnOnce(&Path));
}

impl UnmountAfter for Mount<'_> {
    fn unmount_after(self, then: impl FnOnce(&Path)) {
        then(self.path());
        self.unmount();
    }
}

/// The process that serves a mount.
fn server(mount: &Path) -> Pid {
    let minor = tarnfs::mount::find_mount(mount).unwrap().unwrap().minor;
    let record = fs::read(format!("/run/tarnfs/{minor}.json")).unwrap();
    let record: tarnfs::mount::Record = serde_json::from_slice(&record).unwrap();
    Pid::from_raw(record.pid.try_into().unwrap()).unwrap()
}

/// strace on the server, attached when this returns.
fn trace(server: Pid, options: &[&str]) -> Child {
    let mut strace = Command::new("strace")
        .args(["-f", "-p", &server.as_raw_nonzero().to_string()])
        .args(options)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(strace.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("attached"), "{line}");
    // Nobody is to wait for room in this pipe.
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    strace
}

/// How often the operation makes each of the changes, by the thread that makes most of them.
fn counted(world: &World, upper: &str, operation: &str) -> Vec<(&'static str, usize)> {
    let mount = world.mount(upper);
    let log = world.sandbox.at("strace.log");
    let set = format!("trace=?{}", CHANGES.join(",?"));
    let mut strace = trace(
        server(mount.path()),
        &["-o", log.to_str().unwrap(), "-e", &set],
    );
    ok(
        "sh",
        [
            "-euc",
            &format!("cd '{}'; {operation}", mount.path().display()),
        ],
    );
    let pid = Pid::from_child(&strace);
    kill_process(pid, Signal::INT).unwrap();
    strace.wait().unwrap();
    mount.unmount();
    let mut counts: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let name = call.trim_start().split('(').next().unwrap();
        if let Some(name) = CHANGES.iter().find(|known| **known == name) {
            *counts.entry((thread.to_owned(), name)).or_default() += 1;
        }
    }
    CHANGES
        .iter()
        .filter_map(|name| {
            let of = counts.iter().filter(|((_, known), _)| known == name);
            of.map(|(_, &count)| (*name, count)).max()
        })
        .collect()
}

/// Waits for the end of a process that is no child.
fn await_end(process: &rustix::fd::OwnedFd) {
    poll(&mut [PollFd::new(process, PollFlags::IN)], None).unwrap();
}

/// Whether each name is as before or as after.
fn judge(now: &Tree, before: &Tree, after: &Tree, own: &str, what: &str) {
    for name in now.keys().chain(before.keys()).chain(after.keys()) {
        let (is, was, will) = (now.get(name), before.get(name), after.get(name));
        let begun = || match (is, will) {
            (Some(is), Some(will)) => will.2.starts_with(&is.2),
            _ => false,
        };
        assert!(
            is == was || is == will || (name == Path::new(own) && begun()),
            "{what}: {}: {is:?}\nbefore: {was:?}\nafter: {will:?}",
            name.display()
        );
    }
}

#[test]
fn at_each_change() {
    if !has("strace") || !has("setfattr") {
        return;
    }
    let Some(world) = World::new() else { return };
    let all = std::env::var_os("TARNFS_TEST_ALL").is_some();
    for (n, (setup, operation, own)) in OPERATIONS.iter().enumerate() {
        let upper = format!("upper{n}");
        let mount = world.prepared(&upper, setup);
        let before = show(mount.path());
        mount.unmount();
        let saved = world.sandbox.at(format!("{upper}.saved"));
        let copy = |from: &Path, to: &Path| {
            let script = format!(
                "rm -rf '{1}'; cp -a '{0}' '{1}'",
                from.display(),
                to.display()
            );
            ok("sh", ["-euc", &script]);
        };
        let (upper_dir, work_dir) = (
            world.sandbox.at(&upper),
            world.sandbox.at(format!("{upper}.work")),
        );
        copy(&upper_dir, &saved);
        let counts = counted(&world, &upper, operation);
        let mount = world.mount(&upper);
        let after = show(mount.path());
        mount.unmount();
        assert_ne!(before, after, "{operation}");
        let deaths = counts
            .iter()
            .flat_map(|(name, count)| (1..=*count).map(move |k| (*name, k)));
        let mut dead = 0;
        for (call, k) in deaths.skip(n % 3).step_by(if all { 1 } else { 3 }) {
            let what = format!("{operation}: killed at {call} {k}");
            copy(&saved, &upper_dir);
            fs::remove_dir_all(&work_dir).unwrap();
            let mount = world.mount(&upper);
            let pid = server(mount.path());
            let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            let inject = format!("inject={call}:signal=SIGKILL:when={k}");
            let mut strace = trace(pid, &["-o", "/dev/null", "-e", &inject]);
            let mut command = Command::new("sh");
            command.args([
                "-euc",
                &format!("cd '{}'; {operation}", mount.path().display()),
            ]);
            let output = run(command);
            if output.status.success() {
                // Another thread than the one counted took part of the calls; or what died had
                // been answered.
                let pid = Pid::from_child(&strace);
                kill_process(pid, Signal::INT).unwrap();
            } else {
                dead += 1;
                await_end(&process);
                let said = text(&output.stderr);
                assert!(
                    said.contains("Transport endpoint is not connected")
                        || said.contains("Software caused connection abort"),
                    "{what}: {said}"
                );
            }
            strace.wait().unwrap();
            // The dead mount is cleared away by the ordinary command.
            mount.unmount();
            let mount = world.mount(&upper);
            judge(&show(mount.path()), &before, &after, own, &what);
            world.assert_clean(&upper, &what);
            mount.unmount();
        }
        assert!(dead > 0, "{operation}: nobody was killed ({counts:?})");
    }
}

/// What a program was told that it has written is there, whenever the server dies.
#[test]
fn under_load() {
    let Some(world) = World::new() else { return };
    let rounds = std::env::var("TARNFS_TEST_KILLS").map_or(8, |n| n.parse().unwrap());
    for round in 0..rounds {
        let upper = format!("load{round}");
        let mount = world.mount(&upper);
        let untouched = fs::read(mount.at("f4")).unwrap();
        let process = pidfd_open(server(mount.path()), PidfdFlags::empty()).unwrap();
        let done: [AtomicUsize; 4] = Default::default();
        let total = || {
            done.iter()
                .map(|n| n.load(Ordering::Relaxed))
                .sum::<usize>()
        };
        let line = |n: usize| format!("{n:07}\n");
        std::thread::scope(|scope| {
            let (done, mount) = (&done, &mount);
            let mut threads = Vec::new();
            // Appends to files of the image, one of them a link of a group.
            for (i, name) in ["f1", "d/l2"].into_iter().enumerate() {
                threads.push(scope.spawn(move || {
                    let mut n = 0;
                    while let Ok(mut file) =
                        fs::OpenOptions::new().append(true).open(mount.at(name))
                        && file.write_all(line(n).as_bytes()).is_ok()
                    {
                        n += 1;
                        done[i].store(n, Ordering::Relaxed);
                    }
                }));
            }
            // Replaces a file of the image, again and again.
            threads.push(scope.spawn(move || {
                let mut n = 0;
                while fs::write(mount.at("temp"), line(n)).is_ok()
                    && fs::rename(mount.at("temp"), mount.at("f2")).is_ok()
                {
                    n += 1;
                    done[2].store(n, Ordering::Relaxed);
                }
            }));
            // A directory of the image goes to and fro.
            threads.push(scope.spawn(move || {
                let mut n = 0;
                let names = [mount.at("t"), mount.at("d/x/t")];
                while fs::rename(&names[n % 2], &names[(n + 1) % 2]).is_ok() {
                    n += 1;
                    done[3].store(n, Ordering::Relaxed);
                }
            }));
            // From the first copy-ups on to well after them.
            let target = round * round * 5 + 1;
            while total() < target && threads.iter().all(|thread| !thread.is_finished()) {
                std::thread::yield_now();
            }
            rustix::process::pidfd_send_signal(&process, Signal::KILL).unwrap();
        });
        await_end(&process);
        mount.unmount();
        let mount = world.mount(&upper);
        world.assert_clean(&upper, "under load");
        let [appended, linked, replaced, moved] = done.map(AtomicUsize::into_inner);
        for (name, start, count) in [("f1", 70_000, appended), ("d/l2", 6, linked)] {
            let is = fs::read(mount.at(name)).unwrap();
            let lines: String = (0..=count).map(line).collect();
            let (old, new) = is.split_at(start);
            assert!(lines.as_bytes().starts_with(new), "{name}");
            assert!(
                new.len() >= count * 8,
                "{name}: {} of {count}",
                new.len() / 8
            );
            assert!(old.starts_with(if name == "f1" { b"file 1\n" } else { b"linked" }));
        }
        for name in ["l1", "d/l2", "d/e/l3"] {
            assert_eq!(fs::metadata(mount.at(name)).unwrap().nlink(), 3, "{name}");
        }
        let is = fs::read_to_string(mount.at("f2")).unwrap();
        let expected = [replaced.checked_sub(1), Some(replaced)];
        assert!(
            expected.iter().flatten().any(|&n| is == line(n))
                || replaced == 0 && is.starts_with("file 2\n"),
            "f2: {is:.20?} after {replaced}"
        );
        let places = ["t/u/1", "d/x/t/u/1"].map(|name| mount.at(name).exists());
        assert!(
            places == [moved % 2 == 0, moved % 2 == 1]
                || places == [moved % 2 == 1, moved % 2 == 0],
            "{places:?} after {moved}"
        );
        assert_eq!(fs::read(mount.at("f4")).unwrap(), untouched);
        mount.unmount();
    }
}

/// `volatile` syncs nothing, and nothing else leaves it out.
#[test]
fn only_volatile_leaves_syncs_out() {
    if !has("strace") {
        return;
    }
    let Some(world) = World::new() else { return };
    for volatile in [false, true] {
        let upper = world.sandbox.dir(format!("volatile-{volatile}"));
        let work = world.sandbox.at(format!("volatile-{volatile}.work"));
        let mut options = vec![
            "--upper",
            upper.to_str().unwrap(),
            "--work",
            work.to_str().unwrap(),
        ];
        options.extend(if volatile {
            &["-o", "volatile"][..]
        } else {
            &[]
        });
        let mount = world.sandbox.mount("mount", &world.tar, &options);
        let log = world.sandbox.at("sync.log");
        let set = "trace=fsync,fdatasync,syncfs,sync_file_range";
        let mut strace = trace(
            server(mount.path()),
            &["-o", log.to_str().unwrap(), "-e", set],
        );
        fs::OpenOptions::new()
            .write(true)
            .open(mount.at("f1"))
            .unwrap()
            .write_all_at(b"x", 0)
            .unwrap();
        fs::rename(mount.at("f1"), mount.at("f2")).unwrap();
        fs::File::open(mount.at("f2")).unwrap().sync_all().unwrap();
        fs::File::open(mount.path()).unwrap().sync_all().unwrap();
        mount.unmount();
        strace.wait().unwrap();
        let log = fs::read_to_string(log).unwrap();
        let count = |call: &str| {
            log.lines()
                .filter(|line| line.contains(&format!("{call}(")))
                .count()
        };
        let counts = ["fsync", "sync_file_range", "syncfs"].map(count);
        let want = if volatile { [0; 3] } else { [3, 1, 1] };
        assert_eq!(counts, want, "volatile: {volatile}\n{log}");
    }
}
