//! Extended attributes, inline and shared.

use crate::inode::Xattr;

use super::{Inode, ReadError, Reader, Result, damaged, l};

/// An attribute in place: prefix, rest of the name, value.
struct Raw<'a> {
    prefix: &'static [u8],
    rest: &'a [u8],
    value: &'a [u8],
    /// Bytes of the whole entry, padding included.
    len: u64,
}

impl Reader {
    /// Decodes the attribute entry at byte `pos`, which must end before `end`.
    fn xattr_entry(&self, pos: u64, end: u64) -> Result<Raw<'_>> {
        let what = "an extended attribute behind the end of its area";
        let bad = ReadError::Damaged { what, offset: pos };
        let head = l::XATTR_ENTRY_LEN as u64;
        let raw = self.slice(pos, head, what)?;
        let entry = l::XattrEntry::decode(raw).map_err(|_| bad)?;
        let name_len = u64::from(entry.name_len);
        let value_len = u64::from(entry.value_size);
        let rest = self.slice(pos + head, name_len, what)?;
        let value = self.slice(pos + head + name_len, value_len, what)?;
        if pos + head + name_len + value_len > end {
            return Err(bad);
        }
        let Some(prefix) = l::xattr_prefix(entry.name_index) else {
            return damaged("an extended attribute with an unknown prefix", pos);
        };
        if prefix.ends_with(b".") == rest.is_empty() || rest.contains(&0) {
            return damaged("an extended attribute with a bad name", pos);
        }
        Ok(Raw {
            prefix,
            rest,
            value,
            len: entry.len() as u64,
        })
    }

    /// Calls `each` for the attributes of `inode`, inline ones first (as fs/erofs/xattr.c does),
    /// until it answers.
    fn each_xattr<T>(
        &self,
        inode: &Inode,
        each: &mut dyn FnMut(&Raw<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        if inode.xattr_len == 0 {
            return Ok(None);
        }
        let what = "extended attributes behind the end of the file";
        let area = self.slice(inode.xattr_pos, inode.xattr_len, what)?;
        let bad = ReadError::Damaged {
            what,
            offset: inode.xattr_pos,
        };
        let shared = u64::from(l::get_u8(area, l::XATTR_SHARED_COUNT).ok_or(bad)?);
        let ids_len = shared * l::XATTR_ID_LEN as u64;
        let ids_pos = inode.xattr_pos + l::XATTR_HEADER_LEN as u64;
        let end = inode.xattr_pos + inode.xattr_len;
        if ids_pos + ids_len > end {
            return damaged(
                "more shared attributes than the area holds",
                inode.xattr_pos,
            );
        }
        let mut pos = ids_pos + ids_len;
        while pos < end {
            let raw = self.xattr_entry(pos, end)?;
            if let Some(answer) = each(&raw)? {
                return Ok(Some(answer));
            }
            pos += raw.len;
        }
        let ids = self.slice(ids_pos, ids_len, what)?;
        for id in ids.chunks_exact(l::XATTR_ID_LEN) {
            let id = u64::from(l::get_u32(id, 0).ok_or(bad)?);
            // Both terms are below 2^45.
            let raw = self.xattr_entry(self.sb.shared_xattrs + id * 4, u64::MAX)?;
            if let Some(answer) = each(&raw)? {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    /// All extended attributes of `inode`, sorted by name.
    ///
    /// # Errors
    /// [`ReadError::Damaged`], also where a name comes twice.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>> {
        let mut all = Vec::new();
        // What an honest inode can have: its own area, and what Linux takes of shared ones. A
        // hostile one could name one large entry 255 times.
        let mut budget = self.len();
        self.each_xattr::<()>(inode, &mut |raw| {
            let Some(left) = budget.checked_sub(raw.len) else {
                return damaged(
                    "more extended attributes than the file holds",
                    inode.xattr_pos,
                );
            };
            budget = left;
            all.push(Xattr {
                name: [raw.prefix, raw.rest].concat(),
                value: raw.value.to_vec(),
            });
            Ok(None)
        })?;
        all.sort_unstable();
        let twice = all
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.name == b.name));
        if twice {
            return damaged("an extended attribute that comes twice", inode.xattr_pos);
        }
        Ok(all)
    }

    /// The value of the attribute `name` of `inode`.
    ///
    /// # Errors
    /// [`ReadError::Damaged`].
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.each_xattr(inode, &mut |raw| {
            let found = name.strip_prefix(raw.prefix) == Some(raw.rest);
            Ok(found.then(|| raw.value.to_vec()))
        })
    }
}
