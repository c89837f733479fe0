//! User namespaces: how a person who is not root becomes the root of a world of their own.
//!
//! All the numbers that /etc/subuid and /etc/subgid grant are mapped through newuidmap(1) and
//! newgidmap(1); without them the one number of the caller is, which is enough to run programs
//! and not enough for what wants several users (a package manager's sandbox user, chown).

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rustix::thread::{CapabilitySet, UnshareFlags};

use super::ActorError;
use super::spec::IdMapping;
use crate::sys::namespace;

/// The hidden subcommand that [`enter`] starts this executable with; see [`helper_main`].
pub const SUBCOMMAND: &str = "__idmap";

/// Which numbers a user namespace has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// 0 is the caller, and a range of further numbers exists.
    Ranges,
    /// 0 is the caller, and nobody else exists. The text says why.
    Single(String),
}

/// Whether this process lacks what mounting takes, so that only a user namespace can help.
#[must_use]
pub fn needed() -> bool {
    rustix::thread::capabilities(None).map_or(true, |caps| {
        !caps.effective.contains(CapabilitySet::SYS_ADMIN)
    })
}

/// Whether this user namespace has one user only.
#[must_use]
pub fn is_single() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut words = map.split_whitespace().skip(2);
    words.next() == Some("1") && words.next().is_none()
}

/// Moves this process into a new user namespace, as its root. To be called while the process has
/// one thread.
///
/// # Errors
/// [`ActorError::UserNamespace`], whose text names the setting that forbids it.
pub fn enter() -> Result<Mapping, ActorError> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let ranges = ranges(uid);
    let (mut helper, why) = match &ranges {
        Ok((uids, gids)) => match start_helper(uid, gid, uids, gids) {
            Ok(child) => (Some(child), String::new()),
            Err(error) => (None, format!("cannot start the mapping helper: {error}")),
        },
        Err(why) => (None, why.clone()),
    };
    if let Err(error) = namespace::unshare(UnshareFlags::NEWUSER) {
        if let Some(mut child) = helper.take() {
            // End of input without a word: the helper leaves.
            drop(child.stdin.take());
            child
                .wait()
                .map_err(ActorError::system("waiting for the mapping helper"))?;
        }
        return Err(ActorError::UserNamespace(forbidden(&error)));
    }
    let why = match helper {
        None => why,
        Some(mut child) => {
            let told = child
                .stdin
                .take()
                .map_or(Ok(()), |mut pipe| pipe.write_all(b"x"));
            let output = child
                .wait_with_output()
                .map_err(ActorError::system("waiting for the mapping helper"))?;
            if told.is_ok() && output.status.success() {
                return Ok(Mapping::Ranges);
            }
            let text = String::from_utf8_lossy(&output.stderr)
                .trim()
                .replace('\n', "; ");
            format!("newuidmap or newgidmap failed: {text}")
        }
    };
    // user_namespaces(7): without privilege outside, setgroups(2) must go before gid_map.
    let write = |file: &str, text: String| {
        std::fs::write(file, text).map_err(|error| {
            ActorError::UserNamespace(format!("{file}: {error}; {}", forbidden(&error)))
        })
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    Ok(Mapping::Single(why))
}

fn start_helper(
    uid: u32,
    gid: u32,
    uids: &[IdMapping],
    gids: &[IdMapping],
) -> io::Result<std::process::Child> {
    let args = |own: u32, maps: &[IdMapping]| -> Vec<String> {
        let own = IdMapping {
            container_id: 0,
            host_id: own,
            size: 1,
        };
        std::iter::once(&own)
            .chain(maps)
            .flat_map(|m| [m.container_id, m.host_id, m.size])
            .map(|n| n.to_string())
            .collect()
    };
    Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .arg(std::process::id().to_string())
        .args(args(uid, uids))
        .arg("--")
        .args(args(gid, gids))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

/// The helper that [`enter`] starts: outside the new namespace it waits for a byte, then maps.
/// `args` are what follows [`SUBCOMMAND`].
#[must_use]
pub fn helper_main(args: &[String]) -> ExitCode {
    let Some((pid, maps)) = args.split_first() else {
        return ExitCode::FAILURE;
    };
    let mut maps = maps.split(|arg| arg == "--");
    let (Some(uids), Some(gids)) = (maps.next(), maps.next()) else {
        return ExitCode::FAILURE;
    };
    let mut word = [0_u8; 1];
    if io::stdin().read_exact(&mut word).is_err() {
        return ExitCode::FAILURE;
    }
    for (program, map) in [("newuidmap", uids), ("newgidmap", gids)] {
        match Command::new(program).arg(pid).args(map).status() {
            Ok(status) if status.success() => {}
            _ => return ExitCode::FAILURE,
        }
    }
    ExitCode::SUCCESS
}

/// The ranges that this user may map behind 0, or why there are none.
///
/// # Errors
/// What is missing, in words.
pub fn ranges(uid: u32) -> Result<(Vec<IdMapping>, Vec<IdMapping>), String> {
    for program in ["newuidmap", "newgidmap"] {
        if find_program(program).is_none() {
            return Err(format!(
                "{program} is not installed (Debian package uidmap)"
            ));
        }
    }
    let name = user_name(uid);
    let read = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let maps = parse_ranges(&text, name.as_deref(), uid);
        if maps.is_empty() {
            Err(format!("{file} grants this user no numbers"))
        } else {
            Ok(maps)
        }
    };
    Ok((read("/etc/subuid")?, read("/etc/subgid")?))
}

/// subuid(5): `name-or-number:first:count`, several lines for a user.
fn parse_ranges(text: &str, name: Option<&str>, uid: u32) -> Vec<IdMapping> {
    let mut next = 1_u32;
    let mut maps = Vec::new();
    for line in text.lines() {
        let mut fields = line.trim().split(':');
        let (Some(who), Some(first), Some(count), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if Some(who) != name && who.parse() != Ok(uid) {
            continue;
        }
        let (Ok(host_id), Ok(size)) = (first.parse::<u32>(), count.parse::<u32>()) else {
            continue;
        };
        let Some(end) = next.checked_add(size) else {
            continue;
        };
        if size > 0 && host_id.checked_add(size).is_some() {
            maps.push(IdMapping {
                container_id: next,
                host_id,
                size,
            });
            next = end;
        }
    }
    maps
}

/// The name of a user of the host, from /etc/passwd.
fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Where `PATH` has a program.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Why user namespaces are refused here, with the setting that says so.
#[must_use]
pub fn forbidden(error: &io::Error) -> String {
    let value = |name: &str| -> Option<String> {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
    };
    let culprit = if value("kernel.unprivileged_userns_clone").as_deref() == Some("0") {
        "the sysctl kernel.unprivileged_userns_clone is 0 (an administrator can set it to 1)"
    } else if value("user.max_user_namespaces").as_deref() == Some("0") {
        "the sysctl user.max_user_namespaces is 0 (an administrator can raise it)"
    } else if value("kernel.apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        "the sysctl kernel.apparmor_restrict_unprivileged_userns is 1 (an administrator can set it to 0)"
    } else {
        match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS) => "this kernel has none (CONFIG_USER_NS)",
            Some(libc::ENOSPC | libc::EUSERS) => {
                "there are too many, or too deep (sysctl user.max_user_namespaces)"
            }
            _ => {
                "a security module or the surrounding container forbids it (see also the sysctls \
                  user.max_user_namespaces and kernel.unprivileged_userns_clone)"
            }
        }
    };
    format!("cannot make a user namespace ({error}): {culprit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_stacked_behind_the_user() {
        let text = "other:1:65536\nme:100000:65536\n1000:300000:10\nme:bad:1\nme:5\nme:1:2:3\n";
        let maps = parse_ranges(text, Some("me"), 1000);
        let wanted = [
            IdMapping {
                container_id: 1,
                host_id: 100_000,
                size: 65_536,
            },
            IdMapping {
                container_id: 65_537,
                host_id: 300_000,
                size: 10,
            },
        ];
        assert_eq!(maps, wanted);
        assert!(parse_ranges(text, None, 7).is_empty());
    }

    #[test]
    fn ranges_do_not_overflow() {
        let text = "me:4294967295:2\nme:1:0\nme:1:4294967295\n";
        assert!(parse_ranges(text, Some("me"), 1).is_empty());
    }

    #[test]
    fn the_helper_refuses_nonsense() {
        assert_eq!(helper_main(&[]), ExitCode::FAILURE);
        assert_eq!(helper_main(&["1".into()]), ExitCode::FAILURE);
    }
}
