//! A process apart: everything is measured, mounted and served in a pid namespace and a mount
//! namespace of its own, whose init is this program once more. When that ends, however it ends, the
//! kernel ends whoever is left in there, and with the last of them all mounts are gone. It ends,
//! at the latest, when the process that was started by the user does, be it by SIGKILL.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::UnshareFlags;
use tarnfs::sys::mount::{MountAttrs, attach, detached_tmpfs, mount_classic};
use tarnfs::sys::namespace::{inherited_fd, spawn_keeping, unshare};
use tarnfs::sys::signal::{catch_interrupts, interrupted};

use super::contenders::SELF;

/// In the environment of the inner process: the number of the pipe's end that tells it that the
/// outer one is gone.
const INSIDE: &str = "TARNFS_BENCH_INSIDE";

/// Where servers of root write down what they serve.
const STATE: &str = "/run/tarnfs";

/// Which of the two this process is.
#[derive(Debug)]
pub(super) enum Side {
    /// The one that the user has started; the other one has ended like this.
    Outside(ExitCode),
    /// The one that is to do the work.
    Inside,
}

/// Starts this program once more, apart, and waits for its end; or is that one, and sets itself up.
pub(super) fn enter() -> anyhow::Result<Side> {
    catch_interrupts().context("catching signals")?;
    match std::env::var(INSIDE) {
        Ok(number) => inside(number.parse().context(INSIDE)?).map(|()| Side::Inside),
        Err(_) => outside().map(Side::Outside),
    }
}

fn outside() -> anyhow::Result<ExitCode> {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).context("a pipe")?;
    // From here on this thread starts no further thread: its children are to be elsewhere.
    unshare(UnshareFlags::NEWPID).context("a pid namespace of its own")?;
    let mut command = Command::new(SELF);
    command.args(std::env::args_os().skip(1));
    command.env(INSIDE, theirs.as_raw_fd().to_string());
    let mut child = spawn_keeping(&mut command, &[theirs.as_fd()]).context("tarnfs")?;
    drop(theirs);
    let status = wait(&mut child)?;
    drop(ours);
    Ok(ExitCode::from(code(status)))
}

/// Waits for the inner process, and passes on, once, that it is to end.
fn wait(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let fd = pidfd_open(pid.context("a process number")?, PidfdFlags::empty())?;
    let mut told = false;
    loop {
        let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
        let look = Timespec {
            tv_sec: 0,
            tv_nsec: 250_000_000,
        };
        match poll(&mut fds, Some(&look)) {
            Ok(0) | Err(Errno::INTR) if interrupted() && !told => {
                told = true;
                // The one of the signals that it is sure to catch.
                match pidfd_send_signal(&fd, Signal::TERM) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(child.wait()?),
            Err(error) => return Err(error.into()),
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

fn inside(pipe: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let pipe = inherited_fd(pipe).context(INSIDE)?;
    // Had the outer one ended before the line above, no signal would come.
    let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default()))?;
    let [end] = fds;
    if !end.revents().is_empty() {
        bail!("whoever has started this is gone");
    }
    if std::process::id() != 1 {
        bail!("{INSIDE} is for this program's own use");
    }
    unshare(UnshareFlags::NEWNS).context("a mount namespace of its own")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).context("making mounts private")?;
    mount_classic(
        "proc".as_ref(),
        Path::new("/proc"),
        "proc",
        MountAttrs::default(),
        "".as_ref(),
    )
    .context("mounting /proc")?;
    // The servers in here write down process numbers that mean nothing outside.
    std::fs::create_dir_all(STATE).with_context(|| format!("making {STATE}"))?;
    let state = detached_tmpfs(Some(64 << 20), None).context("a tmpfs for state files")?;
    attach(state.as_fd(), Path::new(STATE)).with_context(|| format!("mounting on {STATE}"))
}

/// Takes leave of the processes that have ended and whose parent, an init, is this one. Not while a
/// program runs that somebody waits for.
pub(super) fn reap() {
    use rustix::process::{WaitOptions, wait};
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}
