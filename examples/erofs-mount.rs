//! `erofs-mount INDEX DIR BLOB…`: the kernel itself mounts an index over its blobs, with no server.
//!
//! This is what mount(8) cannot do: it puts a loop device over a regular file before the kernel
//! sees it. Needs root and Linux 6.12 or later; index and blobs must lie on a filesystem that is
//! not stacked (not on overlayfs).
//!
//! ```sh
//! tarnfs index -o image.erofs image.tar     # also writes image.erofs.side if the tar needs it
//! cargo run --example erofs-mount -- image.erofs /mnt image.tar
//! umount /mnt
//! ```

use std::ffi::OsString;
use std::process::ExitCode;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [index, dir, blobs @ ..] = args.as_slice() else {
        eprintln!("usage: erofs-mount INDEX DIR BLOB...");
        return ExitCode::from(2);
    };
    match mount(index, dir, blobs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("erofs-mount: {error}");
            ExitCode::FAILURE
        }
    }
}

fn mount(index: &OsString, dir: &OsString, blobs: &[OsString]) -> rustix::io::Result<()> {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", index)?;
    // In the order of the index's device table: the tar, then the side blob.
    for blob in blobs {
        fsconfig_set_string(&fs, "device", blob)?;
    }
    fsconfig_create(&fs)?;
    let mount = fsmount(
        &fs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    move_mount(
        &mount,
        "",
        rustix::fs::CWD,
        dir,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}
