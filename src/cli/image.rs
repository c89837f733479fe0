//! What the commands that open an image share: the store, the image, the progress bar.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use tarnfs::lower::Lower;
use tarnfs::store::{Image, Progress, Store};

use super::Global;

/// The store that the command line, the environment or the user's home names. The environment is
/// read here and nowhere below.
pub(crate) fn store(global: &Global) -> anyhow::Result<Store> {
    if let Some(dir) = &global.store {
        return Ok(Store::open(dir));
    }
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    let (data, home) = (var("XDG_DATA_HOME"), var("HOME"));
    let root = rustix::process::geteuid().is_root();
    Store::default_dir(root, data.as_deref(), home.as_deref())
        .map(|dir| Store::open(&dir))
        .context(
            "there is no store: neither $XDG_DATA_HOME nor $HOME is set; name one with --store DIR",
        )
}

/// The image of a tar: from the store, or made now, with a progress bar on a terminal.
pub(crate) fn image(global: &Global, tar: &Path) -> anyhow::Result<Image> {
    let mut bar = Bar::new("indexing");
    Ok(store(global)?.tar_image(tar, &mut |p| bar.on(p))?)
}

/// [`image`], opened.
pub(crate) fn open(global: &Global, tar: &Path) -> anyhow::Result<(Image, Lower)> {
    let image = image(global, tar)?;
    let lower = image.lower()?;
    Ok((image, lower))
}

/// A progress bar that shows itself on a terminal only, and goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Bar {
    what: &'static str,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar for work called `what`; nothing is drawn before the work tells of itself.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, bar: None }
    }

    /// Shows how far the work is.
    pub(crate) fn on(&mut self, progress: Progress) {
        // indicatif draws on stderr, and not at all where that is no terminal.
        let bar = self.bar.get_or_insert_with(|| {
            let (done, total) = match progress {
                Progress::Indexing { done, total } | Progress::Hashing { done, total } => {
                    (done, total)
                }
                _ => (0, 0),
            };
            // All of it before it is first drawn: a bar of nothing would look like a full one.
            let bar = ProgressBar::new(total)
                .with_position(done)
                .with_message(self.what);
            match ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {eta}") {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        match progress {
            Progress::Indexing { done, total } | Progress::Hashing { done, total } => {
                bar.set_message(self.what);
                bar.set_length(total);
                bar.set_position(done);
            }
            Progress::Waiting => bar.set_message("waiting for another tarnfs"),
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
