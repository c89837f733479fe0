//! A few values that are kept for the next request, the oldest of which go first.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// At most `MOST` values by key. What is kept no longer is dropped without the lock: the end of
/// a value may be a system call, or take locks of its own.
#[derive(Debug)]
pub(super) struct Kept<K, V, const MOST: usize> {
    inner: Mutex<Inner<K, V>>,
}

#[derive(Debug)]
struct Inner<K, V> {
    values: HashMap<K, V>,
    /// In the order in which they came.
    order: VecDeque<K>,
}

impl<K, V, const MOST: usize> Default for Kept<K, V, MOST> {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                values: HashMap::new(),
                order: VecDeque::new(),
            }),
        }
    }
}

impl<K: Copy + Eq + Hash, V, const MOST: usize> Kept<K, V, MOST> {
    pub(super) fn get(&self, key: K) -> Option<V>
    where
        V: Clone,
    {
        self.lock().values.get(&key).cloned()
    }

    /// Keeps one more. In the place of an older one of its key it is as old as that.
    pub(super) fn keep(&self, key: K, value: V) {
        let dropped = self.lock().keep(key, value, MOST);
        drop(dropped);
    }

    pub(super) fn remove(&self, key: K) {
        let dropped = self.lock().remove(key);
        drop(dropped);
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash, V> Inner<K, V> {
    /// Answers what is kept no longer: what was replaced, or the oldest.
    fn keep(&mut self, key: K, value: V, most: usize) -> Option<V> {
        let replaced = self.values.insert(key, value);
        if replaced.is_some() {
            return replaced;
        }
        self.order.push_back(key);
        if self.order.len() <= most {
            return None;
        }
        let oldest = self.order.pop_front()?;
        self.values.remove(&oldest)
    }

    fn remove(&mut self, key: K) -> Option<V> {
        let removed = self.values.remove(&key)?;
        self.order.retain(|kept| *kept != key);
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Weak};

    use super::*;

    fn held<const MOST: usize>(kept: &Kept<u8, char, MOST>) -> Vec<(u8, char)> {
        (0..10)
            .filter_map(|key| kept.get(key).map(|value| (key, value)))
            .collect()
    }

    #[test]
    fn the_oldest_goes() {
        let kept = Kept::<u8, char, 2>::default();
        assert_eq!(held(&kept), []);
        kept.keep(1, 'a');
        kept.keep(2, 'b');
        assert_eq!(held(&kept), [(1, 'a'), (2, 'b')]);
        // Looked at and replaced, and the oldest all the same.
        kept.keep(1, 'c');
        assert_eq!(held(&kept), [(1, 'c'), (2, 'b')]);
        kept.keep(3, 'd');
        assert_eq!(held(&kept), [(2, 'b'), (3, 'd')]);
    }

    #[test]
    fn what_is_removed_takes_no_place() {
        let kept = Kept::<u8, char, 2>::default();
        kept.keep(1, 'a');
        kept.keep(2, 'b');
        kept.remove(1);
        kept.remove(7);
        assert_eq!(held(&kept), [(2, 'b')]);
        // It is the youngest when it comes again.
        kept.keep(1, 'c');
        kept.keep(3, 'd');
        assert_eq!(held(&kept), [(1, 'c'), (3, 'd')]);
    }

    /// Counts where it is dropped while the lock is free.
    struct Witness {
        kept: Weak<Kept<u8, Witness, 2>>,
        free: Arc<AtomicUsize>,
    }

    impl Drop for Witness {
        fn drop(&mut self) {
            if self
                .kept
                .upgrade()
                .is_some_and(|kept| kept.inner.try_lock().is_ok())
            {
                self.free.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn values_end_without_the_lock() {
        let kept = Arc::new(Kept::<u8, Witness, 2>::default());
        let free = Arc::new(AtomicUsize::new(0));
        let keep = |key| {
            let witness = Witness {
                kept: Arc::downgrade(&kept),
                free: Arc::clone(&free),
            };
            kept.keep(key, witness);
            free.load(Ordering::Relaxed)
        };
        assert_eq!((keep(1), keep(2)), (0, 0));
        assert_eq!(keep(1), 1, "replaced");
        assert_eq!(keep(3), 2, "the oldest");
        kept.remove(3);
        assert_eq!(free.load(Ordering::Relaxed), 3, "removed");
    }
}
