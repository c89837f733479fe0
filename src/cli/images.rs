//! `tarnfs images`, `tarnfs tag`, `tarnfs rm`

use std::io::Write;
use std::process::ExitCode;

use indicatif::HumanBytes;
use serde_json::{Value, json};
use tarnfs::store::{ImageName, Listed, StoreError};
use tarnfs::sys::clock::since_epoch;

use super::{Global, image, print};

/// List the images of the store
///
/// The one used last comes first. OWN is what removing the image would free: layers that other
/// images share stay.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs images
  tarnfs images --json | jq -r '.[] | select(.names == []) | .digest'")]
pub(crate) struct ListArgs {
    /// One array of objects: digest, names, aliases, from, layers, entries, created, used, bytes,
    /// own_bytes, readable
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Digests alone, one a line
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn list(global: &Global, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let images = image::store(global)?.images()?;
    let mut out = print::out();
    let shown = if args.json {
        let all: Vec<Value> = images.iter().map(object).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)
    } else if args.quiet {
        images
            .iter()
            .try_for_each(|image| writeln!(out, "{}", image.digest))
    } else {
        table(&images, &mut out)
    };
    print::finish(shown.and_then(|()| out.flush()).map_err(Into::into))
}

/// How many digits of a digest are shown to people: enough to give it back.
const DIGITS: usize = 12;

fn table(images: &[Listed], out: &mut dyn Write) -> std::io::Result<()> {
    let width = images
        .iter()
        .flat_map(|image| &image.names)
        .map(|name| name.as_str().len())
        .max()
        .unwrap_or(0)
        .max(4);
    writeln!(
        out,
        "{:width$}  {:DIGITS$}  {:>6}  {:>11}  {:>11}  USED",
        "NAME", "DIGEST", "LAYERS", "SIZE", "OWN"
    )?;
    for image in images {
        let mut hex = image.digest.hex();
        hex.truncate(DIGITS);
        let layers = image
            .record
            .as_ref()
            .map_or_else(|| "?".to_owned(), |record| record.layers.len().to_string());
        let (size, own) = (HumanBytes(image.bytes), HumanBytes(image.own_bytes));
        let names: Vec<&str> = image.names.iter().map(ImageName::as_str).collect();
        let first = names.first().copied().unwrap_or("-");
        writeln!(
            out,
            "{first:width$}  {hex}  {layers:>6}  {:>11}  {:>11}  {}",
            size.to_string(),
            own.to_string(),
            ago(image.used.as_secs())
        )?;
        for name in names.iter().skip(1) {
            writeln!(out, "{name}")?;
        }
    }
    Ok(())
}

/// A time of the past, in words.
fn ago(seconds: u64) -> String {
    match since_epoch().as_secs().saturating_sub(seconds) {
        0..60 => "now".to_owned(),
        s @ 60..7200 => format!("{} minutes ago", s / 60),
        s @ 7200..172_800 => format!("{} hours ago", s / 3600),
        s => format!("{} days ago", s / 86_400),
    }
}

fn object(image: &Listed) -> Value {
    let record = image.record.as_ref();
    let from = record.and_then(|record| record.source.told());
    json!({
        "digest": image.digest,
        "names": image.names.iter().map(ImageName::as_str).collect::<Vec<_>>(),
        "aliases": record.map(|r| &r.aliases),
        "from": from,
        "layers": record.map(|r| &r.layers),
        "entries": record.map(|r| r.counts.entries),
        "created": record.map(|r| r.created),
        "used": image.used.as_secs(),
        "bytes": image.bytes,
        "own_bytes": image.own_bytes,
        "readable": record.is_some(),
    })
}

/// Give an image another name
///
/// A name is of one image: whoever had it before has it no longer.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs tag debian:12 base
  tarnfs tag sha256:5f70bf18a086 old")]
pub(crate) struct TagArgs {
    /// The image: a name, a digest, or the beginning of one
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The name
    #[arg(value_name = "NAME", value_parser = image::parse_name)]
    name: ImageName,
}

pub(crate) fn tag(global: &Global, args: &TagArgs) -> anyhow::Result<ExitCode> {
    let store = image::store(global)?;
    let digest = store.find(&args.image)?;
    store.tag(&digest, &args.name)?;
    Ok(ExitCode::SUCCESS)
}

/// Remove images
///
/// By one of several names, only the name goes. Layers go when no image needs them. What a mount or
/// a bundle uses stays, and is an error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs rm debian:12
  tarnfs rm --ignore $(tarnfs images -q)")]
pub(crate) struct RmArgs {
    /// What is not there is no error
    #[arg(long)]
    ignore: bool,
    /// Names, digests, or their beginnings
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

pub(crate) fn rm(global: &Global, args: &RmArgs) -> anyhow::Result<ExitCode> {
    let store = image::store(global)?;
    let mut code = ExitCode::SUCCESS;
    for image in &args.images {
        match store.remove(image) {
            Ok(removed) => {
                tracing::info!(%image, bytes = removed.bytes, "removed");
            }
            Err(StoreError::NoImage { .. }) if args.ignore => {}
            Err(error) => {
                eprintln!("tarnfs{}", print::causes(&error.into()));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
