//! Imports from a source made here: one pass, every digest right, nothing left of what fails.

mod kept;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::digest::Digest;
use crate::lower::Lower;
use crate::source::{Layer, Manifest, Source, SourceError};
use crate::store::{GcOptions, Store, StoreError};
use crate::tar::testing::Tar;

/// An image in memory. What it gives may be made wrong.
#[derive(Clone, Default)]
struct Fake {
    manifest: Option<Manifest>,
    stored: BTreeMap<usize, Vec<u8>>,
    fetched: Arc<AtomicUsize>,
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

impl Fake {
    fn of(layers: &[Vec<u8>]) -> Self {
        let mut this = Self::default();
        let mut described = Vec::new();
        for (position, tar) in layers.iter().enumerate() {
            let stored = if position % 2 == 0 {
                gzip(tar)
            } else {
                tar.clone()
            };
            described.push(Layer {
                position,
                digest: Some(Digest::of(&stored)),
                len: Some(stored.len() as u64),
                diff_id: Digest::of(tar),
            });
            this.stored.insert(position, stored);
        }
        let diff_ids: Vec<String> = described.iter().map(|l| l.diff_id.to_string()).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Cmd": ["/bin/sh"], "Env": ["A=1"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config_json = config.to_string().into_bytes();
        this.manifest = Some(Manifest {
            index: Some(Digest::of(b"index")),
            manifest: Some(Digest::of(b"manifest")),
            config: Digest::of(&config_json),
            config_json,
            layers: described,
        });
        this
    }

    fn layer(&mut self, position: usize) -> &mut Layer {
        &mut self.manifest.as_mut().unwrap().layers[position]
    }

    fn fetched(&self) -> usize {
        self.fetched.load(Ordering::SeqCst)
    }
}

impl Source for Fake {
    fn manifest(&self, _: &Platform) -> Result<Manifest, SourceError> {
        Ok(self.manifest.clone().unwrap())
    }

    fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + Send>, SourceError> {
        self.fetched.fetch_add(1, Ordering::SeqCst);
        match self.stored.get(&layer.position) {
            Some(bytes) => Ok(Box::new(io::Cursor::new(bytes.clone()))),
            None => Err(SourceError::Image {
                what: "fake".to_owned(),
                why: "has no such layer".to_owned(),
            }),
        }
    }
}

fn base() -> Vec<u8> {
    Tar::new()
        .dir("etc")
        .file("etc/a", b"lower a")
        .file("etc/b", b"lower b")
        .end()
}

fn top() -> Vec<u8> {
    Tar::new()
        .dir("etc")
        .file("etc/.wh.a", b"")
        .file("etc/c", b"upper c")
        .end()
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"));
    Fixture { dir, store }
}

impl Fixture {
    fn import(&self, fake: &Fake) -> Result<Imported, ImportError> {
        self.import_by(fake, &Options::default())
    }

    fn import_by(&self, fake: &Fake, options: &Options) -> Result<Imported, ImportError> {
        let source: Arc<dyn Source> = Arc::new(fake.clone());
        image(&self.store, &source, "fake:", options, Arc::new(()))
    }

    /// Files in a directory of the store.
    fn files(&self, sub: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("store").join(sub)) else {
            return Vec::new();
        };
        let mut all: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        all.sort();
        all
    }

    fn assert_nothing(&self, why: &str) {
        assert_eq!(self.files("images/sha256"), [] as [PathBuf; 0], "{why}");
        assert_eq!(self.files("tmp"), [] as [PathBuf; 0], "{why}");
    }
}

fn read(lower: &Lower, path: &str) -> Option<Vec<u8>> {
    let found = lower.resolve(path.as_bytes(), true).ok()?;
    let mut bytes = vec![0; 100];
    let n = lower.read(found.nid, 0, &mut bytes).unwrap();
    bytes.truncate(n);
    Some(bytes)
}

#[test]
fn an_image_is_its_layers_on_top_of_each_other() {
    let f = fixture();
    let fake = Fake::of(&[base(), top()]);
    let imported = f.import(&fake).unwrap();
    assert!(imported.fresh && imported.cost.layers == 2);
    let lower = imported.image.lower().unwrap();
    assert_eq!(read(&lower, "/etc/a"), None);
    assert_eq!(read(&lower, "/etc/b").unwrap(), b"lower b");
    assert_eq!(read(&lower, "/etc/c").unwrap(), b"upper c");
    let record = imported.image.record();
    assert_eq!(record.config.as_ref().unwrap()["Cmd"][0], "/bin/sh");
    assert_eq!(record.layers.len(), 2);
    assert_eq!(f.files("tmp"), [] as [PathBuf; 0]);
    assert!(
        f.store
            .verify(None, &mut |_| ())
            .unwrap()
            .iter()
            .all(|verdict| verdict.problem.is_none())
    );
    // By each of its digests, and by what a person writes of them.
    let own = record.digest.unwrap();
    for other in [Digest::of(b"index"), Digest::of(b"manifest"), own] {
        assert_eq!(f.store.find(&other.to_string()).unwrap(), own);
        assert_eq!(f.store.find(&other.hex()[..8]).unwrap(), own);
        f.store.image(&other).unwrap();
    }
}

#[test]
fn what_is_there_is_not_fetched() {
    let f = fixture();
    let fake = Fake::of(&[base(), top()]);
    f.import(&fake).unwrap();
    assert!(!f.import(&fake).unwrap().fresh);
    assert_eq!(fake.fetched(), 2);
    let other = Fake::of(&[base(), Tar::new().file("x", b"x").end()]);
    let imported = f.import(&other).unwrap();
    assert_eq!((other.fetched(), imported.cost.shared), (1, 1));
    assert_eq!(f.files("blobs/sha256").len(), 3);
    // Another manifest of the same configuration is the same image by one more name.
    let mut again = fake.clone();
    let another = Digest::of(b"zstd manifest");
    again.manifest.as_mut().unwrap().manifest = Some(another);
    assert!(!f.import(&again).unwrap().fresh);
    assert!(f.store.image(&another).is_ok());
}

#[test]
fn a_layer_may_come_twice_and_the_empty_one_too() {
    let f = fixture();
    let empty = Tar::new().end();
    let fake = Fake::of(&[base(), empty.clone(), top(), empty, base()]);
    let imported = f.import(&fake).unwrap();
    assert_eq!(imported.image.record().layers.len(), 5);
    assert_eq!(f.files("blobs/sha256").len(), 3);
    let lower = imported.image.lower().unwrap();
    assert_eq!(read(&lower, "/etc/a").unwrap(), b"lower a");
}

#[test]
fn two_at_once_share_the_work() {
    let f = fixture();
    let layers: Vec<Vec<u8>> = (0..8)
        .map(|n| Tar::new().file(&format!("f{n}"), &[n; 5000]).end())
        .collect();
    let fake = Fake::of(&layers);
    let started = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                started.wait();
                f.import(&fake).unwrap();
            });
        }
    });
    assert_eq!(fake.fetched(), 8);
}

/// What is made wrong, and words that must be in the error.
type Damage = (&'static str, fn(&mut Fake), &'static [&'static str]);

#[test]
fn what_is_wrong_fails_and_leaves_nothing() {
    let damages: [Damage; 11] = [
        (
            "digest",
            |f| f.layer(0).digest = Some(Digest::of(b"?")),
            &["layer 1", "its digest is", "should be"],
        ),
        (
            "diff ID",
            |f| f.layer(1).diff_id = Digest::of(b"?"),
            &["layer 2", "diff ID", "the image says"],
        ),
        (
            "longer than it says",
            |f| f.layer(0).len = f.layer(0).len.map(|len| len - 1),
            &["layer 1", "is longer than"],
        ),
        (
            "shorter than it says",
            |f| f.layer(1).len = f.layer(1).len.map(|len| len + 1),
            &["layer 2", "it should have"],
        ),
        (
            "cut off",
            |f| {
                let stored = f.stored.get_mut(&0).unwrap();
                stored.truncate(stored.len() - 20);
            },
            &["layer 1", "ends after"],
        ),
        (
            "a bit flipped",
            |f| {
                let stored = f.stored.get_mut(&0).unwrap();
                let middle = stored.len() / 2;
                stored[middle] ^= 1;
            },
            &["layer 1"],
        ),
        (
            "not there",
            |f| drop(f.stored.remove(&1)),
            &["fake: has no such layer"],
        ),
        (
            "no tar",
            |f| *f = Fake::of(&[b"not a tar at all, but some text".repeat(50)]),
            &["layer 1", "not a tar"],
        ),
        (
            "an entry that cannot be",
            |f| *f = Fake::of(&[base(), Tar::new().hard_link("x", "nowhere").end()]),
            &["nowhere"],
        ),
        (
            "bytes behind the gzip",
            |f| f.stored.get_mut(&0).unwrap().extend_from_slice(b"garbage"),
            &["layer 1"],
        ),
        (
            "bzip2",
            |f| drop(f.stored.insert(1, b"BZh91AY&SY0000000000".to_vec())),
            &["bzip2"],
        ),
    ];
    for (what, damage, words) in damages {
        let f = fixture();
        let mut fake = Fake::of(&[base(), top()]);
        damage(&mut fake);
        let error = f.import(&fake).map(drop).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{what}: {error}");
        }
        assert!(!error.contains('\n'), "{what}: {error}");
        f.assert_nothing(what);
        // The right one comes after the wrong one.
        f.import(&Fake::of(&[base(), top()])).unwrap();
    }
}

#[test]
fn a_bomb_ends_at_the_bound() {
    let f = fixture();
    let bomb = Fake::of(&[Tar::new().file("zeros", &vec![0; 20 << 20]).end()]);
    let options = Options {
        max_bytes: Some(1 << 20),
        ..Options::default()
    };
    let error = f.import_by(&bomb, &options).map(drop).unwrap_err();
    assert!(matches!(error, ImportError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("--max-bytes"), "{error}");
    f.assert_nothing("a bomb");
    assert_eq!(f.files("blobs/sha256"), [] as [PathBuf; 0]);
}

#[test]
fn a_layer_that_went_missing_is_said_and_comes_again() {
    let f = fixture();
    let fake = Fake::of(&[base(), top()]);
    let own = f.import(&fake).unwrap().image.record().digest.unwrap();
    let layer = fake.manifest.as_ref().unwrap().layers[1].diff_id;
    let path = f
        .dir
        .path()
        .join(format!("store/blobs/sha256/{}.tar", layer.hex()));
    let damages: [&dyn Fn(); 2] = [&|| std::fs::remove_file(&path).unwrap(), &|| {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"short").unwrap();
    }];
    for damage in damages {
        damage();
        let error = f.store.image(&own).unwrap_err();
        assert!(
            matches!(&error, StoreError::Layer { layer: l, .. } if *l == layer),
            "{error}"
        );
        assert!(
            f.store
                .verify(None, &mut |_| ())
                .unwrap()
                .iter()
                .any(|verdict| verdict.problem.is_some())
        );
        assert!(f.import(&fake).unwrap().fresh);
        f.store.image(&own).unwrap();
    }
}

#[test]
fn a_configuration_that_no_record_holds_is_refused() {
    let f = fixture();
    let fake = |depth: usize| {
        let mut fake = Fake::of(&[base()]);
        let manifest = fake.manifest.as_mut().unwrap();
        let config: serde_json::Value = serde_json::from_slice(&manifest.config_json).unwrap();
        let rootfs = &config["rootfs"];
        // Each number is a line of its own in image.json, indented by all that it stands in.
        let (open, shut) = ("[".repeat(depth), "]".repeat(depth));
        let numbers = vec!["0"; 100_000].join(",");
        let json = format!(r#"{{"config":{{"x":{open}{numbers}{shut}}},"rootfs":{rootfs}}}"#);
        manifest.config_json = json.into_bytes();
        manifest.config = Digest::of(&manifest.config_json);
        fake
    };
    f.import(&fake(1)).unwrap();
    f.store
        .remove(&fake(1).manifest.unwrap().config.to_string())
        .unwrap();
    let error = f.import(&fake(100)).unwrap_err().to_string();
    assert!(error.contains("configuration is too large"), "{error}");
    f.assert_nothing(&error);
}

#[test]
fn what_is_used_stays_and_what_is_not_goes() {
    let f = fixture();
    let all = GcOptions {
        high: None,
        low: None,
        all: true,
        min_age: Duration::ZERO,
        dry_run: false,
    };
    let imported = f.import(&Fake::of(&[base(), top()])).unwrap();
    let lower = imported.image.lower().unwrap();
    drop(imported);
    assert!(
        f.store
            .collect(&all)
            .unwrap()
            .decisions
            .iter()
            .all(|d| !d.goes)
    );
    assert_eq!(read(&lower, "/etc/b").unwrap(), b"lower b");
    drop(lower);
    let dry = GcOptions {
        dry_run: true,
        ..all.clone()
    };
    let would = f.store.collect(&dry).unwrap();
    assert_eq!(would.freed, would.before);
    assert_eq!(f.files("blobs/sha256").len(), 2);
    let done = f.store.collect(&all).unwrap();
    assert_eq!(done.freed, would.freed);
    f.assert_nothing("gc --all");
    assert_eq!(f.files("blobs/sha256"), [] as [PathBuf; 0]);
    assert_eq!(f.store.bytes().unwrap(), 0);
}

#[test]
fn a_link_where_a_layer_should_be_is_refused_and_nobody_waits() {
    let f = fixture();
    let fake = Fake::of(&[base()]);
    drop(f.import(&fake).unwrap());
    let layer = f.files("blobs/sha256").pop().unwrap();
    let elsewhere = f.dir.path().join("moved.tar");
    std::fs::rename(&layer, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &layer).unwrap();
    let own = fake.manifest.as_ref().unwrap().config;
    let error = f.store.image(&own).unwrap_err().to_string();
    assert!(error.contains("is not a regular file"), "{error}");
    let other = Fake::of(&[base(), top()]);
    let error = f.import(&other).unwrap_err().to_string();
    assert!(error.contains(&*layer.to_string_lossy()), "{error}");
    // An import of the image itself replaces it.
    f.import(&fake).unwrap();
    assert!(layer.symlink_metadata().unwrap().is_file());
    assert!(elsewhere.exists());
}

#[test]
fn a_tar_from_a_stream_is_an_image_of_its_own_digest() {
    let f = fixture();
    let bytes = base();
    let stream = |bytes: Vec<u8>| Stream {
        input: Box::new(io::Cursor::new(bytes)),
        len: None,
    };
    let options = Options::default();
    let take = |bytes| tar(&f.store, stream(bytes), "-", &options, Arc::new(()));
    let imported = take(gzip(&bytes)).unwrap();
    assert_eq!(imported.image.record().digest, Some(Digest::of(&bytes)));
    assert!(!take(bytes).unwrap().fresh);
    let lower = imported.image.lower().unwrap();
    assert_eq!(read(&lower, "/etc/a").unwrap(), b"lower a");
    let archive = Tar::new().file("manifest.json", b"[]").end();
    let error = take(archive).map(drop).unwrap_err().to_string();
    assert!(error.contains("docker-archive:"), "{error}");
    assert_eq!(f.files("tmp"), [] as [PathBuf; 0]);
}

#[test]
fn the_events_tell_of_each_layer() {
    #[derive(Default)]
    struct Told(Mutex<Vec<Event>>);
    impl Watch for Told {
        fn on(&self, event: Event) {
            self.0.lock().unwrap().push(event);
        }
    }
    let f = fixture();
    let fake = Fake::of(&[base(), top()]);
    let told = Arc::new(Told::default());
    let source: Arc<dyn Source> = Arc::new(fake.clone());
    image(
        &f.store,
        &source,
        "fake:",
        &Options::default(),
        told.clone(),
    )
    .unwrap();
    let told = told.0.lock().unwrap();
    assert_eq!(told[0], Event::Layers(2));
    for layer in &fake.manifest.as_ref().unwrap().layers {
        let read: u64 = told
            .iter()
            .filter_map(|event| match event {
                Event::Read(position, bytes) if *position == layer.position => Some(bytes),
                _ => None,
            })
            .sum();
        assert_eq!(Some(read), layer.len);
        assert!(told.contains(&Event::Done(layer.position)));
    }
    assert_eq!(told.last(), Some(&Event::Indexing));
}

#[test]
fn an_index_means_the_image_for_this_machine() {
    let f = fixture();
    let (mine, others) = (Fake::of(&[base()]), Fake::of(&[top()]));
    let elsewhere = Options {
        platform: "linux/other".parse().unwrap(),
        ..Options::default()
    };
    let index = Digest::of(b"index");
    let own = |imported: Imported| imported.image.record().digest.unwrap();
    let other = own(f.import_by(&others, &elsewhere).unwrap());
    assert_eq!(f.store.find(&index.to_string()).unwrap(), other);
    let here = own(f.import(&mine).unwrap());
    assert_eq!(f.store.find(&index.to_string()).unwrap(), here);
    f.import_by(&others, &elsewhere).unwrap();
    assert_eq!(f.store.find(&index.to_string()).unwrap(), here);
}

#[test]
fn regression_processor_time_is_counted_once() {
    let f = fixture();
    let bytes = vec![7; 2 << 20];
    let layers = [0, 1, 2].map(|n| Tar::new().file(&format!("f{n}"), &bytes).end());
    let start = crate::sys::clock::process_cpu();
    let cost = f.import(&Fake::of(&layers)).unwrap().cost;
    let spent = crate::sys::clock::process_cpu() - start;
    assert!(cost.decompressing > Duration::ZERO && cost.hashing > Duration::ZERO);
    assert!(
        cost.decompressing + cost.hashing <= spent,
        "{cost:?} of {spent:?}"
    );
}

#[test]
fn names_lead_to_images() {
    let f = fixture();
    let one = f.import(&Fake::of(&[base()])).unwrap();
    let two = f.import(&Fake::of(&[top()])).unwrap();
    let digest = |imported: &Imported| imported.image.record().digest.unwrap();
    let name = "debian:12".parse().unwrap();
    f.store.tag(&digest(&one), &name).unwrap();
    f.store.tag(&digest(&two), &name).unwrap();
    assert_eq!(f.store.find("debian:12").unwrap(), digest(&two));
    assert!(matches!(
        f.store.find("debian"),
        Err(StoreError::NoImage { .. })
    ));
    // In use by this test.
    assert!(matches!(
        f.store.remove("debian:12"),
        Err(StoreError::InUse { .. })
    ));
    let own = digest(&two);
    drop(two);
    f.store.tag(&own, &"other".parse().unwrap()).unwrap();
    f.store.remove("debian:12").unwrap();
    assert!(f.store.image(&own).is_ok(), "it has another name");
    let removed = f.store.remove("other").unwrap();
    assert_eq!((removed.image, removed.layers.len()), (Some(own), 1));
    assert!(f.store.image(&own).is_err());
    assert!(Path::new(&f.store.dir().join("names")).exists());
}
