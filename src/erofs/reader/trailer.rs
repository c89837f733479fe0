//! The reverse table behind the image (docs/FORMAT.md): which directories name an inode.

use super::{ReadError, Reader, Result, l};

/// Where the rows of the reverse table are. A hint only: nothing says that it is true, and who
/// uses a row looks the inode up in the directory that the row names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reverse {
    start: u64,
    rows: u64,
}

impl Reader {
    /// The footer, if the file ends in one.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] where there is one by its magic number, and it contradicts itself.
    pub fn footer(&self) -> Result<Option<l::Footer>> {
        let Some(start) = self.len().checked_sub(l::FOOTER_LEN as u64) else {
            return Ok(None);
        };
        let raw = self.slice(start, l::FOOTER_LEN as u64, "the footer")?;
        if !raw.starts_with(&l::FOOTER_MAGIC) {
            return Ok(None);
        }
        l::Footer::decode(raw, self.len())
            .map(Some)
            .map_err(|bad| ReadError::Damaged {
                what: bad.0,
                offset: start,
            })
    }

    /// The reverse table, if there is one.
    ///
    /// # Errors
    /// As [`Self::footer`].
    pub fn reverse(&self) -> Result<Option<Reverse>> {
        let Some(footer) = self.footer()? else {
            return Ok(None);
        };
        let len = footer.table_rows.saturating_mul(l::ROW_LEN as u64);
        self.slice(
            footer.table_offset,
            len,
            "the reverse table behind the end of the file",
        )?;
        Ok(Some(Reverse {
            start: footer.table_offset,
            rows: footer.table_rows,
        }))
    }

    fn row(&self, table: Reverse, i: u64) -> Result<l::Row> {
        let pos = table
            .start
            .saturating_add(i.saturating_mul(l::ROW_LEN as u64));
        let raw = self.slice(pos, l::ROW_LEN as u64, "a row of the reverse table")?;
        l::Row::decode(raw).map_err(|bad| ReadError::Damaged {
            what: bad.0,
            offset: pos,
        })
    }

    /// The directories that the rows of `nid` name, each once.
    ///
    /// # Errors
    /// [`ReadError::Damaged`].
    pub fn parents(&self, table: Reverse, nid: u64) -> Result<Vec<u64>> {
        let Ok(nid) = u32::try_from(nid) else {
            return Ok(Vec::new());
        };
        let (mut low, mut high) = (0, table.rows);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.row(table, middle)?.nid < nid {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let mut parents = Vec::new();
        for i in low..table.rows {
            let row = self.row(table, i)?;
            if row.nid != nid {
                break;
            }
            if parents.last() != Some(&u64::from(row.parent)) {
                parents.push(u64::from(row.parent));
            }
        }
        parents.sort_unstable();
        parents.dedup();
        Ok(parents)
    }
}
