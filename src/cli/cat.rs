//! `tarnfs cat`

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::Map;
use tarnfs::inode::Kind;
use tarnfs::lower::{Lower, Nid};

use super::{Global, image, print};

/// Print a file of an image
///
/// Symbolic links are followed inside the image: an absolute one starts at the image's root.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs cat image.tar /etc/os-release
  tarnfs cat image.tar /usr/bin/busybox > busybox
  tarnfs cat --json image.tar /etc/hostname | jq -r .content")]
pub(crate) struct Args {
    /// An object for each file: path, size, encoding (utf-8 or base64), content
    #[arg(long)]
    json: bool,
    /// The image: a tar, a name or digest of the store, or where to import it from
    image: PathBuf,
    /// Paths in the image
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// What is read and written at once.
const PIECE: usize = 1 << 20;
/// The largest file that is made one JSON string.
const JSON_MAX: u64 = 64 << 20;

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let (_, lower) = image::open(global, &args.image)?;
    // Not `io::stdout()`: it would look for line ends in every piece.
    let mut out = File::from(
        io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .context("standard output")?,
    );
    let mut piece = vec![0; PIECE];
    Ok(print::for_each(&args.image, &args.paths, &mut |path| {
        let found = lower.resolve(path, true)?;
        let attr = lower.attr(found.nid)?;
        match attr.kind {
            Kind::File => {}
            Kind::Dir => bail!("is a directory"),
            kind => bail!("is a {}, not a regular file", print::kind(kind)),
        }
        if args.json {
            json(&lower, &found.path, found.nid, attr.size, &mut out)
        } else {
            copy(&lower, found.nid, &mut piece, &mut out)
        }
    }))
}

fn copy(lower: &Lower, nid: Nid, piece: &mut [u8], out: &mut dyn Write) -> anyhow::Result<()> {
    let mut offset = 0;
    loop {
        let n = lower.read(nid, offset, piece)?;
        if n == 0 {
            return Ok(());
        }
        out.write_all(piece.get(..n).unwrap_or_default())
            .context("standard output")?;
        offset += n as u64;
    }
}

fn json(
    lower: &Lower,
    path: &[u8],
    nid: Nid,
    size: u64,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    if size > JSON_MAX {
        bail!("is {size} bytes long; --json takes 64 MiB: print it without");
    }
    let mut content = vec![0; usize::try_from(size)?];
    let n = lower.read(nid, 0, &mut content)?;
    content.truncate(n);
    let mut object = Map::new();
    print::put_bytes(&mut object, "path", path);
    object.insert("size".into(), size.into());
    let (encoding, text) = match String::from_utf8(content) {
        Ok(text) => ("utf-8", text),
        Err(error) => ("base64", print::base64(error.as_bytes())),
    };
    object.insert("encoding".into(), encoding.into());
    object.insert("content".into(), text.into());
    let mut line = serde_json::to_vec(&object)?;
    line.push(b'\n');
    out.write_all(&line).context("standard output")
}
