//! A throwaway actor, start to end.
//!
//! Three processes: this one serves the filesystem, unless the kernel does, and waits; its child is the init
//! ([`super::init`]); the init's child is the program. The mount is made in a mount namespace of
//! one thread of this process, inherited by the init, and let go of here as soon as the init has
//! it: then the mount lives exactly as long as the actor, and nothing of it is ever visible on
//! the host. This process *never* opens anything on the mount that it serves.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, pidfd_send_signal, setrlimit,
};
use rustix::thread::UnshareFlags;

use super::ActorError;
use super::image::Program;
use super::init::{self, FORWARDED, Plan};
use super::rootfs::{self, Source, Writes};
use super::scratch::Scratch;
use super::spec::{self, Capabilities, Mount, Net};
use super::{mounts, scratch};
use crate::mount::EngineChoice;
use crate::sys::namespace::{self, Blocked};

/// What to run, in what.
#[derive(Debug)]
pub struct Options {
    /// Where its writes go; `None` is a private upper of the actor's own.
    pub writes: Option<Writes>,
    /// What serves the root filesystem.
    pub engine: EngineChoice,
    /// Keep the private upper when the program has ended.
    pub keep: bool,
    /// Where private uppers live.
    pub store: PathBuf,
    /// The program.
    pub program: Program,
    /// The actor's host name; `None` keeps the host's.
    pub hostname: Option<String>,
    /// Its network.
    pub net: Net,
    /// Bind mounts, after the default mounts; sources are absolute paths of the host.
    pub binds: Vec<Mount>,
    /// Set-user-ID and file capabilities have no effect.
    pub no_new_privs: bool,
}

/// How an actor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The program's exit status; 128 + n when signal n ended it.
    pub status: u8,
    /// Why the program was not started, in which case `status` is 125 (the actor could not be
    /// made), 126 (the program cannot be executed) or 127 (there is none).
    pub failure: Option<String>,
    /// Where the kept private upper is.
    pub kept: Option<PathBuf>,
}

/// Runs a program as a throwaway actor in the root filesystem `source`, with this process' standard streams, and waits for it.
///
/// While it runs, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2 and SIGWINCH of this process
/// go to the program; they must not be unblocked in a thread that was started before.
///
/// # Errors
/// What kept the actor from being made.
pub fn run(source: Source, options: &Options) -> Result<Ended, ActorError> {
    let nofile = getrlimit(Resource::Nofile);
    // Served files are open here; the program gets the limit that was.
    let raised = Rlimit {
        current: nofile.maximum,
        maximum: nofile.maximum,
    };
    setrlimit(Resource::Nofile, raised)
        .map_err(ActorError::system("cannot raise the limit of open files"))?;
    crate::sys::signal::survive_file_size_limit()
        .map_err(ActorError::system("cannot catch SIGXFSZ"))?;
    let signals =
        Blocked::new(&FORWARDED).map_err(ActorError::system("cannot wait for signals"))?;
    let keep = options.keep && options.writes.is_none();
    let scratch = Scratch::new(&options.store, keep)?;
    let foreground = Foreground::now();
    // A thread of its own: its mount namespace is not this process', and the init's death signal
    // comes with the death of this thread.
    let ended = std::thread::scope(|scope| {
        let worker = std::thread::Builder::new()
            .name("actor".to_owned())
            .spawn_scoped(scope, || {
                live(source, options, &scratch, &signals, nofile.current)
            })
            .map_err(ActorError::system("cannot start a thread"))?;
        worker
            .join()
            .unwrap_or_else(|_| Err(ActorError::Refused("the actor's thread panicked".into())))
    });
    foreground.restore();
    let ended = match ended {
        Ok(ended) => ended,
        // Nothing ran, so there is nothing to keep.
        Err(error) => {
            scratch.discard();
            return Err(error);
        }
    };
    let kept = keep.then(|| scratch.upper());
    scratch.close()?;
    Ok(Ended { kept, ..ended })
}

/// The life of the actor, in a thread that is given up to its namespaces.
fn live(
    source: Source,
    options: &Options,
    scratch: &Scratch,
    signals: &Blocked,
    nofile: Option<u64>,
) -> Result<Ended, ActorError> {
    namespace::unshare(UnshareFlags::NEWNS | UnshareFlags::FS).map_err(|error| {
        ActorError::System {
            what: "cannot make a mount namespace",
            source: error,
        }
    })?;
    // What the host mounts later may show up; nothing goes back to it.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(ActorError::system("cannot keep mounts private"))?;
    // The server's threads share this thread's umask, which must not mix with its clients'.
    rustix::process::umask(rustix::fs::Mode::empty());
    let root = scratch.rootfs();
    let writes = options.writes.clone().unwrap_or_else(|| Writes::Upper {
        upper: scratch.upper(),
        work: scratch.work(),
        volatile: !options.keep,
    });
    let served = rootfs::serve(source, &writes, options.engine, &root)?;
    let ended = start(options, scratch, &writes, nofile).and_then(|(mut child, report)| {
        let ended = attend(&mut child, report, signals, &root);
        if ended.is_err() {
            // Whatever failed here, the actor must not go on unattended.
            child
                .kill()
                .map_err(ActorError::system("cannot end the actor"))?;
            child
                .wait()
                .map_err(ActorError::system("cannot wait for the actor"))?;
        }
        ended
    });
    detach(&root)?;
    served.finish()?;
    ended
}

/// Lets go of this thread's sight of the mount.
fn detach(root: &PathBuf) -> Result<(), ActorError> {
    loop {
        match rustix::mount::unmount(root, UnmountFlags::DETACH) {
            Ok(()) => {}
            // Not a mount point (any more).
            Err(rustix::io::Errno::INVAL) => return Ok(()),
            Err(error) => return Err(ActorError::path("cannot detach", root)(error.into())),
        }
    }
}

/// Starts the init and gives it its plan.
fn start(
    options: &Options,
    scratch: &Scratch,
    writes: &Writes,
    nofile: Option<u64>,
) -> Result<(Child, OwnedFd), ActorError> {
    let mut plan = plan(options, scratch, writes)?;
    plan.nofile = nofile;
    let text = serde_json::to_vec(&plan)
        .map_err(|e| ActorError::Refused(format!("cannot pass the instructions on: {e}")))?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(ActorError::system("cannot make a pipe"));
    let (plan_out, plan_in) = pipe()?;
    let (report_out, report_in) = pipe()?;
    let program = scratch.dir().join("init");
    let failed = || ActorError::path("cannot place the init at", &program);
    write_new(&program, b"").map_err(failed())?;
    mounts::read_only_executable(&program).map_err(failed())?;
    // From here on this thread starts no further thread: the kernel refuses one (EINVAL), since
    // its children are to be in another pid namespace.
    namespace::unshare(UnshareFlags::NEWPID)
        .map_err(ActorError::system("cannot make a pid namespace"))?;
    let mut command = Command::new(&program);
    command
        .arg(init::SUBCOMMAND)
        .arg(plan_out.as_raw_fd().to_string())
        .arg(report_in.as_raw_fd().to_string())
        .env_clear();
    let child = namespace::spawn_keeping(&mut command, &[plan_out.as_fd(), report_in.as_fd()])
        .map_err(ActorError::system("cannot start the init"))?;
    drop((plan_out, report_in));
    // An init that died at once has said why, or its status does.
    match std::fs::File::from(plan_in).write_all(&text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(ActorError::System {
            what: "cannot instruct the init",
            source: error,
        }),
        _ => Ok((child, report_out)),
    }
}

fn plan(options: &Options, scratch: &Scratch, writes: &Writes) -> Result<Plan, ActorError> {
    let mut mounts = spec::default_mounts();
    mounts.extend(options.binds.iter().cloned());
    Ok(Plan {
        rootfs: scratch.rootfs(),
        read_only: *writes == Writes::ReadOnly,
        program: options.program.clone(),
        hostname: options.hostname.clone(),
        net: options.net,
        mounts,
        files: network_files(&scratch.files(), options.net, options.hostname.as_deref())?,
        masked: spec::masked_paths(),
        read_only_paths: spec::readonly_paths(),
        capabilities: Capabilities::container_default(),
        no_new_privs: options.no_new_privs,
        nofile: None,
    })
}

/// Writes a file that its owner alone may change. This process may have no umask.
fn write_new(path: &std::path::Path, content: &[u8]) -> std::io::Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)?
        .write_all(content)
}

/// Copies into `dir` what a program needs to find its way in the host's network; pairs of (copy,
/// place in the actor). Copies, so that an actor can write them and the host's stay as they are.
///
/// # Errors
/// The system's.
pub(super) fn network_files(
    dir: &std::path::Path,
    net: Net,
    hostname: Option<&str>,
) -> Result<Vec<(PathBuf, PathBuf)>, ActorError> {
    if net == Net::None {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for (name, place) in [("resolv.conf", "/etc/resolv.conf"), ("hosts", "/etc/hosts")] {
        let mut content = match std::fs::read(place) {
            Ok(content) => content,
            // A host without one: the image's own stays.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(ActorError::path("cannot read", place)(error)),
        };
        if let (Some(hostname), "hosts") = (hostname, name) {
            content.extend_from_slice(format!("\n127.0.1.1 {hostname}\n").as_bytes());
        }
        let copy = dir.join(name);
        write_new(&copy, &content).map_err(ActorError::path("cannot write", &copy))?;
        files.push((copy, place.into()));
    }
    Ok(files)
}

/// Waits for the init, passing signals on.
fn attend(
    child: &mut Child,
    report: OwnedFd,
    signals: &Blocked,
    root: &PathBuf,
) -> Result<Ended, ActorError> {
    let waiting = || ActorError::system::<std::io::Error>("cannot wait for the actor");
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or_else(|| ActorError::Refused("the init has no process number".into()))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| waiting()(e.into()))?;
    let mut report = Some(std::fs::File::from(report));
    let mut said = Vec::new();
    loop {
        let mut polled = vec![
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        if let Some(report) = &report {
            polled.push(PollFd::new(report, PollFlags::IN));
        }
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(waiting()(error.into())),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(polled);
        if ready.get(2) == Some(&true)
            && let Some(mut pipe) = report.take()
        {
            // The init writes once, and closes.
            pipe.read_to_end(&mut said).map_err(waiting())?;
            // It has its own copy of the mount, or has failed.
            detach(root)?;
        }
        while let Some(caught) = signals.next().map_err(waiting())? {
            let Some(signal) = Signal::from_named_raw(caught.signal) else {
                continue;
            };
            if init::passes(caught) {
                match pidfd_send_signal(&pidfd, signal) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => return Err(waiting()(error.into())),
                }
            }
        }
        if ready.first() == Some(&true) {
            break;
        }
    }
    let status = child.wait().map_err(waiting())?;
    if let Some(mut pipe) = report.take() {
        pipe.read_to_end(&mut said).map_err(waiting())?;
    }
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    let status = code
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(init::STATUS_FAILED);
    let failure = match said.as_slice() {
        [init::READY] => None,
        [] => Some("the actor's init died before it could start the program".to_owned()),
        text => Some(String::from_utf8_lossy(text).into_owned()),
    };
    Ok(Ended {
        status,
        failure,
        kept: None,
    })
}

/// Removes what killed actors left in `store`.
///
/// # Errors
/// The system's.
pub fn sweep(store: &std::path::Path) -> Result<(), ActorError> {
    scratch::sweep(store)
}

/// The terminal's foreground process group, as it was.
struct Foreground(Option<rustix::process::Pid>);

impl Foreground {
    fn now() -> Self {
        let stdin = rustix::stdio::stdin();
        Self(rustix::termios::tcgetpgrp(stdin).ok())
    }

    /// Gives the terminal back: a shell in the actor makes its own group the foreground one, and
    /// cannot name the old one, which is outside of its pid namespace.
    fn restore(&self) {
        let stdin = rustix::stdio::stdin();
        let Some(before) = self.0 else { return };
        if rustix::termios::tcgetpgrp(stdin).is_ok_and(|now| now == before) {
            return;
        }
        // Blocked, SIGTTOU does not stop the background process that sets it (tcsetpgrp(3)).
        let quiet = Blocked::new(&[libc::SIGTTOU]);
        if quiet.is_ok() {
            // A terminal that is gone by now needs nothing.
            rustix::termios::tcsetpgrp(stdin, before).ok();
        }
    }
}
