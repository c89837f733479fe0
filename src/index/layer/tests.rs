use super::*;
use crate::tar::testing::{Raw, Tar};

fn said(tar: Tar) -> String {
    let scanned = scan_layer(&tar.end()[..], Path::new("layer.tar"));
    scanned.expect_err("accepted").to_string()
}

#[test]
fn what_is_wrong_names_layer_entry_and_offset() {
    for (tar, entry) in [
        (Tar::new().file("a", b"").file("d/.wh.", b""), "d/.wh."),
        (Tar::new().file("a", b"").file("d/.wh..", b""), "d/.wh.."),
        (Tar::new().file("a", b"").file(".wh...", b""), ".wh..."),
        (Tar::new().dir("a").file(".wh.x/y", b""), ".wh.x/y"),
        (Tar::new().dir("l").file("l/.wh.x/.wh.y", b""), "l/.wh.x"),
    ] {
        let said = said(tar);
        assert!(
            said.starts_with(&format!("layer.tar: {entry}")) && said.contains("(at byte 512)"),
            "{said}"
        );
    }
}

#[test]
fn a_layer_by_itself_keeps_the_rules_of_a_tar() {
    assert!(said(Tar::new().symlink("l", "d").file("l/x", b"")).contains("symbolic link l"));
    assert!(said(Tar::new().file("f", b"").file("f/x", b"")).contains("not a directory"));
    assert!(said(Tar::new().file("d/x", b"").file("d", b"")).contains("not empty"));
    assert!(said(Tar::new().file("./", b"").symlink("./", "a")).contains("root"));
    assert!(said(Tar::new().hard_link("a", "a")).contains("to itself"));
}

#[test]
fn layers_are_read_in_parallel() {
    let tars: Vec<_> = ["a", "b", "c"]
        .map(|name| Tar::new().file(name, b"1").end())
        .into();
    let layers: Vec<Layer> = std::thread::scope(|scope| {
        let read = |tar| scope.spawn(move || scan_layer(tar, Path::new("t.tar")).unwrap());
        let readers: Vec<_> = tars.iter().map(Vec::as_slice).map(read).collect();
        readers.into_iter().map(|r| r.join().unwrap()).collect()
    });
    assert!(layers.iter().all(|layer| layer.entries() == 1));
}

#[test]
fn a_stream_a_file_and_their_counts() {
    use std::os::unix::fs::FileExt as _;
    let tar = Tar::new()
        .file("a", b"1")
        .raw(Raw::new(b'0', ".wh.b", 3), b"xyz")
        .hard_link("c", "a")
        .end();
    let layer = scan_layer(&tar[..], Path::new("t.tar")).unwrap();
    assert_eq!((layer.tar_len(), layer.entries()), (tar.len() as u64, 3));
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&tar, 0).unwrap();
    let same = scan_layer_file(&file, Path::new("t.tar"), &()).unwrap();
    assert_eq!((same.tar_len(), same.entries()), (tar.len() as u64, 3));
    let dir = File::open("/").unwrap();
    let said = scan_layer_file(&dir, Path::new("/"), &()).unwrap_err();
    assert_eq!(said.to_string(), "/: is a directory, not a tar file");
}
