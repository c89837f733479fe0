//! What others do meanwhile, and what is kept from them.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::store::{Begun, ImageName};

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// Imports, and lets go of it.
fn imported(f: &Fixture, layers: &[Vec<u8>]) -> Digest {
    let imported = f.import(&Fake::of(layers)).unwrap();
    imported.image.record().digest.unwrap()
}

fn names(store: &Store) -> Vec<String> {
    let names = store.names().unwrap();
    names.iter().map(|(name, _)| name.to_string()).collect()
}

fn all() -> GcOptions {
    GcOptions {
        high: None,
        low: None,
        all: true,
        min_age: Duration::ZERO,
        dry_run: false,
    }
}

/// Files and links in a directory of the store.
fn count(store: &Store, dir: &str) -> usize {
    fs::read_dir(store.dir().join(dir)).unwrap().count()
}

const DIRS: [&str; 6] = [
    "blobs/sha256",
    "images/sha256",
    "names",
    "sources",
    "roots",
    "tmp",
];

#[test]
fn an_image_goes_with_all_that_leads_to_it() {
    let f = fixture();
    for remove in [true, false] {
        let own = imported(&f, &[base(), top()]);
        f.store.tag(&own, &name("a")).unwrap();
        f.store.remember("somewhere", &own).unwrap();
        if remove {
            f.store.remove("a").unwrap();
        } else {
            f.store.collect(&all()).unwrap();
        }
        for dir in DIRS {
            assert_eq!(count(&f.store, dir), 0, "{dir}");
        }
    }
}

#[test]
fn who_was_ended_in_the_middle_of_a_removal_can_remove_again() {
    let f = fixture();
    let own = imported(&f, &[base()]);
    f.store.tag(&own, &name("a")).unwrap();
    fs::rename(
        f.store.dir().join("images/sha256").join(own.hex()),
        f.store.dir().join("tmp/removed-1"),
    )
    .unwrap();
    assert!(f.store.tag(&own, &name("b")).is_err(), "there is none");
    f.store.remove("a").unwrap();
    assert_eq!(names(&f.store), [] as [&str; 0]);
    assert_eq!(count(&f.store, "tmp"), 0, "swept");
    f.store.collect(&all()).unwrap();
    for dir in DIRS {
        assert_eq!(count(&f.store, dir), 0, "{dir}");
    }
}

#[test]
fn a_name_that_is_another_images_by_now_stays() {
    let f = fixture();
    let (one, two) = (imported(&f, &[base()]), imported(&f, &[top()]));
    f.store.tag(&one, &name("a")).unwrap();
    f.store.tag(&two, &name("a")).unwrap();
    // Who removes the first has read the names before.
    f.store.remove(&one.to_string()).unwrap();
    assert_eq!(names(&f.store), ["a"]);
    // The image has come back before its name went.
    let own = imported(&f, &[base()]);
    f.store.tag(&own, &name("b")).unwrap();
    f.store
        .collect(&GcOptions {
            all: false,
            ..all()
        })
        .unwrap();
    assert_eq!(names(&f.store), ["a", "b"]);
}

#[test]
fn a_whole_layer_is_never_discarded() {
    let f = fixture();
    let image = f.import(&Fake::of(&[base()])).unwrap().image;
    let layer = image.record().layers[0].diff_id;
    // As the second of two who have found the same damage.
    assert!(!f.store.discard_layer(&layer).unwrap());
    let path = f.store.blob(&layer).unwrap().unwrap().path().to_owned();
    let mut bytes = fs::read(&path).unwrap();
    bytes[600] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    assert!(f.store.discard_layer(&layer).unwrap());
    assert!(!f.store.discard_layer(&layer).unwrap());
}

#[test]
fn whoever_writes_a_layer_last_has_the_first_ones() {
    let f = fixture();
    f.store.prepare().unwrap();
    let (tar, diff_id) = (base(), Digest::of(&base()));
    let write = || {
        let mut writer = f.store.begin_unknown_blob().unwrap();
        writer.write_all(&tar).unwrap();
        writer
    };
    let (one, two, three) = (write(), write(), write());
    let one = one.publish(&diff_id).unwrap();
    let ino = fs::metadata(one.path()).unwrap().ino();
    let two = two.publish(&diff_id).unwrap();
    assert_eq!(two.file().metadata().unwrap().ino(), ino);
    drop(one);
    f.store.collect(&all()).unwrap();
    assert!(two.path().exists(), "held by the second");
    drop(two);
    // One that is too short is no layer.
    fs::remove_file(f.store.blob(&diff_id).unwrap().unwrap().path()).unwrap();
    let path = f
        .store
        .dir()
        .join("blobs/sha256")
        .join(format!("{}.tar", diff_id.hex()));
    fs::write(&path, b"short").unwrap();
    let three = three.publish(&diff_id).unwrap();
    assert_eq!(fs::read(three.path()).unwrap(), tar);
    f.store.collect(&all()).unwrap();
    assert!(matches!(
        f.store.begin_blob(&diff_id, &mut |_| ()),
        Ok(Begun::There(_))
    ));
    drop(three);
    f.store.collect(&all()).unwrap();
    assert_eq!(count(&f.store, "blobs/sha256"), 0);
}

#[test]
fn an_image_made_anew_keeps_its_lock_and_its_index() {
    let f = fixture();
    let fake = Fake::of(&[base()]);
    let first = f.import(&fake).unwrap().image;
    let ino = |file: &str| fs::metadata(first.dir().join(file)).unwrap().ino();
    let before = [ino("used"), ino("index.erofs")];
    let options = Options {
        anew: true,
        ..Options::default()
    };
    assert!(f.import_by(&fake, &options).unwrap().fresh);
    assert_eq!([ino("used"), ino("index.erofs")], before);
    let files = fs::read_dir(first.dir()).unwrap().count();
    assert_eq!(files, 4, "index.erofs, image.json, config.json, used");
    // Who has the old one open has the new one.
    let own = first.record().digest.unwrap().to_string();
    assert!(matches!(
        f.store.remove(&own),
        Err(StoreError::InUse { .. })
    ));
    drop(first);
    f.store.remove(&own).unwrap();
}

#[test]
fn aliases_of_several_at_once_are_all_kept() {
    let f = fixture();
    let fakes: Vec<Fake> = (0..8)
        .map(|n| {
            let mut fake = Fake::of(&[base()]);
            let manifest = fake.manifest.as_mut().unwrap();
            manifest.manifest = Some(Digest::of(&[n]));
            manifest.index = None;
            fake
        })
        .collect();
    std::thread::scope(|scope| {
        for fake in &fakes {
            scope.spawn(|| f.import(fake).unwrap());
        }
    });
    let image = f.import(&fakes[0]).unwrap().image;
    for fake in &fakes {
        let alias = fake.manifest.as_ref().unwrap().manifest.unwrap();
        assert!(image.record().aliases.contains(&alias));
        assert_eq!(f.store.image(&alias).unwrap().dir(), image.dir());
    }
    assert_eq!(fs::read_dir(image.dir()).unwrap().count(), 4);
    assert_eq!(count(&f.store, "tmp"), 0);
}

#[test]
fn a_root_keeps_its_image_and_a_dead_one_hinders_nobody() {
    let f = fixture();
    let own = imported(&f, &[base()]);
    let record = f.dir.path().join("bundle.json");
    fs::write(&record, "").unwrap();
    f.store.add_root(&own, &record).unwrap();
    let error = f.store.remove(&own.to_string()).unwrap_err().to_string();
    assert!(error.contains("bundle.json"), "{error}");
    let collected = f.store.collect(&all()).unwrap();
    assert!(collected.decisions.iter().all(|d| !d.goes));
    fs::remove_file(&record).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| f.store.collect(&all()).unwrap());
        }
    });
    for dir in DIRS {
        assert_eq!(count(&f.store, dir), 0, "{dir}");
    }
}

#[test]
fn a_layer_that_was_cut_short_comes_again() {
    let f = fixture();
    let fake = Fake::of(&[base(), top()]);
    let first = f.import(&fake).unwrap().image;
    let (entry, layer) = (first.dir().to_owned(), first.record().layers[0].diff_id);
    drop(first);
    let path = f.store.blob(&layer).unwrap().unwrap().path().to_owned();
    for index in ["index.erofs", "image.json"] {
        // Nobody can tell by the image what its layers should be.
        fs::remove_file(entry.join(index)).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bytes[..700]).unwrap();
        assert!(f.import(&fake).unwrap().fresh, "{index}");
        let verdicts = f.store.verify(None, &mut |_| ()).unwrap();
        assert!(verdicts.iter().all(|v| v.problem.is_none()), "{verdicts:?}");
    }
}
