//! `tarnfs actor stop`, `reset`, `destroy`

use std::process::ExitCode;
use std::time::Duration;

use tarnfs::actors::{Id, Stop};

use super::{actors, again, each};
use crate::cli::Global;

/// What to do about those who still use an actor.
#[derive(Debug, clap::Args)]
struct Users {
    /// Cut off those who still use it
    #[arg(short, long)]
    force: bool,
    /// How long to wait until all is written and the server has ended
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

impl Users {
    fn stop(&self) -> Stop {
        Stop {
            lazy: false,
            force: self.force,
            wait: Duration::from_secs(self.timeout),
        }
    }
}

/// Unmount actors
///
/// What they have written stays. One that is not mounted is as good; mounts that a runtime has left
/// below the root filesystem are taken off, too.
#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    users: Users,
    /// Detach now; the server goes on for those who still use it
    #[arg(short, long, conflicts_with = "force")]
    lazy: bool,
    /// The actors
    #[arg(value_name = "ID", required = true)]
    ids: Vec<Id>,
}

pub(super) fn stop(global: &Global, args: &StopArgs) -> anyhow::Result<ExitCode> {
    let actors = actors(global)?;
    let how = Stop {
        lazy: args.lazy,
        ..args.users.stop()
    };
    Ok(each(&args.ids, |id| Ok(actors.get(id)?.stop(how)?)))
}

/// Take all that actors have written away
///
/// One that was mounted is mounted again.
#[derive(Debug, clap::Args)]
pub(crate) struct ResetArgs {
    #[command(flatten)]
    users: Users,
    /// The actors
    #[arg(value_name = "ID", required = true)]
    ids: Vec<Id>,
}

pub(super) fn reset(global: &Global, args: &ResetArgs) -> anyhow::Result<ExitCode> {
    let actors = actors(global)?;
    Ok(each(&args.ids, |id| {
        if actors.get(id)?.reset(args.users.stop())? {
            again(global, id)?;
        }
        Ok(())
    }))
}

/// Remove actors, with what they have written
///
/// An upper directory that was given stays. One that there is not is as good.
#[derive(Debug, clap::Args)]
pub(crate) struct DestroyArgs {
    #[command(flatten)]
    users: Users,
    /// The actors
    #[arg(value_name = "ID", required = true)]
    ids: Vec<Id>,
}

pub(super) fn destroy(global: &Global, args: &DestroyArgs) -> anyhow::Result<ExitCode> {
    let actors = actors(global)?;
    Ok(each(&args.ids, |id| {
        if !actors.destroy(id, args.users.stop())? {
            eprintln!("tarnfs: there is no actor {id}");
        }
        Ok(())
    }))
}
