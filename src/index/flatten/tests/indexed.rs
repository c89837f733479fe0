//! A further layer on layers that come out of their index: the same bytes as of all their tars.

use proptest::prelude::*;

use super::model::{good_layers, layer};
use super::*;
use crate::erofs::reader::{Bytes, Reader};

/// The index of `flat`, whose layers are `tars`.
fn written(flat: &Flat, tars: &[Vec<u8>]) -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    let blob = |i: usize| LayerBlob {
        file: &file,
        path: Path::new("t"),
        tag: format!("layer {i}"),
    };
    let blobs: Vec<_> = (0..tars.len()).map(blob).collect();
    let mut out = Vec::new();
    write_layers(flat, &blobs, &mut out, tempfile::tempfile).unwrap();
    out
}

fn add(flattening: &mut Flattening, tars: &[Vec<u8>]) {
    for tar in tars {
        let layer = scan_layer(&tar[..], Path::new("t")).unwrap();
        flattening.add(layer, Path::new("t")).unwrap();
    }
}

fn of_index(index: Vec<u8>, used: &[usize], tars: &[Vec<u8>]) -> Result<Flattening, String> {
    let layers = tars.iter().map(|tar| IndexedLayer {
        path: "t".into(),
        tar_len: tar.len() as u64,
    });
    let reader = Reader::new(Bytes::Owned(index)).map_err(|e| e.to_string())?;
    Flattening::of_index(&reader, layers.collect(), used).map_err(|e| e.to_string())
}

/// The index of all `tars`, made once at a time and by way of an index behind each of them.
fn compare(tars: &[Vec<u8>]) {
    let mut all = Flattening::new();
    add(&mut all, tars);
    let all = all.finish().unwrap();
    let want = written(&all, tars);
    let mut chain: Option<(Flat, Vec<u8>)> = None;
    for end in 1..=tars.len() {
        let (below, top) = tars[..end].split_at(end - 1);
        let mut flattening = match &chain {
            Some((flat, index)) => of_index(index.clone(), &flat.used, below).unwrap(),
            None => Flattening::new(),
        };
        add(&mut flattening, top);
        let flat = flattening.finish().unwrap();
        check(&flat.tree);
        let index = written(&flat, &tars[..end]);
        chain = Some((flat, index));
    }
    let (flat, index) = chain.unwrap();
    assert_eq!(flat.used, all.used);
    assert!(index == want, "the indexes differ");
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(300)
    })]
    #[test]
    fn layers_on_an_index_are_layers_on_their_tars(
        layers in prop::collection::vec(layer(), 1..7)
    ) {
        let tars: Vec<_> = good_layers(&layers).into_iter().map(Tar::end).collect();
        if !tars.is_empty() {
            compare(&tars);
        }
    }
}

#[test]
fn all_that_an_inode_is_comes_out_of_an_index() {
    let raw = |flag, name: &str, size| {
        Raw::new(flag, name, size)
            .with(108, b"7777777\0")
            .with(116, b"0000012\0")
            .with(136, b"17777777777\0")
            .with(100, b"0006755\0")
    };
    let device = |flag, name: &str| {
        raw(flag, name, 0)
            .with(329, b"0000377\0")
            .with(337, b"3777777\0")
    };
    let base = Tar::new()
        .pax(&[
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.a", b"\0\x01"),
            ("uid", b"4294967294"),
        ])
        .raw(raw(b'0', "d/file", 700), &[b'x'; 700])
        .pax(&[("SCHILY.xattr.user.long", &[b'y'; 700]), ("mtime", b"1.5")])
        .raw(raw(b'5', "d/e", 0), b"")
        .pax(&[("SCHILY.xattr.user.long", &[b'y'; 700])])
        .raw(raw(b'2', "link", 0).with(157, b"to/nowhere"), b"")
        .raw(device(b'3', "char"), b"")
        .raw(device(b'4', "block"), b"")
        .raw(raw(b'6', "fifo", 0), b"")
        .hard_link("d/other", "d/file")
        .hard_link("fifo2", "fifo")
        .file("empty", b"")
        // In two pieces with a hole, on block boundaries.
        .pax(&[
            ("GNU.sparse.size", b"9000"),
            ("GNU.sparse.map", b"512,512,4096,1024"),
        ])
        .file("sparse", &[b's'; 1536])
        .pax(&[("GNU.sparse.size", b"9000"), ("GNU.sparse.map", b"")])
        .file("hole", b"");
    let tops = [
        Tar::new(),
        Tar::new().file("d/file", b"new").file("d/.wh.e", b""),
        Tar::new()
            .hard_link("d/third", "d/other")
            .file(".wh.fifo", b""),
        Tar::new().file(".wh..wh..opq", b"").file("d/x", b"1"),
        Tar::new().file("y", b"1"),
    ];
    let all: Vec<_> = [base].into_iter().chain(tops).map(Tar::end).collect();
    for end in 1..=all.len() {
        compare(&all[..end]);
    }
}

#[test]
fn an_index_of_other_layers_is_refused() {
    let tars = [lower().end(), Tar::new().file("f", b"1").end()];
    let mut flattening = Flattening::new();
    add(&mut flattening, &tars);
    let flat = flattening.finish().unwrap();
    let index = written(&flat, &tars);
    let refused = |used: &[usize], tars: &[Vec<u8>]| {
        let said = of_index(index.clone(), used, tars).err().unwrap();
        assert!(said.contains("other devices"), "{said}");
    };
    assert!(of_index(index.clone(), &[0, 1], &tars).is_ok());
    refused(&[0], &tars);
    refused(&[1, 0], &tars);
    refused(&[0, 0], &tars);
    refused(&[0, 1, 1], &tars);
    refused(&[0, 1], &tars[..1]);
}

#[test]
fn a_damaged_index_is_an_error_and_never_a_panic() {
    let tars = [
        lower().end(),
        Tar::new().hard_link("l", "e").file("f", b"1").end(),
    ];
    let mut flattening = Flattening::new();
    add(&mut flattening, &tars);
    let flat = flattening.finish().unwrap();
    let index = written(&flat, &tars);
    let (mut refused, mut taken) = (0, 0);
    for at in 0..index.len() {
        for value in [0, 0xff, index[at] ^ 1] {
            let mut bad = index.clone();
            bad[at] = value;
            // Without the superblock's checksum, which would tell at once.
            bad[1024 + 8] &= !1;
            match of_index(bad, &[0, 1], &tars) {
                Err(_) => refused += 1,
                Ok(mut flattening) => {
                    taken += 1;
                    add(&mut flattening, &[lower().end()]);
                    flattening.finish().unwrap();
                }
            }
        }
    }
    assert!(refused > 100 && taken > 100, "{refused} {taken}");
}
