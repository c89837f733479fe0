//! A unix socket with a name: bound over what a dead server has left, removed with its server.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen};

/// Who have not been accepted yet.
const BACKLOG: i32 = 64;

/// How long to wait for others who bind sockets in the same directory.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// The name of a listening socket; gone when dropped.
#[derive(Debug)]
pub(super) struct Name {
    dir: OwnedFd,
    name: PathBuf,
    /// `st_dev` and `st_ino` of what was bound.
    id: (u64, u64),
}

/// A path as sun_path (unix(7)) can hold it, 107 bytes: by its directory's descriptor.
fn short(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<SocketAddrUnix> {
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
    SocketAddrUnix::new(path.join(name)).map_err(|errno| match errno {
        Errno::NAMETOOLONG => io::Error::other("the socket's name is too long (80 bytes will do)"),
        errno => errno.into(),
    })
}

fn split(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let no_name = || io::Error::other("a socket's path must end with its name");
    let name = path.file_name().ok_or_else(no_name)?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((rustix::fs::open(dir, flags, Mode::empty())?, name.into()))
}

/// Two who find the same dead socket must not remove each other's.
fn lock(dir: &OwnedFd) -> io::Result<OwnedFd> {
    // A description of its own: the lock goes with it.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let locked = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
    let until = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&locked, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(locked),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => return Err(io::Error::other("its directory stays locked")),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn stream() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(socket)
}

/// A listening socket at `path`, with the mode 0600.
///
/// # Errors
/// EADDRINUSE where a living server listens, or where there is something else than a socket; the
/// system's.
pub(super) fn listen_at(path: &Path) -> io::Result<(UnixListener, Name)> {
    let (dir, name) = split(path)?;
    let _locked = lock(&dir)?;
    let address = short(dir.as_fd(), name.as_os_str())?;
    let socket = stream()?;
    // What bind(2) makes has the socket's own mode (net/unix/af_unix.c:unix_bind_bsd()), so that
    // it is at no moment open to others.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            check_dead(&dir, &name, &address)?;
            rustix::fs::unlinkat(&dir, &name, AtFlags::empty())?;
            bind(&socket, &address)?;
        }
        other => other?,
    }
    let found = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
    let name = Name {
        dir,
        name,
        id: (found.st_dev, found.st_ino),
    };
    listen(&socket, BACKLOG)?;
    Ok((socket.into(), name))
}

/// Whether what is at a path is a socket that nobody listens at.
fn check_dead(dir: &OwnedFd, name: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    let taken = |what: &str| io::Error::new(io::ErrorKind::AddrInUse, what);
    let found = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(taken("something that is no socket is there already"));
    }
    let socket = stream()?;
    // A living one whose backlog is full is not waited for.
    rustix::io::ioctl_fionbio(&socket, true)?;
    match connect(&socket, address) {
        Err(Errno::CONNREFUSED) => Ok(()),
        // Gone by itself.
        Err(Errno::NOENT) => Ok(()),
        Ok(()) | Err(Errno::AGAIN) => Err(taken("another server listens there")),
        Err(errno) => Err(errno.into()),
    }
}

/// Connects to who listens at `path`; nothing that is sent or received takes longer than `timeout`.
pub(super) fn connect_to(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let (name, dir) = (path.file_name(), path.parent());
    let dir = dir.filter(|dir| !dir.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, dir.unwrap_or(Path::new(".")), flags, Mode::empty())?;
    let address = short(dir.as_fd(), name.unwrap_or_default())?;
    let socket = stream()?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
    connect(&socket, &address)?;
    Ok(socket.into())
}

impl Drop for Name {
    fn drop(&mut self) {
        let found = rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        // Nobody replaces it while this process listens.
        let ours = found.is_ok_and(|found| (found.st_dev, found.st_ino) == self.id);
        if ours && let Err(error) = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty()) {
            tracing::debug!("{}: {error}", self.name.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_socket_of_its_owner_that_goes_with_him() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listener, name) = listen_at(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        connect_to(&path, SOON).unwrap();
        listener.accept().unwrap();
        let taken = listen_at(&path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(name);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (listener, name) = listen_at(&path).unwrap();
        std::mem::forget(name);
        drop(listener);
        assert!(path.exists());
        let (_listener, name) = listen_at(&path).unwrap();
        connect_to(&path, SOON).unwrap();
        // Another one at its place is left alone.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "file").unwrap();
        drop(name);
        assert!(path.exists());
        let error = listen_at(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"file");
    }

    #[test]
    fn long_paths() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(200)).join("e".repeat(200));
        std::fs::create_dir_all(&deep).unwrap();
        let (_listener, _name) = listen_at(&deep.join("socket")).unwrap();
        connect_to(&deep.join("socket"), SOON).unwrap();
        let long = deep.join("s".repeat(200));
        assert!(listen_at(&long).is_err() && connect_to(&long, SOON).is_err());
        assert!(!long.exists());
    }

    #[test]
    fn no_such_place() {
        assert!(listen_at(Path::new("/")).is_err());
        assert!(listen_at(Path::new("/nowhere/at/all")).is_err());
        assert!(connect_to(Path::new("/nowhere/at/all"), SOON).is_err());
    }
}
