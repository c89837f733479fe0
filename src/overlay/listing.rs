//! What a directory of the upper lists: the merged view, each entry at a position of its own.
//!
//! A position belongs to the entry, not to who reads: the kernel's copy of a listing is filled by
//! whichever descriptors read it, and a descriptor goes on at a position that another was told
//! (fs/fuse/readdir.c:fuse_readdir_cached()). So it follows from the name and the image alone: a
//! name that the lower part holds is where the index has it, before a copy-up and after, whatever
//! is there now; any other is behind those, at a hash of the name, as on ext4. Nothing of it is
//! kept, and a new mount gives the same.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::error::Doing;
use super::node::{FACT_REMOVED, FACT_XWHITEOUTS, Node, UPPER_BASE, lock};
use super::{Error, Overlay, Result, Target};
use crate::inode::Kind;
use crate::name::Name;
use crate::sys::fs;

/// Positions of `.` and `..`; all others come after.
pub(super) const DOTS: u64 = 2;

/// Where the positions of names begin that the lower part does not hold. Those of the index are
/// below: a number of a block and of an entry in it.
const HASHED: u64 = 1 << 62;

/// Where a position says which state of the directory its listing began with (`super::dir`): above
/// the numbers of the index and the hashes, below the mark of hashes.
pub(super) const STATE_SHIFT: u32 = 50;
pub(super) const STATE: u64 = 0xff << STATE_SHIFT;

/// Where a name stands that the lower part does not hold; there is room above for its neighbours
/// to move on where two are the same.
fn hashed(name: &Name) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name.as_bytes());
    HASHED | (hasher.finish() >> (u64::BITS - STATE_SHIFT + 1))
}

/// An entry.
#[derive(Debug)]
pub(super) struct Listed {
    /// Its position: the offset to go on from behind it.
    pub(super) at: u64,
    pub(super) name: Name,
    pub(super) ino: u64,
    pub(super) kind: Kind,
}

/// The entries that a directory had at one moment, by position.
#[derive(Debug)]
pub(super) struct Listing {
    /// [`DirState::changes`](super::node::DirState::changes) before it was made.
    changes: u64,
    entries: Vec<Listed>,
}

impl Listing {
    /// Whether no name has changed since, nor while it was made.
    pub(super) fn is_current(&self, node: &Node) -> bool {
        self.changes.is_multiple_of(2) && self.changes == node.dir.changes()
    }

    /// The entries behind a position.
    pub(super) fn behind(&self, offset: u64) -> &[Listed] {
        let start = self.entries.partition_point(|entry| entry.at <= offset);
        self.entries.get(start..).unwrap_or_default()
    }
}

/// What the upper has under a name.
#[derive(Debug, Clone, Copy)]
enum Above {
    Whiteout,
    Entry { ino: u64, kind: Kind },
}

impl Overlay {
    /// The entries of a directory as they are now. Whoever lists it at the same time shares them.
    pub(super) fn listing_of(&self, node: &Arc<Node>) -> Result<Arc<Listing>> {
        let current = |listing: &Arc<Listing>| listing.is_current(node);
        if let Some(listing) = lock(&node.dir.listing).upgrade().filter(current) {
            return Ok(listing);
        }
        let listing = Arc::new(self.merge(node)?);
        let mut known = lock(&node.dir.listing);
        // Another may have made one meanwhile, after a change that this one was made before.
        let newer = known.upgrade().filter(current);
        if newer.is_none() || current(&listing) {
            *known = Arc::downgrade(&listing);
        }
        drop(known);
        Ok(listing)
    }

    /// The upper's entries but whiteouts, and the lower's that the upper says nothing of.
    fn merge(&self, node: &Arc<Node>) -> Result<Listing> {
        let mut listing = Listing {
            changes: node.dir.changes(),
            entries: Vec::new(),
        };
        if node.dir.has(FACT_REMOVED) {
            return Ok(listing);
        }
        let mut above = self.list_upper(node)?;
        let entries = &mut listing.entries;
        if let Some(nid) = node.lower_part() {
            let mut bad = false;
            self.lower.readdir(nid, 0, &mut |found| {
                let Ok(name) = Name::new(found.name) else {
                    bad = true;
                    return ControlFlow::Break(());
                };
                let (ino, kind) = match above.remove(&name) {
                    Some(Above::Whiteout) => return ControlFlow::Continue(()),
                    Some(Above::Entry { ino, kind }) => (ino, kind),
                    None => (self.lower_ino(found.nid).0, found.kind),
                };
                entries.push(Listed {
                    at: found.next.saturating_add(DOTS),
                    name,
                    ino,
                    kind,
                });
                ControlFlow::Continue(())
            })?;
            if bad {
                return Err(Error::Refused(Errno::IO));
            }
        }
        for (name, above) in above {
            // A whiteout over nothing hides nothing.
            if let Above::Entry { ino, kind } = above {
                let at = hashed(&name);
                entries.push(Listed {
                    at,
                    name,
                    ino,
                    kind,
                });
            }
        }
        entries.sort_unstable_by(|a, b| (a.at, &a.name).cmp(&(b.at, &b.name)));
        part_twins(entries);
        Ok(listing)
    }

    /// What the upper has in a directory.
    fn list_upper(&self, node: &Arc<Node>) -> Result<HashMap<Name, Above>> {
        let target = Target::Upper(Arc::clone(node));
        let fd = self.dir_fd(node)?;
        let mut above = HashMap::new();
        // All whiteouts are links of a few inodes: each of those is looked at once.
        let mut whiteouts = HashSet::new();
        for entry in fs::list(fd.as_fd()).doing("listing")? {
            let plain = match entry.kind {
                // May be a whiteout.
                Kind::Char => false,
                Kind::File if node.dir.has(FACT_XWHITEOUTS) => false,
                // May merge with a lower directory, even elsewhere, and then has its number.
                Kind::Dir => false,
                // May bear a number of the lower.
                _ => !self.is_impure(node, fd.as_fd())?,
            };
            let is_char = entry.kind == Kind::Char;
            let found = if plain {
                Above::Entry {
                    ino: UPPER_BASE.saturating_add(entry.ino),
                    kind: entry.kind,
                }
            } else if is_char && whiteouts.contains(&entry.ino) {
                Above::Whiteout
            } else if let Some(found) = self.find(&target, &entry.name)? {
                Above::Entry {
                    ino: self.ino_of(&found),
                    kind: self.kind(&found)?,
                }
            } else {
                if is_char {
                    whiteouts.insert(entry.ino);
                }
                Above::Whiteout
            };
            above.insert(entry.name, found);
        }
        Ok(above)
    }
}

/// Lets no two entries, sorted, have one position. Two names in a directory have one hash by
/// intent only; then one of them may move when the other goes.
fn part_twins(entries: &mut [Listed]) {
    let mut last = 0;
    for entry in entries {
        if entry.at <= last {
            entry.at = last.saturating_add(1);
        }
        last = entry.at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: u64) -> Listed {
        Listed {
            at,
            name: Name::new(b"name").unwrap(),
            ino: 1,
            kind: Kind::File,
        }
    }

    #[test]
    fn no_two_entries_share_a_position() {
        let mut entries: Vec<_> = [3, 7, 7, 7, 8, 20].map(at).into_iter().collect();
        part_twins(&mut entries);
        let positions: Vec<_> = entries.iter().map(|e| e.at).collect();
        assert_eq!(positions, [3, 7, 8, 9, 10, 20]);
    }

    #[test]
    fn hashes_lie_between_the_index_and_the_end_of_offsets() {
        for i in 0..1_000 {
            let name = Name::new(format!("{i}").as_bytes()).unwrap();
            let at = hashed(&name);
            assert!(at >= HASHED && at < i64::MAX as u64 - 1_000, "{at:x}");
            assert_eq!(at & STATE, 0, "{at:x}");
            assert_eq!(at, hashed(&name));
        }
    }

    #[test]
    fn a_listing_goes_on_behind_a_position_that_is_gone() {
        let listing = Listing {
            changes: 0,
            entries: [3, 7, 9].map(at).into_iter().collect(),
        };
        let from = |offset| listing.behind(offset).first().map(|e| e.at);
        assert_eq!(from(0), Some(3));
        assert_eq!(from(3), Some(7));
        assert_eq!(from(5), Some(7));
        assert_eq!(from(9), None);
    }
}
