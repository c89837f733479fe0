//! The inodes that the upper has touched, and the table that keeps each of them one object.
//!
//! An inode that only the image knows has no state here: its number is its nid. As soon as
//! the upper holds it (or is about to), it gets a [`Node`].
//!
//! A slot of the [`Table`] holds its node weakly, and strongly while the kernel may ask for it
//! by number: until forgotten for a node born in the upper; as long as it has a name for one that
//! came from the image, since the kernel's earlier lookups of it were never counted. Two live
//! nodes never share a number.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slots;

use super::Ino;
use super::dir::Told;
use super::listing::Listing;
use super::order::{Class, Held, Lock};
use super::room::{Leaving, Orphan};
use super::xattr::Absent;
use crate::inode::Kind;
use crate::lower::Nid;
use crate::name::Name;

/// First inode number of inodes born in the upper; below are nids.
pub(super) const UPPER_BASE: u64 = 1 << 40;

/// One name of an upper inode.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) parent: Arc<Node>,
    pub(super) name: Name,
}

impl Link {
    pub(super) fn is(&self, parent: &Arc<Node>, name: &Name) -> bool {
        Arc::ptr_eq(&self.parent, parent) && self.name == *name
    }
}

/// Where an inode is stored.
#[derive(Debug)]
pub(super) enum Place {
    /// In the image alone.
    Lower,
    /// In the image, for everybody but who is copying it up: its copy gets the names of a group of
    /// hard links one after the other, and whether it gets them all is not known yet. Nobody takes
    /// such a name away or puts another inode there meanwhile (`Overlay::await_rise`).
    Rising {
        /// The copy's number in the upper's filesystem.
        id: u64,
    },
    /// In the upper, for good.
    Upper {
        /// Its number in the upper's filesystem.
        id: u64,
        /// The names known so far; the root has none. Of those that earlier mounts gave it some may
        /// never have been looked up.
        links: Vec<Link>,
        /// Leads to it when no name is known (unlinked, still in use), and only then.
        orphan: Option<Orphan>,
    },
}

impl Place {
    /// Forgets a name; `last` leads to the inode if it was the last that is known. The answer must
    /// be dropped when no lock is held: nodes may end with it.
    #[must_use]
    pub(super) fn lose(
        &mut self,
        parent: &Arc<Node>,
        name: &Name,
        last: Option<Orphan>,
    ) -> Option<Link> {
        let Self::Upper { links, orphan, .. } = self else {
            return None;
        };
        let at = links.iter().position(|known| known.is(parent, name))?;
        let lost = links.swap_remove(at);
        if links.is_empty() {
            if last.is_some() {
                *orphan = last;
            }
            if let Some(orphan) = orphan {
                orphan.leave();
            }
        }
        Some(lost)
    }

    /// Becomes a place in the upper, if it is none yet.
    pub(super) fn rise(&mut self, id: u64) {
        if matches!(self, Self::Lower) {
            *self = Self::Upper {
                id,
                links: Vec::new(),
                orphan: None,
            };
        }
    }

    /// Gains a name, which leads to it from now on.
    pub(super) fn gain(&mut self, link: Link) {
        if let Self::Upper { links, orphan, .. } = self
            && !links.iter().any(|known| known.is(&link.parent, &link.name))
        {
            links.push(link);
            *orphan = None;
        }
    }

    /// Whether it has one name at most that is known: when that goes, something else must lead to
    /// it.
    pub(super) fn is_last(&self) -> bool {
        matches!(self, Self::Upper { links, .. } if links.len() <= 1)
    }
}

/// An inode that the upper has touched.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) ino: Ino,
    pub(super) kind: Kind,
    /// The lower inode that it came from; for a directory, the one that it merges with.
    pub(super) lower: Option<Nid>,
    /// See [`Entry::generation`](super::Entry::generation).
    pub(super) generation: u32,
    place: RwLock<Place>,
    /// Held through a copy-up of this inode. Taken before any `entries` lock; a directory's
    /// after those of what lies below it.
    copying: Mutex<()>,
    /// Held while names in this directory change. Two at once: the lower [`Ino`] first.
    entries: Mutex<()>,
    pub(super) dir: DirState,
    table: Weak<Table>,
}

/// What is remembered of a directory of the upper.
#[derive(Debug, Default)]
pub(super) struct DirState {
    fd: Mutex<Option<Arc<OwnedFd>>>,
    /// Known facts about its marks, as `FACT_*` bits.
    facts: AtomicU8,
    /// Attributes that it has been found not to have.
    pub(super) absent: Absent,
    /// Its default ACL, once read.
    pub(super) default_acl: Mutex<Option<Option<Arc<[u8]>>>>,
    /// Number of its subdirectories in the merged view, once counted.
    pub(super) subdirs: Mutex<Option<u32>>,
    /// How often a change of its names began or ended: odd while one is under way.
    changes: AtomicU64,
    /// The last list of its entries, while somebody reads it or did so lately.
    pub(super) listing: Mutex<Weak<Listing>>,
    /// What listings have told of it.
    pub(super) told: Mutex<Told>,
}

/// The directory is marked impure.
pub(super) const FACT_IMPURE: u8 = 1;
/// The directory has been found not to be impure.
pub(super) const FACT_PURE: u8 = 2;
/// Removed: it has no entries any more, whatever the lower says.
pub(super) const FACT_REMOVED: u8 = 4;
/// It may hold whiteouts of the regular-file kind.
pub(super) const FACT_XWHITEOUTS: u8 = 8;
/// It was made opaque after it had been merged.
pub(super) const FACT_OPAQUE: u8 = 16;
/// A file, whose data has been found to be in the upper.
pub(super) const FACT_WHOLE: u8 = 32;

impl DirState {
    pub(super) fn has(&self, fact: u8) -> bool {
        self.facts.load(Ordering::Acquire) & fact != 0
    }

    pub(super) fn note(&self, fact: u8) {
        self.facts.fetch_or(fact, Ordering::AcqRel);
    }

    pub(super) fn unnote(&self, fact: u8) {
        self.facts.fetch_and(!fact, Ordering::AcqRel);
    }

    /// Counts subdirectories that came (or went, if negative), where they have been counted.
    pub(super) fn add_subdirs(&self, change: i32) {
        if let Some(count) = &mut *lock(&self.subdirs) {
            *count = count.saturating_add_signed(change);
        }
    }

    /// How often a change of its names began or ended: odd while one is under way.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn fd(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.fd).clone()
    }
}

/// A lock whose holder cannot leave it half changed: each critical section is one assignment, so
/// a panic elsewhere does not make the value unusable.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    fn ordered<G>(&self, class: Class, take: impl FnOnce() -> G) -> Held<G> {
        let lock = Lock {
            class,
            ino: self.ino,
            is_dir: self.kind == Kind::Dir,
        };
        Held::take(lock, take)
    }

    pub(super) fn place(&self) -> Held<RwLockReadGuard<'_, Place>> {
        self.ordered(Class::PlaceRead, || {
            self.place.read().unwrap_or_else(PoisonError::into_inner)
        })
    }

    pub(super) fn place_mut(&self) -> PlaceMut<'_> {
        self.ordered(Class::PlaceWrite, || {
            self.place.write().unwrap_or_else(PoisonError::into_inner)
        })
    }

    pub(super) fn lock_copying(&self) -> Held<MutexGuard<'_, ()>> {
        self.ordered(Class::Copying, || lock(&self.copying))
    }

    /// To change names in it.
    pub(super) fn lock_entries(&self) -> Changing<'_> {
        let held = self.keep_entries();
        self.dir.changes.fetch_add(1, Ordering::AcqRel);
        Changing {
            dir: &self.dir,
            _held: held,
        }
    }

    /// To look at its names while nobody changes them.
    pub(super) fn keep_entries(&self) -> Held<MutexGuard<'_, ()>> {
        self.ordered(Class::Entries, || lock(&self.entries))
    }

    pub(super) fn is_upper(&self) -> bool {
        matches!(*self.place(), Place::Upper { .. })
    }

    /// Whether it is in the upper and has lost the last of the names that were known. Not so the
    /// root, which never had one.
    fn is_nameless(&self) -> bool {
        let removed = self.kind != Kind::Dir || self.dir.has(FACT_REMOVED);
        removed && matches!(&*self.place(), Place::Upper { links, .. } if links.is_empty())
    }

    /// The lower directory whose entries still show in this one.
    pub(super) fn lower_part(&self) -> Option<Nid> {
        self.lower
            .filter(|_| !self.dir.has(FACT_REMOVED | FACT_OPAQUE))
    }

    /// Whether it is a group of hard links that is being copied up, to this inode of the upper.
    pub(super) fn is_rising_to(&self, upper: u64) -> bool {
        matches!(*self.place(), Place::Rising { id } if id == upper)
    }

    /// Remembers a name.
    pub(super) fn add_link(&self, link: Link) {
        self.place_mut().gain(link);
    }

    fn take_links(&mut self) -> Vec<Link> {
        match self.place.get_mut().unwrap_or_else(PoisonError::into_inner) {
            Place::Upper { links, .. } => std::mem::take(links),
            Place::Lower | Place::Rising { .. } => Vec::new(),
        }
    }

    /// Whether it came from the image (and so keeps its number by a mark on disk).
    pub(super) fn came_from_lower(&self) -> bool {
        self.ino.0 < UPPER_BASE
    }
}

/// The names of a directory, to change.
#[derive(Debug)]
pub(super) struct Changing<'a> {
    dir: &'a DirState,
    _held: Held<MutexGuard<'a, ()>>,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.dir.changes.fetch_add(1, Ordering::AcqRel);
    }
}

/// A place, to change.
type PlaceMut<'a> = Held<RwLockWriteGuard<'a, Place>>;

/// The places of two nodes, locked in the order of their numbers.
pub(super) fn places_mut<'a>(a: &'a Node, b: &'a Node) -> (PlaceMut<'a>, PlaceMut<'a>) {
    if a.ino < b.ino {
        let first = a.place_mut();
        (first, b.place_mut())
    } else {
        let first = b.place_mut();
        (a.place_mut(), first)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The parents that end with it end here, one after the other: a chain of thousands of
        // directories must not be dropped by recursion.
        let mut links = self.take_links();
        while let Some(link) = links.pop() {
            if let Some(mut parent) = Arc::into_inner(link.parent) {
                links.append(&mut parent.take_links());
            }
        }
        if let Some(table) = self.table.upgrade() {
            let place = self.place.get_mut();
            if let Place::Upper { id, .. } = *place.unwrap_or_else(PoisonError::into_inner) {
                table.unnote_unmarked(id, self);
            }
            if lock(&self.dir.fd).take().is_some() {
                table.dir_fds.fetch_sub(1, Ordering::Relaxed);
            }
            let ended = |_: &u64, slot: &Slot| slot.node.strong_count() == 0;
            table.slots.remove_if(&self.ino.0, ended);
        }
    }
}

#[derive(Debug)]
struct Slot {
    node: Weak<Node>,
    /// Keeps the node while the kernel may name it.
    pin: Option<Arc<Node>>,
    lookups: u64,
}

/// All nodes, by number.
#[derive(Debug)]
pub(super) struct Table {
    slots: DashMap<u64, Slot>,
    /// Copies that cannot carry the mark with their number, by their number in the upper.
    unmarked: DashMap<u64, u64>,
    /// Directory descriptors kept open, and how many may be.
    dir_fds: AtomicUsize,
    max_dir_fds: usize,
    generations: AtomicU32,
    leaving: Arc<Leaving>,
}

/// Where a mount's generations begin, so that they are not those of the mount before it.
fn first_generation() -> u32 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    since.subsec_nanos().rotate_left(16) ^ u32::try_from(since.as_secs()).unwrap_or(0)
}

/// What a node is to be made of: [`Table::intern`].
#[derive(Debug)]
pub(super) struct Seed {
    pub(super) ino: u64,
    pub(super) kind: Kind,
    pub(super) lower: Option<Nid>,
    pub(super) place: Place,
}

impl Table {
    pub(super) fn new(max_dir_fds: usize) -> Arc<Self> {
        Arc::new(Self {
            slots: DashMap::new(),
            unmarked: DashMap::new(),
            dir_fds: AtomicUsize::new(0),
            max_dir_fds,
            generations: AtomicU32::new(first_generation()),
            leaving: Arc::default(),
        })
    }

    /// The node with this number, if there is one.
    pub(super) fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.slots.get(&ino).and_then(|slot| slot.node.upgrade())
    }

    /// Remembers whose copy `id` is, since no mark on it says so.
    pub(super) fn note_unmarked(&self, id: u64, node: &Node) {
        self.unmarked.insert(id, node.ino.0);
    }

    /// There is no such copy after all.
    pub(super) fn unnote_unmarked(&self, id: u64, node: &Node) {
        self.unmarked.remove_if(&id, |_, ino| *ino == node.ino.0);
    }

    /// The inode of the image whose copy this mount has made as `id`.
    pub(super) fn unmarked(&self, id: u64) -> Option<Arc<Node>> {
        let ino = *self.unmarked.get(&id)?;
        self.get(ino)
    }

    /// A filesystem gives the number of a file that is gone to the next one; a generation tells
    /// the two apart. Another mount counts from elsewhere.
    fn next_generation(&self, ino: u64) -> u32 {
        if ino < UPPER_BASE {
            return 0;
        }
        self.generations.fetch_add(1, Ordering::Relaxed)
    }

    /// The node of `seed`'s number, made from it where there is none yet; `true` if it was.
    pub(super) fn intern(self: &Arc<Self>, seed: Seed) -> (Arc<Node>, bool) {
        let make = |seed: Seed| {
            Arc::new(Node {
                ino: Ino(seed.ino),
                kind: seed.kind,
                lower: seed.lower,
                generation: self.next_generation(seed.ino),
                place: RwLock::new(seed.place),
                copying: Mutex::new(()),
                entries: Mutex::new(()),
                dir: DirState::default(),
                table: Arc::downgrade(self),
            })
        };
        let pin = |node: &Arc<Node>| node.came_from_lower().then(|| Arc::clone(node));
        match self.slots.entry(seed.ino) {
            Slots::Occupied(mut slot) => match slot.get().node.upgrade() {
                Some(node) => (node, false),
                None => {
                    let node = make(seed);
                    let lookups = slot.get().lookups;
                    slot.insert(Slot {
                        node: Arc::downgrade(&node),
                        pin: pin(&node),
                        lookups,
                    });
                    (node, true)
                }
            },
            Slots::Vacant(slot) => {
                let node = make(seed);
                slot.insert(Slot {
                    node: Arc::downgrade(&node),
                    pin: pin(&node),
                    lookups: 0,
                });
                (node, true)
            }
        }
    }

    /// Counts a lookup that the kernel will forget.
    pub(super) fn count_lookup(&self, node: &Arc<Node>) {
        if let Some(mut slot) = self.slots.get_mut(&node.ino.0) {
            slot.lookups = slot.lookups.saturating_add(1);
            slot.pin = Some(Arc::clone(node));
        }
    }

    /// Takes back counted lookups. Unknown numbers are of the image alone.
    ///
    /// Of an inode that came from the image, how often the kernel looked it up is not known. Once
    /// it has no name left, the kernel gives it up by one forget of all lookups; what is forgotten
    /// while something of it is open (`held`) was not that.
    pub(super) fn forget(&self, ino: u64, lookups: u64, held: impl Fn() -> bool) {
        let (mut unpinned, mut nameless) = (None, None);
        if let Some(mut slot) = self.slots.get_mut(&ino) {
            let all = lookups >= slot.lookups;
            slot.lookups = slot.lookups.saturating_sub(lookups);
            if all && ino >= UPPER_BASE {
                unpinned = slot.pin.take();
            } else if all {
                nameless = slot.pin.clone();
            }
        }
        if let Some(node) = nameless
            && node.is_nameless()
            && !held()
            && let Some(mut slot) = self.slots.get_mut(&ino)
        {
            unpinned = slot.pin.take();
        }
        // Its end takes its slot: not under the slot's lock.
        drop(unpinned);
    }

    /// Keeps a directory's descriptor open, if there is room.
    pub(super) fn keep_dir_fd(&self, node: &Node, fd: &Arc<OwnedFd>) {
        if self.dir_fds.load(Ordering::Relaxed) < self.max_dir_fds {
            self.keep_removed_dir_fd(node, fd);
        }
    }

    /// Keeps a directory's descriptor open whatever the room: nothing else leads to it.
    pub(super) fn keep_removed_dir_fd(&self, node: &Node, fd: &Arc<OwnedFd>) {
        let mut kept = lock(&node.dir.fd);
        if kept.is_none() {
            self.dir_fds.fetch_add(1, Ordering::Relaxed);
            *kept = Some(Arc::clone(fd));
        }
    }

    /// The inodes that live on without a name.
    pub(super) fn leaving(&self) -> &Arc<Leaving> {
        &self.leaving
    }

    /// Number of live slots, for tests and statistics.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}
