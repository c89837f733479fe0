//! `--control` and `--metrics`: how a server can be asked.

use std::path::PathBuf;

use anyhow::Context;
use tarnfs::mount::control::Listen;

/// Where a server answers who asks it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ControlArgs {
    /// Answer `tarnfs stats` at this socket (docs/METRICS.md), which this user and root may open
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// Answer Prometheus at this place: unix:PATH, 127.0.0.1:PORT or [::1]:PORT
    #[arg(long, value_name = "PLACE")]
    pub(crate) metrics: Option<Listen>,
}

impl ControlArgs {
    /// What was said first counts; with absolute paths.
    pub(crate) fn or(self, other: Self) -> anyhow::Result<Self> {
        let mut all = Self {
            control: self.control.or(other.control),
            metrics: self.metrics.or(other.metrics),
        };
        let in_metrics = match &mut all.metrics {
            Some(Listen::Unix(path)) => Some(path),
            _ => None,
        };
        for path in all.control.iter_mut().chain(in_metrics) {
            *path = std::path::absolute(&*path).with_context(|| path.display().to_string())?;
        }
        Ok(all)
    }

    /// What of it was asked for, as the kernel engine refuses it.
    pub(crate) fn for_server(&self) -> Option<&'static str> {
        match (&self.control, &self.metrics) {
            (Some(_), _) => Some("--control"),
            (None, Some(_)) => Some("--metrics"),
            (None, None) => None,
        }
    }
}
