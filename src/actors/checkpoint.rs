//! Checkpoints: what an actor has written becomes a layer on its image, and with it an image of the
//! store, on which others go on. Nothing is unpacked for them.

use std::sync::Arc;

use super::record::{ImageRef, Make, UpperKind};
use super::{Actor, Actors, Error, Id, Took};
use crate::diff::{self, DiffError, Format, Options, Pattern, Written};
use crate::digest::Digest;
use crate::import::Watch;
use crate::stack::{self, Note, Stacked};
use crate::store::{OnProgress, Source};
use crate::sys::clock::since_epoch;

/// A checkpoint that was made.
pub type Checkpoint = Took<Stacked<Written>>;

/// What of an actor goes into a checkpoint, and who is told.
pub struct Asked<'a> {
    /// What is left out.
    pub exclude: Vec<Pattern>,
    /// Said in the history of the image.
    pub comment: Option<String>,
    /// Told how many bytes are written.
    pub progress: diff::OnProgress<'a>,
    /// Told what the store waits for.
    pub store: OnProgress<'a>,
    /// Told of an import: a local tar comes into the store with its first checkpoint.
    pub watch: Arc<dyn Watch + Send + Sync>,
}

impl std::fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").finish_non_exhaustive()
    }
}

impl Actor {
    /// Makes an image of the store of the actor's image and of what it has written. The actor goes
    /// on as it was.
    ///
    /// # Errors
    /// [`Error`]; nothing can be seen of the image then.
    pub fn checkpoint(&self, asked: Asked<'_>) -> Result<Checkpoint, Error> {
        let locked = self.lock()?;
        let image = self.image()?;
        let base = stack::ensure_in_store(&self.store, &image, asked.watch)?;
        let lower = image.lower()?;
        let note = Note {
            comment: asked.comment,
            ..note(self)
        };
        let options = Options {
            format: Format::Oci,
            exclude: asked.exclude,
            digest: true,
            side_blobs: image.side_blobs(),
            ..Options::default()
        };
        let mut frozen = None;
        let (store, progress) = (&self.store, asked.progress);
        let stacked = stack::add_layer(
            store,
            &base,
            &note,
            |layer| {
                let took = self.with_changes_locked(&locked, lower, options, |changes| {
                    let written = changes.write_into(layer.file(), progress);
                    written.map_err(|error| match error {
                        DiffError::Write(error) => DiffError::Write(layer.refused(error)).into(),
                        other => Error::from(other),
                    })
                })?;
                frozen = took.frozen;
                if let Some(digest) = took.value.digest {
                    layer.wrote(took.value.len, digest);
                }
                Ok::<_, Error>(took.value)
            },
            asked.store,
        )?;
        Ok(Took {
            value: stacked,
            frozen,
        })
    }
}

/// What the history of a checkpoint says of it.
fn note(of: &Actor) -> Note {
    Note {
        id: of.id().to_string(),
        comment: None,
        created: since_epoch().as_secs(),
    }
}

fn taken(id: &Id) -> Error {
    Error::Exists {
        id: id.clone(),
        what: "life",
    }
}

impl Actors {
    /// The checkpoint from which those of `ids` go on that are forks of `of` already: what a call has
    /// made that was broken off. `None`: there is none of them yet.
    ///
    /// # Errors
    /// [`Error::Exists`]: an id is taken by another actor; those of looking.
    pub fn forked(&self, of: &Actor, ids: &[Id]) -> Result<Option<Digest>, Error> {
        let mut forked = None;
        for id in ids {
            let Some(there) = self.find(id)? else {
                continue;
            };
            let digest = match there.record.make.image {
                ImageRef::Stored(digest) if self.is_checkpoint(&digest, of) => digest,
                _ => return Err(taken(id)),
            };
            if *forked.get_or_insert(digest) != digest {
                return Err(taken(id));
            }
        }
        Ok(forked)
    }

    fn is_checkpoint(&self, digest: &Digest, of: &Actor) -> bool {
        let by = note(of).created_by();
        let record = self.store.record(digest);
        matches!(record.map(|r| r.source), Some(Source::Made { by: made, .. }) if made == by)
    }

    /// Makes actors that go on from the checkpoint `digest` of `of`: as it is in all else, but each
    /// in a place of its own.
    ///
    /// # Errors
    /// [`Error`]; those that were made by then stay.
    pub fn fork(&self, of: &Actor, digest: Digest, ids: &[Id]) -> Result<Vec<Actor>, Error> {
        let image = self.store.image(&digest)?;
        let make = Make {
            image: ImageRef::Stored(digest),
            upper: match &of.record.make.upper {
                UpperKind::Tmpfs => UpperKind::Tmpfs,
                UpperKind::Disk | UpperKind::Dir { .. } => UpperKind::Disk,
            },
            point: None,
            bundle: None,
            ..of.record.make.clone()
        };
        ids.iter()
            .map(|id| self.create(id, &image, make.clone()))
            .collect()
    }
}
