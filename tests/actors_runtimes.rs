//! Actors below the programs that run them: gVisor with its own checkpoints, runc, crun, podman.
//! What ran goes on in another actor, at another path, after everything of the first is gone.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::shell::Lines;
use common::{Sandbox, assert_ok, can_mount, has, mounts_below, ok, pack, run, text};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

/// Counts in memory, on standard output and in a file that stays open.
const COUNTER: &str = "rm /etc/doomed; exec 3>>/count; n=0; \
    while :; do n=$((n+1)); echo $n >&3; echo $n; sleep 0.05; done";

/// Says how often it was run on these files, then waits.
const VISITS: &str = "echo x >>/visits; cat /visits; echo ready; while :; do sleep 0.05; done";

/// What podman makes in a root that has none of it.
const PODMANS: [&str; 8] = [
    "/dev",
    "/proc",
    "/sys",
    "/run/.containerenv",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/mtab",
    "/etc/resolv.conf",
];

/// Where cgroups of version 2 are mounted beside those of version 1, which crun 1.8 refuses.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Starts a program that finds those of version 1 alone. All else that is mounted and unmounted
/// comes to it.
const WITHOUT_UNIFIED: [&str; 6] = [
    "unshare",
    "--mount",
    "--propagation=slave",
    "sh",
    "-euc",
    "umount /sys/fs/cgroup/unified; exec \"$0\" \"$@\"",
];

/// A store with an image `img` that has a shell, and containers on it that end with the test.
struct World {
    sandbox: Sandbox,
    /// How to end each container that may run.
    ends: Vec<Vec<String>>,
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let tree = sandbox.dir("tree");
        common::shell::put(&tree, &["/bin/cat", "/bin/rm", "/bin/sleep"]);
        for dir in ["etc", "root", "tmp"] {
            fs::create_dir(tree.join(dir)).unwrap();
        }
        fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::write(tree.join("etc/old"), "of the image\n").unwrap();
        fs::write(tree.join("etc/doomed"), "").unwrap();
        pack(&tree, &sandbox.at("image.tar"), &[]);
        let tar = sandbox.at("image.tar");
        sandbox.tarnfs_ok(["import", "--name", "img", tar.to_str().unwrap()]);
        Self {
            sandbox,
            ends: Vec::new(),
        }
    }

    fn at(&self, name: &str) -> String {
        self.sandbox.at(name).to_str().unwrap().to_owned()
    }

    fn actor(&self, args: &[&str]) -> String {
        let said = self.sandbox.tarnfs_ok([&["actor"], args].concat());
        said.trim_end().to_owned()
    }

    /// An actor in a bundle, mounted.
    fn bundle(&self, how: &str, id: &str, image: &str, dir: &str, script: &str) -> PathBuf {
        let dir = self.at(dir);
        let args = [
            how, "--start", "--bundle", &dir, id, image, "--", "/bin/sh", "-c", script,
        ];
        PathBuf::from(self.actor(&args))
    }

    fn state(&self, id: &str) -> String {
        let told: Value = serde_json::from_str(&self.actor(&["inspect", id])).unwrap();
        told["state"].as_str().unwrap().to_owned()
    }

    /// `stop` must say in one line who uses it: `program`.
    fn in_use(&self, id: &str, program: &str) {
        let output = self.sandbox.tarnfs(["actor", "stop", "--timeout", "0", id]);
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{said}");
        let (_, who) = said.split_once("by the container of process ").unwrap();
        assert!(who.contains(program), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        assert_eq!(self.state(id), "detached");
    }

    /// Names in what an actor has written.
    fn written(&self, id: &str, options: &[&str]) -> Vec<String> {
        let tar = self.at("diff.tar");
        self.actor(&[&["diff", "-o", &tar], options, &[id]].concat());
        let list = ok("tar", ["-tf", &tar]);
        list.lines().map(str::to_owned).collect()
    }

    fn assert_none(&self) {
        let left = fs::read_dir(self.sandbox.at("store/actors")).unwrap();
        assert_eq!(left.count(), 0);
        let mounts = mounts_below(self.sandbox.path());
        assert!(mounts.is_empty(), "{mounts:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for end in &self.ends {
            let mut command = Command::new(&end[0]);
            command.args(&end[1..]);
            // It has ended already, unless the test has failed.
            drop(run(command));
        }
    }
}

/// A runtime with a state directory of the test's own.
#[derive(Clone)]
struct Runtime {
    /// The program and its options, with what starts it.
    words: Vec<String>,
}

impl Runtime {
    fn new(world: &World, program: &'static str, options: &[&str]) -> Self {
        let root = format!("--root={}", world.at(program));
        let before = match program {
            "crun" if Path::new(UNIFIED).exists() => &WITHOUT_UNIFIED[..],
            _ => &[],
        };
        let words = [before, &[program, &root], options].concat();
        Self {
            words: words.into_iter().map(str::to_owned).collect(),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).args(args);
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        run(self.command(args))
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert_ok(&output, &format!("{:?} {args:?}", self.words));
        text(&output.stdout)
    }

    /// Starts what leaves a container `id` behind, and gives that one's output.
    fn detached(&self, world: &mut World, args: &[&str], id: &str) -> Lines {
        let (mut child, lines) = self.spawn(world, args, id);
        let status = child.wait().unwrap();
        if !status.success() {
            let mut said = String::new();
            child.stderr.unwrap().read_to_string(&mut said).unwrap();
            panic!("{:?} {args:?}: {said}", self.words);
        }
        lines
    }

    fn spawn(&self, world: &mut World, args: &[&str], id: &str) -> (Child, Lines) {
        let end = ["delete", "--force", id].map(str::to_owned);
        world.ends.push([&self.words[..], &end].concat());
        let mut child = self
            .command(&[args, &[id]].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        (child, lines)
    }

    /// The first process of a container.
    fn init(&self, id: &str) -> Pid {
        let state: Value = serde_json::from_str(&self.ok(&["state", id])).unwrap();
        Pid::from_raw(i32::try_from(state["pid"].as_i64().unwrap()).unwrap()).unwrap()
    }

    /// Kills a container, and waits until it is gone.
    fn kill(&self, id: &str) {
        kill(self.init(id));
        self.ok(&["delete", "--force", id]);
    }
}

fn kill(pid: Pid) {
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let mut polled = [rustix::event::PollFd::new(
        &process,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut polled, None).unwrap();
}

fn number(line: &str) -> u64 {
    line.parse().unwrap()
}

/// As newer runsc have it by default, writes stay in the sandbox and go with its own checkpoint; else
/// they are the actor's. The program must not see a difference.
#[test]
fn gvisor_goes_on_in_another_actor() {
    if !can_mount() || !has("runsc") {
        return;
    }
    for overlay in ["--overlay2=none", "--overlay2=root:memory"] {
        let inside = overlay != "--overlay2=none";
        let mut world = World::new();
        let world = &mut world;
        let options = [
            "--platform=ptrace",
            "--network=none",
            "--ignore-cgroups",
            overlay,
        ];
        let runsc = Runtime::new(world, "runsc", &options);
        let root = world.bundle("create", "a1", "img", "b1", COUNTER);
        let bundle = world.at("b1");
        let lines = runsc.detached(world, &["run", "-detach", "-bundle", &bundle], "c1");
        assert_eq!(lines.until("3"), ["1", "2"]);
        assert_eq!(root.join("count").exists(), !inside);

        let memory = world.at("memory");
        runsc.ok(&["checkpoint", "-image-path", &memory, "c1"]);
        runsc.ok(&["delete", "-force", "c1"]);
        let last = lines.rest().last().map_or(3, |line| number(line));
        let image = world.actor(&["checkpoint", "a1"]);
        world.actor(&["destroy", "a1"]);
        world.assert_none();
        assert!(!Path::new(&bundle).exists());

        fs::create_dir(world.sandbox.at("elsewhere")).unwrap();
        // The same program, as newer runsc want it.
        world.bundle("restore", "a2", &image, "elsewhere/b2", COUNTER);
        let bundle = world.at("elsewhere/b2");
        let restore = [
            "restore",
            "-detach",
            "-image-path",
            &memory,
            "-bundle",
            &bundle,
        ];
        let lines = runsc.detached(world, &restore, "c2");
        assert_eq!(number(&lines.next()), last + 1, "{overlay}");
        // A second number, so that the first is in the file.
        let now = number(&lines.next());
        let seen = runsc.ok(&["exec", "c2", "/bin/cat", "/count"]);
        let seen: Vec<_> = seen.lines().map(number).collect();
        assert!(seen.len() as u64 >= now, "{overlay}: {seen:?}");
        assert!(seen.iter().copied().eq(1..=seen.len() as u64), "{seen:?}");
        let gone = runsc.call(&["exec", "c2", "/bin/cat", "/etc/doomed"]);
        assert!(!gone.status.success());
        // What the second actor has written are the numbers since, or nothing.
        let written = world.written("a2", &[]);
        assert_eq!(
            written.contains(&"count".to_owned()),
            !inside,
            "{written:?}"
        );

        world.in_use("a2", "exe");
        runsc.ok(&["kill", "c2", "KILL"]);
        lines.rest();
        runsc.ok(&["delete", "-force", "c2"]);
        world.actor(&["destroy", "a2"]);
        world.assert_none();
    }
}

/// What `pkg/sentry/fsimpl/tmpfs/tar.go:readFromTar()` of gVisor asks of a tar, since the runsc
/// here may not know `dev.gvisor.tar.rootfs.upper` yet.
#[test]
fn gvisor_can_read_what_was_written() {
    if !can_mount() || !has("runsc") {
        return;
    }
    let world = World::new();
    let root = PathBuf::from(world.actor(&["create", "--start", "a", "img"]));
    fs::create_dir_all(root.join("new/deep")).unwrap();
    fs::write(root.join("new/deep/file"), "written").unwrap();
    fs::hard_link(root.join("new/deep/file"), root.join("new/link")).unwrap();
    std::os::unix::fs::symlink("deep/file", root.join("new/symlink")).unwrap();
    fs::remove_file(root.join("etc/doomed")).unwrap();
    fs::remove_dir_all(root.join("tmp")).unwrap();
    fs::create_dir(root.join("root/x")).unwrap();
    fs::remove_dir_all(root.join("root")).unwrap();
    fs::create_dir(root.join("root")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    drop(sparse);
    let tar = world.at("upper.tar");
    world.actor(&["diff", "--format", "gvisor", "-o", &tar, "a"]);

    let mut archive = tar::Archive::new(fs::File::open(&tar).unwrap());
    let mut names: HashSet<String> = HashSet::new();
    let mut links = Vec::new();
    let mut whiteouts = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let marks = marks_of(&mut entry);
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let header = entry.header();
        match header.entry_type().as_byte() {
            b'5' => assert!(name.ends_with('/'), "{name}"),
            b'0' | b'2' => {}
            b'1' => {
                let to = String::from_utf8(entry.link_name_bytes().unwrap().into_owned());
                links.push(to.unwrap());
            }
            b'3' => {
                let device = (header.device_major(), header.device_minor());
                assert_eq!((device.0.unwrap(), device.1.unwrap()), (Some(0), Some(0)));
                whiteouts.push(name.clone());
            }
            other => panic!("{name}: of type {other}"),
        }
        assert_eq!(
            marks.contains(&OPAQUE.to_owned()),
            name == "./root/",
            "{name}"
        );
        assert!(names.insert(name.clone()), "{name}: twice");
    }
    for name in names.iter().filter(|name| *name != "./") {
        let end = name.trim_end_matches('/').rfind('/').unwrap();
        assert!(names.contains(&name[..=end]), "no parent of {name}");
    }
    assert!(links.iter().all(|to| names.contains(to)), "{links:?}");
    assert_eq!(links.len(), 1);
    whiteouts.sort();
    assert_eq!(whiteouts, ["./etc/doomed", "./tmp"]);
    world.actor(&["destroy", "a"]);
}

const OPAQUE: &str = "SCHILY.xattr.trusted.overlay.opaque=y";

fn marks_of(entry: &mut tar::Entry<'_, fs::File>) -> Vec<String> {
    let Some(records) = entry.pax_extensions().unwrap() else {
        return Vec::new();
    };
    records
        .map(|record| {
            let record = record.unwrap();
            format!("{}={}", record.key().unwrap(), text(record.value_bytes()))
        })
        .collect()
}

/// Twice in a container, across a stop; busy; cut off; killed; elsewhere.
fn lives_below(program: &'static str) {
    if !can_mount() || !has(program) {
        return;
    }
    let mut world = World::new();
    let world = &mut world;
    let runtime = Runtime::new(world, program, &[]);
    let bundle = world.at("b");
    let root = world.bundle("create", "a", "img", "b", VISITS);
    let visits = |world: &mut World, id: &str| {
        let run = ["run", "--detach", "--bundle", &bundle];
        let lines = runtime.detached(world, &run, id);
        lines.until("ready").len()
    };
    assert_eq!(visits(world, "c1"), 1);
    world.in_use("a", "(sh)");
    runtime.kill("c1");
    world.actor(&["stop", "a"]);
    assert_eq!(world.state("a"), "stopped");
    world.actor(&["start", "a"]);
    assert_eq!(visits(world, "c2"), 2);
    world.actor(&["stop", "--force", "a"]);
    assert_eq!(world.state("a"), "stopped");
    runtime.kill("c2");

    // The runtime dies by itself, then its container.
    world.actor(&["start", "a"]);
    let (mut child, lines) = runtime.spawn(world, &["run", "--bundle", &bundle], "c3");
    assert_eq!(lines.until("ready").len(), 3);
    child.kill().unwrap();
    child.wait().unwrap();
    world.in_use("a", "(sh)");
    kill(runtime.init("c3"));
    world.actor(&["stop", "a"]);
    world.actor(&["start", "a"]);
    runtime.ok(&["delete", "--force", "c3"]);
    assert_eq!(visits(world, "c4"), 4);

    // A checkpoint while it runs.
    let image = world.actor(&["checkpoint", "a"]);
    world.bundle(
        "restore",
        "b",
        &image,
        "elsewhere",
        "cat /visits; cat /etc/old",
    );
    let elsewhere = world.at("elsewhere");
    let said = runtime.ok(&["run", "--bundle", &elsewhere, "c5"]);
    assert_eq!(said, "x\nx\nx\nx\nof the image\n");
    runtime.kill("c4");
    assert_eq!(fs::read_to_string(root.join("visits")).unwrap().len(), 8);
    world.actor(&["destroy", "a", "b"]);
    world.assert_none();
}

#[test]
fn an_actor_lives_below_runc() {
    lives_below("runc");
}

/// Stores a number of its own to each page of a map of a file for each line, and says so.
const MAPPER: &str = "import mmap, os, sys
fd = os.open('map', os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 32 << 20)
m = mmap.mmap(fd, 32 << 20)
print('ready', flush=True)
for line in sys.stdin:
    for at in range(0, 32 << 20, 4096):
        m[at:at + 1] = line[0].encode()
    print('stored', flush=True)
";

/// What programs have stored in maps is in a checkpoint, also when the mount is seen in a container
/// alone.
#[test]
fn maps_are_in_a_checkpoint() {
    if !can_mount() || !has("runc") || !has("python3") {
        return;
    }
    let mut world = World::new();
    let world = &mut world;
    let runc = Runtime::new(world, "runc", &[]);
    let root = world.bundle("create", "a", "img", "b", VISITS);
    let mut mapper = Command::new("python3")
        .args(["-c", MAPPER])
        .current_dir(&root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = Lines::of(mapper.stdout.take().unwrap());
    let mut to = mapper.stdin.take().unwrap();
    assert_eq!(said.next(), "ready");
    let bundle = world.at("b");
    let container = runc.detached(world, &["run", "--detach", "--bundle", &bundle], "c1");
    container.until("ready");
    for (id, stored) in [("mounted", b'1'), ("detached", b'2')] {
        if id == "detached" {
            world.actor(&["stop", "--lazy", "a"]);
        }
        assert_eq!(world.state("a"), id);
        std::io::Write::write_all(&mut to, &[stored, b'\n']).unwrap();
        assert_eq!(said.next(), "stored");
        let image = world.actor(&["checkpoint", "a"]);
        let restored = PathBuf::from(world.actor(&["restore", "--start", id, &image]));
        let map = fs::read(restored.join("map")).unwrap();
        let missing = map.chunks(4096).filter(|page| page[0] != stored).count();
        assert_eq!(missing, 0, "of {} pages: {id}", map.len() / 4096);
    }
    drop(to);
    mapper.wait().unwrap();
    runc.kill("c1");
    world.actor(&["destroy", "a", "mounted", "detached"]);
    world.assert_none();
}

#[test]
fn an_actor_lives_below_crun() {
    lives_below("crun");
}

#[test]
fn podman_has_an_actor_as_its_root() {
    if !can_mount() || !has("podman") || !has("runc") {
        return;
    }
    let mut world = World::new();
    let world = &mut world;
    // Limits that may be set by who may not raise them.
    let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
    let options: Vec<String> = [
        format!("--root={}", world.at("podman")),
        format!("--runroot={}", world.at("podman-run")),
        format!("--tmpdir={}", world.at("podman-tmp")),
        "--storage-driver=vfs".to_owned(),
        "--cgroup-manager=cgroupfs".to_owned(),
        "--events-backend=none".to_owned(),
        "--runtime=runc".to_owned(),
    ]
    .to_vec();
    let podman = |args: &[&str]| {
        let args = options
            .iter()
            .map(String::as_str)
            .chain(args.iter().copied());
        ok("podman", args.map(OsStr::new).collect::<Vec<_>>())
    };
    let run = |how: &[&str], root: &str, script: &str| {
        let args = [
            &["run", "--network=none"],
            &limits[..],
            how,
            &["--rootfs", root, "/bin/sh", "-c", script],
        ];
        podman(&args.concat())
    };
    let root = world.actor(&["create", "--start", "a", "img"]);
    let said = run(&["--rm"], &root, "echo new >/new; cat /etc/old");
    assert_eq!(said, "of the image\n");
    // Its own overlay: nothing comes to the actor.
    let over = format!("{root}:O");
    let said = run(&["--rm"], &over, "echo over >/over; cat /new /over");
    assert_eq!(said, "new\nover\n");
    let end = options.iter().map(String::as_str);
    let end = ["podman"].into_iter().chain(end);
    let end = end.chain(["rm", "--force", "--time=0", "c"]);
    world.ends.push(end.map(str::to_owned).collect());
    run(
        &["--detach", "--name=c"],
        &root,
        "while :; do sleep 0.05; done",
    );
    podman(&["exec", "c", "/bin/sh", "-c", "echo x >/by-exec"]);
    let written = world.written("a", &[]);
    for name in ["new", "by-exec"] {
        assert!(written.contains(&name.to_owned()), "{written:?}");
    }
    assert!(!written.contains(&"over".to_owned()), "{written:?}");
    world.in_use("a", "(sh)");
    podman(&["rm", "--force", "--time=0", "c"]);
    world.actor(&["stop", "a"]);
    // What podman made, and nothing else.
    let excluded = PODMANS.map(|name| format!("--exclude={name}"));
    let excluded: Vec<_> = excluded.iter().map(String::as_str).collect();
    let mut written = world.written("a", &excluded);
    written.sort();
    assert_eq!(written, ["./", "by-exec", "etc/", "new", "run/"]);
    world.actor(&["destroy", "a"]);
    world.assert_none();
}
