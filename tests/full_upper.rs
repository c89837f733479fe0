//! An upper that runs out of space or inodes, or becomes read-only, under a mount: the caller gets
//! the errno, nothing is half done, and the mount goes on as soon as there is room again.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "full_upper/beside_overlayfs.rs"]
mod beside_overlayfs;
mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Mount, Sandbox, can_mount, has, ok, pack};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};

const TREE: &str = r"
mkdir -p d/e
head -c 1200000 /dev/urandom >big; head -c 1200000 /dev/urandom >l1
ln l1 d/l2; ln l1 d/e/l3; chmod 4755 d/e/l3
for i in 1 2 3 4 5 6 7 8 9; do mkdir d/d$i; echo $i >d/d$i/f; ln -s f d/d$i/s; done
";

/// A sandbox with an image, and a filesystem for its upper: a tmpfs with `options`, or (`ext4`) one
/// with few inodes.
struct Full {
    sandbox: Sandbox,
    tar: PathBuf,
    disk: PathBuf,
}

impl Full {
    fn new(options: &str) -> Self {
        Self::with(options, TREE, 40)
    }

    /// With the tree that a script makes, and so many inodes if it is ext4.
    fn with(options: &str, tree: &str, inodes: u32) -> Self {
        let sandbox = Sandbox::new();
        let from = sandbox.dir("from");
        ok("sh", ["-euc", &format!("cd '{}'; {tree}", from.display())]);
        let tar = sandbox.at("image.tar");
        pack(&from, &tar, &["--xattrs"]);
        let disk = sandbox.dir("disk");
        if options == "ext4" {
            let image = sandbox.at("ext4.img");
            fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
            let (image, inodes) = (image.to_str().unwrap(), inodes.to_string());
            ok("mkfs.ext4", ["-q", "-F", "-N", &inodes, image]);
            ok("mount", ["-o", "loop", image, disk.to_str().unwrap()]);
        } else {
            let options = std::ffi::CString::new(options).unwrap();
            let flags = MountFlags::empty();
            mount("tmpfs", &disk, "tmpfs", flags, options.as_c_str()).unwrap();
        }
        fs::create_dir(disk.join("upper")).unwrap();
        Self { sandbox, tar, disk }
    }

    /// As soon as the server has closed what was just written, of which the kernel tells it late.
    fn becomes_read_only(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while let Err(error) = mount_remount(&self.disk, MountFlags::RDONLY, c"") {
            assert!(error == Errno::BUSY && Instant::now() < until, "{error}");
            std::thread::yield_now();
        }
    }

    fn mount(&self) -> Mount<'_> {
        let dir = |name: &str| self.disk.join(name).to_str().unwrap().to_owned();
        let (upper, work) = (dir("upper"), dir("work"));
        let options = ["--upper", &upper, "--work", &work];
        self.sandbox.mount("mount", &self.tar, &options)
    }
}

/// Everything that a tree shows but for times, and sizes of directories.
fn show(root: &Path) -> String {
    let list = r"cd '@'; find . -type d -printf '%p %i %m %n\n' -o -printf '%p %i %y %m %n %s %l\n' \
        | sort; find . -type f -exec md5sum {} + | sort -k 2";
    ok("sh", ["-euc", &list.replace('@', root.to_str().unwrap())])
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().as_ref().and_then(Errno::from_io_error)
}

fn append(path: &Path) -> std::io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new()
        .append(true)
        .open(path)?
        .write_all(b"more")
}

#[test]
fn no_space_in_the_middle_of_a_copy_up() {
    if !can_mount() {
        return;
    }
    let full = Full::new("size=2m");
    let mount = full.mount();
    append(&mount.at("big")).unwrap();
    let before = show(mount.path());
    for name in ["l1", "d/l2", "d/e/l3"] {
        assert_eq!(errno(append(&mount.at(name))), Some(Errno::NOSPC), "{name}");
        let renamed = fs::rename(mount.at(name), mount.at("moved"));
        assert_eq!(errno(renamed), Some(Errno::NOSPC), "{name}");
        let linked = fs::hard_link(mount.at(name), mount.at("linked"));
        assert_eq!(errno(linked), Some(Errno::NOSPC), "{name}");
    }
    assert_eq!(show(mount.path()), before);
    mount.unmount();
    let mount = full.mount();
    assert_eq!(show(mount.path()), before);
    // Room again as soon as the file is gone, without another mount.
    fs::remove_file(mount.at("big")).unwrap();
    append(&mount.at("d/l2")).unwrap();
    let meta = fs::metadata(mount.at("l1")).unwrap();
    assert_eq!((meta.len(), meta.nlink()), (1_200_004, 3));
    fs::remove_file(mount.at("l1")).unwrap();
    let after = show(mount.path());
    mount.unmount();
    assert_eq!(show(full.mount().path()), after);
}

/// The kernel lets go of a removed file a moment after unlink(2) has returned; who needs its room
/// must not notice.
#[test]
fn room_of_a_removed_file_is_there_at_once() {
    if !can_mount() {
        return;
    }
    let full = Full::new("size=2m");
    let mount = full.mount();
    let data = vec![7_u8; 1_500_000];
    for round in 0..100 {
        let [old, new] = [round, round + 1].map(|n| mount.at(format!("file{n}")));
        if round == 0 {
            fs::write(&old, &data).unwrap();
        }
        fs::read(&old).unwrap();
        fs::remove_file(&old).unwrap();
        fs::write(&new, &data).unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
    // A file that is open keeps its room, and who wants it is told.
    let open = fs::File::open(mount.at("file100")).unwrap();
    fs::remove_file(mount.at("file100")).unwrap();
    let refused = fs::write(mount.at("more"), &data);
    assert_eq!(errno(refused), Some(Errno::NOSPC));
    drop(open);
    fs::write(mount.at("more"), &data).unwrap();
}

#[test]
fn regression_an_upper_without_free_inodes_can_be_mounted_and_emptied() {
    // Not tmpfs: there each hard link takes an inode (mm/shmem.c:shmem_link()).
    if !can_mount() || !has("mkfs.ext4") {
        return;
    }
    let full = Full::new("ext4");
    let mount = full.mount();
    // The first removal makes the whiteout that all others share.
    fs::remove_file(mount.at("d/d9/s")).unwrap();
    while fs::write(
        mount.at(format!(
            "new{}",
            fs::read_dir(mount.path()).unwrap().count()
        )),
        "",
    )
    .is_ok()
    {}
    let before = show(mount.path());
    for i in 1..9 {
        let file = mount.at(format!("d/d{i}/f"));
        assert_eq!(errno(append(&file)), Some(Errno::NOSPC));
        let dir = mount.at(format!("d/d{i}"));
        assert_eq!(
            errno(fs::rename(&dir, mount.at("moved"))),
            Some(Errno::NOSPC)
        );
        let exchanged =
            rustix::fs::renameat_with(CWD, &dir, CWD, mount.at("d/e/l3"), RenameFlags::EXCHANGE);
        assert_eq!(exchanged, Err(Errno::NOSPC));
        assert_eq!(errno(fs::create_dir(mount.at("dir"))), Some(Errno::NOSPC));
    }
    assert_eq!(errno(append(&mount.at("l1"))), Some(Errno::NOSPC));
    assert_eq!(show(mount.path()), before);
    mount.unmount();
    let mount = full.mount();
    assert_eq!(show(mount.path()), before);
    fs::remove_file(mount.at("big")).unwrap();
    fs::remove_file(mount.at("d/d9/f")).unwrap();
    fs::remove_dir(mount.at("d/d9")).unwrap();
    // The file itself, d/e for its third name, and work/pending-links.
    for i in 4..8 {
        fs::remove_file(mount.at(format!("new{i}"))).unwrap();
    }
    append(&mount.at("l1")).unwrap();
    assert_eq!(fs::metadata(mount.at("d/e/l3")).unwrap().len(), 1_200_004);
    let after = show(mount.path());
    mount.unmount();
    assert_eq!(show(full.mount().path()), after);
}

#[test]
fn an_upper_that_becomes_read_only() {
    if !can_mount() {
        return;
    }
    let full = Full::new("size=8m");
    let mount = full.mount();
    append(&mount.at("big")).unwrap();
    let before = show(mount.path());
    full.becomes_read_only();
    for name in ["big", "l1", "d/d1/f"] {
        assert_eq!(errno(append(&mount.at(name))), Some(Errno::ROFS), "{name}");
        let renamed = fs::rename(mount.at(name), mount.at("moved"));
        assert_eq!(errno(renamed), Some(Errno::ROFS), "{name}");
        let removed = fs::remove_file(mount.at(name));
        assert_eq!(errno(removed), Some(Errno::ROFS), "{name}");
    }
    assert_eq!(errno(fs::create_dir(mount.at("dir"))), Some(Errno::ROFS));
    assert_eq!(show(mount.path()), before);
    mount_remount(&full.disk, MountFlags::empty(), c"").unwrap();
    assert_eq!(show(mount.path()), before);
    append(&mount.at("l1")).unwrap();
    fs::remove_file(mount.at("big")).unwrap();
    let after = show(mount.path());
    mount.unmount();
    assert_eq!(show(full.mount().path()), after);
}
