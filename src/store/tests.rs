//! The store: found at once, made once, never half, never trusted when damaged.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::build::Outputs;
use super::tar::TarFile;
use super::*;
use crate::erofs::writer::{self, BlobSpec};
use crate::index::scan_source;

/// An index of an empty root directory.
fn empty_image(tar: &TarFile, out: &Outputs<'_>) -> Result<Counts, StoreError> {
    let scan = scan_source(&[0; 1024][..], &tar.given, &()).unwrap();
    let blob = BlobSpec {
        tag: String::new(),
        len: tar.identity.size,
    };
    let mut file = File::create(out.index).unwrap();
    writer::write(&scan.tree, &[blob], &mut file).unwrap();
    Ok(Counts {
        inodes: 1,
        entries: 0,
        file_bytes: 0,
    })
}

fn image(store: &Store, tar: &Path) -> Result<Image, StoreError> {
    store.tar_image_by(tar, &|tar, out, _| empty_image(tar, out), &mut |_| ())
}

struct Fixture {
    dir: tempfile::TempDir,
    tar: PathBuf,
    store: Store,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("a.tar");
    fs::write(&tar, [0; 1024]).unwrap();
    let store = Store::open(&dir.path().join("new/store"));
    Fixture { dir, tar, store }
}

fn leftovers(store: &Store) -> Vec<PathBuf> {
    let mut left: Vec<PathBuf> = fs::read_dir(store.dir().join("tmp"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    left.sort();
    left
}

#[test]
fn an_index_is_made_once_and_then_found() {
    let f = fixture();
    let first = image(&f.store, &f.tar).unwrap();
    assert!(first.is_fresh());
    let never: &build::Builder<'_> = &|_, _, _| panic!("the index is there");
    let second = f.store.tar_image_by(&f.tar, never, &mut |_| ()).unwrap();
    assert!(!second.is_fresh());
    assert_eq!(first.record(), second.record());
    assert_eq!(
        second.lower().unwrap().root(),
        first.lower().unwrap().root()
    );
    assert_eq!(leftovers(&f.store), [] as [PathBuf; 0]);
    for file in ["index.erofs", "image.json"] {
        let mode = fs::metadata(first.dir().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o400, "{file}");
    }
    assert_eq!(
        first.index_digest(&mut |_| ()).unwrap(),
        first.record().index.digest,
        "the record has the index's digest"
    );

    // Another name of the same file is the same image.
    let link = f.dir.path().join("link.tar");
    std::os::unix::fs::symlink(&f.tar, &link).unwrap();
    assert!(
        !f.store
            .tar_image_by(&link, never, &mut |_| ())
            .unwrap()
            .is_fresh()
    );
}

#[test]
fn another_state_of_the_tar_is_another_image() {
    let f = fixture();
    let first = image(&f.store, &f.tar).unwrap();
    fs::write(&f.tar, [0; 2048]).unwrap();
    let second = image(&f.store, &f.tar).unwrap();
    assert!(second.is_fresh());
    assert_ne!(first.dir(), second.dir());
    assert!(first.lower().is_err(), "the old one is no longer served");
    assert!(matches!(
        first.digest(&mut |_| ()),
        Err(StoreError::Changed { .. })
    ));
}

/// What happens to a file.
type Change = Box<dyn Fn(Vec<u8>) -> Vec<u8>>;

#[test]
fn a_damaged_entry_is_made_anew() {
    let f = fixture();
    let dir = image(&f.store, &f.tar).unwrap().dir().to_owned();
    let rewrite = |file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let path = dir.join(file);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, change(bytes)).unwrap();
    };
    let text = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from));
            text.replace(from, to).into_bytes()
        }
    };
    let damages: [(&str, Change); 7] = [
        ("image.json", Box::new(|_| Vec::new())),
        ("image.json", Box::new(|mut b| b.split_off(b.len() / 2))),
        (
            "image.json",
            Box::new(text("\"format\": 2", "\"format\": 3")),
        ),
        (
            "image.json",
            Box::new(text("\"place\": \"tar\"", "\"place\": \"../../../a.tar\"")),
        ),
        ("index.erofs", Box::new(|_| Vec::new())),
        ("index.erofs", Box::new(|b| b[..b.len() - 512].to_vec())),
        (
            "index.erofs",
            Box::new(|mut b| {
                b[1024 + 50] ^= 1;
                b
            }),
        ),
    ];
    for (i, (file, change)) in damages.iter().enumerate() {
        rewrite(file, change);
        assert!(image(&f.store, &f.tar).unwrap().is_fresh(), "damage {i}");
        assert!(!image(&f.store, &f.tar).unwrap().is_fresh(), "mended {i}");
    }
    fs::remove_dir_all(&dir).unwrap();
    fs::write(&dir, b"a file in its place").unwrap();
    assert!(image(&f.store, &f.tar).unwrap().is_fresh());
    assert_eq!(leftovers(&f.store), [] as [PathBuf; 0]);
}

#[test]
fn two_at_once_make_it_once() {
    let f = fixture();
    let made = AtomicUsize::new(0);
    let started = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                started.wait();
                let build: &build::Builder<'_> = &|tar, out, _| {
                    made.fetch_add(1, Ordering::SeqCst);
                    empty_image(tar, out)
                };
                f.store.tar_image_by(&f.tar, build, &mut |_| ()).unwrap();
            });
        }
    });
    assert_eq!(made.load(Ordering::SeqCst), 1);
    assert_eq!(leftovers(&f.store), [] as [PathBuf; 0]);
}

#[test]
fn a_failed_build_leaves_nothing() {
    let f = fixture();
    let full: &build::Builder<'_> = &|tar, out, _| {
        empty_image(tar, out)?;
        fs::write(out.side, b"half").unwrap();
        Err(StoreError::write(
            out.store.unwrap(),
            out.index,
            io::ErrorKind::StorageFull.into(),
        ))
    };
    let error = f
        .store
        .tar_image_by(&f.tar, full, &mut |_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("store is full") || error.contains("is full"),
        "{error}"
    );
    assert!(
        error.contains("new/store") && error.contains("--store"),
        "{error}"
    );
    assert_eq!(leftovers(&f.store), [] as [PathBuf; 0]);
    assert_eq!(fs::read_dir(f.store.dir().join("tars")).unwrap().count(), 0);
}

#[test]
fn a_tar_that_changes_meanwhile_is_refused() {
    let f = fixture();
    let build: &build::Builder<'_> = &|tar, out, _| {
        let counts = empty_image(tar, out)?;
        fs::write(&tar.path, [0; 4096]).unwrap();
        Ok(counts)
    };
    let error = f
        .store
        .tar_image_by(&f.tar, build, &mut |_| ())
        .unwrap_err();
    assert!(matches!(error, StoreError::Changed { .. }), "{error}");
    assert_eq!(fs::read_dir(f.store.dir().join("tars")).unwrap().count(), 0);
}

#[test]
fn leftovers_of_the_killed_go_and_work_of_the_living_stays() {
    let f = fixture();
    let tmp = f.store.dir().join("tmp");
    for key in ["dead", "alive"] {
        fs::create_dir_all(tmp.join(key)).unwrap();
        fs::write(tmp.join(key).join("index.erofs"), b"half").unwrap();
        fs::write(tmp.join(format!("{key}.lock")), b"").unwrap();
    }
    let alive = File::open(tmp.join("alive.lock")).unwrap();
    flock(&alive, FlockOperation::LockExclusive).unwrap();
    // A power failure has taken the lock file; what was to be removed has none.
    fs::write(tmp.join("lost"), b"half").unwrap();
    fs::create_dir(tmp.join("removed-1")).unwrap();
    image(&f.store, &f.tar).unwrap();
    assert_eq!(
        leftovers(&f.store),
        [tmp.join("alive"), tmp.join("alive.lock")]
    );
}

#[test]
fn the_digest_is_remembered() {
    let f = fixture();
    let image = image(&f.store, &f.tar).unwrap();
    let hashed = Cell::new(0);
    let digest = || {
        image
            .digest(&mut |_| hashed.set(hashed.get() + 1))
            .unwrap()
            .to_string()
    };
    let want = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
    assert_eq!(digest(), want, "sha256 of 1024 zeros");
    assert_eq!(hashed.get(), 1);
    assert_eq!(digest(), want);
    assert_eq!(hashed.get(), 1);
    // A memory that is no digest is none.
    fs::remove_file(image.dir().join("blob.sha256")).unwrap();
    fs::write(image.dir().join("blob.sha256"), "nonsense").unwrap();
    assert_eq!(digest(), want);
}

#[test]
fn what_is_no_file_is_refused() {
    let f = fixture();
    let error = |path: &Path| image(&f.store, path).unwrap_err().to_string();
    assert!(error(f.dir.path()).contains("not a regular file"));
    assert!(error(Path::new("/dev/null")).contains("not a regular file"));
    assert!(error(&f.dir.path().join("absent")).contains("No such file"));
    let fifo = f.dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    assert!(
        error(&fifo).contains("not a regular file"),
        "and nobody waited for a writer"
    );
    assert!(!f.store.dir().exists(), "nothing was written for them");
}

#[test]
fn a_store_that_cannot_be_written_says_so() {
    let dir = Path::new("/srv/store");
    let of = |kind: io::ErrorKind| StoreError::write(dir, &dir.join("x"), kind.into()).to_string();
    for kind in [
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::ReadOnlyFilesystem,
    ] {
        let error = of(kind);
        assert!(
            error.contains("/srv/store") && error.contains("--store DIR"),
            "{error}"
        );
    }
    // A directory that no user can make.
    let f = fixture();
    let error = image(&Store::open(Path::new("/proc/tarnfs-store")), &f.tar).unwrap_err();
    assert!(error.to_string().contains("/proc/tarnfs-store"), "{error}");
}

#[test]
fn the_default_directory() {
    let home = Some(Path::new("/home/u"));
    let at = |root, xdg: Option<&str>, home| Store::default_dir(root, xdg.map(Path::new), home);
    assert_eq!(at(true, Some("/x"), home), Some("/var/lib/tarnfs".into()));
    assert_eq!(at(false, Some("/x"), home), Some("/x/tarnfs".into()));
    assert_eq!(
        at(false, Some("relative"), home),
        Some("/home/u/.local/share/tarnfs".into())
    );
    assert_eq!(
        at(false, None, home),
        Some("/home/u/.local/share/tarnfs".into())
    );
    assert_eq!(at(false, None, None), None);
}

#[test]
fn an_index_goes_where_the_user_wants() {
    let f = fixture();
    let index = f.dir.path().join("out.erofs");
    // Two blocks of zeros: an empty tar.
    let built = write_index(&f.tar, &index, &mut |_| ());
    match built {
        Ok(built) => {
            assert_eq!(built.index_len, fs::metadata(&index).unwrap().len());
            assert_eq!(built.side, None);
        }
        Err(error) => panic!("{error}"),
    }
    fs::write(&f.tar, b"not a tar").unwrap();
    let other = f.dir.path().join("other.erofs");
    write_index(&f.tar, &other, &mut |_| ()).unwrap_err();
    let mut left: Vec<_> = fs::read_dir(f.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["a.tar", "out.erofs"]);
}
