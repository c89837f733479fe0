//! Paths inside a root filesystem that nobody trusts: each is resolved with that directory as
//! `/`, so no symbolic link or `..` in it leads outside (openat2(2), `RESOLVE_IN_ROOT`).

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// What a path is to lead to when it has to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    /// A directory.
    Dir,
    /// An empty regular file.
    File,
}

fn flags() -> ResolveFlags {
    // Magic links (/proc/PID/fd) lead anywhere.
    ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS
}

/// Opens `path` inside `root`.
pub(crate) fn open(root: BorrowedFd<'_>, path: &Path, how: OFlags) -> Result<OwnedFd, Errno> {
    // RESOLVE_IN_ROOT answers EAGAIN when something was renamed meanwhile (openat2(2)).
    for _ in 0..64 {
        match rustix::fs::openat2(root, path, how | OFlags::CLOEXEC, Mode::empty(), flags()) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// A descriptor (`O_PATH`) of `path` inside `root`, which is made when it does not exist.
pub(crate) fn ensure(root: BorrowedFd<'_>, path: &Path, make: Make) -> io::Result<OwnedFd> {
    match open(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        other => return Ok(other?),
    }
    let mut at = PathBuf::from("/");
    let mut dir = open(root, &at, OFlags::PATH | OFlags::DIRECTORY)?;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let name = match part {
            Component::Normal(name) => name,
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
            Component::RootDir | Component::CurDir => continue,
        };
        at.push(name);
        let last = parts.peek().is_none();
        let how = if last {
            OFlags::PATH
        } else {
            OFlags::PATH | OFlags::DIRECTORY
        };
        match open(root, &at, how) {
            Ok(fd) => {
                dir = fd;
                continue;
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        // A dangling symbolic link ends here with EEXIST: where it points is not ours to make.
        if last && make == Make::File {
            let how =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&dir, name, how, Mode::from_raw_mode(0o644))?;
        } else {
            rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
        }
        dir = open(root, &at, how)?;
    }
    Ok(dir)
}

/// The content of the small regular file at `path` inside `root`; `None` when there is none.
pub(crate) fn read(root: BorrowedFd<'_>, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    // O_NONBLOCK: a FIFO planted there must not stop us.
    let fd = match open(
        root,
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
    ) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let mut content = Vec::new();
    std::fs::File::from(fd)
        .take(limit)
        .read_to_end(&mut content)?;
    Ok(Some(content))
}

/// Whether `path` inside `root` is a regular file that its mode lets somebody execute.
pub(crate) fn is_executable(root: BorrowedFd<'_>, path: &Path) -> bool {
    open(root, path, OFlags::PATH)
        .and_then(|fd| rustix::fs::fstat(fd.as_fd()))
        .is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && stat.st_mode & 0o111 != 0
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        let fd = rustix::fs::open(
            dir.path().join("root"),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        (dir, fd)
    }

    #[test]
    fn planted_links_stay_inside() {
        let (dir, root) = tree();
        let outside = dir.path().join("outside");
        symlink(&outside, dir.path().join("root/abs")).unwrap();
        symlink("../../outside", dir.path().join("root/rel")).unwrap();
        symlink("/etc", dir.path().join("root/etc")).unwrap();
        for path in ["/abs/x", "/rel/x", "/etc/x"] {
            // The link leads to nothing inside the root, and is not followed to make it.
            assert!(
                ensure(root.as_fd(), Path::new(path), Make::File).is_err(),
                "{path}"
            );
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        fs::create_dir_all(
            dir.path()
                .join("root")
                .join(outside.strip_prefix("/").unwrap()),
        )
        .unwrap();
        ensure(root.as_fd(), Path::new("/abs/x"), Make::File).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        let inside = dir
            .path()
            .join("root")
            .join(outside.strip_prefix("/").unwrap());
        assert!(inside.join("x").is_file());
    }

    #[test]
    fn dots_do_not_climb() {
        let (dir, root) = tree();
        assert!(ensure(root.as_fd(), Path::new("/a/../../outside/x"), Make::File).is_err());
        fs::write(dir.path().join("secret"), "s").unwrap();
        assert_eq!(
            read(root.as_fd(), Path::new("/../secret"), 10).unwrap(),
            None
        );
    }

    #[test]
    fn makes_parents_and_reads_back() {
        let (dir, root) = tree();
        ensure(root.as_fd(), Path::new("/a/b/c"), Make::Dir).unwrap();
        ensure(root.as_fd(), Path::new("/a/b/c"), Make::Dir).unwrap();
        ensure(root.as_fd(), Path::new("/a/f"), Make::File).unwrap();
        assert!(dir.path().join("root/a/b/c").is_dir());
        fs::write(dir.path().join("root/a/f"), "hello").unwrap();
        assert_eq!(
            read(root.as_fd(), Path::new("/a/f"), 3).unwrap().unwrap(),
            b"hel"
        );
        assert_eq!(read(root.as_fd(), Path::new("/a"), 3).unwrap(), None);
        assert!(!is_executable(root.as_fd(), Path::new("/a/f")));
    }

    #[test]
    fn a_fifo_for_a_file_does_not_block() {
        let (dir, root) = tree();
        let path = dir.path().join("root/passwd");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        assert_eq!(read(root.as_fd(), Path::new("/passwd"), 10).unwrap(), None);
    }
}
