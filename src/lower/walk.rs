//! A walk through the whole image, or a part of it.

use std::collections::HashSet;
use std::ops::ControlFlow;

use crate::inode::Kind;

use super::{Lower, LowerError, Nid};

/// What a walk comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked<'a> {
    /// The path below the start, without a leading slash.
    pub path: &'a [u8],
    /// The last component of it.
    pub name: &'a [u8],
    /// The directory that holds the name.
    pub dir: Nid,
    /// What the name leads to.
    pub nid: Nid,
    /// The type that the directory notes.
    pub kind: Kind,
    /// Directories between the start and this: 0 for an entry of the start.
    pub depth: usize,
    /// Whether it is the last entry of its directory.
    pub last: bool,
}

/// What to do after an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Go on, into it if it is a directory.
    Into,
    /// Go on behind it.
    Over,
}

/// A directory on the way: its entries, from the last to the first.
struct Level {
    dir: Nid,
    left: Vec<(Box<[u8]>, Nid, Kind)>,
    /// Length of the path of the directory itself.
    path_len: usize,
}

impl Lower {
    /// Calls `each` for every entry below directory `start`, a directory before its entries, in
    /// byte order, until it breaks.
    ///
    /// # Errors
    /// [`LowerError::Damaged`], also where a directory has two names; whatever `each` breaks with.
    pub fn walk<E: From<LowerError>>(
        &self,
        start: Nid,
        each: &mut dyn FnMut(Walked<'_>) -> Result<Step, E>,
    ) -> Result<(), E> {
        let mut seen = HashSet::from([start]);
        let mut budget = self.reader.len();
        let mut path = Vec::new();
        let mut levels = vec![self.level(start, 0, &mut budget)?];
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path_len);
            let Some((name, nid, kind)) = level.left.pop() else {
                levels.pop();
                continue;
            };
            let (dir, last) = (level.dir, level.left.is_empty());
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let depth = levels.len() - 1;
            let step = each(Walked {
                path: &path,
                name: &name,
                dir,
                nid,
                kind,
                depth,
                last,
            })?;
            if step == Step::Into && kind == Kind::Dir {
                if !seen.insert(nid) {
                    return Err(self.damaged("a directory with two names").into());
                }
                let next = self.level(nid, path.len(), &mut budget)?;
                levels.push(next);
            }
        }
        Ok(())
    }

    fn level(&self, dir: Nid, path_len: usize, budget: &mut u64) -> Result<Level, LowerError> {
        // The directories of a sound index lie in it side by side.
        *budget = budget
            .checked_sub(self.inode(dir)?.size)
            .ok_or_else(|| self.damaged("directories that share their bytes"))?;
        let mut left = Vec::new();
        self.readdir(dir, 0, &mut |entry| {
            left.push((entry.name.into(), entry.nid, entry.kind));
            ControlFlow::Continue(())
        })?;
        left.reverse();
        Ok(Level {
            dir,
            left,
            path_len,
        })
    }
}
