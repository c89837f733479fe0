//! `tarnfs actor list`, `inspect`

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde::Serialize;
use tarnfs::actors::{Actor, Id, ImageRef, Listed, Record, Seen, ServerRecord, State, UpperKind};

use super::actors;
use crate::cli::stats::{Form, show};
use crate::cli::{Global, print};

/// List actors
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// As JSON, an array of what `inspect` prints
    #[arg(long)]
    json: bool,
    /// Ids alone
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

/// Show what an actor's server has done
#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    form: Form,
    /// The actor
    #[arg(value_name = "ID")]
    id: Id,
}

pub(super) fn stats(global: &Global, args: &StatsArgs) -> anyhow::Result<ExitCode> {
    let actor = actors(global)?.get(&args.id)?;
    match actor.look()?.state {
        State::Mounted | State::Detached => show(&actor.control(), args.form),
        other => bail!(
            "actor {}: has no server: it is {}",
            actor.id(),
            other.word()
        ),
    }
}

/// Show all that is known of an actor, as JSON
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The actor
    #[arg(value_name = "ID")]
    id: Id,
}

/// What is told of an actor.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Told {
    Whole(Box<Whole>),
    Damaged {
        id: Id,
        state: &'static str,
        why: String,
    },
}

#[derive(Debug, Serialize)]
struct Whole {
    #[serde(flatten)]
    record: Record,
    state: &'static str,
    mount: std::path::PathBuf,
    upper_dir: std::path::PathBuf,
    work_dir: std::path::PathBuf,
    log: std::path::PathBuf,
    control: std::path::PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<ServerRecord>,
}

impl Told {
    fn of(listed: Listed) -> Self {
        match listed.found {
            Ok((actor, seen)) => Self::whole(&actor, seen),
            Err(error) => Self::Damaged {
                id: listed.id,
                state: "damaged",
                why: error.to_string(),
            },
        }
    }

    fn whole(actor: &Actor, seen: Seen) -> Self {
        let (upper_dir, work_dir) = actor.writes();
        Self::Whole(Box::new(Whole {
            record: actor.record().clone(),
            state: seen.state.word(),
            mount: actor.point(),
            upper_dir,
            work_dir,
            log: actor.log(),
            control: actor.control(),
            server: seen.server,
        }))
    }
}

pub(super) fn list(global: &Global, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let all = actors(global)?.list()?;
    let mut out = print::out();
    let shown = if args.json {
        let told: Vec<Told> = all.into_iter().map(Told::of).collect();
        object(&mut out, &told)
    } else if args.quiet {
        all.iter()
            .try_for_each(|listed| writeln!(out, "{}", listed.id))
    } else {
        table(&mut out, &all)
    };
    print::finish(shown.and_then(|()| out.flush()).context("standard output"))
}

fn object(out: &mut impl Write, told: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, told)?;
    writeln!(out)
}

fn table(out: &mut impl Write, all: &[Listed]) -> std::io::Result<()> {
    let width = all.iter().map(|l| l.id.as_str().len()).max().unwrap_or(0);
    let width = width.max(2);
    writeln!(
        out,
        "{:width$}  {:8}  {:12}  {:6}  MOUNT",
        "ID", "STATE", "IMAGE", "UPPER"
    )?;
    for listed in all {
        match &listed.found {
            Ok((actor, seen)) => {
                let make = &actor.record().make;
                let image = match &make.image {
                    ImageRef::Stored(digest) => digest.hex().chars().take(12).collect(),
                    ImageRef::Tar(_) => "(tar)".to_owned(),
                };
                let upper = match make.upper {
                    UpperKind::Disk => "disk",
                    UpperKind::Tmpfs => "tmpfs",
                    UpperKind::Dir { .. } => "dir",
                };
                let point = print::escape(actor.point().as_os_str().as_encoded_bytes());
                let (id, state) = (&listed.id, seen.state.word());
                writeln!(
                    out,
                    "{id:width$}  {state:8}  {image:12}  {upper:6}  {point}"
                )?;
            }
            Err(error) => {
                let id = &listed.id;
                writeln!(out, "{id:width$}  damaged   {error}")?;
            }
        }
    }
    Ok(())
}

pub(super) fn inspect(global: &Global, args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let actor = actors(global)?.get(&args.id)?;
    let seen = actor.look()?;
    let mut out = print::out();
    let shown = object(&mut out, &Told::whole(&actor, seen)).and_then(|()| out.flush());
    print::finish(shown.context("standard output"))
}
