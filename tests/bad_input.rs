//! Bad input, through the program: one line on standard error that says what and where, an exit
//! status that is neither 0 nor a panic's, nothing left mounted, nothing written but the store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::tarball::{Header, Tarball, record};
use common::{Sandbox, can_mount, has, mounts_below, ok, text};

/// What a panic ends a Rust program with.
const PANIC: i32 = 101;

/// What timeout(1) ends with when a program took too long.
const TIMEOUT: i32 = 124;

/// The output is a refusal of one line that holds `why`.
fn assert_refusal(output: &Output, why: &str, what: &str) {
    let said = text(&output.stderr);
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| !matches!(code, 0 | PANIC | TIMEOUT | 126..)),
        "{what}: status {:?}\n{said}",
        output.status
    );
    assert_eq!(said.lines().count(), 1, "{what}: one line, not\n{said}");
    assert!(said.starts_with("tarnfs: "), "{what}: {said}");
    assert!(
        said.to_lowercase().contains(&why.to_lowercase()),
        "{what}: \"{why}\" is not in: {said}"
    );
    assert!(!said.contains("panicked"), "{what}: {said}");
}

/// Every name in the sandbox, but for the store.
fn listing(sandbox: &Sandbox) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut todo = vec![sandbox.path().to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path == sandbox.at("store") {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                todo.push(path.clone());
            }
            all.push(path);
        }
    }
    all.sort();
    all
}

/// `tarnfs args…` is refused because of `why`, and changes nothing.
fn refused(sandbox: &Sandbox, args: &[&OsStr], why: &str) {
    let before = listing(sandbox);
    let mounts = mounts_below(sandbox.path());
    let output = sandbox.tarnfs(args);
    assert_refusal(&output, why, &format!("{args:?}"));
    assert_eq!(listing(sandbox), before, "{args:?} left something");
    assert_eq!(
        mounts_below(sandbox.path()),
        mounts,
        "{args:?} left a mount"
    );
}

/// A tar that every command refuses for the same reason.
fn bad_tar(bytes: &[u8], why: &str) {
    let sandbox = Sandbox::new();
    let tar = sandbox.at("bad.tar");
    fs::write(&tar, bytes).unwrap();
    sandbox.dir("mnt");
    let (index, mnt) = (sandbox.at("index.erofs"), sandbox.at("mnt"));
    let args = |args: &[&str]| -> Vec<OsString> {
        let mut all: Vec<OsString> = args.iter().map(OsString::from).collect();
        for arg in &mut all {
            match arg.to_str() {
                Some("TAR") => *arg = tar.clone().into(),
                Some("INDEX") => *arg = index.clone().into(),
                Some("MNT") => *arg = mnt.clone().into(),
                _ => {}
            }
        }
        all
    };
    let mut lines = vec![args(&["index", "-o", "INDEX", "TAR"]), args(&["ls", "TAR"])];
    if rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists() {
        lines.push(args(&["mount", "TAR", "MNT"]));
        lines.push(args(&["run", "TAR", "--", "true"]));
    }
    for line in &lines {
        let line: Vec<&OsStr> = line.iter().map(OsString::as_os_str).collect();
        refused(&sandbox, &line, why);
    }
    // The store holds no entry of it either.
    let tars = sandbox.at("store/tars");
    if tars.exists() {
        assert_eq!(
            fs::read_dir(tars).unwrap().count(),
            0,
            "an entry in the store"
        );
    }
}

fn tar() -> Tarball {
    Tarball::default()
}

#[test]
fn no_tar_at_all() {
    bad_tar(b"", "empty");
    bad_tar(b"hello", "tar");
    bad_tar(&[b'x'; 10_240], "tar");
    bad_tar(&fs::read(common::TARNFS).unwrap()[..100_000], "tar");
    let sandbox = Sandbox::new();
    refused(
        &sandbox,
        &["ls".as_ref(), sandbox.at("none.tar").as_os_str()],
        "none.tar",
    );
    refused(
        &sandbox,
        &["ls".as_ref(), sandbox.path().as_os_str()],
        "regular",
    );
}

/// Each compressed format is told by its name.
#[test]
fn compressed_tars() {
    bad_tar(b"\x1f\x8b\x08\0\0\0\0\0\0\x03 and so on", "gzip");
    bad_tar(b"\x28\xb5\x2f\xfd and so on", "zstd");
    bad_tar(b"\xfd7zXZ\0 and so on", "xz");
    bad_tar(b"BZh91AY&SY and so on", "bzip2");
}

/// A tar of files, directories, links, long names and pax records, cut at each block.
#[test]
fn truncated_at_every_block() {
    let whole = tar()
        .dir(b"d/")
        .file(b"d/a", &[b'a'; 1000])
        .pax(&record("path", b"d/long"))
        .file(b"d/l", b"x")
        .gnu_long(b'L', &[b'n'; 200])
        .file(b"n", &[b'b'; 513])
        .hard_link(b"d/link", b"d/a")
        .end();
    let sandbox = Sandbox::new();
    let cut = sandbox.at("cut.tar");
    fs::write(&cut, &whole).unwrap();
    sandbox.tarnfs_ok(["ls".as_ref(), cut.as_os_str()]);
    let mut lens: Vec<usize> = (0..whole.len()).step_by(512).collect();
    lens.extend([1, 511, 513, 1000, 1536 + 100, whole.len() - 1]);
    for len in lens {
        fs::write(&cut, &whole[..len]).unwrap();
        let output = sandbox.tarnfs(["ls".as_ref(), cut.as_os_str()]);
        assert_refusal(&output, "cut.tar", &format!("cut at {len}"));
    }
}

#[test]
fn damaged_headers() {
    let mut block = Header::new(b"a", b'0', 0).summed();
    block[0] = b'b';
    bad_tar(&tar().raw(&block).end(), "tar");
    bad_tar(&tar().file(b"first", b"x").raw(&block).end(), "checksum");
    let offset = tar().file(b"first", b"x").bytes.len();
    bad_tar(
        &tar().file(b"first", b"x").raw(&block).end(),
        &offset.to_string(),
    );
    // A type that nobody can serve.
    bad_tar(&tar().header(&Header::new(b"odd", b'M', 0)).end(), "type");
}

#[test]
fn sizes_that_lie() {
    let sized = |size: &[u8]| {
        let mut header = Header::new(b"a", b'0', 0);
        header.put(124, size);
        tar().header(&header).end()
    };
    // Base-256 (GNU): negative, 2^63 and more than 64 bits.
    bad_tar(
        &sized(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        "size",
    );
    bad_tar(&sized(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), "size");
    bad_tar(
        &sized(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        "size",
    );
    bad_tar(&sized(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), "a");
    bad_tar(&sized(b"77777777777\0"), "truncated");
    bad_tar(&sized(b"12x45670123\0"), "size");
    bad_tar(&sized(b"-0000000001\0"), "size");
    for size in [
        "-1",
        "99999999999999999999999",
        "18446744073709551615",
        "1e3",
        "",
    ] {
        let bytes = tar()
            .pax(&record("size", size.as_bytes()))
            .file(b"a", b"x")
            .end();
        if !size.is_empty() {
            bad_tar(&bytes, "");
        }
    }
}

#[test]
fn pax_records_with_lying_lengths() {
    for records in [
        &b"5 path=abc\n"[..],
        b"500 path=abc\n",
        b"99999999999999999999 path=abc\n",
        b"0 path=abc\n",
        b"-3 path=abc\n",
        b"11 path:abc\n",
        b"11 path=abcd",
        b"path=abc\n",
        b"x",
        b"12 path=abc\nx",
    ] {
        bad_tar(&tar().pax(records).file(b"a", b"x").end(), "pax");
    }
    // An extended header of an impossible size.
    let mut header = Header::new(b"pax", b'x', 0);
    header.put(124, b"77777777777\0");
    bad_tar(&tar().header(&header).end(), "");
    // And one with nothing behind it.
    bad_tar(&tar().pax(&record("path", b"a")).end(), "extended header");
}

#[test]
fn names_that_lead_elsewhere() {
    for name in [
        &b"../out"[..],
        b"a/../../out",
        b"a/..",
        b"/etc/passwd",
        b"..",
    ] {
        bad_tar(&tar().file(name, b"x").end(), "path");
        bad_tar(
            &tar().pax(&record("path", name)).file(b"a", b"x").end(),
            "path",
        );
        bad_tar(&tar().gnu_long(b'L', name).file(b"a", b"x").end(), "path");
    }
    bad_tar(&tar().file(b"", b"x").end(), "path");
    bad_tar(
        &tar().pax(&record("path", b"a\0b")).file(b"a", b"x").end(),
        "a",
    );
    let long = [b'n'; 256];
    bad_tar(&tar().gnu_long(b'L', &long).file(b"a", b"x").end(), "256");
    bad_tar(
        &tar().pax(&record("path", &long)).file(b"a", b"x").end(),
        "256",
    );
    // 5,000 deep, at once.
    let deep = b"d/".repeat(5_000);
    bad_tar(
        &tar().pax(&record("path", &deep)).file(b"a", b"x").end(),
        "path",
    );
}

#[test]
fn hard_links_to_nothing() {
    bad_tar(&tar().hard_link(b"a", b"nothing").end(), "a");
    bad_tar(&tar().dir(b"d/").hard_link(b"a", b"d").end(), "a");
    bad_tar(&tar().hard_link(b"a", b"a").end(), "a");
    bad_tar(
        &tar().hard_link(b"a", b"b").hard_link(b"b", b"a").end(),
        "hard link",
    );
    bad_tar(&tar().hard_link(b"a", b"../../etc/passwd").end(), "a");
    bad_tar(&tar().hard_link(b"a", b"").end(), "a");
}

#[test]
fn a_file_used_as_a_directory() {
    bad_tar(&tar().file(b"a", b"x").file(b"a/b", b"x").end(), "a/b");
    let mut link = Header::new(b"l", b'2', 0);
    link.link(b"/etc");
    bad_tar(
        &tar().header(&link).file(b"l/passwd", b"x").end(),
        "l/passwd",
    );
}

#[test]
fn entries_after_the_end() {
    let ended = tar().file(b"a", b"x").end();
    bad_tar(
        &Tarball {
            bytes: ended.clone(),
        }
        .file(b"b", b"x")
        .end(),
        "end marker",
    );
    bad_tar(
        &tar().file(b"a", b"x").raw(&[0; 512]).file(b"b", b"x").end(),
        "zero block",
    );
    bad_tar(&[ended, b"rubbish".to_vec()].concat(), "end marker");
}

/// A tar that can be mounted, and where.
struct Good {
    sandbox: Sandbox,
    tar: PathBuf,
    mnt: PathBuf,
}

fn good() -> Option<Good> {
    if !can_mount() {
        return None;
    }
    let sandbox = Sandbox::new();
    let tarball = sandbox.at("good.tar");
    fs::write(&tarball, tar().dir(b"d/").file(b"d/a", b"hello").end()).unwrap();
    let mnt = sandbox.dir("mnt");
    Some(Good {
        sandbox,
        tar: tarball,
        mnt,
    })
}

impl Good {
    fn refused(&self, options: &[&OsStr], at: &Path, why: &str) {
        let mut args: Vec<&OsStr> = vec!["mount".as_ref()];
        args.extend(options);
        args.extend([self.tar.as_os_str(), at.as_os_str()]);
        refused(&self.sandbox, &args, why);
    }
}

#[test]
fn mount_points_that_are_none() {
    let Some(good) = good() else { return };
    good.refused(&[], &good.sandbox.at("missing"), "missing");
    good.refused(&[], &good.tar, "not a directory");
    let mount = good.sandbox.mount("busy", &good.tar, &[]);
    good.refused(&[], mount.path(), "mount");
    mount.unmount();
    let here = good.sandbox.at("upper");
    let inside = good.sandbox.dir("upper/in");
    good.refused(&["--upper".as_ref(), here.as_os_str()], &inside, "upper");
}

#[test]
fn uppers_that_cannot_be() {
    let Some(good) = good() else { return };
    let path = |name: &str| good.sandbox.dir(name);
    let (upper, nested) = (path("u"), path("u/w"));
    let options = |u: &Path, w: &Path| -> [OsString; 4] {
        ["--upper".into(), u.into(), "--work".into(), w.into()]
    };
    let refuse = |u: &Path, w: &Path, why: &str| {
        let options = options(u, w);
        let options: Vec<&OsStr> = options.iter().map(OsString::as_os_str).collect();
        good.refused(&options, &good.mnt, why);
    };
    refuse(&upper, &nested, "work");
    refuse(&nested, &upper, "upper");
    refuse(&upper, &upper, "work");
    refuse(&good.tar, &path("w"), "good.tar");

    // The image in it.
    let around = good.tar.parent().unwrap();
    refuse(around, &path("w2"), "lies in");
    refuse(&upper, around, "lies in");

    // Another filesystem.
    let tmpfs = path("tmpfs");
    ok(
        "mount",
        [
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "tmpfs".as_ref(),
            tmpfs.as_os_str(),
        ],
    );
    refuse(&upper, &tmpfs, "filesystem");
    ok("umount", [tmpfs.as_os_str()]);

    // A directory of the user's own, in which something is called work.
    let own = path("own");
    fs::create_dir(own.join("work")).unwrap();
    fs::write(own.join("work/thesis"), "years").unwrap();
    refuse(&upper, &own, "no work directory: work in it");

    // On a filesystem that lacks what is needed: a mount of ours.
    let mount = good.sandbox.mount("below", &good.tar, &[]);
    let (on_fuse, its_work) = (mount.at("u"), mount.at("w"));
    fs::create_dir(&on_fuse).unwrap();
    refuse(&on_fuse, &its_work, "RENAME_WHITEOUT");
    mount.unmount();

    // One that is in use.
    let (used, work) = (path("used"), path("used.work"));
    let mount = good
        .sandbox
        .mount_over("first", &good.tar, (&used, &work), &[]);
    refuse(&used, &work, "use");
    refuse(&used, &path("w2"), "use");
    mount.unmount();
    good.sandbox
        .mount_over("first", &good.tar, (&used, &work), &[])
        .unmount();
}

/// A disk that fills while the index is written: said so, and no half index is left.
#[test]
fn a_full_disk() {
    let Some(good) = good() else { return };
    let full = good.sandbox.dir("full");
    ok(
        "mount",
        [
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "-o".as_ref(),
            "size=64k".as_ref(),
            "tmpfs".as_ref(),
            full.as_os_str(),
        ],
    );
    let mut many = tar();
    for n in 0..20_000 {
        many = many.file(format!("file-{n}").as_bytes(), b"");
    }
    let big = good.sandbox.at("many.tar");
    fs::write(&big, many.end()).unwrap();
    let store = full.join("store");
    for args in [
        vec![
            "--store".as_ref(),
            store.as_os_str(),
            "ls".as_ref(),
            big.as_os_str(),
        ],
        vec![
            "index".as_ref(),
            "-o".as_ref(),
            full.join("i.erofs").as_os_str(),
            big.as_os_str(),
        ],
    ] {
        let output = good.sandbox.tarnfs(args);
        assert_refusal(&output, "No space left", "a full disk");
    }
    assert!(!full.join("i.erofs").exists());
    let entries = fs::read_dir(store.join("tars")).map_or(0, Iterator::count);
    assert_eq!(entries, 0, "a half entry in the store");
    ok("umount", [full.as_os_str()]);
}

/// An index that is larger than files may be (`ulimit -f`): said so, and no half index is left.
#[test]
fn a_limit_of_file_sizes() {
    let sandbox = Sandbox::new();
    let mut many = tar();
    for n in 0..20_000 {
        many = many.file(format!("file-{n}").as_bytes(), b"");
    }
    let (big, index) = (sandbox.at("many.tar"), sandbox.at("i.erofs"));
    fs::write(&big, many.end()).unwrap();
    let before = listing(&sandbox);
    let mut command = std::process::Command::new("sh");
    command.args(["-ec", "ulimit -f 64; exec \"$@\"", "sh", common::TARNFS]);
    command.args(["index".as_ref(), "-o".as_ref(), index.as_os_str()]);
    command.arg(&big).env("TARNFS_STORE", sandbox.at("store"));
    assert_refusal(&common::run(command), "File too large", "a limit");
    assert_eq!(listing(&sandbox), before);
}

/// Without /dev/fuse the error names it.
#[test]
fn no_dev_fuse() {
    let Some(good) = good() else { return };
    if !has("unshare") {
        return;
    }
    let script = format!(
        "mount -t tmpfs tmpfs /dev && mknod -m 0666 /dev/null c 1 3 && exec {} mount {} {}",
        common::TARNFS,
        good.tar.display(),
        good.mnt.display()
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &script]);
    command.env("TARNFS_STORE", good.sandbox.at("store"));
    assert_refusal(&common::run(command), "/dev/fuse", "no /dev/fuse");
}

/// As nobody: a tar that may not be read.
#[test]
fn no_permission() {
    let Some(good) = good() else { return };
    if !has("setpriv") {
        return;
    }
    ok("chmod", ["0000".as_ref(), good.tar.as_os_str()]);
    ok("chmod", ["0755".as_ref(), good.sandbox.path().as_os_str()]);
    // The program where nobody can reach it, whoever owns the build directory.
    let dir = tempfile::TempDir::new().unwrap();
    ok("chmod", ["0777".as_ref(), dir.path().as_os_str()]);
    let program = dir.path().join("tarnfs");
    fs::copy(common::TARNFS, &program).unwrap();
    let tar = dir.path().join("secret.tar");
    fs::copy(&good.tar, &tar).unwrap();
    ok("chmod", ["0000".as_ref(), tar.as_os_str()]);
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).unwrap();
    for command in ["ls", "mount", "run"] {
        let mut nobody = std::process::Command::new("setpriv");
        nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        nobody.arg(&program).arg(command).arg(&tar);
        if command == "mount" {
            nobody.arg(&mnt);
        }
        nobody.env("TARNFS_STORE", dir.path().join("store"));
        let output = common::run(nobody);
        assert_refusal(&output, "Permission denied", command);
    }
    assert!(mounts_below(dir.path()).is_empty());
}

/// Names in errors: control characters and bytes that are not UTF-8 cannot fake a second line.
#[test]
fn a_name_cannot_forge_a_line() {
    bad_tar(
        &tar().file(b"a\ntarnfs: all is well\n/../x", b"x").end(),
        "path",
    );
    let sandbox = Sandbox::new();
    let name = sandbox.at(OsStr::from_bytes(b"new\nline \xff.tar"));
    fs::write(&name, b"nothing").unwrap();
    refused(&sandbox, &["ls".as_ref(), name.as_os_str()], "tar");
}
