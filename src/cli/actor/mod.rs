//! `tarnfs actor`

mod checkpoint;
mod create;
mod list;
mod start;
mod stop;

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use tarnfs::actors::{Actors, Id};

use super::{Global, image, logging};

/// Actors: root filesystems that are started, stopped, reset and brought back
///
/// An actor is an image, a place for what is written, and a mount point, kept in the store under
/// an id. Every call can be repeated, also after a crash, and repairs what that has left.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs actor create --start a1 debian:12            # prints where it is mounted
  tarnfs actor create --bundle ./b a2 debian:12 -- sleep 1000
  tarnfs actor start a2 && runc run -b ./b a2
  tarnfs actor stop a1 a2 && tarnfs actor destroy a1 a2")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Create(Box<create::Args>),
    Start(start::Args),
    Stop(stop::StopArgs),
    Reset(stop::ResetArgs),
    Destroy(stop::DestroyArgs),
    Checkpoint(checkpoint::CheckpointArgs),
    /// Make an actor on a checkpoint, without unpacking it
    ///
    /// As `create`: a checkpoint is an image as any other, also one that comes from another node
    /// (oci:DIR, oci-archive:FILE).
    Restore(Box<create::Args>),
    Fork(checkpoint::ForkArgs),
    Diff(checkpoint::DiffOfArgs),
    Stats(list::StatsArgs),
    List(list::ListArgs),
    Inspect(list::InspectArgs),
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        // They fork before anything is opened, and see to their own log.
        What::Create(args) | What::Restore(args) if args.starts() => create::run(global, &args),
        What::Start(args) => start::run(global, &args),
        What::Fork(args) if args.starts() => checkpoint::fork_and_start(global, &args),
        other => {
            logging::init(global)?;
            match other {
                What::Create(args) | What::Restore(args) => create::run(global, &args),
                What::Stop(args) => stop::stop(global, &args),
                What::Reset(args) => stop::reset(global, &args),
                What::Destroy(args) => stop::destroy(global, &args),
                What::Checkpoint(args) => checkpoint::checkpoint(global, &args),
                What::Fork(args) => checkpoint::fork(global, &args),
                What::Diff(args) => checkpoint::diff(global, &args),
                What::Stats(args) => list::stats(global, &args),
                What::List(args) => list::list(global, &args),
                What::Inspect(args) => list::inspect(global, &args),
                What::Start(args) => start::run(global, &args),
            }
        }
    }
}

fn actors(global: &Global) -> anyhow::Result<Actors> {
    Ok(Actors::of(&image::store(global)?))
}

/// Starts the actor by a process of this program that has opened nothing yet.
fn again(global: &Global, id: &Id) -> anyhow::Result<()> {
    let store = std::path::absolute(image::store(global)?.dir())?;
    let started = Command::new("/proc/self/exe")
        .arg("--store")
        .arg(store)
        .args(["actor", "start", id.as_str()])
        .stdout(Stdio::null())
        .status()
        .context("tarnfs actor start")?;
    if !started.success() {
        bail!("{id}: is there, but could not be mounted");
    }
    Ok(())
}

/// Does something to each of several actors; what fails for one is told, and the others go on.
fn each(ids: &[Id], mut each: impl FnMut(&Id) -> anyhow::Result<()>) -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for id in ids {
        if let Err(error) = each(id) {
            status = super::report(error);
        }
    }
    status
}
