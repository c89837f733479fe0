//! What an ordinary user's mounts, made through fusermount3, show him: what the same tree shows
//! that he has unpacked himself.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;

use common::user::{User, with_user};
use common::{assert_ok, has, mounts_below, text};
use rustix::process::{Pid, Signal, kill_process};

/// The image, as root has it.
const MAKE: &str = r#"
mkdir -p closed/sub d/e gone shut
printf 'read only\n' >ro; chmod 444 ro; ln ro d/hard; ln -s ro sym; ln -s nowhere d/dangling
printf a >closed/a; printf b >closed/sub/b; chmod 444 closed/sub/b
printf x >d/x; setfacl -m u:1234:rw,g:4321:r d/x; setfacl -d -m u:1234:rwx d/e
printf ping >d/ping; setcap cap_net_raw+ep d/ping; printf suid >suid; chmod 4755 suid
setfattr -n user.one -v 1 d/x; setfattr -n trusted.two -v 2 d/x
mkfifo d/fifo; printf y >gone/y; printf none >none; chmod 0 none
printf root >shut/root; chown 0:0 shut/root; chown 1000:1000 d/ping
chmod 555 closed closed/sub; chmod 0 shut
find . -exec touch -h -d '2020-02-02 02:02:02' {} +
"#;

/// What he does there. Each line says whether it went well.
const WORK: &str = r#"
err=$(mktemp); cd "$1"
try() {
    if sh -c "$1" 2>"$err"; then echo "ok: $1"; else echo "$1: $(sed 's/.*: //' "$err")"; fi
}
while read -r line; do try "$line" </dev/null; done <<'LINES'
echo w >>ro
setfattr -n user.w -v 1 ro
cat ro
cat none
chmod 644 ro && echo w >>ro && chmod 444 ro
cat d/hard
exec 3>>d/x; chmod 444 d/x; echo held >&3
exec 3<>d/hard
ln d/hard again
mv sym moved
mv d/dangling d/fifo d/e
touch closed/new
mkdir closed/new
rm closed/a
mv closed/a a
echo w >>closed/a
ln closed/a linked
ln d/x closed/x
mv closed/sub sub
mv closed d/closed
mv closed renamed
chmod 755 renamed
mv renamed d/
touch d/renamed/new
cat d/renamed/sub/b
rm -rf d/renamed/sub
chmod 755 d/renamed/sub && rm -rf d/renamed/sub
ls shut
chmod 700 shut && cat shut/root
echo w >>shut/root
chmod 0 shut; ls shut
chmod 000 gone; ls gone
rm -rf gone
chmod 755 gone && rm -rf gone
mkdir -m 2775 team && chgrp 70000 team
touch team/f && mkdir team/sub && stat -c '%a %u:%g' team team/f team/sub
chmod 2755 team/f && stat -c '%a %u:%g' team/f
chgrp 70000 ro && stat -c '%a %u:%g' ro d/hard
chgrp 5 ro
chown 5 ro
chown 0:0 ro
echo w >>suid; stat -c %a suid
chmod 6755 suid && stat -c %a suid && chgrp 70000 suid && stat -c %a suid
mkdir -m 1777 sticky && touch sticky/f && rm sticky/f
setfacl -m u:77:rw,g:78:r none && getfacl -cnp none
getfacl -cnp d/e d/x
touch d/e/inherits && getfacl -cnp d/e/inherits
setfacl -b d/x
setfattr -n user.two -v 2 d/e && getfattr -d d/e
setfattr -h -n user.two -v 2 moved
setfattr -n trusted.two -v 2 d/x
setfattr -n security.two -v 2 d/x
setfattr -x user.one d/x
mknod device c 1 3
mkfifo pipe && mv pipe d/
cp -a d/renamed copy
mkdir -m 311 write-only && touch write-only/f && ls write-only
rm -rf write-only
mkdir -m 300 opened && touch opened/f
truncate -s 100 ro
chmod 600 ro && truncate -s 100 ro && truncate -s 4 again
touch -d 2001-01-01 closed d ro
chmod 500 .
touch new
mv ro old
LINES
"#;

/// All that can be seen of a tree; what is closed to its owner is told as such. Of extended
/// attributes those that he can have unpacked.
const SHOW: &str = r#"
cd "$1" || exit 0
find . -type d -printf '%P %y %m %U:%G %n\n' 2>&1 | sort
find . ! -type d -printf '%P %y %m %U:%G %n %s %l\n' 2>/dev/null | sort
find . 2>/dev/null | sort | while read -r f; do
    getfacl -cnp "$f" 2>&1 | sed '/^$/d'; getfattr -h -d "$f" 2>&1
    if [ -f "$f" ]; then cat "$f" 2>&1 | cksum; fi
done
"#;

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

fn tools() -> bool {
    ["setfacl", "setfattr", "setcap"].into_iter().all(has)
}

const MOUNT: &str = "\"$TARNFS\" mount --upper upper image.tar mount";
const UMOUNT: &str = "\"$TARNFS\" umount mount";

fn seen(user: &User, script: &str, dir: &str) -> String {
    let output = user.run("/bin/sh", &["-c", script, "sh", dir]);
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn assert_same(plain: &str, mount: &str, when: &str) {
    for (a, b) in plain.lines().zip(mount.lines()) {
        assert_eq!(a, b, "{when}: unpacked, and in the mount");
    }
    assert_eq!(plain.lines().count(), mount.lines().count(), "{when}");
}

#[test]
fn closed_files_change_as_in_a_plain_directory() {
    if !tools() {
        return;
    }
    with_user("closed_files_change_as_in_a_plain_directory", |user| {
        pack(user, MAKE);
        user.sh("mkdir plain mount; tar --xattrs --acls -xpf image.tar -C plain");
        user.sh(MOUNT);
        // Without times, since a directory's own are those of the work.
        let show = |dir| seen(user, SHOW, dir);
        assert_same(&show("plain"), &show("mount"), "before");
        let did = [seen(user, WORK, "plain"), seen(user, WORK, "mount")];
        assert_same(&did[0], &did[1], "at work");
        assert!(did[0].contains("ok: chgrp 70000 ro"), "{}", did[0]);
        assert_same(&show("plain"), &show("mount"), "after");
        user.sh(UMOUNT);
        user.sh(MOUNT);
        assert_same(&show("plain"), &show("mount"), "in a new mount");
        user.sh(UMOUNT);
        user.wait_for_servers();
    });
}

#[test]
fn the_root_of_an_image_may_be_closed() {
    with_user("the_root_of_an_image_may_be_closed", |user| {
        for mode in ["555", "500", "0"] {
            user.clear();
            let make = format!("mkdir d; echo x >d/x; echo y >y; chmod {mode} .");
            pack(user, &make);
            user.sh("mkdir mount");
            user.sh(MOUNT);
            assert_eq!(user.sh("stat -c %a mount").trim(), mode);
            assert!(!user.run("touch", &["mount/new"]).status.success());
            let listed = user.run("ls", &["mount"]).status.success();
            assert_eq!(listed, mode != "0");
            user.sh("chmod 700 mount; touch mount/new; rm mount/y; echo w >>mount/d/x");
            user.sh(&format!("chmod {mode} mount"));
            for _ in 0..2 {
                user.sh(UMOUNT);
                user.sh(MOUNT);
            }
            assert_eq!(user.sh("stat -c %a mount").trim(), mode);
            user.sh("chmod 700 mount");
            assert_eq!(user.sh("cd mount; ls; cat d/x"), "d\nnew\nx\nw\n");
            user.sh(UMOUNT);
            user.wait_for_servers();
            fs::remove_dir_all(user.at("../tree")).unwrap();
        }
    });
}

/// The state files of his mounts.
fn records(user: &User) -> usize {
    fs::read_dir(user.at("run/tarnfs")).map_or(0, |entries| {
        let json = |path: &Path| path.extension().is_some_and(|name| name == "json");
        entries
            .filter(|entry| json(&entry.as_ref().unwrap().path()))
            .count()
    })
}

#[test]
fn each_end_of_a_mount_leaves_nothing() {
    with_user("each_end_of_a_mount_leaves_nothing", |user| {
        pack(user, "echo x >x; chmod 444 x");
        user.sh("mkdir mount run");
        let ends: [(&str, &dyn Fn()); 4] = [
            ("killed", &|| signal(user, Signal::KILL)),
            ("tarnfs umount", &|| drop(user.sh(UMOUNT))),
            ("fusermount3 -u", &|| {
                drop(user.ok("fusermount3", &["-u", "mount"]))
            }),
            ("a signal", &|| signal(user, Signal::TERM)),
        ];
        for (what, end) in ends {
            user.sh(MOUNT);
            user.sh("chmod 644 mount/x; echo y >mount/x; chmod 444 mount/x");
            end();
            user.wait_for_servers();
            let left = mounts_below(&user.at("mount"));
            assert!(left.is_empty(), "{what}: {left:?}");
            assert_eq!(records(user), 0, "{what}");
        }
        user.sh(MOUNT);
        assert_eq!(user.sh("cat mount/x"), "y\n");
        user.sh(UMOUNT);
    });
}

/// Sends a signal to the server, not to who helps it.
fn signal(user: &User, signal: Signal) {
    let server = user.processes().into_iter().find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "tarnfs\n")
    });
    kill_process(Pid::from_raw(server.unwrap()).unwrap(), signal).unwrap();
}

/// A process whose root is not that of its mount namespace may make no user namespace
/// (user_namespaces(7)).
#[test]
fn without_user_namespaces_a_mount_works_and_says_so() {
    with_user(
        "without_user_namespaces_a_mount_works_and_says_so",
        |user| {
            pack(user, "echo x >x; mkdir d; echo y >d/y");
            user.sh("mkdir mount");
            let root = user.at("../root");
            fs::create_dir(&root).unwrap();
            rustix::mount::mount_bind_recursive("/", &root).unwrap();
            let ids = common::user::UID;
            let sh = |script: &str| {
                let mut command = std::process::Command::new("chroot");
                command
                    .arg(format!("--userspec={ids}:{ids}"))
                    .arg(&root)
                    .args(["/bin/sh", "-euc"])
                    .arg(format!("cd {}; {script}", user.at("").display()))
                    .env("TARNFS", user.tarnfs())
                    .env("XDG_DATA_HOME", user.at("data"))
                    .env_remove("XDG_RUNTIME_DIR");
                common::run(command)
            };
            let mounted = sh(MOUNT);
            assert_ok(&mounted, "mount");
            let said = text(&mounted.stderr);
            assert!(
                said.contains("no user namespace (Operation not permitted"),
                "{said}"
            );
            let worked = sh("cd mount; echo w >>x; mv d e; cat x e/y");
            assert_eq!(
                text(&worked.stdout),
                "x\nw\ny\n",
                "{}",
                text(&worked.stderr)
            );
            assert_ok(&sh(UMOUNT), "umount");
            user.wait_for_servers();
            rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).unwrap();
        },
    );
}

#[test]
fn a_mount_in_a_namespace_of_his_own_works() {
    with_user("a_mount_in_a_namespace_of_his_own_works", |user| {
        pack(
            user,
            "echo x >x; chmod 444 x; mkdir d; touch d/y; chmod 555 d",
        );
        user.sh("mkdir mount");
        let script = format!(
            "export TARNFS_STORE=$PWD/store; {MOUNT}; stat -c %u:%g mount/x; touch mount/d/new; echo w >>mount/x
            grep -c \" $PWD/mount \" /proc/self/mountinfo; {UMOUNT}; {MOUNT}; ls mount/d; {UMOUNT}"
        );
        let args = [
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-euc",
            &script,
        ];
        assert_eq!(user.ok("unshare", &args), "0:0\n1\nnew\ny\n");
        user.wait_for_servers();
    });
}

/// As rootless containers have it: newuidmap(1) maps the numbers that /etc/subuid grants.
#[test]
fn a_mount_in_a_namespace_with_more_users_has_their_files() {
    if !has("newuidmap") {
        return;
    }
    let test = "a_mount_in_a_namespace_with_more_users_has_their_files";
    with_user(test, |user| {
        pack(
            user,
            "echo x >x; chown 7:8 x; chmod 400 x; mkdir d; chown 9:9 d; chmod 700 d",
        );
        user.sh("mkdir mount");
        let script = format!(
            "export TARNFS_STORE=$PWD/store; {MOUNT}
            echo w >>mount/x; touch mount/d/new; chown 5:6 mount/d/new
            {UMOUNT}; {MOUNT}; stat -c '%u:%g %a' mount/x mount/d mount/d/new; {UMOUNT}"
        );
        let args = [
            "--user",
            "--map-root-user",
            "--map-auto",
            "--mount",
            "sh",
            "-euc",
            &script,
        ];
        let shown = user.ok("unshare", &args);
        assert_eq!(shown, "7:8 400\n9:9 700\n5:6 644\n");
        user.wait_for_servers();
    });
}

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

/// What overlayfs refuses to root as well: it would be a whiteout.
#[test]
fn a_device_without_a_driver_cannot_be_made_without_root() {
    let test = "a_device_without_a_driver_cannot_be_made_without_root";
    with_user(test, |user| {
        pack(user, "echo x >x");
        user.sh("mkdir mount");
        user.sh(MOUNT);
        let made = user.run("mknod", &["mount/device", "c", "0", "0"]);
        let said = text(&made.stderr);
        assert!(said.contains("Operation not permitted"), "{said}");
        assert_eq!(user.sh("ls mount"), "x\n");
        user.sh(UMOUNT);
    });
}

#[test]
fn the_store_is_in_his_home() {
    with_user("the_store_is_in_his_home", |user| {
        pack(user, "echo x >x");
        user.sh("mkdir mount; \"$TARNFS\" mount image.tar mount; echo y >>mount/x");
        assert_eq!(user.sh("cat mount/x"), "x\ny\n");
        user.sh(UMOUNT);
        user.wait_for_servers();
        assert_eq!(user.sh("find data -name index.erofs | wc -l").trim(), "1");
        assert_eq!(user.sh("ls data/tarnfs/uppers | wc -l").trim(), "0");
    });
}

#[test]
fn a_store_that_cannot_be_used_is_told_in_one_line() {
    with_user("a_store_that_cannot_be_used_is_told_in_one_line", |user| {
        pack(user, "echo x >x");
        user.sh("mkdir mount");
        let none = rustix::mount::MountFlags::empty();
        let ids = common::user::UID;
        for (kind, options, expected) in [
            ("ramfs", c"mode=777".to_owned(), "cannot hold an upper"),
            (
                "tmpfs",
                std::ffi::CString::new(format!("size=4k,uid={ids}")).unwrap(),
                "No space left",
            ),
        ] {
            let at = user.dir(kind);
            rustix::mount::mount(kind, &at, kind, none, options.as_c_str()).unwrap();
            let script = format!("\"$TARNFS\" --store {kind}/store mount image.tar mount");
            let output = user.run("/bin/sh", &["-c", &script]);
            let said = text(&output.stderr);
            assert!(!output.status.success(), "{kind}");
            assert!(said.contains(expected), "{kind}: {said}");
            assert_eq!(said.lines().count(), 1, "{kind}: {said}");
            assert!(mounts_below(&user.at("mount")).is_empty());
            user.wait_for_servers();
        }
        for store in ["/proc/store", "/root/store"] {
            let args = ["--store", store, "mount", "image.tar", "mount"];
            let output = user.run(user.tarnfs(), &args);
            let said = text(&output.stderr);
            assert!(!output.status.success() && said.contains(store), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    });
}

#[test]
fn an_ordinary_user_asks_his_own_server() {
    with_user("an_ordinary_user_asks_his_own_server", |user| {
        user.sh("mkdir tree mnt && echo hello >tree/file && tar -C tree -cf image.tar .");
        let tarnfs = user.tarnfs();
        let socket = ["--control", "socket"];
        user.ok(
            &tarnfs,
            &[&["mount"], &socket[..], &["image.tar", "mnt"]].concat(),
        );
        user.sh("cat mnt/file");
        for args in [&["mnt"], &socket[..]] {
            let shown = user.ok(&tarnfs, &[&["stats"], args].concat());
            assert!(shown.contains("\nread "), "{shown}");
        }
        user.ok(&tarnfs, &["umount", "mnt"]);
        user.sh("test ! -e socket");
        user.wait_for_servers();
    });
}
