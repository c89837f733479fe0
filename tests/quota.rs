//! How much an upper may hold: what is counted is what is there, on every filesystem; who reaches
//! the limit gets ENOSPC, and others and what needs no room go on.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;
#[path = "quota/counted.rs"]
mod counted;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use common::{Mount, Sandbox, can_mount, has, ok, pack};
use rustix::io::Errno;

const TREE: &str = r"
mkdir -p d/e; for i in 0 1 2 3 4 5 6 7; do head -c ${i}0000 /dev/urandom >d/f$i; done
ln d/f3 d/e/l3; ln -s f3 d/sym; truncate -s 50M hole; echo x >>hole
head -c 3000000 /dev/urandom >big; for i in $(seq 40); do echo $i >d/e/$i; done
";

/// Bytes of all blocks and number of all inodes below a directory, itself too; no whiteouts.
fn on_disk(dir: &Path) -> (u64, u64) {
    on_disk_ahead(dir, u64::MAX)
}

/// The same; what a file has so far behind its end, and more, is left out.
fn on_disk_ahead(dir: &Path, ahead: u64) -> (u64, u64) {
    fn look(dir: &Path, seen: &mut HashMap<u64, u64>, ahead: u64) {
        let own = fs::symlink_metadata(dir).unwrap();
        seen.insert(own.ino(), own.blocks());
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                look(&entry.path(), seen, ahead);
            } else if !meta.file_type().is_char_device() || meta.rdev() != 0 {
                let most = meta.len().next_multiple_of(4096).saturating_add(ahead) / 512;
                let capped = if meta.is_file() { most } else { u64::MAX };
                seen.insert(meta.ino(), meta.blocks().min(capped));
            }
        }
    }
    let mut seen = HashMap::new();
    look(dir, &mut seen, ahead);
    (seen.values().sum::<u64>() * 512, seen.len() as u64)
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().as_ref().and_then(Errno::from_io_error)
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
        let tree = sandbox.dir("tree");
        ok("sh", ["-euc", &format!("cd '{}'; {TREE}", tree.display())]);
        let tar = sandbox.at("image.tar");
        pack(&tree, &tar, &["--sparse"]);
        Some(Self { sandbox, tar })
    }

    fn mount(&self, name: &str, options: &[&str]) -> Mount<'_> {
        let dirs = [
            self.sandbox.dir(format!("{name}-upper")),
            self.sandbox.at(format!("{name}-work")),
        ];
        self.sandbox
            .mount_over(name, &self.tar, (&dirs[0], &dirs[1]), options)
    }

    fn used(&self, name: &str) -> (u64, u64) {
        on_disk(&self.sandbox.at(format!("{name}-upper")))
    }
}

/// Writes to a file until there is no room, and answers how much there was.
fn fill(path: &Path) -> u64 {
    let mut file = File::create(path).unwrap();
    let chunk = vec![7; 300_000];
    loop {
        if let Err(error) = file.write_all(&chunk) {
            assert_eq!(Errno::from_io_error(&error), Some(Errno::NOSPC));
            return file.metadata().unwrap().len();
        }
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn who_fills_his_bytes_stops_and_the_other_goes_on() {
    let Some(world) = World::new() else { return };
    let one = world.mount("one", &["--size", "8M"]);
    let two = world.mount("two", &["-o", "size=20M"]);
    let filled = fill(&one.at("file"));
    assert!(
        filled <= 8 * MIB && filled > 8 * MIB - 64 * 1024,
        "{filled}"
    );
    assert!(
        world.used("one").0 <= 8 * MIB + 8192,
        "{:?}",
        world.used("one")
    );
    // All that needs more gives ENOSPC, and leaves nothing.
    let before = world.used("one");
    for (what, result) in [
        ("mkdir", errno(fs::create_dir(one.at("dir")))),
        ("write", errno(fs::write(one.at("more"), vec![1; 100_000]))),
        (
            "copy-up",
            errno(File::options().append(true).open(one.at("big"))),
        ),
        (
            "chmod of the image",
            errno(fs::rename(one.at("d/f7"), one.at("moved"))),
        ),
    ] {
        assert_eq!(result, Some(Errno::NOSPC), "{what}");
    }
    let file = File::options().write(true).open(one.at("file")).unwrap();
    let room = rustix::fs::FallocateFlags::empty();
    let refused = rustix::fs::fallocate(&file, room, 0, filled + MIB);
    assert_eq!(refused, Err(Errno::NOSPC));
    assert!(!one.at("dir").exists() && fs::metadata(one.at("big")).unwrap().len() == 3_000_000);
    assert!(world.used("one").0 <= before.0 + 8192);
    // What needs none works: overwriting, reading, changing attributes, cutting, removing.
    file.write_all_at(&[9; 1_000_000], 12_345).unwrap();
    fs::set_permissions(
        one.at("file"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    assert_eq!(fs::read(one.at("file")).unwrap()[12_345], 9);
    assert_eq!(fs::read(one.at("big")).unwrap().len(), 3_000_000);
    fs::remove_file(one.at("d/e/1")).unwrap_err();
    file.set_len(filled / 2).unwrap();
    fs::write(one.at("more"), vec![1; 100_000]).unwrap();
    fs::remove_file(one.at("d/e/1")).unwrap();
    // The other one has its own.
    fs::write(two.at("file"), vec![2; 12 << 20]).unwrap();
    File::options().append(true).open(two.at("big")).unwrap();
    // What is gone makes room at once.
    drop(file);
    for _ in 0..20 {
        fs::remove_file(one.at("file")).unwrap();
        fs::write(one.at("file"), vec![3; 7 << 20]).unwrap();
    }
    // Kept by who has it open, until it is closed.
    let open = File::open(one.at("file")).unwrap();
    fs::remove_file(one.at("file")).unwrap();
    assert_eq!(
        errno(fs::write(one.at("next"), vec![3; 7 << 20])),
        Some(Errno::NOSPC)
    );
    drop(open);
    fs::write(one.at("next"), vec![3; 7 << 20]).unwrap();
}

#[test]
fn who_fills_his_inodes_stops_and_the_other_goes_on() {
    let Some(world) = World::new() else { return };
    let one = world.mount("one", &["--inodes", "30"]);
    let two = world.mount("two", &["--inodes", "1000"]);
    let mut made = 0;
    while fs::write(one.at(format!("new{made}")), "").is_ok() {
        made += 1;
        fs::write(two.at(format!("new{made}")), "").unwrap();
    }
    // The root is one.
    assert_eq!(made, 29);
    assert_eq!(world.used("one").1, 30);
    for (what, result) in [
        ("file", errno(File::create(one.at("x")))),
        ("dir", errno(fs::create_dir(one.at("x")))),
        (
            "symlink",
            errno(std::os::unix::fs::symlink("a", one.at("x"))),
        ),
        (
            "copy-up",
            errno(File::options().append(true).open(one.at("big"))),
        ),
    ] {
        assert_eq!(result, Some(Errno::NOSPC), "{what}");
    }
    // A further name is no inode, nor is a whiteout; bytes have no limit.
    fs::hard_link(one.at("new0"), one.at("name")).unwrap();
    fs::remove_file(one.at("big")).unwrap();
    fs::rename(one.at("new1"), one.at("renamed")).unwrap();
    fs::write(one.at("new2"), vec![1; 5 << 20]).unwrap();
    fs::remove_file(one.at("new0")).unwrap();
    assert_eq!(
        errno(File::create(one.at("x"))),
        Some(Errno::NOSPC),
        "it has a name left"
    );
    fs::remove_file(one.at("name")).unwrap();
    File::create(one.at("x")).unwrap();
    let shown = rustix::fs::statvfs(one.path()).unwrap();
    assert_eq!((shown.f_files, shown.f_ffree), (30, 0));
}

#[test]
fn a_private_tmpfs_keeps_its_own_limits() {
    let Some(world) = World::new() else { return };
    let one = world.sandbox.mount(
        "one",
        &world.tar,
        &["--tmpfs", "--size", "4M", "--inodes", "40"],
    );
    let filled = fill(&one.at("file"));
    assert!(filled <= 4 * MIB && filled > 3 * MIB, "{filled}");
    fs::remove_file(one.at("file")).unwrap();
    fs::write(one.at("file"), vec![1; 3 << 20]).unwrap();
    let made = (0..)
        .find(|n| File::create(one.at(format!("n{n}"))).is_err())
        .unwrap();
    assert!((25..40).contains(&made), "{made}");
    let shown = rustix::fs::statvfs(one.path()).unwrap();
    assert_eq!(
        (shown.f_blocks * shown.f_frsize, shown.f_files),
        (4 * MIB, 40)
    );
}

#[test]
fn what_statfs_shows() {
    let Some(world) = World::new() else { return };
    let one = world.mount("one", &["--size", "16M"]);
    let bytes = || {
        let shown = rustix::fs::statvfs(one.path()).unwrap();
        let (unit, free) = (shown.f_frsize, shown.f_bfree);
        assert_eq!(shown.f_bavail, free);
        (shown.f_blocks * unit, free * unit)
    };
    assert_eq!(bytes().0, 16 * MIB);
    let before = bytes().1;
    fs::write(one.at("file"), vec![1; 4 << 20]).unwrap();
    assert_eq!(before - bytes().1, 4 * MIB);
    fill(&one.at("rest"));
    assert!(bytes().1 < 64 * 1024);
    // More than the filesystem has is not promised.
    let two = world.mount("two", &["--size", "4096T"]);
    let (shown, real) = (
        rustix::fs::statvfs(two.path()).unwrap(),
        rustix::fs::statvfs(world.sandbox.path()).unwrap(),
    );
    assert_eq!(shown.f_blocks, real.f_blocks);
}

/// A copy of which there is no room for all is not begun.
#[test]
fn a_large_copy_up_fails_before_it_begins() {
    let Some(world) = World::new() else { return };
    let one = world.mount("one", &["--size", "2M"]);
    let before = world.used("one");
    let refused = File::options().write(true).open(one.at("big"));
    assert_eq!(errno(refused), Some(Errno::NOSPC));
    assert_eq!(world.used("one"), before);
    // Of a sparse file its data counts, of one that is cut what stays.
    File::options().append(true).open(one.at("hole")).unwrap();
    fs::write(one.at("d/f7"), "").unwrap();
    let cut = File::options().write(true).open(one.at("d/f6")).unwrap();
    cut.set_len(0).unwrap();
    assert!(world.used("one").0 < 200_000);
}

/// What lies beyond the limit already can be read and removed, until it is below.
#[test]
fn an_upper_that_holds_more_than_its_quota() {
    let Some(world) = World::new() else { return };
    let mount = world.mount("one", &[]);
    for n in 0..10 {
        fs::write(mount.at(format!("file{n}")), vec![1; 1 << 20]).unwrap();
    }
    fs::hard_link(mount.at("file0"), mount.at("again")).unwrap();
    mount.unmount();
    let mount = world.mount("one", &["--size", "4M", "--inodes", "8"]);
    assert_eq!(fs::read(mount.at("file9")).unwrap().len(), 1 << 20);
    let file = File::options().write(true).open(mount.at("file9")).unwrap();
    file.write_all_at(b"overwritten", 5).unwrap();
    assert_eq!(
        errno(file.write_all_at(b"beyond", 2 << 20)),
        Some(Errno::NOSPC)
    );
    assert_eq!(errno(File::create(mount.at("new"))), Some(Errno::NOSPC));
    for n in 1..7 {
        fs::remove_file(mount.at(format!("file{n}"))).unwrap();
    }
    file.set_len(1 << 19).unwrap();
    assert_eq!(
        errno(file.write_all_at(&[1; 1 << 20], 1 << 20)),
        Some(Errno::NOSPC)
    );
    fs::remove_file(mount.at("file7")).unwrap();
    file.write_all_at(&[1; 1 << 20], 1 << 20).unwrap();
    File::create(mount.at("new")).unwrap();
}

/// A server that is killed leaves no account; the next one counts anew.
#[test]
fn a_server_that_was_killed_is_followed_by_one_that_counts() {
    let Some(world) = World::new() else { return };
    let mount = world.mount("one", &["--size", "8M"]);
    fs::write(mount.at("file"), vec![1; 6 << 20]).unwrap();
    File::options().append(true).open(mount.at("d/f5")).unwrap();
    let server = rustix::process::Pid::from_raw(mount.server() as i32).unwrap();
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    while Path::new(&format!("/proc/{}/fd", server.as_raw_nonzero())).exists() {
        std::thread::yield_now();
    }
    drop(mount);
    let mount = world.mount("one", &["--size", "8M"]);
    assert_eq!(
        errno(fs::write(mount.at("more"), vec![1; 2 << 20])),
        Some(Errno::NOSPC)
    );
    fs::remove_file(mount.at("more")).unwrap();
    fs::remove_file(mount.at("file")).unwrap();
    fs::write(mount.at("more"), vec![1; 7 << 20]).unwrap();
}

/// XFS allocates ahead of a file that grows, which must neither use up the quota nor let it be passed.
#[test]
fn what_xfs_allocates_ahead_is_no_way_past_the_limit() {
    let Some(world) = World::new() else { return };
    if !has("mkfs.xfs") {
        return;
    }
    let (image, disk) = (world.sandbox.at("xfs.img"), world.sandbox.dir("xfs"));
    File::create(&image).unwrap().set_len(600 * MIB).unwrap();
    ok("mkfs.xfs", ["-q", image.to_str().unwrap()]);
    let words = [
        "-o",
        "loop",
        image.to_str().unwrap(),
        disk.to_str().unwrap(),
    ];
    ok("mount", words);
    let dirs = [disk.join("upper"), disk.join("work")];
    let (dirs, size) = ((dirs[0].as_path(), dirs[1].as_path()), ["--size", "70M"]);
    let mount = world.sandbox.mount_over("one", &world.tar, dirs, &size);
    let filled = fill(&mount.at("file"));
    assert!(filled <= 70 * MIB && filled > 69 * MIB, "{filled}");
    // What was asked for behind the end counts.
    fs::remove_file(mount.at("file")).unwrap();
    let file = File::create(mount.at("file")).unwrap();
    let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, keep, 0, 60 * MIB).unwrap();
    assert_eq!(
        rustix::fs::fallocate(&file, keep, 60 * MIB, 20 * MIB),
        Err(Errno::NOSPC)
    );
    assert!(fill(&mount.at("other")) < 11 * MIB);
    file.write_all_at(&[1; 1 << 20], 59 * MIB).unwrap();
    drop(file);
    mount.unmount();
}

/// Stores to shared maps come as requests, and cannot go beyond the limit; msync(2) tells.
#[test]
fn stores_to_maps_are_counted() {
    let Some(world) = World::new() else { return };
    if !has("python3") {
        return;
    }
    let mount = world.mount("one", &["--size", "2M"]);
    common::python::python(
        mount.path(),
        r"
import errno, mmap
fd = os.open('map', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 8 << 20)
m = mmap.mmap(fd, 0)
m[:1 << 20] = b'x' * (1 << 20); m.flush()
m[1 << 20:] = b'y' * (7 << 20)
try:
    m.flush()
except OSError as error:
    assert error.errno in (errno.ENOSPC, errno.EIO), error
else:
    raise AssertionError('there was no room')
",
    );
    assert!(world.used("one").0 <= 2 * MIB + 8192);
}

#[test]
fn without_root_too() {
    common::user::with_user("without_root_too", |user| {
        user.clear();
        user.sh("mkdir tree mount; head -c 100000 /dev/zero >tree/x; tar -cf image.tar -C tree .");
        user.sh("\"$TARNFS\" mount --size 2M --inodes 5 --upper upper --work work image.tar mount");
        user.sh(
            "! head -c 3000000 /dev/zero >mount/file; [ $(stat -c %s mount/file) -gt 1900000 ]; \
             [ $(stat -c %s mount/file) -le 2097152 ]; rm mount/file; echo >>mount/x; \
             touch mount/1 mount/2 mount/3; ! touch mount/4; rm mount/1; touch mount/4",
        );
        user.sh("\"$TARNFS\" umount mount");
        user.wait_for_servers();
    });
}
