//! The images that are made: one with large files, which every run has, and one of small files
//! where no other is given. The same names and bytes each time, but for the programs of this
//! machine that are put in so that something can run.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tar::EntryType;

use super::random::Random;
use crate::cli::demo::libraries;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amounts {
    pub(super) small_files: u64,
    pub(super) big_mib: u64,
    pub(super) middle_mib: u64,
}

const FILES_PER_DIR: u64 = 20;
const DEEP_TREES: u64 = 10;
const DEPTH: usize = 30;
const MTIME: u64 = 1_700_000_000;
/// What runs in it: the shell, if this machine has it, and a few that scripts use.
const PROGRAMS: [&str; 4] = ["sh", "ls", "cat", "true"];

type Tar = tar::Builder<BufWriter<File>>;

/// The files of the image of large ones.
pub(super) const BIG: &str = "big";
pub(super) const MIDDLE: &str = "middle";

/// Writes an image of two large files.
pub(super) fn large(path: &Path, amounts: Amounts) -> anyhow::Result<()> {
    let mut out = begin(path)?;
    let mut random = Random::new(7);
    for (name, mib) in [(MIDDLE, amounts.middle_mib), (BIG, amounts.big_mib)] {
        bytes(&mut out, name, &mut random, mib << 20)?;
    }
    end(out)
}

/// Writes an image of small files.
pub(super) fn small(path: &Path, amounts: Amounts) -> anyhow::Result<()> {
    let mut out = begin(path)?;
    for dir in ["proc", "dev", "sys", "tmp", "etc", "root", "usr"] {
        entry(
            &mut out,
            EntryType::Directory,
            dir,
            0,
            &mut std::io::empty(),
        )?;
    }
    programs(&mut out)?;
    let mut random = Random::new(1);
    small_files(&mut out, &mut random, amounts.small_files)?;
    for tree in 0..DEEP_TREES {
        let mut dir = format!("deep{tree}");
        for level in 0..DEPTH {
            entry(
                &mut out,
                EntryType::Directory,
                &dir,
                0,
                &mut std::io::empty(),
            )?;
            bytes(&mut out, &format!("{dir}/here"), &mut random, 200)?;
            dir = format!("{dir}/level{level}");
        }
    }
    end(out)
}

fn begin(path: &Path) -> anyhow::Result<Tar> {
    let out = File::create(path).context("making the tar")?;
    Ok(tar::Builder::new(BufWriter::with_capacity(1 << 20, out)))
}

fn end(out: Tar) -> anyhow::Result<()> {
    let out = out.into_inner().context("finishing the tar")?;
    out.into_inner()?.sync_all()?;
    Ok(())
}

/// Directories of small files; of each directory one symbolic and one hard link.
fn small_files(out: &mut Tar, random: &mut Random, files: u64) -> anyhow::Result<()> {
    for dir in 0..files.div_ceil(FILES_PER_DIR) {
        let dir = format!("small/d{:02}/d{dir:04}", dir % 50);
        entry(out, EntryType::Directory, &dir, 0, &mut std::io::empty())?;
        for file in 0..FILES_PER_DIR {
            // Most files of an image are small, a few are not.
            let size = if random.below(10) == 0 {
                random.below(16 << 10)
            } else {
                1 + random.below(2 << 10)
            };
            bytes(out, &format!("{dir}/file{file:02}"), random, size)?;
        }
        link(out, EntryType::Symlink, &format!("{dir}/symlink"), "file00")?;
        let first = format!("{dir}/file00");
        link(out, EntryType::Link, &format!("{dir}/hardlink"), &first)?;
    }
    Ok(())
}

fn header(kind: EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_mtime(MTIME);
    header.set_size(size);
    header
}

fn entry(
    out: &mut Tar,
    kind: EntryType,
    name: &str,
    size: u64,
    data: &mut dyn Read,
) -> anyhow::Result<()> {
    out.append_data(&mut header(kind, size), name, data)
        .with_context(|| format!("packing {name}"))
}

fn link(out: &mut Tar, kind: EntryType, name: &str, to: &str) -> anyhow::Result<()> {
    out.append_link(&mut header(kind, 0), name, to)
        .with_context(|| format!("packing {name}"))
}

/// A file of random bytes.
fn bytes(out: &mut Tar, name: &str, random: &mut Random, size: u64) -> anyhow::Result<()> {
    entry(
        out,
        EntryType::Regular,
        name,
        size,
        &mut Noise(random).take(size),
    )
}

struct Noise<'a>(&'a mut Random);

impl Read for Noise<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.fill(buffer);
        Ok(buffer.len())
    }
}

/// Programs of this machine with their libraries, under their own names.
fn programs(out: &mut Tar) -> anyhow::Result<()> {
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let host = Path::new("/").join(name);
        if let Ok(target) = std::fs::read_link(&host) {
            link(out, EntryType::Symlink, name, &target.to_string_lossy())?;
        }
    }
    let mut done = BTreeSet::new();
    for name in PROGRAMS {
        let Some(program) = tarnfs::actor::userns::find_program(name) else {
            continue;
        };
        copy(out, &program, &mut done)?;
        for library in libraries(&program)? {
            copy(out, &library, &mut done)?;
        }
        if name == "sh" && !Path::new("/bin").is_symlink() {
            copy(out, Path::new("/bin/sh"), &mut done)?;
        }
    }
    Ok(())
}

/// A file under its directory's real name, as the links above lead to it.
fn copy(out: &mut Tar, path: &Path, done: &mut BTreeSet<PathBuf>) -> anyhow::Result<()> {
    let name = path.file_name().context("a program without a name")?;
    let path = path
        .parent()
        .unwrap_or(Path::new("/"))
        .canonicalize()?
        .join(name);
    if !done.insert(path.clone()) {
        return Ok(());
    }
    let mut file = File::open(&path).with_context(|| path.display().to_string())?;
    let size = file.metadata()?.len();
    let name = path.strip_prefix("/")?.to_string_lossy().into_owned();
    entry(out, EntryType::Regular, &name, size, &mut file)
}
