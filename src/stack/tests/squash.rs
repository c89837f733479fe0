//! Layers that become one: the same tree, and nothing in the layer that the tree does not need.

use proptest::prelude::*;

use super::*;
use crate::flatten;
use crate::index::flatten::tests::model::{good_layers, layer};
use crate::store::BlobPlace;
use crate::tar::testing::{Raw, entries};

/// The digest of all that an image holds: names, attributes, links, bytes.
fn content(image: &Image) -> Digest {
    let places = image.record().blobs.iter().map(|blob| &blob.place);
    let side = (0..)
        .zip(places)
        .filter(|(_, place)| **place == BlobPlace::Side);
    let options = flatten::Options {
        side_blobs: side.map(|(blob, _)| blob).collect(),
        ..flatten::Options::default()
    };
    let lower = image.lower().unwrap();
    let written = flatten::write(&lower, &options, &mut io::sink(), &mut |_, _| ()).unwrap();
    written.digest
}

/// The images of all prefixes of `tars`.
fn chain(store: &Store, tars: &[Vec<u8>]) -> Vec<Digest> {
    let mut all = vec![import(store, &tars[0])];
    for tar in &tars[1..] {
        let top = all[all.len() - 1];
        all.push(add(store, &top, &all.len().to_string(), tar).digest);
    }
    all
}

/// Squashes a chain down to its first image; gives the paths in the new layer.
fn squashed(tars: &[Tar]) -> Vec<String> {
    let f = fixture();
    let tars: Vec<_> = tars.iter().cloned().map(Tar::end).collect();
    let all = chain(&f.store, &tars);
    let top = all[all.len() - 1];
    let one = squash(&f.store, &top, None, &mut |_| ()).unwrap();
    assert_eq!(one.value, tars.len() - 1);
    assert_eq!(content(&one.image), content(&f.store.image(&top).unwrap()));
    if tars.len() == 2 {
        assert_eq!(one.digest, top);
    }
    sound(&f.store);
    let blob = f.store.blob(&one.layer).unwrap().unwrap();
    let listed = entries(&fs::read(blob.path()).unwrap()).unwrap();
    let path = |entry: &crate::tar::Entry| String::from_utf8(entry.path.clone()).unwrap();
    listed.iter().map(path).collect()
}

#[test]
fn what_was_overwritten_or_removed_is_in_no_layer() {
    let base = Tar::new()
        .dir("d")
        .file("d/a", b"1")
        .file("d/b", b"2")
        .dir("e")
        .file("e/x", b"3");
    let paths = squashed(&[
        base.clone(),
        Tar::new()
            .file("d/a", b"new")
            .file("t", b"1")
            .dir("u")
            .file("u/v", b"1"),
        Tar::new()
            .file("d/a", b"newer")
            .file(".wh.t", b"")
            .file("d/.wh.b", b"")
            .file(".wh.u", b""),
    ]);
    assert_eq!(paths, ["", "d", "d/.wh.b", "d/a"]);
    // Made and removed again: nothing is left but the layer.
    let paths = squashed(&[
        base.clone(),
        Tar::new().file("t", b"1"),
        Tar::new().file(".wh.t", b""),
    ]);
    assert_eq!(paths, [] as [&str; 0]);
    // A directory that is made anew keeps nothing of the old one.
    let paths = squashed(&[
        base.clone(),
        Tar::new().file(".wh.e", b""),
        Tar::new().dir("e").file("e/y", b"1"),
    ]);
    assert_eq!(paths, ["", "e", "e/.wh.x", "e/y"]);
    // A directory alone, by its attributes; and the root by its own.
    let other = |name: &str| Raw::new(b'5', name, 0).with(100, b"0000700\0");
    let paths = squashed(&[base.clone(), Tar::new().raw(other("d"), b""), Tar::new()]);
    assert_eq!(paths, ["", "d"]);
    let paths = squashed(&[base, Tar::new().raw(other("./"), b""), Tar::new()]);
    assert_eq!(paths, [""]);
}

#[test]
fn what_becomes_of_another_kind_is_replaced() {
    let base = Tar::new()
        .dir("d")
        .file("d/a", b"1")
        .file("f", b"2")
        .symlink("s", "d");
    let paths = squashed(&[
        base.clone(),
        Tar::new()
            .file(".wh.d", b"")
            .file(".wh.f", b"")
            .file(".wh.s", b""),
        Tar::new()
            .file("d", b"1")
            .dir("f")
            .file("f/x", b"1")
            .dir("s")
            .file("s/y", b"1"),
    ]);
    assert_eq!(paths, ["", "d", "f", "f/x", "s", "s/y"]);
    let paths = squashed(&[
        base,
        Tar::new().file(".wh.d", b""),
        Tar::new().symlink("d", "f"),
    ]);
    assert_eq!(paths, ["", "d"]);
}

#[test]
fn a_group_of_links_that_changed_is_written_whole() {
    let base = Tar::new()
        .file("a", b"1")
        .hard_link("b", "a")
        .file("e1", b"")
        .file("e2", b"");
    // One name gone, the others stay.
    let paths = squashed(&[base.clone(), Tar::new().file("b", b"2"), Tar::new()]);
    assert_eq!(paths, ["", "b"]);
    let paths = squashed(&[base.clone(), Tar::new().file(".wh.a", b""), Tar::new()]);
    assert_eq!(paths, ["", ".wh.a"]);
    // One more: all names.
    let paths = squashed(&[base.clone(), Tar::new().hard_link("c", "a"), Tar::new()]);
    assert_eq!(paths, ["", "a", "b", "c"]);
    // Two empty files that look the same become one, and one becomes two.
    let paths = squashed(&[base.clone(), Tar::new().hard_link("e2", "e1"), Tar::new()]);
    assert_eq!(paths, ["", "e1", "e2"]);
    let linked = Tar::new().file("e1", b"").hard_link("e2", "e1");
    let paths = squashed(&[linked, Tar::new().file("e2", b""), Tar::new()]);
    assert_eq!(paths, ["", "e2"]);
}

#[test]
fn a_name_too_long_for_a_whiteout_makes_its_directory_opaque() {
    let long = "n".repeat(252);
    let base = Tar::new()
        .dir("d")
        .file("d/a", b"1")
        .dir("d/e")
        .file("d/e/x", b"1");
    let long = format!("d/{long}");
    let base = base.pax(&[("path", long.as_bytes())]).file("d/n", b"1");
    let paths = squashed(&[
        base,
        Tar::new().file(".wh.d", b""),
        Tar::new()
            .dir("d")
            .file("d/a", b"2")
            .dir("d/e")
            .file("d/e/x", b"2"),
    ]);
    assert_eq!(paths, ["", "d", "d/.wh..wh..opq", "d/a", "d/e", "d/e/x"]);
}

#[test]
fn holes_and_odd_pieces_stay() {
    let sparse = |map: &'static [u8], size: &'static [u8]| {
        [("GNU.sparse.size", size), ("GNU.sparse.map", map)]
    };
    squashed(&[
        Tar::new().file("a", b"1"),
        Tar::new()
            .pax(&sparse(b"512,512,4096,1024", b"9000"))
            .file("blocks", &[b'x'; 1536])
            .pax(&sparse(b"100,2,300,1", b"9000"))
            .file("odd", b"xyz")
            .pax(&sparse(b"", b"9000"))
            .file("hole", b"")
            .pax(&sparse(b"0,7", b"7"))
            .file("dense", b"1234567"),
        Tar::new().hard_link("odd2", "odd").file("empty", b""),
        Tar::new().file(".wh.a", b""),
    ]);
}

#[test]
fn the_base_can_be_said() {
    let f = fixture();
    let layer = |n: u8| {
        Tar::new()
            .file("each", &[n])
            .file(&format!("n{n}"), &[n])
            .end()
    };
    let tars: Vec<_> = (0..50).map(layer).collect();
    let all = chain(&f.store, &tars);
    let top = all[49];
    let squash = |image: &Digest, base: Option<&Digest>| squash(&f.store, image, base, &mut |_| ());
    let one = squash(&top, Some(&all[10])).unwrap();
    assert_eq!((one.value, one.image.record().layers.len()), (39, 12));
    assert_eq!(checkpoints(&one.image).unwrap(), 11);
    let two = squash(&one.digest, None).unwrap();
    assert_eq!((two.value, two.image.record().layers.len()), (11, 2));
    let all_at_once = squash(&top, None).unwrap();
    assert_eq!(
        all_at_once.layer, two.layer,
        "the same tree, the same layer"
    );
    assert_eq!(content(&two.image), content(&f.store.image(&top).unwrap()));
    assert!(
        !squash(&top, None).unwrap().fresh,
        "the same image once more"
    );
    // As many devices as layers that are used: the index does not grow with the chain.
    assert_eq!(two.image.record().blobs.len(), 2);
    sound(&f.store);

    let said = |made: Result<Stacked<usize>, StackError>| made.unwrap_err().to_string();
    assert!(said(squash(&all[0], None)).contains("no checkpoints on top"));
    assert!(said(squash(&top, Some(&top))).contains("no checkpoints on top"));
    assert!(said(squash(&all[3], Some(&top))).contains("does not lie on"));
    assert!(said(squash(&two.digest, Some(&all[1]))).contains("does not lie on"));
    assert_eq!(squash(&all[1], None).unwrap().digest, all[1]);
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(60)
    })]
    #[test]
    fn random_chains_keep_their_tree(
        layers in prop::collection::vec(layer(), 3..9),
        from in any::<prop::sample::Index>(),
    ) {
        let tars: Vec<_> = good_layers(&layers).into_iter().map(Tar::end).collect();
        prop_assume!(tars.len() > 1);
        let f = fixture();
        let all = chain(&f.store, &tars);
        let top = all[all.len() - 1];
        let want = content(&f.store.image(&top).unwrap());
        for base in [None, Some(&all[from.index(all.len() - 1)])] {
            let one = squash(&f.store, &top, base, &mut |_| ()).unwrap();
            prop_assert_eq!(content(&one.image), want);
        }
        sound(&f.store);
    }
}
