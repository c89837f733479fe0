//! Places that are none, or of another kind.

use super::*;

#[test]
fn archives_that_are_none_are_refused() {
    let there = tempfile::tempdir().unwrap();
    let place = there.path().join("x.tar");
    let good_tar = tar(&good().files);
    let twice = Tar::new()
        .file("oci-layout", b"{}")
        .file("oci-layout", b"{}");
    let cut = good_tar[..good_tar.len() - 1024].to_vec();
    for (bytes, why) in [
        (b"".to_vec(), "is empty"),
        (b"x".to_vec(), "not a tar"),
        (vec![0x1f, 0x8b, 8, 0], "decompress it first (`gzip -d`)"),
        (
            vec![0x28, 0xb5, 0x2f, 0xfd],
            "decompress it first (`zstd -d`)",
        ),
        (b"\xfd7zXZ\0..".to_vec(), "decompress it first (`xz -d`)"),
        (b"BZh9".to_vec(), "decompress it first (`bzip2 -d`)"),
        (twice.end(), "two members are called oci-layout"),
        (Tar::new().file("../x", b"").end(), "\"..\""),
        (Tar::new().file("/x", b"").end(), "absolute"),
        (Tar::new().file("etc/passwd", b"").end(), "`tarnfs import"),
        (cut, "truncated"),
    ] {
        fs::write(&place, bytes).unwrap();
        for prefix in ["oci-archive", "docker-archive"] {
            refused(open(prefix, &place), &place, why);
        }
    }
    fs::write(&place, &good_tar).unwrap();
    refused(
        open("docker-archive", &place),
        &place,
        "of the kind oci-archive:",
    );
    fs::write(&place, docker(&json!([docker_image()])).end()).unwrap();
    refused(
        open("oci-archive", &place),
        &place,
        "of the kind docker-archive:",
    );
}

#[test]
fn a_place_of_another_kind_says_what_to_write() {
    let there = tempfile::tempdir().unwrap();
    let at = |name: &str| there.path().join(name);
    write(&at("oci"), &good().files);
    write(&at("dir"), &dir(&good()));
    fs::create_dir(at("plain")).unwrap();
    fs::write(at("file"), "x").unwrap();
    let mut old = dir(&good());
    old.insert(
        "version".into(),
        b"Directory Transport Version: 2.0\n".to_vec(),
    );
    write(&at("old"), &old);
    for (prefix, name, why) in [
        ("oci", "dir", "this is of the kind dir:"),
        ("oci", "plain", "-c . | tarnfs import -`"),
        ("oci", "file", "oci-archive:FILE"),
        ("oci", "none", "No such file"),
        ("oci", "none:tag", "No such file"),
        ("dir", "oci", "this is an OCI image layout, oci:"),
        ("dir", "plain", "-c . | tarnfs import -`"),
        ("dir", "file", "not a directory"),
        ("dir", "none", "No such file"),
        ("dir", "old", "not of the version 1.1"),
        ("oci-archive", "oci", "of a directory it is oci:DIR"),
        ("docker-archive", "plain", "a directory, not a tar"),
        ("docker-archive", "none:x:y", "No such file"),
    ] {
        refused(open(prefix, &at(name)), there.path(), why);
    }
}

#[test]
fn places_are_told_by_their_prefix() {
    for text in [
        "image.tar",
        "./oci",
        "/x:y",
        "-",
        "",
        "sha256:00",
        "OCI:x",
        "ocix:y",
    ] {
        assert_eq!(parse(text.as_ref()).unwrap(), None, "{text}");
    }
    for text in [
        "oci:",
        "dir:",
        "oci-archive:",
        "docker-archive:",
        "docker://",
        "docker:x",
    ] {
        assert!(
            matches!(parse(text.as_ref()), Err(SourceError::Asked(_))),
            "{text}"
        );
    }
    for text in [
        "oci:x",
        "oci-archive:x:y",
        "docker-archive:a:b:c",
        "dir:/x",
        "docker://a/b:c@d",
    ] {
        assert_eq!(parse(text.as_ref()).unwrap().unwrap().to_string(), text);
    }
    let registry = parse("docker://x".as_ref()).unwrap().unwrap();
    assert!(registry.open_local().unwrap().is_none());
}
