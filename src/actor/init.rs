//! Process 1 of an actor: makes the actor's world, starts the program, and stays to reap and to
//! pass signals on. When it ends, the kernel kills whatever is left in its pid namespace.
//!
//! It is this executable, started by [`super::run`] with two pipes: a [`Plan`] comes in as JSON,
//! and a report goes out. It *never* outlives the process that started it
//! (PR_SET_PDEATHSIG), *never* leaves a descriptor of the host's open in the program, and is not
//! dumpable, so nothing in the actor can look into it.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::image::{Program, SHELLS};
use super::spec::{Capabilities, Mount, Net};
use super::{ActorError, caps, in_one_line, inroot, mounts, users};
use crate::sys::namespace::{self, Blocked, Credentials, Step};

/// The hidden subcommand that starts this executable as an init; see [`main`].
pub const SUBCOMMAND: &str = "__init";

/// Signals that reach the program of an actor through the processes above it.
pub(super) const FORWARDED: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// Exit status when tarnfs itself failed, as container engines have it.
pub const STATUS_FAILED: u8 = 125;
/// Exit status when the program exists and cannot be executed.
pub const STATUS_NOT_EXECUTABLE: u8 = 126;
/// Exit status when there is no such program.
pub const STATUS_NOT_FOUND: u8 = 127;

/// All that an init is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The mount that becomes `/`.
    pub(super) rootfs: PathBuf,
    /// Nothing may be created on it.
    pub(super) read_only: bool,
    pub(super) program: Program,
    pub(super) hostname: Option<String>,
    pub(super) net: Net,
    pub(super) mounts: Vec<Mount>,
    /// (on the host, in the actor): see [`mounts::bind_file`].
    pub(super) files: Vec<(PathBuf, PathBuf)>,
    pub(super) masked: Vec<String>,
    pub(super) read_only_paths: Vec<String>,
    pub(super) capabilities: Capabilities,
    pub(super) no_new_privs: bool,
    /// The soft limit of open files; `None` is no limit.
    pub(super) nofile: Option<u64>,
}

/// What an init says: `READY` once the program runs, or else a text, and its exit status.
pub(super) const READY: u8 = 0;

/// A failure before the program ran.
#[derive(Debug)]
struct Failed {
    status: u8,
    text: String,
}

impl From<ActorError> for Failed {
    fn from(error: ActorError) -> Self {
        Self {
            status: STATUS_FAILED,
            text: in_one_line(&error),
        }
    }
}

/// Whether a signal is to be passed on. What a terminal sends (^C) its whole foreground process
/// group gets, the program included: passed on, it would come twice.
pub(super) fn passes(caught: namespace::Caught) -> bool {
    FORWARDED.contains(&caught.signal)
        && (!caught.by_kernel || matches!(caught.signal, libc::SIGTERM | libc::SIGHUP))
}

/// The init. `args` are what follows [`SUBCOMMAND`]: the numbers of the two pipes.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    let numbers: Vec<i32> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let &[plan, report] = numbers.as_slice() else {
        return ExitCode::from(STATUS_FAILED);
    };
    match begin(plan, report) {
        Ok(status) => ExitCode::from(status),
        // Nobody to tell: whoever started this gave no pipes.
        Err(_) => ExitCode::from(STATUS_FAILED),
    }
}

fn begin(plan: i32, report: i32) -> io::Result<u8> {
    // Before the plan is read: if the parent is gone already, the plan ends early.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let mut text = Vec::new();
    std::fs::File::from(namespace::inherited_fd(plan)?).read_to_end(&mut text)?;
    let mut report = std::fs::File::from(namespace::inherited_fd(report)?);
    namespace::close_on_exec_from(3)?;
    let started = Blocked::new(&[&FORWARDED[..], &[libc::SIGCHLD]].concat())
        .map_err(|e| Failed {
            status: STATUS_FAILED,
            text: e.to_string(),
        })
        .and_then(|signals| Ok((start(&text)?, signals)));
    let (program, signals) = match started {
        Ok(started) => started,
        Err(failed) => {
            report.write_all(failed.text.as_bytes())?;
            return Ok(failed.status);
        }
    };
    report.write_all(&[READY])?;
    drop(report);
    watch(program, &signals)
}

/// Makes the world of the plan and starts its program in it.
fn start(plan: &[u8]) -> Result<Pid, Failed> {
    let plan: Plan = serde_json::from_slice(plan)
        .map_err(|e| ActorError::Refused(format!("damaged instructions: {e}")))?;
    let root = world(&plan)?;
    spawn(&plan, root.as_fd())
}

/// Namespaces, mounts, host name; ends with the new root as `/`.
fn world(plan: &Plan) -> Result<std::os::fd::OwnedFd, ActorError> {
    let mut new = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    if plan.net == Net::None {
        new |= UnshareFlags::NEWNET;
    }
    namespace::unshare(new).map_err(ActorError::system("cannot make namespaces"))?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(ActorError::system("cannot make mounts private"))?;
    if plan.net == Net::None {
        namespace::loopback_up().map_err(ActorError::system("cannot start the loopback device"))?;
    }
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(ActorError::system("cannot set the host name"))?;
    }
    // The modes below are meant as they stand.
    rustix::process::umask(rustix::fs::Mode::empty());
    let root =
        mounts::open_root(&plan.rootfs).map_err(ActorError::path("cannot open", &plan.rootfs))?;
    let at = root.as_fd();
    for mount in &plan.mounts {
        mounts::mount(at, mount).map_err(ActorError::path("cannot mount", &mount.destination))?;
        if mount.destination == Path::new("/dev") && mount.kind == "tmpfs" {
            mounts::devices(at, mounts::terminal().as_deref())
                .map_err(ActorError::path("cannot fill", &mount.destination))?;
        }
    }
    for (source, destination) in &plan.files {
        mounts::bind_file(at, source, destination, !plan.read_only)
            .map_err(ActorError::path("cannot provide", destination))?;
    }
    for path in &plan.masked {
        mounts::mask(at, Path::new(path)).map_err(ActorError::path("cannot mask", path))?;
    }
    for path in &plan.read_only_paths {
        mounts::make_read_only(at, Path::new(path))
            .map_err(ActorError::path("cannot make read only", path))?;
    }
    mounts::pivot(&root).map_err(ActorError::system("cannot change the root"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(root)
}

/// Starts the program. `root` is `/`.
fn spawn(plan: &Plan, root: BorrowedFd<'_>) -> Result<Pid, Failed> {
    let mut nofile = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    nofile.current = plan.nofile;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, nofile)
        .map_err(ActorError::system("cannot set the limit of open files"))?;
    let program = &plan.program;
    let who = users::resolve(root, &program.user)?;
    let mut args: Vec<&OsStr> = program
        .args
        .iter()
        .map(|arg| OsStr::from_bytes(arg))
        .collect();
    if args.is_empty() {
        let shell = SHELLS
            .iter()
            .find(|shell| inroot::is_executable(root, Path::new(shell)));
        args.push(OsStr::new(shell.ok_or_else(|| Failed {
            status: STATUS_NOT_FOUND,
            text: "the image has neither /bin/bash nor /bin/sh; give a command after --".into(),
        })?));
    }
    let cwd = Path::new(OsStr::from_bytes(&program.cwd));
    if !plan.read_only {
        // As runtimes do; what stands in the way is told by chdir(2) below.
        inroot::ensure(root, cwd, inroot::Make::Dir).ok();
    }
    let bits = |names: &[String]| {
        caps::bits(names)
            .map_err(|name| ActorError::Refused(format!("unknown capability {name:?}")))
    };
    let capabilities = &plan.capabilities;
    let is_root = who.user.uid == 0;
    let credentials = Credentials {
        uid: who.user.uid,
        gid: who.user.gid,
        groups: may_set_groups()?.then_some(who.user.additional_gids),
        bounding: bits(&capabilities.bounding)?,
        // capabilities(7): exec gives them to root again, and takes them from any other user
        // but for the ambient ones.
        effective: if is_root {
            bits(&capabilities.effective)?
        } else {
            bits(&capabilities.ambient)?
        },
        permitted: if is_root {
            bits(&capabilities.permitted)?
        } else {
            bits(&capabilities.ambient)?
        },
        inheritable: bits(&capabilities.inheritable)?,
        ambient: bits(&capabilities.ambient)?,
        no_new_privs: plan.no_new_privs,
        cwd: CString::new(program.cwd.clone())
            .map_err(|e| ActorError::Refused(format!("working directory: {e}")))?,
    };
    let (name, rest) = args
        .split_first()
        .ok_or_else(|| ActorError::Refused("there is no command".into()))?;
    let mut command = Command::new(name);
    command
        .args(rest)
        .env_clear()
        .envs(program.env.iter().filter_map(|entry| {
            let at = entry.iter().position(|&c| c == b'=')?;
            let (name, value) = entry.split_at_checked(at)?;
            Some((OsStr::from_bytes(name), OsStr::from_bytes(value.get(1..)?)))
        }));
    if program.add_home {
        command.env("HOME", OsString::from_vec(who.home));
    }
    let name = name.to_string_lossy();
    match namespace::spawn_as(&mut command, credentials) {
        Ok(child) => i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| ActorError::Refused("the program has no process number".into()).into()),
        Err((Step::Exec, error)) => {
            let status = match error.kind() {
                io::ErrorKind::NotFound => STATUS_NOT_FOUND,
                _ => STATUS_NOT_EXECUTABLE,
            };
            Err(Failed {
                status,
                text: format!("cannot execute {name:?} in the image: {error}"),
            })
        }
        Err((step, error)) => Err(Failed {
            status: STATUS_FAILED,
            text: match step {
                Step::User => format!(
                    "cannot become user {}:{}: {error}{}",
                    who.user.uid,
                    who.user.gid,
                    if error.raw_os_error() == Some(libc::EINVAL) {
                        " (the user namespace has no such number; see /etc/subuid)"
                    } else {
                        ""
                    }
                ),
                Step::Capabilities => format!("cannot limit the capabilities: {error}"),
                Step::WorkingDirectory => {
                    format!(
                        "cannot enter the working directory {}: {error}",
                        cwd.display()
                    )
                }
                Step::Fork | Step::Exec => format!("cannot start {name:?}: {error}"),
            },
        }),
    }
}

/// Whether this user namespace permits setgroups(2) (user_namespaces(7)).
fn may_set_groups() -> Result<bool, ActorError> {
    match std::fs::read_to_string("/proc/self/setgroups") {
        Ok(text) => Ok(text.trim() != "deny"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(ActorError::path("cannot read", "/proc/self/setgroups")(
            error,
        )),
    }
}

/// Reaps and forwards until `program` has ended; its status.
fn watch(program: Pid, signals: &Blocked) -> io::Result<u8> {
    loop {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == program => return Ok(status_byte(status)),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut waiting = [PollFd::new(signals, PollFlags::IN)];
        match poll(&mut waiting, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(caught) = signals.next()? {
            if !passes(caught) {
                continue;
            }
            let Some(signal) = Signal::from_named_raw(caught.signal) else {
                continue;
            };
            match rustix::process::kill_process(program, signal) {
                // Ended meanwhile: the next round reaps it.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A shell's exit status for a wait status: 128 + n for signal n.
pub(super) fn status_byte(status: rustix::process::WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => i32::from(STATUS_FAILED),
    };
    u8::try_from(code).unwrap_or(STATUS_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminals_interrupt_is_not_doubled() {
        let caught = |signal, by_kernel| namespace::Caught { signal, by_kernel };
        assert!(passes(caught(libc::SIGINT, false)));
        assert!(!passes(caught(libc::SIGINT, true)));
        assert!(!passes(caught(libc::SIGWINCH, true)));
        assert!(passes(caught(libc::SIGHUP, true)));
        assert!(!passes(caught(libc::SIGCHLD, true)));
    }

    #[test]
    fn started_without_pipes_it_fails() {
        assert_eq!(main(&[]), ExitCode::from(STATUS_FAILED));
        assert_eq!(
            main(&["x".into(), "y".into()]),
            ExitCode::from(STATUS_FAILED)
        );
    }
}
