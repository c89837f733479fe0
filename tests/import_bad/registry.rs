//! Registries that are slow, break off, refuse or lie.

#[path = "../common/registry.rs"]
mod fake;

use serde_json::json;
use tarnfs::digest::Digest;

use super::common::Sandbox;
use super::common::image::root;
use super::{assert_nothing_left, assert_refusal};
use fake::{Answer, Fake, Images, Request};

/// An image of one layer.
fn images() -> Images {
    Images::of(&[&root("it", 300_000)])
}

/// Imports from a registry that answers so, which must be refused because of `why`; then from a
/// good one into the same store.
fn refused(
    what: &str,
    options: &[&str],
    why: &[&str],
    handler: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static,
) {
    let images = images();
    let good = images.clone();
    let fake = Fake::start(move |request| handler(request, images.answer(request)));
    let sandbox = Sandbox::new();
    let source = format!("docker://{}", fake.name("a/b"));
    let args = [&["import", "--retries=0", "--name=it"], options, &[&source]].concat();
    assert_refusal(&sandbox.tarnfs(args), why, what);
    assert_nothing_left(&sandbox, what);
    drop(fake);
    let fake = Fake::start(move |request| good.answer(request));
    let source = format!("docker://{}", fake.name("a/b"));
    sandbox.tarnfs_ok(["import", "--name=it", &source]);
    assert_eq!(
        sandbox.tarnfs_ok(["cat", "it", "/etc/os-release"]),
        "NAME=it\n"
    );
}

fn is_manifest(request: &Request) -> bool {
    request.path.contains("/manifests/")
}

fn is_layer(request: &Request) -> bool {
    let layer = Digest::of(&root("it", 300_000));
    request.path.ends_with(&layer.hex())
}

fn is_config(request: &Request) -> bool {
    request.is_blob() && !is_layer(request)
}

/// Answers instead of the image's documents and layers.
#[test]
fn statuses() {
    let cases: [(u16, &str, &[&str]); 7] = [
        (401, "", &["login", "podman login"]),
        (403, "", &["403"]),
        (403, "DENIED", &["denies access", "mine"]),
        (404, "", &["404"]),
        (429, "", &["429"]),
        (429, "TOOMANYREQUESTS", &["mine"]),
        (500, "", &["500"]),
    ];
    for (status, code, why) in cases {
        for (part, of) in [
            ("manifest", is_manifest as fn(&Request) -> bool),
            ("config", is_config),
            ("layer", is_layer),
        ] {
            let body = match code {
                "" => String::new(),
                code => json!({"errors": [{"code": code, "message": "mine"}]}).to_string(),
            };
            let why = [&["a/b:latest"], why].concat();
            let what = format!("{status} {code} of the {part}");
            refused(&what, &[], &why, move |request, answer| match of(request) {
                true => Answer::new(status, body.clone()),
                false => answer,
            });
        }
    }
}

/// Bytes that do not come, or are others.
#[test]
fn broken_bytes() {
    type Bad = fn(Answer) -> Answer;
    let flip = |request: &Request, answer: Answer, of: fn(&Request) -> bool| match of(request) {
        true => Answer::new(200, vec![b' '; 800]),
        false => answer,
    };
    refused("another layer", &[], &["layer", "sha256:"], move |r, a| {
        flip(r, a, is_layer)
    });
    refused(
        "another config",
        &[],
        &["config", "sha256:"],
        move |r, a| flip(r, a, is_config),
    );
    refused("no manifest", &[], &["a/b:latest", "JSON"], move |r, a| {
        flip(r, a, is_manifest)
    });
    let bads: [(&str, &[&str], Bad); 5] = [
        ("cut off", &[], |a| a.cut(100)),
        ("cut off at once", &[], |a| a.cut(0)),
        ("stalling", &["--timeout=1s"], |a| a.stall(100)),
        ("longer than it says", &[], |a| a.declare(100)),
        ("shorter than it says", &[], |a| a.declare(4 << 20)),
    ];
    for (what, options, bad) in bads {
        for (part, of) in [
            ("config", is_config as fn(&Request) -> bool),
            ("layer", is_layer),
        ] {
            let what = format!("the {part}, {what}");
            refused(&what, options, &["a/b"], move |request, answer| {
                match of(request) {
                    true => bad(answer),
                    false => answer,
                }
            });
        }
    }
}

/// A manifest of another digest than was asked for.
#[test]
fn digests_that_were_asked_for() {
    let images = images();
    let fake = Fake::start(move |request| images.answer(request));
    let sandbox = Sandbox::new();
    let asked = Digest::of(b"another");
    let source = format!("docker://{}@{asked}", fake.name("a/b"));
    let output = sandbox.tarnfs(["import", "--retries=0", &source]);
    assert_refusal(&output, &[&asked.hex()], "no such digest");
    assert_nothing_left(&sandbox, "no such digest");
}

/// What fails once is asked for again, so often and no oftener.
#[test]
fn retries() {
    for (retries, tries) in [("--retries=1", 2), ("--retries=0", 1)] {
        let images = images();
        let fake = Fake::start(move |request| match is_layer(request) {
            true => Answer::new(500, ""),
            false => images.answer(request),
        });
        let sandbox = Sandbox::new();
        let source = format!("docker://{}", fake.name("a/b"));
        let output = sandbox.tarnfs(["import", retries, &source]);
        assert_refusal(&output, &["500"], retries);
        assert_nothing_left(&sandbox, retries);
        assert_eq!(fake.count("/blobs/"), 1 + tries, "{retries}");
    }
}

/// Redirects are followed, but not for ever.
#[test]
fn redirects() {
    let images = images();
    let copy = images.clone();
    let store = Fake::start(move |request| copy.answer(request));
    let address = store.address;
    let fake = Fake::start(move |request| match is_layer(request) {
        true => {
            let to = format!("http://{address}{}", request.path);
            Answer::new(307, "").header("Location", to)
        }
        false => images.answer(request),
    });
    let sandbox = Sandbox::new();
    let source = format!("docker://{}", fake.name("a/b"));
    sandbox.tarnfs_ok(["import", &source]);
    refused(
        "in a circle",
        &[],
        &["redirect"],
        |request, answer| match is_layer(request) {
            true => Answer::new(307, "").header("Location", request.path.clone()),
            false => answer,
        },
    );
    refused("nowhere", &[], &["a/b"], |request, answer| {
        match is_layer(request) {
            true => Answer::new(307, ""),
            false => answer,
        }
    });
}

#[test]
fn nobody_there() {
    let fake = Fake::start(|_| Answer::new(200, ""));
    let source = format!("docker://{}", fake.name("a/b"));
    drop(fake);
    let sandbox = Sandbox::new();
    let output = sandbox.tarnfs(["import", "--retries=0", &source]);
    assert_refusal(&output, &["a/b", "refused"], "nobody listens");
    assert_nothing_left(&sandbox, "nobody listens");
    let fake = Fake::start(|_| Answer::new(200, "<html>welcome</html>"));
    let source = format!("docker://{}", fake.name("a/b"));
    let output = sandbox.tarnfs(["import", "--retries=0", &source]);
    assert_refusal(&output, &["a/b"], "a web server");
    assert_nothing_left(&sandbox, "a web server");
    for bad in ["--retries=-1", "--timeout=0", "--timeout=soon"] {
        assert_eq!(
            sandbox.tarnfs(["import", bad, &source]).status.code(),
            Some(2),
            "{bad}"
        );
    }
}
