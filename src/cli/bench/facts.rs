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

/// What npm installs packages to.
const NODE_MODULES: &str = "node_modules";

/// Most entries of the tree that is removed.
const TREE_MAX: u64 = 50_000;

/// What is in the image. Paths are below its root, without a leading slash.
#[derive(Debug, Clone, Serialize, Default)]
pub(super) struct Facts {
    /// But for devices 0:0, which overlayfs does not show.
    pub(super) entries: u64,
    pub(super) file_bytes: u64,
    /// Small files, in an order of their own.
    #[serde(skip)]
    pub(super) small: Vec<PathBuf>,
    /// A directory with many entries: the largest node_modules, if there is one.
    pub(super) tree: Option<PathBuf>,
    pub(super) tree_entries: u64,
    /// The git repository with the largest index.
    pub(super) repository: Option<PathBuf>,
    /// The directory that has node_modules/webpack.
    pub(super) webpack: Option<PathBuf>,
    /// npm's cache, and the directory of a package-lock.json: the one that is nearest to it.
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
    let mut repository = 0;
    let mut projects: Vec<PathBuf> = Vec::new();
    lower.walk::<LowerError>(lower.root(), &mut |found| {
        // Nothing, to overlayfs: it is its mark of what was removed.
        if found.kind == Kind::Char && lower.attr(found.nid)?.rdev == 0 {
            return Ok(Step::Into);
        }
        facts.entries += 1;
        let path = Path::new(OsStr::from_bytes(found.path)).to_owned();
        // Each entry counts for every directory above it that may be the tree.
        for (tree, entries) in &mut trees {
            if path.starts_with(&*tree) {
                *entries += 1;
            }
        }
        match found.kind {
            Kind::File => {
                let size = lower.attr(found.nid)?.size;
                facts.file_bytes += size;
                if (1..=SMALL).contains(&size) {
                    facts.small.push(path.clone());
                }
                if found.path.ends_with(b"/node_modules/webpack/package.json") {
                    let root = path.ancestors().nth(3).map(Path::to_owned);
                    facts.webpack = facts.webpack.take().or(root);
                } else if found.name == b"package-lock.json" && !within(&path, NODE_MODULES) {
                    projects.extend(parent(&path));
                } else if found.path.ends_with(b"/.git/index") && size > repository {
                    repository = size;
                    facts.repository = path.ancestors().nth(2).map(Path::to_owned);
                }
            }
            Kind::Dir => {
                let modules = found.name == NODE_MODULES.as_bytes()
                    && !path
                        .parent()
                        .is_some_and(|parent| within(parent, NODE_MODULES));
                if (found.depth < 2 || modules) && !system(&path) {
                    trees.push((path.clone(), 0_u64));
                }
                if found.name == b"_cacache" {
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
        .max_by_key(|(path, entries)| (path.ends_with(NODE_MODULES), *entries));
    if let Some((path, entries)) = best {
        (facts.tree, facts.tree_entries) = (Some(path), entries);
    }
    facts.npm_project = nearest(projects, facts.npm_cache.as_deref());
    Random::new(2).shuffle(&mut facts.small);
    facts.small.truncate(small);
    facts.command = match command {
        Some(words) => words.split_whitespace().map(str::to_owned).collect(),
        None => program(&has),
    };
    if facts.small.is_empty() {
        bail!("the image has no files to read");
    }
    Ok(facts)
}

/// The directory that shares most of its path with another one; the first of those.
fn nearest(mut dirs: Vec<PathBuf>, to: Option<&Path>) -> Option<PathBuf> {
    let shared = |dir: &PathBuf| {
        let pairs = dir.components().zip(to?.components());
        Some(pairs.take_while(|(a, b)| a == b).count())
    };
    dirs.reverse();
    dirs.into_iter().max_by_key(shared)
}

/// Whether one of the directories above a path is called so.
fn within(path: &Path, name: &str) -> bool {
    path.components().any(|part| part.as_os_str() == name)
}

/// Where a file's bytes are: number of the blob, offset, length.
pub(super) fn runs(lower: &Lower, file: Nid) -> anyhow::Result<Vec<(usize, u64, u64)>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_that_npms_cache_is_for() {
        let dirs = || ["app", "srv/bench/npm", "srv/x"].map(PathBuf::from).into();
        let near = |to: Option<&str>| nearest(dirs(), to.map(Path::new)).unwrap();
        assert_eq!(near(Some("srv/bench/cache")), Path::new("srv/bench/npm"));
        assert_eq!(near(Some("root/.npm")), Path::new("app"), "the first");
        assert_eq!(near(None), Path::new("app"));
        assert_eq!(nearest(Vec::new(), None), None);
    }
}
