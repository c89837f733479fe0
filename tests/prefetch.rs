//! Recording what a start-up reads, and reading it ahead: through the library and the program.
// Helpers outside of #[test] functions fail tests as the functions do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use common::{TARNFS, can_mount, pack, skip};
use tarnfs::lower::Lower;
use tarnfs::name::Name;
use tarnfs::overlay::{Overlay, ROOT_INO};
use tarnfs::prefetch::replay::{End, Outcome, Replay};
use tarnfs::prefetch::{Limits, Prefetch, Profile, Recording};
use tarnfs::store::Store;

/// Bytes of each file of the image.
const LEN: usize = 1_000_000;

/// An image of `/a`, `/b`, `/dir/c` and `/link` → a, and what it is used with.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        bench.pack("image.tar", &["a", "b", "dir/c"]);
        bench
    }

    fn pack(&self, image: &str, files: &[&str]) {
        let tree = self.path("tree");
        fs::create_dir_all(tree.join("dir")).unwrap();
        for (n, file) in files.iter().enumerate() {
            fs::write(tree.join(file), vec![u8::try_from(n).unwrap(); LEN]).unwrap();
            fs::set_permissions(tree.join(file), fs::Permissions::from_mode(0o755)).unwrap();
        }
        if !tree.join("link").is_symlink() {
            std::os::unix::fs::symlink("a", tree.join("link")).unwrap();
        }
        let options = ["--owner=0", "--group=0", "--sort=name"];
        pack(&tree, &self.path(image), &options);
        fs::remove_dir_all(tree).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn lower(&self, image: &str) -> Lower {
        let store = Store::open(&self.path("store"));
        let image = store.tar_image(&self.path(image), &mut |_| {}).unwrap();
        image.lower().unwrap()
    }

    fn overlay(&self) -> Arc<Overlay> {
        Arc::new(Overlay::read_only(self.lower("image.tar")))
    }

    fn profile(&self, lines: &str) -> Profile {
        let text = format!("tarnfs-prefetch 1 0000000000000000\n{lines}");
        fs::write(self.path("profile"), text).unwrap();
        Profile::load(&self.path("profile")).unwrap()
    }

    /// Drops the image's pages from the page cache; false where the filesystem keeps them.
    fn evict(&self) -> bool {
        let file = File::open(self.path("image.tar")).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let gone = self.cached(0, u64::MAX) == 0;
        if !gone {
            skip("the temporary directory's filesystem keeps its pages");
        }
        gone
    }

    /// Pages of the image from `from` to `to` that are in the page cache.
    fn cached(&self, from: u64, to: u64) -> usize {
        let file = File::open(self.path("image.tar")).unwrap();
        let end = to.min(file.metadata().unwrap().len());
        let mut pages = 0;
        let mut at = from / 4096 * 4096;
        while at < end {
            let mut byte = [0];
            let mut to = [IoSliceMut::new(&mut byte)];
            let flags = rustix::io::ReadWriteFlags::NOWAIT;
            pages += usize::from(rustix::io::preadv2(&file, &mut to, at, flags).is_ok());
            at += 4096;
        }
        pages
    }

    fn tarnfs(&self, args: &[&str]) -> Command {
        let mut command = Command::new(TARNFS);
        command
            .args(args)
            .env("TARNFS_STORE", self.path("store"))
            .env_remove("TARNFS_LOG")
            .current_dir(self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.tarnfs(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) {
        let out = self.run(args);
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }

    /// The one line that a command which fails says.
    fn fails(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(!out.status.success(), "{args:?} succeeds");
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        said
    }
}

fn limits(bytes: u64) -> Limits {
    Limits {
        bytes,
        short_of_memory: || None,
    }
}

fn replayed(overlay: &Arc<Overlay>, profile: Profile, limits: Limits) -> Outcome {
    let replay = Replay::start(Arc::clone(overlay), profile, limits).unwrap();
    replay.finish().unwrap()
}

// ---- hostile files first ---------------------------------------------------------------------

#[test]
fn a_bad_record_mounts_nothing_and_says_why_in_one_line() {
    let bench = Bench::new();
    fs::create_dir(bench.path("mnt")).unwrap();
    let head = "tarnfs-prefetch 1 0000000000000000\n";
    for (text, said) in [
        (String::new(), "not a record"),
        ("#!/bin/sh\n".to_owned(), "not a record"),
        ("tarnfs-prefetch 99 0\n".to_owned(), "version"),
        (format!("{head}0 4096 /../../etc/shadow\n"), "line 2"),
        (format!("{head}0 4096 etc/shadow\n"), "line 2"),
        (format!("{head}0 99999999999999999999 /a\n"), "line 2"),
        (format!("{head}9223372036854775807 9 /a\n"), "line 2"),
    ] {
        fs::write(bench.path("bad"), &text).unwrap();
        let error = bench.fails(&["mount", "--prefetch", "bad", "image.tar", "mnt"]);
        assert!(error.contains(said) && error.contains("bad"), "{error}");
        let error = bench.fails(&["mount", "-o", "prefetch=bad", "image.tar", "mnt"]);
        assert!(error.contains(said), "{error}");
        let error = bench.fails(&["run", "--prefetch", "bad", "image.tar", "true"]);
        assert!(error.contains(said), "{error}");
    }
    let error = bench.fails(&["mount", "--prefetch", "none", "image.tar", "mnt"]);
    assert!(error.contains("No such file"), "{error}");
    let error = bench.fails(&["mount", "--prefetch", ".", "image.tar", "mnt"]);
    assert!(error.contains("directory"), "{error}");
    bench.fails(&["mount", "-o", "prefetch_max=1M", "image.tar", "mnt"]);
    assert_eq!(fs::read_dir(bench.path("mnt")).unwrap().count(), 0);
}

#[test]
fn a_file_of_others_is_not_recorded_over() {
    let bench = Bench::new();
    fs::create_dir(bench.path("mnt")).unwrap();
    fs::write(bench.path("mine"), "mine\n").unwrap();
    let image = fs::metadata(bench.path("image.tar")).unwrap().len();
    for file in ["mine", "image.tar"] {
        let error = bench.fails(&["mount", "--record", file, "image.tar", "mnt"]);
        assert!(error.contains("not a record"), "{error}");
    }
    assert_eq!(fs::read(bench.path("mine")).unwrap(), b"mine\n");
    assert_eq!(fs::metadata(bench.path("image.tar")).unwrap().len(), image);
    fs::create_dir(bench.path("up")).unwrap();
    let error = bench.fails(&[
        "mount",
        "--record",
        "up/r",
        "--upper",
        "up",
        "image.tar",
        "mnt",
    ]);
    assert!(error.contains("lies in"), "{error}");
    bench.fails(&["mount", "--record", "no/such", "image.tar", "mnt"]);
}

#[test]
fn the_kernel_engine_refuses_both_by_name() {
    let bench = Bench::new();
    fs::create_dir(bench.path("mnt")).unwrap();
    fs::write(bench.path("r"), "tarnfs-prefetch 1 0000000000000000\n").unwrap();
    for (option, name) in [
        (["--record", "new"], "--record"),
        (["--prefetch", "r"], "--prefetch"),
        (["-o", "record=new"], "--record"),
        (["-o", "prefetch=r"], "--prefetch"),
    ] {
        let mut args = vec!["mount", "--engine", "kernel"];
        args.extend(option);
        args.extend(["image.tar", "mnt"]);
        let error = bench.fails(&args);
        assert!(error.contains(name), "{error}");
    }
    let error = bench.fails(&[
        "run",
        "--engine",
        "kernel",
        "--record",
        "new",
        "image.tar",
        "true",
    ]);
    assert!(error.contains("--record"), "{error}");
    assert!(!bench.path("new").exists());
}

#[test]
fn lines_that_lead_nowhere_are_counted() {
    let bench = Bench::new();
    let overlay = bench.overlay();
    let profile = bench.profile(
        "0 4096 /none\n0 4096 /a/b\n0 4096 /dir\n0 4096 /link\n0 4096 /dir/none\n\
         4000000 4096 /a\n9223372036854771711 4096 /a\n",
    );
    let outcome = replayed(&overlay, profile, limits(Limits::BYTES));
    let want = Outcome {
        files: 0,
        bytes: 0,
        gone: 7,
        end: End::Done,
    };
    assert_eq!(outcome, want);
}

#[test]
fn a_record_without_end_is_bounded() {
    let bench = Bench::new();
    let overlay = bench.overlay();
    let profile = bench.profile(&"0 9223372036854775807 /a\n".repeat(10_000));
    let outcome = replayed(&overlay, profile, limits(3_500_000));
    assert_eq!(outcome.end, End::Bytes);
    assert_eq!(outcome.files, 1);
    // What several lines name at once is read once.
    assert!(outcome.bytes <= 3_500_000, "{outcome:?}");
}

// ---- what it is for --------------------------------------------------------------------------

#[test]
fn what_is_named_is_in_the_page_cache_afterwards() {
    let bench = Bench::new();
    let overlay = bench.overlay();
    if !bench.evict() {
        return;
    }
    let profile = bench.profile("0 1000000 /dir/c\n8192 4096 /a\n0 1 /gone\n");
    let outcome = replayed(&overlay, profile, limits(Limits::BYTES));
    assert_eq!((outcome.files, outcome.gone), (2, 1));
    assert_eq!(outcome.end, End::Done);
    // Where the bytes are, an extent of the index tells; the files are one behind the other.
    let lower = overlay.lower();
    let dir = lower
        .lookup(lower.root(), &Name::new(b"dir").unwrap())
        .unwrap()
        .unwrap();
    let c = lower
        .lookup(dir, &Name::new(b"c").unwrap())
        .unwrap()
        .unwrap();
    let extent = lower.extent(c, 0).unwrap().unwrap();
    let tarnfs::lower::Place::Device { offset, .. } = extent.place else {
        panic!("{extent:?}");
    };
    assert!(outcome.bytes >= LEN as u64 && outcome.bytes < 2 * LEN as u64);
    assert!(bench.evict());
    let profile = bench.profile("0 1000000 /dir/c\n");
    replayed(&overlay, profile, limits(Limits::BYTES));
    let end = offset + LEN as u64;
    let all = usize::try_from(end.div_ceil(4096) - offset / 4096).unwrap();
    assert_eq!(bench.cached(offset, end), all);
}

#[test]
fn it_ends_when_it_is_told_to_and_when_memory_is_short() {
    let bench = Bench::new();
    let overlay = bench.overlay();
    let short = Limits {
        short_of_memory: || Some("so"),
        ..limits(Limits::BYTES)
    };
    let profile = bench.profile("0 1000000 /a\n");
    let outcome = replayed(&overlay, profile.clone(), short);
    assert_eq!((outcome.end, outcome.bytes), (End::Memory("so"), 0));
    // However far it was, it ends, and lets go of the filesystem.
    let many = Profile {
        lines: vec![profile.lines.first().unwrap().clone(); 200_000],
        ..profile
    };
    let replay = Replay::start(Arc::clone(&overlay), many, limits(u64::MAX)).unwrap();
    replay.cancel();
    let outcome = replay.finish().unwrap();
    assert_eq!(outcome.end, End::Cancelled);
    assert_eq!(Arc::strong_count(&overlay), 1);
}

#[test]
fn a_record_holds_first_touches_in_order() {
    let bench = Bench::new();
    let mut lower = bench.lower("image.tar");
    let fingerprint = lower.fingerprint();
    let path = bench.path("r");
    let recording = Recording::create(&path, fingerprint).unwrap();
    lower.watch(recording.watch());
    let overlay = Arc::new(Overlay::read_only(lower));
    let running = Prefetch {
        record: Some(recording),
        replay: None,
    }
    .start(&overlay);
    let open = |parent, name: &[u8]| {
        let entry = overlay.lookup(parent, &Name::new(name).unwrap()).unwrap();
        tarnfs::overlay::Ino(entry.attr.ino)
    };
    let (a, b, dir) = (
        open(ROOT_INO, b"a"),
        open(ROOT_INO, b"b"),
        open(ROOT_INO, b"dir"),
    );
    let c = open(dir, b"c");
    let [a, b, c] = [a, b, c].map(|ino| overlay.open(ino, libc::O_RDONLY).unwrap());
    let mut buf = vec![0; 10_000];
    // b: two ranges that meet, and one again; c; a: its end, and behind it; b: a new part.
    for (handle, offset, len) in [
        (b, 0, 5000),
        (b, 8192, 100),
        (b, 4096, 4096),
        (c, 500_000, 1),
        (b, 100, 10),
        (a, 999_000, 10_000),
        (a, 1_000_000, 100),
        (b, 0, 10_000),
        (b, 40_960, 4096),
    ] {
        overlay.read(handle, offset, &mut buf[..len]).unwrap();
    }
    running.finish();
    assert_eq!(Arc::strong_count(&overlay), 1);
    let profile = Profile::load(&path).unwrap();
    assert_eq!(profile.fingerprint, fingerprint);
    let lines: Vec<_> = profile
        .lines
        .iter()
        .map(|line| {
            (
                line.offset,
                line.len,
                std::str::from_utf8(&line.path).unwrap(),
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            (0, 12_288, "/b"),
            (499_712, 4096, "/dir/c"),
            (995_328, 8192, "/a"),
            (40_960, 4096, "/b"),
        ]
    );
}

/// Waits until the record at `path` holds `wanted`: it is written a moment after the reads.
fn wait_for(path: &Path, wanted: &str) -> String {
    let mut file = File::open(path).unwrap();
    loop {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        if text.contains(wanted) {
            return text;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_mount_records_and_a_mount_of_the_next_image_reads_ahead() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let mnt = bench.path("mnt");
    fs::create_dir(&mnt).unwrap();
    bench.ok(&["mount", "--tmpfs", "--record", "r", "image.tar", "mnt"]);
    let file = File::open(mnt.join("dir/c")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    drop(file);
    // A copy to the upper reads the image as well.
    fs::OpenOptions::new()
        .append(true)
        .open(mnt.join("b"))
        .unwrap();
    // It is there before the mount ends: a mount that is killed has its record.
    let text = wait_for(&bench.path("r"), " /b\n");
    assert!(
        text.contains("\n0 ") && text.contains(" /dir/c\n"),
        "{text}"
    );
    assert!(text.ends_with("\n0 1003520 /b\n"), "{text}");
    bench.ok(&["umount", "mnt"]);
    assert_eq!(fs::read_to_string(bench.path("r")).unwrap(), text);
    // The next build has other numbers, and no /b any more.
    bench.pack("image.tar", &["0", "1", "a", "dir/c"]);
    bench.ok(&[
        "--log",
        "info",
        "--log-file",
        "log",
        "mount",
        "--read-only",
        "--prefetch",
        "r",
        "image.tar",
        "mnt",
    ]);
    let log = wait_for(&bench.path("log"), "prefetched");
    bench.ok(&["umount", "mnt"]);
    let line = log
        .lines()
        .find(|line| line.contains("prefetched"))
        .unwrap();
    for part in ["files=1 ", "gone=1 ", "another_image=true", "end=Done"] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn an_actor_records_and_reads_ahead() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    // To find that it is no program the kernel reads its beginning.
    let out = bench.run(&["run", "--record", "r", "image.tar", "/a"]);
    assert!(!out.status.success());
    let text = fs::read_to_string(bench.path("r")).unwrap();
    assert!(text.contains(" /a\n"), "{text}");
    let out = bench.run(&["--log", "info", "run", "--prefetch", "r", "image.tar", "/a"]);
    assert!(!out.status.success());
    let log = String::from_utf8(out.stderr).unwrap();
    assert!(log.contains("prefetched"), "{log}");
}

#[test]
fn the_kernel_reads_ahead_as_much_as_is_asked() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    fs::create_dir(bench.path("mnt")).unwrap();
    for (options, kib) in [
        (&[][..], 2048),
        (&["--read-ahead", "512"], 512),
        (&["-o", "readahead=1024"], 1024),
        // A record names what is asked for, not what the kernel guesses.
        (&["--record", "r"], 128),
        (&["--record", "r", "--read-ahead", "256"], 256),
    ] {
        let mut args = vec!["mount", "--read-only"];
        args.extend(options);
        args.extend(["image.tar", "mnt"]);
        bench.ok(&args);
        let minor = rustix::fs::minor(rustix::fs::stat(bench.path("mnt")).unwrap().st_dev);
        let set = fs::read_to_string(format!("/sys/class/bdi/0:{minor}/read_ahead_kb"));
        bench.ok(&["umount", "mnt"]);
        match set {
            Ok(set) => assert_eq!(set.trim(), kib.to_string(), "{options:?}"),
            Err(error) => println!("SKIPPED: /sys/class/bdi: {error}"),
        }
    }
}
