//! Random operations on a mount and on a plain directory side by side: every return value, every
//! attribute, listing, extended attribute and byte must be the same, through the kernel's caches,
//! after they are dropped, and after a new mount of the same upper.
//!
//! Where a case fails, proptest shrinks it and prints the operations.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

#[path = "differential/beside.rs"]
mod beside;
mod common;
#[path = "differential/look.rs"]
mod look;
#[path = "differential/more.rs"]
mod more;
#[path = "differential/ops.rs"]
mod ops;
#[path = "differential/side.rs"]
mod side;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use beside::Beside;
use common::user::{TURN, User, detach_below, with_own_namespace, with_user};
use common::{Mount, Sandbox, can_mount, has, ok};
use look::Comparison;
use ops::{Op, common_op, op};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::Mode;
use side::{Side, Who};

/// The tree that both sides begin with.
const MAKE: &str = r#"
mkdir -p a/sub b empty big
printf 'content of x\n' >a/x
head -c 30000 /dev/urandom >a/y
printf 'linked' >link; ln link a/link; ln link a/sub/link
printf 'set-id' >b/x; chmod 4755 b/x; chown 1000:70000 b/y 2>/dev/null || :
truncate -s 100K b/y; printf tail | dd of=b/y bs=1 seek=99996 conv=notrunc status=none
setfattr -n user.one -v first b/y; setfattr -n trusted.two -v second a
ln -s some/where sym; ln -s x a/sym; mkfifo fifo; mknod b/d b 7 300
chmod 2775 b; chown 0:1000 b; chmod 1777 empty
printf acl >a/c; chown 1000 a/c; setfacl -m u:1000:rw,g:70000:r,m::r a/c
setfacl -d -m u:1000:rwx,g::rx,o::- empty; mkdir c; chmod 777 c; chown 1000:1000 a
printf odd >"$(printf 'not\377utf-8\001')"; printf '%s' long >"a/$(printf '%0255d' 0 | tr 0 n)"
ln -s sym c/chain; ln -s chain c/chain2; ln -s loop c/loop; ln -s ../a/sub b/sub; ln -s a/x y
ln sym b/sym; mkfifo b/fifo; mknod -m 666 c/x c 1 3
mkdir -p c/d a/sub/sub b/closed; chmod 700 b/closed; printf hidden >b/closed/x; chmod 0 b/c 2>/dev/null || :
for i in $(seq 60); do printf $i >big/$i; done; printf in >big/x; ln big/x big/link; printf same >big/y
truncate -s 1M c/d/x; for at in 0 200000 600000; do printf island | dd of=c/d/x bs=1 seek=$at conv=notrunc status=none; done
truncate -s 50K c/d/y; head -c 4096 /dev/urandom >empty/x; : >empty/y; chmod 666 c/d/x empty/x
cp a/y big/d; chmod 775 big/d; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 big/d
setfattr -n user.three -v "$(printf '%03000d' 0)" big/y; setfattr -n user.one empty/y; setfattr -n trusted.two -v t c
setfacl -m u:1000:rwx,d:u:1000:rwx,d:m:rx c/d; setfacl -m u:2000:r big/y; chown 1000:1000 big/x big; chmod 777 c/d
find . -exec touch -h -d '2020-02-02 02:02:02.020202020' {} +
"#;

/// The same of somebody who is not root, and to whom more of it is closed.
const MAKE_OWN: &str = r#"
mkdir -p a/sub b c/d empty
printf 'content of x\n' >a/x; chmod 444 a/x
head -c 30000 /dev/urandom >a/y
printf 'linked' >link; ln link a/link; ln link a/sub/link
printf 'set-id' >b/x; chmod 4755 b/x
truncate -s 100K b/y; printf tail | dd of=b/y bs=1 seek=99996 conv=notrunc status=none
setfattr -n user.one -v first b/y; chmod 444 b/y
ln -s some/where sym; ln -s x a/sym; mkfifo fifo
chmod 2775 b; chmod 1777 empty
printf acl >a/c; setfacl -m u:1000:rw,g:70000:r,m::r a/c
setfacl -d -m u:1000:rwx,g::rx,o::- empty
printf shut >c/x; printf shut >c/d/y; chmod 444 c/d/y; chmod 555 c/d c
printf odd >"$(printf 'not\377utf-8\001')"; printf '%s' long >"a/$(printf '%0255d' 0 | tr 0 n)"
find . -exec touch -h -d '2020-02-02 02:02:02.020202020' {} +
"#;

/// Packs a directory with all that tar can keep of it.
const PACK: [&str; 7] = [
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
    "--numeric-owner",
    "-S",
    "-cf",
    "image.tar",
];

fn run_case(ops: &[Op], beside: Beside) {
    let sandbox = Sandbox::new();
    // For operations of other users.
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
    sandbox.dir(beside::TREE);
    let make = format!(
        "cd '{}'; (cd plain; {MAKE}) && tar {} -C plain .",
        sandbox.path().display(),
        PACK.join(" ")
    );
    ok("sh", ["-euc", &make]);
    let tar = sandbox.at("image.tar");
    let upper = sandbox.dir("upper").to_str().unwrap().to_owned();
    let work = sandbox.at("work").to_str().unwrap().to_owned();
    let options = [&["--upper", &upper, "--work", &work], beside.options()].concat();
    let mut mount: Option<Mount<'_>> = None;
    let other = beside.root(&sandbox);
    let sides = (Side::new(other), Side::new(sandbox.at("mount")));
    run_steps(ops, beside, sides, || {
        if let Some(mount) = mount.take() {
            mount.unmount();
        }
        beside.remount(&sandbox);
        mount = Some(sandbox.mount("mount", &tar, &options));
    });
    beside.unmount(&sandbox);
}

/// The directory and the mount are an ordinary user's, and so is each operation. What is seen is
/// seen by root.
fn run_case_of(user: &User, ops: &[Op]) {
    user.clear();
    user.sh(&format!(
        "mkdir plain mount upper; (cd plain; {MAKE_OWN}) && tar {} -C plain .",
        PACK.join(" ")
    ));
    let mount = "\"$TARNFS\" mount -o allow_other --upper upper --work work image.tar mount";
    let sides = (
        Side::of_user(user.at("plain")),
        Side::of_user(user.at("mount")),
    );
    let mut mounted = false;
    run_steps(ops, Beside::Directory, sides, || {
        if mounted {
            user.sh("\"$TARNFS\" umount mount");
        }
        user.sh(mount);
        mounted = true;
    });
    user.sh("\"$TARNFS\" umount mount");
    user.wait_for_servers();
}

/// Takes off at the end what is mounted below a directory.
struct Detach<'a>(&'a Path);

impl Drop for Detach<'_> {
    fn drop(&mut self) {
        detach_below(self.0);
    }
}

/// The same as root of a user namespace in which nobody else exists. An ACL can name nobody there.
fn run_case_in_namespace(ops: &[Op]) {
    let dir = tempfile::tempdir_in(".").unwrap();
    let at = std::path::absolute(dir.path()).unwrap();
    let _left = Detach(&at);
    let sh = |script: &str| {
        let script = format!("cd '{}'; {script}", at.display());
        ok("sh", ["-euc", &script])
    };
    let make: String = MAKE_OWN.replace("setfacl", ": setfacl");
    sh(&format!(
        "mkdir plain mount upper; (cd plain; {make}) && tar {} -C plain .",
        PACK.join(" ")
    ));
    let mut mounted = false;
    let sides = (
        Side::in_namespace(at.join("plain")),
        Side::in_namespace(at.join("mount")),
    );
    run_steps(ops, Beside::Directory, sides, || {
        if mounted {
            sh("\"$TARNFS\" umount mount");
        }
        sh("\"$TARNFS\" mount --upper upper --work work image.tar mount");
        mounted = true;
    });
    sh("\"$TARNFS\" umount mount");
}

/// Runs `ops` on both sides. `mount` mounts the second one, anew if it is mounted.
fn run_steps(ops: &[Op], beside: Beside, (mut a, mut b): (Side, Side), mut mount: impl FnMut()) {
    let ordinary = a.who != Who::Root;
    let begun = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let begun = i64::try_from(begun.as_secs()).unwrap() - 2;
    mount();
    let mut comparison = Comparison::new(beside, begun);
    comparison.compare(&a, &b, false, "the mount");
    for (i, op) in ops.iter().enumerate() {
        match op {
            Op::Umask(mask) => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
            }
            // The machine's caches are not for root of a namespace.
            Op::DropCaches if a.who == Who::RootOfNamespace => {}
            Op::DropCaches => fs::write("/proc/sys/vm/drop_caches", "2").unwrap(),
            Op::Remount => {
                a.drop_held();
                b.drop_held();
                mount();
            }
            op if beside.leaves_out(op) => continue,
            _ => {
                clock_goes_on();
                let (want, got) = (a.apply(op), b.apply(op));
                let same = beside.same(&ops[..i], op, want, got);
                assert!(same, "step {i}: {op:?}: {want:?}, mount {got:?}");
            }
        }
        let anew = ordinary && matches!(op, Op::Remount);
        comparison.compare(&a, &b, anew, &format!("step {i}: {op:?}"));
    }
    a.drop_held();
    b.drop_held();
    mount();
    comparison.compare(&a, &b, ordinary, "the last mount");
}

/// Waits until what is changed now gets another time than what was changed before.
fn clock_goes_on() {
    let now = || rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    let start = now();
    while now() == start {
        std::thread::yield_now();
    }
}

/// Runs `case` on random sequences of operations, and says how many there were.
///
/// TARNFS_DIFFERENTIAL_CASES is the number of sequences, TARNFS_DIFFERENTIAL_STEPS how many
/// operations each has on average: 410 of 250 are some 100,000.
fn run_cases(what: &str, op: impl Strategy<Value = Op>, case: impl Fn(&[Op])) {
    // The umask is the whole process's, too.
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let env = |key: &str, default: u32| {
        std::env::var(key)
            .ok()
            .map_or(default, |value| value.parse().unwrap())
    };
    let cases = env("TARNFS_DIFFERENTIAL_CASES", 12);
    let steps = env("TARNFS_DIFFERENTIAL_STEPS", 60) as usize;
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: env("PROPTEST_MAX_SHRINK_ITERS", 300),
        ..Config::default()
    };
    let ops = prop::collection::vec(op, 1..=2 * steps);
    let done = AtomicU64::new(0);
    TestRunner::new(config)
        .run(&ops, |ops| {
            // Not what the sequence before has left: what the sides are made of depends on it.
            rustix::process::umask(Mode::from(0o022));
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| case(&ops)));
            result.map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                TestCaseError::fail(text.unwrap_or_else(|| "panicked".to_owned()))
            })?;
            done.fetch_add(ops.len() as u64, Ordering::Relaxed);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let done = done.into_inner();
    eprintln!("{what}: {done} operations in {cases} runs, no difference");
}

fn can_run() -> bool {
    can_mount() && ["setfacl", "setfattr", "python3"].into_iter().all(has)
}

#[test]
fn a_mount_behaves_as_a_plain_directory() {
    if can_run() {
        run_cases("mount and plain directory", op(), |ops| {
            run_case(ops, Beside::Directory);
        });
    }
}

#[test]
fn a_mount_behaves_as_overlayfs() {
    if can_run() && Beside::overlayfs_is_there() {
        run_cases("mount and overlayfs", op(), |ops| {
            run_case(ops, Beside::Overlayfs);
        });
    }
}

#[test]
fn a_mount_by_the_kernel_alone_behaves_as_overlayfs() {
    if can_run() && Beside::overlayfs_is_there() {
        run_cases("mount with passthrough=all and overlayfs", op(), |ops| {
            run_case(ops, Beside::OverlayfsByKernel);
        });
    }
}

#[test]
fn a_mount_whose_writes_are_requests_behaves_as_overlayfs() {
    if can_run() && Beside::overlayfs_is_there() {
        run_cases(
            "mount with upper_passthrough=off and overlayfs",
            op(),
            |ops| {
                run_case(ops, Beside::OverlayfsByRequests);
            },
        );
    }
}

#[test]
fn a_mount_without_opens_behaves_as_a_plain_directory() {
    if can_run() {
        run_cases("mount with noopen and plain directory", op(), |ops| {
            run_case(ops, Beside::DirectoryUnopened);
        });
    }
}

#[test]
fn known_differences_are_documented() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/SEMANTICS.md");
    let document = fs::read_to_string(document).unwrap();
    for (what, text) in beside::KNOWN {
        assert!(
            document.contains(text),
            "{what}: not in the document: {text}"
        );
    }
}

#[test]
fn a_mount_without_root_behaves_as_a_plain_directory() {
    if !has("setfacl") || !has("setfattr") {
        return;
    }
    with_user(
        "a_mount_without_root_behaves_as_a_plain_directory",
        |user| {
            run_cases("mount without root", common_op(), |ops| {
                run_case_of(user, ops)
            })
        },
    );
}

#[test]
fn a_mount_in_a_user_namespace_behaves_as_a_plain_directory() {
    if !has("setfacl") || !has("setfattr") {
        return;
    }
    with_own_namespace(
        "a_mount_in_a_user_namespace_behaves_as_a_plain_directory",
        || {
            run_cases(
                "mount in a user namespace",
                common_op(),
                run_case_in_namespace,
            )
        },
    );
}
