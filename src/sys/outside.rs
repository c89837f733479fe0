//! What a process in a user namespace of its own asks of a helper that stayed outside of it.
//!
//! In a namespace in which one user and one group exist, a server has every right over its user's
//! files (user_namespaces(7)); but other numbers cannot be said there (chown(2) to another group
//! of the user, an ACL that names somebody), are not seen there, and a set-user-ID fusermount3 has
//! no effect. The helper, an ordinary process of the same user, does these.
//!
//! One request and one answer at a time, a packet each (unix(7), SOCK_SEQPACKET), descriptors
//! beside them. Which namespaces a process is in is the process's own: so is [`get`].

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::io::{Errno, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
};

use super::fs;

/// More than the largest extended attribute with its name.
const PACKET: usize = 72 * 1024;
/// Stands for an ID that is to stay as it is, as in chown(2).
const SAME: u32 = u32::MAX;
/// How IDs that do not exist here are shown, unless the machine was told otherwise.
const OVERFLOW: u32 = 65_534;

static OUTSIDE: OnceLock<Outside> = OnceLock::new();

/// The helper of this process, if it has one.
#[must_use]
pub fn get() -> Option<&'static Outside> {
    OUTSIDE.get()
}

/// Both ends of what a helper is spoken to through.
///
/// # Errors
/// socketpair(2)'s.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socketpair(
        family,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// From now on this process asks the helper at the other end of `socket`.
///
/// # Errors
/// It has one already.
pub fn install(socket: OwnedFd) -> io::Result<()> {
    let own = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let overflow = |name| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok();
        text.and_then(|text| text.trim().parse().ok())
            .unwrap_or(OVERFLOW)
    };
    let outside = Outside {
        socket: Mutex::new(socket),
        hidden: own.0 == overflow("overflowuid") || own.1 == overflow("overflowgid"),
        own,
    };
    OUTSIDE
        .set(outside)
        .map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))
}

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    Chown = b'c',
    Owners = b'o',
    GetXattr = b'g',
    SetXattr = b's',
    Mount = b'm',
    Unmount = b'u',
}

impl Op {
    fn parse(byte: u8) -> Option<Self> {
        [
            Self::Chown,
            Self::Owners,
            Self::GetXattr,
            Self::SetXattr,
            Self::Mount,
            Self::Unmount,
        ]
        .into_iter()
        .find(|op| *op as u8 == byte)
    }
}

/// The server's end.
#[derive(Debug)]
pub struct Outside {
    socket: Mutex<OwnedFd>,
    own: (u32, u32),
    /// This user's number, or group's, is the one that stands for all that do not exist here.
    hidden: bool,
}

impl Outside {
    /// Whether these may not be the numbers of the owner, but what stands for unknown ones.
    #[must_use]
    pub fn conceals(&self, uid: u32, gid: u32) -> bool {
        self.hidden || (uid, gid) != self.own
    }

    /// [`fs::chown`].
    ///
    /// # Errors
    /// chown(2)'s.
    pub fn chown(&self, fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let mut request = vec![Op::Chown as u8];
        for id in [uid, gid] {
            request.extend(id.unwrap_or(SAME).to_le_bytes());
        }
        self.call(&request, fd).map(drop)
    }

    /// The owner and group of an inode.
    ///
    /// # Errors
    /// statx(2)'s.
    pub fn owners(&self, fd: BorrowedFd<'_>) -> Result<(u32, u32)> {
        let answer = self.call(&[Op::Owners as u8], fd)?;
        let mut answer = answer.as_slice();
        match (number(&mut answer), number(&mut answer)) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => Err(Errno::IO),
        }
    }

    /// [`fs::getxattr`], of an attribute that exists.
    ///
    /// # Errors
    /// getxattr(2)'s.
    pub fn getxattr(&self, fd: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
        self.call(&[&[Op::GetXattr as u8], name].concat(), fd)
    }

    /// [`fs::setxattr`].
    ///
    /// # Errors
    /// setxattr(2)'s.
    pub fn setxattr(
        &self,
        fd: BorrowedFd<'_>,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        let flags = flags.to_le_bytes();
        let request = [&[Op::SetXattr as u8], &flags[..], name, b"\0", value].concat();
        self.call(&request, fd).map(drop)
    }

    /// Mounts through fusermount3 with these options; gives the FUSE device.
    ///
    /// # Errors
    /// As [`super::fuse::fusermount`].
    pub fn mount(&self, options: &OsStr, target: &Path) -> io::Result<OwnedFd> {
        let words = [options.as_bytes(), b"\0", target.as_os_str().as_bytes()].concat();
        let request = [&[Op::Mount as u8], words.as_slice()].concat();
        match self.ask(&request, None)? {
            (Ok(_), Some(device)) => Ok(device),
            (Ok(_), None) => Err(io::ErrorKind::InvalidData.into()),
            (Err((Errno::NOENT, _)), _) => Err(io::ErrorKind::NotFound.into()),
            (Err((_, words)), _) => Err(io::Error::other(words)),
        }
    }

    /// Unmounts; whether anything was mounted.
    ///
    /// # Errors
    /// EBUSY, or what was said.
    pub fn unmount(&self, target: &Path, lazy: bool) -> io::Result<bool> {
        let head = [Op::Unmount as u8, u8::from(lazy)];
        let request = [&head, target.as_os_str().as_bytes()].concat();
        match self.ask(&request, None)?.0 {
            Ok(answer) => Ok(answer.first() == Some(&1)),
            Err((Errno::BUSY, _)) => Err(Errno::BUSY.into()),
            Err((_, words)) => Err(io::Error::other(words)),
        }
    }

    /// Lets the helper go: it ends when it has read this.
    pub fn dismiss(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        // A helper that is gone already is let go of.
        rustix::net::shutdown(&*socket, Shutdown::Both).ok();
    }

    fn call(&self, request: &[u8], fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
        match self.ask(request, Some(fd)) {
            Ok((Ok(answer), _)) => Ok(answer),
            Ok((Err((errno, _)), _)) => Err(errno),
            // The socket's: EPIPE would mean something else to who asked for the operation.
            Err(_) => Err(Errno::IO),
        }
    }

    fn ask(
        &self,
        request: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Answer, Option<OwnedFd>)> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        send(socket.as_fd(), request, fd)?;
        let (packet, fd) = receive(socket.as_fd())?;
        drop(socket);
        let mut rest = packet.as_slice();
        let errno = number(&mut rest).ok_or(io::ErrorKind::UnexpectedEof)?;
        let answer = match i32::try_from(errno) {
            Ok(0) => Ok(rest.to_vec()),
            Ok(errno) => {
                let words = String::from_utf8_lossy(rest).into_owned();
                Err((Errno::from_raw_os_error(errno), words))
            }
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok((answer, fd))
    }
}

/// What was asked for, or an error and what there is to say about it.
type Answer = std::result::Result<Vec<u8>, (Errno, String)>;

/// What the helper leaves to its caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Errand {
    /// Mount with these options on this directory.
    Mount(OsString, PathBuf),
    /// Unmount this directory, or detach it.
    Unmount(PathBuf, bool),
}

/// How an [`Errand`] went.
#[derive(Debug)]
pub enum Done {
    /// It is mounted, and served through this device.
    Mounted(OwnedFd),
    /// Unmounted, or nothing was mounted.
    Unmounted(bool),
    /// It failed.
    Failed(io::Error),
}

/// The helper's life: answers until the other end is closed. `run` does what takes more than a
/// system call.
///
/// # Errors
/// The socket's.
pub fn serve(socket: BorrowedFd<'_>, mut run: impl FnMut(Errand) -> Done) -> io::Result<()> {
    loop {
        let (request, fd) = match receive(socket) {
            // No packet is empty: the end.
            Ok((request, _)) if request.is_empty() => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            other => other?,
        };
        let mut device = None;
        let answer = match (answer(&request, fd), errand(&request)) {
            (Some(answer), _) => answer.map_err(|errno| (errno, String::new())),
            (None, Some(errand)) => match run(errand) {
                Done::Mounted(fd) => {
                    device = Some(fd);
                    Ok(Vec::new())
                }
                Done::Unmounted(was) => Ok(vec![u8::from(was)]),
                Done::Failed(error) => Err((code(&error), error.to_string())),
            },
            (None, None) => Err((Errno::INVAL, String::new())),
        };
        let packet = match answer {
            Ok(bytes) => [&0_u32.to_le_bytes(), bytes.as_slice()].concat(),
            Err((errno, words)) => [&errno.raw_os_error().to_le_bytes(), words.as_bytes()].concat(),
        };
        send(socket, &packet, device.as_ref().map(AsFd::as_fd))?;
    }
}

fn code(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::NotFound => Errno::NOENT,
        _ => Errno::from_io_error(error).unwrap_or(Errno::IO),
    }
}

/// The answer to what is one system call; `None` for an [`Errand`].
fn answer(request: &[u8], fd: Option<OwnedFd>) -> Option<Result<Vec<u8>>> {
    let (op, mut rest) = request.split_first()?;
    let fd = fd?;
    let fd = fd.as_fd();
    let bad = Some(Err(Errno::INVAL));
    match Op::parse(*op)? {
        Op::Chown => {
            let (Some(uid), Some(gid)) = (number(&mut rest), number(&mut rest)) else {
                return bad;
            };
            let id = |id| (id != SAME).then_some(id);
            Some(fs::chown(fd, id(uid), id(gid)).map(|()| Vec::new()))
        }
        Op::Owners => Some(fs::fstat(fd).map(|stat| {
            let ids = [stat.attr.uid, stat.attr.gid];
            ids.map(u32::to_le_bytes).concat()
        })),
        Op::GetXattr => Some(fs::getxattr(fd, rest).and_then(|value| value.ok_or(Errno::NODATA))),
        Op::SetXattr => {
            let flags = number(&mut rest).and_then(|flags| i32::try_from(flags).ok());
            let end = rest.iter().position(|&byte| byte == 0);
            let parts = end.and_then(|at| rest.split_at_checked(at));
            let (Some(flags), Some((name, value))) = (flags, parts) else {
                return bad;
            };
            let value = value.get(1..).unwrap_or_default();
            Some(fs::setxattr(fd, name, value, flags).map(|()| Vec::new()))
        }
        Op::Mount | Op::Unmount => None,
    }
}

fn errand(request: &[u8]) -> Option<Errand> {
    let (op, rest) = request.split_first()?;
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    match Op::parse(*op)? {
        Op::Mount => {
            let mut words = rest.splitn(2, |&byte| byte == 0);
            let options = OsString::from_vec(words.next()?.to_vec());
            Some(Errand::Mount(options, path(words.next()?)))
        }
        Op::Unmount => {
            let (lazy, target) = rest.split_first()?;
            Some(Errand::Unmount(path(target), *lazy != 0))
        }
        Op::Chown | Op::Owners | Op::GetXattr | Op::SetXattr => None,
    }
}

fn number(bytes: &mut &[u8]) -> Option<u32> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*head))
}

fn send(socket: BorrowedFd<'_>, packet: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<_> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    // No SIGPIPE: a helper that is gone is an error of this one request.
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(packet)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// A packet and the descriptor beside it; an empty one at the end.
fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut packet = vec![0_u8; PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut packet)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    packet.truncate(got.bytes);
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((packet, fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client whose helper is a thread.
    fn with_helper(run: impl FnMut(Errand) -> Done + Send, test: impl FnOnce(&Outside)) {
        let (ours, theirs) = pair().unwrap();
        let outside = Outside {
            socket: Mutex::new(ours),
            own: (1000, 1000),
            hidden: false,
        };
        std::thread::scope(|scope| {
            let helper = scope.spawn(|| serve(theirs.as_fd(), run));
            test(&outside);
            outside.dismiss();
            helper.join().unwrap().unwrap();
        });
    }

    #[test]
    fn system_calls_are_done_for_the_other_end() {
        let file = tempfile::tempfile().unwrap();
        let fd = file.as_fd();
        with_helper(
            |_| panic!("no errand"),
            |outside| {
                let stat = fs::fstat(fd).unwrap().attr;
                assert_eq!(outside.owners(fd), Ok((stat.uid, stat.gid)));
                assert_eq!(outside.chown(fd, None, Some(stat.gid)), Ok(()));
                assert_eq!(outside.getxattr(fd, b"user.x"), Err(Errno::NODATA));
                let long = vec![b'v'; 3000];
                assert_eq!(outside.setxattr(fd, b"user.x", &long, 0), Ok(()));
                assert_eq!(outside.getxattr(fd, b"user.x"), Ok(long));
                let again = libc::XATTR_CREATE;
                assert_eq!(
                    outside.setxattr(fd, b"user.x", b"", again),
                    Err(Errno::EXIST)
                );
            },
        );
    }

    #[test]
    fn errands_are_run_with_their_arguments() {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        let mut seen = Vec::new();
        with_helper(
            |errand| {
                let done = match &errand {
                    Errand::Mount(options, _) if options == "none" => {
                        Done::Failed(io::ErrorKind::NotFound.into())
                    }
                    Errand::Mount(..) => Done::Mounted(null()),
                    Errand::Unmount(_, true) => Done::Unmounted(true),
                    Errand::Unmount(_, false) => Done::Failed(Errno::BUSY.into()),
                };
                seen.push(errand);
                done
            },
            |outside| {
                let at = Path::new("/a b");
                outside.mount("rw,x=\\,".as_ref(), at).unwrap();
                let none = outside.mount("none".as_ref(), at).unwrap_err();
                assert_eq!(none.kind(), io::ErrorKind::NotFound);
                assert!(outside.unmount(at, true).unwrap());
                let busy = outside.unmount(at, false).unwrap_err();
                assert_eq!(Errno::from_io_error(&busy), Some(Errno::BUSY));
            },
        );
        let at = PathBuf::from("/a b");
        assert_eq!(seen[0], Errand::Mount("rw,x=\\,".into(), at.clone()));
        assert_eq!(seen[3], Errand::Unmount(at, false));
    }

    #[test]
    fn a_helper_that_dies_is_an_error() {
        let (ours, theirs) = pair().unwrap();
        let outside = Outside {
            socket: Mutex::new(ours),
            own: (1000, 1000),
            hidden: false,
        };
        drop(theirs);
        assert!(outside.mount("".as_ref(), Path::new("/")).is_err());
        let file = tempfile::tempfile().unwrap();
        assert_eq!(outside.owners(file.as_fd()), Err(Errno::IO));
    }

    #[test]
    fn nonsense_is_refused() {
        let fd = || Some(tempfile::tempfile().unwrap().into());
        assert_eq!(answer(b"c12", fd()), Some(Err(Errno::INVAL)));
        assert_eq!(answer(b"s\0\0\0\0name", fd()), Some(Err(Errno::INVAL)));
        assert_eq!(answer(b"c", None), None);
        assert_eq!(answer(b"?", fd()), None);
        assert_eq!(errand(b"m no end"), None);
        assert_eq!(errand(b""), None);
    }

    #[test]
    fn what_may_be_another_number_is_asked_for() {
        let (socket, _other) = pair().unwrap();
        let mut outside = Outside {
            socket: Mutex::new(socket),
            own: (1000, 1000),
            hidden: false,
        };
        assert!(!outside.conceals(1000, 1000));
        assert!(outside.conceals(1000, OVERFLOW));
        outside.own = (OVERFLOW, OVERFLOW);
        outside.hidden = true;
        assert!(outside.conceals(OVERFLOW, OVERFLOW));
    }
}
