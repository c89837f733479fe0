//! `tarnfs squash`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;
use tarnfs::stack;
use tarnfs::store::ImageName;

use super::image::{self, ImageArg};
use super::progress::Bar;
use super::{Global, print};

/// Make one layer of an image's checkpoints
///
/// Each checkpoint keeps what later ones have overwritten or removed. The new image shows the same
/// files, and has one layer in place of its checkpoints, of what is left. Its digest is printed.
/// The old one stays, until `tarnfs rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs squash --name web-1 sha256:5f70bf18a086
  tarnfs squash --base debian:12 built")]
pub(crate) struct Args {
    /// Make one layer of all that the image has on top of this one [default: its checkpoints]
    #[arg(long, value_name = "IMAGE")]
    base: Option<PathBuf>,
    /// Keep this name for it
    #[arg(long, value_name = "NAME", value_parser = image::parse_name)]
    name: Option<ImageName>,
    /// One object: digest, layer, bytes, squashed (how many layers became one), fresh
    #[arg(long)]
    json: bool,
    /// The image: a name or a digest of the store
    image: PathBuf,
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let store = image::store(global)?;
    let stored = |path: &PathBuf| match ImageArg::parse(&store, path.as_os_str())? {
        ImageArg::Stored(_, digest) => Ok(digest),
        ImageArg::Nothing(text, why) => bail!("{text}: {why}"),
        ImageArg::Tar(path) => bail!(
            "{}: a local tar has one layer; what has more is in the store",
            path.display()
        ),
        ImageArg::Elsewhere(place) => bail!("{place}: import it first"),
    };
    let digest = stored(&args.image)?;
    let base = args.base.as_ref().map(stored).transpose()?;
    let mut bar = Bar::new("squashing");
    let made = stack::squash(&store, &digest, base.as_ref(), &mut |p| bar.on(p));
    drop(bar);
    let made = made?;
    if let Some(name) = &args.name {
        store.tag(&made.digest, name)?;
    }
    let mut out = print::out();
    let shown = if args.json {
        let object = json!({
            "digest": made.digest,
            "layer": made.layer,
            "bytes": made.len,
            "squashed": made.value,
            "fresh": made.fresh,
        });
        writeln!(out, "{object:#}")
    } else {
        writeln!(out, "{}", made.digest)
    };
    print::finish(shown.and_then(|()| out.flush()).map_err(Into::into))
}
