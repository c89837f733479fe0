//! The record's bytes, the ranges, the order of the disk, the bounds.

use std::path::Path;

use super::format::{self, Line, Profile, ProfileError};
use super::record::{Ranges, Recording};
use super::replay::{GAP, Want, in_disk_order, judge};

const HEAD: &str = "tarnfs-prefetch 1 00000000deadbeef\n";

fn parse(bytes: &[u8]) -> Result<Profile, ProfileError> {
    Profile::parse(Path::new("r"), bytes)
}

fn lines(text: &str) -> Result<Vec<Line>, String> {
    let text = format!("{HEAD}{text}");
    parse(text.as_bytes())
        .map(|profile| profile.lines)
        .map_err(|error| error.to_string())
}

#[test]
fn hostile_records_are_refused_in_one_line() {
    for (text, said) in [
        ("x 1 /a\n", "line 2: OFFSET"),
        ("-1 1 /a\n", "line 2: OFFSET"),
        ("+1 1 /a\n", "line 2: OFFSET"),
        ("18446744073709551616 1 /a\n", "line 2: OFFSET"),
        ("0 x /a\n", "line 2: LENGTH"),
        ("0\n", "line 2: LENGTH"),
        ("0 1\n", "line 2: OFFSET LENGTH PATH"),
        ("0 0 /a\n", "LENGTH is 0"),
        ("18446744073709551615 1 /a\n", "no file has so many bytes"),
        ("9223372036854775807 1 /a\n", "no file has so many bytes"),
        ("0 1 a\n", "does not begin with /"),
        ("0 1 \n", "does not begin with /"),
        ("0 1 /\n", "cannot be a name"),
        ("0 1 //a\n", "cannot be a name"),
        ("0 1 /a/\n", "cannot be a name"),
        ("0 1 /../etc/passwd\n", "cannot be a name"),
        ("0 1 /a/./b\n", "cannot be a name"),
        ("0 1 /a\\x2f..\\x2fb/..\n", "cannot be a name"),
        ("0 1 /a\\x00\n", "cannot be a name"),
        ("0 1 /a\0\n", "control character"),
        ("0 1 /a\r\n", "control character"),
        ("0 1 /a\\\n", "backslash"),
        ("0 1 /a\\x4\n", "backslash"),
        ("0 1 /a\\xzz\n", "backslash"),
        ("0 1 /a\\n\n", "backslash"),
        ("0 1 /a\n\n# c\n0 1 b\n", "line 5: "),
    ] {
        let error = lines(text).unwrap_err();
        assert!(
            error.contains(said) && !error.contains('\n'),
            "{text:?}: {error}"
        );
    }
    let long = format!("0 1 /{}\n", "a".repeat(256));
    assert!(lines(&long).is_err());
    let deep = format!("0 1 {}\n", "/a".repeat(40_000));
    assert!(lines(&deep).unwrap_err().contains("too long"));
    let many = "0 1 /a\n".repeat(format::MAX_LINES + 1);
    assert!(lines(&many).unwrap_err().contains("too large"));
}

#[test]
fn what_is_no_record_is_refused() {
    for (bytes, said) in [
        (&b""[..], "not a record"),
        (b"\n", "not a record"),
        (b"\x7fELF\x02\x01", "not a record"),
        (b"tarnfs-prefetcher 1 00", "not a record"),
        (b"tarnfs-prefetch\n", "not a record"),
        (b"tarnfs-prefetch \xff\n", "not a record"),
        (b"tarnfs-prefetch 2 00000000deadbeef\n", "version \"2\""),
        (b"tarnfs-prefetch  1\n", "version \"\""),
        (b"tarnfs-prefetch 1\n", "fingerprint"),
        (b"tarnfs-prefetch 1 1234\n", "fingerprint"),
        (b"tarnfs-prefetch 1 00000000deadbeef x\n", "fingerprint"),
        (b"tarnfs-prefetch 1 +000000deadbeef0\n", "fingerprint"),
    ] {
        let error = parse(bytes).unwrap_err().to_string();
        assert!(error.contains(said) && !error.contains('\n'), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(Profile::load(dir.path()).is_err());
    assert!(Profile::load(&dir.path().join("none")).is_err());
    assert!(Profile::load(Path::new("/dev/zero")).is_err());
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    assert!(Profile::load(&fifo).is_err());
    assert!(Recording::create(&fifo, 0).is_err());
}

#[test]
fn a_line_that_was_broken_off_is_passed_over() {
    assert_eq!(lines("0 1 /a\n0 1").unwrap().len(), 1);
    assert_eq!(lines("0 1 /a\n0 1 /b").unwrap().len(), 2);
    assert_eq!(lines("0 1 /a\n").unwrap().len(), 1);
    assert_eq!(lines("").unwrap().len(), 0);
}

#[test]
fn every_path_comes_back() {
    let all: Vec<u8> = (1..=255).filter(|&b| b != b'/').collect();
    for path in [
        b"/a".to_vec(),
        b"/with space /x ".to_vec(),
        b"/back\\x41slash\\".to_vec(),
        b"/line\nend\t\x7f".to_vec(),
        "/\u{fc}n\u{ef}".as_bytes().to_vec(),
        [b"/", all.get(..200).unwrap(), b"/", all.get(200..).unwrap()].concat(),
    ] {
        let mut text = Vec::new();
        format::write_head(0xdead_beef, &mut text);
        format::write_line(4096, 8192, &path, &mut text);
        assert!(
            text.iter()
                .all(|&b| b == b'\n' || (b' '..=b'~').contains(&b))
        );
        let profile = parse(&text).unwrap();
        assert_eq!(profile.fingerprint, 0xdead_beef);
        let line = profile.lines.first().unwrap();
        assert_eq!((line.offset, line.len, &*line.path), (4096, 8192, &*path));
    }
    // As a person writes it.
    let plain = lines("0 1 /\u{fc}\n").unwrap();
    assert_eq!(&*plain.first().unwrap().path, "/\u{fc}".as_bytes());
}

#[test]
fn ranges_grow_together() {
    let mut ranges = Ranges::default();
    assert_eq!(ranges.add(10, 20), [(10, 20)]);
    assert_eq!(ranges.add(10, 20), []);
    assert_eq!(ranges.add(12, 15), []);
    assert_eq!(ranges.add(30, 40), [(30, 40)]);
    assert_eq!(ranges.add(20, 30), [(20, 30)]);
    assert_eq!(ranges.add(0, 50), [(0, 10), (40, 50)]);
    assert_eq!(ranges.add(60, 70), [(60, 70)]);
    assert_eq!(ranges.add(45, 80), [(50, 60), (70, 80)]);
}

proptest::proptest! {
    #[test]
    fn ranges_are_as_a_set_of_numbers(adds in proptest::collection::vec((0_u64..60, 1_u64..20), 1..30)) {
        let mut ranges = Ranges::default();
        let mut set = std::collections::BTreeSet::new();
        for (start, len) in adds {
            let new: Vec<u64> = ranges
                .add(start, start + len)
                .into_iter()
                .flat_map(|(s, e)| s..e)
                .collect();
            let want: Vec<u64> = (start..start + len).filter(|n| set.insert(*n)).collect();
            proptest::prop_assert_eq!(new, want);
        }
    }

    #[test]
    fn any_bytes_are_a_record_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let text = [HEAD.as_bytes(), &bytes].concat();
        if let Ok(profile) = parse(&text) {
            for line in profile.lines {
                proptest::prop_assert!(line.path.starts_with(b"/"));
                proptest::prop_assert!(line.offset.checked_add(line.len).is_some());
            }
        }
    }
}

#[test]
fn near_places_become_one() {
    let want = |blob, start, end| Want { blob, start, end };
    let merged = in_disk_order(vec![
        want(0, 10 * GAP, 11 * GAP),
        want(1, 0, 10),
        want(0, 0, 100),
        want(0, 50, 80),
        want(0, 100 + GAP, 200 + GAP),
        want(0, 201 + 2 * GAP, 202 + 2 * GAP),
    ]);
    assert_eq!(
        merged,
        [
            want(0, 0, 200 + GAP),
            want(0, 201 + 2 * GAP, 202 + 2 * GAP),
            want(0, 10 * GAP, 11 * GAP),
            want(1, 0, 10)
        ]
    );
}

#[test]
fn memory_is_judged() {
    let plenty = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\n";
    let little = "MemTotal:       16000000 kB\nMemAvailable:     700000 kB\n";
    let small = "MemTotal:         200000 kB\nMemAvailable:      60000 kB\n";
    let calm = "some avg10=0.50 avg60=9.00 avg300=9.0 total=1\nfull avg10=50.00 avg60=0\n";
    let pressed = "some avg10=12.25 avg60=0.00 avg300=0.00 total=1\n";
    assert_eq!(judge(plenty, calm), None);
    assert_eq!(judge("", ""), None);
    assert_eq!(judge("MemTotal: x\nMemAvailable:\n", "some avg10=\n"), None);
    assert!(judge(little, calm).is_some());
    assert!(judge(small, "").is_some());
    assert!(judge(plenty, pressed).is_some());
}
