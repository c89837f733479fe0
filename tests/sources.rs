//! An image that umoci made, as skopeo, buildah, podman and tar hand it on: the configuration and
//! the uncompressed layers are the same from each.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use common::{Sandbox, has, ok};
use tarnfs::compress::{Format, decoder};
use tarnfs::digest::{Digest, Hashed};
use tarnfs::source::{Location, Manifest, Platform, Source, SourceError, parse};

fn find(text: &str) -> Location {
    parse(text.as_ref()).unwrap().unwrap()
}

/// The image of `text`, and how its layers are compressed. Each layer is read to its end and has
/// the digests that it should have.
fn read(text: &str) -> (Manifest, Vec<Format>) {
    try_read(text, "linux/amd64").unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn try_read(text: &str, platform: &str) -> Result<(Manifest, Vec<Format>), SourceError> {
    let platform: Platform = platform.parse()?;
    let source: Box<dyn Source> = find(text).open_local()?.unwrap();
    let manifest = source.manifest(&platform)?;
    let mut formats = Vec::new();
    for layer in &manifest.layers {
        let mut stored = Hashed::new(source.layer(layer)?);
        let mut plain = decoder(&mut stored).unwrap();
        formats.push(plain.format());
        let mut bytes = Vec::new();
        plain.read_to_end(&mut bytes).unwrap();
        drop(plain);
        assert_eq!(Digest::of(&bytes), layer.diff_id, "{text}");
        let (digest, len) = stored.finish();
        assert_eq!(layer.len, Some(len), "{text}");
        assert!(layer.digest.is_none_or(|told| told == digest), "{text}");
    }
    assert_eq!(manifest.config, Digest::of(&manifest.config_json));
    Ok((manifest, formats))
}

fn diff_ids(manifest: &Manifest) -> Vec<Digest> {
    manifest.layers.iter().map(|layer| layer.diff_id).collect()
}

/// A layout with an image of three layers, called `a`, that umoci made; `None` where it cannot.
fn umoci(sandbox: &Sandbox) -> Option<PathBuf> {
    if !has("umoci") {
        return None;
    }
    let layout = sandbox.at("layout");
    let shown = layout.to_str().unwrap();
    let image = format!("{shown}:a");
    ok("umoci", ["init", "--layout", shown]);
    ok("umoci", ["new", "--image", &image]);
    for n in ["1", "2"] {
        let bundle = sandbox.at(format!("bundle{n}"));
        let bundle = bundle.to_str().unwrap();
        ok("umoci", ["unpack", "--rootless", "--image", &image, bundle]);
        let root = Path::new(bundle).join("rootfs");
        fs::write(root.join(n), n.repeat(300_000)).unwrap();
        fs::create_dir_all(root.join("dir")).unwrap();
        ok("umoci", ["repack", "--image", &image, bundle]);
    }
    let file = sandbox.at("file");
    fs::write(&file, "inserted").unwrap();
    let args = ["insert", "--rootless", "--image", &image];
    ok(
        "umoci",
        args.into_iter()
            .chain([file.to_str().unwrap(), "/dir/file"]),
    );
    Some(layout)
}

fn skopeo(args: &[&str]) {
    ok(
        "skopeo",
        [&["--insecure-policy", "copy", "--quiet"], args].concat(),
    );
}

#[test]
fn each_transport_of_skopeo_gives_the_same_image() {
    let sandbox = Sandbox::new();
    let Some(layout) = umoci(&sandbox) else {
        return;
    };
    let from = format!("oci:{}:a", layout.display());
    let (want, formats) = read(&from);
    assert_eq!(formats, [Format::Gzip; 3]);
    assert_eq!(want.layers.len(), 3);
    let bare = read(&format!("oci:{}", layout.display())).0;
    assert_eq!(bare, want);
    let digest = want.manifest.unwrap();
    let by_digest = read(&format!("oci:{}@{digest}", layout.display())).0;
    assert_eq!(by_digest, want);
    if !has("skopeo") {
        return;
    }
    let (gzip, zstd, plain) = (Format::Gzip, Format::Zstd, Format::Plain);
    let cases: [(&str, &str, &[&str], Format); 11] = [
        ("oci:", ":x", &[], gzip),
        ("oci:", "", &["--dest-compress-format=zstd"], zstd),
        ("oci:", ":docker.io/library/x:1", &[], gzip),
        ("oci-archive:", ":x", &[], gzip),
        ("oci-archive:", "", &["--dest-compress-format=zstd"], zstd),
        ("docker-archive:", ":x/y:z", &[], plain),
        ("docker-archive:", "", &[], plain),
        ("dir:", "", &[], gzip),
        ("dir:", "", &["--format=v2s2"], gzip),
        ("dir:", "", &["--dest-decompress"], plain),
        (
            "dir:",
            "",
            &["--dest-compress", "--dest-compress-format=zstd"],
            zstd,
        ),
    ];
    for (n, (prefix, tag, options, format)) in cases.into_iter().enumerate() {
        let to = format!("{prefix}{}{tag}", sandbox.at(format!("to{n}")).display());
        skopeo(&[options, &[&from, &to]].concat());
        let (got, formats) = read(&to);
        // What skopeo compresses anew it may leave as it is where nothing is gained.
        assert!(formats.contains(&format), "{to} {options:?}: {formats:?}");
        assert_eq!(got.config_json, want.config_json, "{to} {options:?}");
        assert_eq!(diff_ids(&got), diff_ids(&want), "{to} {options:?}");
    }
}

#[test]
fn an_oci_layout_with_dockers_manifest_is_both_archives() {
    let sandbox = Sandbox::new();
    let Some(layout) = umoci(&sandbox) else {
        return;
    };
    let (want, _) = read(&format!("oci:{}:a", layout.display()));
    // What Docker writes since version 25.
    let blob = |digest: Digest| format!("\"blobs/sha256/{}\"", digest.hex());
    let layers: Vec<String> = want
        .layers
        .iter()
        .filter_map(|l| l.digest.map(blob))
        .collect();
    let json = format!(
        "[{{\"Config\": {}, \"RepoTags\": [\"a:b\"], \"Layers\": [{}]}}]",
        blob(want.config),
        layers.join(",")
    );
    fs::write(layout.join("manifest.json"), json).unwrap();
    let tar = sandbox.at("saved.tar");
    common::pack(&layout, &tar, &[]);
    let (archive, _) = read(&format!("oci-archive:{}:a", tar.display()));
    assert_eq!(archive, want);
    let (docker, _) = read(&format!("docker-archive:{}:a:b", tar.display()));
    assert_eq!(docker.layers, want.layers);
    assert_eq!(docker.config_json, want.config_json);
    if has("gzip") {
        ok("gzip", [&tar]);
        let error = try_read(
            &format!("docker-archive:{}.gz", tar.display()),
            "linux/amd64",
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("decompress it first (`gzip -d`)"), "{error}");
    }
}

#[test]
fn buildahs_list_of_platforms_is_chosen_from() {
    let sandbox = Sandbox::new();
    if !has("buildah") || !has("skopeo") {
        return;
    }
    let Some(layout) = umoci(&sandbox) else {
        return;
    };
    let from = format!("oci:{}:a", layout.display());
    let own = ["--root", "--runroot"].map(|option| {
        let dir = sandbox.dir(option.trim_start_matches('-'));
        format!("{option}={}", dir.display())
    });
    let buildah = |args: &[&str]| {
        let base = ["--storage-driver=vfs", &own[0], &own[1]];
        ok("buildah", [&base, args].concat())
    };
    buildah(&["manifest", "create", "list"]);
    // A list has a manifest but once: the second is the same image in another compression.
    let zstd = format!("oci:{}:z", sandbox.at("zstd").display());
    skopeo(&["--dest-compress-format=zstd", &from, &zstd]);
    for (arch, image) in [("--arch=arm64", &zstd), ("--arch=amd64", &from)] {
        buildah(&["manifest", "add", "--os=linux", arch, "list", image]);
    }
    let to = sandbox.at("multi");
    let multi = format!("oci:{}:m", to.display());
    buildah(&["manifest", "push", "--all", "list", &multi]);
    let (want, _) = read(&from);
    let (got, _) = read(&multi);
    assert_eq!(got.manifest, want.manifest);
    assert_ne!(got.index, None);
    let (other, formats) = try_read(&multi, "linux/arm64/v8").unwrap();
    assert_eq!(diff_ids(&other), diff_ids(&want));
    assert!(formats.contains(&Format::Zstd), "{formats:?}");
    let error = try_read(&multi, "linux/s390x").unwrap_err().to_string();
    assert!(
        error.contains("no image for linux/s390x; there are linux/"),
        "{error}"
    );
    // With all of its manifests in skopeo's directory.
    let dir = format!("dir:{}", sandbox.at("dir").display());
    skopeo(&["--all", &multi, &dir]);
    let (got, _) = read(&dir);
    assert_eq!(diff_ids(&got), diff_ids(&want));
    assert_ne!(got.index, None);
}

#[test]
fn podmans_archive_of_several_images_is_chosen_from() {
    let sandbox = Sandbox::new();
    if !has("podman") || !has("skopeo") {
        return;
    }
    let Some(layout) = umoci(&sandbox) else {
        return;
    };
    let from = format!("oci:{}:a", layout.display());
    let (root, runroot) = (sandbox.dir("root"), sandbox.dir("runroot"));
    let place = format!("[vfs@{}+{}]", root.display(), runroot.display());
    for name in ["localhost/one:1", "localhost/two:2"] {
        let to = format!("containers-storage:{place}{name}");
        skopeo(&[&from, &to]);
    }
    let tar = sandbox.at("podman.tar");
    ok(
        "podman",
        [
            "--storage-driver=vfs",
            &format!("--root={}", root.display()),
            &format!("--runroot={}", runroot.display()),
            "save",
            "--multi-image-archive",
            &format!("--output={}", tar.display()),
            "localhost/one:1",
            "localhost/two:2",
        ],
    );
    let (want, _) = read(&from);
    for name in ["localhost/one:1", "localhost/two:2"] {
        let (got, _) = read(&format!("docker-archive:{}:{name}", tar.display()));
        assert_eq!(got.config_json, want.config_json, "{name}");
        assert_eq!(diff_ids(&got), diff_ids(&want), "{name}");
    }
    let none = format!("docker-archive:{}:three", tar.display());
    let error = try_read(&none, "linux/amd64").unwrap_err().to_string();
    assert!(
        error.contains("localhost/one:1, :localhost/two:2"),
        "{error}"
    );
}
