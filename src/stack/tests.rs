//! One more layer: the same image as of all layers read, published whole or not at all.

mod squash;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use super::*;
use crate::index::Flattening;
use crate::lower::Lower;
use crate::name::Name;
use crate::store::{GcOptions, Verdict};
use crate::tar::testing::Tar;

pub(super) struct Fixture {
    pub(super) dir: tempfile::TempDir,
    pub(super) store: Store,
}

pub(super) fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"));
    Fixture { dir, store }
}

pub(super) fn note(id: &str) -> Note {
    Note {
        id: id.to_owned(),
        comment: None,
        created: 1_700_000_000,
    }
}

/// Takes `tar` into the store as an image.
pub(super) fn import(store: &Store, tar: &[u8]) -> Digest {
    let stream = Stream {
        input: Box::new(io::Cursor::new(tar.to_vec())),
        len: None,
    };
    let taken = import::tar(store, stream, "-", &Options::default(), Arc::new(())).unwrap();
    taken.image.record().digest.unwrap()
}

pub(super) fn add(store: &Store, base: &Digest, id: &str, tar: &[u8]) -> Stacked<()> {
    let write = |out: &mut NewLayer| out.write_all(tar);
    add_layer(store, base, &note(id), write, &mut |_| ()).unwrap()
}

pub(super) fn base() -> Vec<u8> {
    let tar = Tar::new().dir("d").file("d/a", b"1").file("d/b", b"22");
    tar.hard_link("c", "d/b").end()
}

fn names(dir: PathBuf) -> Vec<String> {
    let Ok(all) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut all: Vec<_> = all.map(|e| name(e).into_string().unwrap()).collect();
    all.sort();
    all
}

fn published(store: &Store) -> [Vec<String>; 3] {
    ["blobs/sha256", "images/sha256", "tmp"].map(|dir| names(store.dir().join(dir)))
}

/// Everything in the store is what it is called, and the indexes are those that the layers give.
#[track_caller]
pub(super) fn sound(store: &Store) {
    let bad = |verdict: &Verdict| verdict.problem.is_some();
    let mut verdicts = store.verify(None, &mut |_| ()).unwrap();
    verdicts.retain(bad);
    assert_eq!(verdicts, []);
    assert_eq!(names(store.dir().join("tmp")), [] as [String; 0]);
}

fn read(lower: &Lower, path: &str) -> Option<Vec<u8>> {
    let mut nid = lower.root();
    for name in path.split('/') {
        nid = lower
            .lookup(nid, &Name::new(name.as_bytes()).unwrap())
            .unwrap()?;
    }
    let mut bytes = vec![0; 100];
    let n = lower.read(nid, 0, &mut bytes).unwrap();
    bytes.truncate(n);
    Some(bytes)
}

#[test]
fn a_layer_makes_an_image_of_the_store() {
    let f = fixture();
    let own = import(&f.store, &base());
    let layer = Tar::new().file("d/a", b"new").file("d/.wh.b", b"").end();
    let made = add(&f.store, &own, "one", &layer);
    assert!(made.fresh);
    assert_eq!(
        (made.layer, made.len),
        (Digest::of(&layer), layer.len() as u64)
    );
    let record = made.image.record();
    assert_eq!(record.digest, Some(made.digest));
    assert_eq!(
        record.source,
        Source::Made {
            of: own,
            by: "tarnfs checkpoint one".into()
        }
    );
    let lower = made.image.lower().unwrap();
    assert_eq!(read(&lower, "d/a").unwrap(), b"new");
    assert_eq!(read(&lower, "d/b"), None);
    assert_eq!(read(&lower, "c").unwrap(), b"22");
    let config = made.image.config_json().unwrap().unwrap();
    assert_eq!(Digest::of(&config), made.digest);
    assert_eq!(checkpoints(&made.image).unwrap(), 1);
    assert_eq!(checkpoints(&f.store.image(&own).unwrap()).unwrap(), 0);
    sound(&f.store);

    // The same once more is the same image; with another note another one, of the same layers.
    let again = add(&f.store, &own, "one", &layer);
    assert!(!again.fresh && again.digest == made.digest);
    let other = add(&f.store, &own, "two", &layer);
    assert!(other.fresh && other.digest != made.digest && other.layer == made.layer);
    assert_eq!(published(&f.store)[0].len(), 2);
    sound(&f.store);
    // The image below may go, its layer is the checkpoint's too.
    drop(lower);
    f.store.remove(&own.to_string()).unwrap();
    let unused = GcOptions {
        high: None,
        low: None,
        all: false,
        min_age: std::time::Duration::ZERO,
        dry_run: false,
    };
    f.store.collect(&unused).unwrap();
    assert_eq!(published(&f.store)[0].len(), 2);
    sound(&f.store);
}

#[test]
fn a_layer_without_entries_is_one() {
    let f = fixture();
    let own = import(&f.store, &base());
    let made = add(&f.store, &own, "", &Tar::new().end());
    assert_eq!(made.image.record().layers.len(), 2);
    let twice = add(&f.store, &made.digest, "", &Tar::new().end());
    assert_eq!(twice.image.record().layers.len(), 3);
    assert_eq!(read(&twice.image.lower().unwrap(), "d/b").unwrap(), b"22");
    // A layer that comes twice with bytes, between others.
    let layer = Tar::new().file("x", b"1").end();
    let one = add(&f.store, &twice.digest, "", &layer);
    let two = add(&f.store, &one.digest, "", &Tar::new().file("x", b"2").end());
    let three = add(&f.store, &two.digest, "", &layer);
    assert_eq!(read(&three.image.lower().unwrap(), "x").unwrap(), b"1");
    sound(&f.store);
}

#[test]
fn the_index_of_a_chain_is_that_of_its_layers() {
    let f = fixture();
    let mut own = import(&f.store, &base());
    for n in 0..12 {
        let mut tar = Tar::new()
            .file(&format!("n{n}"), b"x")
            .file("each", n.to_string().as_bytes())
            .hard_link(&format!("d/l{n}"), "d/b");
        if n > 0 {
            tar = tar.file(&format!(".wh.n{}", n - 1), b"");
        }
        // From then on there is a side blob, so that all layers are read.
        if n >= 8 {
            let odd = [
                ("GNU.sparse.size", &b"9000"[..]),
                ("GNU.sparse.map", b"100,2"),
            ];
            tar = tar.pax(&odd).file(&format!("s{n}"), b"xy");
        }
        own = add(&f.store, &own, &n.to_string(), &tar.end()).digest;
    }
    let image = f.store.image(&own).unwrap();
    assert_eq!(image.record().layers.len(), 13);
    let lower = image.lower().unwrap();
    assert_eq!(read(&lower, "each").unwrap(), b"11");
    assert_eq!(read(&lower, "d/l0").unwrap(), b"22");
    assert_eq!(&read(&lower, "s8").unwrap()[..], [&[0; 100][..]].concat());
    // Each one of them, once more of its layers alone.
    sound(&f.store);
    drop((lower, image));
}

#[test]
fn a_damaged_index_is_not_gone_on_with() {
    let f = fixture();
    let own = import(&f.store, &base());
    let index = f.store.image(&own).unwrap().index_path();
    let good = fs::read(&index).unwrap();
    let mut bad = good.clone();
    let at = bad
        .windows(3)
        .position(|w| w == b"abc" || w == b"..a")
        .unwrap_or(1300);
    bad[at] ^= 1;
    fs::remove_file(&index).unwrap();
    fs::write(&index, &bad).unwrap();
    let made = add(&f.store, &own, "", &Tar::new().end());
    assert_eq!(read(&made.image.lower().unwrap(), "d/a").unwrap(), b"1");
    fs::remove_file(&index).unwrap();
    fs::write(&index, &good).unwrap();
    sound(&f.store);
}

type Writes<'a> =
    dyn Fn(&mut dyn Write) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

#[test]
fn what_fails_leaves_nothing() {
    let f = fixture();
    let own = import(&f.store, &base());
    let before = published(&f.store);
    let fails = |write: &Writes<'_>| {
        let made = add_layer(
            &f.store,
            &own,
            &note("x"),
            |out: &mut NewLayer| write(out),
            &mut |_| (),
        );
        assert_eq!(published(&f.store), before);
        made.unwrap_err().to_string()
    };
    assert_eq!(
        fails(&|_| Err("the actor is gone".into())),
        "the actor is gone"
    );
    let said = fails(&|out| Ok(out.write_all(b"no tar at all")?));
    assert!(said.starts_with("tarnfs checkpoint x: "), "{said}");
    let said = fails(&|_| Ok(()));
    assert!(said.starts_with("tarnfs checkpoint x: "), "{said}");
    let half = Tar::new().file("a", &[7; 3000]).0;
    fails(&|out| Ok(out.write_all(&half[..1024])?));
    let through = Tar::new().file("c/x", b"1").end();
    let said = fails(&|out| Ok(out.write_all(&through)?));
    assert!(
        said.contains("c/x") && said.contains("not a directory"),
        "{said}"
    );

    let nobody = Digest::of(b"nobody");
    let write = |_: &mut NewLayer| -> io::Result<()> { panic!("there is nothing below") };
    let said = add_layer(&f.store, &nobody, &note(""), write, &mut |_| ()).unwrap_err();
    assert!(
        matches!(said, StackError::Store(StoreError::NoImage { .. })),
        "{said}"
    );
    assert_eq!(published(&f.store), before);
}

#[test]
fn a_local_tar_comes_into_the_store_first() {
    let f = fixture();
    let tar = f.dir.path().join("base.tar");
    fs::write(&tar, base()).unwrap();
    let local = f.store.tar_image(&tar, &mut |_| ()).unwrap();
    let own = ensure_in_store(&f.store, &local, Arc::new(())).unwrap();
    assert_eq!(own, Digest::of(&base()));
    let made = add(&f.store, &own, "", &Tar::new().file("x", b"1").end());
    let image = f.store.image(&own).unwrap();
    assert_eq!(
        ensure_in_store(&f.store, &image, Arc::new(())).unwrap(),
        own
    );
    // It is the store's from then on.
    fs::remove_file(&tar).unwrap();
    assert_eq!(read(&made.image.lower().unwrap(), "d/b").unwrap(), b"22");
    sound(&f.store);

    fs::write(&tar, base()).unwrap();
    let local = f.store.tar_image(&tar, &mut |_| ()).unwrap();
    fs::write(&tar, Tar::new().file("another", b"").end()).unwrap();
    let said = ensure_in_store(&f.store, &local, Arc::new(())).unwrap_err();
    assert!(said.to_string().contains("changed since"), "{said}");
}

#[test]
fn all_layers_and_the_index_give_one_tree() {
    let f = fixture();
    let own = import(&f.store, &base());
    let made = add(&f.store, &own, "", &Tar::new().file(".wh.c", b"").end());
    let layers = f.store.layers_of(&made.image).unwrap();
    let mut all = Flattening::new();
    for layer in &layers {
        all.add(layer.scan().unwrap(), layer.path()).unwrap();
    }
    let indexed = made.image.flattening(&layers).unwrap().finish().unwrap();
    assert_eq!(
        indexed.tree.inodes.len(),
        all.finish().unwrap().tree.inodes.len()
    );
}
