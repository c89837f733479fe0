//! `tarnfs umount`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tarnfs::mount::{How, Unmounted, engine_of, unmount};
use tarnfs::sys::mount::mounts;

use super::Global;

/// Unmount a directory
///
/// Waits until everything is written to the upper directory and the server, if there is one, has
/// ended. A directory that is not mounted is no error; a mount whose server has died is cleared.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs umount /mnt/app
  tarnfs umount --lazy /mnt/app       # though a process works in it
  tarnfs umount --force /mnt/app      # though its server hangs
  tarnfs umount --all")]
pub(crate) struct Args {
    /// The directories
    #[arg(value_name = "DIR", required_unless_present = "all")]
    dirs: Vec<PathBuf>,
    /// Every tarnfs mount of this mount namespace
    #[arg(short, long, conflicts_with = "dirs")]
    all: bool,
    /// Detach now; the mount ends when the last process leaves it
    #[arg(short, long)]
    lazy: bool,
    /// Abort the connection to the server first: whoever waits for it gets an error
    #[arg(short, long)]
    force: bool,
    /// How long to wait for the server to end
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Say what was done
    #[arg(short, long)]
    verbose: bool,
}

pub(crate) fn run(_global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let how = How {
        lazy: args.lazy,
        force: args.force,
        wait: Duration::from_secs(args.timeout),
    };
    let dirs = if args.all { all()? } else { args.dirs };
    let mut status = ExitCode::SUCCESS;
    for dir in dirs {
        match unmount(&dir, how) {
            Ok(what) if args.verbose => println!("{}: {}", dir.display(), words(what)),
            Ok(_) => {}
            Err(error) => {
                eprintln!("tarnfs: {error}");
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

/// All of ours, the newest first.
fn all() -> anyhow::Result<Vec<PathBuf>> {
    Ok(mounts()?
        .into_iter()
        .rev()
        .filter(|m| engine_of(m).is_some())
        .map(|m| m.path)
        .collect())
}

fn words(what: Unmounted) -> &'static str {
    match what {
        Unmounted::NotMounted => "not mounted",
        Unmounted::Ended => "unmounted",
        Unmounted::Dead => "unmounted (its server was dead, or not known here)",
        Unmounted::Detached => "detached",
    }
}
