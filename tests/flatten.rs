//! `tarnfs flatten`: what it writes, unpacked by GNU tar and by bsdtar, is what the image's own tar
//! is unpacked to; it is the same bytes each time, and there whole or not at all.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::python::python;
use common::walk::{assert_same, describe};
use common::{Sandbox, TARNFS, has, ok, pack, run, skip, text};
use serde_json::Value;

/// How GNU tar packs and unpacks all of a file.
const GNU: [&str; 4] = [
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
    "--numeric-owner",
];

/// Whether this process may make what the tests pack.
fn is_root() -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("needs root (device nodes, owners)");
        return false;
    }
    ["bsdtar", "setfattr", "setfacl", "python3"]
        .into_iter()
        .all(has)
}

/// A tree of everything that a tar can hold.
fn rich(sandbox: &Sandbox) -> PathBuf {
    let tree = sandbox.dir("tree");
    python(
        &tree,
        r"
import stat
def put(name, data=b'', mode=0o644):
    with open(name, 'wb') as file:
        file.write(data)
    os.chmod(name, mode)
os.makedirs('dir/sub/empty'); os.mkdir('gnu')
put('empty'); put('dir/one', b'1', 0o4751); put('dir/block', b'b' * 512); put('big', bytes(range(256)) * 9000)
put(b'new\nline\xff', b'bytes'); put('sp\u00e4\u00dfe', b'utf-8'); put('-x', b'dash'); put('a b', b'blank')
long = 'n' * 250
os.mkdir(long); put(long + '/' + long, b'long'); os.link(long + '/' + long, 'long-link')
os.symlink(long + '/' + long, 'long-target'); os.symlink('t' * 4095, 'longest-target')
binary = b'\xfe' * 200
os.mkdir(binary); put(binary + b'/' + binary, b'binary'); os.symlink(binary, b'binary-target')
os.link(binary + b'/' + binary, b'binary-link')
# Nearly as long as a path can be: GNU tar puts /proc/self/fd/N before it.
deep = os.open('.', os.O_RDONLY)
for n in range(15):
    os.mkdir('d' * 255, dir_fd=deep)
    deep = os.open('d' * 255, os.O_RDONLY, dir_fd=deep)
os.close(os.open('f' * 180, os.O_CREAT | os.O_WRONLY, dir_fd=deep))
os.link('dir/one', 'a-link'); os.link('dir/one', 'dir/sub/link')
os.symlink('../dir/one', 'dir/symlink'); os.symlink('/nowhere', 'dangling'); os.link('dangling', 'dangling-too')
os.mkfifo('fifo', 0o640)
os.mknod('char', 0o600 | stat.S_IFCHR, os.makedev(1, 3)); os.mknod('whiteout', stat.S_IFCHR, os.makedev(0, 0))
os.mknod('block', 0o660 | stat.S_IFBLK, os.makedev(4095, 1048575))
for name, mode in (('dir/sub', 0o2775), ('dir/sub/empty', 0o1777), ('dir/block', 0o7777), ('a b', 0)):
    os.chmod(name, mode)
for name, owner in (('-x', (2097151, 2097152)), ('dir/sub', (4294967294, 65536)), ('dangling', (7, 8)), ('fifo', (9, 10))):
    os.chown(name, *owner, follow_symlinks=False)
with open('sparse', 'wb') as file:
    for n in range(40):
        file.seek(n * 200 * 4096); file.write(bytes([n + 1]) * 4096)
    file.truncate((64 << 20) + 77)
with open('odd', 'wb') as file:
    for n in range(9):
        file.seek(n * 1000_003); file.write(b'odd')
with open('hole', 'wb') as file:
    file.truncate(9 << 30)
os.setxattr('big', 'user.binary', b'\n12 a=b\n\0\xff'); os.setxattr('big', 'user.empty', b'')
os.setxattr('big', 'user.x%y', b'%'); os.setxattr('dir', 'user.dir', b'd'); os.setxattr('.', 'user.root', b'r')
os.setxattr('dangling', 'trusted.link', b'l', follow_symlinks=False); os.setxattr('char', 'trusted.dev', b'\0')
os.setxattr('dir/block', 'security.capability', bytes.fromhex('0100000200040000' + '00' * 12))
for n, name in enumerate(('dir/one', 'empty', 'big', 'dir/sub', '.')):
    os.utime(name, ns=(0, (1_500_000_000 + n) * 10**9 + 123456789))
os.utime('a b', (0, -5)); os.utime('fifo', (0, 2**33 + 5))
# What bsdtar cannot unpack, from any tar: a fraction before 1970, ids beyond 31 bits in ACLs, names with =.
put('gnu/f', b'f'); os.setxattr('gnu/f', 'user.%3D=', b'escaped'); os.utime('gnu/f', ns=(0, -1_500_000_000))
",
    );
    for (options, path) in [
        (&["-m", "u:1234:rw,g:70000:r"][..], "big"),
        (&["-d", "-m", "u:70000:rx"], "dir/sub/empty"),
        (&["-d", "-m", "u:4000000000:rx"], "gnu"),
        (&["-m", "u:7:rwx,m:r"], "dir/sub/empty"),
    ] {
        let path = tree.join(path);
        ok(
            "setfacl",
            options.iter().map(AsRef::as_ref).chain([path.as_os_str()]),
        );
    }
    tree
}

/// A tree, with the bytes of its files, but for what is a hole.
fn look(tree: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut all = describe(tree);
    for (name, line) in &mut all {
        let path = tree.join(std::ffi::OsStr::new(
            <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name),
        ));
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_file() && metadata.len() < 1 << 30 {
            *line += &format!(" {}", tarnfs::digest::Digest::of(&fs::read(&path).unwrap()));
        }
    }
    all
}

/// What bsdtar can unpack of a tree: neither what is below `gnu` nor the root's time.
fn of_bsdtar(mut all: BTreeMap<Vec<u8>, String>) -> BTreeMap<Vec<u8>, String> {
    all.retain(|name, _| !name.starts_with(b"gnu"));
    if let Some(root) = all.get_mut(&b""[..]) {
        let (before, rest) = root.split_once(" mtime ").unwrap();
        *root = format!("{before} {}", rest.split_once(' ').unwrap().1);
    }
    all
}

fn unpack(sandbox: &Sandbox, packer: &str, tar: &Path, name: &str) -> PathBuf {
    let dir = sandbox.dir(name);
    let mut command = Command::new(packer);
    match packer {
        "tar" => command.args(GNU).arg("--warning=no-timestamp"),
        _ => command.args(["--xattrs", "--acls", "--numeric-owner"]),
    };
    command.arg("-xpf").arg(tar).arg("-C").arg(&dir);
    let output = run(command);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{packer}: {}{}",
        output.status,
        text(&output.stderr)
    );
    dir
}

fn flatten(sandbox: &Sandbox, image: &Path, name: &str, options: &[&str]) -> (PathBuf, Value) {
    let out = sandbox.at(name);
    let mut args = vec![
        "flatten".as_ref(),
        "--json".as_ref(),
        "-o".as_ref(),
        out.as_os_str(),
    ];
    args.extend(options.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
    args.push(image.as_os_str());
    let said = serde_json::from_str(&sandbox.tarnfs_ok(args)).unwrap();
    (out, said)
}

fn sha256(path: &Path) -> String {
    let sum = ok("sha256sum", [path.as_os_str()]);
    format!("sha256:{}", sum.split_whitespace().next().unwrap())
}

#[test]
fn unpacked_it_is_what_the_image_was_packed_from() {
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let tree = rich(&sandbox);
    let tar = sandbox.at("image.tar");
    pack(
        &tree,
        &tar,
        &[&GNU[..], &["--format=pax", "--sparse"]].concat(),
    );
    let want = look(&unpack(&sandbox, "tar", &tar, "original"));
    assert_same(&look(&tree), &want);

    let (flat, said) = flatten(&sandbox, &tar, "flat.tar", &[]);
    assert_eq!(said["digest"], sha256(&flat));
    assert_eq!(said["bytes"], fs::metadata(&flat).unwrap().len());
    assert_eq!(said["entries"], want.len());
    let unpacked = unpack(&sandbox, "tar", &flat, "by-gnu-tar");
    assert_same(&want, &look(&unpacked));
    // Holes are holes.
    for name in ["sparse", "odd", "hole"] {
        let [was, is] = [&tree, &unpacked].map(|dir| fs::metadata(dir.join(name)).unwrap());
        assert!(
            is.blocks() <= was.blocks() + 8,
            "{name}: {} of {}",
            is.blocks(),
            was.blocks()
        );
    }
    assert!(fs::metadata(&flat).unwrap().len() < 8 << 20);
    let unpacked = of_bsdtar(look(&unpack(&sandbox, "bsdtar", &flat, "by-bsdtar")));
    assert_same(&of_bsdtar(want.clone()), &unpacked);

    // What it is an image of is the same.
    let (again, _) = flatten(&sandbox, &flat, "again.tar", &[]);
    assert_eq!(fs::read(&again).unwrap(), fs::read(&flat).unwrap());
    // Also where the index is a new one, in another store.
    let other = sandbox.at("other");
    let args: [&std::ffi::OsStr; 5] = [
        "--store".as_ref(),
        other.as_os_str(),
        "flatten".as_ref(),
        tar.as_os_str(),
        "-o-".as_ref(),
    ];
    assert_eq!(sandbox.tarnfs(args).stdout, fs::read(&flat).unwrap());

    for align in ["4096", "1048576"] {
        let name = format!("{align}.tar");
        let (aligned, _) = flatten(&sandbox, &tar, &name, &["--align", align]);
        assert_aligned(&aligned, align.parse().unwrap());
        for packer in ["tar", "bsdtar"] {
            let dir = unpack(&sandbox, packer, &aligned, &format!("{align}-{packer}"));
            match packer {
                "tar" => assert_same(&want, &look(&dir)),
                _ => assert_same(&of_bsdtar(want.clone()), &of_bsdtar(look(&dir))),
            }
            fs::remove_dir_all(dir).unwrap();
        }
        let (again, said) = flatten(&sandbox, &aligned, "again.tar", &[]);
        assert_eq!(said["digest"], sha256(&flat));
        assert_eq!(fs::read(again).unwrap(), fs::read(&flat).unwrap());
        fs::remove_file(aligned).unwrap();
    }
}

/// By the headers, read by our own reader.
fn assert_aligned(tar: &Path, align: u64) {
    use tarnfs::tar::{EntryKind, Reader};
    let file = File::open(tar).unwrap();
    let mut reader = Reader::new(&file, tar).unwrap();
    let mut files = 0;
    while let Some(entry) = reader.next_entry().unwrap() {
        if let EntryKind::File { segments, .. } = entry.kind
            && let Some(first) = segments.first()
        {
            assert!(first.tar_offset.is_multiple_of(align));
            files += 1;
        }
    }
    assert!(files > 5);
}

/// A tar of one large file and a few others.
fn plain(sandbox: &Sandbox) -> PathBuf {
    let tree = sandbox.dir("plain");
    fs::create_dir(tree.join("dir")).unwrap();
    let file = File::create(tree.join("dir/file")).unwrap();
    for n in 0..40_u8 {
        file.write_all_at(&[n + 1; 65_536], u64::from(n) * 65_536)
            .unwrap();
    }
    symlink("dir/file", tree.join("link")).unwrap();
    let tar = sandbox.at("plain.tar");
    pack(&tree, &tar, &["--format=pax"]);
    tar
}

#[test]
fn where_it_is_written() {
    let sandbox = Sandbox::new();
    let tar = plain(&sandbox);
    let flat = sandbox.at("flat.tar");
    let digest = sandbox.tarnfs_ok([
        "flatten".as_ref(),
        tar.as_os_str(),
        "-o".as_ref(),
        flat.as_os_str(),
    ]);
    assert_eq!(digest.trim_end(), sha256(&flat));
    let want = fs::read(&flat).unwrap();

    // Standard output, where the tar is alone.
    for args in [
        &["flatten"][..],
        &["flatten", "-o", "-"],
        &["flatten", "-o", "/dev/stdout"],
    ] {
        let args = args.iter().map(AsRef::as_ref).chain([tar.as_os_str()]);
        let output = sandbox.tarnfs(args);
        assert!(output.status.success());
        assert!(
            output.stdout == want && output.stderr.is_empty(),
            "{}",
            text(&output.stderr)
        );
    }
    let output = sandbox.tarnfs(["flatten".as_ref(), "--json".as_ref(), tar.as_os_str()]);
    assert!(output.stdout == want);
    let said: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(said["digest"], digest.trim_end());

    // Where standard output is a file, that very one.
    let open = sandbox.at("open.tar");
    let file = File::create_new(&open).unwrap();
    let status = Command::new(TARNFS)
        .env("TARNFS_STORE", sandbox.at("store"))
        .args([
            "flatten".as_ref(),
            "-o/dev/stdout".as_ref(),
            tar.as_os_str(),
        ])
        .stdout(file.try_clone().unwrap())
        .status()
        .unwrap();
    assert!(status.success() && fs::read(&open).unwrap() == want);
    assert_eq!(
        file.metadata().unwrap().ino(),
        fs::metadata(&open).unwrap().ino()
    );

    // A pipe with a name.
    let fifo = sandbox.at("fifo");
    ok("mkfifo", [fifo.as_os_str()]);
    let mut child = Command::new(TARNFS)
        .env("TARNFS_STORE", sandbox.at("store"))
        .args([
            "flatten".as_ref(),
            "-o".as_ref(),
            fifo.as_os_str(),
            tar.as_os_str(),
        ])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(fs::read(&fifo).unwrap(), want);
    assert!(child.wait().unwrap().success());

    // Through a symbolic link, which stays; in place of what was there.
    let link = sandbox.at("link");
    symlink("linked.tar", &link).unwrap();
    fs::write(sandbox.at("linked.tar"), "before").unwrap();
    sandbox.tarnfs_ok([
        "flatten".as_ref(),
        "-o".as_ref(),
        link.as_os_str(),
        tar.as_os_str(),
    ]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&link).unwrap(), want);
}

#[test]
fn a_reader_that_goes_is_no_error() {
    let sandbox = Sandbox::new();
    let tar = plain(&sandbox);
    let mut child = Command::new(TARNFS)
        .env("TARNFS_STORE", sandbox.at("store"))
        .args(["flatten".as_ref(), tar.as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 512]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
}

#[test]
fn a_full_disk_leaves_nothing() {
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let tar = plain(&sandbox);
    let full = sandbox.dir("full");
    ok(
        "mount",
        [
            "-t",
            "tmpfs",
            "-o",
            "size=1m",
            "tmpfs",
            full.to_str().unwrap(),
        ],
    );
    let out = full.join("out.tar");
    fs::write(&out, "before").unwrap();
    let output = sandbox.tarnfs([
        "flatten".as_ref(),
        "-o".as_ref(),
        out.as_os_str(),
        tar.as_os_str(),
    ]);
    assert!(!output.status.success());
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("out.tar") && said.contains("No space left on device"),
        "{said}"
    );
    assert_eq!(fs::read(&out).unwrap(), b"before");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
    // As a stream, which cannot be taken back.
    let output = sandbox.tarnfs(["flatten".as_ref(), "-o/dev/full".as_ref(), tar.as_os_str()]);
    let said = text(&output.stderr);
    assert!(
        !output.status.success() && said.lines().count() == 1,
        "{said}"
    );
    assert!(
        said.contains("/dev/full: No space left on device"),
        "{said}"
    );
    ok("umount", [full.as_os_str()]);
}

#[test]
fn bad_arguments_are_one_line() {
    let sandbox = Sandbox::new();
    let tar = plain(&sandbox);
    let bad = |args: &[&str]| {
        let args = ["flatten"].iter().chain(args).map(AsRef::as_ref);
        let output = sandbox.tarnfs(args.chain([tar.as_os_str()]));
        assert!(!output.status.success() && output.stdout.is_empty());
        text(&output.stderr)
    };
    for align in ["0", "511", "4097", "2097152", "x"] {
        assert!(bad(&["--align", align]).contains("power of two"));
    }
    let dir = sandbox.path().to_str().unwrap();
    assert!(bad(&["-o", dir]).contains("directory"));
    assert!(bad(&["-o", &format!("{dir}/none/out.tar")]).contains("No such file"));
}
