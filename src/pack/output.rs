//! Where a tar goes: a file that is there whole or not at all, or a stream.
//!
//! A regular file is written without a name (`O_TMPFILE`), so that nothing is left of it whoever
//! ends the process, synced, given a name beside the one it is to have, and renamed to that.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::sys;

/// How temporary names begin and end.
const TEMP: &str = ".tarnfs-";
const TEMP_END: &str = ".tmp";
/// Temporary names that are tried.
const TRIES: u32 = 100;
/// Of the new file, but for what umask(2) takes.
const MODE: u32 = 0o666;

/// The output file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct OutputError {
    /// The file.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

impl OutputError {
    /// For `map_err`.
    pub(crate) fn of(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            path: path.clone(),
            source,
        }
    }
}

/// What a path of an output file leads to.
#[derive(Debug)]
pub enum Target {
    /// A device, a pipe: to be written to as it is.
    Stream(File),
    /// A regular file, to be made or replaced, never a symbolic link.
    File(PathBuf),
}

impl Target {
    /// Finds out. A symbolic link to a regular file leads to that: the link stays.
    ///
    /// # Errors
    /// A directory, a symbolic link that leads nowhere, or the system's.
    pub fn of(path: &Path) -> Result<Self, OutputError> {
        let fail = OutputError::of(path);
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Err(fail(io::ErrorKind::IsADirectory.into())),
            // /dev/stdout leads through /proc to a file that the caller holds open.
            Ok(metadata) if metadata.is_file() => {
                fs::canonicalize(path).map(Self::File).map_err(fail)
            }
            Ok(_) => File::options()
                .write(true)
                .open(path)
                .map(Self::Stream)
                .map_err(fail),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(path) {
                Ok(_) => Err(fail(io::Error::other("a symbolic link that leads nowhere"))),
                Err(_) => Ok(Self::File(path.to_owned())),
            },
            Err(e) => Err(fail(e)),
        }
    }
}

/// A file that does not have its name yet.
#[derive(Debug)]
pub(crate) struct NewFile<'a> {
    dir: File,
    name: &'a OsStr,
    file: File,
    /// The name that it has meanwhile.
    temp: Option<String>,
    sync: bool,
}

impl<'a> NewFile<'a> {
    /// A file that is to be `path`.
    pub(crate) fn beside(path: &'a Path) -> io::Result<Self> {
        Self::make(path, |parent| {
            let unnamed = File::options()
                .read(true)
                .write(true)
                .mode(MODE)
                .custom_flags(libc::O_TMPFILE)
                .open(parent);
            let errno = unnamed.as_ref().err().and_then(Errno::from_io_error);
            match errno {
                // A filesystem without O_TMPFILE, or a kernel (open(2)).
                Some(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => temporary(parent),
                _ => Ok((unnamed?, None)),
            }
        })
    }

    fn make(
        path: &'a Path,
        open: impl FnOnce(&Path) -> io::Result<(File, Option<String>)>,
    ) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let dir = File::open(parent)?;
        let (file, temp) = open(parent)?;
        Ok(Self {
            dir,
            name,
            file,
            temp,
            sync: true,
        })
    }

    /// The same, synced or not when it is published.
    pub(crate) fn synced(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// The file, open for writing.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its name, for good: synced, unless told otherwise.
    pub(crate) fn publish(mut self) -> io::Result<()> {
        if self.sync {
            self.file.sync_all()?;
        }
        let dir = self.dir.as_fd();
        let temp = match &self.temp {
            Some(temp) => temp,
            None => {
                let link = |temp: &str| {
                    sys::fs::link_fd(self.file.as_fd(), dir, temp.as_bytes()).map_err(Into::into)
                };
                let ((), temp) = named(link)?;
                self.temp.insert(temp)
            }
        };
        let (temp, name) = (temp.as_bytes(), self.name.as_bytes());
        sys::fs::rename(dir, temp, dir, name, RenameFlags::empty())?;
        self.temp = None;
        match self.sync {
            true => self.dir.sync_all(),
            false => Ok(()),
        }
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(temp) = &self.temp
            && let Err(error) = sys::fs::unlink(self.dir.as_fd(), temp.as_bytes())
        {
            tracing::warn!("{temp}: a temporary file is left: {error}");
        }
    }
}

/// A new file in `parent` with a name for the time being.
fn temporary(parent: &Path) -> io::Result<(File, Option<String>)> {
    let create = |temp: &str| {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(parent.join(temp))
    };
    let (file, temp) = named(create)?;
    Ok((file, Some(temp)))
}

/// Whether a file of this name is a new one that does not have its own yet.
pub(crate) fn is_temporary(name: &[u8]) -> bool {
    name.starts_with(TEMP.as_bytes()) && name.ends_with(TEMP_END.as_bytes())
}

/// Does `make` with a name that is free.
fn named<T>(make: impl Fn(&str) -> io::Result<T>) -> io::Result<(T, String)> {
    let mut n = 0;
    loop {
        let temp = format!("{TEMP}{}-{n}{TEMP_END}", std::process::id());
        match make(&temp) {
            Ok(made) => return Ok((made, temp)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && n < TRIES => n += 1,
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_new_file_has_its_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let names = || fs::read_dir(dir.path()).unwrap().count();
        for named in [false, true] {
            let new = || match named {
                false => NewFile::beside(&path).unwrap(),
                true => NewFile::make(&path, temporary).unwrap(),
            };
            let before = names();
            drop(new());
            assert_eq!(names(), before);
            let (mut one, mut two) = (new(), new());
            one.file.write_all(b"one").unwrap();
            two.file.write_all(b"two").unwrap();
            one.publish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"one");
            two.publish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"two");
            assert_eq!(names(), 1);
        }
        // A name that is taken by a directory: nothing is left.
        let taken = dir.path().join("taken");
        fs::create_dir(&taken).unwrap();
        assert!(NewFile::beside(&taken).unwrap().publish().is_err());
        assert_eq!(names(), 2);
    }
}
