//! `--engine kernel`: the kernel's EROFS and overlayfs serve the image and the upper, and no
//! process of ours stays.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "exchange/changes.rs"]
mod changes;
mod common;
#[path = "erofs_support/kernel.rs"]
mod erofs;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use changes::Renames;
use common::walk::{assert_same, described};
use common::{
    Mount, Sandbox, TARNFS, assert_ok, can_mount, mounts_below, ok, pack, run, skip, text,
};
use tarnfs::mount::find_mount;

const KERNEL: &[&str] = &["--engine", "kernel"];

struct World {
    sandbox: Sandbox,
    tar: PathBuf,
}

/// An image; `None` where the kernel cannot serve it.
fn world() -> Option<World> {
    if !can_mount() || !erofs::can_mount() {
        return None;
    }
    if let Err(error) = tarnfs::mount::kernel::check() {
        skip(&error.to_string());
        return None;
    }
    let sandbox = Sandbox::new();
    let tree = sandbox.dir("tree");
    fs::set_permissions(&tree, std::os::unix::fs::PermissionsExt::from_mode(0o751)).unwrap();
    let make = "mkdir -p a/sub b gone; printf x >a/x; head -c 300000 /dev/urandom >a/y
        ln a/x b/same; ln -s a/x link; mkfifo fifo; mknod null c 1 3; touch gone/1
        setfattr -n user.k -v v a/y; truncate -s 1M sparse; printf end >>sparse";
    ok("sh", ["-euc", &format!("cd '{}'; {make}", tree.display())]);
    let world = World {
        tar: sandbox.at("image.tar"),
        sandbox,
    };
    world.pack("tree");
    Some(world)
}

impl World {
    fn pack(&self, tree: &str) {
        let options = ["--xattrs", "--xattrs-include=*", "--sort=name"];
        pack(&self.sandbox.at(tree), &self.tar, &options);
    }

    fn mount(&self, options: &[&str]) -> Mount<'_> {
        self.sandbox.mount("mnt", &self.tar, options)
    }

    fn kernel(&self, options: &[&str]) -> Mount<'_> {
        let mount = self.mount(&[KERNEL, options].concat());
        assert_ne!(fs_type(mount.path()), "fuse.tarnfs");
        mount
    }

    /// `tarnfs mount options… image mnt`, which must fail; gives its one line.
    fn refused(&self, options: &[&str]) -> String {
        let dir = self.sandbox.dir("mnt");
        let mut command = Command::new(TARNFS);
        command.env("TARNFS_STORE", self.sandbox.at("store"));
        command.arg("mount").args(options).arg(&self.tar).arg(dir);
        one_line(&run(command))
    }

    fn upper(&self) -> (String, String) {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        (text(self.sandbox.at("up")), text(self.sandbox.at("wk")))
    }

    /// Private uppers that are there.
    fn private(&self) -> usize {
        fs::read_dir(self.sandbox.at("store/uppers")).map_or(0, Iterator::count)
    }
}

fn one_line(output: &Output) -> String {
    assert!(!output.status.success());
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

fn fs_type(at: &Path) -> String {
    find_mount(at).unwrap().unwrap().fs_type
}

/// umount(8).
fn umount(at: &Path) {
    ok("umount", [at]);
}

fn records() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/tarnfs") else {
        return Vec::new();
    };
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("kernel-")).collect()
}

/// State files that speak of a path below `dir`.
fn records_of(dir: &Path) -> usize {
    let of = |name: &String| {
        let text = fs::read_to_string(Path::new("/run/tarnfs").join(name)).unwrap_or_default();
        text.contains(dir.to_str().unwrap())
    };
    records().iter().filter(|name| of(name)).count()
}

#[test]
fn an_upper_goes_from_engine_to_engine() {
    let Some(world) = world() else { return };
    let (upper, work) = world.upper();
    let options = ["--upper", &upper, "--work", &work];
    let mut want = None;
    for round in 0..4_u64 {
        let mount = if round % 2 == 0 {
            world.kernel(&options)
        } else {
            world.mount(&options)
        };
        if let Some(want) = want {
            assert_same(&want, &described(mount.path()));
        }
        let made = changes::make(mount.path(), round, 100, Renames::Directories);
        assert!(made > 20, "only {made} changes were possible");
        want = Some(described(mount.path()));
        mount.unmount();
    }
    assert_eq!(records_of(world.sandbox.path()), 0);
}

#[test]
fn the_first_mount_shows_the_image() {
    let Some(world) = world() else { return };
    let (upper, _) = world.upper();
    for options in [
        &["--upper", &upper][..],
        &["--read-only"],
        &["--tmpfs"],
        &[],
    ] {
        let mount = world.kernel(options);
        assert_same(
            &described(&world.sandbox.at("tree")),
            &described(mount.path()),
        );
        // The root's own attributes too.
        assert_eq!(fs::metadata(mount.path()).unwrap().mode(), 0o40751);
        mount.unmount();
    }
}

#[test]
fn nothing_is_written_to_a_read_only_mount() {
    let Some(world) = world() else { return };
    let mount = world.kernel(&["--read-only"]);
    assert_eq!(fs_type(mount.path()), "erofs");
    let error = fs::write(mount.at("new"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let said = world.refused(&[]);
    assert!(said.contains("already a tarnfs mount"), "{said}");
    mount.unmount();
    let (upper, _) = world.upper();
    let mount = world.kernel(&["--read-only", "--upper", &upper]);
    assert_eq!(fs_type(mount.path()), "overlay");
    fs::write(mount.at("new"), "").unwrap_err();
    let said = world.refused(&["-o", "remount,rw"]);
    assert!(said.contains("read-only for good"), "{said}");
    mount.unmount();
    // For now only: a remount makes it writable.
    let mount = world.kernel(&["-o", "ro,nodev", "--upper", &upper]);
    fs::write(mount.at("new"), "").unwrap_err();
    let words = ["mount", "-o", "remount,rw"].map(OsStr::new);
    let places = [world.tar.as_os_str(), mount.path().as_os_str()];
    world.sandbox.tarnfs_ok([&words[..], &places].concat());
    fs::write(mount.at("new"), "").unwrap();
    let found = find_mount(mount.path()).unwrap().unwrap();
    assert!(found.options.contains("nodev"), "{}", found.options);
    mount.unmount();
    assert_eq!(records_of(world.sandbox.path()), 0);
}

#[test]
fn memory_goes_with_its_mount() {
    let Some(world) = world() else { return };
    let mount = world.kernel(&["--tmpfs=16M"]);
    fs::write(mount.at("a/x"), "changed").unwrap();
    assert_eq!(fs::read(mount.at("a/x")).unwrap(), b"changed");
    fs::write(mount.at("large"), vec![1; 20 << 20]).unwrap_err();
    mount.unmount();
    let mount = world.kernel(&["--tmpfs"]);
    assert_eq!(fs::read(mount.at("a/x")).unwrap(), b"x");
    mount.unmount();
    assert_eq!(world.private(), 0);
}

#[test]
fn a_private_upper_goes_when_its_mount_goes() {
    let Some(world) = world() else { return };
    let mount = world.kernel(&[]);
    fs::write(mount.at("a/x"), "changed").unwrap();
    // Another private upper is made beside it, which sweeps the dead.
    let other = world.sandbox.mount("other", &world.tar, &[]);
    assert_eq!(world.private(), 2);
    other.unmount();
    assert_eq!(fs::read(mount.at("a/x")).unwrap(), b"changed");
    fs::write(mount.at("a/new"), "new").unwrap();
    mount.unmount();
    assert_eq!(world.private(), 0);
    // umount(8) tells nobody: the next mount finds it.
    let mount = world.kernel(&[]);
    fs::write(mount.at("a/x"), "changed").unwrap();
    umount(mount.path());
    assert_eq!(world.private(), 1);
    let mount = world.kernel(&[]);
    assert_eq!(world.private(), 1);
    assert_eq!(fs::read(mount.at("a/x")).unwrap(), b"x");
    mount.unmount();
    assert_eq!((world.private(), records_of(world.sandbox.path())), (0, 0));
    // So does a late `tarnfs umount`.
    let mount = world.kernel(&[]);
    umount(mount.path());
    mount.unmount();
    assert_eq!((world.private(), records_of(world.sandbox.path())), (0, 0));
}

#[test]
fn a_detached_mount_keeps_its_upper() {
    let Some(world) = world() else { return };
    let (upper, work) = world.upper();
    let mount = world.kernel(&["--upper", &upper, "--work", &work]);
    let open = fs::File::create(mount.at("open")).unwrap();
    let args = [
        "umount".as_ref(),
        "--lazy".as_ref(),
        mount.path().as_os_str(),
    ];
    world.sandbox.tarnfs_ok(args);
    assert!(mounts_below(mount.path()).is_empty());
    for work in [work.clone(), work.clone() + "2"] {
        let said = world.refused(&["--upper", &upper, "--work", &work]);
        assert!(said.contains("in use by another mount"), "{said}");
    }
    drop(open);
    world.mount(&["--upper", &upper, "--work", &work]).unmount();
}

#[test]
fn one_mount_at_a_time_uses_an_upper() {
    let Some(world) = world() else { return };
    let (upper, work) = world.upper();
    let other = world.sandbox.dir("other");
    let at = |engine: &str, work: &str| {
        let words = [
            "mount", "--engine", engine, "--upper", &upper, "--work", work,
        ];
        let places = [world.tar.as_os_str(), other.as_os_str()];
        one_line(
            &world
                .sandbox
                .tarnfs([&words.map(OsStr::new)[..], &places].concat()),
        )
    };
    for first in ["kernel", "fuse"] {
        let mount = world.mount(&["--engine", first, "--upper", &upper, "--work", &work]);
        for second in ["kernel", "fuse", "auto"] {
            for work in [work.clone(), work.clone() + "2"] {
                let said = at(second, &work);
                assert!(said.contains("in use by another mount"), "{said}");
            }
        }
        fs::write(mount.at("a/x"), first).unwrap();
        mount.unmount();
    }
}

#[test]
fn what_a_volatile_mount_leaves() {
    let Some(world) = world() else { return };
    let (upper, work) = world.upper();
    let options = ["-o", "volatile", "--upper", &upper, "--work", &work];
    // Ended in good order, it is an upper like any other.
    for _ in 0..2 {
        let mount = world.kernel(&options);
        fs::write(mount.at("a/x"), "changed").unwrap();
        mount.unmount();
    }
    let mount = world.mount(&options);
    assert_eq!(fs::read(mount.at("a/x")).unwrap(), b"changed");
    mount.unmount();
    // By umount(8), nobody has said that its data is on disk.
    let mount = world.kernel(&options);
    umount(mount.path());
    for engine in ["kernel", "fuse", "auto"] {
        let said = world.refused(&["--engine", engine, "--upper", &upper, "--work", &work]);
        assert!(said.contains("may have lost data"), "{said}");
    }
}

#[test]
fn all_mounts_are_unmounted() {
    let Some(world) = world() else { return };
    // Mounts of other tests are in the new namespace, too, and not to be waited for.
    let script = "mount --make-rprivate /
        grep -E ' - (fuse.tarnfs |overlay tarnfs:|erofs )' /proc/self/mountinfo | cut -d' ' -f5 |
            while read -r at; do umount -l \"$at\"; done
        for at in 1 2 3; do mkdir \"$3/$at\"; done
        \"$1\" mount --engine kernel \"$2\" \"$3/1\"
        \"$1\" mount --engine kernel --read-only \"$2\" \"$3/2\"
        \"$1\" mount \"$2\" \"$3/3\"
        grep -c \" $3/. \" /proc/self/mountinfo
        \"$1\" umount --all --verbose
        grep \" $3/. \" /proc/self/mountinfo || echo none";
    let mut command = Command::new("unshare");
    command.env("TARNFS_STORE", world.sandbox.at("store"));
    command.args(["-m", "sh", "-euc", script, "sh", TARNFS]);
    command.arg(&world.tar).arg(world.sandbox.dir("at"));
    let output = run(command);
    assert_ok(&output, script);
    let said = text(&output.stdout);
    assert!(said.starts_with('3') && said.ends_with("none\n"), "{said}");
    assert_eq!(said.matches(": unmounted\n").count(), 3, "{said}");
    assert_eq!((world.private(), records_of(world.sandbox.path())), (0, 0));
}

#[test]
fn mount_8_can_choose_the_engine() {
    let Some(world) = world() else { return };
    let (upper, _) = world.upper();
    let dir = world.sandbox.dir("mnt");
    let options = format!("rw,nosuid,engine=kernel,fsname=image,upperdir={upper}");
    let args = [world.tar.as_os_str(), dir.as_os_str(), "-o".as_ref()];
    world
        .sandbox
        .tarnfs_ok(args.into_iter().chain([options.as_ref()]));
    let found = find_mount(&dir).unwrap().unwrap();
    assert_eq!(found.source, "tarnfs:image");
    assert!(found.options.contains("nosuid"), "{}", found.options);
    world
        .sandbox
        .tarnfs_ok(["umount".as_ref(), dir.as_os_str()]);
}

#[test]
fn the_engine_that_is_chosen_and_why() {
    let Some(world) = world() else { return };
    let dir = world.sandbox.dir("mnt");
    let marked = world.sandbox.dir("marked");
    ok(
        "setfattr",
        [
            "-n".as_ref(),
            "user.overlay.impure".as_ref(),
            "-v".as_ref(),
            "y".as_ref(),
            marked.as_os_str(),
        ],
    );
    let marked = marked.to_str().unwrap();
    let cases = [
        (&["--read-only"][..], "erofs", "mounted by the kernel"),
        (&["--tmpfs"], "overlay", "mounted by the kernel"),
        (
            &["-o", "max_read=65536"],
            "fuse.tarnfs",
            "max_read= is for a server",
        ),
        (&["--upper", marked], "fuse.tarnfs", "written without root"),
    ];
    for (options, wanted, why) in cases {
        let words = [&["--log=info", "mount", "--engine=auto"][..], options].concat();
        let words = words.iter().map(OsStr::new);
        let output = world
            .sandbox
            .tarnfs(words.chain([world.tar.as_os_str(), dir.as_os_str()]));
        assert_ok(&output, why);
        let said = text(&output.stderr);
        assert!(said.contains(why), "{said}");
        assert_eq!(fs_type(&dir), wanted);
        world
            .sandbox
            .tarnfs_ok(["umount".as_ref(), dir.as_os_str()]);
    }
    let said = world.refused(&["--engine", "kernel", "--upper", marked]);
    assert!(
        said.contains("kernel engine: the upper was written without root"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let Some(world) = world() else { return };
    let said = world.refused(&["--engine", "kernel", "--foreground"]);
    assert!(
        said.contains("kernel engine: --foreground is for a server"),
        "{said}"
    );
    let said = world.refused(&["-o", "engine=steam"]);
    assert!(said.contains("there are fuse, kernel and auto"), "{said}");
    // An ordinary user, and root of a user namespace.
    let home = world.sandbox.dir("home");
    std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
    for around in [&[][..], &["unshare", "-rm"]] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]);
        command.args(around).arg(TARNFS).arg("--store").arg(&home);
        command.args(["mount", "--engine", "kernel", "--read-only"]);
        command.arg(&world.tar).arg(&home);
        let said = one_line(&run(command));
        assert!(said.contains("kernel engine: needs root"), "{said}");
    }
    // A tar that is not whole, or no more the one that was indexed.
    let file = fs::OpenOptions::new().write(true).open(&world.tar).unwrap();
    file.set_len(100_000).unwrap();
    let said = world.refused(KERNEL);
    assert!(said.contains("a/y: truncated"), "{said}");
    fs::remove_file(&world.tar).unwrap();
    let said = world.refused(KERNEL);
    assert!(said.contains("No such file"), "{said}");
    assert_eq!((world.private(), records_of(world.sandbox.path())), (0, 0));
    assert!(mounts_below(world.sandbox.path()).is_empty());
}

#[test]
fn an_index_on_overlayfs_takes_loop_devices() {
    let Some(world) = world() else { return };
    let [lower, upper, work, at] = ["l", "u", "w", "stacked"].map(|name| world.sandbox.dir(name));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    ok(
        "mount",
        [
            "-t".as_ref(),
            "overlay".as_ref(),
            "none".as_ref(),
            "-o".as_ref(),
            options.as_ref(),
            at.as_os_str(),
        ],
    );
    let store = at.join("store");
    let options = [
        "--store",
        store.to_str().unwrap(),
        "--read-only",
        "--engine",
    ];
    // EROFS mounts no file of a stacked filesystem.
    let mount_by = |engine: &str, dir: &Path| {
        let mut command = Command::new(TARNFS);
        command.arg("mount").args(options).arg(engine);
        command.arg(&world.tar).arg(dir);
        command.env("TARNFS_BACKING", "erofs");
        run(command)
    };
    let dir = world.sandbox.dir("mnt");
    let said = one_line(&mount_by("kernel", &dir));
    assert!(said.contains("a filesystem that is not stacked"), "{said}");
    assert_ok(&mount_by("auto", &dir), "mount --engine auto");
    assert_eq!(fs_type(&dir), "fuse.tarnfs");
    let words = [OsStr::new("umount"), dir.as_os_str()];
    world.sandbox.tarnfs_ok(words);
    if !Path::new("/dev/loop-control").exists() {
        return skip("there are no loop devices");
    }
    let mount = world.kernel(&options[..3]);
    let source = find_mount(mount.path()).unwrap().unwrap().source;
    assert!(source.to_str().unwrap().starts_with("/dev/loop"));
    assert_same(
        &described(&world.sandbox.at("tree")),
        &described(mount.path()),
    );
    mount.unmount();
    umount(&at);
}

/// A root filesystem with a shell.
fn root_image() -> Option<PathBuf> {
    Some(common::small_image()?.join("small.pax.tar"))
}

#[test]
fn an_actor_runs_on_the_kernel_engine() {
    let Some(world) = world() else { return };
    let Some(tar) = root_image() else { return };
    let (upper, work) = world.upper();
    let run = |options: &[&str], script: &str| {
        let words = [&["run"], options].concat();
        let words = words.iter().map(OsStr::new).chain([tar.as_os_str()]);
        let command = ["--", "/bin/sh", "-c", script].map(OsStr::new);
        world.sandbox.tarnfs(words.chain(command))
    };
    // What serves / is in its mountinfo.
    let script = "while read -r _ _ _ _ at _ _ rest; do
            test \"$at\" = / && echo \"$rest\"; done </proc/self/mountinfo; echo new >/new; exit 7";
    let kept = ["--upper", &upper, "--work", &work];
    for (engine, serves) in [("kernel", "overlay tarnfs:"), ("auto", "overlay tarnfs:")] {
        let output = run(&[&["--engine", engine][..], &kept].concat(), script);
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        assert!(said.contains(serves), "{said}");
        assert_eq!(fs::read(Path::new(&upper).join("new")).unwrap(), b"new\n");
    }
    // The other engine finds it.
    let output = run(&kept, "cat /new");
    assert_ok(&output, "run");
    assert_eq!(text(&output.stdout), "new\n");
    let private = run(KERNEL, script);
    assert_eq!(private.status.code(), Some(7), "{}", text(&private.stderr));
    let output = run(&["--engine", "kernel", "--read-only"], "echo >/new");
    assert!(!output.status.success());
    assert!(
        text(&output.stderr).contains("Read-only"),
        "{}",
        text(&output.stderr)
    );
    // An upper that a mount has, and one that the kernel engine cannot have.
    let mount = world.sandbox.mount("mnt", &tar, &[KERNEL, &kept].concat());
    for work in [work.clone(), work.clone() + "2"] {
        let said = one_line(&run(&["--upper", &upper, "--work", &work], ""));
        assert!(said.contains("in use by another mount"), "{said}");
    }
    mount.unmount();
    let set = ["-n", "user.overlay.impure", "-v", "y"].map(OsStr::new);
    let marked = world.sandbox.dir("marked");
    ok("setfattr", set.into_iter().chain([marked.as_os_str()]));
    let marked = ["--upper", marked.to_str().unwrap()];
    assert_ok(
        &run(&[&["--engine", "auto"][..], &marked].concat(), "true"),
        "auto",
    );
    let said = one_line(&run(&[KERNEL, &marked].concat(), "true"));
    assert!(
        said.contains("kernel engine: the upper was written"),
        "{said}"
    );
    let runs = fs::read_dir(world.sandbox.at("store/runs")).unwrap();
    let left = runs.filter(|e| {
        !e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with('.')
    });
    assert_eq!(left.count(), 0);
    assert_eq!(records_of(world.sandbox.path()), 0);
}

#[test]
fn a_bundle_on_the_kernel_engine_is_made_and_removed() {
    let Some(world) = world() else { return };
    let Some(tar) = root_image() else { return };
    let dir = world.sandbox.at("b");
    let make = ["bundle", "--engine", "kernel"].map(OsStr::new);
    let places = [tar.as_os_str(), dir.as_os_str()];
    world.sandbox.tarnfs_ok([&make[..], &places].concat());
    assert_eq!(fs_type(&dir.join("rootfs")), "overlay");
    fs::write(dir.join("rootfs/new"), "new").unwrap();
    assert_eq!(fs::read(dir.join("upper/new")).unwrap(), b"new");
    // A container that has the mount in a namespace of its own keeps it.
    let mut container = Command::new("unshare");
    container.args(["-m", "sh", "-c", "echo; exec sleep 300"]);
    let mut container = container
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0];
    std::io::Read::read_exact(container.stdout.as_mut().unwrap(), &mut line).unwrap();
    let remove = ["bundle".as_ref(), "--remove".as_ref(), dir.as_os_str()];
    for _ in 0..2 {
        let said = one_line(&world.sandbox.tarnfs(remove));
        assert!(said.contains("still in use"), "{said}");
        assert!(dir.join("upper/new").exists());
    }
    container.kill().unwrap();
    container.wait().unwrap();
    world.sandbox.tarnfs_ok(remove);
    assert!(!dir.exists());
    assert_eq!(records_of(world.sandbox.path()), 0);
}

#[test]
fn the_doctor_knows_the_engine() {
    let Some(world) = world() else { return };
    let before = fs::read_dir(world.sandbox.path()).unwrap().count();
    let said = world.sandbox.tarnfs_ok(["doctor"]);
    let mut lines = said.lines();
    let found = lines.find(|line| line.contains("kernel engine")).unwrap();
    assert!(
        found.starts_with("ok ") && found.contains("probed"),
        "{found}"
    );
    assert!(said.contains("probed: EROFS from files\n"), "{said}");
    let mut command = Command::new(TARNFS);
    command.arg("--store").arg(world.sandbox.at("store"));
    command.arg("doctor").env("TARNFS_BACKING", "none");
    let said = text(&run(command).stdout);
    assert!(said.contains("probed: none is wanted"), "{said}");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]);
    command.arg(TARNFS).args(["--store", "/tmp", "doctor"]);
    let said = text(&run(command).stdout);
    let mut lines = said.lines();
    let found = lines.find(|line| line.contains("kernel engine: ")).unwrap();
    assert!(
        found.starts_with("limited ") && found.contains("needs root"),
        "{found}"
    );
    // Tried, and nothing left.
    assert_eq!(fs::read_dir(world.sandbox.path()).unwrap().count(), before);
    assert!(mounts_below(world.sandbox.path()).is_empty());
}
