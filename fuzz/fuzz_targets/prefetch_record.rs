//! Bytes as the record of a start-up: an error or ranges that files can have, never a panic.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tarnfs::prefetch::Profile;

fuzz_target!(|data: &[u8]| {
    let head = b"tarnfs-prefetch 1 0000000000000000\n";
    for bytes in [data.to_vec(), [head, data].concat()] {
        if let Ok(profile) = Profile::parse(Path::new("r"), &bytes) {
            for line in profile.lines {
                assert!(line.len > 0 && line.path.starts_with(b"/"));
                assert!(line.offset.checked_add(line.len).is_some());
            }
        }
    }
});
