//! An upper in use on its way to a stream, whose reader may take as long as he likes.
//!
//! What is copied while the upper is held still waits in a file without a name. Then changes go on,
//! and all goes out in order: that, and between it the large files as they are by now, with what
//! the log has over each piece. The log has it before the file changes, so that looking at the
//! file first and at the log then misses nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::kept::{Log, Record};
use super::later::{Hold, Large, Later, Run, write};
use super::{Changes, DiffError, OnProgress, Written};
use crate::pack::sink::{Hashing, Sink, To};
use crate::sys::fs;

/// What goes out at once, bytes.
const PIECE: usize = 1 << 20;

/// What the log has of files that are still to come, by file and offset.
#[derive(Debug)]
struct Old {
    log: Log,
    records: BTreeMap<(u64, u64), Record>,
}

impl Changes<'_> {
    /// Writes the tar to `out`, of an upper that `hold` holds still until it was walked.
    pub(super) fn stream_held(
        &self,
        hold: &dyn Hold,
        out: &mut dyn Write,
        progress: OnProgress<'_>,
    ) -> Result<Written, DiffError> {
        let spool = hold.spool().map_err(DiffError::Held)?;
        let mut later = Later::new();
        let put = |sink: &mut Sink<'_>, later: &mut Later, progress: OnProgress<'_>| {
            self.put(sink, later, progress)
        };
        let (done, len) = write(To::Lazy(&spool), &put, &mut later, progress)?;
        let log = later.let_go(hold)?;
        let keeps = log.is_some();
        let waits = later.runs().next().is_some() && !keeps;
        if !waits && !keeps {
            hold.thaw().map_err(DiffError::Held)?;
        }
        let mut old = log.map(|log| Old {
            log: Log::new(log),
            records: BTreeMap::new(),
        });
        let mut out = Hashing::new(out);
        let mut told = done.bytes;
        let mut at = 0;
        for (large, run) in later.runs() {
            copy(&spool, at, run.at, &mut out)?;
            at = run.at + run.len;
            run_of(large, run, old.as_mut(), &mut out, &mut |n| {
                told += n;
                progress(told);
            })?;
        }
        copy(&spool, at, len, &mut out)?;
        out.flush().map_err(DiffError::Write)?;
        match (keeps, waits) {
            (true, _) => hold.end_log(),
            (_, true) => hold.thaw(),
            _ => Ok(()),
        }
        .map_err(DiffError::Held)?;
        let digest = self.options.digest.then(|| out.finish());
        self.written(&done, len, digest)
    }
}

/// Sends what `spool` has between two offsets.
fn copy(spool: &File, from: u64, to: u64, out: &mut dyn Write) -> Result<(), DiffError> {
    let mut piece = Vec::new();
    let mut at = from;
    while at < to {
        piece.resize(usize::try_from(to - at).unwrap_or(PIECE).min(PIECE), 0);
        spool
            .read_exact_at(&mut piece, at)
            .map_err(DiffError::Held)?;
        out.write_all(&piece).map_err(DiffError::Write)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Sends a run of a large file as it was.
fn run_of(
    large: &Large,
    run: Run,
    mut old: Option<&mut Old>,
    out: &mut dyn Write,
    on: &mut dyn FnMut(u64),
) -> Result<(), DiffError> {
    let mut piece = Vec::new();
    let mut done = 0;
    while done < run.len {
        let offset = run.offset + done;
        let left = usize::try_from(run.len - done).unwrap_or(PIECE).min(PIECE);
        piece.clear();
        piece.resize(left, 0);
        let mut filled = 0;
        // What is cut off by now is in the log.
        while let Some(rest) = piece.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let read = fs::read(large.file.as_fd(), offset + filled as u64, rest);
            match read.map_err(|errno| DiffError::Read(errno.into()))? {
                0 => break,
                n => filled += n,
            }
        }
        match &mut old {
            Some(old) => old
                .put_over(large.ino, offset, &mut piece)
                .map_err(DiffError::Held)?,
            None if filled < left => return Err(DiffError::changed(b"")),
            None => {}
        }
        out.write_all(&piece).map_err(DiffError::Write)?;
        done += left as u64;
        on(left as u64);
    }
    Ok(())
}

impl Old {
    /// Puts what is in the log by now over `bytes`, which were read from `offset` of a file on. What
    /// lies before that is asked for no more.
    fn put_over(&mut self, ino: u64, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        while let Some(record) = self.log.next()? {
            if record.len > 0 {
                self.records.insert((record.ino, record.offset), record);
            }
        }
        let end = offset + bytes.len() as u64;
        let mut passed = Vec::new();
        for (&key, record) in self.records.range((ino, 0)..(ino, end)) {
            let record_end = record.offset.saturating_add(record.len);
            if record_end <= end {
                passed.push(key);
            }
            let (from, to) = (record.offset.max(offset), record_end.min(end));
            let place = |at: u64| usize::try_from(at.saturating_sub(offset)).ok();
            let part = place(from).zip(place(to));
            if let Some(part) = part.and_then(|(from, to)| bytes.get_mut(from..to)) {
                let data = record.data + (from - record.offset);
                self.log.file.read_exact_at(part, data)?;
            }
        }
        for key in passed {
            self.records.remove(&key);
        }
        Ok(())
    }
}
