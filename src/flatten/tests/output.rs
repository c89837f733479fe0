//! Outputs: whole or not at all.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;

#[test]
fn a_changed_blob_is_an_error() {
    let image = Indexed::new(&Tar::new().file("f", &[7; 5000]).end());
    let tar = image.dir.path().join("tar");
    let file = File::options().write(true).open(tar).unwrap();
    file.write_all_at(b"x", 600).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let out = image.dir.path().join("out.tar");
    let made = write_file(&image.lower, &image.options, &out, &mut |_, _| ());
    assert!(matches!(
        made,
        Err(FlattenError::Lower(LowerError::BlobChanged { .. }))
    ));
    assert!(!out.exists());
    // Also where there is no byte of it to read.
    let image = Indexed::new(&Tar::new().dir("d").end());
    let file = File::options()
        .write(true)
        .open(image.dir.path().join("tar"));
    file.unwrap().set_len(512).unwrap();
    let made = write(
        &image.lower,
        &image.options,
        &mut Vec::new(),
        &mut |_, _| (),
    );
    assert!(made.is_err());
}

#[test]
fn an_output_is_there_whole_or_not_at_all() {
    let image = Indexed::new(&Tar::new().file("f", &[7; 5000]).end());
    let dir = image.dir.path();
    let out = dir.join("out.tar");
    let run = |path: &Path| write_file(&image.lower, &image.options, path, &mut |_, _| ());
    for _ in 0..2 {
        let made = run(&out).unwrap();
        assert_eq!(Digest::of(&fs::read(&out).unwrap()), made.digest);
        assert_eq!(made.entries, 2);
    }
    assert!(run(&dir.join("none/out.tar")).is_err());
    // A symbolic link stays, and what it leads to is replaced.
    let link = dir.join("link");
    std::os::unix::fs::symlink("out.tar", &link).unwrap();
    assert!(
        matches!(Target::of(&link), Ok(Target::File(file)) if file == fs::canonicalize(&out).unwrap())
    );
    let nowhere = dir.join("nowhere");
    std::os::unix::fs::symlink("none", &nowhere).unwrap();
    assert!(matches!(Target::of(&nowhere), Err(OutputError { .. })));
    assert!(matches!(Target::of(dir), Err(OutputError { .. })));
    assert!(matches!(
        Target::of(Path::new("/dev/null")),
        Ok(Target::Stream(_))
    ));
    assert!(matches!(Target::of(&dir.join("new")), Ok(Target::File(_))));
    let names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("tmp"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
}

/// Takes so many bytes.
pub(super) struct Narrow(pub(super) usize);

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self
            .0
            .checked_sub(bytes.len())
            .ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_output_is_an_error() {
    let image = Indexed::new(&Tar::new().file("f", &[7; 5000]).end());
    let whole = image.flatten().len();
    let run = |room| {
        write(
            &image.lower,
            &image.options,
            &mut Narrow(room),
            &mut |_, _| (),
        )
    };
    assert!(run(whole).is_ok());
    assert!(matches!(run(whole - 1), Err(FlattenError::Write(_))));
}
