//! Images that go out, and come back: the same image on every machine, to every tool.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;
// Not in `common` itself: only tests of the store need it.
#[path = "common/stored.rs"]
mod stored;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::tarball::Tarball;
use common::walk::{assert_same, described};
use common::{Sandbox, assert_ok, can_mount, has, ok, run, text};
use serde_json::Value;
use stored::{content, damage, layer, tarnfs, tarnfs_ok};
use tarnfs::digest::Digest;
use tarnfs::stack::{NewLayer, Note, add_layer};
use tarnfs::store::Store;

/// A store with an image `base` of two layers, and a checkpoint on a checkpoint of it, `top`.
struct World {
    sandbox: Sandbox,
    store: PathBuf,
    top: Digest,
}

fn add(store: &Path, base: &Digest, id: &str, tar: &[u8]) -> Digest {
    let note = Note {
        id: id.to_owned(),
        comment: None,
        created: 1_700_000_000,
    };
    let write = |out: &mut NewLayer| out.write_all(tar);
    let made = add_layer(&Store::open(store), base, &note, write, &mut |_| ()).unwrap();
    made.digest
}

impl World {
    fn new() -> Self {
        Self::of(&[layer("base", 1, 50_000), layer("mid", 100, 50_000)])
    }

    /// With these layers as the base's.
    fn of(layers: &[Vec<u8>]) -> Self {
        let sandbox = Sandbox::new();
        let store = sandbox.at("store");
        stored::layout(&sandbox.at("layout"), layers);
        let from = format!("oci:{}", sandbox.at("layout").display());
        let base = tarnfs_ok(&store, &["import", "--name", "base", &from]);
        let base = base.trim_end().parse().unwrap();
        let one = Tarball::default()
            .file(b"base/file0", b"written")
            .file(b"mid/.wh.file1", b"")
            .file(b"gone", b"soon")
            .dir(b"new")
            .file(b"new/x", b"1")
            .hard_link(b"new/y", b"new/x");
        let two = Tarball::default()
            .file(b".wh.gone", b"")
            .file(b"new/z", b"2");
        let one = add(&store, &base, "one", &one.end());
        let top = add(&store, &one, "two", &two.end());
        tarnfs_ok(&store, &["tag", &top.to_string(), "top"]);
        Self {
            sandbox,
            store,
            top,
        }
    }

    fn at(&self, prefix: &str, name: &str) -> String {
        format!("{prefix}{}", self.sandbox.at(name).display())
    }

    /// `tarnfs export …`, which must succeed.
    fn export(&self, args: &[&str]) -> String {
        let out = tarnfs_ok(&self.store, &[&["export"], args].concat());
        out.trim_end().to_owned()
    }

    /// The one line of complaint of an export that must fail.
    fn refused(&self, args: &[&str]) -> String {
        let output = tarnfs(&self.store, &[&["export"], args].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.lines().count() == 1 && said.starts_with("tarnfs: "),
            "{said}"
        );
        said
    }
}

fn import(store: &Path, from: &str) -> String {
    tarnfs_ok(store, &["import", from]).trim_end().to_owned()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Each file below `dir` with what tells whether it was written again.
fn files(dir: &Path) -> BTreeMap<String, (u64, i64, u64, u64)> {
    let listed = fs::read_dir(dir).unwrap();
    let state = |path: PathBuf| {
        let meta = fs::metadata(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (
            name,
            (meta.ino(), meta.mtime_nsec(), meta.len(), meta.nlink()),
        )
    };
    listed.map(|entry| state(entry.unwrap().path())).collect()
}

#[test]
fn the_same_image_comes_back_from_everywhere() {
    let w = World::new();
    let (dir, file) = (w.at("oci:", "out:web"), w.at("oci-archive:", "out.tar:web"));
    let manifest = w.export(&["top", &dir]);
    assert_eq!(w.export(&["top", &file]), manifest);
    let first = fs::read(w.sandbox.at("out.tar")).unwrap();
    w.export(&["top", &file]);
    assert!(
        fs::read(w.sandbox.at("out.tar")).unwrap() == first,
        "not the same bytes"
    );
    let want = content(&w.store, "top");
    for (n, from) in [
        &dir,
        &file,
        &w.at("oci:", "out"),
        &w.at("oci-archive:", "out.tar"),
    ]
    .into_iter()
    .enumerate()
    {
        let other = w.sandbox.at(format!("other{n}"));
        assert_eq!(import(&other, from), w.top.to_string(), "{from}");
        assert_eq!(content(&other, &w.top.to_string()), want);
        // Known there as a chain still, and by its manifest.
        let squashed = tarnfs_ok(&other, &["squash", "--json", &manifest]);
        let squashed: Value = serde_json::from_str(&squashed).unwrap();
        assert_eq!(squashed["squashed"], 2);
        tarnfs_ok(&other, &["verify"]);
    }
    // As a stream without a name, which is the same but for that.
    let output = tarnfs(&w.store, &["export", "top", "-"]);
    assert_ok(&output, "export -");
    fs::write(w.sandbox.at("piped.tar"), &output.stdout).unwrap();
    w.export(&["top", &w.at("oci-archive:", "unnamed.tar")]);
    assert!(fs::read(w.sandbox.at("unnamed.tar")).unwrap() == output.stdout);
    let other = w.sandbox.at("piped");
    assert_eq!(
        import(&other, &w.at("oci-archive:", "piped.tar")),
        w.top.to_string()
    );
}

#[test]
fn a_layout_gets_one_image_more() {
    let w = World::new();
    let dir = w.sandbox.at("out");
    let base = w.export(&["base", &w.at("oci:", "out:base")]);
    let before = files(&dir.join("blobs/sha256"));
    let says = w.export(&["--json", "top", &w.at("oci:", "out:top")]);
    let says: Value = serde_json::from_str(&says).unwrap();
    assert_eq!(says["layers"]["written"], 2);
    assert_eq!(says["layers"]["there"], 2);
    assert_eq!(says["config"], w.top.to_string());
    let after = files(&dir.join("blobs/sha256"));
    for (name, state) in &before {
        assert_eq!(after.get(name), Some(state), "written again: {name}");
    }
    // Nothing of the store can be reached from there.
    let own = files(&w.store.join("blobs/sha256"));
    for (name, (ino, .., links)) in &after {
        assert_eq!(*links, 1, "{name}");
        assert!(own.values().all(|(known, ..)| known != ino), "{name}");
    }
    // Again, and under a name that another has: no more entries than names.
    w.export(&["top", &w.at("oci:", "out:top")]);
    let index = read_json(&dir.join("index.json"));
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(index["manifests"][0]["digest"], base);
    w.export(&["base", &w.at("oci:", "out:top")]);
    let index = read_json(&dir.join("index.json"));
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    let other = w.sandbox.at("other");
    assert_eq!(
        import(&other, &w.at("oci:", "out:top")),
        import(&other, &w.at("oci:", "out:base"))
    );
    let names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");

    // What others have in a layout stays.
    let mut index = read_json(&dir.join("index.json"));
    index["annotations"] = serde_json::json!({"a": "b"});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    w.export(&["top", &w.at("oci:", "out:more")]);
    let index = read_json(&dir.join("index.json"));
    assert_eq!(index["annotations"]["a"], "b");
    assert_eq!(index["manifests"].as_array().unwrap().len(), 3);
}

#[test]
fn who_has_the_base_gets_the_rest() {
    let w = World::new();
    let rest = w.at("oci-archive:", "rest.tar");
    let says = w.export(&["--json", "--since", "base", "top", &rest]);
    let says: Value = serde_json::from_str(&says).unwrap();
    assert_eq!(says["layers"]["left_out"], 2);
    assert_eq!(says["layers"]["written"], 2);
    let len = fs::metadata(w.sandbox.at("rest.tar")).unwrap().len();
    assert!(len < 20_000, "{len}");

    let other = w.sandbox.at("other");
    let output = tarnfs(&other, &["import", &rest]);
    let said = text(&output.stderr);
    assert!(
        !output.status.success() && said.lines().count() == 1,
        "{said}"
    );
    assert!(said.contains("import that one first"), "{said}");
    import(&other, &w.at("oci:", "layout"));
    let took = tarnfs_ok(&other, &["import", "--json", &rest]);
    let took: Value = serde_json::from_str(&took).unwrap();
    assert_eq!(took["digest"], w.top.to_string());
    assert_eq!(
        took["layers"],
        serde_json::json!({"fetched": 2, "shared": 2})
    );
    assert_eq!(
        content(&other, &w.top.to_string()),
        content(&w.store, "top")
    );
    // All is there: nothing but the documents goes.
    let says = w.export(&["--json", "--since", "top", "top", &w.at("oci:", "none")]);
    let says: Value = serde_json::from_str(&says).unwrap();
    assert_eq!(says["layers"]["left_out"], 4);
    assert_eq!(import(&other, &w.at("oci:", "none")), w.top.to_string());
}

#[test]
fn a_bare_tar_gets_a_configuration() {
    let w = World::new();
    let tar = w.sandbox.at("bare.tar");
    fs::write(&tar, layer("dir", 7, 9000)).unwrap();
    let own = import(&w.store, tar.to_str().unwrap());
    let local = w.export(&[tar.to_str().unwrap(), &w.at("oci:", "local")]);
    let stored = w.export(&["--json", &own, &w.at("oci:", "stored")]);
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["manifest"], local);
    let config = stored["config"].as_str().unwrap();
    assert_ne!(config, own);
    let other = w.sandbox.at("other");
    assert_eq!(import(&other, &w.at("oci:", "local")), config);
    assert_eq!(content(&other, config), content(&w.store, &own));
    // Here it is known by what it is called there.
    assert_eq!(content(&w.store, config), content(&w.store, &own));
    assert_eq!(import(&w.store, &w.at("oci:", "stored")), own);
    tarnfs_ok(&w.store, &["verify"]);
}

#[test]
fn what_fails_changes_nothing() {
    let w = World::new();
    let file = w.at("oci-archive:", "out.tar");
    w.export(&["base", &file]);
    let before = fs::read(w.sandbox.at("out.tar")).unwrap();
    let dir = w.at("oci:", "dir:x");
    w.export(&["base", &dir]);
    let index = fs::read(w.sandbox.at("dir/index.json")).unwrap();
    // A layer of the checkpoints, whose bytes are others than its name says.
    let small = stored::blobs(&w.store).pop().unwrap();
    damage(&small);
    for (dest, told) in [(&file, "out.tar"), (&dir, "dir")] {
        let said = w.refused(&["top", dest]);
        assert!(said.contains("is damaged: its digest is"), "{told}: {said}");
    }
    let output = tarnfs(&w.store, &["export", "top", "-"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(fs::read(w.sandbox.at("out.tar")).unwrap() == before);
    assert_eq!(fs::read(w.sandbox.at("dir/index.json")).unwrap(), index);

    let full = w.sandbox.dir("full");
    fs::write(full.join("x"), "").unwrap();
    fs::create_dir(w.sandbox.at("empty")).unwrap();
    for (dest, why) in [
        (w.at("oci:", "full"), "not empty, and no OCI image layout"),
        (w.at("oci:", "out.tar"), "Not a directory"),
        (w.at("oci:", "no/such/dir"), "No such file"),
        (w.at("oci-archive:", "full"), "directory"),
        (w.at("oci-archive:", "no/such"), "No such file"),
        (w.at("", "out.tar"), "oci:DIR"),
        ("oci-archive:/dev/full".to_owned(), "No space left"),
    ] {
        let said = w.refused(&["base", &dest]);
        assert!(said.contains(why), "{dest}: {said}");
    }
    fs::write(
        w.sandbox.at("dir/oci-layout"),
        r#"{"imageLayoutVersion":"2.0"}"#,
    )
    .unwrap();
    assert!(w.refused(&["base", &dir]).contains("version"));
    // An empty directory becomes one.
    w.export(&["base", &w.at("oci:", "empty")]);
    let left: Vec<_> = fs::read_dir(w.sandbox.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Killed before each change that it makes to its output: the old archive or the new one, a layout
/// that can be read, and the next export succeeds.
#[test]
fn who_is_killed_leaves_the_old_or_the_new() {
    if !has("strace") {
        return;
    }
    let w = World::new();
    let (file, dir) = (w.at("oci-archive:", "out.tar"), w.at("oci:", "dir"));
    w.export(&["top", &file]);
    let new = fs::read(w.sandbox.at("out.tar")).unwrap();
    w.export(&["base", &file]);
    let old = fs::read(w.sandbox.at("out.tar")).unwrap();
    let mut killed = 0;
    for dest in [&file, &dir] {
        for call in ["write", "fsync", "linkat", "renameat", "renameat2", "mkdir"] {
            for k in 1..=9 {
                fs::write(w.sandbox.at("out.tar"), &old).unwrap();
                if w.sandbox.at("dir").exists() {
                    fs::remove_dir_all(w.sandbox.at("dir")).unwrap();
                }
                let plain = stored::command(&w.store, &["export", "top", dest]);
                let mut command = Command::new("strace");
                let inject = format!("inject={call}:signal=SIGKILL:when={k}");
                command.args(["-f", "-o", "/dev/null", "-e", &inject]);
                command.arg(plain.get_program()).args(plain.get_args());
                if run(command).status.success() {
                    break;
                }
                killed += 1;
                let now = fs::read(w.sandbox.at("out.tar")).unwrap();
                assert!(now == old || now == new, "{dest}: {call} {k}");
                let other = w.sandbox.at("other");
                if w.sandbox.at("dir/index.json").exists() {
                    assert_eq!(import(&other, &dir), w.top.to_string(), "{call} {k}");
                }
                w.export(&["top", dest]);
                assert_eq!(import(&other, dest), w.top.to_string(), "{call} {k}");
            }
        }
    }
    assert!(killed > 10, "{killed}");
}

#[test]
fn other_tools_take_it() {
    // Without GNU tar's old sparse files, which umoci does not unpack.
    let plain = |dir: &str| {
        let mut tar = Tarball::default().dir(dir.as_bytes());
        for n in 0..3_u8 {
            let name = format!("{dir}/file{n}");
            tar = tar.file(name.as_bytes(), &vec![n; 700 * usize::from(n)]);
        }
        tar.end()
    };
    let w = World::of(&[plain("base"), plain("mid")]);
    let dir = w.at("oci:", "out:web");
    w.export(&["top", &dir]);
    w.export(&["top", &w.at("oci-archive:", "out.tar:web")]);
    if has("skopeo") {
        let to = w.at("dir:", "skopeo");
        ok(
            "skopeo",
            [
                "--insecure-policy",
                "copy",
                &w.at("oci-archive:", "out.tar:web"),
                &to,
            ],
        );
        let other = w.sandbox.at("by-skopeo");
        // skopeo keeps the configuration as it is, whatever it does to layers.
        assert_eq!(import(&other, &to), w.top.to_string());
        let says = ok("skopeo", ["inspect", "--config", &dir]);
        let says: Value = serde_json::from_str(&says).unwrap();
        let history = says["history"].as_array().unwrap();
        assert_eq!(
            history.last().unwrap()["created_by"],
            "tarnfs checkpoint two"
        );
    }
    if can_mount() && has("umoci") {
        let bundle = w.sandbox.at("bundle");
        let image = w.at("", "out:web");
        ok(
            "umoci",
            ["unpack", "--image", &image, bundle.to_str().unwrap()],
        );
        let mount = w.sandbox.mount("mount", Path::new("top"), &["--read-only"]);
        let (mut want, mut got) = (described(&bundle.join("rootfs")), described(mount.path()));
        // A directory that only a whiteout changes gets the time of the unpacking there.
        for tree in [&mut want, &mut got] {
            for (name, line) in tree.iter_mut() {
                if matches!(&name[..], b"" | b"mid" | b"base" | b"new") {
                    let (before, _) = line.split_once(" mtime ").unwrap();
                    *line = before.to_owned();
                }
            }
        }
        assert_same(&want, &got);
        mount.unmount();
    }
    if can_mount() && has("podman") {
        let at = |name: &str| w.sandbox.at(name).to_str().unwrap().to_owned();
        let storage = ["--root", &at("podman"), "--runroot", &at("podman-run")];
        let storage = [&storage[..], &["--storage-driver", "vfs"]].concat();
        let archive = at("out.tar");
        ok(
            "podman",
            [&storage[..], &["load", "-q", "-i", &archive]].concat(),
        );
        let ids = ok(
            "podman",
            [&storage[..], &["images", "-q", "--no-trunc"]].concat(),
        );
        assert!(ids.contains(&w.top.to_string()), "{ids}");
    }
}
