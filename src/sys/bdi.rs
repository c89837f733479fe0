//! What the kernel knows of the devices behind filesystems (backing device info): how far it reads
//! ahead (Documentation/ABI/testing/sysfs-class-bdi).

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

const ALL: &str = "/sys/class/bdi";

/// The names of those that begin with `prefix`: `0:40` of a FUSE mount, `erofs-3` of the third
/// EROFS from files since the machine was started.
///
/// # Errors
/// The system's, where there is no sysfs.
pub fn names(prefix: &str) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(ALL)? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Has the kernel read so far ahead.
///
/// # Errors
/// The system's; an ordinary user may not.
pub fn set_read_ahead(name: &OsStr, kib: u32) -> io::Result<()> {
    let path = Path::new(ALL).join(name).join("read_ahead_kb");
    std::fs::write(path, kib.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_a_name_of_nobody() {
        if let Ok(names) = names("of-nobody-") {
            assert!(names.is_empty());
        }
        let error = set_read_ahead(OsStr::new("of-nobody-1"), 128).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
