//! Many processes at work on one mount for a while: each does the same to a plain directory and
//! every answer must be the same; then both trees are, to the byte, and once more after a new
//! mount. Round after round the server holds no more memory and no more descriptors.
//!
//! `TARNFS_LOAD_PROCESSES` (64), `TARNFS_LOAD_SECONDS` (of a round) and `TARNFS_LOAD_ROUNDS` make
//! it longer.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Mount, Sandbox, can_mount, has, ok, pack, walk};
use rustix::fs::{CWD, RenameFlags, XattrFlags};

/// What the image gives to all processes.
const SHARED: &str = "mkdir shared; : >shared/log";
/// What it gives to each.
const MAKE: &str = r#"
for i in $(seq 0 @); do
    mkdir -p w$i/d/e w$i/f; echo one >w$i/a; seq 4000 >w$i/d/b
    ln w$i/a w$i/d/a2; ln w$i/a w$i/f/a3; ln -s d/b w$i/s; echo s >w$i/d/e/c; chmod 4755 w$i/d/e/c
done
"#;

/// Names that a process chooses from, in its own directory.
const NAMES: [&str; 16] = [
    "a", "d/b", "d/a2", "f/a3", "s", "d/e/c", "n1", "d/n2", "f/n3", "d/e/n4", "d/e", "f", "g",
    "d/g", "h/i", "h",
];

fn env(key: &str, default: u64) -> u64 {
    std::env::var(key).map_or(default, |value| value.parse().unwrap())
}

/// xorshift64*: the same operations on both sides.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }
}

/// One operation; the answer is what can be compared: how much, or the errno.
fn apply(root: &Path, (what, p, q, n): (usize, &str, &str, usize)) -> Result<u64, i32> {
    let (path, other) = (root.join(p), root.join(q));
    let file = |options: &mut fs::OpenOptions| match fs::symlink_metadata(&path) {
        Ok(meta) if !meta.is_file() => Err(std::io::ErrorKind::IsADirectory.into()),
        _ => options.open(&path),
    };
    let data = vec![n as u8; n];
    let done = |()| 0;
    let rename = |flags| rustix::fs::renameat_with(CWD, &path, CWD, &other, flags);
    let result: std::io::Result<u64> = match what {
        0 | 1 => file(File::options().write(true).create(true))
            .and_then(|file| file.write_all_at(&data, n as u64 * 7 % 30_000).map(done)),
        2 | 3 => file(File::options().append(true)).and_then(|mut f| f.write_all(&data).map(done)),
        4 => file(File::options().write(true)).and_then(|f| f.set_len(n as u64).map(done)),
        5..=8 => file(File::options().read(true)).and_then(|file| {
            let mut all = vec![0; 200_000];
            let n = file.read_at(&mut all, 0)?;
            Ok(all[..n].iter().fold(n as u64, |sum, &b| {
                sum.wrapping_mul(31).wrapping_add(u64::from(b))
            }))
        }),
        9 | 10 => fs::remove_file(&path).map(done),
        11 => fs::create_dir(&path).map(done),
        12 => fs::remove_dir(&path).map(done),
        13..=15 => rename(RenameFlags::empty()).map(done).map_err(Into::into),
        16 => rename(RenameFlags::EXCHANGE).map(done).map_err(Into::into),
        17 | 18 => fs::hard_link(&path, &other).map(done),
        19 => symlink(q, &path).map(done),
        // Of a link, chmod(2) would change what it leads to, perhaps nothing.
        20 if path.is_symlink() => Ok(0),
        20 => {
            let modes = [0o644, 0o700, 0o4755, 0o600];
            fs::set_permissions(&path, fs::Permissions::from_mode(modes[n % 4])).map(done)
        }
        21 => rustix::fs::lsetxattr(&path, "user.load", &data[..n % 200], XattrFlags::empty())
            .map(done)
            .map_err(Into::into),
        22 => fs::read_dir(&path).map(|list| list.count() as u64),
        _ => fs::symlink_metadata(&path).map(|meta| {
            use std::os::unix::fs::MetadataExt;
            let size = if meta.is_dir() { 0 } else { meta.size() };
            size ^ u64::from(meta.mode()) << 32
        }),
    };
    result.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

/// What one process does.
fn work(mount: &Path, plain: &Path, id: u64, round: u64, until: Instant) {
    let (ours, theirs) = (mount.join(format!("w{id}")), plain.join(format!("w{id}")));
    let mut dice = Dice((id + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (round + 1));
    let mut log = File::options()
        .append(true)
        .open(mount.join("shared/log"))
        .unwrap();
    let mut steps = 0;
    let mut lines = 0;
    while Instant::now() < until {
        let (p, q) = (NAMES[dice.roll(16)], NAMES[dice.roll(16)]);
        let op = (dice.roll(26), p, q, dice.roll(9_000));
        let (got, want) = (apply(&ours, op), apply(&theirs, op));
        assert_eq!(got, want, "process {id}, step {steps}: {op:?}");
        if steps % 8 == 0 {
            // In a directory and in a file that all have in common.
            let name = format!("shared/p{id}-{}", dice.roll(20));
            for root in [mount, plain] {
                if !root.join(&name).exists() {
                    fs::write(root.join(&name), name.as_bytes()).unwrap();
                } else {
                    fs::remove_file(root.join(&name)).unwrap();
                }
            }
            log.write_all(format!("process {id}\n").as_bytes()).unwrap();
            lines += 1;
        }
        steps += 1;
    }
    println!("\nprocess {id}: {steps} steps, {lines} lines");
}

/// This program again, as one process of the load.
fn work_as_told(args: &str) {
    let args: Vec<_> = args.split('|').collect();
    let seconds = Duration::from_secs(args[4].parse().unwrap());
    let (mount, plain) = (Path::new(args[0]), Path::new(args[1]));
    let (id, round) = (args[2].parse().unwrap(), args[3].parse().unwrap());
    work(mount, plain, id, round, Instant::now() + seconds);
}

/// Attributes (but times) and links of all there is, and bytes by diff(1). The log is for the
/// caller: the order of its lines is nobody's to say.
fn assert_same(mount: &Path, plain: &Path) {
    let described = |root: &Path| {
        let mut all = walk::describe(root);
        all.retain(|name, _| name != b"shared/log");
        for line in all.values_mut() {
            let (before, rest) = line.split_once(" mtime ").unwrap();
            let after = rest.split_once(' ').map_or("", |(_, after)| after);
            *line = format!("{before} {after}");
        }
        all
    };
    walk::assert_same(&described(plain), &described(mount));
    let args = ["-r", "--no-dereference", "--exclude=log"].map(std::ffi::OsStr::new);
    ok(
        "diff",
        args.into_iter()
            .chain([plain.as_os_str(), mount.as_os_str()]),
    );
}

fn count_lines(log: &Path) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        let id = line
            .strip_prefix("process ")
            .unwrap_or_else(|| panic!("a torn line: {line:?}"));
        *counts.entry(id.parse().unwrap()).or_default() += 1;
    }
    counts
}

/// What the server of a mount holds: descriptors, and bytes of memory. The kernel waits for no
/// answer to RELEASE and FORGET, and another thread of the server may be at one: so it is asked
/// until there are no more than `enough` descriptors, or for half a minute.
fn held(mount: &Mount<'_>, enough: usize) -> (usize, u64) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let held = held_now(mount);
        if held.0 <= enough || Instant::now() > until {
            return held;
        }
    }
}

fn held_now(mount: &Mount<'_>) -> (usize, u64) {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    // A round trip to the server.
    rustix::fs::statvfs(mount.path()).unwrap();
    let pid = mount.server();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    let rss: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
    (
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        rss * 1024,
    )
}

#[test]
fn the_load() {
    if let Ok(args) = std::env::var("TARNFS_LOAD_WORKER") {
        return work_as_told(&args);
    }
    if !can_mount() || !has("diff") {
        return;
    }
    let processes = env("TARNFS_LOAD_PROCESSES", 64);
    let (seconds, rounds) = (env("TARNFS_LOAD_SECONDS", 3), env("TARNFS_LOAD_ROUNDS", 4));
    let sandbox = Sandbox::new();
    let plain = sandbox.dir("plain");
    let make = MAKE.replace('@', &(processes - 1).to_string());
    ok(
        "bash",
        [
            "-euc",
            &format!("cd '{}'; {SHARED}; {make}", plain.display()),
        ],
    );
    let tar = sandbox.at("image.tar");
    pack(&plain, &tar, &[]);
    let (upper, work) = (sandbox.dir("upper"), sandbox.at("work"));
    let mount = sandbox.mount_over("mount", &tar, (&upper, &work), &[]);

    let mut lines: BTreeMap<u64, u64> = BTreeMap::new();
    let mut steps = 0;
    let mut before: Option<(usize, u64)> = None;
    for round in 0..rounds {
        let start = |id| -> (u64, Child) {
            let args = [
                mount.path().display().to_string(),
                plain.display().to_string(),
                format!("{id}|{round}|{seconds}"),
            ];
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture", "the_load"])
                .env("TARNFS_LOAD_WORKER", args.join("|"))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            (id, child)
        };
        let running: Vec<_> = (0..processes).map(start).collect();
        for (id, child) in running {
            let output = child.wait_with_output().unwrap();
            let text = common::text(&output.stdout);
            assert!(output.status.success(), "process {id}: {text}");
            let said = text
                .lines()
                .find_map(|line| line.strip_prefix(&format!("process {id}: ")));
            let numbers: Vec<u64> = said
                .unwrap_or_else(|| panic!("process {id}: {text}"))
                .split(' ')
                .filter_map(|word| word.parse().ok())
                .collect();
            steps += numbers[0];
            *lines.entry(id).or_default() += numbers[1];
        }
        assert_same(mount.path(), &plain);
        assert_eq!(count_lines(&mount.at("shared/log")), lines);
        let full = held_now(&mount);
        println!(
            "round {round}: {steps} steps so far; {} descriptors, {} bytes",
            full.0, full.1
        );
        if round + 1 == rounds {
            break;
        }
        // Each round but the first, which brings the image's files to the upper, begins alike.
        for root in [mount.path(), &plain] {
            let again = format!("cd '{}'; rm -rf w* shared/p*; {make}", root.display());
            ok("bash", ["-euc", &again]);
        }
        let enough = before.map_or(usize::MAX, |(fds, _)| fds);
        let (fds, memory) = held(&mount, enough);
        println!("  anew: {fds} descriptors, {memory} bytes");
        if round > 0 {
            let (first_fds, first) = *before.get_or_insert((fds, memory));
            assert!(fds <= first_fds, "{fds} descriptors, {first_fds} before");
            assert!(
                memory <= first + first / 4,
                "{memory} bytes, {first} before"
            );
        }
    }
    mount.unmount();
    let mount = sandbox.mount_over("mount", &tar, (&upper, &work), &[]);
    assert_same(mount.path(), &plain);
    assert_eq!(count_lines(&mount.at("shared/log")), lines);
    mount.unmount();
}
