//! A new actor.

use std::path::{Path, PathBuf};

use super::place::{self, Place};
use super::record::{FORMAT, ImageRef, InBundle, Make, Record, UpperKind};
use super::{Actor, Actors, Error, Id, state};
use crate::actor::bundle;
use crate::mount::{MountError, resolve_point, topmost};
use crate::store::Image;
use crate::sys::clock::since_epoch;
use crate::sys::mount::MountPoint;

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
        if let Some(found) = self.same(id, &make)? {
            return Ok(found);
        }
        let actor = Actor {
            store: self.store.clone(),
            place: Place::new(&self.dir, id),
            record: Record {
                format: FORMAT,
                id: id.clone(),
                created: since_epoch().as_secs(),
                make,
            },
        };
        self.check_apart(&actor.record.make)?;
        actor.check()?;
        place::sweep(&self.dir);
        loop {
            if actor.place.publish(&actor.record)? {
                return Ok(actor);
            }
            // Somebody was quicker, and may have destroyed it since.
            if let Some(found) = self.same(id, &actor.record.make)? {
                return Ok(found);
            }
        }
    }

    /// Nothing of the caller's may lie in the store: it would hide, or go with, what is there. Nor
    /// may the store lie in what is mounted on, or emptied by a reset.
    fn check_apart(&self, make: &Make) -> Result<(), Error> {
        let store = self.dir.parent().unwrap_or(&self.dir);
        let refused = |path: &Path, text: &str| {
            let path = path.display();
            Err(Error::Refused(format!(
                "{path}: {text}; give one elsewhere"
            )))
        };
        let bundle = make.bundle.as_ref().map(|bundle| &*bundle.dir);
        let rootfs = bundle.map(|bundle| bundle.join("rootfs"));
        let mut covered: Vec<&Path> = Vec::new();
        if let UpperKind::Dir { upper, work } = &make.upper {
            covered.extend([&**upper, &**work]);
        }
        covered.extend(make.point.as_deref());
        covered.extend(rootfs.as_deref());
        if let Some(path) = covered.iter().find(|path| store.starts_with(real(path))) {
            return refused(path, "the store is in it");
        }
        for path in covered.into_iter().chain(bundle) {
            let at = real(path);
            if at.starts_with(&self.dir) {
                return refused(path, "in a directory of the store's actors");
            }
            if at.starts_with(store) {
                return refused(path, "in the store");
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

impl Actor {
    /// What can be known to be wrong before anything is made.
    fn check(&self) -> Result<(), Error> {
        let make = &self.record.make;
        let refused = |text: &str| Err(Error::Refused(text.to_owned()));
        if make.point.is_some() && make.bundle.is_some() {
            return refused("a bundle's mount point is its rootfs: give one of the two");
        }
        if let Some(InBundle { dir, .. }) = &make.bundle {
            bundle::refuse_link(dir)?;
            check_free(&state::mounted()?, &self.point(), "give another")?;
            bundle::check_rootfs(dir, &self.bundle_record())?;
        }
        if let Some(point) = &make.point {
            bundle::refuse_link(point)?;
            check_free(&state::mounted()?, point, "give another")?;
            bundle::check_dir(point)?;
        }
        match &make.upper {
            UpperKind::Disk => {}
            UpperKind::Tmpfs if rustix::process::geteuid().is_root() => {}
            UpperKind::Tmpfs => {
                return refused(
                    "an upper in memory takes root; use --upper disk, or a directory on a tmpfs",
                );
            }
            UpperKind::Dir { upper, work } => {
                bundle::check_dir(upper)?;
                bundle::check_dir(work)?;
                let (real_upper, real_work) = (real(upper), real(work));
                if real_upper.starts_with(&real_work) || real_work.starts_with(&real_upper) {
                    return refused(
                        "the upper and its work directory lie in one another; give two",
                    );
                }
                self.check_point_outside(&[upper, work])?;
            }
        }
        Ok(())
    }

    /// What is written must not show through the mount.
    fn check_point_outside(&self, dirs: &[&Path]) -> Result<(), Error> {
        let point = real(&self.point());
        let inside = dirs.iter().find(|dir| point.starts_with(real(dir)));
        match inside {
            None => Ok(()),
            Some(dir) => Err(MountError::PointInUpper {
                point,
                inside: dir.to_path_buf(),
            }
            .into()),
        }
    }
}

/// Where a path leads of which the end may not be there yet.
pub(super) fn real(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|above| {
            let rest = path.strip_prefix(above).ok()?;
            Some(above.canonicalize().ok()?.join(rest))
        })
        .unwrap_or_else(|| path.to_owned())
}

/// Refuses a mount point on which something of `all` is mounted; `advice` says what to do.
pub(super) fn check_free(all: &[MountPoint], point: &Path, advice: &str) -> Result<(), Error> {
    // A mount is told by the one path that it has.
    let at = resolve_point(point).unwrap_or_else(|_| point.to_owned());
    match topmost(all, &at) {
        None => Ok(()),
        Some(found) => Err(Error::Refused(format!(
            "{}: in use as a mount point ({}); {advice}",
            point.display(),
            found.fs_type
        ))),
    }
}
