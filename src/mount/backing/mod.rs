//! The image as the kernel itself reads it: an EROFS mount of the index over its blobs, attached
//! nowhere, whose files are handed to the kernel in place of their bytes; and the lower of the
//! kernel engine.
//!
//! All mounts of an image on a machine share one superblock, and so one copy of its pages in
//! memory ([`shared`]).
//!
//! It *never* is of another image: what is found is compared with the index and the blobs, and the
//! blobs are compared once more when a file is opened. Without one nothing fails: the server
//! answers reads by itself.

mod rung;
mod shared;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::MountOptions;
use super::kernel::{sweep_pins, version};
use crate::lower::Lower;
use crate::sys;
use crate::sys::handle::NativeRoot;
use crate::sys::mount::clone_mount;

pub use rung::{Choice, Rung};
use shared::{Found, Identity, Publication};
pub(super) use shared::{Images, place_of_pins};

/// `EROFS_SUPER_MAGIC_V1`, as statfs(2) gives it.
const MAGIC: u64 = 0xE0F5_E1E2;

/// A mount of an image by the kernel. Others may take it over while this is there, and keep it.
#[derive(Debug)]
pub struct Backing {
    /// First to go.
    publication: Option<Publication>,
    /// A mount of our own; `None` where the kernel makes none of another process's.
    mount: Option<OwnedFd>,
    /// Its root, open for reading.
    root: OwnedFd,
    rung: Rung,
    source: OsString,
    identity: Option<Identity>,
    is_shared: bool,
    /// Why not by a better rung.
    why: Vec<String>,
}

impl Backing {
    /// A mount of `lower`'s image: another process's, if one of `dirs` (state directories) tells of
    /// one, else a new one of which it is to tell others.
    ///
    /// # Errors
    /// [`NoBacking`] says why there is none.
    pub fn acquire(lower: &Lower, choice: Choice, dirs: &[PathBuf]) -> Result<Self, NoBacking> {
        let images = lock(dirs)?;
        let mut backing = Self::find_or_make(lower, choice, images.as_ref(), false)?;
        backing.publish(images.as_ref());
        Ok(backing)
    }

    /// The same, for who is to mount it: [`Self::take_mount`] gives something.
    pub(super) fn to_mount(
        lower: &Lower,
        choice: Choice,
        images: Option<&Images>,
    ) -> Result<Self, NoBacking> {
        Self::find_or_make(lower, choice, images, true)
    }

    fn find_or_make(
        lower: &Lower,
        choice: Choice,
        images: Option<&Images>,
        to_mount: bool,
    ) -> Result<Self, NoBacking> {
        let identity = Identity::of(lower);
        let found = images
            .zip(identity.as_ref())
            .and_then(|(images, identity)| {
                images.find(identity, lower, |rung| choice.allows(rung))
            });
        let backing = match found {
            Some(found) if found.mount.is_some() || !to_mount => Self::found(found, identity),
            _ => Self::make(lower, choice, identity)?,
        };
        let (rung, shared) = (backing.rung, backing.is_shared);
        let image = lower.index_path().display();
        tracing::info!(%image, %rung, shared, why = backing.why.join("; "), "backing");
        Ok(backing)
    }

    fn found(found: Found, identity: Option<Identity>) -> Self {
        Self {
            publication: None,
            mount: found.mount,
            root: found.root,
            rung: found.rung,
            source: found.source.into_os_string(),
            identity,
            is_shared: true,
            why: Vec::new(),
        }
    }

    fn make(lower: &Lower, choice: Choice, identity: Option<Identity>) -> Result<Self, NoBacking> {
        let mut why = Vec::new();
        for rung in choice.rungs() {
            let made = rung::create(lower, rung).and_then(|(mount, source)| {
                let root = open_root(mount.as_fd()).map_err(|error| error.to_string())?;
                check(root.as_fd(), lower)?;
                Ok((mount, root, source))
            });
            match made {
                Ok((mount, root, source)) => {
                    return Ok(Self {
                        publication: None,
                        mount: Some(mount),
                        root,
                        rung,
                        source,
                        identity,
                        is_shared: false,
                        why,
                    });
                }
                Err(error) => why.push(format!("{rung}: {error}")),
            }
        }
        if why.is_empty() {
            why.push("none is wanted".to_owned());
        }
        Err(NoBacking(why.join("; ")))
    }

    /// Tells others of it, as long as it is there.
    pub(super) fn publish(&mut self, images: Option<&Images>) {
        let Some((images, identity)) = images.zip(self.identity.as_ref()) else {
            return;
        };
        let source = Path::new(&self.source);
        match images.publish(identity, self.root.as_fd(), self.rung, source) {
            Ok(publication) => self.publication = Some(publication),
            Err(error) => tracing::debug!("the backing is not shared: {error}"),
        }
    }

    /// Leaves it to those who come when no process is left that holds it; false where it cannot be.
    pub(super) fn pin(&mut self, images: &Images) -> io::Result<()> {
        let Some((identity, mount)) = self.identity.as_ref().zip(self.mount.take()) else {
            return Ok(());
        };
        let source = Path::new(&self.source);
        self.mount = Some(images.pin(identity, mount, self.rung, source)?);
        Ok(())
    }

    /// A mount of it, attached nowhere, for the caller to attach; `None` where the kernel makes no
    /// second one.
    pub(super) fn take_mount(&mut self) -> Option<OwnedFd> {
        let again = clone_mount(self.mount.as_ref()?.as_fd(), Path::new(""));
        again.ok().or_else(|| self.mount.take())
    }

    /// What mountinfo shows as its source.
    #[must_use]
    pub fn source(&self) -> &OsStr {
        &self.source
    }

    /// The name by which the image's mounts are known here.
    pub(super) fn name(&self) -> Option<String> {
        self.identity.as_ref().map(Identity::name)
    }

    /// How it is mounted.
    #[must_use]
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Whether another process mounted it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Why it is not by a better rung.
    #[must_use]
    pub fn why(&self) -> &[String] {
        &self.why
    }

    /// Its root directory, open for reading.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What opens its files by their numbers: for [`Lower::set_native`].
    ///
    /// # Errors
    /// The system's; EPERM without CAP_DAC_READ_SEARCH.
    pub fn native(&self) -> io::Result<NativeRoot> {
        Ok(NativeRoot::new(self.root.try_clone()?)?)
    }
}

/// The first Linux whose FUSE passes reads through.
const PASSTHROUGH: (u32, u32) = (6, 9);

/// Gives a server's image its mount, if there can be one; to be kept while it serves.
pub(super) fn equip(lower: &Lower, options: &MountOptions) -> Option<Box<Backing>> {
    options.serving.passthrough?;
    let acquire = || {
        if version() < Some(PASSTHROUGH) {
            return Err(NoBacking("needs Linux 6.9 or later".to_owned()));
        }
        let backing = Backing::acquire(lower, options.backing, &options.image_dirs)?;
        let native = backing.native();
        lower.set_native(native.map_err(|error| NoBacking(format!("files by number: {error}")))?);
        Ok(backing)
    };
    acquire()
        .inspect_err(|why| {
            let image = lower.index_path().display();
            tracing::info!(%image, %why, "no backing: the server answers reads");
        })
        .ok()
        .map(Box::new)
}

/// The place where mounts are shared, cleared up; an error where EROFS cannot be had at all, so
/// that nothing is looked for or made.
pub(super) fn lock(dirs: &[PathBuf]) -> Result<Option<Images>, NoBacking> {
    let in_words = |error: io::Error| NoBacking(rung::in_words(&error));
    if !sys::namespace::in_first_user_namespace() {
        return Err(in_words(io::Error::from_raw_os_error(libc::EPERM)));
    }
    sys::mount::can_open("erofs").map_err(in_words)?;
    let images = Images::lock(dirs);
    if let Some(images) = &images {
        sweep_pins(images, dirs);
    }
    Ok(images)
}

/// Why an image has no [`Backing`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoBacking(String);

fn open_root(mount: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // fsmount(2) and open_tree(2) give places (O_PATH), by which nothing can be opened by handle.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(mount, c".", flags, Mode::empty())?)
}

/// Whether `root` is the root of an EROFS of this index, by what statfs(2) and stat(2) tell.
fn check(root: BorrowedFd<'_>, lower: &Lower) -> Result<(), String> {
    let system = |errno: rustix::io::Errno| errno.to_string();
    let kind = rustix::fs::fstatfs(root).map_err(system)?.f_type;
    let told = rustix::fs::fstatvfs(root).map_err(system)?;
    let ino = rustix::fs::fstat(root).map_err(system)?.st_ino;
    // fs/erofs/super.c:erofs_statfs()
    let inodes = told.f_files.wrapping_sub(told.f_ffree);
    if u64::try_from(kind).ok() != Some(MAGIC) {
        Err("not an EROFS".to_owned())
    } else if ino != lower.root().0 || inodes != lower.stats().inodes {
        Err("another index".to_owned())
    } else if version() >= Some(FSID) && told.f_fsid != fsid(lower.uuid()) {
        Err("another index, by its UUID".to_owned())
    } else {
        Ok(())
    }
}

/// The first Linux of those that are looked at whose EROFS surely tells its UUID, not its block
/// device.
const FSID: (u32, u32) = (6, 12);

/// What statfs(2) makes of a UUID (include/linux/statfs.h:uuid_to_fsid()).
fn fsid(uuid: [u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = uuid;
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ u64::from_le_bytes([i, j, k, l, m, n, o, p])
}

#[cfg(test)]
mod tests;
