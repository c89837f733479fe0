//! What a server tells of itself: counts that are right, at the control socket and to Prometheus,
//! whoever asks and however badly.
// Helpers outside of #[test] functions fail tests as the functions do.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::expect_used
)]

mod common;
#[path = "stats/exposition.rs"]
mod exposition;
#[path = "stats/hostile.rs"]
mod hostile;
#[path = "stats/stalled.rs"]
mod stalled;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Mount, Sandbox, TARNFS, can_mount, has, pack, text};
use rustix::process::{Pid, PidfdFlags, Signal};
use tarnfs::metrics::{Op, Snapshot, Value, table as t};
use tarnfs::mount::control::Client;

/// Bytes of each small file of the image.
const SMALL: usize = 3000;

/// How much larger a metric with these labels is than before.
type Difference = Box<dyn Fn(&t::Metric, &[&str]) -> f64>;

/// A directory with an image of two directories, ten files in each, and a large file.
struct Bench {
    sandbox: Sandbox,
}

impl Bench {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        for dir in ["dir", "other"] {
            let dir = sandbox.dir(format!("tree/{dir}"));
            for n in 0..10 {
                fs::write(dir.join(n.to_string()), vec![7; SMALL]).unwrap();
            }
        }
        fs::write(sandbox.at("tree/big"), vec![7; 4 << 20]).unwrap();
        fs::write(sandbox.at("tree/late"), "late").unwrap();
        let own = ["--owner=0", "--group=0"];
        pack(&sandbox.at("tree"), &sandbox.at("image.tar"), &own);
        Self { sandbox }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.sandbox.at(name)
    }

    fn socket(&self) -> PathBuf {
        self.at("control.sock")
    }

    /// A mount with a control socket.
    fn mount(&self, options: &[&str]) -> Mount<'_> {
        let socket = self.socket();
        let control = ["--control", socket.to_str().unwrap()];
        self.sandbox
            .mount("mnt", &self.at("image.tar"), &[&control, options].concat())
    }

    /// The same, which must fail.
    fn refused(&self, options: &[&str]) -> String {
        let dir = self.sandbox.dir("refused");
        let mut args = vec!["mount"];
        args.extend(options);
        let (image, dir) = (self.at("image.tar"), dir.to_str().unwrap().to_owned());
        args.extend([image.to_str().unwrap(), &dir]);
        let output = self.sandbox.tarnfs(&args);
        assert!(!output.status.success(), "{args:?}");
        let said = text(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(common::mounts_below(Path::new(&dir)).is_empty());
        said
    }

    fn stats(&self) -> Snapshot {
        Client::connect(&self.socket()).unwrap().stats().unwrap()
    }

    /// The same when all that was closed has been heard of: close(2) does not wait for RELEASE.
    fn settled(&self) -> Snapshot {
        loop {
            let stats = self.stats();
            let n = |op: Op| count(&stats, &t::REQUESTS, &[op.name()]);
            let opened: f64 = stats.samples(&t::OPENS).map(number).sum();
            if n(Op::Release) == opened && count(&stats, &t::IN_FLIGHT, &[]) == 0.0 {
                return stats;
            }
            std::thread::yield_now();
        }
    }

    /// The settled statistics of what `action` does, as their difference.
    fn of(&self, action: impl FnOnce()) -> Difference {
        let before = self.settled();
        action();
        let after = self.settled();
        Box::new(move |metric, labels| {
            count(&after, metric, labels) - count(&before, metric, labels)
        })
    }
}

fn count(stats: &Snapshot, metric: &t::Metric, labels: &[&str]) -> f64 {
    stats.number(metric, labels).unwrap_or(0.0)
}

fn number(sample: &tarnfs::metrics::Sample) -> f64 {
    match sample.value {
        Value::Count(count) => count as f64,
        Value::Number(number) => number,
        Value::Histogram(_) => panic!("{sample:?}"),
    }
}

fn signal(server: u32, signal: Signal) {
    let pid = Pid::from_raw(server.try_into().unwrap()).unwrap();
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_send_signal(&process, signal).unwrap();
    let mut fds = [rustix::event::PollFd::new(
        &process,
        rustix::event::PollFlags::IN,
    )];
    // Its end.
    rustix::event::poll(&mut fds, None).unwrap();
}

#[test]
fn what_is_done_is_counted() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let mount = bench.mount(&["--keep-awake", "never"]);
    let mnt = mount.path().to_owned();
    let look = |name: &str| drop(fs::symlink_metadata(mnt.join(name)));
    look("dir");
    look("other");
    let did = bench.of(|| {
        look("dir/1");
        look("dir/1");
        look("dir/none");
    });
    assert_eq!(did(&t::REQUESTS, &["lookup"]), 2.0);
    assert_eq!(did(&t::ERRORS, &["lookup", "not_found"]), 1.0);
    assert!(did(&t::INDEX_LOOKUPS, &[]) >= 2.0);
    let did = bench.of(|| assert_eq!(fs::read(mount.at("dir/1")).unwrap().len(), SMALL));
    assert_eq!(did(&t::REQUESTS, &["open"]), 1.0);
    assert_eq!(did(&t::REQUESTS, &["release"]), 1.0);
    assert_eq!(did(&t::OPENS, &["requests"]), 1.0);
    assert_eq!(did(&t::READ_BYTES, &[]), SMALL as f64);
    assert_eq!(did(&t::IMAGE_READ_BYTES, &[]), SMALL as f64);
    let did = bench.of(|| {
        let mut file = OpenOptions::new()
            .append(true)
            .open(mount.at("dir/2"))
            .unwrap();
        file.write_all(&[1; 100]).unwrap();
    });
    assert_eq!(did(&t::COPY_UPS, &["file"]), 1.0);
    assert_eq!(did(&t::COPY_UPS, &["directory"]), 1.0);
    assert_eq!(did(&t::COPY_UP_BYTES, &[]), SMALL as f64);
    assert_eq!(did(&t::WRITTEN_BYTES, &[]), 100.0);
    assert!(did(&t::COPY_UP_SECONDS, &[]) > 0.0);
    let did = bench.of(|| {
        fs::remove_file(mount.at("other/1")).unwrap();
        fs::rename(mount.at("other/2"), mount.at("other/3")).unwrap();
        fs::write(mount.at("dir/new"), "x").unwrap();
        fs::remove_file(mount.at("dir/new")).unwrap();
        fs::remove_file(mount.at("dir/new")).unwrap_err();
    });
    assert_eq!(did(&t::WHITEOUTS, &[]), 2.0);
    assert_eq!(did(&t::REQUESTS, &["unlink"]), 2.0);
    assert_eq!(did(&t::REQUESTS, &["rename"]), 1.0);
    assert_eq!(did(&t::REQUESTS, &["create"]), 1.0);
    let stats = bench.settled();
    assert_eq!(count(&stats, &t::IMAGE_HIT, &[]), 0.0);
    assert_eq!(count(&stats, &t::OPEN_FILES, &[]), 0.0);
    for phase in [
        "image",
        "upper",
        "create",
        "attach",
        "ready",
        "first_request",
    ] {
        assert!(
            stats.number(&t::PHASE_SECONDS, &[phase]).is_some(),
            "{phase}"
        );
    }
    drop(mount);
    let _again = bench.mount(&["--read-only"]);
    let stats = bench.stats();
    assert_eq!(count(&stats, &t::IMAGE_HIT, &[]), 1.0);
    assert_eq!(stats.number(&t::UPPER_INODES, &[]), None);
}

/// Every request is counted once, and as its line in the log says; and each line is what
/// docs/METRICS.md says of it.
#[test]
fn the_log_and_the_counters_agree() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let log = bench.at("log");
    let logged = ["--log", "trace", "--log-format", "json", "--log-file"];
    let mount = bench.mount(&[&logged[..], &[log.to_str().unwrap()]].concat());
    for dir in ["dir", "other"] {
        for entry in fs::read_dir(mount.at(dir)).unwrap() {
            let path = entry.unwrap().path();
            fs::read(&path).unwrap();
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .write_all(b"x")
                .unwrap();
        }
    }
    fs::read(mount.at("big")).unwrap();
    fs::create_dir(mount.at("odd\"\\\u{1}\u{2028}\n")).unwrap();
    fs::remove_dir(mount.at("dir")).unwrap_err();
    fs::metadata(mount.at("none\n\u{7f}")).unwrap_err();
    // Of an image that is another by now nothing is read, with a warning.
    fs::OpenOptions::new()
        .append(true)
        .open(bench.at("image.tar"))
        .unwrap()
        .write_all(b"longer")
        .unwrap();
    fs::read(mount.at("late")).unwrap_err();
    let stats = bench.settled();
    mount.unmount();
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    let mut phases = Vec::new();
    let mut warned = false;
    let read = fs::read_to_string(&log).unwrap();
    for line in read.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "target"] {
            assert!(line[field].is_string(), "{field}: {line}");
        }
        assert!(line["fields"].is_object(), "{line}");
        let fields = &line["fields"];
        warned |= line["level"] == "WARN";
        match fields["message"].as_str() {
            Some("answered") => {
                assert!(
                    fields["ino"].is_u64() && fields["micros"].is_number(),
                    "{line}"
                );
                let op = fields["op"].as_str().unwrap().to_owned();
                if fields["errno"].as_i64().unwrap() != 0 {
                    *errors.entry(op.clone()).or_default() += 1;
                }
                *answered.entry(op).or_default() += 1;
            }
            Some("phase is over") => {
                assert!(fields["seconds"].is_number(), "{line}");
                phases.push(line["span"]["phase"].as_str().unwrap().to_owned());
            }
            _ => {}
        }
    }
    assert!(warned);
    assert_eq!(phases, ["image", "upper", "backing", "create", "attach"]);
    let mut sum = 0.0;
    for op in Op::ALL.into_iter().filter(|op| *op != Op::Forget) {
        let told = answered.get(op.name()).copied().unwrap_or(0) as f64;
        // The end of the mount is a change of it.
        let later = matches!(op, Op::Getattr | Op::Lookup | Op::Release);
        let counted = count(&stats, &t::REQUESTS, &[op.name()]);
        assert!(
            counted == told || later && counted < told,
            "{op:?}: {counted} {told}"
        );
        let failed: f64 = stats
            .samples(&t::ERRORS)
            .filter(|sample| sample.label("op") == Some(op.name()))
            .map(number)
            .sum();
        let told = errors.get(op.name()).copied().unwrap_or(0) as f64;
        assert!(
            failed == told || later && failed < told,
            "{op:?}: {failed} {told}"
        );
        let timed = stats
            .samples(&t::REQUEST_SECONDS)
            .find(|sample| sample.label("op") == Some(op.name()));
        if let Some(Value::Histogram(histogram)) = timed.map(|sample| &sample.value) {
            assert_eq!(histogram.count() as f64, counted);
        }
        sum += counted;
    }
    assert_eq!(count(&stats, &t::ANSWERED, &[]), sum);
    assert!(answered["read"] >= 20 && errors["lookup"] >= 1 && errors["rmdir"] == 1);
}

#[test]
fn people_and_programs_are_told() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let mount = bench.mount(&[]);
    fs::read(mount.at("dir/1")).unwrap();
    let dir = mount.path().to_str().unwrap().to_owned();
    let dir = dir.as_str();
    let shown = bench.sandbox.tarnfs_ok(["stats", dir]);
    for part in [
        "image ",
        "requests ",
        "OPERATION",
        "\nlookup ",
        "opens ",
        "copy-ups ",
        "upper ",
        "phases ",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&bench.sandbox.tarnfs_ok(["stats", "--json", dir])).unwrap();
    assert_eq!(
        json["tarnfs_mount_info"][0]["labels"]["point"],
        dir.to_owned()
    );
    let socket = bench.socket();
    let args = ["stats", "--prometheus", "--control"];
    let told = bench
        .sandbox
        .tarnfs_ok([&args[..], &[socket.to_str().unwrap()]].concat());
    exposition::check(&told);
    mount.unmount();
    let fails = |args: &[&str], why: &str| {
        let output = bench.sandbox.tarnfs(args);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    };
    fails(&["stats", dir], "no tarnfs mount");
    fails(
        &["stats", "--control", socket.to_str().unwrap()],
        "No such file",
    );
    let plain = bench.sandbox.mount("plain", &bench.at("image.tar"), &[]);
    let plain = plain.path().to_str().unwrap();
    fails(&["stats", plain], "was mounted without --control");
}

#[test]
fn nobody_else_is_answered() {
    if !can_mount() || !has("setpriv") {
        return;
    }
    let bench = Bench::new();
    // Where everybody may look.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("tarnfs");
    fs::copy(TARNFS, &program).unwrap();
    let socket = dir.path().join("socket");
    let mount = bench.sandbox.mount(
        "mnt",
        &bench.at("image.tar"),
        &["--control", socket.to_str().unwrap()],
    );
    let mode = fs::metadata(&socket).unwrap();
    assert!(mode.file_type().is_socket());
    assert_eq!(mode.permissions().mode() & 0o7777, 0o600);
    let other = || -> Output {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=61234", "--regid=61234", "--clear-groups"]);
        command.arg(&program).args(["stats", "--control"]);
        command.arg(&socket);
        common::run(command)
    };
    let refused = other();
    assert!(
        text(&refused.stderr).contains("Permission denied"),
        "{refused:?}"
    );
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = other();
    assert!(!refused.status.success());
    assert!(
        text(&refused.stderr).contains("does not know you"),
        "{refused:?}"
    );
    Client::connect(&socket).unwrap().stats().unwrap();
    drop(mount);
    assert!(!socket.exists());
}

#[test]
fn a_killed_server_is_in_nobodys_way() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let metrics = format!("unix:{}", bench.at("metrics.sock").display());
    let mount = bench.mount(&["--metrics", &metrics]);
    // The living are.
    let socket = bench.socket();
    let said = bench.refused(&["--control", socket.to_str().unwrap()]);
    assert!(said.contains("another server listens"), "{said}");
    let said = bench.refused(&["--metrics", &metrics]);
    assert!(said.contains("another server listens"), "{said}");
    signal(mount.server(), Signal::KILL);
    drop(mount);
    assert!(socket.exists() && bench.at("metrics.sock").exists());
    let refused = Client::connect(&socket).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let mount = bench.mount(&["--metrics", &metrics]);
    bench.stats();
    exposition::check(&hostile::get_unix(&bench.at("metrics.sock")));
    mount.unmount();
    assert!(!socket.exists() && !bench.at("metrics.sock").exists());
    // A file of somebody's is no dead server's.
    fs::write(&socket, "mine").unwrap();
    let said = bench.refused(&["--control", socket.to_str().unwrap()]);
    assert!(said.contains("no socket"), "{said}");
    assert_eq!(fs::read(&socket).unwrap(), b"mine");
}

#[test]
fn places_that_cannot_be_had_fail_the_mount() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let said = bench.refused(&["--metrics", &taken.to_string()]);
    assert!(said.contains("in use"), "{said}");
    drop(listener);
    let said = bench.refused(&["-o", "metrics=0.0.0.0:9100"]);
    assert!(said.contains("other machines"), "{said}");
    let said = bench.refused(&["--control", "/nowhere/at/all/socket"]);
    assert!(said.contains("No such file"), "{said}");
}

#[test]
fn a_mount_ends_with_clients_connected() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    for end in [Signal::TERM, Signal::HUP] {
        let mount = bench.mount(&["--metrics", "127.0.0.1:0", "--log", "info"]);
        let server = mount.server();
        let mut idle = std::os::unix::net::UnixStream::connect(bench.socket()).unwrap();
        let mut half = std::os::unix::net::UnixStream::connect(bench.socket()).unwrap();
        half.write_all(b"{\"stats\":").unwrap();
        let mut asked = std::os::unix::net::UnixStream::connect(bench.socket()).unwrap();
        asked.write_all(b"{\"stats\":{}}\n").unwrap();
        if end == Signal::HUP {
            mount.unmount();
        } else {
            signal(server, end);
        }
        assert!(!bench.socket().exists());
        for stream in [&mut idle, &mut half, &mut asked] {
            let mut rest = Vec::new();
            // A reset is an end, too.
            drop(stream.read_to_end(&mut rest));
        }
    }
}
