//! The end of an actor.

use std::fs;
use std::io;

use super::place::{self, Place};
use super::record::UpperKind;
use super::stop::Stop;
use super::{Actor, Actors, Error, Id};
use crate::actor::bundle;

impl Actors {
    /// Stops the actor `id` and removes it with what it has written, but for an upper directory of
    /// the caller's; gives whether there was one. Of an actor whose record is damaged nothing but
    /// its own directory is known.
    ///
    /// # Errors
    /// Those of [`Actor::stop`]; the system's. The actor is still there then, or all but gone: the
    /// next call goes on.
    pub fn destroy(&self, id: &Id, how: Stop) -> Result<bool, Error> {
        place::sweep(&self.dir);
        let place = Place::new(&self.dir, id);
        let Some(locked) = place.lock(id, place::Until::stopped(how))? else {
            return Ok(false);
        };
        match self.find(id) {
            Ok(Some(actor)) => {
                actor.stop_locked(&locked, how)?;
                actor.clear()?;
            }
            Ok(None) => return Ok(false),
            Err(Error::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        place.remove()?;
        Ok(true)
    }
}

impl Actor {
    /// What of the actor lies elsewhere, and what is mounted.
    fn clear(&self) -> Result<(), Error> {
        if self.record.make.upper == UpperKind::Tmpfs {
            self.drop_tmpfs()?;
        }
        if let Some(bundle) = &self.record.make.bundle {
            bundle::forget(&bundle.dir)?;
        }
        if let Some(point) = &self.record.make.point
            && self.place.made_point().exists()
        {
            match fs::remove_dir(point) {
                // Somebody has put something there.
                Err(e)
                    if !matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    return Err(Error::path("cannot remove", point)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
