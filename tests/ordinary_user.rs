//! What an ordinary user's mounts, made through fusermount3, show him.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;

use common::user::{User, with_user};

/// Packs what `make` makes as root, for the user: `image.tar`.
fn pack(user: &User, make: &str) {
    let tree = user.at("../tree");
    fs::create_dir(&tree).unwrap();
    let tree = tree.to_str().unwrap();
    let image = user.at("image.tar");
    let script = format!(
        "cd {tree}; {make}
        tar --xattrs --xattrs-include='*' --acls --numeric-owner -cf {} .",
        image.display()
    );
    common::ok("sh", ["-euc", &script]);
}

const MOUNT: &str = "\"$TARNFS\" mount --upper upper image.tar mount";
const UMOUNT: &str = "\"$TARNFS\" umount mount";

/// A mark in `user.` can be set on neither (xattr(7)).
#[test]
fn regression_links_and_pipes_of_the_image_can_be_renamed_without_root() {
    let test = "regression_links_and_pipes_of_the_image_can_be_renamed_without_root";
    with_user(test, |user| {
        pack(user, "ln -s to link; ln link same; mkfifo pipe; mkdir d");
        user.sh("mkdir mount");
        user.sh(MOUNT);
        let numbers = user.sh("cd mount; stat -c %i link same pipe");
        user.sh("cd mount; mv link d; mv pipe d/pipe2; touch -h same; mv same d");
        let moved = user.sh("cd mount/d; stat -c %i link same pipe2");
        assert_eq!(numbers, moved);
        let listed = user.sh("cd mount/d; ls -i | sed 's/^ *//; s/ .*//'");
        let mut sorted: Vec<_> = numbers.lines().collect();
        let mut found: Vec<_> = listed.lines().collect();
        sorted.sort_unstable();
        found.sort_unstable();
        assert_eq!(sorted, found);
        user.sh("cd mount; rm d/link; mv d/same link; ln d/pipe2 pipe3; rm d/pipe2");
        user.sh(UMOUNT);
        user.sh(MOUNT);
        assert_eq!(
            user.sh("cd mount; ls -F; readlink link"),
            "d/\nlink@\npipe3|\nto\n"
        );
        user.sh(UMOUNT);
        user.wait_for_servers();
    });
}
