//! Programs that the benchmark starts: waited for without delay, ended when it is interrupted.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tarnfs::sys::signal::interrupted;

use super::stats::float;

/// How often somebody who waits looks whether he is to stop; the end of a child wakes him at once.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 250_000_000,
};

/// How often the memory of a program is looked at.
const PEEK: Duration = Duration::from_millis(2);

/// Somebody has asked the program to end.
#[derive(Debug)]
pub(super) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted; what was mounted and made is gone again")
    }
}

impl std::error::Error for Interrupted {}

/// An error if the benchmark is to end.
pub(super) fn check_interrupt() -> anyhow::Result<()> {
    if interrupted() {
        return Err(Interrupted.into());
    }
    Ok(())
}

/// Runs a program to its end, which must be a good one. What it says is shown only if it fails.
pub(super) fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = name(command);
    let mut said = tempfile::tempfile().context("a temporary file")?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.try_clone()?);
    let mut child = command.spawn().with_context(|| name.clone())?;
    let status = wait(&mut child)?;
    if !status.success() {
        bail!("{name}: {status}{}", words(&mut said));
    }
    Ok(())
}

/// What a program prints.
pub(super) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits for a child; if the benchmark is interrupted, the child is ended first.
pub(super) fn wait(child: &mut Child) -> anyhow::Result<std::process::ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.context("a process number")?;
    let fd = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&LOOK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) if interrupted() => {
                child.kill()?;
                child.wait()?;
                return Err(Interrupted.into());
            }
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(child.wait()?),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The most memory that a program has had at once, as the kernel has counted it.
pub(super) fn peak_mib(command: &mut Command) -> anyhow::Result<f64> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0_u64;
    let ended = loop {
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        check_interrupt().inspect_err(|_| {
            if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
                tracing::warn!("ending a program: {error}");
            }
        })?;
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(PEEK);
    };
    if !ended.success() {
        bail!("{}: {ended}", name(command));
    }
    if peak == 0 {
        return Err(anyhow::anyhow!("it ended too soon to be looked at")).context("peak memory");
    }
    Ok(float(peak) / 1024.0)
}

/// The last line of what was said, with what leads to it.
fn words(file: &mut File) -> String {
    let mut text = Vec::new();
    let read = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.take(1 << 16).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    match (
        read,
        text.lines().rev().find(|line| !line.trim().is_empty()),
    ) {
        (Ok(_), Some(line)) => format!(": {}", line.trim()),
        _ => String::new(),
    }
}

fn name(command: &Command) -> String {
    let of = |word: &std::ffi::OsStr| word.to_string_lossy().into_owned();
    let program = of(command.get_program());
    let program = program.rsplit('/').next().unwrap_or(&program).to_owned();
    match (program.as_str(), command.get_args().next()) {
        ("exe", Some(first)) => format!("tarnfs {}", of(first)),
        _ => program,
    }
}
