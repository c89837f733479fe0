//! Actors among those who get in the way: calls that hang, mounts of others below an upper, a store
//! that is called otherwise or was moved.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::actors::World;
use common::{Sandbox, assert_ok, can_mount, mounts_below, ok, pack, text};
use rustix::process::{Pid, Signal, kill_process};
use tarnfs::actors::{Actors, Begun, Error, Stop};

fn world() -> Option<World> {
    can_mount().then(World::new)
}

impl World {
    fn at(&self, name: &str) -> String {
        self.sandbox.at(name).to_str().unwrap().to_owned()
    }

    fn actors(&self) -> PathBuf {
        self.sandbox.at("store").join("actors")
    }

    fn call(&self, store: &str, args: &[&str]) -> Command {
        let mut command = Command::new(common::TARNFS);
        command
            .current_dir(self.sandbox.path())
            .env("TARNFS_STORE", store)
            .arg("actor")
            .args(args);
        command
    }

    /// A call that is at work on `a`, and whose reader takes one byte and no more.
    fn hangs(&self) -> Child {
        let mut diff = self
            .call(&self.at("store"), &["diff", "-o", "-", "a"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut byte = [0];
        let output = diff.stdout.as_mut().unwrap();
        output.read_exact(&mut byte).unwrap();
        diff
    }
}

#[test]
fn a_call_that_hangs_is_named_and_can_be_cut_off() {
    let Some(world) = world() else { return };
    for stopped in [false, true] {
        let point = PathBuf::from(world.actor(&["create", "--start", "a", "img"]).trim_end());
        // More than a pipe takes.
        fs::write(point.join("large"), vec![b'x'; 4 << 20]).unwrap();
        let mut diff = world.hangs();
        if stopped {
            kill_process(Pid::from_child(&diff), Signal::STOP).unwrap();
        }
        // Who writes goes on.
        let writers: Vec<Child> = (0..6)
            .map(|n| {
                let script = format!("echo x >'{}/{n}'", point.display());
                let mut sh = Command::new("sh");
                sh.args(["-c", &script]).stderr(Stdio::null());
                sh.spawn().unwrap()
            })
            .collect();
        for mut writer in writers {
            assert!(writer.wait().unwrap().success());
        }
        fs::write(point.join("large"), vec![b'y'; 4 << 20]).unwrap();
        let by = format!("process {} is at work", diff.id());
        for call in ["stop", "reset", "destroy"] {
            world.refused(&[call, "--timeout", "0", "a"], &by);
        }
        assert_eq!(world.state("a"), "mounted");
        world.actor(&["destroy", "--force", "--timeout", "1", "a"]);
        let ended = diff.wait().unwrap();
        assert_eq!(ended.signal(), Some(libc::SIGKILL));
        world.assert_none();
    }
}

#[test]
fn what_others_have_mounted_below_an_upper_is_not_removed() {
    let Some(world) = world() else { return };
    let theirs = world.sandbox.dir("theirs");
    fs::write(theirs.join("precious"), "x").unwrap();
    world.actor(&["create", "--upper", &world.at("upper"), "dir", "img"]);
    world.actor(&["create", "disk", "img"]);
    let own = world.actors().join("disk/upper");
    for (id, upper) in [("dir", world.sandbox.at("upper")), ("disk", own)] {
        fs::create_dir_all(upper.join("below")).unwrap();
        fs::write(upper.join("written"), "x").unwrap();
        let below = upper.join("below");
        let below = below.to_str().unwrap();
        ok("mount", ["--bind", theirs.to_str().unwrap(), below]);
        world.refused(
            &["reset", "--force", id],
            "below: something else is mounted",
        );
        if id == "disk" {
            world.refused(&["destroy", id], "below: something else is mounted");
        }
        assert_eq!(world.state(id), "created");
        assert!(upper.join("written").exists(), "{id}: half done");
        assert!(theirs.join("precious").exists(), "{id}");
        ok("umount", [below]);
        if id == "dir" {
            world.refused(&["reset", id], "not of this actor");
        }
        assert!(upper.join("written").exists(), "{id}");
        world.actor(&["reset", "--force", id]);
        assert_eq!(fs::read_dir(&upper).unwrap().count(), 0);
    }
    world.actor(&["destroy", "dir", "disk"]);
    world.assert_none();
}

#[test]
fn a_store_may_be_called_otherwise_and_be_moved() {
    let Some(world) = world() else { return };
    symlink("store", world.sandbox.at("link")).unwrap();
    fs::create_dir(world.sandbox.at("a\nb c")).unwrap();
    symlink("../store", world.sandbox.at("a\nb c/s")).unwrap();
    let names = [
        world.at("link"),
        "link".to_owned(),
        "./theirs/../store/".to_owned(),
        "a\nb c/s".to_owned(),
        world.at("store"),
    ];
    fs::create_dir(world.sandbox.at("theirs")).unwrap();
    for started in &names {
        for other in &names {
            let call = |store: &str, args: &[&str]| {
                let output = common::run(world.call(store, args));
                assert_ok(&output, &format!("{args:?} by {store:?}"));
                text(&output.stdout)
            };
            call(started, &["create", "--start", "a", "img"]);
            let listed = call(other, &["list"]);
            assert!(listed.contains("mounted"), "{started}, {other}: {listed}");
            call(other, &["destroy", "a"]);
            world.assert_none();
        }
    }

    // Wherever its actors are mounted. One of the same id elsewhere is none of them.
    let (point, bundle) = (world.at("point"), world.at("bundle"));
    world.actor(&["create", "--start", "a", "img"]);
    world.actor(&["create", "--start", "--mount", &point, "b", "img"]);
    let bundled = ["create", "--start", "--bundle", &bundle, "c", "img", "x"];
    world.actor(&bundled);
    let (moved, other) = (world.at("moved"), world.at("other"));
    let tar = world.at("image.tar");
    let call = |store: &str, args: &[&str]| {
        let output = common::run(world.call(store, args));
        assert_ok(&output, &format!("{args:?} by {store:?}"));
        text(&output.stdout)
    };
    fs::rename(world.sandbox.at("store"), &moved).unwrap();
    let elsewhere = call(&other, &["create", "--start", "b", &tar]);
    assert_eq!(call(&other, &["list"]).matches("  mounted  ").count(), 1);
    assert_eq!(call(&moved, &["list"]).matches("  mounted  ").count(), 3);
    call(&moved, &["stop", "a", "b", "c"]);
    assert_eq!(call(&moved, &["list"]).matches("  stopped  ").count(), 3);
    assert!(Path::new(elsewhere.trim_end()).join("file").exists());
    assert!(!Path::new(&point).join("file").exists());
    call(&moved, &["start", "b"]);
    assert!(Path::new(&point).join("file").exists());
    call(&moved, &["destroy", "a", "b", "c"]);
    call(&other, &["destroy", "b"]);
    assert!(mounts_below(world.sandbox.path()).is_empty());
}

#[test]
fn nothing_of_the_callers_lies_among_the_actors() {
    let Some(world) = world() else { return };
    world.actor(&["create", "a", "img"]);
    symlink(world.actors().join("a"), world.sandbox.at("link")).unwrap();
    for how in ["--mount", "--upper", "--bundle"] {
        for place in ["store/actors/a/upper", "link/rootfs/etc", "store/actors/x"] {
            let args = ["create", how, &world.at(place), "b", "img"];
            world.refused(&args, "of the store's actors");
        }
    }
    assert_eq!(world.actor(&["list", "-q"]), "a\n");
}

/// A mount would hide the store, and a reset remove it.
#[test]
fn the_store_is_neither_hidden_nor_emptied() {
    let Some(world) = world() else { return };
    symlink(world.sandbox.path(), world.sandbox.at("above")).unwrap();
    let elsewhere = Sandbox::new();
    let point = elsewhere.at("point").to_str().unwrap().to_owned();
    let upper = world.at("upper");
    for how in ["--mount", "--upper", "--work"] {
        let given: &[&str] = match how {
            "--work" => &["--mount", &point, "--upper", &upper],
            "--upper" => &["--mount", &point],
            _ => &[],
        };
        let link = if how == "--mount" { "" } else { "above" };
        for place in ["store", "", link] {
            let at = world.at(place);
            let args = [&["create"], given, &[how, &at, "b", "img"]].concat();
            world.refused(&args, "the store is in it");
        }
        let at = world.at("store/images");
        let args = [&["create"], given, &[how, &at, "b", "img"]].concat();
        world.refused(&args, "in the store");
    }
    fs::create_dir(world.sandbox.at("bundle")).unwrap();
    symlink(world.sandbox.path(), world.sandbox.at("bundle/rootfs")).unwrap();
    let args = ["create", "--bundle", &world.at("bundle"), "b", "img"];
    let output = world.sandbox.tarnfs([&["actor"], &args[..]].concat());
    assert!(!output.status.success());
    assert_eq!(world.actor(&["list", "-q"]), "");
    // Beside it all goes on.
    world.actor(&[
        "create",
        "--start",
        "--mount",
        &world.at("point"),
        "b",
        "img",
    ]);
    world.actor(&["destroy", "b"]);
    world.assert_none();
}

/// Its writes are held back while it is copied: nobody could end who waits for one of his own.
#[test]
fn a_diff_does_not_go_to_the_actor_itself() {
    let Some(world) = world() else { return };
    let point = PathBuf::from(world.actor(&["create", "--start", "a", "img"]).trim_end());
    fs::write(point.join("there"), "x").unwrap();
    symlink(point.join("there"), world.sandbox.at("link")).unwrap();
    let says = "of the actor itself";
    for place in ["new", "there", "file"] {
        let at = point.join(place);
        world.refused(&["diff", "-o", at.to_str().unwrap(), "a"], says);
    }
    world.refused(&["diff", "-o", &world.at("link"), "a"], says);
    let directory = point.to_str().unwrap();
    world.refused(&["diff", "--format", "podman", "-o", directory, "a"], says);
    let store = world.at("store");
    for call in ["diff", "checkpoint"] {
        let mut command = world.call(&store, &[call, "a"]);
        let output = command
            .stdout(fs::File::create(point.join("out")).unwrap())
            .output()
            .unwrap();
        assert!(text(&output.stderr).contains(says), "{call}: {output:?}");
        let mut command = world.call(&store, &[call, "a"]);
        let said = fs::File::create(point.join("err")).unwrap();
        let output = command.stderr(said).output().unwrap();
        assert!(!output.status.success(), "{call}");
        assert!(
            fs::read_to_string(point.join("err"))
                .unwrap()
                .contains(says)
        );
    }
    assert!(!point.join("new").exists());
    let upper = world.actors().join("a/upper/new");
    let call = ["diff", "-o", upper.to_str().unwrap(), "a"];
    world.refused(&call, "in its upper");
    assert!(!upper.exists());
    world.actor(&["diff", "-o", &world.at("elsewhere"), "a"]);
    world.actor(&["checkpoint", "a"]);
    world.actor(&["destroy", "a"]);
    world.assert_none();
}

#[test]
fn a_tar_that_was_changed_is_not_put_below_what_was_written() {
    let Some(world) = world() else { return };
    let (tar, tree) = (world.at("image.tar"), world.sandbox.at("tree"));
    for upper in ["disk", "tmpfs"] {
        pack(&tree, &world.sandbox.at("image.tar"), &[]);
        let how = ["create", "--start", "--upper", upper, "a", &tar];
        let point = PathBuf::from(world.actor(&how).trim_end());
        fs::write(point.join("written"), "x").unwrap();
        world.actor(&["stop", "a"]);
        // The same at another time is the same.
        let bytes = fs::read(&tar).unwrap();
        fs::write(&tar, bytes).unwrap();
        world.actor(&["start", "a"]);
        world.actor(&["stop", "a"]);
        fs::write(tree.join(format!("more-{upper}")), "more").unwrap();
        pack(&tree, &world.sandbox.at("image.tar"), &[]);
        world.refused(&["start", "a"], "another image than the one on which");
        assert_eq!(world.state("a"), "stopped");
        world.actor(&["reset", "a"]);
        world.actor(&["start", "a"]);
        assert!(!point.join("written").exists());
        world.actor(&["destroy", "a"]);
    }
    world.assert_none();
}

#[test]
fn a_store_may_lie_deep_down() {
    let Some(world) = world() else { return };
    let deep = world.at(&format!("{}/{}", "d".repeat(150), "e".repeat(200)));
    fs::create_dir_all(&deep).unwrap();
    let call = |args: &[&str]| {
        let output = common::run(world.call(&format!("{deep}/store"), args));
        assert_ok(&output, &format!("{args:?}"));
        text(&output.stdout)
    };
    let tar = world.at("image.tar");
    call(&["create", "--start", "a", &tar]);
    let longest = "i".repeat(128);
    call(&["fork", "--start", "a", &longest]);
    let listed = call(&["list"]);
    assert_eq!(listed.matches("  mounted  ").count(), 2, "{listed}");
    call(&["stats", &longest]);
    call(&["destroy", "a", &longest]);
    assert!(mounts_below(world.sandbox.path()).is_empty());
}

/// Which the kernel does not let him read, but he owns them.
#[test]
fn closed_files_of_an_ordinary_user_are_in_his_checkpoints() {
    let test = "closed_files_of_an_ordinary_user_are_in_his_checkpoints";
    common::user::with_user(test, |user| {
        fs::write(user.dir("tree").join("file"), "of the image").unwrap();
        pack(&user.at("tree"), &user.at("image.tar"), &[]);
        let said = user.sh(&format!(
            r#"t() {{ '{}' --store store actor "$@"; }}
            p=$(t create --start a image.tar)
            echo kept >"$p/closed"; chmod 0 "$p/closed"
            mkdir "$p/dir"; echo x >"$p/dir/x"; chmod 0 "$p/dir"
            t diff -o - a | tar t; t checkpoint --name kept a >digests
            t stop a; t diff -o - a | tar t; t checkpoint a >>digests
            p=$(t restore --start b kept)
            chmod 600 "$p/closed"; cat "$p/closed"
            t destroy a b; t list -q"#,
            user.tarnfs().display()
        ));
        let tar = "./\nclosed\ndir/\ndir/x\n";
        assert_eq!(said, format!("{tar}{tar}kept\n"));
    });
}

/// The same of forks, some of which are started at once: of an actor that is mounted, and
/// of one that was stopped.
#[test]
fn closed_files_of_an_ordinary_user_are_in_his_forks() {
    let test = "closed_files_of_an_ordinary_user_are_in_his_forks";
    common::user::with_user(test, |user| {
        fs::write(user.dir("tree").join("file"), "of the image").unwrap();
        pack(&user.at("tree"), &user.at("image.tar"), &[]);
        let said = user.sh(&format!(
            r#"t() {{ '{}' --store store actor "$@"; }}
            p=$(t create --start a image.tar)
            echo kept >"$p/closed"; chmod 0 "$p/closed"
            echo mute >"$p/write-only"; chmod 0200 "$p/write-only"
            mkdir "$p/dir"; echo x >"$p/dir/x"; chmod 0 "$p/dir"
            t fork a cold >digest; t fork --start a warm >>digest
            stat -c '%a %n' "$p/closed" "$p/write-only" "$p/dir" | sed 's|/.*/||'
            t stop a
            t fork a late; t fork --start a later
            t start cold >/dev/null; t start late >/dev/null
            for id in cold warm late later; do
                q=store/actors/$id/rootfs
                stat -c '%a' "$q/closed" "$q/write-only" "$q/dir"
                chmod -R u+rwX "$q/closed" "$q/write-only" "$q/dir"
                cat "$q/closed" "$q/write-only" "$q/dir/x"
            done
            t destroy a cold warm late later; t list -q; wc -l <digest"#,
            user.tarnfs().display()
        ));
        let digests = said.lines().filter(|line| line.starts_with("sha256:"));
        assert_eq!(digests.count(), 2, "{said}");
        let rest: Vec<_> = said.lines().filter(|l| !l.starts_with("sha256:")).collect();
        let before = ["0 closed", "200 write-only", "0 dir"];
        let each = ["0", "200", "0", "kept", "mute", "x"];
        let all = [&before[..], &each, &each, &each, &each, &["2"]].concat();
        assert_eq!(rest, all);
    });
}

#[test]
fn a_start_that_fails_says_what_there_is() {
    let Some(world) = world() else { return };
    let bundle = world.at("bundle");
    let options = ["create", "--start", "--user", "nobody-has-this", "--bundle"];
    let call = [&options[..], &[&bundle, "a", "img", "x"]].concat();
    world.refused(
        &call,
        "actor a is mounted, but its bundle is not complete: user",
    );
    assert_eq!(world.state("a"), "mounted");
    world.actor(&["destroy", "a"]);
    // Where a directory may be made as far as can be told.
    let call = ["create", "--start", "--mount", "/proc/none", "a", "img"];
    world.refused(
        &call,
        "actor a is there, but not mounted: cannot make /proc/none",
    );
    assert_eq!(world.state("a"), "created");
    world.actor(&["destroy", "a"]);
    world.assert_none();
}

/// Who has looked an actor up waits for whoever destroys it and makes another of that id.
#[test]
fn an_actor_that_was_made_anew_is_another() {
    let Some(world) = world() else { return };
    let upper = world.at("upper");
    world.actor(&["create", "--upper", &upper, "a", "img"]);
    let store = tarnfs::store::Store::open(&world.sandbox.at("store"));
    let old = Actors::of(&store).get(&"a".parse().unwrap()).unwrap();
    world.actor(&["destroy", "a"]);
    fs::write(world.sandbox.dir("upper").join("kept"), "x").unwrap();
    let how = Stop::default();
    assert!(matches!(old.reset(how), Err(Error::Unknown(_))));
    let point = PathBuf::from(world.actor(&["create", "--start", "a", "img"]).trim_end());
    fs::write(point.join("written"), "x").unwrap();
    let errors = [
        old.stop(how).unwrap_err(),
        old.reset(how).unwrap_err(),
        old.start(Begun::default()).unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().contains("made anew"), "{error}");
    }
    assert_eq!(world.state("a"), "mounted");
    assert!(point.join("written").exists() && world.sandbox.at("upper/kept").exists());
    world.actor(&["destroy", "a"]);
    world.assert_none();
}

#[test]
fn directories_of_an_actor_that_somebody_removed_are_made_again() {
    let Some(world) = world() else { return };
    world.actor(&["create", "a", "img"]);
    for name in ["socket", "rootfs", "upper", "work"] {
        fs::remove_dir_all(world.actors().join("a").join(name)).unwrap();
    }
    let point = PathBuf::from(world.actor(&["start", "a"]).trim_end());
    assert!(point.join("file").exists());
    world.actor(&["stats", "a"]);
    world.actor(&["destroy", "a"]);
    world.assert_none();
}

#[test]
fn who_reads_no_further_is_no_error() {
    let Some(world) = world() else { return };
    world.actor(&["create", "a", "img"]);
    for call in [
        &["inspect", "a"][..],
        &["list"],
        &["list", "-q"],
        &["list", "--json"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = world.call(&world.at("store"), call);
        let output = command.stdout(writer).output().unwrap();
        assert_ok(&output, &format!("{call:?}"));
        assert_eq!(text(&output.stderr), "", "{call:?}");
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = world.call(&world.at("store"), call);
        let output = command.stdout(full).output().unwrap();
        let said = text(&output.stderr);
        assert!(
            said.starts_with("tarnfs: standard output: "),
            "{call:?}: {said}"
        );
    }
}

#[test]
fn columns_stand_below_each_other() {
    let Some(world) = world() else { return };
    world.actor(&["create", "a", "img"]);
    world.actor(&["create", "long-one", "img"]);
    let listed = world.actor(&["list"]);
    let at: Vec<_> = listed.lines().map(|l| l.find("created")).collect();
    assert_eq!(at, [None, at[1], at[1]], "{listed}");
    assert_eq!(listed.find("STATE"), at[1], "{listed}");
}
