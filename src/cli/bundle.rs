//! `tarnfs bundle`

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use super::engine::EngineName;
use super::image::ImageArg;
use super::prefetch::PrefetchArgs;
use super::run::{ProgramArgs, image_config, parse_net, work_beside};
use super::{Global, image};
use tarnfs::actor::bundle::{self, Bundle, Config, Record};
use tarnfs::actor::spec::Net;

/// Make an OCI bundle that runc, crun, runsc … run
///
/// Mounts the image at DIR/rootfs as `tarnfs mount` does and writes DIR/config.json.
/// What is written lies in DIR/upper, unless --upper names another place; after a restart the same
/// command mounts it again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs bundle debian.tar ./b -- apt-get --version && runc run -b ./b c1
  tarnfs bundle --terminal debian.tar ./b && crun run -b ./b c1
  runsc --platform=ptrace --network=none run -bundle ./b c1
  tarnfs bundle --remove ./b")]
pub(crate) struct Args {
    #[command(flatten)]
    program: ProgramArgs,
    /// Write here instead of DIR/upper
    #[arg(long, value_name = "DIR", conflicts_with = "read_only")]
    upper: Option<PathBuf>,
    /// The work directory of --upper, on the same filesystem [default: UPPER.work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Let nothing be written
    #[arg(long)]
    read_only: bool,
    /// What serves the root filesystem [default: fuse]
    #[arg(long, value_name = "ENGINE", value_enum)]
    engine: Option<EngineName>,
    #[command(flatten)]
    prefetch: PrefetchArgs,
    /// The runtime is to make a terminal
    #[arg(long)]
    terminal: bool,
    /// Network: `host` is the host's own, `none` only a loopback device
    #[arg(long, value_name = "NET", default_value = "host", value_parser = parse_net)]
    net: Net,
    /// Unmount and remove the bundle in this directory, if there is one
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    remove: Option<PathBuf>,
    /// With --remove: leave DIR/upper and DIR/work
    #[arg(long, requires = "remove")]
    keep_upper: bool,
    /// The image: a tar, a name or digest of the store, or where to import it from
    #[arg(value_name = "IMAGE", required_unless_present = "remove")]
    image: Option<PathBuf>,
    /// The bundle's directory, made if missing
    #[arg(value_name = "DIR", required_unless_present = "remove")]
    dir: Option<PathBuf>,
    /// The program and its arguments [default: the image's, or a shell]
    #[arg(
        value_name = "CMD",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<OsString>,
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    if let Some(dir) = &args.remove {
        bundle::remove(dir, args.keep_upper)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (Some(image), Some(dir)) = (&args.image, &args.dir) else {
        bail!("give an image and a directory");
    };
    // Before anything is made: a bad image leaves no directory behind.
    let store = image::store(global)?;
    let asked = ImageArg::parse(&store, image.as_os_str())?;
    let found = asked.get(&store)?;
    // What it is mounted by later: of an image of the store the digest, which no tag changes.
    let name: PathBuf = match (found.record().digest, asked) {
        (Some(digest), _) => digest.to_string().into(),
        (None, ImageArg::Tar(tar)) => tar
            .canonicalize()
            .with_context(|| tar.display().to_string())?,
        (None, other) => other.text().into(),
    };
    let absolute = |path: &PathBuf| std::path::absolute(path);
    let upper = args.upper.as_ref().map(absolute).transpose()?;
    let work = match (&args.work, &upper) {
        (Some(work), _) => Some(absolute(work)?),
        (None, Some(upper)) => Some(work_beside(upper)),
        (None, None) => None,
    };
    let config = Config {
        program: args
            .program
            .program(&image_config(&found)?, &args.command)?,
        terminal: args.terminal,
        hostname: args.program.hostname.clone(),
        net: args.net,
        no_new_privs: args.program.no_new_privs,
        rootless: rootless(),
    };
    let existed = args.dir.as_ref().is_some_and(|dir| dir.exists());
    let record = Record {
        image: name.clone(),
        read_only: args.read_only,
        upper,
        work,
        made_dir: false,
    };
    let options = mount_options(&args, store.dir())?;
    let bundle = Bundle::prepare(dir, record)?;
    // Also where it is not mounted: the same command mounts it again.
    let rooted = match found.record().digest {
        Some(own) => store.add_root(&own, bundle.record_path().as_path()),
        None => Ok(()),
    };
    let made = rooted.map_err(anyhow::Error::from).and_then(|()| {
        let mounted = mount(&bundle, &options, &name)?;
        if mounted {
            bundle.configure(&config)?;
        }
        Ok(mounted)
    });
    if !matches!(made, Ok(true)) && !existed {
        bundle::remove(dir, false).context("clearing away after an error")?;
    }
    Ok(if made? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn rootless() -> Option<(u32, u32)> {
    let uid = rustix::process::geteuid();
    (!uid.is_root()).then(|| (uid.as_raw(), rustix::process::getegid().as_raw()))
}

/// What of this command line is the mount's.
fn mount_options(args: &Args, store: &Path) -> anyhow::Result<Vec<OsString>> {
    let mut words = vec!["--store".into(), store.into()];
    if let Some(engine) = args.engine {
        words.extend(["--engine".into(), engine.name().into()]);
    }
    words.extend(args.prefetch.clone().absolute()?.words());
    Ok(words)
}

/// Mounts the root filesystem as `tarnfs mount` does, by that very command: its server stays in
/// the background, if it has one. False when it failed, and has said why.
fn mount(bundle: &Bundle, options: &[OsString], image: &Path) -> anyhow::Result<bool> {
    if bundle.is_mounted()? {
        return Ok(true);
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg("mount").args(options);
    match bundle.writes() {
        Some((upper, work)) => command.arg("--upper").arg(upper).arg("--work").arg(work),
        None => command.arg("--read-only"),
    };
    let status = command
        .arg("--")
        .arg(image)
        .arg(bundle.rootfs())
        .status()
        .context("tarnfs mount")?;
    Ok(status.success())
}
