//! Where the log goes.

use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::path::Path;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use super::Global;

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Sets up the log of this process: to the log file if there is one, else to standard error.
pub(crate) fn init(global: &Global) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .parse(&global.log)
        .with_context(|| format!("--log {:?}", global.log))?;
    let (writer, colours) = match &global.log_file {
        Some(path) => (to_file(path)?, false),
        None => (
            BoxMakeWriter::new(std::io::stderr),
            std::io::stderr().is_terminal(),
        ),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colours);
    match global.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| anyhow::anyhow!("the log: {error}"))
}

fn to_file(path: &Path) -> anyhow::Result<BoxMakeWriter> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("log file {}", path.display()))?;
    Ok(BoxMakeWriter::new(std::sync::Mutex::new(file)))
}

/// Sends the message and place of a panic to the log: a server in the background has no standard
/// error, and its panics end no more than one request.
pub(crate) fn panics_to_log() {
    std::panic::set_hook(Box::new(|info| tracing::error!("{info}")));
}
