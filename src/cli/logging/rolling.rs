//! A log file that does not grow without end: when it is full it becomes the old one, of which there
//! is one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;

/// The most bytes of a file: some thousand lines.
pub(crate) const MAX: usize = 1 << 20;

/// The log file at a path, to which several processes may write: each writes whole lines, and looks
/// before each of them whether another has moved the file, as an operator may.
#[derive(Debug)]
pub(super) struct Rolling {
    path: PathBuf,
    old: PathBuf,
    file: File,
    max: usize,
}

impl Rolling {
    pub(super) fn open(path: &Path, max: usize) -> io::Result<Self> {
        let mut old = OsString::from(path);
        old.push(".old");
        Ok(Self {
            path: path.to_owned(),
            old: old.into(),
            file: append(path)?,
            max,
        })
    }

    fn has_room(&self, len: usize) -> io::Result<bool> {
        let used = self.file.metadata()?.len();
        Ok(used.saturating_add(len as u64) <= self.max as u64)
    }

    /// Whether the path leads to the file that is open.
    fn is_there(&self) -> io::Result<bool> {
        let here = self.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn make_room(&mut self, len: usize) -> io::Result<()> {
        if !self.is_there()? {
            self.file = append(&self.path)?;
        }
        if self.has_room(len)? {
            return Ok(());
        }
        // One of those who find it full moves it. The lock goes with this descriptor of it.
        let full = self.file.try_clone()?;
        retry_on_intr(|| flock(&full, FlockOperation::LockExclusive))?;
        let moved = match self.is_there() {
            Ok(true) => fs::rename(&self.path, &self.old),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = moved.and_then(|()| append(&self.path).map(|file| self.file = file)) {
            flock(&full, FlockOperation::Unlock)?;
            return Err(error);
        }
        Ok(())
    }
}

impl Write for Rolling {
    /// A line, which is cut where it is longer than a file may be. Where no room can be made it is
    /// lost: a log must neither fill a disk nor hold a server up.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let kept = line.get(..self.max).unwrap_or(line);
        let room = self.make_room(kept.len());
        if room.is_ok() || self.has_room(kept.len()).unwrap_or(false) {
            self.file.write_all(kept)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn open(&self) -> Rolling {
            Rolling::open(&self.at("log"), 100).unwrap()
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.at(name)).unwrap()
        }
    }

    fn line(n: usize) -> String {
        format!("line {n:04}\n")
    }

    #[test]
    fn the_last_lines_are_kept() {
        let dir = Dir::new();
        let mut log = dir.open();
        for n in 0..1000 {
            log.write_all(line(n).as_bytes()).unwrap();
        }
        let all = dir.read("log.old") + &dir.read("log");
        let from = 1000 - all.lines().count();
        assert!(from < 1000 - 10);
        assert_eq!(all, (from..1000).map(line).collect::<String>());
        assert!(dir.read("log").len() <= 100 && dir.read("log.old").len() <= 100);
        assert_eq!(fs::read_dir(dir.0.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_was_there_is_the_old_one() {
        let dir = Dir::new();
        fs::write(dir.at("log"), "x".repeat(1000)).unwrap();
        dir.open().write_all(b"new\n").unwrap();
        assert_eq!(dir.read("log"), "new\n");
        assert_eq!(dir.read("log.old").len(), 1000);
    }

    #[test]
    fn two_who_write_lose_nothing() {
        let dir = Dir::new();
        let mut logs = [dir.open(), dir.open()];
        for n in 0..15 {
            logs[n % 2].write_all(line(n).as_bytes()).unwrap();
        }
        let mut all: Vec<_> = (dir.read("log.old") + &dir.read("log"))
            .lines()
            .map(str::to_owned)
            .collect();
        all.sort_unstable();
        assert_eq!(all.join("\n") + "\n", (0..15).map(line).collect::<String>());
        // At once, each of its own.
        let path = dir.at("log");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut log = Rolling::open(&path, 100).unwrap();
                    for n in 0..500 {
                        log.write_all(line(n).as_bytes()).unwrap();
                    }
                });
            }
        });
        // One more line of each may have gone into a file that was full for another.
        for name in ["log", "log.old"] {
            assert!(dir.read(name).len() <= 100 + 4 * 10, "{name}");
            assert!(dir.read(name).lines().all(|line| line.len() == 9));
        }
    }

    #[test]
    fn who_moves_or_removes_it_gets_a_new_one() {
        let dir = Dir::new();
        let mut log = dir.open();
        log.write_all(b"first\n").unwrap();
        fs::rename(dir.at("log"), dir.at("log.1")).unwrap();
        log.write_all(b"second\n").unwrap();
        fs::remove_file(dir.at("log")).unwrap();
        log.write_all(b"third\n").unwrap();
        assert_eq!(
            (&*dir.read("log.1"), &*dir.read("log")),
            ("first\n", "third\n")
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let dir = Dir::new();
        let mut log = dir.open();
        log.write_all("y".repeat(1000).as_bytes()).unwrap();
        log.write_all(b"after\n").unwrap();
        assert_eq!(dir.read("log.old").len(), 100);
        assert_eq!(dir.read("log"), "after\n");
    }

    #[test]
    fn where_no_room_can_be_made_lines_are_lost() {
        let dir = Dir::new();
        let mut log = dir.open();
        fs::create_dir_all(dir.at("log.old/x")).unwrap();
        for n in 0..50 {
            log.write_all(line(n).as_bytes()).unwrap();
        }
        assert_eq!(dir.read("log"), (0..10).map(line).collect::<String>());
        // Also where its directory is gone.
        let path = dir.at("log");
        drop(dir);
        log.write_all(b"nowhere\n").unwrap();
        assert!(!path.exists());
    }
}
