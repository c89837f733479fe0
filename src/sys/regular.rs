//! Regular files by paths that somebody else may have filled.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use super::fs::reopen;

/// Opens the regular file at `path` for reading, through symbolic links. Never waits, as the open
/// of a FIFO would, and never opens a device, of which some act on it.
///
/// # Errors
/// open(2)'s; [`io::ErrorKind::InvalidInput`], with what it is, for anything but a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    let at = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&at)?;
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            return Ok(File::from(reopen(at.as_fd(), flags)?));
        }
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "something else",
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("is {what}, not a regular file"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), Mode::RUSR).unwrap();
        for name in ["file", "link"] {
            let file = open(&at(name)).unwrap();
            assert_eq!(std::io::read_to_string(file).unwrap(), "x");
        }
        for (path, what) in [
            (at("fifo"), "is a FIFO"),
            (at("."), "is a directory"),
            ("/dev/zero".into(), "is a character device"),
            (at("loop"), "symbolic links"),
            (at("none"), "No such file"),
        ] {
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
