//! Which names the directories have: a hash table over those of which it is not plain.
//!
//! The names themselves lie with the directories ([`Children`]); a slot tells where. As long as
//! the names of a directory come in their order, as most packers write them, a new one is behind
//! the last and nothing has to be searched; the first question that this does not answer takes
//! all of the directory's names into the table.

use std::cmp::Ordering;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::{Id, Misfit};
use crate::index::tree::Children;

/// One name.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Part of its hash.
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
pub(super) enum Vacant {
    /// It is behind all names of a directory that has them in order.
    Behind,
    /// The directory is in the table.
    Hashed { dir: Id, hash: u32 },
}

/// Names by directory and bytes. The hash has a key of this process' own, so that nobody can
/// choose names that meet; nothing depends on it but time.
#[derive(Debug)]
pub(super) struct Names {
    /// By directory: whether it is in the table.
    hashed: Vec<bool>,
    /// A power of two of them, at least an eighth free.
    slots: Vec<Slot>,
    used: usize,
    key: RandomState,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            hashed: Vec::new(),
            slots: vec![EMPTY; 1024],
            used: 0,
            key: RandomState::new(),
        }
    }

    /// Where `name` is among the `children` of `dir`, or what [`Self::add`] wants to know.
    pub(super) fn find(
        &mut self,
        dir: Id,
        name: &[u8],
        children: &Children,
    ) -> Result<u32, Vacant> {
        if !self.is_hashed(dir) {
            let Some((last, at)) = children.last() else {
                return Err(Vacant::Behind);
            };
            match name.cmp(last) {
                Ordering::Greater => return Err(Vacant::Behind),
                Ordering::Equal => return Ok(at),
                Ordering::Less => self.take(dir, children),
            }
        }
        let hash = self.hash(dir, name);
        let mut home = self.home(hash);
        // There is a free slot; the bound is for the reader.
        for _ in 0..self.slots.len() {
            match self.slots.get(home) {
                Some(slot) if slot.at != FREE => {
                    if (slot.hash, slot.dir) == (hash, dir)
                        && children.at(slot.at).is_some_and(|(own, _)| own == name)
                    {
                        return Ok(slot.at);
                    }
                }
                _ => break,
            }
            home = self.home_behind(home);
        }
        Err(Vacant::Hashed { dir, hash })
    }

    /// Notes that the name, which [`Self::find`] has not found, is put at the end of `children`.
    pub(super) fn add(&mut self, name: Vacant, children: &Children) -> Result<(), Misfit> {
        let Some(at) = children.end().filter(|&at| at != FREE) else {
            return Err(Misfit::Limit("its directory has more than 4 GiB of names"));
        };
        if let Vacant::Hashed { dir, hash } = name {
            self.put(Slot { hash, dir, at });
        }
        Ok(())
    }

    fn is_hashed(&self, dir: Id) -> bool {
        self.hashed.get(super::slot(dir)) == Some(&true)
    }

    /// Takes all names of `dir` into the table.
    fn take(&mut self, dir: Id, children: &Children) {
        let slot = super::slot(dir);
        if self.hashed.len() <= slot {
            self.hashed.resize(slot + 1, false);
        }
        if let Some(hashed) = self.hashed.get_mut(slot) {
            *hashed = true;
        }
        for (name, at) in children.places() {
            let hash = self.hash(dir, name);
            if let Some(at) = at {
                self.put(Slot { hash, dir, at });
            }
        }
    }

    fn hash(&self, dir: Id, name: &[u8]) -> u32 {
        let mut hasher = self.key.build_hasher();
        hasher.write_u32(dir.0);
        hasher.write(name);
        // The upper half is as good as the whole.
        u32::try_from(hasher.finish() >> 32).unwrap_or_default()
    }

    fn put(&mut self, slot: Slot) {
        if self.used >= self.slots.len() / 8 * 7 {
            self.grow();
        }
        self.used += 1;
        self.fill(slot);
    }

    /// Puts `slot` where a free one is.
    fn fill(&mut self, slot: Slot) {
        let mut home = self.home(slot.hash);
        for _ in 0..self.slots.len() {
            match self.slots.get_mut(home) {
                Some(free) if free.at == FREE => {
                    *free = slot;
                    return;
                }
                _ => home = self.home_behind(home),
            }
        }
    }

    fn home(&self, hash: u32) -> usize {
        usize::try_from(hash).unwrap_or_default() & (self.slots.len() - 1)
    }

    fn home_behind(&self, home: usize) -> usize {
        (home + 1) & (self.slots.len() - 1)
    }

    fn grow(&mut self) {
        let twice = vec![EMPTY; self.slots.len() * 2];
        let old = std::mem::replace(&mut self.slots, twice);
        for slot in old.into_iter().filter(|slot| slot.at != FREE) {
            self.fill(slot);
        }
    }
}
