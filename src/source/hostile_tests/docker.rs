//! Docker's archives.

use super::*;
use crate::tar::testing::Raw;

pub(super) fn docker_image() -> Value {
    let config = format!("{}.json", Digest::of(&good().config).hex());
    json!({"Config": config, "RepoTags": ["foo/bar:1"], "Layers": ["a/layer.tar", "b/layer.tar"]})
}

/// The archive of `docker save` before version 25, without its end.
pub(super) fn docker(manifest: &Value) -> Tar {
    let image = good();
    let config = format!("{}.json", Digest::of(&image.config).hex());
    Tar::new()
        .dir("a/")
        .file("a/VERSION", b"1.0")
        .file("a/layer.tar", LAYERS[0])
        .dir("b/")
        .symlink("b/layer.tar", "../c/layer.tar")
        .dir("c/")
        .file("c/layer.tar", LAYERS[1])
        .file(&config, &image.config)
        .file("manifest.json", manifest.to_string().as_bytes())
}

#[test]
fn each_field_of_a_docker_archive_is_checked() {
    let there = tempfile::tempdir().unwrap();
    let place = there.path().join("d.tar");
    let id = Digest::of(b"x").hex();
    let wrong_name = format!("{id}.json");
    for (pointer, value, why) in [
        ("", json!({}), "not a JSON list"),
        ("", json!([]), "holds no image"),
        ("", json!(["x"]), "not the JSON"),
        ("/0/Config", json!(null), "no \"Config\""),
        ("/0/Config", json!(1), "not the JSON"),
        ("/0/Config", json!("none.json"), "none.json: is missing"),
        ("/0/Config", json!("../d.tar"), "leads out of the tar"),
        ("/0/Config", json!("/etc/passwd"), "leads out of the tar"),
        ("/0/Config", json!(""), "leads out of the tar or is none"),
        ("/0/Config", json!("a"), "is a directory"),
        ("/0/Config", json!("a/VERSION"), "not a JSON object"),
        ("/0/Config", json!(wrong_name), "damaged: its digest is"),
        ("/0/RepoTags", json!("x"), "not the JSON"),
        ("/0/Layers", json!(null), "no \"Layers\""),
        ("/0/Layers", json!("x"), "not the JSON"),
        (
            "/0/Layers",
            json!(["a/layer.tar"]),
            "2 layers, and the manifest 1",
        ),
        (
            "/0/Layers",
            json!(vec!["a/layer.tar"; LAYERS_MAX + 1]),
            "4097 layers",
        ),
        (
            "/0/Layers/1",
            json!("b/../c/layer.tar"),
            "leads out of the tar",
        ),
        ("/0/Layers/1", json!("d/layer.tar"), "is missing"),
        (
            "/0/Layers/1",
            json!("links/loop"),
            "a link that leads to no file",
        ),
        ("/0/Layers/1", json!("links/out"), "out of the tar"),
        (
            "/0/Layers/1",
            json!("links/absolute"),
            "/etc/passwd, out of the tar",
        ),
        (
            "/0/Layers/1",
            json!("links/dangling"),
            "which is not in the tar",
        ),
        ("/0/Layers/1", json!("links/fifo"), "is a FIFO, not a file"),
    ] {
        let mut manifest = json!([docker_image()]);
        set(&mut manifest, pointer, &value);
        let fifo = Raw::new(b'6', "links/fifo", 0);
        let tar = docker(&manifest)
            .symlink("links/loop", "pool")
            .symlink("links/pool", "./loop")
            .symlink("links/out", "../../x")
            .symlink("links/absolute", "/etc/passwd")
            .symlink("links/dangling", "nowhere")
            .file(&wrong_name, &good().config)
            .raw(fifo, b"");
        fs::write(&place, tar.end()).unwrap();
        refused(open("docker-archive", &place), &place, why);
    }
}

#[test]
fn the_images_of_a_docker_archive_are_chosen_by_name_place_or_id() {
    let there = tempfile::tempdir().unwrap();
    let place = there.path().join("d.tar");
    let second = image(At::Config, "/author", &json!("me")).config;
    let id = Digest::of(&second);
    let name = format!("blobs/sha256/{}", id.hex());
    let other = json!({"Config": name, "RepoTags": ["alpine:latest", "x:y"],
        "Layers": ["./a/layer.tar", "b/layer.tar"]});
    let untagged = json!({"Config": name, "RepoTags": null, "Layers": []});
    let images = json!([docker_image(), other, untagged]);
    fs::write(&place, docker(&images).file(&name, &second).end()).unwrap();
    let found = |behind: &str| open_as(&format!("docker-archive:{}{behind}", place.display()));
    let first = Digest::of(&good().config);
    for (behind, config) in [
        (":foo/bar:1", first),
        (":docker.io/foo/bar:1", first),
        (":@0", first),
        (&format!("@{first}"), first),
        (":alpine", id),
        (":docker.io/library/alpine:latest", id),
        (":x:y", id),
        (":@1", id),
    ] {
        assert_eq!(found(behind).unwrap().config, config, "{behind}");
    }
    let list = ":foo/bar:1, :alpine:latest, :x:y, :@2";
    for (behind, why) in [
        (
            "",
            &*format!("several images; say which, behind the path: {list}"),
        ),
        (":foo/bar", &format!("no such image; there are {list}")),
        (":@3", "no such image"),
        (&format!("@{id}"), "several images"),
        (":@x", "the place of an image"),
        (":", "no tag stands behind the colon"),
    ] {
        refused(found(behind), &place, why);
    }
}
