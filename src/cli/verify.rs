//! `tarnfs verify`

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};
use tarnfs::digest::Digest;
use tarnfs::import::Options;
use tarnfs::store::{Checked, ImageJson, Source, Store, UNKNOWN, Verdict};

use super::fetch::Sources;
use super::image;
use super::progress::Bar;
use super::{Global, import, print};

/// Check what is in the store
///
/// Hashes layers and configurations once more, makes the indexes once more and compares. Without
/// IMAGE, all that there is. Fails when something is wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs verify
  tarnfs verify --repair debian:12
  tarnfs verify --json | jq '.[] | select(.problem)'")]
pub(crate) struct Args {
    /// Mend what is wrong: indexes from their layers, layers from where the image came from
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    sources: Sources,
    /// One array of objects: kind, image, layer, problem (null where all is right)
    #[arg(long)]
    json: bool,
    /// Names, digests, or their beginnings
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let store = image::store(global)?;
    let chosen = args
        .images
        .iter()
        .map(|image| store.find(image))
        .collect::<Result<Vec<_>, _>>()?;
    let chosen = (!chosen.is_empty()).then_some(chosen);
    let check = || {
        let mut bar = Bar::new("verifying");
        store.verify(chosen.as_deref(), &mut |p| bar.on(p))
    };
    let mut verdicts = check()?;
    let damaged = |all: &[Verdict]| all.iter().any(|v| v.problem.is_some());
    let mut code = ExitCode::SUCCESS;
    if args.repair && damaged(&verdicts) {
        for verdict in verdicts.iter().filter(|v| v.problem.is_some()) {
            eprintln!("tarnfs: {}", line(verdict));
        }
        if repair(&store, &verdicts, &args.sources)? {
            code = ExitCode::FAILURE;
        }
        verdicts = check()?;
    }
    if damaged(&verdicts) {
        code = ExitCode::FAILURE;
    }
    let mut out = print::out();
    let shown = if args.json {
        let all: Vec<Value> = verdicts.iter().map(object).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)
    } else {
        text(&verdicts, &mut out)
    };
    match print::finish(shown.and_then(|()| out.flush()).map_err(Into::into))? {
        ExitCode::SUCCESS => Ok(code),
        other => Ok(other),
    }
}

fn words(checked: &Checked) -> String {
    match checked {
        Checked::Layer(layer) => format!("layer {layer}"),
        Checked::Index(image) => format!("image {image}: its index"),
        Checked::Record(image) => format!("image {image}"),
        Checked::Needs(image, layer) => format!("image {image}: its layer {layer}"),
    }
}

fn line(verdict: &Verdict) -> String {
    let problem = verdict.problem.as_deref().unwrap_or("is right");
    format!("{} {problem}", words(&verdict.checked))
}

fn text(verdicts: &[Verdict], out: &mut dyn Write) -> std::io::Result<()> {
    let bad = verdicts.iter().filter(|v| v.problem.is_some());
    let mut count = 0;
    for verdict in bad {
        writeln!(out, "{}", line(verdict))?;
        count += 1;
    }
    let of = |what: fn(&Checked) -> bool| verdicts.iter().filter(|v| what(&v.checked)).count();
    let layers = of(|checked| matches!(checked, Checked::Layer(_)));
    let images = of(|checked| matches!(checked, Checked::Record(_)));
    writeln!(out, "{images} images, {layers} layers, {count} faults")
}

fn object(verdict: &Verdict) -> Value {
    let (kind, image, layer) = match verdict.checked {
        Checked::Layer(layer) => ("layer", None, Some(layer)),
        Checked::Index(image) => ("index", Some(image), None),
        Checked::Record(image) => ("record", Some(image), None),
        Checked::Needs(image, layer) => ("needs", Some(image), Some(layer)),
    };
    json!({ "kind": kind, "image": image, "layer": layer, "problem": verdict.problem })
}

/// Mends what can be mended; true where something could not, which is said.
fn repair(store: &Store, verdicts: &[Verdict], sources: &Sources) -> anyhow::Result<bool> {
    let mut anew = BTreeSet::new();
    let (mut indexes, mut records) = (BTreeSet::new(), BTreeSet::new());
    for verdict in verdicts.iter().filter(|v| v.problem.is_some()) {
        match verdict.checked {
            Checked::Layer(layer) => {
                anew.extend(users(store, &layer)?);
                store.discard_layer(&layer)?;
            }
            Checked::Needs(image, layer) => {
                store.discard_layer(&layer)?;
                anew.insert(image);
            }
            Checked::Record(image) => {
                records.insert(image);
            }
            Checked::Index(image) => {
                indexes.insert(image);
            }
        }
    }
    let mut failed = false;
    let mut tell = |image: &Digest, done: anyhow::Result<()>| {
        if let Err(error) = done {
            eprintln!(
                "tarnfs: image {image} stays damaged{}",
                print::causes(&error)
            );
            failed = true;
        }
    };
    for image in &anew {
        tell(image, again(store, image, sources));
    }
    for image in records.difference(&anew) {
        // What the store has may do; what it has not comes again.
        let here = store.rebuild(image);
        tell(
            image,
            here.map(drop).or_else(|_| again(store, image, sources)),
        );
    }
    for image in indexes.difference(&(&anew | &records)) {
        tell(image, store.rebuild(image).map(drop).map_err(Into::into));
    }
    Ok(failed)
}

/// The images that need a layer.
fn users(store: &Store, layer: &Digest) -> anyhow::Result<Vec<Digest>> {
    let needs = |record: &ImageJson| record.layers.iter().any(|l| l.diff_id == *layer);
    Ok(store
        .images()?
        .into_iter()
        .filter(|image| image.record.as_ref().is_some_and(needs))
        .map(|image| image.digest)
        .collect())
}

const NOBODY_KNOWS: &str = "nobody knows where it came from; import it again, or remove it";

/// Imports an image once more from where it came from.
fn again(store: &Store, image: &Digest, sources: &Sources) -> anyhow::Result<()> {
    let record = store.record(image).context(NOBODY_KNOWS)?;
    let from = match &record.source {
        Source::Import { from } => from,
        Source::Made { of, .. } => anyhow::bail!(
            "it was made here, of {of}: import it from where it was exported to, or remove it"
        ),
        Source::Tar { .. } => anyhow::bail!("it is a local tar"),
    };
    if from == UNKNOWN {
        anyhow::bail!(NOBODY_KNOWS);
    }
    if from == "-" {
        anyhow::bail!("it came from standard input; import it again, or remove it");
    }
    let options = Options {
        anew: true,
        ..Options::default()
    };
    let taken = import::take(store, from.as_ref(), sources, &options)
        .with_context(|| format!("importing {from} again"))?;
    match taken.image.record().digest {
        Some(digest) if digest == *image => Ok(()),
        _ => anyhow::bail!("{from} is another image by now"),
    }
}
