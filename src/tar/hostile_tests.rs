//! What a hostile or damaged tar does to the reader: an error that says where, never a panic.

use proptest::prelude::*;

use super::testing::{Raw, Tar, entries, record};
use super::{EntryKind, Problem, Segment};
use crate::index::scan_source;

fn problem(tar: &[u8]) -> String {
    let error = entries(tar).expect_err("accepted");
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    assert!(error.offset() <= tar.len() as u64, "{text}");
    text
}

#[track_caller]
fn refused(tar: Tar, why: &str) {
    let text = problem(&tar.end());
    assert!(text.contains(why), "{text:?} does not say {why:?}");
}

fn sample() -> Vec<u8> {
    Tar::new()
        .dir("./")
        .file("a", &[b'a'; 700])
        .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.x", b"\n=")])
        .file("b", b"b")
        .extension(b'L', &[[b'n'; 200].as_slice(), b"\0"].concat())
        .file("short", b"")
        .symlink("s", "a")
        .hard_link("h", "a")
        .end()
}

#[test]
fn every_truncation_is_an_error() {
    let whole = sample();
    assert_eq!(entries(&whole).unwrap().len(), 6);
    for len in 0..whole.len() {
        let text = problem(&whole[..len]);
        if len > 512 {
            assert!(text.contains("truncated"), "{len}: {text}");
        }
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_an_error() {
    let whole = sample();
    let good = entries(&whole).unwrap();
    for byte in 512..1024 {
        for bit in 0..8 {
            let mut bad = whole.clone();
            bad[byte] ^= 1 << bit;
            // Two spellings of the same checksum exist: a leading blank, another terminator.
            let checksum = (512 + 148..512 + 156).contains(&byte);
            match entries(&bad) {
                Err(_) => {}
                Ok(got) => assert!(checksum && got == good, "byte {byte} bit {bit}"),
            }
        }
    }
}

#[test]
fn what_is_no_tar_is_said_to_be_none() {
    for (start, want) in [
        (&[0x1f, 0x8b, 8][..], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "`zstd -d`"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh9", "bzip2"),
        (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
        (b"#!/bin/sh\n", "not a tar"),
    ] {
        for len in [start.len(), 512, 4096] {
            let mut file = start.to_vec();
            file.resize(len, 7);
            assert!(problem(&file).contains(want), "{want}");
        }
    }
    assert!(problem(b"").contains("empty"));
    let mut bad = sample();
    bad[0] ^= 1;
    assert!(
        problem(&bad).contains("checksum"),
        "a tar with a damaged first header stays a tar"
    );
}

#[test]
fn an_empty_tar_is_one() {
    assert_eq!(entries(&Tar::new().end()).unwrap(), []);
    assert_eq!(entries(&[0; 10240]).unwrap(), []);
}

#[test]
fn what_follows_the_end_marker_is_zeros() {
    let two = [sample(), sample()].concat();
    assert!(problem(&two).contains("--ignore-zeros"));
    assert!(problem(&[sample(), b"\0\0x".to_vec()].concat()).contains("behind the end marker"));
    assert!(entries(&[sample(), vec![0; 9999]].concat()).is_ok());
    let mut lone = Tar::new().file("a", b"");
    lone.0.extend_from_slice(&[0; 512]);
    assert!(problem(&lone.file("b", b"").end()).contains("lone zero block"));
}

#[test]
fn signed_checksums_are_taken() {
    let mut raw = Raw::new(b'0', "\u{e4}", 0).block();
    let sum: i64 = raw
        .iter()
        .enumerate()
        .map(|(i, &b)| {
            if (148..156).contains(&i) {
                32
            } else {
                i64::from(b as i8)
            }
        })
        .sum();
    raw[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let tar = [&raw[..], &[0; 1024]].concat();
    assert_eq!(entries(&tar).unwrap()[0].path, "\u{e4}".as_bytes());
}

#[test]
fn hostile_sizes() {
    let size = |field: &[u8]| Tar::new().raw(Raw::new(b'0', "a", 0).with(124, field), b"");
    refused(size(&[0xff; 12]), "negative");
    refused(size(b"77777777777\0"), "beyond the end");
    refused(
        size(&[
            0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ]),
        "beyond",
    );
    refused(size(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), "too large");
    refused(size(b"12x45678901\0"), "octal");
    refused(size(b"-0000000001\0"), "octal");
    for bad in [
        "-1",
        "18446744073709551616",
        "9223372036854775807",
        "1e3",
        " 1",
    ] {
        refused(
            Tar::new().pax(&[("size", bad.as_bytes())]).file("a", b""),
            "",
        );
    }
    for flag in [b'x', b'g', b'L', b'K', b'V', b'D'] {
        let huge = Raw::new(flag, "a", 0).with(124, b"77777777777\0");
        refused(Tar::new().raw(huge, b""), "beyond the end");
    }
}

#[test]
fn an_extension_of_more_than_its_bound_is_refused() {
    let body = record("comment", &vec![b'x'; 9 << 20]);
    refused(
        Tar::new()
            .extension(b'x', &body)
            .extension(b'x', &body)
            .file("a", b""),
        "16 MiB",
    );
}

#[test]
fn hostile_names() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(5000);
    for (name, why) in [
        ("../a", "\"..\""),
        ("a/../../b", "\"..\""),
        ("/etc/passwd", "absolute"),
        ("a\0b", "NUL"),
        (long.as_str(), "256 bytes"),
        (deep.as_str(), "4095"),
    ] {
        refused(
            Tar::new().pax(&[("path", name.as_bytes())]).file("a", b""),
            why,
        );
        refused(
            Tar::new()
                .pax(&[("linkpath", name.as_bytes())])
                .hard_link("a", "b"),
            why,
        );
        refused(
            Tar::new().extension(b'L', name.as_bytes()).file("a", b""),
            why,
        );
        refused(
            Tar::new()
                .extension(b'K', name.as_bytes())
                .hard_link("a", "b"),
            why,
        );
    }
    refused(Tar::new().file("", b""), "empty");
    refused(Tar::new().extension(b'L', b"\0").file("a", b""), "empty");
    refused(Tar::new().hard_link("a", ""), "empty");
    refused(Tar::new().symlink("a", ""), "empty");
    refused(
        Tar::new().pax(&[("linkpath", b"a\0b")]).symlink("a", "b"),
        "NUL",
    );
    refused(
        Tar::new()
            .pax(&[("linkpath", &[b'x'; 4096])])
            .symlink("a", "b"),
        "4095",
    );
    assert!(entries(&Tar::new().symlink("a", "/../../etc").end()).is_ok());
}

#[test]
fn ids_and_devices_beyond_linux() {
    refused(
        Tar::new().pax(&[("uid", b"4294967295")]).file("a", b""),
        "user id",
    );
    refused(
        Tar::new().pax(&[("gid", b"4294967296")]).file("a", b""),
        "group id",
    );
    let negative = Raw::new(b'0', "a", 0).with(108, &[0xff; 8]);
    refused(Tar::new().raw(negative, b""), "negative");
    let device = Raw::new(b'3', "c", 0).with(329, b"0010000\0");
    refused(Tar::new().raw(device, b""), "device number");
    let zero = entries(&Tar::new().raw(Raw::new(b'3', "c", 0), b"").end()).unwrap();
    assert_eq!(zero[0].kind, EntryKind::Device(crate::inode::Kind::Char, 0));
    let big = Tar::new()
        .pax(&[
            ("SCHILY.devmajor", b"4095"),
            ("SCHILY.devminor", b"1048575"),
        ])
        .raw(Raw::new(b'4', "b", 0), b"");
    let EntryKind::Device(_, number) = entries(&big.end()).unwrap()[0].kind else {
        panic!()
    };
    assert_eq!(
        (rustix::fs::major(number), rustix::fs::minor(number)),
        (4095, 1_048_575)
    );
}

#[test]
fn types_that_are_not_served_are_named() {
    for (flag, why) in [
        (b'M', "volume"),
        (b'N', "type N"),
        (b'A', "ACL"),
        (b'Q', "type Q"),
    ] {
        refused(Tar::new().raw(Raw::gnu(flag, "a", 0), b""), why);
    }
    refused(Tar::new().raw(Raw::new(b'S', "a", 0), b""), "star");
    refused(Tar::new().pax(&[("uid", b"1")]), "no entry behind it");
    refused(Tar::new().file("d/", b"x"), "directory with content");
}

#[test]
fn odd_types_that_are_served() {
    let tar = Tar::new()
        .raw(Raw::gnu(b'V', "label", 0), b"")
        .raw(Raw::gnu(b'D', "dump", 5), b"Yx\0\0\0")
        .file("old/", b"")
        .raw(Raw::new(0, "nul", 1), b"x")
        .raw(Raw::new(b'7', "contiguous", 1), b"x")
        .raw(Raw::new(b'5', "d", 4096), b"")
        .raw(Raw::new(b'6', "p", 0), b"");
    let got = entries(&tar.end()).unwrap();
    let dirs: Vec<bool> = got.iter().map(|e| e.kind == EntryKind::Dir).collect();
    assert_eq!(dirs, [true, true, false, false, true, false]);
    assert_eq!(got[5].kind, EntryKind::Fifo);
}

#[test]
fn hard_links_with_a_size() {
    let link = |size| {
        let mut raw = Raw::link(b'1', "h", "a");
        raw.set(124, format!("{size:011o}\0").as_bytes());
        raw
    };
    let data = |tar: Tar| match &entries(&tar.end()).unwrap()[1].kind {
        EntryKind::HardLink { data, .. } => *data,
        other => panic!("{other:?}"),
    };
    let a = || Tar::new().file("a", b"xx");
    assert_eq!(
        data(a().raw(link(2), b"").file("b", b"")),
        None,
        "ustar: no body"
    );
    assert_eq!(data(a().raw(link(2), b"")), None, "at the end");
    assert_eq!(
        data(a().raw(link(2), b"xx").file("b", b"")),
        Some(2),
        "pax linkdata"
    );
    assert_eq!(
        data(
            a().pax(&[("size", b"2")])
                .raw(link(0), b"xx")
                .file("b", b"")
        ),
        Some(2)
    );
}

#[test]
fn globals_stick_and_are_overridden() {
    let global = [record("uid", b"7"), record("comment", b"c")].concat();
    let tar = Tar::new()
        .extension(b'g', &global)
        .file("a", b"")
        .pax(&[("uid", b"8")])
        .file("b", b"")
        .pax(&[("uid", b"")])
        .file("c", b"")
        .extension(b'g', &record("uid", b"9"))
        .file("d", b"");
    let uids: Vec<u32> = entries(&tar.end()).unwrap().iter().map(|e| e.uid).collect();
    assert_eq!(uids, [7, 8, 0, 9]);
}

#[test]
fn repeated_extensions_add_up() {
    let tar = Tar::new()
        .pax(&[("uid", b"1"), ("gid", b"2")])
        .pax(&[("uid", b"3"), ("path", b"real")])
        .extension(b'L', b"long\0")
        .file("a", b"");
    let got = entries(&tar.end()).unwrap();
    assert_eq!(
        (got[0].uid, got[0].gid, &*got[0].path),
        (3, 2, &b"real"[..])
    );
}

fn old_sparse(pairs: &[(u64, u64)], real: u64, stored: u64) -> Raw {
    let mut raw = Raw::gnu(b'S', "s", stored);
    for (i, (offset, len)) in pairs.iter().enumerate() {
        raw.set(
            386 + i * 24,
            format!("{offset:011o}\0{len:011o}\0").as_bytes(),
        );
    }
    raw.set(483, format!("{real:011o}\0").as_bytes());
    raw
}

#[test]
fn old_sparse_with_extension_blocks() {
    let raw = old_sparse(
        &[(0, 512), (1024, 512), (2048, 512), (3072, 512)],
        9000,
        5 * 512,
    )
    .with(482, &[1]);
    let mut body = vec![0; 512];
    body[..24].copy_from_slice(format!("{:011o}\0{:011o}\0", 4096, 512).as_bytes());
    body.extend_from_slice(&[7; 5 * 512]);
    let got = entries(&Tar::new().raw(raw.clone(), &body).file("b", b"").end()).unwrap();
    let EntryKind::File { size, segments } = &got[0].kind else {
        panic!()
    };
    assert_eq!((*size, segments.len()), (9000, 5));
    assert_eq!(
        segments[4],
        Segment {
            offset: 4096,
            len: 512,
            tar_offset: 1024 + 4 * 512
        }
    );
    let mut endless = vec![0; 512];
    endless[504] = 1;
    refused(Tar::new().raw(raw, &endless.repeat(5)), "");
}

#[test]
fn sparse_maps_that_lie() {
    let old = |pairs: &[(u64, u64)], real, stored| {
        Tar::new().raw(
            old_sparse(pairs, real, stored),
            &[0; 4096][..usize::try_from(stored).unwrap()],
        )
    };
    refused(old(&[(0, 512)], 100, 512), "beyond the end of the file");
    refused(old(&[(512, 512), (0, 512)], 4096, 1024), "order");
    refused(old(&[(0, 512)], 4096, 1024), "add up");
    refused(old(&[(0, 1024)], 4096, 512), "add up");
    let pax = |records: &[(&str, &[u8])], body: &[u8]| Tar::new().pax(records).file("a", body);
    refused(pax(&[("GNU.sparse.map", b"0,1")], b"x"), "size");
    refused(
        pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0")], b"x"),
        "odd",
    );
    refused(
        pax(&[("GNU.sparse.numbytes", b"9")], b"x"),
        "offset before it",
    );
    refused(
        pax(
            &[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"9")],
            b"x",
        ),
        "2.0",
    );
    let one: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"99999"),
    ];
    refused(pax(one, b""), "longer than the entry");
    refused(pax(one, b"1\n0\n"), "other than numbers");
    refused(pax(one, b"99999999999999999999999\n"), "too large");
    refused(
        pax(one, &[&b"9\n"[..], &b"0".repeat(510)].concat()),
        "longer than the entry",
    );
    let mut body = b"1\n4096\n3\n".to_vec();
    body.resize(512, 0);
    body.extend_from_slice(b"xyz");
    let got = entries(&pax(one, &body).end()).unwrap();
    let EntryKind::File {
        size: 99999,
        segments,
    } = &got[0].kind
    else {
        panic!()
    };
    assert_eq!(
        segments[..],
        [Segment {
            offset: 4096,
            len: 3,
            tar_offset: 1024 + 1024
        }]
    );
}

#[test]
fn acls_and_xattrs_that_cannot_be_kept() {
    for (key, value, why) in [
        (
            "SCHILY.acl.access",
            &b"user::rwx,user:joe:rwx,group::r,mask::r,other::r"[..],
            "joe",
        ),
        (
            "SCHILY.acl.default",
            b"user::rwx,group::r,other::r",
            "directory",
        ),
        ("SCHILY.xattr.com.apple.x", b"", "attributes only"),
        ("LIBARCHIVE.xattr.user.x", b"*", "base64"),
        ("SCHILY.xattr.system.posix_acl_access", b"xx", "ACL"),
    ] {
        refused(Tar::new().pax(&[(key, value)]).file("a", b""), why);
    }
}

#[test]
fn an_error_names_tar_entry_and_offset() {
    let tar = Tar::new()
        .file("good", b"x")
        .pax(&[("uid", b"4294967295")])
        .file("bad", b"")
        .end();
    let error = entries(&tar).unwrap_err();
    assert_eq!((error.entry(), error.offset()), (Some("bad"), 2048));
    assert!(error.to_string().starts_with("t.tar: bad: "));
    assert!(matches!(error.problem(), Problem::Field { .. }));
}

/// What holds of every entry that is handed out.
fn check_promises(tar: &[u8]) {
    if let Ok(list) = entries(tar) {
        for entry in list {
            for part in entry
                .path
                .split(|&b| b == b'/')
                .filter(|_| !entry.path.is_empty())
            {
                crate::name::check(part).unwrap();
            }
            if let EntryKind::File { size, segments } = entry.kind {
                let mut end = 0;
                for s in &segments {
                    assert!(s.len > 0 && s.offset >= end && s.offset + s.len <= size);
                    assert!(s.tar_offset + s.len <= tar.len() as u64);
                    end = s.offset + s.len;
                }
            }
        }
    }
    if let Err(error) = scan_source(tar, std::path::Path::new("t.tar"), &()) {
        assert!(!error.to_string().contains('\n'));
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(tar in proptest::collection::vec(any::<u8>(), 0..4096)) {
        check_promises(&tar);
    }

    #[test]
    fn random_headers_with_right_checksums_never_panic(
        edits in proptest::collection::vec((0_usize..512, any::<u8>()), 0..12),
        flag in proptest::sample::select(&b"01234567xgLKSDVMX"[..]),
        body in proptest::collection::vec(any::<u8>(), 0..1500),
    ) {
        let mut raw = Raw::gnu(flag, "a", body.len() as u64);
        for (at, byte) in edits {
            raw.set(at, &[byte]);
        }
        check_promises(&Tar::new().raw(raw, &body).file("b", b"b").end());
    }

    #[test]
    fn random_records_never_panic(
        key in proptest::sample::select(&[
            "path", "linkpath", "size", "uid", "mtime", "GNU.sparse.map", "GNU.sparse.offset",
            "GNU.sparse.size", "SCHILY.acl.access", "LIBARCHIVE.xattr.user.a",
        ][..]),
        value in "[-0-9.,:/a-z\n]{0,40}",
        body in "[0-9\n]{0,600}",
    ) {
        let tar = Tar::new()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), (key, value.as_bytes())])
            .file("a", body.as_bytes());
        check_promises(&tar.end());
    }
}
