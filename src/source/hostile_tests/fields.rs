//! Each field of each document, wrong in each way.

use super::super::oci::{CONFIG_MAX, LAYER_MAX, MANIFEST_MAX};
use super::*;

#[test]
fn each_field_is_checked() {
    let other = Digest::of(b"other");
    let sha512 = format!("sha512:{}", "0".repeat(128));
    let many = vec![descriptor(LAYER, b"x"); LAYERS_MAX + 1];
    let cases: Vec<(At, &str, Value, &str)> = vec![
        (At::Mark, "", json!([]), "not a JSON object"),
        (
            At::Mark,
            "/imageLayoutVersion",
            json!(null),
            "no \"imageLayoutVersion\"",
        ),
        (At::Mark, "/imageLayoutVersion", json!(1), "not the JSON"),
        (
            At::Mark,
            "/imageLayoutVersion",
            json!("2.0.0"),
            "version \"2.0.0\"",
        ),
        (At::Index, "", json!("x"), "not a JSON object"),
        (
            At::Index,
            "/schemaVersion",
            json!(null),
            "no \"schemaVersion\"",
        ),
        (At::Index, "/schemaVersion", json!(1), "schema 1"),
        (At::Index, "/schemaVersion", json!(3), "schemaVersion is 3"),
        (At::Index, "/schemaVersion", json!("2"), "not the JSON"),
        (
            At::Index,
            "/mediaType",
            json!(MANIFEST),
            "what led here says",
        ),
        (At::Index, "/mediaType", json!("x/y"), "what led here says"),
        (At::Index, "/manifests", json!(null), "no \"manifests\""),
        (At::Index, "/manifests", json!({}), "not the JSON"),
        (At::Index, "/manifests", json!([]), "it lists no image"),
        (At::Index, "/manifests/0", json!("x"), "not the JSON"),
        (
            At::Index,
            "/manifests/0/mediaType",
            json!(null),
            "no \"manifests[0].mediaType\"",
        ),
        (
            At::Index,
            "/manifests/0/mediaType",
            json!("x/y"),
            "media type \"x/y\"",
        ),
        (
            At::Index,
            "/manifests/0/mediaType",
            json!(INDEX),
            "what led here says",
        ),
        (
            At::Index,
            "/manifests/0/digest",
            json!(null),
            "no \"manifests[0].digest\"",
        ),
        (
            At::Index,
            "/manifests/0/digest",
            json!("../../etc"),
            "is no digest",
        ),
        (
            At::Index,
            "/manifests/0/digest",
            json!(sha512),
            "another algorithm",
        ),
        (
            At::Index,
            "/manifests/0/digest",
            json!(other),
            "no such blob",
        ),
        (
            At::Index,
            "/manifests/0/size",
            json!(null),
            "no \"manifests[0].size\"",
        ),
        (At::Index, "/manifests/0/size", json!(-1), "-1 is no length"),
        (At::Index, "/manifests/0/size", json!(1.5), "not the JSON"),
        (
            At::Index,
            "/manifests/0/size",
            json!(u64::MAX),
            "not the JSON",
        ),
        (
            At::Index,
            "/manifests/0/size",
            json!(7),
            "its descriptor says 7",
        ),
        (
            At::Index,
            "/manifests/0/size",
            json!(MANIFEST_MAX + 1),
            "at most 4194304",
        ),
        (At::Index, "/manifests/0/platform", json!(5), "not the JSON"),
        (
            At::Index,
            "/manifests/0/platform",
            json!({"os": "windows", "architecture": "amd64"}),
            "no image for linux/amd64; there are windows/amd64",
        ),
        (
            At::Index,
            "/manifests/0/platform",
            json!({"os": "unknown", "architecture": "unknown"}),
            "it lists no image",
        ),
        (
            At::Index,
            "/manifests/0/annotations",
            json!({"vnd.docker.reference.type": "attestation-manifest"}),
            "it lists no image",
        ),
        (At::Manifest, "", json!([]), "not a JSON object"),
        (
            At::Manifest,
            "/schemaVersion",
            json!(null),
            "no \"schemaVersion\"",
        ),
        (At::Manifest, "/schemaVersion", json!(1), "schema 1"),
        (
            At::Manifest,
            "/mediaType",
            json!(INDEX),
            "what led here says",
        ),
        (
            At::Manifest,
            "/mediaType",
            json!(LAYER),
            "what led here says",
        ),
        (At::Manifest, "/manifests", json!([]), "ambiguous"),
        (At::Manifest, "/config", json!(null), "no \"config\""),
        (At::Manifest, "/config", json!("x"), "not the JSON"),
        (
            At::Manifest,
            "/config/mediaType",
            json!(null),
            "no \"config.mediaType\"",
        ),
        (
            At::Manifest,
            "/config/mediaType",
            json!("application/vnd.cncf.helm.config.v1+json"),
            "not an image: its config is of the media type",
        ),
        (
            At::Manifest,
            "/config/digest",
            json!(null),
            "no \"config.digest\"",
        ),
        (At::Manifest, "/config/digest", json!(other), "is missing"),
        (
            At::Manifest,
            "/config/digest",
            json!(sha512),
            "another algorithm",
        ),
        (
            At::Manifest,
            "/config/size",
            json!(null),
            "no \"config.size\"",
        ),
        (
            At::Manifest,
            "/config/size",
            json!(-5),
            "config.size: -5 is no length",
        ),
        (
            At::Manifest,
            "/config/size",
            json!(1),
            "its descriptor says 1",
        ),
        (
            At::Manifest,
            "/config/size",
            json!(CONFIG_MAX + 1),
            "at most 8388608",
        ),
        (At::Manifest, "/layers", json!(null), "no \"layers\""),
        (At::Manifest, "/layers", json!(1), "not the JSON"),
        (
            At::Manifest,
            "/layers",
            json!([]),
            "2 layers, and the manifest 0",
        ),
        (At::Manifest, "/layers", json!(many), "4097 layers"),
        (
            At::Manifest,
            "/layers/1/mediaType",
            json!(null),
            "no \"layers[1].mediaType\"",
        ),
        (
            At::Manifest,
            "/layers/1/mediaType",
            json!("application/vnd.example.squashfs"),
            "layers[1] is of the media type \"application/vnd.example.squashfs\"",
        ),
        (
            At::Manifest,
            "/layers/1/mediaType",
            json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
            "layers[1] is encrypted",
        ),
        (
            At::Manifest,
            "/layers/1/digest",
            json!(null),
            "no \"layers[1].digest\"",
        ),
        (At::Manifest, "/layers/1/digest", json!(other), "is missing"),
        (At::Manifest, "/layers/1/digest", json!(""), "is no digest"),
        (
            At::Manifest,
            "/layers/1/size",
            json!(null),
            "no \"layers[1].size\"",
        ),
        (
            At::Manifest,
            "/layers/1/size",
            json!(-1),
            "layers[1].size: -1 is no length",
        ),
        (
            At::Manifest,
            "/layers/1/size",
            json!(14),
            "its descriptor says 14",
        ),
        (
            At::Manifest,
            "/layers/1/size",
            json!(LAYER_MAX + 1),
            "layers[1].size",
        ),
        (
            At::Manifest,
            "/layers/1",
            json!({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "digest": other, "size": 5, "urls": ["https://example.com"]}),
            "is kept elsewhere",
        ),
        (At::Config, "", json!("x"), "not a JSON object"),
        (
            At::Config,
            "/os",
            json!("windows"),
            "for windows, not for linux",
        ),
        (At::Config, "/os", json!(1), "not the JSON"),
        (At::Config, "/rootfs", json!(null), "no \"rootfs\""),
        (
            At::Config,
            "/rootfs/type",
            json!(null),
            "no \"rootfs.type\"",
        ),
        (
            At::Config,
            "/rootfs/type",
            json!("flat"),
            "rootfs.type is \"flat\"",
        ),
        (
            At::Config,
            "/rootfs/diff_ids",
            json!(null),
            "no \"rootfs.diff_ids\"",
        ),
        (At::Config, "/rootfs/diff_ids", json!("x"), "not the JSON"),
        (
            At::Config,
            "/rootfs/diff_ids",
            json!([other]),
            "1 layers, and the manifest 2",
        ),
        (
            At::Config,
            "/rootfs/diff_ids/1",
            json!("sha256:0"),
            "rootfs.diff_ids[1]",
        ),
        (
            At::Config,
            "/rootfs/diff_ids/1",
            json!(sha512),
            "another algorithm",
        ),
    ];
    for (at, pointer, value, why) in cases {
        eprintln!("{at:?} {pointer} {why}");
        let image = image(at, pointer, &value);
        let there = tempfile::tempdir().unwrap();
        let place = there.path().join("oci");
        write(&place, &image.files);
        refused(open("oci", &place), &place, why);
        let place = there.path().join("oci.tar");
        fs::write(&place, tar(&image.files)).unwrap();
        refused(open("oci-archive", &place), &place, why);
        if matches!(at, At::Manifest | At::Config) {
            // Here nothing leads to the manifest but its name.
            let why = match (pointer, &value) {
                ("/mediaType", value) if value == INDEX => "ambiguous",
                ("/mediaType", _) => "neither an image's manifest",
                ("", Value::Array(_)) => "of an unpacked docker archive",
                _ => why,
            };
            let place = there.path().join("dir");
            write(&place, &dir(&image));
            refused(open("dir", &place), &place, why);
        }
        if at == At::Config {
            let place = there.path().join("docker.tar");
            let name = format!("{}.json", Digest::of(&image.config).hex());
            let mut listed = docker_image();
            set(&mut listed, "/Config", &json!(name));
            let tar = docker(&json!([listed])).file(&name, &image.config);
            fs::write(&place, tar.end()).unwrap();
            refused(open("docker-archive", &place), &place, why);
        }
    }
}
