//! `tarnfs flatten`

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::json;
use tarnfs::flatten::{self, Align, FlattenError, Flattened, Options, Target};
use tarnfs::store::Progress;

use super::progress::Bar;
use super::{Global, image, print};

/// Write an image as one tar
///
/// The tar holds all that a mount of the image shows, and is the same to the byte for the same
/// tree: on any machine, at any time, whether it came as one tar or as layers. Its digest, the
/// diff ID of a layer that it is, is printed. GNU tar unpacks all of it with
/// `--xattrs --xattrs-include='*' --acls --numeric-owner -xpf`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs flatten image.tar -o flat.tar
  tarnfs flatten image.tar | zstd > flat.tar.zst
  tarnfs flatten --align 4096 --json image.tar -o flat.tar | jq -r .digest")]
pub(crate) struct Args {
    /// Write the tar to this file, which is there whole or not at all; - is standard output, where
    /// it goes without this option if that is no terminal
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Begin the data of each file at a multiple of N bytes: a power of two, 512 to 1048576
    #[arg(long, value_name = "N", value_parser = align)]
    align: Option<Align>,
    /// One object: digest, bytes, entries (on standard error if the tar is on standard output)
    #[arg(long)]
    json: bool,
    /// The image: a tar, a name or digest of the store, or where to import it from
    image: PathBuf,
}

pub(super) fn align(text: &str) -> Result<Align, String> {
    let bytes = text.parse().ok();
    bytes
        .and_then(Align::new)
        .ok_or_else(|| "not a power of two from 512 to 1048576".to_owned())
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let output = args.output.as_deref();
    let output = output.filter(|path| *path != Path::new("-") && !is_stdout(path));
    if args.output.is_none() && io::stdout().is_terminal() {
        bail!("standard output is a terminal: name a file with -o FILE");
    }
    let (image, lower) = image::open(global, &args.image)?;
    let options = Options {
        align: args.align.unwrap_or(Align::BLOCK),
        side_blobs: image.side_blobs(),
    };
    let mut bar = Bar::new("flattening");
    let mut progress = |done, total| bar.on(Progress::Indexing { done, total });
    let (name, stream) = match output {
        None => {
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            (
                "standard output".to_owned(),
                File::from(stdout.context("standard output")?),
            )
        }
        Some(path) => match Target::of(path)? {
            Target::File(file) => {
                let made = flatten::write_file(&lower, &options, &file, &mut progress)?;
                drop(bar);
                return print::finish(show(&args, made, &mut io::stdout().lock()));
            }
            Target::Stream(stream) => (path.display().to_string(), stream),
        },
    };
    let made = flatten::write(&lower, &options, &mut { stream }, &mut progress);
    drop(bar);
    let made = made.map_err(|error| match error {
        FlattenError::Write(source) => anyhow::Error::new(source).context(name),
        other => other.into(),
    });
    print::finish(made.and_then(|made| {
        // Standard output may be the very stream.
        if args.json {
            show(&args, made, &mut io::stderr().lock())?;
        }
        Ok(())
    }))
}

/// Whether `path` is what standard output is, as /dev/stdout is: a file behind it that the caller
/// has opened is to be written to and not replaced.
pub(super) fn is_stdout(path: &Path) -> bool {
    let stdout = rustix::fs::fstat(io::stdout());
    let there = rustix::fs::stat(path);
    matches!((stdout, there), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

fn show(args: &Args, made: Flattened, out: &mut dyn Write) -> anyhow::Result<()> {
    if args.json {
        let object = json!({
            "digest": made.digest,
            "bytes": made.len,
            "entries": made.entries,
        });
        serde_json::to_writer_pretty(&mut *out, &object)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", made.digest)?;
    }
    Ok(out.flush()?)
}
