//! The data of a directory: blocks of 512 bytes, entries first, then their names.

use crate::erofs::layout::{BLOCK, BLOCK_LEN, DIRENT_LEN, RawDirent};
use crate::index::tree::{Children, InodeId};
use crate::name;

/// The entries of a directory in the order on disk: bytewise over all, `.` and `..` among them
/// (a name may begin with a byte below `.`), since the kernel searches by halving over all
/// blocks (fs/erofs/namei.c:erofs_find_target_block, find_target_dirent).
pub(super) fn entries(
    own: InodeId,
    parent: InodeId,
    children: &Children,
) -> impl Iterator<Item = (&[u8], InodeId)> {
    let mut children = children.iter().peekable();
    let mut dots = [(&b"."[..], own), (&b".."[..], parent)]
        .into_iter()
        .peekable();
    std::iter::from_fn(move || match (children.peek(), dots.peek()) {
        (Some((name, _)), Some((dots, _))) if name < dots => children.next(),
        (_, Some(_)) => dots.next(),
        (_, None) => children.next(),
    })
}

/// Fills blocks: how much of the last one is used, and how many are full.
#[derive(Default)]
struct Fill {
    full: u64,
    used: usize,
}

impl Fill {
    /// Counts an entry; whether it begins a new block.
    fn add(&mut self, name: &[u8]) -> bool {
        let need = DIRENT_LEN + name.len();
        let new = self.used + need > BLOCK_LEN;
        if new {
            self.full += 1;
            self.used = 0;
        }
        self.used += need;
        new
    }
}

/// The length of the directory's data, whose last block is as long as its entries; checks that
/// the names are valid and strictly rising.
pub(super) fn measure(children: &Children) -> Result<u64, &'static str> {
    let mut fill = Fill::default();
    let mut dots = [&b"."[..], b".."].into_iter().peekable();
    let mut before: &[u8] = b"";
    for (name, _) in children {
        name::check(name).map_err(|_| "a name that no directory can hold")?;
        if name <= before {
            return Err("the names of a directory are not sorted, or one occurs twice");
        }
        while let Some(dots) = dots.next_if(|dots| *dots < name) {
            fill.add(dots);
        }
        fill.add(name);
        before = name;
    }
    for dots in dots {
        fill.add(dots);
    }
    Ok(fill.full * BLOCK + fill.used as u64)
}

/// Appends the directory's data. `look` gives an inode's nid and file type; `None` from it, or a
/// number beyond the format, ends with `None`.
pub(super) fn pack<'a>(
    entries: impl Iterator<Item = (&'a [u8], InodeId)>,
    out: &mut Vec<u8>,
    look: impl Fn(InodeId) -> Option<(u64, u8)>,
) -> Option<()> {
    let mut fill = Fill::default();
    let mut block: Vec<(&[u8], u64, u8)> = Vec::with_capacity(BLOCK_LEN / DIRENT_LEN);
    for (name, id) in entries {
        let (nid, file_type) = look(id)?;
        if fill.add(name) {
            flush(&mut block, out)?;
            out.resize(out.len().next_multiple_of(BLOCK_LEN), 0);
        }
        block.push((name, nid, file_type));
    }
    flush(&mut block, out)
}

/// Appends the entries of one block and then their names.
fn flush(block: &mut Vec<(&[u8], u64, u8)>, out: &mut Vec<u8>) -> Option<()> {
    let mut nameoff = block.len() * DIRENT_LEN;
    for &(name, nid, file_type) in &*block {
        let dirent = RawDirent {
            nid,
            nameoff: u16::try_from(nameoff).ok()?,
            file_type,
        };
        out.extend_from_slice(&dirent.encode());
        nameoff += name.len();
    }
    for (name, ..) in block.drain(..) {
        out.extend_from_slice(name);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn children(names: &[&[u8]]) -> Children {
        names.iter().map(|&name| (name, InodeId(9))).collect()
    }

    fn listed(names: &[&[u8]]) -> Vec<Vec<u8>> {
        let children = children(names);
        entries(InodeId(0), InodeId(0), &children)
            .map(|(name, _)| name.to_vec())
            .collect()
    }

    #[test]
    fn dots_stand_in_their_sorted_places() {
        assert_eq!(listed(&[]), [&b"."[..], b".."]);
        let names: &[&[u8]] = &[b"\x01", b"-", b".\x02", b".-", b".../x", b".a", b"a"];
        let mut want = names.iter().map(|n| n.to_vec()).collect::<Vec<_>>();
        want.extend([b".".to_vec(), b"..".to_vec()]);
        want.sort();
        assert_eq!(listed(names), want);
    }

    #[test]
    fn planned_length_is_packed_length() {
        for count in [0, 1, 2, 17, 18, 19, 400] {
            for len in [1, 7, 100, 255] {
                let names: Vec<Vec<u8>> = (0..count)
                    .map(|n| format!("{n:0>w$}", w = len.max(3)).into_bytes())
                    .collect();
                let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
                let children = children(&names);
                let mut out = Vec::new();
                let all = entries(InodeId(0), InodeId(0), &children);
                pack(all, &mut out, |_| Some((1, 1))).unwrap();
                assert_eq!(measure(&children), Ok(out.len() as u64));
            }
        }
    }

    #[test]
    fn refuses_names_that_are_none() {
        for bad in [
            &[&b"b"[..], b"a"][..],
            &[b"a", b"a"],
            &[b".."],
            &[b"a/b"],
            &[b""],
        ] {
            assert!(measure(&children(bad)).is_err(), "{bad:?}");
        }
        assert!(measure(&children(&[b"a", b"b"])).is_ok());
    }
}
