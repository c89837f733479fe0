//! The command line: parses, calls the library, prints. One file a command.

mod actor;
mod bench;
mod bundle;
mod cat;
mod control;
mod demo;
mod diff;
mod doctor;
mod engine;
mod export;
mod fetch;
mod flatten;
mod gc;
mod generate;
mod helper;
mod image;
mod images;
mod import;
mod index;
mod inspect;
mod logging;
mod ls;
mod mount;
mod mount_options;
mod prefetch;
mod print;
mod progress;
mod run;
mod serving;
mod squash;
mod stat;
mod stats;
mod tree;
mod umount;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use logging::LogFormat;

/// What every command takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Where images and indexes are kept [default: /var/lib/tarnfs for root, else
    /// $XDG_DATA_HOME/tarnfs]
    #[arg(long, global = true, env = "TARNFS_STORE", value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// What to log, as RUST_LOG takes it (error, warn, info, debug, tarnfs::overlay=trace …)
    #[arg(
        long,
        global = true,
        env = "TARNFS_LOG",
        value_name = "FILTER",
        default_value = "warn"
    )]
    pub(crate) log: String,
    /// How log lines look
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
    /// Log to this file instead of standard error
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
}

#[derive(Debug, Parser)]
#[command(name = "tarnfs", version, about, long_about = None, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::Args),
    Umount(umount::Args),
    Stats(stats::Args),
    Run(run::Args),
    Actor(actor::Args),
    Bundle(bundle::Args),
    Import(import::Args),
    Images(images::ListArgs),
    Tag(images::TagArgs),
    Rm(images::RmArgs),
    Gc(gc::Args),
    Verify(verify::Args),
    Index(index::Args),
    Ls(ls::Args),
    Cat(cat::Args),
    Stat(stat::Args),
    Tree(tree::Args),
    Inspect(inspect::Args),
    Flatten(flatten::Args),
    Diff(diff::Args),
    Export(export::Args),
    Squash(squash::Args),
    Doctor(doctor::Args),
    Demo(demo::Args),
    Bench(bench::Args),
    #[command(hide = true)]
    Completions(generate::Completions),
    #[command(hide = true)]
    Man(generate::Man),
}

/// The command line of the one command that is called all day long: to describe all others takes a
/// millisecond. What it does not understand, help among it, the whole one does.
#[derive(Debug, Parser)]
#[command(name = "tarnfs", disable_help_flag = true)]
struct Quick {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: QuickCommand,
}

#[derive(Debug, clap::Subcommand)]
enum QuickCommand {
    Actor(actor::Args),
}

/// The status of who was called wrongly, clap's own.
const MISUSED: u8 = 2;

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    if let Some(status) = hidden() {
        return status;
    }
    // A server in the background must not hold what its caller has open, nor an actor's init.
    if let Err(error) = tarnfs::sys::namespace::keep_from_children() {
        return report(anyhow::Error::new(error).context("keeping open files to this process"));
    }
    if let Err(error) = tarnfs::sys::signal::survive_file_size_limit() {
        return report(anyhow::Error::new(error).context("catching SIGXFSZ"));
    }
    let argv: Vec<_> = std::env::args_os().collect();
    if argv.get(1).is_some_and(|word| word == "actor")
        && let Ok(quick) = Quick::try_parse_from(&argv)
    {
        let QuickCommand::Actor(args) = quick.command;
        return run(&quick.global, Command::Actor(args)).unwrap_or_else(report);
    }
    let mut commands = Cli::command();
    if let Some(argv) = helper::invocation(&commands, &argv) {
        return helper::main(argv);
    }
    let mut matches = match commands.try_get_matches_from_mut(argv) {
        Ok(matches) => matches,
        Err(error) => return misused(&error),
    };
    let cli = Cli::from_arg_matches_mut(&mut matches)
        .unwrap_or_else(|error| error.format(&mut commands).exit());
    run(&cli.global, cli.command).unwrap_or_else(report)
}

/// What is wrong with the command line; of a value, in one line that says why.
fn misused(error: &clap::Error) -> ExitCode {
    if error.kind() != clap::error::ErrorKind::ValueValidation {
        error.exit();
    }
    let text = error.to_string();
    let (why, _) = text.split_once("\n\n").unwrap_or((&text, ""));
    let why = why.trim_start_matches("error: ").replace('\n', " ");
    eprintln!("tarnfs: {why}");
    ExitCode::from(MISUSED)
}

/// One line on standard error.
fn report(error: anyhow::Error) -> ExitCode {
    eprintln!("tarnfs{}", print::causes(&error));
    ExitCode::FAILURE
}

fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    // They see to their own log: `mount`'s options may say where it goes.
    if !matches!(command, Command::Mount(_) | Command::Actor(_)) {
        logging::init(global)?;
    }
    match command {
        Command::Mount(args) => mount::run(global, args),
        Command::Umount(args) => umount::run(global, args),
        Command::Actor(args) => actor::run(global, args),
        Command::Stats(args) => stats::run(global, &args),
        Command::Run(args) => run::run(global, args),
        Command::Bundle(args) => bundle::run(global, args),
        Command::Import(args) => import::run(global, args),
        Command::Images(args) => images::list(global, &args),
        Command::Tag(args) => images::tag(global, &args),
        Command::Rm(args) => images::rm(global, &args),
        Command::Gc(args) => gc::run(global, &args),
        Command::Verify(args) => verify::run(global, &args),
        Command::Index(args) => index::run(global, args),
        Command::Ls(args) => ls::run(global, args),
        Command::Cat(args) => cat::run(global, args),
        Command::Stat(args) => stat::run(global, args),
        Command::Tree(args) => tree::run(global, args),
        Command::Inspect(args) => inspect::run(global, args),
        Command::Flatten(args) => flatten::run(global, args),
        Command::Diff(args) => diff::run(global, args),
        Command::Export(args) => export::run(global, args),
        Command::Squash(args) => squash::run(global, args),
        Command::Doctor(args) => doctor::run(global, args),
        Command::Demo(args) => demo::run(global, args),
        Command::Bench(args) => bench::run(global, args),
        Command::Completions(args) => generate::completions(Cli::command(), &args),
        Command::Man(args) => generate::man(Cli::command(), &args),
    }
}

/// What this executable starts itself as; not for people, and without the weight of clap.
fn hidden() -> Option<ExitCode> {
    use tarnfs::actor::{init, probe, userns};
    use tarnfs::mount::rights;
    let mut args = std::env::args_os().skip(1);
    let word = args.next()?;
    let rest = || {
        args.map(|arg| arg.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    match word.to_str()? {
        init::SUBCOMMAND => Some(init::main(&rest())),
        userns::SUBCOMMAND => Some(userns::helper_main(&rest())),
        rights::SUBCOMMAND => Some(rights::helper_main()),
        probe::SUBCOMMAND => Some(probe::userns_main()),
        _ => None,
    }
}
