//! Random changes of a tree: names that are often taken, and operations that may fail.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, XattrFlags};

/// Directories of the image, and such as renames make.
const DIRS: [&str; 9] = [
    "",
    "a",
    "a/sub",
    "b",
    "b/c",
    "gone",
    "gone/inner",
    "new",
    "a/new",
];
const NAMES: [&str; 12] = [
    "a", "b", "c", "sub", "new", "x", "y", "one", "two", "inner", "1", "link",
];

/// Which directories are renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renames {
    /// Any.
    Directories,
    /// None: for those who follow no redirects.
    Files,
}

/// Numbers that look random (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % n
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let (dir, name) = (DIRS[self.below(DIRS.len())], NAMES[self.below(NAMES.len())]);
        root.join(dir).join(name)
    }
}

/// Makes `count` changes below `root`, the same ones for the same seed and tree. Answers how many
/// were made and not refused.
pub(crate) fn make(root: &Path, seed: u64, count: usize, renames: Renames) -> usize {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..count)
        .filter(|&n| change(root, &mut random, n, renames).is_ok())
        .count()
}

/// A path below a random directory that is there: one that is taken, or one of [`NAMES`].
fn pick(root: &Path, random: &mut Random) -> std::io::Result<PathBuf> {
    let mut at = random.path(root);
    if random.below(3) == 0 {
        return Ok(at);
    }
    at = root.to_path_buf();
    for _ in 0..4 {
        let mut names: Vec<_> = fs::read_dir(&at)?
            .map(|entry| entry.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort();
        let Some(name) = names.get(random.below(names.len() + 1)) else {
            return Ok(at.join(NAMES[random.below(NAMES.len())]));
        };
        at.push(name);
        if !is_dir(&at) || random.below(3) == 0 {
            break;
        }
    }
    Ok(at)
}

fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
}

fn change(root: &Path, random: &mut Random, n: usize, renames: Renames) -> std::io::Result<()> {
    let (at, other) = (pick(root, random)?, pick(root, random)?);
    let data = vec![u8::try_from(n % 251).unwrap(); random.below(6_000)];
    let what = random.below(17);
    match what {
        0..2 => OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&at)?
            .write_all(&data),
        2 if is_file(&at) => OpenOptions::new().append(true).open(&at)?.write_all(&data),
        3 if is_file(&at) => OpenOptions::new()
            .write(true)
            .open(&at)?
            .write_all_at(&data, 100),
        4 if is_file(&at) => OpenOptions::new().write(true).open(&at)?.set_len(777),
        5 => fs::create_dir(&at),
        6 => fs::remove_dir(&at),
        7..9 => fs::remove_file(&at),
        // What is there goes with all it holds, and a directory of that name comes.
        9 if is_dir(&at) => fs::remove_dir_all(&at).and_then(|()| fs::create_dir(&at)),
        10..13 => {
            if renames == Renames::Files && (is_dir(&at) || is_dir(&other)) {
                return Ok(());
            }
            let flags = [
                RenameFlags::empty(),
                RenameFlags::NOREPLACE,
                RenameFlags::EXCHANGE,
            ];
            let flags = flags[random.below(flags.len())];
            Ok(rustix::fs::renameat_with(CWD, &at, CWD, &other, flags)?)
        }
        13 => fs::hard_link(&at, &other),
        14 => std::os::unix::fs::symlink("some/where", &at),
        15 => Ok(rustix::fs::mknodat(
            CWD,
            &at,
            FileType::Fifo,
            Mode::from_raw_mode(0o640),
            0,
        )?),
        // Attributes of what is there; chmod(2) follows links.
        _ if !fs::symlink_metadata(&at)?.is_symlink() => match random.below(3) {
            0 => fs::set_permissions(&at, fs::Permissions::from_mode(0o711)),
            1 => std::os::unix::fs::lchown(&at, Some(1000), Some(70_000)),
            _ if is_dir(&at) || is_file(&at) => {
                let value = &data[..data.len().min(300)];
                Ok(rustix::fs::setxattr(
                    &at,
                    "user.k",
                    value,
                    XattrFlags::empty(),
                )?)
            }
            _ => Ok(()),
        },
        _ => {
            let (uid, gid) = (rustix::fs::Uid::from_raw(5), rustix::fs::Gid::from_raw(6));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            Ok(rustix::fs::chownat(CWD, &at, Some(uid), Some(gid), flags)?)
        }
    }
}
