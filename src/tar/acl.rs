//! POSIX ACLs: from the text that tars carry to the kernel's binary form.
//!
//! Text as acl_to_text(3) writes it (GNU tar, one entry a line) or with commas and a numeric id
//! in a fourth field (libarchive, star). Binary as `include/uapi/linux/posix_acl_xattr.h` has it:
//! a version, then (tag, permissions, id) in little endian.

use super::error::printable;
use super::number;

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ace {
    tag: u16,
    id: u32,
    perm: u16,
}

/// A valid ACL: entries in the kernel's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl(Vec<Ace>);

impl Acl {
    /// Parses text; `None` for a text without entries.
    pub(super) fn from_text(text: &[u8]) -> Result<Option<Self>, String> {
        let mut aces = Vec::new();
        for line in text.split(|&b| b == b'\n' || b == b',') {
            let line = line
                .split(|&b| b == b'#')
                .next()
                .unwrap_or_default()
                .trim_ascii();
            if !line.is_empty() {
                aces.push(ace(line)?);
            }
        }
        Self::new(aces)
    }

    /// Parses the value of `system.posix_acl_access` or `system.posix_acl_default`.
    pub(super) fn from_xattr(value: &[u8]) -> Result<Option<Self>, String> {
        let bad = || "its binary form is damaged".to_owned();
        let (version, rest) = value.split_first_chunk::<4>().ok_or_else(bad)?;
        let (entries, odd) = rest.as_chunks::<8>();
        if u32::from_le_bytes(*version) != VERSION || !odd.is_empty() {
            return Err(bad());
        }
        let aces = entries.iter().map(|&[t0, t1, p0, p1, i0, i1, i2, i3]| {
            let tag = u16::from_le_bytes([t0, t1]);
            let named = tag & (USER | GROUP) != 0;
            Ace {
                tag,
                id: if named {
                    u32::from_le_bytes([i0, i1, i2, i3])
                } else {
                    NO_ID
                },
                perm: u16::from_le_bytes([p0, p1]),
            }
        });
        Self::new(aces.collect())
    }

    /// What fs/posix_acl.c:posix_acl_valid() asks for.
    fn new(mut aces: Vec<Ace>) -> Result<Option<Self>, String> {
        if aces.is_empty() {
            return Ok(None);
        }
        aces.sort_unstable();
        let count = |tag| aces.iter().filter(|ace| ace.tag == tag).count();
        if aces
            .iter()
            .any(|a| !matches!(a.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER))
        {
            return Err("an entry has an unknown tag".into());
        }
        if aces.iter().any(|ace| ace.perm > 7) {
            return Err("an entry has unknown permissions".into());
        }
        if aces
            .iter()
            .any(|ace| ace.tag & (USER | GROUP) != 0 && ace.id == NO_ID)
        {
            return Err("an entry has no valid id".into());
        }
        if [USER_OBJ, GROUP_OBJ, OTHER]
            .iter()
            .any(|&tag| count(tag) != 1)
            || count(MASK) > 1
        {
            return Err(
                "owner, group and other must stand in it once each, a mask at most once".into(),
            );
        }
        if count(USER) + count(GROUP) > 0 && count(MASK) == 0 {
            return Err("it names users or groups and has no mask".into());
        }
        if aces
            .windows(2)
            .any(|w| matches!(w, [a, b] if a.tag == b.tag && a.id == b.id))
        {
            return Err("it names a user or group twice".into());
        }
        Ok(Some(Self(aces)))
    }

    /// The value of the extended attribute.
    pub(super) fn to_xattr(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for ace in &self.0 {
            out.extend_from_slice(&ace.tag.to_le_bytes());
            out.extend_from_slice(&ace.perm.to_le_bytes());
            out.extend_from_slice(&ace.id.to_le_bytes());
        }
        out
    }

    /// Whether an access ACL says no more than permission bits do; Linux stores none then
    /// (fs/posix_acl.c:posix_acl_equiv_mode()).
    pub(super) fn is_plain(&self) -> bool {
        self.0
            .iter()
            .all(|ace| matches!(ace.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// The permission bits that a file with this access ACL has
    /// (fs/posix_acl.c:posix_acl_equiv_mode()): the mask, if there is one, stands in for the group.
    pub(super) fn mode(&self) -> u16 {
        let perm = |tag| self.0.iter().find(|ace| ace.tag == tag).map(|ace| ace.perm);
        perm(USER_OBJ).unwrap_or(0) << 6
            | perm(MASK).or(perm(GROUP_OBJ)).unwrap_or(0) << 3
            | perm(OTHER).unwrap_or(0)
    }
}

fn ace(line: &[u8]) -> Result<Ace, String> {
    let bad = || format!("not an ACL entry: {}", printable(line));
    let line = line.strip_prefix(b"default:").unwrap_or(line);
    let fields: Vec<&[u8]> = line.split(|&b| b == b':').map(<[u8]>::trim_ascii).collect();
    let (obj, named, name, perm, id) = match fields.as_slice() {
        [b"user" | b"u", name, perm] => (USER_OBJ, USER, *name, *perm, None),
        [b"user" | b"u", name, perm, id] => (USER_OBJ, USER, *name, *perm, Some(*id)),
        [b"group" | b"g", name, perm] => (GROUP_OBJ, GROUP, *name, *perm, None),
        [b"group" | b"g", name, perm, id] => (GROUP_OBJ, GROUP, *name, *perm, Some(*id)),
        [b"mask" | b"m", b"", perm] | [b"mask" | b"m", perm] => (MASK, MASK, &b""[..], *perm, None),
        [b"other" | b"o", b"", perm] | [b"other" | b"o", perm] => {
            (OTHER, OTHER, &b""[..], *perm, None)
        }
        _ => return Err(bad()),
    };
    let perm = permissions(perm).ok_or_else(bad)?;
    if name.is_empty() {
        return Ok(Ace {
            tag: obj,
            id: NO_ID,
            perm,
        });
    }
    let id = match id.filter(|id| !id.is_empty()) {
        Some(id) => number::decimal(id),
        None => number::decimal(name),
    };
    let id = id
        .ok()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| {
            format!(
                "{} is a name without a number, and names are nothing inside an image; \
             pack with `--xattrs --acls`, which adds the numbers",
                printable(name)
            )
        })?;
    Ok(Ace {
        tag: named,
        id,
        perm,
    })
}

fn permissions(text: &[u8]) -> Option<u16> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0, |perm, letter| {
        Some(
            perm | match letter {
                b'r' => 4,
                b'w' => 2,
                b'x' => 1,
                b'-' => 0,
                _ => return None,
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Acl>, String> {
        Acl::from_text(text.as_bytes())
    }

    #[test]
    fn the_texts_of_gnu_tar_and_libarchive_give_the_same() {
        let gnu = "user::rw-\nuser:65534:rw-\ngroup::r--\ngroup:12345:r--\t#effective:r--\nmask::rw-\nother::r--\n";
        let bsd = "user::rw-,group::r--,other::r--,user:nobody:rw-:65534,group:12345:r--,mask::rw-";
        let acl = parse(gnu).unwrap().unwrap();
        assert_eq!(parse(bsd).unwrap().unwrap(), acl);
        assert_eq!(acl.mode(), 0o664);
        assert!(!acl.is_plain());
        assert_eq!(Acl::from_xattr(&acl.to_xattr()).unwrap().unwrap(), acl);
        // The bytes that getxattr(2) gives for this ACL on ext4.
        assert_eq!(
            &acl.to_xattr()[..20],
            [
                2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 6, 0, 254, 255, 0, 0
            ]
        );
    }

    #[test]
    fn a_plain_acl_is_the_mode() {
        let acl = parse("user::rwx\ngroup::r-x\nother::---\n")
            .unwrap()
            .unwrap();
        assert!(acl.is_plain());
        assert_eq!(acl.mode(), 0o750);
        assert_eq!(parse("\n\n").unwrap(), None);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        for bad in [
            "user::rwx",
            "user::rwx,group::rwx,other::rwx,user:1:rwx",
            "user::rwx,user::rwx,group::rwx,other::rwx",
            "user::rwx,group::rwx,other::rwx,mask::r,mask::r",
            "user::rwx,group::rwx,other::rwx,user:1:r,user:1:w,mask::r",
            "user::rwx,group::rwx,other::rwx,user:joe:r,mask::r",
            "user::rwx,group::rwx,other::rwx,user:4294967295:r,mask::r",
            "user::rwz,group::rwx,other::rwx",
            "user::,group::rwx,other::rwx",
            "owner@:rwx::allow",
            "x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for bad in [
            &b""[..],
            b"\x02\0\0",
            b"\x01\0\0\0",
            b"\x02\0\0\0\x01",
            &[2, 0, 0, 0, 1, 0, 9, 0, 0, 0, 0, 0],
        ] {
            assert!(Acl::from_xattr(bad).is_err(), "{bad:?}");
        }
    }
}
