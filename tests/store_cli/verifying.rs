//! `verify`, `--repair`, and damage that commands meet.

use std::fs;
use std::path::PathBuf;

use super::common::image::{Stored, root, sparse_root, xz};
use super::common::{Sandbox, can_mount, text};
use super::{bad, blob, entry, flip, good, import, json, layer, replace};

/// An image with a side blob, and what each of its files is.
struct Victim {
    sandbox: Sandbox,
    layers: Vec<Stored>,
    digest: String,
}

impl Victim {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let layers = vec![
            Stored::zstd(&root("it", 20_000)),
            Stored::gzip(&sparse_root()),
            layer("top"),
        ];
        let digest = import(&sandbox, "it", &layers);
        Self {
            sandbox,
            layers,
            digest,
        }
    }

    fn entry(&self, name: &str) -> PathBuf {
        entry(&self.sandbox, &self.digest).join(name)
    }

    fn blob(&self) -> PathBuf {
        blob(&self.sandbox, &self.layers[0])
    }

    /// All is right, and the files are what they were.
    fn assert_whole(&self, what: &str) {
        let said = good(&self.sandbox, &["verify"]);
        assert_eq!(said, "1 images, 3 layers, 0 faults\n", "{what}");
        let os = good(&self.sandbox, &["cat", "it", "etc/os-release"]);
        assert_eq!(os, "NAME=it\n", "{what}");
        let sparse = good(&self.sandbox, &["cat", "it", "sparse"]);
        assert!(sparse.contains("ssss"), "{what}");
    }
}

type Harm = (&'static str, fn(&Victim), &'static str);

const HARMS: [Harm; 12] = [
    (
        "a bit of a layer",
        |v| flip(&v.blob(), b""),
        "its digest is",
    ),
    (
        "a short layer",
        |v| replace(&v.blob(), &fs::read(v.blob()).unwrap()[..5000]),
        "5000 bytes instead of",
    ),
    (
        "a missing layer",
        |v| fs::remove_file(v.blob()).unwrap(),
        "is missing",
    ),
    (
        "an empty layer",
        |v| replace(&v.blob(), b""),
        "0 bytes instead of",
    ),
    (
        "a bit of the index",
        |v| flip(&v.entry("index.erofs"), b"os-release"),
        "its index is damaged",
    ),
    (
        "a missing index",
        |v| fs::remove_file(v.entry("index.erofs")).unwrap(),
        "its index is missing",
    ),
    (
        "a short index",
        |v| replace(&v.entry("index.erofs"), &[0; 4096]),
        "its index is damaged",
    ),
    (
        "a bit of the record",
        |v| flip(&v.entry("image.json"), b"{"),
        "image.json",
    ),
    (
        "an entry point in the record",
        |v| {
            let path = v.entry("image.json");
            let text = fs::read_to_string(&path).unwrap();
            let other = text.replacen(
                "\"config\": {}",
                "\"config\": {\"Entrypoint\": [\"/x\"]}",
                1,
            );
            assert_ne!(text, other);
            replace(&path, other.as_bytes());
        },
        "image.json",
    ),
    (
        "a bit of the configuration",
        |v| flip(&v.entry("config.json"), b"amd64"),
        "config.json is damaged",
    ),
    (
        "a missing configuration",
        |v| fs::remove_file(v.entry("config.json")).unwrap(),
        "config.json is missing",
    ),
    (
        "a bit of the side blob",
        |v| flip(&v.entry("side.blob"), b"sss"),
        "side blob",
    ),
];

/// Every kind of damage is found, and mended from where the image came from.
#[test]
fn damage_is_found_and_mended() {
    for (what, harm, why) in HARMS {
        let victim = Victim::new();
        victim.assert_whole(what);
        harm(&victim);
        let output = victim.sandbox.tarnfs(["verify"]);
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(output.stderr.is_empty(), "{what}: {}", text(&output.stderr));
        assert!(said.contains(why), "{what}: {said}");
        assert!(!said.contains(" 0 faults"), "{what}: {said}");
        let output = victim.sandbox.tarnfs(["verify", "--json", "it"]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let bad = told
            .as_array()
            .unwrap()
            .iter()
            .find(|v| !v["problem"].is_null());
        assert!(bad.is_some(), "{what}: {told}");
        let output = victim.sandbox.tarnfs(["verify", "--repair"]);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{what}: {said}");
        assert!(said.contains(why), "{what}: {said}");
        assert_eq!(
            text(&output.stdout),
            "1 images, 3 layers, 0 faults\n",
            "{what}"
        );
        victim.assert_whole(what);
        let told = json(&victim.sandbox, &["images", "--json"]);
        assert_eq!(told[0]["names"][0], "it", "{what}");
    }
}

/// An import of the same once more mends it as well.
#[test]
fn importing_again_mends() {
    for (what, harm, _) in HARMS {
        // What only reading finds, an import does not look for.
        if what.starts_with("a bit") || what.starts_with("an entry") || what.contains("config") {
            continue;
        }
        let victim = Victim::new();
        harm(&victim);
        let source = format!("oci:{}", victim.sandbox.at("it.oci").display());
        good(&victim.sandbox, &["import", &source]);
        victim.assert_whole(what);
    }
}

/// Without the place that it came from a layer cannot be mended, an index can.
#[test]
fn the_source_is_gone() {
    for (what, harm, _) in HARMS {
        let victim = Victim::new();
        fs::remove_dir_all(victim.sandbox.at("it.oci")).unwrap();
        harm(&victim);
        let output = victim.sandbox.tarnfs(["verify", "--repair"]);
        let said = text(&output.stderr);
        if what.contains("index") || what.contains("side blob") || what.contains("record") {
            assert!(output.status.success(), "{what}: {said}");
            victim.assert_whole(what);
            continue;
        }
        assert_eq!(output.status.code(), Some(1), "{what}");
        let last = said.lines().last().unwrap();
        for part in ["stays damaged", &victim.digest, "it.oci", "No such file"] {
            assert!(last.contains(part), "{what}: {part}: {said}");
        }
        assert!(
            said.lines().all(|line| line.starts_with("tarnfs: ")),
            "{said}"
        );
        // Whole again once the source is there.
        let dir = victim.sandbox.dir("it.oci");
        super::Layout::of(&victim.layers).write(&dir);
        let output = victim.sandbox.tarnfs(["verify", "--repair"]);
        assert!(output.status.success(), "{what}: {}", text(&output.stderr));
        victim.assert_whole(what);
    }
}

#[test]
fn the_source_was_a_stream() {
    let sandbox = Sandbox::new();
    let tar = root("it", 20_000);
    let packed = sandbox.at("it.tar.xz");
    fs::write(&packed, xz(&tar)).unwrap();
    let script = r#""$0" import --name it - < "$1""#;
    let mut command = std::process::Command::new("sh");
    command
        .env("TARNFS_STORE", sandbox.at("store"))
        .args(["-c", script, super::common::TARNFS])
        .arg(&packed);
    super::common::assert_ok(&super::common::run(command), "import -");
    let stored = Stored::plain(&tar);
    flip(&blob(&sandbox, &stored), b"");
    let output = sandbox.tarnfs(["verify", "--repair", "it"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("from standard input; import it again"),
        "{said}"
    );
    // From a file it comes again.
    good(&sandbox, &["import", "--name=it", packed.to_str().unwrap()]);
    good(&sandbox, &["verify"]);
    assert_eq!(
        good(&sandbox, &["cat", "it", "etc/os-release"]),
        "NAME=it\n"
    );
}

/// What is wrong is said when an image is asked for, and not by an I/O error later.
#[test]
fn damage_is_named_at_once() {
    for (what, harm, why) in HARMS {
        if what.starts_with("a bit of") || what.contains("config") || what.starts_with("an entry") {
            continue;
        }
        let victim = Victim::new();
        harm(&victim);
        let why = why
            .trim_start_matches("its index ")
            .replace("damaged", "bytes instead");
        let why = why.trim_start_matches("is ");
        let mut commands = vec![vec!["ls", "it"], vec!["cat", "it", "top"]];
        let mnt = victim.sandbox.dir("mnt");
        if can_mount() {
            commands.push(vec!["mount", "it", mnt.to_str().unwrap()]);
            commands.push(vec!["mount", "--engine=auto", "it", mnt.to_str().unwrap()]);
        }
        for command in commands {
            let said = bad(&victim.sandbox, &command);
            for part in [why, &victim.digest, "import the image again", "--repair"] {
                assert!(said.contains(part), "{what}: {command:?}: {part}: {said}");
            }
        }
    }
}

#[test]
fn verify_on_mount() {
    if !can_mount() {
        return;
    }
    let victim = Victim::new();
    let mount = victim
        .sandbox
        .mount("mnt", "it".as_ref(), &["--verify=on-mount"]);
    mount.unmount();
    flip(&victim.entry("index.erofs"), b"os-release");
    let mnt = victim.sandbox.at("mnt");
    let mnt = mnt.to_str().unwrap();
    for options in [&["--verify=on-mount"][..], &["-o", "verify=on-mount"]] {
        let said = bad(
            &victim.sandbox,
            &[&["mount"], options, &["it", mnt]].concat(),
        );
        for part in ["its index is damaged", &victim.digest, "--repair"] {
            assert!(said.contains(part), "{said}");
        }
    }
    let said = bad(&victim.sandbox, &["inspect", "it"]);
    assert!(said.contains("its index is damaged"), "{said}");
}

/// An image of which the record is no JSON can be removed, and does not hinder the others.
#[test]
fn an_unreadable_record() {
    let victim = Victim::new();
    let sandbox = &victim.sandbox;
    import(sandbox, "other", &[layer("other")]);
    replace(&victim.entry("image.json"), b"{");
    let told = json(sandbox, &["images", "--json"]);
    assert_eq!(told.as_array().unwrap().len(), 2);
    good(sandbox, &["images"]);
    let said = bad(sandbox, &["ls", "it"]);
    assert!(
        said.contains(&victim.digest) && said.contains("--repair"),
        "{said}"
    );
    good(sandbox, &["ls", "other"]);
    let said = good(sandbox, &["gc", "--all", "--min-age=0"]);
    assert!(said.contains("removed image"), "{said}");
    good(sandbox, &["rm", "it"]);
    assert_eq!(good(sandbox, &["images", "-q"]), "");
    good(sandbox, &["gc", "--min-age=0"]);
    assert!(!victim.blob().exists());
}
