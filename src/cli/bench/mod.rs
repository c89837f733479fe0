//! `tarnfs bench`: the same works, on the same image, with tarnfs and with what people use instead.
//!
//! Each work is done by every contender once a round, in an order that changes from round to round,
//! each time on a fresh mount with an upper of its own. What is shown first is the median of the
//! ratios within a round. What a contender cannot do, or does wrong, is shown as that.
//!
//! All of it happens in a process apart ([`apart`]) and a scratch directory of its own. Never here:
//! a figure that is left out, a mount that outlives its guard or the program.

mod apart;
mod child;
mod contenders;
mod environment;
mod facts;
mod growth;
mod image;
mod lab;
mod random;
mod report;
mod run;
mod scratch;
mod slot;
mod stats;
mod teller;
mod works;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tarnfs::sys::mount;

use super::{Global, print};
use apart::Side;
use contenders::{BASELINE, Contender, How, OURS};
use lab::{Lab, Sizes};
use report::{ContenderReport, ImageReport, Report, WorkReport, html, table};
use scratch::Scratch;
use teller::Teller;
use works::{Group, Work};

/// Compare tarnfs with overlayfs, EROFS and fuse-overlayfs on this machine
///
/// Every contender does the same works on the same image, in turns. Ratios to kernel overlayfs on
/// an extracted tree come first: the median over the rounds, each against the baseline of the same
/// round. Needs root; makes everything in a scratch directory, in namespaces of its own, and leaves
/// nothing; killed, it leaves the scratch directory, which the next run removes. Works that need empty caches empty those of the whole machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs bench --list                                # works and contenders
  tarnfs bench                                       # all, on an image that is made for it
  tarnfs bench debian.tar --html report.html
  tarnfs bench --only start,read --against erofs     # groups of works; overlayfs always takes part
  tarnfs bench --only find --rounds 15 --json -
  tarnfs bench --quick                               # whether it works, not how fast")]
pub(crate) struct Args {
    /// The image: a tar [default: one is made, of 10,000 small files and some large ones]
    #[arg(value_name = "IMAGE")]
    image: Option<PathBuf>,
    /// Who takes part beside tarnfs and overlayfs [default: all that can]
    #[arg(long, value_name = "CONTENDER,…", value_delimiter = ',')]
    against: Option<Vec<String>>,
    /// What is done: works, groups of works, or beginnings of their names [default: all but extras]
    #[arg(long, value_name = "WORK,…", value_delimiter = ',')]
    only: Option<Vec<String>>,
    /// The extras too
    #[arg(long, conflicts_with = "only")]
    extra: bool,
    /// How often each work is done [default: 7; with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Be done after about so many minutes, with fewer rounds if need be; one there is always
    #[arg(long, value_name = "MINUTES", value_parser = minutes)]
    minutes: Option<Duration>,
    /// Also measure how times grow with the size of images and directories (--only growth: nothing
    /// else)
    #[arg(long)]
    growth: bool,
    /// Little data and few rounds
    #[arg(long)]
    quick: bool,
    /// The scratch directory's place; a filesystem that can be an upper, with room for the image,
    /// its tree and 2 GB
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// The program of the image that is run after a restore, with its arguments [default: node, sh,
    /// busybox or true, the first one that it has]
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    /// Write everything as JSON, all samples included; - is standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report to look at in a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// List works and contenders
    #[arg(long)]
    list: bool,
}

/// Minutes, as a number with or without a point.
fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let seconds = Duration::try_from_secs_f64(minutes * 60.0).map_err(|error| error.to_string())?;
    // More has no end, and no moment that a clock could show.
    Ok(seconds.min(Duration::from_secs(365 * 24 * 3600)))
}

/// The word of `--only` for growth.
const GROWTH: &str = "growth";

/// What is to be done.
struct Plan {
    works: Vec<&'static Work>,
    contenders: Vec<&'static Contender>,
    /// Whether these were named by `--against`.
    named: bool,
    growth: bool,
    rounds: usize,
    sizes: Sizes,
}

impl Plan {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let mut growth = args.growth;
        let mut works: Vec<&'static Work> = Vec::new();
        for word in args.only.iter().flatten() {
            let meant = works::named(word);
            if word == GROWTH {
                growth = true;
            } else if meant.is_empty() {
                bail!("--only: there is no work \"{word}\" (see tarnfs bench --list)");
            }
            works.extend(meant);
        }
        if args.only.is_none() {
            works.extend(works::ALL.iter().filter(|work| args.extra || !work.extra));
        }
        // In the table's order, each once.
        let wanted = |work: &&Work| works.iter().any(|w| w.name == work.name);
        let works: Vec<_> = works::ALL.iter().filter(wanted).collect();
        let mut names: Vec<&str> = vec![OURS, BASELINE];
        match &args.against {
            Some(words) => {
                for word in words {
                    if contenders::named(word).is_none() {
                        bail!("--against: there is no \"{word}\" (see tarnfs bench --list)");
                    }
                    names.push(word);
                }
                // It is what others are compared with there.
                if works.iter().any(|work| work.baseline == "untar") {
                    names.push("untar");
                }
            }
            None => names.extend(contenders::ALL.iter().map(|c| c.name)),
        }
        let all = contenders::ALL.iter();
        let contenders = all.filter(|c| names.contains(&c.name)).collect();
        let (sizes, rounds) = if args.quick {
            (Sizes::quick(), 3)
        } else {
            (Sizes::full(), 7)
        };
        Ok(Self {
            works,
            contenders,
            named: args.against.is_some(),
            growth,
            rounds: args.rounds.map_or(rounds, usize::from),
            sizes,
        })
    }
}

pub(crate) fn run(_global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    if args.list {
        return print::finish(list());
    }
    let plan = Plan::new(&args)?;
    if !rustix::process::geteuid().is_root() {
        bail!("bench needs root: it mounts overlayfs and empties the caches");
    }
    if let Some(image) = &args.image {
        // Before anything is made.
        std::fs::File::open(image).with_context(|| image.display().to_string())?;
    }
    if let Side::Outside(code) = apart::enter()? {
        return Ok(code);
    }
    let report = match measure(&args, &plan) {
        Err(error) if error.is::<child::Interrupted>() => {
            eprintln!("tarnfs{}", print::causes(&error));
            return Ok(ExitCode::from(130));
        }
        report => report?,
    };
    write(&args, &report)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &Args, plan: &Plan) -> anyhow::Result<Report> {
    let began = Instant::now();
    let teller = Teller::new(began, plan.rounds);
    let tell = |what: &str| teller.say(what);
    let dir = Scratch::new(&args.dir)?;
    let lab = Lab::new(
        dir,
        args.image.as_deref(),
        plan.sizes,
        args.command.as_deref(),
        &tell,
    )?;
    let mut environment = environment::Environment::new(lab.path(), &lab.sources.tar);
    if !lab.has_new_disks() {
        environment.warnings.push(
            "no mount has a filesystem of its own (mkfs.ext4, loop devices): works that make files              show what others have removed before them"
                .to_owned(),
        );
    }
    lab.extract(&plan.contenders, &tell)?;
    let (taking_part, contenders) = take_part(&lab, plan, &tell)?;
    let preparation = began.elapsed();
    let course = run::Course {
        lab: &lab,
        works: &plan.works,
        contenders: &taking_part,
        named: plan.named,
        rounds: plan.rounds,
        until: args.minutes.map(|minutes| began + minutes),
    };
    let works = course.run(&|progress| teller.course(progress))?;
    let growth = if plan.growth {
        growth::all(&lab, &taking_part, plan.rounds, &tell)?
    } else {
        Vec::new()
    };
    teller.finish();
    environment.ended();
    Ok(Report {
        schema: report::SCHEMA,
        command: command_line(),
        environment,
        image: image_report(args, &lab)?,
        rounds: plan.rounds,
        seconds: began.elapsed().as_secs_f64(),
        preparation_seconds: preparation.as_secs_f64(),
        quick: args.quick,
        sizes: plan.sizes,
        contenders,
        not_measured: not_measured(plan, &works),
        works,
        growth,
    })
}

/// Tries everybody out: who can take part, and what the report says of each.
fn take_part(
    lab: &Lab,
    plan: &Plan,
    tell: &dyn Fn(&str),
) -> anyhow::Result<(Vec<&'static Contender>, Vec<ContenderReport>)> {
    let mut taking_part = Vec::new();
    let mut reports = Vec::new();
    for &contender in &plan.contenders {
        child::check_interrupt()?;
        tell(&format!("trying {}", contender.name));
        let report = match try_out(lab, contender) {
            Err(error) if error.is::<child::Interrupted>() => return Err(error),
            tried => contender_report(contender, tried),
        };
        if report.missing.is_none() {
            taking_part.push(contender);
        }
        reports.push(report);
    }
    Ok((taking_part, reports))
}

/// Mounts once: whether it can be done here at all, and with which options.
fn try_out(lab: &Lab, contender: &Contender) -> anyhow::Result<Option<String>> {
    if let How::Tarnfs { needs, .. } = contender.how {
        let mut help = Command::new(contenders::SELF);
        let help = child::output(help.args(["mount", "--help"]))?;
        if let Some(word) = needs.iter().find(|word| !help.contains(**word)) {
            bail!("this tarnfs has no \"{word}\"");
        }
    }
    if contender.how == How::Untar {
        return Ok(None);
    }
    let slot = lab.slot()?;
    let mount = slot.mount(contender, &lab.sources)?;
    let shown = mount::mounts()?
        .into_iter()
        .rev()
        .find(|shown| shown.path == mount.root())
        .map(|shown| {
            format!(
                "{} {},{}",
                shown.fs_type, shown.options, shown.super_options
            )
        });
    mount.finish()?;
    // The scratch directory's name says nothing to anybody.
    let scratch = lab.path().to_string_lossy().into_owned();
    Ok(shown.map(|text| text.replace(&scratch, "…")))
}

fn contender_report(
    contender: &Contender,
    tried: anyhow::Result<Option<String>>,
) -> ContenderReport {
    let mount_arguments = match contender.how {
        How::Tarnfs { args, .. } => args.to_vec(),
        _ => Vec::new(),
    };
    let (options, missing) = match tried {
        Ok(options) => (options, None),
        Err(error) => {
            let causes = print::causes(&error);
            (None, Some(causes.trim_start_matches(": ").to_owned()))
        }
    };
    ContenderReport {
        name: contender.name,
        what: contender.what,
        mount_arguments,
        options,
        missing,
    }
}

fn image_report(args: &Args, lab: &Lab) -> anyhow::Result<ImageReport> {
    let name = match &args.image {
        Some(tar) => tar
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        None => "an image made for it".to_owned(),
    };
    let facts = &lab.facts;
    Ok(ImageReport {
        name,
        tar_bytes: std::fs::metadata(&lab.sources.tar)?.len(),
        entries: facts.entries,
        file_bytes: facts.file_bytes,
        small_files: facts.small.len(),
        big_file_bytes: lab.large.big_len,
        command: facts.command.clone(),
    })
}

/// What the command line has left out, or nobody can measure yet.
fn not_measured(plan: &Plan, done: &[WorkReport]) -> Vec<String> {
    let mut all = Vec::new();
    let left_out: Vec<_> = works::ALL
        .iter()
        .map(|work| work.name)
        .filter(|name| !plan.works.iter().any(|work| work.name == *name))
        .collect();
    if !left_out.is_empty() {
        let left_out = left_out.join(", ");
        all.push(format!("works, with --only or --extra: {left_out}"));
    }
    let few: Vec<_> = done
        .iter()
        .filter(|work| work.rounds() < plan.rounds)
        .map(|work| format!("{} ({})", work.name, work.rounds()))
        .collect();
    if !few.is_empty() {
        let few = few.join(", ");
        all.push(format!("all rounds, for want of time: {few}"));
    }
    for contender in plan.contenders.iter().filter(|c| c.how != How::Untar) {
        let absent =
            |work: &&WorkReport| !work.results.iter().any(|r| r.contender == contender.name);
        let absent: Vec<_> = done.iter().filter(absent).map(|w| w.name).collect();
        if !absent.is_empty() {
            all.push(format!("{}: {}", contender.name, absent.join(", ")));
        }
    }
    let left_out: Vec<_> = contenders::ALL
        .iter()
        .map(|contender| contender.name)
        .filter(|name| !plan.contenders.iter().any(|c| c.name == *name))
        .collect();
    if !left_out.is_empty() {
        all.push(format!("left out by --against: {}", left_out.join(", ")));
    }
    if plan.growth {
        all.push("images of several blobs: this version has one a tar".to_owned());
    } else {
        all.push("growth: add --growth".to_owned());
    }
    all
}

/// The command line as a shell takes it.
fn command_line() -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    let words = std::env::args().skip(1).map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    std::iter::once("tarnfs".to_owned())
        .chain(words)
        .collect::<Vec<_>>()
        .join(" ")
}

fn list() -> anyhow::Result<()> {
    let mut out = print::out();
    writeln!(out, "Contenders (--against):")?;
    for contender in &contenders::ALL {
        writeln!(out, "  {:<18} {}", contender.name, contender.what)?;
    }
    for group in Group::ALL {
        writeln!(out, "\n{} (--only {}):", group.title(), group.name())?;
        for work in works::ALL.iter().filter(|work| work.group == group) {
            let extra = if work.extra { " (extra)" } else { "" };
            writeln!(out, "  {:<18} {}{extra}", work.name, work.what)?;
        }
    }
    writeln!(
        out,
        "\nGrowth (--only {GROWTH}): indexing, mounting and looking up, by size"
    )?;
    out.flush()?;
    Ok(())
}

fn write(args: &Args, report: &Report) -> anyhow::Result<()> {
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(report)? + "\n";
        if to_stdout {
            print::finish(print::out().write_all(json.as_bytes()).map_err(Into::into))?;
        } else {
            std::fs::write(path, json).with_context(|| path.display().to_string())?;
        }
    }
    if let Some(path) = &args.html {
        std::fs::write(path, html::page(report)?).with_context(|| path.display().to_string())?;
    }
    if !to_stdout {
        let text = table::text(report)?;
        print::finish(print::out().write_all(text.as_bytes()).map_err(Into::into))?;
    }
    Ok(())
}
