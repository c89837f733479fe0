//! What docs/SEMANTICS.md promises, case by case.
//!
//! Each case runs on a plain directory first, which proves the case; then on a mount, on files of
//! the image, on copies of them made in the mount, and what it left is looked at once more there
//! after a new mount. Each case quotes the promise that it proves: a line of the document that
//! begins with `> `. No promise is without a case, no case without a promise.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

#[path = "semantics/access.rs"]
mod access;
mod common;
#[path = "semantics/data.rs"]
mod data;
#[path = "semantics/dirs.rs"]
mod dirs;
#[path = "semantics/identity.rs"]
mod identity;
#[path = "semantics/large.rs"]
mod large;
#[path = "semantics/links.rs"]
mod links;
#[path = "semantics/moves.rs"]
mod moves;
#[path = "semantics/privileges.rs"]
mod privileges;
#[path = "semantics/ranges.rs"]
mod ranges;
#[path = "semantics/rename.rs"]
mod rename;
#[path = "semantics/special.rs"]
mod special;
#[path = "semantics/times.rs"]
mod times;
#[path = "semantics/watching.rs"]
mod watching;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use common::python::python;
use common::{Sandbox, can_mount, has, ok, pack};

/// Where a case runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    /// On a plain directory and on a mount.
    Everywhere,
    /// On a mount only: what the document names as a difference, or what is ours alone.
    Mount,
    /// On a plain directory mounted read-only and on a mount with `--read-only`.
    ReadOnly,
}

/// A case: its name, the promise that it quotes, what it does in a directory that holds
/// [`FILES`], and what must be there after a new mount.
struct Case {
    name: &'static str,
    promise: &'static str,
    place: Where,
    run: fn(&Path),
    after: fn(&Path),
    /// A Python script that makes what this case alone needs besides.
    besides: Option<&'static str>,
}

impl Case {
    const fn new(name: &'static str, promise: &'static str, run: fn(&Path)) -> Self {
        Self {
            name,
            promise,
            place: Where::Everywhere,
            run,
            after: |_| {},
            besides: None,
        }
    }

    const fn with(mut self, script: &'static str) -> Self {
        self.besides = Some(script);
        self
    }

    const fn after(mut self, after: fn(&Path)) -> Self {
        self.after = after;
        self
    }

    const fn at(mut self, place: Where) -> Self {
        self.place = place;
        self
    }
}

/// What the directory of each case holds.
const FILES: &str = r"
printf 0123456789 >file; ln -s file sym; mkfifo fifo; mknod null c 1 3
mkdir -p dir/sub empty; printf in >dir/inner; printf deep >dir/sub/deep
printf linked >one; ln one two; ln one dir/three
printf s >suid; chmod 6777 suid; cp suid suid2; chmod 6777 suid2; cp suid suid3; chmod 6777 suid3
printf c >capable; chmod 666 capable; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 capable
truncate -s 1M sparse; printf end >>sparse
mkdir sticky; chmod 1777 sticky; printf r >sticky/roots
for f in group1 group2 group3; do echo g >$f; chown 1000:2000 $f; chmod 2755 $f; done
mkdir group.d; chown 1000:2000 group.d; chmod 2755 group.d
mkdir acls; setfacl -m u:1000:rwx,d:u:77:rwx acls
printf a >private; chmod 600 private; setfacl -m u:1000:rw private
setfattr -n user.k -v v file; setfattr -n trusted.t -v w file; setfattr -n security.s -v x file
";

/// What it holds besides, where a theme needs a large directory.
const LIST: &str = "mkdir list; for i in $(seq 500); do : >list/$i; done";

fn all() -> Vec<&'static Case> {
    [
        rename::CASES,
        moves::CASES,
        identity::CASES,
        links::CASES,
        data::CASES,
        ranges::CASES,
        times::CASES,
        privileges::CASES,
        access::CASES,
        special::CASES,
        watching::CASES,
        dirs::CASES,
        large::CASES,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs `what` of a case and notes how it failed.
fn attempt(failed: &mut Vec<String>, stage: &str, case: &Case, what: fn(&Path), at: &Path) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| what(at))) {
        let why = panic.downcast_ref::<String>().map_or_else(
            || (*panic.downcast_ref::<&str>().unwrap_or(&"?")).to_owned(),
            Clone::clone,
        );
        failed.push(format!("{} ({stage}): {why}", case.name));
    }
}

/// Makes the directory of a case.
fn furnish(case: &Case, files: &Path, to: &Path) {
    ok("cp", ["-a".as_ref(), files.as_os_str(), to.as_os_str()]);
    if let Some(script) = case.besides {
        python(to, script);
    }
}

fn theme(cases: &[Case], besides: &str) {
    if !can_mount() || !["python3", "setfattr", "setfacl"].into_iter().all(has) {
        return;
    }
    let sandbox = Sandbox::new();
    // Cases run as ordinary users.
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let files = sandbox.dir("files");
    ok(
        "sh",
        [
            "-euc",
            &format!("cd '{}'; {FILES}{besides}", files.display()),
        ],
    );
    let (tree, plain) = (sandbox.dir("tree"), sandbox.dir("plain"));
    for case in cases {
        furnish(case, &files, &tree.join(case.name));
        if case.place != Where::Mount {
            furnish(case, &files, &plain.join(case.name));
        }
    }
    let tar = sandbox.at("image.tar");
    let options = [
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--numeric-owner",
        "-S",
    ];
    pack(&tree, &tar, &options);
    let mut failed = Vec::new();
    for case in cases.iter().filter(|case| case.place == Where::Everywhere) {
        let at = plain.join(case.name);
        attempt(&mut failed, "plain directory", case, case.run, &at);
        attempt(&mut failed, "plain directory, after", case, case.after, &at);
    }
    assert!(failed.is_empty(), "wrong cases:\n{}", failed.join("\n"));

    let upper = sandbox.dir("upper");
    let options = ["--upper", upper.to_str().unwrap()];
    let mount = sandbox.mount("mount", &tar, &options);
    for case in cases.iter().filter(|case| case.place != Where::ReadOnly) {
        attempt(
            &mut failed,
            "image's files",
            case,
            case.run,
            &mount.at(case.name),
        );
        let born = mount.at(format!("upper-{}", case.name));
        furnish(case, &files, &born);
        attempt(&mut failed, "upper's files", case, case.run, &born);
    }
    mount.unmount();
    let mount = sandbox.mount("mount", &tar, &options);
    for case in cases.iter().filter(|case| case.place != Where::ReadOnly) {
        attempt(
            &mut failed,
            "image's files, new mount",
            case,
            case.after,
            &mount.at(case.name),
        );
        let born = mount.at(format!("upper-{}", case.name));
        attempt(
            &mut failed,
            "upper's files, new mount",
            case,
            case.after,
            &born,
        );
    }
    mount.unmount();
    for case in cases.iter().filter(|case| case.place == Where::ReadOnly) {
        let at = sandbox.dir(format!("bound-{}", case.name));
        let script = r#"mount --bind "$1" "$2"; mount -o remount,bind,ro "$2""#;
        let from = plain.join(case.name);
        ok(
            "sh",
            [
                "-euc".as_ref(),
                script.as_ref(),
                "sh".as_ref(),
                from.as_os_str(),
                at.as_os_str(),
            ],
        );
        attempt(&mut failed, "plain directory, ro", case, case.run, &at);
        let mount = sandbox.mount("read-only", &tar, &["--read-only"]);
        attempt(
            &mut failed,
            "--read-only",
            case,
            case.run,
            &mount.at(case.name),
        );
        mount.unmount();
        // One with an upper, which becomes read-only.
        let mount = sandbox.mount("mount", &tar, &options);
        let born = mount.at(format!("upper-{}", case.name));
        furnish(case, &files, &born);
        let read_only = rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(mount.path(), read_only, c"").unwrap();
        let (stage, new) = ("remounted, image's files", "remounted, upper's files");
        attempt(&mut failed, stage, case, case.run, &mount.at(case.name));
        attempt(&mut failed, new, case, case.run, &born);
        mount.unmount();
    }
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn rename_cases() {
    theme(rename::CASES, LIST);
}

#[test]
fn move_cases() {
    theme(moves::CASES, moves::PAIRS);
}

#[test]
fn identity_cases() {
    theme(identity::CASES, "");
}

#[test]
fn link_cases() {
    theme(links::CASES, links::GROUPS);
}

#[test]
fn time_cases() {
    theme(times::CASES, "");
}

#[test]
fn privilege_cases() {
    theme(privileges::CASES, privileges::PRIVILEGED);
}

#[test]
fn data_cases() {
    theme(data::CASES, "");
}

#[test]
fn access_cases() {
    theme(access::CASES, "");
}

#[test]
fn range_cases() {
    theme(ranges::CASES, "");
}

#[test]
fn watching_cases() {
    theme(watching::CASES, "");
}

#[test]
fn special_cases() {
    theme(special::CASES, "");
}

#[test]
fn dirs_cases() {
    theme(dirs::CASES, LIST);
}

#[test]
fn large_cases() {
    theme(large::CASES, "");
}

#[test]
fn each_promise_has_a_case_and_each_case_a_promise() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/SEMANTICS.md");
    let document = fs::read_to_string(document).unwrap();
    let promised: BTreeSet<&str> = document
        .lines()
        .filter_map(|l| l.strip_prefix("> "))
        .collect();
    let cases = all();
    let proven: BTreeSet<&str> = cases.iter().map(|case| case.promise).collect();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
    let missing: Vec<_> = promised.symmetric_difference(&proven).collect();
    assert!(missing.is_empty(), "not in both: {missing:#?}");
    for case in cases {
        let name = format!("`{}`", case.name);
        assert!(
            document.contains(&name),
            "{name} is not named in the document"
        );
    }
}

// ---- what cases use

/// Runs `act` in a thread that is an ordinary user: no privileges, no other groups.
fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            use rustix::thread as ids;
            ids::set_thread_groups(&[]).unwrap();
            ids::set_thread_gid(rustix::fs::Gid::from_raw(uid)).unwrap();
            ids::set_thread_uid(rustix::fs::Uid::from_raw(uid)).unwrap();
            act()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a Python script with `at` as its working directory: for what safe Rust has no call for.
fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn listing(path: impl AsRef<Path>) -> Vec<String> {
    let path = path.as_ref();
    let listed = fs::read_dir(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let mut names: Vec<_> = listed
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn ino(path: impl AsRef<Path>) -> (u64, u64) {
    let meta = fs::symlink_metadata(path.as_ref()).unwrap();
    (meta.dev(), meta.ino())
}

/// Makes the kernel forget what it may of names and inodes.
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// Waits until the filesystem's clock, which is coarse, has gone on.
fn tick(at: &Path) {
    let probe = at.join("clock");
    let now = || {
        drop(File::create(&probe).unwrap());
        fs::write(&probe, "x").unwrap();
        let meta = fs::metadata(&probe).unwrap();
        (meta.ctime(), meta.ctime_nsec())
    };
    let start = now();
    while now() == start {}
    fs::remove_file(&probe).unwrap();
}
