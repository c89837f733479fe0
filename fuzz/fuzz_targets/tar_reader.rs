//! Bytes through the tar reader and the tree builder: an error or a consistent tree.
//!
//! A fuzzer does not find checksums by itself: each block that has ustar's magic, or that is the
//! first, is given its right one, so that what lies behind the checksum is reached too.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tarnfs::index::scan_source;
use tarnfs::index::tree::Content;

fuzz_target!(|data: &[u8]| {
    check(data);
    let mut mended = data.to_vec();
    for (i, block) in mended.chunks_exact_mut(512).enumerate() {
        if i == 0 || &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    // An end marker, so that a mended tar can be accepted.
    mended.resize(mended.len().next_multiple_of(512) + 1024, 0);
    check(&mended);
});

fn check(tar: &[u8]) {
    let scan = match scan_source(tar, Path::new("fuzz.tar"), &()) {
        Ok(scan) => scan,
        Err(error) => {
            assert!(!error.to_string().contains('\n'));
            return;
        }
    };
    let inodes = &scan.tree.inodes;
    let mut names = vec![0_u32; inodes.len()];
    for inode in inodes {
        match &inode.content {
            Content::Dir { children, parent } => {
                assert!((parent.0 as usize) < inodes.len());
                assert!(children.iter().is_sorted_by(|a, b| a.0 < b.0));
                for (name, id) in children {
                    tarnfs::name::check(name).expect("a valid name");
                    names[id.0 as usize] += 1;
                }
            }
            Content::File { size, extents } => {
                let mut end = 0;
                for e in extents {
                    assert!(e.len > 0 && e.offset >= end && e.offset + e.len <= *size);
                    let blob = if e.blob == 0 {
                        tar.len() as u64
                    } else {
                        scan.side.len
                    };
                    assert!(e.blob_offset + e.len <= blob);
                    end = e.offset + e.len;
                }
            }
            _ => {}
        }
    }
    for copy in &scan.side.copies {
        assert!(copy.tar_offset + copy.len <= tar.len() as u64);
        assert!(copy.side_offset + copy.len <= scan.side.len);
    }
    for (i, inode) in inodes.iter().enumerate() {
        match inode.content {
            Content::Dir { .. } => assert_eq!(names[i], u32::from(i != 0)),
            _ => assert_eq!(names[i], inode.nlink),
        }
    }
}
