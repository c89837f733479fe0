//! A new actor.

use std::path::{Path, PathBuf};

use super::place::{self, Place};
use super::record::{FORMAT, ImageRef, InBundle, Make, Record, UpperKind};
use super::{Actor, Actors, Error, Id};
use crate::actor::bundle;
use crate::mount::find_mount;
use crate::store::Image;
use crate::sys::clock::since_epoch;

impl Actors {
    /// Makes the actor `id` on `image`, which `make` names; one that is there already and is to be
    /// the same is as good.
    ///
    /// # Errors
    /// [`Error::Exists`]: one that is otherwise; [`Error::Refused`]; the system's. Nothing is made
    /// then.
    pub fn create(&self, id: &Id, image: &Image, make: Make) -> Result<Actor, Error> {
        debug_assert!(match &make.image {
            ImageRef::Stored(digest) => image.record().digest == Some(*digest),
            ImageRef::Tar(_) => image.tar_path().is_some(),
        });
        let place = Place::new(&self.dir, id);
        if let Some(found) = self.same(id, &make)? {
            return Ok(found);
        }
        check(&make)?;
        self.check_apart(&make)?;
        place::sweep(&self.dir);
        let record = Record {
            format: FORMAT,
            id: id.clone(),
            created: since_epoch().as_secs(),
            make,
        };
        loop {
            if place.publish(&record)? {
                return Ok(Actor {
                    store: self.store.clone(),
                    place,
                    record,
                });
            }
            // Somebody was quicker, and may have destroyed it since.
            if let Some(found) = self.same(id, &record.make)? {
                return Ok(found);
            }
        }
    }

    /// Nothing of the caller's may lie among the actors: it would hide, or go with, what is theirs.
    fn check_apart(&self, make: &Make) -> Result<(), Error> {
        let mut theirs: Vec<&Path> = Vec::new();
        if let UpperKind::Dir { upper, work } = &make.upper {
            theirs.extend([&**upper, &**work]);
        }
        theirs.extend(make.point.as_deref());
        theirs.extend(make.bundle.as_ref().map(|bundle| &*bundle.dir));
        for path in theirs {
            if real(path).starts_with(&self.dir) {
                return Err(Error::Refused(format!(
                    "{}: in a directory of the store's actors; give one elsewhere",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    fn same(&self, id: &Id, make: &Make) -> Result<Option<Actor>, Error> {
        let Some(found) = self.find(id)? else {
            return Ok(None);
        };
        match found.record.make.differs(make) {
            Some(what) => Err(Error::Exists {
                id: id.clone(),
                what,
            }),
            None => Ok(Some(found)),
        }
    }
}

/// What can be known to be wrong before anything is made.
fn check(make: &Make) -> Result<(), Error> {
    let refused = |text: String| Err(Error::Refused(text));
    if make.point.is_some() && make.bundle.is_some() {
        return refused("a bundle's mount point is its rootfs: give one of the two".to_owned());
    }
    if let Some(InBundle { dir, .. }) = &make.bundle {
        bundle::refuse_link(dir)?;
        bundle::refuse_link(&dir.join("rootfs"))?;
    }
    if let Some(point) = &make.point {
        bundle::refuse_link(point)?;
        check_free(point, "give another")?;
        if !point.is_dir() && point.exists() {
            return refused(format!("{}: not a directory", point.display()));
        }
    }
    match &make.upper {
        UpperKind::Tmpfs if !rustix::process::geteuid().is_root() => refused(
            "an upper in memory takes root; use --upper disk, or a directory on a tmpfs".to_owned(),
        ),
        UpperKind::Dir { upper, .. } if upper.exists() && !upper.is_dir() => {
            refused(format!("{}: not a directory", upper.display()))
        }
        _ => Ok(()),
    }
}

/// Where a path leads of which the end may not be there yet.
fn real(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|above| {
            let rest = path.strip_prefix(above).ok()?;
            Some(above.canonicalize().ok()?.join(rest))
        })
        .unwrap_or_else(|| path.to_owned())
}

/// Refuses a mount point on which something is mounted; `advice` says what to do.
pub(super) fn check_free(point: &Path, advice: &str) -> Result<(), Error> {
    let found = find_mount(point).map_err(Error::path("cannot look for a mount at", point))?;
    match found {
        None => Ok(()),
        Some(found) => Err(Error::Refused(format!(
            "{}: in use as a mount point ({}); {advice}",
            point.display(),
            found.fs_type
        ))),
    }
}
