//! What is agreed with the kernel when a connection begins, and how it is served.

use std::io;

use fuser::{Config, InitFlags, KernelConfig, SessionACL};

/// Bytes of one WRITE request, and (through `max_pages`) of one READ.
const MAX_WRITE: u32 = 1 << 20;

/// Background requests (readahead, asynchronous direct I/O) in flight.
const MAX_BACKGROUND: u16 = 64;

/// What we ask for where the kernel has it. On top fuser asks for `ASYNC_READ`, `BIG_WRITES` and
/// `MAX_PAGES` itself.
///
/// Never asked for:
/// - `WRITEBACK_CACHE`: sizes and times would be the kernel's, and it excludes `PASSTHROUGH`;
/// - `HANDLE_KILLPRIV`: the second version tells who writes without privileges;
/// - `ATOMIC_O_TRUNC`: truncation by open(2) comes as a SETATTR after the OPEN;
/// - `SETXATTR_EXT` (the overlay finds out by itself who loses set-group-ID by an ACL),
///   `ALLOW_IDMAP`, `CREATE_SUPP_GROUP`, `SECURITY_CTX`: fuser does not parse the
///   longer requests that they bring;
/// - `OVER_IO_URING`, `ABORT_ERROR`: fuser speaks neither;
/// - `POSIX_LOCKS`, `FLOCK_LOCKS`: locks stay the kernel's own.
const WANTED: InitFlags = InitFlags::FUSE_DO_READDIRPLUS
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_DIO)
    // File handles of what the kernel has forgotten: it looks up "." and ".." of the number.
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_POSIX_ACL)
    // Set-user-ID and its like are the server's to drop. In return the kernel remembers of an
    // inode that it has none (SB_NOSEC), where it would else ask for security.capability before
    // each write.
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    // Directories are opened without asking: a request names the directory and a position.
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_DONT_MASK);

/// Agrees on features and gives them; FUSE_PASSTHROUGH is asked for if backing files are wanted.
pub(super) fn negotiate(config: &mut KernelConfig, passthrough: bool) -> io::Result<InitFlags> {
    let mut wanted = WANTED;
    if passthrough {
        wanted |= InitFlags::FUSE_PASSTHROUGH;
    }
    let agreed = wanted & config.capabilities();
    if agreed.contains(InitFlags::FUSE_PASSTHROUGH) {
        // One filesystem below, and room for an overlayfs above.
        config
            .set_max_stack_depth(1)
            .map_err(|most| io::Error::other(format!("max_stack_depth must be {most}")))?;
    }
    config
        .add_capabilities(agreed)
        .map_err(|flags| io::Error::other(format!("the kernel took back {flags:?}")))?;
    let missing = wanted - agreed;
    if !missing.is_empty() {
        tracing::info!(?missing, "this kernel's FUSE lacks some features");
    }
    config
        .set_max_write(MAX_WRITE)
        .map_err(|nearest| io::Error::other(format!("max_write must be {nearest}")))?;
    config
        .set_max_background(MAX_BACKGROUND)
        .map_err(|nearest| io::Error::other(format!("max_background must be {nearest}")))?;
    // max_readahead stays the kernel's offer: it can be lowered here, not raised (the mount
    // raises the bdi's read_ahead_kb instead).
    tracing::debug!(abi = ?config.kernel_abi(), ?agreed, "connected");
    Ok(agreed)
}

/// How many threads of a server read and answer requests.
#[must_use]
pub fn threads() -> usize {
    let cpus = std::thread::available_parallelism().map_or(2, usize::from);
    // Two at least: a request that blocks on the upper's disk must not stop the others. More
    // than four gain nothing: most requests are answered from the kernel's caches.
    cpus.clamp(2, 4)
}

/// Threads, and no filter of users.
pub(super) fn session_config(acl: SessionACL) -> Config {
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(threads());
    // One device fd for all threads: a recovering server could not hand on the clones.
    config.clone_fd = false;
    config
}
