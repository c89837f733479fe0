//! Random trees, and damage of an index.

use proptest::prelude::*;

use super::output::Narrow;
use super::*;
use crate::inode::Xattr;

/// One entry of a random tar.
#[derive(Debug, Clone)]
enum Op {
    Dir,
    File(Vec<u8>),
    Sparse(Vec<(u64, u64)>),
    Symlink(String),
    Link(usize),
    Device(u8, u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
struct Random {
    path: String,
    op: Op,
    perm: u16,
    ids: (u32, u32),
    mtime: Time,
    xattrs: Vec<Xattr>,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Dir),
        prop::collection::vec(any::<u8>(), 0..3000).prop_map(Op::File),
        prop::collection::vec((1_u64..40, 1_u64..5), 0..5).prop_map(|runs| {
            let mut at = 0;
            let place = |(gap, len): (u64, u64)| {
                at += gap * 512;
                let run = (at, len * 512);
                at += run.1;
                run
            };
            Op::Sparse(runs.into_iter().map(place).collect())
        }),
        "[a-z/.]{1,300}".prop_map(Op::Symlink),
        any::<usize>().prop_map(Op::Link),
        (0..2_u8, 0_u32..4096, 0_u32..1 << 20).prop_map(|(k, a, b)| Op::Device(b'3' + k, a, b)),
        Just(Op::Fifo),
    ]
}

fn random() -> impl Strategy<Value = Random> {
    let name = prop_oneof![
        Just("a".to_owned()),
        "[ab]{1,2}",
        "\\PC{1,40}",
        "n{200,250}"
    ];
    (
        prop::collection::vec(name, 1..4),
        op(),
        0_u16..0o10000,
        (0..u32::MAX, 0..u32::MAX),
        (any::<i64>(), 0_u32..1_000_000_000),
        prop::collection::btree_map(
            "[a-z%=]{1,20}",
            prop::collection::vec(any::<u8>(), 0..50),
            0..3,
        ),
    )
        .prop_map(|(names, op, perm, ids, (sec, nsec), xattrs)| Random {
            path: names
                .iter()
                .map(|name| name.replace(['/', '\0'], "_").replace('.', "dot"))
                .collect::<Vec<_>>()
                .join("/"),
            op,
            perm,
            ids,
            mtime: Time { sec, nsec },
            xattrs: xattrs
                .into_iter()
                .map(|(name, value)| Xattr {
                    name: format!("user.{name}").into_bytes(),
                    value,
                })
                .collect(),
        })
}

/// The tar of what of `all` makes sense one after the other.
fn tar_of(all: &[Random]) -> Vec<u8> {
    let mut tar = Tar::new().end();
    let mut files = Vec::<String>::new();
    for entry in all {
        let body;
        let (flag, target, data): (u8, &str, &[u8]) = match &entry.op {
            Op::Dir => (b'5', "", b""),
            Op::File(data) => (b'0', "", data),
            Op::Sparse(runs) => {
                let size = runs.last().map_or(0, |run| run.0 + run.1) + 77;
                body = sparse(&entry.path, size, runs).end();
                (b'S', "", &*body)
            }
            Op::Symlink(target) => (b'2', target, b""),
            Op::Link(n) => match files.get(n % files.len().max(1)) {
                Some(target) => (b'1', target, b""),
                None => continue,
            },
            Op::Device(flag, ..) => (*flag, "", b""),
            Op::Fifo => (b'6', "", b""),
        };
        let mut more = Tar::new();
        if flag == b'S' {
            more.0.extend_from_slice(&data[..data.len() - 1024]);
        } else {
            let text = |n: u32| n.to_string().into_bytes();
            let keys: Vec<String> = entry
                .xattrs
                .iter()
                .map(|x| {
                    let name = String::from_utf8(x.name.clone()).unwrap();
                    format!(
                        "SCHILY.xattr.{}",
                        name.replace('%', "%25").replace('=', "%3D")
                    )
                })
                .collect();
            let (uid, gid) = (text(entry.ids.0), text(entry.ids.1));
            let mtime = match entry.mtime {
                Time { sec: 0.., nsec } => format!("{}.{nsec:09}", entry.mtime.sec),
                Time { sec, .. } => (sec + 1).to_string(),
            };
            let (major, minor) = match entry.op {
                Op::Device(_, major, minor) => (text(major), text(minor)),
                _ => (text(0), text(0)),
            };
            let mut records: Vec<(&str, &[u8])> = vec![
                ("path", entry.path.as_bytes()),
                ("linkpath", target.as_bytes()),
                ("uid", &uid),
                ("gid", &gid),
                ("mtime", mtime.as_bytes()),
                ("SCHILY.devmajor", &major),
                ("SCHILY.devminor", &minor),
            ];
            records.extend(
                keys.iter()
                    .zip(&entry.xattrs)
                    .map(|(k, x)| (&**k, &*x.value)),
            );
            let raw = Raw::new(flag, "x", data.len() as u64);
            let raw = raw.with(100, format!("{:07o}\0", entry.perm).as_bytes());
            more = more.pax(&records).raw(raw, data);
        }
        let with = [&tar[..tar.len() - 1024], &more.end()].concat();
        // What has no place (a directory over a file's path, …) is left out.
        if scan_source(&*with, Path::new("t.tar"), &()).is_ok() {
            tar = with;
            if flag != b'5' {
                files.push(entry.path.clone());
            }
        }
    }
    tar
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_reads_back_equal(all in prop::collection::vec(random(), 1..25)) {
        let tar = tar_of(&all);
        let image = Indexed::new(&tar);
        let flat = image.flatten();
        prop_assert_eq!(described(&flat), described(&tar));
        prop_assert_eq!(image.flatten(), &*flat);
        prop_assert_eq!(flatten(&flat), flat);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_index_is_a_tar_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let tar = [
            &sparse("dir/s", 1 << 20, &[(100, 7), (5000, 5000)]).0[..],
            &sparse("t", 1 << 20, &[(4096, 8192), (65_536, 512)]).0,
            &Tar::new()
                .pax(&[("SCHILY.xattr.user.a", b"b")])
                .file("f", &[7; 5000])
                .hard_link("dir/g", "f")
                .symlink("dir/l", "f")
                .end(),
        ]
        .concat();
        let image = Indexed::new(&tar);
        let mut index = fs::read(image.lower.index_path()).unwrap();
        for (at, byte) in changes {
            // Not the superblock, which has a checksum.
            let at = 2048 + at.index(index.len() - 2048);
            index[at] ^= byte;
        }
        let bytes = crate::erofs::reader::Bytes::Owned(index);
        if let Ok(lower) = Lower::of_bytes(Path::new("index"), bytes, image.lower.blobs().cloned().collect()) {
            drop(write(&lower, &image.options, &mut Narrow(64 << 20), &mut |_, _| ()));
        }
    }
}
