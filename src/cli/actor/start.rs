//! `tarnfs actor start`: the process that serves, and the one that waits until it does.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tarnfs::actors::{Actor, Begun, Id, Start};

use super::actors;
use crate::cli::mount::{Waited, await_ready, start_server, tell_ready};
use crate::cli::{Global, logging};
use tarnfs::sys::process::Forked;

/// Mount an actor's root filesystem, and print where
///
/// One that is mounted already is as good. What a crash has left is cleared first.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The actor
    #[arg(value_name = "ID")]
    id: Id,
    /// Stay in the foreground, as a service manager wants it
    #[arg(short, long)]
    foreground: bool,
}

pub(super) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let get = |global: &Global, _: &mut Begun| Ok(actors(global)?.get(&args.id)?);
    if args.foreground {
        return serve(global, &get, false);
    }
    start(global, &args.id, &get)
}

/// Gives the actor that is to be started, and what was done for that on the way.
type Get<'a> = &'a dyn Fn(&Global, &mut Begun) -> anyhow::Result<Actor>;

/// Has the actor that `get` gives served by a process of its own.
pub(super) fn start(global: &Global, id: &Id, get: Get<'_>) -> anyhow::Result<ExitCode> {
    match start_server()? {
        Forked::Child => serve(global, get, true),
        Forked::Parent(server) => {
            if let Waited::Failed(status) = await_ready(server)? {
                return Ok(status);
            }
            logging::init(global)?;
            let actor = actors(global)?.get(id)?;
            actor.equip().with_context(|| {
                format!("actor {id} is mounted, but its bundle is not complete")
            })?;
            print_point(&actor)
        }
    }
}

fn print_point(actor: &Actor) -> anyhow::Result<ExitCode> {
    let mut line = actor.point().as_os_str().as_bytes().to_vec();
    line.push(b'\n');
    std::io::stdout()
        .write_all(&line)
        .context("standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// In the process that is to serve.
fn serve(global: &Global, get: Get<'_>, in_background: bool) -> anyhow::Result<ExitCode> {
    let mut begun = Begun::default();
    let mut global = global.clone();
    if let Some(file) = &mut global.log_file {
        *file = std::path::absolute(&*file).unwrap_or_else(|_| PathBuf::from(&*file));
    }
    // Its standard error goes when it is ready.
    let actor = if in_background && global.log_file.is_none() {
        let log = logging::init_of_server(&global)?;
        let actor = get(&global, &mut begun)?;
        log.found(&actor.log())?;
        actor
    } else {
        logging::init(&global)?;
        get(&global, &mut begun)?
    };
    let made = begun.image.is_some();
    let started = actor.start(begun).map_err(anyhow::Error::from);
    let started = match made {
        true => started.with_context(|| format!("actor {} is there, but not mounted", actor.id())),
        false => started,
    };
    let serving = match started? {
        Start::Ready(serving) => serving,
        Start::Already => {
            if in_background {
                tell_ready().context("telling that it is mounted")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    logging::panics_to_log();
    tracing::info!(actor = %actor.id(), point = %actor.point().display(), "mounted");
    if in_background && let Err(error) = tell_ready() {
        // Who asked for it is gone, or will never know of it.
        serving.cancel()?;
        return Err(error).context("telling that it is mounted");
    }
    serving.serve()?;
    tracing::info!(actor = %actor.id(), "unmounted");
    Ok(ExitCode::SUCCESS)
}
