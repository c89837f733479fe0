//! Ordinary work in a mount ends with the right result, and leaves nothing but what was written.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::walk::{assert_same, describe};
use common::{Sandbox, can_mount, has, ok, small_image, text};
use sha2::{Digest, Sha256};

fn image() -> Option<PathBuf> {
    if !can_mount() {
        return None;
    }
    Some(small_image()?.join("small.pax.tar"))
}

fn sha256(path: &Path) -> Vec<u8> {
    let mut file = fs::File::open(path).unwrap();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).unwrap();
        if n == 0 {
            return hash.finalize().to_vec();
        }
        hash.update(&buffer[..n]);
    }
}

/// Every name below `dir`, relative to it.
fn names(dir: &Path) -> BTreeSet<String> {
    let all = describe(dir);
    all.keys()
        .filter(|name| !name.is_empty())
        .map(|name| text(name))
        .collect()
}

fn is_whiteout(path: &Path) -> bool {
    let meta = fs::symlink_metadata(path).unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

/// Each change once; then the upper is exactly these, and the tar is as it was.
#[test]
fn the_upper_holds_only_what_was_written() {
    let Some(tar) = image() else { return };
    let sandbox = Sandbox::new();
    let before = sha256(&tar);
    let upper = sandbox.at("upper");
    let options = ["--upper", upper.to_str().unwrap()];
    let mount = sandbox.mount("mnt", &tar, &options);

    // Reading everything writes nothing.
    describe(mount.path());

    fs::write(mount.at("srv/new"), "new\n").unwrap();
    let mut passwd = fs::OpenOptions::new()
        .append(true)
        .open(mount.at("etc/passwd"))
        .unwrap();
    passwd
        .write_all(b"me:x:1000:1000::/home:/bin/sh\n")
        .unwrap();
    drop(passwd);
    let big = fs::OpenOptions::new()
        .write(true)
        .open(mount.at("odd/sizes/1048577"))
        .unwrap();
    big.write_all_at(b"!", 1_000_000).unwrap();
    drop(big);
    fs::set_permissions(mount.at("odd/sizes/512"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(mount.at("odd/sizes/513")).unwrap();
    fs::remove_dir_all(mount.at("odd/many")).unwrap();
    // What comes and goes leaves nothing.
    fs::create_dir(mount.at("srv/gone")).unwrap();
    fs::write(mount.at("srv/gone/file"), "x").unwrap();
    fs::remove_dir_all(mount.at("srv/gone")).unwrap();
    let after = describe(mount.path());
    mount.unmount();

    let want: BTreeSet<String> = [
        "etc",
        "etc/passwd",
        "odd",
        "odd/many",
        "odd/sizes",
        "odd/sizes/1048577",
        "odd/sizes/512",
        "odd/sizes/513",
        "srv",
        "srv/new",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(names(&upper), want);
    assert!(is_whiteout(&upper.join("odd/sizes/513")));
    assert!(is_whiteout(&upper.join("odd/many")));
    assert_eq!(
        fs::metadata(upper.join("odd/sizes/512")).unwrap().len(),
        512
    );
    assert_eq!(before, sha256(&tar), "the tar changed");

    // And it is all there when it is mounted again, another way round.
    let mount = sandbox.mount("again", &tar, &options);
    assert_same(&after, &describe(mount.path()));
    let lines = fs::read_to_string(mount.at("etc/passwd")).unwrap();
    assert!(lines.starts_with("root:") && lines.ends_with("/bin/sh\n"));
    let mut byte = [0];
    let big = fs::File::open(mount.at("odd/sizes/1048577")).unwrap();
    big.read_exact_at(&mut byte, 1_000_000).unwrap();
    assert_eq!(&byte, b"!");
    drop(big);
    mount.unmount();
}

/// A lower file that is written to in one place keeps the rest of its bytes.
#[test]
fn copy_up_keeps_every_byte() {
    let Some(tar) = image() else { return };
    let sandbox = Sandbox::new();
    let mount = sandbox.mount("mnt", &tar, &[]);
    for name in ["odd/sizes/1048577", "odd/sparse/pieces", "odd/links/big"] {
        let path = mount.at(name);
        let mut want = fs::read(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"written", 4000).unwrap();
        drop(file);
        want[4000..4007].copy_from_slice(b"written");
        assert!(fs::read(&path).unwrap() == want, "{name}");
    }
    // Written through one name, seen through the other, and still one file.
    assert!(fs::read(mount.at("odd/links/deep/big")).unwrap()[4000..].starts_with(b"written"));
    let (a, b) = (mount.at("odd/links/big"), mount.at("odd/links/deep/big"));
    assert_eq!(
        fs::metadata(a).unwrap().ino(),
        fs::metadata(b).unwrap().ino()
    );
    mount.unmount();
}

#[test]
fn programs_run_and_git_commits() {
    let Some(tar) = image() else { return };
    let sandbox = Sandbox::new();
    let mount = sandbox.mount("mnt", &tar, &[]);
    assert!(mount.sh("apt-get --version").starts_with("apt "));
    assert!(
        mount
            .sh("ls -l /bin/sh; grep root /etc/passwd | sed s/root/toor/")
            .contains("toor")
    );
    if !mount.at("usr/bin/git").exists() {
        common::skip("the image has no git");
        return;
    }
    let script = "
        export HOME=/root
        mknod /dev/urandom c 1 9
        git config --global user.name t
        git config --global user.email t@example.invalid
        git init -q -b main /srv/repo
        cd /srv/repo
        cp -a /etc /usr/bin .
        git add -A
        git commit -q -m one
        rm -rf etc
        git mv bin programs
        git commit -q -a -m two
        git gc -q
        git clone -q --no-local /srv/repo /srv/clone
        git -C /srv/clone fsck --strict
        git -C /srv/clone status --porcelain
        git -C /srv/repo status --porcelain
        git -C /srv/clone log --format=%s";
    let said = mount.sh(script);
    assert!(said.ends_with("two\none\n"), "{said}");
    assert!(!said.contains(" programs"), "not clean: {said}");
    mount.unmount();
}

#[test]
fn rsync_out_and_back_finds_no_difference() {
    let Some(tar) = image() else { return };
    if !has("rsync") {
        return;
    }
    let sandbox = Sandbox::new();
    let mount = sandbox.mount("mnt", &tar, &[]);
    let out = sandbox.dir("out");
    let slash = |path: PathBuf| format!("{}/", path.display());
    // No overlay lets a device 0:0 be made: on its upper that is a whiteout.
    let flags = [
        "-aHAX",
        "--sparse",
        "--checksum",
        "--exclude=/types/zero-zero",
    ];
    let rsync = |more: &[&str], from: &str, to: &str| {
        ok("rsync", flags.iter().chain(more).copied().chain([from, to]))
    };
    let (odd, out) = (slash(mount.at("odd")), slash(out));
    let back = slash(mount.at("srv/odd"));
    rsync(&[], &odd, &out);
    rsync(&[], &out, &back);
    for (from, to) in [(&odd, &back), (&out, &odd)] {
        let said = rsync(&["--dry-run", "--itemize-changes", "--delete"], from, to);
        assert_eq!(said, "", "rsync {from} {to}");
    }
    mount.unmount();
}

#[test]
fn rm_rf_of_everything_leaves_an_empty_root() {
    let Some(tar) = image() else { return };
    let sandbox = Sandbox::new();
    let upper = sandbox.at("upper");
    let mount = sandbox.mount("mnt", &tar, &["--upper", upper.to_str().unwrap()]);
    let top: BTreeSet<String> = fs::read_dir(mount.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(top.len() > 10, "{top:?}");
    let mut args = vec!["-rf".to_owned()];
    args.extend(
        top.iter()
            .map(|name| mount.at(name).to_str().unwrap().to_owned()),
    );
    ok("rm", &args);
    assert_eq!(names(mount.path()), BTreeSet::new());
    mount.unmount();
    assert_eq!(names(&upper), top, "one whiteout for each name of the root");
    for name in &top {
        assert!(is_whiteout(&upper.join(name)), "{name}");
    }
}

#[test]
fn a_mount_without_an_upper_leaves_nothing() {
    let Some(tar) = image() else { return };
    let sandbox = Sandbox::new();
    for options in [&[][..], &["--tmpfs"], &["--tmpfs=64M"]] {
        let mount = sandbox.mount("mnt", &tar, options);
        fs::write(mount.at("srv/new"), "x").unwrap();
        mount.unmount();
        let mount = sandbox.mount("mnt", &tar, options);
        assert!(!mount.at("srv/new").exists());
        mount.unmount();
    }
}

#[test]
fn the_program_s_exit_status_is_run_s() {
    let Some(tar) = image() else { return };
    let sandbox = Sandbox::new();
    let tar = tar.to_str().unwrap();
    for status in [0, 1, 7, 255] {
        let output = sandbox.tarnfs(["run", tar, "--", "sh", "-c", &format!("exit {status}")]);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{}",
            text(&output.stderr)
        );
    }
    let said = sandbox.tarnfs_ok(["run", tar, "--", "sh", "-c", "pwd; id -u; cat /odd/links/a"]);
    assert_eq!(said, "/\n0\none file, four names\n");
    // A program that is not there: what a shell says (127), and no panic.
    let output = sandbox.tarnfs(["run", tar, "--", "/no/such/program"]);
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
    assert!(common::mounts_below(sandbox.path()).is_empty());
}

#[test]
fn run_keeps_what_it_is_told_to_keep() {
    let Some(tar) = image() else { return };
    let sandbox = Sandbox::new();
    let tar = tar.to_str().unwrap();
    let upper = sandbox.at("upper");
    let upper = upper.to_str().unwrap();
    sandbox.tarnfs_ok([
        "run",
        "--upper",
        upper,
        tar,
        "--",
        "sh",
        "-c",
        "echo kept >/srv/kept",
    ]);
    assert_eq!(
        fs::read_to_string(sandbox.at("upper/srv/kept")).unwrap(),
        "kept\n"
    );
    let said = sandbox.tarnfs_ok(["run", "--upper", upper, tar, "--", "cat", "/srv/kept"]);
    assert_eq!(said, "kept\n");
    let output = sandbox.tarnfs([
        "run",
        "--read-only",
        tar,
        "--",
        "sh",
        "-c",
        "echo x >/srv/x",
    ]);
    assert!(!output.status.success());
}

/// The reader of a file whose bytes are gone gets EIO; the server answers everything else.
#[test]
fn a_tar_cut_short_under_a_live_mount_is_eio() {
    let Some(tar) = image() else { return };
    let sandbox = Sandbox::new();
    let copy = sandbox.at("copy.tar");
    fs::copy(&tar, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
    let mount = sandbox.mount("mnt", &copy, &[]);
    let before = names(mount.path());
    fs::write(mount.at("srv/mine"), "mine").unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&copy)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();

    let error = fs::read(mount.at("odd/sizes/1048577")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    // A copy-up must not make up bytes either.
    let opened = fs::OpenOptions::new()
        .append(true)
        .open(mount.at("odd/sizes/65536"));
    let error = opened
        .and_then(|mut file| file.write_all(b"x"))
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");

    assert_eq!(fs::read(mount.at("srv/mine")).unwrap(), b"mine");
    fs::write(mount.at("srv/more"), "more").unwrap();
    let mut want = before;
    want.extend(["srv/mine".to_owned(), "srv/more".to_owned()]);
    assert_eq!(names(mount.path()), want);
    mount.unmount();
}

#[test]
fn a_tar_changed_under_a_live_mount_is_eio() {
    let Some(tar) = image() else { return };
    let sandbox = Sandbox::new();
    let copy = sandbox.at("copy.tar");
    fs::copy(&tar, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
    let mount = sandbox.mount("mnt", &copy, &[]);
    let file = fs::OpenOptions::new().write(true).open(&copy).unwrap();
    // The same bytes: that somebody wrote is enough, for what else he wrote is unknown.
    let mut block = [0; 512];
    fs::File::open(&tar)
        .unwrap()
        .read_exact(&mut block)
        .unwrap();
    file.write_all_at(&block, 0).unwrap();
    file.sync_all().unwrap();
    let error = fs::read(mount.at("odd/sizes/1048577")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    fs::write(mount.at("srv/more"), "more").unwrap();
    mount.unmount();
    // A new mount takes the tar as it is now.
    let mount = sandbox.mount("mnt", &copy, &[]);
    assert_eq!(
        fs::read(mount.at("odd/sizes/1048577")).unwrap().len(),
        1_048_577
    );
    mount.unmount();
}
