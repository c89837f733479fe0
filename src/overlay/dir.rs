//! Listings.
//!
//! A directory of the image alone is listed from the index, at its own positions. One that the
//! upper holds is merged into a list when it is read from the start, and that list stays the
//! handle's until it is read from the start again: entries that come and go meanwhile neither
//! repeat nor displace others (readdir(3)).

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::{Doing, refuse};
use super::node::{FACT_REMOVED, FACT_XWHITEOUTS, Node, UPPER_BASE, lock};
use super::{DirEntry, Entry, Error, Handle, Ino, Overlay, Result, Target};
use crate::inode::Kind;
use crate::lower::Nid;
use crate::name::Name;
use crate::sys::fs;

/// Offsets of `.` and `..`; all others come after.
const DOTS: u64 = 2;

/// An open directory.
#[derive(Debug)]
pub(super) struct OpenDir {
    ino: Ino,
    list: Mutex<Option<Arc<Vec<Listed>>>>,
}

impl OpenDir {
    pub(super) fn is_of(&self, ino: Ino) -> bool {
        self.ino == ino
    }
}

/// An entry of a merged listing.
#[derive(Debug)]
struct Listed {
    name: Name,
    ino: u64,
    kind: Kind,
}

/// What a listing calls for each entry, and a lookup of it where one is asked for.
type Each<'a> = &'a mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>;

impl Overlay {
    /// Opens a directory for listing.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE.
    pub fn opendir(&self, ino: Ino) -> Result<Handle> {
        self.directory(ino)?;
        let handle = self.handle();
        self.dirs.insert(
            handle.0,
            Arc::new(OpenDir {
                ino,
                list: Mutex::new(None),
            }),
        );
        Ok(handle)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: Handle) {
        self.dirs.remove(&handle.0);
    }

    /// Calls `each` for the entries behind `offset` (0 = the start) until it breaks; the entry
    /// that it broke at is not taken.
    ///
    /// # Errors
    /// EBADF, EIO.
    pub fn readdir(&self, handle: Handle, offset: u64, each: Each<'_>) -> Result<()> {
        self.read_listing(handle, offset, false, each)
    }

    /// As [`Self::readdir`], with [`DirEntry::entry`] filled in; each that is taken counts as a
    /// lookup.
    ///
    /// # Errors
    /// As [`Self::readdir`].
    pub fn readdirplus(&self, handle: Handle, offset: u64, each: Each<'_>) -> Result<()> {
        self.read_listing(handle, offset, true, each)
    }

    /// fsync(2) of a directory.
    ///
    /// # Errors
    /// EIO.
    pub fn fsyncdir(&self, handle: Handle) -> Result<()> {
        match self.target(self.open_dir(handle)?.ino)? {
            Target::Upper(node) if !self.options.volatile => {
                let fd = self.open_node(&node, OFlags::RDONLY | OFlags::DIRECTORY)?;
                fs::sync(fd.as_fd(), false).doing("syncing")
            }
            _ => Ok(()),
        }
    }

    fn open_dir(&self, handle: Handle) -> Result<Arc<OpenDir>> {
        match self.dirs.get(&handle.0) {
            Some(dir) => Ok(Arc::clone(&dir)),
            None => refuse(Errno::BADF),
        }
    }

    fn read_listing(&self, handle: Handle, offset: u64, plus: bool, each: Each<'_>) -> Result<()> {
        let dir = self.open_dir(handle)?;
        let target = self.target(dir.ino)?;
        if offset < DOTS && self.read_dots(&target, dir.ino, offset, each)?.is_break() {
            return Ok(());
        }
        let from = offset.saturating_sub(DOTS);
        let kept = lock(&dir.list).clone();
        match (target, kept) {
            // A listing that began before a copy-up goes on at the lower's positions.
            (Target::Upper(node), None) if offset > DOTS => match node.lower {
                Some(nid) => self.read_lower(&Target::Upper(node), nid, from, plus, each),
                None => self.read_merged(&dir, &node, from, plus, each),
            },
            (Target::Upper(node), _) => self.read_merged(&dir, &node, from, plus, each),
            (Target::Lower(nid), _) => self.read_lower(&Target::Lower(nid), nid, from, plus, each),
        }
    }

    fn read_dots(
        &self,
        target: &Target,
        ino: Ino,
        offset: u64,
        each: Each<'_>,
    ) -> Result<ControlFlow<()>> {
        let mut dot = |name: &[u8], ino: u64, next: u64| {
            each(DirEntry {
                name,
                ino,
                kind: Kind::Dir,
                next,
                entry: None,
            })
        };
        if offset == 0 && dot(b".", ino.0, 1).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let parent = match self.parent_of(target)? {
            Target::Lower(nid) => self.lower_ino(nid).0,
            Target::Upper(node) => node.ino.0,
        };
        Ok(dot(b"..", parent, DOTS))
    }

    fn read_lower(
        &self,
        dir: &Target,
        nid: Nid,
        from: u64,
        plus: bool,
        each: Each<'_>,
    ) -> Result<()> {
        let mut failed = None;
        self.lower.readdir(nid, from, &mut |found| {
            let ino = self.lower_ino(found.nid);
            let looked_up = match (plus, dir) {
                (false, _) => Ok(None),
                (true, Target::Lower(_)) => self
                    .target(ino)
                    .and_then(|target| self.entry(&target))
                    .map(Some),
                // Copied up since: only what a lookup still finds may be handed out as found.
                (true, Target::Upper(_)) => match self.refind(dir, found.name) {
                    Ok(None) => return ControlFlow::Continue(()),
                    other => other,
                },
            };
            let entry = match looked_up {
                Ok(entry) => entry,
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            };
            let next = found.next.saturating_add(DOTS);
            let flow = each(DirEntry {
                name: found.name,
                ino: ino.0,
                kind: found.kind,
                next,
                entry,
            });
            if flow.is_break() && entry.is_some() {
                self.forget(ino, 1);
            }
            flow
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn refind(&self, dir: &Target, name: &[u8]) -> Result<Option<Entry>> {
        let name = Name::new(name).map_err(|_| Error::Refused(Errno::IO))?;
        let found = self.find(dir, &name)?;
        found.map(|target| self.entry(&target)).transpose()
    }

    fn read_merged(
        &self,
        dir: &OpenDir,
        node: &Arc<Node>,
        from: u64,
        plus: bool,
        each: Each<'_>,
    ) -> Result<()> {
        let list = {
            let mut kept = lock(&dir.list);
            match &*kept {
                Some(list) if from > 0 => Arc::clone(list),
                _ => {
                    let list = Arc::new(self.merge(node)?);
                    *kept = Some(Arc::clone(&list));
                    list
                }
            }
        };
        let target = Target::Upper(Arc::clone(node));
        let start = usize::try_from(from).unwrap_or(usize::MAX);
        for (i, listed) in list.iter().enumerate().skip(start) {
            let next = (i as u64).saturating_add(DOTS).saturating_add(1);
            let Listed {
                name,
                mut ino,
                mut kind,
            } = Listed {
                name: listed.name.clone(),
                ..*listed
            };
            let mut entry = None;
            if plus {
                // Gone since the list was made: readdir(3) leaves open whether it is still shown.
                let Some(found) = self.find(&target, &name)? else {
                    continue;
                };
                let looked_up = self.entry(&found)?;
                (ino, kind) = (looked_up.attr.ino, looked_up.attr.kind);
                entry = Some(looked_up);
            }
            if each(DirEntry {
                name: name.as_bytes(),
                ino,
                kind,
                next,
                entry,
            })
            .is_break()
            {
                if entry.is_some() {
                    self.forget(Ino(ino), 1);
                }
                break;
            }
        }
        Ok(())
    }

    /// The merged listing of a directory: the upper's entries but whiteouts, then the lower's
    /// that the upper says nothing of.
    fn merge(&self, node: &Arc<Node>) -> Result<Vec<Listed>> {
        let mut list = Vec::new();
        if node.dir.has(FACT_REMOVED) {
            return Ok(list);
        }
        let target = Target::Upper(Arc::clone(node));
        let fd = self.dir_fd(node)?;
        let lower = node.lower_part();
        // Read once, before the loop asks for it by entry.
        let entries = fs::list(fd.as_fd()).doing("listing")?;
        let mut seen = HashSet::new();
        for entry in entries {
            let plain = match entry.kind {
                // May be a whiteout.
                Kind::Char => false,
                Kind::File if node.dir.has(FACT_XWHITEOUTS) => false,
                // May merge with a lower directory, even elsewhere, and then has its number.
                Kind::Dir => false,
                // May bear a number of the lower.
                _ => !self.is_impure(node, fd.as_fd())?,
            };
            if plain {
                let ino = UPPER_BASE.saturating_add(entry.ino);
                list.push(Listed {
                    name: entry.name.clone(),
                    ino,
                    kind: entry.kind,
                });
            } else if let Some(found) = self.find(&target, &entry.name)? {
                let ino = match &found {
                    Target::Upper(node) => node.ino,
                    // A group of hard links that is being copied up.
                    Target::Lower(nid) => self.lower_ino(*nid),
                };
                list.push(Listed {
                    name: entry.name.clone(),
                    ino: ino.0,
                    kind: self.kind(&found)?,
                });
            }
            if lower.is_some() {
                seen.insert(entry.name);
            }
        }
        if let Some(nid) = lower {
            let mut bad = false;
            self.lower.readdir(nid, 0, &mut |found| {
                match Name::new(found.name) {
                    Ok(name) if !seen.contains(&name) => {
                        let ino = self.lower_ino(found.nid).0;
                        list.push(Listed {
                            name,
                            ino,
                            kind: found.kind,
                        });
                    }
                    Ok(_) => {}
                    Err(_) => bad = true,
                }
                ControlFlow::Continue(())
            })?;
            if bad {
                return Err(Error::Refused(Errno::IO));
            }
        }
        Ok(list)
    }
}
