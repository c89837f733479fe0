//! `tarnfs actor`

mod create;
mod list;
mod start;
mod stop;

use std::process::ExitCode;

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
    List(list::ListArgs),
    Inspect(list::InspectArgs),
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    match args.what {
        // They fork before anything is opened, and see to their own log.
        What::Create(args) if args.starts() => create::run(global, &args),
        What::Start(args) => start::run(global, &args),
        other => {
            logging::init(global)?;
            match other {
                What::Create(args) => create::run(global, &args),
                What::Stop(args) => stop::stop(global, &args),
                What::Reset(args) => stop::reset(global, &args),
                What::Destroy(args) => stop::destroy(global, &args),
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
