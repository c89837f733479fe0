//! What stands behind the EROFS image: the reverse table and the footer.

use std::io::Write;

use super::{Summary, WriteError};
use crate::erofs::layout::{BLOCK_LEN, FOOTER_LEN, Footer, ROW_LEN, Row};

/// The rows of the reverse table, in order. Most come in their order, as inodes are placed one
/// behind the other; the few others are put among them in the end.
#[derive(Default)]
pub(super) struct Rows {
    rising: Vec<Row>,
    others: Vec<Row>,
}

impl Rows {
    /// With room for those of so many `inodes`.
    pub(super) fn of(inodes: usize) -> Self {
        Self {
            rising: Vec::with_capacity(inodes),
            others: Vec::new(),
        }
    }

    /// Adds the row of one directory entry.
    pub(super) fn push(&mut self, nid: u32, parent: u32) {
        let row = Row { nid, parent };
        if self.rising.last().is_none_or(|last| *last <= row) {
            self.rising.push(row);
        } else {
            self.others.push(row);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rising.len() + self.others.len()
    }

    /// All rows, sorted, as they are written.
    fn table(mut self) -> Vec<u8> {
        self.others.sort_unstable();
        let len = self.len() * ROW_LEN;
        let mut table = Vec::with_capacity(len.next_multiple_of(BLOCK_LEN));
        let mut rising = self.rising.as_slice();
        for row in self.others {
            let before = rising.iter().take_while(|other| **other <= row).count();
            let (now, later) = rising.split_at_checked(before).unwrap_or_default();
            table.extend(now.iter().flat_map(Row::encode));
            table.extend(row.encode());
            rising = later;
        }
        table.extend(rising.iter().flat_map(Row::encode));
        table.resize(len.next_multiple_of(BLOCK_LEN), 0);
        table
    }
}

/// Writes the trailer behind an image of `image_len` bytes with the CRC-32C `body_crc`; its
/// length. `summary` has everything but the length.
pub(super) fn write(
    rows: Rows,
    blobs: u32,
    image_len: u64,
    body_crc: u32,
    summary: &Summary,
    out: &mut dyn Write,
) -> Result<u64, WriteError> {
    let table_rows = rows.len() as u64;
    let table = rows.table();
    out.write_all(&table)?;
    let footer = Footer {
        blobs,
        inodes: summary.inodes,
        dirents: summary.dirents,
        image_len,
        table_offset: image_len,
        table_rows,
        file_bytes: summary.file_bytes,
        body_crc: crc32c::crc32c_append(body_crc, &table),
    };
    out.write_all(&footer.encode())?;
    Ok((table.len() + FOOTER_LEN) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_any_order_are_sorted() {
        let mut rows = Rows::default();
        let mut want = Vec::new();
        for n in 0..1000_u32 {
            let (nid, parent) = if n % 7 == 0 {
                (n / 2, n % 5)
            } else {
                (n * 3, n)
            };
            rows.push(nid, parent);
            rows.push(nid, parent);
            want.extend([Row { nid, parent }; 2]);
        }
        want.sort_unstable();
        let table = rows.table();
        let got = table.chunks(ROW_LEN).map(|row| Row::decode(row).unwrap());
        assert_eq!(got.take(want.len()).collect::<Vec<_>>(), want);
        assert_eq!(table.len() % BLOCK_LEN, 0);
    }
}
