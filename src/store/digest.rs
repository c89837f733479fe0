//! SHA-256 of files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::{OnProgress, Progress};

/// Bytes as lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .filter_map(|n| char::from_digit(n.into(), 16))
        .collect()
}

/// `text` if it is a SHA-256 in lower-case hex.
pub(super) fn parse(text: &str) -> Option<String> {
    let good = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    good.then(|| text.to_owned())
}

/// The SHA-256 of all of `file`, in hex.
pub(super) fn file(file: &File, progress: OnProgress<'_>) -> io::Result<String> {
    let total = file.metadata()?.len();
    let mut hash = Sha256::new();
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
    Ok(hex(&hash.finalize()))
}
