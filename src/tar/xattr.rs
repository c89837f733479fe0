//! Extended attributes as pax records carry them, made ready for the index.

use super::acl::Acl;
use super::error::{Problem, printable};
use crate::inode::Xattr;

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// What an inode's type allows in ACLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AclTarget {
    Dir,
    Symlink,
    Other,
}

/// Checks, sorts and completes `raw` (in the order of the tar: of a name given twice, the later
/// value holds) with the ACLs given as text; gives the permission bits that an access ACL implies
/// instead of `perm`.
pub(super) fn finish(
    raw: Vec<Xattr>,
    access: Option<&[u8]>,
    default: Option<&[u8]>,
    target: AclTarget,
    perm: u16,
) -> Result<(Vec<Xattr>, u16), Problem> {
    if raw.is_empty() && access.is_none() && default.is_none() {
        return Ok((raw, perm));
    }
    let mut xattrs: Vec<Xattr> = Vec::with_capacity(raw.len() + 2);
    let (mut binary_access, mut binary_default) = (None, None);
    let mut raw = raw;
    // Latest first, and stable: the first of equals is the one that holds.
    raw.reverse();
    raw.sort_by(|a, b| a.name.cmp(&b.name));
    raw.dedup_by(|b, a| a.name == b.name);
    for xattr in raw {
        match xattr.name.as_slice() {
            ACL_ACCESS => binary_access = Some(xattr.value),
            ACL_DEFAULT => binary_default = Some(xattr.value),
            _ => {
                check(&xattr)?;
                xattrs.push(xattr);
            }
        }
    }
    // GNU tar with both --acls and --xattrs gives an ACL twice: the binary form has ids where the
    // text may have names.
    let acl = |binary: Option<Vec<u8>>, text: Option<&[u8]>| match (binary, text) {
        (Some(binary), _) => Acl::from_xattr(&binary).map_err(Problem::Acl),
        (None, Some(text)) => Acl::from_text(text).map_err(Problem::Acl),
        (None, None) => Ok(None),
    };
    let mut perm = perm;
    if let Some(acl) = acl(binary_access, access)? {
        if target == AclTarget::Symlink {
            return Err(Problem::Acl("a symbolic link cannot have one".into()));
        }
        perm = (perm & 0o7000) | acl.mode();
        if !acl.is_plain() {
            xattrs.push(Xattr {
                name: ACL_ACCESS.to_vec(),
                value: acl.to_xattr(),
            });
        }
    }
    if let Some(acl) = acl(binary_default, default)? {
        if target != AclTarget::Dir {
            return Err(Problem::Acl(
                "only a directory can have a default ACL".into(),
            ));
        }
        xattrs.push(Xattr {
            name: ACL_DEFAULT.to_vec(),
            value: acl.to_xattr(),
        });
    }
    xattrs.sort_unstable();
    Ok((xattrs, perm))
}

fn check(xattr: &Xattr) -> Result<(), Problem> {
    let bad = |what| {
        Err(Problem::Xattr {
            name: printable(&xattr.name),
            what,
        })
    };
    let known = [&b"user."[..], b"trusted.", b"security."]
        .iter()
        .any(|prefix| {
            xattr
                .name
                .strip_prefix(*prefix)
                .is_some_and(|rest| !rest.is_empty())
        });
    if xattr.name.contains(&0) {
        bad("its name holds a NUL byte")
    } else if xattr.name.len() > 255 {
        bad("its name is longer than Linux allows (255 bytes)")
    } else if !known {
        bad("Linux files have user., trusted. and security. attributes only")
    } else if xattr.value.len() > 65536 {
        bad("its value is longer than Linux allows (65536 bytes)")
    } else {
        Ok(())
    }
}

/// Undoes the `%XX` that GNU tar and libarchive write in attribute names (a `=` would end the
/// pax key). A `%` without two hex digits is itself.
pub(super) fn unescape(name: &[u8]) -> Vec<u8> {
    let hex = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    loop {
        match rest {
            [b'%', high, low, tail @ ..] if hex(*high).is_some() && hex(*low).is_some() => {
                out.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                rest = tail;
            }
            [byte, tail @ ..] => {
                out.push(*byte);
                rest = tail;
            }
            [] => return out,
        }
    }
}

/// Decodes base64 as libarchive writes it (no padding, though padding is taken).
pub(super) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let digits = text.trim_ascii_end();
    let digits = digits
        .strip_suffix(b"==")
        .or(digits.strip_suffix(b"="))
        .unwrap_or(digits);
    for chunk in digits.chunks(4) {
        let mut bits = 0_u32;
        for &digit in chunk {
            bits = bits << 6
                | u32::from(match digit {
                    b'A'..=b'Z' => digit - b'A',
                    b'a'..=b'z' => digit - b'a' + 26,
                    b'0'..=b'9' => digit - b'0' + 52,
                    b'+' => 62,
                    b'/' => 63,
                    _ => return None,
                });
        }
        let [_, a, b, c] = (bits << (6 * (4 - chunk.len()))).to_be_bytes();
        match chunk.len() {
            4 => out.extend_from_slice(&[a, b, c]),
            3 => out.extend_from_slice(&[a, b]),
            2 => out.push(a),
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn x(name: &str, value: &[u8]) -> Xattr {
        Xattr {
            name: name.as_bytes().to_vec(),
            value: value.to_vec(),
        }
    }

    #[test]
    fn the_later_value_holds_and_names_are_sorted() {
        let raw = vec![x("user.b", b"1"), x("user.a", b"2"), x("user.b", b"3")];
        let (got, perm) = finish(raw, None, None, AclTarget::Other, 0o4755).unwrap();
        assert_eq!(got, [x("user.a", b"2"), x("user.b", b"3")]);
        assert_eq!(perm, 0o4755);
    }

    #[test]
    fn names_and_values_are_bounded() {
        let long = format!("user.{}", "x".repeat(251));
        for bad in [
            x("user.", b""),
            x("com.apple.provenance", b""),
            x("system.nfs4_acl", b""),
            x("user.a\0", b""),
            x(&long, b""),
            x("user.v", &[0; 65537]),
        ] {
            assert!(finish(vec![bad], None, None, AclTarget::Other, 0).is_err());
        }
        let good = x("security.capability", &[0; 65536]);
        assert!(finish(vec![good], None, None, AclTarget::Other, 0).is_ok());
    }

    #[test]
    fn the_binary_acl_beats_the_text_and_sets_the_mode() {
        let acl = Acl::from_text(b"user::rw-,user:7:rwx,group::r--,mask::rwx,other::---");
        let binary = acl.unwrap().unwrap().to_xattr();
        let raw = vec![Xattr {
            name: ACL_ACCESS.to_vec(),
            value: binary.clone(),
        }];
        let text: &[u8] = b"user::rw-,user:joe:rwx,group::r--,mask::rwx,other::---";
        let (got, perm) = finish(raw, Some(text), None, AclTarget::Other, 0o4600).unwrap();
        assert_eq!(
            got,
            [Xattr {
                name: ACL_ACCESS.to_vec(),
                value: binary
            }]
        );
        assert_eq!(perm, 0o4670);
        assert!(finish(vec![], Some(text), None, AclTarget::Other, 0).is_err());
        let plain: &[u8] = b"user::rw-,group::r--,other::---";
        assert!(finish(vec![], None, Some(plain), AclTarget::Other, 0).is_err());
        assert!(finish(vec![], Some(plain), None, AclTarget::Symlink, 0).is_err());
        let (got, perm) = finish(vec![], Some(plain), Some(plain), AclTarget::Dir, 0o777).unwrap();
        assert_eq!((got.len(), perm), (1, 0o640));
    }

    #[test]
    fn encodings() {
        assert_eq!(unescape(b"user.x%25y%3Dz%4"), b"user.x%y=z%4");
        assert_eq!(unescape(b"%2541%zz%"), b"%41%zz%");
        assert_eq!(base64(b"CgAKPQ").unwrap(), b"\n\0\n=");
        assert_eq!(base64(b"CgAKPQ==").unwrap(), b"\n\0\n=");
        assert_eq!(base64(b"").unwrap(), b"");
        assert_eq!(base64(b"dg").unwrap(), b"v");
        assert_eq!(base64(b"d"), None);
        assert_eq!(base64(b"d*=="), None);
    }
}
