//! A new actor.

use std::path::Path;

use super::place::{self, Place};
use super::record::{FORMAT, ImageRef, InBundle, Make, Record, UpperKind};
use super::{Actor, Actors, Error, Id};
use crate::mount::find_mount;
use crate::store::Image;

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
        place::sweep(&self.dir);
        let record = Record {
            format: FORMAT,
            id: id.clone(),
            created: super::now(),
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

    /// Refuses ids that are taken, before something is done for which they are wanted.
    ///
    /// # Errors
    /// [`Error::Exists`]; those of looking.
    pub fn check_free(&self, ids: &[Id]) -> Result<(), Error> {
        for id in ids {
            if self.find(id)?.is_some() {
                return Err(Error::Exists {
                    id: id.clone(),
                    what: "life",
                });
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
        for path in [dir, &dir.join("rootfs")] {
            if is_link(path) {
                let path = path.display();
                return refused(format!(
                    "{path}: is a symbolic link; give the directory itself"
                ));
            }
        }
    }
    if let Some(point) = &make.point {
        if is_link(point) {
            let path = point.display();
            return refused(format!(
                "{path}: is a symbolic link; give the directory itself"
            ));
        }
        let found = find_mount(point).map_err(Error::path("cannot look for a mount at", point))?;
        if let Some(found) = found {
            return refused(format!(
                "{}: in use as a mount point ({}); give another",
                point.display(),
                found.fs_type
            ));
        }
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

fn is_link(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|found| found.is_symlink())
}
