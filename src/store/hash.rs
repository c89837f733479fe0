//! SHA-256 of files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{OnProgress, Progress};
use crate::digest::{Digest, Hasher};

/// The SHA-256 of all of `file`.
pub(super) fn file(file: &File, progress: OnProgress<'_>) -> io::Result<Digest> {
    let total = file.metadata()?.len();
    let mut hash = Hasher::new();
    let mut buf = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let n = match file.read_at(&mut buf, done) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(buf.get(..n).unwrap_or_default());
        done += n as u64;
        progress(Progress::Hashing { done, total });
    }
    Ok(hash.finish())
}
