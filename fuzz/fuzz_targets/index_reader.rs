//! Bytes as an index: an error or answers, never a panic, a hang or a read outside.
//!
//! Each input is tried as it is, and with magic number and block size set and the superblock's
//! checksum switched off, so that what lies behind them is reached too.

#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tarnfs::erofs::reader::Bytes;
use tarnfs::lower::{BlobFile, FileIdentity, Lower, exercise::exercise};

/// A blob of 64 KiB, in memory, for the index's first devices.
fn blob() -> BlobFile {
    static BLOB: OnceLock<(std::fs::File, BlobFile)> = OnceLock::new();
    BLOB.get_or_init(|| {
        let file = tempfile();
        file.set_len(65_536).expect("a blob of zeros");
        let identity = FileIdentity::of(&file.metadata().expect("its identity"));
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        (
            file,
            BlobFile {
                path: PathBuf::from(format!("/proc/self/fd/{fd}")),
                identity,
            },
        )
    })
    .1
    .clone()
}

fn tempfile() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("tarnfs-fuzz-{}", std::process::id()));
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("a blob");
    std::fs::remove_file(&path).expect("its name is not needed");
    file
}

fn check(bytes: Vec<u8>) {
    for devices in 0..3 {
        let blobs = vec![blob(); devices];
        if let Ok(lower) = Lower::of_bytes(Path::new("fuzz"), Bytes::Owned(bytes.clone()), blobs) {
            exercise(&lower);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    check(data.to_vec());
    if data.len() >= 1152 {
        let mut mended = data.to_vec();
        mended[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
        mended[1024 + 8] &= !1;
        mended[1024 + 12] = 9 + mended[1024 + 12] % 4;
        check(mended);
    }
});
