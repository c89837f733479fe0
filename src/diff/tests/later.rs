//! Uppers in use: what is written to large files while they are copied is not in the tar.

use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Mutex;

use super::*;
use crate::diff::kept::{Log, Record};

const MIB: usize = 1 << 20;

/// A record of the log.
fn record(ino: u64, offset: usize, bytes: &[u8]) -> Vec<u8> {
    let head = [ino, offset as u64, bytes.len() as u64].map(u64::to_le_bytes);
    [head.concat().as_slice(), bytes].concat()
}

/// What happens as soon as changes go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Quiet,
    Written,
    /// And there was no room for the log.
    Lost,
    /// The server cannot keep anything.
    Refused,
}

/// Stands for a server and for the programs that write through it.
struct Writers<'w> {
    world: &'w World,
    case: Case,
    log: Mutex<Vec<u8>>,
    /// What was asked of it.
    asked: Mutex<Vec<String>>,
}

impl<'w> Writers<'w> {
    fn new(world: &'w World, case: Case) -> Self {
        Self {
            world,
            case,
            log: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    /// What was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn say(&self, what: impl Into<String>) {
        self.asked.lock().unwrap().push(what.into());
    }

    /// Overwrites, cuts, grows and removes; what was there goes to the log before.
    fn write(&self) {
        let mut log = self.log.lock().unwrap();
        let file = |name: &str| {
            let path = self.world.at(name);
            let file = File::options().read(true).write(true).open(path).unwrap();
            let ino = file.metadata().unwrap().ino();
            (file, ino)
        };
        let read = |file: &File, at: usize, len: usize| {
            let mut old = vec![0; len];
            file.read_exact_at(&mut old, at as u64).unwrap();
            old
        };
        let (big, ino) = file("big");
        for (at, len) in [(0, 1), (MIB - 1, MIB + 2), (3 * MIB, 4096)] {
            log.extend(record(ino, at, &read(&big, at, len)));
            big.write_all_at(&vec![0xff; len], at as u64).unwrap();
        }
        big.write_all_at(&[0xff; 5000], 4 * MIB as u64 + 77)
            .unwrap();
        let (cut, ino) = file("cut");
        log.extend(record(ino, 10, &read(&cut, 10, 2 * MIB - 10)));
        cut.set_len(10).unwrap();
        // Data, a hole, data: both borders are written over, and so is the hole, of which a part was
        // allocated.
        let (sparse, ino) = file("sparse");
        log.extend(record(ino, MIB - 5, &read(&sparse, MIB - 5, 5)));
        log.extend(record(ino, 2 * MIB, &[0; 9]));
        log.extend(record(
            ino,
            4 * MIB - 8,
            &[&[0; 8], &*read(&sparse, 4 * MIB, 7)].concat(),
        ));
        sparse
            .write_all_at(&vec![0xff; 3 * MIB + 12], MIB as u64 - 5)
            .unwrap();
        fs::remove_file(self.world.at("gone")).unwrap();
        // Of a file that nobody copies.
        log.extend(record(1, 0, b"nobody's"));
    }
}

impl Hold for Writers<'_> {
    fn thaw(&self) -> io::Result<()> {
        self.say("thaw");
        Ok(())
    }

    fn keep(&self, files: &[u64]) -> io::Result<Option<File>> {
        self.say(format!("keep {}", files.len()));
        let path = self.world.dir.path().join("log");
        fs::write(&path, b"").unwrap();
        match self.case {
            Case::Refused => return Ok(None),
            Case::Quiet => {}
            Case::Written | Case::Lost => self.write(),
        }
        fs::write(&path, &*self.log.lock().unwrap()).unwrap();
        Ok(Some(File::open(path).unwrap()))
    }

    fn end_log(&self) -> io::Result<()> {
        self.say("end");
        match self.case {
            Case::Lost => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn hold(&self) -> io::Result<()> {
        self.say("hold");
        Ok(())
    }

    fn spool(&self) -> io::Result<File> {
        tempfile::tempfile_in(self.world.dir.path())
    }
}

fn world() -> World {
    let world = World::usual();
    let bytes = |seed: usize, len: usize| -> Vec<u8> {
        let byte = |n: usize| u8::try_from((n.wrapping_mul(seed) >> 7) % 250).unwrap();
        (0..len).map(byte).collect()
    };
    world.write("big", &bytes(31, 4 * MIB + 77));
    world.write("cut", &bytes(37, 2 * MIB));
    world.write("gone", &bytes(41, MIB));
    world.write("small", &bytes(43, MIB - 1));
    let sparse = File::create(world.at("sparse")).unwrap();
    sparse.write_all_at(&bytes(47, MIB), 0).unwrap();
    sparse
        .write_all_at(&bytes(53, MIB), 4 * MIB as u64)
        .unwrap();
    sparse.set_len(6 * MIB as u64).unwrap();
    drop(sparse);
    fs::hard_link(world.at("big"), world.at("same")).unwrap();
    world
}

fn digest() -> Options {
    Options {
        digest: true,
        ..Options::default()
    }
}

/// The tar that `writers` hold the upper for.
fn held(writers: &Writers<'_>, options: Options) -> (Vec<u8>, Written, u64) {
    let mut file = tempfile::tempfile().unwrap();
    let changes = writers.world.changes(options).held_by(writers);
    let mut told = 0;
    let written = changes.write_into(&file, &mut |done| told = done).unwrap();
    let mut tar = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    std::io::Read::read_to_end(&mut file, &mut tar).unwrap();
    (tar, written, told)
}

#[test]
fn what_is_written_meanwhile_is_not_in_the_tar() {
    for case in [Case::Quiet, Case::Written, Case::Refused] {
        let world = world();
        let before = world.tar(digest()).unwrap();
        let writers = Writers::new(&world, case);
        let (tar, written, told) = held(&writers, digest());
        assert!(tar == before, "{case:?}");
        assert_eq!(written.digest, Some(Digest::of(&before)), "{case:?}");
        assert_eq!(written.len, before.len() as u64);
        if case != Case::Written {
            assert_eq!(told, (10 * MIB + 76) as u64, "{case:?}");
        }
        let asked = writers.asked();
        match case {
            Case::Refused => assert_eq!(asked, ["keep 4", "thaw"]),
            _ => assert_eq!(asked, ["keep 4", "end"]),
        }
    }
}

#[test]
fn without_room_for_the_log_all_is_copied_again() {
    let world = world();
    let writers = Writers::new(&world, Case::Lost);
    let (tar, written, _) = held(&writers, digest());
    let now = world.tar(digest()).unwrap();
    assert!(tar == now, "as it is when it is held again");
    assert_eq!(written.digest, Some(Digest::of(&now)));
    assert_eq!(writers.asked(), ["keep 4", "end", "hold", "thaw"]);
}

#[test]
fn small_files_are_in_it_before_changes_go_on() {
    let world = World::usual();
    world.write("small", &[7; 5000]);
    let before = world.tar(Options::default()).unwrap();
    let writers = Writers::new(&world, Case::Quiet);
    let (tar, ..) = held(&writers, Options::default());
    assert!(tar == before);
    assert_eq!(writers.asked(), ["thaw"]);
}

#[test]
fn podman_s_pair_is_of_one_moment_too() {
    let world = world();
    let dir = |name: &str| {
        let dir = world.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    };
    let (before, after) = (dir("before"), dir("after"));
    let changes = world.of(Format::Podman);
    changes.write_podman(&before, &mut |_| ()).unwrap();
    let whole = world.tar(Options {
        format: Format::Podman,
        ..Options::default()
    });
    let in_one = Writers::new(&world, Case::Quiet);
    let options = Options {
        format: Format::Podman,
        ..Options::default()
    };
    assert!(held(&in_one, options).0 == whole.unwrap());
    let writers = Writers::new(&world, Case::Written);
    let changes = world.of(Format::Podman).held_by(&writers);
    changes.write_podman(&after, &mut |_| ()).unwrap();
    for name in ["rootfs-diff.tar", "deleted.files"] {
        let read = |dir: &Path| fs::read(dir.join(name)).unwrap();
        assert!(read(&before) == read(&after), "{name}");
    }
}

#[test]
fn a_file_that_gets_its_name_has_the_digest() {
    let world = world();
    let before = world.tar(digest()).unwrap();
    let writers = Writers::new(&world, Case::Written);
    let out = world.dir.path().join("out");
    let changes = world.changes(digest()).held_by(&writers);
    let written = changes.write_file(&out, &mut |_| ()).unwrap();
    assert!(fs::read(&out).unwrap() == before);
    assert_eq!(written.digest, Some(Digest::of(&before)));
}

#[test]
fn a_log_that_ends_within_a_record_is_an_error() {
    let world = world();
    let writers = Writers::new(&world, Case::Quiet);
    let ino = fs::metadata(world.at("big")).unwrap().ino();
    for cut in [1, 23, 25] {
        let log = record(ino, 0, b"xyz");
        *writers.log.lock().unwrap() = log[..cut].to_vec();
        let file = tempfile::tempfile().unwrap();
        let changes = world.of(Format::Oci).held_by(&writers);
        let error = changes.write_into(&file, &mut |_| ()).unwrap_err();
        assert!(matches!(error, DiffError::Held(_)), "{cut}: {error}");
    }
}

/// A reader who takes his time, in which more is written.
struct Slow<'w> {
    writers: &'w Writers<'w>,
    /// When so many bytes have come.
    at: usize,
    tar: Vec<u8>,
}

impl Write for Slow<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tar.len() < self.at && self.tar.len() + bytes.len() >= self.at {
            self.writers.write();
            let path = self.writers.world.dir.path().join("log");
            let log = File::options().write(true).open(path).unwrap();
            log.write_all_at(&self.writers.log.lock().unwrap(), 0)
                .unwrap();
        }
        self.tar.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_reader_gets_what_was_there() {
    for case in [Case::Quiet, Case::Written, Case::Refused] {
        for at in [0, 1, 2, 3, 5, 9] {
            let world = world();
            let before = world.tar(digest()).unwrap();
            let writers = Writers::new(&world, case);
            let mut slow = Slow {
                writers: &writers,
                at: match case {
                    Case::Quiet => at * MIB + 1000,
                    _ => 0,
                },
                tar: Vec::new(),
            };
            let changes = world.changes(digest()).held_by(&writers);
            let mut told = 0;
            let written = changes.write(&mut slow, &mut |done| told = done).unwrap();
            assert!(slow.tar == before, "{case:?}, {at}");
            assert_eq!(written.digest, Some(Digest::of(&before)));
            assert_eq!(told, (10 * MIB + 76) as u64);
            match case {
                Case::Refused => assert_eq!(writers.asked(), ["keep 4", "thaw"]),
                _ => assert_eq!(writers.asked(), ["keep 4", "end"]),
            }
        }
    }
}

#[test]
fn a_stream_whose_log_is_lost_is_an_error() {
    let world = world();
    let writers = Writers::new(&world, Case::Lost);
    let changes = world.of(Format::Oci).held_by(&writers);
    let error = changes.write(&mut Vec::new(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, DiffError::Held(_)), "{error}");
    // Cut, as a log is that was given up.
    let ino = fs::metadata(world.at("big")).unwrap().ino();
    let log = tempfile::NamedTempFile::new().unwrap();
    fs::write(&log, record(ino, 0, b"xyz")).unwrap();
    let mut read = Log::new(log.reopen().unwrap());
    let bytes = Record {
        ino,
        offset: 0,
        len: 3,
        data: 24,
    };
    assert_eq!(read.next().unwrap(), Some(bytes));
    assert_eq!(read.next().unwrap(), None);
    log.as_file().set_len(0).unwrap();
    read.next().unwrap_err();
}
