//! Many layers, large directories, blobs and the bytes of an index.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::erofs::reader::Bytes;
use crate::lower::Lower;

#[test]
fn many_layers_touch_a_large_directory() {
    let mut base = Tar::new();
    for i in 0..5_000 {
        base = base.file(&format!("d/{i:06}"), b"");
    }
    let mut flattening = Flattening::new();
    for layer in 0..128 {
        let tar = if layer == 0 {
            base.clone()
        } else {
            Tar::new()
                .file(&format!("d/.wh.{layer:06}"), b"")
                .file(&format!("d/new{layer:03}"), b"x")
                .file("d/each", b"y")
        };
        let tar = tar.end();
        let layer = scan_layer(&tar[..], Path::new("t")).unwrap();
        flattening.add(layer, Path::new("t")).unwrap();
    }
    let flat = flattening.finish().unwrap();
    check(&flat.tree);
    assert_eq!(flat.tree.inodes.len(), 2 + 5_000 - 127 + 127 + 1);
    assert_eq!(flat.used, (1..128).collect::<Vec<_>>());
}

#[test]
fn what_is_gone_takes_no_memory() {
    let mut flattening = Flattening::new();
    for _ in 0..50 {
        let mut tar = Tar::new().file("keep", b"1").file(".wh.d", b"");
        for i in 0..1000 {
            tar = tar.file(&format!("d/{i}/x"), b"");
        }
        let layer = scan_layer(&tar.end()[..], Path::new("t")).unwrap();
        flattening.add(layer, Path::new("t")).unwrap();
        assert!(flattening.merged.inodes.len() < 3 * 2003);
    }
    assert_eq!(flattening.finish().unwrap().tree.inodes.len(), 2003);
}

/// The whole index of `tars`, with its blobs.
fn index(tars: &[Vec<u8>]) -> (Flat, Vec<u8>, Vec<u8>) {
    let mut flattening = Flattening::new();
    let mut files = Vec::new();
    for tar in tars {
        let layer = scan_layer(&tar[..], Path::new("t")).unwrap();
        flattening.add(layer, Path::new("t")).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(tar, 0).unwrap();
        files.push(file);
    }
    let flat = flattening.finish().unwrap();
    let blobs = |(i, file)| LayerBlob {
        file,
        path: Path::new("t"),
        tag: format!("layer {i}"),
    };
    let blobs: Vec<_> = files.iter().enumerate().map(blobs).collect();
    let mut out = Vec::new();
    let mut side = tempfile::NamedTempFile::new().unwrap();
    let file: File = side.reopen().unwrap();
    let built = write_layers(&flat, &blobs, &mut out, || Ok(file)).unwrap();
    assert_eq!(built.index_len, out.len() as u64);
    assert_eq!(built.inodes, flat.tree.inodes.len());
    assert_eq!(
        built.tar_len,
        tars.iter().map(|tar| tar.len() as u64).sum::<u64>()
    );
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(side.as_file_mut(), &mut bytes).unwrap();
    assert_eq!(
        built.side_len,
        (!bytes.is_empty()).then_some(bytes.len() as u64)
    );
    (flat, out, bytes)
}

#[test]
fn only_layers_that_own_bytes_are_blobs() {
    let odd = [
        ("GNU.sparse.size", &b"9000"[..]),
        ("GNU.sparse.map", b"100,2,300,1"),
    ];
    let tars = [
        Tar::new().pax(&odd).file("gone", b"abc").file("f", b"0"),
        Tar::new().file("g", b"1").pax(&odd).file("s", b"xyz"),
        Tar::new().dir("only"),
        Tar::new().file("f", b"33").file(".wh.gone", b""),
        Tar::new().pax(&odd).file("t", b"uvw"),
    ];
    let tars = tars.map(Tar::end);
    let (flat, bytes, side) = index(&tars);
    assert_eq!(flat.used, [1, 3, 4]);
    let from: Vec<_> = flat.side.iter().map(|c| (c.layer, c.copy.len)).collect();
    assert_eq!(from, [(1, 2), (1, 1), (4, 2), (4, 1)]);
    assert_eq!(side.len(), 2 * 12288);
    assert_eq!((&side[100..102], side[300]), (&b"xy"[..], b'z'));
    assert_eq!((&side[12388..12390], side[12588]), (&b"uv"[..], b'w'));
    for (path, blob) in [("f", 1), ("g", 0), ("s", 3), ("t", 3)] {
        let Content::File { extents, .. } = &get(&flat, path).content else {
            panic!("{path}")
        };
        assert_eq!(extents[0].blob, blob, "{path}");
    }
    // The same layers, the same bytes; the device table has the tags.
    assert_eq!(index(&tars).1, bytes);
    for tag in ["layer 1", "layer 3", "layer 4"] {
        assert!(bytes.windows(7).any(|at| at == tag.as_bytes()), "{tag}");
    }
    assert!(!bytes.windows(7).any(|at| at == b"layer 0"));
}

#[test]
fn an_image_without_bytes_has_no_blobs() {
    let (flat, bytes, _) = index(&[Tar::new().dir("d").file("e", b"").end()]);
    assert!(flat.used.is_empty());
    let lower = Lower::of_bytes(Path::new("i"), Bytes::Owned(bytes), Vec::new()).unwrap();
    assert_eq!(lower.stats().inodes, 3);
}

#[test]
fn other_layers_than_were_added_are_an_error() {
    let flat = flat(&[lower()]).unwrap();
    let none = || -> std::io::Result<File> { unreachable!() };
    assert!(write_layers(&flat, &[], &mut Vec::new(), none).is_err());
}
