//! The requests that the kernel sends for what programs do: docs/ARCHITECTURE.md, "Round trips",
//! is the rule, this is only the judge. Counted in the server's own log.
// Helpers outside of #[test] functions fail tests as the functions do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{TARNFS, can_mount, has, pack};

/// Something that a program does.
type Action<'a> = Box<dyn Fn() + 'a>;

/// How often each request is sent.
type Requests = BTreeMap<String, usize>;

/// A mount of an image, whose server logs each request.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(options: &[&str]) -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        // Others look at the mount, too.
        fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let tree = bench.path("tree");
        for dir in ["dir", "list"] {
            fs::create_dir_all(tree.join(dir)).unwrap();
            for n in 0..20 {
                fs::write(tree.join(format!("{dir}/{n}")), vec![7; 3000]).unwrap();
            }
        }
        fs::write(tree.join("big"), vec![7; 8 << 20]).unwrap();
        std::os::unix::fs::symlink("dir/1", tree.join("link")).unwrap();
        fs::copy("/bin/true", tree.join("program")).unwrap();
        pack(&tree, &bench.path("image.tar"), &["--owner=0", "--group=0"]);
        fs::create_dir(bench.path("mnt")).unwrap();
        let words = ["--log", "tarnfs::fuse=trace", "--log-file", "log", "mount"];
        let mounted = Command::new(TARNFS)
            .args(words)
            .args(options)
            .args(["--upper", "up", "image.tar", "mnt"])
            .env("TARNFS_STORE", bench.path("store"))
            .env_remove("TARNFS_LOG")
            .current_dir(bench.dir.path())
            .status();
        assert!(mounted.unwrap().success());
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn mnt(&self, name: &str) -> PathBuf {
        self.path("mnt").join(name)
    }

    /// All requests so far. What is closed is told of when close(2) has returned, so this waits
    /// until all of it has been.
    fn log(&self) -> Requests {
        loop {
            let mut all = Requests::new();
            for line in fs::read_to_string(self.path("log")).unwrap().lines() {
                // What is logged before the answer: what is behind it may come late.
                if let Some((_, rest)) = line.split_once(": op=\"")
                    && let Some((op, _)) = rest.split_once('"')
                    && op != "forget"
                {
                    *all.entry(op.to_owned()).or_default() += 1;
                }
            }
            let n = |op: &str| all.get(op).copied().unwrap_or(0);
            if n("release") == n("open") + n("create") {
                return all;
            }
            std::thread::yield_now();
        }
    }

    /// The requests of one action.
    fn count(&self, action: impl FnOnce()) -> Requests {
        let before = self.log();
        action();
        let mut after = self.log();
        for (op, n) in before {
            *after.get_mut(&op).unwrap() -= n;
        }
        after.retain(|_, n| *n > 0);
        after
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let ended = Command::new(TARNFS)
            .arg("umount")
            .arg(self.path("mnt"))
            .status();
        assert!(ended.unwrap().success() || std::thread::panicking());
    }
}

/// The rows of the table: action → requests.
fn table() -> BTreeMap<String, Requests> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md");
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .skip_while(|line| *line != "## Round trips")
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let action = cells.next().unwrap().to_owned();
            let mut requests = Requests::new();
            for word in cells.next().unwrap().split(", ").filter(|w| *w != "-") {
                let (op, n) = word.split_once(" × ").unwrap_or((word, "1"));
                requests.insert(op.to_lowercase(), n.parse().unwrap());
            }
            (action, requests)
        })
        .collect()
}

fn look(path: &Path) {
    drop(fs::symlink_metadata(path));
}

/// stat(2) by somebody who owns nothing.
fn look_as_another(path: &Path) {
    let mut test = Command::new("test");
    test.arg("-e").arg(path).uid(65534).gid(65534);
    assert!(test.status().unwrap().success());
}

fn read(path: &Path) {
    let mut file = File::open(path).unwrap();
    let mut buf = vec![0; 1 << 20];
    while file.read(&mut buf).unwrap() > 0 {}
}

/// `ls -U`, and with the attributes of each.
fn list(path: &Path, attributes: bool) {
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if attributes {
            entry.metadata().unwrap();
        }
    }
}

fn make(path: &Path) {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .unwrap();
    file.write_all(b"x").unwrap();
}

fn overwrite(path: &Path, times: usize) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    for _ in 0..times {
        file.write_all(b"x").unwrap();
    }
}

fn append(path: &Path, times: usize) {
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    for _ in 0..times {
        file.write_all(b"x").unwrap();
    }
}

fn execute(path: &Path) {
    let mut program = Command::new(path);
    program.stdin(Stdio::null()).current_dir("/");
    assert!(program.status().unwrap().success());
}

/// Stores one byte in a page by a shared map, and has it written.
fn store(path: &Path) {
    let script = "import mmap, os, sys\n\
        fd = os.open(sys.argv[1], os.O_RDWR)\n\
        held = mmap.mmap(fd, 0)\n\
        held[0:1] = b'!'\n\
        held.flush()\n";
    let stored = Command::new("python3")
        .args(["-c", script])
        .arg(path)
        .status();
    assert!(stored.unwrap().success());
}

/// With `--upper-passthrough off` the server sees each write and store, of files that the image
/// had, too; and reads of large files of the image pass it by as ever.
#[test]
fn all_that_is_written_comes_to_the_server() {
    if !can_mount() || !has("python3") {
        return;
    }
    for (options, by_requests) in [
        (["--upper-passthrough", "off"], true),
        (["--upper-passthrough", "on"], false),
    ] {
        let bench = Bench::new(&options);
        // Not what the bench counts, which waits until all files are closed.
        let so_far = || {
            let log = fs::read_to_string(bench.path("log")).unwrap();
            log.matches(": op=\"write\"").count()
        };
        let writes = |what: &str, n: usize, action: &dyn Fn()| {
            let before = so_far();
            action();
            let sent = so_far() - before;
            assert_eq!(sent, if by_requests { n } else { 0 }, "{what}: {options:?}");
        };
        writes("new", 1, &|| make(&bench.mnt("new")));
        writes("again", 10, &|| overwrite(&bench.mnt("new"), 10));
        writes("of the image", 10, &|| overwrite(&bench.mnt("dir/3"), 10));
        let read_all = bench.count(|| read(&bench.mnt("big")));
        assert_eq!(read_all.get("read"), None, "{options:?}: {read_all:?}");
        let reader = File::open(bench.mnt("big")).unwrap();
        writes("open meanwhile", 10, &|| overwrite(&bench.mnt("big"), 10));
        writes("a store", 1, &|| store(&bench.mnt("big")));
        drop(reader);
        writes("a store later", 1, &|| store(&bench.mnt("dir/3")));
        assert_eq!(
            fs::read(bench.mnt("big")).unwrap()[..11],
            *b"!xxxxxxxxx\x07"
        );
        assert_eq!(
            fs::read(bench.path("up/dir/3")).unwrap()[..11],
            *b"!xxxxxxxxx\x07"
        );
    }
}

#[test]
fn no_more_requests_are_sent_than_the_table_says() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new(&[]);
    let at = |name: &str| bench.mnt(name);
    // The kernel learns what it asks of a mount once: the root's attributes, FLUSH, OPENDIR.
    look(&at("dir"));
    read(&at("dir/0"));
    list(&at(""), false);
    let actions: Vec<(&str, Action<'_>)> = vec![
        ("stat, cold", Box::new(|| look(&at("dir/1")))),
        ("stat, again", Box::new(|| look(&at("dir/1")))),
        ("stat of what is not there", Box::new(|| look(&at("none")))),
        ("the same, again", Box::new(|| look(&at("none")))),
        (
            "stat by another than root's owner, again",
            Box::new(|| look_as_another(&at("dir/1"))),
        ),
        (
            "readlink, cold",
            Box::new(|| drop(fs::read_link(at("link")))),
        ),
        (
            "readlink, again",
            Box::new(|| drop(fs::read_link(at("link")))),
        ),
        (
            "list with attributes, cold",
            Box::new(|| list(&at("list"), true)),
        ),
        (
            "list with attributes, third time",
            Box::new(|| list(&at("list"), true)),
        ),
        (
            "open, read, close of a small file, cold",
            Box::new(|| read(&at("dir/2"))),
        ),
        ("open, read, close, again", Box::new(|| read(&at("dir/2")))),
        (
            "read of 8 MiB in order, cold",
            Box::new(|| read(&at("big"))),
        ),
        ("execve, again", Box::new(|| execute(&at("program")))),
        ("create, write, close", Box::new(|| make(&at("new")))),
        (
            "open, ten writes, close",
            Box::new(|| overwrite(&at("new"), 10)),
        ),
        (
            "open with O_APPEND, ten writes, close",
            Box::new(|| append(&at("new"), 10)),
        ),
        ("stat after a write", Box::new(|| look(&at("new")))),
        (
            "rename",
            Box::new(|| fs::rename(at("new"), at("newer")).unwrap()),
        ),
        ("unlink", Box::new(|| fs::remove_file(at("newer")).unwrap())),
        ("mkdir", Box::new(|| fs::create_dir(at("made")).unwrap())),
        ("rmdir", Box::new(|| fs::remove_dir(at("made")).unwrap())),
    ];
    let mut table = table();
    let mut errors = Vec::new();
    for (name, action) in &actions {
        // Somebody has been there before.
        match *name {
            "stat by another than root's owner, again" | "execve, again" => action(),
            "list with attributes, third time" => action(),
            // A change makes the kernel ask for its directory's attributes once.
            "rename" | "unlink" | "mkdir" | "rmdir" | "stat after a write" => look(&bench.mnt("")),
            _ => {}
        }
        let sent = bench.count(action);
        let Some(told) = table.remove(*name) else {
            errors.push(format!("{name}: not in the table: {sent:?}"));
            continue;
        };
        let more = |(op, n): (&String, &usize)| *n > told.get(op).copied().unwrap_or(0);
        if sent.iter().any(more) {
            errors.push(format!("{name}: {sent:?}, told are {told:?}"));
        }
    }
    errors.extend(table.keys().map(|name| format!("{name}: not tried")));
    drop(actions);
    assert!(errors.is_empty(), "\n{}", errors.join("\n"));
}
