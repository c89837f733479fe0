//! An ordinary user for tests: nobody's files, no privilege, one further group.
//!
//! What he needs of the machine is made in a mount namespace of the test's own: /dev/fuse open to
//! everybody, his line in /etc/passwd (fusermount3 looks for it), and `user_allow_other`, so that
//! the test, which is root, can look into his mounts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Gid, Mode, Uid};
use rustix::process::{Pid, PidfdFlags};

use super::{TARNFS, assert_ok, can_mount, has, mounts_below, run, text};

/// His number, and his group's.
pub(crate) const UID: u32 = 61_234;
/// The other group that he is in.
pub(crate) const OTHER_GID: u32 = 70_000;

/// Tells a test that it runs in the namespace.
const INSIDE: &str = "TARNFS_TEST_USER";
/// Tells a test that it is the user, in a user namespace of his own.
const OWN: &str = "TARNFS_TEST_OWN";

/// For tests beside each other: a new mount namespace has a copy of each mount of the others, and
/// keeps the server of one that they unmount meanwhile.
pub(crate) static TURN: Mutex<()> = Mutex::new(());

/// Runs `body` as the test called `test`, where an ordinary user can mount.
pub(crate) fn with_user(test: &str, body: impl FnOnce(&User)) {
    if !can_mount() || !has("fusermount3") || !has("setpriv") || !has("unshare") {
        return;
    }
    if std::env::var_os(INSIDE).is_some() {
        body(&User::new());
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(status.unwrap().success(), "{test} failed");
}

/// Runs `body` as the test called `test` in a user namespace of the user's own, as its root, in
/// his directory. `TARNFS` says where the program is.
pub(crate) fn with_own_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(OWN).is_some() {
        return body();
    }
    with_user(test, |user| {
        let status = user
            .command("unshare")
            .args(["--user", "--map-root-user", "--mount"])
            .arg(user.dir.path().join("dev/test"))
            .args(["--exact", test, "--nocapture"])
            .env(OWN, "1")
            .env("TARNFS_STORE", user.at("store"))
            .status();
        assert!(status.unwrap().success(), "{test} failed in its namespace");
        user.wait_for_servers();
    });
}

/// The user, with a directory that is his.
pub(crate) struct User {
    dir: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        // The build directory may be closed to him.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let own = dir.path().join("dev");
        fs::create_dir(&own).unwrap();
        rustix::mount::mount(
            "tmpfs",
            &own,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            c"mode=755",
        )
        .unwrap();
        let (mode, device) = (Mode::from(0o666), rustix::fs::makedev(10, 229));
        let fuse = own.join("fuse");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fuse,
            FileType::CharacterDevice,
            mode,
            device,
        )
        .unwrap();
        fs::set_permissions(&fuse, fs::Permissions::from_mode(0o666)).unwrap();
        let bind = |from: &Path, to: &Path| rustix::mount::mount_bind(from, to).unwrap();
        bind(&fuse, Path::new("/dev/fuse"));
        let mut passwd = fs::read_to_string("/etc/passwd").unwrap();
        passwd.push_str(&format!("tarnfs-test:x:{UID}:{UID}::/:/bin/sh\n"));
        for (name, contents, at) in [
            ("passwd", passwd.as_str(), "/etc/passwd"),
            ("fuse.conf", "user_allow_other\n", "/etc/fuse.conf"),
            ("subuid", "tarnfs-test:200000:65536\n", "/etc/subuid"),
            ("subgid", "tarnfs-test:200000:65536\n", "/etc/subgid"),
        ] {
            fs::write(own.join(name), contents).unwrap();
            if Path::new(at).exists() {
                bind(&own.join(name), Path::new(at));
            }
        }
        for (name, program) in [
            ("tarnfs", Path::new(TARNFS)),
            ("test", &std::env::current_exe().unwrap()),
        ] {
            fs::write(own.join(name), "").unwrap();
            bind(program, &own.join(name));
        }
        let user = Self { dir };
        user.dir("home");
        user
    }

    /// A path in his directory.
    pub(crate) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join("home").join(name)
    }

    /// A new directory there.
    pub(crate) fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let dir = match name.as_ref().to_str() {
            Some("home") => self.dir.path().join("home"),
            _ => self.at(name),
        };
        fs::create_dir(&dir).unwrap();
        chown(&dir, Some(UID), Some(UID)).unwrap();
        dir
    }

    /// The program, where he can run it.
    pub(crate) fn tarnfs(&self) -> PathBuf {
        self.dir.path().join("dev/tarnfs")
    }

    /// `program args…` as he runs it, in his directory.
    pub(crate) fn run(&self, program: impl AsRef<Path>, args: &[&str]) -> Output {
        let mut command = self.command(program);
        command.args(args);
        run(command)
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={UID}"))
            .arg(format!("--regid={UID}"))
            .arg(format!("--groups={OTHER_GID}"))
            .arg(program.as_ref())
            .current_dir(self.at(""))
            .env("XDG_DATA_HOME", self.at("data"))
            .env("XDG_RUNTIME_DIR", self.at("run"))
            .env("TARNFS", self.tarnfs());
        command
    }

    /// The same, which must succeed; gives standard output.
    pub(crate) fn ok(&self, program: impl AsRef<Path>, args: &[&str]) -> String {
        let shown = format!("{} {args:?}", program.as_ref().display());
        let output = self.run(program, args);
        assert_ok(&output, &shown);
        text(&output.stdout)
    }

    /// A shell script of his.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.ok("/bin/sh", &["-euc", script])
    }

    /// The servers of his, and what serves them.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let here = fs::read_link("/proc/self/ns/mnt").unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let entry = entry.unwrap();
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            // What has ended meanwhile, or is waited for by nobody, has no namespace to read.
            let its = fs::read_link(entry.path().join("ns/mnt"));
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if its.is_ok_and(|its| its == here) && name.starts_with("tarnfs") {
                found.push(pid);
            }
        }
        found
    }
}

impl User {
    /// Waits until none of [`Self::processes`] is left: they let go of everything a moment before
    /// they are gone.
    pub(crate) fn wait_for_servers(&self) {
        for pid in self.processes() {
            let pid = Pid::from_raw(pid).unwrap();
            let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            let minute = Timespec {
                tv_sec: 60,
                tv_nsec: 0,
            };
            let ended = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&minute));
            assert_eq!(ended, Ok(1), "process {pid:?} stays");
        }
    }

    /// Begins anew: nothing is mounted, and his directory is empty.
    pub(crate) fn clear(&self) {
        detach_below(&self.at(""));
        fs::remove_dir_all(self.at("")).unwrap();
        self.dir("home");
    }
}

impl Drop for User {
    fn drop(&mut self) {
        detach_below(&self.at(""));
        // So that the directory can be removed; what lies on /dev/fuse and /etc goes with the
        // namespace.
        for name in ["dev/tarnfs", "dev/test", "dev"] {
            let at = self.dir.path().join(name);
            if let Err(error) = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH) {
                eprintln!("umount {}: {error}", at.display());
            }
        }
    }
}

/// Takes off what a failed test has left mounted below `dir`; its servers end with it.
pub(crate) fn detach_below(dir: &Path) {
    for line in mounts_below(dir) {
        if let Some(at) = line.split(' ').nth(4)
            && let Err(error) = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH)
        {
            eprintln!("umount {at}: {error}");
        }
    }
}

/// Runs `call` in a thread that is the user.
pub(crate) fn as_user<T: Send>(call: impl FnOnce() -> T + Send) -> T {
    as_ids(UID, UID, &[OTHER_GID], call).unwrap()
}

/// Runs `call` in a thread that has given up privilege.
pub(crate) fn as_ids<T: Send>(
    uid: u32,
    gid: u32,
    groups: &[u32],
    call: impl FnOnce() -> T + Send,
) -> rustix::io::Result<T> {
    let groups: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    std::thread::scope(|scope| {
        let run = || {
            rustix::thread::set_thread_groups(&groups)?;
            rustix::thread::set_thread_gid(Gid::from_raw(gid))?;
            rustix::thread::set_thread_uid(Uid::from_raw(uid))?;
            Ok(call())
        };
        scope.spawn(run).join().unwrap()
    })
}
