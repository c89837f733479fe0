//! Each file of an image: gone, damaged, of another length or kind, or changing.

use std::io::ErrorKind;
use std::os::unix::fs::symlink;

use super::*;

#[test]
fn each_file_is_checked() {
    type Change = fn(&Path);
    let cases: [(&str, Option<Change>, &str); 14] = [
        ("oci-layout", None, "not an OCI image layout"),
        ("index.json", None, "index.json: is missing"),
        ("manifest", None, "is missing"),
        ("config", None, "is missing"),
        ("layer", None, "is missing"),
        (
            "index.json",
            Some(|path| fs::write(path, "{").unwrap()),
            "not the JSON",
        ),
        (
            "index.json",
            Some(|path| fs::write(path, "").unwrap()),
            "not a JSON object",
        ),
        (
            "index.json",
            Some(|path| fs::File::create(path).unwrap().set_len(1 << 30).unwrap()),
            "1073741824 bytes long; at most",
        ),
        ("manifest", Some(other_bytes), "damaged: its digest is"),
        ("config", Some(other_bytes), "damaged: its digest is"),
        (
            "manifest",
            Some(longer),
            "bytes long, and its descriptor says",
        ),
        (
            "config",
            Some(longer),
            "bytes long, and its descriptor says",
        ),
        (
            "layer",
            Some(longer),
            "16 bytes long, and its descriptor says 15",
        ),
        (
            "layer",
            Some(|path| fs::create_dir(path).unwrap()),
            "is a directory",
        ),
    ];
    for (file, change, why) in cases {
        eprintln!("{file} {why}");
        for prefix in ["oci", "dir"] {
            let image = good();
            let there = tempfile::tempdir().unwrap();
            let place = there.path().join("place");
            let (files, blobs) = match prefix {
                "oci" => (image.files.clone(), "blobs/sha256/"),
                _ => (dir(&image), ""),
            };
            let blob = |bytes: &[u8]| format!("{blobs}{}", Digest::of(bytes).hex());
            let name = match (file, prefix) {
                ("manifest", "oci") => blob(&image.manifest),
                ("config", _) => blob(&image.config),
                ("layer", _) => blob(LAYERS[1]),
                ("manifest", _) => continue,
                (other, "oci") => other.to_owned(),
                _ => continue,
            };
            write(&place, &files);
            let path = place.join(name);
            let before = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            if let Some(change) = change {
                if why.contains("damaged") || why.contains("descriptor") {
                    fs::write(&path, before).unwrap();
                }
                change(&path);
            }
            refused(open(prefix, &place), &place, why);
        }
    }
}

fn other_bytes(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[1] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn longer(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes.push(b'\n');
    fs::write(path, bytes).unwrap();
}

#[test]
fn blobs_may_be_links_to_regular_files_and_nothing_else() {
    let image = good();
    let there = tempfile::tempdir().unwrap();
    let place = there.path().join("oci");
    write(&place, &image.files);
    let layer = place.join(blob(LAYERS[0]));
    let kept = there.path().join("kept");
    fs::rename(&layer, &kept).unwrap();
    symlink(&kept, &layer).unwrap();
    open("oci", &place).unwrap();
    for (target, why) in [
        ("/dev/zero", "is a character device"),
        ("nowhere", "is missing"),
        ("/", "is a directory"),
    ] {
        fs::remove_file(&layer).unwrap();
        symlink(target, &layer).unwrap();
        refused(open("oci", &place), &place, why);
    }
    for name in [
        blob(LAYERS[0]),
        blob(&image.config),
        blob(&image.manifest),
        "index.json".into(),
    ] {
        let path = place.join(name);
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        refused(open("oci", &place), &place, "is a FIFO, not a regular file");
    }
}

#[test]
fn a_layer_that_shrinks_while_it_is_read_is_an_error() {
    let image = good();
    let there = tempfile::tempdir().unwrap();
    let place = there.path().join("oci");
    write(&place, &image.files);
    let text = format!("oci:{}", place.display());
    let source = parse(text.as_ref())
        .unwrap()
        .unwrap()
        .open_local()
        .unwrap()
        .unwrap();
    let manifest = source.manifest(&"linux/amd64".parse().unwrap()).unwrap();
    let layer = &manifest.layers[0];
    let path = place.join(blob(LAYERS[0]));
    let mut stream = source.layer(layer).unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(7)
        .unwrap();
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(
        error.to_string().contains("layer 1: 8 bytes are missing"),
        "{error}"
    );
    let error = source.layer(layer).err().unwrap().to_string();
    assert!(error.contains("changed meanwhile"), "{error}");
}
