//! From an inode back to its names.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};

use crate::inode::Kind;
use crate::name::Name;

use super::{Lower, LowerError, Nid};

/// The entries of one directory, by nid. A work like `chown -R` asks for the names of all files
/// of a large directory one after another: each would be a pass through it.
#[derive(Debug)]
pub(super) struct ByNid {
    dir: Nid,
    /// (nid, position behind the entry), sorted.
    entries: Vec<(u64, u64)>,
}

impl Lower {
    /// Every (directory, name) that leads to `nid`: the reverse table of the index, or a scan of
    /// it where there is none. Each answer has been looked up again and found to lead to `nid`.
    ///
    /// # Errors
    /// [`LowerError::Damaged`].
    pub fn names(&self, nid: Nid) -> Result<Vec<(Nid, Name)>, LowerError> {
        let inode = self.inode(nid)?;
        // A directory has one name, any other inode as many as it has links; the root has none.
        let wanted = match inode.kind {
            Kind::Dir if nid == self.root => 0,
            Kind::Dir => 1,
            _ => u64::from(inode.nlink),
        };
        if let Some(table) = self.reverse {
            let parents = self.of(self.reader.parents(table, nid.0))?;
            let found = self.names_in(nid, &parents)?;
            if found.len() as u64 >= wanted {
                return Ok(found);
            }
            // The table says less than the inode: ask the directories themselves.
        }
        let rows = match self.scanned.get() {
            Some(rows) => rows,
            None => {
                let rows = self.scan()?;
                self.scanned.get_or_init(|| rows)
            }
        };
        let first = rows.partition_point(|row| row.0 < nid.0);
        let mut parents: Vec<u64> = rows
            .iter()
            .skip(first)
            .take_while(|row| row.0 == nid.0)
            .map(|row| row.1)
            .collect();
        parents.dedup();
        self.names_in(nid, &parents)
    }

    /// The entries of `parents` that lead to `nid`. A row that names what is no directory, or one
    /// without such an entry, is no answer.
    fn names_in(&self, nid: Nid, parents: &[u64]) -> Result<Vec<(Nid, Name)>, LowerError> {
        let mut names = Vec::new();
        // The directories of a sound index lie in it side by side.
        let mut budget = self.reader.len();
        for &parent in parents {
            let Ok(dir) = self.inode(Nid(parent)) else {
                continue;
            };
            if dir.kind != Kind::Dir {
                continue;
            }
            budget = budget
                .checked_sub(dir.size)
                .ok_or_else(|| self.damaged("directories that share their bytes"))?;
            let by_nid = self.by_nid(Nid(parent))?;
            let first = by_nid.entries.partition_point(|entry| entry.0 < nid.0);
            for &(found, next) in by_nid.entries.iter().skip(first) {
                if found != nid.0 {
                    break;
                }
                // `next - 1` is the position in front of the entry.
                self.readdir(Nid(parent), next.saturating_sub(1), &mut |entry| {
                    if entry.nid == nid
                        && let Ok(name) = Name::new(entry.name)
                    {
                        names.push((Nid(parent), name));
                    }
                    ControlFlow::Break(())
                })?;
            }
        }
        Ok(names)
    }

    /// The entries of `dir` by nid: those of the last directory are kept.
    fn by_nid(&self, dir: Nid) -> Result<Arc<ByNid>, LowerError> {
        let kept = self
            .last_dir
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(kept) = kept.filter(|kept| kept.dir == dir) {
            return Ok(kept);
        }
        let mut entries = Vec::new();
        self.readdir(dir, 0, &mut |entry| {
            entries.push((entry.nid.0, entry.next));
            ControlFlow::Continue(())
        })?;
        entries.sort_unstable();
        let made = Arc::new(ByNid { dir, entries });
        let mut last = self.last_dir.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(Arc::clone(&made));
        Ok(made)
    }

    /// All (nid, directory) pairs of the tree, sorted.
    fn scan(&self) -> Result<Vec<(u64, u64)>, LowerError> {
        let mut rows = Vec::new();
        let mut seen = HashSet::from([self.root]);
        let mut todo = vec![self.root];
        let mut budget = self.reader.len();
        while let Some(dir) = todo.pop() {
            budget = budget
                .checked_sub(self.inode(dir)?.size)
                .ok_or_else(|| self.damaged("directories that share their bytes"))?;
            self.readdir(dir, 0, &mut |entry| {
                rows.push((entry.nid.0, dir.0));
                if entry.kind == Kind::Dir && seen.insert(entry.nid) {
                    todo.push(entry.nid);
                }
                ControlFlow::Continue(())
            })?;
        }
        rows.sort_unstable();
        Ok(rows)
    }
}
