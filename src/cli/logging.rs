//! Where the log goes.

mod rolling;

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use super::Global;
use rolling::Rolling;

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
    let (writer, colours) = match &global.log_file {
        Some(path) => (to_file(path)?, false),
        None => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
    };
    init_by(global, writer, colours)
}

/// The same for a server, whose own log nobody looks after and which is found on the way: until then
/// it goes to standard error.
pub(crate) fn init_of_server(global: &Global) -> anyhow::Result<OwnLog> {
    let own = OwnLog::default();
    let there = own.clone();
    init_by(global, BoxMakeWriter::new(move || there.clone()), false)?;
    Ok(own)
}

/// The log of a server, at most twice [`rolling::MAX`] long.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnLog(Arc<OnceLock<Mutex<Rolling>>>);

impl OwnLog {
    /// Has it be the file at `path` from now on.
    pub(crate) fn found(&self, path: &Path) -> anyhow::Result<()> {
        let file = Rolling::open(path, rolling::MAX)
            .with_context(|| format!("log file {}", path.display()))?;
        self.0.get_or_init(|| Mutex::new(file));
        Ok(())
    }
}

impl Write for OwnLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0.get() {
            Some(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.write(line)
            }
            None => io::stderr().write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn init_by(global: &Global, writer: BoxMakeWriter, colours: bool) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .parse(&global.log)
        .with_context(|| format!("--log {:?}", global.log))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colours);
    match global.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| anyhow::anyhow!("the log: {error}"))?;
    // Who reads objects can do nothing with the lines of a panic.
    if global.log_format == LogFormat::Json {
        panics_to_log();
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_one_object() {
        let lines = Lines::default();
        let to = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(move || to.clone())
            .finish();
        let hook = std::panic::take_hook();
        panics_to_log();
        tracing::subscriber::with_default(subscriber, || {
            std::panic::catch_unwind(|| panic!("two\nlines \u{1b}[1m and \"quotes\"")).unwrap_err();
        });
        std::panic::set_hook(hook);
        let said = lines.0.lock().unwrap().clone();
        let said = String::from_utf8(said).unwrap();
        let line: serde_json::Value = serde_json::from_str(said.trim_end()).unwrap();
        assert_eq!(line["level"], "ERROR");
        let message = line["fields"]["message"].as_str().unwrap();
        assert!(message.contains("two\nlines"), "{message}");
    }
}
