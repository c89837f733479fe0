//! What this machine and this user can do, tried where trying is cheap and leaves nothing behind.
//!
//! A probe *never* changes the system: what it makes is in a temporary directory or detached, and
//! gone when it returns.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::userns::{self, Mapping};
use crate::mount::backing::{Backing, Choice, Rung};
use crate::mount::{KeepAwake, MountError, MountOptions, kernel};
use crate::overlay::{self, Overlay};
use crate::store::{Image, Store};
use crate::sys::idle::{self, Idle};
use crate::upper::Upper;

/// The hidden subcommand that [`all`] tries a user namespace with; see [`userns_main`].
pub const SUBCOMMAND: &str = "__probe-userns";

/// How much of a thing there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of it.
    Ok,
    /// Some of it, or probably.
    Limited,
    /// Nothing.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How much of it there is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What follows from it.
    pub follows: String,
}

fn finding(
    name: &'static str,
    state: State,
    found: impl Into<String>,
    follows: impl Into<String>,
) -> Finding {
    Finding {
        name,
        state,
        found: found.into(),
        follows: follows.into(),
    }
}

/// Everything, and whether anything can be mounted at all.
#[must_use]
pub fn all(store: &Path) -> (Vec<Finding>, bool) {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let version = kernel::version();
    let privileged = !userns::needed();
    let fuse = fuse();
    let user_namespaces = user_namespaces();
    let helper = fusermount();
    let engine = kernel_engine(store);
    let can_serve = fuse.state != State::Missing
        && (privileged
            || user_namespaces.state != State::Missing
            || helper.state != State::Missing);
    let can_mount = can_serve || engine.state == State::Ok;
    let mut findings = vec![
        kernel(&release, version),
        fuse,
        passthrough(version, privileged),
        backing(store, version, privileged),
        user_namespaces,
        mappings(),
        helper,
        open_files(),
        idle_cpus(),
        overlayfs(),
        engine,
    ];
    findings.extend(upper(store));
    (findings, can_mount)
}

fn kernel(release: &str, version: Option<(u32, u32)>) -> Finding {
    let release = format!("Linux {release}");
    match version {
        Some(v) if v >= (6, 12) => finding(
            "kernel",
            State::Ok,
            release,
            "new enough for all that tarnfs can do",
        ),
        Some(v) if v >= (5, 15) => finding(
            "kernel",
            State::Limited,
            release,
            "works; the kernel engine takes 6.12",
        ),
        _ => finding(
            "kernel",
            State::Missing,
            release,
            "older than 5.15: not supported",
        ),
    }
}

fn fuse() -> Finding {
    let (state, found, follows) = match fs::File::options().read(true).write(true).open("/dev/fuse")
    {
        Ok(_) => (
            State::Ok,
            "/dev/fuse can be opened".to_owned(),
            "images can be mounted",
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (
            State::Missing,
            "there is no /dev/fuse".to_owned(),
            "nothing can be mounted: load the module fuse (modprobe fuse), or pass the device into \
             this container (--device /dev/fuse)",
        ),
        Err(error) => (
            State::Missing,
            format!("/dev/fuse cannot be opened: {error}"),
            "nothing can be mounted by this user: its mode must be 0666 (chmod a+rw /dev/fuse)",
        ),
    };
    finding("fuse", state, found, follows)
}

fn passthrough(version: Option<(u32, u32)>, privileged: bool) -> Finding {
    let name = "fuse passthrough";
    let serves = "files are read and written through the server";
    match (version.is_some_and(|v| v >= (6, 9)), privileged) {
        (true, true) => finding(
            name,
            State::Ok,
            "assumed: kernel 6.9 or later, and the right to use it",
            "the kernel reads and writes files past the server",
        ),
        (true, false) => finding(name, State::Limited, "assumed: needs CAP_SYS_ADMIN", serves),
        (false, _) => finding(name, State::Missing, "the kernel is older than 6.9", serves),
    }
}

/// By which rung the kernel reads images of a store by itself.
fn backing(store: &Path, version: Option<(u32, u32)>, privileged: bool) -> Finding {
    let name = "image backing";
    if !privileged {
        let known = fs::read_to_string("/proc/filesystems")
            .unwrap_or_default()
            .contains("\terofs");
        let assumed = known && version.is_some_and(|v| v >= (6, 12));
        return finding(
            name,
            State::Limited,
            if assumed {
                "assumed: the kernel has EROFS, root may use it"
            } else {
                "assumed: no EROFS in this kernel"
            },
            "the server answers reads by itself, and each mount has pages of its own",
        );
    }
    match try_backing(store) {
        Ok(backing) => {
            let rung = backing.rung();
            let mut found = format!("probed: {rung}");
            for why in backing.why() {
                found.push_str("; not ");
                found.push_str(why);
            }
            let state = if rung == Rung::File {
                State::Ok
            } else {
                State::Limited
            };
            let follows = "the kernel can mount an index by itself, and all mounts of an image \
                share its pages";
            finding(name, state, found, follows)
        }
        Err(error) => finding(
            name,
            State::Missing,
            format!("probed: {error}"),
            "the server answers reads by itself, and each mount has pages of its own",
        ),
    }
}

/// The image of a small tar, both made in `dir`.
fn small_image(dir: &Path) -> io::Result<Image> {
    let tar = dir.join("probe.tar");
    let mut builder = tar::Builder::new(fs::File::create(&tar)?);
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append_data(&mut header, "hello", &b"hello"[..])?;
    builder.into_inner()?.sync_all()?;
    Store::open(dir)
        .tar_image(&tar, &mut |_| {})
        .map_err(io::Error::other)
}

/// Has the kernel read a real index where images are kept; mounted nowhere, it is gone with its
/// descriptor.
fn try_backing(store: &Path) -> Result<Backing, Box<dyn std::error::Error>> {
    let dir = temporary(existing(store)).or_else(|_| tempfile::tempdir())?;
    let lower = small_image(dir.path())?.lower()?;
    let backing = Backing::acquire(&lower, Choice::of_environment(), &[])?;
    backing.native()?;
    Ok(backing)
}

const WITHOUT_NAMESPACES: &str = "run needs root, and mounts without root cannot change files \
    and directories that are closed to their owner";

fn user_namespaces() -> Finding {
    let name = "user namespaces";
    let output = Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => finding(
            name,
            State::Ok,
            "probed: one was made",
            "run needs no root, and mounts without it change all files of their user",
        ),
        Ok(output) => finding(
            name,
            State::Missing,
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            WITHOUT_NAMESPACES,
        ),
        Err(error) => finding(
            name,
            State::Missing,
            format!("cannot be tried: {error}"),
            WITHOUT_NAMESPACES,
        ),
    }
}

/// The child that tries: makes a user namespace, and a mount namespace in it.
#[must_use]
pub fn userns_main() -> ExitCode {
    use rustix::thread::UnshareFlags;
    let tried = match userns::enter() {
        Ok(Mapping::Ranges | Mapping::Single(_)) => {
            crate::sys::namespace::unshare(UnshareFlags::NEWNS).map_err(|e| userns::forbidden(&e))
        }
        Err(error) => Err(error.to_string()),
    };
    match tried {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // The parent reads it; nobody else can be told.
            rustix::io::write(rustix::stdio::stderr(), why.as_bytes()).ok();
            ExitCode::FAILURE
        }
    }
}

fn mappings() -> Finding {
    let name = "subordinate ids";
    let uid = rustix::process::getuid();
    if uid.is_root() {
        return finding(
            name,
            State::Ok,
            "not needed: this is root",
            "actors have all users",
        );
    }
    match userns::ranges(uid.as_raw()) {
        Ok((uids, _)) => {
            let count: u64 = uids.iter().map(|map| u64::from(map.size)).sum();
            finding(
                name,
                State::Ok,
                format!("{count} numbers"),
                "actors of this user have all users",
            )
        }
        Err(why) => finding(
            name,
            State::Limited,
            why,
            "actors of this user have one user only: package managers may fail",
        ),
    }
}

fn fusermount() -> Finding {
    let name = "fusermount3";
    let uid = rustix::process::getuid();
    if uid.is_root() {
        return finding(
            name,
            State::Ok,
            "not needed: this is root",
            "mount needs no helper",
        );
    }
    if !crate::sys::fuse::has_fusermount() {
        return finding(
            name,
            State::Missing,
            "not installed (Debian package fuse3)",
            "tarnfs mount needs root; tarnfs run does not",
        );
    }
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if conf.lines().any(|line| line.trim() == "user_allow_other") {
        finding(
            name,
            State::Ok,
            "with user_allow_other",
            "mounts can be shared with other users",
        )
    } else {
        finding(
            name,
            State::Limited,
            "/etc/fuse.conf has no user_allow_other",
            "only this user can look into mounts of this user",
        )
    }
}

fn open_files() -> Finding {
    let limit = getrlimit(Resource::Nofile).maximum;
    let found = limit.map_or_else(|| "no limit".to_owned(), |n| format!("at most {n}"));
    if limit.is_none_or(|n| n >= 65_536) {
        finding("open files", State::Ok, found, "enough for busy actors")
    } else {
        finding(
            "open files",
            State::Limited,
            found,
            "a program with many open files may get EMFILE",
        )
    }
}

/// Whether whoever waits for an answer is woken slowly.
fn idle_cpus() -> Finding {
    let name = "idle CPUs";
    if !idle::halts_through_hypervisor() {
        return finding(
            name,
            State::Ok,
            "no governor for guests of a hypervisor",
            "they are left alone",
        );
    }
    let cpus = format!("{} of a virtual machine, halted through it", idle::cpus());
    match KeepAwake::Auto.idle() {
        Some(_) => finding(
            name,
            State::Ok,
            cpus,
            "kept awake while programs ask for one thing after another (mount --keep-awake)",
        ),
        None if Idle::open().is_ok() => finding(
            name,
            State::Limited,
            cpus,
            "each request takes several times as long; mount --keep-awake=always costs all of them",
        ),
        None => finding(
            name,
            State::Limited,
            cpus,
            "each request takes several times as long; root can write 200000 to \
             /sys/module/haltpoll/parameters/guest_halt_poll_ns",
        ),
    }
}

fn overlayfs() -> Finding {
    let known = fs::read_to_string("/proc/filesystems")
        .unwrap_or_default()
        .contains("\toverlay");
    if known {
        finding(
            "overlayfs",
            State::Ok,
            "in the kernel",
            "uppers can also be mounted by overlayfs",
        )
    } else {
        finding(
            "overlayfs",
            State::Limited,
            "not loaded",
            "tarnfs does without",
        )
    }
}

/// Tries the second engine where private uppers would lie.
fn kernel_engine(store: &Path) -> Finding {
    let name = "kernel engine";
    match try_kernel_engine(existing(store)) {
        Ok(()) => finding(
            name,
            State::Ok,
            "probed: a small tar was mounted, with an upper",
            "--engine kernel and --engine auto mount without a server",
        ),
        Err(why) => finding(
            name,
            State::Limited,
            why,
            "mounts have a FUSE server; --engine auto takes one as well",
        ),
    }
}

fn try_kernel_engine(parent: &Path) -> Result<(), String> {
    // Before anything is made.
    kernel::check().map_err(|error| error.to_string())?;
    let dir = temporary(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    let tried = || -> Result<(), Box<dyn std::error::Error>> {
        let lower = small_image(dir.path())?.lower()?;
        let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
        fs::create_dir(&upper)?;
        let upper = Upper::open(&upper, &work)?;
        let overlay = Overlay::with_upper(lower, upper, overlay::Options::default())?;
        kernel::create(&overlay, &MountOptions::new("probe"))?;
        Ok(())
    };
    tried().map_err(|error| match error.downcast_ref::<MountError>() {
        Some(error) => error.to_string(),
        None => format!("{}: {error}", parent.display()),
    })
}

/// The directory at or above `path` that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|dir| dir.is_dir())
        .unwrap_or(Path::new("/"))
}

fn temporary(parent: &Path) -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(".tarnfs-probe-")
        .tempdir_in(parent)
}

/// What the filesystem of the store can do as an upper.
fn upper(store: &Path) -> Vec<Finding> {
    let name = "upper filesystem";
    let existing = existing(store);
    let shown = existing.display();
    let dir = match temporary(existing) {
        Ok(dir) => dir,
        Err(error) => {
            return vec![finding(
                name,
                State::Missing,
                format!("{shown}: {error}"),
                "private uppers cannot be made there; choose another store with --store DIR",
            )];
        }
    };
    let mut lacks: Vec<&str> = Vec::new();
    let file = dir.path().join("file");
    if fs::write(&file, "data").is_err() {
        lacks.push("writing");
    }
    let attribute =
        |name: &str| rustix::fs::setxattr(&file, name, b"1", XattrFlags::empty()).is_ok();
    let (user, trusted) = (
        attribute("user.tarnfs.probe"),
        attribute("trusted.tarnfs.probe"),
    );
    if !user {
        lacks.push("user.* attributes");
    }
    if !trusted && rustix::process::geteuid().is_root() {
        lacks.push("trusted.* attributes");
    }
    let tmpfile = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    if rustix::fs::open(dir.path(), tmpfile, Mode::from_raw_mode(0o600)).is_err() {
        lacks.push("O_TMPFILE");
    }
    if !has_types(dir.path()) {
        lacks.push("d_type");
    }
    let moved = dir.path().join("moved");
    if rustix::fs::renameat_with(CWD, &file, CWD, &moved, RenameFlags::WHITEOUT).is_err() {
        lacks.push("RENAME_WHITEOUT");
    }
    let source = if moved.exists() { moved } else { file };
    let reflink = try_reflink(&source, &dir.path().join("clone"));
    let state = match lacks.as_slice() {
        [] => State::Ok,
        some if some.contains(&"writing") || !(user || trusted) => State::Missing,
        _ => State::Limited,
    };
    let found = if lacks.is_empty() {
        format!("{shown}: has all that overlayfs asks of one")
    } else {
        format!("{shown}: lacks {}", lacks.join(", "))
    };
    let follows = match state {
        State::Ok => "private uppers lie here",
        State::Limited => "private uppers lie here; what lacks is done in other, slower ways",
        State::Missing => "no uppers here; choose another store with --store DIR",
    };
    let clone = if reflink {
        finding(
            "reflink",
            State::Ok,
            format!("{shown}: files can share blocks"),
            "cheap copies there",
        )
    } else {
        finding(
            "reflink",
            State::Limited,
            format!("{shown}: none"),
            "copy-up copies the data",
        )
    };
    vec![finding(name, state, found, follows), clone]
}

fn has_types(dir: &Path) -> bool {
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::open(dir, how, Mode::empty()) else {
        return false;
    };
    let Ok(entries) = rustix::fs::Dir::read_from(&fd) else {
        return false;
    };
    let mut entries = entries.filter_map(Result::ok);
    entries.all(|entry| entry.file_type() != FileType::Unknown)
}

fn try_reflink(source: &PathBuf, clone: &Path) -> bool {
    let (Ok(from), Ok(to)) = (fs::File::open(source), fs::File::create(clone)) else {
        return false;
    };
    rustix::fs::ioctl_ficlone(&to, &from).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(kernel("4.4", Some((4, 4))).state, State::Missing);
    }

    #[test]
    fn probing_an_upper_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let findings = upper(&dir.path().join("not/yet/there"));
        assert_eq!(findings.len(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
