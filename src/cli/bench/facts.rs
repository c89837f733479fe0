//! A look into the image: what of it the works can use.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde::Serialize;
use tarnfs::inode::Kind;
use tarnfs::lower::{Lower, LowerError, Nid, Place, Step};

use super::random::Random;

/// The longest file that counts as small, in bytes.
const SMALL: u64 = 16 << 10;

/// Most entries of the tree that is removed.
const TREE_MAX: u64 = 50_000;

/// What is in the image. Paths are below its root, without a leading slash.
#[derive(Debug, Clone, Serialize, Default)]
pub(super) struct Facts {
    pub(super) entries: u64,
    pub(super) file_bytes: u64,
    /// Small files, in an order of their own.
    #[serde(skip)]
    pub(super) small: Vec<PathBuf>,
    /// The biggest file and its length.
    pub(super) big: PathBuf,
    pub(super) big_len: u64,
    /// Where its bytes are: number of the blob, offset, length.
    #[serde(skip)]
    pub(super) big_runs: Vec<(usize, u64, u64)>,
    /// The biggest one of at most 128 MiB, for a copy-up.
    pub(super) middle: PathBuf,
    pub(super) middle_len: u64,
    /// A directory with many entries.
    pub(super) tree: Option<PathBuf>,
    pub(super) tree_entries: u64,
    /// A git repository.
    pub(super) repository: Option<PathBuf>,
    /// The directory that has node_modules/webpack.
    pub(super) webpack: Option<PathBuf>,
    /// The directory of a package-lock.json, and npm's cache.
    pub(super) npm_project: Option<PathBuf>,
    pub(super) npm_cache: Option<PathBuf>,
    pub(super) git: bool,
    pub(super) node: bool,
    pub(super) npm: bool,
    /// The program that is run after a restore.
    pub(super) command: Vec<String>,
}

/// Looks through the image; `small` is how many small files are wanted at most.
pub(super) fn look(lower: &Lower, small: usize, command: Option<&str>) -> anyhow::Result<Facts> {
    let has = |path: &str| lower.resolve(path.as_bytes(), true).is_ok();
    let any = |names: &[&str]| names.iter().any(|name| has(name));
    let mut facts = Facts {
        git: any(&["/usr/bin/git", "/usr/local/bin/git"]),
        node: any(&["/usr/bin/node", "/usr/local/bin/node"]),
        npm: any(&["/usr/bin/npm", "/usr/local/bin/npm"]),
        ..Facts::default()
    };
    let mut trees = Vec::new();
    let mut big = lower.root();
    let mut walked: Vec<(PathBuf, u64)> = Vec::new();
    lower.walk::<LowerError>(lower.root(), &mut |found| {
        facts.entries += 1;
        let path = Path::new(OsStr::from_bytes(found.path)).to_owned();
        // Each entry counts for every directory above it, down to the second level.
        for (tree, entries) in trees.iter_mut().rev() {
            if path.starts_with(&*tree) {
                *entries += 1;
            }
        }
        match found.kind {
            Kind::File => {
                let size = lower.attr(found.nid)?.size;
                facts.file_bytes += size;
                if size > facts.big_len {
                    (facts.big, facts.big_len, big) = (path.clone(), size, found.nid);
                }
                if size > facts.middle_len && size <= 128 << 20 {
                    (facts.middle, facts.middle_len) = (path.clone(), size);
                }
                if (1..=SMALL).contains(&size) {
                    walked.push((path.clone(), size));
                }
                let parent = || path.parent().map(Path::to_owned);
                if found.path.ends_with(b"/node_modules/webpack/package.json") {
                    let root = path.ancestors().nth(3).map(Path::to_owned);
                    facts.webpack = facts.webpack.take().or(root);
                } else if found.name == b"package-lock.json" {
                    facts.npm_project = facts.npm_project.take().or_else(parent);
                }
            }
            Kind::Dir => {
                if found.depth < 2 && !system(&path) {
                    trees.push((path.clone(), 0_u64));
                }
                if found.name == b".git" {
                    facts.repository = facts.repository.take().or_else(|| parent(&path));
                } else if found.name == b"_cacache" {
                    facts.npm_cache = facts.npm_cache.take().or_else(|| parent(&path));
                }
            }
            _ => {}
        }
        Ok(Step::Into)
    })?;
    let best = trees
        .into_iter()
        .filter(|(_, entries)| (1..=TREE_MAX).contains(entries))
        .max_by_key(|(_, entries)| *entries);
    if let Some((path, entries)) = best {
        (facts.tree, facts.tree_entries) = (Some(path), entries);
    }
    facts.small = walked.into_iter().map(|(path, _)| path).collect();
    Random::new(2).shuffle(&mut facts.small);
    facts.small.truncate(small);
    facts.command = match command {
        Some(words) => words.split_whitespace().map(str::to_owned).collect(),
        None => program(&has),
    };
    if facts.big_len == 0 || facts.small.is_empty() {
        bail!("the image has no files to read");
    }
    facts.big_runs = runs(lower, big)?;
    Ok(facts)
}

/// Where a file's bytes are.
fn runs(lower: &Lower, file: Nid) -> anyhow::Result<Vec<(usize, u64, u64)>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while let Some(extent) = lower.extent(file, at)? {
        if let Place::Device { index, offset } = extent.place {
            runs.push((usize::from(index), offset, extent.len));
        }
        at += extent.len;
    }
    Ok(runs)
}

fn parent(path: &Path) -> Option<PathBuf> {
    path.parent().map(Path::to_owned)
}

/// What cannot be removed from under a program, or is not the image's.
fn system(path: &Path) -> bool {
    ["proc", "sys", "dev"]
        .iter()
        .any(|name| path.starts_with(name))
}

/// The first of a few programs that the image has; empty if it has none of them.
fn program(has: &dyn Fn(&str) -> bool) -> Vec<String> {
    let known: [&[&str]; 5] = [
        &["/usr/local/bin/node", "-e", "0"],
        &["/usr/bin/node", "-e", "0"],
        &["/bin/sh", "-c", ":"],
        &["/bin/busybox", "true"],
        &["/bin/true"],
    ];
    known
        .iter()
        .find(|words| words.first().is_some_and(|program| has(program)))
        .map(|words| words.iter().map(|word| (*word).to_owned()).collect())
        .unwrap_or_default()
}
