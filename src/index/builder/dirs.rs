//! The directory of the last entry: most entries follow their siblings or lie near them.

use super::{Id, ROOT};

/// A directory with all those above it.
#[derive(Debug, Default)]
pub(super) struct LastDir {
    pub(super) path: Vec<u8>,
    /// Where each of its names ends in `path`, and the directory there.
    steps: Vec<(usize, Id)>,
}

impl LastDir {
    /// How much of `path` leads to a directory that is known, and that directory.
    pub(super) fn common(&self, path: &[u8]) -> (usize, Id) {
        let same = if path.starts_with(&self.path) {
            self.path.len()
        } else {
            let mut both = path.iter().zip(&self.path);
            both.position(|(a, b)| a != b)
                .unwrap_or(path.len().min(self.path.len()))
        };
        let known = self
            .steps
            .iter()
            .rev()
            .find(|&&(end, _)| end <= same && matches!(path.get(end), None | Some(b'/')));
        known.copied().unwrap_or((0, ROOT))
    }

    /// Goes back to [`Self::common`]'s directory.
    pub(super) fn enter(&mut self, path: &[u8]) -> Id {
        let (known, dir) = self.common(path);
        self.path.truncate(known);
        self.steps.retain(|&(end, _)| end <= known);
        dir
    }

    /// Goes down to `dir`, whose path is `path`.
    pub(super) fn step(&mut self, path: &[u8], dir: Id) {
        let rest = path.get(self.path.len()..).unwrap_or_default();
        self.path.extend_from_slice(rest);
        self.steps.push((self.path.len(), dir));
    }
}
