//! Uppers change hands: one that tarnfs wrote is read by the kernel's overlayfs over the kernel's
//! own mount of the index, and by fuse-overlayfs; one that overlayfs wrote is read by tarnfs. All
//! show one tree, after a script of changes and after random ones.
//!
//! Left out of the comparison: link counts. overlayfs says 1 for a merged directory, and counts
//! the image's names of a file whose other names are gone.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "exchange/changes.rs"]
mod changes;
mod common;
#[path = "erofs_support/kernel.rs"]
mod kernel;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use changes::Renames;
use common::python::python;
use common::tarball::{Tarball, record};
use common::walk::described;
use common::{Sandbox, can_mount, ok, pack, walk};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

/// The image.
const MAKE: &str = r#"
mkdir -p a/sub/deep b/c empty gone/inner big
printf x >a/x; head -c 300000 /dev/urandom >a/y; printf deep >a/sub/deep/file
printf linked >one; ln one a/two; ln one b/three
printf other >p; ln p b/q; ln p a/r
printf s >suid; chmod 4755 suid; chown 1000:2000 b/c
ln -s a/x link; mkfifo fifo; mknod null c 1 3
setfattr -n user.k -v v a/x; setfattr -n trusted.t -v w a/sub
setfacl -m u:77:rwx b; setfacl -d -m u:77:rwx b
truncate -s 1M sparse; printf end >>sparse
touch gone/1 gone/2 gone/inner/3
for i in $(seq 200); do echo $i >big/$i; done
"#;

/// What an actor does to it.
const CHANGE: &str = r#"
echo more >>a/y; printf X | dd of=one conv=notrunc status=none
rm b/q; chmod 600 suid; chown 5:6 a/sub/deep/file
rm -r gone; mkdir gone; echo new >gone/new
mv a/sub b/moved; mv b/moved/deep b/moved/deeper
mv b/c c; mkdir b/c; echo in >b/c/in
mkdir made; echo 1 >made/1; mv made empty/made
ln a/x hard; ln -sf elsewhere link; rm fifo; mkfifo fifo2; mknod b/null2 c 1 3
setfattr -n user.k -v changed a/x; setfattr -x trusted.t b/moved; setfattr -n user.new -v n b/moved
echo acl >b/inherits; mkdir b/inherits.d
truncate -s 10 sparse; rm big/1 big/2; echo 3 >big/3; touch big/new
rm null; echo file >null
rmdir big/nothing 2>/dev/null || :
"#;

struct Attached(PathBuf);

impl Drop for Attached {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("umount {}: {error}", self.0.display());
        }
    }
}

fn attach(fd: std::os::fd::BorrowedFd<'_>, dir: PathBuf) -> Attached {
    std::fs::create_dir_all(&dir).unwrap();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(fd, "", rustix::fs::CWD, &dir, flags).unwrap();
    Attached(dir)
}

/// The kernel's EROFS mount of the index at `at/lower`.
fn erofs(at: &Path, index: &Path, tar: &Path) -> Attached {
    let side = index.with_extension("erofs.side");
    let mut blobs = vec![tar.to_owned()];
    blobs.extend(side.exists().then_some(side));
    let made = kernel::mount(index, &blobs).unwrap();
    attach(made.as_fd(), at.join("lower"))
}

/// What overlayfs does with a renamed directory, and where it has its marks.
const REDIRECTS: &[(&str, &str)] = &[("redirect_dir", "on"), ("metacopy", "off")];
/// Without root's marks it follows no redirects (fs/overlayfs/params.c: "conflicting options").
const USER: &[(&str, &str)] = &[("userxattr", "")];
const METACOPY: &[(&str, &str)] = &[("redirect_dir", "on"), ("metacopy", "on")];

/// [`erofs`] under overlayfs at `at/overlay`.
fn overlayfs(at: &Path, index: &Path, tar: &Path, upper: &Path, work: &Path) -> [Attached; 2] {
    overlayfs_with(REDIRECTS, at, index, tar, upper, work)
}

fn overlayfs_with(
    options: &[(&str, &str)],
    at: &Path,
    index: &Path,
    tar: &Path,
    upper: &Path,
    work: &Path,
) -> [Attached; 2] {
    let lower = erofs(at, index, tar);
    std::fs::create_dir_all(upper).unwrap();
    std::fs::create_dir_all(work).unwrap();
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(&fs, "source", "exchange").unwrap();
    fsconfig_set_string(&fs, "lowerdir", &lower.0).unwrap();
    fsconfig_set_string(&fs, "upperdir", upper).unwrap();
    fsconfig_set_string(&fs, "workdir", work).unwrap();
    for &(key, value) in options.iter().chain(&[("index", "off"), ("xino", "on")]) {
        match value {
            "" => fsconfig_set_flag(&fs, key),
            value => fsconfig_set_string(&fs, key, value),
        }
        .unwrap();
    }
    fsconfig_create(&fs).unwrap();
    let made = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let overlay = attach(made.as_fd(), at.join("overlay"));
    // Unmounted in this order.
    [overlay, lower]
}

struct World {
    sandbox: Sandbox,
    tar: PathBuf,
    index: PathBuf,
}

fn world() -> World {
    let sandbox = Sandbox::new();
    let tree = sandbox.dir("tree");
    ok("sh", ["-euc", &format!("cd '{}'; {MAKE}", tree.display())]);
    let tar = sandbox.at("image.tar");
    let options = [
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--numeric-owner",
    ];
    pack(&tree, &tar, &options);
    let index = sandbox.at("image.erofs");
    sandbox.tarnfs_ok([
        "index".as_ref(),
        tar.as_os_str(),
        "-o".as_ref(),
        index.as_os_str(),
    ]);
    World {
        sandbox,
        tar,
        index,
    }
}

fn change(root: &Path) {
    ok(
        "sh",
        ["-euc", &format!("cd '{}'; {CHANGE}", root.display())],
    );
}

#[test]
fn overlayfs_shows_what_tarnfs_wrote() {
    if !can_mount() || !kernel::can_mount() {
        return;
    }
    let World {
        sandbox,
        tar,
        index,
    } = world();
    let (upper, work) = (sandbox.dir("upper"), sandbox.at("work"));
    let mount = sandbox.mount_over("mount", &tar, (&upper, &work), &[]);
    change(mount.path());
    let want = described(mount.path());
    mount.unmount();
    let mounts = overlayfs(sandbox.path(), &index, &tar, &upper, &sandbox.at("work2"));
    walk::assert_same(&want, &described(&mounts[0].0));
}

#[test]
fn tarnfs_shows_what_overlayfs_wrote() {
    if !can_mount() || !kernel::can_mount() {
        return;
    }
    let World {
        sandbox,
        tar,
        index,
    } = world();
    let (upper, work) = (sandbox.dir("upper"), sandbox.at("work"));
    let want = {
        let mounts = overlayfs(sandbox.path(), &index, &tar, &upper, &work);
        change(&mounts[0].0);
        described(&mounts[0].0)
    };
    let work = sandbox.at("work2");
    let mount = sandbox.mount_over("mount", &tar, (&upper, &work), &[]);
    walk::assert_same(&want, &described(mount.path()));
    mount.unmount();
}

#[test]
fn regression_a_living_overlayfs_keeps_its_upper() {
    let Some(World {
        sandbox,
        tar,
        index,
    }) = random_world()
    else {
        return;
    };
    let (upper, work) = (sandbox.dir("upper"), sandbox.at("work"));
    let mounts = overlayfs(sandbox.path(), &index, &tar, &upper, &work);
    let at = sandbox.dir("mount");
    let mount = |upper: &Path, work: &Path| {
        let options = ["mount", "--read-only", "--upper"].map(OsStr::new);
        let paths = [upper.as_os_str(), OsStr::new("--work"), work.as_os_str()];
        let places = [tar.as_os_str(), at.as_os_str()];
        sandbox.tarnfs([&options[..], &paths, &places].concat())
    };
    for upper in [&upper, &sandbox.dir("other")] {
        let refused = mount(upper, &work);
        assert!(!refused.status.success());
        let said = common::text(&refused.stderr);
        assert!(said.contains("in use by another mount"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // Nothing was cleared under its feet.
    change(&mounts[0].0);
    drop(mounts);
    common::assert_ok(&mount(&upper, &work), "mount");
    sandbox.tarnfs_ok(["umount".as_ref(), at.as_os_str()]);
}

/// How many runs of random changes, and how many changes in each.
const RUNS: u64 = 6;
const CHANGES: usize = 150;

/// Seeds: a few that stay the same, or `TARNFS_EXCHANGE_RUNS` of them.
fn seeds() -> std::ops::Range<u64> {
    let runs = std::env::var("TARNFS_EXCHANGE_RUNS");
    0..runs.map_or(RUNS, |runs| runs.parse().unwrap())
}

/// A directory for one run, which says the seed if it panics.
struct Run<'a> {
    world: &'a World,
    name: String,
}

impl World {
    fn run(&self, seed: u64) -> Run<'_> {
        let name = format!("run{seed}");
        self.sandbox.dir(&name);
        Run { world: self, name }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in {}", self.name);
        }
    }
}

impl Run<'_> {
    fn at(&self, name: &str) -> PathBuf {
        self.world.sandbox.at(&self.name).join(name)
    }

    fn tarnfs<T>(&self, work: &str, f: impl FnOnce(&Path) -> T) -> T {
        let (upper, work) = (self.at("upper"), self.at(work));
        let at = format!("{}/mount", self.name);
        let mount = self
            .world
            .sandbox
            .mount_over(&at, &self.world.tar, (&upper, &work), &[]);
        let result = f(mount.path());
        mount.unmount();
        result
    }

    fn overlayfs<T>(&self, options: &[(&str, &str)], work: &str, f: impl FnOnce(&Path) -> T) -> T {
        let (upper, work) = (self.at("upper"), self.at(work));
        let World { index, tar, .. } = self.world;
        let mounts = overlayfs_with(options, &self.at(""), index, tar, &upper, &work);
        f(&mounts[0].0)
    }

    /// fuse-overlayfs over a copy of the upper: it leaves files of its own in it.
    fn fuse_overlayfs<T>(&self, f: impl FnOnce(&Path) -> T) -> T {
        let copy = self.at("copy");
        ok(
            "cp",
            [
                "-a".as_ref(),
                self.at("upper").as_os_str(),
                copy.as_os_str(),
            ],
        );
        let World { index, tar, .. } = self.world;
        let lower = erofs(&self.at(""), index, tar);
        let (work, at) = (self.at("work.fuse"), self.at("fuse"));
        std::fs::create_dir(&work).unwrap();
        std::fs::create_dir(&at).unwrap();
        let [lower_at, copy, work] = [&lower.0, &copy, &work].map(|path| path.to_str().unwrap());
        let options = format!("lowerdir={lower_at},upperdir={copy},workdir={work}");
        ok(
            "fuse-overlayfs",
            ["-o".as_ref(), options.as_ref(), at.as_os_str()],
        );
        let mounted = Attached(at);
        let result = f(&mounted.0);
        drop(mounted);
        drop(lower);
        result
    }
}

fn random_world() -> Option<World> {
    (can_mount() && kernel::can_mount()).then(world)
}

fn changed(root: &Path, seed: u64, renames: Renames) -> BTreeMap<Vec<u8>, String> {
    let made = changes::make(root, seed, CHANGES, renames);
    assert!(made > CHANGES / 5, "only {made} changes were possible");
    described(root)
}

#[test]
fn overlayfs_shows_random_changes_of_tarnfs() {
    let Some(world) = random_world() else { return };
    for seed in seeds() {
        let run = world.run(seed);
        let want = run.tarnfs("work", |at| changed(at, seed, Renames::Directories));
        let got = run.overlayfs(REDIRECTS, "work2", described);
        walk::assert_same(&want, &got);
    }
}

#[test]
fn tarnfs_shows_random_changes_of_overlayfs() {
    let Some(world) = random_world() else { return };
    for seed in seeds() {
        let run = world.run(seed);
        let want = run.overlayfs(REDIRECTS, "work", |at| {
            changed(at, seed, Renames::Directories)
        });
        let got = run.tarnfs("work", described);
        walk::assert_same(&want, &got);
    }
}

/// Marks in `user.`: they are found and followed, by root too, and so is what is added to them.
#[test]
fn marks_without_root_change_hands() {
    let Some(world) = random_world() else { return };
    for seed in seeds() {
        let run = world.run(seed);
        run.overlayfs(USER, "work", |at| changed(at, seed, Renames::Files));
        // Mounted anew: a symbolic link cannot bear a mark in user., and until then two names of
        // one may be shown as two files.
        let want = run.overlayfs(USER, "work", described);
        let got = run.tarnfs("work", described);
        walk::assert_same(&want, &got);
        run.tarnfs("work", |at| changed(at, seed + 1_000, Renames::Files));
        let want = run.tarnfs("work", described);
        let got = run.overlayfs(USER, "work", described);
        walk::assert_same(&want, &got);
    }
}

/// fuse-overlayfs follows no redirects: what was in a renamed directory of the image is not there.
#[test]
fn fuse_overlayfs_shows_random_changes_of_tarnfs() {
    let Some(world) = random_world() else { return };
    if !common::has("fuse-overlayfs") {
        return;
    }
    for seed in seeds() {
        let run = world.run(seed);
        let want = run.tarnfs("work", |at| changed(at, seed, Renames::Files));
        let got = run.fuse_overlayfs(described);
        walk::assert_same(&want, &got);
    }
}

/// A file whose data overlayfs left in the image can be seen, and cannot be read.
#[test]
fn metacopy_files_of_overlayfs_give_eio() {
    let Some(world) = random_world() else { return };
    let run = world.run(0);
    let change = |at: &Path| ok("chmod", ["611".as_ref(), at.join("a/y").as_os_str()]);
    run.overlayfs(METACOPY, "work", change);
    run.tarnfs("work", |at| {
        assert_eq!(std::fs::metadata(at.join("a/y")).unwrap().len(), 300_000);
        let error = std::fs::read(at.join("a/y")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert_eq!(std::fs::read(at.join("a/x")).unwrap(), b"x");
    });
}

/// A directory moves if the upper's filesystem can note where it came from; else EXDEV, before
/// anything has changed, and mv(1) copies.
#[test]
fn regression_deep_directories_move_or_nothing_changes() {
    if !can_mount() || !kernel::can_mount() || !common::has("python3") {
        return;
    }
    let sandbox = Sandbox::new();
    let parts: Vec<String> = (0..20).map(|n| format!("{n:0201}")).collect();
    let (tar, index) = (sandbox.at("image.tar"), sandbox.at("image.erofs"));
    let mut bytes = Tarball::default();
    for depth in 1..=parts.len() {
        let path = parts[..depth].join("/");
        bytes = bytes.pax(&record("path", path.as_bytes())).dir(b"d/");
    }
    let file = format!("{}/file", parts.join("/"));
    bytes = bytes
        .pax(&record("path", file.as_bytes()))
        .file(b"f", b"deep");
    std::fs::write(&tar, bytes.end()).unwrap();
    sandbox.tarnfs_ok([
        "index".as_ref(),
        tar.as_os_str(),
        "-o".as_ref(),
        index.as_os_str(),
    ]);
    let (upper, work) = (sandbox.dir("upper"), sandbox.at("work"));
    let mount = sandbox.mount_over("mount", &tar, (&upper, &work), &[]);
    // 4,039 bytes: as long as a path in an image may be, and more than an attribute on ext4 holds.
    let descend = "import errno, subprocess
top = os.getcwd()
parts = ['%0201d' % n for n in range(20)]
for part in parts[:19]: os.chdir(part)
";
    let refused = "try: os.rename(parts[19], top + '/moved')
except OSError as error: assert error.errno == errno.EXDEV
else: os.rename(top + '/moved', parts[19])
";
    python(mount.path(), &format!("{descend}{refused}"));
    const EXT4: u64 = 0xef53;
    if rustix::fs::statfs(&upper).unwrap().f_type as u64 == EXT4 {
        for dir in [&upper, &work.join("work")] {
            assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0, "{dir:?}");
        }
    }
    let moved = "assert subprocess.call(['mv', parts[19], top + '/moved']) == 0
for _ in range(4): os.chdir('..')
os.rename(parts[15], top + '/noted')
";
    python(mount.path(), &format!("{descend}{moved}"));
    assert_eq!(std::fs::read(mount.at("moved/file")).unwrap(), b"deep");
    let want = described(mount.path());
    mount.unmount();
    let mounts = overlayfs(sandbox.path(), &index, &tar, &upper, &sandbox.at("work2"));
    walk::assert_same(&want, &described(&mounts[0].0));
}
