//! Namespaces, and what a process that enters or leaves one needs: credentials, signals, spawning.
//!
//! rustix where it has the call; here what it lacks and the pieces that must run between fork and
//! exec, where only async-signal-safe calls are allowed.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::mount::MountAttrFlags;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

/// Number of the first user namespace (include/linux/proc_ns.h: `PROC_USER_INIT_INO`).
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Whether this process is in the user namespace that all others lie in: only there root has the
/// rights that are not of some namespace.
#[must_use]
pub fn in_first_user_namespace() -> bool {
    rustix::fs::stat("/proc/self/ns/user").is_ok_and(|found| found.st_ino == FIRST_USER_NAMESPACE)
}

/// Moves the calling thread into new namespaces (unshare(2)).
///
/// # Errors
/// unshare(2)'s. `CLONE_NEWUSER` demands a process of one thread (EINVAL).
pub fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    // Sharing of descriptors between threads is not ours to end.
    let namespaces = namespaces.difference(UnshareFlags::FILES);
    // SAFETY: the one unsafe effect, separate descriptor tables (CLONE_FILES), is masked out.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }?;
    Ok(())
}

/// Changes the attributes of the mount whose root is `mount` (mount_setattr(2), Linux 5.12).
///
/// # Errors
/// mount_setattr(2)'s.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: MountAttrFlags,
    clear: MountAttrFlags,
    recursive: bool,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: u64::from(set.bits()),
        attr_clr: u64::from(clear.bits()),
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` is the kernel's struct mount_attr and outlives the call; its size is given;
    // the path is an empty NUL-terminated string.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2), Linux 5.11).
///
/// # Errors
/// close_range(2)'s.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: plain integers; marking a descriptor close-on-exec invalidates none.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Brings the loopback device of this network namespace up.
///
/// # Errors
/// socket(2)'s and ioctl(2)'s.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCGIFFLAGS reads ifr_name and fills ifr_flags of a live ifreq.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = i16::try_from(libc::IFF_UP).unwrap_or(1);
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: SIOCSIFFLAGS reads a live ifreq.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A set of blocked signals of the calling thread; put back when dropped.
pub struct Blocked {
    before: libc::sigset_t,
    fd: OwnedFd,
}

impl std::fmt::Debug for Blocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocked")
            .field("fd", &self.fd)
            .finish_non_exhaustive()
    }
}

/// A signal that was waited for (`struct signalfd_siginfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caught {
    /// Its number.
    pub signal: i32,
    /// Whether the kernel itself sent it (a terminal's ^C, a hang-up), not a process.
    pub by_kernel: bool,
}

impl Blocked {
    /// Blocks `signals` in this thread, and in the threads that it starts from now on, and opens
    /// a descriptor that reads them (signalfd(2)).
    ///
    /// # Errors
    /// signalfd(2)'s.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that it is given.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for &signal in signals {
            // SAFETY: an initialised set; a bad number is refused with EINVAL and changes nothing.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: an initialised set; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd returned a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: both sets are live; the old mask is written before it is read.
        let before = unsafe {
            let rc = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr());
            if rc != 0 {
                return Err(io::Error::from_raw_os_error(rc));
            }
            before.assume_init()
        };
        Ok(Self { before, fd })
    }

    /// The next signal that has come, if there is one; does not wait.
    ///
    /// # Errors
    /// read(2)'s.
    pub fn next(&self) -> io::Result<Option<Caught>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: a buffer of `size` bytes that is live for the call.
        let n = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if n < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: zeroed plain data, which the kernel overwrites as a whole.
        let info = unsafe { info.assume_init() };
        Ok(Some(Caught {
            signal: i32::try_from(info.ssi_signo).map_err(io::Error::other)?,
            by_kernel: info.ssi_code > 0,
        }))
    }
}

impl AsFd for Blocked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: `before` is the mask that this thread had; restoring it cannot fail.
        unsafe {
            libc::pthread_sigmask(
                libc::SIG_SETMASK,
                &raw const self.before,
                std::ptr::null_mut(),
            )
        };
    }
}

/// Starts `command` with the descriptors `keep` still open in it, under their numbers.
///
/// # Errors
/// Those of [`Command::spawn`].
pub fn spawn_keeping(command: &mut Command, keep: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let keep: Vec<i32> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the closure only calls fcntl(2), which is async-signal-safe, on descriptors that
    // the borrow keeps open until the spawn is over.
    unsafe {
        command.pre_exec(move || {
            for &fd in &keep {
                if libc::fcntl(fd, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Starts `command` in a user namespace of its own, in which nobody exists yet.
///
/// # Errors
/// unshare(2)'s, and those of [`Command::spawn`].
pub fn spawn_in_user_namespace(command: &mut Command) -> io::Result<Child> {
    // SAFETY: unshare(2) is async-signal-safe; the new process has one thread.
    unsafe {
        command.pre_exec(|| {
            if libc::unshare(libc::CLONE_NEWUSER) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Marks every descriptor from 3 on close-on-exec: what the caller of this program had open (the
/// lock of a script, the end of a pipe, a directory) is not for the processes that it starts.
///
/// # Errors
/// ENOSYS before Linux 5.11.
pub fn keep_from_children() -> io::Result<()> {
    // SAFETY: a flag of descriptors changes; none is closed.
    let done = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes over a descriptor that [`spawn_keeping`] left open in this process, as close-on-exec.
///
/// # Errors
/// EBADF when nothing is open there; EINVAL for the standard descriptors.
pub fn inherited_fd(number: i32) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: F_SETFD takes any number, and fails with EBADF when nothing is open there.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and the parent left it for this one taker.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Who a program is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Real, effective and saved user.
    pub uid: u32,
    /// Real, effective and saved group.
    pub gid: u32,
    /// Supplementary groups; `None` leaves them alone (a user namespace may forbid setgroups(2)).
    pub groups: Option<Vec<u32>>,
    /// Capability bits (bit n = capability n) that may ever be gained.
    pub bounding: u64,
    /// Capabilities in effect.
    pub effective: u64,
    /// Capabilities that may be put in effect.
    pub permitted: u64,
    /// Capabilities kept for executables that inherit them.
    pub inheritable: u64,
    /// Capabilities kept through exec.
    pub ambient: u64,
    /// Set-user-ID and file capabilities have no effect (PR_SET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
    /// Working directory, entered as that user.
    pub cwd: CString,
}

/// Which step of [`spawn_as`] failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// fork(2), or the set-up for it.
    Fork,
    /// Limiting the capabilities.
    Capabilities,
    /// Becoming the user.
    User,
    /// Entering the working directory.
    WorkingDirectory,
    /// The program itself could not be executed.
    Exec,
}

/// Starts `command` as `who`.
///
/// # Errors
/// The step that failed and the system's error.
pub fn spawn_as(command: &mut Command, who: Credentials) -> Result<Child, (Step, io::Error)> {
    let (tell, told) = {
        let (r, w) = rustix::pipe::pipe_with(
            rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK,
        )
        .map_err(|e| (Step::Fork, e.into()))?;
        (w, r)
    };
    // SAFETY: between fork and exec the closure makes system calls and reads memory that was
    // allocated before; it neither allocates nor locks. This process has one thread in our use
    // (the actor's init), and the calls are async-signal-safe in any case.
    unsafe {
        command.pre_exec(move || {
            become_(&who).map_err(|(step, error)| {
                // The errno alone does not tell a missing directory from a missing program.
                // A full or broken pipe only costs the hint.
                rustix::io::write(&tell, &[step as u8]).ok();
                error
            })
        });
    }
    command.spawn().map_err(|error| {
        let mut byte = [0_u8; 1];
        let step = match rustix::io::read(&told, &mut byte[..]) {
            Ok(1) => [
                Step::Fork,
                Step::Capabilities,
                Step::User,
                Step::WorkingDirectory,
            ]
            .into_iter()
            .find(|&s| s as u8 == byte[0])
            .unwrap_or(Step::Exec),
            _ => Step::Exec,
        };
        (step, error)
    })
}

/// Turns the calling process into `who`. Async-signal-safe.
fn become_(who: &Credentials) -> Result<(), (Step, io::Error)> {
    // std passes the mask on, and the caller blocks what it reads from a signalfd.
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before sigprocmask(2) reads it; both are
    // async-signal-safe.
    let rc = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    if rc != 0 {
        return Err((Step::Fork, io::Error::last_os_error()));
    }
    let caps = |e: rustix::io::Errno| (Step::Capabilities, io::Error::from(e));
    let user = |e: rustix::io::Errno| (Step::User, io::Error::from(e));
    // capabilities(7): the last capability of this kernel is the last that can be asked for.
    for bit in 0..64_u32 {
        let cap = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::capability_is_in_bounding_set(cap) {
            Ok(true) if who.bounding & (1 << bit) == 0 => {
                rustix::thread::remove_capability_from_bounding_set(cap).map_err(caps)?;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    if let Some(groups) = &who.groups {
        // SAFETY: a pointer and the number of u32 (gid_t) behind it. The raw call: glibc's
        // wrapper signals all threads, which is not async-signal-safe.
        let rc = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        if rc != 0 {
            return Err((Step::User, io::Error::last_os_error()));
        }
    }
    let gid = rustix::thread::Gid::from_raw(who.gid);
    let uid = rustix::thread::Uid::from_raw(who.uid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(user)?;
    rustix::thread::set_keep_capabilities(true).map_err(caps)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(user)?;
    // What this process does not hold itself (in a user namespace inside another container) it
    // cannot give: capset(2) would refuse the whole set.
    let held = rustix::thread::capabilities(None)
        .map_err(caps)?
        .permitted
        .bits();
    let permitted = who.permitted & held;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::from_bits_retain(who.effective & permitted),
            permitted: CapabilitySet::from_bits_retain(permitted),
            inheritable: CapabilitySet::from_bits_retain(who.inheritable & permitted),
        },
    )
    .map_err(caps)?;
    rustix::thread::clear_ambient_capability_set().map_err(caps)?;
    for bit in (0..64_u32).filter(|bit| who.ambient & who.inheritable & permitted & (1 << bit) != 0)
    {
        let cap = CapabilitySet::from_bits_retain(1 << bit);
        rustix::thread::configure_capability_in_ambient_set(cap, true).map_err(caps)?;
    }
    rustix::process::chdir(who.cwd.as_c_str()).map_err(|e| (Step::WorkingDirectory, e.into()))?;
    if who.no_new_privs {
        rustix::thread::set_no_new_privs(true).map_err(caps)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_and_not_taken() {
        let blocked = Blocked::new(&[libc::SIGUSR2]).unwrap();
        assert_eq!(blocked.next().unwrap(), None);
        // To this thread only: the other tests' threads do not block it.
        // SAFETY: raise(3) signals the calling thread.
        assert_eq!(unsafe { libc::raise(libc::SIGUSR2) }, 0);
        let caught = blocked.next().unwrap().unwrap();
        assert_eq!(
            caught,
            Caught {
                signal: libc::SIGUSR2,
                by_kernel: false
            }
        );
    }

    #[test]
    fn a_kept_descriptor_is_open_in_the_child_and_no_other() {
        let (r, w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(format!(
            // Not `>&N`: dash knows descriptors of one digit only.
            "echo kept >/proc/self/fd/{}; [ ! -e /proc/self/fd/{} ]",
            w.as_raw_fd(),
            r.as_raw_fd()
        ));
        let mut child = spawn_keeping(&mut command, &[w.as_fd()]).unwrap();
        assert!(child.wait().unwrap().success());
        let mut buf = [0_u8; 16];
        let n = rustix::io::read(&r, &mut buf[..]).unwrap();
        assert_eq!(&buf[..n], b"kept\n");
    }

    #[test]
    fn a_missing_working_directory_is_not_a_missing_program() {
        let held = rustix::thread::capabilities(None).unwrap().permitted.bits();
        let me = Credentials {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            groups: None,
            bounding: u64::MAX,
            effective: held,
            permitted: held,
            inheritable: 0,
            ambient: 0,
            no_new_privs: false,
            cwd: c"/nowhere at all".into(),
        };
        let (step, error) = spawn_as(&mut Command::new("/bin/true"), me.clone()).unwrap_err();
        assert_eq!(
            (step, error.kind()),
            (Step::WorkingDirectory, io::ErrorKind::NotFound)
        );
        let me = Credentials {
            cwd: c"/".into(),
            ..me
        };
        let (step, error) =
            spawn_as(&mut Command::new("/bin/nothing-here"), me.clone()).unwrap_err();
        assert_eq!((step, error.kind()), (Step::Exec, io::ErrorKind::NotFound));
        assert!(
            spawn_as(&mut Command::new("/bin/true"), me)
                .unwrap()
                .wait()
                .unwrap()
                .success()
        );
    }

    #[test]
    fn the_standard_descriptors_are_not_to_be_taken() {
        assert!(inherited_fd(0).is_err());
        assert!(inherited_fd(1_000_000).is_err());
    }
}
