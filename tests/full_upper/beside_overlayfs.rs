//! The same operations on a mount and on the kernel's overlayfs over the same tree, both with an
//! upper that is full, has no free inode or has become read-only: each gives the same errno, or
//! succeeds on both, and both show the same afterwards.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, FileType, Mode, RenameFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::{Full, TREE, errno};
use crate::common::{can_mount, has, skip, walk};

/// Files for each operation, in directories of their own.
const MORE: &str = r"
for i in $(seq 40); do mkdir -p o/$i/sub; printf 0123456789 >o/$i/f; printf g >o/$i/g; echo s >o/$i/sub/s; done
for i in $(seq 40); do setfattr -n user.k -v v o/$i/f; ln o/$i/g o/$i/h; done
";

/// What is there before the upper has no more room: of both layers.
fn prepare(root: &Path) {
    for i in 1..=40 {
        fs::write(root.join(format!("o/{i}/born")), [b'b'; 100]).unwrap();
        fs::create_dir(root.join(format!("o/{i}/made"))).unwrap();
    }
    fs::write(root.join("filled"), [b'x'; 8192]).unwrap();
    // The first removal makes the whiteout that all others share, on overlayfs too.
    fs::remove_file(root.join("o/40/f")).unwrap();
}

/// Where overlayfs gives one errno and a mount another, as docs/SEMANTICS.md says.
const KNOWN: &[(&str, Option<Errno>, Option<Errno>)] = &[
    // overlayfs knows when it opens the file that nothing is to be kept.
    ("cut the image's", None, Some(Errno::NOSPC)),
    // overlayfs copies the file to count its names.
    ("remove one of two", Some(Errno::NOSPC), None),
];

struct Overlayfs(PathBuf);

impl Drop for Overlayfs {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("umount {}: {error}", self.0.display());
        }
    }
}

impl Overlayfs {
    fn mount(full: &Full) -> Option<Self> {
        let at = full.sandbox.dir("overlay");
        fs::create_dir_all(full.disk.join("work")).unwrap();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on,index=on",
            full.sandbox.at("from").display(),
            full.disk.join("upper").display(),
            full.disk.join("work").display()
        );
        let options = std::ffi::CString::new(options).unwrap();
        match mount(
            "overlay",
            &at,
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        ) {
            Ok(()) => Some(Self(at)),
            Err(error) => {
                skip(&format!("overlayfs: {error}"));
                None
            }
        }
    }
}

type Operation = (&'static str, fn(&Path) -> Result<(), Errno>);

fn io<T>(result: std::io::Result<T>) -> Result<(), Errno> {
    errno(result).map_or(Ok(()), Err)
}

fn write_at(path: &Path, offset: u64, data: &[u8]) -> Result<(), Errno> {
    let file = OpenOptions::new().write(true).open(path);
    io(file.and_then(|file| file.write_all_at(data, offset)))
}

fn xattr(path: &Path, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::lsetxattr(path, "user.k", value, XattrFlags::empty())
}

fn mknod(path: &Path, kind: FileType) -> Result<(), Errno> {
    rustix::fs::mknodat(CWD, path, kind, Mode::RUSR, rustix::fs::makedev(1, 3))
}

fn exchange(a: &Path, b: &Path) -> Result<(), Errno> {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
}

/// Each gets a directory of its own: `f` and `sub/s` of the image, `g` and `h` two names of one
/// file of it, `born` and `made` of the upper.
const OPERATIONS: &[Operation] = &[
    ("read", |d| io(fs::read(d.join("f")))),
    ("append to the image's", |d| super_append(&d.join("f"))),
    ("overwrite in the image's", |d| {
        write_at(&d.join("f"), 2, b"x")
    }),
    ("open the image's for writing", |d| {
        io(OpenOptions::new().write(true).open(d.join("f")))
    }),
    ("cut the image's", |d| {
        io(OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(d.join("f")))
    }),
    ("truncate the image's", |d| {
        io(OpenOptions::new()
            .write(true)
            .open(d.join("f"))
            .and_then(|f| f.set_len(3)))
    }),
    ("chmod the image's", |d| {
        io(fs::set_permissions(
            d.join("f"),
            fs::Permissions::from_mode(0o600),
        ))
    }),
    ("chmod the image's directory", |d| {
        io(fs::set_permissions(
            d.join("sub"),
            fs::Permissions::from_mode(0o700),
        ))
    }),
    ("chown the image's", |d| {
        io(std::os::unix::fs::chown(d.join("f"), Some(1), None))
    }),
    ("set an attribute of the image's", |d| {
        xattr(&d.join("f"), b"new")
    }),
    ("remove an attribute of the image's", |d| {
        rustix::fs::lremovexattr(d.join("f"), "user.k")
    }),
    ("remove none of the image's", |d| {
        rustix::fs::lremovexattr(d.join("f"), "user.none")
    }),
    ("link the image's", |d| {
        io(fs::hard_link(d.join("f"), d.join("new")))
    }),
    ("link one of two", |d| {
        io(fs::hard_link(d.join("g"), d.join("new")))
    }),
    ("append to one of two", |d| super_append(&d.join("h"))),
    ("remove one of two", |d| io(fs::remove_file(d.join("g")))),
    ("rename the image's", |d| {
        io(fs::rename(d.join("f"), d.join("new")))
    }),
    ("rename the image's over the upper's", |d| {
        io(fs::rename(d.join("f"), d.join("born")))
    }),
    ("rename the upper's over the image's", |d| {
        io(fs::rename(d.join("born"), d.join("f")))
    }),
    ("rename the image's directory", |d| {
        io(fs::rename(d.join("sub"), d.join("new")))
    }),
    ("rename the upper's", |d| {
        io(fs::rename(d.join("born"), d.join("new")))
    }),
    ("rename the upper's directory", |d| {
        io(fs::rename(d.join("made"), d.join("new")))
    }),
    ("exchange the image's", |d| {
        exchange(&d.join("f"), &d.join("sub"))
    }),
    ("exchange the upper's", |d| {
        exchange(&d.join("born"), &d.join("made"))
    }),
    ("remove the image's", |d| io(fs::remove_file(d.join("f")))),
    ("remove the image's directory", |d| {
        io(fs::remove_dir_all(d.join("sub")))
    }),
    ("remove the upper's", |d| {
        io(fs::remove_file(d.join("made/../born")))
    }),
    ("remove the upper's directory", |d| {
        io(fs::remove_dir(d.join("made")))
    }),
    ("create", |d| io(File::create_new(d.join("new")))),
    ("create in the image's directory", |d| {
        io(File::create_new(d.join("sub/new")))
    }),
    ("mkdir", |d| io(fs::create_dir(d.join("made/new")))),
    ("symlink", |d| io(symlink("x", d.join("made/new")))),
    ("mkfifo", |d| mknod(&d.join("made/new"), FileType::Fifo)),
    ("mknod", |d| {
        mknod(&d.join("made/new"), FileType::CharacterDevice)
    }),
    ("overwrite in the upper's", |d| {
        write_at(&d.join("born"), 2, b"x")
    }),
    ("extend the upper's", |d| {
        write_at(&d.join("born"), 1 << 20, &[b'x'; 5000])
    }),
    ("allocate in the upper's", |d| {
        let open = OpenOptions::new().write(true).open(d.join("born"));
        let file = open.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20)
    }),
    ("chmod the upper's", |d| {
        io(fs::set_permissions(
            d.join("born"),
            fs::Permissions::from_mode(0o600),
        ))
    }),
    ("link the upper's", |d| {
        io(fs::hard_link(d.join("born"), d.join("made/new")))
    }),
];

fn super_append(path: &Path) -> Result<(), Errno> {
    io(super::append(path))
}

/// What each operation gave.
fn operate(root: &Path) -> BTreeMap<&'static str, Result<(), Errno>> {
    let all = OPERATIONS.iter().enumerate();
    all.map(|(i, (name, act))| (*name, act(&root.join(format!("o/{}", i + 1)))))
        .collect()
}

/// What both show: link counts of directories aside, of which overlayfs says 1 where it merges.
fn described(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut all = walk::describe(&root.join("o"));
    for line in all.values_mut() {
        let (before, rest) = line.split_once(" links ").unwrap();
        let (_, after) = rest.split_once(' ').unwrap();
        // Times differ where both sides changed something, each when it did.
        let (after, _) = after.split_once(" mtime").unwrap();
        *line = format!("{before} {after}");
    }
    all
}

/// No byte, or no inode, is left on the disk of the upper.
fn fill(disk: &Path, inodes: bool) {
    fs::create_dir(disk.join("filler")).unwrap();
    if inodes {
        let mut i = 0;
        while File::create(disk.join(format!("filler/{i}"))).is_ok() {
            i += 1;
        }
        return;
    }
    let mut file = File::create(disk.join("filler/file")).unwrap();
    for size in [1 << 16, 1 << 12] {
        let data = vec![7_u8; size];
        while file.write_all(&data).and_then(|()| file.sync_all()).is_ok() {}
    }
}

fn empty(full: &Full) {
    fs::remove_dir_all(full.disk.join("filler")).unwrap();
}

fn beside(disk: &str, make_full: fn(&Full), undo: fn(&Full)) {
    if !can_mount() || !["mkfs.ext4", "setfattr"].into_iter().all(has) {
        return;
    }
    let tree = format!("{TREE}{MORE}");
    let (ours, theirs) = (Full::with(disk, &tree, 400), Full::with(disk, &tree, 400));
    let Some(overlay) = Overlayfs::mount(&theirs) else {
        return;
    };
    let mount = ours.mount();
    for root in [mount.path(), &overlay.0] {
        prepare(root);
    }
    let roots = [&overlay.0, mount.path()];
    make_full(&ours);
    make_full(&theirs);
    let differ = compare(roots, &mut Vec::new());
    undo(&ours);
    undo(&theirs);
    // As soon as there is room again, what could not be done can.
    compare(roots, &mut differ.clone());
}

/// Does every operation on both sides and compares, but for those that differed before. Gives
/// those that differ as it is known.
fn compare([theirs, ours]: [&Path; 2], differ: &mut Vec<&'static str>) -> Vec<&'static str> {
    let (want, got) = (operate(theirs), operate(ours));
    let mut differences = Vec::new();
    for (name, want) in &want {
        let got = got[name];
        if got == *want || differ.contains(name) {
            continue;
        }
        if KNOWN.contains(&(name, want.err(), got.err())) {
            differ.push(name);
        } else {
            differences.push(format!("{name}: overlayfs {want:?}, tarnfs {got:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let (mut theirs, mut ours) = (described(theirs), described(ours));
    for (i, (name, _)) in OPERATIONS.iter().enumerate() {
        if differ.contains(name) {
            let below = format!("{}/", i + 1);
            for side in [&mut theirs, &mut ours] {
                side.retain(|path, _| !path.starts_with(below.as_bytes()));
            }
        }
    }
    walk::assert_same(&theirs, &ours);
    std::mem::take(differ)
}

#[test]
fn a_full_upper_gives_what_overlayfs_gives() {
    beside("size=2m", |full| fill(&full.disk, false), empty);
}

#[test]
fn an_upper_without_free_inodes_gives_what_overlayfs_gives() {
    beside("ext4", |full| fill(&full.disk, true), empty);
}

#[test]
fn an_upper_that_becomes_read_only_gives_what_overlayfs_gives() {
    beside("size=2m", Full::becomes_read_only, |full| {
        mount_remount(&full.disk, MountFlags::empty(), c"").unwrap();
    });
}
