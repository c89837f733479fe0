//! A tar of changes applied to a fresh unpack of its image, by others' programs.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::common::image::{Layout, Stored};
use crate::common::python::python;
use crate::common::{Sandbox, ok};

/// How GNU tar packs and unpacks all of a file.
pub(crate) const GNU: [&str; 4] = [
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
    "--numeric-owner",
];

/// Unpacks `tar` into `dir` by GNU tar.
pub(crate) fn unpack(tar: &Path, dir: &Path) {
    let rest = [
        "-xpf".as_ref(),
        tar.as_os_str(),
        "-C".as_ref(),
        dir.as_os_str(),
    ];
    ok("tar", GNU.iter().map(OsStr::new).chain(rest));
}

/// An overlayfs mount that ends with its test.
pub(crate) struct Overlay(PathBuf);

impl Overlay {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("umount {}: {error}", self.0.display());
        }
    }
}

/// `upper` over `lower`, by the kernel's overlayfs; `redirects` is its `redirect_dir`.
pub(crate) fn overlayfs(at: &Path, lower: &Path, upper: &Path, redirects: &str) -> Overlay {
    overlayfs_with(at, lower, upper, &[("redirect_dir", redirects)])
}

/// The same with these options.
pub(crate) fn overlayfs_with(
    at: &Path,
    lower: &Path,
    upper: &Path,
    options: &[(&str, &str)],
) -> Overlay {
    let [work, dir] = ["work", "merged"].map(|name| at.join(name));
    fs::create_dir_all(&work).unwrap();
    fs::create_dir_all(&dir).unwrap();
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(&fs, "source", "diff").unwrap();
    fsconfig_set_string(&fs, "lowerdir", lower).unwrap();
    fsconfig_set_string(&fs, "upperdir", upper).unwrap();
    fsconfig_set_string(&fs, "workdir", &work).unwrap();
    for &(key, value) in options.iter().chain(&[("index", "off")]) {
        match value {
            "" => fsconfig_set_flag(&fs, key),
            value => fsconfig_set_string(&fs, key, value),
        }
        .unwrap();
    }
    fsconfig_create(&fs).unwrap();
    let made = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(made.as_fd(), "", rustix::fs::CWD, &dir, flags).unwrap();
    Overlay(dir)
}

/// An OCI layout of an image and a layer over it.
pub(crate) fn layout(sandbox: &Sandbox, name: &str, image: &Path, layer: &Path) -> PathBuf {
    let dir = sandbox.fresh(name);
    let layers = [image, layer].map(|tar| Stored::plain(&fs::read(tar).unwrap()));
    Layout::of(&layers).write(&dir);
    dir
}

/// As podman restores a root filesystem (`pkg/checkpoint/crutils`, containers/storage
/// `pkg/archive`): what is new is unpacked, in place of what is of another type, then what is
/// deleted goes.
pub(crate) fn podman(root: &Path, tar: &Path, deleted: &Path) {
    python(
        root,
        &format!(
            r#"
import json, os, shutil, subprocess, sys, tarfile
tar, deleted = {tar:?}, {deleted:?}
def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
seen = set()
with tarfile.open(tar, encoding='utf-8', errors='surrogateescape') as members:
    for member in members:
        path = os.path.join('.', member.name)
        assert path not in seen, path
        seen.add(path)
        if not (member.isdir() and os.path.isdir(path) and not os.path.islink(path)):
            remove(path)
subprocess.run(['tar', '--xattrs', '--xattrs-include=*', '--acls', '--numeric-owner', '-xpf', tar], check=True)
with open(deleted) as file:
    for path in json.load(file):
        assert path.startswith('/') and os.path.join('.', path[1:]) not in seen, path
        assert os.path.lexists('.' + path), path
        remove('.' + path)
"#
        ),
    );
}
