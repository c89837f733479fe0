//! What a directory shows, and the comparison of two.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags};

use super::side::Side;

/// What one path shows, without what may differ: numbers, and the size of a directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    mode: u32,
    owner: (u32, u32),
    nlink: u32,
    size: u64,
    rdev: (u32, u32),
    /// `None`: changed since the test began.
    mtime: Option<(i64, u32)>,
    target: Option<PathBuf>,
    data: Option<Vec<u8>>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// An inode's number, and when it was born (numbers are used again).
pub(crate) type Identity = (u64, i64, u32);

pub(crate) fn look(root: &Path, begun: i64) -> BTreeMap<PathBuf, (Seen, Identity)> {
    let mut seen = BTreeMap::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(rel) = stack.pop() {
        let at = root.join(&rel);
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let all = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let x = rustix::fs::statx(rustix::fs::CWD, &at, flags, all)
            .unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        let kind = u32::from(x.stx_mode) & 0o170_000;
        let is_dir = kind == 0o040_000;
        if is_dir {
            for entry in fs::read_dir(&at).unwrap() {
                let entry = entry.unwrap();
                stack.push(rel.join(entry.file_name()));
                let looked = fs::symlink_metadata(entry.path()).unwrap();
                use std::os::unix::fs::{DirEntryExt, MetadataExt};
                assert_eq!(
                    entry.ino(),
                    looked.ino(),
                    "d_ino of {}",
                    entry.path().display()
                );
                assert_eq!(entry.file_type().unwrap(), looked.file_type());
            }
        }
        let mut names = vec![0_u8; 65_536];
        let n = rustix::fs::llistxattr(&at, names.as_mut_slice()).unwrap();
        let xattrs = names[..n]
            .split(|&b| b == 0)
            .filter(|name| !name.is_empty())
            .map(|name| {
                let mut value = vec![0_u8; 65_536];
                let n = rustix::fs::lgetxattr(&at, name, value.as_mut_slice()).unwrap();
                value.truncate(n);
                (String::from_utf8(name.to_vec()).unwrap(), value)
            })
            .collect();
        let mtime = (x.stx_mtime.tv_sec, x.stx_mtime.tv_nsec);
        let found = Seen {
            mode: u32::from(x.stx_mode),
            owner: (x.stx_uid, x.stx_gid),
            nlink: x.stx_nlink,
            size: if is_dir { 0 } else { x.stx_size },
            rdev: (x.stx_rdev_major, x.stx_rdev_minor),
            mtime: (mtime.0 < begun).then_some(mtime),
            target: (kind == 0o120_000).then(|| fs::read_link(&at).unwrap()),
            data: (kind == 0o100_000).then(|| fs::read(&at).unwrap()),
            xattrs,
        };
        let identity = (x.stx_ino, x.stx_btime.tv_sec, x.stx_btime.tv_nsec);
        seen.insert(rel, (found, identity));
    }
    seen
}

/// Numbers of the mount by the identity of the same inode in the plain directory.
pub(crate) type Numbers = HashMap<Identity, u64>;

/// Compares all that two sides show.
///
/// `anew`: the mount is a new one, without root: of what cannot have a `user.` attribute it does
/// not know the number any more.
pub(crate) fn compare(
    plain: &Side,
    mount: &Side,
    begun: i64,
    numbers: &mut Numbers,
    anew: bool,
    after: &str,
) {
    let expected = look(&plain.root, begun);
    let found = look(&mount.root, begun);
    let names = |seen: &BTreeMap<PathBuf, (Seen, Identity)>| {
        seen.keys()
            .map(|p| String::from_utf8_lossy(p.as_os_str().as_bytes()).into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&expected), names(&found), "names after {after}");
    let mut now = Numbers::new();
    let mut taken = HashMap::new();
    for (path, (want, identity)) in &expected {
        let (got, (ino, ..)) = &found[path];
        assert_eq!(want, got, "{} after {after}", path.display());
        let markable = matches!(want.mode & 0o170_000, 0o100_000 | 0o040_000);
        let known = numbers.get(identity).filter(|_| markable || !anew);
        let known = known.or_else(|| now.get(identity));
        assert_eq!(
            *known.unwrap_or(ino),
            *ino,
            "st_ino of {} after {after}",
            path.display()
        );
        assert_eq!(
            taken.insert(*ino, *identity).unwrap_or(*identity),
            *identity,
            "two files, one number"
        );
        now.insert(*identity, *ino);
    }
    *numbers = now;
}
