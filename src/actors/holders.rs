//! Who has an actor's root filesystem in a mount namespace of his own, where nobody else can unmount
//! it: what runtimes do for containers. Looked for when somebody is to be told, since it takes a look
//! at every process.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use super::place::Place;
use super::state::is_of;
use crate::sys::mount::mounts_of;

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
        let Ok(mounts) = mounts_of(pid) else { continue };
        if !mounts.iter().any(|mount| is_of(mount, place)) {
            continue;
        }
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        found.push(Holder {
            pid,
            // It is whatever the process says, and goes to a terminal.
            name: name.trim_end().escape_debug().to_string(),
        });
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
