//! What the tests of the `tarnfs` program share: a directory of their own with a store, the small
//! image, mounts that end with the test, and programs that cannot hang it.

// Each test file uses its part of this.
#![allow(dead_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

pub(crate) mod actors;
pub(crate) mod docker_registry;
pub(crate) mod image;
pub(crate) mod python;
pub(crate) mod shell;
pub(crate) mod tarball;
pub(crate) mod user;
pub(crate) mod walk;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The program under test.
pub(crate) const TARNFS: &str = env!("CARGO_BIN_EXE_tarnfs");

/// Longest that any program of a test may run, in seconds: a hang is a failure, not a stop.
const DEADLINE: &str = "300";

/// Says loudly that a test cannot run; fails where it must (CI=true).
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "CI must be able to run this test: {why}"
    );
    eprintln!("SKIPPED: {why}");
}

/// Whether this process can mount. As root only: what the tests pack and unpack has owners and
/// device nodes.
pub(crate) fn can_mount() -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("needs root (device nodes, owners)");
        return false;
    }
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
    {
        skip(&format!("/dev/fuse: {error}"));
        return false;
    }
    true
}

/// Whether `program` is there.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join(program).exists()) {
        return true;
    }
    skip(&format!("needs the program \"{program}\""));
    false
}

/// The small image (tests/images/make-small-image.sh): the directory that holds
/// `small.{pax,gnu,bsd}.tar`.
pub(crate) fn small_image() -> Option<&'static Path> {
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    DIR.get_or_init(|| {
        for program in ["dpkg", "bsdtar", "setfattr", "setfacl", "setcap"] {
            if !has(program) {
                return None;
            }
        }
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/make-small-image.sh");
        let made = run(Command::new(recipe));
        assert_ok(&made, "make-small-image.sh");
        Some(PathBuf::from(text(&made.stdout).trim_end()))
    })
    .as_deref()
}

/// Runs `command` under the deadline and gives its output.
pub(crate) fn run(command: Command) -> Output {
    let mut guarded = Command::new("timeout");
    guarded.args(["--kill-after=10", DEADLINE]);
    guarded.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => guarded.env(key, value),
            None => guarded.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        guarded.current_dir(dir);
    }
    guarded
        .env("LC_ALL", "C.UTF-8")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()))
}

/// `program args…`, under the deadline; must succeed. Gives standard output.
pub(crate) fn ok<I, S>(program: &str, args: I) -> String
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    let shown = format!("{command:?}");
    let output = run(command);
    assert_ok(&output, &shown);
    text(&output.stdout)
}

/// Packs `tree` as `tar` with GNU tar.
pub(crate) fn pack(tree: &Path, tar: &Path, options: &[&str]) {
    let mut command = Command::new("tar");
    command.args(options).arg("-cf").arg(tar);
    command.arg("-C").arg(tree).arg(".");
    assert_ok(&run(command), "tar -c");
}

pub(crate) fn assert_ok(output: &Output, what: &str) {
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is mounted at or below `dir`, by mountinfo (proc_pid_mountinfo(5)).
pub(crate) fn mounts_below(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
    info.lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with(dir)))
        .map(str::to_owned)
        .collect()
}

/// A directory of one test, on the disk of the build directory, with a store of its own. Nothing
/// stays mounted below it, and nothing of it stays.
pub(crate) struct Sandbox {
    dir: TempDir,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub(crate) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// A new directory in it.
    pub(crate) fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let dir = self.at(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// The same, empty.
    pub(crate) fn fresh(&self, name: impl AsRef<Path>) -> PathBuf {
        let dir = self.at(&name);
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        self.dir(name)
    }

    /// `tarnfs args…` with this store.
    pub(crate) fn tarnfs<I, S>(&self, args: I) -> Output
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new(TARNFS);
        command.env("TARNFS_STORE", self.at("store")).args(args);
        run(command)
    }

    /// The same, which must succeed; gives standard output.
    pub(crate) fn tarnfs_ok<I, S>(&self, args: I) -> String
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let args: Vec<OsString> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let output = self.tarnfs(&args);
        assert_ok(&output, &format!("tarnfs {args:?}"));
        text(&output.stdout)
    }

    /// Mounts `image` at `name`; `options` come before it.
    pub(crate) fn mount(&self, name: &str, image: &Path, options: &[&str]) -> Mount<'_> {
        let dir = self.dir(name);
        let mut args: Vec<OsString> = vec!["mount".into()];
        args.extend(options.iter().map(OsString::from));
        args.extend([image.into(), dir.clone().into()]);
        self.tarnfs_ok(&args);
        Mount {
            sandbox: self,
            dir,
            over: false,
        }
    }

    /// The same with an upper and a work directory.
    pub(crate) fn mount_over(
        &self,
        name: &str,
        image: &Path,
        (upper, work): (&Path, &Path),
        options: &[&str],
    ) -> Mount<'_> {
        let dirs = [upper, work].map(|dir| dir.to_str().unwrap());
        let own = ["--upper", dirs[0], "--work", dirs[1]];
        self.mount(name, image, &[&own, options].concat())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for line in mounts_below(self.path()) {
            if let Some(at) = line.split(' ').nth(4) {
                // A test that failed may have left it; its directory must be removable.
                if let Err(error) = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH)
                {
                    eprintln!("umount {at}: {error}");
                }
            }
        }
    }
}

/// A mount that ends with its test.
pub(crate) struct Mount<'a> {
    sandbox: &'a Sandbox,
    dir: PathBuf,
    over: bool,
}

impl Mount<'_> {
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Runs a shell script with the mount as its root.
    pub(crate) fn sh(&self, script: &str) -> String {
        ok(
            "chroot",
            [
                self.dir.as_os_str(),
                "/bin/sh".as_ref(),
                "-euc".as_ref(),
                script.as_ref(),
            ],
        )
    }

    /// The server's process.
    pub(crate) fn server(&self) -> u32 {
        let mount = tarnfs::mount::find_mount(&self.dir).unwrap().unwrap();
        let record = fs::read(format!("/run/tarnfs/{}.json", mount.minor)).unwrap();
        let record: tarnfs::mount::Record = serde_json::from_slice(&record).unwrap();
        record.pid
    }

    /// Unmounts with `tarnfs umount`; when this returns, the server has ended.
    pub(crate) fn unmount(mut self) {
        self.over = true;
        self.sandbox.tarnfs_ok([
            "umount".as_ref(),
            "--timeout=240".as_ref(),
            self.dir.as_os_str(),
        ]);
        assert!(
            mounts_below(&self.dir).is_empty(),
            "still mounted after umount"
        );
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if !self.over {
            let output = self
                .sandbox
                .tarnfs([OsStr::new("umount"), self.dir.as_os_str()]);
            if !output.status.success() {
                eprintln!("tarnfs umount: {}", text(&output.stderr));
            }
        }
    }
}
