//! Second numbers for inodes.
//!
//! The kernel reads all that is open of one inode from one file ([`super::opens`]). Where that can
//! no longer be, because a file of the image that is open was copied up, what is opened from now on
//! gets another nodeid and so another inode of the kernel's: an alias. OPEN is answered with ESTALE,
//! the kernel looks the path up once more (fs/namei.c:do_filp_open(), `LOOKUP_REVAL`), and there
//! finds the alias. What was open goes on by the number it had. `st_ino` is the same by both.

use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use crate::overlay::Ino;

/// Aliases are numbers from here on; no inode of an upper has such a number.
const FIRST: u64 = 1 << 62;

/// Whether a nodeid is an alias.
pub(super) fn is_alias(nodeid: u64) -> bool {
    nodeid >= FIRST
}

/// The aliases that the kernel knows, or is about to be told.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    by_alias: DashMap<u64, Alias>,
    /// The one that lookups answer with, by the inode's own number.
    current: DashMap<u64, u64>,
    /// Inodes that have or had an alias.
    known_twice: DashMap<u64, ()>,
    made: AtomicU64,
}

#[derive(Debug)]
struct Alias {
    ino: Ino,
    lookups: u64,
}

impl Aliases {
    /// The inode that the kernel means by a nodeid. An alias that it has forgotten stays itself:
    /// no inode has that number.
    pub(super) fn ino(&self, nodeid: u64) -> Ino {
        if !is_alias(nodeid) {
            return Ino(nodeid);
        }
        self.by_alias
            .get(&nodeid)
            .map_or(Ino(nodeid), |alias| alias.ino)
    }

    /// The nodeid that a lookup of an inode is to answer with; counts that answer.
    pub(super) fn show(&self, ino: Ino) -> u64 {
        let current = self.current(ino);
        if current == ino.0 {
            return ino.0;
        }
        match self.by_alias.get_mut(&current) {
            Some(mut alias) => {
                alias.lookups = alias.lookups.saturating_add(1);
                current
            }
            // Forgotten meanwhile.
            None => ino.0,
        }
    }

    fn current(&self, ino: Ino) -> u64 {
        if self.current.is_empty() {
            return ino.0;
        }
        self.current.get(&ino.0).map_or(ino.0, |alias| *alias)
    }

    /// Whether the inode that a nodeid means has an alias.
    pub(super) fn has_alias(&self, nodeid: u64) -> bool {
        let ino = self.ino(nodeid);
        self.current(ino) != ino.0
    }

    /// Whether the kernel may have pages of the inode under more than one number.
    pub(super) fn is_known_twice(&self, nodeid: u64) -> bool {
        !self.known_twice.is_empty() && self.known_twice.contains_key(&self.ino(nodeid).0)
    }

    /// Whether lookups answer with another number than `nodeid`.
    pub(super) fn is_passed(&self, nodeid: u64) -> bool {
        self.current(self.ino(nodeid)) != nodeid
    }

    /// Lookups no longer answer with `nodeid`.
    pub(super) fn renew(&self, nodeid: u64) {
        let ino = self.ino(nodeid);
        self.known_twice.insert(ino.0, ());
        let fresh = || FIRST | self.made.fetch_add(1, Ordering::Relaxed);
        let mut current = self.current.entry(ino.0).or_insert(ino.0);
        if *current == nodeid {
            let alias = fresh();
            self.by_alias.insert(alias, Alias { ino, lookups: 0 });
            *current = alias;
        }
    }

    /// Takes counted lookups back, and answers whose they were. `needed`: the inode's own number
    /// will not do for what is opened next. The kernel forgets an alias that it has just been told
    /// (fs/fuse/dir.c:fuse_dentry_revalidate()) before it looks up once more.
    pub(super) fn forget(&self, nodeid: u64, lookups: u64, needed: impl Fn(Ino) -> bool) -> Ino {
        let ino = self.ino(nodeid);
        if !is_alias(nodeid) {
            return ino;
        }
        if let Some(mut alias) = self.by_alias.get_mut(&nodeid) {
            alias.lookups = alias.lookups.saturating_sub(lookups);
        }
        if !needed(ino) {
            self.drop_idle(nodeid);
        }
        ino
    }

    /// An inode's own number is no longer in the way: it needs no alias that the kernel does not
    /// know.
    pub(super) fn not_needed(&self, ino: Ino) {
        let current = self.current(ino);
        if current != ino.0 {
            self.drop_idle(current);
        }
    }

    fn drop_idle(&self, alias: u64) {
        if let Some((_, Alias { ino, .. })) = self
            .by_alias
            .remove_if(&alias, |_, alias| alias.lookups == 0)
        {
            self.current
                .remove_if(&ino.0, |_, current| *current == alias);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_goes_by_its_latest_alias() {
        let aliases = Aliases::default();
        assert_eq!((aliases.show(Ino(7)), aliases.ino(7)), (7, Ino(7)));
        assert!(!aliases.has_alias(7) && !aliases.is_known_twice(7));
        aliases.renew(7);
        let first = aliases.show(Ino(7));
        assert!(first >= FIRST && aliases.ino(first) == Ino(7));
        assert!(aliases.has_alias(7) && aliases.has_alias(first));
        // Who comes by the old number again brings no other alias about.
        aliases.renew(7);
        assert_eq!(aliases.show(Ino(7)), first);
        aliases.renew(first);
        let second = aliases.show(Ino(7));
        assert!(second != first && !aliases.has_alias(8));
        assert_eq!(aliases.show(Ino(8)), 8);
    }

    #[test]
    fn an_alias_lives_until_it_is_forgotten() {
        let aliases = Aliases::default();
        let forget = |nodeid, lookups| aliases.forget(nodeid, lookups, |_| false);
        aliases.renew(7);
        let alias = aliases.show(Ino(7));
        assert_eq!(aliases.show(Ino(7)), alias);
        assert_eq!(forget(alias, 1), Ino(7));
        assert_eq!(aliases.show(Ino(7)), alias);
        assert_eq!(forget(alias, 2), Ino(7));
        assert_eq!((aliases.show(Ino(7)), aliases.ino(alias)), (7, Ino(alias)));
        assert_eq!(forget(7, 3), Ino(7));
        aliases.renew(7);
        assert!(aliases.is_known_twice(7) && !aliases.is_known_twice(8));
        assert_ne!(aliases.show(Ino(7)), alias, "numbers are not used again");
    }

    #[test]
    fn an_alias_that_is_needed_is_kept() {
        let aliases = Aliases::default();
        aliases.renew(7);
        let alias = aliases.show(Ino(7));
        aliases.forget(alias, 1, |ino| ino == Ino(7));
        assert_eq!(aliases.show(Ino(7)), alias);
        aliases.not_needed(Ino(7));
        assert_eq!(aliases.show(Ino(7)), alias, "the kernel knows it");
        aliases.forget(alias, 2, |_| true);
        aliases.not_needed(Ino(7));
        assert_eq!(aliases.show(Ino(7)), 7);
    }
}
