//! Through symbolic links of lower layers.

use super::*;

fn merged_usr() -> Tar {
    Tar::new()
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/a", b"1")
        .symlink("lib", "usr/lib")
}

#[test]
fn an_implied_directory_is_what_the_link_leads_to() {
    for target in [
        "usr/lib",
        "/usr/lib",
        "./usr//lib/.",
        "../../usr/lib",
        "/../usr/../usr/lib/",
        "usr/lib/../lib",
    ] {
        let base = merged_usr().symlink("lib", target);
        let upper = Tar::new()
            .file("lib/b", b"22")
            .file("lib/sub/c", b"333")
            .file("usr/lib/d", b"4444");
        let link = format!("/lib -> {target}");
        let want = [
            &*link,
            "/usr/",
            "/usr/lib/",
            "/usr/lib/a 0:1",
            "/usr/lib/b 1:2",
            "/usr/lib/d 1:4",
            "/usr/lib/sub/",
            "/usr/lib/sub/c 1:3",
        ];
        shows(&[base, upper], &want);
    }
}

#[test]
fn links_behind_links_and_in_directories() {
    let base = Tar::new()
        .dir("x")
        .dir("x/y")
        .symlink("x/up", "..")
        .symlink("x/y/l", "../up/to")
        .symlink("to", "x/end")
        .dir("x/end")
        .symlink("x/end/home", "/x/y");
    let upper = Tar::new().file("x/y/l/home/f", b"1");
    shows(
        &[base, upper],
        &[
            "/to -> x/end",
            "/x/",
            "/x/end/",
            "/x/end/home -> /x/y",
            "/x/up -> ..",
            "/x/y/",
            "/x/y/f 1:1",
            "/x/y/l -> ../up/to",
        ],
    );
}

#[test]
fn at_most_forty_links() {
    let chain = |n: usize| {
        let mut tar = Tar::new().dir("end");
        for i in 0..n {
            let to = if i + 1 == n {
                "end".into()
            } else {
                format!("l{}", i + 1)
            };
            tar = tar.symlink(&format!("l{i}"), &to);
        }
        tar
    };
    let upper = || Tar::new().file("l0/x", b"1");
    assert!(list(&flat(&[chain(40), upper()]).unwrap()).contains(&"/end/x 1:1".to_owned()));
    let why = ["1.tar: l0/x", "through l0, a symbolic link", "no directory"];
    refused(&[chain(41), upper()], &why);
    refused(&[Tar::new().symlink("l0", "l0"), upper()], &why);
    // A whiteout there is one of nothing.
    let whiteout = Tar::new().file("l0/.wh.x", b"");
    flat(&[chain(41), whiteout]).unwrap();
}

#[test]
fn a_link_that_leads_to_no_directory_is_an_error() {
    for target in ["nothing", "file", "file/..", "nothing/../d", "/d/x"] {
        let base = Tar::new()
            .dir("d")
            .file("file", b"")
            .dir("deep")
            .symlink("deep/l", &format!("../{target}"));
        let upper = Tar::new().file("b", b"").file("deep/l/m/x", b"");
        refused(
            &[base, upper],
            &[
                "1.tar: deep/l/m/x: ",
                "through deep/l, a symbolic",
                "at byte 512",
            ],
        );
    }
    // What the same layer has counts, wherever it stands.
    let base = Tar::new().symlink("l", "d");
    let upper = Tar::new().file("l/x", b"1").dir("d");
    shows(&[base, upper], &["/d/", "/d/x 1:1", "/l -> d"]);
}

#[test]
fn the_link_that_a_whiteout_hides_is_not_followed() {
    let upper = Tar::new().file("lib/b", b"22").file(".wh.lib", b"");
    shows(
        &[merged_usr(), upper],
        &[
            "/lib/",
            "/lib/b 1:2",
            "/usr/",
            "/usr/lib/",
            "/usr/lib/a 0:1",
        ],
    );
}

#[test]
fn whiteouts_follow_links_too() {
    let upper = Tar::new().file("lib/.wh.a", b"");
    let want = ["/lib -> usr/lib", "/usr/", "/usr/lib/"];
    shows(&[merged_usr(), upper], &want);
    let upper = Tar::new().file("lib/.wh..wh..opq", b"");
    shows(&[merged_usr(), upper], &want);
    // Both the link and what is behind it: each whiteout means the lower layers as they were.
    let upper = Tar::new().file(".wh.lib", b"").file("lib/.wh.a", b"");
    shows(&[merged_usr(), upper], &["/usr/", "/usr/lib/"]);
    // Not where the layer has a directory instead.
    let upper = Tar::new().file("lib/.wh.a", b"").dir("lib");
    shows(
        &[merged_usr(), upper],
        &["/lib/", "/usr/", "/usr/lib/", "/usr/lib/a 0:1"],
    );
    // Where the layer's own link leads is not said clearly enough.
    let upper = Tar::new().file("lib/.wh.a", b"").symlink("lib", "usr/lib");
    refused(
        &[merged_usr(), upper],
        &["1.tar: lib/.wh.a", "the symbolic link lib"],
    );
}

#[test]
fn regression_a_hard_link_to_the_link_that_leads_to_it() {
    let upper = Tar::new().hard_link("lib/l", "lib");
    shows(
        &[merged_usr(), upper],
        &[
            "/lib -> usr/lib =/lib 2",
            "/usr/",
            "/usr/lib/",
            "/usr/lib/a 0:1",
            "/usr/lib/l -> usr/lib =/lib 2",
        ],
    );
}

#[test]
fn what_comes_through_a_link_holds() {
    let upper = Tar::new()
        .file("lib/a", b"333")
        .file("lib/e/f", b"4444")
        .file("usr/lib/a", b"22")
        .file("usr/lib/e/g", b"1");
    let want = [
        "/lib -> usr/lib",
        "/usr/",
        "/usr/lib/",
        "/usr/lib/a 1:3",
        "/usr/lib/e/",
        "/usr/lib/e/f 1:4",
        "/usr/lib/e/g 1:1",
    ];
    shows(&[merged_usr(), upper], &want);
}

#[test]
fn a_directory_that_is_gone_when_the_detour_comes() {
    // Through `a` the link `z/l`'s directory is replaced by a file, then something is behind it.
    let base = Tar::new().dir("z").symlink("z/l", "..").symlink("a", ".");
    let upper = Tar::new().file("a/z", b"1").file("z/l/x", b"1");
    refused(&[base, upper], &["1.tar: z/l/x", "through z/l"]);
}

#[test]
fn the_work_of_hostile_links_is_bounded() {
    let mut base = Tar::new().dir("d");
    // Each leads back to its own directory two thousand times.
    let long = b"d/../".repeat(800);
    for i in 0..40 {
        let to = if i == 39 {
            b"d".to_vec()
        } else {
            format!("l{}", i + 1).into_bytes()
        };
        let target = [&long[..], &to].concat();
        let name = format!("l{i}");
        base = base.pax(&[("linkpath", &target)]).symlink(&name, "");
    }
    let mut upper = Tar::new();
    for i in 0..1000 {
        upper = upper.file(&format!("l0/{i}/.wh.x"), b"");
    }
    refused(&[base, upper], &["too many symbolic links"]);
}
