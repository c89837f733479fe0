//! Hard links across layers.

use super::*;

fn pair() -> Tar {
    Tar::new().file("a", b"1").hard_link("b", "a")
}

#[test]
fn names_in_several_layers_are_one_inode() {
    let flat = shows(
        &[
            pair(),
            Tar::new().hard_link("d/c", "a"),
            Tar::new().hard_link("e", "d/c").hard_link("f", "e"),
        ],
        &[
            "/a 0:1 =/a 5",
            "/b 0:1 =/a 5",
            "/d/",
            "/d/c 0:1 =/a 5",
            "/e 0:1 =/a 5",
            "/f 0:1 =/a 5",
        ],
    );
    assert_eq!(flat.used, [0]);
}

#[test]
fn when_a_name_goes_the_others_keep_the_file() {
    let replaced = Tar::new().file("a", b"22");
    shows(&[pair(), replaced], &["/a 1:2", "/b 0:1"]);
    let hidden = Tar::new().file(".wh.a", b"");
    shows(&[pair(), hidden], &["/b 0:1"]);
    let both = Tar::new().file(".wh.a", b"").file(".wh.b", b"");
    let flat = shows(&[pair(), both, Tar::new().file("c", b"1")], &["/c 2:1"]);
    assert_eq!(flat.used, [2]);
    // A new name, and what it was made from is replaced by the same layer, before or after.
    let after = Tar::new().hard_link("c", "a").file("a", b"22");
    shows(
        &[pair(), after],
        &["/a 1:2", "/b 0:1 =/b 2", "/c 0:1 =/b 2"],
    );
    let before = Tar::new().file("a", b"22").hard_link("c", "a");
    shows(
        &[pair(), before],
        &["/a 1:2 =/a 2", "/b 0:1", "/c 1:2 =/a 2"],
    );
    // All old names go, the new one stays.
    let all = Tar::new().hard_link("c", "a").file("a", b"").file("b", b"");
    shows(&[pair(), all], &["/a -:0", "/b -:0", "/c 0:1"]);
}

#[test]
fn targets_of_the_same_layer_before_and_after() {
    let after = Tar::new()
        .hard_link("x", "y")
        .hard_link("w", "x")
        .file("y", b"1");
    shows(
        &[pair(), after],
        &[
            "/a 0:1 =/a 2",
            "/b 0:1 =/a 2",
            "/w 1:1 =/w 3",
            "/x 1:1 =/w 3",
            "/y 1:1 =/w 3",
        ],
    );
    // A link that waits for one that leads down.
    let chain = Tar::new().hard_link("x", "y").hard_link("y", "a");
    shows(
        &[pair(), chain],
        &[
            "/a 0:1 =/a 4",
            "/b 0:1 =/a 4",
            "/x 0:1 =/a 4",
            "/y 0:1 =/a 4",
        ],
    );
    // To what the name is already.
    let again = Tar::new().hard_link("b", "a").hard_link("a", "b");
    shows(&[pair(), again], &["/a 0:1 =/a 2", "/b 0:1 =/a 2"]);
}

#[test]
fn a_target_that_the_layer_hides_is_not_there() {
    for hide in [".wh.a", ".wh..wh..opq"] {
        let why = ["1.tar: c: hard link to a", "not in"];
        let layer = Tar::new().file(hide, b"").hard_link("c", "a");
        refused(&[pair(), layer], &why);
        let layer = Tar::new().hard_link("c", "a").file(hide, b"");
        refused(&[pair(), layer], &why);
        // But what it has itself is.
        let layer = Tar::new()
            .hard_link("c", "a")
            .file(hide, b"")
            .file("a", b"22");
        flat(&[pair(), layer]).unwrap();
    }
    refused(
        &[pair(), Tar::new().hard_link("c", "d/e")],
        &["hard link to d/e, which is not in"],
    );
    let hidden_dir = Tar::new().hard_link("c", "d/e").file(".wh.d", b"");
    refused(&[Tar::new().file("d/e", b""), hidden_dir], &["not in"]);
}

#[test]
fn what_cannot_be_linked() {
    let base = || Tar::new().dir("d").file("f", b"1").symlink("l", "nowhere");
    let link = |target| [base(), Tar::new().hard_link("x", target)];
    refused(
        &link("d"),
        &["1.tar: x: hard link to d, which is a directory"],
    );
    refused(&link("f/y"), &["not in"]);
    refused(&link("l/y"), &["not in"]);
    refused(&link("x"), &["to itself"]);
    let cycle = Tar::new().hard_link("x", "y").hard_link("y", "x");
    refused(&[base(), cycle], &["to itself"]);
    // What the layer has in the way when the link comes.
    let barred = Tar::new().file("d", b"").hard_link("x", "d/f");
    refused(
        &[Tar::new().file("d/f", b""), barred],
        &["d is not a directory"],
    );
    let content = Tar::new()
        .pax(&[("size", b"2")])
        .raw(Raw::link(b'1', "x", "f"), b"22");
    refused(&[base(), content], &["carries 2 bytes"]);
    // A link to a symbolic link is one.
    shows(
        &link("l"),
        &[
            "/d/",
            "/f 0:1",
            "/l -> nowhere =/l 2",
            "/x -> nowhere =/l 2",
        ],
    );
}

#[test]
fn targets_are_found_behind_links_of_lower_layers() {
    let base = || Tar::new().file("usr/lib/a", b"1").symlink("lib", "usr/lib");
    let want = [
        "/lib -> usr/lib",
        "/usr/",
        "/usr/lib/",
        "/usr/lib/a 0:1 =/usr/lib/a 2",
        "/usr/lib/b 0:1 =/usr/lib/a 2",
    ];
    shows(&[base(), Tar::new().hard_link("lib/b", "lib/a")], &want);
    shows(&[base(), Tar::new().hard_link("usr/lib/b", "lib/a")], &want);
    // The same file by another path is the file itself.
    let same = Tar::new().hard_link("lib/a", "usr/lib/a");
    shows(
        &[base(), same],
        &["/lib -> usr/lib", "/usr/", "/usr/lib/", "/usr/lib/a 0:1"],
    );
    // Not behind one that the layer has replaced by a directory.
    let instead = Tar::new().dir("lib").hard_link("x", "lib/a");
    refused(&[base(), instead], &["not in"]);
}
