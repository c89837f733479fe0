//! What a server process needs of itself.

use std::fs::OpenOptions;
use std::io;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit};

/// Makes this process fit to serve: no umask of its own (modes are the callers'), as many open
/// files as it may have, EFBIG instead of its end where a caller's file meets the limit of file
/// sizes that it was started with, and a working directory that keeps no filesystem busy.
/// Relative paths mean nothing afterwards.
///
/// # Errors
/// The system's.
pub fn prepare_process() -> io::Result<()> {
    rustix::process::umask(Mode::empty());
    // Whatever the program was called as: mount.fuse.tarnfs, or a link of another name.
    rustix::thread::set_name(c"tarnfs")?;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?;
    crate::sys::signal::survive_file_size_limit()?;
    std::env::set_current_dir("/")
}

/// Leaves the caller's session and lets go of its terminal: what a server does when it is ready.
///
/// # Errors
/// The system's.
pub fn detach_from_terminal() -> io::Result<()> {
    // EPERM: this process leads a process group already (a service manager started it), so there
    // is no terminal to leave.
    match rustix::process::setsid() {
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
