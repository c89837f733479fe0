//! Holding back what a mount writes, and reading the upper meanwhile: what is there is of one
//! moment, all go on afterwards, nothing is lost. The server is in this process, the programs that
//! write are others.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
// Who writes is a number in the names of files.
#![allow(clippy::needless_range_loop)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Sandbox, can_mount, has, ok, pack, skip};
use tarnfs::mount::control::{Client, Freeze};
use tarnfs::mount::{FreezeError, Freezer, KeepError, MountOptions, Server, check_point};
use tarnfs::overlay::{Options, Overlay};
use tarnfs::store::Store;
use tarnfs::upper::Upper;

/// How long something may take that has to happen.
const LONG: Duration = Duration::from_secs(120);

const TREE: &str = r"
for i in 0 1 2 3; do printf 00000000 >a$i; printf 00000000 >b$i; done
head -c 50000000 /dev/urandom >large; head -c 100000 /dev/urandom >map; chmod 777 .
";

/// A mount that is served by this process.
struct World {
    sandbox: Sandbox,
    server: Option<Server>,
    freezer: Freezer,
}

impl World {
    fn new(upper_passthrough: bool) -> Option<Self> {
        if !can_mount() || !has("python3") {
            return None;
        }
        let sandbox = Sandbox::new();
        let tree = sandbox.dir("tree");
        ok("sh", ["-euc", &format!("cd '{}'; {TREE}", tree.display())]);
        pack(&tree, &sandbox.at("image.tar"), &[]);
        for dir in ["mount", "upper"] {
            sandbox.dir(dir);
        }
        let store = Store::open(&sandbox.at("store"));
        let image = store.tar_image(&sandbox.at("image.tar"), &mut |_| {});
        let lower = image.unwrap().lower().unwrap();
        let upper = Upper::open(&sandbox.at("upper"), &sandbox.at("work")).unwrap();
        let overlay = Overlay::with_upper(lower, upper, Options::default()).unwrap();
        let mut options = MountOptions::new("freeze");
        options.serving.upper_passthrough = upper_passthrough;
        options.control = Some(sandbox.at("control"));
        let point = check_point(&sandbox.at("mount"), &[]).unwrap();
        let server = Server::start(Arc::new(overlay), &point, &options).unwrap();
        let freezer = server.freezer();
        Some(Self {
            sandbox,
            server: Some(server),
            freezer,
        })
    }

    fn upper(&self, name: &str) -> PathBuf {
        self.sandbox.at("upper").join(name)
    }

    /// Starts a script in the mount; it is answered when it has said a line.
    fn start(&self, script: &str) -> Program {
        let script = format!("import mmap, os, sys\nos.chdir(sys.argv[1])\n{script}");
        let mut child = Command::new("timeout")
            .args(["300", "python3", "-uc", &script])
            .arg(self.sandbox.at("mount"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Program { child, said }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            drop(server.cancel());
        }
    }
}

struct Program {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Program {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Tells it to go on to its end; gives what it says.
    fn end(mut self) -> String {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        rest.trim().to_owned()
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

fn number(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    text.parse()
        .unwrap_or_else(|_| panic!("{path:?}: {text:?}"))
}

/// All of a directory: names, numbers, lengths, times.
fn state(dir: &Path) -> Vec<String> {
    let show = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let m = entry.metadata().unwrap();
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        format!("{:?} {} {} {times:?}", entry.file_name(), m.ino(), m.size())
    };
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(show).collect();
    all.sort();
    all
}

#[test]
fn what_is_read_while_frozen_is_of_one_moment() {
    let Some(world) = World::new(false) else {
        return;
    };
    // In place, by renames, by stores that are written back at once, and with new names.
    let write = r"
import select
def place(name, g):
    with open(name, 'r+b') as f:
        f.write(b'%08d' % g)
def rename(name, g):
    with open('new' + name, 'wb') as f:
        f.write(b'%08d' % g)
    os.rename('new' + name, name)
def store(name, g):
    with open(name, 'r+b') as f:
        m = mmap.mmap(f.fileno(), 0); m[:] = b'%08d' % g; m.flush()
def link(name, g):
    with open('l' + name, 'wb') as f:
        f.write(b'%08d' % g)
    os.unlink(name); os.link('l' + name, name); os.unlink('l' + name)
i = int(I)
write = [place, rename, store, place][i]
g = 0
while not select.select([0], [], [], 0)[0]:
    g += 1
    write('a' + I, g); write('b' + I, g)
print(g)
";
    let start = |i: usize| world.start(&format!("I = '{i}'\n{write}"));
    let programs: Vec<_> = (0..4).map(start).collect();
    let mut last = [0; 4];
    for round in 0..40 {
        // All have gone on since the last time.
        for i in 0..4 {
            until("a program goes on", || {
                let path = world.upper(&format!("b{i}"));
                path.exists()
                    && fs::read_to_string(path)
                        .is_ok_and(|text| text.parse::<u64>().is_ok_and(|n| n > last[i]))
            });
        }
        let frozen = world.freezer.freeze().unwrap();
        let was = state(&world.upper(""));
        for _ in 0..20 {
            for i in 0..4 {
                let [a, b] = ["a", "b"].map(|name| number(&world.upper(&format!("{name}{i}"))));
                assert!(b <= a && a <= b + 1, "round {round}: a{i} {a}, b{i} {b}");
                last[i] = b;
            }
            assert_eq!(state(&world.upper("")), was, "round {round}");
        }
        drop(frozen);
    }
    for (i, program) in programs.into_iter().enumerate() {
        let written: u64 = program.end().parse().unwrap();
        for name in ["a", "b"] {
            assert_eq!(number(&world.upper(&format!("{name}{i}"))), written);
        }
    }
}

#[test]
fn a_copy_up_is_waited_for_and_the_write_behind_it_is_held_back() {
    let Some(world) = World::new(false) else {
        return;
    };
    let writer = world
        .start("fd = os.open('large', os.O_RDWR)\nos.pwrite(fd, b'WRITTEN', 0)\nprint('done')\n");
    let inner = world.sandbox.at("work/work");
    until("the copy begins", || {
        fs::read_dir(&inner).unwrap().count() > 0 || world.upper("large").exists()
    });
    let frozen = world.freezer.freeze().unwrap();
    let copy = fs::File::open(world.upper("large")).unwrap();
    assert_eq!(copy.metadata().unwrap().len(), 50_000_000);
    assert_eq!(
        fs::read_dir(&inner).unwrap().count(),
        0,
        "nothing half done"
    );
    let image = fs::read(world.sandbox.at("tree/large")).unwrap();
    let mut bytes = vec![0; image.len()];
    copy.read_exact_at(&mut bytes, 0).unwrap();
    // Unless it was quicker than this test.
    assert!(bytes == image || bytes[7..] == image[7..] && bytes.starts_with(b"WRITTEN"));
    drop(frozen);
    assert_eq!(writer.end(), "done");
    copy.read_exact_at(&mut bytes[..7], 0).unwrap();
    assert_eq!(&bytes[..7], b"WRITTEN");
}

/// What `Frozen` says of maps: syncfs(2), then no request is waiting, then freeze.
#[test]
fn what_was_stored_in_maps_is_there_after_syncfs() {
    let Some(world) = World::new(false) else {
        return;
    };
    let connection = world.server.as_ref().unwrap().connection().unwrap();
    let waiting = tarnfs::sys::fuse::Waiting::of(connection).unwrap();
    let mut program = world.start(
        "fd = os.open('map', os.O_RDWR); m = mmap.mmap(fd, 100000)\n\
         for at in range(0, 100000, 4096): m[at:at + 5] = b'STORE'\n\
         print('stored'); sys.stdin.read()\n",
    );
    assert_eq!(program.line(), "stored");
    ok("sync", ["-f", world.sandbox.at("mount").to_str().unwrap()]);
    until("all that was sent has come", || waiting.now().unwrap() == 0);
    let frozen = world.freezer.freeze().unwrap();
    let bytes = fs::read(world.upper("map")).unwrap();
    for page in bytes.chunks(4096) {
        assert!(page.starts_with(b"STORE"));
    }
    drop(frozen);
    program.end();
}

/// A copy that is made while programs go on, with the log over it, is of the moment of the freeze.
#[test]
fn what_is_overwritten_is_kept_while_programs_go_on() {
    let Some(world) = World::new(false) else {
        return;
    };
    const LEN: usize = 4_000_000;
    // Each file has one number all over, but where it is being overwritten.
    let write = r"
import select
LEN = 4000000
def blocks(g):
    b = (b'%08d' % g) * 12500
    for at in range(0, LEN, len(b)):
        yield at, b
def place(f, g):
    for at, b in blocks(g):
        os.pwrite(f, b, at)
def cut(f, g):
    os.ftruncate(f, 0); place(f, g)
def anew(f, g):
    f = os.open('w' + I, os.O_RDWR | os.O_TRUNC); place(f, g); os.close(f)
m = None
def store(f, g):
    global m
    m = m or mmap.mmap(f, LEN)
    for at, b in blocks(g):
        m[at:at + len(b)] = b
    m.flush()
f = os.open('w' + I, os.O_RDWR | os.O_CREAT, 0o644)
write = [place, cut, anew, store][int(I)]
place(f, 0)
print('begun')
g = 0
while not select.select([0], [], [], 0)[0]:
    g += 1
    write(f, g)
    done = os.open('n' + I, os.O_WRONLY | os.O_CREAT, 0o644)
    os.pwrite(done, b'%08d' % g, 0); os.close(done)
";
    let start = |i: usize| world.start(&format!("I = '{i}'\n{write}"));
    let mut programs: Vec<_> = (0..4).map(start).collect();
    for program in &mut programs {
        assert_eq!(program.line(), "begun");
    }
    let mut last = [0; 4];
    let mut records = 0;
    for round in 0..6 {
        let go_on = |last: &mut [u64; 4]| {
            for i in 0..4 {
                until("a program goes on", || {
                    let done = fs::read_to_string(world.upper(&format!("n{i}")));
                    let done = done.ok().and_then(|text| text.parse::<u64>().ok());
                    let on = done.filter(|&done| done > last[i]);
                    on.inspect(|&done| last[i] = done).is_some()
                });
            }
        };
        go_on(&mut last);
        let frozen = world.freezer.freeze().unwrap();
        let files: Vec<_> = (0..4)
            .map(|i| {
                let file = fs::File::open(world.upper(&format!("w{i}"))).unwrap();
                let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
                let mut was = vec![0; len];
                file.read_exact_at(&mut was, 0).unwrap();
                (file, was)
            })
            .collect();
        let number = |file: &fs::File| file.metadata().unwrap().ino();
        let kept = frozen.keep(files.iter().map(|(file, _)| number(file)));
        let kept = kept.map_err(|(_, error)| error).unwrap();
        let log = world.sandbox.at("work/work").join(kept.name());
        let mut log = fs::File::open(log).unwrap();
        // All have overwritten all of it.
        go_on(&mut last);
        go_on(&mut last);
        let mut copies: Vec<_> = files
            .iter()
            .map(|(file, was)| {
                let mut copy = vec![0; was.len()];
                // What has been cut off is in the log.
                let mut at = 0;
                while at < copy.len() {
                    match file.read_at(&mut copy[at..], at as u64).unwrap() {
                        0 => break,
                        n => at += n,
                    }
                }
                copy
            })
            .collect();
        kept.finish().unwrap();
        let mut head = [0; 24];
        while log.read(&mut head).unwrap() > 0 {
            let number_at = |n: usize| u64::from_le_bytes(head[n..n + 8].try_into().unwrap());
            let [ino, at, len] = [0, 8, 16].map(|n| usize::try_from(number_at(n)).unwrap());
            let one = files
                .iter()
                .position(|(file, _)| number(file) == ino as u64);
            log.read_exact(&mut copies[one.unwrap()][at..at + len])
                .unwrap();
            records += 1;
        }
        for (i, ((_, was), copy)) in files.iter().zip(&copies).enumerate() {
            assert!(was.len() <= LEN);
            assert!(was == copy, "round {round}: w{i}");
        }
    }
    assert!(records > 100, "{records}");
    for program in programs {
        program.end();
    }
    let inner = world.sandbox.at("work/work");
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 0);
}

/// As another process asks for it.
#[test]
fn what_is_overwritten_is_kept_for_who_asks_at_the_control_socket() {
    let Some(world) = World::new(false) else {
        return;
    };
    let write = |text: &str| {
        let script = format!("fd = os.open('a0', os.O_RDWR); os.pwrite(fd, b'{text}', 2)\n");
        world.start(&script).end()
    };
    let freeze = || -> Freeze {
        let client = Client::connect(&world.sandbox.at("control")).unwrap();
        client.freeze().unwrap()
    };
    write("first");
    let file = fs::metadata(world.upper("a0")).unwrap().ino();
    let inner = world.sandbox.at("work/work");
    let keep = freeze().keep(&[file]).map_err(|(_, error)| error).unwrap();
    let mut log = fs::File::open(inner.join(keep.log())).unwrap();
    write("SEC");
    write("THIRD");
    let second = Client::connect(&world.sandbox.at("control")).unwrap();
    assert!(second.freeze().is_err(), "one at a time");
    let mut client = keep.thaw().unwrap();
    let mut all = Vec::new();
    log.read_to_end(&mut all).unwrap();
    let record = |at: u64, bytes: &[u8]| {
        let head = [file, at, bytes.len() as u64].map(u64::to_le_bytes);
        [head.concat(), bytes.to_vec()].concat()
    };
    assert_eq!(all, [record(2, b"fir"), record(5, b"st")].concat());
    write("later");
    assert_eq!(log.read_to_end(&mut all).unwrap(), 0);
    client.stats().unwrap();

    // Whoever goes without a word ends it too.
    let keep = freeze().keep(&[file]).map_err(|(_, error)| error).unwrap();
    assert!(inner.join(keep.log()).exists());
    drop(keep);
    until("the log has gone", || {
        fs::read_dir(&inner).unwrap().count() == 0
    });
    until("another can freeze", || {
        let client = Client::connect(&world.sandbox.at("control")).unwrap();
        client.freeze().is_ok_and(|freeze| freeze.thaw().is_ok())
    });
    assert_eq!(fs::read(world.upper("a0")).unwrap(), b"00later0");
}

#[test]
fn what_may_be_written_past_the_server_is_not_kept() {
    let Some(world) = World::new(true) else {
        return;
    };
    let frozen = world.freezer.freeze().unwrap();
    let (frozen, error) = match frozen.keep([1]) {
        Ok(kept) => {
            drop(kept);
            // Where the kernel takes no files it writes to none.
            skip("needs FUSE passthrough");
            return;
        }
        Err(refused) => refused,
    };
    assert!(
        matches!(error, KeepError::MayBeWrittenPastServer),
        "{error}"
    );
    assert!(!error.to_string().contains('\n'));
    // All is held back still.
    let mut writer = world.start("print('here'); os.mkdir('made'); print('made')\n");
    assert_eq!(writer.line(), "here");
    assert!(!world.upper("made").exists());
    drop(frozen);
    assert_eq!(writer.line(), "made");
    writer.end();
}

#[test]
fn files_that_are_written_past_the_server_are_told() {
    let Some(world) = World::new(true) else {
        return;
    };
    // What is only read does not count.
    let mut reader =
        world.start("fd = os.open('large', os.O_RDONLY); print('open'); sys.stdin.read()\n");
    assert_eq!(reader.line(), "open");
    drop(world.freezer.freeze().unwrap());
    let mut writer = world.start(
        "fds = [os.open('b0', os.O_RDWR), os.open('fresh', os.O_WRONLY | os.O_CREAT)]\n\
         os.write(fds[1], b'x'); print('open'); sys.stdin.read()\n",
    );
    assert_eq!(writer.line(), "open");
    if world.freezer.written_past() == 0 {
        skip("needs FUSE passthrough to the upper");
        return;
    }
    let refused = world.freezer.freeze().map(drop);
    assert_eq!(refused, Err(FreezeError::WrittenPastServer(2)));
    assert!(refused.unwrap_err().to_string().starts_with("2 files are"));
    // Nothing is held back.
    let other = world.start("os.mkdir('made'); print('done')\n");
    assert_eq!(other.end(), "done");
    writer.end();
    // Told a moment after close(2) has returned.
    until("both are closed", || world.freezer.written_past() == 0);
    drop(world.freezer.freeze().unwrap());
    reader.end();
}
