//! `tarnfs mount` and `tarnfs umount` as a person, mount(8) and a service manager use them.
// Helpers outside of #[test] functions fail tests as the functions do.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{TARNFS, can_mount, pack};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use tarnfs::mount::{FS_TYPE, find_mount};

/// A store, an image and a mount point of one test's own; unmounted when dropped.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let tree = bench.path("tree");
        fs::create_dir_all(tree.join("dir/sub")).unwrap();
        fs::write(tree.join("hello"), "hello\n").unwrap();
        fs::write(tree.join("dir/file"), vec![7; 100_000]).unwrap();
        fs::hard_link(tree.join("hello"), tree.join("dir/same")).unwrap();
        std::os::unix::fs::symlink("hello", tree.join("link")).unwrap();
        pack(&tree, &bench.image(), &["--owner=0", "--group=0"]);
        fs::create_dir(bench.mnt()).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn image(&self) -> PathBuf {
        self.path("image.tar")
    }

    fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// `tarnfs` with a store of its own.
    fn tarnfs(&self, args: &[&str]) -> Command {
        let mut command = Command::new(TARNFS);
        command
            .args(args)
            .env("TARNFS_STORE", self.path("store"))
            .env_remove("TARNFS_LOG")
            .current_dir(self.dir.path());
        command
    }

    /// Mounts image.tar on mnt with more arguments.
    fn mount(&self, args: &[&str]) -> Output {
        let mut all = vec!["mount"];
        all.extend(args);
        all.extend(["image.tar", "mnt"]);
        self.tarnfs(&all).output().unwrap()
    }

    fn mounted(&self, args: &[&str]) {
        ok(&self.mount(args));
        assert!(self.is_mounted());
    }

    fn umount(&self, args: &[&str]) -> Output {
        let mut all = vec!["umount"];
        all.extend(args);
        all.push("mnt");
        self.tarnfs(&all).output().unwrap()
    }

    fn is_mounted(&self) -> bool {
        let found = find_mount(&self.mnt()).unwrap();
        found.is_some_and(|mount| mount.fs_type == FS_TYPE)
    }

    fn mount_options(&self) -> String {
        find_mount(&self.mnt()).unwrap().unwrap().options
    }

    /// The server's process.
    fn server(&self) -> Server {
        let minor = find_mount(&self.mnt()).unwrap().unwrap().minor;
        let text = fs::read(format!("/run/tarnfs/{minor}.json")).unwrap();
        let record: tarnfs::mount::Record = serde_json::from_slice(&text).unwrap();
        let pid = Pid::from_raw(record.pid.try_into().unwrap()).unwrap();
        Server {
            fd: rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap(),
        }
    }

    /// Waits until the mount table shows no mount of ours here any more.
    fn wait_detached(&self) {
        let table = fs::File::open("/proc/self/mountinfo").unwrap();
        while self.is_mounted() {
            // proc(5): POLLPRI when the table has changed since the last poll.
            poll(&mut [PollFd::new(&table, PollFlags::PRI)], None).unwrap();
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let out = self.umount(&["--lazy"]);
        if !out.status.success() && !std::thread::panicking() {
            panic!("{}", String::from_utf8_lossy(&out.stderr));
        }
    }
}

struct Server {
    fd: std::os::fd::OwnedFd,
}

impl Server {
    fn signal(&self, signal: Signal) {
        rustix::process::pidfd_send_signal(&self.fd, signal).unwrap();
    }

    fn wait(&self) {
        poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], None).unwrap();
    }
}

fn ok(out: &Output) {
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
}

/// One line on standard error, the exit status, and every one of `words`.
fn fails(out: &Output, status: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

/// Names of a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn writes_go_to_the_upper_and_nowhere_else() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let before = fs::read(bench.image()).unwrap();
    bench.mounted(&["--upper", "up"]);
    let mnt = bench.mnt();
    assert_eq!(fs::read_to_string(mnt.join("link")).unwrap(), "hello\n");
    assert_eq!(fs::read(mnt.join("dir/file")).unwrap(), vec![7; 100_000]);
    let (a, b) = (
        fs::metadata(mnt.join("hello")).unwrap(),
        fs::metadata(mnt.join("dir/same")).unwrap(),
    );
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    fs::write(mnt.join("new"), "new").unwrap();
    fs::remove_file(mnt.join("link")).unwrap();
    ok(&bench.umount(&[]));
    assert!(!bench.is_mounted());
    assert_eq!(names(&bench.path("up")), ["link", "new"]);
    assert_eq!(fs::metadata(bench.path("up/link")).unwrap().rdev(), 0);
    assert!(bench.path("up.work").is_dir());
    assert_eq!(fs::read(bench.image()).unwrap(), before);
    // And they are there again.
    bench.mounted(&["--upper", "up", "--work", "up.work"]);
    assert_eq!(fs::read_to_string(mnt.join("new")).unwrap(), "new");
    assert!(!mnt.join("link").exists());
    ok(&bench.umount(&[]));
}

#[test]
fn a_private_upper_goes_with_its_mount() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.mounted(&[]);
    fs::write(bench.mnt().join("new"), "new").unwrap();
    assert_eq!(names(&bench.path("store/uppers")).len(), 1);
    ok(&bench.umount(&[]));
    assert!(names(&bench.path("store/uppers")).is_empty());
    // A killed server leaves its own behind; the next mount clears it.
    bench.mounted(&[]);
    let server = bench.server();
    server.signal(Signal::KILL);
    server.wait();
    ok(&bench.umount(&[]));
    bench.mounted(&[]);
    assert_eq!(names(&bench.path("store/uppers")).len(), 1);
    ok(&bench.umount(&[]));
}

#[test]
fn tmpfs_and_read_only() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.mounted(&["--tmpfs=4M"]);
    let mnt = bench.mnt();
    fs::write(mnt.join("new"), "new").unwrap();
    let full = fs::write(mnt.join("big"), vec![1; 8 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    ok(&bench.umount(&[]));

    bench.mounted(&["--read-only"]);
    assert_eq!(fs::read_to_string(mnt.join("hello")).unwrap(), "hello\n");
    let refused = fs::write(mnt.join("new"), "new").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(!bench.path("store/uppers").exists());
    ok(&bench.umount(&[]));
}

#[test]
fn a_signal_ends_it_cleanly() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    for signal in [Signal::TERM, Signal::INT] {
        bench.mounted(&["--upper", "up"]);
        let server = bench.server();
        fs::write(bench.mnt().join("new"), "new").unwrap();
        server.signal(signal);
        server.wait();
        assert!(!bench.is_mounted());
        assert_eq!(fs::read_to_string(bench.path("up/new")).unwrap(), "new");
    }
}

#[test]
fn a_busy_mount_is_detached_and_a_second_signal_cuts() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.mounted(&[]);
    let server = bench.server();
    let held = fs::File::open(bench.mnt().join("dir/file")).unwrap();
    fails(&bench.umount(&[]), 1, &["busy", "--lazy"]);
    server.signal(Signal::TERM);
    bench.wait_detached();
    // Who holds a file still reads it.
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&held, &mut byte, 50_000).unwrap();
    assert_eq!(byte, [7]);
    server.signal(Signal::TERM);
    server.wait();
}

#[test]
fn regression_a_mount_below_is_named() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.mounted(&[]);
    let below = bench.mnt().join("dir");
    let tmpfs = |args: &[&str]| {
        let done = Command::new(args[0]).args(&args[1..]).arg(&below).status();
        assert!(done.unwrap().success());
    };
    tmpfs(&["mount", "-t", "tmpfs", "none"]);
    fails(&bench.umount(&[]), 1, &["busy", "/dir is mounted below it"]);
    tmpfs(&["umount"]);
    ok(&bench.umount(&[]));
}

/// A script that holds a lock in a descriptor mounts, and ends: the server must not keep the lock.
#[test]
fn regression_a_server_inherits_nothing() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let script = "exec 9>lock && flock 9 && \"$0\" mount image.tar mnt";
    let shell = Command::new("sh")
        .args(["-c", script, TARNFS])
        .env("TARNFS_STORE", bench.path("store"))
        .current_dir(bench.path(""))
        .output();
    ok(&shell.unwrap());
    assert!(bench.is_mounted());
    let lock = fs::File::open(bench.path("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    ok(&bench.umount(&[]));
}

/// Whoever started the mount is told when the process that was to serve it is killed.
#[test]
fn a_server_that_is_killed_before_it_is_ready() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let fifo = bench.path("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let waiting = Command::new(TARNFS)
        .arg("--log-file")
        .arg(&fifo)
        .args(["mount", "image.tar", "mnt"])
        .env("TARNFS_STORE", bench.path("store"))
        .current_dir(bench.path(""))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The server opens its log, and nobody reads it.
    let id = waiting.id();
    let server = loop {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        match children.split_whitespace().next() {
            Some(server) => break server.to_owned(),
            None => std::thread::yield_now(),
        }
    };
    let killed = Command::new("kill").args(["-9", &server]).status();
    assert!(killed.unwrap().success());
    let output = waiting.wait_with_output().unwrap();
    fails(
        &output,
        1,
        &["killed by signal 9 before the mount was ready"],
    );
    assert!(!bench.is_mounted());
}

/// umount(8) does not wait for the server.
#[test]
fn regression_an_upper_right_after_umount8() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    for round in 0..50 {
        bench.mounted(&["--upper", "up"]);
        // Not written by this process: a child that another test forks would hold the file.
        let script = format!("echo {round} >mnt/dir/new && umount mnt");
        let done = Command::new("sh")
            .args(["-c", &script])
            .current_dir(bench.path(""))
            .status();
        assert!(done.unwrap().success());
    }
    assert_eq!(fs::read(bench.path("up/dir/new")).unwrap(), b"49\n");
}

#[test]
fn regression_work_is_the_servers_alone() {
    use std::os::unix::fs::PermissionsExt;
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.mounted(&["--upper", "up"]);
    let work = fs::metadata(bench.path("up.work")).unwrap();
    assert_eq!(work.permissions().mode() & 0o7777, 0o700);
    ok(&bench.umount(&[]));
}

/// `ulimit -n`, however small: it works, or one line says why not.
#[test]
fn regression_few_descriptors_are_no_panic() {
    if !can_mount() {
        return;
    }
    for most in 4..20 {
        let bench = Bench::new();
        let mut limited = Command::new("sh");
        limited
            .args(["-ec", &format!("ulimit -n {most}; exec \"$@\""), "sh"])
            .args([TARNFS, "mount", "--upper", "upper", "image.tar", "mnt"])
            .env("TARNFS_STORE", bench.path("store"))
            .current_dir(bench.dir.path());
        let done = limited.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!said.contains("panicked"), "{most}: {said}");
        if done.status.success() {
            ok(&bench.umount(&[]));
        } else {
            assert!(said.contains("Too many open files"), "{most}: {said}");
        }
    }
}

/// `ulimit -f` of who started the server: a larger file is refused to its writer, and the server
/// goes on.
#[test]
fn regression_a_limit_of_file_sizes_does_not_end_the_server() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let mut limited = Command::new("sh");
    limited
        .args(["-ec", "ulimit -f 400; exec \"$@\"", "sh", TARNFS, "mount"])
        // What the kernel writes by itself has the writer's own limit.
        .args([
            "--upper",
            "upper",
            "--passthrough",
            "off",
            "image.tar",
            "mnt",
        ])
        .env("TARNFS_STORE", bench.path("store"))
        .current_dir(bench.dir.path());
    ok(&limited.output().unwrap());
    let mnt = bench.mnt();
    let error = fs::write(mnt.join("large"), vec![1; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
    let file = fs::File::options()
        .write(true)
        .open(mnt.join("hello"))
        .unwrap();
    let error = file.set_len(1 << 20).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
    assert_eq!(fs::read_to_string(mnt.join("hello")).unwrap(), "hello\n");
    drop(file);
    ok(&bench.umount(&[]));
}

#[test]
fn a_dead_mount_is_cleared() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.mounted(&[]);
    let server = bench.server();
    server.signal(Signal::KILL);
    server.wait();
    let dead = fs::metadata(bench.mnt()).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN));
    fails(
        &bench.mount(&[]),
        1,
        &["already a tarnfs mount", "tarnfs umount"],
    );
    ok(&bench.umount(&[]));
    assert!(!bench.is_mounted());
    let out = bench.umount(&["--verbose"]);
    ok(&out);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "mnt: not mounted\n");
}

#[test]
fn a_hanging_server_hangs_nobody() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    bench.mounted(&[]);
    let server = bench.server();
    server.signal(Signal::STOP);
    fails(&bench.mount(&[]), 1, &["already a tarnfs mount"]);
    fails(&bench.umount(&["--timeout", "0"]), 1, &["has not ended"]);
    assert!(!bench.is_mounted());
    server.signal(Signal::CONT);
    server.wait();
}

/// This binary under the name that mount(8) looks for.
fn helper(bench: &Bench, options: &str) -> Output {
    Command::new(TARNFS)
        .arg0("/sbin/mount.fuse.tarnfs")
        .args(["image.tar", "mnt", "-n", "-o", options, "-t", "fuse.tarnfs"])
        .env("TARNFS_STORE", bench.path("store"))
        .current_dir(bench.dir.path())
        .output()
        .unwrap()
}

#[test]
fn as_mount_calls_it() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    fails(&helper(&bench, "rw,bogus"), 32, &["bogus"]);
    let options = format!(
        "rw,noauto,nofail,x-systemd.automount,nosuid,noatime,fsname=some image,upperdir={},workdir={}",
        bench.path("u").display(),
        bench.path("w").display(),
    );
    ok(&helper(&bench, &options));
    let mount = find_mount(&bench.mnt()).unwrap().unwrap();
    assert_eq!(mount.options, "rw,nosuid,noatime");
    assert_eq!(mount.source, "some image");
    fs::write(bench.mnt().join("new"), "").unwrap();

    ok(&helper(
        &bench,
        "remount,ro,user_id=0,group_id=0,allow_other",
    ));
    assert_eq!(bench.mount_options(), "ro,nosuid,noatime");
    assert!(fs::write(bench.mnt().join("newer"), "").is_err());
    ok(&helper(&bench, "remount,rw,suid"));
    assert_eq!(bench.mount_options(), "rw,noatime");
    fs::write(bench.mnt().join("newer"), "").unwrap();
    ok(&bench.umount(&[]));
    fails(&helper(&bench, "remount,ro"), 32, &["no tarnfs mount"]);
}

/// Runs a script as an ordinary user in a mount namespace with a /dev/fuse that he may open.
fn as_nobody(bench: &Bench, script: &str) -> Output {
    let dir = bench.dir.path();
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.join("tarnfs");
    fs::copy(TARNFS, &program).unwrap();
    fs::write(dir.join("script"), script).unwrap();
    std::os::unix::fs::chown(bench.mnt(), Some(65_534), Some(65_534)).unwrap();
    fs::create_dir_all(bench.path("store")).unwrap();
    std::os::unix::fs::chown(bench.path("store"), Some(65_534), Some(65_534)).unwrap();
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg(
            "mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse
             exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -e ./script",
        )
        .current_dir(dir)
        .env("TARNFS_STORE", bench.path("store"))
        .env_remove("XDG_RUNTIME_DIR")
        .output()
        .unwrap()
}

#[test]
fn an_ordinary_user_through_fusermount3() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let out = as_nobody(
        &bench,
        "./tarnfs mount image.tar mnt
         grep -c 'mnt rw,nosuid,nodev.* fuse.tarnfs ' /proc/self/mountinfo
         cat mnt/hello
         echo new > mnt/new; cat mnt/new
         echo more >> mnt/hello; cat mnt/dir/same
         stat -c %u mnt/hello mnt/new
         ./tarnfs umount -v mnt",
    );
    ok(&out);
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "1\nhello\nnew\nhello\nmore\n65534\n65534\nmnt: unmounted\n"
    );
}

#[test]
fn root_of_a_user_namespace() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let out = as_nobody(
        &bench,
        "exec unshare -rm sh -ec '
           ./tarnfs mount --tmpfs image.tar mnt
           cat mnt/hello; echo new > mnt/new; cat mnt/new
           ./tarnfs umount -v mnt'",
    );
    ok(&out);
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "hello\nnew\nmnt: unmounted\n"
    );
}

#[test]
fn bad_input_is_one_line() {
    let bench = Bench::new();
    let run = |args: &[&str]| bench.tarnfs(args).output().unwrap();
    fails(
        &run(&["mount", "image.tar", "nowhere"]),
        1,
        &["nowhere", "no such directory"],
    );
    fails(
        &run(&["mount", "image.tar", "image.tar"]),
        1,
        &["not a directory"],
    );
    fails(&run(&["mount", "nothing.tar", "mnt"]), 1, &["nothing.tar"]);
    fails(&run(&["mount", "tree", "mnt"]), 1, &["tree"]);
    fails(
        &run(&["mount", "-o", "bogus", "image.tar", "mnt"]),
        1,
        &["bogus"],
    );
    fails(&run(&["mount", "--tmpfs=x", "image.tar", "mnt"]), 1, &["x"]);
    fails(
        &run(&["mount", "--upper", ".", "image.tar", "mnt"]),
        1,
        &["mnt"],
    );
    fails(
        &run(&["mount", "--log", "=!", "image.tar", "mnt"]),
        1,
        &["--log"],
    );
    fails(&run(&["umount", "/proc"]), 1, &["/proc", "proc"]);
    assert!(!bench.is_mounted());
}

#[test]
fn no_device_says_what_to_do() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let out = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg(
            "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3
             exec \"$0\" mount image.tar mnt",
        )
        .arg(TARNFS)
        .current_dir(bench.dir.path())
        .env("TARNFS_STORE", bench.path("store"))
        .output()
        .unwrap();
    fails(&out, 1, &["/dev/fuse", "modprobe fuse"]);
}

#[test]
fn completions_and_manual_pages() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish"] {
        let out = bench.tarnfs(&["completions", shell]).output().unwrap();
        ok(&out);
        assert!(String::from_utf8_lossy(&out.stdout).contains("tarnfs"));
    }
    ok(&bench.tarnfs(&["man", "man1"]).output().unwrap());
    let pages = names(&bench.path("man1"));
    for page in ["tarnfs.1", "tarnfs-mount.1", "tarnfs-umount.1"] {
        assert!(
            pages.iter().any(|p| p == page),
            "{page} is not in {pages:?}"
        );
    }
    let help = bench.tarnfs(&["mount", "--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("Examples:"));
}
