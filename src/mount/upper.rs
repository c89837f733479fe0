//! Taking an upper for a new mount.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{kernel, wait_for_leaving};
use crate::upper::{Upper, UpperError};

/// How long a server may take to write out after umount(8).
const LEAVING: Duration = Duration::from_secs(10);
/// How long to try where nothing tells who has the upper.
const UNKNOWN: Duration = Duration::from_secs(1);

/// The upper, when the server that umount(8) has just sent away is done with it; `dirs` are the
/// places of state files ([`super::state_dirs`]).
///
/// # Errors
/// [`UpperError`]; [`UpperError::Busy`] when a mount has it that goes on.
pub fn open_upper(dirs: &[PathBuf], upper: &Path, work: &Path) -> Result<Upper, UpperError> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        match kernel::open_upper(dirs, upper, work) {
            Err(UpperError::Busy(_))
                if start.elapsed() < UNKNOWN && wait_for_leaving(dirs, upper, LEAVING) =>
            {
                // The kernel logs each time that it is asked.
                std::thread::sleep(pause);
                pause *= 2;
            }
            result => return result,
        }
    }
}
