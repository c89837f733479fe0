//! Round trips, and every truncation of every structure.

use super::*;
use crate::inode::Time;

fn sample_super() -> SuperBlock {
    SuperBlock {
        checksum: 0x1234_5678,
        feature_compat: COMPAT_SB_CHKSUM | COMPAT_MTIME,
        blkszbits: BLOCK_BITS,
        root_nid: 40,
        inos: 7,
        build_time: Time {
            sec: -5,
            nsec: 999_999_999,
        },
        blocks: 9,
        meta_blkaddr: 0,
        xattr_blkaddr: 3,
        uuid: [7; 16],
        volume_name: *b"tarnfs\0\0\0\0\0\0\0\0\0\0",
        feature_incompat: INCOMPAT_ALL,
        extra_devices: 2,
        devt_slotoff: DEVICE_TABLE_SLOT,
    }
}

fn sample_inode(mtime: Option<Time>) -> RawInode {
    RawInode {
        layout: DataLayout::Chunk,
        xattr_icount: 3,
        mode: 0o100_644,
        nlink: 2,
        size: 77,
        u: 0x25,
        ino: 99,
        uid: 1000,
        gid: 65535,
        mtime,
    }
}

#[test]
fn superblock_round_trip_and_truncation() {
    let bytes = sample_super().encode();
    assert_eq!(SuperBlock::decode(&bytes), Ok(sample_super()));
    for n in 0..=sb::DIRBLKBITS {
        assert!(SuperBlock::decode(&bytes[..n]).is_err(), "{n}");
    }
}

#[test]
fn superblock_refuses_foreign_images() {
    for (at, value) in [
        (sb::MAGIC, 0),
        (sb::BLKSZBITS, 12),
        (sb::EXTSLOTS, 1),
        (sb::META_BLKADDR, 1),
        (sb::FEATURE_INCOMPAT, 0x4d),
        (sb::COMPR_ALGS, 1),
        (sb::DIRBLKBITS, 1),
    ] {
        let mut bytes = sample_super().encode();
        bytes[at] = value;
        assert!(SuperBlock::decode(&bytes).is_err(), "{at}");
    }
}

#[test]
fn checksum_ignores_its_own_field() {
    let mut block = [0; 512];
    block[..SUPER_LEN].copy_from_slice(&sample_super().encode());
    let first = super_checksum(&block);
    block[sb::CHECKSUM] ^= 0xff;
    assert_eq!(super_checksum(&block), first);
    block[511] ^= 1;
    assert_ne!(super_checksum(&block), first);
}

#[test]
fn device_slot_round_trip_and_truncation() {
    let slot = DeviceSlot {
        tag: [b'a'; 64],
        blocks: 5,
        mapped_blkaddr: 0,
    };
    let bytes = slot.encode();
    assert_eq!(DeviceSlot::decode(&bytes), Ok(slot));
    for n in 0..72 {
        assert!(DeviceSlot::decode(&bytes[..n]).is_err(), "{n}");
    }
}

#[test]
fn inode_round_trip_and_truncation() {
    for mtime in [
        None,
        Some(Time {
            sec: i64::MIN,
            nsec: 1,
        }),
        Some(Time {
            sec: 1 << 40,
            nsec: 0,
        }),
    ] {
        let inode = sample_inode(mtime);
        let bytes = inode.encode().unwrap();
        let bytes = &bytes[..inode.len()];
        assert_eq!(RawInode::decode(bytes), Ok(inode));
        for n in 0..bytes.len() {
            assert!(RawInode::decode(&bytes[..n]).is_err(), "{n}");
        }
    }
}

#[test]
fn compact_inode_refuses_what_does_not_fit() {
    let base = sample_inode(None);
    for inode in [
        RawInode {
            nlink: 65536,
            ..base
        },
        RawInode {
            size: 1 << 32,
            ..base
        },
        RawInode { uid: 65536, ..base },
        RawInode { gid: 65536, ..base },
    ] {
        assert_eq!(inode.encode(), None);
        let extended = RawInode {
            mtime: Some(Time::default()),
            ..inode
        };
        assert_eq!(RawInode::decode(&extended.encode().unwrap()), Ok(extended));
    }
}

#[test]
fn inode_refuses_unknown_formats() {
    for format in [0x10_u16, 0x8000, 1 << 1, 3 << 1, 5 << 1, 7 << 1] {
        let mut bytes = sample_inode(None).encode().unwrap();
        bytes[..2].copy_from_slice(&format.to_le_bytes());
        assert!(RawInode::decode(&bytes).is_err(), "{format:#x}");
    }
}

#[test]
fn device_numbers_round_trip() {
    for (major, minor) in [(0, 0), (1, 3), (0xfff, 0xf_ffff), (8, 256), (259, 70000)] {
        assert_eq!(
            decode_dev(encode_dev(major, minor).unwrap()),
            (major, minor)
        );
    }
    assert_eq!(encode_dev(0x1000, 0), None);
    assert_eq!(encode_dev(0, 0x10_0000), None);
}

#[test]
fn chunks_round_trip() {
    let data = Chunk::Data {
        blob: 65534,
        block: 0xffff_fffe,
    };
    for chunk in [Chunk::Hole, data] {
        let bytes = chunk.encode().unwrap();
        assert_eq!(Chunk::decode(&bytes), Ok(chunk));
        assert!(Chunk::decode(&bytes[..7]).is_err());
    }
    assert_eq!(
        Chunk::Data {
            blob: 65535,
            block: 0
        }
        .encode(),
        None
    );
    assert_eq!(
        Chunk::Data {
            blob: 0,
            block: NULL_ADDR
        }
        .encode(),
        None
    );
    assert!(Chunk::decode(&[0; 8]).is_err());
    for bits in 9..=40 {
        assert_eq!(chunk_bits(chunk_format(bits).unwrap().into()), Ok(bits));
    }
    assert_eq!(chunk_format(8), None);
    assert_eq!(chunk_format(41), None);
    for bad in [0, 0x1f, 0x40, 0x60, 0x1_0020] {
        assert!(chunk_bits(bad).is_err(), "{bad:#x}");
    }
}

#[test]
fn dirent_xattr_and_row_round_trip() {
    let dirent = RawDirent {
        nid: 1 << 40,
        nameoff: 511,
        file_type: 7,
    };
    let bytes = dirent.encode();
    assert_eq!(RawDirent::decode(&bytes), Ok(dirent));
    assert!(RawDirent::decode(&bytes[..11]).is_err());
    let entry = XattrEntry {
        name_len: 255,
        name_index: 6,
        value_size: 65535,
    };
    assert_eq!(XattrEntry::decode(&entry.encode()), Ok(entry));
    assert_eq!(entry.len(), 65796);
    assert!(XattrEntry::decode(&entry.encode()[..3]).is_err());
    let row = Row {
        nid: 3,
        parent: u32::MAX,
    };
    assert_eq!(Row::decode(&row.encode()), Ok(row));
    assert!(Row::decode(&row.encode()[..7]).is_err());
}

#[test]
fn xattr_names_split_by_namespace() {
    assert_eq!(xattr_split(b"user.a"), Some((1, &b"a"[..])));
    assert_eq!(xattr_split(b"system.posix_acl_access"), Some((2, &b""[..])));
    assert_eq!(
        xattr_split(b"security.capability"),
        Some((6, &b"capability"[..]))
    );
    for bad in [
        &b"user."[..],
        b"user",
        b"system.posix_acl_accessx",
        b"system.nfs4_acl",
        b"",
    ] {
        assert_eq!(xattr_split(bad), None);
    }
    for (index, prefix) in XATTR_PREFIXES {
        assert_eq!(xattr_prefix(index), Some(prefix));
    }
    assert_eq!(xattr_prefix(5), None);
}

#[test]
fn xattr_body_lengths_round_trip() {
    for icount in [0, 2, 3, 65535] {
        assert_eq!(xattr_icount(xattr_body_len(icount)), Some(icount));
    }
    assert_eq!(xattr_body_len(u16::MAX), XATTR_BODY_MAX);
    for bad in [1, 11, 13, XATTR_BODY_MAX + 4] {
        assert_eq!(xattr_icount(bad), None, "{bad}");
    }
}

#[test]
fn file_types_round_trip() {
    for code in 1..=7 {
        assert_eq!(file_type(kind_of_file_type(code).unwrap()), code);
    }
    assert_eq!(kind_of_file_type(0), None);
    assert_eq!(kind_of_file_type(8), None);
}

#[test]
fn footer_round_trip_and_damage() {
    let footer = Footer {
        blobs: 1,
        inodes: 2,
        dirents: 65,
        image_len: 2048,
        table_offset: 2048,
        table_rows: 65,
        file_bytes: 3,
        body_crc: 4,
    };
    let bytes = footer.encode();
    let len = 2048 + 1024 + 512;
    assert_eq!(Footer::decode(&bytes, len), Ok(footer));
    for wrong in [0, 511, len - 1, len + 1, len + 512, u64::MAX] {
        assert!(Footer::decode(&bytes, wrong).is_err(), "{wrong}");
    }
    for n in 0..FOOTER_LEN {
        assert!(Footer::decode(&bytes[..n], len).is_err(), "{n}");
        let mut bad = bytes;
        bad[n] ^= 0x80;
        assert!(Footer::decode(&bad, len).is_err(), "{n}");
    }
    for lying in [
        Footer {
            table_rows: u64::MAX,
            ..footer
        },
        Footer {
            table_offset: 1024,
            ..footer
        },
        Footer {
            table_offset: u64::MAX - 511,
            ..footer
        },
        Footer {
            image_len: 0,
            ..footer
        },
    ] {
        assert!(Footer::decode(&lying.encode(), len).is_err());
    }
}
