//! What an ordinary user's server needs to do for its user's files what the kernel has allowed.
//!
//! The kernel checks who may do what, and asks the server to do it. Root can do all of it. An
//! ordinary process cannot copy a file up into a directory of mode 0555, link or mark one of mode
//! 0444, or open the root of an image with mode 0, though all of them are its own. So the server
//! enters a user namespace in which its user and group exist, under their own numbers, and in
//! which it has every capability over their files.
//!
//! Another process stays outside, for what cannot be done from within (`sys::outside`): mounting
//! and unmounting through fusermount3, which is set-user-ID root, and numbers of others. It ends
//! with the server; if the server was killed, it first takes the dead mount off.
//!
//! Where user namespaces are forbidden the server goes on without, as the process that it is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::thread::{CapabilitySet, LinkNameSpaceType};

use super::unmount::detach;
use super::{FS_TYPE, MountError, find_mount, registry, state_dirs};
use crate::sys::outside::{self, Done, Errand};
use crate::sys::{self, namespace};

/// The hidden subcommand that the process outside is started with; see [`helper_main`].
pub const SUBCOMMAND: &str = "__outside";

/// The process outside. When this is dropped it has ended.
#[derive(Debug)]
pub struct Rights {
    helper: Child,
}

/// Whether this process can mount through fusermount3 only.
#[must_use]
pub fn needed() -> bool {
    let may_mount = rustix::thread::capabilities(None)
        .is_ok_and(|caps| caps.effective.contains(CapabilitySet::SYS_ADMIN));
    !may_mount && !rustix::process::geteuid().is_root() && sys::fuse::has_fusermount()
}

impl Rights {
    /// Starts the process outside, and enters the user namespace if there may be one. To be called
    /// once, while this process has one thread.
    ///
    /// # Errors
    /// [`MountError`]: the process outside could not be started.
    pub fn acquire() -> Result<Self, MountError> {
        let failed = MountError::system("starting the helper for fusermount3");
        let started = || -> io::Result<Self> {
            let (ours, theirs) = outside::pair()?;
            let helper = helper(theirs).spawn()?;
            outside::install(ours)?;
            Ok(Self { helper })
        };
        let rights = started().map_err(failed)?;
        match enter() {
            Ok(()) => tracing::debug!("in a user namespace of its own"),
            Err(error) => tracing::warn!(
                "no user namespace ({error}), so files and directories that are closed to their \
                 owner cannot be changed (`tarnfs doctor` says what forbids it)"
            ),
        }
        Ok(rights)
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        if let Some(outside) = outside::get() {
            outside.dismiss();
        }
        if let Err(error) = self.helper.wait() {
            tracing::debug!("waiting for the helper: {error}");
        }
    }
}

/// This program as a helper that talks through `socket`. It has nothing open of the server's: who
/// started that may wait for the end of its output.
fn helper(socket: OwnedFd) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(SUBCOMMAND)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Enters a user namespace in which this user and group exist.
///
/// Made by a child, mapped from here, and entered when all of that went well: a process in a
/// namespace without a map would be nobody, and there is no way back.
fn enter() -> io::Result<()> {
    let (ours, theirs) = outside::pair()?;
    let mut child = namespace::spawn_in_user_namespace(&mut helper(theirs))?;
    let entered = map_and_join(child.id());
    // The child's input ends, and so does the child.
    drop(ours);
    child.wait()?;
    entered
}

fn map_and_join(pid: u32) -> io::Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    // user_namespaces(7): without privilege outside, setgroups(2) must go before gid_map.
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, text)
            .map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))?;
    }
    let namespace = File::open(format!("/proc/{pid}/ns/user"))?;
    let user = Some(LinkNameSpaceType::User);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), user)?;
    Ok(())
}

/// The life of the process outside, whose standard input leads to the server.
#[must_use]
pub fn helper_main() -> ExitCode {
    match help() {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody is there to be told.
        Err(_) => ExitCode::FAILURE,
    }
}

fn help() -> io::Result<()> {
    // What ends the server is not for this process: it ends after the server.
    match rustix::process::setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let _blocked = namespace::Blocked::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
    rustix::thread::set_name(c"tarnfs-outside")?;
    let stdin = rustix::stdio::stdin();
    let mut mounted = None;
    let served = outside::serve(stdin, |errand| match errand {
        Errand::Mount(options, point) => match sys::fuse::run_fusermount(&options, &point) {
            Ok(device) => {
                let connection = find_mount(&point).ok().flatten().map(|mount| mount.minor);
                mounted = connection.map(|connection| (point, connection));
                Done::Mounted(device)
            }
            Err(error) => Done::Failed(error),
        },
        Errand::Unmount(point, lazy) => match detach(&point, lazy) {
            Ok(was) => Done::Unmounted(was),
            Err(MountError::Busy(_) | MountError::Covered { .. }) => {
                Done::Failed(rustix::io::Errno::BUSY.into())
            }
            Err(error) => Done::Failed(io::Error::other(error.to_string())),
        },
    });
    if let Some((point, connection)) = mounted {
        clear(&point, connection);
    }
    served
}

/// Takes a mount off that its server has left behind.
fn clear(point: &Path, connection: u32) {
    let found = find_mount(point).ok().flatten();
    let ours = found.is_some_and(|top| top.minor == connection && top.fs_type == FS_TYPE);
    if !ours {
        return;
    }
    // There is nobody to be told of an error.
    if detach(point, true).is_ok() {
        registry::clear(&state_dirs(), connection).ok();
    }
}
