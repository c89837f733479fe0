//! `tarnfs mount`

mod plan;

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use tarnfs::lower::Lower;
use tarnfs::metrics::{Phase, Phases};
use tarnfs::mount::backing::Choice;
use tarnfs::mount::{
    About, EngineChoice, MountError, MountOptions, RECORDING_KIB, Rights, Scratch, Server, Signals,
    check_point, detach_from_terminal, engine_of, find_mount, kernel, open_upper, prepare_process,
    resolve_point, rights, state_dirs, timed,
};
use tarnfs::overlay::{self, Overlay};
use tarnfs::sys::mount::{MountAttrs, set_attrs};
use tarnfs::sys::process::{Forked, Running, fork};
use tarnfs::upper::Upper;

use super::control::ControlArgs;
use super::engine::EngineName;
use super::image::ImageArg;
use super::mount_options::{parse_count, parse_size};
use super::prefetch::PrefetchArgs;
use super::progress::Bar;
use super::serving::ServingArgs;
use super::{Global, image, logging};
pub(crate) use plan::beside;
use plan::{Plan, Writes};

/// What a background process writes when the mount can be used.
const READY: &[u8] = b"ready\n";

/// Mount an image on a directory
///
/// Of a tar the headers are indexed once; its files are then read where they lie. An image that is
/// elsewhere is imported first. Writes go to an upper directory in overlayfs' own format. Without --upper, --tmpfs or --read-only it is a
/// private one in the store, which goes when the mount goes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs mount image.tar /mnt
  tarnfs mount debian:12 /mnt                      # an image of the store
  tarnfs mount --upper ./changes image.tar /mnt    # keeps what is written
  tarnfs mount --tmpfs=1G image.tar /mnt           # writes to memory
  tarnfs mount --size 2G --inodes 100000 image.tar /mnt   # no more than that
  tarnfs mount --read-only image.tar /mnt
  tarnfs mount --engine auto image.tar /mnt        # no server where the kernel can do it
  mount -t fuse.tarnfs image.tar /mnt -o upperdir=/u,workdir=/w
  tarnfs umount /mnt

Options of -o: ro rw suid nosuid dev nodev exec noexec noatime relatime strictatime
  nodiratime nosymfollow sync dirsync lazytime allow_other remount, upperdir= workdir=
  tmpfs[=SIZE] size= inodes= volatile engine= store= fsname= subtype= max_read= passthrough=
  upper_passthrough= noopen keep_awake= verify= readahead= record= prefetch= prefetch_max= control=
  metrics= log= log_file=; what only fstab's readers mind (auto
  nofail user _netdev x-* …) is passed over")]
pub(crate) struct Args {
    /// The image: a tar, a name or digest of the store, or where to import it from
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// The directory to mount on
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Directory for what is written, made if missing
    #[arg(long, value_name = "DIR", conflicts_with = "tmpfs")]
    upper: Option<PathBuf>,
    /// Work directory on the same filesystem as the upper [default: the upper's path with .work]
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Write to a private tmpfs (of this size; default: half of the memory)
    #[arg(
        long,
        value_name = "SIZE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        conflicts_with = "read_only"
    )]
    tmpfs: Option<String>,
    /// The most that what is written may take: bytes of all blocks. Beyond it programs get ENOSPC
    #[arg(long, value_name = "SIZE", conflicts_with = "read_only", value_parser = parse_size)]
    size: Option<u64>,
    /// The most files and directories that may be made or copied to the upper
    #[arg(long, value_name = "N", conflicts_with = "read_only", value_parser = parse_count)]
    inodes: Option<u64>,
    /// No writes at all
    #[arg(short, long)]
    read_only: bool,
    /// Who serves the mount [default: fuse]
    #[arg(long, value_name = "ENGINE", value_enum)]
    engine: Option<EngineName>,
    #[command(flatten)]
    serving: ServingArgs,
    #[command(flatten)]
    prefetch: PrefetchArgs,
    #[command(flatten)]
    control: ControlArgs,
    /// What to check before mounting: nothing but lengths, or all of the index [default: never]
    #[arg(long, value_name = "WHEN", value_enum)]
    verify: Option<Verify>,
    /// KiB that the kernel reads ahead, as root [default: 2048; 128 with --record]
    #[arg(long, value_name = "KIB")]
    read_ahead: Option<u32>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Mount options as for mount(8), comma-separated
    #[arg(short = 'o', value_name = "OPTS", allow_hyphen_values = true)]
    options: Vec<OsString>,
    /// Pass over unknown mount options
    #[arg(skip)]
    sloppy: bool,
}

/// Whether the index is checked before it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Verify {
    /// The lengths of all files, and the parts of the index that say what it is.
    #[default]
    Never,
    /// The digest of the whole index, too.
    OnMount,
}

impl Args {
    /// As mount(8) calls its helper.
    pub(super) fn for_helper(
        image: PathBuf,
        dir: PathBuf,
        options: Vec<OsString>,
        sloppy: bool,
    ) -> Self {
        Self {
            image,
            dir,
            upper: None,
            work: None,
            tmpfs: None,
            size: None,
            inodes: None,
            read_only: false,
            engine: None,
            serving: ServingArgs::default(),
            prefetch: PrefetchArgs::default(),
            control: ControlArgs::default(),
            verify: None,
            read_ahead: None,
            foreground: false,
            options,
            sloppy,
        }
    }
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let plan = Plan::new(global, args)?;
    // Before anything is opened: the server has nothing of its caller's.
    if plan.in_background() {
        return match start_server()? {
            Forked::Parent(server) => Ok(match await_ready(server)? {
                Waited::Ready => ExitCode::SUCCESS,
                Waited::Failed(status) => status,
            }),
            Forked::Child => mount(&plan),
        };
    }
    mount(&plan)
}

/// Does what is asked, in this process.
fn mount(plan: &Plan) -> anyhow::Result<ExitCode> {
    logging::init(&plan.global)?;
    if plan.options.remount {
        return remount(plan);
    }
    if plan.engine != EngineChoice::Fuse {
        match mount_by_kernel(plan) {
            Err(error) if plan.engine == EngineChoice::Auto && is_lack(&error) => {
                tracing::info!("engine fuse: {error}");
            }
            done => {
                done?;
                if plan.in_background() {
                    tell_ready().context("telling that the mount is ready")?;
                }
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    serve(plan)
}

/// Whether the kernel engine cannot be used here, where the other may.
fn is_lack(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(MountError::KernelEngine(_)))
}

/// Mounts; the kernel serves.
fn mount_by_kernel(plan: &Plan) -> anyhow::Result<()> {
    if let Some(option) = plan.for_server() {
        let why = format!("{option} is for a server, and it has none");
        return Err(MountError::KernelEngine(why).into());
    }
    // The modes of what is made are meant as they are.
    rustix::process::umask(rustix::fs::Mode::empty());
    let point = check_point(&plan.dir, &plan.own_dirs())?;
    kernel::check()?;
    let mut about = About::default();
    let lower = timed(&mut Phases::begin(), Phase::Image, || {
        open_image(plan, &mut about)
    })?;
    let (overlay, scratch) = timed(&mut Phases::begin(), Phase::Upper, || {
        open_overlay(plan, lower)
    })?;
    kernel::start(overlay, scratch, &point, &mount_options(plan, about))?;
    tracing::info!(image = %plan.image.text().display(), point = %point.display(), "mounted by the kernel");
    Ok(())
}

/// All that `run` does before it mounts: mount(8)'s `-f`.
pub(super) fn check(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let plan = Plan::new(global, args)?;
    if let ImageArg::Tar(tar) = &plan.image {
        File::open(tar).with_context(|| tar.display().to_string())?;
    }
    check_point(&plan.dir, &[])?;
    Ok(ExitCode::SUCCESS)
}

/// What came of waiting for a server.
pub(super) enum Waited {
    /// Its mount can be used.
    Ready,
    /// It has failed, and said why.
    Failed(ExitCode),
}

/// Starts the process that is to serve.
pub(super) fn start_server() -> anyhow::Result<Forked> {
    // Where /dev is empty the server cannot even be started; this says what matters.
    match std::fs::symlink_metadata("/dev/fuse") {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(MountError::NoDevice(error).into());
        }
        _ => {}
    }
    // It keeps this terminal until it is ready: its errors and its progress bar go there, and
    // Ctrl-C reaches it.
    fork().context("starting the server")
}

/// Waits until what `server` mounts can be used or has failed.
pub(super) fn await_ready(server: Running) -> anyhow::Result<Waited> {
    let Running { output, child } = server;
    let mut said = Vec::new();
    File::from(output)
        .read_to_end(&mut said)
        .context("waiting for the server")?;
    if said == READY {
        return Ok(Waited::Ready);
    }
    // A server that ended before it was ready has said why, unless it was killed.
    match child.wait().context("waiting for the server")? {
        Some(signal) => {
            bail!("the server was killed by signal {signal} before the mount was ready")
        }
        None => Ok(Waited::Failed(ExitCode::FAILURE)),
    }
}

/// Mounts and serves, in this process.
fn serve(plan: &Plan) -> anyhow::Result<ExitCode> {
    let (mut about, mut phases) = (About::default(), Phases::begin());
    let point = check_point(&plan.dir, &plan.own_dirs())?;
    // All paths of the plan are absolute.
    prepare_process().context("preparing the server process")?;
    let mut lower = timed(&mut phases, Phase::Image, || open_image(plan, &mut about))?;
    let prefetch = plan.prefetch.open(&mut lower, &plan.own_dirs())?;
    // Before there is a second thread.
    let rights = rights::needed().then(Rights::acquire).transpose()?;
    let (overlay, scratch) = timed(&mut phases, Phase::Upper, || open_overlay(plan, lower))?;
    about.phases = phases;
    let signals = Signals::install().context("catching signals")?;
    logging::panics_to_log();
    let mut server = Server::start(Arc::new(overlay), &point, &mount_options(plan, about))?;
    tracing::info!(image = %plan.image.text().display(), point = %point.display(), "mounted");
    if plan.in_background()
        && let Err(error) = tell_ready()
    {
        // Who asked for the mount is gone, or will never know of it.
        drop(server.cancel()?);
        return Err(error).context("telling that the mount is ready");
    }
    server.beside(prefetch);
    let ended = server.serve(signals)?;
    drop(scratch);
    drop(rights);
    drop(ended);
    tracing::info!(point = %point.display(), "unmounted");
    Ok(ExitCode::SUCCESS)
}

/// The image, checked as far as was asked.
fn open_image(plan: &Plan, about: &mut About) -> anyhow::Result<Lower> {
    let image = plan.image.get(&image::store(&plan.global)?)?;
    about.image_hit = Some(!image.is_fresh());
    // Of a tar nobody knows it before all of it was read.
    about.digest = image.record().digest.map(|digest| digest.to_string());
    if plan.verify == Verify::OnMount {
        let mut bar = Bar::new("verifying");
        image.check_index(&mut |p| bar.on(p))?;
    }
    Ok(image.lower()?)
}

/// Tells whoever waits that the mount can be used, and goes on without him.
pub(super) fn tell_ready() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(READY)?;
    out.flush()?;
    detach_from_terminal()
}

fn mount_options(plan: &Plan, about: About) -> MountOptions {
    let asked = &plan.options;
    let source = asked.source.clone();
    let mut options = MountOptions::new(source.unwrap_or_else(|| plan.image.text()));
    if let Some(subtype) = &asked.subtype {
        options.fuse.subtype.clone_from(subtype);
    }
    // A root filesystem is for all its users. An ordinary user's mount is his own, unless he asks
    // and the administrator allows it.
    let is_root = rustix::process::geteuid().is_root();
    options.fuse.allow_other = asked.allow_other.unwrap_or(is_root);
    options.fuse.read_only = plan.read_only;
    options.fuse.max_read = asked.max_read;
    options.fuse.super_flags.clone_from(&asked.super_flags);
    options.fuse.attrs = asked.attrs;
    options.serving = plan.serving.settings();
    let plain = plan.prefetch.record.as_ref().map(|_| RECORDING_KIB);
    options.read_ahead_kib = plan.read_ahead.or(plain);
    options.control.clone_from(&plan.control.control);
    options.metrics.clone_from(&plan.control.metrics);
    options.about = about;
    options.state_dirs = state_dirs();
    options.image_dirs = state_dirs();
    options.backing = Choice::of_environment();
    if let Writes::Kept { upper, work } = &plan.writes {
        options.upper = Some(upper.clone());
        options.work = Some(work.clone());
    }
    options
}

/// Refuses an image that whoever writes to its own mount would change.
fn check_outside(image: &Path, dirs: &[&Path]) -> anyhow::Result<()> {
    let at = image.canonicalize();
    let at = at.with_context(|| image.display().to_string())?;
    // A work directory that is yet to be made holds nothing.
    let inside = |dir: &&&Path| dir.canonicalize().is_ok_and(|dir| at.starts_with(dir));
    match dirs.iter().find(inside) {
        Some(dir) => bail!(
            "{}: lies in {}, where what is done in the mount would change it; move it elsewhere",
            image.display(),
            dir.display()
        ),
        None => Ok(()),
    }
}

/// The filesystem to serve, and what must live as long as its mount.
fn open_overlay(plan: &Plan, lower: Lower) -> anyhow::Result<(Overlay, Option<Scratch>)> {
    let options = overlay::Options {
        quota: plan.quota,
        squash: overlay::Options::squash_to_user(),
        // Nobody finds a private upper again after a crash.
        volatile: plan.options.volatile || !matches!(plan.writes, Writes::Kept { .. }),
        ..overlay::Options::default()
    };
    let (upper, scratch) = match &plan.writes {
        Writes::Refused => return Ok((Overlay::read_only(lower), None)),
        Writes::Kept { upper, work } => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(upper)
                .map_err(|error| match error.kind() {
                    // mkdir(2)'s EEXIST for what is no directory.
                    ErrorKind::AlreadyExists => ErrorKind::NotADirectory.into(),
                    _ => error,
                })
                .with_context(|| format!("upper directory {}", upper.display()))?;
            if let ImageArg::Tar(tar) = &plan.image {
                check_outside(tar, &[upper, work])?;
            }
            (open_upper(&state_dirs(), upper, work)?, None)
        }
        Writes::Tmpfs { size, inodes } => {
            let scratch = Scratch::tmpfs(*size, *inodes)
                .context("a private tmpfs takes root (--upper on a tmpfs does not)")?;
            (
                Upper::open(&scratch.upper(), &scratch.work())?,
                Some(scratch),
            )
        }
        Writes::Scratch => {
            let dir = image::store(&plan.global)?.dir().join("uppers");
            let scratch = Scratch::on_disk(&dir)
                .with_context(|| format!("making a private upper in {}", dir.display()))?;
            (
                Upper::open(&scratch.upper(), &scratch.work())?,
                Some(scratch),
            )
        }
    };
    Ok((Overlay::with_upper(lower, upper, options)?, scratch))
}

/// `-o remount,…`: changes attributes of the mount; everything else of it stays.
fn remount(plan: &Plan) -> anyhow::Result<ExitCode> {
    let path = resolve_point(&plan.dir).with_context(|| plan.dir.display().to_string())?;
    let mount = find_mount(&path)?
        .filter(|mount| engine_of(mount).is_some())
        .with_context(|| format!("{}: no tarnfs mount to remount", path.display()))?;
    let read_only = mount.super_options.split(',').any(|option| option == "ro");
    if read_only && plan.options.attrs.clears(MountAttrs::RDONLY) {
        bail!(
            "{}: was mounted read-only for good; unmount it and mount it anew",
            path.display()
        );
    }
    set_attrs(&path, plan.options.attrs).with_context(|| format!("remount {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}
