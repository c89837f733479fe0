//! Uppers change hands: one that tarnfs wrote is read by the kernel's overlayfs over the kernel's
//! own mount of the index, and one that overlayfs wrote is read by tarnfs. Both show one tree.
//!
//! Left out of the comparison: link counts. overlayfs says 1 for a merged directory, and counts
//! the image's names of a file whose other names are gone.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "erofs_support/kernel.rs"]
mod kernel;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use common::tarball::{Tarball, record};
use common::{Sandbox, can_mount, ok, walk};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
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

/// The kernel's EROFS mount of the index at `at/lower`, under overlayfs at `at/overlay`.
fn overlayfs(at: &Path, index: &Path, tar: &Path, upper: &Path, work: &Path) -> [Attached; 2] {
    let attach = |fd: std::os::fd::BorrowedFd<'_>, dir: &str| {
        let dir = at.join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(fd, "", rustix::fs::CWD, &dir, flags).unwrap();
        Attached(dir)
    };
    let side = index.with_extension("erofs.side");
    let mut blobs = vec![tar.to_owned()];
    blobs.extend(side.exists().then_some(side));
    let lower = attach(kernel::mount(index, &blobs).unwrap().as_fd(), "lower");
    std::fs::create_dir_all(upper).unwrap();
    std::fs::create_dir_all(work).unwrap();
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(&fs, "source", "exchange").unwrap();
    fsconfig_set_string(&fs, "lowerdir", &lower.0).unwrap();
    fsconfig_set_string(&fs, "upperdir", upper).unwrap();
    fsconfig_set_string(&fs, "workdir", work).unwrap();
    for (key, value) in [
        ("redirect_dir", "on"),
        ("index", "off"),
        ("metacopy", "off"),
        ("xino", "on"),
    ] {
        fsconfig_set_string(&fs, key, value).unwrap();
    }
    fsconfig_create(&fs).unwrap();
    let made = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let overlay = attach(made.as_fd(), "overlay");
    // Unmounted in this order.
    [overlay, lower]
}

fn described(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut all = walk::describe(root);
    for line in all.values_mut() {
        let (before, rest) = line.split_once(" links ").unwrap();
        let (_, after) = rest.split_once(' ').unwrap();
        *line = format!("{before} {after}");
        // Our own mark: hidden by us, an attribute like any other for overlayfs.
        if let Some((before, rest)) = line.split_once(" \"trusted.tarnfs.ino\"=") {
            let (_, after) = rest
                .split_once('"')
                .and_then(|(_, r)| r.split_once('"'))
                .unwrap();
            *line = format!("{before}{after}");
        }
    }
    all
}

/// Runs a Python script; `sys.argv[1]` is `at`.
fn python(at: &Path, script: &str) {
    ok("python3", ["-c".as_ref(), script.as_ref(), at.as_os_str()]);
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
    let pack = format!(
        "tar --xattrs --xattrs-include='*' --acls --numeric-owner -C '{}' -cf '{}' .",
        tree.display(),
        tar.display()
    );
    ok("sh", ["-euc", &pack]);
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
    let options = [
        "--upper",
        upper.to_str().unwrap(),
        "--work",
        work.to_str().unwrap(),
    ];
    let mount = sandbox.mount("mount", &tar, &options);
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
    let options = [
        "--upper",
        upper.to_str().unwrap(),
        "--work",
        work.to_str().unwrap(),
    ];
    let mount = sandbox.mount("mount", &tar, &options);
    walk::assert_same(&want, &described(mount.path()));
    mount.unmount();
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
    let options = [
        "--upper",
        upper.to_str().unwrap(),
        "--work",
        work.to_str().unwrap(),
    ];
    let mount = sandbox.mount("mount", &tar, &options);
    // 4,039 bytes: as long as a path in an image may be, and more than an attribute on ext4 holds.
    let descend = "import errno, os, subprocess, sys
top = sys.argv[1]; os.chdir(top)
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
