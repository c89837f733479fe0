//! POSIX ACLs from the kernel's binary form (`include/uapi/linux/posix_acl_xattr.h`) to the text
//! of `SCHILY.acl.*` records, as GNU tar writes it, with numbers for names.

use std::fmt::Write as _;

const VERSION: [u8; 4] = 2_u32.to_le_bytes();

/// The text of an ACL; `None` where the bytes are none that text can tell.
pub(super) fn text(value: &[u8]) -> Option<String> {
    let (entries, odd) = value.strip_prefix(&VERSION)?.as_chunks::<8>();
    if !odd.is_empty() || entries.is_empty() {
        return None;
    }
    let mut text = String::new();
    for &[t0, t1, p0, p1, i0, i1, i2, i3] in entries {
        let id = u32::from_le_bytes([i0, i1, i2, i3]);
        let (tag, named) = match u16::from_le_bytes([t0, t1]) {
            0x01 => ("user", false),
            0x02 => ("user", true),
            0x04 => ("group", false),
            0x08 => ("group", true),
            0x10 => ("mask", false),
            0x20 => ("other", false),
            _ => return None,
        };
        let perm = u16::from_le_bytes([p0, p1]);
        if perm > 7 {
            return None;
        }
        let name = if named { id.to_string() } else { String::new() };
        let bit = |bit: u16, letter| if perm & bit == 0 { '-' } else { letter };
        let (r, w, x) = (bit(4, 'r'), bit(2, 'w'), bit(1, 'x'));
        writeln!(text, "{tag}:{name}:{r}{w}{x}").ok()?;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = VERSION.to_vec();
        for (tag, perm, id) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perm.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    #[test]
    fn an_acl_as_text() {
        let acl = binary(&[
            (1, 7, u32::MAX),
            (2, 5, 4_000_000_000),
            (4, 4, u32::MAX),
            (8, 0, 7),
            (16, 5, u32::MAX),
            (32, 0, u32::MAX),
        ]);
        assert_eq!(
            text(&acl).unwrap(),
            "user::rwx\nuser:4000000000:r-x\ngroup::r--\ngroup:7:---\nmask::r-x\nother::---\n"
        );
    }

    #[test]
    fn what_is_no_acl_has_no_text() {
        let good = binary(&[(1, 7, 0)]);
        for bad in [
            &b""[..],
            &VERSION,
            &good[..good.len() - 1],
            &[&good[..], b"x"].concat(),
            &binary(&[(3, 7, 0)]),
            &binary(&[(1, 8, 0)]),
            &[&[1, 0, 0, 0], &good[4..]].concat(),
        ] {
            assert_eq!(text(bad), None, "{bad:?}");
        }
    }
}
