//! Inheritance of POSIX ACLs, for a new file that is born in the work directory and so does not
//! get its parent's default ACL from the filesystem.
//!
//! The binary form is that of `include/uapi/linux/posix_acl_xattr.h`: a little-endian version 2
//! (u32), then entries of tag (u16), permissions (u16) and ID (u32).

use rustix::io::{Errno, Result};

const HEADER: usize = 4;
const ENTRY: usize = 8;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The mode and the access ACL of a new file under a default ACL
/// (`fs/posix_acl.c:posix_acl_create_masq()`): the mode's bits and the ACL's entries for owner,
/// mask (else group) and others are both reduced to what the two have in common.
///
/// `None` for the ACL where the mode says it all.
///
/// # Errors
/// EIO for a malformed ACL.
pub fn inherit(default: &[u8], perm: u16) -> Result<(u16, Option<Vec<u8>>)> {
    let mut acl = default.to_vec();
    let body = acl.get_mut(HEADER..).ok_or(Errno::IO)?;
    if !body.len().is_multiple_of(ENTRY) {
        return Err(Errno::IO);
    }
    let has_mask = body.chunks_exact(ENTRY).any(|entry| tag(entry) == MASK);
    let (mut owner, mut group, mut other) = (0, 0, 0);
    let mut extended = false;
    for entry in body.chunks_exact_mut(ENTRY) {
        let class = match tag(entry) {
            USER_OBJ => Some((6, &mut owner)),
            OTHER => Some((0, &mut other)),
            MASK => Some((3, &mut group)),
            GROUP_OBJ if !has_mask => Some((3, &mut group)),
            _ => None,
        };
        extended |= !matches!(tag(entry), USER_OBJ | GROUP_OBJ | OTHER);
        if let (Some((shift, bits)), [_, _, low, ..]) = (class, entry) {
            *low &= ((perm >> shift) & 7).to_le_bytes()[0];
            *bits = u16::from(*low) << shift;
        }
    }
    let perm = (perm & !0o777) | owner | group | other;
    Ok((perm, extended.then_some(acl)))
}

fn tag(entry: &[u8]) -> u16 {
    match entry {
        [low, high, ..] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(perm.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_minimal_default_acl_becomes_a_mode() {
        let default = acl(&[(USER_OBJ, 7, !0), (GROUP_OBJ, 5, !0), (OTHER, 0, !0)]);
        assert_eq!(inherit(&default, 0o666).unwrap(), (0o640, None));
    }

    #[test]
    fn the_mask_bounds_the_group_class() {
        let default = acl(&[
            (USER_OBJ, 7, !0),
            (2, 7, 1000),
            (GROUP_OBJ, 5, !0),
            (MASK, 7, !0),
            (OTHER, 5, !0),
        ]);
        let expected = acl(&[
            (USER_OBJ, 6, !0),
            (2, 7, 1000),
            (GROUP_OBJ, 5, !0),
            (MASK, 4, !0),
            (OTHER, 0, !0),
        ]);
        assert_eq!(inherit(&default, 0o640).unwrap(), (0o640, Some(expected)));
    }

    #[test]
    fn malformed_acls_are_errors() {
        assert_eq!(inherit(b"\x02\0", 0o644), Err(Errno::IO));
        assert_eq!(inherit(b"\x02\0\0\0abc", 0o644), Err(Errno::IO));
    }
}
