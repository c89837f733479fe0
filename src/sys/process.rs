//! Going on in another process.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Forked {
    /// The one that was there before.
    Parent(Running),
    /// The new one. Its standard input is empty, its standard output goes to the parent, and
    /// nothing is open in it but the standard descriptors.
    Child,
}

/// What the parent has of the child.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub child: Child,
    /// What it writes to its standard output.
    pub output: OwnedFd,
}

/// A process that [`fork`] has made.
#[derive(Debug)]
pub struct Child(Pid);

impl Child {
    /// Waits for the end of the child; the signal that ended it, if it was one.
    ///
    /// # Errors
    /// waitpid(2)'s.
    pub fn wait(self) -> io::Result<Option<i32>> {
        let how = WaitOptions::empty();
        let ended = rustix::io::retry_on_intr(|| waitpid(Some(self.0), how))?;
        Ok(ended.and_then(|(_, status): (Pid, WaitStatus)| status.terminating_signal()))
    }
}

/// Makes a second process of this one (fork(2)), which goes on from here: half the time of starting
/// the program anew. To be called while this process has opened nothing that it needs afterwards:
/// the child closes all of it, as it does what the caller of this program had open.
///
/// # Errors
/// The system's; EDEADLK where this process has more than one thread, since the others would be
/// missing in the child with whatever they have locked.
pub fn fork() -> io::Result<Forked> {
    // proc(5): one link for each thread, one for the directory's name and one for its ".".
    if std::fs::metadata("/proc/self/task")?.nlink() != 3 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    let (output, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: this process has one thread, so the child is whole: no lock is held by another.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => None,
        pid => Pid::from_raw(pid),
    };
    if let Some(pid) = pid {
        return Ok(Forked::Parent(Running {
            child: Child(pid),
            output,
        }));
    }
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&input)?;
    drop((null, output, input));
    // SAFETY: no value of this process owns a descriptor from 3 on any more, by the contract above.
    if unsafe { libc::close_range(3, u32::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Forked::Child)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_several_threads_is_not_copied() {
        let forked = std::thread::scope(|scope| {
            let (stay, stays) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || stays.recv().unwrap_err());
            let forked = fork();
            drop(stay);
            forked
        });
        assert_eq!(forked.unwrap_err().raw_os_error(), Some(libc::EDEADLK));
    }
}
