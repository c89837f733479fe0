//! /dev/fuse, the mounting of FUSE filesystems, fusermount3, and fusectl.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::mount::{MountAttrs, Param, create_detached, mount_classic};
use super::outside;

/// The helper that mounts for ordinary users.
const FUSERMOUNT: &str = "fusermount3";

/// Parameters of a FUSE filesystem to create.
#[derive(Debug, Clone)]
pub struct FuseParams {
    /// The source that /proc/mounts shows.
    pub source: OsString,
    /// The `tarnfs` of `fuse.tarnfs`.
    pub subtype: String,
    /// No write ever: the superblock is read-only.
    pub read_only: bool,
    /// Users other than the mounting one may use it.
    pub allow_other: bool,
    /// Bytes of the largest READ; the kernel's limit if not given.
    pub max_read: Option<u32>,
    /// `sync`, `dirsync`, `lazytime`: flags of the superblock.
    pub super_flags: Vec<&'static str>,
    /// Attributes of the mount.
    pub attrs: MountAttrs,
}

/// Opens the FUSE device.
///
/// # Errors
/// The system's: ENOENT or ENODEV when the kernel module is not there, EACCES or EPERM when the
/// device is closed to this process.
pub fn open_device() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        "/dev/fuse",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Creates a FUSE filesystem that `device` serves, attached nowhere; needs CAP_SYS_ADMIN over the
/// mount namespace. `serve` is called when the kernel has the connection.
///
/// # Errors
/// The system's; ENOSYS when the kernel lacks fsopen(2).
pub fn create(
    device: &OwnedFd,
    params: &FuseParams,
    serve: impl FnOnce() -> io::Result<()>,
) -> io::Result<OwnedFd> {
    create_detached("fuse", &context_params(device, params), params.attrs, serve)
}

fn context_params(device: &OwnedFd, params: &FuseParams) -> Vec<Param<'static>> {
    let string = |key, value: String| Param::String(key, value.into());
    let mut list = vec![
        Param::String("source", params.source.clone()),
        string("subtype", params.subtype.clone()),
        string("fd", device.as_raw_fd().to_string()),
        string("rootmode", format!("{:o}", libc::S_IFDIR)),
        string("user_id", rustix::process::geteuid().as_raw().to_string()),
        string("group_id", rustix::process::getegid().as_raw().to_string()),
        Param::Flag("default_permissions"),
    ];
    if params.allow_other {
        list.push(Param::Flag("allow_other"));
    }
    if let Some(max_read) = params.max_read {
        list.push(string("max_read", max_read.to_string()));
    }
    if params.read_only {
        list.push(Param::Flag("ro"));
    }
    list.extend(params.super_flags.iter().map(|flag| Param::Flag(flag)));
    list
}

/// As [`create`], but through mount(2) and attached to `target` at once, for kernels and sandboxes
/// without fsopen(2). Nobody answers before this returns, and nothing asks.
///
/// # Errors
/// The system's.
pub fn mount_at(device: &OwnedFd, params: &FuseParams, target: &Path) -> io::Result<()> {
    let mut data = OsString::new();
    let mut attrs = params.attrs;
    for param in context_params(device, params) {
        let (key, value) = match param {
            Param::Flag("ro") => {
                attrs.set(MountAttrs::RDONLY);
                continue;
            }
            Param::Flag(key) => (key, None),
            // Both stand elsewhere in mount(2)'s arguments.
            Param::String("source" | "subtype", _) => continue,
            Param::String(key, value) => (key, Some(value)),
            // None of ours: the device is a number.
            Param::Fd(..) => continue,
        };
        if !data.is_empty() {
            data.push(",");
        }
        data.push(key);
        if let Some(value) = value {
            data.push("=");
            data.push(value);
        }
    }
    let fs_type = format!("fuse.{}", params.subtype);
    mount_classic(&params.source, target, &fs_type, attrs, &data)
}

/// Mounts as an ordinary user through fusermount3, and gives the FUSE device that serves it.
///
/// # Errors
/// `NotFound` when there is no fusermount3, else what it said.
pub fn fusermount(params: &FuseParams, target: &Path) -> io::Result<OwnedFd> {
    let options = fusermount_options(params);
    match outside::get() {
        Some(outside) => outside.mount(&options, target),
        None => run_fusermount(&options, target),
    }
}

/// As [`fusermount`], by this very process.
///
/// # Errors
/// As [`fusermount`].
pub fn run_fusermount(options: &OsStr, target: &Path) -> io::Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // The helper's end is its standard input: no other child of this process can inherit it.
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(target)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let device = receive_fd(&ours);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(helper_error(&output.stderr, output.status));
    }
    device
}

/// What fusermount3 takes with `-o`: commas and backslashes of a value escaped.
fn fusermount_options(params: &FuseParams) -> OsString {
    let mut options = Vec::new();
    let rdonly = params.read_only || params.attrs.has(MountAttrs::RDONLY);
    options.extend_from_slice(if rdonly { b"ro" } else { b"rw" });
    let attrs = [
        (MountAttrs::NOSUID, ",nosuid"),
        (MountAttrs::NODEV, ",nodev"),
        (MountAttrs::NOEXEC, ",noexec"),
        (MountAttrs::NOATIME, ",noatime"),
    ];
    for (attr, word) in attrs {
        if params.attrs.has(attr) {
            options.extend_from_slice(word.as_bytes());
        }
    }
    for flag in &params.super_flags {
        options.push(b',');
        options.extend_from_slice(flag.as_bytes());
    }
    options.extend_from_slice(b",default_permissions");
    if params.allow_other {
        options.extend_from_slice(b",allow_other");
    }
    if let Some(max_read) = params.max_read {
        options.extend_from_slice(format!(",max_read={max_read}").as_bytes());
    }
    options.extend_from_slice(b",subtype=");
    options.extend_from_slice(params.subtype.as_bytes());
    options.extend_from_slice(b",fsname=");
    for &byte in params.source.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(byte);
    }
    OsString::from_vec(options)
}

/// Receives one descriptor (SCM_RIGHTS). None comes when the helper failed and closed its end.
fn receive_fd(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0_u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::other(format!(
        "{FUSERMOUNT} gave no FUSE device"
    )))
}

/// `fusermount3: some words` as an error.
fn helper_error(stderr: &[u8], status: std::process::ExitStatus) -> io::Error {
    let words = String::from_utf8_lossy(stderr);
    let words = words
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>();
    if words.is_empty() {
        io::Error::other(format!("{FUSERMOUNT} failed: {status}"))
    } else {
        io::Error::other(words.join("; "))
    }
}

/// Unmounts as an ordinary user through fusermount3.
///
/// # Errors
/// `NotFound` when there is no fusermount3, else what it said.
pub fn fusermount_unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command
        .arg("--")
        .arg(target)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(helper_error(&output.stderr, output.status))
    }
}

/// Aborts a connection through fusectl: every request on it, now and later, fails.
///
/// # Errors
/// `NotFound` when the connection is gone or another user's, or where fusectl cannot be had.
pub fn abort_connection(minor: u32) -> io::Result<()> {
    let dir = control(minor)?;
    let how = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&dir, "abort", how, Mode::empty())?;
    rustix::io::write(&file, b"1")?;
    Ok(())
}

/// The directory of a connection in fusectl; also where that is not mounted, which root can do for
/// himself.
fn control(minor: u32) -> io::Result<OwnedFd> {
    let how = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let name = minor.to_string();
    let mounted = Path::new("/sys/fs/fuse/connections").join(&name);
    if let Ok(dir) = rustix::fs::open(mounted, how, Mode::empty()) {
        return Ok(dir);
    }
    let control = create_detached("fusectl", &[], MountAttrs::default(), || Ok(()))
        .map_err(|_| io::ErrorKind::NotFound)?;
    Ok(rustix::fs::openat(&control, name, how, Mode::empty())?)
}

/// How many requests of a connection have not been answered yet, those that the server has not read
/// included (fusectl, `waiting`).
#[derive(Debug)]
pub struct Waiting {
    /// The connection's directory.
    dir: OwnedFd,
}

impl Waiting {
    /// Of the connection of this number.
    ///
    /// # Errors
    /// `NotFound` when the connection is gone or another user's, or where fusectl cannot be had.
    pub fn of(minor: u32) -> io::Result<Self> {
        control(minor).map(|dir| Self { dir })
    }

    /// The number now.
    ///
    /// # Errors
    /// The system's.
    pub fn now(&self) -> io::Result<u64> {
        // It can be read once (`fs/fuse/control.c:fuse_conn_waiting_read()`).
        let how = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, "waiting", how, Mode::empty())?;
        let text = io::read_to_string(std::fs::File::from(file))?;
        text.trim().parse().map_err(io::Error::other)
    }
}

/// Raises the read-ahead of a FUSE mount, which the protocol can only lower.
///
/// # Errors
/// The system's; an ordinary user may not.
pub fn set_read_ahead(minor: u32, kib: u32) -> io::Result<()> {
    super::bdi::set_read_ahead(OsStr::new(&format!("0:{minor}")), kib)
}

/// Whether the program that mounts for ordinary users is there.
#[must_use]
pub fn has_fusermount() -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|dir| dir.join(OsStr::new(FUSERMOUNT)).is_file())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> FuseParams {
        FuseParams {
            source: "/tmp/a,b\\c.tar".into(),
            subtype: "tarnfs".into(),
            read_only: false,
            allow_other: false,
            max_read: None,
            super_flags: Vec::new(),
            attrs: MountAttrs::default(),
        }
    }

    #[test]
    fn options_for_the_helper_are_escaped() {
        assert_eq!(
            fusermount_options(&params()),
            "rw,default_permissions,subtype=tarnfs,fsname=/tmp/a\\,b\\\\c.tar"
        );
        let mut strict = FuseParams {
            read_only: true,
            allow_other: true,
            ..params()
        };
        strict.attrs.set(MountAttrs::NOEXEC);
        strict.max_read = Some(4096);
        strict.source = "x".into();
        assert_eq!(
            fusermount_options(&strict),
            "ro,noexec,default_permissions,allow_other,max_read=4096,subtype=tarnfs,fsname=x"
        );
    }

    #[test]
    fn a_descriptor_comes_through_a_socket() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty()).unwrap();
        let fds = [null.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(
            &b,
            &[io::IoSlice::new(b"x")],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();
        let got = receive_fd(&a).unwrap();
        let (want, have) = (
            rustix::fs::fstat(&null).unwrap(),
            rustix::fs::fstat(&got).unwrap(),
        );
        assert_eq!(want.st_rdev, have.st_rdev);
    }

    #[test]
    fn a_helper_that_dies_is_an_error() {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        drop(b);
        assert!(receive_fd(&a).is_err());
    }
}
