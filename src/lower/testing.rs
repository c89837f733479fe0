//! Tars as images, for the tests of what reads images.

use std::fs::{self, File};
use std::path::Path;

use super::{BlobFile, FileIdentity, Lower};
use crate::index::build;

/// A file as a blob, as it is now.
pub(crate) fn blob_of(path: &Path) -> BlobFile {
    BlobFile {
        path: path.to_owned(),
        identity: FileIdentity::of(&fs::metadata(path).unwrap()),
    }
}

/// The image of `tar`; its files `index` and, where it needs one, `side` come to lie beside it.
pub(crate) fn of_tar(tar: &Path) -> Lower {
    let [index, side] = ["index", "side"].map(|name| tar.with_file_name(name));
    let file = File::open(tar).unwrap();
    let mut out = File::create(&index).unwrap();
    let built = build(&file, tar, &mut out, || File::create(&side), &()).unwrap();
    let side = built.side_len.map(|_| side);
    let blobs = [tar].into_iter().chain(side.as_deref()).map(blob_of);
    Lower::open(&index, blobs.collect()).unwrap()
}
