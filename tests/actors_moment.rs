//! A checkpoint is of one moment, though large files are copied while their writers go on.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "actors_moment/prefix.rs"]
mod prefix;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Sandbox, can_mount, mounts_below, pack};
use serde_json::Value;

/// A file that is written again and again, in blocks, from the first to the last.
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 512;

/// Checkpoints of each test.
const TIMES: usize = 6;

struct World {
    sandbox: Sandbox,
    /// Where the actor `a` is mounted.
    point: PathBuf,
}

impl World {
    fn new(options: &[&str]) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let sandbox = Sandbox::new();
        let tree = sandbox.dir("tree");
        fs::write(tree.join("file"), "of the image").unwrap();
        pack(&tree, &sandbox.at("image.tar"), &[]);
        let tar = sandbox.at("image.tar");
        sandbox.tarnfs_ok(["import", "--name", "img", tar.to_str().unwrap()]);
        let create = ["actor", "create", "--start"].as_slice();
        let point = sandbox.tarnfs_ok([create, options, &["a", "img"]].concat());
        Some(Self {
            point: point.trim_end().into(),
            sandbox,
        })
    }

    fn actor(&self, args: &[&str]) -> String {
        self.sandbox.tarnfs_ok([&["actor"], args].concat())
    }

    /// Makes a checkpoint, and shows a mount of it.
    fn restored(&self, id: &str, look: impl FnOnce(&Path)) {
        let made = self.actor(&["checkpoint", "--json", "a"]);
        let made: Value = serde_json::from_str(&made).unwrap();
        let digest = made["digest"].as_str().unwrap();
        let point = self.actor(&["restore", "--start", id, digest]);
        look(Path::new(point.trim_end()));
        self.actor(&["destroy", id]);
    }

    /// Nothing is left of the log, nor of anything else.
    fn end(self) {
        let work = self.sandbox.at("store").join("actors/a/work/work");
        let left: Vec<_> = fs::read_dir(&work).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        self.actor(&["destroy", "a"]);
        let mounts = mounts_below(self.sandbox.path());
        assert!(mounts.is_empty(), "{mounts:?}");
    }
}

/// The number that all of a block is of.
fn number(block: &[u8]) -> u64 {
    let (numbers, []) = block.as_chunks::<8>() else {
        panic!("a block of {} bytes", block.len());
    };
    let first = numbers[0];
    assert!(
        numbers.iter().all(|number| *number == first),
        "a block of two writes"
    );
    u64::from_le_bytes(first)
}

/// Blocks before the next one are of its pass, those behind it of the pass before.
fn of_one_moment(file: &[u8], next: &[u8]) {
    let Ok([pass, next]) = <&[[u8; 8]; 2]>::try_from(next.as_chunks::<8>().0) else {
        assert!(next.is_empty(), "before the first pass");
        return;
    };
    let (pass, next) = (u64::from_le_bytes(*pass), u64::from_le_bytes(*next));
    for (n, block) in (0..).zip(file.chunks(BLOCK)) {
        let number = number(block);
        let good = match n.cmp(&next) {
            std::cmp::Ordering::Less => number == pass,
            std::cmp::Ordering::Equal => number == pass || number + 1 == pass,
            std::cmp::Ordering::Greater => number + 1 == pass,
        };
        assert!(
            good,
            "block {n} is of pass {number}: at {next} of pass {pass}"
        );
    }
}

fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

/// Runs `write` over and over, told how often, beside `look`.
fn beside(write: impl Fn(u64) + Sync, look: impl FnOnce(&AtomicU64)) {
    let (stop, passes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Ends also when the looking one has panicked.
            while !stop.load(Ordering::SeqCst) {
                write(passes.fetch_add(1, Ordering::SeqCst) + 1);
            }
        });
        let stopping = Stop(&stop);
        look(&passes);
        drop(stopping);
    });
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn overwritten(options: &[&str]) {
    let Some(world) = World::new(options) else {
        return;
    };
    let file = File::create(world.point.join("large")).unwrap();
    file.write_all_at(&vec![0; BLOCK * BLOCKS], 0).unwrap();
    // Which block of which pass is about to be written.
    let next = File::create(world.point.join("next")).unwrap();
    let write = |pass: u64| {
        for n in 0..BLOCKS {
            let at = (n * BLOCK) as u64;
            let says = [pass, n as u64].map(u64::to_le_bytes).concat();
            next.write_all_at(&says, 0).unwrap();
            file.write_all_at(&block(pass), at).unwrap();
        }
    };
    beside(write, |passes| {
        for n in 0..TIMES {
            let before = passes.load(Ordering::SeqCst);
            world.restored(&format!("r{n}"), |point| {
                let large = fs::read(point.join("large")).unwrap();
                assert_eq!(large.len(), BLOCK * BLOCKS);
                let next = fs::read(point.join("next")).unwrap();
                of_one_moment(&large, &next);
                // What was written before the call is in it.
                assert!(number(&large[..BLOCK]) + 1 >= before);
            });
        }
    });
    drop((file, next));
    world.end();
}

#[test]
fn a_large_file_that_is_overwritten() {
    overwritten(&[]);
}

#[test]
fn where_the_log_has_no_room_writers_wait() {
    // The file, and less than a log of it needs.
    overwritten(&["--upper", "tmpfs=35M"]);
}

#[test]
fn a_large_file_that_is_cut_and_written_anew() {
    let Some(world) = World::new(&[]) else { return };
    let path = world.point.join("large");
    fs::write(&path, vec![0; BLOCK * BLOCKS]).unwrap();
    let write = |pass| {
        // O_TRUNC.
        let file = File::create(&path).unwrap();
        for n in 0..BLOCKS {
            let at = (n * BLOCK) as u64;
            file.write_all_at(&block(pass), at).unwrap();
        }
    };
    beside(write, |_| {
        for n in 0..TIMES {
            world.restored(&format!("r{n}"), |point| {
                let large = fs::read(point.join("large")).unwrap();
                assert_eq!(large.len() % BLOCK, 0);
                for block in large.chunks(BLOCK) {
                    assert_eq!(number(block), number(&large[..BLOCK]), "of one pass");
                }
            });
        }
    });
    world.end();
}

#[test]
fn a_large_file_that_is_replaced_and_one_that_goes() {
    let Some(world) = World::new(&[]) else { return };
    let at = |name: &str| world.point.join(name);
    let put = |pass| {
        fs::write(at("new"), block(pass).repeat(BLOCKS)).unwrap();
        fs::rename(at("new"), at("large")).unwrap();
        fs::write(at("number"), pass.to_string()).unwrap();
    };
    put(0);
    beside(put, |_| {
        for n in 0..TIMES {
            world.restored(&format!("r{n}"), |point| {
                let large = fs::read(point.join("large")).unwrap();
                assert_eq!(large.len(), BLOCK * BLOCKS);
                let all = number(&large[..BLOCK]);
                assert!(large.chunks(BLOCK).all(|block| number(block) == all));
                // Written behind it: empty while it is opened.
                let said = fs::read_to_string(point.join("number")).unwrap();
                if let Ok(said) = said.parse::<u64>() {
                    assert!(said == all || said + 1 == all, "{said}, {all}");
                }
            });
        }
    });
    world.end();
}

#[test]
fn a_slow_reader_gets_one_moment_and_holds_nobody_up() {
    let Some(world) = World::new(&[]) else { return };
    let large = world.point.join("large");
    fs::write(&large, block(1).repeat(BLOCKS)).unwrap();
    fs::write(world.point.join("small"), "before").unwrap();
    let mut diff = Command::new(common::TARNFS)
        .env("TARNFS_STORE", world.sandbox.at("store"))
        .args(["actor", "diff", "a"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut tar = vec![0; 512];
    let output = diff.stdout.as_mut().unwrap();
    output.read_exact(&mut tar).unwrap();
    // All that follows is done while the reader waits.
    let file = File::options().write(true).open(&large).unwrap();
    file.write_all_at(&block(2).repeat(BLOCKS / 2), 0).unwrap();
    drop(file);
    fs::remove_file(&large).unwrap();
    fs::write(world.point.join("small"), "after").unwrap();
    fs::write(world.point.join("new"), block(3).repeat(BLOCKS)).unwrap();
    output.read_to_end(&mut tar).unwrap();
    assert!(diff.wait().unwrap().success());
    let mut names = Vec::new();
    for entry in tar::Archive::new(&*tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        match &*name {
            "large" => assert!(bytes == block(1).repeat(BLOCKS)),
            "small" => assert_eq!(bytes, b"before"),
            _ => {}
        }
        names.push(name);
    }
    assert_eq!(names, ["./", "large", "small"]);
    world.end();
}
