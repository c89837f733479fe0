//! The image judged by what mkfs.erofs makes of a directory, and by hostile bytes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::testing::{blob_of, of_tar};
use super::*;

/// Whether mkfs.erofs is there. In CI it must be.
fn have_mkfs() -> bool {
    let found = Command::new("mkfs.erofs").arg("--help").output().is_ok();
    assert!(
        found || std::env::var_os("CI").is_none_or(|v| v != "true"),
        "CI lacks mkfs.erofs"
    );
    if !found {
        eprintln!("SKIPPED: mkfs.erofs (package erofs-utils) is not installed");
    }
    found
}

/// A tree with something of everything.
fn populate(root: &Path) {
    let many = root.join("many");
    fs::create_dir_all(root.join("etc/deep/er")).unwrap();
    fs::create_dir(&many).unwrap();
    for i in 0..1500 {
        fs::write(
            many.join(format!("entry-{i:05}-{}", "x".repeat(i % 40))),
            format!("{i}"),
        )
        .unwrap();
    }
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("small"), b"hello\n").unwrap();
    for (name, len) in [
        ("a-4096", 4096),
        ("a-4097", 4097),
        ("a-12288", 12288),
        ("a-big", 300_001),
    ] {
        let bytes: Vec<u8> = (0..len)
            .map(|i: u32| i.wrapping_mul(2_654_435_761).to_be_bytes()[0])
            .collect();
        fs::write(root.join(name), bytes).unwrap();
    }
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(b"middle", 131_072).unwrap();
    sparse.set_len(400_000).unwrap();
    fs::hard_link(root.join("small"), root.join("etc/hard")).unwrap();
    symlink("../small", root.join("etc/link")).unwrap();
    symlink("/etc/deep", root.join("absolute")).unwrap();
    symlink("x".repeat(3000), root.join("long-link")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    fs::write(
        root.join(std::ffi::OsStr::from_bytes(b"bytes-\xff\xfe")),
        b"raw",
    )
    .unwrap();
    fs::set_permissions(root.join("small"), fs::Permissions::from_mode(0o4751)).unwrap();
    for (file, name, value) in [
        ("small", "user.one", "1".to_owned()),
        ("small", "user.two", "v".repeat(700)),
        ("a-4097", "user.shared", "the same on many".to_owned()),
        ("a-4096", "user.shared", "the same on many".to_owned()),
        ("a-big", "user.shared", "the same on many".to_owned()),
        ("empty", "user.shared", "the same on many".to_owned()),
        ("etc", "user.shared", "the same on many".to_owned()),
    ] {
        rustix::fs::setxattr(
            root.join(file),
            name,
            value.as_bytes(),
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    }
    let made = Command::new("mkfifo")
        .arg(root.join("fifo"))
        .status()
        .unwrap();
    assert!(made.success());
}

fn mkfs(out: &Path, tree: &Path, options: &[&str]) {
    let run = Command::new("mkfs.erofs")
        .args(options)
        .arg(out)
        .arg(tree)
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

fn read_all(lower: &Lower, nid: Nid, size: u64) -> Vec<u8> {
    let mut bytes = vec![0xAA; usize::try_from(size).unwrap() + 7];
    let n = lower.read(nid, 0, &mut bytes).unwrap();
    bytes.truncate(n);
    bytes
}

/// Compares the image with the directory it was made of; gives back the nids by path.
fn same(lower: &Lower, tree: &Path) -> BTreeMap<Vec<u8>, Nid> {
    let mut seen = BTreeMap::new();
    let mut inos = BTreeMap::new();
    lower
        .walk::<LowerError>(lower.root(), &mut |w| {
            let path = tree.join(std::ffi::OsStr::from_bytes(w.path));
            let meta = fs::symlink_metadata(&path).unwrap();
            let attr = lower.attr(w.nid).unwrap();
            assert_eq!(attr.kind, w.kind, "{path:?}");
            assert_eq!(attr.mode(), meta.mode(), "{path:?}");
            assert_eq!((attr.uid, attr.gid), (meta.uid(), meta.gid()), "{path:?}");
            assert_eq!(attr.nlink, u32::try_from(meta.nlink()).unwrap(), "{path:?}");
            assert_eq!(
                (attr.mtime.sec, i64::from(attr.mtime.nsec)),
                (meta.mtime(), meta.mtime_nsec())
            );
            assert_eq!(
                *inos.entry(meta.ino()).or_insert(w.nid),
                w.nid,
                "one inode, one nid: {path:?}"
            );
            match w.kind {
                Kind::File => {
                    let want = fs::read(&path).unwrap();
                    assert_eq!(attr.size, want.len() as u64);
                    assert_eq!(read_all(lower, w.nid, attr.size), want, "{path:?}");
                    for at in [0, 1, 511, 4095, 4096, 4097, 8191, 65_536, 299_999] {
                        let mut part = [0; 777];
                        let n = lower.read(w.nid, at as u64, &mut part).unwrap();
                        let rest = want.get(at..).unwrap_or_default();
                        assert_eq!(&part[..n], &rest[..rest.len().min(777)], "{path:?} at {at}");
                    }
                }
                Kind::Symlink => {
                    let want = fs::read_link(&path).unwrap();
                    assert_eq!(lower.readlink(w.nid).unwrap(), want.as_os_str().as_bytes());
                }
                _ => {}
            }
            let xattrs = lower.xattrs(w.nid).unwrap();
            let mut list = vec![0_u8; 65_536];
            let n = rustix::fs::llistxattr(&path, &mut list[..]).unwrap();
            let mut names: Vec<&[u8]> = list[..n]
                .split(|&b| b == 0)
                .filter(|n| !n.is_empty())
                .collect();
            names.sort_unstable();
            assert_eq!(
                xattrs.iter().map(|x| &x.name[..]).collect::<Vec<_>>(),
                names,
                "{path:?}"
            );
            for x in &xattrs {
                let mut value = vec![0_u8; 65_536];
                let n = rustix::fs::lgetxattr(&path, &x.name[..], &mut value[..]).unwrap();
                assert_eq!(x.value, value[..n]);
                assert_eq!(
                    lower.xattr(w.nid, &x.name).unwrap().as_ref(),
                    Some(&x.value)
                );
            }
            assert_eq!(lower.xattr(w.nid, b"user.absent").unwrap(), None);
            let name = Name::new(w.name).unwrap();
            assert_eq!(lower.lookup(w.dir, &name).unwrap(), Some(w.nid), "{path:?}");
            assert!(lower.names(w.nid).unwrap().contains(&(w.dir, name)));
            if w.kind == Kind::Dir {
                assert_eq!(lower.parent(w.nid).unwrap(), w.dir);
                assert_eq!(
                    lower.lookup(w.nid, &Name::new(b"absent").unwrap()).unwrap(),
                    None
                );
                assert_eq!(
                    lower.lookup(w.nid, &Name::new(b"!").unwrap()).unwrap(),
                    None
                );
                assert_eq!(
                    lower
                        .lookup(w.nid, &Name::new(b"\xff\xff").unwrap())
                        .unwrap(),
                    None
                );
            }
            seen.insert(w.path.to_vec(), w.nid);
            Ok(Step::Into)
        })
        .unwrap();
    let found = Command::new("find")
        .arg(tree)
        .args(["-mindepth", "1", "-printf", "x"])
        .output()
        .unwrap();
    assert_eq!(seen.len(), found.stdout.len(), "every entry, once");
    seen
}

#[test]
fn reads_what_mkfs_erofs_writes() {
    if !have_mkfs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    populate(&tree);
    // Attributes inline only, and shared by more than one inode; whole files and chunks.
    for options in [
        &["-x0"][..],
        &["-x1"],
        &["-x2"],
        &["--chunksize=4096"],
        &["--chunksize=65536", "-x1"],
    ] {
        let image = dir.path().join("image");
        mkfs(&image, &tree, options);
        let lower = Lower::open(&image, Vec::new()).unwrap();
        same(&lower, &tree);
    }
}

#[test]
fn reads_chunks_of_a_blob() {
    if !have_mkfs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    populate(&tree);
    let (image, blob) = (dir.path().join("image"), dir.path().join("blob"));
    let blobdev = format!("--blobdev={}", blob.display());
    mkfs(&image, &tree, &["--chunksize=4096", &blobdev]);
    let lower = Lower::open(&image, vec![blob_of(&blob)]).unwrap();
    let seen = same(&lower, &tree);
    let big = seen[&b"a-big"[..]];
    assert!(matches!(
        lower.extent(big, 0).unwrap(),
        Some(Extent {
            place: Place::Device { index: 0, .. },
            ..
        })
    ));
    assert!(matches!(
        Lower::open(&image, Vec::new()),
        Err(OpenError::Blobs {
            wanted: 1,
            given: 0,
            ..
        })
    ));

    // The blob changes under the image: no byte of it is given out, and the image lives.
    let mut buf = [0; 4096];
    let file = fs::File::options().write(true).open(&blob).unwrap();
    file.set_len(5000).unwrap();
    assert!(matches!(
        lower.read(big, 0, &mut buf),
        Err(LowerError::BlobChanged { .. })
    ));
    assert!(matches!(
        lower.read(big, 200_000, &mut buf),
        Err(LowerError::BlobChanged { .. })
    ));
    assert!(lower.attr(big).is_ok());
    assert!(matches!(
        Lower::open(
            &image,
            vec![BlobFile {
                path: blob.clone(),
                ..lower.blobs().next().unwrap().clone()
            }]
        ),
        Err(OpenError::BlobChanged { .. })
    ));
}

#[test]
fn refuses_compressed_images() {
    if !have_mkfs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("f"), vec![b'a'; 100_000]).unwrap();
    let image = dir.path().join("image");
    mkfs(&image, &tree, &["-zlz4hc"]);
    let lower = Lower::open(&image, Vec::new());
    let error = match lower {
        Err(e) => e.to_string(),
        Ok(lower) => {
            let f = lower
                .lookup(lower.root(), &Name::new(b"f").unwrap())
                .unwrap()
                .unwrap();
            lower.attr(f).unwrap_err().to_string()
        }
    };
    assert!(
        error.contains("layout") || error.contains("compress"),
        "{error}"
    );
}

#[test]
fn resolves_paths_inside_the_image_only() {
    if !have_mkfs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    populate(&tree);
    symlink("/../../../../etc/passwd", tree.join("escape")).unwrap();
    let mut chain = "small".to_owned();
    for i in 0..41 {
        symlink(&chain, tree.join(format!("chain{i}"))).unwrap();
        chain = format!("chain{i}");
    }
    let image = dir.path().join("image");
    mkfs(&image, &tree, &[]);
    let lower = Lower::open(&image, Vec::new()).unwrap();
    let at = |path: &str, follow| {
        lower
            .resolve(path.as_bytes(), follow)
            .map(|r| String::from_utf8(r.path).unwrap())
    };
    for (path, follow, want) in [
        ("", true, "/"),
        ("/", true, "/"),
        ("..", true, "/"),
        ("/../..//etc/./deep/..", true, "/etc"),
        ("etc/link", true, "/small"),
        ("etc/link", false, "/etc/link"),
        ("absolute", false, "/absolute"),
        ("absolute/", false, "/etc/deep"),
        ("absolute/er/../..", true, "/etc"),
        ("chain39", true, "/small"),
    ] {
        assert_eq!(at(path, follow).unwrap(), want, "{path}");
    }
    assert!(matches!(at("escape", true), Err(ResolveError::NotFound)));
    assert!(matches!(at("absent/..", true), Err(ResolveError::NotFound)));
    assert!(matches!(at("small/", true), Err(ResolveError::NotDir)));
    assert!(matches!(at("small/..", true), Err(ResolveError::NotDir)));
    assert!(matches!(at("loop", true), Err(ResolveError::Loop)));
    assert!(matches!(at("chain40", true), Err(ResolveError::Loop)));
    assert!(matches!(
        at(&"x".repeat(256), true),
        Err(ResolveError::Name(_))
    ));
    assert_eq!(at("loop", false).unwrap(), "/loop");
}

#[test]
fn a_listing_goes_on_from_every_position() {
    if !have_mkfs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    populate(&tree);
    let image = dir.path().join("image");
    mkfs(&image, &tree, &[]);
    let lower = Lower::open(&image, Vec::new()).unwrap();
    let many = lower.resolve(b"many", false).unwrap().nid;
    let list = |from| {
        let mut got = Vec::new();
        lower
            .readdir(many, from, &mut |e| {
                got.push((e.name.to_vec(), e.next));
                ControlFlow::Continue(())
            })
            .unwrap();
        got
    };
    let all = list(0);
    assert_eq!(all.len(), 1500);
    assert!(all.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
    assert!(all.iter().all(|e| e.1 > 0 && e.1 < 1 << 62));
    for (i, (_, next)) in all.iter().enumerate().step_by(37) {
        assert_eq!(list(*next), all[i + 1..]);
    }
    assert!(list(u64::MAX).is_empty());
    assert!(list(1 << 40).is_empty());
}

#[test]
fn reads_the_index_of_what_gnu_tar_packs() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    populate(&tree);
    // Data in the last bytes of a block and nowhere else: the tar's copy of it is not aligned as
    // the file is, so it needs the side blob.
    let odd = fs::File::create(tree.join("odd")).unwrap();
    for i in 0..40 {
        odd.write_all_at(b"tail of a block", i * 65_536 + 4000)
            .unwrap();
    }
    odd.set_len(10_000_001).unwrap();
    let tar = dir.path().join("image.tar");
    for options in [&["--format=pax"][..], &["--format=pax", "--sparse"]] {
        let made = Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner"])
            .args(options)
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(&tree)
            .arg(".")
            .status()
            .unwrap();
        assert!(made.success());
        let lower = of_tar(&tar);
        let seen = same(&lower, &tree);
        if options.contains(&"--sparse") {
            let odd = seen[&b"odd"[..]];
            let attr = lower.attr(odd).unwrap();
            assert!(
                attr.blocks * 512 < attr.size / 2,
                "the holes are not counted: {attr:?}"
            );
        }
    }
}
