use super::super::extents::SideCopy;
use super::super::tree::InodeId;
use super::*;
use crate::index::scan_source;
use crate::tar::testing::{Raw, Tar};

fn scan(tar: Tar) -> Result<crate::index::Scan, String> {
    let bytes = tar.end();
    let scan = scan_source(&bytes[..], std::path::Path::new("t.tar"), &());
    scan.map_err(|e| e.to_string())
}

fn tree(tar: Tar) -> Tree {
    let tree = scan(tar).unwrap().tree;
    check(&tree);
    tree
}

#[track_caller]
fn refused(tar: Tar, why: &str) {
    let text = scan(tar).expect_err("accepted");
    assert!(
        text.contains(why) && text.contains("at byte"),
        "{text:?} does not say {why:?}"
    );
}

/// What the writer relies on.
pub(in crate::index) fn check(tree: &Tree) {
    let mut names = vec![0_u32; tree.inodes.len()];
    for (i, inode) in tree.inodes.iter().enumerate() {
        if let Content::Dir { children, parent } = &inode.content {
            assert!(children.iter().is_sorted_by(|a, b| a.0 < b.0));
            let is_dir =
                |id: InodeId| matches!(tree.inodes[id.0 as usize].content, Content::Dir { .. });
            assert!(is_dir(*parent));
            let subdirs = children.iter().filter(|&(_, id)| is_dir(id)).count();
            assert_eq!(inode.nlink as usize, 2 + subdirs);
            for (_, id) in children {
                names[id.0 as usize] += 1;
                if let Content::Dir { parent, .. } = &tree.inodes[id.0 as usize].content {
                    assert_eq!(parent.0 as usize, i);
                }
            }
        }
    }
    for (i, inode) in tree.inodes.iter().enumerate() {
        match inode.content {
            Content::Dir { .. } => assert_eq!(names[i], u32::from(i != 0)),
            _ => assert_eq!(names[i], inode.nlink, "inode {i}"),
        }
    }
}

pub(in crate::index) fn get<'a>(tree: &'a Tree, path: &str) -> (InodeId, &'a Inode) {
    let mut id = super::super::tree::ROOT;
    for name in path.split('/').filter(|p| !p.is_empty()) {
        let Content::Dir { children, .. } = &tree.inodes[id.0 as usize].content else {
            panic!("{path}")
        };
        id = children
            .iter()
            .find(|(n, _)| *n == name.as_bytes())
            .expect(path)
            .1;
    }
    (id, &tree.inodes[id.0 as usize])
}

fn size(tree: &Tree, path: &str) -> u64 {
    match get(tree, path).1.content {
        Content::File { size, .. } => size,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn missing_parents_are_made_and_told_later() {
    let t = tree(
        Tar::new()
            .file("./a/b/c", b"x")
            .raw(Raw::new(b'5', "a", 0), b""),
    );
    assert_eq!(get(&t, "").1.perm, 0o755);
    assert_eq!(get(&t, "a").1.perm, 0o644);
    assert_eq!(get(&t, "a").1.mtime.sec, 1);
    assert_eq!(
        (get(&t, "a/b").1.perm, get(&t, "a/b").1.mtime.sec),
        (0o755, 0)
    );
    assert_eq!(size(&t, "a/b/c"), 1);
}

#[test]
fn the_root_has_attributes_and_stays_a_directory() {
    let t = tree(Tar::new().file("a", b"").raw(Raw::new(b'5', "./", 0), b""));
    assert_eq!(get(&t, "").1.perm, 0o644);
    assert_eq!(t.inodes.len(), 2);
    refused(Tar::new().symlink("./", "a"), "root");
    refused(Tar::new().hard_link(".", "a"), "root");
}

#[test]
fn the_later_entry_holds() {
    let t = tree(
        Tar::new()
            .file("a", b"1")
            .dir("d")
            .file("d/x", b"")
            .file("a", b"22")
            .dir("d")
            .symlink("e", "d")
            .dir("e")
            .dir("empty")
            .file("empty", b"333"),
    );
    assert_eq!(size(&t, "a"), 2);
    assert_eq!(size(&t, "d/x"), 0);
    assert_eq!(size(&t, "empty"), 3);
    assert!(matches!(get(&t, "e").1.content, Content::Dir { .. }));
    assert_eq!(t.inodes.len(), 6);
    refused(Tar::new().file("d/x", b"").file("d", b""), "not empty");
    refused(
        Tar::new()
            .file("t", b"")
            .file("d/x", b"")
            .hard_link("d", "t"),
        "not empty",
    );
}

#[test]
fn a_replaced_directory_is_not_remembered() {
    let t = Tar::new()
        .dir("d")
        .dir("d/e")
        .file("d/e", b"")
        .file("d/f", b"");
    assert_eq!(tree(t).inodes.len(), 4);
    refused(
        Tar::new().dir("d/e").file("d/e", b"").file("d/e/f", b""),
        "d/e is not a directory",
    );
    // The cached directory is the one that goes.
    let t = tree(
        Tar::new()
            .dir("d")
            .dir("d/e")
            .raw(Raw::new(b'5', "d/e", 0), b"")
            .file("x", b""),
    );
    assert_eq!(t.inodes.len(), 4);
}

#[test]
fn paths_lead_through_directories_only() {
    refused(
        Tar::new().file("f", b"").file("f/x", b""),
        "f is not a directory",
    );
    refused(
        Tar::new().symlink("bin", "usr/bin").file("bin/x", b""),
        "symbolic link bin",
    );
    refused(
        Tar::new().hard_link("p", "q").file("p/x", b""),
        "p is not a directory",
    );
    refused(
        Tar::new()
            .symlink("s", "d")
            .file("d/x", b"")
            .hard_link("h", "s/x"),
        "symbolic link s",
    );
    refused(
        Tar::new().file("f", b"").hard_link("h", "f/x"),
        "f is not a directory",
    );
}

#[test]
fn hard_links_in_any_order() {
    let t = tree(
        Tar::new()
            .hard_link("z", "y")
            .hard_link("y", "dir/x")
            .file("dir/x", b"xxx")
            .hard_link("w", "./z")
            .symlink("s", "nowhere")
            .hard_link("s2", "s")
            .raw(Raw::new(b'6', "p", 0), b"")
            .hard_link("p2", "p"),
    );
    let id = get(&t, "dir/x").0;
    for name in ["w", "y", "z"] {
        assert_eq!(get(&t, name).0, id);
    }
    assert_eq!(get(&t, "w").1.nlink, 4);
    assert_eq!((get(&t, "s2").1.nlink, get(&t, "p2").1.nlink), (2, 2));
    assert_eq!(t.inodes.len(), 5);
}

#[test]
fn a_replaced_target_lives_on_under_its_other_name() {
    let t = tree(
        Tar::new()
            .file("a", b"1")
            .hard_link("b", "a")
            .file("a", b"22"),
    );
    assert_eq!((size(&t, "a"), size(&t, "b")), (2, 1));
    assert_eq!((get(&t, "a").1.nlink, get(&t, "b").1.nlink), (1, 1));
}

#[test]
fn a_replaced_link_is_gone() {
    let t = tree(
        Tar::new()
            .hard_link("b", "nothing")
            .file("b", b"22")
            .file("a", b""),
    );
    assert_eq!((size(&t, "b"), t.inodes.len()), (2, 3));
    let t = tree(
        Tar::new()
            .file("a", b"1")
            .hard_link("a", "a")
            .hard_link("b", "a")
            .hard_link("b", "a"),
    );
    assert_eq!(get(&t, "a").1.nlink, 2);
}

#[test]
fn hard_links_to_nowhere() {
    refused(Tar::new().hard_link("a", "nothing"), "not in the tar");
    refused(Tar::new().hard_link("a", "d/nothing"), "not in the tar");
    refused(Tar::new().dir("d").hard_link("a", "d"), "is a directory");
    refused(Tar::new().hard_link("a", "d").dir("d"), "is a directory");
    refused(Tar::new().hard_link("a", "./"), "is a directory");
    refused(Tar::new().hard_link("a", "a"), "itself");
    refused(Tar::new().hard_link("a", "b").hard_link("b", "a"), "");
    refused(
        Tar::new()
            .hard_link("a", "b")
            .hard_link("b", "c")
            .hard_link("c", "a"),
        "",
    );
    refused(
        Tar::new()
            .hard_link("x", "a")
            .hard_link("a", "b")
            .hard_link("b", "a"),
        "",
    );
}

#[test]
fn a_long_chain_of_links_is_followed() {
    let mut tar = Tar::new();
    for i in 0..3000 {
        tar = tar.hard_link(&format!("l{i}"), &format!("l{}", i + 1));
    }
    let t = tree(tar.file("l3000", b"x"));
    assert_eq!((t.inodes.len(), get(&t, "l0").1.nlink), (2, 3001));
}

#[test]
fn content_in_a_hard_link_must_be_the_targets() {
    let link = |size: &[u8], body: &[u8]| {
        Tar::new()
            .file("a", b"xx")
            .pax(&[("size", size)])
            .raw(Raw::link(b'1', "h", "a"), body)
    };
    assert_eq!(get(&tree(link(b"2", b"xx")), "h").1.nlink, 2);
    refused(link(b"3", b"xxx"), "carries 3 bytes");
}

#[test]
fn the_error_names_entry_and_offset() {
    let text = scan(Tar::new().file("f", b"").file("f/x", b"")).unwrap_err();
    assert!(text.starts_with("t.tar: f/x: "), "{text}");
    assert!(text.ends_with("(at byte 512)"), "{text}");
}

#[test]
fn odd_sparse_files_go_aside() {
    let sparse = |size: &str, map: &str| {
        Tar::new()
            .pax(&[
                ("GNU.sparse.size", size.as_bytes()),
                ("GNU.sparse.map", map.as_bytes()),
            ])
            .file("s", b"xyz")
    };
    let scan = self::scan(sparse("9000", "100,2,300,1").file("b", b"b")).unwrap();
    assert_eq!(scan.side.len, 12288);
    assert_eq!(
        scan.side.copies,
        [
            SideCopy {
                tar_offset: 1536,
                len: 2,
                side_offset: 100
            },
            SideCopy {
                tar_offset: 1538,
                len: 1,
                side_offset: 300
            },
        ]
    );
    let Content::File { extents, .. } = &get(&scan.tree, "s").1.content else {
        panic!()
    };
    assert_eq!(extents[0].blob, 1);
    refused(sparse("16000000000000", "100,2,300,1"), "t.tar: s: ");
    let replaced = self::scan(sparse("9000", "100,2,300,1").file("s", b"")).unwrap();
    assert_eq!(replaced.side, SidePlan::default());
}

#[test]
fn large_directories_are_not_quadratic() {
    // A quadratic builder would take minutes for these; the test's own patience is the bound.
    let mut builder = Builder::new();
    let entry = |path: String, kind| Entry {
        offset: 0,
        path: path.into_bytes(),
        kind,
        perm: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        xattrs: Vec::new(),
    };
    for i in 0..200_000_u32 {
        let target = format!("dir/{:07}", i.wrapping_mul(7919) % 200_000).into_bytes();
        let kind = if i % 2 == 0 {
            EntryKind::HardLink { target, data: None }
        } else {
            EntryKind::Fifo
        };
        let name = if i % 2 == 0 {
            format!("links/{i}")
        } else {
            format!("dir/{i:07}")
        };
        builder.add(&mut entry(name, kind)).unwrap();
    }
    for i in (0..200_000).step_by(2) {
        builder
            .add(&mut entry(format!("dir/{i:07}"), EntryKind::Fifo))
            .unwrap();
    }
    let tree = builder.finish().unwrap().tree;
    assert_eq!(tree.inodes.len(), 200_003);
    check(&tree);
}
