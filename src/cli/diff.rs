//! `tarnfs diff`

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::json;
use tarnfs::diff::{Changes, DiffError, Format, Options, Pattern, Written, check_image};
use tarnfs::flatten::{Align, Target};
use tarnfs::mount::{Rights, kernel, rights, state_dirs};
use tarnfs::overlay::{self, Overlay};
use tarnfs::store::Image;
use tarnfs::upper::UpperError;

use super::flatten::{align, is_stdout};
use super::mount::beside;
use super::progress::Bar;
use super::{Global, image, print};

/// Write what an actor wrote as a tar
///
/// The tar is made straight from the upper directory, in one pass, and is the same to the byte for
/// the same upper. Applied to the image it gives what the mount showed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs diff --upper work/upper image.tar -o layer.tar
  tarnfs diff --upper work/upper --exclude '/run/**' --exclude /etc/resolv.conf image.tar | zstd > layer.tar.zst
  tarnfs diff --upper work/upper --format podman image.tar -o checkpoint/")]
pub(crate) struct Args {
    /// The upper directory: of no mount that is in use
    #[arg(long, value_name = "DIR")]
    upper: PathBuf,
    /// Its work directory [default: the upper's name with .work behind it]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    #[command(flatten)]
    diff: DiffArgs,
    /// The image that it was written over: a tar, a name or digest of the store, or where to import
    /// it from
    image: PathBuf,
}

/// How changes are written, and where to.
#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    /// The format
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "oci")]
    format: FormatArg,
    /// Leave out what has this path inside, and all below it; * stands for any bytes of a name, **
    /// for any number of names; may be given again
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    exclude: Vec<Pattern>,
    /// Begin the data of each file at a multiple of N bytes: a power of two, 512 to 1048576. Those of
    /// a MiB and more begin at a multiple of 65536 anyway, where the kernel copies them fastest, and
    /// XFS and btrfs share their blocks
    #[arg(long, value_name = "N", value_parser = align)]
    align: Option<Align>,
    /// Print the tar's exact length in bytes, and write nothing
    #[arg(long, conflicts_with_all = ["output", "digest", "json"])]
    size: bool,
    /// Print the tar's digest: the diff ID of a layer (on standard error if the tar is on standard
    /// output)
    #[arg(long)]
    digest: bool,
    /// Leave it to the kernel when an output file is on disk: after a power cut it may be there in
    /// part
    #[arg(long, conflicts_with = "size")]
    no_sync: bool,
    /// One object: bytes, entries, whiteouts, sockets, digest (on standard error if the tar is on
    /// standard output)
    #[arg(long)]
    json: bool,
    /// Write the tar to this file, which is there whole or not at all; - is standard output, where
    /// it goes without this option if that is no terminal. With --format podman a directory takes
    /// the two files
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormatArg {
    /// A layer of an image: whiteouts are files .wh.NAME
    Oci,
    /// An upper directory of the kernel's overlayfs (tar --xattrs --xattrs-include='*')
    Overlay,
    /// What runsc takes as dev.gvisor.tar.rootfs.upper
    Gvisor,
    /// rootfs-diff.tar and deleted.files of podman's checkpoints
    Podman,
}

/// A pattern of `--exclude`.
pub(crate) fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text.as_bytes()).map_err(|error| error.to_string())
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    args.diff.check_terminal()?;
    let (image, lower) = image::open(global, &args.image)?;
    let upper = std::path::absolute(&args.upper)?;
    let work = match &args.work {
        Some(work) => std::path::absolute(work)?,
        None => beside(&upper)?,
    };
    // An ordinary user's upper has files that he has closed to himself, as his mount could make.
    let _rights = rights::needed().then(Rights::acquire).transpose()?;
    let made = !work.exists();
    let opened = kernel::open_upper(&state_dirs(), &upper, &work).map_err(|error| match error {
        UpperError::Busy(path) => {
            anyhow::anyhow!("{}: in use by a mount; unmount it first", path.display())
        }
        error => error.into(),
    });
    let opened = opened?;
    let squash = overlay::Options::squash_to_user();
    let checked = check_image(&lower, opened.root(), opened.marks());
    let checked = checked.with_context(|| args.upper.display().to_string());
    let result = checked.and_then(|()| {
        let options = overlay::Options {
            squash,
            ..overlay::Options::default()
        };
        // What a killed mount had begun is finished.
        let overlay = Overlay::with_upper(lower, opened, options)?;
        let options = args.diff.options(&image, squash);
        let upper = overlay.upper().context("no upper")?;
        let changes = Changes::open(overlay.lower(), upper, options)?;
        args.diff.write(&changes)
    });
    if made {
        // A work directory of this command's own: nothing is left in it, or somebody has it by now.
        fs::remove_dir(work.join("work")).ok();
        fs::remove_dir(&work).ok();
    }
    result
}

impl DiffArgs {
    /// Refuses a terminal for a tar.
    pub(crate) fn check_terminal(&self) -> anyhow::Result<()> {
        if !self.size && self.output.is_none() && io::stdout().is_terminal() {
            bail!("standard output is a terminal: name a file with -o FILE");
        }
        Ok(())
    }

    /// The directory in which the output is to be, where one is named that is a file or a directory.
    pub(crate) fn place(&self) -> anyhow::Result<Option<File>> {
        let Some(output) = &self.output else {
            return Ok(None);
        };
        if output == Path::new("-") || is_stdout(output) {
            return Ok(None);
        }
        let found = match output.is_dir() {
            true => Some(output.clone()),
            false => match Target::of(output)? {
                Target::Stream(_) => None,
                Target::File(file) => Some(std::path::absolute(file)?),
            },
        };
        let dir = found.as_deref().and_then(|path| match path.is_dir() {
            true => Some(path),
            false => path.parent(),
        });
        let opened = dir.map(|dir| File::open(dir).with_context(|| dir.display().to_string()));
        opened.transpose()
    }

    /// What was asked for, of an upper over `image`.
    pub(crate) fn options(&self, image: &Image, squash: Option<(u32, u32)>) -> Options {
        Options {
            format: match self.format {
                FormatArg::Oci => Format::Oci,
                FormatArg::Overlay => Format::Overlay,
                FormatArg::Gvisor => Format::Gvisor,
                FormatArg::Podman => Format::Podman,
            },
            exclude: self.exclude.clone(),
            align: self.align.unwrap_or(Align::BLOCK),
            sync: !self.no_sync,
            digest: self.digest,
            side_blobs: image.side_blobs(),
            squash,
        }
    }

    /// Writes what was asked for to where it is to go.
    pub(crate) fn write(&self, changes: &Changes<'_>) -> anyhow::Result<ExitCode> {
        if self.size {
            let size = changes.size()?;
            let mut out = print::out();
            return print::finish(
                writeln!(out, "{size}")
                    .and_then(|()| out.flush())
                    .map_err(Into::into),
            );
        }
        let mut bar = Bar::new("writing changes");
        let mut progress = |done| bar.on_bytes(done);
        let output = self.output.as_deref();
        let output = output.filter(|path| *path != Path::new("-") && !is_stdout(path));
        let (name, stream) = match output {
            None => {
                let stdout = io::stdout().as_fd().try_clone_to_owned();
                let stdout = stdout.context("standard output")?;
                ("standard output".to_owned(), File::from(stdout))
            }
            Some(dir) if self.format == FormatArg::Podman && is_dir(dir)? => {
                if self.digest {
                    bail!("{}: a digest is of a tar: name a file", dir.display());
                }
                let written = changes.write_podman(dir, &mut progress)?;
                drop(bar);
                return print::finish(self.show(written, &mut io::stdout().lock()));
            }
            Some(path) => match Target::of(path)? {
                Target::File(file) => {
                    let written = changes.write_file(&file, &mut progress)?;
                    drop(bar);
                    return print::finish(self.show(written, &mut io::stdout().lock()));
                }
                Target::Stream(stream) => (path.display().to_string(), stream),
            },
        };
        let written = changes.write(&mut { stream }, &mut progress);
        drop(bar);
        let written = written.map_err(|error| match error {
            DiffError::Write(source) => anyhow::Error::new(source).context(name),
            other => other.into(),
        });
        // Standard output may be the very stream.
        print::finish(written.and_then(|written| self.show(written, &mut io::stderr().lock())))
    }

    fn show(&self, written: Written, out: &mut dyn Write) -> anyhow::Result<()> {
        if self.json {
            let mut object = json!({
                "bytes": written.len,
                "entries": written.entries,
                "whiteouts": written.whiteouts,
                "sockets": written.sockets,
            });
            if let (Some(digest), Some(object)) = (written.digest, object.as_object_mut()) {
                object.insert("digest".to_owned(), json!(digest));
            }
            serde_json::to_writer_pretty(&mut *out, &object)?;
            writeln!(out)?;
        } else if let Some(digest) = written.digest {
            writeln!(out, "{digest}")?;
        }
        Ok(out.flush()?)
    }
}

/// Whether an output is a directory, made if its name says that it is to be one.
fn is_dir(path: &Path) -> anyhow::Result<bool> {
    if path.as_os_str().as_bytes().ends_with(b"/") {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| path.display().to_string());
            }
            _ => {}
        }
    }
    Ok(path.is_dir())
}
