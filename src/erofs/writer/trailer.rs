//! What stands behind the EROFS image: the reverse table and the footer.

use std::io::Write;

use super::plan::Plan;
use super::{BlobSpec, WriteError, changed, limit};
use crate::erofs::layout::{BLOCK_LEN, FOOTER_LEN, Footer, ROW_LEN, Row};
use crate::index::tree::{Content, Tree};

/// Writes the trailer; its length. `body_crc` is the image's CRC-32C.
pub(super) fn write(
    tree: &Tree,
    plan: &Plan<'_>,
    blobs: &[BlobSpec],
    body_crc: u32,
    out: &mut dyn Write,
) -> Result<u64, WriteError> {
    let rows = rows(tree, plan)?;
    let mut table = Vec::with_capacity((rows.len() * ROW_LEN).next_multiple_of(BLOCK_LEN));
    for row in &rows {
        table.extend_from_slice(&row.encode());
    }
    table.resize(table.len().next_multiple_of(BLOCK_LEN), 0);
    out.write_all(&table)?;
    let footer = Footer {
        blobs: u32::try_from(blobs.len()).map_err(|_| limit("/", "too many blobs"))?,
        inodes: plan.inodes,
        dirents: plan.dirents,
        image_len: plan.image_len,
        table_offset: plan.image_len,
        table_rows: rows.len() as u64,
        file_bytes: plan.file_bytes,
        body_crc: crc32c::crc32c_append(body_crc, &table),
    };
    out.write_all(&footer.encode())?;
    Ok((table.len() + FOOTER_LEN) as u64)
}

/// The rows of every directory that has a place, sorted.
fn rows(tree: &Tree, plan: &Plan<'_>) -> Result<Vec<Row>, WriteError> {
    let mut rows = Vec::with_capacity(usize::try_from(plan.dirents).unwrap_or(0));
    for (inode, placed) in tree.inodes.iter().zip(&plan.placed) {
        let Content::Dir { children, .. } = &inode.content else {
            continue;
        };
        if placed.nid == 0 {
            continue;
        }
        for (_, id) in children {
            let nid = plan.placed(id).ok_or_else(changed)?.nid;
            rows.push(Row {
                nid,
                parent: placed.nid,
            });
        }
    }
    rows.sort_unstable_by_key(|row| (u64::from(row.nid) << 32) | u64::from(row.parent));
    Ok(rows)
}
