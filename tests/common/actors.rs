//! A store and the actors on it.

// Each test file uses its own part of it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

use super::{Sandbox, mounts_below, ok, pack, text};

/// A store with an image called `img`, and the actors on it.
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
}

impl World {
    pub(crate) fn new() -> Self {
        let sandbox = Sandbox::new();
        let tree = sandbox.dir("tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::write(tree.join("bin/sh"), "#!").unwrap();
        ok("chmod", ["755", tree.join("bin/sh").to_str().unwrap()]);
        fs::write(tree.join("file"), "of the image").unwrap();
        pack(&tree, &sandbox.at("image.tar"), &[]);
        let world = Self { sandbox };
        let tar = world.sandbox.at("image.tar");
        world
            .sandbox
            .tarnfs_ok(["import", "--name", "img", tar.to_str().unwrap()]);
        world
    }

    pub(crate) fn actor(&self, args: &[&str]) -> String {
        self.sandbox.tarnfs_ok([&["actor"], args].concat())
    }

    /// Must fail with one line that has `says` in it.
    pub(crate) fn refused(&self, args: &[&str], says: &str) {
        let output = self.sandbox.tarnfs([&["actor"], args].concat());
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{args:?} succeeded");
        assert!(said.contains(says), "{args:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{args:?}: {said}");
    }

    pub(crate) fn start(&self, args: &[&str]) -> PathBuf {
        PathBuf::from(self.actor(args).trim_end())
    }

    pub(crate) fn inspect(&self, id: &str) -> Value {
        serde_json::from_str(&self.actor(&["inspect", id])).unwrap()
    }

    pub(crate) fn state(&self, id: &str) -> String {
        self.inspect(id)["state"].as_str().unwrap().to_owned()
    }

    /// Kills the server of an actor, and waits until it is gone.
    pub(crate) fn kill(&self, id: &str) {
        let pid = self.inspect(id)["server"]["pid"].as_i64().unwrap();
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        let mut polled = [rustix::event::PollFd::new(
            &process,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut polled, None).unwrap();
    }

    pub(crate) fn is_actor(&self, id: &str) -> bool {
        self.store()
            .join("actors")
            .join(id)
            .join("actor.json")
            .exists()
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.sandbox.at("store")
    }

    /// Nothing is left of any actor.
    pub(crate) fn assert_none(&self) {
        let left: Vec<_> = fs::read_dir(self.store().join("actors"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let mounts = mounts_below(self.sandbox.path());
        assert!(mounts.is_empty(), "{mounts:?}");
    }
}

/// The text of a file.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}
