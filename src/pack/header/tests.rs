//! What is written, judged by this crate's own reader.

use proptest::prelude::*;

use super::*;
use crate::inode::Kind;
use crate::tar::testing::entries;
use crate::tar::{Entry as Read, EntryKind};

fn file(name: &[u8]) -> Entry<'_> {
    Entry {
        name,
        kind: EntryType::Regular,
        target: b"",
        perm: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        size: 0,
        device: (0, 0),
        xattrs: &[],
        sparse: None,
    }
}

const START: Place = Place {
    at: 0,
    align: 512,
    lead: 0,
};

fn read(entry: &Entry<'_>) -> Read {
    let mut tar = entry.blocks(START).unwrap();
    let body = usize::try_from(entry.size.next_multiple_of(512)).unwrap();
    tar.resize(tar.len() + body + 1024, 0);
    let mut all = entries(&tar).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// Whether ustar was enough.
fn is_ustar(entry: &Entry<'_>) -> bool {
    entry.blocks(START).unwrap().len() == 512
}

#[test]
fn a_record_counts_its_own_length() {
    for len in (0..2200).chain([9_980..10_010, 99_970..100_010].into_iter().flatten()) {
        let mut out = Vec::new();
        record(&mut out, b"k", &vec![b'v'; len]);
        let digits = out.iter().position(|&b| b == b' ').unwrap();
        let said: usize = std::str::from_utf8(&out[..digits])
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(said, out.len());
    }
    for len in (13..1200).chain(9_990..10_010) {
        let mut out = Vec::new();
        comment(&mut out, len);
        assert_eq!(out.len() as u64, len);
        assert!(out.starts_with(format!("{len} comment=").as_bytes()));
    }
    let mut out = Vec::new();
    comment(&mut out, 1_000_001);
    assert_eq!(out.len(), 1_000_001);
    assert!(out.starts_with(b"500000 comment=") && out[500_000..].starts_with(b"500001 comment="));
}

#[test]
fn names_of_every_length_and_byte() {
    let deep = vec!["d"; 2048].join("/");
    let long = "n".repeat(255);
    let bytes = [b"\xff\xfe\n".repeat(60), b"/".to_vec(), b"\x80".repeat(255)].concat();
    let both = [b"\xff".repeat(155), b"/".to_vec(), b"\x80".repeat(100)].concat();
    for (name, ustar) in [
        (&b"a"[..], true),
        (b"-x", true),
        (b"a b\n", true),
        (b"...", true),
        (&[b'x'; 100], true),
        (&[b'x'; 101], false),
        (b"\xff\xfe=\n", true),
        (&both, true),
        (&bytes, false),
        (long.as_bytes(), false),
        (format!("{long}/{long}").as_bytes(), false),
        (deep.as_bytes(), false),
        (
            format!("{}/{}", "p".repeat(155), "n".repeat(100)).as_bytes(),
            true,
        ),
        (
            format!("{}/{}", "p".repeat(156), "n".repeat(99)).as_bytes(),
            false,
        ),
        (
            format!("{}/{}", "p".repeat(60), "n".repeat(101)).as_bytes(),
            false,
        ),
        (format!("{}/a", "p".repeat(120)).as_bytes(), true),
    ] {
        assert_eq!(read(&file(name)).path, name, "{}", name.escape_ascii());
        assert_eq!(is_ustar(&file(name)), ustar, "{}", name.escape_ascii());
        let dir = [name, b"/"].concat();
        let entry = Entry {
            kind: EntryType::Directory,
            ..file(&dir)
        };
        let got = read(&entry);
        assert_eq!((got.path.as_slice(), got.kind), (name, EntryKind::Dir));
        let entry = Entry {
            kind: EntryType::Symlink,
            target: name,
            ..file(name)
        };
        let got = read(&entry);
        assert_eq!(got.path, name);
        assert_eq!(got.kind, EntryKind::Symlink(name.to_vec()));
        let entry = Entry {
            kind: EntryType::Link,
            target: name,
            ..file(b"link")
        };
        let target = name.to_vec();
        assert_eq!(
            read(&entry).kind,
            EntryKind::HardLink { target, data: None }
        );
    }
    let target = vec![b'\xfe'; 4095];
    let entry = Entry {
        kind: EntryType::Symlink,
        target: &target,
        ..file(&bytes)
    };
    let got = read(&entry);
    assert_eq!((got.path, got.kind), (bytes, EntryKind::Symlink(target)));
}

#[test]
fn the_root_is_a_dot() {
    let root = Entry {
        kind: EntryType::Directory,
        ..file(b"./")
    };
    assert_eq!(read(&root).path, b"");
}

#[test]
fn numbers_at_the_ends_of_their_fields() {
    for (id, ustar) in [
        (0, true),
        (ID_MAX, true),
        (ID_MAX + 1, false),
        (u32::MAX - 1, false),
    ] {
        let entry = Entry {
            uid: id,
            ..file(b"f")
        };
        assert_eq!((read(&entry).uid, is_ustar(&entry)), (id, ustar));
        let entry = Entry {
            gid: id,
            ..file(b"f")
        };
        assert_eq!((read(&entry).gid, is_ustar(&entry)), (id, ustar));
    }
    let top = i64::try_from(NUMBER_MAX).unwrap();
    for (sec, nsec, ustar) in [
        (0, 0, true),
        (top, 0, true),
        (top + 1, 0, false),
        (0, 1, false),
        (top, 999_999_999, false),
        (i64::MAX, 999_999_999, false),
        (-1, 0, false),
        (-1, 999_999_999, false),
        (-1, 500_000_000, false),
        (-2, 1, false),
        (i64::MIN, 1, false),
        (i64::MIN + 1, 0, false),
        (i64::MIN, 0, true),
    ] {
        let mtime = Time { sec, nsec };
        let entry = Entry {
            mtime,
            ..file(b"f")
        };
        assert_eq!((read(&entry).mtime, is_ustar(&entry)), (mtime, ustar));
    }
    assert_eq!(
        seconds(Time {
            sec: -2,
            nsec: 500_000_000
        }),
        "-1.500000000"
    );
    for (size, ustar) in [(NUMBER_MAX, 512), (NUMBER_MAX + 1, 1536)] {
        let entry = Entry { size, ..file(b"f") };
        let blocks = entry.blocks(START).unwrap();
        assert_eq!(blocks.len(), ustar);
        if size > NUMBER_MAX {
            assert!(blocks[512..].starts_with(b"19 size=8589934592\n\0"));
        }
    }
}

#[test]
fn devices_and_modes() {
    for (kind, want) in [
        (EntryType::Char, Kind::Char),
        (EntryType::Block, Kind::Block),
    ] {
        for (major, minor) in [(0, 0), (1, 3), (4095, 1_048_575)] {
            let entry = Entry {
                kind,
                device: (major, minor),
                perm: 0o7777,
                ..file(b"dev")
            };
            let got = read(&entry);
            assert_eq!(
                got.kind,
                EntryKind::Device(want, libc::makedev(major, minor))
            );
            assert_eq!(got.perm, 0o7777);
            assert!(is_ustar(&entry));
        }
    }
}

#[test]
fn attributes_of_any_bytes() {
    let acl = [
        &[2, 0, 0, 0][..],
        &[1, 0, 7, 0],
        &[255; 4],
        &[4, 0, 5, 0],
        &[255; 4],
    ];
    let acl = [acl.concat(), [&[16, 0, 5, 0][..], &[255; 4]].concat()].concat();
    let acl = [acl, [&[32, 0, 0, 0][..], &[255; 4]].concat()].concat();
    let xattr = |name: &[u8], value: &[u8]| Xattr {
        name: name.to_vec(),
        value: value.to_vec(),
    };
    let xattrs = [
        xattr(b"security.capability", b"\x01\0\0\x02\n\0=\xff"),
        xattr(b"system.posix_acl_access", &acl),
        xattr(b"trusted.overlay.opaque", b"y"),
        xattr(&[b"user.".to_vec(), b"%".repeat(250)].concat(), b""),
        xattr(b"user.%41=\n\xff %3d", &[0; 65_536]),
    ];
    let entry = Entry {
        xattrs: &xattrs,
        perm: 0o750,
        ..file(b"f")
    };
    let got = read(&entry);
    assert_eq!((got.xattrs, got.perm), (xattrs.to_vec(), 0o750));
    let blocks = entry.blocks(START).unwrap();
    let text = b"SCHILY.acl.access=user::rwx\ngroup::r-x\nmask::r-x\nother::---\n\n";
    assert!(blocks.windows(text.len()).any(|part| part == text));
}

#[test]
fn names_of_attributes_are_escaped_where_they_must_be() {
    for (name, want) in [
        ("user.x%y", "user.x%y"),
        ("user.a=b%", "user.a%3Db%"),
        ("user.%25%3D%4g%%41", "user.%2525%253D%4g%%2541"),
        ("user.%2=%a", "user.%2%3D%a"),
    ] {
        let mut key = Vec::new();
        escape(name.as_bytes(), &mut key);
        assert_eq!(String::from_utf8(key).unwrap(), want);
        let xattrs = [Xattr {
            name: name.as_bytes().to_vec(),
            value: vec![],
        }];
        let entry = Entry {
            xattrs: &xattrs,
            ..file(b"f")
        };
        assert_eq!(read(&entry).xattrs, xattrs);
    }
}

#[test]
fn attributes_beyond_what_readers_take_are_an_error() {
    let value = vec![0; 65_536];
    let xattrs: Vec<_> = (0..257)
        .map(|n| Xattr {
            name: format!("user.{n}").into_bytes(),
            value: value.clone(),
        })
        .collect();
    let entry = Entry {
        xattrs: &xattrs,
        ..file(b"f")
    };
    assert_eq!(entry.blocks(START), Err(TooLong));
}

#[test]
fn data_begin_where_they_are_to() {
    let name = "n".repeat(200);
    let binary = b"\xff".repeat(200);
    let large: Vec<_> = (0..3)
        .map(|n| Xattr {
            name: format!("user.{n}").into_bytes(),
            value: vec![n; 1000],
        })
        .collect();
    let huge: Vec<_> = (0..16)
        .map(|n| Xattr {
            name: format!("user.{n:02}").into_bytes(),
            value: vec![n; 65_000],
        })
        .collect();
    for (name, xattrs) in [
        (&b"f"[..], &[][..]),
        (name.as_bytes(), &[]),
        (&binary, &[]),
        (b"f", &large),
        (b"f", &huge),
    ] {
        for align in (9..=20).map(|bits| 1 << bits) {
            for (at, lead) in [
                (0, 0),
                (512, 0),
                (align - 512, 0),
                (2 * align - 1024, 512),
                (1536, 1024),
            ] {
                let entry = Entry {
                    xattrs,
                    size: 512,
                    ..file(name)
                };
                let blocks = entry.blocks(Place { at, align, lead }).unwrap();
                let data = at + blocks.len() as u64 + lead;
                assert!(data.is_multiple_of(align), "{at} {align} {lead}");
                assert!(
                    blocks.len() as u64 <= align + 512 * 10 + (1 << 20),
                    "{align}"
                );
                let mut tar = blocks;
                tar.extend_from_slice(&[1; 512]);
                tar.extend_from_slice(&[0; 1024]);
                let got = entries(&tar).unwrap().remove(0);
                assert_eq!((&*got.path, &*got.xattrs), (name, xattrs));
                extended_are_readable(&tar);
            }
        }
    }
}

/// No extended header is longer than libarchive and Go read, and none comes twice.
fn extended_are_readable(tar: &[u8]) {
    let (mut at, mut seen) = (0, Vec::new());
    loop {
        let header = Header::from_byte_slice(&tar[at..at + 512]);
        let size = usize::try_from(header.size().unwrap()).unwrap();
        let kind = header.entry_type();
        if kind == EntryType::Regular {
            return;
        }
        assert!(size <= 1 << 20 || kind == EntryType::XHeader, "{size}");
        assert!(!seen.contains(&kind));
        seen.push(kind);
        at += 512 + size.next_multiple_of(512);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_entry_reads_back(
        names in prop::collection::vec(
            prop::collection::vec(any::<u8>().prop_map(|b| if b == b'/' || b == 0 { b'_' } else { b }), 1..255),
            1..8,
        ),
        target in prop::collection::vec(1_u8.., 1..4095),
        perm in 0_u16..0o10000,
        (uid, gid) in (0..u32::MAX, 0..u32::MAX),
        (sec, nsec) in (any::<i64>(), 0_u32..1_000_000_000),
        xattrs in prop::collection::btree_map(
            prop::collection::vec(1_u8.., 1..200),
            prop::collection::vec(any::<u8>(), 0..2000),
            0..4,
        ),
        (at, bits) in (0_u64..1 << 30, 9_u32..=20),
    ) {
        let name = names.iter().map(|name| match &**name {
            b"." | b".." => b"dots".to_vec(),
            name => name.to_vec(),
        }).collect::<Vec<_>>().join(&b'/');
        let xattrs: Vec<_> = xattrs.into_iter().map(|(name, value)| Xattr {
            name: [b"user.", &*name].concat(),
            value,
        }).collect();
        let mtime = Time { sec, nsec };
        let entry = Entry {
            kind: EntryType::Symlink,
            target: &target,
            perm,
            uid,
            gid,
            mtime,
            xattrs: &xattrs,
            ..file(&name)
        };
        let at = at * 512;
        let mut tar = entry.blocks(Place { at, align: 1 << bits, lead: 0 }).unwrap();
        prop_assert!((at + tar.len() as u64).is_multiple_of(1 << bits));
        tar.extend_from_slice(&[0; 1024]);
        let got = entries(&tar).unwrap().remove(0);
        prop_assert_eq!(got.path, name);
        prop_assert_eq!(got.kind, EntryKind::Symlink(target));
        prop_assert_eq!((got.perm, got.uid, got.gid, got.mtime), (perm, uid, gid, mtime));
        prop_assert_eq!(got.xattrs, xattrs);
    }
}
