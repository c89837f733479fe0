//! What the kernel reads of an image, against what we read.

use std::fs;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use super::*;
use crate::inode::Kind;
use crate::lower::{LowerError, Nid};
use crate::store::Store;

/// The image of a tar with files of some lengths, a directory and a pipe; made in `dir`.
fn image(dir: &Path) -> Lower {
    let tar = dir.join("image.tar");
    if !tar.exists() {
        let mut builder = ::tar::Builder::new(fs::File::create(&tar).unwrap());
        let mut add = |name: &str, kind, bytes: &[u8]| {
            let mut header = ::tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_entry_type(kind);
            header.set_cksum();
            builder.append_data(&mut header, name, bytes).unwrap();
        };
        for len in [0_usize, 1, 511, 512, 4096, 4097, 300_001] {
            let bytes: Vec<u8> = (0..=250_u8).cycle().take(len).collect();
            add(&format!("f{len}"), ::tar::EntryType::Regular, &bytes);
        }
        add("d/", ::tar::EntryType::Directory, b"");
        add("p", ::tar::EntryType::Fifo, b"");
        builder.into_inner().unwrap().sync_all().unwrap();
    }
    let image = Store::open(dir).tar_image(&tar, &mut |_| {}).unwrap();
    image.lower().unwrap()
}

/// A backing; `None`, said loudly, where there can be none.
fn backing(lower: &Lower) -> Option<Backing> {
    let why = match Backing::acquire(lower) {
        Ok(backing) => return Some(backing),
        Err(why) => why,
    };
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{why}");
    eprintln!("SKIPPED: {why}");
    None
}

fn entries(lower: &Lower) -> Vec<(Vec<u8>, Nid, Kind)> {
    let mut all = Vec::new();
    let each = &mut |entry: crate::lower::LowerEntry<'_>| {
        all.push((entry.name.to_vec(), entry.nid, entry.kind));
        ControlFlow::Continue(())
    };
    lower.readdir(lower.root(), 0, each).unwrap();
    all
}

#[test]
fn the_kernel_reads_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let lower = image(dir.path());
    assert!(!lower.has_native() && lower.open_native(lower.root()).is_none());
    let Some(backing) = backing(&lower) else {
        return;
    };
    lower.set_native(backing.native().unwrap());
    let mut files = 0;
    for (name, nid, kind) in entries(&lower) {
        let opened = lower.open_native(nid).unwrap();
        if kind != Kind::File {
            assert!(matches!(opened, Err(LowerError::WrongKind(_))));
            continue;
        }
        let mut got = Vec::new();
        fs::File::from(opened.unwrap())
            .read_to_end(&mut got)
            .unwrap();
        let mut want = vec![0; got.len() + 1];
        let len = lower.read(nid, 0, &mut want).unwrap();
        want.truncate(len);
        assert!(got == want, "{}", name.escape_ascii());
        files += 1;
    }
    assert_eq!(files, 7);
}

#[test]
fn a_number_that_is_no_file_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lower = image(dir.path());
    let Some(backing) = backing(&lower) else {
        return;
    };
    let root = backing.native().unwrap();
    for (_, nid, kind) in entries(&lower) {
        // Pipes would hold up who opens them; the index tells them before.
        if kind != Kind::Fifo {
            assert_eq!(root.open(nid.0).is_ok(), kind == Kind::File);
        }
    }
    for ino in [lower.root().0, 0, 1 << 20, 1 << 40, u64::MAX] {
        assert!(root.open(ino).is_err(), "{ino}");
    }
}

#[test]
fn a_changed_tar_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let lower = image(dir.path());
    let Some(backing) = backing(&lower) else {
        return;
    };
    lower.set_native(backing.native().unwrap());
    let (_, nid, _) = entries(&lower).remove(2);
    lower.open_native(nid).unwrap().unwrap();
    let tar = fs::File::options()
        .append(true)
        .open(dir.path().join("image.tar"))
        .unwrap();
    std::io::Write::write_all(&mut &tar, &[0; 512]).unwrap();
    let refused = lower.open_native(nid).unwrap();
    assert!(matches!(refused, Err(LowerError::BlobChanged { .. })));
    assert!(Backing::acquire(&lower).is_err());
}

#[test]
fn the_number_of_a_filesystem_is_made_of_its_uuid() {
    let mut uuid = [0; 16];
    uuid[0] = 1;
    uuid[9] = 2;
    assert_eq!(fsid(uuid), 0x201);
}
