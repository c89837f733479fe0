//! What an actor has written, taken while it is mounted and applied by GNU tar, rm and the kernel's
//! overlayfs alone, is what the mount shows: to `diff -r`, and in all that stat(2) and the like
//! tell.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

use super::*;
use crate::common::run;
use crate::common::walk::{describe, xattrs};

/// Names, with what is the matter with each.
type Exceptions = BTreeSet<String>;

/// An actor `a` that is mounted, on an image that GNU tar has packed.
struct Live {
    world: World,
    root: PathBuf,
}

impl Live {
    fn new(make: &str) -> Self {
        let world = World::new(make);
        let create = ["actor", "create", "--start", "a"].map(OsStr::new);
        let args = [&create[..], &[world.image.as_os_str()]].concat();
        let root = world.sandbox.tarnfs_ok(args);
        let root = PathBuf::from(root.trim_end());
        Self { world, root }
    }

    fn diff(&self, format: &str, out: &str) {
        let args = ["actor", "diff", "--format", format, "-o", out, "a"];
        self.world.sandbox.tarnfs_ok(args);
    }

    /// The image, unpacked by GNU tar.
    fn unpacked(&self) -> PathBuf {
        let dir = self.world.sandbox.fresh("unpacked");
        restored(&extract(&self.world.image, &dir, &["--acls"]));
        dir
    }

    fn end(self) {
        self.world.sandbox.tarnfs_ok(["actor", "destroy", "a"]);
    }

    /// As podman restores: `rootfs-diff.tar` is unpacked over the image, then what `deleted.files`
    /// names is removed. Gives what GNU tar could not do with these `options`; all else is as in
    /// the mount.
    ///
    /// Not `podman container restore --import` itself: it needs CRIU, and that of Debian 12
    /// (3.17.1) fails on Linux 6.18 before it does anything ("vdso: Unexpected rt vDSO area
    /// bounds").
    fn check_podman(&self, options: &[&str]) -> Exceptions {
        let pair = self.world.sandbox.fresh("pair");
        self.diff("podman", &format!("{}/", pair.display()));
        let (tar, root) = (pair.join("rootfs-diff.tar"), self.unpacked());
        let (before, mut want) = (looked(&root), looked(&self.root));
        // It unlinks what is in the way of a file, but no directory that holds something.
        let names = want.iter().filter(|(_, line)| !is_dir(line));
        let kept: Exceptions = names
            .filter(|(name, _)| holds(&before, name))
            .map(|(name, _)| text(name))
            .collect();
        let said = extract(&tar, &root, options);
        if kept.is_empty() {
            restored(&said);
        } else {
            assert_eq!(said.status.code(), Some(2));
            self.assert_kept(&kept, &complaints(&said));
            for name in &kept {
                remove(&root.join(name));
            }
            restored(&extract(&tar, &root, options));
        }
        let deleted = fs::read(pair.join("deleted.files")).unwrap();
        let deleted: Vec<String> = serde_json::from_slice(&deleted).unwrap();
        for path in &deleted {
            let path = root.join(path.strip_prefix('/').unwrap());
            assert!(fs::symlink_metadata(&path).is_ok(), "{path:?}");
            remove(&path);
        }
        same_by_diff(&self.root, &root, &want);
        let mut got = looked(&root);
        let left = take_left_xattrs(&before, &want, &mut got, (&self.root, &root));
        // Where something was removed that is the time of it.
        for path in &deleted {
            let parent = path.rsplit_once('/').unwrap().0.trim_start_matches('/');
            for tree in [&mut want, &mut got] {
                without_time(tree.get_mut(parent.as_bytes()).unwrap());
            }
        }
        assert_same(&want, &got);
        kept.union(&left).cloned().collect()
    }

    /// It complained of what it kept, and of further names of what should have come there.
    fn assert_kept(&self, kept: &Exceptions, said: &Exceptions) {
        assert!(kept.is_subset(said), "{kept:?} {said:?}");
        let ino = |name: &String| fs::symlink_metadata(self.root.join(name)).unwrap().ino();
        let inos: BTreeSet<u64> = kept.iter().map(ino).collect();
        for name in said {
            assert!(inos.contains(&ino(name)), "{name}: {kept:?}");
        }
    }

    /// The tar unpacked is an upper for the kernel. Gives what overlayfs shows otherwise.
    fn check_overlay(&self) -> Exceptions {
        let sandbox = &self.world.sandbox;
        let tar = sandbox.at("overlay.tar");
        self.diff("overlay", tar.to_str().unwrap());
        let (upper, at) = (sandbox.fresh("by-tar"), sandbox.fresh("overlay"));
        restored(&extract(&tar, &upper, &[]));
        let lower = self.unpacked();
        let before = looked(&lower);
        let mount = apply::overlayfs(&at, &lower, &upper, "on");
        let want = looked(&self.root);
        same_by_diff(&self.root, mount.path(), &want);
        let (mut want, got) = (as_overlayfs(&want), looked(mount.path()));
        let mut got = as_overlayfs(&got);
        let mut exceptions = Exceptions::new();
        for (name, line) in &mut want {
            let Some(got) = got.get_mut(name) else {
                continue;
            };
            let shown = take_links(got);
            // It has 1 for each directory.
            let wanted = take_links(line);
            if !is_dir(line) && shown != wanted {
                // Of what lies below alone it shows the count there, whatever names have gone.
                assert!(!upper.join(OsStr::from_bytes(name)).exists());
                let counted = before.values().map(|line| take_links(&mut line.clone()));
                assert!(counted.into_iter().any(|links| links == shown));
                exceptions.insert(format!("{}: {shown} links", text(name)));
            }
        }
        assert_same(&want, &got);
        exceptions
    }
}

/// `tar -xpf` with all that it can restore but `--acls`, which podman does not know either.
fn extract(tar: &Path, dir: &Path, options: &[&str]) -> Output {
    let mut command = Command::new("tar");
    // Of files from before 1970 it says that they are.
    command.args(["--warning=no-timestamp", "--xattrs", "--xattrs-include=*"]);
    command.args(["--numeric-owner", "-xpf"]).arg(tar);
    command.arg("-C").arg(dir).args(options);
    run(command)
}

fn restored(said: &Output) {
    common::assert_ok(said, "tar -x");
    assert_eq!(text(&said.stderr), "");
}

/// The names that GNU tar could not make.
fn complaints(said: &Output) -> Exceptions {
    let said = text(&said.stderr);
    let names = said.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("tar: ")?.split_once(": Cannot ")?;
        Some(name.to_owned())
    });
    names.collect()
}

fn remove(path: &Path) {
    ok("rm", ["-rf".as_ref(), "--".as_ref(), path.as_os_str()]);
}

fn is_dir(line: &str) -> bool {
    line.starts_with('4')
}

/// Whether `name` is a directory of `tree` with something in it.
fn holds(tree: &Tree, name: &[u8]) -> bool {
    let below = [name, b"/"].concat();
    let next = tree.range(below.clone()..).next();
    next.is_some_and(|(next, _)| next.starts_with(&below))
}

/// All that [`describe`] tells, and whether a file of some length is sparse.
fn looked(root: &Path) -> Tree {
    let mut tree = describe(root);
    for (name, line) in &mut tree {
        let meta = fs::symlink_metadata(root.join(OsStr::from_bytes(name))).unwrap();
        if meta.is_file() && meta.size() > 100_000 {
            *line += &format!(" sparse {}", meta.blocks() * 512 < meta.size() / 2);
        }
    }
    tree
}

/// Takes a line's link count out of it.
fn take_links(line: &mut String) -> u64 {
    let (before, rest) = line.split_once(" links ").unwrap();
    let (links, after) = rest.split_once(' ').unwrap();
    let links = links.parse().unwrap();
    *line = format!("{before} {after}");
    links
}

fn without_time(line: &mut String) {
    if let Some((before, rest)) = line.split_once(" mtime ") {
        let after = rest.split_once(' ').map_or("", |(_, after)| after);
        *line = format!("{before} {after}");
    }
}

/// Takes out of `got` what extended attributes are left over there, and gives them. They must be
/// those that a directory had before, or an ACL that what is new has got from its directory.
fn take_left_xattrs(
    before: &Tree,
    want: &Tree,
    got: &mut Tree,
    (live, root): (&Path, &Path),
) -> Exceptions {
    let mut left = Exceptions::new();
    let at = |name: &[u8]| root.join(OsStr::from_bytes(name));
    let ino = |name: &[u8]| fs::symlink_metadata(at(name)).unwrap().ino();
    let inherits = |name: &&Vec<u8>| {
        let parent = xattrs(at(name).parent().unwrap());
        let mut marks = parent.iter().map(|(mark, _)| mark);
        marks.any(|mark| mark == "system.posix_acl_default")
    };
    let heirs: BTreeSet<u64> = want.keys().filter(inherits).map(|name| ino(name)).collect();
    for (name, line) in want {
        let wanted = xattrs(&live.join(OsStr::from_bytes(name)));
        for (mark, value) in xattrs(&at(name)) {
            let mark = mark.to_str().unwrap();
            if wanted.iter().any(|(name, _)| name == mark) {
                continue;
            }
            let mut told = format!(" {mark:?}=");
            let whole = format!("{told}{:?}", value.escape_ascii().to_string());
            // chmod(2) changes this one.
            if mark != "system.posix_acl_access" {
                told.clone_from(&whole);
            }
            let had = before.get(name).is_some_and(|line| line.contains(&told));
            let inherited = mark.starts_with("system.posix_acl_") && heirs.contains(&ino(name));
            assert!(is_dir(line) && had || inherited, "{}: {mark}", text(name));
            let there = got.get_mut(name).unwrap();
            *there = there.replace(&whole, "");
            left.insert(format!("{}: {mark}", text(name)));
        }
    }
    left
}

/// Compares the bytes of files and links by diff(1), which names what has none.
fn same_by_diff(one: &Path, other: &Path, want: &Tree) {
    let mut command = Command::new("diff");
    command.args(["-r", "--no-dereference"]).args([one, other]);
    let said = run(command);
    assert_eq!(text(&said.stderr), "");
    let mut found: BTreeSet<_> = text(&said.stdout).lines().map(str::to_owned).collect();
    assert_eq!(said.status.code(), Some(i32::from(!found.is_empty())));
    for name in want.keys() {
        let paths = [one, other].map(|root| root.join(OsStr::from_bytes(name)));
        let [meta, there] = paths
            .each_ref()
            .map(|path| fs::symlink_metadata(path).unwrap());
        let kind = meta.file_type();
        let what = match kind {
            _ if kind.is_fifo() => "fifo",
            _ if kind.is_char_device() => "character special file",
            _ => continue,
        };
        let [one, other] = paths.map(|path| path.display().to_string());
        let told = found.remove(&format!(
            "File {one} is a {what} while file {other} is a {what}"
        ));
        // Devices of one number it names where their times of change differ too.
        let same = kind.is_char_device() && meta.rdev() == there.rdev();
        assert!(told || same, "{one}");
    }
    assert_eq!(found, BTreeSet::new());
}

fn exceptions(all: &[&str]) -> Exceptions {
    all.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn podman_s_pair_by_gnu_tar_and_rm() {
    if !ready() || !has("diff") {
        return;
    }
    let live = Live::new(MAKE);
    sh(&live.root, CHANGE);
    let always = ["a/sub: trusted.t", "big", "other"];
    assert_eq!(live.check_podman(&["--acls"]), exceptions(&always));
    let inherited = [
        "b/moved: system.posix_acl_access",
        "b/moved: system.posix_acl_default",
        "b/moved/deeper: system.posix_acl_access",
        "b/moved/deeper: system.posix_acl_default",
        "b/moved/deeper/in: system.posix_acl_access",
        "b/moved/new: system.posix_acl_access",
        "b/moved/sparse: system.posix_acl_access",
    ];
    let without = [&always[..], &inherited].concat();
    assert_eq!(live.check_podman(&[]), exceptions(&without));
    live.end();
}

#[test]
fn an_upper_by_gnu_tar_below_overlayfs() {
    if !ready() || !has("diff") {
        return;
    }
    let live = Live::new(MAKE);
    sh(&live.root, CHANGE);
    let links = [
        "a/r: 4 links",
        "b/moved/deeper/in: 2 links",
        "b/moved/p: 4 links",
        "p: 4 links",
    ];
    assert_eq!(live.check_overlay(), exceptions(&links));
    live.end();
}

#[test]
fn random_changes_by_gnu_tar() {
    if !ready() || !has("diff") {
        return;
    }
    let runs = std::env::var("TARNFS_DIFF_RUNS");
    for seed in 0..runs.map_or(RUNS, |runs| runs.parse().unwrap()) {
        eprintln!("seed {seed}");
        let live = Live::new(MAKE);
        changes::make(&live.root, seed, CHANGES, Renames::Directories);
        live.check_podman(&[]);
        live.check_overlay();
        live.end();
    }
}

/// podman with a store of the test's own.
struct Podman {
    options: Vec<String>,
    dir: PathBuf,
}

impl Podman {
    fn new(sandbox: &Sandbox, driver: &str) -> Self {
        let at = |name: &str| {
            sandbox
                .dir(format!("{driver}-{name}"))
                .display()
                .to_string()
        };
        let options = vec![
            format!("--root={}", at("root")),
            format!("--runroot={}", at("run")),
            format!("--tmpdir={}", at("tmp")),
            format!("--storage-driver={driver}"),
            "--cgroup-manager=cgroupfs".to_owned(),
            "--events-backend=none".to_owned(),
        ];
        let dir = sandbox.path().to_owned();
        Self { options, dir }
    }

    fn ok(&self, args: &[&str]) -> String {
        let mut command = Command::new("podman");
        command.args(&self.options).args(args);
        // It makes a name of the path of an image, which may have no capitals.
        command.current_dir(&self.dir);
        let said = run(command);
        common::assert_ok(&said, &format!("podman {args:?}"));
        text(&said.stdout).trim_end().to_owned()
    }
}

/// What podman (4.3.1) makes of a tree otherwise: the root is its own, data have no holes, no time is
/// before 1970. Link counts are those of its `driver`.
fn as_podman(tree: &Tree, driver: &str) -> Tree {
    let mut tree = tree.clone();
    tree.remove(&b""[..]);
    for line in tree.values_mut() {
        if driver == "overlay" {
            take_links(line);
        }
        let (before, rest) = line.split_once(" mtime ").unwrap();
        let (time, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let time = match time.starts_with('-') {
            true => "0.000000000",
            false => time,
        };
        let after = after.split(" sparse ").next().unwrap();
        *line = format!("{before} mtime {time} {after}");
    }
    tree
}

/// A checkpoint that is exported, pulled by podman as any other image, and mounted by it.
#[test]
fn a_checkpoint_as_an_image_of_podman() {
    if !ready() || !has("diff") || !has("podman") {
        return;
    }
    let live = Live::new(MAKE);
    sh(&live.root, CHANGE);
    // Numbers that only a pax record can say; they must be said of each name.
    sh(
        &live.root,
        "chown 3000000:4000000 hard; chmod 6755 hard
        setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 hard",
    );
    let sandbox = &live.world.sandbox;
    for driver in ["vfs", "overlay"] {
        if driver == "overlay" {
            // A device 0:0 hides a name there.
            sh(&live.root, "rm b/none");
        }
        let layout = format!("oci:{}:it", sandbox.fresh("layout").display());
        let image = sandbox.tarnfs_ok(["actor", "checkpoint", "a"]);
        sandbox.tarnfs_ok(["export", image.trim_end(), &layout]);
        let podman = Podman::new(sandbox, driver);
        let id = podman.ok(&["pull", "-q", "oci:layout:it"]);
        let root = PathBuf::from(podman.ok(&["image", "mount", &id]));
        let want = looked(&live.root);
        same_by_diff(&live.root, &root, &want);
        let mut got = looked(&root);
        // What is made in a directory with a default ACL gets one, as without GNU tar's `--acls`.
        for (name, line) in without_acls(&got) {
            let wanted = want.get(&name);
            if wanted.is_some_and(|line| !line.contains("system.posix_acl_")) {
                got.insert(name, line);
            }
        }
        assert_same(&as_podman(&want, driver), &as_podman(&got, driver));
        podman.ok(&["image", "umount", &id]);
    }
    live.end();
}
