//! EROFS mounts that are attached nowhere: they end with their descriptor, also after a panic.

// Each test file uses its part of this.
#![allow(dead_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// Whether this kernel and user can mount EROFS from plain files. Says so when not, and fails
/// where that must not be (CI).
pub(crate) fn can_mount() -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let why = if version < (6, 12) {
        format!("Linux {release} cannot mount EROFS from a file (6.12 and later can)")
    } else {
        match fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(_) => return true,
            Err(error) => format!("fsopen(erofs): {error}"),
        }
    };
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "CI must be able to mount EROFS: {why}"
    );
    eprintln!("SKIPPED: {why}");
    false
}

/// Mounts `index` over `blobs`; the root's descriptor holds the mount.
pub(crate) fn mount(index: &Path, blobs: &[PathBuf]) -> io::Result<OwnedFd> {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let told = |error: rustix::io::Errno| {
        let mut message = [0; 4096];
        let n = rustix::io::read(&fs, &mut message).unwrap_or(0);
        io::Error::other(format!("{error}: {}", message[..n].escape_ascii()))
    };
    fsconfig_set_string(&fs, "source", index).map_err(told)?;
    for blob in blobs {
        fsconfig_set_string(&fs, "device", blob).map_err(told)?;
    }
    fsconfig_create(&fs).map_err(told)?;
    Ok(fsmount(
        &fs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?)
}
