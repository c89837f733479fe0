//! What others make of layers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};
use serde_json::{Value, json};
use tarnfs::digest::Digest;
use tarnfs::tar::{Entry, EntryKind, Reader};

use crate::common::walk::xattrs;
use crate::common::{Sandbox, ok};

/// Unpacks the layers as an image with `umoci unpack`; gives the root.
pub(crate) fn umoci(sandbox: &Sandbox, layers: &[PathBuf]) -> PathBuf {
    let layout = sandbox.fresh("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], kind: &str| -> Value {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest.to_string(),
            "size": bytes.len(),
        })
    };
    let of_layer = |tar: &PathBuf| blob(&fs::read(tar).unwrap(), "layer.v1.tar");
    let of_layers: Vec<Value> = layers.iter().map(of_layer).collect();
    let ids: Vec<&Value> = of_layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "config": blob(config.to_string().as_bytes(), "config.v1+json"),
        "layers": of_layers,
    });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "it" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();

    let bundle = sandbox.fresh("bundle");
    fs::remove_dir(&bundle).unwrap();
    let image = format!("{}:it", layout.display());
    ok(
        "umoci",
        ["unpack", "--image", &image, bundle.to_str().unwrap()],
    );
    bundle.join("rootfs")
}

/// Unpacks the layers with GNU tar, one over the other. Its own part is what tar does not know:
/// whiteouts, directories in the way of files, that a directory keeps its time where a layer only
/// adds to it, and that it loses the xattrs which a later entry for it does not have.
pub(crate) fn gnu_tar(sandbox: &Sandbox, layers: &[PathBuf]) -> PathBuf {
    let root = sandbox.fresh("unpacked");
    for layer in layers {
        let entries = entries(layer);
        let mut before = dir_times(&root);
        for entry in &entries {
            let path = root.join(std::ffi::OsStr::from_bytes(&entry.path));
            let name = path.file_name().unwrap_or_default().as_bytes();
            let dir = path.parent().unwrap();
            match name.strip_prefix(b".wh.") {
                Some(b".wh..opq") => {
                    for child in fs::read_dir(dir).into_iter().flatten() {
                        remove(&child.unwrap().path());
                    }
                }
                Some(name) => remove(&dir.join(std::ffi::OsStr::from_bytes(name))),
                None => {}
            }
        }
        for entry in &entries {
            let path = root.join(std::ffi::OsStr::from_bytes(&entry.path));
            if entry.kind != EntryKind::Dir && is_dir(&path) {
                remove(&path);
            }
        }
        before.retain(|path, _| is_dir(path));
        let told: Vec<PathBuf> = entries
            .iter()
            .filter(|entry| entry.kind == EntryKind::Dir)
            .map(|entry| root.join(std::ffi::OsStr::from_bytes(&entry.path)))
            .collect();
        for path in told.iter().filter(|path| is_dir(path)) {
            for (name, _) in xattrs(path) {
                rustix::fs::lremovexattr(path, name).unwrap();
            }
        }
        let (tar, to) = (layer.to_str().unwrap(), root.to_str().unwrap());
        ok(
            "tar",
            [
                "--xattrs",
                "--xattrs-include=*",
                "--numeric-owner",
                "--delay-directory-restore",
                "--exclude=.wh.*",
                "-xpf",
                tar,
                "-C",
                to,
            ],
        );
        for (path, time) in before {
            if is_dir(&path) && !told.contains(&path) {
                set_time(&path, time);
            }
        }
    }
    root
}

fn entries(tar: &Path) -> Vec<Entry> {
    let file = File::open(tar).unwrap();
    let mut reader = Reader::new(&file, tar).unwrap();
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        all.push(entry);
    }
    all
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

fn dir_times(root: &Path) -> BTreeMap<PathBuf, Timespec> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let meta = fs::symlink_metadata(&dir).unwrap();
        if meta.is_dir() {
            let listed = fs::read_dir(&dir).unwrap();
            todo.extend(listed.map(|entry| entry.unwrap().path()));
            let time = Timespec {
                tv_sec: meta.mtime(),
                tv_nsec: meta.mtime_nsec(),
            };
            all.insert(dir, time);
        }
    }
    all
}

fn set_time(path: &Path, time: Timespec) {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
