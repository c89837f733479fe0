//! Tests of the kernel engine's parts; mounts of the program are in `tests/kernel_engine.rs`.

use super::layers::parse_version;
use super::*;

#[test]
fn versions() {
    assert_eq!(parse_version("6.18.44-fc-v657"), Some((6, 18)));
    assert_eq!(parse_version("5.15"), Some((5, 15)));
    assert_eq!(parse_version("none"), None);
}

#[test]
fn whose_mount_it_is() {
    let mut mount = super::super::find_mount(Path::new("/proc"))
        .unwrap()
        .unwrap();
    assert_eq!(engine_of(&mount), None);
    mount.fs_type = FS_TYPE.to_owned();
    assert_eq!(engine_of(&mount), Some(Engine::Fuse));
    mount.fs_type = "overlay".to_owned();
    mount.source = "overlay".into();
    assert_eq!(engine_of(&mount), None);
    mount.source = "tarnfs:/a.tar".into();
    assert_eq!(engine_of(&mount), Some(Engine::Kernel));
    assert_eq!(image_of(&mount), "/a.tar");
    mount.fs_type = "erofs".to_owned();
    assert_eq!(engine_of(&mount), None);
}

/// The way of kernels before 6.15, which those after it know as well.
#[test]
fn layers_by_paths() {
    if let Err(error) = check() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{error}");
        eprintln!("SKIPPED: {error}");
        return;
    }
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("back\\slash, comma");
    std::fs::create_dir(&dir).unwrap();
    let tar = dir.join("image.tar");
    let mut header = [0_u8; 2560];
    // A header of ustar, "f" with one byte, and the end of the tar.
    for (offset, text) in [
        (0, &b"f"[..]),
        (100, b"0000644 0000000 0000000 00000000001 00000000000 "),
        (148, b"        0"),
        (257, b"ustar  "),
        (512, b"x"),
    ] {
        header[offset..offset + text.len()].copy_from_slice(text);
    }
    let sum: u32 = header[..512].iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    std::fs::write(&tar, header).unwrap();
    let store = crate::store::Store::open(&dir);
    let lower = store.tar_image(&tar, &mut |_| {}).unwrap().lower().unwrap();
    std::fs::create_dir(dir.join("upper")).unwrap();
    let upper = Upper::open(&dir.join("upper"), &dir.join("work")).unwrap();
    let mut image = image(&lower, &MountOptions::new("t"), None).unwrap();
    let image = image.take_mount().unwrap();
    let params = vec![Param::String("source", "test".into())];
    let mount = layers::by_paths(&image, &upper, params, MountAttrs::default()).unwrap();
    drop(image);
    let path = |name: &str| {
        format!(
            "/proc/self/fd/{}/{name}",
            std::os::fd::AsRawFd::as_raw_fd(&mount)
        )
    };
    assert_eq!(std::fs::read(path("f")).unwrap(), b"x");
    std::fs::write(path("new"), "new").unwrap();
    assert_eq!(std::fs::read(dir.join("upper/new")).unwrap(), b"new");
    // Overlayfs has it now, and tells so once our own lock is gone.
    drop(upper);
    let open = || Upper::open(&dir.join("upper"), &dir.join("work"));
    assert!(matches!(open(), Err(crate::upper::UpperError::Busy(_))));
    drop(mount);
    open().unwrap();
    // The thread's mount went with it.
    let mounts = sys::mount::mounts().unwrap();
    assert!(
        mounts
            .iter()
            .all(|m| m.path != Path::new("/sys") || m.fs_type == "sysfs")
    );
}
