//! `tarnfs index`

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use indicatif::HumanBytes;
use serde_json::Map;
use tarnfs::store::{Counts, write_index};

use super::progress::Bar;
use super::{Global, image, print};

/// Build the index of a tar
///
/// Reads the headers of the tar, never the files in it. Other commands do this by themselves when
/// they meet a tar for the first time; the index stays in the store for as long as the tar stays
/// as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs index image.tar
  tarnfs index -o image.erofs image.tar
  tarnfs --store /srv/images index --json image.tar | jq .index

The index is an EROFS image whose device is the tar. As root, on Linux 6.12 or later, fsmount(2)
mounts it without tarnfs: type erofs, source the index, device= the tar.")]
pub(crate) struct Args {
    /// Write the index to this file, not to the store (and sparse files that the tar's blocks
    /// cannot serve to INDEX.side)
    #[arg(short, long, value_name = "INDEX")]
    output: Option<PathBuf>,
    /// One object
    #[arg(long)]
    json: bool,
    /// The tar
    tar: PathBuf,
}

struct Report<'a> {
    index: &'a Path,
    side: Option<&'a Path>,
    index_len: u64,
    counts: Counts,
    fresh: bool,
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    if let Some(index) = &args.output {
        let mut bar = Bar::new("indexing");
        let built = write_index(&args.tar, index, &mut |p| bar.on(p))?;
        drop(bar);
        return show(
            &args,
            start,
            &Report {
                index: &built.index,
                side: built.side.as_deref(),
                index_len: built.index_len,
                counts: built.counts,
                fresh: true,
            },
        );
    }
    let image = image::image(global, &args.tar)?;
    let side = image.blobs().get(1).map(|blob| blob.path.clone());
    show(
        &args,
        start,
        &Report {
            index: &image.index_path(),
            side: side.as_deref(),
            index_len: image.record().index.len,
            counts: image.record().counts,
            fresh: image.is_fresh(),
        },
    )
}

fn show(args: &Args, start: Instant, report: &Report<'_>) -> anyhow::Result<ExitCode> {
    let seconds = start.elapsed().as_secs_f64();
    let mut out = print::out();
    let counts = report.counts;
    let shown = if args.json {
        let mut object = Map::new();
        print::put_bytes(&mut object, "tar", args.tar.as_os_str().as_bytes());
        print::put_bytes(&mut object, "index", report.index.as_os_str().as_bytes());
        if let Some(side) = report.side {
            print::put_bytes(&mut object, "side", side.as_os_str().as_bytes());
        }
        object.insert("index_bytes".into(), report.index_len.into());
        object.insert("entries".into(), counts.entries.into());
        object.insert("inodes".into(), counts.inodes.into());
        object.insert("file_bytes".into(), counts.file_bytes.into());
        object.insert("built".into(), report.fresh.into());
        object.insert("seconds".into(), seconds.into());
        writeln!(out, "{}", serde_json::to_string_pretty(&object)?)
    } else {
        let path = print::escape(report.index.as_os_str().as_bytes());
        let how = if report.fresh {
            "indexed in"
        } else {
            "was in the store; found in"
        };
        writeln!(
            out,
            "{path}\n{} entries, {} inodes, {} in files; index {}; {how} {:.1} ms",
            counts.entries,
            counts.inodes,
            HumanBytes(counts.file_bytes),
            HumanBytes(report.index_len),
            seconds * 1000.0,
        )
    };
    print::finish(shown.and_then(|()| out.flush()).map_err(Into::into))
}
