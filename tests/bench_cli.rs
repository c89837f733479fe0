//! `tarnfs bench`: runs from end to end, is right about what it is given, and leaves nothing.
//! Never here: how fast anything is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Sandbox, TARNFS, can_mount, mounts_below, ok, pack, run, skip, text};
use serde_json::Value;

/// Overlayfs wants an upper that is not itself on overlayfs.
fn can_bench() -> bool {
    if !can_mount() {
        return false;
    }
    if !Path::new("/proc/sys/vm/drop_caches").exists() {
        skip("there is no /proc/sys/vm/drop_caches");
        return false;
    }
    true
}

/// Processes with a word in their command line that begins so.
fn processes(word: &str) -> Vec<String> {
    let lines = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = std::fs::read(entry.unwrap().path().join("cmdline")).ok()?;
        Some(text(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(word)).collect()
}

/// Nothing is in the scratch place, mounted there, or running for it.
fn assert_nothing_left(sandbox: &Sandbox, place: &Path) {
    let left: Vec<_> = std::fs::read_dir(place).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(mounts_below(sandbox.path()).is_empty());
    let scratch = place.join("tarnfs-bench-");
    let running = processes(scratch.to_str().unwrap());
    assert!(running.is_empty(), "{running:?}");
}

#[test]
fn runs_and_leaves_nothing() {
    if !can_bench() {
        return;
    }
    let sandbox = Sandbox::new();
    let place = sandbox.dir("place");
    let page = sandbox.at("report.html");
    let json = sandbox.tarnfs_ok([
        "bench",
        "--quick",
        "--only=find,create",
        "--against=overlayfs",
        "--json=-",
        "--dir",
        place.to_str().unwrap(),
        "--html",
        page.to_str().unwrap(),
    ]);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["schema"], "tarnfs-bench/2");
    assert!(report["environment"]["kernel"].is_string());
    let works = report["works"].as_array().unwrap();
    let names: Vec<_> = works.iter().map(|work| &work["name"]).collect();
    assert_eq!(names, ["find", "create-10k"]);
    for work in works {
        let results = work["results"].as_array().unwrap();
        let who: Vec<_> = results.iter().map(|result| &result["contender"]).collect();
        assert_eq!(who, ["tarnfs", "overlayfs"]);
        for result in results {
            assert_eq!(result["missing"], Value::Null, "{result}");
            assert!(result["seconds"].as_f64().unwrap() > 0.0);
            for time in result["numbers"].as_array().unwrap() {
                assert_eq!(time["samples"].as_array().unwrap().len(), 3);
                assert!(time["ratio"]["median"].as_f64().unwrap() > 0.0);
            }
        }
        assert_eq!(results[1]["numbers"][0]["ratio"]["median"], 1.0);
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<h3>find</h3>") && page.ends_with("</html>\n"));
    assert_nothing_left(&sandbox, &place);
}

#[test]
fn what_an_image_or_a_contender_cannot_do_is_said() {
    if !can_bench() {
        return;
    }
    let sandbox = Sandbox::new();
    let place = sandbox.dir("place");
    let tree = sandbox.dir("tree/d");
    std::fs::write(tree.join("file"), "text").unwrap();
    let tar = sandbox.at("it's.tar");
    pack(&tree, &tar, &[]);
    let json = sandbox.tarnfs_ok([
        "bench".as_ref(),
        "--quick".as_ref(),
        "--rounds=1".as_ref(),
        "--only=first-restore,git-status,rm-rf,mount".as_ref(),
        "--against=untar".as_ref(),
        "--json=-".as_ref(),
        "--dir".as_ref(),
        place.as_os_str(),
        tar.as_os_str(),
    ]);
    let report: Value = serde_json::from_str(&json).unwrap();
    let command = report["command"].as_str().unwrap();
    assert!(command.contains(r"it'\''s.tar'"), "{command}");
    for (work, who, why) in [
        (0, 0, "the image has none of node, sh"),
        (3, 0, "no directory"),
        (4, 0, "no git"),
    ] {
        let result = &report["works"][work]["results"][who];
        let missing = result["missing"].as_str().unwrap();
        assert!(missing.contains(why), "{missing}");
        assert_eq!(result["numbers"], Value::Array(Vec::new()));
    }
    let mounted = report["works"][1]["results"].as_array().unwrap();
    let who: Vec<_> = mounted.iter().map(|result| &result["contender"]).collect();
    assert_eq!(who, ["tarnfs", "overlayfs"], "untar is for the first start");
    assert_nothing_left(&sandbox, &place);
}

#[test]
fn bad_input_is_one_line() {
    let sandbox = Sandbox::new();
    let place = sandbox.dir("place");
    let root = rustix::process::geteuid().is_root();
    let missing = sandbox.at("missing.tar");
    let garbage = sandbox.at("garbage.tar");
    std::fs::write(&garbage, "no tar at all").unwrap();
    for (args, why, needs_root) in [
        (vec!["--only=find,nonsense"], "no work \"nonsense\"", false),
        (vec!["--only="], "no work \"\"", false),
        (vec!["--against=zfs"], "no \"zfs\"", false),
        (
            vec![missing.to_str().unwrap()],
            "missing.tar: No such file",
            true,
        ),
        (vec![garbage.to_str().unwrap()], "garbage.tar", true),
        (
            vec!["--dir=/nowhere/at/all"],
            "/nowhere/at/all: No such file",
            true,
        ),
    ] {
        if needs_root && !root {
            continue;
        }
        let mut all = vec!["bench", "--quick", "--dir", place.to_str().unwrap()];
        all.retain(|_| !args[0].starts_with("--dir"));
        if all.is_empty() {
            all.push("bench");
        }
        all.extend(&args);
        let output = sandbox.tarnfs(&all);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert!(
            said.starts_with("tarnfs: ") && said.contains(why),
            "{args:?}: {said}"
        );
    }
    assert_nothing_left(&sandbox, &place);
}

#[test]
fn without_root_it_says_so() {
    // The build directory may be closed to others: a copy lies where all can read it.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let copy = dir.path().join("tarnfs");
    std::fs::copy(TARNFS, &copy).unwrap();
    ok(
        "chmod",
        ["-R".as_ref(), "a+rx".as_ref(), dir.path().as_os_str()],
    );
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    command.arg(&copy).args(["bench", "--only=find"]);
    let output = run(command);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("bench needs root"), "{said}");
}

/// A benchmark that has begun and does not end: a server of its own is there. `signals` is how
/// env(1) is to set them, so that it is not as this test was started.
fn begun(place: &Path, signals: &[&str]) -> Child {
    let mut child = Command::new("env")
        .args(signals)
        .arg(TARNFS)
        .args([
            "bench",
            "--quick",
            "--rounds=1000",
            "--only=mount,create",
            "--against=fuse-overlayfs",
        ])
        .arg("--dir")
        .arg(place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let scratch = place.join("tarnfs-bench-");
    while processes(scratch.to_str().unwrap()).is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::yield_now();
    }
    child
}

#[test]
fn interrupted_it_takes_everything_off() {
    if !can_bench() {
        return;
    }
    let sandbox = Sandbox::new();
    let place = sandbox.dir("place");
    let child = begun(&place, &["--default-signal=INT,TERM,HUP"]);
    ok("kill", ["-INT", &child.id().to_string()]);
    assert_interrupted(child);
    assert_nothing_left(&sandbox, &place);
}

/// As a shell without job control starts what is to be in the background.
#[test]
fn in_the_background_it_ends_by_sigterm() {
    if !can_bench() {
        return;
    }
    for ignored in ["INT", "INT,TERM,HUP"] {
        let sandbox = Sandbox::new();
        let place = sandbox.dir("place");
        let ignore = format!("--ignore-signal={ignored}");
        let child = begun(&place, &["--default-signal=INT,TERM,HUP", &ignore]);
        ok("kill", ["-TERM", &child.id().to_string()]);
        assert_interrupted(child);
        assert_nothing_left(&sandbox, &place);
    }
}

fn assert_interrupted(child: Child) {
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.starts_with("tarnfs: interrupted"), "{said}");
}

#[test]
fn killed_it_leaves_no_process_and_the_next_run_removes_its_directory() {
    if !can_bench() {
        return;
    }
    let sandbox = Sandbox::new();
    let place = sandbox.dir("place");
    let mut child = begun(&place, &[]);
    // Another one's, which lives: it is locked.
    let held = sandbox.dir("place/tarnfs-bench-held");
    let lock = std::fs::File::open(&held).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // The kernel is about to end all that it has started, servers included.
    let scratch = place.join("tarnfs-bench-");
    while !processes(scratch.to_str().unwrap()).is_empty() {
        std::thread::yield_now();
    }
    assert!(mounts_below(sandbox.path()).is_empty());
    let left = || std::fs::read_dir(&place).unwrap().count();
    assert_eq!(left(), 2, "its directory, and the one that is held");
    let next = || {
        sandbox.tarnfs_ok([
            "bench",
            "--quick",
            "--rounds=1",
            "--only=mount-1",
            "--against=overlayfs",
            "--dir",
            place.to_str().unwrap(),
        ])
    };
    next();
    assert!(held.exists());
    assert_eq!(left(), 1);
    drop(lock);
    next();
    assert_nothing_left(&sandbox, &place);
}

#[test]
fn when_the_time_is_over_it_says_what_has_fewer_rounds() {
    if !can_bench() {
        return;
    }
    let sandbox = Sandbox::new();
    let place = sandbox.dir("place");
    let json = sandbox.tarnfs_ok([
        "bench",
        "--quick",
        "--rounds=2",
        "--minutes=0.001",
        "--only=find",
        "--against=overlayfs",
        "--json=-",
        "--dir",
        place.to_str().unwrap(),
    ]);
    let report: Value = serde_json::from_str(&json).unwrap();
    let times = &report["works"][0]["results"][0]["numbers"][0];
    let samples = times["samples"].as_array().unwrap().len();
    assert_eq!(samples, 1, "one round there is always, and no other");
    let said = report["not_measured"].as_array().unwrap().iter();
    assert!(
        said.filter_map(Value::as_str)
            .any(|s| s.contains("find (1)")),
        "{report}"
    );
    assert_nothing_left(&sandbox, &place);
}
