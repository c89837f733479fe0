//! The commands that look into an image without mounting it: index, ls, cat, stat, tree, inspect.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::TARNFS;
use serde_json::Value;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let this = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        write_tar(&this.tar());
        this
    }

    fn tar(&self) -> PathBuf {
        self.dir.path().join("image.tar")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(TARNFS);
        command
            .current_dir(self.dir.path())
            .env("TARNFS_STORE", self.dir.path().join("store"))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output of a command that must succeed without a word of complaint.
    fn good(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && complaint.is_empty(),
            "{args:?}: {complaint}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line of complaint of a command that must fail.
    fn bad(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
        assert!(complaint.starts_with("tarnfs: "), "{complaint}");
        complaint
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.good(args)).unwrap()
    }
}

const BIG: usize = 3 << 20;

fn write_tar(path: &Path) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(1000);
        header.set_gid(50);
        header.set_mtime(1_709_251_199);
        header
    };
    let dir = |mode| header(tar::EntryType::Directory, mode, 0);
    let file = |mode, len: usize| header(tar::EntryType::Regular, mode, len as u64);
    tar.append_data(&mut dir(0o755), "etc/", &[][..]).unwrap();
    tar.append_data(&mut file(0o644, 6), "etc/hello", &b"hello\n"[..])
        .unwrap();
    tar.append_data(&mut file(0o600, 3), "etc/bytes", &b"\xff\0\xfe"[..])
        .unwrap();
    tar.append_data(&mut dir(0o1777), "tmp/", &[][..]).unwrap();
    tar.append_data(&mut dir(0o755), "usr/bin/", &[][..])
        .unwrap();
    let attrs = [("SCHILY.xattr.user.note", &b"of mine"[..])];
    tar.append_pax_extensions(attrs).unwrap();
    tar.append_data(&mut file(0o4755, 2), "usr/bin/su", &b"su"[..])
        .unwrap();
    tar.append_data(&mut file(0o644, BIG), "big", &vec![b'b'; BIG][..])
        .unwrap();
    let link = |tar: &mut tar::Builder<_>, kind, name: &str, target: &str| {
        tar.append_link(&mut header(kind, 0o777, 0), name, target)
            .unwrap();
    };
    link(&mut tar, tar::EntryType::Symlink, "link", "/etc/hello");
    link(&mut tar, tar::EntryType::Symlink, "bin", "usr/bin");
    link(&mut tar, tar::EntryType::Symlink, "loop", "loop");
    link(
        &mut tar,
        tar::EntryType::Symlink,
        "out",
        "../../../../../etc/passwd",
    );
    link(&mut tar, tar::EntryType::Link, "etc/again", "etc/hello");
    let odd = std::ffi::OsStr::from_bytes(b"odd-\xff name\n");
    tar.append_data(&mut file(0o644, 0), Path::new(odd), &[][..])
        .unwrap();
    let mut null = header(tar::EntryType::Char, 0o666, 0);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    tar.append_data(&mut null, "null", &[][..]).unwrap();
    tar.finish().unwrap();
}

#[test]
fn ls_lists() {
    let f = Fixture::new();
    let root = "big\nbin\netc\nlink\nloop\nnull\nodd-\\377 name\\n\nout\ntmp\nusr\n";
    assert_eq!(f.good(&["ls", "image.tar"]), root);
    assert_eq!(f.good(&["ls", "image.tar", "/etc/../../"]), root);
    assert_eq!(f.good(&["ls", "image.tar", "bin"]), "su\n");
    assert_eq!(f.good(&["ls", "-d", "image.tar", "bin"]), "bin\n");
    assert_eq!(f.good(&["ls", "-R", "image.tar", "usr"]), "bin\nbin/su\n");
    assert_eq!(
        f.good(&["ls", "image.tar", "tmp", "bin"]),
        "tmp:\nbin:\nsu\n"
    );
    let raw = f.run(&["ls", "-0", "image.tar"]).stdout;
    assert!(
        raw.split(|&b| b == 0)
            .any(|name| name == b"odd-\xff name\n")
    );
    let long = f.good(&["ls", "-l", "image.tar", "/"]);
    let line = |end: &str| {
        let line = long
            .lines()
            .find(|l| l.ends_with(end))
            .unwrap_or_else(|| panic!("{end}: {long}"));
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(line(" tmp")[..4], ["drwxrwxrwt", "2", "1000", "50"]);
    assert_eq!(line(" bin -> usr/bin")[0], "lrwxrwxrwx");
    assert_eq!(line(" null")[4..6], ["1,", "3"]);
    assert_eq!(line(" big")[4..7], ["3145728", "2024-02-29", "23:59"]);
    let su = f.good(&["ls", "-l", "image.tar", "usr/bin/su"]);
    assert!(su.starts_with("-rwsr-xr-x"), "{su}");
}

#[test]
fn ls_json_keeps_every_byte() {
    let f = Fixture::new();
    let list = f.json(&["ls", "--json", "image.tar"]);
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 10);
    let odd = list
        .iter()
        .find(|e| e.get("path_base64").is_some())
        .unwrap();
    assert_eq!(odd["path"], "/odd-\\377 name\\n");
    assert_eq!(odd["path_base64"], "L29kZC3/IG5hbWUK");
    let null = list.iter().find(|e| e["path"] == "/null").unwrap();
    assert_eq!(null["type"], "character device");
    assert_eq!(null["device"]["minor"], 3);
    let link = list.iter().find(|e| e["path"] == "/link").unwrap();
    assert_eq!(
        (&link["type"], &link["target"]),
        (&"symlink".into(), &"/etc/hello".into())
    );
    assert_eq!(
        f.json(&["ls", "--json", "image.tar", "tmp"]),
        Value::Array(Vec::new())
    );
}

#[test]
fn cat_prints_what_the_tar_holds() {
    let f = Fixture::new();
    assert_eq!(f.good(&["cat", "image.tar", "/etc/hello"]), "hello\n");
    assert_eq!(
        f.good(&["cat", "image.tar", "link", "etc/again"]),
        "hello\nhello\n"
    );
    assert_eq!(
        f.run(&["cat", "image.tar", "etc/bytes"]).stdout,
        b"\xff\0\xfe"
    );
    assert_eq!(f.run(&["cat", "image.tar", "big"]).stdout, vec![b'b'; BIG]);
    assert_eq!(
        f.json(&["cat", "--json", "image.tar", "etc/hello"])["content"],
        "hello\n"
    );
    let bytes = f.json(&["cat", "--json", "image.tar", "etc/bytes"]);
    assert_eq!(
        (&bytes["encoding"], &bytes["content"]),
        (&"base64".into(), &"/wD+".into())
    );
}

#[test]
fn errors_say_what_and_where() {
    let f = Fixture::new();
    for command in ["cat", "stat", "ls"] {
        let error = f.bad(&[command, "image.tar", "/etc/absent"]);
        assert_eq!(
            error,
            "tarnfs: image.tar: /etc/absent: no such file in the image\n"
        );
    }
    assert!(
        f.bad(&["tree", "image.tar", "nope"])
            .contains("nope: no such file in the image")
    );
    assert!(
        f.bad(&["cat", "image.tar", "etc"])
            .contains("is a directory")
    );
    assert!(
        f.bad(&["cat", "image.tar", "null"])
            .contains("character device")
    );
    assert!(
        f.bad(&["cat", "image.tar", "loop"])
            .contains("too many levels of symbolic links")
    );
    assert!(
        f.bad(&["cat", "image.tar", "etc/hello/x"])
            .contains("not a directory")
    );
    // The image has no /etc/passwd; this machine's is not looked at.
    assert!(
        f.bad(&["cat", "image.tar", "out"])
            .contains("no such file in the image")
    );
    assert!(
        f.bad(&["ls", "absent.tar"])
            .contains("absent.tar: No such file")
    );
    assert!(f.bad(&["ls", "."]).contains("not a regular file"));
    std::fs::write(f.dir.path().join("text"), b"just text").unwrap();
    assert!(f.bad(&["index", "text"]).contains("text"));
    // One bad path does not hide the others.
    let both = f.run(&["cat", "image.tar", "absent", "etc/hello"]);
    assert_eq!(
        (both.status.code(), &both.stdout[..]),
        (Some(1), &b"hello\n"[..])
    );
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let f = Fixture::new();
    for args in [
        &["cat", "image.tar", "big"][..],
        &["ls", "-R", "image.tar"],
        &["tree", "image.tar"],
    ] {
        let mut child = f
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut complaint = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut complaint)
            .unwrap();
        assert!(child.wait().unwrap().success(), "{args:?}: {complaint}");
        assert_eq!(complaint, "");
    }
}

#[test]
fn stat_shows_everything() {
    let f = Fixture::new();
    let text = f.good(&["stat", "image.tar", "usr/bin/su", "link"]);
    assert!(
        text.contains("Access: (4755/-rwsr-xr-x)  Uid: 1000  Gid: 50"),
        "{text}"
    );
    assert!(text.contains("Xattr: user.note=\"of mine\""), "{text}");
    assert!(text.contains("File: /link -> /etc/hello"), "{text}");
    assert!(text.contains("2024-02-29T23:59:59.000000000Z"), "{text}");
    let hello = f.json(&["stat", "--json", "-L", "image.tar", "link"])[0].clone();
    assert_eq!(
        (&hello["path"], &hello["nlink"]),
        (&"/etc/hello".into(), &2.into())
    );
    assert_eq!(hello["names"][0]["path"], "/etc/again");
    assert_eq!(hello["names"][1]["path"], "/etc/hello");
    // Where it says the bytes are, they are.
    let extent = &hello["extents"][0];
    let file = std::fs::read(extent["file"].as_str().unwrap()).unwrap();
    let at = usize::try_from(extent["file_offset"].as_u64().unwrap()).unwrap();
    assert_eq!(&file[at..at + 6], b"hello\n");
}

#[test]
fn tree_draws() {
    let f = Fixture::new();
    let text = f.good(&["tree", "image.tar", "etc"]);
    assert_eq!(
        text,
        "etc\n├── again\n├── bytes\n└── hello\n\n0 directories, 3 files\n"
    );
    let text = f.good(&["tree", "image.tar"]);
    assert!(
        text.ends_with("└── usr\n    └── bin\n        └── su\n\n4 directories, 11 files\n"),
        "{text}"
    );
    assert!(text.contains("├── etc\n│   ├── again\n"), "{text}");
    let text = f.good(&["tree", "-L", "1", "image.tar"]);
    assert!(
        text.contains("└── usr\n\n") && !text.contains("again"),
        "{text}"
    );
    let list = f.json(&["tree", "-L", "2", "--json", "image.tar"]);
    let depths: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["depth"].as_u64().unwrap())
        .collect();
    assert_eq!((depths.len(), depths.iter().max()), (14, Some(&2)));
}

#[test]
fn inspect_counts() {
    let f = Fixture::new();
    let json = f.json(&["inspect", "--json", "image.tar"]);
    assert_eq!(json["names"], 15);
    assert_eq!(json["types"]["file"], 5);
    assert_eq!(json["types"]["directory"], 5);
    assert_eq!(json["types"]["symlink"], 4);
    assert_eq!(json["hard_links"]["groups"], 1);
    assert_eq!(json["hard_links"]["names"], 2);
    assert_eq!(json["xattrs"]["total"], 1);
    assert_eq!(json["setuid"][0]["path"], "/usr/bin/su");
    assert_eq!(json["bytes"]["apparent"], BIG + 11);
    assert_eq!(json["largest_directories"]["by_entries"][0]["path"], "/");
    assert_eq!(json["largest_directories"]["by_bytes"][0]["bytes"], BIG);
    let sum = Command::new("sha256sum")
        .arg(f.tar())
        .output()
        .unwrap()
        .stdout;
    assert!(sum.starts_with(json["blob"]["sha256"].as_str().unwrap().as_bytes()));
    let text = f.good(&["inspect", "--no-digest", "--top", "1", "image.tar"]);
    assert!(
        text.contains("/usr/bin/su") && !text.contains("sha256"),
        "{text}"
    );
}

#[test]
fn inspect_finds_a_damaged_index() {
    let f = Fixture::new();
    let json = f.json(&["index", "--json", "image.tar"]);
    let index = json["index"].as_str().unwrap();
    let mut bytes = std::fs::read(index).unwrap();
    // A byte that opening does not look at: in the attributes of an inode, or in a name.
    let at = bytes.windows(5).rposition(|w| w == b"hello").unwrap();
    bytes[at] ^= 1;
    std::fs::remove_file(index).unwrap();
    std::fs::write(index, bytes).unwrap();
    let error = f.bad(&["inspect", "image.tar"]);
    assert!(
        error.contains("damaged") && error.contains("remove"),
        "{error}"
    );
}

#[test]
fn index_builds_once_and_where_it_is_told() {
    let f = Fixture::new();
    let first = f.json(&["index", "--json", "image.tar"]);
    assert_eq!(
        (&first["built"], &first["entries"]),
        (&true.into(), &15.into())
    );
    let second = f.json(&["index", "--json", "image.tar"]);
    assert_eq!(
        (&second["built"], &second["index"]),
        (&false.into(), &first["index"])
    );
    let text = f.good(&["index", "-o", "out.erofs", "image.tar"]);
    assert!(
        text.starts_with("out.erofs\n15 entries, 15 inodes, "),
        "{text}"
    );
    assert_eq!(
        std::fs::read(f.dir.path().join("out.erofs")).unwrap(),
        std::fs::read(first["index"].as_str().unwrap()).unwrap(),
        "the same tar gives the same index"
    );
    // Through a link to the tar as well: the same file is the same image.
    symlink("image.tar", f.dir.path().join("other.tar")).unwrap();
    assert_eq!(f.json(&["index", "--json", "other.tar"])["built"], false);
}

#[test]
fn an_ordinary_users_store_is_under_the_home() {
    let f = Fixture::new();
    let mut command = Command::new(TARNFS);
    command
        .env_remove("TARNFS_STORE")
        .env_remove("HOME")
        .env_remove("XDG_DATA_HOME");
    command
        .args(["--store", "mine", "ls", "image.tar", "tmp"])
        .current_dir(f.dir.path());
    assert!(command.status().unwrap().success());
    assert!(f.dir.path().join("mine/tars").is_dir());
}

/// Every command that is listed, but for `help`.
fn commands(f: &Fixture) -> Vec<String> {
    let help = f.good(&["--help"]);
    let list = help.split("Commands:\n").nth(1).unwrap();
    let list = list.split("\n\n").next().unwrap();
    let of_line = |line: &str| {
        let word = line.strip_prefix("  ")?.split(' ').next()?;
        (!word.is_empty()).then(|| word.to_owned())
    };
    list.lines()
        .filter_map(of_line)
        .filter(|c| c != "help")
        .collect()
}

#[test]
fn every_help_has_an_example() {
    let f = Fixture::new();
    let all = commands(&f);
    for new in [
        "import", "images", "tag", "rm", "gc", "verify", "flatten", "diff",
    ] {
        assert!(all.iter().any(|c| c == new), "{new}: {all:?}");
    }
    for command in all {
        let help = f.good(&[&command, "--help"]);
        assert!(help.contains("Example"), "{command}: {help}");
        assert!(
            help.contains(&format!("tarnfs {command}")),
            "{command}: {help}"
        );
    }
}

#[test]
fn man_pages_and_completions_have_every_command() {
    let f = Fixture::new();
    f.good(&["man", "man"]);
    let bash = f.good(&["completions", "bash"]);
    let main = std::fs::read_to_string(f.dir.path().join("man/tarnfs.1")).unwrap();
    for command in commands(&f) {
        let page = f.dir.path().join(format!("man/tarnfs-{command}.1"));
        let page = std::fs::read_to_string(page).unwrap();
        assert!(page.contains("Example"), "{command}");
        assert!(
            main.contains(&format!("tarnfs\\-{command}(1)")),
            "{command}"
        );
        assert!(
            bash.contains(&format!("tarnfs__subcmd__{command}")),
            "{command}"
        );
    }
    assert!(bash.contains("--max-bytes") && bash.contains("--retries"));
}
