//! Uppers made by hand, read while they change, and while the system refuses.

mod later;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::lower::testing::of_tar;
use crate::sys::faults::{self, Fault};
use crate::tar::testing::{Tar, entries};
use rustix::fs::OFlags;

/// An image and an upper over it.
struct World {
    dir: TempDir,
    lower: Lower,
    root: File,
}

impl World {
    fn new(tar: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name| dir.path().join(name);
        fs::write(at("tar"), tar).unwrap();
        let lower = of_tar(&at("tar"));
        fs::create_dir(at("upper")).unwrap();
        let root = File::open(at("upper")).unwrap();
        Self { dir, lower, root }
    }

    /// The image that tests change: `a/x`, `a/sub/y`, `b`, a group of links.
    fn usual() -> Self {
        Self::new(
            &Tar::new()
                .dir("a")
                .file("a/x", b"x")
                .file("a/sub/y", b"y")
                .file("b", b"b")
                .hard_link("a/sub/b", "b")
                .end(),
        )
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join("upper").join(name)
    }

    fn write(&self, name: &str, data: &[u8]) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), data).unwrap();
    }

    fn mark(&self, name: &str, mark: &str, value: &[u8]) {
        let flags = rustix::fs::XattrFlags::empty();
        let mark = format!("user.overlay.{mark}");
        rustix::fs::setxattr(self.at(name), &*mark, value, flags).unwrap();
    }

    /// A directory that may hold whiteouts that are files, and one in it.
    fn whiteout(&self, dir: &str, name: &str) {
        self.write(&format!("{dir}/{name}"), b"");
        self.mark(dir, "opaque", b"x");
        self.mark(&format!("{dir}/{name}"), "whiteout", b"y");
    }

    fn changes(&self, options: Options) -> Changes<'_> {
        Changes::at(&self.lower, self.root.as_fd(), Namespace::User, options).unwrap()
    }

    fn of(&self, format: Format) -> Changes<'_> {
        self.changes(Options {
            format,
            ..Options::default()
        })
    }

    fn tar(&self, options: Options) -> Result<Vec<u8>, DiffError> {
        let changes = self.changes(options);
        let mut out = Vec::new();
        let written = changes.write(&mut out, &mut |_| ())?;
        assert_eq!(written.len, out.len() as u64);
        assert_eq!(changes.size().unwrap(), written.len);
        Ok(out)
    }

    /// The names of a tar's entries.
    fn names(&self, format: Format) -> Vec<String> {
        let tar = self.tar(Options {
            format,
            ..Options::default()
        });
        names(&tar.unwrap())
    }
}

fn names(tar: &[u8]) -> Vec<String> {
    let all = entries(tar).unwrap();
    let name = |path: Vec<u8>| String::from_utf8_lossy(&path).into_owned();
    all.into_iter().map(|entry| name(entry.path)).collect()
}

const TARS: [Format; 3] = [Format::Oci, Format::Overlay, Format::Gvisor];

#[test]
fn whiteouts_say_what_is_there() {
    let world = World::usual();
    world.whiteout("a", "x");
    world.whiteout("a", "nothing");
    world.whiteout("new", "x");
    // No whiteout: its directory does not say that it may hold one.
    world.write("b", b"");
    world.mark("b", "whiteout", b"y");
    let oci = ["", "a", "a/.wh.x", "b", "new"];
    assert_eq!(world.names(Format::Oci), oci);
    let device = ["", "a", "a/x", "b", "new"];
    assert_eq!(world.names(Format::Overlay), device);
    assert_eq!(world.names(Format::Gvisor), device);
    let changes = world.of(Format::Podman);
    changes.write_podman(world.dir.path(), &mut |_| ()).unwrap();
    let read = |name| fs::read(world.dir.path().join(name)).unwrap();
    assert_eq!(read("deleted.files"), b"[\"/a/x\"]\n");
    assert_eq!(names(&read("rootfs-diff.tar")), ["", "a", "b", "new"]);
}

#[test]
fn what_is_made_anew_hides_what_was_there() {
    let world = World::usual();
    world.write("a/sub/new", b"n");
    world.mark("a", "opaque", b"y");
    assert_eq!(
        world.names(Format::Oci),
        ["", "a", "a/.wh..wh..opq", "a/sub", "a/sub/new"]
    );
    let changes = world.of(Format::Podman);
    changes.write_podman(world.dir.path(), &mut |_| ()).unwrap();
    let deleted = fs::read(world.dir.path().join("deleted.files")).unwrap();
    assert_eq!(deleted, b"[\"/a/sub/b\",\"/a/sub/y\",\"/a/x\"]\n");
}

#[test]
fn a_renamed_directory_is_whole_and_keeps_its_links() {
    let world = World::usual();
    fs::create_dir(world.at("c")).unwrap();
    world.mark("c", "redirect", b"/a/sub");
    world.write("c/own", b"o");
    let tar = world.tar(Options::default()).unwrap();
    // Where a link can only lead to what the tar holds, the others come too.
    let whole = ["", "c", "c/b", "c/own", "c/y", "a", "a/sub", "a/sub/b", "b"];
    assert_eq!(names(&tar), whole);
    assert_eq!(world.names(Format::Gvisor), whole);
    let target = |tar: &[u8], name: &str| {
        let all = entries(tar).unwrap();
        let entry = all.iter().find(|entry| entry.path == name.as_bytes());
        match &entry.unwrap().kind {
            crate::tar::EntryKind::HardLink { target, .. } => Some(target.clone()),
            _ => None,
        }
    };
    assert_eq!(target(&tar, "c/b"), None);
    assert_eq!(target(&tar, "a/sub/b").as_deref(), Some(&b"c/b"[..]));
    assert_eq!(target(&tar, "b").as_deref(), Some(&b"c/b"[..]));
    let podman = world.of(Format::Podman);
    podman.write_podman(world.dir.path(), &mut |_| ()).unwrap();
    let podman = fs::read(world.dir.path().join("rootfs-diff.tar")).unwrap();
    assert_eq!(target(&podman, "c/b").as_deref(), Some(&b"a/sub/b"[..]));
    assert_eq!(world.names(Format::Overlay), ["", "c", "c/own"]);
}

#[test]
fn a_redirect_to_nothing_is_a_directory_with_nothing_below() {
    let world = World::usual();
    world.write("a/own", b"o");
    for nothing in ["/nowhere/x", "nowhere", "/b", "/b/x"] {
        world.mark("a", "redirect", nothing.as_bytes());
        let oci = ["", "a", "a/.wh..wh..opq", "a/own"];
        assert_eq!(world.names(Format::Oci), oci, "{nothing}");
    }
    for bad in ["/a/../x", "..", "/."] {
        world.mark("a", "redirect", bad.as_bytes());
        let error = world.tar(Options::default()).unwrap_err().to_string();
        assert!(error.starts_with("a: "), "{error}");
    }
}

#[test]
fn attributes_alone_have_the_image_s_data() {
    let world = World::usual();
    world.write("a/x", b"\0");
    world.mark("a/x", "metacopy", b"");
    world.write("z", b"\0");
    world.mark("z", "metacopy", b"");
    world.mark("z", "redirect", b"/a/sub/y");
    for format in TARS {
        let tar = world.tar(Options {
            format,
            ..Options::default()
        });
        let tar = tar.unwrap();
        let bytes: Vec<_> = entries(&tar)
            .unwrap()
            .iter()
            .filter_map(|entry| match &entry.kind {
                crate::tar::EntryKind::File { segments, .. } => {
                    Some(tar[usize::try_from(segments[0].tar_offset).unwrap()])
                }
                _ => None,
            })
            .collect();
        assert_eq!(bytes, b"xy");
    }
    // Of another length, or of nothing.
    world.write("a/x", b"\0\0");
    let error = world.tar(Options::default()).unwrap_err().to_string();
    assert!(
        error.starts_with("a/x: has its attributes alone"),
        "{error}"
    );
    fs::remove_file(world.at("a/x")).unwrap();
    world.mark("z", "redirect", b"/gone");
    let error = world.tar(Options::default()).unwrap_err().to_string();
    assert!(error.starts_with("z: has its attributes alone"), "{error}");
}

#[test]
fn names_that_mean_something_else_in_a_layer() {
    let image = Tar::new().file("a/.wh.x", b"").end();
    let world = World::new(&image);
    world.whiteout("a", ".wh.x");
    let refused = |world: &World| {
        let error = world.tar(Options::default()).unwrap_err().to_string();
        assert!(error.starts_with("a/.wh.x: begins with .wh."), "{error}");
    };
    refused(&world);
    let world = World::usual();
    world.write("a/.wh.x", b"n");
    refused(&world);
    assert_eq!(world.names(Format::Gvisor), ["", "a", "a/.wh.x"]);
    let exclude = vec![Pattern::new(b"/a/.wh.*").unwrap()];
    let without = world.tar(Options {
        exclude,
        ..Options::default()
    });
    assert_eq!(names(&without.unwrap()), ["", "a"]);
}

#[test]
fn what_json_cannot_say_is_told() {
    let image = Tar::new().file("a/x", b"");
    let mut image = image.end();
    let at = image.windows(3).position(|three| three == b"a/x").unwrap();
    image[at + 2] = 0xff;
    // The checksum of its header, by the byte that changed.
    let sum: u32 = image[..512]
        .iter()
        .enumerate()
        .map(|(n, &b)| {
            if (148..156).contains(&n) {
                32
            } else {
                b.into()
            }
        })
        .sum();
    image[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let world = World::new(&image);
    fs::create_dir(world.at("a")).unwrap();
    world.mark("a", "opaque", b"y");
    assert_eq!(world.names(Format::Oci), ["", "a", "a/.wh..wh..opq"]);
    let changes = world.of(Format::Podman);
    let error = changes.size().unwrap_err().to_string();
    assert!(error.starts_with("a/\\xff: is gone"), "{error}");
}

#[test]
fn what_is_excluded_is_neither_there_nor_gone() {
    let world = World::usual();
    world.write("run/a/b", b"");
    world.write("a/sub/new", b"n");
    fs::hard_link(world.at("a/sub/new"), world.at("z")).unwrap();
    world.whiteout("a", "x");
    let exclude = [&b"/run/**"[..], b"/a/x", b"/a/*/n*"].map(|p| Pattern::new(p).unwrap());
    for format in TARS {
        let tar = world.tar(Options {
            format,
            exclude: exclude.to_vec(),
            ..Options::default()
        });
        // The second name of what is left out has the data.
        assert_eq!(names(&tar.unwrap()), ["", "a", "a/sub", "run", "z"]);
    }
}

#[test]
fn a_tree_deeper_than_descriptors_are_kept() {
    let world = World::usual();
    let deep = "d/".repeat(700);
    world.write(&format!("{deep}f"), b"deep");
    world.write("e", b"after");
    for up in [3, 200, 690] {
        let dir = "d/".repeat(up);
        world.write(&format!("{dir}z"), b"up");
    }
    let names = world.names(Format::Oci);
    assert_eq!(names.len(), 1 + 700 + 1 + 3 + 1);
    assert_eq!(names.last().unwrap(), "e");
}

#[test]
fn a_path_longer_than_readers_take() {
    let world = World::usual();
    let name = "n".repeat(255);
    let mut dir = rustix::fs::open(world.at(""), OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..17 {
        rustix::fs::mkdirat(&dir, &*name, 0o700.into()).unwrap();
        dir = rustix::fs::openat(&dir, &*name, OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    let error = world.tar(Options::default()).unwrap_err().to_string();
    assert!(
        error.ends_with("longer than Linux allows (4095 bytes)"),
        "{error}"
    );
}

/// Every call that looks at something, refused in turn: an error, and no file.
#[test]
fn what_cannot_be_read_is_told() {
    let world = World::usual();
    world.write("a/new", &[7; 3000]);
    symlink("target", world.at("link")).unwrap();
    world.whiteout("a", "x");
    fs::create_dir(world.at("c")).unwrap();
    world.mark("c", "redirect", b"/a/sub");
    for format in [Format::Oci, Format::Overlay, Format::Gvisor, Format::Podman] {
        let changes = world.of(format);
        let out = world.dir.path().join("out");
        let mut n = 1;
        loop {
            faults::plan(n, Fault::Blind(Errno::IO));
            let written = changes.write_file(&out, &mut |_| ());
            if !faults::end() {
                written.unwrap();
                break;
            }
            let error = written.unwrap_err();
            assert!(matches!(error, DiffError::Upper { .. }), "{n}: {error:?}");
            assert!(!out.exists(), "{n}");
            n += 1;
        }
        assert!(n > 20, "{format:?}: {n}");
        fs::remove_file(&out).unwrap();
    }
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    let world = World::usual();
    world.write("a/new", &[7; 3_000_000]);
    let changes = world.of(Format::Oci);
    let out = world.dir.path().join("out");
    fs::write(&out, "before").unwrap();
    faults::plan(1, Fault::Full(Errno::NOSPC));
    let error = changes.write_file(&out, &mut |_| ()).unwrap_err();
    faults::end();
    assert!(matches!(error, DiffError::Output(_)), "{error:?}");
    assert_eq!(fs::read(&out).unwrap(), b"before");
    // More than waits to be written.
    world.write("a/newer", &vec![7; 9_000_000]);
    let mut full = File::options().write(true).open("/dev/full").unwrap();
    let error = changes.write(&mut full, &mut |_| ()).unwrap_err();
    assert!(matches!(error, DiffError::Write(_)), "{error:?}");
}

/// An output that takes little at a time, and one that ends.
#[test]
fn outputs_of_every_kind() {
    struct Slow(Vec<u8>, usize);
    impl Write for Slow {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let n = buf.len().min(70_001);
            if self.0.len() + n > self.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.extend_from_slice(&buf[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let world = World::usual();
    for n in 1..9 {
        world.write(&format!("f{n}"), &vec![n; 700_000]);
    }
    let whole = world.tar(Options::default()).unwrap();
    let changes = world.of(Format::Oci);
    let mut slow = Slow(Vec::new(), usize::MAX);
    changes.write(&mut slow, &mut |_| ()).unwrap();
    assert!(slow.0 == whole);
    for room in [0, 1 << 20, whole.len() - 1] {
        let error = changes.write(&mut Slow(Vec::new(), room), &mut |_| ());
        let Err(DiffError::Write(error)) = error else {
            panic!("{error:?}");
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}

/// Somebody who does not keep to it: before each call, something changes.
#[test]
fn what_changes_meanwhile_is_told() {
    let kinds: [fn(&Path); 5] = [
        |at| fs::write(at, b"other").unwrap(),
        |at| fs::write(at, vec![1; 600_000]).unwrap(),
        |at| fs::remove_file(at).unwrap(),
        |at| {
            fs::remove_file(at).unwrap();
            fs::create_dir(at).unwrap();
        },
        |at| {
            fs::remove_file(at).unwrap();
            symlink("/etc/passwd", at).unwrap();
        },
    ];
    for (which, change) in kinds.into_iter().enumerate() {
        let mut refused = 0;
        for n in 1.. {
            let world = World::usual();
            world.write("big", &vec![9; 500_000]);
            let at = world.at("big");
            let mut left = n;
            faults::watch_all(move || {
                left -= 1;
                if left == 0 {
                    change(&at);
                }
            });
            let changes = world.of(Format::Oci);
            let mut out = Vec::new();
            let written = changes.write(&mut out, &mut |_| ());
            faults::unwatch();
            match written {
                // Before it was looked at, or after all of it had been read.
                Ok(_) => {
                    assert!(entries(&out).is_ok());
                    if n > 40 {
                        break;
                    }
                }
                Err(DiffError::Changed(path)) => {
                    assert_eq!(path, "big");
                    refused += 1;
                }
                Err(other) => panic!("{which}: {n}: {other}"),
            }
        }
        assert!(refused > 0, "{which}");
    }
}

#[test]
fn a_length_that_was_told_is_kept_to() {
    let world = World::usual();
    world.write("new", b"1");
    let changes = world.of(Format::Oci);
    let size = changes.size().unwrap();
    world.write("newer", b"1");
    assert_eq!(changes.size().unwrap(), size);
    let error = changes.write(&mut Vec::new(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, DiffError::Changed(_)), "{error}");
}

#[test]
fn another_image_s_upper_is_refused() {
    let world = World::usual();
    let flags = rustix::fs::XattrFlags::empty();
    let put = |value: &str| {
        rustix::fs::setxattr(world.at(""), "user.tarnfs.ino", value.as_bytes(), flags).unwrap();
        check_image(&world.lower, world.root.as_fd(), Namespace::User)
    };
    put(&format!("1.{:016x}", world.lower.fingerprint())).unwrap();
    let error = put("1.00000000feedbeef").unwrap_err();
    assert!(matches!(error, DiffError::OtherImage { .. }), "{error}");
    assert!(matches!(
        put("nonsense").unwrap_err(),
        DiffError::Upper { .. }
    ));
}

#[test]
fn data_begin_where_they_are_to() {
    let world = World::usual();
    for n in 1..20 {
        world.write(&format!("f{n}"), &vec![n; 300_000 + usize::from(n)]);
    }
    let file = world.at("sparse");
    let sparse = File::create(&file).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &[1; 4096], 1 << 20).unwrap();
    for format in TARS {
        let align = Align::new(4096).unwrap();
        let changes = world.changes(Options {
            format,
            align,
            ..Options::default()
        });
        let out = world.dir.path().join("out");
        changes.write_file(&out, &mut |_| ()).unwrap();
        let tar = fs::read(&out).unwrap();
        let mut stream = Vec::new();
        changes.write(&mut stream, &mut |_| ()).unwrap();
        assert!(tar == stream);
        let mut files = 0;
        for entry in entries(&tar).unwrap() {
            if let crate::tar::EntryKind::File { segments, .. } = &entry.kind {
                assert_eq!(segments[0].tar_offset % 4096, 0, "{:?}", entry.path);
                files += 1;
            }
        }
        assert_eq!(files, 20);
    }
}

/// As a checkpoint keeps it: into the store, with its digest known at the end.
#[test]
fn a_layer_of_the_store() {
    let world = World::usual();
    world.write("a/new", &[7; 3_000_000]);
    world.whiteout("a", "x");
    let store = crate::store::Store::open(&world.dir.path().join("store"));
    store.prepare().unwrap();
    let mut writer = store.begin_unknown_blob().unwrap();
    let changes = world.changes(Options {
        digest: true,
        ..Options::default()
    });
    let written = changes.write(&mut writer, &mut |_| ()).unwrap();
    let blob = writer.publish(&written.digest.unwrap()).unwrap();
    assert_eq!(blob.len(), written.len);
    let bytes = fs::read(blob.path()).unwrap();
    assert_eq!(Digest::of(&bytes), written.digest.unwrap());
    blob.scan().unwrap();
}
