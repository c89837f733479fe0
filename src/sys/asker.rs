//! Who asks: what the kernel knows of the process behind a request and does not pass on with it,
//! its other groups and its capabilities.
//!
//! Read from /proc while the process waits for its answer. Where that tells nothing (the process
//! is gone, or in a PID namespace that is not seen from here), the answer is that of somebody
//! without any privilege.

use std::fs::read_to_string;

/// Bits of capabilities(7).
const CAP_FOWNER: u32 = 3;
const CAP_FSETID: u32 = 4;

/// Set-user-ID.
pub const S_ISUID: u16 = 0o4000;
/// Set-group-ID.
pub const S_ISGID: u16 = 0o2000;
/// What a file may lose when somebody changes its content.
pub const PRIVILEGES: u16 = S_ISUID | S_ISGID;
const S_IXGRP: u16 = 0o010;

/// The process of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// File-system user ID.
    pub uid: u32,
    /// File-system group ID.
    pub gid: u32,
    /// Thread ID as seen from here; 0 where it has none.
    pub pid: u32,
}

impl Asker {
    /// Whether set-group-ID stays on a file of this user and group when the asker changes its
    /// permissions (`fs/inode.c:in_group_or_capable()`).
    #[must_use]
    pub fn keeps_set_group_id(&self, uid: u32, group: u32) -> bool {
        if self.gid == group {
            return true;
        }
        if self.pid == 0 {
            return false;
        }
        let file = |of: &str, name: &str| read_to_string(format!("/proc/{of}/{name}")).ok();
        let pid = self.pid.to_string();
        let Some(status) = file(&pid, "status") else {
            return false;
        };
        if !self.is_in(&status) {
            return false;
        }
        if groups(&status).any(|other| other == group) {
            return true;
        }
        capable(&status, CAP_FSETID)
            && [("uid_map", uid), ("gid_map", group)]
                .into_iter()
                .all(|(map, id)| self.has_in_namespace(map, id))
    }

    /// Whether the asker may change the attributes of a file of this user
    /// (`fs/inode.c:inode_owner_or_capable()`).
    #[must_use]
    pub fn owns(&self, uid: u32) -> bool {
        self.uid == uid
            || self.pid != 0
                && read_to_string(format!("/proc/{}/status", self.pid))
                    .is_ok_and(|status| self.is_in(&status) && capable(&status, CAP_FOWNER))
                && self.has_in_namespace("uid_map", uid)
    }

    /// Whether the asker's user namespace has an ID of ours.
    fn has_in_namespace(&self, map: &str, id: u32) -> bool {
        let file = |of: &str| read_to_string(format!("/proc/{of}/{map}"));
        match (file(&self.pid.to_string()), file("self")) {
            // One user namespace: its map says whom those above it know by these IDs.
            (Ok(theirs), Ok(ours)) => theirs == ours || maps(&theirs, id),
            _ => false,
        }
    }

    /// Whether the asker may change a file's content without the file's losing set-user-ID and
    /// set-group-ID (`fs/attr.c:setattr_should_drop_suidgid()`).
    #[must_use]
    pub fn keeps_privileges(&self) -> bool {
        if self.pid == 0 {
            return false;
        }
        let file = |of: &str, name: &str| read_to_string(format!("/proc/{of}/{name}")).ok();
        let pid = self.pid.to_string();
        // The first user namespace's privilege it is, which is that of the server's if any is.
        file(&pid, "status").is_some_and(|s| self.is_in(&s) && capable(&s, CAP_FSETID))
            && file(&pid, "uid_map").is_some_and(|map| Some(map) == file("self", "uid_map"))
    }

    /// The permissions that a file of `perm`, `uid` and `gid` is left with when the asker, who does
    /// not [keep privileges](Self::keeps_privileges), changes its content or its owner.
    #[must_use]
    pub fn privileges_left(&self, perm: u16, uid: u32, gid: u32) -> u16 {
        let executes = perm & S_IXGRP != 0;
        let left = perm & !S_ISUID;
        if left & S_ISGID != 0 && (executes || !self.keeps_set_group_id(uid, gid)) {
            left & !S_ISGID
        } else {
            left
        }
    }

    /// Whether it is the asker's: a process that ended may have given its number to another.
    fn is_in(&self, status: &str) -> bool {
        let id = |key| numbers(status, key).nth(3);
        id("Uid:") == Some(self.uid) && id("Gid:") == Some(self.gid)
    }
}

/// The value of a line of /proc/PID/status.
fn value<'a>(status: &'a str, key: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap_or_default()
        .trim()
}

fn numbers<'a>(status: &'a str, key: &str) -> impl Iterator<Item = u32> + use<'a> {
    value(status, key)
        .split_ascii_whitespace()
        .filter_map(|number| number.parse().ok())
}

fn groups(status: &str) -> impl Iterator<Item = u32> + '_ {
    numbers(status, "Groups:")
}

fn capable(status: &str, capability: u32) -> bool {
    u64::from_str_radix(value(status, "CapEff:"), 16)
        .is_ok_and(|effective| effective >> capability & 1 == 1)
}

/// Whether a user namespace has an ID of ours (user_namespaces(7)): lines of first ID inside,
/// first ID outside, number.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut parts = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(_)), Some(Ok(first)), Some(Ok(count))) =
            (parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let id = u64::from(id);
        first <= id && id < first.saturating_add(count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tGroups: 7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n\
        Groups:\t10 20 30 \nCapEff:\t0000000000000010\n";

    #[test]
    fn status_is_read() {
        let asker = |uid, gid| Asker { uid, gid, pid: 1 };
        assert!(asker(4, 8).is_in(STATUS));
        assert!(!asker(2, 8).is_in(STATUS) && !asker(4, 6).is_in(STATUS));
        assert!(!asker(4, 8).is_in(""));
        assert_eq!(groups(STATUS).collect::<Vec<_>>(), [10, 20, 30]);
        assert!(capable(STATUS, CAP_FSETID) && !capable(STATUS, 3));
        assert!(!capable("CapEff:\tx\n", CAP_FSETID) && !capable("", CAP_FSETID));
    }

    #[test]
    fn maps_are_read() {
        let map = "         0     100000      65536\n     70000          7          1\n";
        for (id, known) in [
            (100_000, true),
            (165_535, true),
            (165_536, false),
            (7, true),
            (0, false),
        ] {
            assert_eq!(maps(map, id), known, "{id}");
        }
        assert!(!maps("", 0) && !maps("0 0\n", 0) && !maps("a b c\n", 0));
        assert!(maps("0 0 4294967295\n", 70_000));
    }

    #[test]
    fn the_own_group_needs_no_look_and_nobody_has_no_privilege() {
        let asker = |gid, pid| Asker { uid: 1, gid, pid };
        assert!(asker(5, 0).keeps_set_group_id(9, 5));
        assert!(!asker(5, 0).keeps_set_group_id(9, 6));
        // This process, which is not the user that it should be.
        assert!(!asker(5, std::process::id()).keeps_set_group_id(9, 6));
    }

    #[test]
    fn privileges_that_go() {
        let nobody = Asker {
            uid: 1,
            gid: 5,
            pid: 0,
        };
        assert!(!nobody.keeps_privileges());
        assert!(nobody.owns(1) && !nobody.owns(2));
        for (perm, gid, left) in [
            (0o4755, 9, 0o755),
            (0o2755, 5, 0o755),
            (0o2745, 5, 0o2745),
            (0o2745, 9, 0o745),
            (0o7777, 9, 0o1777),
            (0o644, 9, 0o644),
        ] {
            assert_eq!(nobody.privileges_left(perm, 1, gid), left, "{perm:o}");
        }
    }

    #[test]
    fn this_process_is_what_it_is() {
        let asker = Asker {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: std::process::id(),
        };
        for group in rustix::process::getgroups().unwrap() {
            assert!(asker.keeps_set_group_id(asker.uid, group.as_raw()));
        }
        let sets = rustix::thread::capabilities(None).unwrap();
        let capable = sets
            .effective
            .contains(rustix::thread::CapabilitySet::FSETID);
        if !capable || asker.uid == 0 {
            assert_eq!(asker.keeps_set_group_id(asker.uid, 7_654), capable);
        }
        assert_eq!(asker.keeps_privileges(), capable);
    }
}
