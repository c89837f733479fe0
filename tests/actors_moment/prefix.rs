//! What a copy shows is what a writer's calls up to one of them have left.
//!
//! One thread makes random calls, each of them one request to the server, but for writes that begin
//! within a page, which may be two. So no write is longer than what a request carries; of a copy
//! that is short what it says counts. Beside it the actor is copied. Which calls had returned before
//! that, and which had begun when it was done, is known: the copy must be what a model is after one
//! between those.
//!
//! `TARNFS_TEST_PREFIXES` says how many worlds there are of each sort, `TARNFS_TEST_SEED` the first
//! one's seed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Advice, FallocateFlags, copy_file_range, fadvise, fallocate};
use rustix::io::Errno;

use super::{Stop, World};
use crate::common;

/// Names of large files; one more is of a small one.
const NAMES: usize = 6;
/// Most bytes of a large file, and of a small one.
const LARGE: u64 = 8 << 20;
const SMALL: u64 = 256 << 10;
/// Most bytes of a write: less than a FUSE request carries (src/fuse/init.rs).
const WRITE: u64 = 128 << 10;
const PAGE: usize = 4096;
/// Copies of each world.
const COPIES: usize = 3;
/// Calls between two copies, and between two looks of a slow reader.
const BETWEEN: usize = 60;
const A_FEW: usize = 3;

/// Reproducible choices (splitmix64).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most.max(1)
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[index(self.below(all.len() as u64))]
    }

    /// An offset: half of them at a page.
    fn offset(&mut self, most: u64) -> u64 {
        let at = self.below(most);
        if self.below(2) == 0 {
            at
        } else {
            at / PAGE as u64 * PAGE as u64
        }
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// A call that has changed what there is. Files are numbered as they were made.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Create(String, usize),
    /// So many bytes at an offset, of the step of that number.
    Write(usize, u64, u64, usize),
    Cut(usize, u64),
    /// fallocate(2) that makes zeros of what is there, and longer if `bool`.
    Zero(usize, u64, u64, bool),
    /// fallocate(2) that makes no zeros.
    Allocate(usize, u64, u64, bool),
    /// Of a file and an offset to another, so many bytes.
    Copy(usize, u64, usize, u64, u64),
    Rename(String, String),
    Link(String, String),
    Unlink(String),
    /// The call was refused.
    Nothing,
}

/// What a write of this step has at an offset: its number, and where each page belongs.
fn filled(step: usize, offset: u64, len: u64) -> Vec<u8> {
    let tag = (step as u64 + 1) << 32;
    let start = offset / 8 * 8;
    let words = index((offset + len - start).div_ceil(8));
    let mut all = tag.to_le_bytes().repeat(words);
    let first = start.next_multiple_of(PAGE as u64);
    for at in (first..start + all.len() as u64).step_by(PAGE) {
        let word = index(at - start);
        all[word..word + 8].copy_from_slice(&(tag | (at / PAGE as u64)).to_le_bytes());
    }
    all.drain(..index(offset - start));
    all.truncate(index(len));
    all
}

/// What one write may be two requests of: the kernel ends one behind a part of a page that it does
/// not have (fs/fuse/file.c:fuse_fill_write_pages()), and that can be only the first here.
fn requests(file: usize, at: u64, len: u64, number: usize) -> [Step; 2] {
    let first = len.min(at.next_multiple_of(PAGE as u64) - at);
    [
        Step::Write(file, at, first, number),
        Step::Write(file, at + first, len - first, number),
    ]
}

#[derive(Debug, Default)]
struct Model {
    names: BTreeMap<String, usize>,
    files: Vec<Vec<u8>>,
}

impl Model {
    fn range(&mut self, file: usize, at: u64, len: u64) -> &mut [u8] {
        let (at, end) = (index(at), index(at + len));
        let bytes = &mut self.files[file];
        bytes.resize(bytes.len().max(end), 0);
        &mut bytes[at..end]
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Nothing | Step::Write(_, _, 0, _) => {}
            Step::Create(name, file) => {
                assert_eq!(*file, self.files.len());
                self.files.push(Vec::new());
                self.names.insert(name.clone(), *file);
            }
            Step::Write(file, at, len, of) => {
                let bytes = filled(*of, *at, *len);
                self.range(*file, *at, *len).copy_from_slice(&bytes);
            }
            Step::Cut(file, size) => self.files[*file].resize(index(*size), 0),
            Step::Zero(file, at, len, longer) => {
                let size = self.files[*file].len() as u64;
                let end = if *longer {
                    at + len
                } else {
                    size.min(at + len)
                };
                if *at < end {
                    self.range(*file, *at, end - at).fill(0);
                }
            }
            Step::Allocate(file, at, len, longer) => {
                if *longer {
                    self.range(*file, *at, *len);
                }
            }
            Step::Copy(from, from_at, to, to_at, len) => {
                let (at, end) = (index(*from_at), index(*from_at + *len));
                let bytes = self.files[*from][at..end].to_vec();
                self.range(*to, *to_at, *len).copy_from_slice(&bytes);
            }
            Step::Rename(from, to) => {
                let file = self.names.remove(from).unwrap();
                self.names.insert(to.clone(), file);
            }
            Step::Link(from, to) => {
                self.names.insert(to.clone(), self.names[from]);
            }
            Step::Unlink(name) => drop(self.names.remove(name)),
        }
    }
}

/// Whether a step has to do with a part of a file.
fn touches(step: &Step, file: usize, part: std::ops::Range<u64>) -> bool {
    let over = |at: u64, len: u64| at < part.end && at + len > part.start;
    match step {
        Step::Create(_, of) | Step::Cut(of, _) => *of == file,
        Step::Write(of, at, len, _)
        | Step::Zero(of, at, len, _)
        | Step::Allocate(of, at, len, _) => *of == file && over(*at, *len),
        Step::Copy(_, _, of, at, len) => *of == file && over(*at, *len),
        _ => false,
    }
}

/// The calls, in order: the last of them may be under way.
#[derive(Debug, Default)]
struct History {
    steps: Mutex<Vec<Step>>,
    begun: AtomicUsize,
    returned: AtomicUsize,
}

impl History {
    fn steps(&self) -> MutexGuard<'_, Vec<Step>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call, which says what it has done.
    fn step(&self, call: impl FnOnce() -> Step) {
        self.steps_of(|_| [call()]);
    }

    /// Makes a call, told its number, that the kernel may make several requests of.
    fn steps_of<const N: usize>(&self, call: impl FnOnce(usize) -> [Step; N]) {
        let number = self.begun.fetch_add(N, Ordering::SeqCst);
        let steps = call(number);
        self.steps().extend(steps);
        self.returned.fetch_add(N, Ordering::SeqCst);
    }

    /// Waits until so many more have returned.
    fn await_more(&self, count: usize, stop: &AtomicBool) {
        let until = self.returned.load(Ordering::SeqCst) + count;
        while self.returned.load(Ordering::SeqCst) < until && !stop.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }
}

/// Who writes.
struct Writer<'a> {
    point: &'a Path,
    history: &'a History,
    random: Random,
    names: BTreeMap<String, usize>,
    /// Open as long as it has a name.
    files: Vec<Option<File>>,
}

impl Writer<'_> {
    fn name(&mut self) -> String {
        match self.random.below(NAMES as u64 + 1) {
            0 => "small".into(),
            n => format!("large{n}"),
        }
    }

    fn file(&self, file: usize) -> &File {
        self.files[file].as_ref().unwrap()
    }

    fn size(&self, file: usize) -> u64 {
        self.file(file).metadata().unwrap().len()
    }

    fn close_unnamed(&mut self) {
        for (number, file) in self.files.iter_mut().enumerate() {
            if !self.names.values().any(|named| *named == number) {
                *file = None;
            }
        }
    }

    /// Makes the file, and fills it.
    fn create(&mut self, name: &str) {
        let path = self.point.join(name);
        let number = self.files.len();
        self.history.step(|| {
            let mut how = File::options();
            let file = how.read(true).write(true).create_new(true);
            self.files.push(Some(file.open(path).unwrap()));
            Step::Create(name.into(), number)
        });
        self.names.insert(name.into(), number);
    }

    fn write(&mut self, file: usize, at: u64, len: u64) {
        self.history.steps_of(|number| {
            let bytes = filled(number, at, len);
            let written = self.file(file).write_at(&bytes, at).unwrap();
            requests(file, at, written as u64, number)
        });
    }

    fn append(&mut self, name: &str, len: u64) {
        let file = self.names[name];
        let mut open = File::options()
            .append(true)
            .open(self.point.join(name))
            .unwrap();
        let at = self.size(file);
        self.history.steps_of(|number| {
            let written = open.write(&filled(number, at, len)).unwrap();
            requests(file, at, written as u64, number)
        });
    }

    fn allocate(&mut self, file: usize, at: u64, len: u64) {
        let keep = FallocateFlags::KEEP_SIZE;
        let (punch, zero) = (FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE);
        let modes = [
            FallocateFlags::empty(),
            keep,
            punch | keep,
            punch | keep,
            zero,
            zero | keep,
        ];
        let mode = *self.random.of(&modes);
        self.history.step(|| {
            let longer = !mode.contains(keep);
            match fallocate(self.file(file), mode, at, len) {
                Ok(()) if mode.intersects(punch | zero) => Step::Zero(file, at, len, longer),
                Ok(()) => Step::Allocate(file, at, len, longer),
                Err(Errno::OPNOTSUPP) => Step::Nothing,
                Err(errno) => panic!("fallocate: {errno}"),
            }
        });
    }

    fn copy(&mut self, from: usize, to: usize, most: u64) {
        let (size, at) = (self.size(from), self.size(to));
        let len = self.random.below(most.min(4 << 20)) + 1;
        let from_at = self.random.offset(size);
        let to_at = self.random.offset(at + 1).min(most - len);
        // Not over itself.
        if size == 0 || from == to && from_at < to_at + len && to_at < from_at + len {
            return;
        }
        self.history.step(|| {
            let (mut from_end, mut to_end) = (from_at, to_at);
            let (source, target) = (self.file(from), self.file(to));
            let len = index(len);
            let copied =
                copy_file_range(source, Some(&mut from_end), target, Some(&mut to_end), len);
            Step::Copy(from, from_at, to, to_at, copied.unwrap() as u64)
        });
    }

    fn any(&mut self) {
        let name = self.name();
        let most = if name == "small" { SMALL } else { LARGE };
        let Some(&file) = self.names.get(&name) else {
            let other = self.name();
            if self.names.contains_key(&other) && self.random.below(4) == 0 {
                self.history.step(|| {
                    fs::hard_link(self.point.join(&other), self.point.join(&name)).unwrap();
                    Step::Link(other.clone(), name.clone())
                });
                self.names.insert(name, self.names[&other]);
            } else {
                self.create(&name);
                for _ in 0..2 {
                    let all: Vec<_> = self.names.values().copied().collect();
                    let from = *self.random.of(&all);
                    self.copy(from, self.names[&name], most);
                }
            }
            return;
        };
        let size = self.size(file);
        let len = self.random.below(WRITE) + 1;
        let at = self.random.offset(size.min(most - len) + 1);
        match self.random.below(100) {
            0..40 => self.write(file, at, len),
            40..50 if size + len <= most => self.append(&name, len),
            // Behind the end, too.
            50..53 => {
                let at = self.random.offset(most - len);
                self.write(file, at, len);
            }
            53..60 => {
                let size = self.random.offset(most);
                self.history.step(|| {
                    self.file(file).set_len(size).unwrap();
                    Step::Cut(file, size)
                });
            }
            60..62 => {
                let path = self.point.join(&name);
                self.history.step(|| {
                    let mut how = File::options();
                    let open = how.read(true).write(true).truncate(true).open(path);
                    self.files[file] = Some(open.unwrap());
                    Step::Cut(file, 0)
                });
            }
            62..82 => {
                let len = self.random.below(most / 4) + 1;
                let at = self.random.offset(most - len);
                self.allocate(file, at, len);
            }
            82..94 => {
                let all: Vec<_> = self.names.values().copied().collect();
                let from = *self.random.of(&all);
                self.copy(from, file, most);
            }
            94..97 => {
                let other = self.name();
                // Of two names of one file rename(2) does nothing.
                if self.names.get(&other) == Some(&file) {
                    return;
                }
                self.history.step(|| {
                    fs::rename(self.point.join(&name), self.point.join(&other)).unwrap();
                    Step::Rename(name.clone(), other.clone())
                });
                self.names.remove(&name);
                self.names.insert(other, file);
                self.close_unnamed();
            }
            97..99 => {
                self.history.step(|| {
                    fs::remove_file(self.point.join(&name)).unwrap();
                    Step::Unlink(name.clone())
                });
                self.names.remove(&name);
                self.close_unnamed();
            }
            _ => {}
        }
    }

    /// Has something in all files.
    fn begin(&mut self) {
        for n in 0..=NAMES {
            let (name, most) = match n {
                0 => ("small".into(), SMALL),
                n => (format!("large{n}"), LARGE),
            };
            self.create(&name);
            let file = self.names[&name];
            let size = self.random.below(most / 2) + most / 8;
            for at in (0..size).step_by(index(WRITE)) {
                self.write(file, at, WRITE.min(size - at));
            }
        }
    }
}

/// A copy, and the calls it may be behind.
struct Copied {
    how: &'static str,
    names: BTreeMap<String, (u64, Vec<u8>)>,
    first: usize,
    last: usize,
}

fn read_all(dir: &Path) -> BTreeMap<String, (u64, Vec<u8>)> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let read = |entry: fs::DirEntry| {
        let file = entry.path();
        let ino = file.symlink_metadata().unwrap().ino();
        let name = entry.file_name().into_string().unwrap();
        (name, (ino, fs::read(file).unwrap()))
    };
    let mut all: BTreeMap<_, _> = files.map(read).collect();
    // The image's.
    all.remove("file");
    all
}

/// What a tar has in it, by a reader that knows sparse files.
fn unpacked(world: &World, tar: &Path) -> BTreeMap<String, (u64, Vec<u8>)> {
    let dir = world.sandbox.fresh("unpacked");
    let mut command = Command::new("tar");
    command.arg("-xSf").arg(tar).arg("-C").arg(&dir);
    common::assert_ok(&common::run(command), "tar");
    read_all(&dir)
}

impl Copied {
    fn make(world: &World, how: &'static str, history: &History, stop: &AtomicBool) -> Self {
        let tar = world.sandbox.at("copy.tar");
        let first = history.returned.load(Ordering::SeqCst);
        let begun = || history.begun.load(Ordering::SeqCst);
        let (names, last) = match how {
            "file" => {
                world.actor(&["diff", "-o", tar.to_str().unwrap(), "a"]);
                let last = begun();
                (unpacked(world, &tar), last)
            }
            "pipe" => {
                let mut diff = Command::new(common::TARNFS)
                    .env("TARNFS_STORE", world.sandbox.at("store"))
                    .args(["actor", "diff", "a"])
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                let mut bytes = Vec::new();
                let output = diff.stdout.as_mut().unwrap();
                while output.take(1 << 20).read_to_end(&mut bytes).unwrap() > 0 {
                    history.await_more(A_FEW, stop);
                }
                assert!(diff.wait().unwrap().success());
                let last = begun();
                fs::write(&tar, bytes).unwrap();
                (unpacked(world, &tar), last)
            }
            _ => {
                let mut found = None;
                world.restored("r", |point| found = Some((read_all(point), begun())));
                found.unwrap()
            }
        };
        Self {
            how,
            names,
            first,
            last,
        }
    }

    /// The first place where it is another than the model, or only what has other names.
    fn differs(&self, model: &Model) -> Option<(String, usize)> {
        if !self.names.keys().eq(model.names.keys()) {
            let mut all: Vec<_> = self.names.keys().chain(model.names.keys()).collect();
            all.retain(|name| self.names.contains_key(*name) != model.names.contains_key(*name));
            return Some((all[0].clone(), 0));
        }
        for (name, (ino, bytes)) in &self.names {
            let file = model.names[name];
            let others =
                |(other, of): (&String, &usize)| (self.names[other].0 == *ino) == (*of == file);
            if !model.names.iter().all(others) {
                return Some((name.clone(), 0));
            }
            if let Some(at) = first_difference(bytes, &model.files[file]) {
                return Some((name.clone(), at));
            }
        }
        None
    }

    /// Whether what has been found to be another still is.
    fn still(&self, model: &Model, name: &str, at: usize) -> bool {
        let here = self.names.get(name).map(|(_, bytes)| page(bytes, at));
        let there = model.names.get(name);
        here != there.map(|file| page(&model.files[*file], at))
    }

    fn check(&self, steps: &[Step]) {
        let mut model = Model::default();
        let mut before: Option<(String, usize)> = None;
        for step in steps.iter().take(self.first) {
            model.apply(step);
        }
        let last = self.last.min(steps.len());
        // The furthest that one model is like it.
        let mut best: Option<(usize, usize, String, usize)> = None;
        for number in self.first..=last {
            let found = match &before {
                Some((name, at)) if self.still(&model, name, *at) => before.clone(),
                _ => match self.differs(&model) {
                    None => return,
                    found => found,
                },
            };
            if before != found {
                let pages = self.pages(&model);
                if best.as_ref().is_none_or(|best| pages.len() < best.0)
                    && let Some((name, at)) = &found
                {
                    best = Some((pages.len(), number, name.clone(), *at));
                }
                before = found;
            }
            if let Some(step) = steps.get(number) {
                model.apply(step);
            }
        }
        let (pages, number, name, at) = best.unwrap();
        self.tell(steps, number, &name, at);
        panic!(
            "a copy ({}) is of no moment from {} to {last}: after {number} {pages} pages are \
             others, the first in {name} at {at}",
            self.how, self.first
        );
    }

    /// All pages that are others.
    fn pages(&self, model: &Model) -> Vec<(String, usize)> {
        let mut all = Vec::new();
        for (name, file) in &model.names {
            let Some((_, bytes)) = self.names.get(name) else {
                all.push((name.clone(), 0));
                continue;
            };
            let size = bytes.len().max(model.files[*file].len());
            for at in (0..size.max(1)).step_by(PAGE) {
                if page(bytes, at) != page(&model.files[*file], at) {
                    all.push((name.clone(), at));
                }
            }
        }
        all
    }

    /// Says what there is at a place, and how it has come about.
    fn tell(&self, steps: &[Step], number: usize, name: &str, at: usize) {
        let mut model = Model::default();
        let last = self.last.min(steps.len());
        let describe = |bytes: &[u8]| {
            let zeros = if bytes.iter().all(|byte| *byte == 0) {
                "zeros"
            } else {
                "not zeros"
            };
            let words = bytes.as_chunks::<8>().0;
            let tags: std::collections::BTreeSet<_> = words
                .iter()
                .map(|word| u64::from_le_bytes(*word) >> 32)
                .collect();
            let tags: Vec<_> = tags
                .into_iter()
                .map(|tag| tag.wrapping_sub(1) as i64)
                .collect();
            format!("{} bytes, {zeros}, of the steps {tags:?}", bytes.len())
        };
        if let Some((_, bytes)) = self.names.get(name) {
            eprintln!(
                "copy: {name} of {}: {}",
                bytes.len(),
                describe(page(bytes, at))
            );
        }
        let mut file = None;
        for (n, step) in steps.iter().enumerate().take(last) {
            if n == self.first || n == number {
                match model.names.get(name) {
                    Some(of) => {
                        let bytes = &model.files[*of];
                        file = Some(*of);
                        let size = bytes.len();
                        eprintln!(
                            "after {n}: {name} is file {of} of {size}: {}",
                            describe(page(bytes, at))
                        );
                    }
                    None => eprintln!("after {n}: no {name}"),
                }
                if n == number {
                    eprintln!("others then: {:?}", self.pages(&model));
                }
            }
            model.apply(step);
        }
        if let Some(of) = model.names.get(name) {
            eprintln!("after {last}: {}", describe(page(&model.files[*of], at)));
        }
        let start = (at / PAGE * PAGE) as u64;
        for (n, step) in steps.iter().enumerate().take(last) {
            if file.is_some_and(|file| touches(step, file, start..start + PAGE as u64)) {
                eprintln!("{n}: {step:?}");
            }
        }
    }
}

/// The page that has an offset, as far as there is one.
fn page(bytes: &[u8], at: usize) -> &[u8] {
    let start = at / PAGE * PAGE;
    let end = bytes.len().min(start + PAGE);
    bytes.get(start..end).unwrap_or_default()
}

fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    if one == other {
        return None;
    }
    let most = one.len().max(other.len());
    let start = (0..most)
        .step_by(PAGE)
        .find(|at| page(one, *at) != page(other, *at))?;
    let (one, other) = (page(one, start), page(other, start));
    let same = one
        .iter()
        .zip(other)
        .take_while(|(one, other)| one == other);
    Some(start + same.count())
}

/// Has what is in the upper written to disk, and its pages thrown away, again and again: from then
/// on the filesystem tells otherwise what is a hole (fallocate(2)).
fn forget(upper: &Path, history: &History, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        for entry in fs::read_dir(upper).unwrap().flatten() {
            // It may be gone.
            if let Ok(file) = File::open(entry.path()) {
                file.sync_data().unwrap();
                fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            }
            history.await_more(A_FEW, stop);
        }
    }
}

struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("TARNFS_TEST_SEED={}", self.0);
        }
    }
}

/// `forgets`: every second world's upper is not to stay in memory, this one's or the other's.
fn of_one_moment(options: &[&str], forgets: Option<u64>) {
    let number = |name, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (first, count) = (
        number("TARNFS_TEST_SEED", 1),
        number("TARNFS_TEST_PREFIXES", 1),
    );
    let Some(world) = World::new(options) else {
        return;
    };
    for seed in first..first + count {
        let saying = Seed(seed);
        let history = History::default();
        let stop = AtomicBool::new(false);
        let mut writer = Writer {
            point: &world.point,
            history: &history,
            random: Random(seed),
            names: BTreeMap::new(),
            files: Vec::new(),
        };
        writer.begin();
        let copies = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let _ended = Stop(&stop);
                while !stop.load(Ordering::SeqCst) {
                    writer.any();
                }
            });
            if forgets == Some(seed % 2) {
                let upper = world.sandbox.at("store").join("actors/a/upper");
                let (history, stop) = (&history, &stop);
                scope.spawn(move || forget(&upper, history, stop));
            }
            let stopping = Stop(&stop);
            let ways = ["file", "pipe", "checkpoint"];
            let copies: Vec<_> = (0..COPIES)
                .map(|n| {
                    history.await_more(BETWEEN, &stop);
                    Copied::make(&world, ways[n % ways.len()], &history, &stop)
                })
                .collect();
            drop(stopping);
            thread.join().unwrap();
            copies
        });
        let steps = history.steps();
        for copy in copies {
            copy.check(&steps);
        }
        for name in writer.names.keys() {
            fs::remove_file(world.point.join(name)).unwrap();
        }
        drop(saying);
    }
    world.end();
}

#[test]
fn random_calls() {
    of_one_moment(&[], Some(0));
}

#[test]
fn random_calls_in_memory() {
    of_one_moment(&["--upper", "tmpfs"], None);
}

#[test]
fn random_calls_within_a_quota() {
    of_one_moment(&["--size", "2G"], Some(1));
}
