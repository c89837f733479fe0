use std::collections::BTreeMap;

use super::*;
use serde_json::{Value, json as js};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn entry(media_type: &str, bytes: &[u8]) -> Value {
    js!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

/// Documents by their digests.
#[derive(Default)]
struct Shelf(BTreeMap<Digest, Vec<u8>>);

impl Blobs for Shelf {
    fn json(&self, entry: &Descriptor, _: u64, what: &str) -> Result<Vec<u8>, SourceError> {
        let bytes = self.0.get(&entry.digest);
        bytes.cloned().ok_or_else(|| bad(what, "is missing"))
    }

    fn layer(&self, _: &Descriptor, _: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

impl Shelf {
    fn put(&mut self, media_type: &str, json: &Value) -> Value {
        let bytes = json.to_string().into_bytes();
        let entry = entry(media_type, &bytes);
        self.0.insert(Digest::of(&bytes), bytes);
        entry
    }

    /// An image whose configuration is told apart by `name`.
    fn image(&mut self, name: &str) -> Value {
        let config = self.put(
            CONFIG,
            &js!({"os": "linux", "author": name, "rootfs":
                {"type": "layers", "diff_ids": [Digest::of(b"layer")]}}),
        );
        let layer = entry(LAYER, b"layer");
        self.put(
            MANIFEST,
            &js!({"schemaVersion": 2, "config": config, "layers": [layer]}),
        )
    }

    fn index(&mut self, entries: &[Value]) -> Value {
        self.put(INDEX, &js!({"schemaVersion": 2, "manifests": entries}))
    }

    fn resolve(&self, top: &[Value], platform: &str) -> Result<Manifest, SourceError> {
        let top = js!({"schemaVersion": 2, "manifests": top}).to_string();
        let top = index(top.as_bytes(), None, "top")?;
        resolve(&top.manifests, &platform.parse().unwrap(), "here", self)
    }

    /// The author of the image for `platform`.
    fn author(&self, top: &[Value], platform: &str) -> String {
        let found = self.resolve(top, platform).unwrap();
        let config: Value = serde_json::from_slice(&found.config_json).unwrap();
        config["author"].as_str().unwrap().to_owned()
    }
}

fn with(mut entry: Value, key: &str, value: Value) -> Value {
    entry[key] = value;
    entry
}

fn on(entry: Value, platform: &str) -> Value {
    let platform: Platform = platform.parse().unwrap();
    let value = js!({"os": platform.os, "architecture": platform.architecture,
        "variant": platform.variant});
    with(entry, "platform", value)
}

#[test]
fn the_platform_that_was_asked_for_is_chosen() {
    let mut blobs = Shelf::default();
    let mut top = Vec::new();
    for platform in [
        "windows/amd64",
        "linux/amd64",
        "linux/arm/v6",
        "linux/arm/v7",
        "linux/arm64",
        "linux/arm64/v9",
        "linux/amd64/v3",
    ] {
        let image = blobs.image(platform);
        top.push(on(image, platform));
    }
    for (asked, got) in [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/arm", "linux/arm/v6"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64/v9", "linux/arm64/v9"),
    ] {
        assert_eq!(blobs.author(&top, asked), got, "{asked}");
    }
    for missing in ["linux/s390x", "linux/arm64/v10", "freebsd/amd64"] {
        let error = blobs.resolve(&top, missing).unwrap_err().to_string();
        assert!(error.starts_with("here: no image for "), "{error}");
        assert!(error.contains("linux/arm/v6, linux/arm/v7"), "{error}");
    }
    let nested = blobs.index(&top);
    assert_eq!(blobs.author(&[nested], "linux/arm/v7"), "linux/arm/v7");
}

#[test]
fn attestations_are_never_chosen_and_a_lone_image_needs_no_platform() {
    let mut blobs = Shelf::default();
    let image = blobs.image("real");
    let statement = blobs.image("statement");
    let statements = [
        on(statement.clone(), "unknown/unknown"),
        with(
            statement.clone(),
            "annotations",
            js!({"vnd.docker.reference.type": "attestation-manifest"}),
        ),
    ];
    for one in statements {
        assert_eq!(
            blobs.author(&[one.clone(), image.clone()], "linux/arm64"),
            "real"
        );
        let error = blobs
            .resolve(&[one], "linux/amd64")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "here: it lists no image");
    }
    assert_eq!(
        blobs.author(&[image.clone(), image.clone()], "linux/s390x"),
        "real"
    );
    let error = blobs.resolve(&[image, statement.clone()], "linux/amd64");
    let error = error.unwrap_err().to_string();
    let listed = format!(
        "one without a platform ({})",
        statement["digest"].as_str().unwrap()
    );
    assert!(error.contains(&listed), "{error}");
}

#[test]
fn the_outermost_index_is_told() {
    let mut blobs = Shelf::default();
    let image = blobs.image("x");
    let inner = blobs.index(&[on(image.clone(), "linux/amd64")]);
    let outer = blobs.index(std::slice::from_ref(&inner));
    let found = blobs
        .resolve(std::slice::from_ref(&outer), "linux/amd64")
        .unwrap();
    assert_eq!(js!(found.index), outer["digest"]);
    assert_eq!(js!(found.manifest), image["digest"]);
    assert_eq!(found.layers.len(), 1);
    assert_eq!(found.layers[0].len, Some(5));
    let found = blobs.resolve(&[image], "linux/amd64").unwrap();
    assert_eq!(found.index, None);
}

#[test]
fn indexes_do_not_lead_on_without_end() {
    let mut blobs = Shelf::default();
    let mut entry = blobs.image("x");
    for _ in 0..8 {
        entry = blobs.index(&[entry]);
    }
    assert_eq!(
        blobs.author(std::slice::from_ref(&entry), "linux/amd64"),
        "x"
    );
    let deeper = blobs.index(&[entry]);
    let error = blobs
        .resolve(&[deeper], "linux/amd64")
        .unwrap_err()
        .to_string();
    assert!(error.contains("more than 8 deep"), "{error}");
    // 8 levels of which each lists the next a hundred times.
    let image = blobs.image("y");
    let mut entry = blobs.index(&[on(image, "linux/s390x")]);
    for _ in 0..7 {
        entry = blobs.index(&vec![entry; 100]);
    }
    let error = blobs
        .resolve(&[entry], "linux/amd64")
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("there are linux/s390x"), "{error}");
    // Very many.
    let many: Vec<Value> = (0..300)
        .map(|n| {
            let image = blobs.image(&n.to_string());
            blobs.index(&[on(image, "linux/s390x")])
        })
        .collect();
    let error = blobs.resolve(&many, "linux/amd64").unwrap_err().to_string();
    assert!(error.contains("more than 256 indexes"), "{error}");
}

#[test]
fn an_index_that_names_itself_is_damaged() {
    let digest = Digest::of(b"anything");
    let own = js!({"mediaType": INDEX, "digest": digest, "size": 1});
    let bytes = js!({"schemaVersion": 2, "manifests": [own]}).to_string();
    let mut blobs = Shelf::default();
    let top = js!({"mediaType": INDEX, "digest": digest, "size": bytes.len()});
    blobs.0.insert(digest, bytes.into_bytes());
    let error = blobs
        .resolve(&[top], "linux/amd64")
        .unwrap_err()
        .to_string();
    assert!(error.contains("damaged: its digest is sha256:"), "{error}");
}

#[test]
fn dockers_media_types_are_as_good() {
    let mut blobs = Shelf::default();
    let config = js!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": null}});
    let config = blobs.put("application/vnd.docker.container.image.v1+json", &config);
    let media_type = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = blobs.put(
        media_type,
        &js!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": null}),
    );
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = blobs.put(
        list,
        &js!({"schemaVersion": 2, "mediaType": list,
            "manifests": [on(manifest, "linux/amd64")]}),
    );
    assert_eq!(blobs.resolve(&[list], "linux/amd64").unwrap().layers, []);
    for (text, kind) in [
        (
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Kind::Layer,
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            Kind::Foreign,
        ),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Kind::Layer),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            Kind::Foreign,
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            Kind::Encrypted,
        ),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            Kind::Schema1,
        ),
        ("application/vnd.oci.image.layer.v1.squashfs", Kind::Unknown),
        ("", Kind::Unknown),
    ] {
        assert_eq!(Kind::of(text), kind, "{text}");
    }
}

#[test]
fn what_is_an_index_to_one_is_no_manifest_to_another() {
    let one = entry(CONFIG, b"x");
    let manifest = js!({"schemaVersion": 2, "config": one, "layers": []});
    let both = with(manifest.clone(), "manifests", js!([]));
    let named = with(manifest.clone(), "mediaType", js!(INDEX));
    for (json, media_type, why) in [
        (&both, Some(MANIFEST), "ambiguous"),
        (&both, Some(INDEX), "ambiguous"),
        (&both, None, "ambiguous"),
        (&named, Some(MANIFEST), "what led here says"),
        (&named, None, "ambiguous"),
        (&manifest, Some(INDEX), "ambiguous"),
        (&manifest, Some("text/html"), "neither an image's manifest"),
    ] {
        let error = document(json.to_string().as_bytes(), media_type, "it").unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let bytes = manifest.to_string();
    let told = format!("{MANIFEST}; charset=utf-8");
    assert!(document(bytes.as_bytes(), Some(&told), "it").is_ok());
    assert!(document(bytes.as_bytes(), None, "it").is_ok());
}

#[test]
fn documents_are_bounded() {
    let layer = entry(LAYER, b"x");
    let config = entry(CONFIG, b"x");
    let manifest = |layers: usize| {
        let layers = vec![layer.clone(); layers];
        let json = js!({"schemaVersion": 2, "config": config, "layers": layers});
        document(json.to_string().as_bytes(), None, "it")
    };
    assert!(manifest(LAYERS_MAX).is_ok());
    let error = manifest(LAYERS_MAX + 1).unwrap_err().to_string();
    assert!(error.contains("4097 layers"), "{error}");
    let long = vec![b' '; usize::try_from(MANIFEST_MAX).unwrap() + 1];
    let error = document(&long, None, "it").unwrap_err().to_string();
    assert!(error.contains("at most 4194304"), "{error}");
    // As deep as bytes allow.
    let deep = [&b"{\"a\":"[..], &vec![b'['; 1 << 20]].concat();
    let error = document(&deep, None, "it").unwrap_err().to_string();
    assert!(error.contains("not the JSON"), "{error}");
    // A long text is cut in the message.
    let text = format!("{{\"schemaVersion\": \"{}\"}}", "x".repeat(1 << 20));
    let error = document(text.as_bytes(), None, "it")
        .unwrap_err()
        .to_string();
    assert!(error.len() < 400 && !error.contains('\n'), "{error}");
}

#[test]
fn no_change_of_a_byte_is_more_than_an_error() {
    let mut blobs = Shelf::default();
    let image = blobs.image("x");
    blobs.index(&[on(image, "linux/amd64")]);
    let platform: Platform = "linux/amd64".parse().unwrap();
    for bytes in blobs.0.values() {
        for at in 0..bytes.len() {
            for change in [1, 0x20, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[at] ^= change;
                for error in [
                    document(&bad, None, "it").err(),
                    config(&bad, &platform, "it").err(),
                ] {
                    let text = error.map(|error| error.to_string()).unwrap_or_default();
                    assert!(!text.contains('\n') && text.len() < 500, "{text}");
                }
            }
            assert!(document(&bytes[..at], None, "it").is_err());
        }
    }
}
