//! Who has an actor's root filesystem in a mount namespace of his own, where nobody else can unmount
//! it: what runtimes do for containers. Looked for when somebody is to be told, since it takes a look
//! at every process.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::place::Place;
use super::state::is_of;
use crate::sys::mount::{MountPoint, device_minor, mounts_of};

/// A process whose mount namespace has an actor's root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process: that of the lowest number in its mount namespace.
    pub pid: u32,
    /// Its name (/proc/PID/comm).
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// The holders of the actor in `place` that can be seen: processes of other PID namespaces cannot,
/// nor others' by an ordinary user.
pub(super) fn find(place: &Place) -> Vec<Holder> {
    let holders = with_mounts(place).into_iter();
    holders.map(|(holder, _)| holder).collect()
}

/// The root of the actor's mount by way of a holder whose root it is, as a container's is.
pub(super) fn open_root(place: &Place) -> Option<OwnedFd> {
    with_mounts(place).into_iter().find_map(|(holder, mount)| {
        // No other path of a container's is gone along: it could lead anywhere.
        if mount.path != Path::new("/") {
            return None;
        }
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = format!("/proc/{}/root", holder.pid);
        let root = rustix::fs::open(path, how, Mode::empty()).ok()?;
        let minor = device_minor(root.as_fd()).ok()?;
        (minor == mount.minor).then_some(root)
    })
}

/// One process of each mount namespace that has the actor's mount, and that mount.
fn with_mounts(place: &Place) -> Vec<(Holder, MountPoint)> {
    // The namespace of this process is no holder: there it can be unmounted.
    let mut known: BTreeSet<PathBuf> = namespace("self").into_iter().collect();
    let mut found = Vec::new();
    for pid in processes() {
        let Some(namespace) = namespace(&pid.to_string()) else {
            continue;
        };
        if !known.insert(namespace) {
            continue;
        }
        // Whoever has ended meanwhile holds nothing.
        let mounts = mounts_of(pid).unwrap_or_default();
        let Some(mount) = mounts.into_iter().find(|mount| is_of(mount, place)) else {
            continue;
        };
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let holder = Holder {
            pid,
            // It is whatever the process says, and goes to a terminal.
            name: name.trim_end().escape_debug().to_string(),
        };
        found.push((holder, mount));
    }
    found
}

fn namespace(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}

fn processes() -> BTreeSet<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}
