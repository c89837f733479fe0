//! `tarnfs completions` and `tarnfs man`: for packagers.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

/// Print the completions of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tarnfs completions bash > /etc/bash_completion.d/tarnfs")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

/// Write the manual pages
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tarnfs man /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// Directory for tarnfs.1 and a page for each command; none: tarnfs.1 to standard output
    dir: Option<PathBuf>,
}

pub(crate) fn completions(mut command: Command, args: &Completions) -> anyhow::Result<ExitCode> {
    // Into memory first: clap_complete panics when a pipe closes.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "tarnfs", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(command: Command, args: &Man) -> anyhow::Result<ExitCode> {
    match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
            clap_mangen::generate_to(command, dir).with_context(|| dir.display().to_string())?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            std::io::stdout().write_all(&page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
