//! `tarnfs run`

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::engine::EngineName;
use super::image::ImageArg;
use super::prefetch::PrefetchArgs;
use super::{Global, image, print};
use tarnfs::actor::image::{Asked, ImageConfig, Program};
use tarnfs::actor::rootfs::{Source, Writes};
use tarnfs::actor::spec::{Mount, Net};
use tarnfs::actor::userns::{self, Mapping};
use tarnfs::actor::{init, run as actor};
use tarnfs::mount::{EngineChoice, MountError};
use tarnfs::store::{Image, Store};

/// Run a program in a throwaway root filesystem
///
/// The program sees the image as its root filesystem, and writes to a private upper that is
/// removed when it ends. Needs root, or else makes a user namespace.
///
/// The exit status is the program's: 128 + n when signal n ended it, 127 when there is no such
/// program, 126 when it cannot be executed, 125 when tarnfs itself failed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs run debian.tar                              a shell
  tarnfs run debian.tar -- apt-get --version
  tarnfs run -v $PWD:/src:ro -w /src node.tar -- npm test
  tarnfs run --upper ./up --work ./wk debian.tar     keep what is written in ./up")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) program: ProgramArgs,
    /// Write here instead of a private upper
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
    /// Remove the private upper at the end (the default)
    #[arg(long, conflicts_with = "keep")]
    rm: bool,
    /// Keep the private upper, and print where it is
    #[arg(long, conflicts_with_all = ["upper", "read_only"])]
    keep: bool,
    /// Network: `host` is the host's own, `none` only a loopback device
    #[arg(long, value_name = "NET", default_value = "host", value_parser = parse_net)]
    net: Net,
    /// Bind a directory or file of the host's: SRC:DST or SRC:DST:ro
    #[arg(short = 'v', long = "volume", value_name = "SRC:DST[:ro]")]
    volume: Vec<OsString>,
    /// The image: a tar, a name or digest of the store, or where to import it from
    #[arg(value_name = "IMAGE", required_unless_present = "rootfs")]
    image: Option<PathBuf>,
    /// Use a directory as it is instead of an image, without a layer for writes
    #[arg(long, value_name = "DIR", hide = true)]
    rootfs: Option<PathBuf>,
    /// The program and its arguments [default: the image's, or a shell]
    #[arg(
        value_name = "CMD",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<OsString>,
}

/// What `run` and `bundle` ask about a program.
#[derive(Debug, clap::Args)]
pub(crate) struct ProgramArgs {
    /// Run this instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<OsString>,
    /// Set an environment variable; NAME alone passes it on
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Start from an empty environment
    #[arg(long)]
    clear_env: bool,
    /// Working directory
    #[arg(short = 'w', long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// User, by number or by a name of the image's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Host name [default: the host's]
    #[arg(long, value_name = "NAME", value_parser = parse_hostname)]
    pub(crate) hostname: Option<String>,
    /// Give set-user-ID programs no privilege (PR_SET_NO_NEW_PRIVS)
    #[arg(long)]
    pub(crate) no_new_privs: bool,
}

impl ProgramArgs {
    /// What is asked for here, on top of what the image's configuration says.
    pub(crate) fn program(
        &self,
        config: &ImageConfig,
        command: &[OsString],
    ) -> anyhow::Result<Program> {
        let bytes = |list: &[OsString]| {
            list.iter()
                .map(|arg| arg.clone().into_vec())
                .collect::<Vec<_>>()
        };
        let asked = Asked {
            command: bytes(command),
            entrypoint: self
                .entrypoint
                .clone()
                .map(|program| vec![program.into_vec()]),
            env: bytes(&self.env),
            clear_env: self.clear_env,
            outer_env: std::env::vars_os()
                .map(|(name, value)| (name.into_vec(), value.into_vec()))
                .collect(),
            cwd: self.workdir.clone().map(OsString::into_vec),
            user: self.user.clone(),
        };
        Ok(Program::new(config, &asked)?)
    }
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    match ended(global, &args) {
        Ok(ended) => {
            if let Some(failure) = ended.failure {
                eprintln!("tarnfs: {failure}");
            }
            if let Some(kept) = ended.kept {
                eprintln!("tarnfs: kept what was written in {}", kept.display());
            }
            Ok(ExitCode::from(ended.status))
        }
        Err(error) => {
            eprintln!("tarnfs{}", print::causes(&error));
            Ok(ExitCode::from(init::STATUS_FAILED))
        }
    }
}

fn ended(global: &Global, args: &Args) -> anyhow::Result<actor::Ended> {
    // Everything that depends on who calls, before a user namespace makes them root.
    let store = image::store(global)?;
    let binds = args
        .volume
        .iter()
        .map(|text| parse_volume(text))
        .collect::<anyhow::Result<_>>()?;
    let place = args.place(&store)?;
    let prefetch = args.prefetch.clone().absolute()?;
    if let (Place::Dir(_), Some(option)) = (&place, prefetch.for_server()) {
        bail!("{option} is for images");
    }
    if let (Some(EngineChoice::Kernel), Some(option)) =
        (args.engine.map(|e| e.0), prefetch.for_server())
    {
        let why = format!("{option} is for a server, and it has none");
        return Err(MountError::KernelEngine(why).into());
    }
    let writes = match (&args.upper, args.read_only) {
        (_, true) => Some(Writes::ReadOnly),
        (Some(upper), false) => {
            let work = args.work.clone().unwrap_or_else(|| work_beside(upper));
            Some(Writes::Upper {
                upper: std::path::absolute(upper)?,
                work: std::path::absolute(work)?,
                volatile: false,
            })
        }
        (None, false) => None,
    };
    let found = match &place {
        Place::Image(image) => Some(image.get(&store)?),
        Place::Dir(_) => None,
    };
    let config = found.as_ref().map(image_config).transpose()?;
    let program = args
        .program
        .program(&config.unwrap_or_default(), &args.command_words())?;
    enter_namespace_if_needed()?;
    let source = match (place, found) {
        (Place::Dir(dir), _) => Source::Dir(dir),
        (Place::Image(_), None) => bail!("which image?"),
        (Place::Image(arg), Some(image)) => {
            let mut lower = image.lower()?;
            let prefetch = match prefetch.for_server() {
                Some(_) => Some(prefetch.open(&mut lower, &written(writes.as_ref()))?),
                None => None,
            };
            Source::Image {
                name: arg.text().into(),
                lower: Box::new(lower),
                prefetch,
            }
        }
    };
    let options = actor::Options {
        writes,
        engine: args.engine.map(|name| name.0).unwrap_or_default(),
        keep: args.keep && !args.rm,
        store: std::path::absolute(store.dir())?,
        program,
        hostname: args.program.hostname.clone(),
        net: args.net,
        binds,
        no_new_privs: args.program.no_new_privs,
    };
    Ok(actor::run(source, &options)?)
}

/// What an image says about the programs in it.
pub(crate) fn image_config(image: &Image) -> anyhow::Result<ImageConfig> {
    let Some(config) = &image.record().config else {
        return Ok(ImageConfig::default());
    };
    serde_json::from_value(config.clone())
        .with_context(|| format!("{}: its configuration", image.dir().display()))
}

/// The directories of the caller's that the actor writes to.
fn written(writes: Option<&Writes>) -> Vec<&Path> {
    match writes {
        Some(Writes::Upper { upper, work, .. }) => vec![upper, work],
        Some(Writes::ReadOnly) | None => Vec::new(),
    }
}

/// Without the privilege to mount, a user namespace has it.
pub(crate) fn enter_namespace_if_needed() -> anyhow::Result<()> {
    if userns::needed()
        && let Mapping::Single(why) = userns::enter()?
    {
        tracing::info!("only one user exists in the actor: {why}");
    }
    Ok(())
}

/// What the root filesystem is made of.
enum Place {
    Image(ImageArg),
    Dir(PathBuf),
}

impl Args {
    fn place(&self, store: &Store) -> anyhow::Result<Place> {
        match (&self.rootfs, &self.image) {
            (Some(dir), _) => Ok(Place::Dir(absolute_existing(dir)?)),
            (None, Some(image)) => {
                let image = ImageArg::parse(store, image.as_os_str())?;
                Ok(Place::Image(image.absolute()?))
            }
            (None, None) => bail!("which image?"),
        }
    }

    /// With --rootfs there is no image, and its place is the command's first word.
    fn command_words(&self) -> Vec<OsString> {
        match (&self.rootfs, &self.image) {
            (Some(_), Some(first)) => std::iter::once(first.clone().into_os_string())
                .chain(self.command.clone())
                .collect(),
            _ => self.command.clone(),
        }
    }
}

fn absolute_existing(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize()
        .with_context(|| path.display().to_string())
}

/// `UPPER.work`, beside the upper and so on its filesystem.
pub(crate) fn work_beside(upper: &Path) -> PathBuf {
    let mut name = upper.components().as_path().as_os_str().to_owned();
    name.push(".work");
    name.into()
}

pub(crate) fn parse_net(text: &str) -> Result<Net, String> {
    match text {
        "host" => Ok(Net::Host),
        "none" => Ok(Net::None),
        other => Err(format!(
            "no such network: {other:?}; there are host and none"
        )),
    }
}

fn parse_hostname(text: &str) -> Result<String, String> {
    // sethostname(2): 64 bytes; the characters of hostname(7).
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if !text.is_empty() && text.len() <= 64 && text.chars().all(good) {
        Ok(text.to_owned())
    } else {
        Err("a host name is 1 to 64 letters, digits, dots and hyphens".to_owned())
    }
}

fn parse_volume(text: &std::ffi::OsStr) -> anyhow::Result<Mount> {
    let shown = text.to_string_lossy().into_owned();
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(text);
    let (bytes, read_only) = match bytes {
        [rest @ .., b':', b'r', b'o'] => (rest, true),
        [rest @ .., b':', b'r', b'w'] => (rest, false),
        all => (all, false),
    };
    let Some(colon) = bytes.iter().rposition(|&c| c == b':') else {
        bail!("--volume {shown:?}: write SRC:DST or SRC:DST:ro");
    };
    let (source, destination) = bytes.split_at_checked(colon).unwrap_or_default();
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let destination = path(destination.get(1..).unwrap_or_default());
    let climbs = destination
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if !destination.is_absolute() || destination == Path::new("/") || climbs {
        bail!("--volume {shown:?}: DST must be an absolute path below /, without \"..\"");
    }
    let source = path(source);
    let source = source
        .canonicalize()
        .with_context(|| format!("--volume {}", source.display()))?;
    Ok(Mount::bind(source, destination, read_only))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let mount = parse_volume("/usr:/mnt/a:ro".as_ref()).unwrap();
        assert_eq!(mount, Mount::bind("/usr".into(), "/mnt/a".into(), true));
        let mount = parse_volume("/usr:/mnt/a".as_ref()).unwrap();
        assert_eq!(mount, Mount::bind("/usr".into(), "/mnt/a".into(), false));
        for bad in [
            "/usr",
            "/usr:a",
            "/usr:/",
            "/usr:/a/../b",
            "/nowhere-at-all:/a",
            ":/a:ro",
        ] {
            assert!(parse_volume(bad.as_ref()).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_names() {
        assert!(parse_hostname("a-1.b").is_ok());
        for bad in ["", "a b", "a/b", "ü", &"x".repeat(65)] {
            assert!(parse_hostname(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn work_lies_beside_the_upper() {
        assert_eq!(work_beside(Path::new("/a/b/")), Path::new("/a/b.work"));
    }
}
