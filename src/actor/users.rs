//! Who `--user` means: numbers as they are, names from the image's own passwd(5) and group(5).

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::ActorError;
use super::inroot;
use super::spec::User;

/// No passwd or group file of a real image comes near.
const LIMIT: u64 = 16 << 20;

/// A user of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The numbers.
    pub user: User,
    /// The home directory; `/` where passwd has none.
    pub home: Vec<u8>,
}

/// Looks `text` (`user`, `uid`, `user:group`, `uid:gid`; empty is root) up in the root filesystem
/// `root`, as container engines do.
///
/// # Errors
/// [`ActorError::Refused`] when a name is unknown there; the system's errors.
pub fn resolve(root: BorrowedFd<'_>, text: &str) -> Result<Resolved, ActorError> {
    let file = |path: &'static str| {
        inroot::read(root, Path::new(path), LIMIT)
            .map(Option::unwrap_or_default)
            .map_err(ActorError::path("cannot read the image's", path))
    };
    from_files(&file("/etc/passwd")?, &file("/etc/group")?, text)
}

fn from_files(passwd: &[u8], group: &[u8], text: &str) -> Result<Resolved, ActorError> {
    let (user, group_name) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = parse(user.as_bytes());
    // name:password:uid:gid:gecos:home:shell; a number means the uid, even if a user is so named
    // in a later line only.
    let entry = records(passwd).find_map(|fields| {
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else {
            return None;
        };
        let (uid, gid) = (parse(uid)?, parse(gid)?);
        let hit = number.map_or(*name == user.as_bytes(), |number| number == uid);
        hit.then(|| (name.to_vec(), uid, gid, home.to_vec()))
    });
    let (name, uid, gid, home) = match (entry, number) {
        (Some(entry), _) => entry,
        (None, Some(uid)) => (Vec::new(), uid, 0, Vec::new()),
        (None, None) => {
            return Err(ActorError::Refused(format!(
                "user {user:?} is not in the image's /etc/passwd"
            )));
        }
    };
    let groups: Vec<(Vec<u8>, u32, Vec<Vec<u8>>)> = records(group)
        .filter_map(|fields| {
            let [name, _, gid, rest @ ..] = fields.as_slice() else {
                return None;
            };
            let members = rest.first().copied().unwrap_or_default();
            let members = members.split(|&c| c == b',').map(<[u8]>::to_vec).collect();
            Some((name.to_vec(), parse(gid)?, members))
        })
        .collect();
    let (gid, mut additional_gids) = match group_name {
        None | Some("") => {
            let mine = groups
                .iter()
                .filter(|(_, number, members)| {
                    *number != gid && !name.is_empty() && members.contains(&name)
                })
                .map(|(_, number, _)| *number)
                .collect();
            (gid, mine)
        }
        Some(wanted) => {
            let known = groups.iter().find(|(name, _, _)| name == wanted.as_bytes());
            let gid = match (parse(wanted.as_bytes()), known) {
                (Some(gid), _) => gid,
                (None, Some((_, gid, _))) => *gid,
                (None, None) => {
                    return Err(ActorError::Refused(format!(
                        "group {wanted:?} is not in the image's /etc/group"
                    )));
                }
            };
            (gid, Vec::new())
        }
    };
    additional_gids.sort_unstable();
    additional_gids.dedup();
    let home = if home.is_empty() { b"/".to_vec() } else { home };
    Ok(Resolved {
        user: User {
            uid,
            gid,
            additional_gids,
        },
        home,
    })
}

fn records(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|&c| c == b'\n')
        .map(|line| line.split(|&c| c == b':').collect())
}

/// A number that somebody may have: to setresuid(2) the last one means "as it was", which is root.
fn parse(field: &[u8]) -> Option<u32> {
    let number = std::str::from_utf8(field).ok()?.parse().ok()?;
    (number != u32::MAX).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\nbroken\n\xff:x:9\n\
        app:x:1000:1000::/home/app:/bin/sh\nnohome:x:1001:1001:::\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:root,app\napp:x:1000:app\nvideo:x:44:app\nbad\n";

    fn who(text: &str) -> Option<(u32, u32, Vec<u32>, String)> {
        let resolved = from_files(PASSWD, GROUP, text).ok()?;
        let User {
            uid,
            gid,
            additional_gids,
        } = resolved.user;
        Some((
            uid,
            gid,
            additional_gids,
            String::from_utf8(resolved.home).unwrap(),
        ))
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(who(""), Some((0, 0, vec![10], "/root".into())));
        assert_eq!(
            who("app"),
            Some((1000, 1000, vec![10, 44], "/home/app".into()))
        );
        assert_eq!(who("1000"), who("app"));
        assert_eq!(
            who("app:video"),
            Some((1000, 44, vec![], "/home/app".into()))
        );
        assert_eq!(who("app:7"), Some((1000, 7, vec![], "/home/app".into())));
        assert_eq!(who("nohome"), Some((1001, 1001, vec![], "/".into())));
        assert_eq!(who("4242"), Some((4242, 0, vec![], "/".into())));
        assert_eq!(who("4242:4243"), Some((4242, 4243, vec![], "/".into())));
    }

    #[test]
    fn unknown_names_are_refused() {
        for text in [
            "nobody-here",
            "app:nogroup",
            "-1",
            "99999999999",
            "4294967295",
            "app:4294967295",
        ] {
            assert_eq!(who(text), None, "{text}");
        }
        let passwd = b"none:x:4294967295:4294967295::/:/bin/sh\n";
        assert!(from_files(passwd, b"", "none").is_err());
    }

    #[test]
    fn an_image_without_passwd_still_has_root() {
        assert_eq!(from_files(b"", b"", "").unwrap().user, User::default());
    }
}
