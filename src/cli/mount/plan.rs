//! What a mount is to be: the command line and the mount options, brought together.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tarnfs::mount::EngineChoice;
use tarnfs::overlay::Quota;
use tarnfs::sys::mount::MountAttrs;

use super::{Args, Verify};
use crate::cli::Global;
use crate::cli::control::ControlArgs;
use crate::cli::image::{self, ImageArg};
use crate::cli::mount_options::{Options, parse_size};
use crate::cli::prefetch::PrefetchArgs;
use crate::cli::serving::ServingArgs;

/// Where writes go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Writes {
    /// Nowhere.
    Refused,
    /// To the user's directories.
    Kept { upper: PathBuf, work: PathBuf },
    /// To a private tmpfs of so many bytes and inodes.
    Tmpfs {
        size: Option<u64>,
        inodes: Option<u64>,
    },
    /// To a private directory in the store.
    Scratch,
}

/// Everything that was asked for, in one place and with absolute paths.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) global: Global,
    pub(super) image: ImageArg,
    pub(super) dir: PathBuf,
    pub(super) writes: Writes,
    /// What the server is to hold the upper to.
    pub(super) quota: Option<Quota>,
    pub(super) options: Options,
    pub(super) engine: EngineChoice,
    pub(super) serving: ServingArgs,
    pub(super) prefetch: PrefetchArgs,
    pub(super) control: ControlArgs,
    pub(super) verify: Verify,
    pub(super) read_ahead: Option<u32>,
    /// Not even a remount makes it writable.
    pub(super) read_only: bool,
    pub(super) foreground: bool,
}

impl Plan {
    pub(super) fn new(global: &Global, args: Args) -> anyhow::Result<Self> {
        let mut options = Options::parse(&args.options, args.sloppy)?;
        let mut global = global.clone();
        let absolute =
            |path: &Path| std::path::absolute(path).with_context(|| path.display().to_string());
        if let Some(store) = options.store.take() {
            global.store = Some(store);
        }
        if let Some(log) = options.log.take() {
            global.log = log;
        }
        if let Some(file) = options.log_file.take() {
            global.log_file = Some(file);
        }
        for path in [&mut global.store, &mut global.log_file]
            .into_iter()
            .flatten()
        {
            *path = absolute(path)?;
        }
        let store = image::store(&global)?;
        let image = ImageArg::parse(&store, args.image.as_os_str())?.absolute()?;
        let tmpfs = match &args.tmpfs {
            Some(size) if size.is_empty() => Some(None),
            Some(size) => Some(Some(parse_size(size)?)),
            None => options.tmpfs,
        };
        let upper = args.upper.or(options.upper.take());
        let work = args.work.or(options.work.take());
        let ro = args.read_only || options.attrs.has(MountAttrs::RDONLY);
        let size = args.size.or(options.size);
        let inodes = args.inodes.or(options.inodes);
        let writes = match (upper, work, tmpfs) {
            (Some(_), _, Some(_)) => bail!("an upper directory and tmpfs exclude each other"),
            (None, Some(_), _) => bail!("a work directory needs an upper directory (--upper)"),
            (Some(upper), work, None) => {
                let upper = absolute(&upper)?;
                let work = match work {
                    Some(work) => absolute(&work)?,
                    None => beside(&upper)?,
                };
                Writes::Kept { upper, work }
            }
            (None, None, Some(own)) if !ro => {
                if own.is_some() && size.is_some() {
                    bail!("the tmpfs has a size already: give it once");
                }
                Writes::Tmpfs {
                    size: own.or(size),
                    inodes,
                }
            }
            (None, None, None) if !ro => Writes::Scratch,
            (None, None, _) => Writes::Refused,
        };
        // A tmpfs keeps its own limits; nothing is written without an upper.
        let counted = matches!(writes, Writes::Kept { .. } | Writes::Scratch);
        let quota = (counted && (size.is_some() || inodes.is_some())).then_some(Quota {
            bytes: size,
            inodes,
        });
        if args.read_only {
            options.attrs.set(MountAttrs::RDONLY);
        }
        let prefetch = PrefetchArgs {
            record: args.prefetch.record.or(options.record.take()),
            prefetch: args.prefetch.prefetch.or(options.prefetch.take()),
            prefetch_max: args.prefetch.prefetch_max.or(options.prefetch_max),
        };
        let control = args.control.or(ControlArgs {
            control: options.control.take(),
            metrics: options.metrics.take(),
        })?;
        Ok(Self {
            global,
            control,
            serving: ServingArgs {
                passthrough: args.serving.passthrough.or(options.passthrough),
                upper_passthrough: (args.serving.upper_passthrough).or(options.upper_passthrough),
                noopen: args.serving.noopen || options.noopen,
                keep_awake: args.serving.keep_awake.or(options.keep_awake),
            },
            prefetch: prefetch.absolute()?,
            verify: args.verify.or(options.verify).unwrap_or_default(),
            read_ahead: args.read_ahead.or(options.read_ahead),
            image,
            dir: absolute(&args.dir)?,
            read_only: args.read_only || writes == Writes::Refused,
            writes,
            quota,
            engine: args
                .engine
                .map(|name| name.0)
                .or(options.engine)
                .unwrap_or_default(),
            options,
            foreground: args.foreground,
        })
    }

    /// The directories that the mount writes to.
    pub(super) fn own_dirs(&self) -> Vec<&Path> {
        match &self.writes {
            Writes::Kept { upper, work } => vec![upper, work],
            Writes::Refused | Writes::Tmpfs { .. } | Writes::Scratch => Vec::new(),
        }
    }

    /// Whether this process is one that somebody waits for until it is ready.
    pub(super) fn in_background(&self) -> bool {
        !self.options.remount && !self.foreground && self.engine != EngineChoice::Kernel
    }

    /// What was asked for that only a FUSE server has.
    pub(super) fn for_server(&self) -> Option<&'static str> {
        [
            (self.foreground, "--foreground"),
            (self.options.max_read.is_some(), "max_read="),
            (self.read_ahead.is_some(), "--read-ahead"),
            (self.quota.is_some(), "--size and --inodes"),
            (self.options.subtype.is_some(), "subtype="),
            (self.options.allow_other == Some(false), "noallow_other"),
        ]
        .into_iter()
        .find_map(|(asked, name)| asked.then_some(name))
        .or_else(|| self.serving.for_server())
        .or_else(|| self.prefetch.for_server())
        .or_else(|| self.control.for_server())
    }
}

/// `U.work` beside `U`: the same filesystem, and not inside it.
pub(crate) fn beside(upper: &Path) -> anyhow::Result<PathBuf> {
    let name = upper
        .file_name()
        .with_context(|| format!("{}: needs --work", upper.display()))?;
    let mut name = name.to_owned();
    name.push(".work");
    Ok(upper.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tarnfs::mount::control::Listen;

    use super::*;
    use crate::cli::{Cli, Command};

    fn plan(line: &str) -> anyhow::Result<Plan> {
        let argv = format!("tarnfs mount {line}");
        let cli = Cli::try_parse_from(argv.split(' '))?;
        match cli.command {
            Command::Mount(args) => Plan::new(&cli.global, args),
            other => bail!("{other:?}"),
        }
    }

    fn kept(upper: &str, work: &str) -> Writes {
        Writes::Kept {
            upper: upper.into(),
            work: work.into(),
        }
    }

    fn tmpfs(size: Option<u64>, inodes: Option<u64>) -> Writes {
        Writes::Tmpfs { size, inodes }
    }

    #[test]
    fn how_much_may_be_written() {
        let both = Some(Quota {
            bytes: Some(1 << 30),
            inodes: Some(9),
        });
        for line in [
            "--size 1G --inodes 9 a /m",
            "-o size=1G,inodes=9 --upper /u a /m",
            "--inodes 9 -o inodes=7,size=1G a /m",
        ] {
            assert_eq!(plan(line).unwrap().quota, both, "{line}");
        }
        assert_eq!(plan("--upper /u a /m").unwrap().quota, None);
        // A tmpfs keeps them itself.
        for (line, size) in [
            ("--tmpfs --size 1M --inodes 9 a /m", Some(1 << 20)),
            ("--tmpfs=1M --inodes 9 a /m", Some(1 << 20)),
            ("--tmpfs --inodes 9 a /m", None),
        ] {
            let plan = plan(line).unwrap();
            assert_eq!((plan.writes, plan.quota), (tmpfs(size, Some(9)), None));
        }
        let kernel = plan("--engine kernel --size 1G a /m").unwrap();
        assert_eq!(kernel.for_server(), Some("--size and --inodes"));
        let in_memory = plan("--engine kernel --tmpfs --size 1G a /m").unwrap();
        assert_eq!(in_memory.for_server(), None);
    }

    #[test]
    fn where_writes_go() {
        assert_eq!(plan("a /m").unwrap().writes, Writes::Scratch);
        assert_eq!(plan("--read-only a /m").unwrap().writes, Writes::Refused);
        assert_eq!(plan("-o ro a /m").unwrap().writes, Writes::Refused);
        assert_eq!(plan("--tmpfs a /m").unwrap().writes, tmpfs(None, None));
        assert_eq!(
            plan("--tmpfs=1M a /m").unwrap().writes,
            tmpfs(Some(1 << 20), None)
        );
        assert_eq!(
            plan("-o tmpfs=1M a /m").unwrap().writes,
            tmpfs(Some(1 << 20), None)
        );
        assert_eq!(
            plan("--upper /u/ a /m").unwrap().writes,
            kept("/u/", "/u.work")
        );
        assert_eq!(
            plan("--upper /u --work /w a /m").unwrap().writes,
            kept("/u", "/w")
        );
        assert_eq!(
            plan("a /m -o upperdir=/u,workdir=/w,ro").unwrap().writes,
            kept("/u", "/w")
        );
    }

    #[test]
    fn what_excludes_what() {
        for bad in [
            "--upper /u --tmpfs a /m",
            "--work /w a /m",
            "-o workdir=/w a /m",
            "-o tmpfs,upperdir=/u a /m",
            "--tmpfs=none a /m",
            "--tmpfs=1M --size 2M a /m",
            "--size none a /m",
            "--inodes 0 a /m",
            "--read-only --size 1M a /m",
            "-o bogus a /m",
            "--upper / a /m",
        ] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn read_only_for_good_or_for_now() {
        let for_now = plan("-o ro,upperdir=/u a /m").unwrap();
        assert!(!for_now.read_only && for_now.options.attrs.has(MountAttrs::RDONLY));
        let for_good = plan("--read-only --upper /u a /m").unwrap();
        assert!(for_good.read_only && for_good.options.attrs.has(MountAttrs::RDONLY));
        assert!(plan("-o ro a /m").unwrap().read_only);
    }

    #[test]
    fn which_engine() {
        assert_eq!(plan("a /m").unwrap().engine, EngineChoice::Fuse);
        let auto = plan("--engine auto a /m").unwrap();
        assert!(auto.engine == EngineChoice::Auto && auto.for_server().is_none());
        let kernel = plan("-f -o engine=kernel a /m").unwrap();
        assert!(kernel.engine == EngineChoice::Kernel && kernel.for_server().is_some());
        assert!(plan("--engine steam a /m").is_err());
        let asked = plan("--engine kernel --metrics 127.0.0.1:0 a /m").unwrap();
        assert_eq!(asked.for_server(), Some("--metrics"));
    }

    #[test]
    fn options_speak_for_the_command_line() {
        let plan = plan("-o store=s,log=debug,log_file=/l a m").unwrap();
        assert_eq!(plan.global.log, "debug");
        assert_eq!(plan.global.log_file, Some("/l".into()));
        assert!(plan.global.store.unwrap().is_absolute());
        let here = std::env::current_dir().unwrap();
        assert_eq!(plan.dir, here.join("m"));
        let plan = self::plan("-o control=c,metrics=unix:m a m").unwrap();
        assert_eq!(plan.control.control, Some(here.join("c")));
        assert_eq!(plan.control.metrics, Some(Listen::Unix(here.join("m"))));
    }
}
