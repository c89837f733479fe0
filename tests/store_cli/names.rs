//! `images`, `tag`, `rm`.

use std::fs;

use super::common::{Sandbox, can_mount, text};
use super::{bad, blob, good, import, json, layer, two_layers, used};

#[test]
fn images_in_three_forms() {
    let sandbox = Sandbox::new();
    assert_eq!(good(&sandbox, &["images", "-q"]), "");
    assert_eq!(json(&sandbox, &["images", "--json"]), serde_json::json!([]));
    assert_eq!(
        good(&sandbox, &["images"]).lines().count(),
        1,
        "a head alone"
    );
    let a = import(&sandbox, "a", &two_layers("a"));
    let b = import(&sandbox, "b", &[layer("other"), layer("top")]);
    good(&sandbox, &["tag", "a", "also"]);
    used(&sandbox, &a, 100);
    used(&sandbox, &b, 200);
    assert_eq!(good(&sandbox, &["images", "-q"]), format!("{a}\n{b}\n"));
    let told = json(&sandbox, &["images", "--json"]);
    assert_eq!(told[0]["names"], serde_json::json!(["a", "also"]));
    assert_eq!(
        (&told[0]["digest"], &told[1]["digest"]),
        (&a.into(), &b.clone().into())
    );
    assert_eq!(told[0]["layers"].as_array().unwrap().len(), 2);
    // The layer that both have is nobody's own.
    let (all, own) = (&told[1]["bytes"], &told[1]["own_bytes"]);
    assert!(own.as_u64() < all.as_u64(), "{told}");
    let table = good(&sandbox, &["images"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(
        lines[0].starts_with("NAME") && lines[1].starts_with("a "),
        "{table}"
    );
    assert_eq!(lines[2], "also");
    assert!(
        lines[3].contains(&b[7..19]) && lines[3].ends_with("ago"),
        "{table}"
    );
    // Use is what counts.
    good(&sandbox, &["ls", "b"]);
    assert!(good(&sandbox, &["images", "-q"]).starts_with(&b));
}

#[test]
fn a_name_is_of_one_image() {
    let sandbox = Sandbox::new();
    let a = import(&sandbox, "a", &two_layers("a"));
    let b = import(&sandbox, "b", &two_layers("b"));
    good(&sandbox, &["tag", "b", "a"]);
    let told = json(&sandbox, &["inspect", "--json", "a"]);
    assert_eq!(told["digest"], b);
    // The one before has lost it, and is there.
    good(&sandbox, &["ls", &a]);
    assert!(bad(&sandbox, &["tag", "none", "x"]).contains("none: no such image"));
    assert_eq!(sandbox.tarnfs(["tag", "b", "../x"]).status.code(), Some(2));
    // A second import under a name takes it over, too.
    assert_eq!(import(&sandbox, "b", &two_layers("a")), a);
    assert_eq!(json(&sandbox, &["inspect", "--json", "b"])["digest"], a);
}

#[test]
fn rm_by_name() {
    let sandbox = Sandbox::new();
    let layers = two_layers("a");
    let a = import(&sandbox, "a", &layers);
    let b = import(&sandbox, "b", &[layers[0].clone(), layer("other")]);
    good(&sandbox, &["tag", "a", "also"]);
    good(&sandbox, &["rm", "a"]);
    good(&sandbox, &["ls", "also"]);
    assert!(bad(&sandbox, &["rm", "a"]).contains("a: no such image"));
    assert_eq!(good(&sandbox, &["rm", "--ignore", "a"]), "");
    good(&sandbox, &["rm", "also"]);
    assert!(bad(&sandbox, &["ls", &a]).contains("no image of the store"));
    // The layer of both stays.
    assert!(blob(&sandbox, &layers[0]).exists() && !blob(&sandbox, &layers[1]).exists());
    good(&sandbox, &["cat", "b", "etc/os-release"]);
    // By its digest, with all of its names.
    good(&sandbox, &["tag", "b", "c"]);
    good(&sandbox, &["rm", &b[..20]]);
    assert!(bad(&sandbox, &["ls", "c"]).contains("no image of the store"));
    assert_eq!(fs::read_dir(sandbox.at("store/names")).unwrap().count(), 0);
    assert_eq!(
        fs::read_dir(sandbox.at("store/blobs/sha256"))
            .unwrap()
            .count(),
        0
    );
    // One that is not there does not keep the others.
    import(&sandbox, "a", &layers);
    let output = sandbox.tarnfs(["rm", "none", "a"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr).lines().count(), 1);
    assert_eq!(good(&sandbox, &["images", "-q"]), "");
}

#[test]
fn rm_of_what_is_used() {
    if !can_mount() {
        return;
    }
    for engine in ["--engine=fuse", "--engine=auto"] {
        let sandbox = Sandbox::new();
        let a = import(&sandbox, "a", &two_layers("a"));
        let mount = sandbox.mount("mnt", "a".as_ref(), &[engine]);
        let said = bad(&sandbox, &["rm", "a"]);
        assert!(said.contains("in use"), "{said}");
        // Not even with leave to pass over what is not there.
        assert!(bad(&sandbox, &["rm", "--ignore", &a]).contains("in use"));
        good(&sandbox, &["ls", "a"]);
        let kept = good(&sandbox, &["gc", "--all", "--min-age=0"]);
        assert!(!kept.contains("removed image"), "{kept}");
        let os = fs::read_to_string(mount.at("etc/os-release")).unwrap();
        assert_eq!(os, "NAME=a\n");
        mount.unmount();
        good(&sandbox, &["rm", "a"]);
    }
}
