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
    backing_by(lower, Choice::Best)
}

fn backing_by(lower: &Lower, choice: Choice) -> Option<Backing> {
    let why = match Backing::acquire(lower, choice, &[]) {
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
    assert_eq!((backing.rung(), backing.why()), (Rung::File, &[][..]));
    check_bytes(&lower, &backing);
    let lower = image(dir.path());
    let Some(over_loops) = backing_by(&lower, Choice::Only(Rung::Loop)) else {
        return;
    };
    assert_eq!(over_loops.rung(), Rung::Loop);
    assert!(
        over_loops
            .source()
            .as_encoded_bytes()
            .starts_with(b"/dev/loop")
    );
    check_bytes(&lower, &over_loops);
}

#[test]
fn none_is_had_where_none_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let lower = image(dir.path());
    if backing(&lower).is_some() {
        let none = Backing::acquire(&lower, Choice::None, &[]).unwrap_err();
        assert!(none.to_string().contains("none is wanted"));
    }
}

fn check_bytes(lower: &Lower, backing: &Backing) {
    lower.set_native(backing.native().unwrap());
    let mut files = 0;
    for (name, nid, kind) in entries(lower) {
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
    assert!(Backing::acquire(&lower, Choice::Best, &[]).is_err());
}

#[test]
fn the_number_of_a_filesystem_is_made_of_its_uuid() {
    let mut uuid = [0; 16];
    uuid[0] = 1;
    uuid[9] = 2;
    assert_eq!(fsid(uuid), 0x201);
}

fn device(backing: &Backing) -> u64 {
    rustix::fs::fstat(backing.root()).unwrap().st_dev
}

/// The files of a directory of records.
fn records(state: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state.join("images")).unwrap();
    let mut all: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn who_comes_later_finds_those_who_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let lower = image(dir.path());
    if backing(&lower).is_none() {
        return;
    }
    let dirs = [dir.path().join("state")];
    let acquire = |choice| Backing::acquire(&lower, choice, &dirs).unwrap();
    let first = acquire(Choice::Best);
    assert!(!first.is_shared());
    let second = acquire(Choice::Best);
    assert!(second.is_shared() && second.mount.is_some());
    assert_eq!(device(&second), device(&first));
    // One that must be otherwise is made, and not found by those who must not have it.
    let other = Backing::acquire(&lower, Choice::Only(Rung::Loop), &dirs);
    if let Ok(other) = &other {
        assert!(!other.is_shared() && device(other) != device(&first));
    }
    assert_eq!(acquire(Choice::Only(Rung::File)).rung(), Rung::File);
    // The first one goes, and what it has mounted stays with the second.
    let shared = device(&first);
    drop((first, other));
    let third = acquire(Choice::Best);
    assert!(third.is_shared() && third.mount.is_some());
    assert_eq!(device(&third), shared);
    assert_eq!(records(&dirs[0]).len(), 2);
    drop((second, third));
    assert_eq!(records(&dirs[0]), [""; 0].map(PathBuf::from));
    assert!(!acquire(Choice::Best).is_shared());
}

#[test]
fn another_tar_with_the_same_index_is_another_image() {
    let dir = tempfile::tempdir().unwrap();
    let lower = image(dir.path());
    let Some(ours) = backing(&lower) else {
        return;
    };
    drop(ours);
    let dirs = [dir.path().join("state")];
    let ours = Backing::acquire(&lower, Choice::Best, &dirs).unwrap();
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::copy(dir.path().join("image.tar"), other.join("image.tar")).unwrap();
    let other = image(&other);
    assert_eq!(
        (other.uuid(), other.fingerprint()),
        (lower.uuid(), lower.fingerprint())
    );
    let its = Backing::acquire(&other, Choice::Best, &dirs).unwrap();
    assert!(!its.is_shared() && device(&its) != device(&ours));
}

#[test]
fn forged_and_stale_records_are_not_believed() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let dir = tempfile::tempdir().unwrap();
    let lower = image(dir.path());
    if backing(&lower).is_none() {
        return;
    }
    let dirs = [dir.path().join("state")];
    let acquire = || Backing::acquire(&lower, Choice::Best, &dirs).unwrap();
    let first = acquire();
    let [record] = &records(&dirs[0])[..] else {
        panic!("one record");
    };
    assert!(acquire().is_shared());
    // Somebody else's, or open to others.
    chown(record, Some(12345), None).unwrap();
    assert!(!acquire().is_shared());
    chown(record, Some(0), None).unwrap();
    fs::set_permissions(record, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(!acquire().is_shared());
    fs::set_permissions(record, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(acquire().is_shared());
    let text = fs::read_to_string(record).unwrap();
    let say = |from: &str, to: String| {
        assert!(text.contains(from), "{from} in {text}");
        fs::write(record, text.replace(from, &to)).unwrap();
        let shared = acquire().is_shared();
        fs::write(record, &text).unwrap();
        shared
    };
    // Another process, another descriptor, another filesystem, no process, no record.
    let pid = format!("\"pid\":{}", std::process::id());
    assert!(say(&pid, pid.clone()));
    assert!(!say(&pid, "\"pid\":1".to_owned()));
    let mount = format!("\"mount\":{}", std::os::fd::AsRawFd::as_raw_fd(&first.root));
    let root = fs::File::open("/").unwrap();
    let to = format!("\"mount\":{}", std::os::fd::AsRawFd::as_raw_fd(&root));
    assert!(!say(&mount, to));
    let device = format!("\"dev\":{},\"holder\"", device(&first));
    assert!(!say(&device, "\"dev\":1,\"holder\"".to_owned()));
    assert!(!say(&pid, "\"pid\":0".to_owned()));
    assert!(!say("{", "<".to_owned()));
    // Its writer is gone: nobody holds it locked, and it is cleared away.
    let stale = record.with_extension("copy");
    fs::copy(record, &stale).unwrap();
    assert!(acquire().is_shared());
    assert!(!stale.exists());
    // A state directory that somebody else was first to make is not used at all.
    chown(&dirs[0], Some(12345), None).unwrap();
    assert!(!acquire().is_shared());
    chown(&dirs[0], Some(0), None).unwrap();
    assert!(acquire().is_shared());
    // Nor a directory of records that others can write to.
    fs::set_permissions(dirs[0].join("images"), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(!acquire().is_shared());
}

#[test]
fn a_pin_is_found_until_nobody_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let lower = image(dir.path());
    if backing(&lower).is_none() {
        return;
    }
    let dirs = [dir.path().join("state")];
    let images = Images::lock(&dirs).unwrap();
    let to_mount = || Backing::to_mount(&lower, Choice::Best, Some(&images)).unwrap();
    let mut first = to_mount();
    first.pin(&images).unwrap();
    let (shared, name) = (device(&first), first.name().unwrap());
    drop(first);
    for _ in 0..2 {
        let mut next = to_mount();
        assert!(next.is_shared());
        assert_eq!(device(&next), shared);
        // Pinned already.
        next.pin(&images).unwrap();
        assert_eq!(records(&dirs[0]).len(), 2);
        images.sweep(|image| image == name);
    }
    // Taken off behind us: it is pinned anew.
    let mut next = to_mount();
    sys::mount::unmount(&dirs[0].join("images").join(&name), false).unwrap();
    next.pin(&images).unwrap();
    assert!(to_mount().is_shared());
    images.sweep(|_| false);
    assert_eq!(records(&dirs[0]), [""; 0].map(PathBuf::from));
    assert!(!to_mount().is_shared());
}
