//! Who holds a file locked: to be named to whoever waits for it, or ended.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that has a file locked (flock(2)).
#[derive(Debug)]
pub(super) struct Locker {
    /// Its number, in this PID namespace.
    pub(super) pid: u32,
    process: OwnedFd,
}

impl Locker {
    /// Who has `file` locked for itself alone, as far as that can be seen from here: not one of
    /// another PID namespace or user, nor one that has ended and left it to its children.
    pub(super) fn of(file: &File) -> Option<Self> {
        let of = file.metadata().ok()?;
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let locks = fs::read_to_string("/proc/locks").ok()?;
        locks
            .lines()
            .filter_map(|line| exclusive(line, of.ino()))
            .find_map(|pid| {
                let process = Pid::from_raw(i32::try_from(pid).ok()?)?;
                let process = pidfd_open(process, PidfdFlags::empty()).ok()?;
                // Looked at after that, so that it is the one that the signal goes to: the number
                // alone might be another's by now, and that of the inode one of another filesystem.
                has_open(pid, &path).then_some(Self { pid, process })
            })
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.process, signal)?)
    }
}

/// The process that a line of /proc/locks (proc(5)) says has the inode locked with flock(2).
fn exclusive(line: &str, ino: u64) -> Option<u32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    // Those who wait have "->" here.
    (words.next()? == "FLOCK").then_some(())?;
    (words.nth(1)? == "WRITE").then_some(())?;
    let pid = words.next()?.parse().ok()?;
    let found: u64 = words.next()?.rsplit(':').next()?.parse().ok()?;
    (found == ino).then_some(pid)
}

/// Told by the links: a stat(2) of what it has open might wait for a mount.
fn has_open(pid: u32, path: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == path))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;

    #[test]
    fn lines() {
        let held = "1: FLOCK  ADVISORY  WRITE 4711 fe:00:1835 0 EOF";
        assert_eq!(exclusive(held, 1835), Some(4711));
        assert_eq!(exclusive(held, 835), None);
        for other in [
            "1: -> FLOCK  ADVISORY  WRITE 4711 fe:00:1835 0 EOF",
            "1: FLOCK  ADVISORY  READ 4711 fe:00:1835 0 EOF",
            "1: POSIX  ADVISORY  WRITE 4711 fe:00:1835 0 EOF",
            "1: FLOCK  ADVISORY  WRITE -1 fe:00:1835 0 EOF",
            "1: FLOCK",
            "",
        ] {
            assert_eq!(exclusive(other, 1835), None, "{other}");
        }
    }

    #[test]
    fn the_holder_is_found() {
        let file = tempfile::tempfile().unwrap();
        assert!(Locker::of(&file).is_none());
        flock(&file, FlockOperation::LockExclusive).unwrap();
        assert_eq!(Locker::of(&file).unwrap().pid, std::process::id());
        flock(&file, FlockOperation::Unlock).unwrap();
        assert!(Locker::of(&file).is_none());
    }
}
