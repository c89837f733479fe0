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

mod common;
#[path = "differential/look.rs"]
mod look;
#[path = "differential/ops.rs"]
mod ops;
#[path = "differential/side.rs"]
mod side;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use common::{Sandbox, can_mount, has, ok};
use look::{Numbers, compare};
use ops::{Op, op};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::Mode;
use side::Side;

/// The tree that both sides begin with.
const MAKE: &str = r#"
mkdir -p a/sub b empty
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
find . -exec touch -h -d '2020-02-02 02:02:02.020202020' {} +
"#;

fn run_case(ops: &[Op]) {
    rustix::process::umask(Mode::from(0o022));
    let sandbox = Sandbox::new();
    // For operations of other users.
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let plain = sandbox.dir("plain");
    ok("sh", ["-euc", &format!("cd '{}'; {MAKE}", plain.display())]);
    let tar = sandbox.at("image.tar");
    let args = [
        "--xattrs",
        "--xattrs-include=*",
        "--acls",
        "--numeric-owner",
        "-cf",
    ];
    ok(
        "tar",
        args.iter().map(std::ffi::OsStr::new).chain([
            tar.as_os_str(),
            "-C".as_ref(),
            plain.as_os_str(),
            ".".as_ref(),
        ]),
    );
    let upper = sandbox.dir("upper").to_str().unwrap().to_owned();
    let work = sandbox.at("work").to_str().unwrap().to_owned();
    let options = ["--upper", &upper, "--work", &work];
    let begun = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let begun = i64::try_from(begun.as_secs()).unwrap() - 2;
    let mut mount = Some(sandbox.mount("mount", &tar, &options));
    let (mut a, mut b) = (Side::new(plain), Side::new(sandbox.at("mount")));
    let mut numbers = Numbers::new();
    compare(&a, &b, begun, &mut numbers, "the mount");
    for (i, op) in ops.iter().enumerate() {
        match op {
            Op::Umask(mask) => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
            }
            Op::DropCaches => fs::write("/proc/sys/vm/drop_caches", "2").unwrap(),
            Op::Remount => {
                a.drop_held();
                b.drop_held();
                if let Some(mount) = mount.take() {
                    mount.unmount();
                }
                mount = Some(sandbox.mount("mount", &tar, &options));
            }
            _ => {
                let (want, got) = (a.apply(op), b.apply(op));
                assert_eq!(want, got, "step {i}: {op:?}");
            }
        }
        if i % 4 == 3 || matches!(op, Op::Remount | Op::DropCaches) {
            compare(&a, &b, begun, &mut numbers, &format!("step {i}: {op:?}"));
        }
    }
    a.drop_held();
    b.drop_held();
    if let Some(mount) = mount.take() {
        mount.unmount();
    }
    let _mount = sandbox.mount("mount", &tar, &options);
    compare(&a, &b, begun, &mut numbers, "the last mount");
}

/// One test at a time: the umask is the whole process's.
static UMASK: Mutex<()> = Mutex::new(());

/// Runs `case` on random sequences of operations, and says how many there were.
///
/// TARNFS_DIFFERENTIAL_CASES is the number of sequences, TARNFS_DIFFERENTIAL_STEPS how many
/// operations each has on average: 410 of 250 are some 100,000.
fn run_cases(what: &str, case: fn(&[Op])) {
    let _turn = UMASK.lock().unwrap_or_else(PoisonError::into_inner);
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
        max_shrink_iters: 300,
        ..Config::default()
    };
    let ops = prop::collection::vec(op(), 1..=2 * steps);
    let done = AtomicU64::new(0);
    TestRunner::new(config)
        .run(&ops, |ops| {
            let result = std::panic::catch_unwind(|| case(&ops));
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

#[test]
fn a_mount_behaves_as_a_plain_directory() {
    if can_mount() && has("setfacl") && has("setfattr") {
        run_cases("mount and plain directory", run_case);
    }
}
