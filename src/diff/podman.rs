//! The pair of files that podman keeps beside a checkpoint (`pkg/checkpoint/crutils`): a tar of
//! what is new, which is unpacked first, and a list of what is then deleted.

use std::path::Path;

use super::later::Later;
use super::walk::{Done, Walk};
use super::{Changes, DiffError, Format, OnProgress, Written};
use crate::pack::OutputError;
use crate::pack::header::{BLOCK, Entry, EntryType, Place};
use crate::pack::output::NewFile;
use crate::pack::sink::{Out, Sink};

/// The tar's name (checkpointctl, `lib/metadata.go`).
const TAR: &str = "rootfs-diff.tar";
/// The list's.
const DELETED: &str = "deleted.files";

impl Walk<'_, '_> {
    /// Notes that the path is gone.
    pub(super) fn delete(&mut self) -> Result<(), DiffError> {
        let failed = || {
            DiffError::entry(
                &self.path,
                "is gone, and no list of names in JSON can say that, since it is not UTF-8: leave \
                 it out (--exclude), or take another format",
            )
        };
        let path = std::str::from_utf8(&self.path).map_err(|_| failed())?;
        let text = serde_json::to_vec(&format!("/{path}")).map_err(|_| failed())?;
        let deleted = &mut self.done.deleted;
        if !deleted.is_empty() {
            deleted.push(b',');
        }
        deleted.extend_from_slice(&text);
        Ok(())
    }
}

/// The list as a file.
fn list(done: &Done) -> Vec<u8> {
    [b"[", done.deleted.as_slice(), b"]\n"].concat()
}

/// Puts a tar of both files in.
pub(super) fn put(
    changes: &Changes<'_>,
    sink: &mut Sink<'_>,
    later: &mut Later,
    progress: OnProgress<'_>,
) -> Result<Done, DiffError> {
    let mut count = Sink::new(Out::Nowhere);
    let planned =
        changes.put_entries(Format::Podman, &mut count, &mut Later::never(), &mut |_| ())?;
    let len = count.finish()?;
    // The inner tar begins where its own files are to.
    member(sink, TAR, len, changes.options.align.bytes())?;
    let before = sink.len();
    let done = changes.put_entries(Format::Podman, sink, later, progress)?;
    if sink.len() - before != len || done.deleted != planned.deleted {
        return Err(DiffError::changed(b""));
    }
    sink.fill_block()?;
    let deleted = list(&done);
    member(sink, DELETED, deleted.len() as u64, BLOCK)?;
    sink.put(&deleted)?;
    sink.fill_block()?;
    sink.put(&[0; 1024])?;
    Ok(done)
}

/// Puts the header of one of the two in.
fn member(sink: &mut Sink<'_>, name: &str, size: u64, align: u64) -> Result<(), DiffError> {
    let entry = Entry::plain(name.as_bytes(), EntryType::Regular, 0o600, size);
    let place = Place {
        at: sink.len(),
        align,
        lead: 0,
    };
    let blocks = entry.blocks(place);
    let blocks = blocks.map_err(|_| DiffError::entry(name.as_bytes(), crate::pack::TOO_LONG))?;
    Ok(sink.put(&blocks)?)
}

impl Changes<'_> {
    /// Writes podman's two files into the directory `dir`, each whole or not at all; whatever the
    /// format is. No digest.
    ///
    /// # Errors
    /// [`DiffError`]; then neither has changed, but for a failure between the two.
    pub fn write_podman(&self, dir: &Path, progress: OnProgress<'_>) -> Result<Written, DiffError> {
        let [tar, deleted] = [TAR, DELETED].map(|name| dir.join(name));
        let (fail_tar, fail_deleted) = (OutputError::of(&tar), OutputError::of(&deleted));
        let file = NewFile::beside(&tar).map_err(&fail_tar)?;
        let mut file = file.synced(self.options.sync);
        let made = self.write_parted(file.file(), progress, |sink, later, progress| {
            self.put_entries(Format::Podman, sink, later, progress)
        });
        let (done, len) = made.map_err(|error| match error {
            DiffError::Write(source) => fail_tar(source).into(),
            other => other,
        })?;
        let list_file = NewFile::beside(&deleted).map_err(&fail_deleted)?;
        let mut list_file = list_file.synced(self.options.sync);
        let list = list(&done);
        std::io::Write::write_all(list_file.file(), &list).map_err(&fail_deleted)?;
        file.publish().map_err(fail_tar)?;
        list_file.publish().map_err(fail_deleted)?;
        Ok(done.written(len + list.len() as u64))
    }
}
