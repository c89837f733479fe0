//! `docker://`: the registry client against a registry that behaves in every bad way. Nothing
//! here waits for time to pass: all pauses are of no length.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;
// Not in `common` itself: only tests of registries need TLS.
#[path = "common/registry.rs"]
mod fake;

use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{Answer, Fake, INDEX, Images, MANIFEST, Request, entry};
use serde_json::json;
use tarnfs::digest::Digest;
use tarnfs::source::registry::{Mirror, Patience, Registry, RegistryOptions};
use tarnfs::source::{Layer, Manifest, Source, SourceError};

/// No pauses, and no waiting that a slow machine could mistake for a stall.
fn options() -> RegistryOptions {
    RegistryOptions {
        certificate_dirs: Vec::new(),
        patience: Patience {
            tries: 4,
            pause: Duration::ZERO,
            longest_pause: Duration::ZERO,
            connect: Duration::from_secs(300),
            stall: Duration::from_secs(300),
            helper: Duration::from_secs(300),
        },
        ..RegistryOptions::default()
    }
}

fn open(fake: &Fake, name: &str, options: &RegistryOptions) -> Registry {
    Registry::open(&fake.name(name), options).unwrap()
}

fn manifest_of(registry: &Registry) -> Result<Manifest, SourceError> {
    registry.manifest(&"linux/amd64".parse().unwrap())
}

/// One line, and the line.
fn error(result: Result<Manifest, SourceError>) -> String {
    let error = result.unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    for secret in ["secret", "c2VjcmV0", "dXNlcjpzZWNyZXQ=", "the-token"] {
        assert!(!error.contains(secret), "{error}");
    }
    error
}

/// The error of asking a registry with this behaviour for `name`.
fn error_of(
    name: &str,
    handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> (String, Fake) {
    let fake = Fake::start(handler);
    let error = error(manifest_of(&open(&fake, name, &options())));
    (error, fake)
}

#[track_caller]
fn has(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

fn read(registry: &Registry, layer: &Layer) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    match registry.layer(layer).unwrap().read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => {
            let inner = error.get_ref().unwrap();
            assert!(inner.is::<SourceError>(), "{error}");
            let text = error.to_string();
            assert!(!text.contains('\n'), "{text}");
            Err(text)
        }
    }
}

/// Reads the one layer of an image from a registry that treats layers so.
fn layer_of(
    options: &RegistryOptions,
    len: usize,
    handler: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static,
) -> (Vec<u8>, Result<Vec<u8>, String>, Fake) {
    let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
    let images = Images::of(&[&bytes]);
    let blob = format!("blobs/{}", Digest::of(&bytes));
    let fake = Fake::start(move |request| {
        let answer = images.answer(request);
        if request.path.ends_with(&blob) {
            handler(request, answer)
        } else {
            answer
        }
    });
    let registry = open(&fake, "a/b", options);
    let manifest = manifest_of(&registry).unwrap();
    let result = read(&registry, &manifest.layers[0]);
    (bytes, result, fake)
}

/// A file with a login for everything that listens here.
fn login_file(fake: &Fake, dir: &tempfile::TempDir) -> RegistryOptions {
    let path = dir.path().join("auth.json");
    let auths = json!({"auths": {fake.address.to_string(): {"auth": "dXNlcjpzZWNyZXQ="}}});
    fs::write(&path, auths.to_string()).unwrap();
    RegistryOptions {
        auth_file: Some(path),
        ..options()
    }
}

const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

fn wants_basic() -> Answer {
    Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"")
}

/// A registry whose tokens come from itself; `token`: what it answers there.
fn with_tokens(
    images: Images,
    token: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    move |request| {
        if request.path.starts_with("/token") {
            return token(request);
        }
        if request.header("authorization") == Some("Bearer the-token") {
            return images.answer(request);
        }
        let host = request.header("host").unwrap();
        Answer::new(401, "").header(
            "WWW-Authenticate",
            format!("Bearer realm=\"http://{host}/token\",service=\"s\""),
        )
    }
}

fn gives_token() -> Answer {
    Answer::new(200, r#"{"token":"the-token"}"#)
}

// ---- images ----------------------------------------------------------------------------------

#[test]
fn an_image_is_what_the_registry_has() {
    let layers: [&[u8]; 3] = [b"one", b"two", b""];
    let images = Images::of(&layers);
    let top = Digest::of(&images.files["manifests/latest"]);
    let fake = Fake::start(move |request| images.answer(request));
    for name in ["a/b".to_owned(), "a/b:latest".into(), format!("a/b@{top}")] {
        let registry = open(&fake, &name, &options());
        let manifest = manifest_of(&registry).unwrap();
        assert_eq!((manifest.index, manifest.manifest), (None, Some(top)));
        assert_eq!(Digest::of(&manifest.config_json), manifest.config);
        for (layer, bytes) in manifest.layers.iter().zip(layers) {
            assert_eq!(layer.len, Some(bytes.len() as u64));
            assert_eq!(read(&registry, layer).unwrap(), bytes);
        }
    }
    assert_eq!(fake.count("/token"), 0);
    // One greeting for each image.
    let greetings = fake.requests().iter().filter(|r| r.path == "/v2/").count();
    assert_eq!(greetings, 3);
}

#[test]
fn inside_another_runtime() {
    let images = Images::of(&[b"x"]);
    let fake = Fake::start(move |request| images.answer(request));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let registry = open(&fake, "a", &options());
        let manifest = manifest_of(&registry).unwrap();
        let mut stream = registry.layer(&manifest.layers[0]).unwrap();
        drop(registry);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"x");
    });
}

#[test]
fn an_index_is_asked_for_the_platform() {
    let mut images = Images::default();
    let amd64 = images.image("amd64", &[b"amd64"]);
    let arm64 = images.image("arm64", &[b"arm64"]);
    let inner = images.document(&json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [entry("arm64", MANIFEST, &arm64), entry("amd64", MANIFEST, &amd64)],
    }));
    let mut nested = entry("", INDEX, &inner);
    nested.as_object_mut().unwrap().remove("platform");
    let outer = images.document(&json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [nested],
    }));
    images.tag("flat", &inner);
    images.tag("nested", &outer);
    let fake = Fake::start(move |request| images.answer(request));
    for (name, index) in [
        ("a:flat".to_owned(), &inner),
        ("a:nested".to_owned(), &outer),
        (format!("a@{}", Digest::of(&inner)), &inner),
        (format!("a:gone@{}", Digest::of(&outer)), &outer),
    ] {
        for (platform, manifest) in [("linux/amd64", &amd64), ("linux/arm64", &arm64)] {
            let registry = open(&fake, &name, &options());
            let found = registry.manifest(&platform.parse().unwrap()).unwrap();
            assert_eq!(found.index, Some(Digest::of(index)), "{name}");
            assert_eq!(found.manifest, Some(Digest::of(manifest)), "{name}");
        }
    }
    let registry = open(&fake, "a:flat", &options());
    let nothing = registry.manifest(&"linux/s390x".parse().unwrap());
    has(&error(nothing), &["linux/s390x", "linux/arm64"]);
}

#[test]
fn the_digest_of_a_configuration_is_not_enough() {
    let images = Images::of(&[b"x"]);
    let config = images
        .files
        .keys()
        .find(|key| key.starts_with("blobs/") && images.files[*key].starts_with(b"{"));
    let config = config.unwrap().trim_start_matches("blobs/").to_owned();
    let other = Digest::of(b"x");
    let fake = Fake::start(move |request| images.answer(request));
    let text = |digest: &str| {
        let registry = open(&fake, &format!("a@{digest}"), &options());
        error(manifest_of(&registry))
    };
    has(&text(&config), &["image ID", "by a tag"]);
    has(&text(&other.to_string()), &["no such image"]);
}

#[test]
fn bytes_that_are_not_those_of_the_digest() {
    let images = Images::of(&[b"x"]);
    let bytes = images.files["manifests/latest"].clone();
    let wanted = Digest::of(b"wanted");
    let (text, _fake) = error_of(&format!("a@{wanted}"), move |_| {
        Answer::new(200, bytes.clone())
    });
    has(&text, &["damaged", &wanted.to_string()]);

    // What it says of its own bytes.
    let bytes = images.files["manifests/latest"].clone();
    let (text, _fake) = error_of("a", move |request| match request.path.as_str() {
        "/v2/" => Answer::new(200, ""),
        _ => Answer::new(200, bytes.clone())
            .header("Docker-Content-Digest", Digest::of(b"other").to_string()),
    });
    has(
        &text,
        &["damaged", "says", &Digest::of(b"other").to_string()],
    );

    let (text, _fake) = error_of("a", |_| {
        Answer::new(200, "{}").header("Docker-Content-Digest", "odd")
    });
    has(&text, &["digest that makes no sense"]);

    // A configuration.
    let (text, _fake) = error_of("a", move |request| {
        if request.is_blob() {
            return Answer::new(200, "other");
        }
        images.answer(request)
    });
    has(&text, &["config", "damaged"]);
}

#[test]
fn what_is_no_manifest() {
    for (body, part) in [
        (&b"<!DOCTYPE html>\n<p>Log in</p>"[..], "a web page"),
        (b" \n", "answers with nothing"),
        (b"\x1f\x8b\x08\0\0", "compressed"),
        (b"plain words", "a:latest"),
        (b"{\"schemaVersion\":1}", "a:latest"),
        (
            b"{\"schemaVersion\":2,\"mediaType\":\"application/x\"}",
            "a:latest",
        ),
        (b"[]", "a:latest"),
    ] {
        let (text, fake) = error_of("a", move |_| Answer::new(200, body));
        has(&text, &[part]);
        assert_eq!(fake.count("/manifests/"), 1, "{text}");
    }
}

#[test]
fn long_manifests_are_not_read() {
    for declared in [true, false] {
        let (text, _fake) = error_of("a", move |request| match request.path.as_str() {
            "/v2/" => Answer::new(200, ""),
            _ if declared => Answer::new(200, "{").declare(usize::MAX / 4).stall(1),
            _ => Answer::new(200, vec![b' '; (4 << 20) + 1]),
        });
        has(&text, &["longer than 4194304 bytes"]);
    }
}

// ---- errors ----------------------------------------------------------------------------------

#[test]
fn what_is_not_there() {
    let (text, fake) = error_of("a:b", |request| Images::default().answer(request));
    has(
        &text,
        &["a:b: 127.0.0.1:", "no such image or tag", "no such thing"],
    );
    assert_eq!(fake.count("/manifests/"), 1);
    let (text, _fake) = error_of("a:b", |_| Answer::new(404, "<html>"));
    has(&text, &["no such image or tag (answers 404)"]);
}

#[test]
fn who_may_not() {
    for body in ["no", r#"{"errors":[{"code":"DENIED","message":"no"}]}"#] {
        let (text, fake) = error_of("a", move |_| Answer::new(403, body));
        has(&text, &["denies access", "podman login 127.0.0.1:"]);
        assert_eq!(fake.count("/manifests/"), 1);
    }
}

#[test]
fn a_fault_that_passes() {
    for status in [429, 500, 503] {
        for part in ["/manifests/", "/blobs/"] {
            let images = Images::of(&[b"x"]);
            let fake = Fake::start(move |request| {
                if request.path.contains(part) && request.nth < 2 {
                    return Answer::new(status, "later\nmore");
                }
                images.answer(request)
            });
            let registry = open(&fake, "a", &options());
            let manifest = manifest_of(&registry).unwrap();
            assert_eq!(read(&registry, &manifest.layers[0]).unwrap(), b"x");
        }
    }
}

#[test]
fn a_fault_that_stays() {
    for (status, parts) in [
        (429, ["too many requests", "wait, or log in"]),
        (500, ["answers 500, \"later more\"", "(tried 4 times)"]),
    ] {
        let (text, fake) = error_of("a", move |request| match request.path.as_str() {
            "/v2/" => Answer::new(200, ""),
            _ => Answer::new(status, "later\nmore"),
        });
        has(&text, &parts);
        assert_eq!(fake.count("/manifests/"), 4, "{text}");
    }
}

#[test]
fn nobody_there() {
    let fake = Fake::start(|_| Answer::new(200, ""));
    let name = fake.name("a");
    drop(fake);
    let registry = Registry::open(&name, &options()).unwrap();
    has(
        &error(manifest_of(&registry)),
        &["cannot be reached", "refused"],
    );
    let registry = Registry::open("host.invalid/a", &options()).unwrap();
    has(
        &error(manifest_of(&registry)),
        &["host.invalid cannot be reached"],
    );
}

#[test]
fn an_answer_that_does_not_come() {
    let mut options = options();
    options.patience.stall = Duration::from_millis(20);
    // A slow machine may take more than one try to answer in that time.
    options.patience.tries = u32::MAX;
    let images = Images::of(&[b"x"]);
    let fake = Fake::start(move |request| {
        let answer = images.answer(request);
        match request.nth {
            0 => answer.stall(0),
            _ => answer,
        }
    });
    manifest_of(&open(&fake, "a", &options)).unwrap();
    options.patience.tries = 2;
    let silent = Fake::start(|_| Answer::new(200, "{}").stall(0));
    let text = error(manifest_of(&open(&silent, "a", &options)));
    has(
        &text,
        &["broke off: nothing came for 0.02 s (tried 2 times)"],
    );
}

#[test]
fn redirects_that_do_not_end() {
    let (text, _fake) = error_of("a", |request| {
        Answer::new(307, "").header("Location", request.path.clone())
    });
    has(&text, &["redirect"]);
}

// ---- logins ----------------------------------------------------------------------------------

#[test]
fn a_token_for_anybody() {
    let images = Images::of(&[b"x"]);
    let fake = Fake::start(with_tokens(images, |request| {
        assert_eq!(request.header("authorization"), None);
        assert!(request.path.contains("scope=repository%3Aa%2Fb%3Apull"));
        assert!(request.path.contains("service=s"));
        gives_token()
    }));
    let registry = open(&fake, "a/b", &options());
    let manifest = manifest_of(&registry).unwrap();
    assert_eq!(read(&registry, &manifest.layers[0]).unwrap(), b"x");
    assert_eq!(fake.count("/token"), 1);
}

#[test]
fn a_token_for_a_user() {
    let dir = tempfile::tempdir().unwrap();
    let images = Images::of(&[b"x"]);
    let fake = Fake::start(with_tokens(images, |request| {
        match request.header("authorization") {
            Some(BASIC) => gives_token(),
            _ => Answer::new(
                401,
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}"#,
            ),
        }
    }));
    let login = login_file(&fake, &dir);
    manifest_of(&open(&fake, "a", &login)).unwrap();
    let text = error(manifest_of(&open(&fake, "a", &options())));
    has(&text, &["wants a login", "who?", "podman login 127.0.0.1:"]);
}

#[test]
fn tokens_that_are_none() {
    for (answer, part) in [
        (Answer::new(200, "<html>"), "no token"),
        (Answer::new(200, "{}"), "no token"),
        (Answer::new(200, r#"{"token":"wrong"}"#), "wants a login"),
        (
            Answer::new(200, r#"{"token":"a\nb"}"#),
            "token that cannot be sent",
        ),
        (Answer::new(200, r#"{"token":""}"#), "wants a login"),
        (
            Answer::new(429, r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#),
            "too many requests",
        ),
    ] {
        let handler = with_tokens(Images::of(&[]), move |_| answer.clone());
        let (text, _fake) = error_of("a", handler);
        has(&text, &[part]);
    }
}

#[test]
fn a_challenge_that_makes_no_sense() {
    for challenge in ["Bearer realm=\"not an address\"", "Bearer", "\u{e9}", ","] {
        let (text, fake) = error_of("a", move |_| {
            Answer::new(401, "").header("WWW-Authenticate", challenge)
        });
        has(&text, &["a:latest: 127.0.0.1:"]);
        assert!(fake.requests().len() < 8, "{text}: {:?}", fake.requests());
    }
}

#[test]
fn a_token_that_is_too_old_is_renewed() {
    let images = Images::of(&[b"x"]);
    let tokens = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tokens);
    let fake = Fake::start(move |request| {
        if request.path.starts_with("/token") {
            let n = tokens.fetch_add(1, Ordering::SeqCst);
            return Answer::new(200, format!(r#"{{"token":"t{n}"}}"#));
        }
        // Layers want a later token than manifests.
        let good = match request.header("authorization") {
            Some("Bearer t0") => !request.is_blob(),
            Some(_) => true,
            None => false,
        };
        if good {
            return images.answer(request);
        }
        let host = request.header("host").unwrap();
        Answer::new(401, "").header(
            "WWW-Authenticate",
            format!("Bearer realm=\"http://{host}/token\""),
        )
    });
    let registry = open(&fake, "a", &options());
    let manifest = manifest_of(&registry).unwrap();
    assert_eq!(read(&registry, &manifest.layers[0]).unwrap(), b"x");
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[test]
fn a_password() {
    let dir = tempfile::tempdir().unwrap();
    let images = Images::of(&[b"x"]);
    let fake = Fake::start(move |request| match request.header("authorization") {
        Some(BASIC) => images.answer(request),
        _ => wants_basic(),
    });
    let login = login_file(&fake, &dir);
    let registry = open(&fake, "a", &login);
    let manifest = manifest_of(&registry).unwrap();
    assert_eq!(read(&registry, &manifest.layers[0]).unwrap(), b"x");

    let text = error(manifest_of(&open(&fake, "a", &options())));
    has(&text, &["wants a login", "no login file was looked at"]);
    let elsewhere = RegistryOptions {
        auth_files: vec!["/nonexistent/auth.json".into()],
        ..options()
    };
    let text = error(manifest_of(&open(&fake, "a", &elsewhere)));
    has(&text, &["none is in /nonexistent/auth.json"]);

    let (_, refuses) = error_of("a", |_| wants_basic());
    let login = login_file(&refuses, &dir);
    let text = error(manifest_of(&open(&refuses, "a", &login)));
    has(&text, &["does not take the login from", "auth.json"]);
}

#[test]
fn a_login_goes_to_no_other_host() {
    for refused in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::of(&[b"x"]);
        let blobs = images.clone();
        let store = Fake::start(move |request| {
            let path = request.path.strip_suffix("?signature=x").unwrap();
            if refused {
                return Answer::new(403, "");
            }
            let mut request = request.clone();
            request.path.truncate(path.len());
            blobs.answer(&request)
        });
        let target = store.address;
        let fake = Fake::start(move |request| match request.header("authorization") {
            Some(BASIC) if request.is_blob() => Answer::new(307, "").header(
                "Location",
                format!("http://{target}{}?signature=x", request.path),
            ),
            Some(BASIC) => images.answer(request),
            _ => wants_basic(),
        });
        let registry = open(&fake, "a", &login_file(&fake, &dir));
        let result = manifest_of(&registry);
        if refused {
            let text = error(result);
            has(&text, &["denies access to who logs in from"]);
            assert!(!text.contains("signature"), "{text}");
        } else {
            let layer = &result.unwrap().layers[0];
            assert_eq!(read(&registry, layer).unwrap(), b"x");
        }
        assert!(!store.requests().is_empty());
        for request in store.requests() {
            assert_eq!(request.header("authorization"), None);
        }
    }
}

// ---- layers ----------------------------------------------------------------------------------

const LEN: usize = 300_000;

#[test]
fn a_layer_that_breaks_off_goes_on_where_it_was() {
    let (bytes, result, fake) = layer_of(&options(), LEN, |request, answer| {
        let answer = answer.range(request);
        if request.nth < 3 {
            answer.cut(70_000)
        } else {
            answer
        }
    });
    assert_eq!(result.unwrap(), bytes);
    let ranges: Vec<_> = fake.requests().iter().map(Request::from).collect();
    assert!(ranges.iter().all(|from| from % 70_000 == 0), "{ranges:?}");
    assert!(ranges.contains(&210_000), "{ranges:?}");
}

#[test]
fn a_layer_that_breaks_off_where_no_ranges_are_known() {
    let (bytes, result, fake) = layer_of(&options(), LEN, |request, answer| {
        if request.nth < 3 {
            answer.cut(70_000 * (3 - request.nth))
        } else {
            answer
        }
    });
    assert_eq!(result.unwrap(), bytes);
    assert_eq!(fake.requests().last().unwrap().from(), 210_000);
}

#[test]
fn ranges_that_are_wrong_are_not_asked_for_again() {
    for status in [206, 416] {
        let (bytes, result, _fake) = layer_of(&options(), LEN, move |request, answer| {
            match (request.nth, request.header("range")) {
                (0, _) => answer.cut(100_000),
                (_, None) => answer,
                // All of it, or nothing.
                (_, Some(_)) if status == 206 => Answer::new(206, vec![0; LEN]),
                (_, Some(_)) => Answer::new(416, ""),
            }
        });
        assert_eq!(result.unwrap(), bytes);
    }
}

#[test]
fn a_stalled_layer_goes_on() {
    let mut options = options();
    options.patience.stall = Duration::from_millis(20);
    // A slow machine may take more than one try to answer in that time.
    options.patience.tries = u32::MAX;
    let (bytes, result, fake) = layer_of(&options, LEN, |request, answer| {
        let answer = answer.range(request);
        if request.nth == 0 {
            answer.stall(100_000)
        } else {
            answer
        }
    });
    assert_eq!(result.unwrap(), bytes);
    assert!(fake.requests().len() > 3);
}

#[test]
fn a_layer_that_stays_short() {
    // Cut off each time, or too short by its own declaration.
    for cut in [true, false] {
        let (_, result, fake) = layer_of(&options(), LEN, move |request, answer| {
            if cut {
                answer.cut(1000)
            } else {
                // What comes as the rest is the same each time.
                Answer::new(206, vec![0; if request.nth == 0 { 1000 } else { 0 }])
            }
        });
        let text = result.unwrap_err();
        has(
            &text,
            &["/a/b:latest, layer sha256:", "1000 of 300000 bytes came"],
        );
        assert!(fake.count("/blobs/") < 20, "{}", fake.count("/blobs/"));
    }
}

#[test]
fn a_layer_that_is_too_long() {
    for declared in [true, false] {
        let (_, result, _fake) = layer_of(&options(), LEN, move |_, _| {
            let longer = Answer::new(200, vec![0; LEN + 1]);
            if declared { longer } else { longer.endless() }
        });
        has(&result.unwrap_err(), &["longer than the 300000 bytes"]);
    }
}

#[test]
fn a_damaged_layer_is_no_layer() {
    let (_, result, _fake) = layer_of(&options(), LEN, |_, _| Answer::new(200, vec![0; LEN]));
    has(&result.unwrap_err(), &["damaged"]);
}

#[test]
fn layers_by_many_threads_and_after_the_registry() {
    let layers: Vec<Vec<u8>> = (0..8).map(|n| vec![n; LEN]).collect();
    let slices: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let images = Images::of(&slices);
    let fake = Fake::start(move |request| images.answer(request));
    let registry = open(&fake, "a", &options());
    let manifest = manifest_of(&registry).unwrap();
    let streams: Vec<_> = manifest
        .layers
        .iter()
        .map(|layer| registry.layer(layer).unwrap())
        .collect();
    // One is never read, and one is left in the middle.
    drop(registry.layer(&manifest.layers[0]).unwrap());
    registry
        .layer(&manifest.layers[0])
        .unwrap()
        .read_exact(&mut [0; 10])
        .unwrap();
    drop(registry);
    std::thread::scope(|scope| {
        for (mut stream, bytes) in streams.into_iter().zip(&layers) {
            scope.spawn(move || {
                let mut read = Vec::new();
                stream.read_to_end(&mut read).unwrap();
                assert_eq!(&read, bytes);
            });
        }
    });
}

#[test]
fn a_reader_that_waits_holds_up_nobody() {
    let layers = [vec![1; 8 << 20], vec![2; 8 << 20]];
    let images = Images::of(&[&layers[0], &layers[1]]);
    let fake = Fake::start(move |request| images.answer(request));
    let registry = open(&fake, "a", &options());
    let manifest = manifest_of(&registry).unwrap();
    let mut first = registry.layer(&manifest.layers[0]).unwrap();
    first.read_exact(&mut [0]).unwrap();
    assert_eq!(read(&registry, &manifest.layers[1]).unwrap(), layers[1]);
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), (8 << 20) - 1);
}

// ---- mirrors and TLS -------------------------------------------------------------------------

#[test]
fn mirrors_come_first_and_may_fail() {
    let images = Images::of(&[b"x"]);
    let (here, there) = (images.clone(), images.clone());
    let origin = Fake::start(move |request| here.answer(request));
    let empty = Fake::start(|request| Images::default().answer(request));
    let broken = Fake::start(|_| Answer::new(500, ""));
    let gone = Fake::start(|_| Answer::new(200, "")).address.to_string();
    let mirror = |location: String| Mirror {
        prefix: origin.address.to_string(),
        location,
        insecure: false,
    };
    let mut options = options();
    options.mirrors = vec![
        Mirror {
            prefix: "quay.io".into(),
            location: "127.0.0.1:1".into(),
            insecure: false,
        },
        mirror(gone),
        mirror(empty.address.to_string()),
        mirror(broken.address.to_string()),
    ];
    let registry = open(&origin, "a/b", &options);
    let manifest = manifest_of(&registry).unwrap();
    assert_eq!(read(&registry, &manifest.layers[0]).unwrap(), b"x");
    assert_eq!(empty.count("/manifests/"), 1);
    assert_eq!(broken.count("/manifests/"), 4);
    // What had the manifest is asked for the rest.
    assert_eq!(empty.count("/blobs/"), 0);
    assert_eq!(origin.count("/blobs/"), 2);

    // One that works, under another name, but that lacks the layer.
    let layer = format!("blobs/{}", Digest::of(b"x"));
    let good = Fake::start(move |request| {
        if request.path.ends_with(&layer) {
            return Answer::new(404, "");
        }
        there.answer(request)
    });
    options.mirrors = vec![mirror(good.name("copies"))];
    let before = origin.requests().len();
    let registry = open(&origin, "a/b", &options);
    let manifest = manifest_of(&registry).unwrap();
    assert_eq!(origin.requests().len(), before);
    assert_eq!(good.count("/v2/copies/a/b/manifests/latest"), 1);
    assert_eq!(read(&registry, &manifest.layers[0]).unwrap(), b"x");

    // Where nothing helps, the registry's own word counts.
    let text = error(manifest_of(&open(&origin, "a/b:none", &options)));
    has(&text, &[&format!("{} has no such image", origin.address)]);

    options.mirrors = vec![mirror("not a host".into())];
    let error = Registry::open(&origin.name("a"), &options).unwrap_err();
    has(&error.to_string(), &["mirror \"not a host\""]);
}

/// A certificate for 127.0.0.1 with its key, and the authority's.
fn certificates(dir: &std::path::Path) -> Option<[Vec<u8>; 3]> {
    if !common::has("openssl") {
        return None;
    }
    let script = "set -e; cd \"$1\"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 \
            -subj /CN=authority -keyout ca.key -out ca.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
            -subj /CN=registry -keyout host.key -out host.csr
        printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' >ext
        openssl x509 -req -in host.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
            -days 3650 -extfile ext -out host.pem";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(dir);
    let output = common::run(command);
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    Some([read("host.pem"), read("host.key"), read("ca.pem")])
}

#[test]
fn certificates_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let Some([certificate, key, authority]) = certificates(dir.path()) else {
        return;
    };
    let images = Images::of(&[b"x"]);
    let fake = Fake::start_tls(&certificate, &key, move |request| images.answer(request));
    let mut options = options();
    let certs = dir.path().join("certs.d");
    options.certificate_dirs = vec![certs.clone()];
    let text = error(manifest_of(&open(&fake, "a", &options)));
    let place = certs.join(fake.address.to_string());
    has(
        &text,
        &["not trusted", place.to_str().unwrap(), "--insecure"],
    );

    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("ca.crt"), &authority).unwrap();
    manifest_of(&open(&fake, "a", &options)).unwrap();

    fs::write(place.join("ca.crt"), "-----BEGIN CERTIFICATE-----\n!").unwrap();
    let text = error(manifest_of(&open(&fake, "a", &options)));
    has(&text, &["TLS cannot be set up", place.to_str().unwrap()]);

    options.certificate_dirs.clear();
    options.insecure = true;
    manifest_of(&open(&fake, "a", &options)).unwrap();
}

/// What is written to the log while this and other tests of this file run.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_log_has_no_secrets() {
    let log = Log::default();
    let to = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || to.clone())
        .init();
    let dir = tempfile::tempdir().unwrap();
    let images = Images::of(&[b"x"]);
    let other = images.clone();
    let tokens = Fake::start(with_tokens(images, |_| gives_token()));
    let password = Fake::start(move |request| match request.header("authorization") {
        Some(BASIC) => other.answer(request),
        _ => wants_basic(),
    });
    for fake in [&tokens, &password] {
        let registry = open(fake, "a", &login_file(fake, &dir));
        let manifest = manifest_of(&registry).unwrap();
        read(&registry, &manifest.layers[0]).unwrap();
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("asking"), "{log}");
    for secret in ["secret", "dXNlcjpzZWNyZXQ", "the-token"] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}

// ---- the program's own side ------------------------------------------------------------------

#[test]
fn names() {
    let registry = Registry::open("debian:12", &options()).unwrap();
    assert_eq!(registry.name(), "docker.io/library/debian:12");
    let error = Registry::open("De bian", &options()).unwrap_err();
    assert!(matches!(error, SourceError::Asked(_)), "{error}");
}

#[test]
fn login_files_that_are_not_there_are_named() {
    let fake = Fake::start(|_| Answer::new(200, ""));
    let options = RegistryOptions {
        auth_file: Some("/nonexistent/auth.json".into()),
        ..options()
    };
    let text = error(manifest_of(&open(&fake, "a", &options)));
    has(&text, &["/nonexistent/auth.json"]);
}
