//! Collecting: what nobody needs, and, above a bound, what was used longest ago.
//!
//! What is used, or may be, stays ([`super::hold`], [`super::roots`]), and so does everything of
//! which nobody can tell. Layers go when no image needs them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::hold::{self, Free};
use super::images::{layers_of, used};
use super::layout::{USED, allocated, entry_allocated, list};
use super::links::unlink_lost;
use super::record::{ImageJson, Source};
use super::remove::{Gone, Needed};
use super::tar::TarIdentity;
use super::{Store, StoreError, blob};
use crate::digest::Digest;
use crate::sys::clock::since_epoch;

/// How much there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Bytes of the store.
    Bytes(u64),
    /// Percent of the store's filesystem that may be in use, by whatever.
    DiskPercent(u8),
}

/// How to collect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcOptions {
    /// Above this, images are removed, the one first that was used longest ago; `None`: never.
    pub high: Option<Limit>,
    /// Until no more than this is left. `None`: [`Self::high`] less a tenth.
    pub low: Option<Limit>,
    /// Remove every image that is not used.
    pub all: bool,
    /// What was used or made within this time stays.
    pub min_age: Duration,
    /// Remove nothing, only say what would be.
    pub dry_run: bool,
}

/// What a decision is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// An image, by its own digest.
    Image(Digest),
    /// The index of a local tar, by its path.
    TarIndex(String),
    /// A layer.
    Layer(Digest),
}

/// What was decided about an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What it is about.
    pub item: Item,
    /// Whether it goes (with [`GcOptions::dry_run`]: would).
    pub goes: bool,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Why.
    pub why: String,
}

/// What came of collecting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Item by item.
    pub decisions: Vec<Decision>,
    /// Bytes of the store before.
    pub before: u64,
    /// Bytes that were freed (would be).
    pub freed: u64,
    /// Bytes that should have been freed but could not, since too much is used.
    pub short: u64,
}

/// An entry that may go to make room.
struct Candidate {
    item: Item,
    image: Option<Digest>,
    entry: PathBuf,
    layers: Vec<Digest>,
    /// When it was used last, since the epoch.
    used: Duration,
}

impl Store {
    /// The bytes that the store takes on the disk: layers, indexes, images.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn bytes(&self) -> Result<u64, StoreError> {
        let layers = blob::all(&self.layout)?;
        let mut sum = layers.iter().map(|(_, bytes)| bytes).sum();
        for digest in self.own_digests()? {
            sum += entry_allocated(&self.layout.image(&digest));
        }
        for entry in list(&self.layout.tars())? {
            sum += entry_allocated(&entry);
        }
        Ok(sum)
    }

    /// Removes what nobody needs, and as many images as `options` ask for.
    ///
    /// # Errors
    /// [`StoreError`] of reading or writing the store; what was removed until then is.
    pub fn collect(&self, options: &GcOptions) -> Result<Collected, StoreError> {
        if !options.dry_run {
            self.prepare()?;
        }
        let mut run = Run {
            store: self,
            options,
            needed: Needed::default(),
            users: BTreeMap::new(),
            out: Collected {
                before: self.bytes()?,
                ..Collected::default()
            },
        };
        run.lost_links()?;
        run.lost_layers()?;
        let candidates = run.candidates()?;
        let want = run.want()?;
        run.make_room(candidates, want)?;
        Ok(run.out)
    }
}

struct Run<'a> {
    store: &'a Store,
    options: &'a GcOptions,
    needed: Needed,
    /// How many images, that are to stay, need each layer.
    users: BTreeMap<Digest, usize>,
    out: Collected,
}

impl Run<'_> {
    fn decide(&mut self, item: Item, goes: bool, bytes: u64, why: impl Into<String>) {
        let why = why.into();
        tracing::debug!(?item, goes, bytes, %why, "gc");
        if goes {
            self.out.freed += bytes;
        }
        self.out.decisions.push(Decision {
            item,
            goes,
            bytes,
            why,
        });
    }

    /// Links to images that are gone.
    fn lost_links(&mut self) -> Result<(), StoreError> {
        if self.options.dry_run {
            return Ok(());
        }
        let layout = &self.store.layout;
        for (link, own) in self
            .store
            .aliases()?
            .into_iter()
            .chain(self.store.sources()?)
        {
            unlink_lost(layout, &link, &own)?;
        }
        for (name, own) in self.store.names()? {
            self.store.untag_lost(&name, &own)?;
        }
        Ok(())
    }

    /// Layers that no image needs, as imports that failed leave them.
    fn lost_layers(&mut self) -> Result<(), StoreError> {
        let store = self.store;
        let layers = blob::all(&store.layout)?;
        for (layer, bytes) in layers {
            if self.needed.by(store, &layer)?.is_some() {
                continue;
            }
            match young(&store.layout.blob(&layer), self.options.min_age) {
                Some(why) => self.decide(Item::Layer(layer), false, bytes, why),
                None => self.drop_layer(&layer, bytes)?,
            }
        }
        Ok(())
    }

    fn drop_layer(&mut self, layer: &Digest, bytes: u64) -> Result<(), StoreError> {
        let item = Item::Layer(*layer);
        if self.options.dry_run {
            match blob::alone(&self.store.layout, layer) {
                Free::Yes(_) | Free::Gone => self.decide(item, true, bytes, "no image needs it"),
                Free::No(why) => self.decide(item, false, bytes, why),
            }
            return Ok(());
        }
        match self.store.drop_layer(layer, &mut self.needed)? {
            Gone::Yes(bytes) => self.decide(item, true, bytes, "no image needs it"),
            Gone::No(why) => self.decide(item, false, bytes, why),
        }
        Ok(())
    }

    /// Everything that may go to make room, the one used longest ago first. What is of no use any
    /// more goes at once.
    fn candidates(&mut self) -> Result<Vec<Candidate>, StoreError> {
        let mut all = Vec::new();
        for digest in self.store.own_digests()? {
            let entry = self.store.layout.image(&digest);
            let Some(record) = ImageJson::read(&entry) else {
                let why = "its record cannot be read; `tarnfs verify --repair` may help";
                self.decide(Item::Image(digest), false, entry_allocated(&entry), why);
                continue;
            };
            let layers = layers_of(Some(&record));
            for layer in &layers {
                *self.users.entry(*layer).or_default() += 1;
            }
            all.push(Candidate {
                item: Item::Image(digest),
                image: Some(digest),
                used: used(&entry),
                entry,
                layers,
            });
        }
        for entry in list(&self.store.layout.tars())? {
            let record = ImageJson::read(&entry);
            let shown = shown(&entry, record.as_ref());
            let candidate = Candidate {
                item: Item::TarIndex(shown),
                image: None,
                used: used(&entry),
                entry,
                layers: Vec::new(),
            };
            match record.as_ref().and_then(useless) {
                Some(why) => {
                    self.drop(&candidate, why)?;
                }
                None => all.push(candidate),
            }
        }
        all.sort_by(|a, b| a.used.cmp(&b.used).then(a.item.cmp(&b.item)));
        Ok(all)
    }

    /// How many bytes have to go.
    fn want(&self) -> Result<u64, StoreError> {
        if self.options.all {
            return Ok(u64::MAX);
        }
        let Some(high) = self.options.high else {
            return Ok(0);
        };
        let low = self.options.low.unwrap_or(match high {
            Limit::Bytes(bytes) => Limit::Bytes(bytes - bytes / 10),
            Limit::DiskPercent(percent) => Limit::DiskPercent(percent - percent / 10),
        });
        let left = self.out.before.saturating_sub(self.out.freed);
        let above = |limit: Limit| match limit {
            Limit::Bytes(bytes) => Ok(left.saturating_sub(bytes)),
            Limit::DiskPercent(percent) => {
                let dir = self.store.dir();
                let disk = rustix::fs::statvfs(dir).map_err(|e| StoreError::io(dir)(e.into()))?;
                let size = disk.f_blocks.saturating_mul(disk.f_frsize);
                let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                // What a dry run would have freed is free.
                let would = if self.options.dry_run {
                    self.out.freed
                } else {
                    0
                };
                let taken = size.saturating_sub(free).saturating_sub(would);
                Ok(taken.saturating_sub(size / 100 * u64::from(percent)))
            }
        };
        if above(high)? == 0 {
            return Ok(0);
        }
        above(low)
    }

    /// Removes candidates until `want` bytes are free.
    fn make_room(&mut self, candidates: Vec<Candidate>, want: u64) -> Result<(), StoreError> {
        let roots = self.store.roots()?;
        let before = self.out.freed;
        for candidate in candidates {
            let bytes = entry_allocated(&candidate.entry);
            if self.out.freed - before >= want {
                self.decide(candidate.item, false, bytes, "there is room");
                continue;
            }
            let root = roots
                .iter()
                .find(|root| Some(root.image) == candidate.image);
            if let Some(root) = root {
                self.decide(candidate.item, false, bytes, root.why());
                continue;
            }
            if let Some(why) = young(&candidate.entry.join(USED), self.options.min_age) {
                self.decide(candidate.item, false, bytes, why);
                continue;
            }
            let why = match self.options.all {
                true => format!("nobody uses it; used last {} ago", since(candidate.used)),
                false => format!("to make room; used last {} ago", since(candidate.used)),
            };
            if !self.drop(&candidate, why)? {
                continue;
            }
            for layer in candidate.layers {
                let left = self.users.entry(layer).or_default();
                *left = left.saturating_sub(1);
                if *left == 0 {
                    let bytes = allocated(&self.store.layout.blob(&layer)).unwrap_or(0);
                    self.drop_layer(&layer, bytes)?;
                }
            }
        }
        if want != u64::MAX {
            self.out.short = want.saturating_sub(self.out.freed - before);
        }
        Ok(())
    }

    /// Removes an entry, if nobody uses it.
    fn drop(&mut self, candidate: &Candidate, why: impl Into<String>) -> Result<bool, StoreError> {
        let bytes = entry_allocated(&candidate.entry);
        let item = candidate.item.clone();
        let gone = match (self.options.dry_run, candidate.image) {
            (true, _) => match hold::entry_alone(&candidate.entry) {
                Free::Yes(_) | Free::Gone => Gone::Yes(bytes),
                Free::No(why) => Gone::No(why),
            },
            (false, Some(image)) => {
                let gone = self.store.drop_entry(&image)?;
                if matches!(gone, Gone::Yes(_)) {
                    self.store.drop_names(&image)?;
                }
                gone
            }
            (false, None) => match hold::entry_alone(&candidate.entry) {
                Free::Yes(_alone) => {
                    self.store.withdraw(&candidate.entry)?;
                    Gone::Yes(bytes)
                }
                Free::Gone => Gone::Yes(0),
                Free::No(why) => Gone::No(why),
            },
        };
        match gone {
            Gone::Yes(bytes) => {
                self.decide(item, true, bytes, why);
                Ok(true)
            }
            Gone::No(why) => {
                self.decide(item, false, bytes, why);
                Ok(false)
            }
        }
    }
}

/// Why the index of a local tar is of no use any more: the tar is gone, or is another one now.
fn useless(record: &ImageJson) -> Option<&'static str> {
    let Source::Tar { path, identity } = &record.source else {
        return None;
    };
    // A path that could not be told as it is.
    if path.contains(char::REPLACEMENT_CHARACTER) {
        return None;
    }
    match fs::metadata(path) {
        Ok(metadata) if TarIdentity::of(&metadata) != *identity => Some("its tar has changed"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some("its tar is gone"),
        // Not seen: it may be there.
        _ => None,
    }
}

fn shown(entry: &Path, record: Option<&ImageJson>) -> String {
    match record.map(|record| &record.source) {
        Some(Source::Tar { path, .. }) => path.clone(),
        _ => entry.display().to_string(),
    }
}

/// Why what was changed last at the time of `path` is too young to go.
fn young(path: &Path, min_age: Duration) -> Option<String> {
    let modified = fs::metadata(path).and_then(|m| m.modified()).ok()?;
    // A time in the future is no age.
    let age = SystemTime::now()
        .duration_since(modified)
        .unwrap_or_default();
    (age < min_age).then(|| format!("used within the last {}", words(min_age.as_secs().max(1))))
}

fn since(time: Duration) -> String {
    words(since_epoch().saturating_sub(time).as_secs())
}

fn words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
