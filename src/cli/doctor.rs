//! `tarnfs doctor`

use std::process::ExitCode;

use super::{Global, image};
use tarnfs::actor::probe::{self, State};

/// Tell what this machine and this user can do
///
/// The exit status is 0 unless nothing can be mounted at all.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs doctor
  tarnfs doctor --json | jq '.findings[] | select(.state != \"ok\")'")]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let store = image::store(global)?;
    let (findings, can_mount) = probe::all(store.dir());
    if args.json {
        let all = serde_json::json!({"can_mount": can_mount, "findings": findings});
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        for finding in &findings {
            let state = match finding.state {
                State::Ok => "ok     ",
                State::Limited => "limited",
                State::Missing => "missing",
            };
            println!("{state}  {:<18} {}", finding.name, finding.found);
            println!("{:28} → {}", "", finding.follows);
        }
        let verdict = if can_mount {
            "Images can be mounted."
        } else {
            "Nothing can be mounted here."
        };
        println!("{verdict}");
    }
    Ok(if can_mount {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
