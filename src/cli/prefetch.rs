//! `--record` and `--prefetch`: what `mount`, `run` and `bundle` share.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tarnfs::lower::Lower;
use tarnfs::prefetch::{Limits, Prefetch, Profile, Recording};

use super::mount_options::parse_size;

/// What was asked for.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct PrefetchArgs {
    /// Note in FILE what is read of the image first, for --prefetch
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// Read what FILE names ahead of the programs, as soon as the mount is ready
    #[arg(long, value_name = "FILE")]
    pub(crate) prefetch: Option<PathBuf>,
    /// Bytes to read ahead at most [default: 256M]
    #[arg(long, value_name = "SIZE", requires = "prefetch", value_parser = size)]
    pub(crate) prefetch_max: Option<u64>,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

impl PrefetchArgs {
    /// The same with absolute paths.
    pub(crate) fn absolute(mut self) -> anyhow::Result<Self> {
        for path in [&mut self.record, &mut self.prefetch].into_iter().flatten() {
            *path = std::path::absolute(&*path).with_context(|| path.display().to_string())?;
        }
        if self.prefetch_max.is_some() && self.prefetch.is_none() {
            bail!("a limit of the prefetch needs a record (--prefetch)");
        }
        Ok(self)
    }

    /// What of it was asked for, as the kernel engine refuses it.
    pub(crate) fn for_server(&self) -> Option<&'static str> {
        match (&self.record, &self.prefetch) {
            (Some(_), _) => Some("--record"),
            (None, Some(_)) => Some("--prefetch"),
            (None, None) => None,
        }
    }

    /// Reads and makes the files: before anything is mounted. `written` are directories that the
    /// mount writes to, where a record cannot lie.
    pub(crate) fn open(&self, lower: &mut Lower, written: &[&Path]) -> anyhow::Result<Prefetch> {
        // First: it may be the file that is to be recorded anew.
        let profile = self.prefetch.as_deref().map(Profile::load).transpose()?;
        let limits = Limits {
            bytes: self.prefetch_max.unwrap_or(Limits::BYTES),
            ..Limits::default()
        };
        let record = match &self.record {
            Some(path) => {
                outside(path, written)?;
                let recording = Recording::create(path, lower.fingerprint())?;
                lower.watch(recording.watch());
                Some(recording)
            }
            None => None,
        };
        Ok(Prefetch {
            record,
            replay: profile.map(|profile| (profile, limits)),
        })
    }

    /// The same as a command line.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let mut words = Vec::new();
        if let Some(path) = &self.record {
            words.extend(["--record".into(), path.into()]);
        }
        if let Some(path) = &self.prefetch {
            words.extend(["--prefetch".into(), path.into()]);
        }
        if let Some(bytes) = self.prefetch_max {
            words.extend(["--prefetch-max".into(), bytes.to_string().into()]);
        }
        words
    }
}

/// Refuses a record where whoever uses the mount would change it.
fn outside(path: &Path, written: &[&Path]) -> anyhow::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let dir = dir
        .canonicalize()
        .with_context(|| path.display().to_string())?;
    // One that is yet to be made holds nothing.
    let inside = |other: &&&Path| {
        other
            .canonicalize()
            .is_ok_and(|other| dir.starts_with(other))
    };
    match written.iter().find(inside) {
        Some(other) => bail!(
            "{}: lies in {}, which the mount itself writes to",
            path.display(),
            other.display()
        ),
        None => Ok(()),
    }
}
