//! Mount points: which path it is, what is mounted there, whether something may be.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::MountError;
use super::kernel::{engine_of, image_of};
use crate::sys::mount::{MountPoint, mounts};

/// The absolute path of `point` as mountinfo has it, found without touching what may be mounted
/// on it: the directory that holds it is resolved, its own name is not.
///
/// # Errors
/// The system's, for the directory that holds it.
pub fn resolve_point(point: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(point)?;
    match absolute.components().next_back() {
        Some(Component::Normal(name)) => {
            let parent = absolute.parent().unwrap_or(Path::new("/"));
            Ok(parent.canonicalize()?.join(name))
        }
        // `/`, or a path that ends in `..`, which is no entry of its parent.
        _ => absolute.canonicalize(),
    }
}

/// The topmost mount on `path`, which is as [`resolve_point`] gives it.
///
/// # Errors
/// mountinfo cannot be read.
pub fn find_mount(path: &Path) -> io::Result<Option<MountPoint>> {
    Ok(topmost(&mounts()?, path).cloned())
}

/// As [`find_mount`], of all mounts that there are, oldest first.
#[must_use]
pub fn topmost<'a>(all: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    // Later lines lie on top of earlier ones with the same path.
    all.iter().rev().find(|m| m.path == path)
}

/// Checks that something can be mounted on `point`; gives its path as [`resolve_point`] does, a
/// symbolic link followed.
///
/// `own` are the directories that the mount itself writes to.
///
/// # Errors
/// Each of the one-line errors of [`MountError`] about mount points.
pub fn check_point(point: &Path, own: &[&Path]) -> Result<PathBuf, MountError> {
    let all = mounts().map_err(MountError::system("/proc/self/mountinfo"))?;
    check_point_among(&all, point, own)
}

/// As [`check_point`], where all mounts that there are, oldest first, are known.
///
/// # Errors
/// As of [`check_point`].
pub fn check_point_among(
    all: &[MountPoint],
    point: &Path,
    own: &[&Path],
) -> Result<PathBuf, MountError> {
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => MountError::PointMissing(point.to_owned()),
        io::ErrorKind::NotADirectory => MountError::PointNotDirectory(point.to_owned()),
        io::ErrorKind::NotConnected => MountError::Dead(point.to_owned()),
        _ => MountError::system(point.display().to_string())(error),
    };
    let path = resolve_point(point).map_err(missing)?;
    refuse_ours(all, &path)?;
    // Only now is it known not to be a mount of ours that may hang.
    let path = path.canonicalize().map_err(missing)?;
    refuse_ours(all, &path)?;
    if !path.metadata().map_err(missing)?.is_dir() {
        return Err(MountError::PointNotDirectory(point.to_owned()));
    }
    for dir in own {
        if let Ok(dir) = dir.canonicalize()
            && path.starts_with(&dir)
        {
            return Err(MountError::PointInUpper {
                point: path,
                inside: dir,
            });
        }
    }
    Ok(path)
}

/// A second mount of ours on the same directory is nearly always a mistake: it would hide the
/// first, whose writes then seem lost.
fn refuse_ours(all: &[MountPoint], path: &Path) -> Result<(), MountError> {
    match topmost(all, path) {
        Some(mount) if engine_of(mount).is_some() => Err(MountError::AlreadyMounted {
            point: path.to_owned(),
            image: image_of(mount),
        }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_points() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            check_point(&dir.path().join("none"), &[]),
            Err(MountError::PointMissing(_))
        ));
        assert!(matches!(
            check_point(&dir.path().join("none/deeper"), &[]),
            Err(MountError::PointMissing(_))
        ));
        assert!(matches!(
            check_point(&file, &[]),
            Err(MountError::PointNotDirectory(_))
        ));
        assert!(matches!(
            check_point(&file.join("x"), &[]),
            Err(MountError::PointNotDirectory(_))
        ));
        assert!(matches!(
            check_point(dir.path(), &[dir.path()]),
            Err(MountError::PointInUpper { .. })
        ));
    }

    #[test]
    fn good_points_are_resolved() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        let link = dir.path().join("link");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(check_point(&link, &[]).unwrap(), real);
        assert_eq!(resolve_point(&link).unwrap(), real.with_file_name("link"));
        assert_eq!(resolve_point(&real.join(".")).unwrap(), real);
        assert_eq!(resolve_point(Path::new("/")).unwrap(), Path::new("/"));
    }

    #[test]
    fn a_mount_of_another_kind_is_found() {
        let proc = find_mount(Path::new("/proc")).unwrap().unwrap();
        assert_eq!(proc.fs_type, "proc");
        assert!(find_mount(Path::new("/proc/self")).unwrap().is_none());
    }
}
