//! Hard links of the image into directories that were renamed.
//!
//! A group of which one name is in a renamed directory, and another where it was, has not risen to
//! the upper: the mount shows one file. The name that is written in full is a link to the one that
//! the image has; where a tar can only link to what it holds, the other names come as links too.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::walk::{File, Walk};
use super::{DiffError, Format};
use crate::inode::{Attr, Kind};
use crate::lower::Nid;
use crate::name::Name;
use crate::sys::fs;
use crate::upper::markers::Opaque;

impl Walk<'_, '_> {
    /// Writes a name of a file of the image as a link, if another one is there; else notes it as
    /// the first.
    pub(super) fn again_of_lower(&mut self, nid: Nid, attr: &Attr) -> Result<bool, DiffError> {
        let file = File::Lower(nid);
        if let Some(first) = self.first.get(&file).cloned() {
            self.link(attr, &first)?;
            return Ok(true);
        }
        let others = self.names_outside(nid)?;
        // Some unpack a layer by itself, and gVisor its tar.
        if matches!(self.format, Format::Gvisor | Format::Oci) {
            let first: Box<[u8]> = self.path.as_slice().into();
            for path in others {
                if !self.is_below_excluded(&path) {
                    self.late.insert(path, (nid, first.clone()));
                }
            }
            self.first.insert(file, first);
            return Ok(false);
        }
        let Some(first) = others.into_iter().min() else {
            self.first.insert(file, self.path.as_slice().into());
            return Ok(false);
        };
        self.link(attr, &first)?;
        self.first.insert(file, first.into());
        Ok(true)
    }

    /// The names of a file of the image that show through the upper where the image has them.
    fn names_outside(&self, nid: Nid) -> Result<Vec<Vec<u8>>, DiffError> {
        let mut outside = Vec::new();
        for (dir, name) in self.lower.names(nid)? {
            if let Some(mut path) = self.lower_path(dir)? {
                path.push(name);
                if self.shows_through(&path)? {
                    let path: Vec<_> = path.iter().map(Name::as_bytes).collect();
                    outside.push(path.join(&b'/'));
                }
            }
        }
        Ok(outside)
    }

    /// The path of a directory in the image.
    fn lower_path(&self, dir: Nid) -> Result<Option<Vec<Name>>, DiffError> {
        let mut path = Vec::new();
        let mut at = dir;
        while at != self.lower.root() {
            let names = self.lower.names(at)?;
            // A loop in a damaged index ends here: no tree is that deep.
            let Some((parent, name)) = names.into_iter().next().filter(|_| path.len() < 1 << 16)
            else {
                return Ok(None);
            };
            path.push(name);
            at = parent;
        }
        path.reverse();
        Ok(Some(path))
    }

    /// Whether the mount shows at a path what the image has there.
    fn shows_through(&self, path: &[Name]) -> Result<bool, DiffError> {
        let marks = self.of.marks;
        let failed = || DiffError::upper(&self.path, "looking for its other names");
        let mut here: Option<OwnedFd> = None;
        let mut at = Some(self.lower.root());
        for name in path {
            let dir = here.as_ref().map_or(self.of.root, AsFd::as_fd);
            match fs::stat(dir, name.as_bytes()) {
                Err(Errno::NOENT) => return Ok(true),
                Ok(stat) if stat.attr.kind == Kind::Dir => {}
                Ok(_) => return Ok(false),
                Err(errno) => return Err(failed()(errno)),
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let fd = fs::open(dir, name.as_bytes(), flags, 0).map_err(failed())?;
            if marks.opaque(fd.as_fd()).map_err(failed())? == Opaque::Yes {
                return Ok(false);
            }
            let below = match at {
                Some(at) => self.lower.lookup(at, name)?,
                None => None,
            };
            if let Some(redirect) = marks.redirect(fd.as_fd()).map_err(failed())?
                && self.redirected(at, &redirect, Kind::Dir)? != below
            {
                return Ok(false);
            }
            at = below;
            here = Some(fd);
        }
        // A directory of the upper.
        Ok(false)
    }

    /// Whether the upper has a directory at `path`.
    pub(super) fn upper_has(&self, path: &[u8]) -> Result<bool, DiffError> {
        match fs::open(self.of.root, path, OFlags::PATH | OFlags::DIRECTORY, 0) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(DiffError::upper(path, "opening")(errno)),
        }
    }

    fn is_below_excluded(&self, path: &[u8]) -> bool {
        let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/');
        let mut ends = slashes.map(|(at, _)| at).chain([path.len()]);
        ends.any(|end| self.is_excluded(path.get(..end).unwrap_or_default()))
    }
}
