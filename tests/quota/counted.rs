//! Random operations of many threads on an overlay, on each kind of filesystem: what is counted is
//! what is there, and never more than the limit.

use std::sync::{Arc, Mutex};

use rustix::process::{getegid, geteuid};
use tarnfs::inode::Kind;
use tarnfs::name::Name;
use tarnfs::overlay::{
    Asker, Caller, Handle, Ino, Make, Options, Overlay, Quota, ROOT_INO, Result, SetAttr, Usage,
};
use tarnfs::store::Store;
use tarnfs::upper::Upper;

use super::common::{has, ok};
use super::{MIB, World, on_disk, on_disk_ahead};

const LIMIT: u64 = 12 * MIB;
const INODES: u64 = 60;

/// Numbers that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

struct Worker<'a> {
    fs: &'a Overlay,
    /// Held while a name changes, as the kernel locks directories: what is removed must be what was
    /// known.
    names: &'a Mutex<()>,
    random: Random,
    held: Vec<(Ino, Handle)>,
}

impl Worker<'_> {
    fn name(&mut self) -> Name {
        let n = self.random.below(10);
        Name::new(format!("f{n}").as_bytes()).unwrap()
    }

    /// A directory of the image or a new one, looked up once.
    fn dir(&mut self) -> Result<Ino> {
        let path: &[&str] = match self.random.below(4) {
            0 => &[],
            1 => &["d"],
            2 => &["d", "e"],
            _ => &["made"],
        };
        let mut at = ROOT_INO;
        for part in path {
            let next = self.fs.lookup(at, &Name::new(part.as_bytes()).unwrap());
            self.fs.forget(at, 1);
            at = Ino(next?.attr.ino);
        }
        Ok(at)
    }

    /// As the kernel does, who knows what it asks to have removed, and forgets it then.
    /// Nobody takes the name meanwhile: [`Self::names`] is held.
    fn known<T>(&self, dir: Ino, name: &Name, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let known = self.fs.lookup(dir, name);
        let done = act();
        if let Ok(entry) = known {
            self.fs.forget(Ino(entry.attr.ino), 1);
        }
        done
    }

    fn step(&mut self) -> Result<()> {
        let (fs, dir, name, n) = (self.fs, self.dir()?, self.name(), self.random.below(100));
        let caller = Caller {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        };
        let asker = Asker {
            uid: caller.uid,
            gid: caller.gid,
            pid: std::process::id(),
        };
        let names = self.names;
        let _names = (n < 46).then(|| names.lock().unwrap());
        let make = |what: Make<'_>| {
            let made = fs.make(caller, dir, &name, what, 0o755, 0)?;
            fs.forget(Ino(made.attr.ino), 1);
            Ok(())
        };
        let done = match n {
            0..10 => {
                fs.create(caller, dir, &name, 0o644, 0, libc::O_RDWR)
                    .map(|(entry, handle)| {
                        self.held.push((Ino(entry.attr.ino), handle));
                    })
            }
            10..15 => make(Make::Dir),
            15..18 => make(Make::Symlink(&[b'x'; 900])),
            18..20 => make(Make::Symlink(b"x")),
            20..22 => make(Make::Fifo),
            22..34 => self.known(dir, &name, || fs.unlink(dir, &name)),
            34..38 => self.known(dir, &name, || fs.rmdir(dir, &name)),
            38..46 => {
                let Ok(to) = self.dir() else {
                    fs.forget(dir, 1);
                    return Ok(());
                };
                let new = self.name();
                let flags = [0, 0, libc::RENAME_EXCHANGE, libc::RENAME_NOREPLACE];
                let flags = flags[self.random.below(4) as usize];
                let done = self.known(to, &new, || {
                    fs.rename(dir, &name, to, &new, flags).map(drop)
                });
                fs.forget(to, 1);
                done
            }
            46..92 => {
                let found = fs.lookup(dir, &name).map(|entry| entry.attr);
                found.and_then(|attr| {
                    let ino = Ino(attr.ino);
                    let done = self.change(ino, attr.kind, asker);
                    fs.forget(ino, 1);
                    done
                })
            }
            _ => {
                while self.held.len() > self.random.below(5) as usize {
                    let at = self.random.below(self.held.len() as u64) as usize;
                    let (ino, handle) = self.held.swap_remove(at);
                    fs.release(handle);
                    fs.forget(ino, 1);
                }
                Ok(())
            }
        };
        fs.forget(dir, 1);
        done
    }

    fn change(&mut self, ino: Ino, kind: Kind, asker: Asker) -> Result<()> {
        let fs = self.fs;
        let (at, len) = (self.random.below(2 * MIB), self.random.below(400_000));
        match self.random.below(12) {
            0 => {
                let (dir, name) = (self.dir()?, self.name());
                let names = self.names;
                let _names = names.lock().unwrap();
                let done = fs.link(ino, dir, &name).map(|_| fs.forget(ino, 1));
                fs.forget(dir, 1);
                done
            }
            // The kernel cuts nothing else.
            1 if kind != Kind::File => Ok(()),
            1 => {
                let set = SetAttr {
                    size: Some(at),
                    ..SetAttr::default()
                };
                fs.setattr(ino, None, &set).map(drop)
            }
            2 => fs.setxattr(asker, ino, b"user.long", &vec![b'x'; 3000], 0),
            3 => fs.setxattr(asker, ino, b"user.short", b"x", 0),
            4 => fs.removexattr(ino, b"user.long"),
            5 => {
                let set = SetAttr {
                    perm: Some(0o700),
                    ..SetAttr::default()
                };
                fs.setattr(ino, None, &set).map(drop)
            }
            way => {
                let flags = if way == 6 { libc::O_TRUNC } else { 0 };
                let handle = fs.open(ino, libc::O_RDWR | flags)?;
                let done = match way {
                    6..9 => fs.write(handle, at, &vec![7; len as usize]).map(drop),
                    9 => fs.write(handle, None, &vec![7; len as usize]).map(drop),
                    10 => {
                        // 1: keep the size; 3: a hole.
                        let mode = [0, 1, 3][self.random.below(3) as usize];
                        fs.fallocate(handle, mode, at, len + 1)
                    }
                    _ => match self.held.last() {
                        Some((_, from)) => fs
                            .copy_file_range(*from, 0, handle, at, len as usize)
                            .map(drop),
                        None => Ok(()),
                    },
                };
                fs.release(handle);
                done
            }
        }
    }
}

/// What may come of an operation that others are in the way of, or for which there is no room.
const ALLOWED: [i32; 13] = [
    libc::ENOSPC,
    libc::ENOENT,
    libc::EEXIST,
    libc::ENOTDIR,
    libc::EISDIR,
    libc::ENOTEMPTY,
    libc::EINVAL,
    libc::EPERM,
    libc::ESTALE,
    libc::ENXIO,
    libc::ENODATA,
    libc::EOPNOTSUPP,
    libc::ERANGE,
];

/// Runs many threads on an upper in a directory; answers how often there was no room.
fn run(world: &World, disk: &std::path::Path, seed: u64) -> u64 {
    let (upper, work) = (disk.join("upper"), disk.join("work"));
    std::fs::create_dir_all(&upper).unwrap();
    let lower = || {
        let store = Store::open(&world.sandbox.at("store"));
        store
            .tar_image(&world.tar, &mut |_| {})
            .unwrap()
            .lower()
            .unwrap()
    };
    let quota = Quota {
        bytes: Some(LIMIT),
        inodes: Some(INODES),
    };
    let options = Options {
        quota: Some(quota),
        volatile: true,
        ..Options::default()
    };
    let open = || {
        let upper = Upper::open(&upper, &work).unwrap();
        Overlay::with_upper(lower(), upper, options).unwrap()
    };
    let fs = Arc::new(open());
    let check = |fs: &Overlay, what: &str| {
        let (bytes, inodes) = on_disk(&upper);
        let used = fs.usage().unwrap();
        let of_disk = !disk.starts_with(world.sandbox.at("disk-tmpfs"));
        if what == "at rest" && disk.starts_with(world.sandbox.at("disk-xfs")) {
            // XFS may take a while to give back what it has allocated behind the end of a file.
            let (least, _) = on_disk_ahead(&upper, 64 << 10);
            assert!(
                least <= used.bytes && used.bytes <= bytes,
                "{used:?}, not {least} to {bytes}"
            );
            assert_eq!(used.inodes, inodes);
        } else if what == "at rest" && of_disk {
            // Where the blocks are is noted when they are written out, in a block or two.
            assert!(
                used.bytes.abs_diff(bytes) <= 16 << 10,
                "{used:?}, not {bytes}"
            );
            assert_eq!(used.inodes, inodes);
        } else {
            assert_eq!(used, Usage { bytes, inodes }, "{what} in {disk:?}");
        }
    };
    check(&fs, "the beginning");
    let caller = Caller {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
    };
    let made = fs.make(
        caller,
        ROOT_INO,
        &Name::new(b"made").unwrap(),
        Make::Dir,
        0o755,
        0,
    );
    fs.forget(Ino(made.unwrap().attr.ino), 1);
    let names = Mutex::new(());
    let full: u64 = std::thread::scope(|scope| {
        let start = |thread: u64| {
            let fs = Arc::clone(&fs);
            let names = &names;
            scope.spawn(move || {
                let random = Random(seed * 1000 + thread + 1);
                let mut worker = Worker {
                    fs: &fs,
                    names,
                    random,
                    held: Vec::new(),
                };
                let mut full = 0;
                for _ in 0..700 {
                    if let Err(error) = worker.step() {
                        let errno = error.errno();
                        assert!(ALLOWED.contains(&errno), "{error}");
                        full += u64::from(errno == libc::ENOSPC);
                    }
                    let used = fs.usage().unwrap();
                    // Blocks of directories and of the filesystem's own notes come on top.
                    assert!(used.bytes <= LIMIT + MIB, "{used:?}");
                    assert!(used.inodes <= INODES, "{used:?}");
                }
                for (ino, handle) in worker.held {
                    fs.release(handle);
                    fs.forget(ino, 1);
                }
                full
            })
        };
        let threads: Vec<_> = (0..4).map(start).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    check(&fs, "at rest");
    drop(Arc::into_inner(fs).unwrap());
    // And so says who counts anew, after a crash too.
    check(&open(), "counted anew");
    full
}

#[test]
fn what_is_counted_is_what_is_there() {
    let Some(world) = World::new() else { return };
    let mut full = 0;
    for kind in ["tmpfs", "ext4", "xfs", "btrfs"] {
        let disk = world.sandbox.dir(format!("disk-{kind}"));
        let at = disk.to_str().unwrap();
        if kind == "tmpfs" {
            ok("mount", ["-t", "tmpfs", "none", at]);
        } else {
            if !has(&format!("mkfs.{kind}")) {
                continue;
            }
            let image = world.sandbox.at(format!("{kind}.img"));
            std::fs::File::create(&image)
                .unwrap()
                .set_len(400 * MIB)
                .unwrap();
            let image = image.to_str().unwrap();
            ok(&format!("mkfs.{kind}"), ["-q", image]);
            ok("mount", ["-o", "loop", image, at]);
        }
        for seed in 1..4 {
            let dir = disk.join(seed.to_string());
            std::fs::create_dir(&dir).unwrap();
            full += run(&world, &dir, seed);
        }
    }
    assert!(full > 0, "the limits were never reached");
}
