//! `tarnfs import`

use std::ffi::OsString;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::json;
use tarnfs::import::{self, Imported, Options};
use tarnfs::source::Platform;
use tarnfs::store::{ImageName, Store};

use super::fetch::{self, Sources};
use super::image::{self, ImageArg};
use super::mount_options::parse_size;
use super::progress::Bars;
use super::{Global, print};

/// Take an image into the store
///
/// In one pass: fetched, decompressed, checked, written and indexed as it comes. Layers that the
/// store has are not fetched again. Prints the image's digest, by which every command finds it, as
/// by the digests of its manifest and index and by the name given here. The digest is that of the
/// image's configuration, or of the tar where there is none.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs import --name debian:12 docker://debian:12
  tarnfs import oci:./layout:latest
  tarnfs import docker-archive:saved.tar
  docker export c1 | zstd | tarnfs import --name c1 -
  tarnfs mount debian:12 /mnt

SOURCE is image.tar (plain, gzip, zstd or xz), - (such a tar from standard input), oci:DIR[:TAG],
oci-archive:FILE[:TAG], docker-archive:FILE[:REF], dir:DIR (skopeo's), or docker://REF (a registry).
Mounts take an uncompressed image.tar where it is; importing copies it. What SOURCE has been is
asked again each time, and only what is new is fetched; the name of an image of the store stands for
that image, of which nothing is fetched.")]
pub(crate) struct Args {
    /// Keep this name for it
    #[arg(long, value_name = "NAME", value_parser = image::parse_name)]
    name: Option<ImageName>,
    /// Which image of an index, OS/ARCHITECTURE[/VARIANT] [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// How many layers at a time [default: one a CPU, at most 4]
    #[arg(short, long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Fail before more than this is written to the store
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_bytes: Option<u64>,
    #[command(flatten)]
    sources: Sources,
    /// One object: digest, aliases, name, fresh, layers, bytes, seconds
    #[arg(long)]
    json: bool,
    /// Where the image is
    #[arg(value_name = "SOURCE")]
    source: OsString,
}

pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let store = image::store(global)?;
    let mut options = Options::default();
    if let Some(platform) = args.platform.clone() {
        options.platform = platform;
    }
    options.jobs = args.jobs.unwrap_or(options.jobs);
    options.max_bytes = args.max_bytes;
    let imported = take(&store, &args.source, &args.sources, &options)?;
    let image = &imported.image;
    let Some(digest) = image.record().digest else {
        bail!("{}: has no digest", args.source.display());
    };
    if let Some(name) = &args.name {
        store.tag(&digest, name)?;
    }
    let mut out = print::out();
    let shown = if args.json {
        writeln!(out, "{}", report(&args, &imported, start.elapsed())?)
    } else {
        writeln!(out, "{digest}")
    };
    print::finish(shown.and_then(|()| out.flush()).map_err(Into::into))
}

/// Imports what `source` means.
pub(crate) fn take(
    store: &Store,
    source: &std::ffi::OsStr,
    asked: &Sources,
    options: &Options,
) -> anyhow::Result<Imported> {
    if source == "-" {
        let stream = import::Stream {
            input: Box::new(std::io::stdin()),
            len: None,
        };
        let bars = Arc::new(Bars::new());
        return Ok(import::tar(store, stream, "-", options, bars)?);
    }
    // Absolute: where an image came from is noted, and asked again from anywhere.
    match ImageArg::parse(store, source)?.absolute()? {
        ImageArg::Tar(path) => fetch::import_file(store, Path::new(&path), options),
        ImageArg::Elsewhere(location) => fetch::import_location(store, &location, asked, options),
        ImageArg::Nothing(text, why) => bail!("{text}: {why}"),
        ImageArg::Stored(text, digest) => {
            let image = store.image(&digest)?;
            tracing::info!("{text} is in the store");
            Ok(Imported {
                image,
                fresh: false,
                cost: import::Cost::default(),
            })
        }
    }
}

fn report(args: &Args, imported: &Imported, total: Duration) -> anyhow::Result<String> {
    let (record, cost) = (imported.image.record(), &imported.cost);
    let object = json!({
        "digest": record.digest,
        "aliases": record.aliases,
        "name": args.name.as_ref().map(ImageName::as_str),
        "fresh": imported.fresh,
        "layers": { "fetched": cost.layers, "shared": cost.shared },
        "bytes": { "read": cost.read, "written": cost.written, "index": record.index.len },
        "seconds": {
            "total": total.as_secs_f64(),
            "reading": cost.reading.as_secs_f64(),
            "decompressing": cost.decompressing.as_secs_f64(),
            "hashing": cost.hashing.as_secs_f64(),
            "writing": cost.writing.as_secs_f64(),
            "syncing": cost.syncing.as_secs_f64(),
            "indexing": cost.indexing.as_secs_f64(),
        },
    });
    Ok(serde_json::to_string_pretty(&object)?)
}
