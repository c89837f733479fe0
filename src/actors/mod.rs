//! Actors that last: a root filesystem that is given, reset, frozen, taken out and brought back.
//!
//! An actor is an image, a place for what is written, and a mount point, kept under an id in
//! `<store>/actors/<id>/` ([`Record`]). What has become of it the kernel tells ([`State`]): nothing
//! is remembered that could be wrong after a crash. Each actor that is started has one server
//! process of its own, and all that have the same image share its pages.
//!
//! Invariants: every call can be repeated, also after it was killed anywhere, and repairs what the
//! one before has left; an actor is there whole or not at all; who changes one has it locked, and
//! nobody waits for a mount to answer; what is mounted by others is never removed from below.
//!
//! It prints nothing and reads no environment.

mod changes;
mod checkpoint;
mod create;
mod destroy;
mod error;
mod hold;
mod holders;
mod id;
mod locker;
mod place;
mod record;
mod reset;
mod server;
mod state;
mod stop;

pub use changes::Took;
pub use checkpoint::{Asked, Checkpoint};
pub use error::Error;
pub use holders::Holder;
pub use id::Id;
pub use record::{ImageRef, InBundle, Make, Record, Serving, UpperKind};
pub use server::{Begun, Serving as ServingActor, Start};
pub use state::{Seen, ServerRecord, State};
pub use stop::Stop;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::actor::bundle;
use crate::store::{Image, Store};
use place::Place;

/// The actors of a store.
#[derive(Debug, Clone)]
pub struct Actors {
    store: Store,
    dir: PathBuf,
}

/// An actor, as it is recorded.
#[derive(Debug, Clone)]
pub struct Actor {
    store: Store,
    place: Place,
    record: Record,
}

/// An actor in a list.
#[derive(Debug)]
pub struct Listed {
    /// Its id.
    pub id: Id,
    /// What it is and what has become of it, or why that cannot be told.
    pub found: Result<(Actor, Seen), Error>,
}

impl Actors {
    /// The actors of `store`.
    #[must_use]
    pub fn of(store: &Store) -> Self {
        // By the one path that it has: a mount is told by it, however the store is called.
        let dir = store.dir().canonicalize();
        Self {
            store: store.clone(),
            dir: dir
                .unwrap_or_else(|_| store.dir().to_owned())
                .join("actors"),
        }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The actor `id`.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Damaged`].
    pub fn get(&self, id: &Id) -> Result<Actor, Error> {
        self.find(id)?.ok_or_else(|| Error::Unknown(id.clone()))
    }

    fn find(&self, id: &Id) -> Result<Option<Actor>, Error> {
        let place = Place::new(&self.dir, id);
        let record = place.read(id)?;
        Ok(record.map(|record| Actor {
            store: self.store.clone(),
            place,
            record,
        }))
    }

    /// All actors, by id.
    ///
    /// # Errors
    /// The system's. What is wrong with one of them stands with that one.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let failed = || Error::path("cannot list", &self.dir);
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed()(e)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed())?.file_name();
            if let Some(id) = name.to_str().and_then(|name| name.parse::<Id>().ok()) {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        let all = state::mounted()?;
        let listed = ids.into_iter().filter_map(|id| {
            let found = match self.find(&id) {
                Ok(Some(actor)) => state::look_in(&actor.place, &all).map(|seen| (actor, seen)),
                // Gone meanwhile.
                Ok(None) => return None,
                Err(error) => Err(error),
            };
            Some(Listed { id, found })
        });
        Ok(listed.collect())
    }
}

impl Actor {
    /// Its record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.record.id
    }

    /// Its directory in the store.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// Where its root filesystem is mounted when it is started.
    #[must_use]
    pub fn point(&self) -> PathBuf {
        let make = &self.record.make;
        let bundled = make.bundle.as_ref().map(|bundle| bundle.dir.join("rootfs"));
        make.point
            .clone()
            .or(bundled)
            .unwrap_or_else(|| self.place.rootfs())
    }

    /// Its upper and work directory.
    #[must_use]
    pub fn writes(&self) -> (PathBuf, PathBuf) {
        self.place.writes(&self.record.make.upper)
    }

    /// The socket of its server.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.place.control()
    }

    /// The log of its servers.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.place.log()
    }

    /// What has become of it.
    ///
    /// # Errors
    /// The system's.
    pub fn look(&self) -> Result<Seen, Error> {
        state::look(&self.place)
    }

    /// Its image.
    ///
    /// # Errors
    /// [`Error::Store`]: it is gone, or damaged.
    pub fn image(&self) -> Result<Image, Error> {
        Ok(match &self.record.make.image {
            ImageRef::Stored(digest) => self.store.image(digest)?,
            ImageRef::Tar(path) => self.store.tar_image(path, &mut |_| ())?,
        })
    }

    /// Completes the actor's bundle, if it is in one, when it is mounted: config.json, and in the
    /// root filesystem what its mounts need. Not for the server's own process.
    ///
    /// # Errors
    /// [`Error::Bundle`].
    pub fn equip(&self) -> Result<(), Error> {
        match &self.record.make.bundle {
            Some(bundle) => Ok(bundle::equip(&bundle.dir, &bundle.config)?),
            None => Ok(()),
        }
    }

    fn bundle_record(&self) -> bundle::Record {
        let (upper, work) = self.writes();
        bundle::Record {
            image: match &self.record.make.image {
                ImageRef::Stored(digest) => digest.to_string().into(),
                ImageRef::Tar(path) => path.clone(),
            },
            read_only: false,
            upper: Some(upper),
            work: Some(work),
            made_dir: false,
        }
    }

    fn lock(&self) -> Result<place::Locked, Error> {
        self.lock_until(place::Until::patient())
    }

    fn lock_until(&self, until: place::Until) -> Result<place::Locked, Error> {
        let unknown = || Error::Unknown(self.id().clone());
        let locked = self.place.lock(self.id(), until)?.ok_or_else(unknown)?;
        // What is known of it is from before: its directories may be another's by now.
        match self.place.read(self.id())?.ok_or_else(unknown)? == self.record {
            true => Ok(locked),
            false => Err(Error::Refused(format!(
                "actor {}: was destroyed and made anew meanwhile; make the same call again",
                self.id()
            ))),
        }
    }
}
