//! State files of mounts without a server: `<state dir>/kernel-<minor>.json`; for an EROFS, whose
//! mounts share one device number, one for all of a mount namespace: `kernel-<minor>-<number>.json`.
//!
//! Nobody lives to hold one locked or to remove it. So it counts only for a mount with the device
//! number and the source that it names; `tarnfs umount` removes it, and the next mount those whose
//! mount umount(8) has taken off.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::mount::backing::{Images, place_of_pins};
use crate::mount::registry;
use crate::mount::{MountOptions, scratch};
use crate::sys::mount::{MountPoint, mounts};
use crate::upper::{self, Upper, UpperError};

const PREFIX: &str = "kernel-";

/// What is kept of a mount without a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::mount) struct KernelRecord {
    /// Where it was mounted, for people.
    point: PathBuf,
    /// The source that mountinfo shows.
    source: String,
    /// The mount namespace of who mounted.
    namespace: PathBuf,
    /// The upper and the work directory, unless they are private.
    upper: Option<(PathBuf, PathBuf)>,
    /// The private upper's directory, to be removed with the mount.
    pub(super) scratch: Option<PathBuf>,
    /// Mounted volatile.
    pub(super) volatile: bool,
    /// What its image's mounts are known by ([`Images`]).
    #[serde(default)]
    pub(super) image: Option<String>,
    /// An EROFS, and not an overlay.
    #[serde(default)]
    pub(super) bare: bool,
}

impl KernelRecord {
    pub(super) fn new(point: &Path, source: &OsStr, options: &MountOptions) -> Self {
        Self {
            point: point.to_owned(),
            source: source.to_string_lossy().into_owned(),
            namespace: namespace(),
            upper: options.upper.clone().zip(options.work.clone()),
            scratch: None,
            volatile: false,
            image: None,
            bare: false,
        }
    }

    /// Writes the state file, in the first of `dirs` that can be used; gives its path.
    pub(super) fn register(&self, dirs: &[PathBuf], minor: u32) -> Option<PathBuf> {
        dirs.iter().find_map(|dir| {
            let written = self.register_in(dir, minor);
            written
                .inspect_err(|error| tracing::debug!("no state file in {}: {error}", dir.display()))
                .ok()
        })
    }

    fn register_in(&self, dir: &Path, minor: u32) -> io::Result<PathBuf> {
        registry::make_own_dir(dir)?;
        let mut temp = tempfile::NamedTempFile::new_in(dir)?;
        temp.write_all(&serde_json::to_vec(self)?)?;
        let path = dir.join(if self.bare {
            let number: String = self.namespace.to_string_lossy().into_owned();
            let number: String = number.chars().filter(char::is_ascii_digit).collect();
            format!("{PREFIX}{minor}-{number}.json")
        } else {
            format!("{PREFIX}{minor}.json")
        });
        let _guard = registry::lock_dir(dir)?;
        temp.persist(&path)?;
        Ok(path)
    }

    fn is_of(&self, upper: &Path) -> bool {
        let its = self.upper.as_ref();
        its.is_some_and(|(its, _)| its.canonicalize().is_ok_and(|its| its == upper))
    }

    /// Whether overlayfs still has the upper, perhaps in another mount namespace or for a process
    /// that has a file open.
    fn lives_on(&self) -> bool {
        let kept = self.upper.as_ref().is_some_and(|(_, work)| {
            // Unknown: then the mount that is gone here is gone.
            upper::overlayfs_has(work).unwrap_or(false)
        });
        kept || self.scratch.as_deref().is_some_and(scratch::in_use)
    }

    /// Clears up after the mount with this record is gone from this mount namespace. False when it
    /// lives on elsewhere.
    fn end(&self, found: &Found) -> io::Result<bool> {
        // Where nothing is written overlayfs cannot tell whether another namespace still has it.
        let unknown = self.upper.is_none() && self.scratch.is_none();
        if unknown && self.namespace != namespace() {
            return Ok(true);
        }
        if self.lives_on() {
            return Ok(false);
        }
        if let Some(dir) = &self.scratch {
            scratch::remove_private(dir)?;
        }
        if self.volatile
            && let Some((upper, work)) = &self.upper
        {
            upper::end_volatile(upper, work)?;
        }
        found.remove()?;
        Ok(true)
    }
}

/// A record and its file.
#[derive(Debug)]
pub(in crate::mount) struct Found {
    record: KernelRecord,
    path: PathBuf,
    minor: u32,
}

impl Found {
    /// Clears up when the mount is gone, unless it can be seen at another place as well. False when
    /// it cannot be seen, but lives on.
    pub(in crate::mount) fn ended(&self) -> io::Result<bool> {
        if self.is_of(&mounts()?) {
            return Ok(true);
        }
        self.record.end(self)
    }

    /// Removes the state file, unless its device number went to the next mount meanwhile, or the
    /// mount was only about to be attached.
    fn remove(&self) -> io::Result<()> {
        let _guard = self.path.parent().map(registry::lock_dir).transpose()?;
        match read(&self.path) {
            Some(now) if now == self.record && !self.is_of(&mounts()?) => {
                std::fs::remove_file(&self.path)
            }
            _ => Ok(()),
        }
    }

    /// Whether one of `mounts` is the one that it speaks of.
    fn is_of(&self, mounts: &[MountPoint]) -> bool {
        let pins = self.path.parent().and_then(place_of_pins);
        let is = |mount: &MountPoint| {
            mount.minor == self.minor
                && mount.source.to_string_lossy() == self.record.source
                && !pins
                    .as_ref()
                    .is_some_and(|pins| mount.path.starts_with(pins))
        };
        mounts.iter().any(is)
    }
}

/// The record of a mount.
pub(in crate::mount) fn find(dirs: &[PathBuf], mount: &MountPoint) -> Option<Found> {
    let mut all: Vec<_> = dirs
        .iter()
        .flat_map(|dir| of_minors(dir, |minor| minor == mount.minor))
        .filter(|found| found.is_of(std::slice::from_ref(mount)))
        .collect();
    let here = namespace();
    let own = all
        .iter()
        .position(|found| found.record.namespace == here)
        .unwrap_or(0);
    (own < all.len()).then(|| all.swap_remove(own))
}

/// [`Upper::open`], for either engine: refused as well while a mount without a server has the upper.
///
/// # Errors
/// [`UpperError`].
pub fn open_upper(dirs: &[PathBuf], upper: &Path, work: &Path) -> Result<Upper, UpperError> {
    if has_upper(dirs, upper) {
        return Err(UpperError::Busy(upper.to_owned()));
    }
    Upper::open(upper, work)
}

/// Whether a mount without a server has this upper, by the state files and by what overlayfs says.
fn has_upper(dirs: &[PathBuf], upper: &Path) -> bool {
    let Ok(upper) = upper.canonicalize() else {
        return false;
    };
    let mut found = dirs.iter().flat_map(|dir| all(dir));
    found.any(|found| found.record.is_of(&upper) && found.record.lives_on())
}

/// Whether one of the mounts that can be seen has this upper, whose path has no links in it.
pub(in crate::mount) fn shows_upper(dirs: &[PathBuf], upper: &Path, seen: &[MountPoint]) -> bool {
    let mut found = dirs.iter().flat_map(|dir| all(dir));
    found.any(|found| found.record.is_of(upper) && found.is_of(seen))
}

/// Every record in a state directory, by the device numbers that are asked for. What cannot be read
/// is none; what another user may have put there is not read, since directories are removed by it.
fn of_minors(dir: &Path, wanted: impl Fn(u32) -> bool) -> impl Iterator<Item = Found> {
    let entries = registry::check_own_dir(dir).and_then(|()| std::fs::read_dir(dir));
    let found = move |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let number = name.strip_prefix(PREFIX)?.strip_suffix(".json")?;
        let minor = number.split_once('-').map_or(number, |(minor, _)| minor);
        let minor = minor.parse().ok().filter(|&minor| wanted(minor))?;
        Some(Found {
            record: read(&path)?,
            path,
            minor,
        })
    };
    let entries = entries.into_iter().flatten();
    entries.filter_map(move |entry| found(entry.ok()?.path()))
}

fn all(dir: &Path) -> impl Iterator<Item = Found> {
    of_minors(dir, |_| true)
}

fn read(path: &Path) -> Option<KernelRecord> {
    let mut file = registry::open_file(path).ok()?;
    serde_json::from_slice(&registry::read_file(&mut file).ok()?).ok()
}

/// [`sweep`] of all state directories.
pub(in crate::mount) fn sweep_all(dirs: &[PathBuf]) {
    for dir in dirs {
        if let Err(error) = sweep(dir) {
            tracing::debug!("{}: {error}", dir.display());
        }
    }
}

/// Clears up after mounts of this mount namespace that umount(8) has taken off, or that had users
/// elsewhere.
fn sweep(dir: &Path) -> io::Result<()> {
    let here = namespace();
    let mounted = mounts()?;
    let pins = place_of_pins(dir);
    let mounted = mounted.iter().filter(|mount| {
        !pins
            .as_ref()
            .is_some_and(|pins| mount.path.starts_with(pins))
    });
    let mounted: HashSet<u32> = mounted.map(|mount| mount.minor).collect();
    // All of them before the first is removed.
    let gone: Vec<_> = of_minors(dir, |minor| !mounted.contains(&minor)).collect();
    for found in gone {
        // A volatile upper was not unmounted by us: whether its data is all there, nobody knows.
        if found.record.namespace == here
            && let Err(error) = (KernelRecord {
                volatile: false,
                ..found.record.clone()
            })
            .end(&found)
        {
            tracing::debug!("{}: {error}", found.path.display());
        }
    }
    Ok(())
}

/// Takes off the pins that no mount of the kernel engine needs which can be seen.
pub(in crate::mount) fn sweep_pins(images: &Images, dirs: &[PathBuf]) {
    // Most often there is no pin, and nobody asks.
    let seen = LazyCell::new(mounts);
    images.sweep(|image| {
        let mounts = match &*seen {
            Ok(mounts) => mounts,
            Err(error) => {
                tracing::debug!("pins stay: {error}");
                return true;
            }
        };
        let mut found = dirs.iter().flat_map(|dir| all(dir));
        found.any(|found| found.record.image.as_deref() == Some(image) && found.is_of(mounts))
    });
}

/// [`sweep_pins`] of all state directories that have been used.
pub(in crate::mount) fn sweep_all_pins(dirs: &[PathBuf]) {
    for images in dirs.iter().filter_map(|dir| Images::lock_used(dir)) {
        sweep_pins(&images, dirs);
    }
}

fn namespace() -> PathBuf {
    std::fs::read_link("/proc/thread-self/ns/mnt").unwrap_or_default()
}
