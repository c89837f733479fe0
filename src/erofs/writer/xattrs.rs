//! Extended attributes: in the inode, or once for all inodes that have the same.

use std::collections::HashMap;

use crate::erofs::layout::{
    BLOCK_LEN, XATTR_BODY_MAX, XATTR_HEADER_LEN, XATTR_ID_LEN, XATTR_SHARED_COUNT,
    XATTR_SHARED_MAX, XattrEntry, put, xattr_split,
};
use crate::index::tree::Inode;
use crate::inode::Xattr;

/// The shared xattr area of an image.
pub(super) struct Xattrs<'t> {
    ids: HashMap<&'t Xattr, u32>,
    shared: Vec<u8>,
}

impl<'t> Xattrs<'t> {
    /// Finds what is worth sharing: what two inodes have, and what would fill a block of the
    /// inodes' area. In the order of the tree's inodes.
    pub(super) fn new(inodes: &'t [Inode]) -> Self {
        let mut counts: HashMap<&Xattr, u32> = HashMap::new();
        for xattr in inodes.iter().flat_map(|inode| &inode.xattrs) {
            *counts.entry(xattr).or_default() += 1;
        }
        let mut this = Self {
            ids: HashMap::new(),
            shared: Vec::new(),
        };
        if counts.is_empty() {
            return this;
        }
        for xattr in inodes.iter().flat_map(|inode| &inode.xattrs) {
            // What cannot be written is reported when its inode is placed, with the path.
            let Ok((entry, _)) = encode(xattr) else {
                continue;
            };
            let worth = counts.get(xattr).is_some_and(|&n| n > 1) || entry.len() > BLOCK_LEN;
            let Ok(id) = u32::try_from(this.shared.len() / XATTR_ID_LEN) else {
                continue;
            };
            if worth && !this.ids.contains_key(xattr) && append(xattr, &mut this.shared).is_ok() {
                this.ids.insert(xattr, id);
            }
        }
        this
    }

    /// The bytes of the shared area.
    pub(super) fn shared(&self) -> &[u8] {
        &self.shared
    }

    /// Length of an inode's xattrs with their header; 0 where there are none.
    ///
    /// # Errors
    /// What EROFS cannot hold.
    pub(super) fn body_len(&self, xattrs: &[Xattr]) -> Result<usize, String> {
        if xattrs.is_empty() {
            return Ok(0);
        }
        let mut len = XATTR_HEADER_LEN;
        let mut shared = 0;
        for xattr in xattrs {
            let (entry, _) = encode(xattr)?;
            if self.ids.contains_key(xattr) && shared < XATTR_SHARED_MAX {
                shared += 1;
                len += XATTR_ID_LEN;
            } else {
                len += entry.len();
            }
        }
        if len > XATTR_BODY_MAX {
            return Err(format!(
                "{} extended attributes of {len} bytes; EROFS holds {XATTR_BODY_MAX}",
                xattrs.len()
            ));
        }
        Ok(len)
    }

    /// Appends an inode's xattrs: header, ids of shared ones, the others.
    ///
    /// # Errors
    /// As [`Self::body_len`].
    pub(super) fn put_body(&self, xattrs: &[Xattr], out: &mut Vec<u8>) -> Result<(), String> {
        if xattrs.is_empty() {
            return Ok(());
        }
        let start = out.len();
        out.resize(start + XATTR_HEADER_LEN, 0);
        let mut shared: u8 = 0;
        for id in xattrs
            .iter()
            .filter_map(|x| self.ids.get(x))
            .take(XATTR_SHARED_MAX)
        {
            out.extend_from_slice(&id.to_le_bytes());
            shared += 1;
        }
        put(out, start + XATTR_SHARED_COUNT, &[shared]);
        let mut left = shared;
        for xattr in xattrs {
            match left.checked_sub(1) {
                Some(fewer) if self.ids.contains_key(xattr) => left = fewer,
                _ => append(xattr, out)?,
            }
        }
        Ok(())
    }
}

/// The entry's header and the name without its prefix.
fn encode(xattr: &Xattr) -> Result<(XattrEntry, &[u8]), String> {
    let shown = xattr.name.escape_ascii();
    let (name_index, rest) = xattr_split(&xattr.name)
        .ok_or_else(|| format!("extended attribute {shown}: EROFS has no such namespace"))?;
    if rest.contains(&0) {
        return Err(format!("extended attribute {shown}: a NUL in its name"));
    }
    let name_len = u8::try_from(rest.len())
        .map_err(|_| format!("extended attribute {shown}: its name is longer than 255 bytes"))?;
    let value_size = u16::try_from(xattr.value.len()).map_err(|_| {
        format!(
            "extended attribute {shown}: {} bytes; EROFS holds 65,535",
            xattr.value.len()
        )
    })?;
    Ok((
        XattrEntry {
            name_len,
            name_index,
            value_size,
        },
        rest,
    ))
}

/// Appends an entry with its padding; `out` is at a multiple of 4.
fn append(xattr: &Xattr, out: &mut Vec<u8>) -> Result<(), String> {
    let (entry, name) = encode(xattr)?;
    let end = out.len() + entry.len();
    out.extend_from_slice(&entry.encode());
    out.extend_from_slice(name);
    out.extend_from_slice(&xattr.value);
    out.resize(end, 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tree::Content;
    use crate::inode::Time;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr {
            name: name.into(),
            value: value.into(),
        }
    }

    fn inode(xattrs: Vec<Xattr>) -> Inode {
        let mtime = Time::default();
        Inode {
            content: Content::Fifo,
            perm: 0,
            uid: 0,
            gid: 0,
            mtime,
            nlink: 1,
            xattrs,
        }
    }

    #[test]
    fn shares_what_repeats_and_what_is_big() {
        let a = xattr("user.a", b"1");
        let big = xattr("user.big", &[b'x'; 600]);
        let inodes = [
            inode(vec![a.clone(), xattr("user.one", b"")]),
            inode(vec![a.clone()]),
            inode(vec![big.clone()]),
        ];
        let xattrs = Xattrs::new(&inodes);
        assert_eq!(xattrs.shared().len(), 8 + 608);
        for (inode, len) in inodes.iter().zip([12 + 4 + 8, 12 + 4, 12 + 4]) {
            let mut out = Vec::new();
            xattrs.put_body(&inode.xattrs, &mut out).unwrap();
            assert_eq!((out.len(), xattrs.body_len(&inode.xattrs)), (len, Ok(len)));
            assert_eq!(out[XATTR_SHARED_COUNT], 1);
        }
        assert_eq!(xattrs.ids[&big], 2);
    }

    #[test]
    fn past_255_shared_ones_the_rest_is_inline() {
        let many: Vec<Xattr> = (0..300)
            .map(|n| xattr(&format!("user.{n:03}"), b"v"))
            .collect();
        let inodes = [inode(many.clone()), inode(many.clone())];
        let xattrs = Xattrs::new(&inodes);
        let mut out = Vec::new();
        xattrs.put_body(&many, &mut out).unwrap();
        assert_eq!(out.len(), 12 + 255 * 4 + 45 * 8);
        assert_eq!(xattrs.body_len(&many), Ok(out.len()));
    }

    #[test]
    fn refuses_what_erofs_cannot_hold() {
        for (bad, what) in [
            (xattr("system.nfs4_acl", b""), "no such namespace"),
            (xattr("plain", b""), "no such namespace"),
            (xattr("user.a\0b", b""), "NUL"),
            (
                xattr(&format!("user.{}", "x".repeat(256)), b""),
                "longer than 255",
            ),
            (
                xattr("user.x", &[0; 65536]),
                "65536 bytes; EROFS holds 65,535",
            ),
        ] {
            let inodes = [inode(vec![bad])];
            let error = Xattrs::new(&inodes)
                .body_len(&inodes[0].xattrs)
                .unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        let full = [inode(vec![xattr("user.x", &[0; 65535])])];
        assert!(Xattrs::new(&full).body_len(&full[0].xattrs).is_ok());
    }
}
