//! One layer of an image, read by itself: its tree, and what it says of the layers below it
//! (OCI image-spec, layer.md: "Representing Changes").
//!
//! What it never does: look at another layer. [`super::flatten`] puts them on top of each other.

mod whiteouts;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub(super) use self::whiteouts::Whiteouts;
use self::whiteouts::{Meaning, meaning};
use super::builder::Builder;
use super::misfit::Fault;
use super::{IndexError, Progress, of_file, read_entries};
use crate::tar::{Entry, ReadAt, Stream};

/// What a layer's tar holds, before it is known what lies below it.
#[derive(Debug)]
pub struct Layer {
    /// Its own files. Hard links to what was not in the tar when they came still wait.
    pub(super) builder: Builder,
    pub(super) whiteouts: Whiteouts,
    tar_len: u64,
    entries: u64,
}

impl Layer {
    /// The tar's length in bytes, with all padding.
    #[must_use]
    pub fn tar_len(&self) -> u64 {
        self.tar_len
    }

    /// How many entries the tar has: duplicates, hard links and whiteouts count.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }
}

/// Reads a layer's tar that comes as a stream, to its end, but after an error. Errors call it
/// `path`.
///
/// # Errors
/// The first thing that is wrong with it; nothing is skipped.
pub fn scan_layer(input: impl Read, path: &Path) -> Result<Layer, IndexError> {
    scan(&Stream::new(input), path, &())
}

/// [`scan_layer`] for a tar that is a file: its headers only are read.
///
/// # Errors
/// As [`scan_layer`], and if `tar` is no regular file or is written to meanwhile.
pub fn scan_layer_file(
    tar: &File,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Layer, IndexError> {
    of_file(tar, path, || scan(tar, path, progress))
}

fn scan<R: ReadAt + ?Sized>(
    tar: &R,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Layer, IndexError> {
    let mut builder = Builder::new();
    let mut whiteouts = Whiteouts::default();
    let (tar_len, entries) = read_entries(tar, path, progress, |entry| {
        place(entry, &mut builder, &mut whiteouts)
    })?;
    builder.rest();
    Ok(Layer {
        builder,
        whiteouts,
        tar_len,
        entries,
    })
}

fn place(entry: &mut Entry, builder: &mut Builder, whiteouts: &mut Whiteouts) -> Result<(), Fault> {
    match meaning(&entry.path) {
        Ok(Meaning::Entry) => builder.add(entry),
        Ok(Meaning::Nothing) => Ok(()),
        Ok(Meaning::Whiteout { dir, name }) => whiteouts.hide(dir, name, entry),
        Ok(Meaning::Opaque { dir }) => whiteouts.hide_all(dir, entry),
        Err(misfit) => Err(Fault::of(entry, misfit)),
    }
}

#[cfg(test)]
mod tests;
