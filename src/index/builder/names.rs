//! Which names the directories have: a hash table over all of them.
//!
//! The names themselves lie with the directories ([`Children`]); a slot tells where.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::{Id, Misfit};
use crate::index::tree::Children;

/// One name.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Part of its hash; the rest of the table is searched by it alone.
    hash: u32,
    dir: Id,
    /// Where it begins among the directory's children; [`FREE`]: no name.
    at: u32,
}

/// More children than that a directory cannot have.
const FREE: u32 = u32::MAX;

const EMPTY: Slot = Slot {
    hash: 0,
    dir: super::ROOT,
    at: FREE,
};

/// A name that a directory does not have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vacant {
    dir: Id,
    hash: u32,
}

/// Names by directory and bytes. The hash has a key of this process' own, so that nobody can
/// choose names that meet; nothing depends on it but time.
#[derive(Debug)]
pub(super) struct Names {
    /// A power of two of them, at least an eighth free.
    slots: Vec<Slot>,
    used: usize,
    key: RandomState,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            slots: vec![EMPTY; 1024],
            used: 0,
            key: RandomState::new(),
        }
    }

    /// Where `name` is among the `children` of `dir`, or what [`Self::add`] wants to know.
    pub(super) fn find(&self, dir: Id, name: &[u8], children: &Children) -> Result<u32, Vacant> {
        let hash = self.hash(dir, name);
        self.probe(hash)
            .take_while(|slot| slot.at != FREE)
            .find(|slot| {
                (slot.hash, slot.dir) == (hash, dir)
                    && children.at(slot.at).is_some_and(|(own, _)| own == name)
            })
            .map(|slot| slot.at)
            .ok_or(Vacant { dir, hash })
    }

    /// Notes that the name, which [`Self::find`] has not found, is put at the end of `children`.
    pub(super) fn add(&mut self, name: Vacant, children: &Children) -> Result<(), Misfit> {
        let at = children
            .end()
            .filter(|&at| at != FREE)
            .ok_or(Misfit::Limit("its directory has more than 4 GiB of names"))?;
        if self.used >= self.slots.len() / 8 * 7 {
            self.grow();
        }
        self.used += 1;
        let Vacant { dir, hash } = name;
        self.put(Slot { hash, dir, at });
        Ok(())
    }

    fn hash(&self, dir: Id, name: &[u8]) -> u32 {
        let mut hasher = self.key.build_hasher();
        hasher.write_u32(dir.0);
        hasher.write(name);
        // The upper half is as good as the whole.
        u32::try_from(hasher.finish() >> 32).unwrap_or_default()
    }

    /// The slots where what has `hash` may be, in the order of search; a free one is among them.
    fn probe(&self, hash: u32) -> impl Iterator<Item = &Slot> {
        let (before, from) = self
            .slots
            .split_at_checked(self.home(hash))
            .unwrap_or_default();
        from.iter().chain(before)
    }

    fn put(&mut self, slot: Slot) {
        let home = self.home(slot.hash);
        let (before, from) = self.slots.split_at_mut_checked(home).unwrap_or_default();
        let free = from.iter_mut().chain(before).find(|slot| slot.at == FREE);
        if let Some(free) = free {
            *free = slot;
        }
    }

    fn home(&self, hash: u32) -> usize {
        usize::try_from(hash).unwrap_or_default() & (self.slots.len() - 1)
    }

    fn grow(&mut self) {
        let twice = vec![EMPTY; self.slots.len() * 2];
        let old = std::mem::replace(&mut self.slots, twice);
        for slot in old.into_iter().filter(|slot| slot.at != FREE) {
            self.put(slot);
        }
    }
}
