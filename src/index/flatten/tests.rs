use super::*;
use crate::index::builder::tests::check;
use crate::index::{scan_layer, scan_source};
use crate::tar::testing::{Raw, Tar};

mod indexed;
mod links;
pub(crate) mod model;
mod size;
mod through;

/// The layers, lowest first, on top of each other.
fn flat(layers: &[Tar]) -> Result<Flat, String> {
    let mut flattening = Flattening::new();
    for (i, tar) in layers.iter().enumerate() {
        let path = format!("{i}.tar");
        let tar = tar.clone().end();
        let layer = scan_layer(&tar[..], Path::new(&path)).map_err(|e| e.to_string())?;
        flattening
            .add(layer, Path::new(&path))
            .map_err(|e| e.to_string())?;
    }
    let flat = flattening.finish().map_err(|e| e.to_string())?;
    check(&flat.tree);
    Ok(flat)
}

/// Every path of the tree, with what tells it from others: `d` and `f` with the layer that a file
/// comes from and its length, `->` a link's target, `=` the first of several names.
pub(super) fn list(flat: &Flat) -> Vec<String> {
    let mut all = Vec::new();
    let mut first: BTreeMap<Id, String> = BTreeMap::new();
    let mut todo = vec![(String::new(), ROOT)];
    while let Some((path, id)) = todo.pop() {
        let inode = &flat.tree.inodes[slot(id)];
        let mut line = match &inode.content {
            Content::Dir { children, .. } => {
                let mut below: Vec<_> = children
                    .iter()
                    .map(|(name, id)| {
                        let name = String::from_utf8_lossy(name);
                        (format!("{path}/{name}"), id)
                    })
                    .collect();
                below.reverse();
                todo.extend(below);
                format!("{path}/")
            }
            Content::File { size, extents } => {
                let blob = extents.first().map(|e| flat.used[usize::from(e.blob)]);
                format!(
                    "{path} {}:{size}",
                    blob.map_or("-".into(), |b| b.to_string())
                )
            }
            Content::Symlink(target) => format!("{path} -> {}", target.escape_ascii()),
            _ => format!("{path} special"),
        };
        if inode.nlink > 1 && inode.children().is_none() {
            let first = first.entry(id).or_insert_with(|| path.clone());
            line += &format!(" ={first} {}", inode.nlink);
        }
        all.push(line);
    }
    all
}

#[track_caller]
fn shows(layers: &[Tar], want: &[&str]) -> Flat {
    let flat = flat(layers).unwrap();
    assert_eq!(list(&flat)[1..], *want);
    flat
}

#[track_caller]
fn refused(layers: &[Tar], why: &[&str]) {
    let said = flat(layers).expect_err("accepted");
    for why in why.iter().chain(&["at byte"]) {
        assert!(said.contains(why), "{said:?} does not say {why:?}");
    }
}

fn get<'a>(flat: &'a Flat, path: &str) -> &'a Inode {
    crate::index::builder::tests::get(&flat.tree, path).1
}

fn lower() -> Tar {
    Tar::new()
        .dir("d")
        .file("d/a", b"1")
        .file("d/b", b"22")
        .file("e", b"333")
}

#[test]
fn a_whiteout_hides_what_lower_layers_have_wherever_it_stands() {
    let whiteout = || Tar::new().file("d/.wh.a", b"").file(".wh.e", b"");
    shows(&[lower(), whiteout()], &["/d/", "/d/b 0:2"]);
    shows(&[lower(), Tar::new(), whiteout()], &["/d/", "/d/b 0:2"]);
    // What the same layer has is kept, be it before or after.
    let want = ["/d/", "/d/a 1:4", "/d/b 0:2", "/e/", "/e/x 1:5"];
    let before = Tar::new()
        .file("d/a", b"4444")
        .file("d/.wh.a", b"")
        .file("e/x", b"55555")
        .file(".wh.e", b"");
    shows(&[lower(), before], &want);
    let after = Tar::new()
        .file(".wh.e", b"")
        .file("e/x", b"55555")
        .file("d/.wh.a", b"")
        .file("d/a", b"4444");
    shows(&[lower(), after], &want);
    // A directory goes with all that is in it, also where a new one comes in its place.
    let dir = Tar::new().file("d/c", b"1").file(".wh.d", b"");
    let flat = shows(&[lower(), dir], &["/d/", "/d/c 1:1", "/e 0:3"]);
    assert_eq!(get(&flat, "d").perm, 0o755);
}

#[test]
fn what_a_whiteout_is_does_not_matter() {
    for whiteout in [
        Tar::new().dir("d/.wh.a"),
        Tar::new().symlink("d/.wh.a", "x"),
        Tar::new().hard_link("d/.wh.a", ".wh..wh.aufs"),
        Tar::new().raw(Raw::new(b'3', "d/.wh.a", 0), b""),
        Tar::new().raw(Raw::new(b'6', "d/.wh.a", 0), b""),
        Tar::new().file("d/.wh.a", &[7; 2000]),
        Tar::new().file("d/.wh.a", b"").file("d/.wh.a", b""),
    ] {
        shows(&[lower(), whiteout], &["/d/", "/d/b 0:2", "/e 0:3"]);
    }
}

#[test]
fn an_opaque_directory_hides_lower_layers_wherever_its_mark_stands() {
    let upper = |tar: Tar| tar.file("d/c", b"1");
    for layer in [
        upper(Tar::new().file("d/.wh..wh..opq", b"")),
        upper(Tar::new()).file("d/.wh..wh..opq", b""),
        upper(Tar::new().dir("d/.wh..wh..opq")),
        upper(Tar::new().dir("d")).file("d/.wh..wh..opq", b""),
    ] {
        shows(&[lower(), layer], &["/d/", "/d/c 1:1", "/e 0:3"]);
    }
    // The directory stays what it is, also where nothing else is in it.
    let opaque = || Tar::new().file("d/.wh..wh..opq", b"");
    let flat = shows(&[lower(), opaque()], &["/d/", "/e 0:3"]);
    assert_eq!(get(&flat, "d").perm, 0o644);
    assert_eq!(get(&flat, "d").nlink, 2);
    let root = Tar::new().file(".wh..wh..opq", b"").file("x", b"1");
    shows(&[lower(), root], &["/x 1:1"]);
    // A name in it that is hidden once more, and one of a directory that is.
    let twice = opaque().file("d/.wh.a", b"").file(".wh.d", b"");
    shows(&[lower(), twice], &["/e 0:3"]);
}

#[test]
fn files_of_aufs_itself_are_passed_over() {
    let aufs = Tar::new()
        .file(".wh..wh.aufs", b"")
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", b"x")
        .dir("d/.wh..wh.orph")
        .file("new/.wh..wh.x", b"");
    shows(std::slice::from_ref(&aufs), &[]);
    let want = ["/d/", "/d/a 0:1", "/d/b 0:2", "/e 0:3"];
    shows(&[lower(), aufs], &want);
}

#[test]
fn a_whiteout_of_nothing_is_nothing() {
    let nothing = || {
        Tar::new()
            .file(".wh.x", b"")
            .file("no/.wh.x", b"")
            .file("no/thing/.wh..wh..opq", b"")
            .file("e/.wh.x", b"")
            .file("e/.wh..wh..opq", b"")
            .file("d/a/f/.wh.x", b"")
    };
    shows(&[nothing()], &[]);
    shows(
        &[lower(), nothing()],
        &["/d/", "/d/a 0:1", "/d/b 0:2", "/e 0:3"],
    );
    // Nor is one of what the layer has something else instead of.
    let instead = Tar::new().file("d", b"1").file("d/.wh.a", b"");
    shows(&[lower(), instead], &["/d 1:1", "/e 0:3"]);
}

#[test]
fn a_directory_takes_the_later_attributes_and_keeps_its_children() {
    let xattr = |name: &'static str| (name, &b"v"[..]);
    let base = Tar::new()
        .pax(&[xattr("SCHILY.xattr.user.old"), ("mtime", b"5")])
        .raw(Raw::new(b'5', "./", 0).with(100, b"0000711\0"), b"")
        .pax(&[xattr("SCHILY.xattr.user.old")])
        .dir("d")
        .file("d/a", b"1");
    let told = Tar::new()
        .pax(&[xattr("SCHILY.xattr.user.new"), ("uid", b"7")])
        .raw(Raw::new(b'5', "d", 0).with(100, b"0000700\0"), b"")
        .file("d/b", b"1");
    let want = ["/d/", "/d/a 0:1", "/d/b 1:1"];
    let flat = shows(&[base.clone(), told.clone()], &want);
    let dir = get(&flat, "d");
    assert_eq!((dir.perm, dir.uid), (0o700, 7));
    assert_eq!(dir.xattrs.len(), 1);
    assert_eq!(dir.xattrs[0].name, b"user.new");
    // The root, of which the second layer says nothing.
    let root = get(&flat, "");
    assert_eq!(
        (root.perm, root.mtime.sec, root.xattrs.len()),
        (0o711, 5, 1)
    );
    // One that a layer implies keeps what lower layers say; what none says is made up.
    let implied = Tar::new().file("d/b", b"1").file("new/x", b"");
    let flat = shows(
        &[base, implied, told],
        &["/d/", "/d/a 0:1", "/d/b 2:1", "/new/", "/new/x -:0"],
    );
    assert_eq!(get(&flat, "d").perm, 0o700);
    assert_eq!(
        (get(&flat, "new").perm, get(&flat, "new").mtime.sec),
        (0o755, 0)
    );
}

#[test]
fn what_is_of_another_type_is_replaced() {
    // A file takes the place of a directory with all that is in it.
    let deep = Tar::new().file("d/e/f", b"1").hard_link("g", "d/e/f");
    shows(&[deep, Tar::new().file("d", b"22")], &["/d 1:2", "/g 0:1"]);
    shows(
        &[lower(), Tar::new().symlink("d", "e")],
        &["/d -> e", "/e 0:3"],
    );
    // A directory of its own takes the place of a file, and of a link, which it does not follow.
    let base = Tar::new().file("f", b"1").dir("d").symlink("l", "d");
    let upper = Tar::new()
        .dir("f")
        .file("f/x", b"22")
        .file("l/x", b"333")
        .dir("l");
    shows(
        &[base, upper],
        &["/d/", "/f/", "/f/x 1:2", "/l/", "/l/x 1:3"],
    );
    // One that is only implied does not.
    let upper = Tar::new().file("z", b"").file("f/y/x", b"");
    refused(
        &[Tar::new().file("f", b""), upper],
        &["1.tar: f/y/x: f is not a directory", "at byte 512"],
    );
}

#[test]
fn one_layer_is_what_its_tar_is() {
    let odd = [
        ("GNU.sparse.size", &b"9000"[..]),
        ("GNU.sparse.map", b"100,2,300,1"),
    ];
    for tar in [
        Tar::new(),
        lower(),
        Tar::new().file("x/y/z", b"1").dir("x").file("x/a", b"2"),
        Tar::new()
            .hard_link("a", "b")
            .hard_link("c", "a")
            .file("b", b"1"),
        Tar::new()
            .file("b", b"1")
            .file("b", b"22")
            .hard_link("a", "b")
            .file("b", b""),
        Tar::new().pax(&odd).file("s", b"xyz"),
        Tar::new()
            .file("a", b"1")
            .pax(&odd)
            .file("s", b"xyz")
            .pax(&odd)
            .file("s", b"xyz"),
    ] {
        let flat = flat(std::slice::from_ref(&tar)).unwrap();
        let scan = scan_source(&tar.end()[..], Path::new("t"), &()).unwrap();
        assert_eq!(flat.tree, scan.tree);
        assert_eq!(flat.side_len, scan.side.len);
        let copies: Vec<_> = flat.side.iter().map(|copy| copy.copy).collect();
        assert_eq!(copies, scan.side.copies);
    }
}

/// The order in which go-containerregistry's `mutate.Extract` writes a flattened image: the top
/// layer's files first, children before their parents, links before what they lead to.
#[test]
fn a_flattened_tar_in_the_order_of_go_containerregistry() {
    let tar = Tar::new()
        .hard_link("usr/bin/b", "usr/bin/a")
        .hard_link("usr/bin/c", "usr/bin/b")
        .file("etc/conf.d/x", b"top")
        .file("usr/bin/a", b"1")
        .raw(Raw::new(b'5', "etc/conf.d", 0).with(100, b"0000700\0"), b"")
        .raw(Raw::new(b'5', "usr/bin", 0).with(100, b"0000711\0"), b"")
        .file("etc/passwd", b"root")
        .dir("etc")
        .dir("usr")
        .symlink("bin", "usr/bin")
        .raw(Raw::new(b'5', "./", 0).with(100, b"0000750\0"), b"");
    let scan = scan_source(&tar.clone().end()[..], Path::new("t"), &()).unwrap();
    let flat = shows(
        &[tar],
        &[
            "/bin -> usr/bin",
            "/etc/",
            "/etc/conf.d/",
            "/etc/conf.d/x 0:3",
            "/etc/passwd 0:4",
            "/usr/",
            "/usr/bin/",
            "/usr/bin/a 0:1 =/usr/bin/a 3",
            "/usr/bin/b 0:1 =/usr/bin/a 3",
            "/usr/bin/c 0:1 =/usr/bin/a 3",
        ],
    );
    assert_eq!(flat.tree, scan.tree);
    assert_eq!(get(&flat, "usr/bin").perm, 0o711);
    assert_eq!(get(&flat, "etc/conf.d").perm, 0o700);
    assert_eq!(get(&flat, "").perm, 0o750);
}
