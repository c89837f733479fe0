//! `tarnfs actor create`

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use tarnfs::actor::bundle::Config;
use tarnfs::actor::spec::Net;
use tarnfs::actors::{Actor, Actors, Begun, Id, ImageRef, InBundle, Make, Serving, UpperKind};
use tarnfs::metrics::Phase;
use tarnfs::mount::control::Listen;
use tarnfs::mount::timed;
use tarnfs::store::{Image, Store};

use super::start;
use crate::cli::Global;
use crate::cli::control::ControlArgs;
use crate::cli::image::{self, ImageArg};
use crate::cli::mount_options::parse_size;
use crate::cli::run::{ProgramArgs, image_config, parse_net, work_beside};
use crate::cli::serving::PassThrough;

/// Make an actor
///
/// It is not mounted yet, unless with --start. One that is there already and is to be the same is
/// as good.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs actor create a1 debian:12
  tarnfs actor create --start --upper tmpfs=512M a2 debian:12
  tarnfs actor create --size 2G --inodes 100000 a3 debian:12
  tarnfs actor create --bundle ./b a4 debian:12 -- sleep 1000")]
pub(crate) struct Args {
    #[command(flatten)]
    how: MakeArgs,
    /// Mount it, too, and print where
    #[arg(long)]
    start: bool,
    /// Its id: letters, digits, ".", "_" and "-"
    #[arg(value_name = "ID")]
    id: Id,
    /// The image: a tar, a name or digest of the store, or where to import it from
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// With --bundle: the program and its arguments [default: the image's, or a shell]
    #[arg(
        value_name = "CMD",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        requires = "bundle"
    )]
    command: Vec<OsString>,
}

/// What an actor is to be, but for its id and image.
#[derive(Debug, clap::Args)]
pub(super) struct MakeArgs {
    /// Where writes go: `disk`, the store; `tmpfs` or `tmpfs=SIZE`, memory; or a directory, which
    /// stays when the actor is destroyed
    #[arg(long, value_name = "WHERE", default_value = "disk")]
    upper: OsString,
    /// The work directory that goes with an upper directory [default: DIR.work]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// The most that it may write, such as 2G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// The most files and directories that it may write
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    inodes: Option<u64>,
    /// Mount here, a directory that is made if missing [default: one in the store]
    #[arg(long, value_name = "DIR", conflicts_with = "bundle")]
    mount: Option<PathBuf>,
    /// Be the root filesystem of this OCI bundle, which is made, or completed if there is a
    /// config.json
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    program: ProgramArgs,
    /// With --bundle: the runtime is to make a terminal
    #[arg(long, requires = "bundle")]
    terminal: bool,
    /// With --bundle: `host` is the host's own network, `none` only a loopback device
    #[arg(long, value_name = "NET", default_value = "host", value_parser = parse_net)]
    net: Net,
    /// Let the kernel by itself read files of the image of at least SIZE bytes (or `all`, `off`)
    /// [default: 64K]
    #[arg(long, value_name = "SIZE")]
    passthrough: Option<PassThrough>,
    /// Let the kernel by itself write what is written: faster, but `checkpoint` and `diff` then
    /// refuse as long as files are open for writing, and there is no quota
    #[arg(long, conflicts_with_all = ["size", "inodes"])]
    upper_passthrough: bool,
    /// Open files without asking the server
    #[arg(long)]
    noopen: bool,
    /// Answer Prometheus at this place: unix:PATH, 127.0.0.1:PORT or [::1]:PORT
    #[arg(long, value_name = "PLACE")]
    metrics: Option<Listen>,
}

impl Args {
    /// Whether it is to be mounted at once.
    pub(super) fn starts(&self) -> bool {
        self.start
    }
}

pub(super) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    if args.start {
        return start::start(global, &args.id, &|global, begun| {
            create_and_open(global, args, begun)
        });
    }
    let store = image::store(global)?;
    let found = asked(&store, args)?.get(&store)?;
    create(&store, args, &found).map(|_| ExitCode::SUCCESS)
}

/// The image is opened once, for both.
fn create_and_open(global: &Global, args: &Args, begun: &mut Begun) -> anyhow::Result<Actor> {
    let store = image::store(global)?;
    let asked = asked(&store, args)?;
    let (found, lower) = timed(&mut begun.phases, Phase::Image, || {
        let found = asked.get(&store)?;
        let lower = found.lower()?;
        anyhow::Ok((found, lower))
    })?;
    let actor = create(&store, args, &found)?;
    begun.image = Some((found, lower));
    Ok(actor)
}

fn asked(store: &Store, args: &Args) -> anyhow::Result<ImageArg> {
    ImageArg::parse(store, args.image.as_os_str())?.absolute()
}

fn create(store: &Store, args: &Args, found: &Image) -> anyhow::Result<Actor> {
    args.how
        .create(&Actors::of(store), &args.id, found, &args.command)
}

impl MakeArgs {
    /// Makes the actor `id` on an image that was found.
    pub(super) fn create(
        &self,
        actors: &Actors,
        id: &Id,
        found: &Image,
        command: &[OsString],
    ) -> anyhow::Result<Actor> {
        let image = match (found.record().digest, found.tar_path()) {
            (Some(digest), _) => ImageRef::Stored(digest),
            (None, Some(tar)) => ImageRef::Tar(tar.to_owned()),
            (None, None) => bail!("{}: of no image", found.dir().display()),
        };
        let (upper, mut size) = self.upper()?;
        if let (Some(_), Some(_)) = (size, self.size) {
            bail!("--upper tmpfs=SIZE and --size say the same; give one of them");
        }
        size = size.or(self.size);
        let bundle = match &self.bundle {
            Some(dir) => Some(InBundle {
                dir: absolute(dir)?,
                config: self.config(found, command)?,
            }),
            None => None,
        };
        let make = Make {
            image,
            upper,
            size,
            inodes: self.inodes,
            point: self.mount.as_deref().map(absolute).transpose()?,
            bundle,
            metrics: ControlArgs {
                control: None,
                metrics: self.metrics.clone(),
            }
            .or(ControlArgs::default())?
            .metrics,
            serving: Serving {
                passthrough: self
                    .passthrough
                    .map_or(Serving::default().passthrough, |said| said.0),
                upper_passthrough: self.upper_passthrough,
                noopen: self.noopen,
            },
        };
        Ok(actors.create(id, found, make)?)
    }

    fn upper(&self) -> anyhow::Result<(UpperKind, Option<u64>)> {
        let text = self.upper.to_str();
        let kind = match text {
            Some("disk") => (UpperKind::Disk, None),
            Some("tmpfs") => (UpperKind::Tmpfs, None),
            Some(text) if text.starts_with("tmpfs=") => {
                let size = text.strip_prefix("tmpfs=").unwrap_or_default();
                (UpperKind::Tmpfs, Some(parse_size(size)?))
            }
            _ if self.upper.is_empty() => bail!("--upper names nothing"),
            _ => {
                let upper = absolute(Path::new(&self.upper))?;
                let work = match &self.work {
                    Some(work) => absolute(work)?,
                    None => work_beside(&upper),
                };
                return Ok((UpperKind::Dir { upper, work }, None));
            }
        };
        if self.work.is_some() {
            bail!("--work goes with --upper DIR");
        }
        Ok(kind)
    }

    fn config(&self, found: &Image, command: &[OsString]) -> anyhow::Result<Config> {
        let uid = rustix::process::geteuid();
        let gid = rustix::process::getegid();
        Ok(Config {
            program: self.program.program(&image_config(found)?, command)?,
            terminal: self.terminal,
            hostname: self.program.hostname.clone(),
            net: self.net,
            no_new_privs: self.program.no_new_privs,
            rootless: (!uid.is_root()).then(|| (uid.as_raw(), gid.as_raw())),
        })
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}
