//! `tarnfs export`

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::json;
use tarnfs::export::{self, Dest, ExportError, Exported, Options, Tag};

use super::progress::Bar;
use super::{Global, image, print};

/// Write an image as an OCI image layout
///
/// For registries (`skopeo copy`), other engines and other machines. Layers go out uncompressed, as
/// they lie in the store; the image has the same digest wherever it is imported again. What is
/// printed is the digest of its manifest.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs export web-1 oci-archive:web-1.tar:latest
  tarnfs export web-1 oci:./layout:web-1
  tarnfs export --since debian:12 web-1 - | ssh node 'cat > web-1.tar'
  tarnfs export web-1 - | podman load

DEST is oci:DIR[:TAG] (a directory, to which the image is added), oci-archive:FILE[:TAG] (the same in
a tar, there whole or not at all), or - (the tar on standard output).")]
pub(crate) struct Args {
    /// Leave out the layers of this image, for who has it already
    #[arg(long, value_name = "IMAGE")]
    since: Option<PathBuf>,
    /// One object: manifest, config, layers, bytes (on standard error if the tar is on standard
    /// output)
    #[arg(long)]
    json: bool,
    /// The image: a tar, a name or digest of the store, or where to import it from
    image: PathBuf,
    /// Where it goes
    #[arg(value_name = "DEST")]
    dest: OsString,
}

/// Where, taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Stdout,
    Layout(PathBuf),
    Archive(PathBuf),
}

fn place(text: &OsStr) -> anyhow::Result<(Place, Option<Tag>)> {
    if text == "-" {
        return Ok((Place::Stdout, None));
    }
    let bytes = text.as_bytes();
    let (of, rest): (fn(PathBuf) -> Place, _) = if let Some(rest) = bytes.strip_prefix(b"oci:") {
        (Place::Layout, rest)
    } else if let Some(rest) = bytes.strip_prefix(b"oci-archive:") {
        (Place::Archive, rest)
    } else {
        bail!(
            "{}: write oci:DIR[:TAG], oci-archive:FILE[:TAG] or -",
            print::escape(bytes)
        );
    };
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    // What is there already is a path, whatever colons it has.
    let there = path(rest).symlink_metadata().is_ok();
    let colon = rest.iter().rposition(|&b| b == b':').filter(|_| !there);
    let (at, tag) = match colon {
        Some(colon) => {
            let (at, tag) = rest.split_at(colon);
            let tag = tag.get(1..).unwrap_or_default();
            let tag: Tag = String::from_utf8_lossy(tag).parse()?;
            (at, Some(tag))
        }
        None => (rest, None),
    };
    if at.is_empty() {
        bail!("{}: nothing stands behind the prefix", print::escape(bytes));
    }
    Ok((of(path(at)), tag))
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let (place, tag) = place(&args.dest)?;
    if place == Place::Stdout && io::stdout().is_terminal() {
        bail!("standard output is a terminal: name a file with oci-archive:FILE");
    }
    let store = image::store(global)?;
    let image = image::image(global, &args.image)?;
    let since = args.since.as_deref();
    let since = since.map(|since| image::image(global, since)).transpose()?;
    let options = Options {
        tag: tag.as_ref(),
        since: since.as_ref(),
    };
    let mut stdout: Option<File> = None;
    let dest = match &place {
        Place::Layout(dir) => Dest::Layout(dir),
        Place::Archive(file) => Dest::Archive(file),
        Place::Stdout => {
            let fd = io::stdout().as_fd().try_clone_to_owned();
            Dest::Stream(stdout.insert(File::from(fd.context("standard output")?)))
        }
    };
    let mut bar = Bar::new("exporting");
    let done = export::export(&store, &image, &options, dest, &mut |p| bar.on(p));
    drop(bar);
    let done = done.map_err(|error| match error {
        ExportError::Write(source) => anyhow::Error::new(source).context("standard output"),
        other => other.into(),
    });
    print::finish(done.and_then(|done| match (&place, args.json) {
        (Place::Stdout, false) => Ok(()),
        (Place::Stdout, true) => show(&args, &done, &mut io::stderr().lock()),
        _ => show(&args, &done, &mut io::stdout().lock()),
    }))
}

fn show(args: &Args, done: &Exported, out: &mut dyn Write) -> anyhow::Result<()> {
    if args.json {
        let object = json!({
            "manifest": done.manifest,
            "config": done.config,
            "layers": {
                "written": done.written,
                "there": done.there,
                "left_out": done.left_out,
            },
            "bytes": done.bytes,
        });
        writeln!(out, "{object:#}")?;
    } else {
        writeln!(out, "{}", done.manifest)?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("a:b");
        std::fs::write(&there, "").unwrap();
        let parse = |text: &str| place(text.as_ref()).unwrap();
        let tag = |text: &str| Some(text.parse::<Tag>().unwrap());
        assert_eq!(parse("-"), (Place::Stdout, None));
        assert_eq!(parse("oci:x/y"), (Place::Layout("x/y".into()), None));
        assert_eq!(
            parse("oci:x/y:a/b:1"),
            (Place::Layout("x/y:a/b".into()), tag("1"))
        );
        assert_eq!(
            parse("oci-archive:x.tar:latest"),
            (Place::Archive("x.tar".into()), tag("latest"))
        );
        let given = format!("oci-archive:{}", there.display());
        assert_eq!(parse(&given), (Place::Archive(there.clone()), None));
        assert_eq!(
            parse(&format!("{given}:t")),
            (Place::Archive(there), tag("t"))
        );
        for (bad, why) in [
            ("x", "oci:DIR"),
            ("docker://x", "oci:DIR"),
            ("oci:", "nothing stands"),
            ("oci::t", "nothing stands"),
            ("oci:x:", "a name in a layout"),
            ("oci:x:a b", "a name in a layout"),
        ] {
            let said = place(bad.as_ref()).unwrap_err().to_string();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }
}
