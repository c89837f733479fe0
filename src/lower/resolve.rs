//! Paths inside the image.
//!
//! As path_resolution(7) has it, with the image's root as `/`: an absolute link starts there
//! again, `..` of the root is the root. No path and no link leads out of the image.

use std::collections::HashSet;

use super::{Lower, LowerError, Nid};
use crate::inode::Kind;
use crate::name::{Name, NameError};

/// Links that one path may lead through (`MAXSYMLINKS` of Linux).
pub const MAX_LINKS: usize = 40;

/// Bytes that a path may grow to by its links: [`MAX_LINKS`] targets of PATH_MAX.
const MAX_PATH: usize = (MAX_LINKS + 1) * 4096;

/// Why a path leads nowhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// A component does not exist.
    #[error("no such file in the image")]
    NotFound,
    /// A component that must be a directory is none.
    #[error("not a directory")]
    NotDir,
    /// More than [`MAX_LINKS`] links.
    #[error("too many levels of symbolic links")]
    Loop,
    /// A component that cannot be a name.
    #[error(transparent)]
    Name(NameError),
    /// The image could not answer.
    #[error(transparent)]
    Lower(#[from] LowerError),
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The inode.
    pub nid: Nid,
    /// Its path without links, `.` and `..`; `/` for the root.
    pub path: Vec<u8>,
}

impl Lower {
    /// The inode at `path` (relative paths start at the root). A link in the last component is
    /// followed if `follow` says so or a slash comes after it.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub fn resolve(&self, path: &[u8], follow: bool) -> Result<Resolved, ResolveError> {
        // Components still to go, the next one last.
        let mut todo: Vec<Vec<u8>> = Vec::new();
        let mut bytes = 0;
        push(&mut todo, path, &mut bytes)?;
        // The directories on the way, below the root, with their names.
        let mut trail: Vec<(Nid, Name)> = Vec::new();
        let mut links = 0;
        let here = |trail: &[(Nid, Name)]| trail.last().map_or(self.root(), |(nid, _)| *nid);
        while let Some(component) = todo.pop() {
            let dir = here(&trail);
            // Also for "." and "..": "file/." is no path.
            if self.attr_kind(dir)? != Kind::Dir {
                return Err(ResolveError::NotDir);
            }
            match component.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    trail.pop();
                    continue;
                }
                _ => {}
            }
            let name = Name::new(&component).map_err(ResolveError::Name)?;
            let nid = self.lookup(dir, &name)?.ok_or(ResolveError::NotFound)?;
            if self.attr_kind(nid)? == Kind::Symlink && (follow || !todo.is_empty()) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(ResolveError::Loop);
                }
                let target = self.readlink(nid)?;
                if target.starts_with(b"/") {
                    trail.clear();
                }
                push(&mut todo, &target, &mut bytes)?;
                continue;
            }
            trail.push((nid, name));
        }
        let mut path = Vec::new();
        for (_, name) in &trail {
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
        }
        if path.is_empty() {
            path.push(b'/');
        }
        Ok(Resolved {
            nid: here(&trail),
            path,
        })
    }

    /// Every path from the root to `nid`, sorted; `/` for the root.
    ///
    /// # Errors
    /// [`LowerError::Damaged`], also where its directories do not lead to the root.
    pub fn paths(&self, nid: Nid) -> Result<Vec<Vec<u8>>, LowerError> {
        if nid == self.root() {
            return Ok(vec![b"/".to_vec()]);
        }
        let mut paths = Vec::new();
        for (dir, name) in self.names(nid)? {
            paths.push(self.path_of(dir, &name)?);
        }
        paths.sort_unstable();
        Ok(paths)
    }

    fn path_of(&self, dir: Nid, name: &Name) -> Result<Vec<u8>, LowerError> {
        let mut seen = HashSet::new();
        let mut parts = vec![name.clone()];
        let mut dir = dir;
        while dir != self.root() {
            if !seen.insert(dir) {
                return Err(self.damaged("a directory inside itself"));
            }
            let mut names = self.names(dir)?;
            let Some((parent, name)) = names.pop() else {
                return Err(self.damaged("a directory that nothing leads to"));
            };
            parts.push(name);
            dir = parent;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part.as_bytes());
        }
        Ok(path)
    }

    fn attr_kind(&self, nid: Nid) -> Result<Kind, LowerError> {
        Ok(self.inode(nid)?.kind)
    }
}

/// Puts the components of `path` in front of those to go. A trailing slash leaves an empty
/// component at the end, which asks for a directory; empty ones elsewhere are dropped.
fn push(todo: &mut Vec<Vec<u8>>, path: &[u8], bytes: &mut usize) -> Result<(), ResolveError> {
    *bytes += path.len();
    if *bytes > MAX_PATH {
        return Err(ResolveError::Loop);
    }
    let parts: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
    let last = parts.len() - 1;
    for (i, part) in parts.iter().enumerate().rev() {
        if !part.is_empty() || (i == last && i > 0) {
            todo.push(part.to_vec());
        }
    }
    Ok(())
}
