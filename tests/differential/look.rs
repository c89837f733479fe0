//! What a directory shows, and the comparison of two.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags};

use super::beside::Beside;
use super::side::{Side, Who};

/// What one path shows, without what may differ: numbers, and the size of a directory.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
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
type Identity = (u64, i64, u32);

/// What is compared with what the same side showed before.
#[derive(Debug, Clone, Copy)]
struct Shown {
    identity: Identity,
    mtime: (i64, u32),
    ctime: (i64, u32),
}

/// `numbered`: listings give the numbers that stat(2) gives.
fn look(root: &Path, begun: i64, numbered: bool) -> BTreeMap<PathBuf, (Seen, Shown)> {
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
                assert!(
                    !numbered || entry.ino() == looked.ino(),
                    "d_ino of {}: {}, not {}",
                    entry.path().display(),
                    entry.ino(),
                    looked.ino()
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
        let shown = Shown {
            identity,
            mtime,
            ctime: (x.stx_ctime.tv_sec, x.stx_ctime.tv_nsec),
        };
        seen.insert(rel, (found, shown));
    }
    seen
}

/// Numbers of the mount by the identity of the same inode on the other side.
type Numbers = HashMap<Identity, u64>;

/// What is kept from one comparison to the next.
pub(crate) struct Comparison {
    beside: Beside,
    begun: i64,
    numbers: Numbers,
    before: BTreeMap<PathBuf, (Shown, Shown)>,
}

impl Comparison {
    pub(crate) fn new(beside: Beside, begun: i64) -> Self {
        Self {
            beside,
            begun,
            numbers: Numbers::new(),
            before: BTreeMap::new(),
        }
    }

    /// `anew`: the mount is a new one, without root: of what cannot have a `user.` attribute it
    /// does not know the number any more.
    pub(crate) fn compare(&mut self, other: &Side, mount: &Side, anew: bool, after: &str) {
        // overlayfs does not always say in a listing what it says of a file.
        let numbered = !self.beside.is_overlayfs();
        let mut expected = look(&other.root, self.begun, numbered);
        // Nor does a listing of ours tell the number of a file that is open from before its copy-up.
        let ours = !matches!(
            self.beside,
            Beside::OverlayfsByKernel | Beside::OverlayfsByRequests
        );
        let mut found = look(&mount.root, self.begun, ours);
        if self.beside.is_overlayfs() {
            let all = expected.values_mut().chain(found.values_mut());
            for (seen, _) in all.filter(|(seen, _)| seen.mode & 0o170_000 == 0o040_000) {
                seen.nlink = 0;
            }
        }
        let only: Vec<_> = expected
            .keys()
            .filter(|path| !found.contains_key(*path))
            .map(|path| ("not on the mount", path))
            .chain(
                found
                    .keys()
                    .filter(|path| !expected.contains_key(*path))
                    .map(|path| ("on the mount only", path)),
            )
            .collect();
        assert!(only.is_empty(), "names after {after}: {only:?}");
        let mut now = Numbers::new();
        let mut taken = HashMap::new();
        let mut shown = BTreeMap::new();
        for (path, (want, theirs)) in &expected {
            let (got, ours) = &found[path];
            let at = path.display();
            assert_eq!(want, got, "{at} after {after}");
            let (identity, ino) = (theirs.identity, ours.identity.0);
            let markable = matches!(want.mode & 0o170_000, 0o100_000 | 0o040_000);
            let known = self.numbers.get(&identity).filter(|_| markable || !anew);
            let known = known.or_else(|| now.get(&identity));
            assert_eq!(*known.unwrap_or(&ino), ino, "st_ino of {at} after {after}");
            assert_eq!(
                taken.insert(ino, identity).unwrap_or(identity),
                identity,
                "two files, one number: {at} after {after}"
            );
            now.insert(identity, ino);
            if let Some((was, mount_was)) = self.before.get(path)
                && was.identity == identity
                && other.who == Who::Root
            {
                assert_eq!(
                    theirs.mtime != was.mtime,
                    ours.mtime != mount_was.mtime,
                    "whether st_mtime of {at} went on with {after}"
                );
                // overlayfs changes that of a directory when it copies what is in it.
                let passed_over = self.beside.is_overlayfs();
                assert!(
                    passed_over || theirs.ctime == was.ctime || ours.ctime != mount_was.ctime,
                    "st_ctime of {at} did not go on with {after}"
                );
            }
            shown.insert(path.clone(), (*theirs, *ours));
        }
        self.numbers = now;
        self.before = shown;
    }
}
