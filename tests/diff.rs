//! `tarnfs diff`: what an actor wrote, applied to a fresh unpack of the image by others' programs,
//! is what the mount showed; in each format, after random changes too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "diff/apply.rs"]
mod apply;
#[path = "exchange/changes.rs"]
mod changes;
mod common;
#[path = "diff/programs.rs"]
mod programs;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use apply::{GNU, unpack};
use changes::Renames;
use common::python::python;
use common::user::{self, with_user};
use common::walk::{assert_same, described};
use common::{Sandbox, can_mount, has, ok, pack, text};
use serde_json::Value;

type Tree = BTreeMap<Vec<u8>, String>;

/// The image.
const MAKE: &str = r#"
mkdir -p a/sub/deep b/c empty gone/inner big opaque/in other
printf x >a/x; head -c 300000 /dev/urandom >a/y; printf deep >a/sub/deep/file
printf linked >one; ln one a/two; ln one b/three
printf other >p; ln p b/q; ln p a/r; ln p a/sub/p
printf in >a/sub/in; ln a/sub/in a/sub/deep/in
printf s >suid; chmod 4755 suid; chown 1000:2000 b/c
ln -s a/x link; mkfifo fifo; mknod null c 1 3
setfattr -n user.k -v v a/x; setfattr -n trusted.t -v w a/sub
setfacl -m u:77:rwx b; setfacl -d -m u:77:rwx b; setfacl -m u:78:r a/sub/deep/file
truncate -s 1M sparse; printf end >>sparse; cp --sparse=always sparse a/sub/sparse
touch gone/1 gone/2 gone/inner/3 opaque/1 opaque/2 opaque/in/3 other/o
for i in $(seq 20); do echo $i >big/$i; done
"#;

/// What an actor does to it.
const CHANGE: &str = r#"
echo more >>a/y; printf X | dd of=one conv=notrunc status=none
rm b/q; chmod 600 suid; chown 5:6 a/sub/deep/file
rm -r gone; mkdir gone; echo new >gone/new
rm -r opaque; mkdir -p opaque/2/deep opaque/in; echo 1 >opaque/1; echo f >opaque/2/deep/f
mv a/sub b/moved; mv b/moved/deep b/moved/deeper; rm b/moved/in; echo new >b/moved/new
mkdir a/sub; echo again >a/sub/in
mv b/c c; mkdir b/c; echo in >b/c/in
mv other empty/other; ln -s nowhere other; rm -r big; echo file >big
mkdir made; echo 1 >made/1; mv made empty/made
ln a/x hard; ln hard empty/hard; ln -sf elsewhere link; rm fifo; mkfifo fifo2; mknod b/null2 c 1 3; mknod b/none c 0 0
setfattr -n user.k -v changed a/x; setfattr -x trusted.t b/moved; setfattr -n user.new -v n b/moved
setfattr -n user.lines -v "$(printf 'a\nb')" hard; setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 suid
echo acl >b/inherits; mkdir b/inherits.d
truncate -s 10 sparse; truncate -s 3M holes; printf mid | dd of=holes bs=1 seek=1500000 conv=notrunc status=none
echo tmp >born; rm born; echo kept >"$(printf 'odd\nname\\ \303\244')"
long=$(head -c 250 /dev/zero | tr '\0' l); mkdir $long; echo long >$long/$long; ln $long/$long link-to-long
mkdir -p bytes; printf b >bytes/$(printf '\377\376')
rm null; echo file >null; touch -d '2001-02-03 04:05:06.789012345' hard; touch -d '1969-12-31 23:59:58.5' null
touch -d '2020-01-01' a b .
"#;

struct World {
    sandbox: Sandbox,
    image: PathBuf,
    /// Unpacked by GNU tar.
    base: PathBuf,
}

impl World {
    fn new(make: &str) -> Self {
        let sandbox = Sandbox::new();
        let tree = sandbox.dir("tree");
        sh(&tree, make);
        let image = sandbox.at("image.tar");
        pack(
            &tree,
            &image,
            &[&GNU[..], &["--format=pax", "--sparse"]].concat(),
        );
        let base = sandbox.dir("base");
        unpack(&image, &base);
        Self {
            sandbox,
            image,
            base,
        }
    }

    /// Changes a mount; gives what it then shows.
    fn change(&self, options: &[&str], change: impl FnOnce(&Path)) -> Tree {
        let (upper, work) = (self.upper(), self.sandbox.at("work"));
        let mount = self
            .sandbox
            .mount_over("mount", &self.image, (&upper, &work), options);
        change(mount.path());
        let want = described(mount.path());
        mount.unmount();
        want
    }

    fn upper(&self) -> PathBuf {
        self.sandbox.at("upper")
    }

    fn try_diff(&self, options: &[&str]) -> Output {
        let (upper, work) = (self.upper(), self.sandbox.at("work"));
        let mut args = vec![OsStr::new("diff"), "--upper".as_ref(), upper.as_os_str()];
        args.extend(["--work".as_ref(), work.as_os_str()]);
        args.extend(options.iter().map(OsStr::new));
        args.push(self.image.as_os_str());
        self.sandbox.tarnfs(args)
    }

    /// Writes `format` to a file, twice and to a stream, which must be the same bytes and as many
    /// as were told.
    fn diff(&self, format: &str, more: &[&str]) -> PathBuf {
        let tar = self.sandbox.at(format!("{format}.tar"));
        let again = self.sandbox.at("again.tar");
        let options = [&["--format", format], more].concat();
        for out in [&tar, &again] {
            let output = ["--digest", "--json", "-o", out.to_str().unwrap()];
            let hashed = if out == &tar { &output[2..] } else { &output };
            let made = self.try_diff(&[&options[..], hashed].concat());
            common::assert_ok(&made, "tarnfs diff");
            if out == &again {
                let said: Value = serde_json::from_slice(&made.stdout).unwrap();
                let sum = ok("sha256sum", [out]);
                let sum = sum.split_whitespace().next().unwrap();
                assert_eq!(said["digest"], format!("sha256:{sum}"));
                assert_eq!(said["bytes"], fs::metadata(out).unwrap().len());
            }
        }
        let bytes = fs::read(&tar).unwrap();
        let stream = self.try_diff(&options);
        common::assert_ok(&stream, "tarnfs diff");
        assert!(bytes == fs::read(&again).unwrap() && bytes == stream.stdout);
        let size = self.try_diff(&[&options[..], &["--size"]].concat());
        assert_eq!(text(&size.stdout), format!("{}\n", bytes.len()));
        tar
    }

    /// A fresh unpack of the image.
    fn fresh(&self, name: &str) -> PathBuf {
        let dir = self.sandbox.fresh(name);
        ok(
            "cp",
            [
                "-a".as_ref(),
                self.base.join(".").as_os_str(),
                dir.as_os_str(),
            ],
        );
        dir
    }

    /// Each format, applied, is `want`.
    fn check(&self, want: &Tree) {
        self.check_oci(want, &[]);
        self.check_overlay(want, &[]);
        self.check_gvisor(want);
        self.check_podman(want, &[]);
    }

    fn check_oci(&self, want: &Tree, more: &[&str]) {
        let layer = self.diff("oci", more);
        no_name_twice(&layer);
        let layout = apply::layout(&self.sandbox, "layout", &self.image, &layer);
        let named = PathBuf::from(format!("oci:{}", layout.display()));
        let mount = self.sandbox.mount("applied", &named, &["--read-only"]);
        assert_same(want, &described(mount.path()));
        mount.unmount();
        if has("umoci") {
            let bundle = self.sandbox.fresh("bundle");
            fs::remove_dir(&bundle).unwrap();
            let image = format!("{}:latest", layout.display());
            ok(
                "umoci",
                [
                    "unpack".as_ref(),
                    "--image".as_ref(),
                    OsStr::new(&image),
                    bundle.as_os_str(),
                ],
            );
            // It leaves directories the time at which it takes something out of them.
            let got = described(&bundle.join("rootfs"));
            assert_same(&without_dir_times(want), &without_dir_times(&got));
        }
    }

    fn check_overlay(&self, want: &Tree, more: &[&str]) {
        let tar = self.diff("overlay", more);
        no_name_twice(&tar);
        let upper = self.sandbox.fresh("applied-upper");
        unpack(&tar, &upper);
        let at = self.sandbox.fresh("overlay");
        let mount = apply::overlayfs(&at, &self.base, &upper, "on");
        // What stands for 0:0 there, and may not be hidden by overlayfs.
        let plain = |tree: &Tree| as_overlayfs(tree);
        assert_same(&plain(want), &plain(&described(mount.path())));
        drop(mount);
        // Over again, by tarnfs.
        let mount = self.sandbox.mount_over(
            "over",
            &self.image,
            (&upper, &self.sandbox.at("over-work")),
            &["--read-only"],
        );
        assert_same(want, &described(mount.path()));
        mount.unmount();
        fs::remove_dir_all(self.sandbox.at("over-work")).unwrap();
    }

    fn check_gvisor(&self, want: &Tree) {
        let tar = self.diff("gvisor", &[]);
        no_name_twice(&tar);
        let names = ok("tar", ["-tf".as_ref(), tar.as_os_str()]);
        assert!(names.starts_with("./\n") && names.lines().all(|name| name.starts_with("./")));
        // gVisor's ACLs are text that only it reads.
        let upper = self.sandbox.fresh("gvisor-upper");
        let acls = "--pax-option=delete=SCHILY.xattr.system.posix_acl_*";
        let args = [
            acls,
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "-xpf",
        ];
        let rest = [tar.as_os_str(), "-C".as_ref(), upper.as_os_str()];
        ok("tar", args.iter().map(OsStr::new).chain(rest));
        let at = self.sandbox.fresh("overlay");
        // It follows no redirects.
        let mount = apply::overlayfs(&at, &self.base, &upper, "nofollow");
        // GNU tar sets a directory's times before what comes at the end for gVisor, which makes
        // all directories first.
        let plain = |tree: &Tree| without_dir_times(&without_acls(&as_overlayfs(tree)));
        assert_same(&plain(want), &plain(&described(mount.path())));
    }

    fn check_podman(&self, want: &Tree, more: &[&str]) {
        let tar = self.diff("podman", more);
        let pair = self.sandbox.fresh("pair");
        let dir = format!("{}/", pair.display());
        let made = self.try_diff(&[more, &["--format", "podman", "-o", &dir]].concat());
        common::assert_ok(&made, "tarnfs diff");
        let unpacked = self.sandbox.fresh("unpacked");
        unpack(&tar, &unpacked);
        for name in ["rootfs-diff.tar", "deleted.files"] {
            let [one, two] = [&pair, &unpacked].map(|dir| fs::read(dir.join(name)).unwrap());
            assert!(one == two, "{name}");
        }
        let root = self.fresh("podman");
        apply::podman(
            &root,
            &pair.join("rootfs-diff.tar"),
            &pair.join("deleted.files"),
        );
        // Nothing takes an extended attribute off a directory that is there, and what is deleted
        // gives directories that time.
        let plain = |tree: &Tree| without_dir_xattrs(&without_dir_times(tree));
        assert_same(&plain(want), &plain(&described(&root)));
    }
}

fn sh(dir: &Path, script: &str) {
    ok("sh", ["-euc", &format!("cd '{}'; {script}", dir.display())]);
}

fn no_name_twice(tar: &Path) {
    let names = ok(
        "tar",
        [
            "--quoting-style=escape".as_ref(),
            "-tf".as_ref(),
            tar.as_os_str(),
        ],
    );
    let mut names: Vec<_> = names.lines().collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(count, names.len());
}

fn without_dir_times(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    for line in tree.values_mut().filter(|line| line.starts_with('4')) {
        let (before, rest) = line.split_once(" mtime ").unwrap();
        let rest = rest.split_once(' ').map_or("", |(_, rest)| rest);
        *line = format!("{before} {rest}");
    }
    tree
}

fn without_dir_xattrs(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    for line in tree.values_mut().filter(|line| line.starts_with('4')) {
        let end = line.find(" \"").unwrap_or(line.len());
        line.truncate(end);
        *line = line.trim_end().to_owned();
    }
    tree
}

/// As overlayfs shows it: a device that stands for 0:0 is the one that it is there.
fn as_overlayfs(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    for line in tree.values_mut().filter(|line| line.starts_with('2')) {
        *line = line.replace(" dev 0 ", " dev 1 ");
        *line = line.replace(" \"trusted.tarnfs.null-device\"=\"y\"", "");
    }
    tree
}

fn without_acls(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    for line in tree.values_mut() {
        while let Some((before, rest)) = line.split_once(" \"system.posix_acl_") {
            let (_, value) = rest.split_once("=\"").unwrap();
            let (_, after) = value.split_once('"').unwrap();
            *line = format!("{before}{after}");
        }
    }
    tree
}

fn ready() -> bool {
    can_mount() && ["setfattr", "setfacl", "python3"].into_iter().all(has)
}

#[test]
fn applied_it_is_what_the_mount_showed() {
    if !ready() {
        return;
    }
    let world = World::new(MAKE);
    let want = world.change(&[], |root| sh(root, CHANGE));
    world.check(&want);
}

#[test]
fn an_upper_with_nothing_in_it() {
    if !ready() {
        return;
    }
    let world = World::new(MAKE);
    let want = world.change(&[], |_| ());
    world.check(&want);
}

/// How many runs of random changes, and how many changes in each.
const RUNS: u64 = 4;
const CHANGES: usize = 150;

#[test]
fn random_changes() {
    if !ready() {
        return;
    }
    let runs = std::env::var("TARNFS_DIFF_RUNS");
    for seed in 0..runs.map_or(RUNS, |runs| runs.parse().unwrap()) {
        eprintln!("seed {seed}");
        let world = World::new(MAKE);
        let want = world.change(&[], |root| {
            changes::make(root, seed, CHANGES, Renames::Directories);
        });
        world.check(&want);
    }
}

/// One line on standard error, with all of `words` in it.
fn refused(output: &Output, words: &[&str]) {
    let said = text(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn uppers_that_are_not_to_be_read() {
    if !ready() {
        return;
    }
    let world = World::new("mkdir a; echo x >a/x");
    let (upper, work) = (world.upper(), world.sandbox.at("work"));
    fs::create_dir(&upper).unwrap();
    let out = world.sandbox.at("out");
    let to = ["-o", out.to_str().unwrap()];
    for engine in ["fuse", "kernel"] {
        let options = ["--engine", engine];
        let mount = world
            .sandbox
            .mount_over("mount", &world.image, (&upper, &work), &options);
        refused(
            &world.try_diff(&to),
            &["upper: in use by a mount; unmount it first"],
        );
        mount.unmount();
    }
    // Another image's.
    let tree = world.sandbox.dir("tree2");
    sh(&tree, "echo other >x");
    let other = world.sandbox.at("other.tar");
    pack(&tree, &other, &[]);
    let args = ["diff", "--upper"].map(OsStr::new);
    let args = [&args[..], &[upper.as_os_str(), other.as_os_str()]].concat();
    let elsewhere = world.sandbox.tarnfs(args);
    refused(&elsewhere, &["another image", "name that image"]);
    // The work directory was made for it, and is gone again.
    assert!(!world.sandbox.at("upper.work").exists());
    // None at all.
    fs::rename(&upper, world.sandbox.at("elsewhere")).unwrap();
    refused(&world.try_diff(&to), &["upper"]);
    assert!(!out.exists() && !upper.exists());
}

#[test]
fn what_is_asked_for_wrongly() {
    if !ready() {
        return;
    }
    let world = World::new("mkdir a; echo x >a/x");
    fs::create_dir(world.upper()).unwrap();
    for (options, words) in [
        (&["--exclude", "etc"][..], "a pattern begins with /"),
        (&["--exclude", "/"], "something below /"),
        (&["--align", "1000"], "power of two"),
        (&["--format", "zip"], "possible values"),
        (&["--size", "-o", "x"], "cannot be used with"),
    ] {
        let said = world.try_diff(options);
        assert!(!said.status.success());
        let said = text(&said.stderr);
        assert!(said.contains(words), "{said}");
    }
    let dir = world.sandbox.dir("dir");
    refused(
        &world.try_diff(&["-o", dir.to_str().unwrap()]),
        &["directory"],
    );
    refused(
        &world.try_diff(&["-o", "/dev/full"]),
        &["/dev/full", "No space left"],
    );
    let podman = [
        "--format",
        "podman",
        "--digest",
        "-o",
        dir.to_str().unwrap(),
    ];
    refused(&world.try_diff(&podman), &["name a file"]);
}

#[test]
fn what_a_runtime_made_is_left_out() {
    if !ready() {
        return;
    }
    let world =
        World::new("mkdir -p etc run/lock dev a; echo h >etc/hosts; echo r >etc/rc; echo x >a/x");
    let want = world.change(&[], |root| {
        sh(root, "echo new >a/new; rm a/x; echo 2 >etc/hosts");
    });
    world.change(&[], |root| {
        sh(root, "mkdir -p run/s; echo 1 >run/s/1; rmdir run/lock; echo n >etc/resolv.conf; rm etc/rc; mknod dev/console c 5 1");
    });
    let more: Vec<_> = ["/run/**", "/etc/re*", "/etc/rc", "/dev/*"]
        .iter()
        .flat_map(|pattern| ["--exclude", pattern])
        .collect();
    // But for the times of the directories that held it.
    let plain = |tree: &Tree| without_dir_times(tree);
    let tar = world.diff("oci", &more);
    let layout = apply::layout(&world.sandbox, "layout", &world.image, &tar);
    let named = PathBuf::from(format!("oci:{}", layout.display()));
    let mount = world.sandbox.mount("applied", &named, &["--read-only"]);
    assert_same(&plain(&want), &plain(&described(mount.path())));
    mount.unmount();
}

#[test]
fn sockets_are_counted_and_hide_what_was_there() {
    if !ready() {
        return;
    }
    let world = World::new("mkdir a; echo x >a/x; echo y >y");
    let mut want = world.change(&[], |root| {
        python(root, "import os, socket\nos.unlink('a/x')\nfor name in ('a/x', 'b'):\n    socket.socket(socket.AF_UNIX).bind(name)");
    });
    for name in [&b"a/x"[..], b"b"] {
        assert!(want.remove(name).unwrap().starts_with("140"));
    }
    world.check(&want);
    let made = world.try_diff(&["--json", "-o", world.sandbox.at("x").to_str().unwrap()]);
    let said: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(
        (&said["sockets"], &said["whiteouts"]),
        (&2.into(), &1.into())
    );
    let told = text(&made.stderr);
    assert!(
        told.contains("a/x: a socket") && told.contains("b: a socket"),
        "{told}"
    );
}

fn walk_xattrs(path: &Path) -> Vec<String> {
    let all = common::walk::xattrs(path);
    all.into_iter()
        .map(|(name, _)| name.into_string().unwrap())
        .collect()
}

/// What the kernel's overlayfs leaves: attributes alone of a file, and where a renamed one's data
/// are; and marks in `user.`.
#[test]
fn uppers_of_overlayfs() {
    if !ready() {
        return;
    }
    let make = "mkdir -p a/b; head -c 300000 /dev/urandom >a/big; echo two >a/two; echo g >a/b/g; ln a/two two; truncate -s 2M a/holes; printf e >>a/holes";
    for options in [
        &[("metacopy", "on"), ("redirect_dir", "on")][..],
        &[("userxattr", "")],
    ] {
        let world = World::new(make);
        let renames = options.len() == 2;
        fs::create_dir(world.upper()).unwrap();
        let at = world.sandbox.dir("at");
        let mount = apply::overlayfs_with(&at, &world.base, &world.upper(), options);
        sh(
            mount.path(),
            "chmod 600 a/big; mv a/big a/bigger; chown 7:8 a/two; chmod 640 a/holes; mkdir new; mv a/holes new/holes; rm -r a/b; mkdir a/b; echo n >a/b/n",
        );
        if renames {
            sh(mount.path(), "mv a c; mv c/bigger bigger; chmod 755 c/b");
        }
        let want = described(mount.path());
        drop(mount);
        let marked = |name: &str, mark: &str| {
            let marks = walk_xattrs(&world.upper().join(name));
            assert!(marks.iter().any(|there| there == mark), "{name}: {marks:?}");
        };
        if renames {
            marked("bigger", "trusted.overlay.metacopy");
            marked("bigger", "trusted.overlay.redirect");
            marked("new/holes", "trusted.overlay.metacopy");
            marked("c", "trusted.overlay.redirect");
        } else {
            marked("a/b", "user.overlay.opaque");
        }
        world.check_oci(&want, &[]);
        world.check_gvisor(&want);
        world.check_podman(&want, &[]);
        let tar = world.diff("overlay", &[]);
        let upper = world.sandbox.fresh("again-upper");
        unpack(&tar, &upper);
        let again = world.sandbox.fresh("again");
        let mount = apply::overlayfs(&again, &world.base, &upper, "on");
        assert_same(&want, &described(mount.path()));
    }
}

#[test]
fn an_ordinary_user_s_upper() {
    if !ready() {
        return;
    }
    with_user("an_ordinary_user_s_upper", |his| {
        let image = his.at("image.tar");
        his.sh(
            "mkdir -p tree/a/b tree/gone; echo x >tree/a/x; echo g >tree/gone/g; ln tree/a/x tree/a/b/y
            echo closed >tree/closed; tar -C tree -cf image.tar .",
        );
        let tarnfs = his.tarnfs();
        let tarnfs = tarnfs.to_str().unwrap();
        his.sh(&format!(
            "mkdir m; {tarnfs} mount -o allow_other --upper upper image.tar m; cd m
            echo new >a/new; mv a/b c; rm -r gone; mkdir gone; setfattr -n user.k -v v gone
            echo mine >mine; chmod 0 mine closed; mkdir shut; echo in >shut/in; chmod 0 shut; rm a/x"
        ));
        let want = described(&his.at("m"));
        his.sh(&format!(
            "{tarnfs} umount m; {tarnfs} diff --upper upper image.tar -o layer.tar"
        ));
        let sandbox = Sandbox::new();
        let layout = apply::layout(&sandbox, "layout", &image, &his.at("layer.tar"));
        let named = PathBuf::from(format!("oci:{}", layout.display()));
        let mount = sandbox.mount("applied", &named, &["--read-only"]);
        assert_same(&want, &described(mount.path()));
        mount.unmount();
        let tar = fs::metadata(his.at("layer.tar")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&tar), user::UID);
    });
}
