//! `tarnfs run` and `tarnfs bundle`, from the outside, on an image that holds a shell and its
//! libraries.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{TARNFS, skip, text};

/// Image, store and room for a test; gone with it.
struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    /// `None`, loudly, where nothing can be mounted; never in CI.
    fn new() -> Option<Self> {
        let doctor = Command::new(TARNFS).arg("doctor").output().unwrap();
        if !doctor.status.success() {
            skip(&format!("nothing can be mounted: {}", text(&doctor.stdout)));
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        pack(&dir.path().join("image.tar"));
        Some(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tarnfs(&self, args: &[&str]) -> Command {
        let mut command = Command::new(TARNFS);
        command
            .current_dir(self.dir.path())
            .env("TARNFS_STORE", self.path("store"))
            .env_remove("TARNFS_LOG")
            .args(args)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, options: &[&str], script: &str) -> Output {
        let args = [&["run"], options, &["image.tar", "--", "sh", "-c", script]].concat();
        self.tarnfs(&args).output().unwrap()
    }
}

fn pack(path: &Path) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    let add = |tar: &mut tar::Builder<std::fs::File>, name: &str, mode, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    };
    let shell = std::fs::read("/bin/sh").unwrap();
    add(&mut tar, "bin/sh", 0o755, &shell);
    let ldd = Command::new("ldd").arg("/bin/sh").output().unwrap();
    for line in String::from_utf8(ldd.stdout).unwrap().lines() {
        if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
            let content = std::fs::read(library).unwrap();
            add(&mut tar, library.trim_start_matches('/'), 0o755, &content);
        }
    }
    add(
        &mut tar,
        "etc/passwd",
        0o644,
        b"root:x:0:0::/root:/bin/sh\napp:x:1:2::/srv:/bin/sh\n",
    );
    add(&mut tar, "etc/old", 0o644, b"old\n");
    add(&mut tar, "etc/hosts", 0o644, b"");
    // A dangling link, as images of booted systems have it.
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    tar.append_link(
        &mut link,
        "etc/resolv.conf",
        "../run/systemd/resolve/stub-resolv.conf",
    )
    .unwrap();
    // Planted: leads out of the image.
    let mut link = link.clone();
    tar.append_link(&mut link, "trap", "/../../../../../../../../tmp")
        .unwrap();
    tar.into_inner().unwrap();
}

#[test]
fn the_exit_status_is_the_programs() {
    let Some(room) = Room::new() else { return };
    let status = |script| room.run(&[], script).status.code();
    assert_eq!(status("exit 0"), Some(0));
    assert_eq!(status("exit 42"), Some(42));
    assert_eq!(status("kill -9 $$"), Some(128 + 9));
    let of = |word: &str| {
        let out = room
            .tarnfs(&["run", "image.tar", "--", word])
            .output()
            .unwrap();
        assert_eq!(
            text(&out.stderr).lines().count(),
            1,
            "{}",
            text(&out.stderr)
        );
        out.status.code()
    };
    assert_eq!(of("no-such-program"), Some(127));
    assert_eq!(of("/etc/passwd"), Some(126));
    let none = room
        .tarnfs(&["run", "nothing.tar", "--", "sh"])
        .output()
        .unwrap();
    assert_eq!(none.status.code(), Some(125));
    assert_eq!(
        room.run(&["-u", "nobody-here"], "exit 0").status.code(),
        Some(125)
    );
}

#[test]
fn the_world_is_the_actors_own() {
    let Some(room) = Room::new() else { return };
    let out = room.run(
        &["--hostname", "here", "-e", "A=b c", "-w", "/etc"],
        "echo $$ \"$A\" $HOME $PWD; read h < /proc/sys/kernel/hostname; echo $h; \
         echo x > /dev/null && test -c /dev/tty && test -d /proc/1 && test -d /sys/class && echo ok; \
         (echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo masked",
    );
    assert_eq!(
        text(&out.stdout),
        "2 b c /root /etc\nhere\nok\nmasked\n",
        "{}",
        text(&out.stderr)
    );
    let out = room.run(
        &["-u", "app", "--clear-env"],
        "read x </proc/self/loginuid; echo $HOME; : > /x",
    );
    assert_eq!(text(&out.stdout), "\n");
    assert!(
        text(&out.stderr).contains("ermission denied"),
        "{}",
        text(&out.stderr)
    );
}

/// The server has no umask of its own; what it binds into an actor must not be everybody's.
#[test]
fn regression_network_files_are_roots() {
    let Some(room) = Room::new() else { return };
    let out = room.run(&["-u", "app"], "echo evil >> /etc/hosts");
    assert!(
        text(&out.stderr).contains("ermission denied"),
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn writes_go_to_the_upper_and_a_private_one_goes() {
    let Some(room) = Room::new() else { return };
    let out = room.run(&["--upper", "up"], "echo new > /new; echo more >> /etc/old");
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(
        std::fs::read_to_string(room.path("up/etc/old")).unwrap(),
        "old\nmore\n"
    );
    let mut names: Vec<_> = std::fs::read_dir(room.path("up"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    // Neither mount points nor the network's files have left a trace where the image had them.
    assert!(names.contains(&"new".to_owned()), "{names:?}");
    assert!(!room.path("up/run").exists() && !room.path("up/etc/resolv.conf").exists());
    let again = room.run(&["--upper", "up"], "read x < /new; echo $x");
    assert_eq!(text(&again.stdout), "new\n");

    let out = room.run(&[], "echo x > /x");
    assert!(out.status.success());
    let left = || {
        let runs = std::fs::read_dir(room.path("store/runs")).unwrap();
        runs.filter(|e| {
            !e.as_ref()
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .starts_with('.')
        })
        .count()
    };
    assert_eq!(left(), 0);
    let out = room.run(&["--keep"], "echo x > /x");
    assert!(
        text(&out.stderr).contains("store/runs/"),
        "{}",
        text(&out.stderr)
    );
    assert_eq!(left(), 1);
}

#[test]
fn volumes_stay_inside_the_image() {
    let Some(room) = Room::new() else { return };
    std::fs::create_dir(room.path("shared")).unwrap();
    std::fs::write(room.path("shared/f"), "f\n").unwrap();
    let out = room.run(
        &["-v", "shared:/mnt/s:ro"],
        "read x < /mnt/s/f; echo $x; : > /mnt/s/g",
    );
    assert_eq!(text(&out.stdout), "f\n", "{}", text(&out.stderr));
    assert!(!room.path("shared/g").exists());
    let out = room.run(&["-v", "shared:/mnt/s"], ": > /mnt/s/g");
    assert!(out.status.success() && room.path("shared/g").exists());
    // The planted link is followed with the image as its root.
    let name = room
        .dir
        .path()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let out = room.run(&["-v", &format!("shared:/trap/{name}-planted")], "exit 0");
    assert!(
        !Path::new("/tmp").join(format!("{name}-planted")).exists(),
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn a_signal_reaches_the_program() {
    let Some(room) = Room::new() else { return };
    // Builtins only; a trap runs between two of them.
    let script = "trap 'echo caught; exit 9' TERM; echo ready; while :; do :; done";
    let mut child = room
        .tarnfs(&["run", "image.tar", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn nothing_outlives_a_killed_run_and_the_next_one_sweeps() {
    let Some(room) = Room::new() else { return };
    let mut child = room
        .tarnfs(&["run", "image.tar", "--", "sh", "-c", "echo ready; read x"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    child.kill().unwrap();
    child.wait().unwrap();
    // The program held the other end of the pipe: its end is the end of the lines.
    assert!(lines.next().is_none());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(
        !mounts.contains(room.dir.path().to_str().unwrap()),
        "{mounts}"
    );
    assert!(room.run(&[], "exit 0").status.success());
    let left = std::fs::read_dir(room.path("store/runs")).unwrap().count();
    assert_eq!(left, 1, "only the lock");
}

#[test]
fn a_bundle_runs_and_is_removed() {
    let Some(room) = Room::new() else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: bundles of ordinary users depend on fusermount3");
        return;
    }
    let made = room
        .tarnfs(&[
            "bundle",
            "image.tar",
            "b",
            "--",
            "sh",
            "-c",
            "echo in > /in; read x < /in; echo $x",
        ])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    for runtime in ["runc"] {
        if Command::new(runtime).arg("--version").output().is_err() {
            skip(&format!("{runtime} is not installed"));
            continue;
        }
        let id = format!("tarnfs-test-{}", std::process::id());
        let out = Command::new(runtime)
            .args(["run", "-b"])
            .arg(room.path("b"))
            .arg(id)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(
            text(&out.stdout),
            "in\n",
            "{runtime}: {}",
            text(&out.stderr)
        );
        assert!(room.path("b/upper/in").exists());
    }
    for _ in 0..2 {
        let removed = room.tarnfs(&["bundle", "--remove", "b"]).output().unwrap();
        assert!(removed.status.success(), "{}", text(&removed.stderr));
        assert!(!room.path("b").exists());
    }
}
