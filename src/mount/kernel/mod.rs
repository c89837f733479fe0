//! The second engine: the kernel itself serves the image (EROFS over the index, with the tar as its
//! device) and the upper (overlayfs over both). No process stays behind.
//!
//! An overlay is opened as for the FUSE engine first: that checks the tar, locks and clears the two
//! directories, gives a fresh upper the image's root and finishes what a killed mount had begun.
//! It is let go of when overlayfs has claimed both directories: from then on overlayfs is what
//! others must ask ([`crate::upper::overlayfs_has`]).
//!
//! It *never* takes an upper that overlayfs would show otherwise than the FUSE engine does, but for
//! what docs/SEMANTICS.md says.

mod layers;
mod record;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::backing::{self, Backing, Images};
use super::scratch::Scratch;
use super::{FS_TYPE, MountError, MountOptions};
use crate::lower::Lower;
use crate::overlay::Overlay;
use crate::sys;
use crate::sys::mount::{MountAttrs, MountPoint, Param};
use crate::upper::Upper;

pub use layers::version;
use record::KernelRecord;
pub use record::open_upper;
pub(super) use record::{find as find_record, shows_upper, sweep_all, sweep_all_pins, sweep_pins};

/// What serves a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Our FUSE server.
    Fuse,
    /// The kernel's EROFS and overlayfs.
    Kernel,
}

/// What is to serve a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// [`Engine::Fuse`].
    #[default]
    Fuse,
    /// [`Engine::Kernel`], or it is an error.
    Kernel,
    /// [`Engine::Kernel`] where it can be used.
    Auto,
}

/// How the source of our overlayfs mounts begins; the image's name follows.
const SOURCE: &str = "tarnfs:";

/// Which engine serves a mount, if it is of tarnfs.
///
/// An overlay's source tells; that of an image without an upper is a file, so that its state file
/// has to.
#[must_use]
pub fn engine_of(mount: &MountPoint) -> Option<Engine> {
    match mount.fs_type.as_str() {
        FS_TYPE => Some(Engine::Fuse),
        "overlay" => mount
            .source
            .as_bytes()
            .starts_with(SOURCE.as_bytes())
            .then_some(Engine::Kernel),
        "erofs" => record::find(&super::state_dirs(), mount).map(|_| Engine::Kernel),
        _ => None,
    }
}

/// What of the image's name a mount's source says.
pub(super) fn image_of(mount: &MountPoint) -> String {
    let source = mount.source.to_string_lossy();
    source.strip_prefix(SOURCE).unwrap_or(&source).to_owned()
}

fn source(options: &MountOptions) -> OsString {
    let mut source = OsString::from(SOURCE);
    source.push(&options.fuse.source);
    source
}

/// Mounts an overlay, attached nowhere. What `overlay` has locked must stay so until this returns;
/// then overlayfs has it. Others find the image's mount while the [`Backing`] is there.
///
/// # Errors
/// [`MountError::KernelEngine`] when this machine, this user or this upper lacks something.
pub fn create(overlay: &Overlay, options: &MountOptions) -> Result<(OwnedFd, Backing), MountError> {
    check()?;
    let images = backing::lock(&options.image_dirs).map_err(lacks)?;
    let mut image = image(overlay.lower(), options, images.as_ref())?;
    image.publish(images.as_ref());
    drop(images);
    Ok((over(overlay, &mut image, options)?, image))
}

/// The overlay over a mount of its image.
fn over(
    overlay: &Overlay,
    image: &mut Backing,
    options: &MountOptions,
) -> Result<OwnedFd, MountError> {
    let params = &options.fuse;
    let lower = image.take_mount();
    let lower = lower.ok_or_else(|| MountError::KernelEngine("EROFS: no mount".to_owned()))?;
    let Some(upper) = overlay.upper() else {
        let mut attrs = params.attrs;
        attrs.set(MountAttrs::RDONLY);
        sys::mount::set_attrs_of(lower.as_fd(), attrs)
            .map_err(MountError::system("attributes of the new mount"))?;
        return Ok(lower);
    };
    check_upper(upper)?;
    let mut list = vec![
        Param::String("source", source(options)),
        // As tarnfs renames, and reads what overlayfs has renamed.
        Param::String("redirect_dir", "on".into()),
        Param::String("metacopy", "off".into()),
        // What it would keep there names inodes of this very index.
        Param::String("index", "off".into()),
        Param::String("xino", "on".into()),
    ];
    if overlay.options().volatile {
        list.push(Param::Flag("volatile"));
    }
    if params.read_only {
        list.push(Param::Flag("ro"));
    }
    list.extend(params.super_flags.iter().map(|flag| Param::Flag(flag)));
    layers::overlayfs(&lower, upper, list, params.attrs)
        .map_err(|error| MountError::KernelEngine(format!("overlayfs cannot be mounted: {error}")))
}

/// Mounts an overlay on `point` (as [`super::check_point`] gives it); nothing serves it. A private
/// upper goes when the mount goes.
///
/// # Errors
/// As [`create`]; the system's for the mount point. Nothing stays mounted then.
pub fn start(
    overlay: Overlay,
    scratch: Option<Scratch>,
    point: &Path,
    options: &MountOptions,
) -> Result<(), MountError> {
    if scratch.as_ref().is_some_and(Scratch::is_tmpfs) {
        layers::check_detached()?;
    }
    check()?;
    record::sweep_all(&options.state_dirs);
    // Until the mount can be seen: else its pin would look like a leftover.
    let images = backing::lock(&options.image_dirs).map_err(lacks)?;
    let mut image = image(overlay.lower(), options, images.as_ref())?;
    if let Some(images) = &images
        && let Err(error) = image.pin(images)
    {
        tracing::debug!("the next mount of the image will not find this one: {error}");
    }
    let mount = over(&overlay, &mut image, options)?;
    let minor = sys::mount::device_minor(mount.as_fd())
        .map_err(MountError::system("statx of the new mount"))?;
    let source = match overlay.upper() {
        Some(_) => source(options),
        None => image.source().to_owned(),
    };
    let mut record = KernelRecord::new(point, &source, options);
    record.volatile = overlay.options().volatile;
    record.image = image.name();
    record.bare = overlay.upper().is_none();
    // Before anybody can see the mount: without it, some could not be known for ours.
    record.register(&options.state_dirs, minor);
    // What was registered is swept again if this fails.
    sys::mount::attach(mount.as_fd(), point)
        .map_err(MountError::system(format!("mount on {}", point.display())))?;
    drop(mount);
    drop(images);
    // Locked until overlayfs had it, and now it has.
    drop(overlay);
    record.scratch = scratch.and_then(Scratch::leave);
    // Again: while nobody could see the mount, its state file looked like a leftover.
    record.register(&options.state_dirs, minor);
    Ok(())
}

/// EROFS over the index, which others may have mounted already.
fn image(
    lower: &Lower,
    options: &MountOptions,
    images: Option<&Images>,
) -> Result<Backing, MountError> {
    Backing::to_mount(lower, options.backing, images).map_err(|why| {
        let index = lower.index_path().display();
        MountError::KernelEngine(format!("EROFS cannot mount {index}: {why}"))
    })
}

fn lacks(why: backing::NoBacking) -> MountError {
    MountError::KernelEngine(why.to_string())
}

fn needs_root() -> MountError {
    MountError::KernelEngine("needs root, outside of user namespaces".to_owned())
}

/// Whether the kernel has what the engine is made of, for this user.
///
/// # Errors
/// [`MountError::KernelEngine`] says what is missing.
pub fn check() -> Result<(), MountError> {
    if version() < Some((6, 12)) {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        return Err(MountError::KernelEngine(format!(
            "needs Linux 6.12 or later, which mounts EROFS from a file (this is {release})"
        )));
    }
    for (fs_type, name, option) in [
        ("erofs", "EROFS", "CONFIG_EROFS_FS"),
        ("overlay", "overlayfs", "CONFIG_OVERLAY_FS"),
    ] {
        sys::mount::can_open(fs_type).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => MountError::KernelEngine(format!(
                "this kernel has no {name} (modprobe {fs_type}, or {option})"
            )),
            Some(libc::EPERM) => needs_root(),
            _ => MountError::KernelEngine(format!("{name}: {error}")),
        })?;
    }
    Ok(())
}

/// Refuses an upper of which overlayfs would show another tree.
fn check_upper(upper: &Upper) -> Result<(), MountError> {
    if upper.unprivileged() {
        return Err(MountError::KernelEngine(
            "the upper was written without root, and overlayfs follows no renamed directories of \
             such a one"
                .to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
