//! `run` and `bundle` of images of the store: what their configurations say.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::common::image::{Doc, Layout, Stored};
use super::common::tarball::{Header, Tarball};
use super::common::{Sandbox, assert_ok, can_mount, run, text};
use super::{bad, good, import};

/// A root with a shell, its libraries, and an entry point that tells what it was started as.
fn shell_root() -> Vec<u8> {
    let program = |tar: Tarball, name: &str, content: &[u8]| {
        let mut header = Header::new(name.as_bytes(), b'0', content.len() as u64);
        header.put(100, b"0000755\0");
        tar.header(&header).body(content)
    };
    let mut tar = program(Tarball::default(), "bin/sh", &fs::read("/bin/sh").unwrap());
    let mut ldd = Command::new("ldd");
    ldd.arg("/bin/sh");
    for line in text(&run(ldd).stdout).lines() {
        if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
            let content = fs::read(library).unwrap();
            tar = program(tar, library.trim_start_matches('/'), &content);
        }
    }
    let tell = b"#!/bin/sh\necho entry \"$@\"; echo in $PWD; echo color $COLOR; echo path $PATH\necho user $(while read -r k a b; do case $k in Uid:) echo $a;; esac; done </proc/self/status)\n";
    let dir = |tar: Tarball, name: &str| {
        let mut header = Header::new(name.as_bytes(), b'5', 0);
        tar.header(header.put(100, b"0000755\0"))
    };
    let tar = program(tar, "tell", tell);
    ["etc/", "srv/", "proc/", "dev/", "sys/", "tmp/"]
        .into_iter()
        .fold(tar, dir)
        .file(
            b"etc/passwd",
            b"root:x:0:0::/root:/bin/sh\napp:x:7:8::/srv:/bin/sh\n",
        )
        .end()
}

/// Imports the image of it under the name `app`.
fn import_app(sandbox: &Sandbox, config: Value) {
    let layers = [Stored::zstd(&shell_root())];
    let layout = Layout::changed(&layers, |doc, value| {
        if doc == Doc::Config {
            value["config"] = config.clone();
        }
    });
    let dir = sandbox.dir("app.oci");
    layout.write(&dir);
    good(
        sandbox,
        &["import", "--name=app", &format!("oci:{}", dir.display())],
    );
}

fn config() -> Value {
    json!({
        "Entrypoint": ["/tell"],
        "Cmd": ["serve", "it all"],
        "Env": ["PATH=/bin", "COLOR=red"],
        "User": "app",
        "WorkingDir": "/srv",
        "Labels": null,
        "Volumes": {"/data": {}},
    })
}

#[test]
fn run_does_what_the_image_says() {
    if !can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    import_app(&sandbox, config());
    assert_eq!(
        good(&sandbox, &["run", "app"]),
        "entry serve it all\nin /srv\ncolor red\npath /bin\nuser 7\n"
    );
    let asked = ["-e", "COLOR=blue", "-w", "/tmp", "-u", "0"];
    assert_eq!(
        good(
            &sandbox,
            &[&["run"], &asked[..], &["app", "--", "once"]].concat()
        ),
        "entry once\nin /tmp\ncolor blue\npath /bin\nuser 0\n"
    );
    // Another entry point has the image's command no longer.
    let shell = [
        "run",
        "--entrypoint",
        "/bin/sh",
        "app",
        "--",
        "-c",
        "echo $0 $# $COLOR",
    ];
    assert_eq!(good(&sandbox, &shell), "/bin/sh 0 red\n");
    let bare = [
        "run",
        "--clear-env",
        "--entrypoint=/bin/sh",
        "app",
        "-c",
        "echo [$COLOR]",
    ];
    assert_eq!(good(&sandbox, &bare), "[]\n");
    // By the layout itself, too, which is the same image: nothing is imported again.
    let source = format!("oci:{}", sandbox.at("app.oci").display());
    assert!(good(&sandbox, &["run", &source]).starts_with("entry serve"));
    assert_eq!(good(&sandbox, &["images", "-q"]).lines().count(), 1);
}

#[test]
fn configurations_with_holes() {
    if !can_mount() {
        return;
    }
    for (config, args, said) in [
        (json!(null), &["--", "/bin/sh", "-c", "echo hi"][..], "hi\n"),
        (json!({}), &["--", "/bin/sh", "-c", "echo hi"], "hi\n"),
        (
            json!({"Entrypoint": null, "Cmd": ["/bin/sh", "-c", "echo cmd"], "Env": null, "User": ""}),
            &[],
            "cmd\n",
        ),
        (
            json!({"Entrypoint": [], "Cmd": ["/bin/sh", "-c", "echo cmd"]}),
            &["--", "/bin/sh", "-c", "echo mine"],
            "mine\n",
        ),
    ] {
        let sandbox = Sandbox::new();
        import_app(&sandbox, config.clone());
        assert_eq!(
            good(&sandbox, &[&["run", "app"], args].concat()),
            said,
            "{config}"
        );
    }
    // What makes no sense is said, in one line, by `run`, which has a status of its own for that.
    for (config, why) in [
        (json!({"Cmd": ["/none"]}), "/none"),
        (json!({"Cmd": "text"}), "configuration"),
        (
            json!({"Cmd": ["/bin/sh"], "User": "nobody-of-this-name"}),
            "nobody-of-this-name",
        ),
        (json!({"Cmd": ["/bin/sh"], "WorkingDir": "../x"}), "../x"),
    ] {
        let sandbox = Sandbox::new();
        import_app(&sandbox, config.clone());
        let output = sandbox.tarnfs(["run", "app"]);
        let said = text(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(125..=127)),
            "{config}: {said}"
        );
        assert!(
            said.lines().count() == 1 && said.contains(why),
            "{config}: {said}"
        );
    }
}

#[test]
fn a_bundle_keeps_its_image() {
    if !can_mount() {
        return;
    }
    let sandbox = Sandbox::new();
    import_app(&sandbox, config());
    let other = import(&sandbox, "other", &super::two_layers("x"));
    let dir = sandbox.at("b");
    let path = dir.to_str().unwrap();
    good(&sandbox, &["bundle", "app", path]);
    let spec: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    let process = &spec["process"];
    assert_eq!(process["args"], json!(["/tell", "serve", "it all"]));
    assert_eq!(process["cwd"], "/srv");
    assert_eq!(
        (&process["user"]["uid"], &process["user"]["gid"]),
        (&json!(7), &json!(8))
    );
    let env = process["env"].as_array().unwrap();
    assert!(env.contains(&json!("COLOR=red")) && env.contains(&json!("PATH=/bin")));
    // Unmounted, as after a restart, it is the bundle's still.
    unmount(&sandbox, &dir.join("rootfs"));
    for args in [&["rm", "app"][..], &["rm", "--ignore", "app"]] {
        assert!(bad(&sandbox, args).contains("counts on it"));
    }
    let told = good(&sandbox, &["gc", "--all", "--min-age=0"]);
    assert!(told.contains(&other) && !told.contains("/tell"), "{told}");
    assert_eq!(good(&sandbox, &["images", "-q"]).lines().count(), 1);
    // A name that goes elsewhere does not change what the bundle is.
    import(&sandbox, "app", &super::two_layers("y"));
    assert!(bad(&sandbox, &["bundle", "app", path]).contains("remove it first"));
    good(&sandbox, &["bundle", "--remove", path]);
    good(&sandbox, &["gc", "--all", "--min-age=0"]);
    assert_eq!(good(&sandbox, &["images", "-q"]), "");
}

fn unmount(sandbox: &Sandbox, at: &Path) {
    let output = sandbox.tarnfs(["umount".as_ref(), at.as_os_str()]);
    assert_ok(&output, "umount");
}
