//! `tarnfs actor checkpoint`, `fork`, `diff`

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::json;
use tarnfs::actors::{Actor, Asked, Checkpoint, Id};
use tarnfs::diff::Pattern;
use tarnfs::mount::{Rights, rights};
use tarnfs::store::ImageName;
use tarnfs::sys::process::{self, Forked, Running};

use super::{actors, again};
use crate::cli::diff::{DiffArgs, pattern};
use crate::cli::progress::Bar;
use crate::cli::{Global, image, logging, print};

/// Keep what an actor has written as an image, and print its digest
///
/// The image has what was written as one more layer. An actor that is mounted goes on; its writes
/// wait while its files are listed and the small ones are copied, so that it holds one moment.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs actor checkpoint --name a1-before a1
  tarnfs actor restore --start a2 a1-before
  tarnfs export a1-before oci-archive:a1.tar      # for another node")]
pub(crate) struct CheckpointArgs {
    #[command(flatten)]
    what: WhatArgs,
    /// Keep this name for the image
    #[arg(long, value_name = "NAME", value_parser = image::parse_name)]
    name: Option<ImageName>,
    /// Print one object: digest, layer, bytes, entries, whiteouts, sockets, seconds in which writes
    /// were held back
    #[arg(long)]
    json: bool,
    /// The actor
    #[arg(value_name = "ID")]
    id: Id,
}

/// What of an actor goes into a checkpoint.
#[derive(Debug, clap::Args)]
struct WhatArgs {
    /// Leave out what has this path inside, and all below it: what a runtime made. * stands for any
    /// bytes of a name, ** for any number of names; may be given again
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    exclude: Vec<Pattern>,
    /// Say this in the history of the image
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
}

impl WhatArgs {
    fn take(&self, actor: &Actor) -> anyhow::Result<Checkpoint> {
        refuse_own(actor, None)?;
        let mut bar = Bar::new("writing changes");
        let mut waits = Bar::new("checkpoint");
        let made = actor.checkpoint(Asked {
            exclude: self.exclude.clone(),
            comment: self.comment.clone(),
            progress: &mut |done| bar.on_bytes(done),
            store: &mut |p| waits.on(p),
            watch: Arc::new(()),
        })?;
        drop((bar, waits));
        let sockets = made.value.value.sockets;
        if sockets > 0 {
            tracing::warn!(
                "{}: {sockets} sockets are left out: no layer can hold one",
                actor.id()
            );
        }
        Ok(made)
    }
}

/// An ordinary user's actor has files that are closed to their owner, as its server let it have
/// them. To be called while there is one thread.
fn rights() -> anyhow::Result<Option<Rights>> {
    Ok(rights::needed().then(Rights::acquire).transpose()?)
}

/// Refuses where this process would write to what it has held back: `output`, or what it was given.
fn refuse_own(actor: &Actor, output: Option<File>) -> anyhow::Result<()> {
    let (out, said) = (io::stdout(), io::stderr());
    let output = output.as_ref().map(File::as_fd);
    Ok(actor.refuse_own([out.as_fd(), said.as_fd()].into_iter().chain(output))?)
}

pub(super) fn checkpoint(global: &Global, args: &CheckpointArgs) -> anyhow::Result<ExitCode> {
    let _rights = rights()?;
    let actors = actors(global)?;
    let made = args.what.take(&actors.get(&args.id)?)?;
    let stacked = &made.value;
    if let Some(name) = &args.name {
        actors.store().tag(&stacked.digest, name)?;
    }
    let mut out = print::out();
    let shown = if args.json {
        let written = stacked.value;
        let object = json!({
            "digest": stacked.digest,
            "layer": stacked.layer,
            "bytes": written.len,
            "entries": written.entries,
            "whiteouts": written.whiteouts,
            "sockets": written.sockets,
            "frozen_seconds": made.frozen.map(|time| time.as_secs_f64()),
        });
        serde_json::to_writer_pretty(&mut out, &object)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        writeln!(out, "{}", stacked.digest)
    };
    print::finish(shown.and_then(|()| out.flush()).map_err(Into::into))
}

/// Make actors that go on from where another is, and print the checkpoint's digest
///
/// Those that are forks of it already stay as they are, and the others become of the same state: a
/// call that was broken off can be made again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs actor fork --start a1 b1 b2 b3")]
pub(crate) struct ForkArgs {
    #[command(flatten)]
    what: WhatArgs,
    /// Mount them, too
    #[arg(long)]
    start: bool,
    /// The actor
    #[arg(value_name = "ID")]
    id: Id,
    /// The new ones
    #[arg(value_name = "NEW", required = true)]
    new: Vec<Id>,
}

impl ForkArgs {
    /// Whether they are to be mounted at once.
    pub(super) fn starts(&self) -> bool {
        self.start
    }
}

pub(super) fn fork(global: &Global, args: &ForkArgs) -> anyhow::Result<ExitCode> {
    let _rights = rights()?;
    let actors = actors(global)?;
    let of = actors.get(&args.id)?;
    // A call that was broken off is gone on with: all are of one state.
    let digest = match actors.forked(&of, &args.new)? {
        Some(digest) => digest,
        None => args.what.take(&of)?.value.digest,
    };
    actors.fork(&of, digest, &args.new)?;
    let mut out = print::out();
    let shown = writeln!(out, "{digest}").and_then(|()| out.flush());
    print::finish(shown.map_err(Into::into))
}

/// The forks are made by a process of its own: who has the rights to read an ordinary user's closed
/// files cannot mount any more.
pub(super) fn fork_and_start(global: &Global, args: &ForkArgs) -> anyhow::Result<ExitCode> {
    let Running { output, child } = match process::fork().context("starting the fork")? {
        Forked::Child => {
            logging::init(global)?;
            return fork(global, args);
        }
        Forked::Parent(running) => running,
    };
    let mut digest = Vec::new();
    File::from(output)
        .read_to_end(&mut digest)
        .context("waiting for the fork")?;
    let killed = child.wait().context("waiting for the fork")?;
    logging::init(global)?;
    match killed {
        Some(signal) => bail!("the fork was ended by signal {signal}; make the same call again"),
        // It has said why.
        None if digest.is_empty() => return Ok(ExitCode::FAILURE),
        None => {}
    }
    for id in &args.new {
        again(global, id)?;
    }
    let mut out = print::out();
    let shown = out.write_all(&digest).and_then(|()| out.flush());
    print::finish(shown.map_err(Into::into))
}

/// Write what an actor has written as a tar
///
/// In one pass from where it lies. The writes of an actor that is mounted wait for a moment.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs actor diff a1 -o layer.tar
  tarnfs actor diff --size a1
  tarnfs actor diff --format gvisor --exclude '/run/**' a1 -o upper.tar")]
pub(crate) struct DiffOfArgs {
    #[command(flatten)]
    diff: DiffArgs,
    /// The actor
    #[arg(value_name = "ID")]
    id: Id,
}

pub(super) fn diff(global: &Global, args: &DiffOfArgs) -> anyhow::Result<ExitCode> {
    args.diff.check_terminal()?;
    let _rights = rights()?;
    let actor = actors(global)?.get(&args.id)?;
    refuse_own(&actor, args.diff.place()?)?;
    let options = args.diff.options(&actor.image()?, None);
    let took = actor.with_changes(options, |changes| args.diff.write(changes))?;
    Ok(took.value)
}
