//! What others do meanwhile, and what is kept from them.

use std::fs;

use super::*;
use crate::store::ImageName;

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
