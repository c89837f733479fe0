//! `gc`.

use std::fs;

use super::common::{Sandbox, text};
use super::{bad, blob, good, import, json, layer, two_layers, used};
use serde_json::Value;

/// The decisions about images, with their reasons.
fn decided(told: &Value) -> Vec<(String, bool, String)> {
    let all = told["decisions"].as_array().unwrap().iter();
    all.filter(|d| d["kind"] == "image")
        .map(|d| {
            let text = |key: &str| d[key].as_str().unwrap().to_owned();
            (text("name"), d["goes"].as_bool().unwrap(), text("why"))
        })
        .collect()
}

#[test]
fn the_one_used_longest_ago_goes_first() {
    let sandbox = Sandbox::new();
    let shared = two_layers("shared").remove(0);
    let names = ["a", "b", "c", "d"];
    let digests: Vec<_> = names
        .iter()
        .map(|name| import(&sandbox, name, &[shared.clone(), layer(name)]))
        .collect();
    // b, d, a, c: the last one just now.
    for (n, ago) in [(1, 4000), (3, 3000), (0, 2000)] {
        used(&sandbox, &digests[n], ago);
    }
    used(&sandbox, &digests[2], 1000);
    let before = good(&sandbox, &["images", "-q"]);
    // Room for all: nothing goes, and nothing is said to go.
    assert!(good(&sandbox, &["gc", "--max-bytes=1G"]).starts_with("freed 0 B"));
    let args = [
        "gc",
        "--dry-run",
        "--json",
        "--max-bytes=1",
        "--low=1",
        "--min-age=25m",
    ];
    let output = sandbox.tarnfs(args);
    let said = text(&output.stderr);
    assert!(
        said.lines().count() == 1 && said.contains("--min-age"),
        "{said}"
    );
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let decisions = decided(&told);
    let order: Vec<_> = decisions.iter().map(|d| &d.0).collect();
    assert_eq!(order, [&digests[1], &digests[3], &digests[0], &digests[2]]);
    let goes: Vec<_> = decisions.iter().map(|d| d.1).collect();
    assert_eq!(goes, [true, true, true, false]);
    assert!(decisions[0].2.contains("used last 66 min ago"), "{told}");
    assert!(decisions[3].2.contains("within the last 25 min"), "{told}");
    assert!(told["dry_run"] == true && told["bytes_short"].as_u64() > Some(0));
    assert_eq!(good(&sandbox, &["images", "-q"]), before, "a dry run");
    // In earnest, until one is gone.
    let bytes = told["bytes_before"].as_u64().unwrap();
    let args = [
        "gc",
        "--min-age=0",
        &format!("--max-bytes={}", bytes - 1),
        &format!("--low={}", bytes - 1),
    ];
    let said = good(&sandbox, &args);
    assert!(
        said.contains(&format!("removed image {}", digests[1])),
        "{said}"
    );
    assert!(bad(&sandbox, &["ls", "b"]).contains("no image"));
    for name in ["a", "c", "d"] {
        assert_eq!(good(&sandbox, &["cat", name, name]), name);
        good(&sandbox, &["cat", name, "etc/os-release"]);
    }
    assert!(blob(&sandbox, &shared).exists() && !blob(&sandbox, &layer("b")).exists());
    let said = good(&sandbox, &["gc", "--all", "--min-age=0"]);
    assert!(said.contains("nobody uses it"), "{said}");
    assert!(!blob(&sandbox, &shared).exists());
    assert_eq!(good(&sandbox, &["images", "-q"]), "");
    assert_eq!(fs::read_dir(sandbox.at("store/names")).unwrap().count(), 0);
}

#[test]
fn what_gc_is_asked() {
    let sandbox = Sandbox::new();
    import(&sandbox, "a", &two_layers("a"));
    // Just imported: it stays by default.
    let said = good(&sandbox, &["gc", "--all", "--dry-run"]);
    assert!(
        said.contains("keeps image") && said.contains("within the last 10 min"),
        "{said}"
    );
    // The disk is more than 1% full, or the store is not what fills it: one answer or the other.
    let told = json(&sandbox, &["gc", "--json", "--dry-run", "--max-bytes=100%"]);
    assert_eq!(decided(&told)[0].2, "there is room");
    for bad in [
        &["--max-bytes=0%"][..],
        &["--max-bytes=101%"],
        &["--max-bytes=x"],
        &["--low=1G"],
        &["--all", "--max-bytes=1G"],
        &["--min-age=1y"],
    ] {
        let output = sandbox.tarnfs([&["gc"], bad].concat());
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
    }
    // An empty store, and one that is not there.
    let empty = Sandbox::new();
    assert!(good(&empty, &["gc", "--dry-run"]).starts_with("would free 0 B"));
    assert!(!empty.at("store").exists());
}
